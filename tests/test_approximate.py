"""The approximate constructions are near-exact at their default sizes, and store facts only where they say."""

import functools
import tracemalloc

import jax
import numpy as np
import pytest

from constructions import associative, registry
from geomem import model
from geomem.checks import verify
from geomem.errors import InputError
from geomem.facts import Facts

NAMES = ('superposition', 'associative_attention', 'associative_mlp')
# The only array that depends on the facts.
MEMORY = {
  'superposition': ('embed', 'subjects'),
  'associative_attention': ('blocks_0', 'attention', 'output'),
  'associative_mlp': ('blocks_0', 'mlp', 'out'),
}
TOO_SMALL = {
  'superposition': {'dim': 26},
  'associative_attention': {'dim': 14},
  'associative_mlp': {'dim': 20, 'width': 40},
}
SIZES = ((2, 1), (64, 8), (1024, 1))
every = pytest.mark.parametrize('name', NAMES)


@functools.cache
def make_facts(n, r, seed=0):
  return Facts.bijections(n, r, seed)


def accuracy(name, facts, dtype='float32', **options):
  return verify.exhaustive(registry.build(name, facts, **options), dtype).accuracy


def leaves(params):
  return {tuple(k.key for k in path): a for path, a in jax.tree_util.tree_leaves_with_path(params)}


def forward(params, s, r):
  """Logits at the relation token of every prompt (s, r), in float64 NumPy, without the model's code."""
  p = {key: np.asarray(a, np.float64) for key, a in leaves(params).items()}
  x = np.stack([p['embed', 'subjects'][s], p['embed', 'relations'][r]], 1) + p['embed', 'positions']
  last = x[:, 1]
  for q, k, v, o in zip(
    *(p['blocks_0', 'attention', n] for n in ('query', 'key', 'value', 'output')), strict=True
  ):
    scores = ((x[:, 1] @ q)[:, None] * (x @ k)).sum(-1)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    last = last + (weights[..., None] * x).sum(1) @ v @ o
  if ('blocks_0', 'mlp', 'in') in p:
    hidden = last @ p['blocks_0', 'mlp', 'in'] + p.get(('blocks_0', 'mlp', 'in_bias'), 0)
    out = np.maximum(hidden, 0) @ p['blocks_0', 'mlp', 'out']
    last = last + out + p.get(('blocks_0', 'mlp', 'out_bias'), 0)
  return last @ p['unembed', 'answers'].T


def all_queries(facts):
  r, s = np.divmod(np.arange(facts.answers_RxN.size), facts.subjects)
  return s, r


@every
@pytest.mark.parametrize('n, r', SIZES)
def test_default_size_is_enough(name, n, r):
  assert accuracy(name, make_facts(n, r)) >= 0.99


@every
def test_a_fraction_of_the_size_is_not(name):
  assert accuracy(name, make_facts(64, 4), **TOO_SMALL[name]) < 0.6


@every
def test_size_asked_for_is_size_given(name):
  built = registry.build(name, make_facts(20, 3), dim=60)
  assert built.config.dim == built.layout.dim == 60
  assert built.margin is None


@pytest.mark.parametrize('options', [{'dim': 30}, {'width': 300}, {'dim': 17, 'width': 90}])
def test_mlp_fills_in_the_size_not_given(options):
  config = registry.build('associative_mlp', make_facts(40, 2), **options).config
  (width,) = config.blocks[0].hidden
  assert options.get('dim', config.dim) == config.dim
  assert options.get('width', width) == width
  if len(options) == 1:
    assert width * config.dim >= 6 * 40 * 2 * np.log(40)


