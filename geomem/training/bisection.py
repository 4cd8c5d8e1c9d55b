"""The smallest or largest size at which training still succeeds, for many cases at once.

Every case (N, R, a seed) halves an interval of its own. What all of them ask next is one round,
trained together; what has been tried is never tried again. The size found passed and its neighbour
did not: where success is not monotone in size, this is one such border, and the probes say so.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence

from geomem.errors import InputError


@dataclasses.dataclass(frozen=True)
class Range:
  """Where to search: sizes `least` to `most`, first at `first`; `larger_is_easier`: true of d and F, not of N.

  Neighbours closer than `resolution` (a fraction of the size) are not distinguished.
  """

  least: int
  most: int
  first: int
  larger_is_easier: bool = True
  resolution: float = 0.0

  def __post_init__(self) -> None:
    if not 1 <= self.least <= self.first <= self.most:
      raise InputError(
        f'sizes from {self.least} to {self.most}, first {self.first}: they must be at least 1, in order'
      )


@dataclasses.dataclass
class Bisection:
  """One case: `passed` is the hardest size that succeeded so far, `failed` the easiest that did not."""

  range: Range
  passed: int | None = None
  failed: int | None = None
  asked: int = 0

  def ask(self) -> int | None:
    """The next size to try; None when the border is known, or lies outside the range."""
    r = self.range
    if self.passed is None and self.failed is None:
      return r.first
    if self.passed is not None and self.failed is not None:
      between = abs(self.passed - self.failed)
      return (
        (self.passed + self.failed) // 2 if between > max(1, r.resolution * self.passed) else None
      )
    at = self.failed if self.passed is None else self.passed
    up = (self.passed is None) == r.larger_is_easier
    stride = max(1, r.first // 8) * 2 ** max(0, self.asked - 2)  # first guesses tend to be near
    there = min(r.most, at + stride) if up else max(r.least, at - stride)
    return there if there != at else None

  def tell(self, size: int, passed: bool) -> None:
    if passed:
      self.passed = size
    else:
      self.failed = size
    self.asked += 1

  @property
  def found(self) -> int | None:
    """The hardest size that succeeds; None if no size in the range did."""
    return self.passed


def search(
  ranges: Mapping[Hashable, Range],
  attempt: Callable[[Sequence[tuple[Hashable, int]]], Sequence[bool]],
) -> dict[Hashable, Bisection]:
  """Halve all cases together: `attempt` trains a round of (case, size) and says which succeeded."""
  cases = {case: Bisection(range) for case, range in ranges.items()}
  while asked := [(case, size) for case, b in cases.items() if (size := b.ask()) is not None]:
    for (case, size), passed in zip(asked, attempt(asked), strict=True):
      cases[case].tell(size, bool(passed))
  return cases
