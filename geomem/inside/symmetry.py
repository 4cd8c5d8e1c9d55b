"""Other weights for the same function: changes to one of our transformers that change no logit.

* Residual stream: x → xQ, in all weights that write or read it. Q is orthogonal, and under a LayerNorm it also fixes the
  vector (1 … 1). A norm's scale is first folded into the weights that read it; with a tied unembedding, the final
  norm's scale cannot be.
* Hidden layer: its units in any order, each times a positive number c, since ReLU(cx) = c·ReLU(x).
* Attention: heads in any order; within each, query·A with key·A⁻ᵀ, and value·B with B⁻¹·output.
* `answer_dim`: its coordinates rotated, and answers' vectors of any length, as only their directions count.

`rotate` draws from these. There are others: Q (without norms) and A and B (always) may be any invertible matrices, of
which orthogonal ones (times a number) round least; and a vector may be moved from all token embeddings into all
position embeddings.

  >>> built = constructions.build('selector', Facts.bijections(8, 2))
  >>> params, symmetry = rotate(built.config, built.params, seed=0)  # the same as in `disguise`
  >>> q_DxD = symmetry.rotation_DxD
  >>> np.allclose(params['embed']['subjects'], built.params['embed']['subjects'] @ q_DxD, atol=1e-5)
  True

Shapes: D residual width, F hidden units, H heads, K coordinates of a head.
"""

import copy
import dataclasses
from typing import Any

import jax
import numpy as np

from geomem.config import Config
from geomem.construction import Construction
from geomem.errors import InputError
from geomem.facade import FactModel
from geomem.layout import Layout

MAX_SCALE = 4.0  # units and heads are scaled by 1/4 … 4


@dataclasses.dataclass(frozen=True, eq=False)
class Symmetry:
  """How the parts of one model map to those of another: a residual x becomes x·rotation, unit f of a block's layer was
  unit `units[block][layer][f]` before, and head h of a block was head `heads[block][h]`.

  >>> built = constructions.build('selector', Facts.bijections(8, 2))
  >>> hidden, found = disguise(built, seed=0)
  >>> known = truth.of(built).transformed(found)  # which of the disguised model's units does what
  >>> sorted(found.units[0][0]) == list(range(built.config.blocks[0].hidden[0]))
  True
  """

  rotation_DxD: np.ndarray
  units: tuple[tuple[np.ndarray, ...], ...]
  heads: tuple[np.ndarray, ...]


def disguise(model: FactModel, seed: int) -> tuple[FactModel, Symmetry]:
  """The same function with other weights: coordinates rotated, units and heads shuffled and scaled, names removed.

  >>> hidden, _ = disguise(constructions.build('selector', Facts.bijections(8, 2)), seed=0)
  >>> hidden.verify().accuracy
  1.0
  """
  config = model.config.replace(precision='highest')  # sums are no longer exact
  params, symmetry = rotate(config, model.params, seed)
  changes: dict[str, Any] = {'layout': Layout.unnamed(config.dim)}
  if isinstance(model, Construction):
    changes |= {'options': {}, 'hidden': (), 'margin': None, 'readout': None, 'encode': None}
  name = f'{model.name}_disguised'
  return model.replace(name=name, config=config, params=params, **changes), symmetry


def rotate(config: Config, params: dict, seed: int) -> tuple[dict, Symmetry]:
  """Parameters of the same function, by symmetries drawn with `seed`; computed in float64."""
  rng = np.random.default_rng((seed, 3))
  params = copy.deepcopy(jax.tree.map(lambda a: np.asarray(a, np.float64), params))
  _fold_norms(config, params)
  q_DxD = _orthogonal(rng, config.dim, keep_ones=config.norm == 'layer')
  for table in params['embed']:
    params['embed'][table] = params['embed'][table] @ q_DxD
  units, heads = [], []
  for i, sized in enumerate(config.blocks):
    block = params[f'blocks_{i}']
    heads.append(_rotate_heads(rng, block['attention'], q_DxD))
    units.append(_shuffle_units(rng, block['mlp'], q_DxD) if sized.hidden else ())
  for norm in _norms(params):
    if 'shift' in norm:
      norm['shift'] = norm['shift'] @ q_DxD
  if not config.tied:
    _rotate_answers(rng, config, params['unembed'], q_DxD)
  symmetry = Symmetry(q_DxD, tuple(units), tuple(heads))
  return jax.tree.map(lambda a: np.asarray(a, np.float32), params), symmetry


