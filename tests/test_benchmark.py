"""The benchmark: what is timed, that both sides take turns, and what is written and drawn."""

import re
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from experiments import benchmark
from experiments.harness import peers, plotting, records, timing

ROOT = Path(__file__).parents[1]


@pytest.fixture
def order(monkeypatch):
  """The list of the work done, whose length is the time that the patched clock shows."""
  order = []
  monkeypatch.setattr(timing.time, 'perf_counter', lambda: float(len(order)))
  return order


def test_benchmark_takes_turns_and_reports_the_ratio(order):
  theirs = lambda: order.extend(['theirs'] * 3)
  got = timing.in_turns(lambda: order.append('ours'), theirs, 3)
  assert [name for i, name in enumerate(order) if i == 0 or name != order[i - 1]] == [
    'ours',
    'theirs',
  ] * 4
  assert (got['ours_seconds'], got['theirs_seconds'], got['ratio']) == (1, 3, 3)
  assert (got['ratio_range'], got['rounds']) == ([3, 3], 3)


def test_exhaustive_benchmark_counts_every_logit():
  (record,) = benchmark.exhaustive(50, 2, rounds=1)
  assert record['logits'] == 50 * 2 * 50
  assert record['ratio'] == pytest.approx(record['theirs_seconds'] / record['ours_seconds'])


def test_certificate_benchmark_runs_the_command():
  (record,) = benchmark.certificate(100, 2)
  assert (record['queries'], record['accuracy'], record['min_margin']) == (200, 1, 4)
  assert 0.05 < record['peak_gigabytes'] < 4


def test_peak_of_memory_is_the_commands_own():
  held = np.ones(10**8)  # .8 GB
  assert 0.005 < timing.own_process('-c', 'pass')[2] < 0.1 < held.nbytes / 1e9


def test_a_process_that_fails_is_no_measurement():
  with pytest.raises(SystemExit, match='-c raise SystemExit.3. ended with status 3'):
    timing.own_process('-c', 'raise SystemExit(3)')


def test_memory_benchmark_takes_a_step():
  (record,) = benchmark.memory(16, 2, 4)
  assert 0.05 < record['peak_gigabytes'] < 4 and record['loss'] == pytest.approx(np.log(16), abs=1)


@pytest.mark.parametrize('name', ['sweep', 'products', *['batches'] * bool(peers.TORCH)])
def test_training_is_measured(name):
  smaller = {'shapes': [(32, 32, 32)]} if name == 'products' else {}
  found = list(benchmark.MEASUREMENTS[name](**benchmark.SIZES['smoke'][name], **smaller))
  assert all(r['ours_seconds'] > 0 for r in found if 'ours_seconds' in r)
  if name == 'products':
    assert found[0]['flops_per_second'] > 0
  else:
    low, high = found[0]['ratio_range']
    assert low <= found[0]['ratio'] <= high


def test_the_binary_writes_what_it_measures_and_draws_it_again(tmp_path, capsys):
  run = lambda *flags: benchmark.STUDY.main(['benchmark', f'--workdir={tmp_path}', *flags])
  run('--scale=smoke', '--only=step', '--only=scaling')
  found = records.read(tmp_path)
  assert found.table['measurement'].tolist() == ['step', *['scaling'] * 2, 'scaling_exponent']
  assert found.about['command'].endswith('--scale=smoke --only=step --only=scaling')
  step, one, other, fit = found.table.to_dict('records')
  slope = np.log(other['ours_seconds'] / one['ours_seconds']) / np.log(2)
  assert fit['exponent'] == pytest.approx(slope) and step['ours_seconds'] > 0
  assert step['ratio_range'][0] <= step['ratio'] <= step['ratio_range'][1]
  drawn = (tmp_path / 'benchmark.png').read_bytes()
  (tmp_path / 'benchmark.png').unlink()
  run('--redraw')
  assert (tmp_path / 'benchmark.png').read_bytes() == drawn
  told = capsys.readouterr().out
  assert 'N=16, R=2, d=4' in told and re.search(r'scaling_exponent +dim +-?\d', told)


def test_what_was_measured_before_it_ended_can_be_drawn(tmp_path, monkeypatch):
  monkeypatch.setitem(benchmark.MEASUREMENTS, 'memory', lambda **_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    benchmark.STUDY.run('smoke', tmp_path, only=('scaling', 'memory'))
  benchmark.STUDY.main(['benchmark', f'--workdir={tmp_path}', '--redraw'])
  assert (tmp_path / 'benchmark.png').exists()


def test_the_figure_has_the_exponents_of_the_committed_records(tmp_path):
  shutil.copy(ROOT / 'docs/results/benchmark_cpu.json', tmp_path / records.FILE)
  with matplotlib.rc_context(plotting.STYLE):
    figure = benchmark.plot(records.read(tmp_path).table)
  titles = [ax.get_title() for ax in figure.axes]
  assert titles == [f'exponent {value}' for value in ('-0.09', '1.03', '0.80', '0.73', '0.04')]
  assert benchmark.plot(records.read(tmp_path).table[:9]) is None
