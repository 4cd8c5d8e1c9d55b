"""Two ways to do the same work, timed beside each other; a command in a process of its own."""

import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
from jax.experimental.compilation_cache import compilation_cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """What is done, and how: a call of ours does `ours_count` pieces of the work, one of theirs `theirs_count`."""

  peer: str
  sizes: str
  ours: Callable
  theirs: Callable
  ours_count: float = 1
  theirs_count: float = 1

  def in_turns(self, rounds: int = 5) -> dict:
    """Timed so many times in turns, after one unmeasured call of each."""
    self.ours(), self.theirs()
    return self._record([(seconds(self.ours), seconds(self.theirs)) for _ in range(rounds)])

  def cold(self) -> dict:
    """With all compiling, ours before theirs and after; the record has what both found."""
    before, found = _cold(self.ours)
    taken, theirs = _cold(self.theirs)
    after, _ = _cold(self.ours)
    found = {f'ours_{name}': value for name, value in found.items()}
    theirs = {f'theirs_{name}': value for name, value in theirs.items()}
    return self._record([(before, taken), (after, taken)]) | found | theirs

  def _record(self, pairs: list[tuple[float, float]]) -> dict:
    """Median seconds for one piece; the median and the range of theirs / ours in a round."""
    pairs = [(ours / self.ours_count, theirs / self.theirs_count) for ours, theirs in pairs]
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = [b / a for a, b in pairs]
    return {
      'peer': self.peer, 'sizes': self.sizes, 'ours_seconds': ours, 'theirs_seconds': theirs,
      'ratio': statistics.median(ratios), 'ratio_range': [min(ratios), max(ratios)], 'rounds': len(pairs),
    }  # fmt: skip


def seconds(run: Callable) -> float:
  """What one call takes."""
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def _cold(work: Callable) -> tuple[float, dict]:
  """Seconds, and what the work finds, nothing compiled before and nothing read from a cache."""
  jax.clear_caches()
  cached, found = jax.config.jax_enable_compilation_cache, {}  # type: ignore[attr-defined]
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()  # JAX asks once whether there is one
  try:
    return seconds(lambda: found.update(work())), found
  finally:
    jax.config.update('jax_enable_compilation_cache', cached)
    compilation_cache.reset_cache()


def own_process(*command: str) -> tuple[str, float, float]:
  """What Python prints in a process of its own, its seconds, and the peak of its memory in gigabytes."""
  start = time.perf_counter()
  with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode:
    raise SystemExit(f'{" ".join(command)} ended with status {process.returncode}')
  taken, unit = time.perf_counter() - start, 1 if sys.platform == 'darwin' else 1024
  return printed, taken, usage.ru_maxrss * unit / 1e9