def _norms(params: dict) -> list[dict]:
  places = [params, *(block for name, block in params.items() if name.startswith('blocks_'))]
  return [part for place in places for name, part in place.items() if name.startswith('norm_')]


def _fold_norms(config: Config, params: dict) -> None:
  """Fold every norm's scale into the weights that read it, so that the norm commutes with a rotation."""
  if config.norm == 'none':
    return
  final = params['norm_final']
  if config.tied:
    if np.ptp(final['scale']):
      raise InputError("with tied embeddings, the final norm's scale must be the same everywhere")
  else:
    name = 'answers' if config.answer_dim is None else 'project'
    table = params['unembed'][name]
    _fold(final, [table.T if name == 'answers' else table])
  for i, sized in enumerate(config.blocks):
    block = params[f'blocks_{i}']
    attention = block['attention']
    _fold(block['norm_attention'], [attention[name] for name in ('query', 'key', 'value')])
    if sized.hidden:
      _fold(block['norm_mlp'], [block['mlp']['in']])


def _fold(norm: dict, readers: list[np.ndarray]) -> None:
  """Replace y = scale·x + shift by y = x + shift/scale, and scale the rows of the weights that read y."""
  scale_D = norm['scale'].copy()
  if 'shift' in norm:
    if not scale_D.all():
      raise InputError('a LayerNorm with a scale of 0 cannot be rotated')
    norm['shift'] = norm['shift'] / scale_D
  for matrix in readers:
    matrix *= scale_D[:, None]
  norm['scale'] = np.ones_like(scale_D)


def _orthogonal(rng, size: int, keep_ones: bool = False) -> np.ndarray:
  """A random orthogonal matrix, uniform among all or among those that fix (1 … 1)."""
  if keep_ones:
    basis = np.linalg.qr(np.column_stack([np.ones(size), rng.standard_normal((size, size - 1))]))[0]
    rest = basis[:, 1:]
    return np.full((size, size), 1 / size) + rest @ _orthogonal(rng, size - 1) @ rest.T
  q, r = np.linalg.qr(rng.standard_normal((size, size)))
  return q * np.sign(np.diag(r))


def _scales(rng, count: int) -> np.ndarray:
  return MAX_SCALE ** rng.uniform(-1, 1, count)


def _rotate_heads(rng, attention: dict, q_DxD: np.ndarray) -> np.ndarray:
  heads = len(attention['query'])
  order_H = rng.permutation(heads)
  for one, other in (('query', 'key'), ('value', 'output')):
    size = attention[one].shape[2]
    rotation = np.stack([_orthogonal(rng, size) for _ in range(heads)])
    scale = _scales(rng, heads)[:, None, None]
    attention[one] = q_DxD.T @ attention[one][order_H] @ rotation * scale
    second = attention[other][order_H]
    if other == 'key':
      attention[other] = q_DxD.T @ second @ rotation / scale
    else:
      attention[other] = rotation.swapaxes(1, 2) @ second @ q_DxD / scale
  return order_H


def _shuffle_units(rng, mlp: dict, q_DxD: np.ndarray) -> tuple[np.ndarray, ...]:
  names = ('in', 'middle', 'out') if 'middle' in mlp else ('in', 'out')
  mlp['in'] = q_DxD.T @ mlp['in']
  mlp['out'] = mlp['out'] @ q_DxD
  if 'out_bias' in mlp:
    mlp['out_bias'] = mlp['out_bias'] @ q_DxD
  orders = []
  for before, after in zip(names[:-1], names[1:], strict=True):
    order_F = rng.permutation(mlp[before].shape[1])
    scale_F = _scales(rng, len(order_F))
    mlp[before] = mlp[before][:, order_F] * scale_F
    if f'{before}_bias' in mlp:
      mlp[f'{before}_bias'] = mlp[f'{before}_bias'][order_F] * scale_F
    mlp[after] = mlp[after][order_F] / scale_F[:, None]
    orders.append(order_F)
  return tuple(orders)


def _rotate_answers(rng, config: Config, unembed: dict, q_DxD: np.ndarray) -> None:
  if config.answer_dim is None:
    unembed['answers'] = unembed['answers'] @ q_DxD
    return
  rotation_ExE = _orthogonal(rng, config.answer_dim)
  unembed['project'] = q_DxD.T @ unembed['project'] @ rotation_ExE
  unembed['answers'] = unembed['answers'] @ rotation_ExE * _scales(rng, config.answers)[:, None]
