"""The explorer of the report: follow every query of small models through the network.

Its data are computed here, with `geomem.inside.trace`, and saved; the script in explorer.html only draws them. Where
coordinates have no names, what linear probes read is shown too. Shapes as in `geomem.inside.trace`.
"""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np

from experiments.harness import machine, records
from experiments.web.entries import entries, label, stages
from experiments.web.explorer_models import ExplorerModel, Probes, models
from geomem import queries
from geomem.facade import FactModel
from geomem.inside import trace as tracing
from geomem.inside.trace import Trace

LOGITS = 8


def data(shown: list[ExplorerModel]) -> dict:
  """Everything that the page shows, in numbers and words."""
  return {'models': [_model(model) for model in shown]}


def _model(shown: ExplorerModel) -> dict:
  c, facts, probes = shown.model, shown.model.facts, shown.probes
  hidden = [[_cards(c, layout) for layout in layers] for layers in c.hidden]
  plain = [[[['units', '', width]] for width in block.hidden] for block in c.config.blocks]
  return {
    'name': c.name, 'title': shown.title, 'about': shown.about, 'sizes': _sizes(c), 'hops': c.hops,
    'accuracy': f'{c.verify("exhaustive").correct:,} of its {c.queries:,} queries answered correctly',
    'subjects': [facts.subject_name(int(s)) for s in shown.subjects],
    'relations': [facts.relation_name(r) for r in range(facts.relations)],
    'answers': facts.attributes, 'cards': _cards(c, c.layout), 'hidden': hidden or plain,
    'probes': probes and [_round(probes.r2), _round(probes.accuracy)],
    'queries': [_query(shown, subject, path) for subject, path in shown.queries()],
  }  # fmt: skip


def _round(value) -> float | int:
  value = float(f'{value:.3g}')
  return int(value) if value.is_integer() else value


def _sizes(c: FactModel) -> str:
  blocks = c.config.blocks
  widths = ' + '.join(dict.fromkeys(' then '.join(map(str, b.hidden)) or '0' for b in blocks))
  heads = max(b.heads for b in blocks)
  return (
    f'N = {c.facts.subjects}, R = {c.facts.relations}, d = {c.config.dim}, F = {widths}, '
    f'{heads} head{"s" * (heads > 1)}, depth {c.config.depth}'
  )


def _cards(c: FactModel, layout) -> list:
  """Groups of coordinates: the slot, entry and size of each."""
  return [[e.slot.name, e.name, e.at.stop - e.at.start] for e in entries(c.facts, layout)]


def _query(shown: ExplorerModel, subject: int, path) -> dict:
  """One query: the tokens read, then every step of the answer."""
  c, facts = shown.model, shown.model.facts
  text = tracing.join_names([facts.subject_name(subject), *map(facts.relation_name, path)])
  answer, trace = c.ask(text), c.trace(text)
  truths = queries.walk(facts.answers_RxN, subject, path)[-len(answer.steps) :]
  steps = [_step(shown, trace, p, t) for p, t in zip(trace.positions, truths, strict=True)]
  if shown.probes:
    steps[0] |= _probed(shown, shown.probes, subject, path[0])
  return {
    'query': text, 'answer': answer.steps, 'truth': answer.truth,
    'margin': tracing.number(answer.margin, 4),
    'tokens': [trace.token(p) for p in range(len(trace.tokens_L))], 'steps': steps,
  }  # fmt: skip


