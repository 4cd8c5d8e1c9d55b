"""Time two ways to do the same work against each other; time a command in its own process.

`pieces`: how many pieces of the work one call of each does; the seconds are per piece.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np


def in_turns(ours: Callable, theirs: Callable, rounds: int = 5, pieces=(1, 1)) -> dict:
  """Time both alternately, `rounds` times, after one unmeasured call of each: median seconds per piece, and the median and
  range over rounds of theirs / ours."""
  ours(), theirs()
  pairs_Rx2 = np.array([(seconds(ours), seconds(theirs)) for _ in range(rounds)]) / pieces
  ratio_R = pairs_Rx2[:, 1] / pairs_Rx2[:, 0]
  ours, theirs = np.median(pairs_Rx2, axis=0).tolist()
  return {
    'ours_seconds': ours, 'theirs_seconds': theirs, 'ratio': float(np.median(ratio_R)),
    'ratio_range': [float(ratio_R.min()), float(ratio_R.max())], 'rounds': rounds,
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
