"""The studies of whole curves: a killed run ends in the same bits; planted laws and memories are told apart."""

import functools
import itertools
import json
import math
import shlex
import signal
import time

import jax
import numpy as np
import pandas as pd
import processes
import pytest

from constructions import registry
from experiments import frozen_embeddings, laws, multihop, pages
from experiments.harness import curves, records, scaling_law, stored_bits
from experiments.harness.statistics import select
from geomem import model
from geomem.config import Config
from geomem.facts import Facts
from geomem.training import optimization, sweeps
from geomem.training.recipe import Recipe
from geomem.training.sweeps import Task

SMALL = '--scale=smoke', '--steps=300', '--save_seconds=0'
STUDIES = [laws.STUDY, multihop.STUDY, frozen_embeddings.STUDY]
start = functools.partial(processes.start, 'laws')


# --- a run in a process of its own ----------------------------------------------------------------


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs') / 'whole'
  process = start(folder, *SMALL)
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  return folder, out


def test_the_command_that_redoes_it_is_recorded(whole):
  about = json.loads((whole[0] / 'config.json').read_text())
  _, _, module, scale, *rest = shlex.split(about['command'])
  assert (module, scale, *rest) == ('experiments.laws', '--scale=smoke', '--steps=300')


def test_killed_and_started_again_it_ends_in_the_same_bits(whole):
  """The checkpoint holds the rows' clocks, the order of the pass and the confusers."""
  folder = whole[0].parent / 'killed'  # where the compiled programs of the whole run are
  lines = len((whole[0] / 'metrics.jsonl').read_text().splitlines())
  process = start(folder, *SMALL)
  metrics, deadline = folder / 'metrics.jsonl', time.monotonic() + 200
  done = lambda: len(metrics.read_text().splitlines()) if metrics.exists() else 0
  while done() < lines // 2 and process.poll() is None and time.monotonic() < deadline:
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert 0 < done() < lines and not (folder / 'results.json').exists()
  process = start(folder, *SMALL)
  out, err = process.communicate(timeout=300)
  assert out == whole[1].replace(str(whole[0]), str(folder)), err
  for name in ('results.json', 'findings.json', 'metrics.jsonl'):
    assert (folder / name).read_text() == (whole[0] / name).read_text()


@pytest.mark.parametrize('study', STUDIES[1:], ids=lambda study: study.name)
def test_a_study_records_what_it_measured_and_draws_that(study, tmp_path, capsys, monkeypatch):
  some = {name: registry.entry(name) for name in ('keyvalue', 'chain_of_thought')}
  monkeypatch.setattr(registry, 'REGISTRY', some)  # test_experiments.py takes all
  binary = lambda *given: study.main([study.name, f'--workdir={tmp_path}', *given])
  binary('--scale=smoke', '--save_seconds=0')
  told = capsys.readouterr().out
  kinds = '.json', '.png', '.pdf'
  kept = {path: path.read_bytes() for path in tmp_path.iterdir() if path.suffix in kinds}
  assert {path.suffix for path in kept} == {*kinds}
  assert all(len(drawn) > 8000 for path, drawn in kept.items() if path.suffix != '.json')
  binary('--scale=smoke', '--save_seconds=0')  # answered from the checkpoint, to the last bit
  binary('--redraw')
  assert {path: path.read_bytes() for path in kept} == kept
  assert capsys.readouterr().out == 2 * told and 'figure: ' in told
  table = records.read(tmp_path).table
  assert {'measurement', 'model', 'control', 'seed', 'value', 'subjects', 'relations'} <= {*table}
  if study.name == 'multihop':
    the_bits_are_the_weights_times_the_parameters(table)


def the_bits_are_the_weights_times_the_parameters(table):
  known = select(table, kind='trained')
  known = known[known['subject_bits'].notna()]
  assert (known['accuracy'] >= 0.99).all()
  whole = known['internal_bits'] + known['subjects'] * known['subject_bits']
  np.testing.assert_allclose(whole, known['bits_per_weight'] * known['parameters'])
  built = select(table, kind='construction')
  assert (built['accuracy'] == 1).all() and {*built['chain_of_thought']} == {False, True}


# --- what a model holds ---------------------------------------------------------------------------