@every
@pytest.mark.parametrize('n, r, dim', [(7, 1, None), (40, 3, 18)])
def test_plain_numpy_agrees(name, n, r, dim):
  facts = make_facts(n, r, seed=1)
  built = registry.build(name, facts, dim=dim)
  report = verify.exhaustive(built)
  s, r = all_queries(facts)
  logits = forward(built.params, s, r)
  got = np.mean(logits.argmax(1) == facts.answers_RxN[r, s])
  assert got == pytest.approx(report.accuracy, abs=1 / len(s))
  own = np.take_along_axis(logits, facts.answers_RxN[r, s][:, None], 1)[:, 0]
  np.put_along_axis(logits, facts.answers_RxN[r, s][:, None], -np.inf, 1)
  least = (own - logits.max(1)).min()
  assert report.min_margin == pytest.approx(least, rel=1e-3, abs=1e-3)


@every
@pytest.mark.parametrize('closed', [True, False])
def test_facts_are_where_they_should_be(name, closed):
  make = lambda seed: make_facts(30, 3, seed) if closed else Facts.random_maps(30, 3, 50, seed)
  size = {'dim': 80}
  old, new = (registry.build(name, make(seed), **size) for seed in (0, 1))
  before, after = leaves(old.params), leaves(new.params)
  assert before.keys() == after.keys()
  changed = {key for key in before if not np.array_equal(before[key], after[key])}
  assert changed == {MEMORY[name]}


@every
def test_transplanted_memory_answers_the_new_facts(name):
  """The array that depends on the facts holds all of them: put into the old model, it answers the new facts."""
  old, new = (registry.build(name, make_facts(30, 3, seed)) for seed in (0, 1))
  assert verify.accuracy(old.config, old.params, new.facts).accuracy < 0.3
  path = MEMORY[name]
  params = jax.tree_util.tree_map_with_path(
    lambda p, a: leaves(new.params)[path] if tuple(k.key for k in p) == path else a, old.params
  )
  assert verify.accuracy(old.config, params, new.facts).accuracy >= 0.99


@every
def test_open_facts(name):
  few = Facts.random_maps(120, 2, 6)
  many = Facts.random_maps(20, 3, 500)
  for facts in (few, many):
    assert accuracy(name, facts) >= 0.98


@every
def test_seed_decides(name):
  facts = make_facts(12, 2)
  one, same, other = (leaves(registry.build(name, facts, seed=s).params) for s in (3, 3, 4))
  assert all(np.array_equal(one[key], same[key]) for key in one)
  assert any(not np.array_equal(one[key], other[key]) for key in one)


@every
def test_bfloat16(name):
  assert accuracy(name, make_facts(100, 4), 'bfloat16') >= 0.99


@every
@pytest.mark.parametrize('dim', [-5, 0, 1])
def test_too_small_is_refused(name, dim):
  with pytest.raises(InputError, match=f'{name}: dim is {dim}; it must be at least') as error:
    registry.build(name, make_facts(16, 3), dim=dim)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name, least', [
  ('superposition', 3 + 4 + 1), ('associative_attention', 2 + 2 + 2), ('associative_mlp', 2),
])  # fmt: skip
def test_least_size(name, least):
  facts = make_facts(16, 3)
  assert registry.build(name, facts, dim=least).config.dim == least
  with pytest.raises(InputError, match=f'at least {least}'):
    registry.build(name, facts, dim=least - 1)


@pytest.mark.parametrize('width', [-1, 0])
def test_mlp_without_width_is_refused(width):
  with pytest.raises(InputError, match=f'width is {width}; it must be at least 1'):
    registry.build('associative_mlp', make_facts(16, 3), width=width)


@every
def test_what_no_machine_holds_is_refused(name):
  """Sizes that no machine holds are refused before any array of that size is allocated, by tracemalloc."""
  facts = make_facts(16, 3)
  tracemalloc.start()
  try:
    with pytest.raises(InputError, match='parameters'):
      registry.build(name, facts, dim=2**27)
    assert tracemalloc.get_traced_memory()[1] < 2**27
  finally:
    tracemalloc.stop()


def test_unknown_option_is_refused():
  with pytest.raises(InputError, match='width'):
    registry.build('superposition', make_facts(16, 3), width=3)


# --- superposition --------------------------------------------------------------------------------


