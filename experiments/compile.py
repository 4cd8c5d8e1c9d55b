"""Compile the programs of the experiments for TPUs and GPUs without having one: do they fit, and what do they take?

  python -m experiments.compile --target=v5e:2x4 --target=v5e:1x1
  python -m experiments.compile --target=v6e:2x2 --study=structure --every
  python -m experiments.compile --target=t4 --target=h100:8
  python -m experiments.compile --target=rocm --scale=smoke
  python -m experiments.compile --target=v5e:2x4 --subjects=1000000 --dim=64 --batch=4096

The compilers need no device: pip install 'jax[tpu]', or 'jax[cuda12]', into a separate environment (`make tpu`, `make
cuda`). The programs of every study's presets are collected, as they would run on the target's chips, and compiled; for
cuda and rocm they are only lowered. With --subjects the program is a model of experiments.train instead, sharded over all
chips or, with --models, a sweep of that many. Of programs that differ only in sizes the largest is compiled, unless
--every asks for all. What does not fit, or calls back to the host, is refused in one line, with the largest size that
fits. The same command again resumes where it stopped. docs/accelerators.md says more.
"""

import contextlib
import dataclasses
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import pandas as pd

from experiments import construct, train
from experiments.harness import cli, machine, programs, records, render, studies, targets
from experiments.harness.programs import Program
from experiments.harness.records import Records
from experiments.harness.study import Scale
from experiments.harness.targets import Target
from geomem import mesh as meshes
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.training import device_memory, sharded, sweeps
from geomem.training.device_memory import Refused
from geomem.training.sweeps import Task