class Untrained:
  """A trainer that does not train: it evaluates models as they are initialised, or with given parameters."""

  def train_and_evaluate(self, recipe, tasks, function, trained=True):
    sweep, states = sweeps.set_up(recipe, tasks)
    return sweeps.evaluate(sweep, states, function)


def test_bits_of_facts_are_those_of_an_independent_count():
  n, r, d = 12, 3, 6
  task = Task(Config.trained(n, r, dim=d), Facts.bijections(n, r), seed=3)
  params = jax.tree.map(lambda a: 3 * a, model.draw(task.config, 3))
  (record,) = stored_bits.measure(
    Untrained(), Recipe(), [Task(task.config, task.facts, seed=3, params=params)], {}
  )
  paths = np.arange(r)[:, None]
  x_NxRxD = model.apply(task.config, params, None, paths, method='all_pairs')
  logits = np.asarray(
    x_NxRxD @ model.apply(task.config, params, method='unembedding').T, np.float64
  )
  logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  own = np.take_along_axis(logits, task.facts.answers_RxN.T[..., None], axis=-1)[..., 0]
  bits = max(0.0, n * r * math.log2(n) + own.sum() / math.log(2))
  count = sum(a.size for a in jax.tree.leaves(params))
  assert record['value'] == pytest.approx(bits / count, rel=1e-4) and record['parameters'] == count
  right = np.mean(logits.argmax(axis=-1) == task.facts.answers_RxN.T)
  assert record['accuracy'] == pytest.approx(right, abs=1e-6)


def test_what_is_known_is_held_and_rounded():
  n, r = 16, 2
  recipe = Recipe.with_warmup(600, batch=16, target=None)
  task = Task(Config.trained(n, r, dim=12), Facts.bijections(n, r), 0.03, 0.01)
  sweep, states = sweeps.set_up(recipe, [task])
  for sweep, states in sweeps.fit(sweep, states, 600):  # noqa: B020
    pass
  params = sweep.state_of(states, 0).params
  (record,) = stored_bits.measure(
    Untrained(), recipe, [Task(task.config, task.facts, params=params)], {}
  )
  assert record['accuracy'] == 1 and 0.95 * r * n * 4 < record['bits'] <= r * n * 4
  assert 2 <= record['bits_per_weight'] <= 12
  assert record['bits_per_weight_bit'] == pytest.approx(record['value'] / record['bits_per_weight'])


def test_sizes_are_different_and_around_the_middle():
  assert stored_bits.dims(10, 8) == [4, 6, 8, 9, 10, 12, 15, 20] and stored_bits.dims(1.5, 4) == [
    1,
    2,
    3,
    4,
  ]


# --- laws -----------------------------------------------------------------------------------------


def planted(half):
  """Records of models whose accuracy passes ½ at the dimension `half(n, r)` that a law gives."""
  rng, rows = np.random.default_rng(0), []
  for n, r in ((64, 8), (256, 6), (4096, 4), (64, 2), (4096, 8)):
    for factor, passes, seed in itertools.product(
      (0.5, 0.7, 0.9, 1.1, 1.4, 2.0), (100, 200), (0, 1, 2)
    ):
      d = half(n, r) * factor
      accuracy = 1 / (1 + (half(n, r) * (1 + rng.normal(0, 0.01)) / d) ** 6)
      rows.append({
        'measurement': 'bits of facts per parameter', 'model': 'trained', 'control': None, 'subjects': n, 'relations': r,
        'dim': d, 'parameters': 12 * d**2 + 2 * n * d, 'seed': seed, 'passes': passes, 'accuracy': accuracy, 'value': 2 * accuracy, 'bits_per_weight_bit': 0.3,
      })  # fmt: skip
  return pd.DataFrame(rows)


