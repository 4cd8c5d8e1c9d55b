"""The ledger counts every weight once, and its bits by counting values; no construction beats a bound."""

import functools
import math

import jax
import numpy as np
import pytest

from constructions import registry
from geomem import model
from geomem.checks import accounting, lower_bounds
from geomem.config import NORMS, BlockConfig, Config
from geomem.facts import Facts

EXACT = [name for name, entry in registry.REGISTRY.items() if entry.exact]
ONE_HOP = [(2, 1, 1), (3, 5, 1), (8, 3, 1), (17, 2, 1), (64, 5, 1)]
SIZES = [
  *ONE_HOP[:2],
  (64, 3, 1),
  (2, 2, 2),
  (17, 2, 2),
  (5, 1, 3),
  (8, 2, 3),
  (64, 2, 3),
]
WEIGHTS_HOLD_FACTS = ('keyvalue', 'factored', 'partly_precomputed')


@functools.cache
def build(name, n, r, k=1, seed=0):
  entry = registry.entry(name)
  facts = Facts.disjoint(n, r, n, seed) if entry.own_answers else Facts.bijections(n, r, seed)
  return registry.build(name, facts, k)


def ledger_of(c):
  return accounting.ledger(c.config, c.params, c.facts, c.hops, chain_of_thought=c.chain_of_thought)


def counted(values):
  """Bits per value, by np.unique."""
  _, counts = np.unique(values, return_counts=True)
  if len(counts) > 256:
    return 8 * values.dtype.itemsize
  share = counts / max(1, counts.sum())
  return float(-(share * np.log2(share)).sum())


def log2_factorial(n):
  return math.log2(math.factorial(n))


# --- bits a value ---------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [1, 2, 100, 5000, 30_000])
@pytest.mark.parametrize('values', [1, 2, 3, 17, 256])
def test_entropy_is_a_count_of_values(values, size):
  rng = np.random.default_rng(0)
  drawn = np.minimum(rng.integers(0, values, size), rng.integers(0, values, size))
  for dtype in (np.float32, np.float16):
    assert accounting.entropy(drawn.astype(dtype)) == pytest.approx(
      counted(drawn.astype(dtype)), abs=1e-9
    )


@pytest.mark.parametrize(
  'values,bits',
  [
    ([], 0),
    ([7.0] * 9, 0),
    ([1, -1] * 8, 1),
    ([0.0, -0.0], 0),
    ([[1, 2], [3, 4]], 2),
    ([0] * 7 + [1], 3 - 7 / 8 * math.log2(7)),
    ([np.nan, np.nan], 0),
    ([np.nan, 1, np.nan, 2], 1.5),
    ([np.inf, -np.inf], 1),
    (range(256), 8),
    (range(257), math.log2(257)),
    ([i / 10 for i in range(257)], 32),
    ([i / 16 - 3 for i in range(257)], math.log2(257)),  # fixed point
    ([*[0] * 100_000, *range(300)], math.log2(300)),  # too many, though a sample shows few
  ],
)
def test_entropy_by_hand(values, bits):
  assert accounting.entropy(np.array(list(values), np.float32)) == pytest.approx(bits)


def test_width_of_a_random_weight_is_its_dtype():
  noise = jax.random.normal(jax.random.key(0), (40, 40))
  assert accounting.entropy(noise) == 32 and accounting.entropy(noise.astype('bfloat16')) <= 16


# --- the selector, number by number ---------------------------------------------------------------


