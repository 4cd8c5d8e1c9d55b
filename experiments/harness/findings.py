"""What a claim comes to: one number with its interval over seeds, its control, and where it would hold."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from experiments.harness import statistics

CHECK = 'check'
COLUMNS = ('what', 'mean', '95% interval', 'seeds', 'controls', 'expected', 'holds')


@dataclasses.dataclass(frozen=True)
class Finding:
  """The mean over `seeds`, its 95% interval, and the range in which it bears the claim out.

  `claim`: which one, where an experiment measures several; `CHECK` where it is a measurement's own test, as on
  constructed models or of facts that had to be learned first, and bears on none.
  """

  what: str
  value: float
  low: float
  high: float
  seeds: int
  least: float | None = None
  most: float | None = None
  control: str = ''
  claim: str = ''

  @property
  def expected(self) -> str:
    bounds = (('≥', self.least), ('≤', self.most))
    return ' and '.join(f'{sign} {bound:.4g}' for sign, bound in bounds if bound is not None)

  @property
  def interval(self) -> str:
    return '' if np.isnan(self.low) else f'{self.low:.3g} to {self.high:.3g}'

  @property
  def cells(self) -> tuple[str, ...]:
    """Its row in a table of `COLUMNS`."""
    holds = {None: '', True: 'yes', False: 'no'}[self.holds]
    holds += ' ~' * self.unsure + ' (check)' * bool(holds and self.claim == CHECK)
    value, seeds = f'{self.value:.3g}', f'{self.seeds}'
    return self.what, value, self.interval, seeds, self.control, self.expected, holds

  @property
  def holds(self) -> bool | None:
    """None: nothing was expected."""
    if self.least is None and self.most is None:
      return None
    low, high = (x if x is not None else i * np.inf for i, x in ((-1, self.least), (1, self.most)))
    return bool(low <= self.value <= high)

  @property
  def unsure(self) -> bool:
    """A bound lies within the interval: other seeds might have said otherwise."""
    bounds = (bound for bound in (self.least, self.most) if bound is not None)
    return any(self.low < bound < self.high for bound in bounds)


def only(records: Sequence[dict], **about) -> list[float]:
  """The values of the records that are so."""
  return [r['value'] for r in statistics.where(records, **about)]


def found(
  what: str, values: Sequence[float], least=None, most=None, claim: str = '', **controls
) -> list[Finding]:
  """A finding of a value per seed; `controls`: their values by name. Nothing where there are none."""
  if not len(values):
    return []
  mean = lambda sample: np.mean(sample, keepdims=True)
  low, high = (float(end[0]) for end in statistics.interval(values, mean))
  said = [
    f'{name.replace("_", " ")} {np.mean(own):.3g}' for name, own in controls.items() if len(own)
  ]
  mean_value, control = float(np.mean(values)), ', '.join(said)
  return [Finding(what, mean_value, low, high, len(values), least, most, control, claim)]


def verdict(findings: Sequence[Finding]) -> tuple[str, str]:
  """In a word and in short: of what was expected, how much was found."""
  expected = [f.holds for f in findings if f.holds is not None]
  if not expected:
    return 'none', 'not measured'
  if all(expected):
    return 'holds', 'holds'
  kind = 'part' if any(expected) else 'short'
  return kind, f'{sum(expected)} of {len(expected)} hold' if any(expected) else 'falls short'


def table(findings: Sequence[Finding]) -> str:
  """Markdown."""
  rows = [COLUMNS, ['---'] * len(COLUMNS), *(f.cells for f in findings)]
  bold = lambda cell: re.sub('^no\\b', '**no**', cell)
  return ''.join(f'| {" | ".join(map(bold, row))} |\n' for row in rows)
