"""The studies that search for sizes: killed they end in the same bits, their findings, what is not credited."""

import functools
import json
import shlex
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import processes
import pytest

from experiments import capacity, frozen_embeddings, threshold
from experiments.harness import instances, records, searching
from experiments.harness.statistics import jackknife, select
from geomem.checks import accounting, lower_bounds
from geomem.training.bisection import Bisection, search
from geomem.training.recipe import Recipe

RESULTS = Path(__file__).parents[1] / 'docs/results'
SMALL = ('--find=dim', '--find=subjects', '--dim=3', '--subjects=8', '--relations=2', '--seeds=1', '--steps=300',
         '--save_seconds=0', '--learning_rate=0.03')  # fmt: skip
SETTING = searching.Setting(Recipe(10), ((0.01, 0.01),), 8, 64)


start = functools.partial(processes.start, 'threshold')


def committed(name):
  return records.read(RESULTS / f'{name}.json').table


# --- threshold: a run in a process of its own -----------------------------------------------------


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
  assert (module, scale) == ('experiments.threshold', '--scale=laptop')
  assert {*rest} == {*SMALL} - {'--save_seconds=0'}


def test_a_border_lies_between_its_probes(whole):
  table = records.read(whole[0]).table
  found, probes = (select(table, kind=kind).to_dict('records') for kind in ('threshold', 'probe'))
  assert [r['find'] for r in found] == ['dim', 'subjects']
  for r in found:
    own = [p for p in probes if (p['find'], p['seed']) == (r['find'], r['seed'])]
    passed = {p['size']: p['passed'] for p in own}
    assert len(passed) == len(own) and passed[r['value']]
    beyond = r['value'] + (1 if r['find'] == 'subjects' else -1)
    assert beyond == 0 or passed[beyond] is False
    assert all((p['accuracy'] >= 0.99) == p['passed'] for p in own)
    n, queries = r['subjects'], r['subjects'] * r['relations']
    assert r['accuracy'] == next(p['accuracy'] for p in own if p['size'] == r['value'])
    bits = r['relations'] * lower_bounds.log2_factorial(int(n))
    held = accounting.recovered_bits(bits, r['accuracy'], queries, n)
    assert r['bits_per_parameter'] == pytest.approx(held / r['parameters']) and held > 0


def test_killed_and_started_again_it_ends_in_the_same_bits(whole, tmp_path):
  folder = tmp_path / 'killed'
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


def test_the_figure_is_drawn_from_the_saved_records(whole):
  figure = whole[0] / 'threshold.png'
  first = figure.read_bytes()
  figure.unlink()
  threshold.STUDY.main(['threshold', '--redraw', f'--workdir={whole[0]}'])
  assert figure.read_bytes() == first and len(first) > 5000


# --- threshold: lines and findings ----------------------------------------------------------------


def sizes_found(value, subjects, relations=3, seeds=(0,)):
  about = {'kind': 'threshold', 'find': 'dim', 'relations': relations, 'floor': False}
  return pd.DataFrame(
    [{**about, 'subjects': n, 'seed': s, 'value': value(n, s)} for n in subjects for s in seeds]
  )


def test_the_slope_is_that_of_the_points():
  table = sizes_found(lambda n, s: 6 * np.log2(n) + 1 + s, (8, 16, 32), seeds=(0, 1, 2))
  ((find, by_seed, missing),) = threshold.fitted(table)
  assert (find, len(by_seed), missing) == ('dim', 3, 0)
  assert (
    threshold.line(by_seed)[:2] == pytest.approx((2, 2)) and 0.9 < threshold.line(by_seed)[2] < 1
  )
  table['value'] += table['seed'] * np.log2(table['subjects']) / 10
  ((_, by_seed, _),) = threshold.fitted(table)
  low, high = jackknife(by_seed, threshold.slope)
  assert low < threshold.slope(by_seed) < high
  assert threshold.slope(by_seed) == pytest.approx(2 + 1 / 30)


