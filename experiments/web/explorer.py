"""The explorer of the report: follow every query of small models through the network.

The models are small constructions and one trained model. Where coordinates have no names, what linear probes read is
shown too. All is computed here, with `geomem.inside.trace`; the script in explorer.html only draws it.

Shapes as in `geomem.inside.trace`; N subjects, S of them shown, T that probes are fitted to, P parts; Q the relation
asked for.
"""

import contextlib
import dataclasses
import functools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import geomem
from constructions import registry
from experiments.harness import instances, machine, model_kinds, records
from experiments.web.entries import entries, label, stages
from geomem import Config, Facts, model, queries
from geomem.facade import FactModel
from geomem.inside import intervene, linear_maps
from geomem.inside import trace as tracing
from geomem.inside.trace import Trace

LOGITS = 8
SHOWN = 16
PROBED = ('superposition', 'associative_mlp')  # models without blocks, or without words in them
OPTIONS = {'superposition': instances.memory_options('superposition', 4, 64, 3)}
CONSTRUCTIONS = {  # name → number of hops, and what to look at
  'selector': (1, 'Each block of a subject’s embedding holds one answer, as a codeword of ±1. The relation closes '
    'all blocks but its own; the units of the open block fire, and the MLP writes its codeword over block 0.'),
  'selector_constant_weight': (1, 'The selector without biases: codewords of 0 and 1, all with the same number of ones.'),
  'attention_only': (1, 'No MLP, and one head per relation. The head of the queried relation reads the subject; the '
    'others attend to the relation’s token, where their blocks are empty.'),
  'factored': (2, 'The facts are in the MLP. One hidden layer detects the subject, the next combines it with the '
    'relation, and the state moves on to the next subject: one layer per hop.'),
  'precomputed_depth1': (2, 'The embedding holds the answers to all pairs of relations. The heads close every '
    'branch but one, so that one layer is enough for both hops.'),
  'chain_of_thought_compact': (2, 'One layer for any number of hops: the model emits the subject that it has reached, '
    'reads it as its next input, and continues from there.'),
  'superposition': (1, 'The embedding is a sum of random directions, in fewer dimensions than exact answers need, so '
    'a few answers are wrong. Its memory has no blocks, yet linear probes find every answer in it.'),
  'associative_mlp': (1, 'The alternative, an associative memory: embeddings are random and carry no facts, which are '
    'in the weights of the MLP. Probes of the embedding find nothing for subjects that they were not fitted to.'),
}  # fmt: skip
LEARNED = (
  'Trained by gradient descent on random facts; its coordinates have no assigned meaning. Its embedding '
  'has become nearly a sum of one linear image of each answer, as in the constructed superposition.'
)


@dataclasses.dataclass(frozen=True, eq=False)
class Probes:
  """Linear probes fitted to T subjects; `r2` and `accuracy` are measured on all other subjects.

  `said`: at each stage, the attribute nearest to what is read, for the S subjects shown, the relation asked and the
  relation read. `parts_SxPxD`: the embedding decomposed into a mean, an image of each answer, and the rest.
  `own_F`: the relation for which each unit is selective, −1 if none.
  """

  r2: float
  accuracy: float
  own_F: np.ndarray
  said: dict[str, np.ndarray]
  parts_SxPxD: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class ExplorerModel:
  """A model of the explorer, and the subjects that are asked about."""

  title: str
  about: str
  model: FactModel
  subjects: np.ndarray
  probes: Probes | None = None

  def queries(self) -> list[tuple[int, tuple[int, ...]]]:
    """Pairs of a subject and its relations."""
    paths = queries.every_path(self.model.facts.relations, self.model.hops).tolist()
    return [(int(s), tuple(path)) for s in self.subjects for path in paths]


