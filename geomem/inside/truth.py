"""The ground truth about a construction's internals: read by programs, transformed by symmetries, tested by ablation.

The names of coordinates and units say which units serve which relation, which subspace of a subject's embedding
holds its answer to which relation or path of relations, and which slots every head reads and writes.

  >>> built = constructions.build('selector', Facts.bijections(8, 2))
  >>> known = of(built)
  >>> [part.paths for part in known.subspaces]
  [((0,),), ((1,),)]
  >>> unit_specificity(built, known), head_specificity(built, known), interchange_accuracy(built, known)
  (1.0, None, 1.0)
  >>> evaluate(built)  # accuracy and least margin
  (1.0, 4.0)
  >>> off_F = tuple(tuple(layer[0] for layer in block) for block in known.serves_RxF)  # units of the first relation
  >>> evaluate(built.replace(params=ablate_everywhere(built.params, off_F)))[0]  # one of eight by chance
  0.5625

Shapes: N subjects, R relations, W paths of relations, D residual width, F hidden units, K dimensions of a subspace.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from geomem import codes, queries
from geomem import model as transformer
from geomem.checks import verify
from geomem.config import Config
from geomem.construction import Construction
from geomem.facade import FactModel
from geomem.inside import trace
from geomem.inside.symmetry import Symmetry
from geomem.layout import BRANCH, RELATION, Layout, Slot

Path = tuple[int, ...]
STORED = 'stored'  # an axis of partly_precomputed: the first relations, whose answers are not in the weights


@dataclasses.dataclass(frozen=True, eq=False)
class Subspace:
  """Orthonormal rows that span the part of a subject's embedding that holds its answers to `paths`.

  There is one path, or several whose answers follow from one another, or none where the part is the subject's identity.

  >>> of(constructions.build('selector', Facts.bijections(8, 2))).subspaces[1].paths
  ((1,),)
  """

  name: str
  paths: tuple[Path, ...]
  frame_KxD: np.ndarray


@dataclasses.dataclass(frozen=True)
class Head:
  """The slots that a head's query, key and value read and that it writes; `relations`: those it serves (empty: all).

  >>> of(constructions.build('selector', Facts.bijections(8, 2))).heads[0][0].output
  ('blocks',)
  """

  query: tuple[str, ...]
  key: tuple[str, ...]
  value: tuple[str, ...]
  output: tuple[str, ...]
  relations: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
  """What is known about a model's internals.

  `slots`: orthonormal rows of every named slot of the residual stream. `units[block][layer][f]`: a unit's name;
  `serves_RxF[block][layer]`: whether a unit serves a relation in particular, not all. `heads[block][h]`: a head's slots.

  >>> of(constructions.build('selector', Facts.bijections(8, 2))).units[0][0][3]
  'selected[r1] bit 0'
  """

  slots: dict[str, np.ndarray]
  subspaces: tuple[Subspace, ...]
  units: tuple[tuple[tuple[str, ...], ...], ...]
  serves_RxF: tuple[tuple[np.ndarray, ...], ...]
  heads: tuple[tuple[Head, ...], ...]

  def transformed(self, symmetry: Symmetry) -> 'Truth':
    """The truth about the model that the symmetry turns this one's model into."""
    q_DxD = symmetry.rotation_DxD
    rotated = lambda s: dataclasses.replace(s, frame_KxD=s.frame_KxD @ q_DxD)
    each = lambda parts, orders, take: tuple(
      tuple(map(take, part, order)) for part, order in zip(parts, orders, strict=True)
    )
    pick = lambda items, order: tuple(items[i] for i in order)
    return Truth(
      {name: rows @ q_DxD for name, rows in self.slots.items()},
      tuple(map(rotated, self.subspaces)),
      each(self.units, symmetry.units, pick),
      each(self.serves_RxF, symmetry.units, lambda serves, order: serves[:, order]),
      tuple(pick(h, order) for h, order in zip(self.heads, symmetry.heads, strict=True)),
    )

  def plain(self) -> dict[str, Any]:
    """The truth as plain values for JSON."""
    units = [
      [
        [{'name': name, 'relations': np.flatnonzero(serves).tolist()} for name, serves in zip(names, of_F.T, strict=True)]
        for names, of_F in zip(*layers, strict=True)
      ]
      for layers in zip(self.units, self.serves_RxF, strict=True)
    ]  # fmt: skip
    rows = lambda a: np.round(a, 7).tolist()
    return {
      'slots': {name: rows(frame) for name, frame in self.slots.items()},
      'subspaces': [
        {'name': s.name, 'paths': s.paths, 'frame': rows(s.frame_KxD)} for s in self.subspaces
      ],
      'units': units,
      'heads': [[dataclasses.asdict(head) for head in heads] for heads in self.heads],
    }

  @classmethod
  def from_plain(cls, plain: dict[str, Any], relations: int) -> 'Truth':
    """The truth that `plain` wrote out."""
    array = lambda rows: np.asarray(rows, np.float64)
    every = np.arange(relations)[:, None]
    serves = lambda layer: np.hstack([np.isin(every, unit['relations']) for unit in layer])
    return cls(
      {name: array(rows) for name, rows in plain['slots'].items()},
      tuple(
        Subspace(s['name'], tuple(map(tuple, s['paths'])), array(s['frame']))
        for s in plain['subspaces']
      ),
      tuple(tuple(tuple(u['name'] for u in layer) for layer in b) for b in plain['units']),
      tuple(tuple(map(serves, block)) for block in plain['units']),
      tuple(
        tuple(Head(**{k: tuple(v) for k, v in head.items()}) for head in heads)
        for heads in plain['heads']
      ),
    )


