"""Reproduce the paper: measure every claim, study by study, and write a report of the results.

  python -m experiments.reproduce
  python -m experiments.reproduce --only=laws --only=transfer
  python -m experiments.reproduce --scale=full
  python -m experiments.reproduce --list

Every study runs as by its own command, in WORKDIR/SCALE/NAME, with its output in log.txt there; on CPUs several run
at once, on separate cores. Finished studies are kept and skipped when the command is given again; interrupted ones are
resumed, or restarted if the code has changed; --again measures finished ones anew. With --minutes a study that takes
longer is interrupted, if it can be resumed. In the end experiments.report writes
report.html into WORKDIR/SCALE; claims that were not measured here are filled in from docs/results.
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.progress import BarColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from experiments import report
from experiments.harness import cli, machine, records, render, studies
from experiments.harness.study import Study
from geomem.errors import InputError
from geomem.saved import runs

MAX_PARALLEL = 4  # they take as many gigabytes, or more
Cores = set[int] | None  # None: all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(report.Options):
  only: Annotated[tuple[str, ...], 'Only this study, one of those that --list shows.'] = ()
  again: Annotated[bool, 'Measure finished studies anew.'] = False
  minutes: Annotated[
    float | None,
    'Most minutes for a study that can be resumed; a step of it that takes longer never ends.',
    0,
  ] = None
  list: bool = False


def chosen(only: Sequence[str]) -> list[Study]:
  """The requested studies; without a request all, except those whose requirements are missing, which are named."""
  found = []
  for study in map(studies.load, only or studies.NAMES):
    reason = study.missing()
    if reason and only:
      raise InputError(f'{study.name}: {reason}')
    if reason:
      cli.warn(f'{study.name} is left out: {reason}')
    else:
      found.append(study)
  return found


def finished(study: Study, folder: Path, again: bool) -> float | None:
  """The seconds that a study took, if it is done and not to be measured again; a run that cannot be resumed is removed."""
  if before := report.result_in(study, folder):
    if not again:
      if not before.of_this_code:
        cli.warn(f'{study.name} was measured with different code; --again measures it again')
      return before.seconds
  else:
    begun = [*folder.glob('config.json'), *folder.glob('*/config.json')]
    codes = {json.loads(path.read_text(encoding='utf-8')).get('code') for path in begun}
    if codes <= {machine.code_hash()}:
      return None
    cli.warn(f'{study.name} was started with different code, and starts again')
  with runs.lock(folder):  # fails if a process is at work there
    shutil.rmtree(folder)
  return None


class RunningStudy:
  """A study in progress, run by its own command on some of the cores; it resumes where it stopped."""

  def __init__(self, study: Study, scale: str, folder: Path, cores: Cores):
    self.study, self.folder, self.cores, self.begun = study, folder, cores, time.monotonic()
    self.cut_short = False
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'log.txt', 'a', encoding='utf-8') as log:
      command = [sys.executable, *study.command(scale)[1:], f'--workdir={folder}']
      self.process = subprocess.Popen(command, stdout=log, stderr=log)
    if cores:
      os.sched_setaffinity(self.process.pid, cores)  # before it has asked how many there are

  def limit(self, minutes: float):
    """End it, at any moment, once it has taken so many minutes, if it can be resumed."""
    over = time.monotonic() - self.begun > 60 * minutes
    if over and self.study.resumes and not self.cut_short:  # it is told once
      self.cut_short = True
      self.process.terminate()

  def minutes_left(self, pace: float) -> float:
    """The minutes left of its `minutes`, each of which takes `pace` here; never 0 until it ends, since it may take longer."""
    spent = (time.monotonic() - self.begun) / 60
    return max(0.05 * self.study.minutes, self.study.minutes - spent / pace)

  def stop(self) -> float:
    """Wait for its end; return the seconds of all tries, which are kept."""
    self.process.wait()
    path = self.folder / report.RUN_STATUS
    before = json.loads(path.read_text(encoding='utf-8'))['seconds'] if path.exists() else 0.0
    seconds = before + time.monotonic() - self.begun
    tries = {'seconds': seconds, 'finished': self.process.returncode == 0}
    records.write_text(path, json.dumps(tries))
    return seconds


def partition_cores(scale: str) -> list[Cores]:
  """The cores of each of the studies that run at once: an accelerator runs one, and so does the full preset.

  Half of a small sweep's time is compiling, on one core: two sweeps at once waste less of two cores.
  """
  if scale == 'full' or not hasattr(os, 'sched_setaffinity'):
    return [None]
  # In its own process, because asking takes hold of the device.
  ask = [sys.executable, '-c', 'import jax; print(jax.default_backend())']
  if subprocess.run(ask, capture_output=True, text=True).stdout.strip() != 'cpu':
    return [None]
  cores = sorted(os.sched_getaffinity(0))
  count = min(MAX_PARALLEL, len(cores))
  return [set(cores[i::count]) for i in range(count)]


def measure(
  asked: Sequence[Study], scale: str, folder: Path, cores: Sequence[Cores], again: bool = False,
  minutes: float = math.inf,
) -> list[str]:  # fmt: skip
  """Run what is not finished, the longest first; return the names of the studies that failed.

  A terminal shows in one line what runs, how much is done, the time taken and the time that may remain, by the pace of
  the finished studies. Only the laptop preset has a pace from the start, because its minutes are known.
  """
  waiting, free = sorted(asked, key=lambda study: -study.minutes), list(cores)
  running: list[RunningStudy] = []
  done: list[tuple[float, float]] = []  # minutes taken and `minutes`, per study
  failed: list[str] = []

  def say(study: Study, how: str, seconds: float):
    ended = len(asked) - len(waiting) - len(running)
    text = f'[{ended}/{len(asked)}] {study.name}: {how} ({render.duration(seconds)})'
    print(text, file=sys.stderr, flush=True)

  for study in asked:
    if (seconds := finished(study, folder / study.name, again)) is not None:
      waiting.remove(study)
      say(study, 'finished before, kept', seconds)
  total = sum(study.minutes for study in waiting)
  terminal = Console(stderr=True)
  columns = '{task.description}', BarColumn(20), TimeElapsedColumn(), TimeRemainingColumn(), 'left'
  with Progress(*columns, console=terminal, disable=not terminal.is_terminal) as shown:
    line = shown.add_task('', total=total)
    try:
      while waiting or running:
        while waiting and free:
          study = waiting.pop(0)
          with signals_put_off():
            running.append(RunningStudy(study, scale, folder / study.name, free.pop()))
        pace = 1.0 if scale == 'laptop' else math.inf
        if done:
          pace = sum(spent for spent, _ in done) / sum(known for _, known in done)
        left = sum(study.minutes for study in waiting)
        left += sum(run.minutes_left(pace) for run in running)
        names = ', '.join(run.study.name for run in running)
        shown.update(line, description=names, completed=total - left)
        time.sleep(0.2)
        for run in running:
          run.limit(minutes)
        for run in [run for run in running if run.process.poll() is not None]:
          with signals_put_off():
            running.remove(run)
            seconds, how = run.stop(), 'done'
          free.append(run.cores)
          if run.process.returncode and run.cut_short:
            how = 'not finished: give the command again'
          elif run.process.returncode:
            failed.append(run.study.name)
            how = f'FAILED, see {run.folder / "log.txt"}'
          else:
            done.append((seconds / 60, run.study.minutes))
          say(run.study, how, seconds)
    finally:
      for run in running:
        run.process.terminate()  # a run can be killed at any moment
      for run in running:
        run.stop()
  return failed


def exit_on_signal():
  """Make a signal to end, or a closed terminal, end this process as an error does, and with it what it has started."""
  for number in (signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
      signal.signal(number, lambda number, _: sys.exit(128 + number))


@contextlib.contextmanager
def signals_put_off():
  """Put off a signal to end until the process that is being started here is known: only then is it ended, too."""
  came: list[int] = []
  numbers = signal.SIGTERM, signal.SIGHUP, signal.SIGINT
  handlers = {number: signal.getsignal(number) for number in numbers}
  own = {n: handler for n, handler in handlers.items() if handler not in (None, signal.SIG_IGN)}
  for number in own:
    signal.signal(number, lambda number, _: came.append(number))
  try:
    yield
  finally:
    for number, handler in own.items():
      signal.signal(number, handler)
    for told in came:
      signal.raise_signal(told)


def main(options: Options):
  if options.list:
    rows = [
      {'study': s.name, 'minutes, one core': s.minutes, 'measures': s.title}
      for s in studies.load_all().values()
    ]
    print(render.table(rows))
    return
  exit_on_signal()
  folder, asked = cli.writable(options.workdir) / options.scale, chosen(options.only)
  minutes = math.inf if options.minutes is None else options.minutes
  cores = partition_cores(options.scale)
  failed = measure(asked, options.scale, folder, cores, options.again, minutes)
  print(report.write(folder, options.scale, report.gather(folder, options.scale)))
  if failed:
    raise SystemExit(f'FAILED: {", ".join(failed)}; the report says what it can without')


if __name__ == '__main__':
  cli.run(main, Options)
