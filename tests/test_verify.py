"""The checks against planted faults: no check calls right what NumPy finds wrong."""

import functools
import itertools

import jax
import numpy as np
import oracle
import pytest

from constructions import registry
from geomem import model
from geomem import queries as query
from geomem.checks import verify
from geomem.config import BlockConfig, Config
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.saved import models

SIZES = {
  'selector': (5, 2, 1),
  'selector_literal': (5, 2, 1),
  'attention_only': (5, 3, 1),
  'disjoint': (5, 2, 1),
  'precomputed': (3, 2, 2),
  'chain_of_thought': (5, 2, 2),
}
CHECKS = {
  (name, check)
  for name, check in itertools.product(SIZES, verify.CHECKS)
  if check != 'universal' or name != 'chain_of_thought'
}


@functools.cache
def build(name, sizes=None, seed=0):
  n, r, k = sizes or SIZES[name]
  own = registry.entry(name).own_answers
  facts = Facts.disjoint(n, r, n, seed) if own else Facts.bijections(n, r, seed)
  return registry.build(name, facts, k)


def queries(facts, hops):
  return itertools.product(
    range(facts.subjects), itertools.product(range(facts.relations), repeat=hops)
  )


def oracle_margins(config, params, facts, hops, chain_of_thought=False):
  """For every query, the least margin logit(answer) − largest other logit at any step."""
  margins, prompts, asked = [], [], []
  for s, path in queries(facts, hops):
    steps = oracle.answers(facts, s, path)
    thoughts, due = (steps[:-1], steps) if chain_of_thought else ([], steps[-1:])
    prompts.append([s, *(facts.subjects + r for r in path), *thoughts])
    asked.append(due)
  for rows, due in zip(oracle.logits(config, params, prompts), asked, strict=True):
    last = zip(rows[-len(due) :], due, strict=True)
    margins.append(np.min([row[a] - np.delete(row, a).max() for row, a in last]))
  margins = np.array(margins)
  return np.where(np.abs(margins) < 1e-12, 0, margins)  # float64 separates what is a tie in float32


def margins_of(c):
  return oracle_margins(c.config, c.params, c.facts, c.hops, c.chain_of_thought)


def changed(c, path, change):
  """The construction with one weight of one array changed: its first that is not 0, if it has one."""
  (*parents, leaf), params = path, jax.tree.map(np.copy, c.params)
  weights = functools.reduce(dict.__getitem__, parents, params)[leaf]
  at = next(iter(np.argwhere(weights)), np.zeros(weights.ndim, int))
  weights[tuple(at)] = change(weights[tuple(at)])
  return c.replace(params=params)