@pytest.mark.parametrize('n, r', [(5, 3), (500, 2)])
def test_generous_superposition_is_proven(n, r):
  """At ten times the size that accuracy .99 takes, every query is right, and the certificate proves it."""
  built = registry.build('superposition', make_facts(n, r), dim=1 + 100 * r * (n - 1).bit_length())
  certificate, exhaustive = verify.certificate(built), verify.exhaustive(built)
  assert certificate.correct == exhaustive.correct == built.queries
  assert 0 < certificate.min_margin <= exhaustive.min_margin * (1 + 1e-5) + 1e-5


def test_generous_superposition_holds_every_fact_table():
  built = registry.build('superposition', make_facts(8, 3), dim=600)
  report = verify.universal(built)
  assert report.correct == report.queries == 3 * 8**3


@pytest.mark.parametrize('dim', [9, 30, 300])
def test_gate_passes_the_matched_filter_alone(dim):
  """By NumPy, the answer slot holds A_rᵀ e_s, at any size and for any memory, and the memory is unchanged."""
  built = registry.build('superposition', make_facts(16, 4), dim=dim)
  layout, hidden, params = built.layout, built.hidden[0][0], built.params
  e_NxD = built.encode(np.random.default_rng(0).integers(0, 16, (4, 1000)))
  params['embed']['subjects'] = e_NxD
  config, relations = built.config.replace(subjects=1000), np.arange(4)[:, None]
  pairs = functools.partial(model.apply, config, method='all_pairs')
  x = np.asarray(jax.jit(pairs)(params, np.arange(1000), relations))
  directions = params['blocks_0']['mlp']['in'][layout['memory'], hidden['positive']]
  filtered = e_NxD[:, layout['memory']] @ directions
  np.testing.assert_allclose(x[..., layout['answer']].reshape(1000, -1), filtered, atol=2e-5)
  np.testing.assert_array_equal(
    x[..., layout['memory']], np.repeat(e_NxD[:, None], 4, 1)[..., layout['memory']]
  )


def test_superposition_grows_with_dim():
  facts = make_facts(128, 4)
  measured = [accuracy('superposition', facts, dim=d) for d in (25, 60, 470)]
  assert measured == sorted(measured)
  assert measured[0] < 0.3
  assert measured[-1] > 0.99


# --- associative memories -------------------------------------------------------------------------


@pytest.mark.parametrize('name', NAMES[1:])
def test_embeddings_are_random_units(name):
  built = registry.build(name, make_facts(50, 2), dim=200)
  rows, own = built.params['unembed']['answers'], built.layout['embedding']
  for vectors in (rows, built.params['embed']['subjects'][:, own]):
    gram = vectors @ vectors.T
    np.testing.assert_allclose(np.diag(gram), 1, atol=1e-5)
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 0.5


def test_attention_reads_the_queried_head_alone():
  built = registry.build('associative_attention', make_facts(20, 5))
  attention = built.params['blocks_0']['attention']
  for r in range(5):
    x = np.stack([built.params['embed']['subjects'][7], built.params['embed']['relations'][r]])
    scores = np.einsum(
      'hk,lhk->hl', x[1] @ attention['query'], np.einsum('ld,hdk->lhk', x, attention['key'])
    )
    on = scores[:, 0] > scores[:, 1]
    assert on.tolist() == [head == r for head in range(5)]
    assert np.abs(scores[:, 0] - scores[:, 1]).min() >= 128


def test_independent_subjects_are_remembered_exactly():
  """With D ≥ N the dual vectors are a dual basis, and nothing interferes."""
  report = verify.exhaustive(registry.build('associative_attention', make_facts(40, 3), dim=120))
  assert report.accuracy == 1
  assert report.min_margin > 0.9


def test_blocks_of_facts_add_up(monkeypatch):
  facts = make_facts(30, 3)
  whole = registry.build('associative_mlp', facts).params['blocks_0']['mlp']['out']
  monkeypatch.setattr(associative, 'BLOCK', 7)
  parts = registry.build('associative_mlp', facts).params['blocks_0']['mlp']['out']
  np.testing.assert_allclose(whole, parts, rtol=1e-3, atol=1e-3)