def test_the_law_is_told_from_its_alternatives(monkeypatch):
  monkeypatch.setattr(scaling_law, 'STARTS', 2)
  right = planted(lambda n, r: 1 + r * math.log2(n) / 6)
  cells = set(zip(right['subjects'], right['relations'], strict=True))
  monkeypatch.setattr(laws, 'CELLS', cells)
  found = {f.what: f for f in laws.STUDY.findings(right)}
  q = f'{laws.LAW}, 5 settled sizes: q'
  beside = f'{laws.LAW}, 5 settled sizes: AIC increase if {{}} replaces (log₂N)^q'
  minimum = f'{beside}, minimum over left-out seeds'
  exponent = found[q]
  assert exponent.holds and exponent.primary and exponent.value == pytest.approx(1, abs=0.1)
  beyond = found[f'{laws.BEYOND}, 5 settled sizes: q']
  assert beyond.holds is None and beyond.value == pytest.approx(1, abs=0.15)
  over_sizes = found[
    f'{laws.OVER_SIZES}, 5 settled sizes: q'
  ]  # without the offset, it is less than 1
  assert (
    over_sizes.holds is None and over_sizes.seeds == 5 and over_sizes.low < 0.9 < over_sizes.high
  )
  left = [
    found[f'{laws.LAW}, 5 settled sizes: {end} q with one size left out'].value
    for end in ('smallest', 'largest')
  ]
  assert left[0] <= 1.1 and left[1] >= 0.9
  (iso,) = (f for what, f in found.items() if what.startswith('R·log₂N = 48'))
  assert iso.holds and iso.value == pytest.approx(1, abs=0.1) and max(iso.controls.values()) > 10
  assert exponent.p < 0.05 and 0.8 < exponent.low < exponent.high < 1.25
  assert all(found[minimum.format(name)].holds for name in laws.ALTERNATIVES)
  assert found[beside.format('log₂N')].value < 2  # which q = 1 takes away
  half = found['N = 256, R = 6: d₅₀']
  assert half.value == pytest.approx(9, rel=0.05)
  assert half.controls['by the law of the settled sizes'] == pytest.approx(half.value, rel=0.02)
  monkeypatch.setattr(laws, 'compared', lambda *_: ())  # from here on only what decides
  wrong = {f.what: f for f in laws.STUDY.findings(planted(lambda n, r: 0.3 * r * n**0.5))}
  assert not wrong[q].holds and not wrong[minimum.format('√N')].holds
  assert not next(f for what, f in wrong.items() if what.startswith('R·log₂N = 48')).holds
  monkeypatch.setattr(laws, 'CELLS', {*cells, (65536, 3)})
  assert not any(f.primary for f in laws.STUDY.findings(right))  # one size is not measured yet


def test_training_that_would_have_gone_on_is_told(monkeypatch):
  monkeypatch.setattr(scaling_law, 'STARTS', 1)
  table = planted(lambda n, r: 1 + r * math.log2(n) / 6)
  late = table['passes'] == 200
  table.loc[late, 'accuracy'] = 1 / (1 + (1 / table.loc[late, 'accuracy'] - 1) / 4)
  found = laws.STUDY.findings(table)
  told = [f for f in found if f.what.endswith(', relative change')]
  sizes = [f for f in found if f.what.endswith(', size of the relative change')]
  assert len(told) == 5 and all(f.value < -0.05 for f in told) and not any(f.holds for f in sizes)
  law = [f for f in found if f.what.startswith((laws.LAW, laws.BEYOND))]
  assert law and all(f.holds is None and 'all 5 sizes, settled or not' in f.what for f in law)


def test_sizes_that_were_added_later_do_not_decide(monkeypatch):
  right = planted(lambda n, r: 1 + r * math.log2(n) / 6)
  added, some = (
    (16, 12),
    select(right, subjects=64, relations=8),
  )  # as many bits as at N = 64, R = 8
  table = pd.concat([right, some.assign(subjects=added[0], relations=added[1])])

  def count(rows, size='log2', q=None):
    """In place of a fit: q is the number of sizes."""
    return scaling_law.Law(
      size, 0.0, 1.0, 1.0, rows.groupby(list(laws.CELL)).ngroups, 0.2, 0.0, 0.0
    )

  monkeypatch.setattr(scaling_law, 'fit', count)
  monkeypatch.setattr(laws, 'CELLS', set(zip(right['subjects'], right['relations'], strict=True)))
  monkeypatch.setattr(laws, 'ADDED', {added})
  every = laws.STUDY.findings(table)
  ratios = [
    [f.what for f in own if f.what.startswith('R·log₂N')]
    for own in (every, laws.STUDY.findings(right))
  ]
  assert ratios[0] == ratios[1]
  found = [f for f in every if f.what.endswith(': q')]
  assert [f.value for f in found if f.primary] == [5]
  assert {f.value for f in found if not f.primary and f.what.startswith(laws.LAW)} == {6}
  assert all(f.holds is None for f in found if not f.primary)


