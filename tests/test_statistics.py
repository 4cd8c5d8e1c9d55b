"""Confidence intervals contain the truth about as often as they claim."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from experiments.harness import statistics


def coverage(interval, truth, draws) -> float:
  hits = [low <= truth <= high for low, high in map(interval, draws)]
  return float(np.mean(hits))


def test_the_interval_of_a_mean_covers_it():
  """Student's t interval of five values covers .95; resampling them, as is often done, would cover .84."""
  rng = np.random.default_rng(0)
  draws = rng.standard_normal((4000, 5)) + 3
  assert 0.94 < coverage(statistics.mean_interval, 3, draws) < 0.96

  def resampled(values):
    means = rng.choice(values, (400, 5)).mean(axis=1)
    return np.quantile(means, (0.025, 0.975))

  assert coverage(resampled, 3, draws[:1000]) < 0.88


def test_the_interval_of_a_slope_fitted_to_all_seeds_covers_it():
  """Each sample is a seed: a line whose points share the seed's error of the slope."""
  rng, x = np.random.default_rng(1), np.arange(6.0)
  slope = lambda seeds: scipy.stats.linregress(np.tile(x, len(seeds)), np.concatenate(seeds)).slope
  draws = [
    [2 * x + rng.standard_normal() * x + 0.1 * rng.standard_normal(6) for _ in range(6)]
    for _ in range(600)
  ]
  assert 0.92 < coverage(lambda seeds: statistics.jackknife(seeds, slope), 2, draws) < 0.98


@pytest.mark.parametrize('values', [[0.6], [0.7, 0.7, 0.7], [np.nan, 1.0], []])
def test_no_interval_where_there_is_nothing_to_say(values):
  assert np.isnan(statistics.mean_interval(values)).all()


def test_a_group_in_which_a_seed_found_nothing_has_no_mean():
  table = pd.DataFrame({
    'dim': [1, 1, 2, 2], 'value': [1.0, np.nan, 1, 2],
  })  # fmt: skip
  row = statistics.summarize(table, 'dim').to_dict('records')[0]
  assert row['seeds'] == 2 and np.isnan(row['value'])


def test_how_likely_values_would_be_at_the_bound():
  draws = np.random.default_rng(0).normal(0.9, 0.05, (4000, 5))
  ps = np.array([statistics.p_value(values, 0.9, None) for values in draws])
  for level in (0.05, 0.5):  # at a true mean equal to the bound, p is uniform
    assert abs((ps < level).mean() - level) < 0.03
  assert statistics.p_value([0.95, 0.96, 0.97], 0.9, 1.0) == pytest.approx(
    max(
      statistics.p_value([0.95, 0.96, 0.97], 0.9, None),
      statistics.p_value([0.03, 0.04, 0.05], 0.0, None),
    )
  )
  alike = [statistics.p_value([1.0] * n, 0.95, None) for n in (5, 6)]
  assert 0 < alike[1] < alike[0] < 1e-4  # no spread does not mean certainty
  assert statistics.p_value([0.9] * 5, 0.95, None) > 0.999
  assert statistics.p_value([np.nan, 1.0], 0.95, None) == 1
  assert np.isnan(statistics.p_value([1.0], 0.95, None)) and np.isnan(
    statistics.p_value([1, 1], None, None)
  )


def test_what_a_p_is_worth_among_several():
  assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
  assert statistics.holm([0.5, 0.9]) == [1.0, 1.0] and statistics.holm([]) == []
  assert statistics.holm([0.01, float('nan'), 0.2]) == pytest.approx(
    [0.03, 1.0, 0.4]
  )  # undefined is no evidence