# A line has these in its own words, or not at all.
NAMED = 'target', 'study', 'part', 'program', 'digest', 'scale'
MAX_GPUS = 8  # the most that programs are lowered for
CERTIFIED = construct.Preset(
  construction=('selector',), subjects=2**17, check='certificate', save=False
)
CHECKS = {  # more parts of the study construct: its own models are small, and checked exhaustively
  'certificate': CERTIFIED,
  'universal': dataclasses.replace(CERTIFIED, subjects=16, check='universal'),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  target: Annotated[
    tuple[str, ...], 'A TPU or a GPU, as v5e:2x4 or h100:8 for eight; or cuda or rocm.'
  ] = ()
  scale: Scale = 'full'
  study: Annotated[tuple[str, ...], 'Only these studies.'] = ()
  part: Annotated[tuple[str, ...], 'Only these parts of a preset that has parts.'] = ()
  every: Annotated[bool, 'All programs, not only the largest of each kind.'] = False
  subjects: Annotated[
    int | None, 'N of a model of experiments.train, compiled instead of the studies.', 1
  ] = None
  relations: int = train.Options.relations
  dim: int = train.Options.dim
  batch: Annotated[int | None, 'Subjects per step of it (default: all).', 1] = None
  models: Annotated[int | None, 'Models in a sweep (default: one over all chips).', 1] = None
  workdir: Annotated[str, 'Folder for the records.'] = 'runs/compile'


@dataclasses.dataclass(frozen=True)
class CompileJob:
  """A program and its origin; `of_size`: the same program at a smaller size, in `unit`s."""

  study: str
  part: str
  program: Program
  size: int
  unit: str
  of_size: Callable[[int], Program]


def of_studies(options: Options, target: Target) -> Iterator[CompileJob]:
  """The programs of all requested studies."""
  chips = len(target.devices)
  for name in options.study or studies.NAMES:
    study = studies.load(name)
    if reason := study.missing():
      cli.warn(f'{name} is left out: {reason}')
      continue
    more = CHECKS if name == 'construct' else {}
    found = [
      (program, part)
      for part, preset in (study.parts(options.scale) | more).items()
      if not options.part or part in options.part
      for program in programs.of_study(study, preset, target.devices, target.platform)
    ]
    for one, part in found if options.every else programs.largest(found):
      fewer = lambda count, one=one: one.with_models(count * chips)
      yield CompileJob(name, part, one, one.models // chips, 'models a chip', fewer)


def of_train(options: Options, target: Target) -> CompileJob:
  """A training step of the model that experiments.train trains with these sizes: one over all chips, or many."""
  own = train.Options(
    subjects=options.subjects or 0,
    relations=options.relations,
    dim=options.dim,
    batch=options.batch,
  )
  config, recipe = train.configure(own)

  def task(n: int) -> Task:
    nothing = np.broadcast_to(np.int32(0), (options.relations, n))  # nothing is computed from it
    return Task(config.replace(subjects=n, answers=n), Facts(nothing, n))

  if not options.models:
    mesh = meshes.make_mesh(target.devices)
    of_size = lambda n: Program(*sharded.planned(recipe, task(n), mesh).program(), {})
    return CompileJob('train', 'shard', of_size(own.subjects), own.subjects, 'subjects', of_size)
  one = task(own.subjects)
  place: Any = {'devices': target.devices, 'platform': target.platform}
  sweep = lambda count: Program(*sweeps.planned(recipe, [one] * count, **place).program(), {})
  chips, whole = len(target.devices), sweep(options.models)
  fewer = lambda count: sweep(count * chips)
  return CompileJob('train', 'sweep', whole, whole.models // chips, 'models a chip', fewer)


def compiled(options: Options, target: Target, known: list[dict]) -> Iterator[dict]:
  """The records of a target, known ones as they are; a refused program has a record too, with the reason."""
  for one in [of_train(options, target)] if options.subjects else of_studies(options, target):
    record = {
      'target': target.name, 'study': one.study, 'part': one.part or None, 'program': one.program.name,
      'digest': one.program.digest, 'array_bytes': one.program.bytes, 'scale': None if options.subjects else options.scale,
      'batch': options.batch if options.subjects else None, 'size': f'{one.size:,} {one.unit}' if options.subjects else None,
    }  # fmt: skip
    if same := [other for other in known if record.items() <= other.items()]:
      yield same[0]
      continue
    try:
      record |= targets.build(one.program, target)
    except Refused as error:
      attempt = lambda size, one=one: targets.build(one.of_size(size), target)
      record['refused'] = device_memory.with_largest(error, attempt, one.size, one.unit)
    yield record


def earlier(folder: Path) -> tuple[list[dict], list[str]]:
  """The records that this code has left in a folder, and the commands: compiling everything takes hours, and can be
  resumed."""
  if not (folder / records.FILE).exists():
    return [], []
  found = records.read(folder)
  if found.about.get('code') != machine.code_hash():
    return [], []
  rows = found.table.astype(object).where(found.table.notna(), None).to_dict('records')
  return rows, found.about['command'].split('; ')


def line(record: dict) -> str:
  """A record as one line of output."""
  place = ' '.join(filter(None, (record['study'], record['part'])))
  if record.get('refused'):
    return f'{record["target"]}: {place}: refused: {record["refused"]}'
  known = {k: v for k, v in record.items() if k not in NAMED and v not in (None, '')}
  shown = lambda name, v: device_memory.in_words(v) if name.endswith('_bytes') else render.cell(v)
  words = ', '.join(f'{name.replace("_", " ")} {shown(name, v)}' for name, v in known.items())
  return f'{record["target"]}: {place}: {record["program"]}: {words}'


def command(options: Options) -> str:
  """The command with these options, without its folder."""
  every = vars(options) | {'workdir': None}
  changed = {name: value for name, value in every.items() if value != getattr(Options, name)}
  return shlex.join(cli.command('compile', changed))


def main(options: Options):
  if not options.target:
    raise InputError('name what to compile for: --target=v5e:2x4, say; see --help')
  folder = cli.writable(options.workdir)
  if any(name.partition(':')[0] in targets.GPUS for name in options.target):
    with contextlib.suppress(RuntimeError):  # JAX has started, and keeps the devices that it has
      jax.config.update('jax_num_cpu_devices', MAX_GPUS)
  every = [targets.find(name) for name in options.target]
  rows, commands = earlier(folder)
  commands.append(command(options))
  about = {'command': '; '.join(dict.fromkeys(commands)), **machine.made_with()}
  own: list[dict] = []
  for target in every:
    for record in compiled(options, target, rows):
      print(line(record), flush=True)
      own.append(record)
      if any(record is other for other in rows):
        continue
      rows.append(record)
      records.write(folder / records.FILE, Records(about, pd.DataFrame(rows, dtype=object)))
  if refused := [row for row in own if row.get('refused')]:
    raise InputError(f'{len(refused)} of {len(own)} programs are refused: {line(refused[0])}')
  print(f'{len(own)} programs; records: {folder / records.FILE}')


if __name__ == '__main__':
  cli.run(main, Options)