def test_seeds_are_paired_by_their_numbers():
  assert curves.ratios({500: 2.0, 501: 9.0}, {501: 3.0, 502: 1.0}) == [3.0]


def test_chains_at_the_better_rate_count_where_one_of_the_rates_fails():
  def curves(mode, hops, halves):
    return [
      {'model': mode, 'depth': 1, 'hops': hops, 'relations': 2, 'seed': seed, 'dim': d, 'steps': 100, 'accuracy': step, 'each_step': step}
      for seed, half in enumerate(halves) for d in (2, 4, 8, 16)
      for step in [0.5 + 0.5 * (d >= half) if half else 0.5]
    ]  # fmt: skip

  # d₅₀ of three seeds; None: no size knows half.
  rows = (
    curves('chain', 1, (4, 4, 4))
    + curves('chain', 4, (None, 16, 8))
    + curves('chain_slow', 1, (8, 8, 8))
    + curves('chain_slow', 4, (8, 8, None))
  )
  (found,) = (f for f in multihop.expected_of_pairs(pd.DataFrame(rows)) if 'better rate' in f.what)
  assert found.seeds == 3 and found.value == pytest.approx(2, abs=0.01)


def test_composition_is_seen_where_half_of_the_answers_does_not_show_it():
  """Direct curves that start as late and end earlier."""
  known = {'direct': (0.0, 0.5, 0.9, 1.0), multihop.UNRELATED: (0.0, 0.5, 0.7, 1.0)}
  rows = [
    {'model': mode, 'seed': seed, 'dim': d, 'accuracy': accuracy, 'bits': 1000 * accuracy + 1}
    for mode, of_D in known.items() for seed in (0, 1) for d, accuracy in zip((2, 4, 8, 16), of_D, strict=True)
  ]  # fmt: skip
  found = {f.what: f.value for f in multihop.composition(pd.DataFrame(rows))}
  names = 'direct answers / of one hop of R^k relations'
  assert found[f'depth 1: d at which 0.9 is known of {names}'] == pytest.approx(
    8 / (8 * 2 ** (2 / 3))
  )
  assert found[f'depth 1, d = 8: bits of {names}'] == pytest.approx(901 / 701)
  assert found[f'depth 1, d = 4: bits of {names}'] == pytest.approx(1)


def test_sizes_that_know_equally_much_are_drawn_beside_other_scalings():
  table = planted(lambda n, r: 1 + r * math.log2(n) / 6)
  (bits, halves), *more = laws.equal_bits(laws.largest(table))
  assert bits == 48 and not more and list(halves) == [(64, 8), (256, 6), (4096, 4)]
  assert [np.mean([*of_S.values()]) for of_S in halves.values()] == pytest.approx(
    [9, 9, 9], rel=0.03
  )
  labels = laws.plot(table).axes[2].get_legend_handles_labels()[1]
  assert labels == ['R log₂ N = 48', *(f'if ∝ {name}' for name in laws.OTHER_SCALINGS)]


def test_a_seed_whose_curve_does_not_reach_one_half_has_not_settled():
  assert curves.settled([0.04, -0.05]) and not curves.settled([0.04, -0.07])
  assert not curves.settled([0.01, float('nan')]) and not curves.settled([])


def test_dense_and_row_sparse_state_are_compared_at_equal_passes_and_capacity_is_read_at_half(
  monkeypatch,
):
  for name in ('law', 'compared'):  # which take long, and which another test judges
    monkeypatch.setattr(laws, name, lambda *_, **__: ())
  some = planted(lambda n, r: 1 + r * math.log2(n) / 6)
  dense = select(some, subjects=64, relations=8, passes=100).assign(model=laws.DENSE)
  worse = pd.concat([some, dense.assign(accuracy=dense['accuracy'] - 0.05)])
  found = {f.what: f for f in laws.STUDY.findings(worse)}
  less = [f for what, f in found.items() if 'with all rows in every step' in what]
  assert len(less) == 6 and all(f.value == pytest.approx(-0.05) and f.holds is False for f in less)
  same = laws.STUDY.findings(pd.concat([some, dense]))
  assert all(f.holds for f in same if 'with all rows' in f.what)
  what = 'bits of facts per parameter at d₅₀'
  assert found[f'N = 64, R = 8: {what}'].value == pytest.approx(1, abs=0.02)
  assert found[f'{what}, change per doubling of N'].value == pytest.approx(0, abs=0.01)


