"""Other weights for the same function: what a transformer of ours can be changed by without changing a logit.

Residual stream: x → xQ, the same in all that writes and reads it. Q is orthogonal, and keeps the vector (1 … 1) under a
  LayerNorm. A norm's scale is first moved into what reads it; where the unembedding is tied, the final norm's cannot be.
Hidden layer: its units in any order, each times a positive number, for ReLU(cx) = c·ReLU(x).
Attention: heads in any order; query·A and key·A⁻ᵀ, value·B and B⁻¹·output within each.
`answer_dim`: its coordinates rotated, and answers' vectors of any length, as only their directions count.

Those are drawn. There are others: without norms Q, and always A and B, may be any invertible matrices, of which
orthogonal ones (times a number) round least; and a vector may be moved from all tokens' embeddings into all positions'.

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
from geomem.layout import Layout, Slot

LARGEST = 4.0  # units and heads are scaled by 1/4 … 4


@dataclasses.dataclass(frozen=True, eq=False)
class Symmetry:
  """How one model's parts became another's: a residual x is x·rotation there, unit f of a block's layer was
  `units[block][layer][f]`, head h of a block `heads[block][h]`."""

  rotation_DxD: np.ndarray
  units: tuple[tuple[np.ndarray, ...], ...]
  heads: tuple[np.ndarray, ...]


def disguise(model: FactModel, seed: int) -> tuple[FactModel, Symmetry]:
  """The same function by other weights, in which no coordinate, unit or head is where it was or has a name.

  >>> hidden, _ = disguise(constructions.build('selector', Facts.bijections(8, 2)), seed=0)
  >>> hidden.verify().accuracy
  1.0
  """
  config = model.config.replace(precision='highest')  # its sums are no longer exact
  params, symmetry = rotate(config, model.params, seed)
  changes: dict[str, Any] = {'layout': Layout.of(Slot('stream', (('direction', config.dim),)))}
  if isinstance(model, Construction):
    changes |= {'options': {}, 'hidden': (), 'margin': None, 'readout': None, 'encode': None}
  name = f'{model.name}_disguised'
  return model.replace(name=name, config=config, params=params, **changes), symmetry


def rotate(config: Config, params: dict, seed: int) -> tuple[dict, Symmetry]:
  """Parameters of the same function by symmetries that the seed draws; computed in float64."""
  rng = np.random.default_rng((seed, 3))
  params = copy.deepcopy(jax.tree.map(lambda a: np.asarray(a, np.float64), params))
  _fold_norms(config, params)
  q_DxD = _orthogonal(rng, config.dim, keep_ones=config.norm == 'layer')
  for table in params['embed']:
    params['embed'][table] = params['embed'][table] @ q_DxD
  units, heads = [], []
  for i, sized in enumerate(config.blocks):
    block = params[f'blocks_{i}']
    heads.append(_turn_heads(rng, block['attention'], q_DxD))
    units.append(_shuffle_units(rng, block['mlp'], q_DxD) if sized.hidden else ())
  for norm in _norms(params):
    if 'shift' in norm:
      norm['shift'] = norm['shift'] @ q_DxD
  if not config.tied:
    _turn_answers(rng, config, params['unembed'], q_DxD)
  symmetry = Symmetry(q_DxD, tuple(units), tuple(heads))
  return jax.tree.map(lambda a: np.asarray(a, np.float32), params), symmetry


def _norms(params: dict) -> list[dict]:
  places = [params, *(block for name, block in params.items() if name.startswith('blocks_'))]
  return [part for place in places for name, part in place.items() if name.startswith('norm_')]


def _fold_norms(config: Config, params: dict) -> None:
  """Every norm's scale moved into what reads it, so that a rotation can pass."""
  if config.norm == 'none':
    return
  final = params['norm_final']
  if config.tied:
    if np.ptp(final['scale']):
      raise InputError('tied embeddings cannot take the scale of the final norm: nothing to rotate')
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
  """Scale and shift, y = scale·x + shift, become y = x + shift/scale; the rows of what reads y are scaled."""
  scale_D = norm['scale'].copy()
  if 'shift' in norm:
    if not scale_D.all():
      raise InputError('a LayerNorm with a scale of 0 cannot be rotated')
    norm['shift'] = norm['shift'] / scale_D
  for matrix in readers:
    matrix *= scale_D[:, None]
  norm['scale'] = np.ones_like(scale_D)


def _orthogonal(rng, size: int, keep_ones: bool = False) -> np.ndarray:
  """Uniform among the orthogonal matrices, or among those that keep (1 … 1)."""
  if keep_ones:
    basis = np.linalg.qr(np.column_stack([np.ones(size), rng.standard_normal((size, size - 1))]))[0]
    rest = basis[:, 1:]
    return np.full((size, size), 1 / size) + rest @ _orthogonal(rng, size - 1) @ rest.T
  q, r = np.linalg.qr(rng.standard_normal((size, size)))
  return q * np.sign(np.diag(r))


def _scales(rng, count: int) -> np.ndarray:
  return LARGEST ** rng.uniform(-1, 1, count)


def _turn_heads(rng, attention: dict, q_DxD: np.ndarray) -> np.ndarray:
  heads = len(attention['query'])
  order_H = rng.permutation(heads)
  for one, other in (('query', 'key'), ('value', 'output')):
    size = attention[one].shape[2]
    turn = np.stack([_orthogonal(rng, size) for _ in range(heads)])
    scale = _scales(rng, heads)[:, None, None]
    attention[one] = q_DxD.T @ attention[one][order_H] @ turn * scale
    second = attention[other][order_H]
    if other == 'key':
      attention[other] = q_DxD.T @ second @ turn / scale
    else:
      attention[other] = turn.swapaxes(1, 2) @ second @ q_DxD / scale
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


def _turn_answers(rng, config: Config, unembed: dict, q_DxD: np.ndarray) -> None:
  if config.answer_dim is None:
    unembed['answers'] = unembed['answers'] @ q_DxD
    return
  turn_ExE = _orthogonal(rng, config.answer_dim)
  unembed['project'] = q_DxD.T @ unembed['project'] @ turn_ExE
  unembed['answers'] = unembed['answers'] @ turn_ExE * _scales(rng, config.answers)[:, None]
