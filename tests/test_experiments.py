"""The binaries that compute records and draw: bounds, benchmark, and the README's table."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_mechanism

from constructions import registry
from experiments import approximate, benchmark, bounds, readme
from experiments.figures import approximate as approximate_figure
from experiments.figures import bounds as bounds_figure
from experiments.harness import building, cli, storage, timing

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def records():
  points, skipped = bounds.points(3, 2, 2, seed=0)
  assert not skipped
  return points + bounds.curves(3, 2, 2, reach=4 * max(p['subject_bits'] for p in points))


def curve(records, name):
  return np.array([r['internal_bits'] for r in records if r.get('bound') == name])


def test_every_construction_is_a_verified_point(records):
  points = {r['construction']: r for r in records if r['kind'] == 'construction'}
  assert set(points) == set(registry.multi_hop())
  assert all(p['accuracy'] == 1 and not building.failed(p) for p in points.values())


def test_curves_are_in_order_and_below_every_point(records):
  exact = curve(records, 'exact')
  for name in ('global', 'local'):
    assert np.all(curve(records, name) <= curve(records, f'sharp_{name}') + 1e-9)
    assert np.all(curve(records, f'sharp_{name}') <= exact + 1e-9)
  assert exact[0] > curve(records, 'sharp_local')[0] > curve(records, 'local')[0] > 0
  price = [r['subject_bits'] for r in records if r.get('bound') == 'exact']
  for point in (r for r in records if r['kind'] == 'construction'):
    assert point['internal_bits'] > np.interp(point['subject_bits'], price, exact)


def test_only_the_global_bound_is_called_the_papers():
  assert [name for name, style in bounds_figure.STYLES.items() if 'the paper' in style[0]] == [
    'global'
  ]
  told = [finding.what for finding in bounds.findings(bounds.curves(64, 4, 2, reach=500))]
  assert told == [
    'global bound: ours / the paper’s, the least over B_emb',
    'local bound, both ours: the sharper / by trees, the least over B_emb',
  ]


def test_the_figure_is_drawn_from_the_saved_records(records, tmp_path):
  storage.write_results(tmp_path, records)
  first = [path.read_bytes() for path in bounds_figure.draw(records, tmp_path)]
  again = [
    path.read_bytes() for path in bounds_figure.draw(storage.read_results(tmp_path), tmp_path)
  ]
  assert first == again and all(len(drawn) > 5000 for drawn in first)


def test_accuracy_grows_with_size_and_the_exact_ones_are_exact(tmp_path):
  records = approximate.measure(32, 2, range(2))
  rows = approximate.summary(records)
  for name in approximate.CONSTANTS:
    means = [row['accuracy'] for row in rows if row['construction'] == name]
    assert len(means) == len(approximate.CONSTANTS[name]) and means[0] < 0.9 < means[-1]
  assert all(row['least'] == 1 for row in rows if row['construction'] in approximate.EXACT)
  assert all(path.stat().st_size > 5000 for path in approximate_figure.draw(records, tmp_path))


def test_progress_says_what_is_under_way_and_nothing_to_a_file(monkeypatch, capsys):
  record = {'sweep': 1, 'step': 200, 'loss': 0.25, 'models': 7, 'solved': 0.5, 'diverged': 0}
  quiet = cli.Training()
  quiet(2000, record)
  assert capsys.readouterr().err == ''
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
  clock = iter((0.0, 0.0, 10.0, 20.0))
  monkeypatch.setattr(cli.time, 'monotonic', lambda: next(clock))
  told = cli.Training()
  for step in (200, 400, 600):
    told(2000, {**record, 'step': step})
  first, second, third = capsys.readouterr().err.split('\r\x1b[K')[1:]
  assert 'compiled' in first and '20 steps/s' in second and '80 s left' in second
  assert '600/2,000, 20 steps/s, 7 models, loss 0.25, 50% solved, 70 s left' in third


def test_what_a_flag_says_for_one_binary_it_does_not_say_for_the_next():
  cli.define(workdir='Mine alone.')
  assert cli.FLAGS['workdir'].help == 'Mine alone.'
  cli.define('workdir')
  assert 'results.json' in cli.FLAGS['workdir'].help


@pytest.mark.parametrize('about', [None, {'device': 'any'}])
def test_what_is_not_finite_is_kept_and_null_is_nothing(about, tmp_path):
  record = {'a': math.inf, 'b': -math.inf, 'c': math.nan, 'd': 1.5, 'e': None, 'f': 'infinite'}
  storage.write_results(tmp_path, [record], about=about)
  json.loads((tmp_path / 'results.json').read_text(), parse_constant=pytest.fail)
  (again,) = storage.read_results(tmp_path)
  assert math.isnan(again.pop('c')) and math.isnan(record.pop('c')) and again == record


def test_benchmark_takes_turns_and_reports_the_ratio(monkeypatch):
  order = []
  monkeypatch.setattr(timing.time, 'perf_counter', lambda: float(len(order)))
  got = timing.side_by_side(lambda: order.append('ours'), lambda: order.extend(['theirs'] * 3), 3)
  assert [name for i, name in enumerate(order) if i == 0 or name != order[i - 1]] == [
    'ours',
    'theirs',
  ] * 4
  assert (got['ours_seconds'], got['theirs_seconds'], got['ratio']) == (1, 3, 3)


def test_exhaustive_benchmark_counts_every_logit():
  record = benchmark.exhaustive(50, 2, rounds=1)
  assert record['logits'] == 50 * 2 * 50
  assert record['ratio'] == pytest.approx(record['theirs_seconds'] / record['ours_seconds'])


def test_certificate_benchmark_runs_the_command():
  record = benchmark.certificate(100, 2)
  assert (record['queries'], record['accuracy'], record['min_margin']) == (200, 1, 4)
  assert 0.05 < record['peak_gigabytes'] < 4


def test_the_table_in_the_readme_is_what_was_measured():
  records = json.loads((ROOT / readme.RECORDS).read_text())
  text = (ROOT / readme.README).read_text()
  assert readme.splice(text, readme.MARK.format('theorems'), readme.theorems(records)) == text
  timings = json.loads((ROOT / readme.TIMINGS).read_text())
  assert readme.splice(text, readme.MARK.format('timings'), readme.timings(timings)) == text
  assert [record['construction'] for record in records] == list(registry.REGISTRY)
  assert not any(building.failed(record) for record in records)


def in_readme(language):
  return re.findall(rf'```{language}\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)


def as_a_new_user(lines, folder):
  """What the last of the lines says, run in a folder; the environment is already active here."""
  (folder / 'docs').symlink_to(ROOT / 'docs')
  path = {
    **os.environ,
    'PYTHONPATH': str(ROOT),
    'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
  }
  for line in lines:
    done = subprocess.run(
      line, shell=True, check=False, cwd=folder, env=path, capture_output=True, text=True
    )
    assert done.returncode == 0, f'{line}: {done.stderr}'
  return done.stdout


SMOKE = [f'python -m experiments.{name} --scale=smoke' for name in test_mechanism.NAMES]
BLOCKS = [[line for line in b.splitlines() if line not in SMOKE] for b in in_readme('sh')]


@pytest.mark.parametrize('lines', [lines for lines in BLOCKS if lines], ids=lambda lines: lines[0])
def test_the_lines_of_the_readme_run(lines, tmp_path):
  """Of every block, but for the presets that test_mechanism runs."""
  as_a_new_user(lines, tmp_path)


def test_the_python_of_the_readme_runs(tmp_path):
  (python,) = in_readme('python')
  (tmp_path / 'example.py').write_text(python)
  assert 'queries=4000, correct=4000' in as_a_new_user(['python example.py'], tmp_path)
