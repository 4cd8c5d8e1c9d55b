"""Statistics over a few seeds: intervals for means, and for what is fitted to all seeds together."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import ArrayLike

NO_INTERVAL = float('nan'), float('nan')
RESOLUTION = 1 / 512  # one answer, for 256 subjects with two relations


def select(table: pd.DataFrame, **about) -> pd.DataFrame:
  """The rows with these values; None means that the field does not apply."""
  keep = np.ones(len(table), bool)
  for name, value in about.items():
    keep &= (table[name].isna() if value is None else table[name] == value).to_numpy(bool)
  return table[keep]


def values(table: pd.DataFrame, **about) -> list[float]:
  """The `value` column of the rows with these values."""
  return select(table, **about)['value'].tolist()


def parse_score_name(key: str) -> dict[str, str | None]:
  """The measurement and the control of a score named 'measurement|control', or only 'measurement'."""
  measurement, _, control = key.partition('|')
  return {'measurement': measurement, 'control': control or None}


def groups(table: pd.DataFrame, *by: str):
  """(values of the columns, rows) of every group, in order of appearance; missing values form a group too."""
  for keys, rows in table.groupby(list(by), sort=False, dropna=False):
    yield tuple(None if pd.isna(key) else key for key in keys), rows


def mean_interval(values: ArrayLike) -> tuple[float, float]:
  """The 95% interval, by Student's t. NaN for fewer than two values, or if all agree: their spread says nothing of other seeds."""
  x = np.asarray(values, float)
  if len(x) < 2 or not np.isfinite(x).all() or np.ptp(x) == 0:
    return NO_INTERVAL
  low, high = scipy.stats.t.interval(0.95, len(x) - 1, x.mean(), scipy.stats.sem(x))
  return float(low), float(high)


def p_value(values: ArrayLike, at_least: float | None, at_most: float | None) -> float:
  """The probability of a mean this far beyond the bound if the true mean were at it; Student's t, the larger of two bounds.

  If all seeds agree there is no spread to judge by: then one of them is taken to be nearer to the bound by
  `RESOLUTION`. NaN without a bound, and for a single seed.
  """
  x = np.asarray(values, float)
  beyond = [sign * (x - at) for sign, at in ((1, at_least), (-1, at_most)) if at is not None]
  if len(x) < 2 or not beyond:
    return np.nan
  if not np.isfinite(x).all():
    return 1.0
  if np.ptp(x) == 0:
    beyond = [b - RESOLUTION * (np.arange(len(b)) == 0) for b in beyond]
  return float(max(scipy.stats.ttest_1samp(b, 0, alternative='greater').pvalue for b in beyond))


def holm(ps: Sequence[float]) -> list[float]:
  """Holm's correction: each p, adjusted for the number of tests. One that is undefined counts as 1."""
  p_T = np.nan_to_num(np.asarray(ps, float), nan=1.0)
  order = np.argsort(p_T)
  raised = np.minimum(1.0, p_T[order] * np.arange(len(ps), 0, -1))
  return np.maximum.accumulate(raised)[np.argsort(order)].tolist()


def jackknife(samples: Sequence, statistic: Callable[[list], float]) -> tuple[float, float]:
  """The 95% interval of what is fitted to all samples (one per seed) together, by leaving out each in turn."""
  n, whole = len(samples), statistic(list(samples))
  if n < 2 or not np.isfinite(whole):
    return NO_INTERVAL
  rest = [statistic([*samples[:i], *samples[i + 1 :]]) for i in range(n)]
  low, high = mean_interval(n * whole - (n - 1) * np.array(rest))
  return whole - (high - low) / 2, whole + (high - low) / 2


def summarize(table: pd.DataFrame, *by: str) -> pd.DataFrame:
  """Seeds, mean, interval and range of the value in every group; no mean if a seed found nothing."""
  rows = []
  for keys, group in groups(table, *by):
    value = group['value'].astype(float)
    mean, least, most = (value.agg(name, skipna=False) for name in ('mean', 'min', 'max'))
    rows.append((*keys, len(value), mean, *mean_interval(value), least, most))
  return pd.DataFrame(rows, columns=[*by, 'seeds', 'value', 'low', 'high', 'least', 'most'])