# --- memories -------------------------------------------------------------------------------------


@pytest.mark.parametrize('law', ['bits', 'facts'])
def test_a_memory_of_bits_is_told_from_one_of_facts(law):
  rows = []
  for width, seed in itertools.product((8, 16, 32, 64), (0, 1, 2)):
    if (width, seed) == (64, 2):
      continue  # in another part of the preset, with fewer seeds
    of = {'bits': lambda n: n * math.log2(n) / 2, 'facts': lambda n: 5 * n}[law]
    half = next(n for n in range(2, 10**5) if of(n) >= 2 * 64 * width)
    for factor in (0.5, 0.8, 1.25, 2):
      rows.append({
        'kind': 'memory', 'measurement': 'accuracy', 'model': 'MLP memory', 'control': None, 'subjects': round(half * factor),
        'relations': 1, 'dim': 64, 'width': width, 'seed': seed, 'value': 1 / (1 + factor**4), 'steps': 4096,
      })  # fmt: skip
  told = [
    f
    for f in frozen_embeddings.STUDY.findings(pd.DataFrame(rows))
    if 'at the largest F / at the smallest' in f.what
  ]
  (primary,) = (f for f in told if f.primary)
  name = {'bits': 'n₅₀·log₂n₅₀', 'facts': 'n₅₀'}
  assert f'{name["bits"]} per parameter' in primary.what and primary.holds == (law == 'bits')
  (own,) = (f for f in told if f': {name[law]} per parameter' in f.what)
  assert own.value == pytest.approx(1, abs=0.02) and own.seeds == 2
  assert max(abs(math.log(f.value)) for f in told) > math.log(1.15)
  elsewhere = [
    f.value for f in told if '0.7 of the facts are known' in f.what
  ]  # curves differ in their scale alone
  assert elsewhere == pytest.approx([primary.value], rel=0.1)
  of_bits, of_facts = frozen_embeddings.plot(pd.DataFrame(rows)).axes[1].lines
  constant, falling = (of_bits, of_facts) if law == 'bits' else (of_facts, of_bits)
  assert constant.get_xdata().min() > 50 and np.ptp(constant.get_ydata()) < 0.05 < np.ptp(
    falling.get_ydata()
  )


def test_fixed_embeddings_get_as_many_parameters_as_learned_ones():
  recipe = Recipe(frozen=frozen_embeddings.FROZEN)
  wanted = stored_bits.trained_parameters(Recipe(), Config.trained(256, 4, dim=9))
  config = frozen_embeddings.match_size(recipe, 256, 4, 32, wanted)
  assert stored_bits.trained_parameters(recipe, config) == pytest.approx(wanted, abs=40)
  assert frozen_embeddings.match_size(recipe, 256, 4, 32, 100) is None


def test_the_guess_of_a_memory_solves_its_equation():
  n = frozen_embeddings.guess(4096)
  assert n * math.log2(n) == pytest.approx(frozen_embeddings.BITS * 4096, rel=1e-6)


def test_the_protocol_is_tried_around_what_the_published_code_held():
  theirs = select(
    records.read(pages.RESULTS / 'published.json').table, measurement='nichani', side='theirs'
  )
  assert dict(zip(theirs['dim'], theirs['subjects'], strict=True)) == frozen_embeddings.PUBLISHED


# --- chains ---------------------------------------------------------------------------------------


