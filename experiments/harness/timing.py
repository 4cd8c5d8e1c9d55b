"""Time two ways to do the same work against each other; time a command in its own process.

`pieces`: how many pieces of the work one call of each does; the seconds are per piece.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache


def in_turns(ours: Callable, theirs: Callable, rounds: int = 5, pieces=(1, 1)) -> dict:
  """Time both alternately, `rounds` times, after one unmeasured call of each."""
  ours(), theirs()
  return _record([(seconds(ours), seconds(theirs)) for _ in range(rounds)], pieces)


def cold(ours: Callable, theirs: Callable, pieces=(1, 1)) -> dict:
  """Time both including all compilation, ours before theirs and after; the record has the results of both."""
  (before, found), (taken, their), (after, _) = map(_cold, (ours, theirs, ours))
  sides = {'ours': found, 'theirs': their}
  return _record([(before, taken), (after, taken)], pieces) | {
    f'{side}_{name}': value for side, own in sides.items() for name, value in own.items()
  }


def _record(pairs: list[tuple[float, float]], pieces) -> dict:
  """Median seconds per piece; the median and range over rounds of theirs / ours."""
  pairs_Rx2 = np.array(pairs) / pieces
  ratio_R = pairs_Rx2[:, 1] / pairs_Rx2[:, 0]
  ours, theirs = np.median(pairs_Rx2, axis=0).tolist()
  return {
    'ours_seconds': ours, 'theirs_seconds': theirs, 'ratio': float(np.median(ratio_R)),
    'ratio_range': [float(ratio_R.min()), float(ratio_R.max())], 'rounds': len(pairs),
  }  # fmt: skip


def seconds(run: Callable) -> float:
  """The seconds that one call takes."""
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def least_seconds(run: Callable, calls: int) -> float:
  """The seconds of the fastest of `calls` calls, after one that compiles."""
  run()
  return min(seconds(run) for _ in range(calls))


def _cold(work: Callable) -> tuple[float, dict]:
  """The seconds that the work takes, and its results, with nothing compiled before and no compilation cache."""
  jax.clear_caches()
  cached, found = jax.config.jax_enable_compilation_cache, {}  # type: ignore[attr-defined]
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()  # JAX checks only once whether there is one
  try:
    return seconds(lambda: found.update(work())), found
  finally:
    jax.config.update('jax_enable_compilation_cache', cached)
    compilation_cache.reset_cache()


# A process inherits the peak memory of its parent, so a small process starts the command.
_MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.PIPE, text=True)
taken, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([done.returncode, done.stdout, taken, peak]))
"""


def own_process(*command: str) -> tuple[str, float, float]:
  """Run Python in its own process: what it prints, its seconds, and its peak memory in gigabytes."""
  record = subprocess.run(
    [sys.executable, '-c', _MEASURE, *command], stdout=subprocess.PIPE, text=True, check=True
  )
  status, printed, taken, peak = json.loads(record.stdout)
  if status:
    raise SystemExit(f'{" ".join(command)} ended with status {status}')
  return printed, taken, peak * (1 if sys.platform == 'darwin' else 1024) / 1e9
