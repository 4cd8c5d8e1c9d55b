"""A construction: a transformer whose every weight has a meaning, with the names to read it by."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from geomem import codes, model
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.layout import Layout
from geomem.model import Config

MAX_PARAMETERS = 2**31


@dataclasses.dataclass(frozen=True)
class Readout:
  """Answers are read from the coordinates `at` of the final residual as words of `code`."""

  at: slice = dataclasses.field(hash=False)  # slices cannot be hashed before Python 3.12
  code: codes.Code

  def rows(self, dim: int) -> np.ndarray:
    """The unembedding that the bound below speaks about, AxD."""
    rows_AxM = self.code.rows()
    out = np.zeros((len(rows_AxM), dim), np.float32)
    out[:, self.at] = rows_AxM
    return out

  def matches(self, unembedding_AxD) -> bool:
    """Whether a model's unembedding is exactly `rows`, without a second copy of it."""
    rows, start, stop = np.asarray(unembedding_AxD), self.at.start, self.at.stop
    elsewhere = rows[:, :start].any() or rows[:, stop:].any()
    return not elsewhere and np.array_equal(rows[:, start:stop], self.code.rows())

  def bound(self, unembedding_AxD, x_BxD, answers_B):
    """A lower bound on the margin over all A answers, seen from the slot alone; positive proves it."""
    u_BxM = unembedding_AxD[:, self.at][answers_B].astype(jnp.float32)
    return self.code.margin_bound(u_BxM, x_BxD[..., self.at].astype(jnp.float32))


@dataclasses.dataclass(frozen=True, eq=False)
class Construction:
  """Parameters for `config`, the names of its coordinates, and what they promise.

  `margin`: the least margin any query can have (None: no promise, accuracy is to be measured).
  `encode`: answers WxN to subject embeddings NxD, where the embedding *is* the memory of the W
  things that can be asked of a subject; None where facts are stored elsewhere.
  `choices`: the answers that each of those W can have, where it is not all attributes.
  """

  name: str
  config: Config
  params: dict
  layout: Layout
  facts: Facts
  hops: int = 1
  hidden: tuple[tuple[Layout, ...], ...] = ()
  margin: float | None = None
  readout: Readout | None = None
  encode: Callable[[np.ndarray], np.ndarray] | None = None
  choices: tuple[np.ndarray, ...] | None = None
  chain_of_thought: bool = False

  @property
  def queries(self) -> int:
    return self.facts.subjects * self.facts.relations**self.hops

  def replace(self, **changes) -> 'Construction':
    return dataclasses.replace(self, **changes)


def blank(config: Config) -> dict:
  """Zero parameters to be written into; refuses a model that no machine at hand would hold."""
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


def check_closed(facts: Facts, hops: int):
  """Hops can be chained only where attributes are subjects."""
  if hops < 1:
    raise InputError(f'hops is {hops}; it must be at least 1')
  if not facts.closed:
    raise InputError('these facts cannot be chained: some attributes are not subjects')


def check_representable(params, dtype: str):
  """Refuse a dtype in which some weight is not exact: the construction would quietly be another."""
  kind = jnp.dtype(dtype)
  for path, weight in jax.tree_util.tree_leaves_with_path(params):
    for start in range(0, len(weight), 2**16):  # in pieces: a table can fill half the memory
      piece = np.asarray(weight[start : start + 2**16])
      off = piece != piece.astype(kind).astype(piece.dtype)
      if off.any():
        name = '/'.join(str(key.key) for key in path)
        raise InputError(f'{dtype} cannot hold {name} = {piece[off][0]:g} exactly; use float32 or smaller sizes')
