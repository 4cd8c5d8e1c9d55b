"""A law fitted to whole accuracy curves: the size at which half of the facts are known, as a formula in N and R.

The fraction of its N·R queries that a model with d dimensions answers right is beta-binomial, with mean
(1 − λ)·σ((log d − log d₅₀)/w); the lapse λ allows for wide models that training leaves short of all facts. Queries to one
model are not independent, so the seeds are the unit: the overdispersion is fitted together with the law.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.optimize
from scipy.special import betaln, expit, gammaln

from experiments.harness.findings import Finding, of_all_seeds, over_seeds

SIZES: dict[str, Callable] = {  # size(N), which a law raises to the power q
  'log2': np.log2,
  'power': np.asarray,
  # the bits of a random bijection, per subject
  'bijections': lambda n: gammaln(np.asarray(n) + 1) / np.log(2) / n,
}
STARTS = 4
# Of the beta distribution; beyond it, the differences of betaln are rounding errors.
MAX_LOG_PRECISION = 14.0


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


def fit_power(table: pd.DataFrame, size: str = 'log2', q: float | None = None) -> Law:
  """The law without an offset for the `half_size` of every row, by least squares of its logarithm."""
  n, r, half = (
    np.log(table[name].to_numpy(float)) for name in ('subjects', 'relations', 'half_size')
  )
  sizes = np.log(SIZES[size](np.exp(n)))
  terms = [np.ones(len(r)), r, *([sizes] if q is None else [])]
  wanted = half if q is None else half - q * sizes
  found, *_ = np.linalg.lstsq(np.stack(terms, axis=1), wanted)
  error = wanted - found @ np.stack(terms)
  aic = len(half) * np.log(np.mean(error**2)) + 2 * len(terms)
  power = found[2] if q is None else q
  fitted = np.exp(found[0]), found[1], power, np.nan, np.nan, aic
  return Law(size, 0.0, *map(float, fitted))


def _rough(loss: Callable, free: int, d: np.ndarray, start: int):
  """Near to a minimum, from one of several random starts."""
  rng = np.random.default_rng(start)
  x = np.zeros(free)
  x[1], x[2:] = np.log(np.median(d)), rng.uniform(0.3, 1.5, free - 2)
  x[0], x[-3:] = rng.uniform(-1, 2), (-1.5, 3.0, -4.0)
  return scipy.optimize.minimize(loss, x, method='L-BFGS-B')


class Fits:
  """Laws fitted to the rows of all units, or of some; each fit is made once. `unit`: the column that names what is
  drawn independently, a seed or a size."""

  def __init__(self, table: pd.DataFrame, fit: Callable[..., Law], unit: str = 'seed'):
    self.units = table[unit].unique().tolist()
    of_units = lambda units: table[table[unit].isin(units)]
    self._fit = functools.cache(lambda units, size, q: fit(of_units(units), size, q))

  def __call__(
    self, size: str = 'log2', q: float | None = None, units: Sequence | None = None
  ) -> Law:
    return self._fit(tuple(sorted(units or self.units)), size, q)

  def left_out(self) -> list[list]:
    """All units but one, for each."""
    return [[unit for unit in self.units if unit != one] for one in self.units]


def exponents(fits: Fits, text: str, *bounds) -> Iterator[Finding]:
  """q and p of all units together, and q with the bits of a bijection in place of log₂N. `bounds`: of q."""
  units, size = fits.units, 'bijections'
  yield of_all_seeds(f'{text}: q', units, lambda some: fits(units=some).q, *bounds)
  yield of_all_seeds(f'{text}: p', units, lambda some: fits(units=some).p)
  of_bits = lambda some: fits(size, units=some).q
  yield of_all_seeds(f'{text}: q of log₂(N!)/N in place of log₂N', units, of_bits)


def aic_increases(fits: Fits, text: str, alternatives: Mapping) -> Iterator[Finding]:
  """By how much alternatives to (log₂N)^q, each a size and its q, fit worse."""
  for name, (size, q) in alternatives.items():
    more = fits(size, q).aic - fits().aic
    yield from over_seeds(f'{text}: AIC increase if {name} replaces (log₂N)^q', [more])
