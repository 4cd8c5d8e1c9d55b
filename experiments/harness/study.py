"""A study: one experiment as an object, which is also its command-line binary.

A file `experiments/NAME.py` defines the claims, the sizes, what is measured, what is expected and how it is drawn, and
ends in `STUDY = Study(...)`. Everything else is here: flags, runs that can be killed and resumed, long runs in parts,
records, findings, tables, figures.
"""

import dataclasses
import inspect
import itertools
import shlex
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.harness import cli, machine, plotting, records, render, statistics
from experiments.harness.findings import Claim, Finding
from experiments.harness.records import Records
from experiments.harness.trainer import Progress, training
from geomem import facts as fact
from geomem import hosts
from geomem.errors import InputError

Scale = Literal['smoke', 'laptop', 'full']
SCALES = typing.get_args(Scale)
FIRST_SEED = 100  # of the measurements: settings were chosen on the seeds below


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """`presets`: for each scale a frozen dataclass, or several by the names of their parts.

  `measure(trainer, preset, seeds)`: a record (a flat dict) for every number. `expect(table)`: the findings.
  `plot(table)`: the figure, None if there is nothing to draw.
  `by`: the columns that define the groups whose means over seeds the terminal shows. `terms`: definitions of the words
  in the findings. `page`: the one of docs/ that has its table.
  `minutes`: the time of the laptop preset on one core, as `make reproduce` runs it. `resumes`: whether `measure` gets a `Trainer`, which
  saves checkpoints in the run's folder, or only a progress line.
  `missing()`: what must be fetched first, if anything. `prepare(preset)`: the preset with what is read beforehand.
  `more(table)`: what else the terminal shows. `listed()`: what --list shows. `strict`: an expectation that does not
  hold is an error in the code, and the binary fails.
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
  page: str = 'results.md'
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
    """The presets of a scale by part name; a preset without parts is the only part, and has no name."""
    if scale not in self.presets:
      raise InputError(f'--scale={scale}: experiments.{self.name} has {", ".join(self.presets)}')
    preset = self.presets[scale]
    return dict(preset) if isinstance(preset, Mapping) else {'': preset}

  def findings(self, table: pd.DataFrame) -> list[Finding]:
    return list(self.expect(table))

  def command(self, scale: str, **given: Any) -> list[str]:
    """The command that runs it, with the other flags given that results depend on."""
    return cli.command(self.name, {'scale': scale, **given})

  def main(self, argv: Sequence[str] | None = None):
    """The binary: parse the flags, run, print."""
    doc = f'{inspect.getdoc(inspect.getmodule(self.measure))}\n\nThe laptop preset takes about {self.minutes:g} min on one core.'
    cli.run(self._main, dict, argv, doc, self._flags())

  def _flags(self) -> cli.Flags:
    """The flags of `run`, a few more, and one for every preset field with a common name or a help text."""
    flags = cli.flags_of(self.run)
    flags['seed'] = flags['seed'][0], self.first_seed
    flags['redraw'] = Annotated[bool, 'Draw again from the results.json in the workdir.'], False
    if self.listed:
      flags['list'] = bool, False
    if not self.resumes:
      del flags['save_seconds'], flags['profile']
    parts = [
      f'{", ".join(p)} (--scale={scale})'
      for scale, p in self.presets.items()
      if isinstance(p, Mapping)
    ]
    if parts:
      flags['part'] = Annotated[tuple[str, ...], f'Only this part: {"; ".join(parts)}.'], ()
    else:
      del flags['part']
    preset = next(iter(self.parts(next(iter(self.presets))).values()))
    for name, (kind, _) in cli.flags_of(type(preset)).items():
      if name in cli.COMMON or typing.get_origin(kind) is Annotated:
        flags[name] = kind, None
    return flags

  def _main(self, given: dict):
    """Measure, or read the saved results, and show them."""
    if given.pop('list', False) and self.listed:
      print(self.listed())
      return
    folder = cli.writable(given.pop('workdir', f'runs/{self.name}'))
    if not given.pop('redraw', False):
      found = self.run(workdir=folder, **given)
    elif given:
      raise InputError(
        f'--{next(iter(given))} and --redraw contradict each other: the saved results decide'
      )
    else:
      found = records.read(folder)
      if f'experiments.{self.name}' not in found.about.get('command', '').split():
        raise InputError(f'{folder}: not results of experiments.{self.name}')
    self._show(folder, found)

  def run(
    self,
    scale: Scale = 'laptop',
    workdir: Annotated[str | Path | None, 'Folder of the run (default: runs/NAME).'] = None,
    *,
    part: tuple[str, ...] = (),
    seed: Annotated[int | None, 'The first seed, for parameters and facts.'] = None,
    save_seconds: int = 30,
    profile: bool = False,
    **changes,
  ) -> Records:
    """Measure a preset, or some of its parts, with some fields changed; earlier measurements are kept."""
    folder, presets = Path(workdir or f'runs/{self.name}'), self.parts(scale)
    if unknown := set(part) - presets.keys():
      known = ', '.join(filter(None, presets)) or 'no parts'
      raise InputError(f'--part={min(unknown)}: --scale={scale} has {known}')
    chosen = {name: preset for name, preset in presets.items() if not part or name in part}
    for name in changes:
      if len({getattr(preset, name) for preset in chosen.values()}) > 1:
        raise InputError(
          f'--{name}: the parts of --scale={scale} differ in it; choose one by --part'
        )
    machine.one_device_per_core()
    if self.compile_quickly:
      machine.compile_quickly()
    first = self.first_seed if seed is None else seed
    for name, preset in chosen.items():
      preset = self.prepare(dataclasses.replace(preset, **changes))
      sizes = (np.atleast_1d(getattr(preset, n, d)) for n, d in (('subjects', 2), ('relations', 1)))
      for subjects, relations in itertools.product(*sizes):  # before the run takes a folder
        fact.check_sizes(int(subjects), int(relations))
      seeds = cli.seeds(first, getattr(preset, 'seeds', 1))
      given = {'part': name or None, 'seed': None if first == self.first_seed else first, **changes}
      about = {
        'command': shlex.join(self.command(scale, **given)), 'scale': scale,
        'setting': dataclasses.asdict(preset), 'seeds': list(seeds), **machine.made_with(),
      }  # fmt: skip
      own = folder / name
      trains = training(self.name, own, about, save_seconds, profile) if self.resumes else None
      with trains or Progress(self.name, own) as at_work:
        table = pd.DataFrame(self.measure(at_work, preset, seeds))
        hosts.on_first_process(records.write)(own / records.FILE, Records(about, table))
      merged = self._merged(folder, scale, presets)
    return merged

  def _merged(self, folder: Path, scale: str, presets) -> Records:
    """The records of all finished parts, concatenated if there are several."""
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
    }  # fmt: skip
    merged = records.merge(about, done)
    records.write(folder / records.FILE, merged)
    return merged

  def draw(
    self,
    table: pd.DataFrame,
    folder: Path,
    name: str | None = None,
    kinds: Sequence[str] = plotting.KINDS,
  ) -> list[Path]:
    """Save the figure as FOLDER/NAME, the study's name by default, as PNG and PDF, with the same bytes every time;
    none if there is nothing to draw."""
    with matplotlib.rc_context(plotting.STYLE):
      figure = self.plot(table) if self.plot else None
      return plotting.save(figure, Path(folder) / (name or self.name), kinds) if figure else []

  def _show(self, folder: Path, found: Records):
    """Write findings and figures next to the records, and print a summary."""
    findings = self.findings(found.table)
    records.write_findings(folder / records.FINDINGS, findings)
    if self.by:
      by = [name for name in self.by if name in found.table]  # a part may not have all columns
      print(render.table(statistics.summarize(found.table, *by)) + '\n')
    if findings:
      print(render.findings(findings, 'terminal'))
    for path in self.draw(found.table, folder):
      print(f'figure: {path}')
    print(f'records: {folder / records.FILE}; findings: {folder / records.FINDINGS}')
    if self.more:
      print(self.more(found.table))
    if self.strict and (broken := [f.what for f in findings if f.holds is False]):
      raise SystemExit(f'FAILED: {"; ".join(broken)}')
