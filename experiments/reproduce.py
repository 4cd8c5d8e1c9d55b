"""Reproduce the paper: every claim measured, one after another, and a report of what came out.

  python -m experiments.reproduce
  python -m experiments.reproduce --only=threshold,transfer
  python -m experiments.reproduce --scale=accelerator
  python -m experiments.reproduce --list

Every experiment runs as by its own command, in WORKDIR/SCALE/NAME, with what it prints in log.txt there.
What is finished is kept and skipped when the command is given again; what was interrupted goes on where
it was; --again measures anew. In the end experiments.report writes report.html and report.md into
WORKDIR/SCALE; claims that were not measured here it fills from docs/results.
"""

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from experiments import claims, cli, report
from experiments.claims import Experiment
from geomem.errors import InputError

FLAGS = flags.FLAGS
cli.define(
  'scale',
  list='List the experiments, one line each, and stop.',
  workdir='Folder of the runs and the report (default: runs/reproduce).',
)
_ONLY = flags.DEFINE_list('only', None, 'Names of experiments, of those that --list shows.')
_AGAIN = flags.DEFINE_bool('again', False, 'Measure anew what is finished.')

PACKAGES = ('geomem', 'constructions', 'experiments')
DONE = 'reproduced.json'


def chosen() -> list[Experiment]:
  """What is asked for; of all, what needs something that is not there is left out, and named."""
  if _ONLY.value is None:
    lacks = {e: e.lacks() for e in claims.EXPERIMENTS.values()}
    for e, reason in lacks.items():
      if reason:
        cli.warn(f'{e.name} is left out: {reason}')
    return [e for e, reason in lacks.items() if not reason]
  unknown = [name for name in _ONLY.value if name not in claims.EXPERIMENTS]
  if unknown or not _ONLY.value:
    raise InputError(f'--only={",".join(_ONLY.value)}: known are {", ".join(claims.EXPERIMENTS)}')
  asked = [claims.EXPERIMENTS[name] for name in dict.fromkeys(_ONLY.value)]
  for e in asked:
    if reason := e.lacks():
      raise InputError(f'{e.name}: {reason}')
  return asked


def code() -> str:
  """A mark of the code that measures."""
  root, digest = Path(__file__).parents[1], hashlib.sha256()
  for package in PACKAGES:
    for path in sorted((root / package).rglob('*.py')):
      digest.update(path.read_bytes())
  return digest.hexdigest()[:16]


class Progress:
  """One line: what runs, what is done, how long it may still take. Without a terminal only starts and ends."""

  def __init__(self, experiments: list[Experiment]):
    self.left, self.count, self.done = list(experiments), len(experiments), 0
    self.pace, self.live = 1.0, sys.stderr.isatty()

  def skipped(self, experiment: Experiment, seconds: float):
    self.ended(experiment, seconds, 'finished before, kept')

  def running(self, experiment: Experiment, seconds: float):
    if not self.live:
      return
    now = self.left[0].minutes * 60 * self.pace
    rest = max(0.0, now - seconds) + sum(e.minutes for e in self.left[1:]) * 60 * self.pace
    text = (
      f'[{self.done + 1}/{self.count}] {experiment.name} {clock(seconds)}, about {clock(rest)} left'
    )
    print(f'\r{text:<78}', end='', file=sys.stderr, flush=True)

  def ended(self, experiment: Experiment, seconds: float, how: str):
    self.left.remove(experiment)
    self.done += 1
    if how == 'done':  # this machine beside the one that the minutes are of
      self.pace = seconds / (60 * experiment.minutes)
    start = '\r' if self.live else ''
    line = f'[{self.done}/{self.count}] {experiment.name}: {how} ({clock(seconds)})'
    print(f'{start}{line:<78}', file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
  return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


@contextlib.contextmanager
def timed(folder: Path) -> Iterator[dict]:
  """The seconds spent in a folder, over all tries; kept also when this one is interrupted."""
  path, start = folder / 'seconds.json', time.monotonic()
  spent = json.loads(path.read_text())['seconds'] if path.exists() else 0.0
  total = {'seconds': spent}
  try:
    yield total
  finally:
    total['seconds'] = spent + time.monotonic() - start
    cli.write_text(path, json.dumps(total))


def measure(experiment: Experiment, scale: str, folder: Path, progress: Progress) -> bool:
  """Run it as its own command would, unless that is done; whether it succeeded."""
  command = experiment.command(scale)
  about = {'command': ' '.join(command), 'code': code()}
  with contextlib.suppress(FileNotFoundError):
    before = json.loads((folder / DONE).read_text(encoding='utf-8'))
    if before['command'] == about['command'] and not _AGAIN.value:
      if before['code'] != about['code']:
        cli.warn(f'{experiment.name} was measured by other code; --again measures anew')
      progress.skipped(experiment, before['seconds'])
      return True
    shutil.rmtree(folder)
  folder.mkdir(parents=True, exist_ok=True)
  with timed(folder) as total, open(folder / 'log.txt', 'a', encoding='utf-8') as log:
    start = time.monotonic()
    run = subprocess.Popen(
      [sys.executable, *command[1:], f'--workdir={folder}'], stdout=log, stderr=log
    )
    try:
      while run.poll() is None:
        progress.running(experiment, time.monotonic() - start)
        time.sleep(0.5)
    except KeyboardInterrupt:
      run.wait()
      raise
  if run.returncode:
    progress.ended(experiment, total['seconds'], f'FAILED, see {folder / "log.txt"}')
    return False
  cli.write_text(folder / DONE, json.dumps({**about, **total}))
  progress.ended(experiment, total['seconds'], 'done')
  return True


def main(argv):
  cli.no_arguments(argv)
  if FLAGS.list:
    rows = [
      {'experiment': e.name, 'minutes': e.minutes, 'measures': e.about}
      for e in claims.EXPERIMENTS.values()
    ]
    print(cli.table(('experiment', 'minutes', 'measures'), rows))
    return
  folder = cli.workdir('runs/reproduce') / FLAGS.scale
  experiments = chosen()
  progress = Progress(experiments)
  failed = [e.name for e in experiments if not measure(e, FLAGS.scale, folder / e.name, progress)]
  for path in report.write(folder, FLAGS.scale):
    print(path)
  if failed:
    raise SystemExit(f'FAILED: {", ".join(failed)}; the report says what it can without')


if __name__ == '__main__':
  cli.run(main)