def test_positions_by_rule_ask_for_the_next_relation_whatever_the_length():
  """At every hop the query, turned by one index, fits the key of that hop's relation best of the prompt's keys.

  Only tokens of the prompt have keys, and only its last token and those after it have queries.
  """
  for hops in (2, 3, 4):
    params = {'embed': {'positions': np.zeros((8, 16), np.float32)}}
    code = multihop.with_positions(params, hops)['embed']['positions']
    keys, queries = code[:, :2], code[:, 2:4]
    c, s = np.cos(2 * np.pi / 8), np.sin(2 * np.pi / 8)
    for hop in range(hops):
      cos, sin = queries[hops + hop]
      rotated = np.array([cos * c - sin * s, sin * c + cos * s])  # one index on
      scores = keys @ rotated
      assert scores[: hops + 1].argmax() == hop + 1
    assert not keys[hops + 1 :].any() and not queries[:hops].any()


def test_unrelated_relations_are_as_many_as_there_are_paths():
  """The control of two direct hops is one hop of R² relations, whose facts are drawn independently."""
  preset = multihop.Preset(subjects=8, relations=3, hops=(2, 3), sizes=1, seeds=1)
  asked = []

  class Asked(Untrained):
    def train_and_evaluate(self, recipe, tasks, function, trained=True):
      asked.extend((recipe.hops, task.facts.relations) for task in tasks)
      return super().train_and_evaluate(recipe, tasks, function, trained)

  (record,) = multihop.trained(Asked(), preset, multihop.UNRELATED, 2, 1, 1, [0])
  assert asked == [(1, 9)] and (record['hops'], record['relations']) == (2, 3)


def test_a_step_is_right_more_often_than_a_chain():
  n, r, k = 8, 2, 3
  recipe = Recipe(hops=k, chain_of_thought=True, loss='chain')
  task = Task(Config.trained(n, r, dim=6, length=recipe.length()), Facts.bijections(n, r), seed=1)
  sweep, states = sweeps.set_up(recipe, [task])
  score = lambda each: (
    lambda params, job: optimization.accuracy(sweep.config, recipe, job, params, per_step=each)
  )
  step, chain = (float(sweeps.evaluate(sweep, states, score(each))[0]) for each in (True, False))
  params, right = sweep.state_of(states, 0).params, []
  for s, path in itertools.product(range(n), itertools.product(range(r), repeat=k)):
    tokens, now, own = [s, *(n + q for q in path)], s, []
    for q in path:
      logits = model.apply(task.config, params, np.array([tokens]))[0, -1]
      now = int(task.facts.answers_RxN[q, now])
      own.append(int(logits.argmax()) == now)
      tokens.append(now)
    right.append(own)
  assert step == pytest.approx(np.mean(right), abs=1e-6) and chain == pytest.approx(
    np.mean(np.all(right, 1)), abs=1e-6
  )
  assert 0 <= chain <= step < 1


def test_a_model_that_ignores_the_relations_knows_nothing():
  """With R = 2 it is right about half of all steps, whatever its d: that is no d₅₀, and no claim holds by it."""
  rows = pd.DataFrame(
    {'kind': 'trained', 'measurement': 'accuracy', 'model': mode, 'depth': 1, 'hops': k, 'dim': d, 'seed': 0, 'steps': 100,
     'subjects': 1024, 'relations': 2, 'accuracy': 2.0**-k, 'each_step': 0.5 if mode == 'chain' else 2.0**-k,
     'internal_bits': np.nan}
    for mode, k, d in itertools.product(('direct', 'chain'), (1, 4), (2, 4))
  )  # fmt: skip
  beyond = multihop.above_relation_blind(rows)
  assert (beyond['accuracy'] == 0).all() and (beyond['each_step'] == 0).all()
  alone = rows.assign(relations=1)  # there is none to ignore
  pd.testing.assert_frame_equal(multihop.above_relation_blind(alone), alone)
  ratios = [one for one in multihop.STUDY.findings(rows) if one.primary]
  assert len(ratios) == 2 and not any(one.holds for one in ratios)


@pytest.mark.parametrize('mode', multihop.MODES)
def test_a_part_of_one_mode_alone_is_judged_and_drawn(mode):
  rows = pd.DataFrame(
    {'kind': 'trained', 'measurement': 'accuracy', 'model': mode, 'depth': 1, 'hops': k, 'dim': d, 'seed': 0, 'steps': 100,
     'subjects': 64, 'relations': 2, 'accuracy': d / 5, 'each_step': d / 5}
    for k, d in itertools.product((1, 4), (2, 4))
  )  # fmt: skip
  assert {one.what.partition(':')[2] for one in multihop.STUDY.findings(rows)} > {' d₅₀ at k = 1'}
  assert multihop.plot(rows) is not None


