"""For anyone with an accelerator: measure what we could only compile for it. Repeat it until nothing is left.

  python -m experiments.accelerator

Runs the tests for accelerators, then the benchmark and every part of every study at full size, each for at most ten
minutes: longer runs resume when the command is given again, and runs that cannot resume are not cut short. Every
results.json names the device; docs/accelerators.md says how to send them back.
"""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from experiments import benchmark
from experiments.harness import cli, records, render, studies
from experiments.harness.study import Scale
from geomem.errors import InputError

TESTS = 'pytest', '-n0', '-m', 'accelerator'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  scale: Scale = 'full'
  minutes: Annotated[float, 'Maximum minutes for each.', 0] = 10.0
  only: Annotated[tuple[str, ...], 'Only these studies; benchmark and tests are two more.'] = ()
  workdir: Annotated[str, 'Folder of the runs.'] = 'runs/accelerator'


class Command(NamedTuple):
  """`done`: the file that exists once the command is done, if there is one; `words`: what follows python -m."""

  name: str
  done: Path | None
  words: Sequence[str]
  resumes: bool


def commands(options: Options, folder: Path) -> list[Command]:
  """All commands to be done."""
  found = [Command('tests', None, TESTS, False)]
  for study in (benchmark.STUDY, *studies.load_all().values()):
    for part in study.parts(options.scale):
      own, name = folder / study.name, ' '.join(filter(None, (study.name, part)))
      words = [*study.command(options.scale, part=part or None)[2:], f'--workdir={own}']
      done = own / part / records.FILE if study.resumes else own / records.FINDINGS
      found.append(Command(name, done, words, study.resumes))
  names = dict.fromkeys(command.name.split()[0] for command in found)
  if unknown := set(options.only) - names.keys():
    raise InputError(f'--only={min(unknown)}: there are {", ".join(names)}')
  return [
    command for command in found if not options.only or command.name.split()[0] in options.only
  ]


def attempt(words: Sequence[str], log: Path, minutes: float | None) -> str:
  """Run a command for at most `minutes`, in its own process, which has the device to itself; return how it ended."""
  # An empty value overrides the tests' default, a CPU: JAX takes the best device that there is.
  environment = {'JAX_PLATFORMS': '', **os.environ}
  with open(log, 'a', encoding='utf-8') as out:
    process = subprocess.Popen(
      [sys.executable, '-m', *words], stdout=out, stderr=out, env=environment
    )
    try:
      code = process.wait(60 * minutes if minutes is not None else None)
    except subprocess.TimeoutExpired:
      return 'not finished: give the command again'
    finally:
      if process.poll() is None:
        process.terminate()  # a run can be killed at any moment
        process.wait()
  return 'done' if code == 0 else f'FAILED, see {log}'


def main(options: Options):
  folder = cli.writable(options.workdir)
  every, rows = commands(options, folder), list[dict]()
  folder.mkdir(parents=True, exist_ok=True)
  for command in every:
    start, how = time.monotonic(), 'done before'
    if not (command.done and command.done.exists()):
      log = folder / f'{command.name.replace(" ", "_")}.log'
      how = attempt(command.words, log, options.minutes if command.resumes else None)
    rows.append({'what': command.name, 'how': how, 'minutes': (time.monotonic() - start) / 60})
    print(f'{command.name}: {how}', flush=True)
  print(render.table(rows))
  print(f'records: {folder}/NAME/{records.FILE}')
  if any(row['how'].startswith('FAILED') for row in rows):
    raise SystemExit('FAILED in part; the logs say why')


if __name__ == '__main__':
  cli.run(main, Options)