def names_of(c):
  return [
    tuple(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(c.params)
  ]


@functools.cache
def faults(name):
  """Models with a flipped sign (a zero made large) or a NaN in one array, for every array, if an answer breaks."""
  c, found = build(name), []
  for path in names_of(c):
    for change in (lambda w: -w if w else 100.0, lambda w: np.nan):
      broken = changed(c, path, change)
      margins = margins_of(broken)
      if not np.all(margins > 0):
        found.append((path, broken, margins))
  return found


@pytest.mark.parametrize('name', SIZES)
def test_a_fault_in_any_array_breaks_an_answer(name):
  """Both faults do, except in queries and keys that are all zero, which only a NaN spoils."""
  c = build(name)
  found = [path for path, _, _ in faults(name)]
  for path in names_of(c):
    uniform = path[-1] in ('query', 'key') and not np.any(c.params[path[0]][path[1]][path[2]])
    assert found.count(path) == (1 if uniform else 2), path


@pytest.mark.parametrize('name,check', sorted(CHECKS))
def test_every_fault_is_caught(name, check):
  whole = build(name)
  assert getattr(verify, check)(whole).holds(whole.margin)
  for path, broken, margins in faults(name):
    report, right = getattr(verify, check)(broken), np.sum(margins > 0)
    assert report.correct < report.queries and report.accuracy < 1, path
    assert report.min_margin <= 0 and not report.holds(whole.margin)
    if check == 'exhaustive':
      assert report.correct == right
      if np.isfinite(margins).all():
        assert report.min_margin == pytest.approx(margins.min(), rel=1e-5, abs=1e-5)
    elif check == 'certificate':
      assert report.correct <= right
      assert report.correct == 0 or path[0] != 'unembed'


@pytest.mark.parametrize('name,check', [('attention_only', check) for check in verify.CHECKS] + [
  ('chain_of_thought', 'exhaustive'), ('chain_of_thought', 'certificate'),
])  # fmt: skip
def test_every_fault_is_caught_in_bfloat16(name, check):
  assert getattr(verify, check)(build(name), 'bfloat16').holds(build(name).margin)
  for path, broken, _ in faults(name):
    report = getattr(verify, check)(broken, 'bfloat16')
    assert report.dtype == 'bfloat16' and report.correct < report.queries, path


def test_large_arrays_are_read_after_they_are_written():
  """JAX 0.8.0 and 0.8.1 sometimes read what was in the memory before: here the array of the model before."""
  facts = Facts.bijections(64, 16)
  built = registry.build('selector_coded', facts, noise=1.0, error=0.01)
  mlp = built.params['blocks_0']['mlp']
  counts = []
  for sign in [1, -1] * 10:
    params = {
      **built.params,
      'blocks_0': {**built.params['blocks_0'], 'mlp': {**mlp, 'in': sign * mlp['in']}},
    }
    counts.append(verify.accuracy(built.config, params, facts).correct)
  assert counts == [facts.answers_RxN.size, counts[1]] * 10 and counts[1] < counts[0]


@pytest.mark.parametrize('check', verify.CHECKS)
def test_a_weight_too_small_breaks_the_promise_only(check):
  weaker = changed(build('selector'), ('blocks_0', 'mlp', 'out'), lambda w: w / 2)
  report = getattr(verify, check)(weaker)
  assert report.accuracy == 1 and report.min_margin == 2
  assert report.holds(2) and not report.holds(weaker.margin)


def swapped(facts):
  """The same facts, but g_0 has two of its answers exchanged."""
  answers = facts.answers_RxN.copy()
  answers[0, [0, 1]] = answers[0, [1, 0]]
  return Facts(answers, facts.attributes, facts.closed)


@pytest.mark.parametrize('name,sizes', [
  ('selector', None), ('disjoint', None), ('attention_only', None), ('precomputed', None),
  ('keyvalue', (7, 3, 2)), ('chain_of_thought', (7, 3, 3)),
])  # fmt: skip
def test_a_swapped_fact_spoils_just_its_own_queries(name, sizes):
  c = build(name, sizes)
  other = swapped(c.facts)
  mistaken = c.replace(facts=other)
  spoilt = []
  for s, path in queries(c.facts, c.hops):
    said, want = (oracle.answers(facts, s, path) for facts in (c.facts, other))
    if said != want if c.chain_of_thought else said[-1] != want[-1]:
      spoilt.append(s)
  wrong = len(spoilt)
  assert wrong == np.sum(margins_of(mistaken) <= 0) and (wrong == 2 or c.hops > 1)
  for check in (verify.exhaustive, verify.certificate):
    report = check(mistaken)
    assert report.correct == c.queries - wrong and report.min_margin < 0
  if c.encode:
    report = verify.universal(mistaken)
    assert report.correct == report.queries - len(set(spoilt)) * c.facts.relations**c.hops
    assert report.min_margin == -np.inf


# --- margins, for any parameters ------------------------------------------------------------------


def random_model(n, r, length, answers, norm='rms', tied=False):
  block = BlockConfig(2, 3, 4, (6,))
  config = Config(n, r, answers, length, 8, (block,) * (length - 1), norm, tied=tied)
  rng = np.random.default_rng(answers)
  return config, jax.tree.map(lambda a: rng.normal(size=a.shape).astype('f'), model.zeros(config))


@pytest.mark.parametrize('n,r,k,answers,tied,blocks', [
  (11, 2, 2, 11, False, (1, 4, 11)), (7, 2, 1, 7, True, (3,)),
  (30, 2, 1, 2 * verify.ANSWER_BLOCK + 300, False, (verify.ANSWER_BLOCK,)),
])  # fmt: skip
def test_margins_are_those_of_numpy(n, r, k, answers, tied, blocks):
  """Every query's margin agrees, for random weights and facts of which the model is right about two in three."""
  config, params = random_model(n, r, k + 1, answers, tied=tied)
  table = np.random.default_rng(0).integers(0, answers, (r, n)).astype(np.int32)
  if k == 1:
    for i, (s, (q,)) in enumerate(itertools.product(range(n), itertools.product(range(r)))):
      top = oracle.logits(config, params, [s, n + q])[-1].argmax()
      table[q, s] = top if i % 3 else table[q, s]
  facts = Facts(table, answers, closed=answers == n)
  want = oracle_margins(config, params, facts, k)
  near = {'rtol': 1e-4, 'atol': 1e-4}

  grid = np.arange(n, dtype=np.int32), query.every_path(r, k), False, query.compose
  residuals = jax.jit(verify.residuals, static_argnums=(0, 5, 6))
  x, targets = residuals(config, params, facts.answers_RxN, *grid)
  for size in blocks:
    margins = jax.jit(verify.margins, static_argnums=(0, 4))
    got = margins(config, params, x.reshape(-1, config.dim), targets.ravel(), size)
    np.testing.assert_allclose(got, want, **near)
  report = verify.accuracy(config, params, facts, k, block_size=32)
  assert report.correct == np.sum(want > 0) and (k > 1 or 0.6 < report.accuracy < 0.8)
  np.testing.assert_allclose(report.min_margin, want.min(), **near)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_tie_is_wrong(dtype):
  c = build('selector')
  params = jax.tree.map(np.copy, c.params)
  params['unembed']['answers'][3] = params['unembed']['answers'][1]
  report = verify.exhaustive(c.replace(params=params), dtype)
  assert report.correct == np.sum(~np.isin(c.facts.answers_RxN, [1, 3])) == 6
  assert report.min_margin == 0


@pytest.mark.parametrize('check', [verify.exhaustive, verify.certificate])
@pytest.mark.parametrize('name', ['precomputed', 'chain_of_thought'])
def test_block_size_changes_nothing(name, check):
  c = build(name)
  mistaken, reports = c.replace(facts=swapped(c.facts)), set()
  for size in (2, 7, 1000):
    seen = []
    note = lambda *at, seen=seen: seen.append(at)
    reports.add(check(mistaken, block_size=size, progress=note))
    total = query.count_blocks(c.facts.subjects, c.facts.relations, c.hops, size)
    assert seen == [(i + 1, total) for i in range(total)]
  (report,) = reports
  assert 0 < report.correct < report.queries


# --- certificates ---------------------------------------------------------------------------------


@pytest.mark.parametrize('name,sizes,dtype', [
  ('selector', (6, 3, 1), 'float32'), ('selector', (6, 3, 1), 'bfloat16'),
  ('selector_constant_weight', (9, 2, 1), 'float32'),
  ('selector_multilevel', (40, 2, 1), 'float32'),
  ('selector_normed', (9, 2, 1), 'float32'), ('attention_only', (6, 3, 1), 'float32'),
  ('disjoint', (6, 3, 1), 'float32'), ('keyvalue', (5, 2, 2), 'float32'),
  ('precomputed_depth1', (5, 2, 2), 'bfloat16'), ('chain_of_thought_compact', (6, 2, 2), 'float32'),
])  # fmt: skip
def test_a_certificate_never_says_too_much(name, sizes, dtype):
  """With noise on all weights but the unembedding, what it proves is right, by the margin that it says."""
  c = build(name, sizes)
  config, subjects = c.config.replace(dtype=dtype), np.arange(sizes[0], dtype=np.int32)

  @jax.jit
  def both(params):
    grid = c.facts.answers_RxN, subjects, query.every_path(sizes[1], c.hops)
    x, targets = verify.residuals(config, params, *grid, c.chain_of_thought, query.compose)
    x, targets = x.reshape(-1, config.dim), targets.ravel()
    bounds = c.readout.bound(params['unembed']['answers'], x, targets)
    return verify.margins(config, params, x, targets), bounds

  rng, proven, wrong = np.random.default_rng(0), 0, 0
  for scale in (0.01, 0.03, 0.1, 0.2, 0.4):
    noise = jax.tree.map(lambda a: rng.normal(size=a.shape).astype('f'), c.params)
    params = jax.tree.map(lambda a, e, scale=scale: a + scale * e, c.params, noise)
    if name == 'selector_multilevel':  # its constant must be exactly 1: noise in the memory alone
      memory, levels = np.copy(c.params['embed']['subjects']), c.layout['blocks']
      memory[:, levels] = params['embed']['subjects'][:, levels]
      params = {**c.params, 'embed': {**c.params['embed'], 'subjects': memory}}
    margins, bounds = map(np.asarray, both({**params, 'unembed': c.params['unembed']}))
    assert np.all((bounds <= margins + 1e-4) | (bounds <= 0))
    assert np.all(margins[bounds > 0] > 0)
    proven, wrong = proven + np.sum(bounds > 0), wrong + np.sum(margins <= 0)
  assert proven > 10 and wrong > 10


def test_a_sample_estimates_the_accuracy():
  c = build('keyvalue', (6, 2, 2))
  c.params['blocks_1']['mlp']['out'][:6] = 0
  exact = verify.accuracy(c.config, c.params, c.facts, 2)
  sampled = verify.accuracy(c.config, c.params, c.facts, 2, sample=(jax.random.key(0), 4000))
  assert 0 < exact.accuracy < 1 and sampled.queries >= 4000
  assert abs(sampled.accuracy - exact.accuracy) < 0.1


def test_a_tied_model_is_not_certified():
  c = build('selector')
  report = verify.certificate(c.replace(config=c.config.replace(tied=True)))
  assert report.correct == 0 and report.min_margin == -np.inf


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  'name', ['keyvalue', 'factored', 'chain_of_thought', 'chain_of_thought_compact']
)
def test_universal_is_refused_where_no_embedding_holds_all_answers(name):
  with pytest.raises(InputError, match='no universal check'):
    verify.universal(build(name, (4, 2, 1)))


