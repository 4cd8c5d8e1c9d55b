"""Every construction by name, with the theorem it proves and one line on how."""

import dataclasses
import inspect
import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

import geomem
from constructions import (
  associative,
  attention_only,
  chain_of_thought,
  coded,
  disjoint,
  factored,
  few_thoughts,
  keyvalue,
  partly_precomputed,
  precomputed,
  selector,
  selector_literal,
  selector_normed,
  superposition,
)
from geomem.construction import Construction
from geomem.errors import InputError
from geomem.facade import FactModel
from geomem.facts import Facts

ONE_HOP, TWO, COT = 'Theorem 4.1', 'Theorem 4.3', 'Theorem 4.4'


@dataclasses.dataclass(frozen=True)
class Entry:
  """`size`: formulas for d and F. `exact`: correct on every query, with a promised margin.

  Parameters of `builder` other than the facts and the hops are the construction's own options.
  """

  builder: Callable[..., Construction]
  theorem: str
  size: str
  summary: str
  exact: bool = True
  own_answers: bool = False  # needs facts in which every relation has its own set of answers

  @property
  def multi_hop(self) -> bool:
    return 'hops' in inspect.signature(self.builder).parameters

  @property
  def options(self) -> tuple[str, ...]:
    return tuple(
      p for p in inspect.signature(self.builder).parameters if p not in ('facts', 'hops')
    )


REGISTRY: dict[str, Entry] = {
  'selector': Entry(selector.selector, ONE_HOP,
    'd = R·m, F = R·m',
    'superposed sign codes, the gate is the sum, one hidden layer'),
  'selector_residual': Entry(selector.selector_residual, f'{ONE_HOP}, sharper',
    'd = R·m, F = (R−1)·m',
    'the same with fewer hidden units: what relation 0 answers is in the residual stream already'),
  'selector_constant_weight': Entry(selector.constant_weight, ONE_HOP,
    'd = R·m, F = R·m, C(m, ⌊m/2⌋) ≥ A',
    'the same with 0/1 words of constant weight and no biases'),
  'selector_multilevel': Entry(selector.multilevel, ONE_HOP,
    'd = (R+1)·⌈m/b⌉ + 1, F = R·⌈m/b⌉',
    'the same with several bits per coordinate: fewer dimensions, as many bits'),
  'selector_normed': Entry(selector_normed.normed, ONE_HOP,
    'd = R·m, F = R·m, C(m, ⌊m/2⌋) ≥ A',
    'the same inside the trained architecture, every RMSNorm switched on'),
  'selector_literal': Entry(selector_literal.literal, ONE_HOP,
    'd = R·m + R, F = (R·m, m)',
    "the paper's: relation flags beside the blocks, a 3-layer MLP"),
  'superposition': Entry(superposition.superposition, ONE_HOP,
    'd = --dim, F = 2R·m',
    'the literal linear superposition of random directions; not exact, ask for its accuracy at --dim',
    exact=False),
  'superposition_coded': Entry(coded.superposition_coded, f'{ONE_HOP}, sharper',
    'd = D + R + m, F = 2R·m, m = 4⌈log₂A⌉, D ≈ (2(R−1)/κ)·ln(N·A·R/ε)',
    'the same in random subspaces, by words of a code with distance κm; directions drawn until all is right',
    exact=False),
  'selector_coded': Entry(coded.selector_coded, f'{ONE_HOP}, with noise',
    'd = R·m + R + m, F = 2R·m, m = ⌈(⌈log₂A⌉ − 1 + log₂(1/ε))/R₀(σ)⌉',
    'blocks of words of a code: right with probability 1 − ε when noise of σ falls on the embedding'),
  'attention_only': Entry(attention_only.attention_only, f'{ONE_HOP} (second half)',
    'd = R·m + ⌈log₂R⌉ + 2, F = 0, H = R',
    'no MLP: a head a relation'),
  'disjoint': Entry(disjoint.disjoint, 'Theorem F.1',
    'd = R·⌈log₂D⌉ + ⌈log₂R⌉, F = 0',
    'relations with answers of their own: no MLP, no gate', own_answers=True),
  'keyvalue': Entry(keyvalue.keyvalue, f'{TWO} (first half)',
    'd = 2m + 2⌈log₂R⌉ + ⌈log₂(k+1)⌉ + 1, F = N·R, depth k',
    'facts in the MLP, a hidden unit per fact, a layer per hop'),
  'factored': Entry(factored.factored, f'{TWO}, sharper',
    'd = 2m + R + jR + ⌈log₂(k+1)⌉ + 1, F = (N + jR, R^j·m + m + jR), depth ⌈k/j⌉',
    'subject detectors, then AND-units: width N + R, j hops per layer'),
  'precomputed': Entry(precomputed.precomputed, f'{TWO} (second half)',
    'd = m·(R^k + … + 1) + R + ⌈log₂(k+1)⌉ + 1, F = R^k·m, depth k',
    'all R^k answers in the embedding, a level of the tree a layer'),
  'precomputed_depth1': Entry(precomputed.precomputed_depth1, f'{TWO}, sharper',
    'd = R^k·m + R + ⌈log₂(k+1)⌉ + 1, F = R^k·m, depth 1',
    'all R^k answers in the embedding, the one branch that no head closes: depth 1'),
  'partly_precomputed': Entry(partly_precomputed.partly_precomputed, f'{TWO}, the line between',
    'd = S·(R^{k−1} + 1)·m + R + ⌈log₂(k+1)⌉ + 1, F = S·R^{k−1}·m, then (N + S·m + R − S, (R − S + 1)·m), '
    'depth 2, S = βR',
    'the last level of a share β of the relations in the embedding, of the others in the MLP'),
  'chain_of_thought': Entry(chain_of_thought.chain_of_thought, COT,
    'd = 2R·m + R + 3⌈log₂(2k+1)⌉ + 1, F = R·m, depth 1',
    'one layer for any number of hops, a step a token'),
  'chain_of_thought_compact': Entry(chain_of_thought.chain_of_thought_compact, f'{COT}, sharper',
    'd = R·m + ⌈log₂R⌉ + 2·max(1, ⌈log₂k⌉) + 2, F = R·m, depth 1',
    'the same in half the width: the current subject is in place already'),
  'few_thoughts': Entry(few_thoughts.few_thoughts, f'{COT}, with fewer thoughts',
    'd = (R^j + δ·R^{j−1})·m + R + (j+2)·⌈log₂(k+t+1)⌉, F = (R^j + δ·R^{j−1})·m, depth 1, j = ⌈k/(t+1)⌉',
    't < k subjects are said on the way, j hops of pre-computed answers between them'),
  'associative_attention': Entry(associative.attention, 'Nichani et al. (2025)',
    'd = --dim, H = R',
    'the baseline: fixed random embeddings, facts in attention matrices, a head a relation',
    exact=False),
  'associative_mlp': Entry(associative.mlp, 'Nichani et al. (2025)',
    'd = --dim, F = --width',
    'the baseline: fixed random embeddings, facts in an MLP', exact=False),
}  # fmt: skip


