"""Write the report of a reproduction, report.html and report.md, from what its runs recorded.

  python -m experiments.report
  python -m experiments.report --scale=full

Reads WORKDIR/SCALE/NAME/results.json of every study, draws the figures, as PNG and PDF, and writes both pages.
What was not measured there is taken from docs/results, and marked so. Figures whose records are the same are kept
until the code changes, and so are the data of the explorer, in WORKDIR/SCALE/explorer.json.
"""

import base64
import contextlib
import dataclasses
import hashlib
import html
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import matplotlib

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
  """Every study's figure drawn from its records, unless this code has drawn these; the PNG of each."""
  index, known = folder / 'drawn.json', {}
  with contextlib.suppress(FileNotFoundError, ValueError):
    known = dict(json.loads(index.read_text(encoding='utf-8')))
  drawn, made = {}, f'{machine.code_hash()} {machine.versions()} {matplotlib.__version__}'
  for name, m in results.items():
    digest = hashlib.sha256((made + m.records.table.to_json()).encode()).hexdigest()
    old, files = known.get(name, (None, []))
    if digest != old or not all((folder / file).exists() for file in files):
      folder.mkdir(parents=True, exist_ok=True)
      files = [path.name for path in m.study.draw(m.records.table, folder)]
      known[name] = digest, files
      records.write_text(index, json.dumps(known))
    if files:
      drawn[name] = next(folder / file for file in files if file.endswith('.png'))
  return drawn


def mechanism() -> str:
  """The selector at work on one query, as SVG, without the XML prologue, sized by the page."""
  built = constructions.build('selector', Facts.bijections(8, 3))
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, 'selector.svg')
    trace_figure.draw(built.trace('s2 r1'), path)
    svg = path.read_text(encoding='utf-8')
  return svg[svg.index('<svg') :]


def title(m: Result) -> str:
  return f'{m.study.title[0].upper()}{m.study.title[1:]}. {m.study.terms}'


def markdown(rows, results: dict[str, Result], drawn: dict[str, Path], agreed: str) -> str:
  out = ['# Geometric factual recall, reproduced\n', answer(rows, results) + '\n', agreed + '\n']
  out += ['| statement | what it says | verdict | measured | by |', '|---|---|---|---|---|']
  for name, claim, found in rows:
    shown = judged_first(found)[:SHOWN]
    some = '<br>'.join(f'{f.what}: **{render.number(f)}**{render.beside(f)}' for f in shown)
    by = f'[{name}](#{name})' if name in results else name
    out.append(f'| {claim.name} | {claim.says} | {verdict(found)[1]} | {some} | {by} |')
  out.append(f'\nIn the tables below, {render.UNSURE}.')
  for name, m in results.items():
    out += [f'\n## {name}\n', title(m) + '\n', f'`{m.records.about["command"]}`; {m.origin}.\n']
    if name in drawn:
      out.append(f'![{name}](figures/{drawn[name].name})\n')
    out.append(render.findings(m.findings, 'markdown'))
  return '\n'.join(out)


def page(
  rows, results: dict[str, Result], drawn: dict[str, Path], agreed: str, explored: dict
) -> str:
  """One file with all in it; `explored`: the data of the explorer."""
  asset = lambda name: (PAGE / name).read_text(encoding='utf-8')
  parts = {
    'style': asset('report.css'),
    'answer': html.escape(answer(rows, results)),
    'agreed': html.escape(agreed),
    'rows': '\n'.join(_row(name, claim, found, results.get(name)) for name, claim, found in rows),
    'versions': html.escape(', '.join(f'{k} {v}' for k, v in machine.versions().items())),
    'mechanism': mechanism(),
    'sections': '\n'.join(_section(name, m, drawn.get(name)) for name, m in results.items()),
    'explorer': explorer.section(explored),
  }
  text = asset('report.html')
  for name, part in parts.items():
    text = text.replace(f'{{{{{name}}}}}', part)
  return text


def _row(name: str, claim: Claim, found: Sequence[Finding], m: Result | None) -> str:
  """A claim in the table."""
  e, (kind, word), own = html.escape, verdict(found), judged_first(found)
  some = ''.join(
    f'<li class="{"yes" if f.holds else "no"}">{e(f.what)}: <b>{e(render.number(f))}</b>{e(render.beside(f))}</li>'
    for f in own[:SHOWN]
  )
  more = f'<li class="more">and {len(own) - SHOWN} more</li>' if len(own) > SHOWN else ''
  by = name
  if m:
    aside = minutes(m.seconds) if m.here else 'committed records'
    by = f'<a href="#{name}">{name}</a><br><span class="aside">{aside}</span>'
  return (
    f'<tr><th scope="row">{e(claim.name)}<p>{e(claim.says)}</p></th><td><span class="{kind}">{word}</span></td>'
    f'<td><ul>{some}{more}</ul></td><td>{by}</td></tr>'
  )


def _section(name: str, m: Result, picture: Path | None) -> str:
  e, image = html.escape, ''
  if picture:
    data = base64.b64encode(picture.read_bytes()).decode()
    image = f'<img alt="{e(m.study.title)}" src="data:image/png;base64,{data}">'
  return (
    f'<section id="{name}"><h3>{name.replace("_", " ")}</h3><p>{e(title(m))}</p>{image}'
    f'<p class="aside"><code>{e(m.records.about["command"])}</code><br>{e(m.origin)}</p>'
    f'<details><summary>{len(m.findings)} findings ({render.UNSURE})</summary>'
    f'<div class="wide">{render.findings(m.findings, "html")}</div></details></section>'
  )


def write(folder: Path, scale: str) -> list[Path]:
  """Figures and both pages."""
  results = gather(folder, scale)
  drawn, rows = figures(results, folder / 'figures'), statements(results)
  explored, agreed = explorer.kept(folder / 'explorer.json'), agreement(results, scale)
  pages = {
    folder / 'report.html': page(rows, results, drawn, agreed, explored),
    folder / 'report.md': markdown(rows, results, drawn, agreed),
  }
  for path, text in pages.items():
    records.write_text(path, text)
  return list(pages)


def main(options: Options):
  folder = cli.writable(options.workdir) / options.scale
  if not any(folder.glob(f'*/{DONE}')):
    raise InputError(f'{folder}: nothing was measured there; run experiments.reproduce first')
  print('\n'.join(map(str, write(folder, options.scale))))


if __name__ == '__main__':
  cli.run(main, Options)
