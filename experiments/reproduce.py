"""Reproduce the paper: every claim measured, one after another, and a report of what came out.

  python -m experiments.reproduce
  python -m experiments.reproduce --only=threshold --only=transfer
  python -m experiments.reproduce --scale=full
  python -m experiments.reproduce --list

Every study runs as by its own command, in WORKDIR/SCALE/NAME, with what it prints in log.txt there; on CPUs several
at once, on cores of their own. What is finished is kept and skipped when the command is given again; what was
interrupted goes on where it was, or anew if the code has changed; --again measures anew. In the end
experiments.report writes report.html and report.md into WORKDIR/SCALE; claims that were not measured here it
fills from docs/results.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from experiments import report
from experiments.harness import cli, machine, records, render, studies
from experiments.harness.study import Study
from geomem.errors import InputError
from geomem.saved import runs

MOST_AT_ONCE = 4  # as many gigabytes and more


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  scale: Annotated[
    Literal['smoke', 'laptop', 'full'],
    'Preset of every study: smoke shows nothing, laptop takes the minutes that --list shows, full takes hours.',
  ] = 'laptop'
  only: Annotated[tuple[str, ...], 'Only this study, of those that --list shows.'] = ()
  workdir: Annotated[str, 'Folder of the runs and the report.'] = 'runs/reproduce'
  again: Annotated[bool, 'Measure anew what is finished.'] = False
  list: bool = False


def chosen(only: Sequence[str]) -> list[Study]:
  """What is asked for; of all, what needs something that is not there is left out, and named."""
  if only:
    asked = [studies.load(name) for name in only]
    for study in asked:
      if reason := study.missing():
        raise InputError(f'{study.name}: {reason}')
    return asked
  reasons = {study.name: study.missing() for study in studies.load_all().values()}
  for name, reason in reasons.items():
    if reason:
      cli.warn(f'{name} is left out: {reason}')
  return [study for name, study in studies.load_all().items() if not reasons[name]]


class Progress:
  """One line: what runs, what is done, how long it may still take. Without a terminal only the ends."""

  def __init__(self, asked: Sequence[Study], at_once: int = 1):
    self.count, self.at_once, self.live = len(asked), at_once, sys.stderr.isatty()
    self.left: list[Study] = list(asked)
    self.started: dict[str, float] = {}
    self.paces: list[float] = []  # this machine beside the one that the minutes are of

  def start(self, study: Study):
    self.started[study.name] = time.monotonic()

  def show(self):
    if not self.live:
      return
    pace = sum(self.paces) / len(self.paces) if self.paces else 1.0
    now, rest = time.monotonic(), {study.name: 60 * study.minutes * pace for study in self.left}
    for name, since in self.started.items():
      rest[name] = max(0.0, rest[name] - (now - since))
    left = max([sum(rest.values()) / self.at_once, *rest.values()])
    running = ', '.join(f'{name} {clock(now - since)}' for name, since in self.started.items())
    self._say(f'{running}; about {clock(left)} left', '')

  def ended(self, study: Study, seconds: float, how: str):
    self.left.remove(study)
    if self.started.pop(study.name, None) and how == 'done':
      self.paces.append(seconds / (60 * study.minutes))
    self._say(f'{study.name}: {how} ({clock(seconds)})', '\n')

  def _say(self, text: str, end: str):
    text = f'[{self.count - len(self.left)}/{self.count}] {text}'
    print(f'\r{text:<78}' if self.live else text, end=end, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
  return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


def finished(study: Study, scale: str, folder: Path, code: str, again: bool) -> float | None:
  """The seconds that it took, if it is done and not to be measured again."""
  path = folder / report.DONE
  if not path.exists():
    if begun_by(folder, code) != code:
      remove(folder)
      cli.warn(f'{study.name} was begun by other code, and is begun anew')
    return None
  before = json.loads(path.read_text(encoding='utf-8'))
  if before['command'] != ' '.join(study.command(scale)) or again:
    remove(folder)
    return None
  if before['code'] != code:
    cli.warn(f'{study.name} was measured by other code; --again measures anew')
  return before['seconds']


def remove(folder: Path):
  """The folder of a run, unless a process is at work there."""
  with runs.lock(folder):
    shutil.rmtree(folder)


def begun_by(folder: Path, code: str) -> str | None:
  """The hash of the code that has begun the run, or one of its parts; of one not begun, or that cannot be taken up
  and begins anew, `code`."""
  begun = (json.loads(path.read_text(encoding='utf-8')).get('code')
           for pattern in ('config.json', '*/config.json') for path in folder.glob(pattern))  # fmt: skip
  return next(begun, code)


class Run:
  """A study under way, as by its own command, on some of the cores; it goes on from where it was left."""

  def __init__(self, study: Study, scale: str, folder: Path, code: str, cores: set[int] | None):
    self.study, self.folder, self.code, self.cores = study, folder, code, cores
    self.command, self.begun = study.command(scale), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    spent = folder / 'seconds.json'
    self.before = json.loads(spent.read_text())['seconds'] if spent.exists() else 0.0
    with open(folder / 'log.txt', 'a', encoding='utf-8') as log:
      command = [sys.executable, *self.command[1:], f'--workdir={folder}']
      self.process = subprocess.Popen(command, stdout=log, stderr=log)
    if cores:
      os.sched_setaffinity(self.process.pid, cores)  # before it has asked how many there are

  def stop(self) -> float:
    """Wait for its end; the seconds of all tries, which are kept."""
    self.process.wait()
    total = self.before + time.monotonic() - self.begun
    records.write_text(self.folder / 'seconds.json', json.dumps({'seconds': total}))
    if self.process.returncode == 0:
      code = begun_by(self.folder, self.code)
      done = {'command': ' '.join(self.command), 'code': code, 'seconds': total}
      records.write_text(self.folder / report.DONE, json.dumps(done))
    return total


def shares_of_cores(scale: str) -> list[set[int] | None]:
  """The cores of each of the studies that run at once: an accelerator runs one, and so does the full preset.

  Half of what a small sweep does is compiling, on one core: two at once waste less of two.
  """
  if scale == 'full' or not hasattr(os, 'sched_setaffinity') or _backend() != 'cpu':
    return [None]
  cores = sorted(os.sched_getaffinity(0))
  count = min(MOST_AT_ONCE, len(cores))
  return [set(cores[i::count]) for i in range(count)]


def _backend() -> str:
  """Asked in a process of its own, for who asks holds the device."""
  asked = [sys.executable, '-c', 'import jax; print(jax.default_backend())']
  return subprocess.run(asked, check=False, capture_output=True, text=True).stdout.strip()


def measure(
  asked: Sequence[Study],
  scale: str,
  folder: Path,
  cores: Sequence[set[int] | None],
  again: bool = False,
) -> list[str]:
  """Run what is not finished, the longest first; the names of what failed."""
  progress, code = Progress(asked, len(cores)), machine.code_hash()
  failed: list[str] = []
  running: list[Run] = []
  waiting, free = [], list(cores)
  for study in asked:
    if (seconds := finished(study, scale, folder / study.name, code, again)) is None:
      waiting.append(study)
    else:
      progress.ended(study, seconds, 'finished before, kept')
  waiting.sort(key=lambda study: -study.minutes)
  try:
    while waiting or running:
      while waiting and free:
        study = waiting.pop(0)
        running.append(Run(study, scale, folder / study.name, code, free.pop()))
        progress.start(study)
      progress.show()
      time.sleep(0.2)
      for run in [run for run in running if run.process.poll() is not None]:
        running.remove(run)
        free.append(run.cores)
        seconds, bad = run.stop(), run.process.returncode
        failed += [run.study.name] * bool(bad)
        progress.ended(
          run.study, seconds, f'FAILED, see {run.folder / "log.txt"}' if bad else 'done'
        )
  finally:
    for run in running:
      run.process.terminate()  # a run can be killed at any moment
    for run in running:
      run.stop()
  return failed


def leave_when_told():
  """Let a request to end, or a terminal that is closed, end this as an error does, and with it what it has started."""

  def leave(number, _):
    raise SystemExit(128 + number)

  for number in (signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
      signal.signal(number, leave)


def main(options: Options):
  if options.list:
    rows = [
      {'study': s.name, 'minutes, two cores': s.minutes, 'measures': s.title}
      for s in studies.load_all().values()
    ]
    print(render.table(rows))
    return
  leave_when_told()
  folder, asked = cli.writable(options.workdir) / options.scale, chosen(options.only)
  failed = measure(asked, options.scale, folder, shares_of_cores(options.scale), options.again)
  for path in report.write(folder, options.scale):
    print(path)
  if failed:
    raise SystemExit(f'FAILED: {", ".join(failed)}; the report says what it can without')


if __name__ == '__main__':
  cli.run(main, Options)
