"""Write the report of a reproduction, report.html and report.md, from what its runs recorded.

  python -m experiments.report
  python -m experiments.report --scale=accelerator

Reads WORKDIR/SCALE/NAME/results.json of every experiment, draws the figures, as PNG and PDF, and writes both
pages. What was not measured there is taken from docs/results, and marked so. Figures whose records are the
same are kept until the code changes, and so are the data of the explorer, in WORKDIR/SCALE/explorer.json.
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

import matplotlib
from absl import flags

from constructions import registry
from experiments import claims
from experiments.claims import Claim, Experiment
from experiments.figures import trace as trace_figure
from experiments.harness import cli, machine, storage
from experiments.harness.findings import COLUMNS, Finding, table, verdict
from experiments.page import explorer
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.inside import trace

FLAGS = flags.FLAGS
cli.define(
  scale='Preset of the runs: smoke, laptop or accelerator.',
  workdir='Folder of the runs and the report (default: runs/reproduce).',
)

ROOT = Path(__file__).parents[1]
COMMITTED, PAGE = ROOT / 'docs' / 'results', Path(__file__).parent / 'page'
DONE = 'reproduced.json'  # what `experiments.reproduce` leaves where an experiment is finished
EXACT = (
  'A transformer can hold its facts in the embeddings, as superpositions from which a small MLP '
  'selects by relation: that is exact in the weights built here, and what gradient descent finds '
  'comes as near to it as the numbers below say, each with its spread over seeds and its controls.'
)
UNSURE = '~: the bound lies within the interval'
SHOWN = 4  # findings of a claim in the table; the others stand below


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
  """An experiment's records, and what they were measured with. `seconds`: None where it is not known.

  `code`: a mark of the code that measured, of records from here.
  """

  experiment: Experiment
  records: list[dict]
  command: str
  device: str
  seconds: float | None
  here: bool
  findings: list[Finding]
  code: str | None = None

  @property
  def origin(self) -> str:
    if self.here:
      other = '; measured by other code than this report’s' * (self.code != machine.code())
      return f'{self.device}, {minutes(self.seconds)}{other}'
    return f'not measured in this run; from the committed records: {self.device}'


def minutes(seconds: float | None) -> str:
  return (
    '' if seconds is None else f'{seconds / 60:.1f} min' if seconds >= 60 else f'{seconds:.0f} s'
  )


def gather(folder: Path, scale: str) -> dict[str, Measured]:
  """What is known of every experiment: from the run, else from what was committed."""
  found = {}
  for name, experiment in claims.EXPERIMENTS.items():
    own, kept = folder / name, _kept(name, scale)
    if (own / DONE).exists():
      about = json.loads((own / DONE).read_text(encoding='utf-8'))
      records, device = storage.read_results(own), _device(own)
    elif kept:
      about = json.loads(kept.read_text(encoding='utf-8'))
      about = about.get('about', {}) if isinstance(about, dict) else {}
      records, device = storage.read_results(COMMITTED, kept.name), about.get('device', '')
    else:
      continue
    command = about.get('command', ' '.join(experiment.command(scale)))
    found[name] = Measured(
      experiment, records, command, device, about.get('seconds'), (own / DONE).exists(),
      experiment.module.findings(records), about.get('code'),
    )  # fmt: skip
  return found


def _kept(name: str, scale: str) -> Path | None:
  """The committed records, of the preset that is as large or else of the other."""
  stems = sorted((name, f'{name}_accelerator'), reverse=scale == 'accelerator')
  found = (COMMITTED / f'{stem}.json' for stem in stems)
  return next((path for path in found if path.exists()), None)


def _device(folder: Path) -> str:
  """Where a run was; what is exact is the same everywhere, and does not say."""
  path = folder / 'config.json'
  return json.loads(path.read_text(encoding='utf-8'))['device'] if path.exists() else 'any device'


def agreement(measured: dict[str, Measured], scale: str) -> str:
  """How the findings of this run lie beside those of the committed records, of this preset."""
  pairs = []
  for name, m in measured.items():
    kept = (
      COMMITTED / f'{name}{"_accelerator" * (scale == "accelerator" and m.experiment.scaled)}.json'
    )
    if m.here and kept.exists() and (scale != 'smoke' or not m.experiment.scaled):
      committed = m.experiment.module.findings(storage.read_results(COMMITTED, kept.name))
      there = {f.what: f for f in committed}
      pairs += [(name, f, there[f.what]) for f in m.findings if f.what in there]
  if not pairs:
    return ''
  spread = [pair for pair in pairs if not any(math.isnan(f.low) for f in pair[1:])]
  met = sum(
    max(f.low, g.low) <= min(f.high, g.high) + 1e-3 * abs(g.value) for _, f, g in spread
  )  # what varies hardly, by a thousandth
  judged = [pair for pair in pairs if pair[1].holds is not None]
  other = [f'{f.what} ({name})' for name, f, g in judged if f.holds is not g.holds]
  return (
    f'Beside the committed records: of {len(spread)} intervals {met} overlap; of {len(judged)} expectations '
    f'{len(judged) - len(other)} come out alike{", all but: " * bool(other)}{"; ".join(other)}.'
  )


def telling(findings: Sequence[Finding]) -> list[Finding]:
  """What was expected of a claim; what fell short first."""
  return sorted((f for f in findings if f.holds is not None), key=lambda f: f.holds)


def answer(rows: Sequence[tuple[Claim, list[Finding]]], measured: dict[str, Measured]) -> str:
  """The report in a paragraph: where its numbers are from, what they say, and what follows if it does."""
  names = {kind: [] for kind in ('holds', 'part', 'short', 'none')}
  for claim, findings in rows:
    names[verdict(findings)[0]].append(claim.name)
  judged = [claim for claim, findings in rows if verdict(findings)[0] != 'none']
  here = sum(measured[claim.experiment].here for claim in judged)
  counts = {
    'measured in this run': here,
    'from committed records': len(judged) - here,
    'not measured': len(rows) - len(judged),
  }
  origins = ', '.join(f'{count} {words}' for words, count in counts.items() if count)
  said = [f'{len(rows)} statements: {origins}.', f'{len(names["holds"])} hold as expected.']
  for kind, words in (
    ('part', 'In part'), ('short', 'Short of what was expected'), ('none', 'Not measured'),
  ):  # fmt: skip
    if names[kind]:
      said.append(f'{words}: {", ".join(names[kind])}.')
  if 'construct' in measured and verdict(measured['construct'].findings)[0] == 'holds':
    said.append(EXACT)
  return ' '.join(said)


def figures(measured: dict[str, Measured], folder: Path) -> dict[str, Path]:
  """Every experiment's figure drawn from its records, unless this code has drawn these; the PNG of each."""
  index, known = folder / 'drawn.json', {}
  with contextlib.suppress(FileNotFoundError, ValueError):
    known = dict(json.loads(index.read_text(encoding='utf-8')))
  drawn, made = {}, [machine.code(), machine.versions(), matplotlib.__version__]
  for name, m in measured.items():
    if m.experiment.figure:
      told = json.dumps([*made, m.records], sort_keys=True)
      mark, (old, files) = hashlib.sha256(told.encode()).hexdigest(), known.get(name, (None, []))
      if mark != old or not all((folder / file).exists() for file in files):
        folder.mkdir(parents=True, exist_ok=True)
        files = [Path(path).name for path in m.experiment.figure.draw(m.records, folder)]
        known[name] = mark, files
        storage.write_text(index, json.dumps(known))
      drawn[name] = next(folder / file for file in files if file.endswith('.png'))
  return drawn