@pytest.mark.parametrize('r', [1, 3, 5])
@pytest.mark.parametrize('m', [1, 3, 6])
def test_selector_of_a_power_of_two(r, m):
  """Each bit is set for half of all subjects, so there are exactly R·m bits per subject."""
  n, c = 2**m, build('selector', 2**m, r)
  book = ledger_of(c)
  assert (
    book.subject_bits == pytest.approx(r * m, abs=1e-12)
    and book.bits['subjects'] == n * book.subject_bits
  )
  assert book.fact_bits == pytest.approx(r * log2_factorial(n))
  assert book.bound_bits == 0 and book.times_bound == math.inf
  assert (book.dim, book.depth, book.heads, book.hidden) == (r * m, 1, (1,), ((r * m,),))
  d = r * m
  assert book.parameters == {
    'subjects': n * d,
    'relations_and_positions': (r + 2) * d,
    'attention': d + d + d * d + d * d,
    'mlp': d * d + d + d * d + d,
    'norm': 0,
    'unembedding': n * d,
  }
  assert book.bits['attention'] == pytest.approx(2 * d * d * counted(np.eye(d)))
  assert book.bits['norm'] == 0
  own = r * counted(1 - np.repeat(np.eye(r), m)) * d  # ones and halves; positions are all zero
  assert book.bits['relations_and_positions'] == pytest.approx(own)
  whole = sum(book.bits.values())
  assert book.fact_bits < whole
  assert book.internal_bits == pytest.approx(whole - n * r * m)


@pytest.mark.parametrize('n,r', [(3, 2), (5, 1), (17, 3)])
def test_subject_bits_are_a_sum_over_coordinates(n, r):
  c = build('selector', n, r)
  columns = [counted(column) for column in c.params['embed']['subjects'].T]
  assert ledger_of(c).subject_bits == pytest.approx(sum(columns))
  assert math.log2(n) * r <= sum(columns) <= r * (n - 1).bit_length()


def test_what_all_subjects_share_is_free():
  c = build('selector', 8, 2)
  params = jax.tree.map(np.copy, c.params)
  params['embed']['subjects'][:, 0] = 7.25
  book = ledger_of(c.replace(params=params))
  assert book.subject_bits == pytest.approx(ledger_of(c).subject_bits - 1)
  params['embed']['subjects'][:] = np.arange(6)
  book = ledger_of(c.replace(params=params))
  assert book.subject_bits == 0
  assert book.bound_bits == pytest.approx(2 * log2_factorial(8))
  assert book.times_bound == pytest.approx(book.internal_bits / book.bound_bits)


# --- any parameters -------------------------------------------------------------------------------


def random_book(norm='layer', tied=False, subjects=300):
  block = BlockConfig(2, 4, 8, (40, 20))
  config = Config(subjects, 3, subjects, 3, 16, (block, block), norm=norm, tied=tied)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda a: rng.normal(size=a.shape).astype('f'), model.zeros(config))
  facts = Facts.bijections(subjects, 3)
  return params, accounting.ledger(config, params, facts, 2)


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('tied', [False, True])
def test_every_parameter_has_one_role(norm, tied):
  params, book = random_book(norm, tied)
  leaves = jax.tree_util.tree_leaves_with_path(params)
  assert tuple(book.parameters) == tuple(book.bits) == accounting.ROLES
  assert book.total_parameters == sum(a.size for _, a in leaves)
  for role in accounting.ROLES:
    own = [a for path, a in leaves if accounting.role_of(path) == role]
    assert book.parameters[role] == sum(a.size for a in own)
    if role != 'subjects':
      assert book.bits[role] == pytest.approx(sum(a.size * counted(a) for a in own))
  assert book.parameters['subjects'] == 300 * 16
  assert book.parameters['norm'] == {'none': 0, 'rms': 5 * 16, 'layer': 5 * 32}[norm]
  assert book.parameters['unembedding'] == (0 if tied else 300 * 16)
  assert book.parameters['mlp'] == 2 * (16 * 40 + 40 + 40 * 20 + 20 + 20 * 16 + 16)
  assert book.parameters['attention'] == 2 * 2 * 16 * (4 + 4 + 8 + 8)


def test_random_weights_cost_their_width():
  _, book = random_book()
  assert book.subject_bits == 32 * 16 and book.bits['subjects'] == 300 * 32 * 16
  assert book.bits['unembedding'] == 300 * 32 * 16


def test_nan_is_a_value_too():
  """A diverged model, whose weights are all NaN, has a ledger like any other."""
  c = build('selector', 8, 2)
  book = ledger_of(c.replace(params=jax.tree.map(lambda a: np.full_like(a, np.nan), c.params)))
  assert sum(book.bits.values()) == 0 and book.subject_bits == 0


