"""Codes with distance are right in random subspaces and under noise as often as proved, and above the dimension bounds."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from constructions import coded, registry
from geomem import codes
from geomem.checks import embedding_bounds, verify
from geomem.errors import InputError
from geomem.facts import Facts


def least_rate(successes, draws):
  """The lower end of the Clopper-Pearson interval."""
  return stats.binomtest(successes, draws).proportion_ci(0.95, 'exact').low


@pytest.mark.parametrize('count,length,seed', [(2, 5, 0), (7, 9, 1), (100, 40, 2), (128, 70, 3)])
def test_weights_are_those_of_the_words(count, length, seed):
  code = codes.Linear(count, length, seed)
  every = codes.Linear(2 ** codes.log2_ceil(count), length, seed).words()
  differ_A = np.sum(every != every[1], axis=1)
  np.testing.assert_array_equal(
    code.weights, np.bincount(np.delete(differ_A, 1), minlength=length + 1)
  )
  words = code.words()
  assert set(np.unique(words)) == {-1, 1} and np.array_equal(words, every[:count])
  apart = [np.sum(a != b) for a, b in itertools.combinations(words, 2)]
  assert min(apart) >= code.distance and code.width == length


def test_more_draws_of_a_code_are_no_worse():
  few, many = (codes.best_linear(64, 24, tries).distance for tries in (1, 64))
  assert many >= few and many >= 8


@pytest.mark.parametrize('n,r', [(2, 1), (16, 2), (64, 3), (128, 5), (400, 2)])
def test_directions_are_right_as_often_as_proved(n, r):
  facts, draws = Facts.bijections(n, r), 200
  code = coded.linear_code(facts)
  dim = coded.memory_dim(code, n, r)
  right = sum(
    coded.all_right(facts, code, coded.random_subspaces(dim, r, code.width, seed))
    for seed in range(draws)
  )
  assert least_rate(right, draws) >= 1 - coded.EPSILON


def test_the_tail_is_below_its_bound_where_it_can_be_seen():
  """At a D so small that most queries err, no more pairs are wrong than the sum of exp(−hD/(2m(R−1)))."""
  facts, dim = Facts.bijections(16, 3), 40
  code = coded.linear_code(facts)
  words, wrong, bound = code.words(), 0, 0.0
  for seed in range(200):
    first, *others = np.split(coded.random_subspaces(dim, 3, code.width, seed), 3, axis=1)
    e_NxD = words[facts.answers_RxN[0]] @ first.T
    e_NxD += sum(words[a] @ o.T for a, o in zip(facts.answers_RxN[1:], others, strict=True))
    own_NxM = words[facts.answers_RxN[0]]
    lead_NxA = np.sum((e_NxD @ first)[:, None] * (own_NxM[:, None] - words[None]), axis=2)
    apart_NxA = np.sum(own_NxM[:, None] != words[None], axis=2)
    other = apart_NxA > 0
    wrong += np.sum(lead_NxA[other] <= 0)
    bound += np.sum(np.exp(-apart_NxA[other] * dim / (2 * code.width * 2)))
  assert 0 < wrong <= bound


@pytest.mark.parametrize('r', [2, 4])
def test_the_theorem_in_its_plain_form(r):
  facts = Facts.bijections(256, r)
  code = coded.linear_code(facts)
  plain = 2 * (r - 1) * code.width / code.distance * math.log(256**2 * r / coded.EPSILON)
  assert code.width <= coded.memory_dim(code, 256, r) <= math.ceil(plain)


def test_sizes_of_the_issue():
  """At N = 1,024, R = 4, the theorem gives D ≤ 300 and the search D ≤ 175; both models answer every query."""
  facts = Facts.bijections(1024, 4)
  built = registry.build('superposition_coded', facts)
  memory = coded.memory_dim(coded.linear_code(facts), 1024, 4)
  assert built.layout['memory'].stop == memory <= 300
  assert built.config.dim == memory + 4 + 40 and built.config.blocks[0].hidden == (320,)
  found = registry.build('superposition_coded', facts, search=True)
  assert found.layout['memory'].stop <= 175
  for one in (built, found):
    assert verify.exhaustive(one).correct == 4096


@pytest.mark.parametrize('n,r', [(2, 1), (2, 3), (5, 4), (9, 2), (33, 3), (100, 2)])
def test_what_is_drawn_is_right(n, r):
  facts = Facts.bijections(n, r)
  default = registry.build('superposition_coded', facts)
  assert verify.exhaustive(default).correct == n * r
  found = registry.build('superposition_coded', facts, search=True)
  assert verify.exhaustive(found).correct == n * r and found.config.dim <= default.config.dim


def test_directions_that_never_work_are_no_result(monkeypatch):
  monkeypatch.setattr(coded, 'all_right', lambda *_: False)
  with pytest.raises(InputError, match='each of 16 draws of directions gets a query wrong'):
    registry.build('superposition_coded', Facts.bijections(8, 2))


def test_a_code_with_two_equal_words_is_refused():
  with pytest.raises(InputError, match='are the same'):
    coded.memory_dim(codes.Linear(64, 5), 64, 2)


def test_sizes_that_cannot_be_are_refused():
  facts = Facts.bijections(16, 3)
  with pytest.raises(InputError, match='it must be at least 35'):
    registry.build('superposition_coded', facts, dim=34)
  assert registry.build('superposition_coded', facts, dim=35).config.dim == 35
  with pytest.raises(InputError, match='search takes no dim'):
    registry.build('superposition_coded', facts, dim=100, search=True)
  for noise, error in ((0, 0.1), (0.5, 0), (0.5, 0.5), (math.inf, 0.1)):
    with pytest.raises(InputError, match='noise > 0'):
      registry.build('selector_coded', facts, noise=noise, error=error)


# --- noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('noise', [0.3, 0.5, 1.0, 2.0])
@pytest.mark.parametrize('count,error', [(2, 0.01), (64, 0.05), (300, 0.01)])
def test_words_bear_the_noise_that_they_are_made_for(noise, error, count):
  code = coded.noise_code(count, noise, error)
  rng, words, wrong, queries = np.random.default_rng(0), code.words(), 0, 4000
  answers = rng.integers(0, count, queries)
  noisy = words[answers] + noise * rng.standard_normal((queries, code.width))
  wrong = int(np.sum((noisy @ words.T).argmax(axis=1) != answers))
  assert least_rate(wrong, queries) <= error
  rate = 1 - math.log2(1 + math.exp(-1 / (2 * noise**2)))
  least = embedding_bounds.from_noise(count, 1, noise, error)
  assert least <= code.width <= (codes.log2_ceil(count) - 1 - math.log2(error)) / rate + 1


@pytest.mark.parametrize(('n', 'r', 'error'), [(256, 3, 0.05), (64, 16, 0.01)])
def test_a_model_bears_it_too(n, r, error):
  """The model keeps its error rate under noise, also with many relations, whose gates must stay closed.

  Gates that are large enough without noise do not stay closed.
  """
  facts = Facts.bijections(n, r)
  built = registry.build('selector_coded', facts, noise=1.0, error=error)
  params, memory = built.params, built.layout['memory']
  own_NxD = params['embed']['subjects'].copy()
  assert np.mean(own_NxD[:, memory] ** 2) == 1
  drawn = np.random.default_rng(0).standard_normal((n, memory.stop), np.float32)
  own_NxD[:, memory] += drawn
  noisy = {**params, 'embed': {**params['embed'], 'subjects': own_NxD}}
  report = verify.accuracy(built.config, noisy, facts)
  assert least_rate(report.queries - report.correct, report.queries) <= error
  mlp = params['blocks_0']['mlp']
  gate = -mlp['in_bias'][0]
  assert gate == 2 ** round(math.log2(gate)) > 2
  if r == 16:
    relation = built.layout['relation']
    narrow = {**mlp, 'in': mlp['in'].copy(), 'in_bias': mlp['in_bias'] * 2 / gate}
    narrow['in'][relation] *= 2 / gate
    narrow = {**noisy, 'blocks_0': {**noisy['blocks_0'], 'mlp': narrow}}
    assert verify.accuracy(built.config, narrow, facts).accuracy < 1 - 3 * error
  drawn *= 10
  params['embed']['subjects'][:, memory] += drawn
  assert verify.accuracy(built.config, params, facts).accuracy < 0.5  # and more noise breaks it


def test_from_half_the_signal_on_the_rate_is_half_the_capacity():
  """On a grid of x = σ⁻² ≤ 4, ½·log₂(1 + x) ≤ 2·R₀, and 1 + 2x ≥ exp(x/2) as the proof needs."""
  x = np.linspace(1e-3, 4, 4000)
  rate = 1 - np.log2(1 + np.exp(-x / 2))
  assert np.all(np.log2(1 + x) / 2 <= 2 * rate) and np.all(1 + 2 * x >= np.exp(x / 2))


# --- bounds on dimensions -------------------------------------------------------------------------


def test_no_construction_has_fewer_dimensions_than_the_bounds():
  """The packing bound holds at the margin and length of all contents of an embedding and the slope of the model."""
  for name, n, r in (
    ('selector', 4, 2),
    ('selector', 8, 3),
    ('selector_coded', 4, 3),
    ('attention_only', 5, 2),
  ):
    built = registry.build(name, Facts.bijections(n, r))
    every = built.encode(np.indices((n,) * r).reshape(r, -1))
    report, m = verify.universal(built), built.readout.code.width
    radius = np.linalg.norm(every - every.mean(axis=0), axis=1).max()
    # How much a logit difference grows per unit: 2√m from the words, times the gain of the path in between.
    slope = 2 * math.sqrt(m) * {'selector': 9, 'selector_coded': 1, 'attention_only': 1}[name]
    used = np.ptp(every, axis=0) > 0
    assert used.sum() >= embedding_bounds.from_margin(n, r, radius, slope, report.min_margin)
    assert used.sum() >= embedding_bounds.from_bits(n, r, 1)


def test_values_of_the_bounds():
  assert embedding_bounds.from_noise(2, 3, 1.0) == 6  # a bit takes two coordinates at σ = 1
  assert embedding_bounds.from_noise(1024, 4, 0.5) == pytest.approx(40 / 1.16096, rel=1e-5)
  assert embedding_bounds.from_noise(16, 2, 0.5, 0.5) == pytest.approx(2 / 1.16096, rel=1e-5)
  assert embedding_bounds.from_bits(4, 2, 2) == pytest.approx(math.log2(24) / 4)
  assert embedding_bounds.from_margin(2, 5, 1, 1, 1) == 5
  for call in (
    lambda: embedding_bounds.from_bits(4, 2, 0),
    lambda: embedding_bounds.from_noise(4, 2, -1),
    lambda: embedding_bounds.from_noise(4, 2, 1, 2),
    lambda: embedding_bounds.from_margin(4, 2, 1, 1, math.inf),
  ):
    with pytest.raises(InputError, match='bounds: '):
      call()
