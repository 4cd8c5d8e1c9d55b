"""Write the report of a reproduction, report.html, from the records of its runs.

  python -m experiments.report
  python -m experiments.report --scale=full

Reads WORKDIR/SCALE/NAME/results.json of every study, draws the figures as PNG and PDF, and writes the page.
Studies that were not measured there are taken from docs/results, and marked as such.
"""

import base64
import collections
import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Annotated

import jinja2

import constructions
from experiments import pages
from experiments.harness import cli, machine, records, render, studies
from experiments.harness.findings import verdict
from experiments.harness.study import Scale, Study
from experiments.pages import Result
from experiments.web import explorer, trace_figure
from geomem import Facts
from geomem.errors import InputError

RUN_STATUS = 'reproduced.json'  # written by `experiments.reproduce`: the seconds of all tries, and whether it is finished


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  scale: Scale = 'laptop'
  workdir: Annotated[str, 'Folder of the runs and the report.'] = 'runs/reproduce'


def result_in(study: Study, folder: Path) -> Result | None:
  """The result that a finished run has left in its folder."""
  path = folder / RUN_STATUS
  if not path.exists():
    return None
  tries = json.loads(path.read_text(encoding='utf-8'))
  return Result(study, records.read(folder), tries['seconds']) if tries.get('finished') else None


def gather(folder: Path, scale: str) -> list[Result]:
  """The result of every study: from the run, else from the committed records, of this scale if there are both."""
  found = []
  for name, study in studies.load_all().items():
    own, names = result_in(study, folder / name), pages.result_names(name)
    if own is None and names:
      own = pages.committed(names[-1 if scale == 'full' else 0])
    found.append(own or Result(study))
  return found


def agreement(results: list[Result], scale: str) -> str:
  """How the findings of this run agree with those of the committed records of the same preset."""
  intervals, expectations = [], {}
  for own in results:
    name = own.study.name
    result_name = name + pages.FULL * (scale == 'full')
    if own.seconds is None or scale == 'smoke' or result_name not in pages.result_names(name):
      continue
    there = {f.what: f for f in pages.committed(result_name).findings}
    for f, g in [(f, there[f.what]) for f in own.findings if f.what in there]:
      if not math.isnan(f.low + g.low):  # allow a thousandth, for values that hardly vary
        apart = max(f.low, g.low) - min(f.high, g.high)
        intervals.append(apart <= 1e-3 * abs(g.value))
      if f.holds is not None:
        expectations[f'{f.what} ({name})'] = f.holds is g.holds
  if not intervals and not expectations:
    return ''
  other = [what for what, alike in expectations.items() if not alike]
  return (
    f'Compared with the committed records, {sum(intervals)} of {len(intervals)} intervals overlap and '
    f'{sum(expectations.values())} of {len(expectations)} expectations have the same outcome'
    f'{"; exceptions: " * bool(other)}{"; ".join(other)}.'
  )


def answer(results: list[Result]) -> str:
  """How many statements hold, and how many are judged by measurements of this run."""
  kinds = collections.Counter(verdict(found)[0] for own in results for _, found in own.claims)
  here = sum(len(own.claims) for own in results if own.seconds is not None)
  return (
    f'Of {kinds.total()} statements, {kinds["holds"]} held as expected, {kinds["part"]} held in part and '
    f'{kinds["short"]} fell short; not measured: {kinds["none"]}. This run measured {here} of them; all other '
    'results are from the committed records.'
  )


def figures(results: list[Result], folder: Path) -> dict[str, Path]:
  """Draw every study's figures from its records; the paths of the PNGs by name."""
  folder.mkdir(parents=True, exist_ok=True)
  paths = [own.study.draw(own.records.table, folder) for own in results if own.records.about]
  return {path.stem: path for path in itertools.chain(*paths) if path.suffix == '.png'}


def mechanism(path: Path) -> str:
  """Draw the selector answering one query to `path`; returns it as SVG without the XML prologue, sized by the page."""
  built = constructions.build('selector', Facts.bijections(8, 3))
  trace_figure.draw(built.trace('s2 r1'), path)
  return '<svg' + path.read_text(encoding='utf-8').partition('<svg')[2]


def inline(path: Path) -> str:
  """A picture as a data URL."""
  return f'data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}'


def page(template: str, **values) -> str:
  """Render a page from its template; HTML is escaped."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / 'web'),
    autoescape=jinja2.select_autoescape(['html']),
    trim_blocks=True,
    lstrip_blocks=True,
  )
  functions = {'render': render, 'verdict': verdict, 'inline': inline}
  return environment.get_template(template).render(**functions, **values)


def write(folder: Path, scale: str, results: list[Result]) -> Path:
  """Write the figures and the page, whose path is returned."""
  values = {
    'answer': answer(results),
    'agreed': agreement(results, scale),
    'results': results,
    'drawn': figures(results, folder / 'figures'),
    'mechanism': mechanism(folder / 'figures' / 'mechanism.svg'),
    'explorer': explorer.kept(folder / 'explorer.json'),
    'versions': machine.versions(),
  }
  path = folder / 'report.html'
  records.write_text(path, page(path.name, **values))
  return path


def main(options: Options):
  folder = cli.writable(options.workdir) / options.scale
  results = gather(folder, options.scale)
  if all(own.seconds is None for own in results):
    raise InputError(f'{folder}: nothing was measured there; run experiments.reproduce first')
  print(write(folder, options.scale, results))


if __name__ == '__main__':
  cli.run(main, Options)