def test_only_the_bound_that_applies_is_used():
  """The local bound does not apply with a chain of thought, nor with a tied unembedding."""
  c = build('chain_of_thought', 64, 2, 3)
  params = jax.tree.map(np.copy, c.params)
  params['embed']['subjects'][:, 8:] = 0
  rest = lower_bounds.sharp_global_bits(64, 2, 3) - 64 * 8
  seen = lower_bounds.sharp_global_bits(64, 2, 1) - 64 * 8  # a chain of thought shows every fact
  for tied, thinks, bits in (
    (False, False, lower_bounds.internal_bits(64, 2, 3, 8)),
    (True, False, rest),
    (False, True, seen),
  ):
    config = c.config.replace(tied=tied)
    book = accounting.ledger(config, params, c.facts, 3, chain_of_thought=thinks)
    assert book.bound_bits == pytest.approx(bits)
  assert 0 < rest < lower_bounds.internal_bits(64, 2, 3, 8)


@pytest.mark.parametrize(
  'facts,bits',
  [
    (Facts(np.array([[1, 0, 2], [2, 2, 0]]), 3, closed=True), log2_factorial(3) + 3 * 1),
    (Facts(np.array([[0, 0, 0]]), 3, closed=True), 0),
    (Facts(np.array([[4, 9, 0, 9]]), 10, closed=False), 4 * math.log2(3)),
    (Facts.disjoint(6, 2, 6), 2 * log2_factorial(6)),
    (Facts.disjoint(6, 2, 3), 2 * 6 * math.log2(3)),
  ],
)
def test_information_in_facts(facts, bits):
  assert accounting.fact_bits(facts) == pytest.approx(bits)


# --- lower bounds ---------------------------------------------------------------------------------


def at_random(name, multi_hop, count=2):
  """Random sizes with at most 2,000 queries."""
  rng = np.random.default_rng(list(name.encode()))
  while count:
    n, r, k = rng.integers(2, 41), rng.integers(1, 6), rng.integers(1, 4) if multi_hop else 1
    if n * r**k <= 2000:
      count -= 1
      yield int(n), int(r), int(k)


@pytest.mark.parametrize('name', EXACT)
def test_no_construction_beats_a_lower_bound(name):
  """No construction takes fewer bits than the lower bounds, at the listed sizes and at random ones."""
  above = []
  multi_hop = registry.entry(name).multi_hop
  for n, r, k in [*(SIZES if multi_hop else ONE_HOP), *at_random(name, multi_hop)]:
    c = build(name, n, r, k)
    book = ledger_of(c)
    whole = lower_bounds.sharp_global_bits(n, r, k)
    asked = (c.said[0], False) if c.thoughts is not None else (k, c.chain_of_thought)
    floor = lower_bounds.internal_bits(n, r, asked[0], book.subject_bits, chain_of_thought=asked[1])
    assert book.bound_bits == floor <= book.internal_bits, (n, r, k)
    assert book.internal_bits + n * book.subject_bits >= whole, (n, r, k)
    assert book.times_bound >= 1
    above.append(floor > 0)
  assert any(above) == (name in WEIGHTS_HOLD_FACTS)  # elsewhere the embeddings hold it all


@pytest.mark.parametrize('name,n,r,k', [
  ('selector', 2, 1, 1), ('selector_multilevel', 16, 3, 1), ('attention_only', 16, 3, 1),
  ('keyvalue', 3, 2, 2), ('factored', 2, 2, 2), ('factored', 16, 3, 2),
  ('chain_of_thought', 2, 1, 2),
])  # fmt: skip
def test_nor_does_the_table_that_says_least(name, n, r, k):
  """Nor do facts whose relations are all the identity, with which the arrays are as regular as they can be."""
  facts = Facts(np.tile(np.arange(n, dtype=np.int32), (r, 1)), n, closed=True)
  book = ledger_of(registry.build(name, facts, k))
  assert book.bound_bits <= book.internal_bits
  assert book.internal_bits + n * book.subject_bits >= lower_bounds.sharp_global_bits(n, r, k)


@pytest.mark.parametrize('n', [64, 300])
def test_random_weights_lie_above_the_bounds(n):
  _, book = random_book(subjects=n)
  assert book.times_bound >= 1
  assert book.internal_bits + n * book.subject_bits >= lower_bounds.sharp_global_bits(n, 3, 2)
