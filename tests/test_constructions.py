"""Every exact construction has exactly the stated size and answers every query with the promised margin."""

import itertools
import math

import jax
import numpy as np
import oracle
import pytest

from constructions import registry
from geomem import codes
from geomem.checks import verify
from geomem.errors import InputError
from geomem.facts import Facts

EXACT = [name for name, entry in registry.REGISTRY.items() if entry.exact]
ONE_HOP = [name for name in EXACT if not registry.REGISTRY[name].multi_hop]
MULTI_HOP = [name for name in EXACT if registry.REGISTRY[name].multi_hop]

PAIRS = [
  (2, 1), (2, 2), (2, 5), (3, 1), (3, 2), (4, 3), (5, 1), (5, 4), (6, 2), (7, 3), (8, 8), (9, 2),
  (12, 5), (16, 4), (17, 3), (31, 2), (33, 7), (64, 4), (100, 10), (700, 3), (500_000, 2),
]  # fmt: skip
TRIPLES = [
  (2, 1, 1), (2, 1, 3), (2, 2, 1), (2, 2, 2), (2, 3, 2), (3, 1, 2), (3, 2, 3), (4, 3, 2), (5, 1, 4),
  (5, 2, 2), (5, 4, 1), (6, 2, 4), (7, 3, 2), (8, 2, 3), (9, 3, 1), (11, 5, 2), (16, 4, 2),
  (17, 2, 5), (33, 3, 2), (100, 2, 2),
]  # fmt: skip
# Sizes with N·R^k ≥ 10⁶ that cost each construction least; if they take half a minute, a smaller one first or instead.
LARGE = {
  'keyvalue': [(2, 80, 2), (2, 27, 4)], 'factored': [(16, 16, 3), (2, 14, 5)],
  'chain_of_thought': [(500_000, 2, 1)], 'few_thoughts': [(262_144, 2, 2)], 'chain_of_thought_compact': [(262_144, 2, 2)],
  'precomputed': [(500_000, 2, 1)], 'partly_precomputed': [(100, 8, 2)], 'precomputed_depth1': [(262_144, 2, 2)],
}  # fmt: skip
# Not selector_coded at half a million subjects: every pair of its long words would be compared.
CASES = [
  (name, n, r, 1) for name in ONE_HOP for n, r in PAIRS if name != 'selector_coded' or n < 10**4
]
CASES += [(name, *sizes) for name in MULTI_HOP for sizes in [*TRIPLES, *LARGE[name]]]
# Sizes at which the model itself is run, in bfloat16 too: edge cases, some in between, and the largest. At the others
# the NumPy oracle is run.
COMPILED = {
  *[(*pair, 1) for pair in [(2, 1), *PAIRS[-3:]]],
  *[(2, 1, 3), (11, 5, 2), (17, 2, 5)],
  *[sizes[0] for sizes in LARGE.values()],
}


def make_facts(name, n, r, seed=0):
  if registry.entry(name).own_answers:
    return Facts.disjoint(n, r, n, seed)
  return Facts.bijections(n, r, seed)


def build(name, n, r, k, facts=None, **options):
  return registry.build(name, facts or make_facts(name, n, r), k, **options)


def lg(n):
  return math.ceil(math.log2(n)) if n > 1 else 0