def mechanism() -> str:
  """The selector at work on one query, as SVG."""
  table = Facts.bijections(8, 3)
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, 'selector.svg')
    trace_figure.draw(trace.trace_prompt(registry.build('selector', table), [2, 8 + 1]), path)
    return path.read_text(encoding='utf-8')


def number(finding: Finding) -> str:
  """Mean and interval."""
  interval = f' [{finding.low:.3g}, {finding.high:.3g}]' if not math.isnan(finding.low) else ''
  return f'{finding.value:.3g}{interval}'


def beside(finding: Finding) -> str:
  """What was expected, and the controls."""
  parts = [f'expected {finding.expected}'] * bool(finding.expected) + [finding.control] * bool(
    finding.control
  )
  return f' ({"; ".join(parts)})' if parts else ''


def markdown(rows, measured: dict[str, Measured], drawn: dict[str, Path], agreed: str) -> str:
  out = ['# Geometric factual recall, reproduced\n', answer(rows, measured) + '\n', agreed + '\n']
  out += ['| statement | what it says | verdict | measured | by |', '|---|---|---|---|---|']
  for claim, found in rows:
    some = '<br>'.join(f'{f.what}: **{number(f)}**{beside(f)}' for f in telling(found)[:SHOWN])
    by = (
      f'[{claim.experiment}](#{claim.experiment})'
      if claim.experiment in measured
      else claim.experiment
    )
    out.append(f'| {claim.name} | {claim.says} | {verdict(found)[1]} | {some} | {by} |')
  out.append(f'\nIn the tables below, {UNSURE}.')
  for name, m in measured.items():
    out += [
      f'\n## {name}\n',
      f'{m.experiment.about[0].upper()}{m.experiment.about[1:]}. {m.experiment.terms}\n',
      f'`{m.command}`; {m.origin}.\n',
    ]
    if name in drawn:
      out.append(f'![{name}](figures/{drawn[name].name})\n')
    out.append(table(m.findings))
  return '\n'.join(out)


