"""Two ways to do a thing, timed in turns, so that a busy machine slows both."""

import statistics
import time
from collections.abc import Callable

ROUNDS = 5


def side_by_side(ours: Callable, theirs: Callable, rounds: int = ROUNDS) -> dict:
  """Median seconds of both, and the median of their ratio, after one unmeasured call of each."""
  ours(), theirs()
  pairs = []
  for _ in range(rounds):
    pairs.append((seconds(ours), seconds(theirs)))
  return {
    'ours_seconds': statistics.median(a for a, _ in pairs),
    'theirs_seconds': statistics.median(b for _, b in pairs),
    'ratio': statistics.median(b / a for a, b in pairs),
    'ratio_range': [min(b / a for a, b in pairs), max(b / a for a, b in pairs)],
    'rounds': rounds,
  }


def seconds(run: Callable) -> float:
  """What one call takes."""
  start = time.perf_counter()
  run()
  return time.perf_counter() - start