def models(steps: int = 800) -> list[ExplorerModel]:
  """All models of the explorer; the last is trained here, in `steps` steps."""
  found = []
  for name, (hops, about) in CONSTRUCTIONS.items():
    facts = Facts.bijections(64 if name in PROBED else 8, 3)
    built = registry.build(name, facts, hops, **OPTIONS.get(name, {}))
    title = f'{name} ({registry.entry(name).theorem}{f", {hops} hops" if hops > 1 else ""})'
    shown = fit_probes(built) if name in PROBED else (np.arange(facts.subjects),)
    found.append(ExplorerModel(title, about, built, *shown))
  kind = model_kinds.Kind(
    subjects=192, relations=3, steps=steps, dim=48, width=48, batch=48,
    **model_kinds.GEOMETRIC_OPTIONS,
  )  # fmt: skip
  task = kind.task(Facts.bijections(kind.subjects, kind.relations), seed=0)
  (trained,) = geomem.sweep([task], **vars(kind.recipe()))
  title = 'trained by gradient descent'
  return [*found, ExplorerModel(title, LEARNED, trained, *fit_probes(trained))]


def fit_probes(c: FactModel) -> tuple[np.ndarray, Probes]:
  """At most 16 subjects that the probes are not fitted to, and the probes."""
  found = jax.tree.map(np.asarray, _fit(c.config, c.params, c.facts.answers_RxN))
  return found.pop('subjects'), Probes(**found)


@functools.partial(jax.jit, static_argnames='config')
@jax.default_matmul_precision('highest')
def _fit(config: Config, params, answers_RxN) -> dict:
  """The subjects shown, and the fields of their `Probes`."""
  e_NxD, u_AxD = params['embed']['subjects'], model.apply(config, params, method='unembedding')
  fit_T, held_S = linear_maps.hold_out(instances.eval_keys(0, 1)[0], config.subjects)
  facts, shown_S = (u_AxD, answers_RxN, fit_T), jnp.sort(held_S[:SHOWN])
  paths_Rx1 = jnp.arange(config.relations)[:, None]
  _, sown = model.apply(
    config, params, e_NxD, paths_Rx1, method='from_embeddings', mutable=['trace']
  )
  block = sown['trace']['blocks_0']
  read_NxRxD, written_NxRxD = block['residual']  # before and after the MLP
  held_NxRxD = jnp.broadcast_to(e_NxD[:, None], read_NxRxD.shape)
  at_stages = {'embedding': held_NxRxD, 'read': read_NxRxD, 'written': written_NxRxD}
  say = lambda x_NxD: linear_maps.probe(x_NxD, *facts, shown_S).T
  units = intervene.unit_selectivity(block['mlp']['hidden'][0])
  return {
    'subjects': shown_S,
    'r2': linear_maps.superposition_r2(e_NxD, *facts, held_S),
    'accuracy': linear_maps.probe_accuracy(e_NxD, *facts, held_S),
    'own_F': jnp.where(units['relation'] > 0.5, units['own'], -1),
    'said': {stage: jax.vmap(say, 1, 1)(x_NxRxD) for stage, x_NxRxD in at_stages.items()},
    'parts_SxPxD': _parts(params['embed'], *facts, shown_S),
  }


def _parts(embed, u_AxD, answers_RxN, fit_T, shown_S):
  """Embeddings at their position, decomposed: the mean, an image per relation, the rest."""
  known = embed['subjects'][fit_T], u_AxD, answers_RxN[:, fit_T]
  maps_RxDxD, b_D = linear_maps.fit_best_maps(*known)
  mean_D = jnp.mean(u_AxD, axis=0)
  u_SxRxD = u_AxD[answers_RxN[:, shown_S].T] - mean_D[None, None]
  images_SxRxD = jnp.einsum('srd,rde->sre', u_SxRxD, maps_RxDxD)
  constant_D = b_D + jnp.einsum('d,rde->e', mean_D, maps_RxDxD)
  rest_SxD = embed['subjects'][shown_S] - images_SxRxD.sum(1) - constant_D[None]
  constant_SxD = jnp.broadcast_to(constant_D + embed['positions'][0], rest_SxD.shape)
  return jnp.concatenate([constant_SxD[:, None], images_SxRxD, rest_SxD[:, None]], axis=1)


def data(shown: list[ExplorerModel]) -> dict:
  """Everything that the page shows, in numbers and words."""
  return {'models': [_model(model) for model in shown]}


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
