"""The explorer of the report: every query of small models, to be seen as it travels through the network.

`section` is a piece of a page, with its style, script and data inside. What it shows was computed
here, by `geomem.inside.trace`, and is kept; the script only draws. Its files are in `page/`. Where
coordinates have no names, it also shows what linear readouts say of them.

Shapes as in `geomem.inside.trace`.
"""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np

from experiments.harness import machine, records
from experiments.page.offers import Offer, models
from geomem import queries as query
from geomem.construction import Construction
from geomem.inside import asking
from geomem.inside import trace as tracing
from geomem.inside.trace import Trace
from geomem.layout import Layout

PAGE, LOGITS = Path(__file__).parent, 8


class Pool:
  """Each thing once; a thing is its number."""

  def __init__(self):
    self.items, self._numbers = [], {}

  def __call__(self, item) -> int:
    if isinstance(item, np.ndarray):
      item = [_round(value) for value in item.ravel()]
    number = self._numbers.setdefault(json.dumps(item), len(self.items))
    self.items += [item] * (number == len(self.items))
    return number


def _round(value) -> float | int:
  value = float(f'{value:.3g}')
  return int(value) if value.is_integer() else value


def data(offers: list[Offer]) -> dict:
  """All that the page shows, in numbers and words."""
  return {'models': [_model(offer) for offer in offers]}


def _model(offer: Offer) -> dict:
  c, pool = offer.construction, Pool()
  hidden = [[_cards(c, layout) for layout in layers] for layers in c.hidden]
  if not hidden:
    hidden = [[[['units', '', width]] for width in block.hidden] for block in c.config.blocks]
  queries = [_query(offer, pool, subject, path) for subject, path in offer.queries()]
  right = sum(query['answer'][-1] == query['truth'] for query in queries)
  if offer.readouts:
    right = int(offer.readouts.right)
  return {
    'name': c.name, 'title': offer.title, 'about': offer.about, 'sizes': _sizes(c), 'hops': c.hops,
    'accuracy': f'{right:,} of its {c.queries:,} queries answered right',
    'subjects': [c.facts.subject_name(int(s)) for s in offer.subjects],
    'relations': [c.facts.relation_name(r) for r in range(c.facts.relations)],
    'answers': c.facts.attributes, 'cards': _cards(c, c.layout), 'hidden': hidden,
    'readout': offer.readouts and [_round(offer.readouts.explained), _round(offer.readouts.hit)],
    'queries': queries, 'pool': pool.items,
  }  # fmt: skip


def _sizes(c: Construction) -> str:
  blocks = c.config.blocks
  widths = ' + '.join(dict.fromkeys(' then '.join(map(str, b.hidden)) or '0' for b in blocks))
  heads = max(b.heads for b in blocks)
  return (
    f'N = {c.facts.subjects}, R = {c.facts.relations}, d = {c.config.dim}, F = {widths}, '
    f'{heads} head{"s" * (heads > 1)}, depth {c.config.depth}'
  )