def names() -> list[str]:
  """The names of all constructions.

  >>> names()[:3]
  ['selector', 'selector_residual', 'selector_constant_weight']
  """
  return list(REGISTRY)


def multi_hop() -> list[str]:
  """The names of the multi-hop constructions."""
  return [name for name, known in REGISTRY.items() if known.multi_hop]


def entry(name: str) -> Entry:
  """A construction's theorem, size, summary and options, without building it.

  >>> entry('factored').options
  ('hops_per_layer',)
  """
  if name not in REGISTRY:
    raise InputError(f'no construction {name!r}; there are {", ".join(REGISTRY)}')
  return REGISTRY[name]


def check_options(name: str, options: Iterable[str]) -> None:
  """Refuse options that this construction does not take, and name the constructions that do."""
  for option in options:
    if option not in (takes := entry(name).options):
      allowed = f'it takes {", ".join(takes)}' if takes else 'its sizes follow from the facts'
      others = [other for other, known in REGISTRY.items() if option in known.options]
      hint = f'; {option} is for {", ".join(others)}' if others else ''
      raise InputError(f'{name} has no option {option!r}; {allowed}{hint}')


def build(name: str, facts: Facts, hops: int = 1, **options: Any) -> Construction:
  """Build the construction `name` for these facts. Options that it does not take are refused.

  >>> build('keyvalue', Facts.bijections(8, 2), hops=2).ask('s1 r0 r1')
  s1 r0 r1 → s5   (correct, margin 2, runner-up s1)
  """
  known = entry(name)
  check_options(name, options)
  if hops != 1 and not known.multi_hop:
    raise InputError(
      f'{name} answers one hop, not {hops}; multi-hop constructions are {", ".join(multi_hop())}'
    )
  path = (hops,) if known.multi_hop else ()
  return known.builder(facts, *path, **options).replace(options=options)


def load(path: str | os.PathLike) -> FactModel:
  """The model in the folder `path`; a registered construction is rebuilt and compared with what was saved.

  The result thus has everything that `build` gives, including `encode`, which cannot be saved. If
  an exact construction differs in a single bit, it is refused; an inexact one, whose weights may
  come from a solver, is then returned as saved, without `encode`.

  >>> build('selector', Facts.bijections(8, 2)).save('mine')
  >>> load('mine').verify('universal').queries
  128
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
    f'{path}: not the weights that {saved.name} has for these facts; geomem.load reads them as they are'
  )


def _same(one: np.ndarray, other: np.ndarray) -> bool:
  """Whether two arrays are equal to the last bit."""
  bits = lambda a: np.ascontiguousarray(a).view(np.uint8)
  return one.dtype == other.dtype and np.array_equal(bits(one), bits(other))
