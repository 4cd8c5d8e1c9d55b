"""A study: one experiment as one object, and the binary that it is.

A file `experiments/NAME.py` says what is claimed, which sizes there are, what is measured, what is expected and
how it is drawn, and ends in `STUDY = Study(...)`. All else is here: flags, runs that can be killed and taken
up again, parts of long ones, records, findings, tables, figures.
"""

import contextlib
import dataclasses
import inspect
import shlex
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from experiments.harness import cli, machine, plotting, records, render, statistics
from experiments.harness.findings import Claim, Finding
from experiments.harness.records import Records
from experiments.harness.trainer import Progress, Trainer
from geomem import hosts
from geomem.errors import InputError
from geomem.saved import runs

SCALES = ('smoke', 'laptop', 'full')
FIRST_SEED = 100  # of what is measured: settings were chosen on the seeds below
UNCHANGING = (
  'workdir',
  'redraw',
  'save_seconds',
  'profile',
  'part',
)  # flags that no result depends on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """The flags that every study has; a field of its presets is a flag too, which changes the preset."""

  scale: Annotated[
    Literal['smoke', 'laptop', 'full'],
    'Preset: smoke takes a minute or so and only shows that it runs; laptop suits two cores; full takes hours there.',
  ] = 'laptop'
  part: Annotated[tuple[str, ...], 'Only this part of a preset that has parts.'] = ()
  seed: Annotated[int, 'The first seed, of parameters and facts.'] = FIRST_SEED
  seeds: Annotated[
    int | None, 'How many seeds, from --seed on (default: what the preset says).'
  ] = None
  workdir: Annotated[str | None, 'Folder of the run (default: runs/NAME).'] = None
  redraw: Annotated[
    bool, 'Draw the figure again from the results.json in the workdir, and stop.'
  ] = False
  save_seconds: int = 30
  profile: bool = False
  list: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """`presets`: for each scale a frozen dataclass, or several by the names of the parts that they are.

  `measure(trainer, preset, seeds)`: a record (a flat dict) for every number. `expect(table)`: the findings.
  `plot(table)`: the figure, None where there is nothing to draw. `by`: the columns of the records that tell apart
  what a mean over seeds is taken of, for the table on the terminal. `terms`: what the words of the findings mean.
  `minutes`: of the laptop's preset on two cores. `resumes`: it runs in a folder of its own, from checkpoints.
  `missing()`: what must be fetched first, if anything. `prepare(preset)`: the preset with what is read beforehand.
  `more(table)`: what else the terminal shows. `listed()`: what --list shows. `strict`: what does not hold as expected
  is an error in the code, and the binary fails.
  """

  name: str
  title: str
  presets: Mapping[str, Any]
  measure: Callable[[Any, Any, range], list[dict]]
  expect: Callable[[pd.DataFrame], Iterable[Finding]]
  claims: tuple[Claim, ...] = ()
  plot: Callable[[pd.DataFrame], Figure | None] | None = None
  by: tuple[str, ...] = ()
  terms: str = ''
  minutes: float = 1.0
  first_seed: int = FIRST_SEED
  compile_quickly: bool = True
  resumes: bool = True
  missing: Callable[[], str | None] = lambda: None
  prepare: Callable[[Any], Any] = lambda preset: preset
  more: Callable[[pd.DataFrame], str] | None = None
  listed: Callable[[], str] | None = None
  strict: bool = False

  def parts(self, scale: str) -> dict[str, Any]:
    """The presets of a scale by the names of its parts; one that has none is its only part, without a name."""
    if scale not in self.presets:
      raise InputError(f'--scale={scale}: experiments.{self.name} has {", ".join(self.presets)}')
    preset = self.presets[scale]
    return dict(preset) if isinstance(preset, Mapping) else {'': preset}

  def findings(self, table: pd.DataFrame) -> list[Finding]:
    return list(self.expect(table))

  def command(self, scale: str) -> list[str]:
    return ['python', '-m', f'experiments.{self.name}', f'--scale={scale}']

  def main(self, argv: Sequence[str] | None = None):
    """The binary: parse the flags, run, print."""
    doc = f'{inspect.getdoc(inspect.getmodule(self.measure))}\n\nThe laptop preset takes about {self.minutes:g} minutes.'
    cli.run(self._main, self._options(), argv, doc)

  def _options(self) -> type:
    """The flags: those of every study that mean something to it, and one for every field of its presets that a flag
    can hold."""
    preset = type(next(iter(self.parts(next(iter(self.presets))).values())))
    own = [
      (
        name,
        hint | None
        if not hasattr(hint, '__metadata__')
        else Annotated[hint.__origin__ | None, *hint.__metadata__],
        None,
      )
      for name, hint in typing.get_type_hints(preset, include_extras=True).items()
      if name != 'seeds' and (hasattr(hint, '__metadata__') or name in cli.HELP)
    ]
    changes: list[tuple[str, Any, Any]] = [
      ('seed', Annotated[int, Options.__annotations__['seed'].__metadata__[0]], self.first_seed)
    ]
    means = {
      'part': any(isinstance(some, Mapping) for some in self.presets.values()),
      'seeds': 'seeds' in typing.get_type_hints(preset), 'redraw': self.plot or self.resumes,
      'save_seconds': self.resumes, 'profile': self.resumes, 'list': self.listed,
    }  # fmt: skip
    changes += [
      (name, Any, dataclasses.field(default=getattr(Options, name), init=False))
      for name, known in means.items() if not known
    ]  # fmt: skip
    return dataclasses.make_dataclass(
      'Flags', [*changes, *own], bases=(Options,), frozen=True, kw_only=True
    )

  def _main(self, options):
    if options.list and self.listed:
      print(self.listed())
      return
    folder = cli.writable(options.workdir or f'runs/{self.name}')
    common = {f.name for f in dataclasses.fields(Options)}
    own = [f.name for f in dataclasses.fields(options) if f.name not in common]
    changes = {name: value for name in own if (value := getattr(options, name)) is not None}
    if options.redraw:
      self._refuse_beside_redraw(options, changes)
      found = records.read(folder)
      if f'experiments.{self.name}' not in found.about.get('command', '').split():
        raise InputError(f'{folder}: not results of experiments.{self.name}')
    else:
      found = self.run(
        options.scale, folder, parts=options.part, first_seed=options.seed, seeds=options.seeds,
        save_seconds=options.save_seconds, profile=options.profile, **changes,
      )  # fmt: skip
    self._show(folder, found)

  def _refuse_beside_redraw(self, options, changes: dict):
    """A figure is drawn again from what was saved: flags that would change the results contradict that."""
    given = [*changes, *(n for n in ('scale', 'part', 'seed', 'seeds', 'profile')
                         if getattr(options, n) != getattr(type(options)(), n))]  # fmt: skip
    if given:
      raise InputError(f'--{given[0]} and --redraw contradict each other: the saved results decide')

  def run(
    self, scale: str = 'laptop', folder: str | Path | None = None, *, parts: Sequence[str] = (),
    first_seed: int | None = None, seeds: int | None = None, save_seconds: float = 30,
    profile: bool = False, **changes,
  ) -> Records:  # fmt: skip
    """Measure a preset, or some of its parts, with some of its fields changed; what was measured before is kept."""
    folder = Path(folder or f'runs/{self.name}')
    presets = self.parts(scale)
    if unknown := set(parts) - presets.keys():
      raise InputError(
        f'--part={min(unknown)}: --scale={scale} has {", ".join(filter(None, presets)) or "no parts"}'
      )
    machine.one_device_per_core()
    if self.compile_quickly:
      machine.compile_quickly()
    first_seed = self.first_seed if first_seed is None else first_seed
    chosen_parts = {name: preset for name, preset in presets.items() if not parts or name in parts}
    for name in changes:
      if len({getattr(preset, name) for preset in chosen_parts.values()}) > 1:
        raise InputError(
          f'--{name}: the parts of --scale={scale} differ in it; choose one by --part'
        )
    for name, preset in chosen_parts.items():
      preset = self.prepare(dataclasses.replace(preset, **changes))
      chosen = cli.seeds(first_seed, getattr(preset, 'seeds', 1) if seeds is None else seeds)
      about = {
        'command': self._command(scale, name, first_seed, seeds, changes), 'scale': scale,
        'setting': dataclasses.asdict(preset), 'seeds': list(chosen),
      }  # fmt: skip
      self._measure(folder / name, preset, chosen, about, save_seconds, profile)
    return self._merged(folder, scale, presets)

  def _measure(
    self, folder: Path, preset, seeds: range, about: dict, save_seconds: float, profile: bool
  ):
    """One part, in a folder of its own."""
    made = {'code': machine.code_hash(), 'device': machine.device(), 'versions': machine.versions()}
    with contextlib.ExitStack() as stack:
      progress = stack.enter_context(Progress(self.name, folder))
      trainer = None
      if self.resumes:
        machine.keep_compiled(folder.parent)
        held = stack.enter_context(runs.Run(folder, about | made, cli.warn))
        trainer = Trainer(
          held, save_seconds, progress, folder / 'profile' if profile and hosts.first() else None
        )
      table = pd.DataFrame(self.measure(trainer or progress, preset, seeds))
      if trainer:
        trainer.save()
      if trainer and trainer.trace:
        cli.warn('no profile was written: training was over before it was compiled and under way')
      if hosts.first():
        records.write(folder / records.FILE, Records(about | made, table))

  def _merged(self, folder: Path, scale: str, presets) -> Records:
    """The records of all parts that are done, put together where there are several."""
    if list(presets) == ['']:
      return records.read(folder)
    done = {
      name: records.read(folder / name)
      for name in presets
      if (folder / name / records.FILE).exists()
    }
    first = next(iter(done.values())).about
    about = {
      'command': shlex.join(self.command(scale)), 'scale': scale, 'device': first['device'], 'versions': first['versions'],
      'parts': {name: part.about for name, part in done.items()},
    }  # fmt: skip
    merged = records.merge(about, list(done.values()))
    records.write(folder / records.FILE, merged)
    return merged

  def _command(
    self, scale: str, part: str, first_seed: int, seeds: int | None, changes: dict
  ) -> str:
    """What redoes a part: its scale, and what was given of the other flags that results depend on."""
    given = {
      'part': part or None,
      'seed': first_seed if first_seed != self.first_seed else None,
      'seeds': seeds,
    }
    words = [
      f'--{name}={one}'
      for name, value in (given | changes).items() if value is not None
      for one in (value if isinstance(value, tuple) else (value,))
    ]  # fmt: skip
    return shlex.join([*self.command(scale), *words])

  def draw(self, table: pd.DataFrame, folder: Path) -> list[Path]:
    """The figure, as PNG and PDF; none where there is nothing to draw."""
    if self.plot is None:
      return []
    with matplotlib.rc_context(plotting.STYLE):
      figure = self.plot(table)
      return plotting.save(figure, Path(folder) / self.name) if figure else []

  def _show(self, folder: Path, found: Records):
    """Findings and figure beside the records, and what a terminal shows of them."""
    findings = self.findings(found.table)
    records.write_findings(folder / records.FINDINGS, findings)
    if self.by:
      print(render.table(statistics.summarize(found.table, *self.by)) + '\n')
    print(render.findings(findings, 'terminal'))
    for path in self.draw(found.table, folder):
      print(f'figure: {path}')
    print(f'records: {folder / records.FILE}; findings: {folder / records.FINDINGS}')
    if self.more:
      print(self.more(found.table))
    if self.strict and (broken := [f.what for f in findings if f.holds is False]):
      raise SystemExit(f'FAILED: {"; ".join(broken)}')
