"""Every construction by name, with the theorem it proves and one line on how."""

import dataclasses
import inspect
import os
from collections.abc import Callable

import jax
import numpy as np

import geomem
from constructions import (
  associative,
  attention_only,
  chain_of_thought,
  disjoint,
  factored,
  keyvalue,
  literal,
  normed,
  precomputed,
  selector,
  superposition,
)
from geomem.construction import Construction
from geomem.errors import InputError
from geomem.facade import FactModel
from geomem.facts import Facts

ONE_HOP, TWO, COT = 'Theorem 4.1', 'Theorem 4.3', 'Theorem 4.4'


@dataclasses.dataclass(frozen=True)
class Entry:
  """`size`: d and F as formulas. `exact`: right on every query, by a promised margin.

  Parameters of `builder` beyond the facts and the hops are the construction's own options.
  """

  theorem: str
  summary: str
  size: str
  builder: Callable[..., Construction]
  exact: bool = True
  own_answers: bool = False  # wants facts whose relations answer in sets of their own

  @property
  def multi_hop(self) -> bool:
    return 'hops' in inspect.signature(self.builder).parameters

  @property
  def options(self) -> tuple[str, ...]:
    return tuple(
      p for p in inspect.signature(self.builder).parameters if p not in ('facts', 'hops')
    )


REGISTRY: dict[str, Entry] = {
  'selector': Entry(
    ONE_HOP,
    'superposed sign codes, the gate is the sum, one hidden layer',
    'd = R·m, F = R·m',
    selector.selector,
  ),
  'selector_constant_weight': Entry(
    ONE_HOP,
    'the same with 0/1 words of constant weight and no biases',
    'd = R·m, F = R·m, C(m, ⌊m/2⌋) ≥ A',
    selector.constant_weight,
  ),
  'selector_multilevel': Entry(
    ONE_HOP,
    'the same with several bits per coordinate: fewer dimensions, as many bits',
    'd = (R+1)·⌈m/b⌉ + 1, F = R·⌈m/b⌉',
    selector.multilevel,
  ),
  'selector_normed': Entry(
    ONE_HOP,
    'the same inside the trained architecture, every RMSNorm switched on',
    'd = R·m, F = R·m, C(m, ⌊m/2⌋) ≥ A',
    normed.normed,
  ),
  'selector_literal': Entry(
    ONE_HOP,
    "the paper's: relation flags beside the blocks, a 3-layer MLP",
    'd = R·m + R, F = (R·m, m)',
    literal.literal,
  ),
  'superposition': Entry(
    ONE_HOP,
    'the literal linear superposition of random directions; not exact, ask for its accuracy at --dim',
    'd = --dim, F = 2R·m',
    superposition.superposition,
    exact=False,
  ),
  'attention_only': Entry(
    f'{ONE_HOP} (second half)',
    'no MLP: a head a relation',
    'd = R·m + ⌈log₂R⌉ + 2, F = 0, H = R',
    attention_only.attention_only,
  ),
  'disjoint': Entry(
    'Theorem F.1',
    'relations with answers of their own: no MLP, no gate',
    'd = R·⌈log₂D⌉ + ⌈log₂R⌉, F = 0',
    disjoint.disjoint,
    own_answers=True,
  ),
  'keyvalue': Entry(
    f'{TWO} (first half)',
    'facts in the MLP, a hidden unit per fact, a layer per hop',
    'd = 2m + 2⌈log₂R⌉ + ⌈log₂(k+1)⌉ + 1, F = N·R, depth k',
    keyvalue.keyvalue,
  ),
  'factored': Entry(
    f'{TWO}, sharper',
    'subject detectors, then AND-units: width N + R, j hops per layer',
    'd = 2m + R + jR + ⌈log₂(k+1)⌉ + 1, F = (N + jR, R^j·m + m + jR), depth ⌈k/j⌉',
    factored.factored,
  ),
  'precomputed': Entry(
    f'{TWO} (second half)',
    'all R^k answers in the embedding, a level of the tree a layer',
    'd = m·(R^k + … + 1) + R + ⌈log₂(k+1)⌉ + 1, F = R^k·m, depth k',
    precomputed.precomputed,
  ),
  'precomputed_depth1': Entry(
    f'{TWO}, sharper',
    'all R^k answers in the embedding, the one branch that no head closes: depth 1',
    'd = R^k·m + R + ⌈log₂(k+1)⌉ + 1, F = R^k·m, depth 1',
    precomputed.precomputed_depth1,
  ),
  'chain_of_thought': Entry(
    COT,
    'one layer for any number of hops, a step a token',
    'd = 2R·m + R + 3⌈log₂(2k+1)⌉ + 1, F = R·m, depth 1',
    chain_of_thought.chain_of_thought,
  ),
  'chain_of_thought_compact': Entry(
    f'{COT}, sharper',
    'the same in half the width: the current subject is in place already',
    'd = R·m + ⌈log₂R⌉ + 2·max(1, ⌈log₂k⌉) + 2, F = R·m, depth 1',
    chain_of_thought.chain_of_thought_compact,
  ),
  'associative_attention': Entry(
    'Nichani et al. (2025)',
    'the baseline: fixed random embeddings, facts in attention matrices, a head a relation',
    'd = --dim, H = R',
    associative.attention,
    exact=False,
  ),
  'associative_mlp': Entry(
    'Nichani et al. (2025)',
    'the baseline: fixed random embeddings, facts in an MLP',
    'd = --dim, F = --width',
    associative.mlp,
    exact=False,
  ),
}