def words_of_constant_weight(n):
  return next(m for m in itertools.count(1) if math.comb(m, m // 2) >= n)


def words_under_noise(n, noise=0.5, error=0.01):
  rate = 1 - math.log2(1 + math.exp(-1 / (2 * noise**2)))
  return math.ceil((lg(n) - 1 + math.log2(1 / error)) / rate)


def expected_size(name, n, r, k):
  """d and the hidden widths of each block, written out a second time."""
  m, w, b = max(1, lg(n)), words_of_constant_weight(n), 4
  levels = math.ceil(lg(n) / b)
  p, pc, lr = lg(k + 1), lg(2 * k + 1), lg(r)
  return {
    'selector': (r * m, [(r * m,)]),
    'selector_residual': (r * m, [((r - 1) * m,) if r > 1 else ()]),
    'selector_constant_weight': (r * w, [(r * w,)]),
    'selector_multilevel': ((r + 1) * levels + 1, [(r * levels,)]),
    'selector_normed': (r * w, [(r * w,)]),
    'selector_literal': (r * m + r, [(r * m, m)]),
    'selector_coded': (
      r * words_under_noise(n) + r + words_under_noise(n),
      [(2 * r * words_under_noise(n),)],
    ),
    'attention_only': (r * m + lr + 2, [()]),
    'disjoint': (r * lg(n) + lr, [()]),
    'keyvalue': (2 * m + 2 * lr + p + 1, [(n * r,)] * k),
    # One AND unit fewer than the obvious count, which includes a constant unit that nothing needs.
    'factored': (2 * m + 2 * r + p + 1, [(n + r, r * m + m + r)] * k),
    'precomputed': (
      m * sum(r**j for j in range(k + 1)) + r + p + 1,
      [(r ** (k - j) * m,) for j in range(k)],
    ),
    'precomputed_depth1': (r**k * m + r + p + 1, [(r**k * m,)]),
    'partly_precomputed': partly_precomputed_size(n, r, k, -(-r // 2)),
    'few_thoughts': few_thoughts_size(n, r, k, k // 2),
    'chain_of_thought': (2 * r * m + r + 3 * pc + 1, [(r * m,)]),
    'chain_of_thought_compact': (r * m + lr + 2 * max(1, lg(k)) + 2, [(r * m,)]),
  }[name]


def partly_precomputed_size(n, r, k, s):
  m, branches = max(1, lg(n)), r ** (k - 1)
  last = ((n if s < r else 0) + s * m + r - s, (r - s + 1) * m)
  return s * (branches + 1) * m + r + lg(k + 1) + 1, [(s * branches * m,), last]


def few_thoughts_size(n, r, k, t):
  m, j = max(1, lg(n)), math.ceil(k / (t + 1))
  branches = r**j + (r ** (j - 1) if k % (t + 1) else 0)
  return branches * m + r + (j + 2) * lg(k + t + 1), [(branches * m,)]


@pytest.fixture
def hasty():
  """Restores the setting of conftest.py after a test that changes it."""
  yield
  jax.config.update('jax_disable_most_optimizations', True)


@pytest.mark.usefixtures('hasty')
@pytest.mark.parametrize('name,n,r,k', CASES)
def test_sizes_and_every_query(name, n, r, k):
  built = build(name, n, r, k)
  dim, hidden = expected_size(name, n, r, k)
  assert built.config.dim == dim == built.layout.dim
  assert [block.hidden for block in built.config.blocks] == hidden
  for layers, block in zip(built.hidden, built.config.blocks, strict=len(built.hidden) > 0):
    assert tuple(units.dim for units in layers) == block.hidden
  large = n * r**k >= 10**5
  if not large and (n, r, k) not in COMPILED:
    right, margin = asked_of_numpy(built)
    assert right == n * r**k and margin >= built.margin
    return
  jax.config.update('jax_disable_most_optimizations', not large)
  check = verify.certificate if large and n > 1000 else verify.exhaustive
  # Rounding to eight bits depends on N only through the word length: at half a million one construction is enough.
  both = (n, r, k) in COMPILED and (not large or name == 'selector')
  for dtype in ('float32', 'bfloat16')[: 1 + both]:
    if name == 'selector_multilevel' and dtype == 'bfloat16':
      built = build(name, n, r, k, bits=2)  # with more bits bfloat16 may not hold |v|²
    report = check(built, dtype)
    assert report.queries == n * r**k
    assert report.accuracy == 1.0
    assert report.min_margin >= built.margin


def asked_of_numpy(built, kind=np.float32):
  """The number of queries that are right at every step, and the least margin, by an independent forward pass."""
  facts = built.facts
  paths = itertools.product(range(facts.relations), repeat=built.hops)
  asked = list(itertools.product(range(facts.subjects), paths))
  steps_BxK = np.array([oracle.answers(facts, s, path) for s, path in asked])
  tokens = np.array([[s, *(facts.subjects + q for q in path)] for s, path in asked])
  due = steps_BxK[:, [hop - 1 for hop in built.said]]
  tokens = np.concatenate([tokens, due[:, :-1]], axis=1)
  logits = oracle.logits(built.config, built.params, tokens, kind)[:, -due.shape[1] :]
  own = np.take_along_axis(logits, due[..., None], axis=-1)[..., 0]
  np.put_along_axis(logits, due[..., None], -np.inf, axis=-1)
  margins_B = (own - logits.max(axis=-1)).min(axis=1)
  return int((margins_B > 0).sum()), margins_B.min()


@pytest.mark.accelerator
@pytest.mark.parametrize('name', EXACT)
def test_agrees_with_numpy_on_every_query(name):
  """The NumPy oracle answers every query by the same least margin, and the certificate bounds it from below."""
  n, r, k = (7, 3, 2) if name in MULTI_HOP else (7, 3, 1)
  built = build(name, n, r, k)
  right, least = asked_of_numpy(built, np.float64)
  assert right == built.queries
  exhaustive, certificate = verify.exhaustive(built), verify.certificate(built)
  assert exhaustive.min_margin == pytest.approx(least, rel=1e-5)
  assert built.margin <= certificate.min_margin <= exhaustive.min_margin * (1 + 1e-6)
  assert certificate.accuracy == 1.0


@pytest.mark.accelerator
@pytest.mark.skipif(jax.default_backend() == 'cpu', reason='a CPU has one precision only')
def test_highest_precision_changes_nothing():
  for name, dtype in itertools.product(EXACT, ('float32', 'bfloat16')):
    built = build(name, 8, 3, 1)
    highest = built.replace(config=built.config.replace(precision='highest'))
    assert verify.exhaustive(built, dtype) == verify.exhaustive(highest, dtype), (name, dtype)


@pytest.mark.parametrize(
  'name', ['selector', 'selector_residual', 'selector_literal', 'attention_only', 'disjoint']
)
@pytest.mark.parametrize('n,r', [(2, 1), (3, 3), (5, 2), (8, 3)])
def test_universal(name, n, r):
  """Every content of the superposition is answered, hence every table of facts, bijections or not."""
  report = verify.universal(build(name, n, r, 1))
  assert report.queries == n**r * r
  assert report.accuracy == 1.0


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(
  'code', ['selector_constant_weight', 'selector_multilevel', 'selector_normed']
)
def test_universal_for_other_codes(code, dtype):
  built = build(code, 6, 3, 1)
  report = verify.universal(built, dtype)
  assert report.accuracy == 1.0 and report.min_margin >= built.margin


@pytest.mark.parametrize('name', ['precomputed', 'precomputed_depth1'])
@pytest.mark.parametrize('n,r,k', [(3, 2, 2), (4, 3, 1), (2, 2, 3)])
def test_universal_for_trees(name, n, r, k):
  report = verify.universal(build(name, n, r, k))
  assert report.queries == n ** (r**k) * r**k
  assert report.accuracy == 1.0


@pytest.mark.parametrize('name', EXACT)
def test_arbitrary_maps(name):
  """By the NumPy oracle no construction needs bijections, except that disjoint needs separate answers per relation."""
  if registry.entry(name).own_answers:
    facts = Facts.disjoint(11, 3, 4, 1)
  else:
    facts = Facts.random_maps(11, 3, seed=1)
  k = 2 if name in MULTI_HOP else 1
  built = build(name, 11, 3, k, facts)
  right, margin = asked_of_numpy(built)
  assert right == built.queries and margin >= built.margin


@pytest.mark.parametrize('name', ONE_HOP)
def test_fewer_or_more_attributes_than_subjects(name):
  if registry.entry(name).own_answers:
    pytest.skip('its attributes are its own by definition: see test_arbitrary_maps')
  for attributes in (2, 3, 40):
    facts = Facts.random_maps(9, 2, attributes, 2)
    built = build(name, 9, 2, 1, facts)
    sizes = built.config.dim, [block.hidden for block in built.config.blocks]
    assert sizes == expected_size(name, attributes, 2, 1)
    right, margin = asked_of_numpy(built)
    assert right == built.queries and margin >= built.margin


@pytest.mark.parametrize('k,j', [(2, 2), (3, 2), (3, 3), (4, 2), (4, 3), (5, 2)])
@pytest.mark.parametrize('n,r', [(2, 1), (5, 2), (9, 3)])
def test_factored_takes_several_hops_a_layer(n, r, k, j):
  built = build('factored', n, r, k, hops_per_layer=j)
  m = lg(n)
  assert built.config.depth == math.ceil(k / j)
  assert built.config.dim == 2 * m + r + j * r + lg(k + 1) + 1
  assert built.config.blocks[0].hidden == (n + j * r, r**j * m + m + j * r)
  right, margin = asked_of_numpy(built)
  assert right == built.queries and margin >= 2
  for dtype in ('float32', 'bfloat16') if n == 5 else ():
    report = verify.exhaustive(built, dtype)
    assert report.accuracy == 1.0 and report.min_margin >= 2


@pytest.mark.parametrize('n,r,k', [(5, 2, 3), (9, 3, 2)])
def test_partly_precomputed_at_every_share(n, r, k):
  for s in range(r + 1):
    built = build('partly_precomputed', n, r, k, beta=s / r)
    assert s == 0 or built.config.dim == partly_precomputed_size(n, r, k, s)[0]
    for dtype in ('float32', 'bfloat16'):
      assert verify.exhaustive(built, dtype).holds(2), (s, dtype)
    stored = {name: a.any() for name, a in built.params['blocks_1']['mlp'].items()}
    assert stored['middle'] and (s < r) == (built.hidden[1][0].slots[0].name == 'detector')


@pytest.mark.parametrize('n,r,k', [(5, 2, 4), (9, 3, 3), (2, 2, 5)])
def test_every_number_of_thoughts(n, r, k):
  for t in range(k):
    built = build('few_thoughts', n, r, k, thoughts=t)
    assert (built.config.dim, [built.config.blocks[0].hidden]) == few_thoughts_size(n, r, k, t)
    assert len(built.said) == t + 1 and built.said[-1] == k and built.chain_of_thought == (t > 0)
    assert max(np.diff([0, *built.said])) == built.said[0] == math.ceil(k / (t + 1))
    for dtype in ('float32', 'bfloat16')[: 1 + (t == 1)]:
      assert verify.exhaustive(built, dtype).holds(2), (t, dtype)


def test_thoughts_are_fewer_than_hops():
  for t in (-1, 2):
    with pytest.raises(InputError, match='fewer than the hops'):
      build('few_thoughts', 5, 2, 2, thoughts=t)


def test_partly_precomputed_depends_on_the_facts_in_one_matrix_alone():
  one, other = (
    build('partly_precomputed', 9, 3, 2, make_facts('partly_precomputed', 9, 3, seed))
    for seed in (0, 1)
  )
  same = jax.tree.map(np.array_equal, one.params, other.params)
  differ = {
    jax.tree_util.keystr(path)
    for path, equal in jax.tree_util.tree_leaves_with_path(same)
    if not equal
  }
  assert differ == {"['embed']['subjects']", "['blocks_1']['mlp']['middle']"}


def test_partly_precomputed_with_all_answers_holds_every_table():
  report = verify.universal(build('partly_precomputed', 3, 2, 2, beta=1))
  assert report.queries == 3**4 * 4 and report.holds(2)


@pytest.mark.parametrize('beta', [-0.5, 0.3, 1.5, math.nan, math.inf])
def test_a_share_between_relations_is_refused(beta):
  with pytest.raises(InputError, match='steps of one relation'):
    build('partly_precomputed', 5, 2, 2, beta=beta)


@pytest.mark.parametrize('bits', [1, 2, 3, 5, 10])
def test_multilevel_bits(bits):
  n, r = 1000, 2
  built = build('selector_multilevel', n, r, 1, bits=bits)
  per_relation = math.ceil(10 / bits)
  assert built.config.dim == (r + 1) * per_relation + 1
  report = verify.exhaustive(built)
  assert report.accuracy == 1.0 and report.min_margin >= 1


def test_selector_weights_are_a_handful_of_dyadic_numbers():
  built = build('selector', 37, 5, 1)
  values = set(np.concatenate([w.ravel() for w in jax.tree.leaves(built.params)]).tolist())
  assert values == {0, -0.5, 1, -1, 2, 8, -4}


def test_selector_memory_is_the_embedding_alone():
  """Other facts change the subject embeddings and nothing else: the MLP is a selector, not a store."""
  one, other = (build('selector', 20, 3, 1, make_facts('selector', 20, 3, seed)) for seed in (0, 1))
  same = jax.tree.map(np.array_equal, one.params, other.params)
  assert not same['embed'].pop('subjects')
  assert all(jax.tree.leaves(same))


@pytest.mark.parametrize('name', ['keyvalue', 'factored'])
def test_key_value_memory_is_the_mlp_alone(name):
  one, other = (build(name, 20, 3, 2, make_facts(name, 20, 3, seed)) for seed in (0, 1))
  same = jax.tree.map(np.array_equal, one.params, other.params)
  assert not all(jax.tree.leaves([same[f'blocks_{i}'].pop('mlp') for i in range(2)]))
  assert all(jax.tree.leaves(same))


def test_bfloat16_is_refused_where_it_is_not_exact():
  from geomem.construction import check_representable

  built = build('selector_multilevel', 1000, 2, 1, bits=10)
  check_representable(built, 'float32')
  with pytest.raises(InputError, match='bfloat16 cannot hold'):
    check_representable(built, 'bfloat16')


def test_multilevel_refuses_what_float32_cannot_add():

  with pytest.raises(InputError, match='float32'):
    build('selector_multilevel', 100_000, 2, 1, bits=17)


@pytest.mark.parametrize('kind', [codes.Sign, codes.Bits, codes.OneHot, codes.ConstantWeight])
@pytest.mark.parametrize('count', [2, 3, 7, 20, 100, 257])
def test_codes_tell_all_symbols_apart(kind, count):
  code = kind(count)
  words = code.words()
  assert words.shape == (count, code.width)
  assert len(np.unique(words, axis=0)) == count
  if kind is codes.ConstantWeight:
    assert set(words.sum(axis=1)) == {code.width // 2}
    assert math.comb(code.width, code.width // 2) >= count
    assert count <= 1 or math.comb(code.width - 1, (code.width - 1) // 2) < count


@pytest.mark.parametrize('code', [codes.Sign(6), codes.ConstantWeight(6), codes.MultiLevel(50, 2)])
def test_margin_bounds_are_bounds(code):
  """On random slots a positive margin_bound never exceeds the true margin, and the answer truly wins."""
  rng = np.random.default_rng(0)
  rows = code.rows()
  answers = rng.integers(0, len(rows), 4000)
  x = rows[answers] / (2 if isinstance(code, codes.MultiLevel) else 1) * rng.choice([1, 2, 3])
  x = x + rng.normal(size=x.shape) * rng.choice([0.1, 0.3, 1.0], size=(len(x), 1))
  if isinstance(code, codes.MultiLevel):
    x = code.words()[answers] + rng.normal(size=(len(x), code.width)) * 0.3
    x = np.concatenate([np.ones((len(x), 1)), x], axis=1)
  logits = x @ rows.T
  own = logits[np.arange(len(x)), answers]
  logits[np.arange(len(x)), answers] = -np.inf
  margin = own - logits.max(axis=1)
  bound = np.asarray(code.margin_bound(rows[answers].astype('f'), x.astype('f')))
  assert (bound > 0).any() and (bound < 0).any()
  assert np.all((bound <= margin + 1e-4) | (bound <= 0))
  assert np.all(margin[bound > 1e-4] > 0)
