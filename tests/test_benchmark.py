"""The benchmark: what is timed, and that both take turns."""

import pytest

from experiments import benchmark
from experiments.harness import timing


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