def _cards(c: Construction, layout: Layout) -> list:
  """Groups of coordinates, entries with a code or slots of plain numbers: slot, entry, size of each."""
  cards = []
  for slot in layout.slots:
    if slot.code is None and slot.size:
      cards.append([slot.name, '', slot.size])
    elif slot.size:
      labels = [tracing.entry_label(c.facts, slot, e) for e in range(slot.size // slot.width)]
      cards += [[slot.name, label.removeprefix(slot.name)[1:-1], slot.width] for label in labels]
  return cards


def _query(offer: Offer, pool: Pool, subject: int, path) -> dict:
  """One query: what is read, then every step of the answer."""
  c = offer.construction
  facts, got = c.facts, asking.answer(c, subject, path)
  truths = query.walk(facts.answers_RxN, subject, path)[-len(got.steps) :]
  seen = tracing.trace_prompt(c, got.tokens_L)
  steps = [
    _step(offer, pool, seen, p, truth) for p, truth in zip(seen.positions, truths, strict=True)
  ]
  row = int(np.flatnonzero(offer.subjects == subject)[0])
  if offer.readouts:
    _add_readouts(offer, pool, steps[0], row, path[0])
  return {
    'query': got.query,
    'answer': list(got.steps),
    'truth': got.truth,
    'margin': tracing.number(got.margin, 4),
    'tokens': [seen.token(p) for p in range(len(got.tokens_L))],
    'steps': steps,
  }


def _step(offer: Offer, pool: Pool, seen: Trace, p: int, truth: int) -> dict:
  """One answer position: the residual's rows and all between them."""
  nothing, blocks = np.zeros_like(seen.embedded_LxD[0]), []
  tokens = [
    _row(pool, seen, seen.embedded_LxD[q], nothing, None, embedding=True)[0] for q in range(p + 1)
  ]
  told = None
  for i, block in enumerate(seen.blocks):
    before_D, read_D, written_D = seen.before(i)[p], block.read_LxD[p], block.written_LxD[p]
    read, told = _row(pool, seen, read_D, before_D, tracing.relation_outputs(seen, i, p), told)
    found = {'heads': [pool(head_L) for head_L in block.attention_HxLxL[:, p, : p + 1]]}
    found |= {'read': read, 'hidden': [_fired(offer, pool, seen, i, j, p) for j in range(len(block.hidden))]}  # fmt: skip
    if block.hidden:
      found['written'], told = _row(pool, seen, written_D, read_D, nothing, told)
    blocks.append(found)
  logits_A = seen.logits_LxA[p]
  best = np.argsort(-logits_A, kind='stable')
  gap = float(logits_A[best[0]] - logits_A[best[1]])
  best = [*best[:LOGITS], *({truth} - set(best[:LOGITS].tolist()))]
  facts = seen.construction.facts
  logits = [
    [facts.attribute_name(int(a)), tracing.number(logits_A[a], 4, gap), _round(logits_A[a])]
    for a in best
  ]
  right = facts.attribute_name(truth)
  return {'at': p, 'tokens': tokens, 'blocks': blocks, 'logits': logits, 'right': right, 'margin': tracing.number(gap, 4)}  # fmt: skip


def _fired(offer: Offer, pool: Pool, seen: Trace, block: int, layer: int, p: int) -> list:
  """A hidden layer: its values, how many fire, the names of the first of these."""
  c, values_F = offer.construction, seen.blocks[block].hidden[layer][p]
  fired, names = np.flatnonzero(values_F), []
  for unit in fired[np.argsort(-values_F[fired], kind='stable')][: tracing.SHOWN]:
    name = tracing.unit_name(seen, block, layer, unit)
    if offer.readouts and not c.hidden and (own := int(offer.readouts.own_F[unit])) >= 0:
      name += f', of {c.facts.relation_name(own)}'
    names.append(name)
  return [pool(values_F), len(fired), pool(names or [tracing.idle(seen, block, layer, p)])]


def _row(pool: Pool, seen: Trace, values_D, before_D, laid_D, told=None, embedding=False):
  """The residual once: its values, a word and a state for each card, and these two for the next row.

  States: held by an embedding, new, closed, old (as in the row before).
  """
  last, words, states = told or (None, None), [], ''
  for slot, values, decoded, new_E, closed_E in tracing.changes(seen, values_D, before_D, laid_D):
    if decoded is None:
      words.append('')
      states += 'h' if embedding else 'n' if new_E.any() else 'o'
      continue
    for e in range(len(values)):
      word, state = '', 'o'
      if closed_E[e]:
        word, state = 'closes' if embedding else 'closed', 'c'
      elif new_E[e]:
        word = tracing.describe(seen.construction.facts, slot, values, decoded, e).split(' ±')[0]
        word, state = word.removeprefix(f'{slot.of} '), 'h' if embedding else 'n'
      elif embedding and closed_E.any():
        word, state = 'open', 'h'
      elif last[0]:
        word, state = last[0][len(words)], last[1][len(words)].replace('n', 'o')
      words.append(word)
      states += state
  return [pool(values_D), pool(words), pool(states)], (words, states)


def _add_readouts(offer: Offer, pool: Pool, step: dict, row: int, asked: int):
  """What linear readouts say at each stage, one of every relation, and the embedding in its parts."""
  facts, subject = offer.construction.facts, int(offer.subjects[row])
  for name, said_SxQxR in offer.readouts.said.items():
    said = [[facts.attribute_name(int(a)), int(a == t)] for a, t in zip(said_SxQxR[row, asked], facts.answers_RxN[:, subject], strict=True)]  # fmt: skip
    step[f'{name}_says'] = pool(said)
  answers = [facts.attribute_name(int(a)) for a in facts.answers_RxN[:, subject]]
  labels = [f'image of {a} under {facts.relation_name(r)}' for r, a in enumerate(answers)]
  labels = ['mean of all subjects', *labels, 'what is left over']
  parts = zip(labels, offer.readouts.parts_SxPxD[row], strict=True)
  step['parts'] = pool([[label, pool(values_D)] for label, values_D in parts])


def kept(path: Path) -> dict:
  """The data of all `models()`; those that this code has left there, or else made, and left there."""
  with contextlib.suppress(FileNotFoundError, ValueError):
    known = json.loads(path.read_text(encoding='utf-8'))
    if known['code'] == machine.code_hash():
      return known['data']
  print('making the models of the explorer: about a minute, once', file=sys.stderr)
  found = data(models())
  records.write_text(path, _text({'code': machine.code_hash(), 'data': found}))
  return found


def _text(found: dict) -> str:
  return json.dumps(found, ensure_ascii=False, separators=(',', ':'))


def section(found: dict) -> str:
  """The piece of a page that shows these data."""
  text = _text(found).replace('<', '\\u003c')
  read = lambda name: (PAGE / name).read_text(encoding='utf-8')
  return (
    f'<style>\n{read("explorer.css")}</style>\n{read("explorer.html")}'
    f'<script type="application/json" id="explorer-data">{text}</script>\n'
    f'<script>\n{read("explorer.js")}</script>\n'
  )