def test_no_line_goes_through_one_size():
  table = sizes_found(lambda n, s: 3, (16, 24), relations=2)
  assert [*threshold.fitted(table)] == [] == [*threshold.fitted(table[:0])]


@pytest.mark.parametrize('find', ['dim', 'dim_at_width', 'width', 'subjects'])
def test_whatever_was_searched_has_findings(find):
  table = committed('threshold')
  own = table[table['find'].isna() | (table['find'] == 'dim')]
  renamed = own.assign(find=own['find'].where(own['find'].isna(), find))
  told = [f.what for f in threshold.STUDY.findings(renamed)]
  assert len(told) > (1 if find == 'subjects' else 3)  # no line goes through the largest N
  assert not any('$' in what or '{' in what for what in told)


@pytest.mark.parametrize(
  ('find', 'at'),
  [('dim', 'F = 4d'), ('dim_at_width', 'F = 64'), ('width', 'd = 8'), ('subjects', 'd = 8')],
)
def test_a_search_in_vain_takes_nothing_from_the_others(find, at, tmp_path):
  cases = [searching.Case(find, 2**b, 2, seed) for seed in (0, 1) for b in (3, 5)]
  border = lambda case, size: Bisection(searching.looked_for(case, SETTING), passed=size, failed=1)
  at_size = lambda case, size: {
    'kind': 'threshold', **searching.record(case, border(case, size), SETTING, 0.99)
  }  # fmt: skip
  vain = at_size(searching.Case(find, 128, 3, 0), None)
  table = pd.DataFrame([vain, *(at_size(case, case.subjects) for case in cases)])
  told = threshold.STUDY.findings(table)
  assert len(told) > 1 and all(at in f.what for f in told[:-1])
  nothing = pd.DataFrame([vain])
  assert threshold.STUDY.findings(nothing) == [] and threshold.plot(nothing) is None
  assert 'no size succeeded' in threshold.more(nothing)


@pytest.mark.parametrize('find', ['dim', 'subjects'])
def test_a_panel_shows_every_size_found(find):
  """The largest N on a logarithmic axis that holds them all; a smallest size above zero."""
  sizes = {'dim': [3, 6, 12], 'subjects': [40, 2000, 9000]}[find]
  table = pd.DataFrame([
    {'kind': 'threshold', 'find': find, 'subjects': n if find == 'subjects' else 16, 'relations': r, 'seed': 0,
     'value': n, 'floor': False, 'dim': 8, 'width': 32, 'bits_per_parameter': 1.0, 'construction': None}
    for r, n in zip((2, 4, 8), sizes, strict=True)
  ])  # fmt: skip
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    figure = threshold.plot(table)
    figure.canvas.draw()
  ax, low, high = figure.axes[0], *figure.axes[0].get_ylim()
  assert ax.get_yscale() == ('log' if find == 'subjects' else 'linear')
  assert high > sizes[-1] and (low == 0 if find == 'dim' else 10 < low < 40)


def test_claim_1_is_of_growth_and_bits_are_reported_without_a_bound():
  (claim,), told = threshold.STUDY.claims, threshold.STUDY.findings(committed('threshold'))
  assert 'R·log₂N' in claim.says and 'bit' not in claim.says
  assert told[-1].what == 'bits of facts per parameter, the highest of all sizes'
  assert not any(f.holds for f in told if 'bits' in f.what)


@pytest.mark.parametrize('find', ['dim', 'subjects'])
@pytest.mark.parametrize('border', [0, 40, 10**9])
def test_a_size_is_a_threshold_only_if_something_harder_failed(find, border):
  case, setting = (
    searching.Case(find, 32, 2, 0),
    searching.Setting(Recipe(1), ((0.01, 0.01),), 16),
  )
  harder = (lambda size: size <= border) if find == 'subjects' else (lambda size: size >= border)
  attempt = lambda asked: [harder(size) for _, size in asked]
  found = search({case: searching.looked_for(case, setting)}, attempt)[case]
  record = searching.record(case, found, setting, 0.99)
  assert (record['value'] is not None and record['floor'] is False) is (border == 40)
  assert record['value'] is None or record['floor'] is (found.failed is None)