def _step(shown: ExplorerModel, trace: Trace, p: int, truth: int) -> dict:
  """One answer position: the rows of the residual and everything between them."""
  embedded_LxD = trace.embedded_LxD[: p + 1]
  tokens, blocks, row = [_row(trace, (x_D, np.zeros_like(x_D))) for x_D in embedded_LxD], [], None
  for i, block in enumerate(trace.blocks):
    after_attention, after_mlp = stages(trace, i, p)
    read = row = _row(trace, after_attention, row)
    if block.hidden:
      row = _row(trace, after_mlp, row)
    blocks.append({
      'heads': [[_round(w) for w in head_L] for head_L in block.attention_HxLxL[:, p, : p + 1]],
      'read': read,
      'hidden': [_units(shown, trace, i, j, p) for j in range(len(block.hidden))],
      'written': row if block.hidden else None,
    })  # fmt: skip
  logits_A, name = trace.logits_LxA[p], trace.construction.facts.attribute_name
  order = np.argsort(-logits_A, kind='stable').tolist()
  gap = float(logits_A[order[0]] - logits_A[order[1]])
  return {
    'at': p, 'tokens': tokens, 'blocks': blocks, 'right': name(truth), 'margin': tracing.number(gap, 4),
    'logits': [[name(a), tracing.number(logits_A[a], 4, gap), _round(logits_A[a])]
               for a in dict.fromkeys([*order[:LOGITS], truth])],
  }  # fmt: skip


def _row(trace: Trace, stage: tuple, last: dict | None = None) -> dict:
  """One row of the residual: its values, and for each card a word and the first letter of its state."""
  labels = label(trace, *stage)
  words, states = [word for word, _ in labels], [state[0] for _, state in labels]
  if last:  # unchanged entries look as in the row before, but are no longer new
    words = [w if s != 'u' else old for w, s, old in zip(words, states, last['words'], strict=True)]
    was = last['states'].replace('n', 'u')
    states = [s if s != 'u' else old for s, old in zip(states, was, strict=True)]
  return {'values': [_round(v) for v in stage[0]], 'words': words, 'states': ''.join(states)}


def _units(shown: ExplorerModel, trace: Trace, block: int, layer: int, p: int) -> dict:
  """A hidden layer: its values, how many units fire, and the names of those that fire most."""
  c, values_F = shown.model, trace.blocks[block].hidden[layer][p]
  fired = np.flatnonzero(values_F)
  names: list[str] = []
  for unit in fired[np.argsort(-values_F[fired], kind='stable')][: tracing.SHOWN]:
    names.append(tracing.unit_name(trace.construction, block, layer, unit))
    if shown.probes and not c.hidden and (own := int(shown.probes.own_F[unit])) >= 0:
      names[-1] += f', of {c.facts.relation_name(own)}'
  names = names or [tracing.idle(trace, block, layer, p)]
  return {'values': [_round(v) for v in values_F], 'count': len(fired), 'names': names}


def _probed(shown: ExplorerModel, probes: Probes, subject: int, asked: int) -> dict:
  """What linear probes read at each stage, one per relation, and the parts of the embedding."""
  facts, row = shown.model.facts, shown.subjects.tolist().index(subject)
  answers_R = facts.answers_RxN[:, subject].tolist()
  said = {
    stage: [[facts.attribute_name(a), a == t] for a, t in zip(found_SxQxR[row, asked].tolist(), answers_R, strict=True)]
    for stage, found_SxQxR in probes.said.items()
  }  # fmt: skip
  images = [f'image of {facts.attribute_name(a)} under {facts.relation_name(r)}' for r, a in enumerate(answers_R)]  # fmt: skip
  labels = ['mean of all subjects', *images, 'remainder']
  parts = zip(labels, probes.parts_SxPxD[row], strict=True)
  return {'said': said, 'parts': [[text, [_round(v) for v in x_D]] for text, x_D in parts]}


def kept(path: Path) -> dict:
  """The data of all `models()`: those that this code has saved at `path`, else computed and saved there."""
  with contextlib.suppress(FileNotFoundError, ValueError):
    known = json.loads(path.read_text(encoding='utf-8'))
    if known['code'] == machine.code_hash():
      return known['data']
  print('making the models of the explorer, once: about a minute', file=sys.stderr)
  found = data(models())
  records.write_text(path, json.dumps({'code': machine.code_hash(), 'data': found}))
  return found
