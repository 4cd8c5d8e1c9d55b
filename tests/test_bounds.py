"""The lower bounds against exhaustive counts, and these counts against a plain-Python oracle."""

import collections
import functools
import itertools
import math

import numpy as np
import pytest

from constructions import partly_precomputed
from geomem.checks import lower_bounds
from geomem.errors import InputError

SLACK = 1e-9
GRID = [
  (n, r, k)
  for r, largest in ((1, 7), (2, 5), (3, 4))
  for n in range(1, largest + 1)
  for k in (1, 2, 3)
]


def prime_to(subjects, relations, hops):
  """The numbers of roots that closed_local_bits covers: those coprime to the number of hops."""
  return [m for m in range(1, subjects + 1) if hops > 1 and math.gcd(m, hops) == 1]


def hashed_bits(subjects, relations, hops, roots):
  """exact_bits by counting hashes of the tables, which can only give fewer, at more subjects and hops."""
  maps_PxN = np.array(list(itertools.permutations(range(subjects))), np.uint8)
  total, count = len(maps_PxN) ** relations, len(maps_PxN)
  weights_Q = np.random.default_rng(0).integers(0, 2**64, roots * relations**hops, np.uint64) | 1
  found = []
  for start in range(0, total, 2**15):
    tuple_B = np.arange(start, min(start + 2**15, total))
    some = [maps_PxN[tuple_B // count**r % count] for r in range(relations)]
    answers_BxQ = lower_bounds._answers(some, hops, roots)
    hash_B = np.zeros(len(tuple_B), np.uint64)
    for answers_B, weight in zip(answers_BxQ.T, weights_Q, strict=True):
      hash_B += answers_B * weight
    found.append(np.unique(hash_B))
  return math.log2(len(np.unique(np.concatenate(found))))


def oracle_tables(subjects, relations, hops, roots):
  tables = set()
  for maps in itertools.product(itertools.permutations(range(subjects)), repeat=relations):
    table = []
    for s in range(roots):
      for word in itertools.product(maps, repeat=hops):
        at = s
        for g in word:
          at = g[at]
        table.append(at)
    tables.add(tuple(table))
  return len(tables)


@pytest.mark.parametrize(
  'subjects, relations, hops',
  [
    (1, 1, 1),
    (2, 1, 2),
    (4, 1, 2),
    (4, 1, 3),
    (5, 1, 2),
    (3, 2, 1),
    (3, 2, 2),
    (3, 2, 3),
    (4, 2, 2),
    (3, 3, 2),
    (3, 3, 4),
    (4, 2, 4),
  ],
)
def test_exhaustion_agrees_with_the_oracle(subjects, relations, hops):
  for roots in range(subjects + 1):
    count = oracle_tables(subjects, relations, hops, roots)
    assert lower_bounds.exact_bits(subjects, relations, hops, roots) == math.log2(count)


@pytest.mark.parametrize(
  'subjects, roots, bits',
  [
    (4, 1, 7.209),
    (4, 2, 8.833),
    (5, 1, 8.731),
    (5, 2, 13.074),
    (6, 1, 9.870),
    (6, 2, 16.900),
    (6, 6, 18.881),
  ],
)
def test_measured_values_of_the_theory(subjects, roots, bits):
  assert round(lower_bounds.exact_bits(subjects, 2, 2, roots), 3) == bits
  if roots <= lower_bounds.max_roots(subjects, 2, 2):
    assert lower_bounds.sharp_local_bits(subjects, 2, 2, roots) <= bits


@pytest.mark.parametrize('base', [1, 2, 3, 4, 7, 10])
def test_packing_loses_nothing(base):
  flips_BxQ = np.eye(130, dtype=int) if base > 1 else np.zeros((130, 130), int)
  for rows_BxQ in (flips_BxQ, base - 1 - flips_BxQ):
    packed_BxW = lower_bounds._packed(rows_BxQ, base)
    assert len(lower_bounds._distinct(packed_BxW)) == (130 if base > 1 else 1)


def test_formula_value_of_the_theory():
  assert round(lower_bounds.local_bits(6, 2, 2, 2), 2) == 9.17


@pytest.mark.parametrize('subjects, relations, hops', GRID)
def test_no_bound_exceeds_the_exact_count(subjects, relations, hops):
  sizes = subjects, relations, hops
  assert lower_bounds.global_bits(*sizes) <= lower_bounds.sharp_global_bits(*sizes)
  exact_bits = [lower_bounds.exact_bits(*sizes, roots) for roots in range(subjects + 1)]
  assert lower_bounds.sharp_global_bits(*sizes) <= exact_bits[subjects] + SLACK
  for roots, exact in enumerate(exact_bits):
    if roots <= lower_bounds.max_roots(*sizes):
      assert (
        lower_bounds.local_bits(*sizes, roots)
        <= lower_bounds.sharp_local_bits(*sizes, roots) + SLACK
      )
    if roots <= subjects // hops:
      assert lower_bounds.sharp_local_bits(*sizes, roots) <= exact + SLACK
  for subject_bits in (0, 0.7, 2.5, 6):
    exact = max(bits - roots * subject_bits for roots, bits in enumerate(exact_bits))
    assert lower_bounds.internal_bits(*sizes, subject_bits) <= exact + SLACK


@pytest.mark.parametrize(
  'subjects, relations, hops, roots',
  [
    (6, 2, 2, 1),
    (6, 2, 2, 2),
    (6, 2, 2, 3),
    (6, 2, 3, 2),
    (5, 3, 2, 1),
  ],
)
def test_sharp_local_bound_at_larger_sizes(subjects, relations, hops, roots):
  bound = lower_bounds.sharp_local_bits(subjects, relations, hops, roots)
  assert 0 < bound <= lower_bounds.exact_bits(subjects, relations, hops, roots)


@pytest.mark.parametrize(
  'subjects, relations, hops',
  [(n, 2, k) for n in (3, 4, 5, 6) for k in (2, 3, 4)] + [(n, 3, k) for n in (3, 4, 5) for k in (2, 3, 4)],
)  # fmt: skip
def test_no_bound_exceeds_the_count_at_larger_sizes(subjects, relations, hops):
  """No bound exceeds the exhaustive count.

  More roots have no fewer tables, so a count for fewer roots is enough where it is large enough.
  """
  sizes, counted, exact = (subjects, relations, hops), 0, 0.0
  for roots in range(1, subjects + 1):
    bounds = [lower_bounds.sharp_local_bits(*sizes, roots)] if roots <= subjects // hops else []
    bounds += [lower_bounds.closed_local_bits(*sizes, roots)] if roots in prime_to(*sizes) else []
    bounds += [lower_bounds.sharp_global_bits(*sizes)] if roots == subjects else []
    if max(bounds, default=0) > exact:
      counted, exact = counted + 1, hashed_bits(*sizes, roots)
    assert max(bounds, default=0) <= exact + SLACK
  assert counted


def test_closed_trees_counted_as_in_the_proof():
  """The bound is log2 of the tables counted over all tuples of the proof.

  In them relation 0 permutes the roots in one cycle, and all vertices have distinct children. As many tuples
  share each table as the proof allows at most.
  """
  subjects, relations, hops, roots = 5, 2, 3, 1
  shares = collections.Counter()
  for g, h in itertools.product(itertools.permutations(range(subjects)), repeat=2):
    if g[0] == 0 and len({0, h[0], g[h[0]], h[h[0]]}) == 4:
      shares[tuple(c[b[a[0]]] for a, b, c in itertools.product((g, h), repeat=3))] += 1
  assert set(shares.values()) == {math.factorial(subjects - 4) ** 2}
  count = lower_bounds._closed_bits(subjects, relations, hops, 2, roots)
  assert math.isclose(count, math.log2(len(shares)))


@pytest.mark.parametrize('sizes', [(40, 1, 2), (500, 2, 2), (300, 3, 3), (1000, 2, 5)])
def test_closed_counts_are_convex_then_concave(sizes):
  for branching in lower_bounds._branchings(*sizes, 1):
    most = sizes[0] // branching ** (sizes[2] - 1)
    counts = [lower_bounds._closed_bits(*sizes, branching, m) for m in range(1, most + 1)]
    signs = np.sign(np.round(np.diff(counts, 2), 9))
    assert np.all(np.diff(signs[signs != 0]) <= 0)


def test_the_trade_off_is_a_line():
  """At random sizes our bound lies between the corollary's explicit bound and the construction, all near 1 − β."""
  rng = np.random.default_rng(0)
  for _ in range(300):
    hops, relations = int(rng.integers(2, 5)), int(rng.integers(1, 9))
    subjects = int(2 ** rng.uniform(1, 22))
    stored = int(rng.integers(1, relations + 1))
    bits = math.log2(subjects)
    own = stored * relations ** (hops - 1) * bits
    bound = lower_bounds.internal_bits(subjects, relations, hops, own)
    assert bound <= (relations - stored) * lower_bounds.log2_factorial(subjects) + 1e-6 * subjects
    roots = max(prime_below(subjects // relations ** (hops - 1), hops), 0)
    if roots:
      leaves = roots * relations ** (hops - 1)
      entropy = binary_entropy(roots / leaves)
      least = leaves * (
        (relations - stored) * bits - relations * math.log2(math.e * subjects / leaves)
      )
      assert (
        least - leaves * (math.log2(math.e) + entropy) - math.log2(roots) <= bound + 1e-6 * subjects
      )


def prime_below(most, hops):
  return next((m for m in range(most, 0, -1) if math.gcd(m, hops) == 1), 0)


def binary_entropy(p):
  return -sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)


@pytest.mark.parametrize('hops', [2, 3])
def test_at_half_the_answers_the_bound_is_met_within_a_fifth(hops):
  """At N = 10⁶, R = 8 the bound exceeds .41 N·R·log₂N, where weights that depend on the facts have .50 N·R·log₂N."""
  own, rest = partly_precomputed.fact_bits(10**6, 8, hops, 4)
  bound = lower_bounds.internal_bits(10**6, 8, hops, own)
  assert bound / (8e6 * math.log2(10**6)) > 0.41 and 1 < rest / bound < 1.22


@pytest.mark.parametrize(
  'subjects, relations, hops, roots', [(4, 2, 2, 2), (5, 2, 2, 2), (4, 3, 2, 1), (5, 2, 3, 1)]
)
def test_later_thoughts_obey_their_bound(subjects, relations, hops, roots):
  """The bound for later thoughts against a count of all tuples in which relation 0 fixes the roots.

  The thoughts before then show a single embedding.
  """
  maps, tables = list(itertools.permutations(range(subjects))), set()
  keeping = [g for g in maps if g[:roots] == tuple(range(roots))]
  for some in itertools.product(keeping, *[maps] * (relations - 1)):
    words = itertools.product(some, repeat=hops)
    tables.add(
      tuple(functools.reduce(lambda s, g: g[s], w, s) for w in words for s in range(roots))
    )
  injections = lower_bounds._log2_injections
  for branching in range(1, relations):
    inner, leaves = (roots * size for size in lower_bounds._tree(branching, hops))
    if inner + leaves <= subjects:
      bound = branching * injections(leaves, subjects - inner)
      bound += (relations - 1 - branching) * injections(leaves, subjects)
      bound += injections(leaves, subjects - roots)
      assert 0 < bound <= math.log2(len(tables)) + SLACK


def test_every_tree_count_holds_on_its_own():
  for (subjects, relations, hops), roots in itertools.product(GRID + [(6, 2, 2)], (1, 2, 3)):
    if roots > subjects:
      continue
    exact = None
    for branching, inner, leaves in lower_bounds._trees(subjects, relations, hops):
      if roots * (inner + leaves) <= subjects:
        exact = exact or lower_bounds.exact_bits(subjects, relations, hops, roots) + SLACK
        assert (
          lower_bounds._mean_bits(subjects, relations, branching, inner, leaves, roots) <= exact
        )
      if roots * (inner + 2 * leaves) <= subjects:
        assert lower_bounds._free_bits(subjects, relations, leaves, roots) <= exact


def test_disjoint_trees_counted_as_in_the_proof():
  subjects, roots = 5, 1
  good, tables = 0, set()
  for g, h in itertools.product(itertools.permutations(range(subjects)), repeat=2):
    if len({0, g[0], h[0]}) == 3:
      good += 1
      tables.add((g[g[0]], h[g[0]], g[h[0]], h[h[0]]))
  fiber = math.factorial(subjects - 2) ** 2
  assert good == (4 * 3) * math.factorial(4) ** 2
  assert math.isclose(lower_bounds._mean_bits(subjects, 2, 2, 1, 2, roots), math.log2(good / fiber))
  assert good / fiber <= len(tables)


def test_two_fifths_of_all_tuples_act_as_the_global_proof_needs():
  derangements = [1, 0]
  for n in range(2, 120):
    derangements.append((n - 1) * (derangements[-1] + derangements[-2]))
    if n > 2:
      intransitive = sum(1 / math.comb(n, j) for j in range(1, n // 2 + 1))
      assert 1 - intransitive - (derangements[n] / math.factorial(n)) ** 2 >= 0.4


@pytest.mark.parametrize('hops', [2, 3, 4])
def test_at_most_n_such_tuples_share_a_table(hops):
  subjects = 4
  fibers = {}
  for maps in itertools.product(itertools.permutations(range(subjects)), repeat=2):
    reached = {0}
    for _ in range(subjects):
      reached |= {g[s] for g in maps for s in reached}
    if len(reached) == subjects and any(g[s] == s for g in maps for s in range(subjects)):
      table = [tuple(range(subjects))]
      for _ in range(hops):
        table = [tuple(g[s] for s in at) for at in table for g in maps]
      fibers[tuple(table)] = fibers.get(tuple(table), 0) + 1
  assert 1 <= max(fibers.values()) <= subjects


@pytest.mark.parametrize(
  'subjects, relations, hops',
  [
    (1, 1, 1),
    (6, 2, 2),
    (37, 1, 3),
    (37, 1, 1),
    (64, 2, 1),
    (60, 2, 3),
    (100, 3, 2),
    (200, 4, 3),
    (50, 9, 3),
    (2, 3, 5),
  ],
)
def test_optimum_over_roots_is_the_brute_force_one(subjects, relations, hops):
  sizes = subjects, relations, hops
  for subject_bits in (0, 1.5, 4, 9.25, 20, 60, 150, 500):
    brute = max(
      lower_bounds.sharp_local_bits(*sizes, m) - m * subject_bits
      for m in range(subjects // hops + 1)
    )
    closed = [
      lower_bounds.closed_local_bits(*sizes, m) - m * subject_bits for m in prime_to(*sizes)
    ]
    brute = max(brute, 0, *closed, lower_bounds.sharp_global_bits(*sizes) - subjects * subject_bits)
    assert math.isclose(
      lower_bounds.internal_bits(*sizes, subject_bits), brute, rel_tol=1e-12, abs_tol=1e-9
    )


@pytest.mark.parametrize('relations, hops', [(1, 1), (1, 4), (2, 1), (2, 3), (5, 2), (9, 3)])
def test_counts_are_concave_in_the_roots(relations, hops):
  subjects = 500
  for branching, inner, leaves in lower_bounds._trees(subjects, relations, hops):
    mean = functools.partial(lower_bounds._mean_bits, subjects, relations, branching, inner, leaves)
    free = functools.partial(lower_bounds._free_bits, subjects, relations, leaves)
    for bits, limit in (
      (mean, subjects // (inner + leaves)),
      (free, subjects // (inner + 2 * leaves)),
    ):
      assert np.all(np.diff([bits(m) for m in range(limit + 1)], 2) <= SLACK)


@pytest.mark.parametrize(
  'subjects, relations, hops', [(90, 1, 3), (90, 2, 2), (300, 3, 3), (1000, 7, 2)]
)
def test_sharp_local_bound_is_never_below_the_plain_one(subjects, relations, hops):
  for roots in range(1, lower_bounds.max_roots(subjects, relations, hops) + 1):
    gain = lower_bounds.sharp_local_bits(
      subjects, relations, hops, roots
    ) - lower_bounds.local_bits(subjects, relations, hops, roots)
    assert gain > 0 if relations > 1 else gain > -SLACK


@pytest.mark.parametrize('options', [{}, {'tied': True}, {'chain_of_thought': True}])
def test_more_embedding_bits_never_need_more_internal_bits(options):
  curve = [lower_bounds.internal_bits(300, 3, 2, b, **options) for b in np.linspace(0, 200, 121)]
  assert np.all(np.diff(curve) <= SLACK)
  assert curve[0] > 0 and curve[-1] == 0


def test_local_bound_is_dropped_where_it_does_not_apply():
  subject_bits = 40.0
  assert lower_bounds.internal_bits(10_000, 8, 2, subject_bits) > 10_000 * 40
  remainder = lower_bounds.sharp_global_bits(10_000, 8, 2) - 10_000 * subject_bits
  assert lower_bounds.internal_bits(10_000, 8, 2, subject_bits, tied=True) == max(0, remainder)
  remainder = (
    lower_bounds.sharp_global_bits(10_000, 8, 1) - 10_000 * subject_bits
  )  # every step is visible
  assert lower_bounds.internal_bits(10_000, 8, 2, subject_bits, chain_of_thought=True) == max(
    0, remainder
  )


def test_one_hop_is_the_number_of_tuples():
  for n, r in ((1, 1), (4, 2), (5, 1), (1000, 7)):
    whole = r * lower_bounds.log2_factorial(n)
    assert lower_bounds.max_roots(n, r, 1) == n
    for value in (
      lower_bounds.global_bits(n, r, 1),
      lower_bounds.sharp_global_bits(n, r, 1),
      lower_bounds.local_bits(n, r, 1, n),
      lower_bounds.sharp_local_bits(n, r, 1, n),
      lower_bounds.internal_bits(n, r, 1, 0),
    ):
      assert math.isclose(value, whole, abs_tol=SLACK)


def test_one_relation():
  assert lower_bounds.tree_vertices(1, 4) == 4 and lower_bounds.tree_vertices(3, 3) == 13
  assert lower_bounds.global_bits(9, 1, 2) == 0
  assert lower_bounds.sharp_global_bits(2, 1, 2) == 0 == lower_bounds.exact_bits(2, 1, 2, 2)
  assert math.isclose(lower_bounds.sharp_global_bits(7, 1, 2), math.log2(math.factorial(6)))
  assert math.isclose(lower_bounds.sharp_global_bits(6, 1, 2), math.log2(math.factorial(6) / 5))
  assert math.isclose(lower_bounds.local_bits(9, 1, 3, 3), math.log2(math.factorial(3)))
  assert math.isclose(lower_bounds.sharp_local_bits(9, 1, 3, 3), math.log2(math.factorial(3)))


def test_more_branches_than_subjects_is_no_obstacle():
  assert lower_bounds.max_roots(1000, 32, 3) == 0
  assert lower_bounds.sharp_local_bits(1000, 32, 3, 1) > 0.8 * 32 * lower_bounds.log2_factorial(
    1000
  )


def test_log2_factorial():
  for n in (0, 1, 2, 20, 170):
    assert math.isclose(
      lower_bounds.log2_factorial(n), math.log2(math.factorial(n)), rel_tol=1e-14, abs_tol=1e-14
    )
  n = 10**9
  stirling = n * math.log2(n / math.e) + 0.5 * math.log2(2 * math.pi * n)
  assert math.isclose(lower_bounds.log2_factorial(n), stirling, rel_tol=1e-12)


def test_a_million_subjects_cost_little_more_than_a_thousand(monkeypatch):
  counts, log2_factorial = collections.Counter(), lower_bounds.log2_factorial

  def counted(n):
    counts[subjects] += 1
    return log2_factorial(n)

  monkeypatch.setattr(lower_bounds, 'log2_factorial', counted)
  for subjects in (10**3, 10**6):
    curve = [lower_bounds.internal_bits(subjects, 4, 3, b) for b in np.linspace(0, 1500, 50)]
  assert 0 < counts[10**6] < 4 * counts[10**3]  # the logarithm of N doubles
  whole = 4 * lower_bounds.log2_factorial(10**6)
  assert 0.99999 * whole < curve[0] < whole and curve[20] > 0.2 * whole and curve[-1] == 0


@pytest.mark.parametrize(
  'call',
  [
    lambda: lower_bounds.tree_vertices(0, 2),
    lambda: lower_bounds.tree_vertices(2, 0),
    lambda: lower_bounds.max_roots(0, 2, 2),
    lambda: lower_bounds.global_bits(5, 2.0, 2),
    lambda: lower_bounds.sharp_global_bits(5, True, 2),
    lambda: lower_bounds.local_bits(6, 2, 2, 3),
    lambda: lower_bounds.local_bits(6, 2, 2, -1),
    lambda: lower_bounds.local_bits(6, 2, 2, 1.0),
    lambda: lower_bounds.sharp_local_bits(6, 2, 2, 4),
    lambda: lower_bounds.closed_local_bits(6, 2, 2, 2),
    lambda: lower_bounds.closed_local_bits(6, 2, 1, 3),
    lambda: lower_bounds.closed_local_bits(6, 2, 2, 0),
    lambda: lower_bounds.internal_bits(6, 2, 2, -1),
    lambda: lower_bounds.internal_bits(6, 2, 2, math.nan),
    lambda: lower_bounds.internal_bits(6, 2, 2, math.inf, tied=True),
    lambda: lower_bounds.exact_bits(6, 2, 2, 7),
    lambda: lower_bounds.exact_bits(6, 3, 2, 1),
    lambda: lower_bounds.exact_bits(10**6, 2, 2, 1),
  ],
)
def test_bad_input_is_refused_in_one_line(call):
  with pytest.raises(InputError) as error:
    call()
  assert '\n' not in str(error.value)
