"""Two ways to do the same work, timed beside each other; a command in a process of its own.

Of both ways `pieces` says how many pieces of the work one call does; the seconds are those of a piece.
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
  """Timed so many times in turns, after one unmeasured call of each."""
  ours(), theirs()
  return _record([(seconds(ours), seconds(theirs)) for _ in range(rounds)], pieces)


def cold(ours: Callable, theirs: Callable, pieces=(1, 1)) -> dict:
  """With all compiling, ours before theirs and after; the record has what both found."""
  (before, found), (taken, their), (after, _) = map(_cold, (ours, theirs, ours))
  sides = {'ours': found, 'theirs': their}
  return _record([(before, taken), (after, taken)], pieces) | {
    f'{side}_{name}': value for side, own in sides.items() for name, value in own.items()
  }


def _record(pairs: list[tuple[float, float]], pieces) -> dict:
  """Median seconds for one piece; the median and the range of theirs / ours in a round."""
  pairs_Rx2 = np.array(pairs) / pieces
  ratio_R = pairs_Rx2[:, 1] / pairs_Rx2[:, 0]
  ours, theirs = np.median(pairs_Rx2, axis=0).tolist()
  return {
    'ours_seconds': ours, 'theirs_seconds': theirs, 'ratio': float(np.median(ratio_R)),
    'ratio_range': [float(ratio_R.min()), float(ratio_R.max())], 'rounds': len(pairs),
  }  # fmt: skip


def seconds(run: Callable) -> float:
  """What one call takes."""
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def least_seconds(run: Callable, calls: int) -> float:
  """What the fastest of so many calls takes, after one that compiles."""
  run()
  return min(seconds(run) for _ in range(calls))


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


# A process starts with the peak of the one that it came from, so the command comes from one that is small.
_MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.PIPE, text=True)
taken, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([done.returncode, done.stdout, taken, peak]))
"""


def own_process(*command: str) -> tuple[str, float, float]:
  """What Python prints in a process of its own, its seconds, and the peak of its memory in gigabytes."""
  record = subprocess.run(
    [sys.executable, '-c', _MEASURE, *command], stdout=subprocess.PIPE, text=True, check=True
  )
  status, printed, taken, peak = json.loads(record.stdout)
  if status:
    raise SystemExit(f'{" ".join(command)} ended with status {status}')
  return printed, taken, peak * (1 if sys.platform == 'darwin' else 1024) / 1e9