def test_where_no_size_knows_half_the_largest_is_a_lower_bound_and_a_model_that_fails_decides_against_the_claim():
  rows = [
    {'kind': 'trained', 'model': 'direct', 'depth': 1, 'hops': k, 'dim': d, 'seed': 0, 'accuracy': a, 'each_step': a,
     'subjects': 1024, 'relations': 2, 'measurement': 'accuracy', 'control': None, 'value': a, 'internal_bits': np.nan,
     'steps': 100}
    for k in (1, 4) for d, a in ((2, 0.1), (4, 0.9 if k == 1 else 0.4))
  ]  # fmt: skip
  rows += [
    {
      'kind': 'longer',
      'measurement': multihop.STEPS,
      'positions': 'learned',
      'trained_to': 3,
      'hops': 3,
      'seed': 0,
      'value': 1.0,
      'subjects': 1024,
    }
  ]
  told = {f.what: f for f in multihop.STUDY.findings(pd.DataFrame(rows))}
  growth = told['N = 1,024, direct, depth 1: d₅₀ at k = 4 / at k = 1']
  assert growth.value == pytest.approx(4 / 2**1.8125) and growth.holds is False and growth.primary
  outside = ', outside the sizes tried with some seeds'
  assert np.isnan(told[f'N = 1,024, direct, depth 1: d₅₀ at k = 4{outside}'].value)
  chain = [{**row, 'model': 'chain'} if row['kind'] == 'trained' else row for row in rows]
  told = {f.what: f for f in multihop.STUDY.findings(pd.DataFrame(chain))}
  (growth,) = (
    f for what, f in told.items() if 'per step (teacher-forced): d₅₀ at k = 4 / at k = 1' in what
  )
  assert growth.at_most == 1.3 and growth.holds is False and growth.primary
  above = [{**row, 'accuracy': 0.9} if row.get('hops') == 4 else row for row in rows]
  told = {f.what: f for f in multihop.STUDY.findings(pd.DataFrame(above))}
  growth = told['N = 1,024, direct, depth 1: d₅₀ at k = 4 / at k = 1']
  assert np.isnan(growth.value) and growth.holds is False


def test_constant_capacity_is_told_from_a_power_law():
  """Models that know half where they have a parameter for every 3 bits, at sizes of which the MLP is a part."""
  cells = (64, 4), (64, 8), (256, 3), (256, 6), (1024, 3), (4096, 2), (4096, 4)
  count = lambda n: np.polynomial.Polynomial([0, 2 * n, 12])
  halves = pd.DataFrame([
    {'subjects': n, 'relations': r, 'size': (n, r), 'half_size': 1.0, 'count': count(n)} for n, r in cells
  ])  # fmt: skip
  halves['half_size'] = laws.at_capacity(halves, 3.0)
  for (n, r), half in zip(cells, halves['half_size'], strict=True):
    assert n * r * math.log2(n) / count(n)(half) == pytest.approx(3)
  halves['half_size'] *= np.exp(np.random.default_rng(0).normal(0, 0.01, len(cells)))
  found = {f.what.split(': ')[1]: f for f in laws.constant_capacity(halves, 'capacity')}
  assert found['κ'].value == pytest.approx(3, rel=0.02) and found['κ'].low < 3 < found['κ'].high
  assert found['AIC increase if it replaces c·R^p·(log₂N)^q'].value < -10
  assert found['largest ratio of a measured d₅₀ and its own'].value < 1.03
  assert (
    found['q of c·R^p·(log₂N)^q fitted to its own d₅₀'].value > 1.1
  )  # the MLP's part falls with N
  law = halves.assign(half_size=0.4 * halves['relations'] * np.log2(halves['subjects']) ** 1.5)
  worse = {f.what.split(': ')[1]: f for f in laws.constant_capacity(law, 'capacity')}
  assert worse['AIC increase if it replaces c·R^p·(log₂N)^q'].value > 10
