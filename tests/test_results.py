"""What the pages say was measured: findings against their records, pages against what they are made from."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from experiments import capacity, claims, frozen_embeddings, readme, results, threshold
from experiments.figures import frozen_embeddings as frozen_embeddings_figure
from experiments.harness import findings, searching, statistics, storage
from geomem.errors import InputError
from geomem.training.threshold import Bisection, search
from geomem.training.train import Recipe

FLAGS = flags.FLAGS


def test_a_finding_is_the_mean_with_its_interval_and_its_control():
  (finding,) = findings.found('x', [0.9, 1.0, 0.95], 0.9, shuffled_facts=[0.0, 0.1])
  assert finding.value == pytest.approx(0.95) and finding.seeds == 3
  assert 0.9 <= finding.low < finding.value < finding.high <= 1.0
  assert finding.control == 'shuffled facts 0.05'
  assert findings.found('nothing', []) == []


@pytest.mark.parametrize(
  ('least', 'most', 'holds'),
  [(None, None, None), (0.5, None, True), (0.7, None, False), (None, 0.5, False), (0.5, 0.7, True)],
)
def test_a_finding_holds_where_its_range_says(least, most, holds):
  (finding,) = findings.found('x', [0.6, 0.6], least, most)
  assert finding.holds is holds
  assert ('**no**' in findings.table([finding])) == (holds is False)


def test_the_interval_of_one_seed_is_left_blank():
  (finding,) = findings.found('x', [0.6])
  assert np.isnan(finding.low) and '| 0.6 |  | 1 |' in findings.table([finding])


@pytest.mark.parametrize('values', [[np.nan, 0.9, 0.9], [np.nan, np.nan], [np.inf, 1.0]])
def test_a_mean_that_is_no_number_is_shown_and_has_no_interval(values):
  (finding,) = findings.found('x', values, 0.5, 2.0, control=values)
  assert finding.holds is False and np.isnan(finding.low) and not finding.unsure
  told = 'nan' if np.isnan(values[0]) else 'inf'
  assert f'| {told} |  | {len(values)} | control {told} |' in findings.table([finding])


@pytest.mark.parametrize('name', ['structure', 'transfer', 'from_constructed', 'language_model'])
def test_a_model_that_diverged_ends_no_report(name, tmp_path):
  experiment, about = claims.EXPERIMENTS[name], results.read_about(name)
  records = storage.read_results(results.RESULTS, f'{name}.json')
  which = lambda r: (r['seed'], r.get('weight_decay'), r.get('start'))
  first = which(next(r for r in records if r['seed'] is not None))
  spoilt = lambda r: {mark: np.nan for mark in {'low', 'high', 'value'} & r.keys()}
  sick = [r | spoilt(r) if which(r) == first else r for r in records]
  storage.write_results(tmp_path, sick, about=about)
  again = storage.read_results(tmp_path)
  told = experiment.module.findings(again)
  assert [f.what for f in told] == [f.what for f in experiment.module.findings(records)]
  spoiled = [f for f in told if np.isnan(f.value)]
  assert spoiled and not any(f.holds for f in spoiled) and '| nan |' in findings.table(told)
  assert any(np.isnan(row['value']) for row in experiment.module.summary(again))
  assert experiment.figure.draw(again, tmp_path)


@pytest.mark.parametrize('find', searching.FINDS)
def test_whatever_was_searched_has_findings(find):
  records = storage.read_results(results.RESULTS, 'threshold.json')
  renamed = [{**r, 'find': find} for r in records if r.get('find') in ('dim', None)]
  told = [f.what for f in threshold.findings(renamed)]
  assert len(told) > 3 and not any('$' in what or '{' in what for what in told)


@pytest.mark.parametrize(
  ('find', 'at'),
  [('dim', 'F = 4d'), ('dim_at_width', 'F = 64'), ('width', 'd = 8'), ('subjects', 'd = 8')],
)
def test_a_search_in_vain_takes_nothing_from_the_others(find, at):
  setting = searching.Setting(Recipe(10), 8, 64, ((0.01, 0.01),))
  cases = [searching.Case(find, 2**b, 2, seed) for seed in (0, 1) for b in (3, 5)]
  at_size = lambda case, size: searching.record(
    case, Bisection(searching.looked_for(case, setting), passed=size, failed=1), setting
  )
  vain = at_size(searching.Case(find, 128, 3, 0), None)
  records = [vain, *(at_size(case, case.subjects) for case in cases)]
  told = threshold.findings(records + threshold.fits(records))
  assert len(told) > 1 and all(at in f.what for f in told[:-1])


def test_nothing_found_has_no_largest_value():
  records = storage.read_results(results.RESULTS, 'capacity.json')
  nothing = dict.fromkeys(('value', 'bits_a_parameter', 'bits_a_bit'))
  assert capacity.findings([r | nothing for r in records]) == []
  assert capacity.findings(records)[-1].holds


@pytest.mark.parametrize('vain', [{'memory'}, {'learned', 'fixed'}, {'memory', 'learned', 'fixed'}])
def test_what_fixed_embeddings_cost_is_drawn_where_nothing_was_found(vain, tmp_path):
  records = storage.read_results(results.RESULTS, 'frozen_embeddings.json')
  nothing = dict.fromkeys(('value', 'parameters'))
  records = [r | nothing if r['kind'] in vain else r for r in records]
  assert all(path.exists() for path in frozen_embeddings_figure.draw(records, tmp_path))
  rows = frozen_embeddings.summary(records)
  assert all((row['value'] is None) == (row['kind'] in vain) for row in rows)
  assert bool(frozen_embeddings.findings(records)) == (len(vain) < 3)


def test_a_growth_is_told_from_its_rivals():
  held = lambda size, law: next(n for n in range(2, 10**4) if law(n) >= size)
  of = lambda law: [
    {'seed': s, 'dim': d, 'value': held(d**2 / 2, law)} for s in (0, 1) for d in (30, 40, 60)
  ]
  (own,) = frozen_embeddings._growth(of(lambda n: n * np.log(n)))
  assert own.holds and 1.1 < own.value < 1.3 and 'n 1' in own.control and own.seeds == 2
  (linear,) = frozen_embeddings._growth(of(lambda n: n))
  assert linear.value == pytest.approx(1, abs=0.01) and linear.holds is False
  (steep,) = frozen_embeddings._growth(of(lambda n: n**1.5))
  assert steep.holds is False and frozen_embeddings._growth([]) == []


@pytest.mark.parametrize('find', ['dim', 'subjects'])
@pytest.mark.parametrize('border', [0, 40, 10**9])
def test_a_size_is_a_threshold_only_if_something_harder_failed(find, border):
  case, setting = (
    searching.Case(find, 32, 2, 0),
    searching.Setting(Recipe(1), 16, 0, ((0.01, 0.01),)),
  )
  harder = (lambda size: size <= border) if find == 'subjects' else (lambda size: size >= border)
  attempt = lambda asked: [harder(size) for _, size in asked]
  found = search({case: searching.looked_for(case, setting)}, attempt)[case]
  record = searching.record(case, found, setting)
  assert statistics.is_border(record) is (border == 40)
  assert record['value'] is None or record['floor'] is (found.failed is None)


def test_the_sizes_are_those_that_were_asked_for():
  assert results.sizes('threshold') == 'N = 16, 48, 144; R = 2, 4; 2,000 steps.'
  assert results.sizes('frozen_embeddings').startswith('N = 64, 256; R = 1, 4; 2,000 steps; 32,768')
  assert results.sizes('structure').endswith('1,000, 1,600 steps; batch 128.')
  assert results.sizes('language_model') == ''


def test_splice_replaces_one_table_and_refuses_a_page_without_its_mark():
  page = f'a\n<!-- m -->\nold\n{readme.END}b\n<!-- n -->\nkept\n{readme.END}'
  new = readme.splice(page, 'm', 'new\n')
  assert 'new' in new and 'old' not in new and 'kept' in new and new.startswith('a\n')
  with pytest.raises(InputError, match='missing'):
    readme.splice('no marks', 'm', '')


@pytest.mark.parametrize('name', results.taken())
def test_the_page_says_what_the_records_say(name):
  assert results.section(name) in results.page(name).read_text(encoding='utf-8')


@pytest.mark.parametrize('path', results.OVERVIEWS, ids=str)
def test_the_overview_says_what_the_records_say(path):
  told = results.overview(results.OVERVIEWS[path])
  assert told.count('\n') > 10 and told in path.read_text(encoding='utf-8')


def test_a_bound_within_the_interval_is_marked():
  (sure,), (unsure,) = (findings.found('x', values, 0.5) for values in ([0.7, 0.8], [0.2, 0.9]))
  assert sure.cells[-1] == 'yes' and unsure.cells[-1] == 'yes ~'
  (check,) = findings.found('x', [0.1, 0.6], 0.5, claim=findings.CHECK)
  assert check.cells[-1] == 'no ~ (check)' and '**no** ~ (check)' in findings.table([check])


@pytest.mark.parametrize('path', sorted(results.RESULTS.glob('*.json')), ids=lambda path: path.stem)
def test_records_say_what_they_were_measured_with(path):
  if path.stem == 'construct':  # computed, and the same everywhere
    return
  kept = json.loads(path.read_text(encoding='utf-8'))
  by_line = path.stem == 'benchmark_cpu'
  for about in kept if by_line else [kept['about']]:
    assert about['device'] and about['versions']['jax'] and (by_line or about['command'])


def test_a_run_is_taken_with_its_device_and_versions(tmp_path, monkeypatch):
  root = Path.cwd()
  records = storage.read_results(root / results.RESULTS, 'threshold.json')
  run = tmp_path / 'run'
  run.mkdir()
  (run / 'results.json').write_text(json.dumps(records[:60]))
  about = {
    'scale': 'laptop',
    'code': '0123',
    'setting': {'seeds': 5},
    'command': 'python -m experiments.threshold --scale=laptop --seed=7 --seeds=2',
    'device': 'an abacus',
    'versions': {'jax': '9'},
  }
  (run / 'config.json').write_text(json.dumps(about))
  (tmp_path / 'docs/results').mkdir(parents=True)
  shutil.copy(root / results.PAGE, tmp_path / 'docs')
  monkeypatch.chdir(tmp_path)
  results.take('threshold', run)
  assert results.read_about('threshold').keys() == {'command', 'device', 'versions', 'setting'}
  assert '--scale=laptop --seed=7 --seeds=2`, an abacus, jax 9' in results.section('threshold')
  (run / 'config.json').write_text(json.dumps({**about, 'scale': 'smoke'}))
  with pytest.raises(InputError, match='no evidence'):
    results.take('threshold', run)


def test_what_the_page_of_the_language_model_quotes_is_in_the_records():
  """Every `value [low, high]` of the text is some group of records, averaged over its runs."""
  root = Path(__file__).parents[1] / 'docs'
  text = (root / 'language_model.md').read_text(encoding='utf-8').replace('−', '-')
  quoted = re.findall(r'(-?\d\.\d+)\s+\[(-?\d\.\d+),\s+(-?\d\.\d+)\]', text)
  records = [
    r for r in storage.read_results(root / 'results', 'language_model.json') if r['low'] is not None
  ]
  about = 'table', 'measurement', 'features', 'relation', 'other', 'control', 'rank', 'chosen'
  means = np.array([
    [np.mean([r[name] for r in group]) for name in ('value', 'low', 'high')]
    for names in (about, (*about, 'layer'), (*about, 'layer', 'alpha', 'seed', 'template'))
    for group in statistics.groups(records, *names)
  ])  # fmt: skip
  assert len(quoted) > 15
  for one in quoted:
    half = 0.5 * 10.0 ** -max(len(number.partition('.')[2]) for number in one) + 1e-6
    assert (np.abs(means - np.array(one, float)) <= half).all(axis=1).any(), one
