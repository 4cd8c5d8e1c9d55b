"""What a few seeds allow one to say: lines through points, and intervals by resampling the seeds."""

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 2000


def interval(
  groups: Sequence, statistic: Callable[[list], np.ndarray], share: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
  """Percentile bootstrap: the groups (one a seed, say) are drawn anew with replacement, always alike.

  Not numbers for fewer than two groups; with three or four it is known to be too narrow.
  """
  if len(groups) < 2:
    return (np.full_like(statistic(list(groups)), np.nan),) * 2
  rng = np.random.default_rng(0)
  draws = rng.integers(len(groups), size=(RESAMPLES, len(groups)))
  values = np.stack([statistic([groups[i] for i in draw]) for draw in draws])
  return tuple(np.nanquantile(values, ((1 - share) / 2, (1 + share) / 2), axis=0))


def line(points: Sequence[tuple[float, float]]) -> np.ndarray:
  """Least squares y = intercept + slope·x: (intercept, slope)."""
  x, y = np.array(points, float).T
  if np.ptp(x) == 0:
    return np.array([np.mean(y), np.nan])
  slope, intercept = np.polyfit(x, y, 1)
  return np.array([intercept, slope])


def explained(points: Sequence[tuple[float, float]], coefficients) -> float:
  """R² of a line."""
  x, y = np.array(points, float).T
  left = y - coefficients[0] - coefficients[1] * x
  return float(1 - np.sum(left**2) / max(np.sum((y - y.mean()) ** 2), 1e-300))