def test_universal_is_refused_for_a_loaded_model_and_says_that_it_was_loaded(tmp_path):
  models.save(tmp_path / 'selector', build('selector'))
  with pytest.raises(InputError, match='or the model was loaded, and its encoder is not saved'):
    verify.universal(models.load(tmp_path / 'selector'))


def test_universal_is_refused_for_too_many_contents():
  verify.universal_contents(build('selector', (4, 11, 1)))  # 2²² contents, just allowed
  for name, sizes in (
    ('selector', (4, 12, 1)),
    ('precomputed', (64, 2, 2)),
    ('disjoint', (9, 7, 1)),
  ):
    with pytest.raises(InputError, match='contents of .* are more than 134,217,728'):
      verify.universal(build(name, sizes))


def test_certificate_is_refused_without_a_readout():
  with pytest.raises(InputError, match='no certificate'):
    verify.certificate(build('selector').replace(readout=None))


@pytest.mark.parametrize('facts,hops,says', [
  (Facts.bijections(6, 2), 1, 'do not fit'),
  (Facts.bijections(4, 2), 1, 'do not fit'),
  (Facts.bijections(5, 1), 1, 'do not fit'),
  (Facts.random_maps(5, 2, 9), 1, 'do not fit'),
  (Facts.random_maps(5, 2, 4), 2, 'cannot be chained'),
  (Facts.bijections(5, 2), 0, 'hops is 0'),
  (Facts.bijections(5, 2), 2, 'the model has 2 positions'),
])  # fmt: skip
def test_facts_of_another_size_are_refused(facts, hops, says):
  c = build('selector')
  with pytest.raises(InputError, match=says):
    verify.accuracy(c.config, c.params, facts, hops)
