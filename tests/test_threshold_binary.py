"""The threshold binary: killed in the middle of a search and started again, it ends in the same bits."""

import functools
import json
import shlex
import signal
import time

import numpy as np
import processes
import pytest

from experiments import threshold
from experiments.figures import threshold as threshold_figure
from experiments.harness import statistics, storage

SMALL = ('--find=dim', '--find=subjects', '--dim=3', '--subjects=6', '--subjects=8', '--relations=2', '--seeds=1',
         '--steps=300', '--save_seconds=0', '--learning_rate=0.03')  # fmt: skip


start = functools.partial(processes.start, 'threshold')


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs') / 'whole'
  process = start(folder, *SMALL)
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  return folder, out


def records(folder, kind):
  return [r for r in json.loads((folder / 'results.json').read_text()) if r['kind'] == kind]


def test_the_command_that_redoes_it_is_recorded(whole):
  about = json.loads((whole[0] / 'config.json').read_text())
  _, _, module, scale, *rest = shlex.split(about['command'])
  assert (module, scale) == ('experiments.threshold', '--scale=laptop')
  assert set(rest) == {*SMALL} - {'--save_seconds=0'}


def test_a_border_lies_between_its_probes(whole):
  found, probes = records(whole[0], 'threshold'), records(whole[0], 'probe')
  assert [r['find'] for r in found] == ['dim', 'dim', 'subjects']
  for r in found:
    own = [p for p in probes if (p['find'], p['seed']) == (r['find'], r['seed'])]
    if r['find'] == 'dim':
      own = [p for p in own if p['subjects'] == r['subjects']]
    sizes = {p['size']: p['passed'] for p in own}
    assert len(sizes) == len(own) and sizes[r['value']]
    beyond = r['value'] + (1 if r['find'] == 'subjects' else -1)
    assert beyond == 0 or sizes[beyond] is False
    assert all((p['accuracy'] >= 0.99) == p['passed'] for p in own)
    assert r['bits'] == pytest.approx(r['fact_bits'] / r['parameters']) and r['parameters'] > 0


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
  assert process.communicate(timeout=300)[0] == whole[1].replace(str(whole[0]), str(folder))
  for name in ('results.json', 'metrics.jsonl'):
    assert (folder / name).read_text() == (whole[0] / name).read_text()


def test_the_figure_is_drawn_from_the_saved_records(whole):
  first = (whole[0] / 'threshold.png').read_bytes()
  paths = threshold_figure.draw(storage.read_results(whole[0]), whole[0])
  assert paths[0].read_bytes() == first and len(first) > 5000


def test_the_slope_is_that_of_the_points():
  points = [
    {'kind': 'threshold', 'find': 'dim', 'subjects': 2**b, 'relations': 3, 'seed': s, 'value': 2 * b * 3 + 1 + s}
    for b in (3, 4, 5) for s in (0, 1, 2)
  ]  # fmt: skip
  (fit,) = threshold.fits(points)
  assert [fit[name] for name in ('slope', 'slope_low', 'slope_high')] == pytest.approx([2, 2, 2])
  assert (
    fit['intercept'] == pytest.approx(2)
    and fit['seeds'] == 3
    and 0.9 < fit['explained by R·log2 N'] < 1
  )


def test_no_line_goes_through_one_size():
  points = [
    {'kind': 'threshold', 'find': 'dim', 'subjects': n, 'relations': 2, 'seed': 0, 'value': 3}
    for n in (16, 24)
  ]
  assert threshold.fits(points) == [] == threshold.fits([])


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
  rng = np.random.default_rng(0)
  held = 0
  for _ in range(60):
    low, high = statistics.interval(list(rng.normal(size=20)), lambda g: np.array([np.mean(g)]))
    held += low[0] <= 0 <= high[0]
  assert 48 <= held <= 60