# --- capacity -------------------------------------------------------------------------------------


def test_nothing_found_has_no_largest_value():
  table = committed('capacity')
  assert capacity.STUDY.findings(table.assign(value=np.nan, bits_per_weight_bit=np.nan)) == []


def test_what_can_be_counted_is_a_check_and_no_claim():
  last = capacity.STUDY.findings(committed('capacity'))[-1]
  assert last.holds and last.check and last.at_most == 1 and capacity.STUDY.claims == ()


def test_wrong_answers_are_not_credited():
  """A model that errs holds fewer bits than all of its facts; one that is only rounded to 0.99 is no exception."""
  facts = instances.bijections(32, 2, 0)
  own = {'dim': 4, 'width': 16, 'parameters': 100, 'accuracy': 1.0}
  bits = accounting.fact_bits(facts)
  right = capacity.record('trained', facts, 0, own, 8, 0.99)
  assert right['value'] == pytest.approx(bits / 100)
  assert 0.8 * bits < right['bits_per_weight_bit'] * 800 < bits
  wrong = capacity.record('trained', facts, 0, own | {'accuracy': 0.9}, 8, 0.99)
  assert wrong['value'] < 0.9 * right['value']
  assert wrong['bits_per_weight_bit'] == pytest.approx(wrong['value'] / 8)


# --- frozen embeddings ----------------------------------------------------------------------------


@pytest.mark.parametrize('vain', [{'memory'}, {'learned', 'fixed'}, {'memory', 'learned', 'fixed'}])
def test_what_fixed_embeddings_cost_is_drawn_where_nothing_was_found(vain, tmp_path):
  table = committed('frozen_embeddings')
  table.loc[table['kind'].isin(vain), ['value', 'parameters']] = np.nan
  study = frozen_embeddings.STUDY
  assert all(path.exists() for path in study.draw(table, tmp_path))
  assert bool(study.findings(table)) == (len(vain) < 3)


def test_a_growth_is_told_from_its_rivals():
  held = lambda size, law: next(n for n in range(2, 10**4) if law(n) >= size)
  of = lambda law: frozen_embeddings.growth(pd.DataFrame([
    {'seed': s, 'dim': d, 'value': held(d**2 / 2, law)} for s in (0, 1) for d in (30, 40, 60)
  ]))  # fmt: skip
  (own,) = of(lambda n: n * np.log(n))
  assert own.holds and 1.1 < own.value < 1.3 and own.controls['n'] == 1 and own.seeds == 2
  (linear,) = of(lambda n: n)
  assert linear.value == pytest.approx(1, abs=0.01) and linear.holds is False
  (steep,) = of(lambda n: n**1.5)
  assert steep.holds is False
  assert frozen_embeddings.growth(pd.DataFrame(columns=['seed', 'dim', 'value'])) == []


# --- smoke ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('study', [capacity.STUDY, frozen_embeddings.STUDY], ids=lambda s: s.name)
def test_a_study_records_what_it_measured_and_draws_that(study, tmp_path, capsys):
  binary = lambda *given: study.main([study.name, f'--workdir={tmp_path}', *given])
  binary('--scale=smoke', '--save_seconds=0')
  told = capsys.readouterr().out
  kept = {
    path: path.read_bytes()
    for path in tmp_path.iterdir()
    if path.suffix in ('.json', '.png', '.pdf')
  }
  assert {path.suffix for path in kept} == {'.json', '.png', '.pdf'}
  assert all(len(drawn) > 8000 for path, drawn in kept.items() if path.suffix != '.json')
  binary('--scale=smoke', '--save_seconds=0')  # answered from the checkpoint, to the last bit
  binary('--redraw')
  assert {path: path.read_bytes() for path in kept} == kept
  assert capsys.readouterr().out == 2 * told and 'figure: ' in told
  table = records.read(tmp_path).table
  assert {'measurement', 'model', 'control', 'seed', 'value', 'subjects', 'relations'} <= {*table}
