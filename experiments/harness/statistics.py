"""What a few seeds allow one to say: lines through points, and intervals by resampling the seeds."""

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 2000


def groups(records: Sequence[dict], *names: str) -> list[list[dict]]:
  """Records that agree in these fields, side by side, in the order in which they come."""
  together = {}
  for record in records:
    together.setdefault(tuple(record[name] for name in names), []).append(record)
  return list(together.values())


def where(records: Sequence[dict], **about) -> list[dict]:
  """The records that are so."""
  return [r for r in records if all(r.get(name) == value for name, value in about.items())]


def is_border(record: dict) -> bool:
  """Of a search: something was found, and smaller was tried in vain."""
  return record['value'] is not None and not record.get('floor')


def complete(records: Sequence[dict], *names: str, bordered: bool = False) -> list[dict]:
  """Records of the groups in which every seed found something: a mean over the lucky ones would be too good.

  `bordered`: and none found the smallest size of all, which is no threshold.
  """
  good = is_border if bordered else lambda r: r['value'] is not None
  whole = [g for g in groups(records, *names) if all(map(good, g))]
  return [record for group in whole for record in group]


def spread(group: Sequence[dict], name: str) -> dict:
  """The mean of a field over a group, under its own name, and its range."""
  values = [record[name] for record in group]
  least, most = np.min(values).item(), np.max(values).item()  # not a number if any is none
  return {name: float(np.mean(values)), 'least': least, 'most': most}


def if_all(group: Sequence[dict], *fields: str) -> dict:
  """How many sought and how many found; the value's mean and range and the means of the fields, if all found."""
  found = [r for r in group if r['value'] is not None]
  row = {'seeds': len(group), 'found': len(found), 'value': None, **dict.fromkeys(fields)}
  if len(found) < len(group):
    return row
  means = {
    name: float(np.mean([r[name] for r in group]))
    for name in fields
    if group[0].get(name) is not None
  }
  return row | spread(group, 'value') | means


def over_seeds(records: Sequence[dict], *names: str, of: str = 'value') -> list[dict]:
  """A row for the records that agree in these fields: how many, their mean and range."""
  return [
    {**group[0], 'seeds': len(group), **spread(group, of)} for group in groups(records, *names)
  ]


def interval(
  samples: Sequence, statistic: Callable[[list], np.ndarray], share: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
  """Percentile bootstrap: the samples (one per seed, say) are drawn anew with replacement, always alike.

  Not numbers for fewer than two, or where the statistic of all is none; with three or four it is known to be
  too narrow.
  """
  whole = statistic(list(samples))
  if len(samples) < 2 or not np.isfinite(whole).all():
    return (np.full_like(whole, np.nan),) * 2
  rng = np.random.default_rng(0)
  draws = rng.integers(len(samples), size=(RESAMPLES, len(samples)))
  values = np.stack([statistic([samples[i] for i in draw]) for draw in draws])
  return tuple(np.nanquantile(values, ((1 - share) / 2, (1 + share) / 2), axis=0))


def ratio(top_S, bottom_S, share: float = 0.95) -> dict[str, float]:
  """Σ top / Σ bottom over subjects, with the percentile bootstrap's interval, subjects drawn anew."""
  top_S, bottom_S = np.asarray(top_S, float), np.asarray(bottom_S, float)
  if bottom_S.sum() == 0:
    return dict.fromkeys(('value', 'low', 'high'), np.nan)
  draws = np.random.default_rng(0).integers(len(top_S), size=(RESAMPLES, len(top_S)))
  below = bottom_S[draws].sum(axis=1)
  values = top_S[draws].sum(axis=1)[below > 0] / below[below > 0]
  low, high = np.quantile(values, ((1 - share) / 2, (1 + share) / 2))
  return {'value': float(top_S.sum() / bottom_S.sum()), 'low': float(low), 'high': float(high)}


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
