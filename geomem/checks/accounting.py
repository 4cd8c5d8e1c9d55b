"""Count what a model spends and what it stores, in parameters and in bits, for any parameter pytree.

Bits of a weight: the entropy of the values that its array actually uses (a sign costs 1 bit, a
structural zero next to nothing). Where more than 2⁸ values are in use, it is the fixed-point width, or,
where there is none, the width of the dtype.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from geomem.checks import lower_bounds
from geomem.config import Config
from geomem.facade import html_table
from geomem.facts import Facts

ROLES = ('subjects', 'relations_and_positions', 'attention', 'mlp', 'norm', 'unembedding')
MAX_VALUES = 2**8


@dataclasses.dataclass(frozen=True)
class Ledger:
  """Parameters and bits by role, B_emb and B_int of the lower bounds, the bits of all facts, and the bound. These last two
  are those of a model that answers every query; one that does not may hold fewer.

  >>> constructions.build('selector', Facts.bijections(8, 2)).ledger().parameters['subjects']
  48
  """

  dim: int
  depth: int
  heads: tuple[int, ...]
  hidden: tuple[tuple[int, ...], ...]
  parameters: dict[str, int]
  bits: dict[str, float]
  subject_bits: float
  fact_bits: float
  bound_bits: float

  @property
  def internal_bits(self) -> float:
    """Bits of everything but the subjects' input embeddings."""
    return sum(bits for role, bits in self.bits.items() if role != 'subjects')

  @property
  def total_parameters(self) -> int:
    return sum(self.parameters.values())

  @property
  def times_bound(self) -> float:
    """Internal bits over the lower bound for any model with this B_emb (∞ where the bound is 0)."""
    return self.internal_bits / self.bound_bits if self.bound_bits else math.inf

  def _repr_html_(self) -> str:
    roles = [(role, f'{self.parameters[role]:,}', f'{self.bits[role]:,.1f}') for role in ROLES]
    sums = ('internal_bits', 'fact_bits', 'bound_bits')
    totals = [(name, '', f'{getattr(self, name):,.1f}') for name in sums]
    return html_table([('', 'parameters', 'bits'), *roles, *totals])


def entropy(values: ArrayLike) -> float:
  """Bits per value: the entropy of the values in use, or, where these are too many, the fixed-point width.

  The list of values in use is not charged for, so this flatters arrays of few entries.
  """
  rest = np.asarray(values).ravel()
  size, bits = rest.size, 0.0
  if len(np.unique(rest[:: max(1, size // 2**12)])) > MAX_VALUES:
    return _fixed_point(rest)
  for _ in range(MAX_VALUES):
    if not rest.size:
      return bits
    same = np.isnan(rest) if np.isnan(rest[0]) else rest == rest[0]
    fraction = int(np.count_nonzero(same)) / size
    bits -= fraction * math.log2(fraction)
    rest = rest[~same]
  return _fixed_point(np.asarray(values).ravel()) if rest.size else bits


def _fixed_point(values) -> float:
  """Bits to distinguish all multiples of 2⁻ᵇ in the values' range, if all values are multiples; at most their dtype's."""
  most = 8.0 * values.dtype.itemsize
  for bits in range(0, 17, 4):
    sample = values[:: max(1, len(values) // 2**12)] * 2.0**bits
    if np.array_equal(sample, np.round(sample)):
      scaled = values * 2.0**bits
      if np.array_equal(scaled, np.round(scaled)):
        return min(most, math.log2(float(scaled.max()) - float(scaled.min()) + 1))
  return most


def role_of(path: tuple[Any, ...]) -> str:
  """The role of a parameter, from its path in the pytree."""
  names = [key.key for key in path]
  if names[0] == 'embed':
    return 'subjects' if names[1] == 'subjects' else 'relations_and_positions'
  if names[0] == 'unembed':
    return 'unembedding'
  return next((role for role in ('attention', 'mlp') if role in names), 'norm')


def fact_bits(facts: Facts) -> float:
  """The information in the facts: log₂ N! per bijection, N·log₂(number of answers in use) per other map."""
  bits = 0.0
  for answers_N in facts.answers_RxN:
    used = len(np.unique(answers_N))
    map_bits = facts.subjects * math.log2(used)
    bits += lower_bounds.log2_factorial(used) if used == facts.subjects else map_bits
  return bits


def ledger(
  config: Config, params: dict, facts: Facts, hops: int = 1, *, chain_of_thought: bool = False
) -> Ledger:
  """The ledger of `params`, trained or constructed."""
  parameters, bits = dict.fromkeys(ROLES, 0), dict.fromkeys(ROLES, 0.0)
  for path, weight in jax.tree_util.tree_leaves_with_path(params):
    parameters[role_of(path)] += weight.size
    if role_of(path) != 'subjects':
      bits[role_of(path)] += weight.size * entropy(weight)
  # Per coordinate: one that is the same for all subjects carries no information about them.
  columns = np.asarray(params['embed']['subjects']).T
  subject_bits = sum(entropy(np.ascontiguousarray(column)) for column in columns)
  bits['subjects'] = config.subjects * subject_bits
  sizes = config.subjects, config.relations, hops, subject_bits
  bound = {'tied': config.tied, 'chain_of_thought': chain_of_thought}
  return Ledger(
    dim=config.dim,
    depth=config.depth,
    heads=tuple(block.heads for block in config.blocks),
    hidden=tuple(block.hidden for block in config.blocks),
    parameters=parameters,
    bits=bits,
    subject_bits=subject_bits,
    fact_bits=fact_bits(facts),
    bound_bits=lower_bounds.internal_bits(*sizes, **bound) if facts.bijective else 0.0,
  )
