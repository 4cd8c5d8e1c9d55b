"""Write the report of a reproduction, report.html and report.md, from what its runs recorded.

  python -m experiments.report
  python -m experiments.report --scale=full

Reads WORKDIR/SCALE/NAME/results.json of every study, draws the figures, as PNG and PDF, and writes both pages.
What was not measured there is taken from docs/results, and marked so. The data of the explorer are kept in
WORKDIR/SCALE/explorer.json until the code changes.
"""

import base64
import dataclasses
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import jinja2

import constructions
from experiments.harness import cli, machine, records, render, studies
from experiments.harness.findings import Claim, Finding, of_claim, verdict
from experiments.harness.records import Records
from experiments.harness.study import Study
from experiments.page import explorer, trace_figure
from geomem import Facts
from geomem.errors import InputError

ROOT = Path(__file__).parents[1]
COMMITTED, PAGE = ROOT / 'docs' / 'results', Path(__file__).parent / 'page'
DONE = 'reproduced.json'  # what `experiments.reproduce` leaves where a study is finished
EXACT = (
  'A transformer can hold its facts in the embeddings, as superpositions from which a small MLP '
  'selects by relation: that is exact in the weights built here, and what gradient descent finds '
  'comes as near to it as the numbers below say, each with its spread over seeds and its controls.'
)
SHOWN = 4  # findings of a claim in the table; the others stand below


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  scale: Annotated[Literal['smoke', 'laptop', 'full'], 'Preset of the runs.'] = 'laptop'
  workdir: Annotated[str, 'Folder of the runs and the report.'] = 'runs/reproduce'


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
  """A study's records, measured in this run or committed; `seconds`: None where it is not known."""

  study: Study
  records: Records
  seconds: float | None
  here: bool
  findings: list[Finding]

  @property
  def about(self) -> str:
    """What was measured, and what the words of its findings mean."""
    return f'{self.study.title[0].upper()}{self.study.title[1:]}. {self.study.terms}'

  @property
  def origin(self) -> str:
    device = self.records.about.get('device', 'any device')
    if not self.here:
      return f'not measured in this run; from the committed records: {device}'
    codes = {
      part.get('code')
      for part in self.records.about.get('parts', {'': self.records.about}).values()
    }
    other = '; measured by other code than this report’s' * (codes != {machine.code_hash()})
    return f'{device}, {minutes(self.seconds)}{other}'


def minutes(seconds: float | None) -> str:
  return (
    '' if seconds is None else f'{seconds / 60:.1f} min' if seconds >= 60 else f'{seconds:.0f} s'
  )


def gather(folder: Path, scale: str) -> dict[str, Result]:
  """What is known of every study: from the run, else from what was committed."""
  found = {}
  for name, study in studies.load_all().items():
    done, kept = folder / name / DONE, _committed(name, scale)
    if here := done.exists():
      own = records.read(folder / name)
    elif kept:
      own = records.read(kept)
    else:
      continue
    seconds = json.loads(done.read_text(encoding='utf-8'))['seconds'] if here else None
    found[name] = Result(study, own, seconds, here, study.findings(own.table))
  return found


def _committed(name: str, scale: str) -> Path | None:
  """The committed records, of the preset that is as large or else of the other."""
  stems = sorted((name, f'{name}_full'), reverse=scale == 'full')
  paths = (COMMITTED / f'{stem}.json' for stem in stems)
  return next((path for path in paths if path.exists()), None)


def agreement(results: dict[str, Result], scale: str) -> str:
  """How the findings of this run lie beside those of the committed records, of this preset."""
  pairs = []
  for name, m in results.items():
    path = COMMITTED / f'{name}{"_full" * (scale == "full")}.json'
    if m.here and path.exists() and scale != 'smoke':
      there = {f.what: f for f in m.study.findings(records.read(path).table)}
      pairs += [(name, f, there[f.what]) for f in m.findings if f.what in there]
  if not pairs:
    return ''
  spread = [(f, g) for _, f, g in pairs if not any(math.isnan(x.low) for x in (f, g))]
  met = sum(
    max(f.low, g.low) <= min(f.high, g.high) + 1e-3 * abs(g.value) for f, g in spread
  )  # what varies hardly, by a thousandth
  judged = [pair for pair in pairs if pair[1].holds is not None]
  other = [f'{f.what} ({name})' for name, f, g in judged if f.holds is not g.holds]
  return (
    f'Beside the committed records: of {len(spread)} intervals {met} overlap; of {len(judged)} expectations '
    f'{len(judged) - len(other)} come out alike{", all but: " * bool(other)}{"; ".join(other)}.'
  )


