"""Reproduce the paper: every claim measured, one after another, and a report of what came out.

  python -m experiments.reproduce
  python -m experiments.reproduce --only=threshold,transfer
  python -m experiments.reproduce --scale=accelerator
  python -m experiments.reproduce --list

Every experiment runs as by its own command, in WORKDIR/SCALE/NAME, with what it prints in log.txt there; on
CPUs several at once, on cores of their own.
What is finished is kept and skipped when the command is given again; what was interrupted goes on where
it was, or anew if the code has changed; --again measures anew. In the end experiments.report writes report.html and report.md into
WORKDIR/SCALE; claims that were not measured here it fills from docs/results.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import claims, report
from experiments.claims import Experiment
from experiments.harness import cli, machine, storage
from geomem.errors import InputError
from geomem.saved import runs

FLAGS = flags.FLAGS
cli.define(
  scale='Preset of every experiment: smoke shows nothing, laptop takes the minutes that --list '
  'shows, accelerator is the whole thing.',
  list='List the experiments, one line each, and stop.',
  only='Names of experiments, of those that --list shows, with commas between.',
  workdir='Folder of the runs and the report (default: runs/reproduce).',
)
_AGAIN = flags.DEFINE_bool('again', False, 'Measure anew what is finished.')

MOST_AT_ONCE = 4  # as many gigabytes and more


def chosen() -> list[Experiment]:
  """What is asked for; of all, what needs something that is not there is left out, and named."""
  if FLAGS.only is None:
    lacks = {e: e.lacks() for e in claims.EXPERIMENTS.values()}
    for e, reason in lacks.items():
      if reason:
        cli.warn(f'{e.name} is left out: {reason}')
    return [e for e, reason in lacks.items() if not reason]
  unknown = [name for name in FLAGS.only if name not in claims.EXPERIMENTS]
  if unknown or not FLAGS.only:
    raise InputError(f'--only={",".join(FLAGS.only)}: known are {", ".join(claims.EXPERIMENTS)}')
  asked = [claims.EXPERIMENTS[name] for name in dict.fromkeys(FLAGS.only)]
  for e in asked:
    if reason := e.lacks():
      raise InputError(f'{e.name}: {reason}')
  return asked


class Progress:
  """One line: what runs, what is done, how long it may still take. Without a terminal only the ends."""

  def __init__(self, experiments: Sequence[Experiment], lanes: int = 1):
    self.count, self.lanes, self.live = len(experiments), lanes, sys.stderr.isatty()
    self.left, self.started = list(experiments), {}
    self.paces = []  # this machine beside the one that the minutes are of

  def start(self, experiment: Experiment):
    self.started[experiment.name] = time.monotonic()

  def show(self):
    if not self.live:
      return
    pace = sum(self.paces) / len(self.paces) if self.paces else 1.0
    now, rest = time.monotonic(), {e.name: 60 * e.minutes * pace for e in self.left}
    for name, since in self.started.items():
      rest[name] = max(0.0, rest[name] - (now - since))
    left = max([sum(rest.values()) / self.lanes, *rest.values()])
    running = ', '.join(f'{name} {clock(now - since)}' for name, since in self.started.items())
    self._say(
      f'[{self.count - len(self.left)}/{self.count}] {running}; about {clock(left)} left', ''
    )

  def ended(self, experiment: Experiment, seconds: float, how: str):
    self.left.remove(experiment)
    if self.started.pop(experiment.name, None) and how == 'done':
      self.paces.append(seconds / (60 * experiment.minutes))
    self._say(
      f'[{self.count - len(self.left)}/{self.count}] {experiment.name}: {how} ({clock(seconds)})'
    )

  def _say(self, text: str, end: str = '\n'):
    print(f'\r{text:<78}' if self.live else text, end=end, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
  return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


def finished(experiment: Experiment, scale: str, folder: Path, mark: str) -> float | None:
  """The seconds that it took, if it is done and not to be measured again."""
  path, command = folder / report.DONE, ' '.join(experiment.command(scale))
  if not path.exists():
    if begun_by(folder, mark) != mark:
      remove(folder)
      cli.warn(f'{experiment.name} was begun by other code, and is begun anew')
    return None
  before = json.loads(path.read_text(encoding='utf-8'))
  if before['command'] != command or _AGAIN.value:
    remove(folder)
    return None
  if before['code'] != mark:
    cli.warn(f'{experiment.name} was measured by other code; --again measures anew')
  return before['seconds']


def remove(folder: Path):
  """The folder of a run, unless a process is at work there."""
  with runs.lock(folder):
    shutil.rmtree(folder)


def begun_by(folder: Path, mark: str) -> str | None:
  """The mark of the code of the run there; of what cannot be taken up, and begins anew, `mark`."""
  path = folder / 'config.json'
  return json.loads(path.read_text(encoding='utf-8')).get('code') if path.exists() else mark


class Run:
  """An experiment under way, as by its own command, on some of the cores; it goes on from where it was left."""

  def __init__(self, experiment: Experiment, scale: str, folder: Path, mark: str, cores):
    self.experiment, self.folder, self.mark, self.cores = experiment, folder, mark, cores
    self.command, self.begun = experiment.command(scale), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    spent = folder / 'seconds.json'
    self.before = json.loads(spent.read_text())['seconds'] if spent.exists() else 0.0
    with open(folder / 'log.txt', 'a', encoding='utf-8') as log:
      self.process = subprocess.Popen(
        [sys.executable, *self.command[1:], f'--workdir={folder}'], stdout=log, stderr=log
      )
    if cores:
      os.sched_setaffinity(self.process.pid, cores)  # before it has asked how many there are

  def stop(self) -> float:
    """Wait for its end; the seconds of all tries, which are kept."""
    self.process.wait()
    total = self.before + time.monotonic() - self.begun
    storage.write_text(self.folder / 'seconds.json', json.dumps({'seconds': total}))
    if self.process.returncode == 0:
      mark = begun_by(self.folder, self.mark)
      done = {'command': ' '.join(self.command), 'code': mark, 'seconds': total}
      storage.write_text(self.folder / report.DONE, json.dumps(done))
    return total


def lanes(scale: str) -> list[set[int] | None]:
  """The cores of each of the experiments that run at once: an accelerator runs one, cores share out.

  Half of what a small sweep does is compiling, on one core: two at once waste less of two.
  """
  shared = scale != 'accelerator' and hasattr(os, 'sched_setaffinity') and _backend() == 'cpu'
  if not shared:
    return [None]
  cores = sorted(os.sched_getaffinity(0))
  count = min(MOST_AT_ONCE, len(cores))
  return [set(cores[i::count]) for i in range(count)]


def _backend() -> str:
  """Asked in a process of its own, for who asks holds the device."""
  asked = [sys.executable, '-c', 'import jax; print(jax.default_backend())']
  return subprocess.run(asked, check=False, capture_output=True, text=True).stdout.strip()


def measure(experiments: Sequence[Experiment], scale: str, folder: Path, lanes) -> list[str]:
  """Run what is not finished, the longest first; the names of what failed."""
  progress, failed, running = Progress(experiments, len(lanes)), [], []
  mark, waiting = machine.code(), []
  for e in experiments:
    if (seconds := finished(e, scale, folder / e.name, mark)) is None:
      waiting.append(e)
    else:
      progress.ended(e, seconds, 'finished before, kept')
  waiting.sort(key=lambda e: -e.minutes)
  free = list(lanes)
  try:
    while waiting or running:
      while waiting and free:
        running.append(Run(e := waiting.pop(0), scale, folder / e.name, mark, free.pop()))
        progress.start(e)
      progress.show()
      time.sleep(0.2)
      for run in [run for run in running if run.process.poll() is not None]:
        running.remove(run)
        free.append(run.cores)
        seconds, bad = run.stop(), run.process.returncode
        failed += [run.experiment.name] * bool(bad)
        progress.ended(run.experiment, seconds, f'FAILED, see {run.folder / "log.txt"}' if bad else 'done')  # fmt: skip
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


def main(argv):
  cli.no_arguments(argv)
  if FLAGS.list:
    columns = 'experiment', 'minutes, two cores', 'measures'
    rows = [(e.name, e.minutes, e.about) for e in claims.EXPERIMENTS.values()]
    print(cli.table(columns, [dict(zip(columns, row, strict=True)) for row in rows]))
    return
  leave_when_told()
  folder = cli.workdir('runs/reproduce') / FLAGS.scale
  experiments = chosen()
  failed = measure(experiments, FLAGS.scale, folder, lanes(FLAGS.scale))
  for path in report.write(folder, FLAGS.scale):
    print(path)
  if failed:
    raise SystemExit(f'FAILED: {", ".join(failed)}; the report says what it can without')


if __name__ == '__main__':
  cli.run(main)
