"""A law fitted to whole accuracy curves: the size at which half of the facts are known, as a formula in N and R.

The fraction of its N·R queries that a model with d dimensions answers right is beta-binomial, with mean
(1 − λ)·σ((log d − log d₅₀)/w); the lapse λ allows for wide models that training leaves short of all facts. Queries to one
model are not independent, so the seeds are the unit: the overdispersion is fitted together with the law.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.optimize
from scipy.special import betaln, expit, gammaln

from experiments.harness.findings import Finding, over_seeds
from experiments.harness.statistics import groups

SIZES: dict[str, Callable] = {  # size(N), which a law raises to the power q
  'log2': np.log2,
  'power': np.asarray,
  # the bits of a random bijection, per subject
  'bijections': lambda n: gammaln(np.asarray(n) + 1) / np.log(2) / n,
}
STARTS = 4
# Of the beta distribution; beyond it, the differences of betaln are rounding errors.
MAX_LOG_PRECISION = 14.0
SETTLED = 0.05  # largest relative change of a measured value when the training budget is doubled


@dataclasses.dataclass(frozen=True)
class Law:
  """d₅₀ = offset + scale · R^p · size(N)^q. `aic`: Akaike's information criterion of the fit; less is better."""

  size: str
  offset: float
  scale: float
  p: float
  q: float
  width: float
  lapse: float
  aic: float

  def half(self, subjects, relations):
    """d₅₀."""
    return self.offset + self.scale * relations**self.p * SIZES[self.size](subjects) ** self.q


def fit(table: pd.DataFrame, size: str = 'log2', q: float | None = None) -> Law:
  """The maximum-likelihood law for models with `subjects`, `relations`, `dim` and `accuracy`; `q` fixes that exponent."""
  n, r, d = (table[name].to_numpy(float) for name in ('subjects', 'relations', 'dim'))
  queries = n * r
  right = np.clip(table['accuracy'].to_numpy(float), 0, 1) * queries
  sizes, given = SIZES[size](n), q

  def unpacked(x):
    """Offset and scale are of the order of d; scale, width and precision are fitted as logarithms, so they are positive."""
    offset, scale, p, *rest = x
    power, width, precision, lapse = rest if given is None else (given, *rest)
    precision = np.minimum(precision, MAX_LOG_PRECISION)
    return offset, np.exp(scale), p, power, np.exp(width), np.exp(precision), expit(lapse)

  def loss(x):
    offset, scale, p, q, width, precision, lapse = unpacked(x)
    half = offset + scale * (r / r.max()) ** p * (sizes / sizes.max()) ** q
    if half.min() <= 0:
      return 1e12
    mean = np.clip((1 - lapse) * expit((np.log(d) - np.log(half)) / width), 1e-6, 1 - 1e-6)
    a, b = mean * precision, (1 - mean) * precision
    return -float(np.sum(betaln(right + a, queries - right + b) - betaln(a, b)))

  free = 7 - (given is not None)
  rough = min((_rough(loss, free, d, i) for i in range(STARTS)), key=lambda found: found.fun)
  # Simplex steps find the last digits.
  options = {'maxiter': 20_000, 'maxfev': 20_000, 'xatol': 1e-6, 'fatol': 1e-8, 'adaptive': True}
  best = scipy.optimize.minimize(loss, rough.x, method='Nelder-Mead', options=options)
  offset, scale, p, q, width, _, lapse = unpacked(best.x)
  scale = scale / r.max() ** p / sizes.max() ** q
  return Law(size, *map(float, (offset, scale, p, q, width, lapse, 2 * best.fun + 2 * free)))


def _rough(loss: Callable, free: int, d: np.ndarray, start: int):
  """Near to a minimum, from one of several random starts."""
  rng = np.random.default_rng(start)
  x = np.zeros(free)
  x[1], x[2:] = np.log(np.median(d)), rng.uniform(0.3, 1.5, free - 2)
  x[0], x[-3:] = rng.uniform(-1, 2), (-1.5, 3.0, -4.0)
  return scipy.optimize.minimize(loss, x, method='L-BFGS-B')


def at_largest(rows: pd.DataFrame, budget: str, *by: str) -> pd.DataFrame:
  """In every group by these columns, the rows with the largest budget."""
  return rows[rows[budget] == rows.groupby(list(by))[budget].transform('max')]


def last_change(rows: pd.DataFrame, budget: str, read: Callable) -> list[float]:
  """The relative change of what `read` returns, for every seed, at the last doubling of a budget; negative if it falls.

  `budget` names a column; the list is empty if it has only one value.
  """
  budgets = sorted(rows[budget].unique())[-2:]
  if len(budgets) < 2:
    return []
  before, after = (read(rows[rows[budget] == one]) for one in budgets)
  return [ratio - 1 for ratio in ratios(after, before)]


def settled(changes: Sequence[float]) -> bool:
  """Whether these changes at the last doubling of a budget are small, on average over the seeds, and known for each."""
  return len(changes) > 0 and bool(np.mean(np.abs(changes)) <= SETTLED)


def expected_change(text: str, changes: Sequence[float]) -> Iterator[Finding]:
  """The change of what `text` names at the last doubling of a budget, and the check that it is small in every seed."""
  yield from over_seeds(f'{text}, relative change', changes)
  size = np.abs(changes).tolist()
  yield from over_seeds(f'{text}, size of the relative change', size, at_most=SETTLED, check=True)


def above_relation_blind(score: pd.Series, choices: pd.Series) -> pd.Series:
  """0 for a model that is right about one of so many choices, as one can be that ignores the relation, and 1 if all are right.

  Where there is one choice, there is none to ignore, and scores stay as they are.
  """
  return score.where(choices == 1, (score * choices - 1) / (choices - 1))


def half_sizes(rows: pd.DataFrame, score: str = 'accuracy') -> dict[Any, float]:
  """d₅₀ of the curve of every seed; NaN where its sizes do not reach it."""
  return {seed: half_size(own['dim'], own[score]) for (seed,), own in groups(rows, 'seed')}


def ratios(over: Mapping[Any, float], under: Mapping[Any, float]) -> list[float]:
  """One for every seed that both have."""
  return [over[seed] / under[seed] for seed in over if seed in under]


def at_half_sizes(rows: pd.DataFrame, what: str) -> dict:
  """For every seed what another curve of the same models is at d₅₀."""
  found = {}
  for (seed,), own in groups(rows, 'seed'):
    mean = own.groupby('dim')[what].mean()
    half = half_size(own['dim'], own['accuracy'])
    found[seed] = float(np.interp(np.log(half), np.log(mean.index.to_numpy(float)), mean))
  return found


def half_size(dims, accuracy) -> float:
  """The d at which a single curve crosses one half, log-linear between its points; nan if it does not cross."""
  mean = pd.Series(np.asarray(accuracy, float)).groupby(np.asarray(dims, float)).mean()
  x, y = np.log(mean.index.to_numpy()), mean.to_numpy()
  over = np.flatnonzero(y >= 0.5)
  if not len(over) or not over[0]:
    return np.nan
  i = over[0]
  return float(np.exp(np.interp(0.5, y[i - 1 : i + 1], x[i - 1 : i + 1])))
