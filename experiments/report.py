"""Write the report of a reproduction, report.html and report.md, from what its runs recorded.

  python -m experiments.report
  python -m experiments.report --scale=full

Reads WORKDIR/SCALE/NAME/results.json of every study, draws the figures, as PNG and PDF, and writes both pages.
What was not measured there is taken from docs/results, and marked so. The data of the explorer are kept in
WORKDIR/SCALE/explorer.json until the code changes.
"""

import base64
import collections
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import jinja2

import constructions
from experiments import pages
from experiments.harness import cli, machine, records, render, studies
from experiments.harness.findings import Claim, Finding, of_claim, verdict
from experiments.harness.records import Records
from experiments.harness.study import Study
from experiments.page import explorer, trace_figure
from geomem import Facts
from geomem.errors import InputError

DONE = 'reproduced.json'  # what `experiments.reproduce` leaves where a study is finished
EXACT = (
  'A transformer can hold its facts in the embeddings, as superpositions from which a small MLP '
  'selects by relation: that is exact in the weights built here, and what gradient descent finds '
  'comes as near to it as the numbers below say, each with its spread over seeds and its controls.'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  scale: Annotated[
    Literal['smoke', 'laptop', 'full'],
    'Preset of every study: smoke shows nothing, laptop takes the minutes that experiments.reproduce --list shows, '
    'full takes hours.',
  ] = 'laptop'
  workdir: Annotated[str, 'Folder of the runs and the report.'] = 'runs/reproduce'


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
  """A study's records and findings; `seconds`: what measuring them took in this run, None if they are committed."""

  study: Study
  records: Records
  findings: list[Finding]
  seconds: float | None = None

  @property
  def about(self) -> str:
    """What was measured, and what the words of its findings mean."""
    return f'{self.study.title[0].upper()}{self.study.title[1:]}. {self.study.terms}'

  @property
  def origin(self) -> str:
    about = self.records.about
    device = about.get('device', 'any device')
    if self.seconds is None:
      return f'not measured in this run; from the committed records: {device}'
    codes = {part.get('code') for part in about.get('parts', {'': about}).values()}
    other = '; measured by other code than this report’s' * (codes != {machine.code_hash()})
    return f'{device}, {duration(self.seconds)}{other}'


def duration(seconds: float) -> str:
  return f'{seconds / 60:.1f} min' if seconds >= 60 else f'{seconds:.0f} s'


def gather(folder: Path, scale: str) -> dict[str, Result]:
  """What is known of every study: from the run, else from what was committed, of the scale if there are both."""
  found = {}
  for name, study in studies.load_all().items():
    done, kept, seconds = folder / name / DONE, pages.committed(name), None
    if done.exists():
      own = records.read(folder / name)
      seconds = json.loads(done.read_text(encoding='utf-8'))['seconds']
    elif kept:
      own = pages.kept(kept[-1 if scale == 'full' else 0])
    else:
      continue
    found[name] = Result(study, own, study.findings(own.table), seconds)
  return found


def agreement(results: dict[str, Result], scale: str) -> str:
  """How the findings of this run lie beside those of the committed records, of this preset."""
  intervals, expectations = [], {}
  for name, own in results.items():
    stem = name + pages.FULL * (scale == 'full')
    if own.seconds is None or scale == 'smoke' or stem not in pages.committed(name):
      continue
    there = {f.what: f for f in own.study.findings(pages.kept(stem).table)}
    for f, g in [(f, there[f.what]) for f in own.findings if f.what in there]:
      if not math.isnan(f.low + g.low):  # what varies hardly, by a thousandth
        apart = max(f.low, g.low) - min(f.high, g.high)
        intervals.append(apart <= 1e-3 * abs(g.value))
      if f.holds is not None:
        expectations[f'{f.what} ({name})'] = f.holds is g.holds
  if not intervals and not expectations:
    return ''
  other = [what for what, alike in expectations.items() if not alike]
  return (
    f'Beside the committed records: of {len(intervals)} intervals {sum(intervals)} overlap; of {len(expectations)} '
    f'expectations {sum(expectations.values())} come out alike{", all but: " * bool(other)}{"; ".join(other)}.'
  )


def statements(results: dict[str, Result]) -> list[tuple[str, Claim, list[Finding]]]:
  """Every claim with its study and what bears on it, also where nothing was measured."""
  return [
    (name, claim, of_claim(claim, results[name].findings) if name in results else [])
    for name, study in studies.load_all().items()
    for claim in study.claims
  ]


def answer(rows: Sequence[tuple[str, Claim, list[Finding]]], results: dict[str, Result]) -> str:
  """The report in a paragraph: where its numbers are from, what they say, and what follows if it does."""
  here, committed = 'measured in this run', 'from committed records'
  kinds, origins = collections.defaultdict(list), collections.Counter({here: 0, committed: 0})
  for name, claim, found in rows:
    kind, origin = verdict(found)
    kinds[kind].append(claim.name)
    if kind != 'none':
      origin = committed if results[name].seconds is None else here
    origins[origin] += 1
  counts = ', '.join(f'{count} {words}' for words, count in origins.items() if count)
  said = [f'{len(rows)} statements: {counts}.', f'{len(kinds["holds"])} hold as expected.']
  words = {'part': 'In part', 'short': 'Short of what was expected', 'none': 'Not measured'}
  said += [f'{words[kind]}: {", ".join(kinds[kind])}.' for kind in words if kinds[kind]]
  built = results['construct'].findings if 'construct' in results else []
  if verdict([f for f in built if not f.check])[0] == 'holds':
    said.append(EXACT)
  return ' '.join(said)


def figures(results: dict[str, Result], folder: Path) -> dict[str, Path]:
  """Every study's figure, drawn from its records; the PNG of each."""
  folder.mkdir(parents=True, exist_ok=True)
  drawn = {name: own.study.draw(own.records.table, folder) for name, own in results.items()}
  return {name: path for name, paths in drawn.items() for path in paths if path.suffix == '.png'}


def mechanism(path: Path) -> str:
  """The selector at work on one query, drawn to `path`; as SVG without the XML prologue, sized by the page."""
  built = constructions.build('selector', Facts.bijections(8, 3))
  trace_figure.draw(built.trace('s2 r1'), path)
  return '<svg' + path.read_text(encoding='utf-8').partition('<svg')[2]


def inline(path: Path) -> str:
  """A picture as the address of its own data."""
  return f'data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}'


def page(template: str, **values) -> str:
  """A page from its template; HTML is escaped."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / 'page'),
    autoescape=jinja2.select_autoescape(['html']),
    trim_blocks=True,
    lstrip_blocks=True,
  )
  functions = {'render': render, 'verdict': verdict, 'duration': duration, 'inline': inline}
  return environment.get_template(template).render(**functions, **values)


def write(folder: Path, scale: str) -> list[Path]:
  """Figures and both pages."""
  results = gather(folder, scale)
  rows, drawn = statements(results), figures(results, folder / 'figures')
  values = {
    'answer': answer(rows, results),
    'agreed': agreement(results, scale),
    'rows': rows,
    'results': results,
    'drawn': drawn,
    'mechanism': mechanism(folder / 'figures' / 'mechanism.svg'),
    'explorer': explorer.kept(folder / 'explorer.json'),
    'versions': machine.versions(),
  }
  paths = [folder / 'report.html', folder / 'report.md']
  for path in paths:
    records.write_text(path, page(path.name, **values))
  return paths


def main(options: Options):
  folder = cli.writable(options.workdir) / options.scale
  if not any(folder.glob(f'*/{DONE}')):
    raise InputError(f'{folder}: nothing was measured there; run experiments.reproduce first')
  print('\n'.join(map(str, write(folder, options.scale))))


if __name__ == '__main__':
  cli.run(main, Options)