def names() -> list[str]:
  """The names of all constructions."""
  return list(REGISTRY)


def multi_hop() -> list[str]:
  """The names of those that answer several hops."""
  return [name for name, known in REGISTRY.items() if known.multi_hop]


def entry(name: str) -> Entry:
  """What there is to say of a construction before it is built."""
  if name not in REGISTRY:
    raise InputError(f'no construction {name!r}; there are {", ".join(REGISTRY)}')
  return REGISTRY[name]


def build(name: str, facts: Facts, hops: int = 1, **options) -> Construction:
  """The construction `name` for these facts. Options that it does not know are refused."""
  known = entry(name)
  for option in options:
    if option not in known.options:
      takes = ', '.join(known.options)
      allowed = f'it takes {takes}' if takes else 'its sizes follow from the facts'
      raise InputError(f'{name} has no option {option!r}; {allowed}')
  if hops != 1 and not known.multi_hop:
    raise InputError(
      f'{name} answers one hop, not {hops}; multi-hop constructions are {", ".join(multi_hop())}'
    )
  path = (hops,) if known.multi_hop else ()
  return known.builder(facts, *path, **options).replace(options=options)


def load(path: str | os.PathLike) -> FactModel:
  """The model in the folder `path`; a construction of these is built anew, and held against what was saved.

  So it can do all that it could, also what is no number. Where an exact one differs in a bit, it is refused;
  another, which a solver made, is as it was saved.
  """
  saved = geomem.load(path)
  if not isinstance(saved, Construction) or saved.name not in REGISTRY:
    return saved
  built = build(saved.name, saved.facts, saved.hops, **saved.options)
  if built.config == saved.config and jax.tree.all(jax.tree.map(_same, built.params, saved.params)):
    return built
  if not REGISTRY[saved.name].exact:
    return saved
  raise InputError(
    f'{path}: not the weights that {saved.name} has for these facts; geomem.load takes them as they are'
  )


def _same(one: np.ndarray, other: np.ndarray) -> bool:
  """To the last bit."""
  bits = [np.ascontiguousarray(a).view(f'u{a.itemsize}') for a in (one, other)]
  return one.dtype == other.dtype and np.array_equal(*bits)
