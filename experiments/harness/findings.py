"""Findings: a number with its interval over seeds, its controls, and the range in which it supports a claim."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats

from experiments.harness import statistics


@dataclasses.dataclass(frozen=True)
class Claim:
  """A statement, the paper's or ours: its name, what it says, and the sizes at which primary outcomes decide it."""

  name: str
  says: str
  sizes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Finding:
  """The mean over `seeds`, its 95% interval (nan: none), the range in which it supports the claim, the controls.

  `claim`: it bears on every claim whose name is a prefix of this; empty: on all claims of the study.
  `check`: a test of the measurement itself, for example on constructed models, or that the facts were learned first;
  it bears on no claim. `primary`: an outcome that decides the claim, named before the run. `p`: the probability of
  such values if the true mean were at the bound.
  """

  what: str
  value: float
  low: float
  high: float
  seeds: int
  at_least: float | None = None
  at_most: float | None = None
  claim: str = ''
  check: bool = False
  primary: bool = False
  p: float = float('nan')
  controls: dict[str, float] = dataclasses.field(default_factory=dict)

  @property
  def holds(self) -> bool | None:
    """None if nothing was expected."""
    if self.at_least is None and self.at_most is None:
      return None
    enough = self.at_least is None or self.value >= self.at_least
    return bool(enough and (self.at_most is None or self.value <= self.at_most))

  @property
  def unsure(self) -> bool:
    """Whether a bound lies within the interval: other seeds might have decided otherwise."""
    bounds = (bound for bound in (self.at_least, self.at_most) if bound is not None)
    return any(self.low < bound < self.high for bound in bounds)


def over_seeds(
  what: str, values: Sequence[float], at_least: float | None = None, at_most: float | None = None,
  claim: str = '', check: bool = False, primary: bool = False, **controls: Sequence[float],
) -> list[Finding]:  # fmt: skip
  """The finding for one value per seed, with the values of its controls by name; none if there are no values."""
  if not len(values):
    if primary:
      raise ValueError(f'{what}: nothing was measured, and it decides a claim')
    return []
  means = {
    name.replace('_', ' '): float(np.mean(own)) for name, own in controls.items() if len(own)
  }
  low, high = statistics.mean_interval(values)
  return [Finding(what, float(np.mean(values)), low, high, len(values), at_least, at_most,
                  claim, check, primary, statistics.p_value(values, at_least, at_most), means)]  # fmt: skip


def of_all_seeds(
  what: str, seeds: Sequence, statistic: Callable[[Sequence], float],
  at_least: float | None = None, at_most: float | None = None, primary: bool = False,
) -> Finding:  # fmt: skip
  """The finding for a statistic of all seeds together, with a jackknife over them; p is below .05 if the 95% interval
  is within the bounds."""
  value, (low, high) = statistic(seeds), statistics.jackknife(seeds, statistic)
  t, p = scipy.stats.t(max(1, len(seeds) - 1)), float('nan')
  if at_least is not None and at_most is not None:
    error = (high - low) / 2 / t.ppf(0.975)
    sides = [t.sf(side / error) for side in (value - at_least, at_most - value)]
    p = min(1.0, 2 * float(np.max(sides))) if np.isfinite(error) else 1.0
  return Finding(what, value, low, high, len(seeds), at_least, at_most, p=p, primary=primary)


def decisions(claims: Sequence[Claim], findings: Sequence[Finding]) -> list[dict]:
  """The verdict of the primary outcomes on every claim: the largest p of its bounds, with Holm's correction over the claims.

  A claim for which a size was not measured is open, and its p is 1.
  """
  rows: list[dict] = []
  for claim in (claim for claim in claims if claim.sizes):
    own = [f for f in of_claim(claim, findings) if f.primary]
    missing = [size for size in claim.sizes if not any(f'{size},' in f.what for f in own)]
    rows.append({
      'claim': claim.name, 'primary outcomes': len(own), 'within bounds': sum(bool(f.holds) for f in own),
      'not measured': '; '.join(missing), 'largest p': 1.0 if missing else float(np.max([f.p for f in own])),
    })  # fmt: skip
  corrected = statistics.holm([row['largest p'] for row in rows])
  for row, p in zip(rows, corrected, strict=True):
    decided = 'falls short'
    if row['within bounds'] == row['primary outcomes']:
      decided = 'stands' if p < 0.05 else 'unsure'
    row |= {'p after Holm': p, 'verdict': 'open' if row['not measured'] else decided}
  return rows


def of_claim(claim: Claim, findings: Sequence[Finding]) -> list[Finding]:
  """The findings that bear on a claim: a finding that names no claim bears on all claims of its study."""
  own = [f for f in findings if not f.check]
  return [f for f in own if not f.claim or f.claim.startswith(claim.name)]


def verdict(findings: Sequence[Finding]) -> tuple[str, str]:
  """A keyword and a short phrase: how many of the expectations hold."""
  expected = [f.holds for f in findings if f.holds is not None]
  if not expected:
    return 'none', 'nothing expected' if findings else 'not measured'
  if all(expected):
    return 'holds', 'holds'
  if any(expected):
    return 'part', f'{sum(expected)} of {len(expected)} hold'
  return 'short', f'none of {len(expected)} holds' if len(expected) > 1 else 'does not hold'