def statements(results: dict[str, Result]) -> list[tuple[str, Claim, list[Finding]]]:
  """Every claim with its study and what bears on it, also where nothing was measured."""
  return [
    (name, claim, of_claim(claim, results[name].findings) if name in results else [])
    for name, study in studies.load_all().items()
    for claim in study.claims
  ]


def judged_first(findings: Sequence[Finding]) -> list[Finding]:
  """What was expected of a claim; what fell short first."""
  return sorted((f for f in findings if f.holds is not None), key=lambda f: bool(f.holds))


def answer(rows: Sequence[tuple[str, Claim, list[Finding]]], results: dict[str, Result]) -> str:
  """The report in a paragraph: where its numbers are from, what they say, and what follows if it does."""
  names = {kind: [claim.name for _, claim, found in rows if verdict(found)[0] == kind]
           for kind in ('holds', 'part', 'short', 'none')}  # fmt: skip
  judged = [name for name, _, found in rows if verdict(found)[0] != 'none']
  here = sum(results[name].here for name in judged)
  counts = {
    'measured in this run': here, 'from committed records': len(judged) - here, 'not measured': len(rows) - len(judged),
  }  # fmt: skip
  origins = ', '.join(f'{count} {words}' for words, count in counts.items() if count)
  said = [f'{len(rows)} statements: {origins}.', f'{len(names["holds"])} hold as expected.']
  for kind, words in (
    ('part', 'In part'),
    ('short', 'Short of what was expected'),
    ('none', 'Not measured'),
  ):
    if names[kind]:
      said.append(f'{words}: {", ".join(names[kind])}.')
  if (
    'construct' in results
    and verdict([f for f in results['construct'].findings if not f.check])[0] == 'holds'
  ):
    said.append(EXACT)
  return ' '.join(said)


def figures(results: dict[str, Result], folder: Path) -> dict[str, Path]:
  """Every study's figure, drawn from its records; the PNG of each."""
  folder.mkdir(parents=True, exist_ok=True)
  drawn = {
    name: result.study.draw(result.records.table, folder) for name, result in results.items()
  }
  return {name: path for name, paths in drawn.items() for path in paths if path.suffix == '.png'}


def mechanism() -> str:
  """The selector at work on one query, as SVG, without the XML prologue, sized by the page."""
  built = constructions.build('selector', Facts.bijections(8, 3))
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, 'selector.svg')
    trace_figure.draw(built.trace('s2 r1'), path)
    svg = path.read_text(encoding='utf-8')
  return svg[svg.index('<svg') :]


def page(template: str, **values) -> str:
  """A page from its template; HTML is escaped."""
  escape = jinja2.select_autoescape(['html'])
  loader = jinja2.FileSystemLoader(PAGE)
  environment = jinja2.Environment(
    loader=loader, autoescape=escape, trim_blocks=True, lstrip_blocks=True
  )
  names = {
    'render': render,
    'verdict': verdict,
    'judged_first': judged_first,
    'minutes': minutes,
    'SHOWN': SHOWN,
  }
  return environment.get_template(template).render(**names, **values)


def inline(path: Path) -> str:
  """A picture as the address of its own data."""
  return f'data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}'


def write(folder: Path, scale: str) -> list[Path]:
  """Figures and both pages."""
  results = gather(folder, scale)
  drawn, rows = figures(results, folder / 'figures'), statements(results)
  shown = {
    'rows': rows, 'results': results, 'drawn': drawn, 'answer': answer(rows, results),
    'agreed': agreement(results, scale), 'versions': machine.versions(),
  }  # fmt: skip
  whole = {
    'style': (PAGE / 'report.css').read_text(encoding='utf-8'), 'mechanism': mechanism(),
    'explorer': explorer.section(explorer.kept(folder / 'explorer.json')),
    'pictures': {name: inline(path) for name, path in drawn.items()},
  }  # fmt: skip
  records.write_text(folder / 'report.html', page('report.html', **shown, **whole))
  records.write_text(folder / 'report.md', page('report.md', **shown))
  return [folder / 'report.html', folder / 'report.md']


def main(options: Options):
  folder = cli.writable(options.workdir) / options.scale
  if not any(folder.glob(f'*/{DONE}')):
    raise InputError(f'{folder}: nothing was measured there; run experiments.reproduce first')
  print('\n'.join(map(str, write(folder, options.scale))))


if __name__ == '__main__':
  cli.run(main, Options)