def of(built: Construction) -> Truth:
  """The truth about a construction, from the names of its coordinates and units."""
  R, eye = built.facts.relations, np.eye(built.config.dim)
  name = lambda i, j: lambda f: trace.unit_name(built, i, j, f)
  units = tuple(
    tuple(tuple(map(name(i, j), range(layer.dim))) for j, layer in enumerate(block))
    for i, block in enumerate(built.hidden)
  )
  serves = tuple(tuple(_serves(layer, R) for layer in block) for block in built.hidden)
  bare = () if built.hidden else ((),) * built.config.depth
  return Truth(
    {slot.name: eye[built.layout[slot.name]] for slot in built.layout.slots},
    tuple(_encoded(built) if built.encode else _named(built)),
    units or bare,
    serves or bare,
    tuple(_heads(built, i) for i in range(built.config.depth)),
  )


def _serves(layer: Layout, relations: int) -> np.ndarray:
  """RxF: whether a unit's name contains the relation, alone or on a path."""
  columns = [np.zeros((relations, 0), bool)]
  for slot in layer.slots:
    serves_RxE = np.zeros((relations, slot.size // slot.width), bool)
    for e in range(serves_RxE.shape[1]):
      # A stored answer on a branch serves that branch, whichever relation comes last.
      paths = _paths(slot, e, relations, stored=len(slot.axes) == 1)
      serves_RxE[[r for path in paths for r in path], e] = True
    serves_RxF = np.repeat(serves_RxE, slot.width, axis=1)
    if isinstance(slot.code, codes.OneHot) and slot.of == RELATION:
      serves_RxF |= np.tile(np.eye(relations, dtype=bool), serves_RxE.shape[1])
    columns.append(serves_RxF)
  return np.concatenate(columns, axis=1)


def _paths(slot: Slot, entry: int, R: int, stored: bool = True) -> list[Path]:
  """The paths of relations that an entry is about; an axis shorter than the number of relations covers the last ones."""
  found: list[Path] = [()]
  index = np.unravel_index(entry, slot.shape)
  for (kind, size), i in zip(slot.axes, map(int, index), strict=True):
    if kind == RELATION:
      found = [(*path, R - size + i) for path in found]
    elif kind == BRANCH:
      hops = next(h for h in itertools.count() if R**h >= size)
      found = [(*path, *queries.paths(R, hops, i).tolist()) for path in found]
    elif kind == STORED and stored:
      # The first answer identifies the subject, whose other answers the weights know.
      more = range(size, R) if i == 0 and len(slot.axes) > 1 else ()
      found = [(*path, r) for path in found for r in (i, *more)]
  return found


def _encoded(built: Construction) -> list[Subspace]:
  """For every path, the subspace in which an embedding changes when the answer to that path does."""
  assert built.encode is not None
  paths = queries.every_path(built.facts.relations, built.hops).tolist()
  choices = built.choices or (np.arange(built.facts.attributes),) * len(paths)
  first_W = np.array([own[0] for own in choices], np.int32)
  found = []
  for w, (path, own) in enumerate(zip(paths, choices, strict=True)):
    tables_WxA = np.tile(first_W[:, None], len(own))
    tables_WxA[w] = own
    e_AxD = np.asarray(built.encode(tables_WxA), np.float64)
    found.append(Subspace(f'answers to {path}', (tuple(path),), _span(e_AxD - e_AxD[:1])))
  return found


def _named(built: Construction) -> list[Subspace]:
  """The subspaces of the slots in which subjects differ: one per entry, or per slot without a code."""
  e_NxD, found = np.asarray(built.params['embed']['subjects']), []
  for slot in built.layout.slots:
    if not np.ptp(e_NxD[:, built.layout[slot.name]], axis=0).any():
      continue
    width = slot.width if slot.code else slot.size
    for e in range(slot.size // width):
      start = built.layout[slot.name].start + e * width
      paths = tuple(_paths(slot, e, built.facts.relations)) if slot.code else ((),)
      label = trace.entry_label(built.facts, slot, e) if slot.code else slot.name
      frame_KxD = np.eye(built.config.dim)[start : start + width]
      found.append(Subspace(label, tuple(filter(None, paths)), frame_KxD))
  return found


def _span(rows_AxD: np.ndarray) -> np.ndarray:
  _, size_K, frame_KxD = np.linalg.svd(rows_AxD, full_matrices=False)
  return frame_KxD[size_K > 1e-5 * max(size_K[0], 1e-30)]


def _heads(built: Construction, i: int) -> tuple[Head, ...]:
  """The heads of block i; each serves one relation where there are as many as relations and no units to choose."""
  attention = built.params[f'blocks_{i}']['attention']
  own = not built.hidden and built.config.blocks[i].heads == built.facts.relations > 1

  def slots(matrix_DxK) -> tuple[str, ...]:
    at = built.layout
    return tuple(s.name for s in at.slots if np.any(matrix_DxK[at[s.name]]))

  def head(h: int) -> Head:
    query, key, value = (slots(attention[name][h]) for name in ('query', 'key', 'value'))
    return Head(query, key, value, slots(attention['output'][h].T), (h,) if own else ())

  return tuple(map(head, range(built.config.blocks[i].heads)))


# --- testing the truth -----------------------------------------------------------------------------


def ablate_everywhere(params: dict, ablated_F: tuple[tuple[np.ndarray, ...], ...]) -> dict:
  """The model with these hidden units of every block and layer ablated (the weights that read them set to zero)."""
  params = dict(params)
  for i, layers in enumerate(ablated_F):
    mlp = dict(params[f'blocks_{i}'].get('mlp', {}))
    names = ('middle', 'out') if len(layers) == 2 else ('out',)
    for name, ablated in zip(names, layers, strict=bool(layers)):
      mlp[name] = np.where(ablated[:, None], np.float32(0), mlp[name])
    if layers:
      params[f'blocks_{i}'] = {**params[f'blocks_{i}'], 'mlp': mlp}
  return params


def unit_specificity(model: FactModel, truth: Truth) -> float | None:
  """How specific to a relation the effect of ablating its units is; the least over relations.

  The mean change of the logits in queries that name the relation, minus that in other queries, divided by their sum.
  1: no other query changes; 0: all queries change alike, as they do when the ablated units serve no relation in
  particular. None where no unit serves a relation in particular.
  """
  mask = lambda r: tuple(tuple(serves[r] for serves in layers) for layers in truth.serves_RxF)
  cuts = [(r, mask(r)) for r in range(model.facts.relations)]
  some = [(r, o) for r, o in cuts if any(layer.any() for layers in o for layer in layers)]
  return _specificity(model, [(r, ablate_everywhere(model.params, o)) for r, o in some])


def head_specificity(model: FactModel, truth: Truth) -> float | None:
  """As `unit_specificity`, ablating the head of a relation, for heads that serve one."""
  own = [
    (r, _ablate_head(model.params, i, h))
    for i, heads in enumerate(truth.heads) for h, head in enumerate(heads) for r in head.relations
  ]  # fmt: skip
  return _specificity(model, own)


def _ablate_head(params: dict, block: int, head: int) -> dict:
  own = params[f'blocks_{block}']
  output = np.array(own['attention']['output'])
  output[head] = 0
  return {**params, f'blocks_{block}': {**own, 'attention': {**own['attention'], 'output': output}}}


def _specificity(model: FactModel, ablated: list[tuple[int, dict]]) -> float | None:
  """(a − b)/(a + b), a and b the mean logit changes in queries that name the relation and in others; the least of all."""
  paths_WxK = queries.every_path(model.facts.relations, model.hops)
  before, found = _logits(model)[0], []
  for r, params in ablated:
    change = np.abs(_logits(model, params)[0] - before)
    named_W = (paths_WxK == r).any(axis=1)
    own, others = change[:, named_W].mean(), change[:, ~named_W].mean()
    found.append(float((own - others) / max(own + others, 1e-30)))
  return min(found) if found else None


def interchange_accuracy(model: FactModel, truth: Truth) -> float | None:
  """Interchange: give every subject the next subject's part in a subspace, and ask all queries.

  Returns how often the subspace's paths are then answered as for the next subject, or how often all other paths are
  answered as before, whichever is less often; the least over subspaces, None where no subspace holds a path. Least
  squares over all subspaces separates their parts. With chain of thought a path is one relation, and all chains are
  followed in the facts that result.
  """
  e_NxD = np.asarray(model.params['embed']['subjects'])
  answers_WxN, R = _answers(model), model.facts.relations
  found: list[float] = []
  every_WxK = queries.every_path(R, model.hops)
  # A query depends on every relation of its path in a chain of thought, else on the path as a whole.
  asks_WxV = every_WxK if model.chain_of_thought else np.arange(len(every_WxK))[:, None]
  parts_NxK = (np.roll(e_NxD, -1, axis=0) - e_NxD) @ np.linalg.pinv(
    np.concatenate([subspace.frame_KxD for subspace in truth.subspaces])
  )
  start = 0
  for subspace in truth.subspaces:
    part_NxK = parts_NxK[:, start : (start := start + len(subspace.frame_KxD))]
    if subspace.paths:
      e_new = np.float32(e_NxD + part_NxK @ subspace.frame_KxD)
      rows = [functools.reduce(lambda w, r: w * R + r, path, 0) for path in subspace.paths]
      wanted_WxN = answers_WxN.copy()
      wanted_WxN[rows] = np.roll(answers_WxN, -1, axis=1)[rows]
      params = {**model.params, 'embed': {**model.params['embed'], 'subjects': e_new}}
      right_NxW = _margins(*_logits(model, params, wanted_WxN)) > 0
      named_W = np.isin(asks_WxV, rows).any(axis=1)
      both = right_NxW[:, named_W], right_NxW[:, ~named_W]
      found.extend(float(some.mean()) for some in both if some.size)
  return min(found) if found else None


def evaluate(model: FactModel) -> tuple[float, float]:
  """The fraction of queries that are right (at every step of a chain of thought), and the least margin."""
  margin_NxW = _margins(*_logits(model))
  return float((margin_NxW > 0).mean()), float(margin_NxW.min())


def _answers(model: FactModel) -> np.ndarray:
  """The one-hop answers that a chain of thought follows, or the answers to all paths directly, WxN."""
  hops = 1 if model.chain_of_thought else model.hops
  return queries.tree(model.facts.answers_RxN, hops)


def _logits(
  model: FactModel, params: dict | None = None, answers_WxN: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """All logits of all queries, NxWxPxA, read along the right chain of thought; and the right answers."""
  every = np.arange(model.facts.subjects), queries.every_path(model.facts.relations, model.hops)
  params = model.params if params is None else params
  answers_WxN = _answers(model) if answers_WxN is None else answers_WxN
  config = model.config.replace(precision='highest')  # one program for a model and its disguises
  said = model.said if model.chain_of_thought else None
  given = config, params, np.int32(answers_WxN), np.int32(every[0]), np.int32(every[1])
  logits, targets = _run(*given, model.chain_of_thought, said)
  return np.asarray(logits), np.asarray(targets)


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _run(config: Config, params, answers, subjects_N, paths_WxK, chain, said):
  target = queries.compose if chain else queries.look_up
  asked = subjects_N, paths_WxK, chain, target, said
  x_NxWxPxD, targets = verify.residuals(config, params, answers, *asked)
  rows_AxD = transformer.apply(config, params, method='unembedding')
  return jnp.einsum('nwpd,ad->nwpa', x_NxWxPxD, rows_AxD, precision='highest'), targets


def _margins(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """The right answer's logit minus the largest other one, the least over a chain of thought, NxW."""
  own = np.take_along_axis(logits, targets[..., None], axis=-1)
  others = np.where(np.arange(logits.shape[-1]) == targets[..., None], -np.inf, logits)
  return (own[..., 0] - others.max(axis=-1)).min(axis=-1)