def page(
  rows, measured: dict[str, Measured], drawn: dict[str, Path], agreed: str, explored: dict
) -> str:
  """One file with all in it; `explored`: the data of the explorer."""
  e, asset = html.escape, lambda name: (PAGE / name).read_text(encoding='utf-8')
  lines = []
  for claim, found in rows:
    kind, word = verdict(found)
    own = telling(found)
    some = ''.join(
      f'<li class="{"yes" if f.holds else "no"}">{e(f.what)}: <b>{e(number(f))}</b>{e(beside(f))}</li>'
      for f in own[:SHOWN]
    )
    more = f'<li class="more">and {len(own) - SHOWN} more</li>' if len(own) > SHOWN else ''
    m = measured.get(claim.experiment)
    by = f'<a href="#{claim.experiment}">{claim.experiment}</a>' if m else claim.experiment
    by += (
      f'<br><span class="aside">{minutes(m.seconds) if m.here else "committed records"}</span>'
      if m
      else ''
    )
    lines.append(
      f'<tr><th scope="row">{e(claim.name)}<p>{e(claim.says)}</p></th><td><span class="{kind}">{word}</span></td>'
      f'<td><ul>{some}{more}</ul></td><td>{by}</td></tr>'
    )
  sections = [_section(name, m, drawn.get(name)) for name, m in measured.items()]
  return (
    asset('report.html')
    .replace('{{style}}', asset('report.css'))
    .replace('{{answer}}', e(answer(rows, measured)))
    .replace('{{agreed}}', e(agreed))
    .replace('{{rows}}', '\n'.join(lines))
    .replace('{{versions}}', e(', '.join(f'{k} {v}' for k, v in machine.versions().items())))
    .replace('{{mechanism}}', _inline(mechanism()))
    .replace('{{sections}}', '\n'.join(sections))
    .replace('{{explorer}}', explorer.section(explored))
  )


def _inline(svg: str) -> str:
  """Without the XML prologue, sized by the page."""
  return svg[svg.index('<svg') :]


def _section(name: str, m: Measured, picture: Path | None) -> str:
  e = html.escape
  row = lambda f: (
    ''.join(f'<td>{e(cell)}</td>' for cell in f.cells[:-1])
    + f'<td class="{f.cells[-1]}">{f.cells[-1]}</td>'
  )
  image = ''
  if picture:
    data = base64.b64encode(picture.read_bytes()).decode()
    image = f'<img alt="{e(m.experiment.about)}" src="data:image/png;base64,{data}">'
  return (
    f'<section id="{name}"><h3>{name.replace("_", " ")}</h3>'
    f'<p>{e(m.experiment.about[0].upper() + m.experiment.about[1:])}. {e(m.experiment.terms)}</p>{image}'
    f'<p class="aside"><code>{e(m.command)}</code><br>{e(m.origin)}</p>'
    f'<details><summary>{len(m.findings)} findings ({UNSURE})</summary><div class="wide"><table><thead>'
    f'<tr><th>{"<th>".join(COLUMNS)}</tr></thead><tbody>'
    + ''.join(f'<tr>{row(f)}</tr>' for f in m.findings)
    + '</tbody></table></div></details></section>'
  )


def write(folder: Path, scale: str) -> list[Path]:
  """Figures and both pages."""
  measured = gather(folder, scale)
  drawn = figures(measured, folder / 'figures')
  rows = [
    (claim, claim.own(measured[claim.experiment].findings) if claim.experiment in measured else [])
    for claim in claims.CLAIMS
  ]
  explored, agreed = explorer.kept(folder / 'explorer.json'), agreement(measured, scale)
  pages = {
    folder / 'report.html': page(rows, measured, drawn, agreed, explored),
    folder / 'report.md': markdown(rows, measured, drawn, agreed),
  }
  for path, text in pages.items():
    storage.write_text(path, text)
  return list(pages)


def main(argv):
  cli.no_arguments(argv)
  folder = cli.workdir('runs/reproduce') / FLAGS.scale
  if not any(folder.glob(f'*/{DONE}')):
    raise InputError(f'{folder}: nothing was measured there; run experiments.reproduce first')
  print('\n'.join(map(str, write(folder, FLAGS.scale))))


if __name__ == '__main__':
  cli.run(main)
