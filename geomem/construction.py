"""A construction: a transformer in which every weight has a meaning, with named coordinates."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from geomem import codes, model
from geomem.config import Config
from geomem.errors import InputError
from geomem.facade import FactModel
from geomem.layout import Layout

MAX_PARAMETERS = 2**31


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Readout:
  """Answers are read from the coordinates `at` of the final residual as words of `code`."""

  at: slice = dataclasses.field(hash=False)  # slices cannot be hashed before Python 3.12
  code: codes.Code

  def rows(self, dim: int) -> np.ndarray:
    """The unembedding that `bound` assumes, AxD."""
    rows_AxM = self.code.rows()
    out = np.zeros((len(rows_AxM), dim), np.float32)
    out[:, self.at] = rows_AxM
    return out

  def matches(self, unembedding_AxD: Array) -> bool:
    """Whether a model's unembedding equals `rows` exactly, without building a second copy of it."""
    rows, start, stop = np.asarray(unembedding_AxD), self.at.start, self.at.stop
    elsewhere = rows[:, :start].any() or rows[:, stop:].any()
    return not elsewhere and np.array_equal(rows[:, start:stop], self.code.rows())

  def bound(self, unembedding_AxD: Array, x_BxD: Array, answers_B: Array) -> Array:
    """A lower bound on the margin over all A answers, from the slot alone; positive: proved right."""
    u_BxM = unembedding_AxD[:, self.at][answers_B].astype(jnp.float32)
    return self.code.margin_bound(u_BxM, x_BxD[..., self.at].astype(jnp.float32))

  def largest(self, dim: int) -> np.ndarray:
    """The largest |weight| of the unembedding at every coordinate."""
    return _largest(self.code.rows(), self.at, dim)


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=('relation_A', 'index_A'), meta_fields=('layout',)
)
@dataclasses.dataclass(frozen=True, eq=False)
class OwnReadout:
  """Each relation has its own answers: the j-th of r is c_j in block r and ρ_r in the relation slot."""

  layout: Layout
  relation_A: np.ndarray
  index_A: np.ndarray

  def rows(self, dim: int) -> np.ndarray:
    """The unembedding that `bound` assumes, AxD."""
    code, rho = self.layout.code('blocks'), self.layout.code('relation')
    rows_AxD = np.zeros((len(self.relation_A), dim), np.float32)
    rows_AxD[:, self.layout['relation']] = rho.words()[self.relation_A]
    for r in range(rho.count):
      own = self.relation_A == r
      rows_AxD[own, self.layout['blocks', r]] = code.words()[self.index_A[own]]
    return rows_AxD

  def matches(self, unembedding_AxD: Array) -> bool:
    return np.array_equal(unembedding_AxD, self.rows(self.layout.dim))

  def bound(self, unembedding_AxD: Array, x_BxD: Array, answers_B: Array) -> Array:
    """A lower bound on the margin over all A answers, as the smaller of two bounds.

    Against answers of the same relation r, as for a sign code. Against answers of another relation,
    ρ contributes at least 2 min ρ_i x_i (if no term is negative; else twice the sum of the negative
    ones), the answer's block contributes Σ c_i x_i, and the best answer of the other block scores
    at most Σ|x_i| over that block.
    """
    blocks = self.layout.slot('blocks')
    u_BxD, x_BxD = unembedding_AxD[answers_B].astype(jnp.float32), x_BxD.astype(jnp.float32)
    shape = (*x_BxD.shape[:-1], *blocks.shape, blocks.width)
    u_BxRxM = u_BxD[..., self.layout['blocks']].reshape(shape)
    x_BxRxM = x_BxD[..., self.layout['blocks']].reshape(shape)
    agree = u_BxRxM * x_BxRxM
    own = jax.nn.one_hot(jnp.asarray(self.relation_A)[answers_B], blocks.shape[0], dtype=bool)
    within = 2 * jnp.min(agree, axis=(-1, -2), where=own[..., None], initial=jnp.inf)
    best_other = jnp.max(jnp.sum(jnp.abs(x_BxRxM), axis=-1), axis=-1, where=~own, initial=-jnp.inf)
    rho = (u_BxD * x_BxD)[..., self.layout['relation']]
    least = jnp.min(rho, axis=-1, initial=jnp.inf)
    least = jnp.where(least >= 0, least, jnp.sum(jnp.minimum(rho, 0), axis=-1))
    across = 2 * least + jnp.sum(agree, axis=(-1, -2)) - best_other
    return jnp.minimum(within, across)

  def largest(self, dim: int) -> np.ndarray:
    return _largest(self.rows(dim), slice(0, dim), dim)


def _largest(rows_AxM: np.ndarray, at: slice, dim: int) -> np.ndarray:
  largest_D = np.zeros(dim, np.float32)
  largest_D[at] = np.maximum(rows_AxM.max(axis=0), -rows_AxM.min(axis=0))
  return largest_D


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Construction(FactModel):
  """A model with weights written by a construction; `options`: those passed to its builder.

  >>> constructions.build('selector_multilevel', geomem.Facts.bijections(8, 2), bits=2).options
  {'bits': 2}
  """

  options: dict[str, Any] = dataclasses.field(default_factory=dict)


def blank(config: Config) -> dict:
  """Zero parameters to write into; refuses a model of more than `MAX_PARAMETERS` parameters."""
  layers = sum(
    2 * b.heads * config.dim * (b.key_dim + b.head_dim)
    + sum(i * o for i, o in zip((config.dim, *b.hidden), (*b.hidden, config.dim), strict=True))
    for b in config.blocks
  )
  count = layers + config.dim * (config.vocabulary + config.length + config.answers)
  if count > MAX_PARAMETERS:
    raise InputError(
      f'this construction would have {count:,} parameters at {config.subjects:,} subjects and '
      f'{config.relations:,} relations (limit {MAX_PARAMETERS:,}); choose smaller sizes or fewer hops'
    )
  return model.zeros(config)


def check_representable(construction: FactModel, dtype: str) -> None:
  """Refuse a dtype that cannot represent some weight exactly: it would silently change the construction.

  Not checked without a promised margin, since then nothing can break, nor with a norm, since the
  scales that undo it are never exact.
  """
  if dtype == 'float32' or construction.margin is None or construction.config.norm != 'none':
    return
  kind = jnp.dtype(dtype)
  for path, weight in jax.tree_util.tree_leaves_with_path(construction.params):
    for start in range(0, len(weight), 2**16):  # in pieces: a table can fill half the memory
      piece = np.asarray(weight[start : start + 2**16])
      off = (piece != piece.astype(kind).astype(piece.dtype)) & ~np.isnan(piece)
      if off.any():
        name = '/'.join(str(key.key) for key in path)
        raise InputError(
          f'{dtype} cannot hold {name} = {piece[off][0]:g} exactly; use float32 or smaller sizes'
        )
