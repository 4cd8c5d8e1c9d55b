"""Write the tables and figures of the pages from the committed records.

  python -m experiments.pages
  python -m experiments.pages --commit_records=transfer --workdir=runs/transfer

For every study with records in docs/results, NAME.json of the laptop preset or NAME_full.json, it draws NAME.png there
and puts the table of its findings into the page that the study names, after the line that marks its place. The verdicts
on all claims are in docs/results.md and the README, all primary outcomes in one figure; the README has the tables of
the theorems, of the timings and of the versions that the tests ran with; docs/reproduce.md says which command and which
records each figure and table is from; docs/accelerators.md has what was compiled for devices. --commit_records first copies
a run's records there.
"""

import dataclasses
import functools
import json
import re
import shlex
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import pandas as pd
from matplotlib.ticker import EngFormatter

from constructions import registry
from experiments.harness import (
  cli,
  findings,
  machine,
  plotting,
  records,
  render,
  statistics,
  studies,
)
from experiments.harness.findings import Claim, Finding, of_claim, verdict
from experiments.harness.primary_figure import primary_outcomes
from experiments.harness.records import Records
from experiments.harness.study import Study
from geomem.errors import InputError

ROOT = Path(__file__).parents[1]
README, PAGE, RESULTS = ROOT / 'README.md', ROOT / 'docs/results.md', ROOT / 'docs/results'
MAP, MATRIX = ROOT / 'docs/reproduce.md', 'matrix.json'  # what `experiments.matrix` recorded
ACCELERATORS = ROOT / 'docs/accelerators.md'
# Cycles per second of a TPU v5e, which with its four units of 128 × 128 make 197 TFLOP/s.
CLOCK = 1.5e9
FULL = '_full'
LONG = 12  # rows of a table; in longer ones, findings with an expectation come first
SIZES = {
  'subjects': 'N = {}', 'relations': 'R = {}', 'hops': 'k = {}', 'dim': 'd = {}', 'width': 'F = {}',
  'passes': 'passes ≥ {}', 'steps': '{} steps', 'batch': 'batch = {}',
}  # fmt: skip
BEGIN = '<!-- {}: written by python -m experiments.pages -->\n'
END = '<!-- end of table -->\n'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  commit_records: Annotated[
    str | None, 'Copy the records of a run of this study to docs/results first.'
  ] = None
  workdir: Annotated[
    str | None, 'Folder where that run wrote its results.json (default: runs/NAME).'
  ] = None


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
  """A study with its records, empty if it was not measured, and the findings from them.

  `seconds`: how long measuring took in this run, None if the records are the committed ones.
  """

  study: Study
  records: Records = Records({}, pd.DataFrame())
  seconds: float | None = None

  @functools.cached_property
  def findings(self) -> list[Finding]:
    return self.study.findings(self.records.table) if self.records.about else []

  @property
  def claims(self) -> list[tuple[Claim, list[Finding]]]:
    """Every claim of the study with the findings that bear on it."""
    return [(claim, of_claim(claim, self.findings)) for claim in self.study.claims]

  @property
  def about(self) -> str:
    """What is measured, and the definitions of the words in its findings."""
    return f'{self.study.title[0].upper()}{self.study.title[1:]}. {self.study.terms}'

  @property
  def of_this_code(self) -> bool:
    """Whether the current code measured the records, every part of them."""
    about = self.records.about
    parts = about.get('parts', {'': about}).values()
    return all(part.get('code') == machine.code_hash() for part in parts)

  @property
  def origin(self) -> str:
    if not self.records.about:
      return 'not measured'
    device = self.records.about.get('device', 'any device')
    if self.seconds is None:
      return f'not measured in this run; from the committed records: {device}'
    other = '' if self.of_this_code else '; measured with different code from this report’s'
    return f'{device}, {render.duration(self.seconds)}{other}'


def result_names(*names: str) -> list[str]:
  """The names of the committed records: NAME for the laptop preset, then NAME_full for the full one."""
  found = [name + suffix for name in names or studies.NAMES for suffix in ('', FULL)]
  return [result_name for result_name in found if (RESULTS / f'{result_name}.json').exists()]


@functools.cache
def _read(path: Path) -> Result:
  return Result(studies.load(path.stem.removesuffix(FULL)), records.read(path))


def committed(result_name: str) -> Result:
  """The committed result of this name, read once."""
  return _read(RESULTS / f'{result_name}.json')


def page(result_name: str) -> Path:
  """The page with its table."""
  return ROOT / 'docs' / studies.load(result_name.removesuffix(FULL)).page


def section(result_name: str) -> str:
  """The section of a study: its claims, how it was measured, and its findings."""
  found = committed(result_name)
  own, about, rows = found.study, found.records.about, found.findings
  parts = [f'<a id="{result_name}"></a>']
  if not result_name.endswith(FULL):  # once, not for each preset
    parts += [f'> **{claim.name}.** {claim.says}' for claim in own.claims]
    sentences = re.split(r'(?<=\.) (?=[^a-z])', own.terms)
    listed = '\n'.join(f'* {sentence}' for sentence in sentences)
    if own.terms:
      parts.append(f'<details><summary>Terms</summary>\n\n{listed}\n\n</details>')
  runs = about.get('parts', {'': about}).values()
  devices = {f'{run["device"]}, jax {run["versions"]["jax"]}' for run in runs if 'device' in run}
  where = '; '.join(sorted(devices)) or 'any device'
  parts.append(f'`{about["command"]}`, {where}. {sizes(about)}'.strip())
  if own.plot:
    parts.append(f'![{result_name}](results/{result_name}.png)')
  expected = [f for f in rows if f.holds is not None]
  # Primary outcomes decide; what else was expected is shown if it fails or is unsure.
  if any(f.primary for f in rows):
    expected = [f for f in expected if f.primary or f.unsure or not f.holds]
  shown = expected if expected and len(rows) > LONG else rows
  parts.append(render.findings(shown, 'markdown').strip())
  if others := [f for f in rows if f not in shown]:
    table = render.findings(others, 'markdown')
    parts.append(f'<details><summary>{len(others)} more findings</summary>\n\n{table}\n</details>')
  return '\n\n'.join(parts) + '\n'


def sizes(about: dict) -> str:
  """The sizes of the models and runs in the records, as far as their setting has them."""
  fields: list[tuple] = []
  json.loads(json.dumps(about), object_pairs_hook=fields.extend)  # the fields at all levels
  words = []
  for name, text in SIZES.items():
    # With passes, the steps are the least at the first budget.
    if name == 'steps' and 'passes' in dict(fields):
      continue
    lists = [value if isinstance(value, list) else [value] for key, value in fields if key == name]
    if values := {value for some in lists for value in some if value}:
      words.append(text.format(', '.join(f'{value:,}' for value in sorted(values))))
  return f'{"; ".join(words)}.' if words else ''


def overview(folder: str = '') -> str:
  """The verdicts on all claims at both presets, for a page from which `folder` leads to the others.

  Where a claim has primary outcomes, they alone decide at the full preset. Where both presets are the same, one is run.
  """
  with_records, rows = result_names(), []
  decisions = {
    row['claim']: 'open: not all primary outcomes are measured' if row['not measured']
    else f'{row["verdict"]}: {row["within bounds"]} of {row["primary outcomes"]} primary outcomes'
    for row in decide()
  }  # fmt: skip

  def cell(result_name: str, i: int, decision: str | None = None) -> str:
    own = studies.load(result_name.removesuffix(FULL))
    if result_name not in with_records:
      return 'as laptop' if own.presets.get('full') == own.presets['laptop'] else 'not run'
    text = decision or verdict(committed(result_name).claims[i][1])[1]
    run, planned = committed(result_name).records.about.get('parts', ()), own.parts('full')
    if result_name.endswith(FULL) and not decision and len(run) < len(planned) > 1:
      text += f' ({len(run)} of {len(planned)} parts run)'
    return f'[{text}]({folder}{page(result_name).name}#{result_name})'

  for study in studies.load_all().values():
    for i, claim in enumerate(study.claims if study.name != 'construct' else ()):
      full = cell(study.name + FULL, i, decisions.get(claim.name))
      presets = {'laptop': cell(study.name, i), 'full': full}
      rows.append({'claim': claim.name, 'what it says': claim.says, **presets})
  return render.table(rows, 'markdown')


def at_full() -> list[Result]:
  full = [name + FULL for name in studies.NAMES]
  return [committed(result_name) for result_name in full if result_name in result_names()]


def decide() -> list[dict]:
  """The decisions on the claims by the primary outcomes of the full presets, which were named before the runs."""
  claims = [claim for study in studies.load_all().values() for claim in study.claims]
  # The findings of a study with one claim do not name it.
  own = [
    dataclasses.replace(f, claim=f.claim or found.study.claims[0].name)
    for found in at_full() if found.study.claims for f in found.findings
  ]  # fmt: skip
  return findings.decisions(claims, own)


def decisions() -> str:
  rows = decide()
  for row in rows:
    if row['not measured']:  # then there is no p, which counts as 1 in the correction
      row['largest p'] = row['p after Holm'] = None
  return render.table(rows, 'markdown')


def theorems() -> str:
  """What each construction proves, where it is, its size, and the result."""
  rows = []
  for r in committed('construct').records.table.to_dict('records'):
    known = registry.entry(r['construction'])
    module = known.builder.__module__.replace('.', '/') + '.py'
    at = f'N={r["subjects"]}, R={r["relations"]}' + (f', k={r["hops"]}' if known.multi_hop else '')
    result = f'{at}: {round(r["queries"] * r["accuracy"]):,} of {r["queries"]:,}'
    if known.exact:
      result += f', {r["min_margin"]:.3g} ≥ {r["promised_margin"]:.3g}'
    link = f'[`{r["construction"]}`]({module})'
    rows.append(
      {'statement': known.theorem, 'construction': link, 'size': known.size, 'verified': result}
    )
  return render.table(rows, 'markdown')


def timings() -> str:
  """The side-by-side measurements."""
  table, seconds = records.read(RESULTS / 'benchmark_cpu.json').table, EngFormatter('s')
  rows = []
  for r in table[table['ratio'].notna()].to_dict('records'):
    ours, theirs = (seconds(float(f'{r[key]:.3g}')) for key in ('ours_seconds', 'theirs_seconds'))
    ratio, least, most = (f'{value:.2g}' for value in (r['ratio'], *r['ratio_range']))
    rows.append({
      'measurement': r['measurement'], 'compared with': (r['peer'] or 'matrix products').replace('_', ' '), 'sizes': r['sizes'],
      'ours': ours, 'theirs': theirs, 'ratio': ratio, 'range': f'{least} to {most}',
    })  # fmt: skip
  return render.table(rows, 'markdown')


def models() -> str:
  """The means of what decides claims 2 to 5, for every kind of model; three numbers are for three numbers of relations."""
  table, rows = committed('structure_full').records.table, []
  of_maps = 'maps through the model, embedding'
  shown = {
    'own facts': 'accuracy', 'R²': 'fresh_superposition_r2', 'linear probe': 'fresh_probe_accuracy',
    'flipped': f'flipped, {of_maps}', 'others kept': f'kept, {of_maps}', 'new facts (a)': 'reconstruction answered, fitted maps',
  }  # fmt: skip
  table = table[table['control'].isna()]
  for (kind, unembedding), own in statistics.groups(table, 'model', 'unembedding'):
    row = {'model': f'{kind}, unembedding {unembedding}' if kind == 'trained' else kind}
    for name, measurement in shown.items():
      some = own[own['measurement'] == measurement].groupby('relations')['value'].mean()
      row[name] = ', '.join(f'{value:.2f}' for value in some)
    rows.append(row)
  return render.table(rows, 'markdown')


def published() -> str:
  """Published models compared with ours, one row per model."""
  rows = []
  for r in records.read(RESULTS / 'published.json').table.to_dict('records'):
    every = r['parameters'] + r['tables']
    rows.append({
      'compared with': r['measurement'], 'model': ('ours: ' if r['side'] == 'ours' else '') + r['model'], 'N': f'{r["subjects"]:,.0f}',
      'R': f'{r["relations"]:.0f}', 'accuracy': '' if pd.isna(r['accuracy']) else f'{r["accuracy"]:.3g}', 'parameters': f'{every:,.0f}',
      'bits per parameter': f'{r["bits"] / every:.3g}', 'without tables': f'{r["bits"] / r["parameters"]:.3g}',
      'CPU seconds': f'{r["cpu_seconds"]:.3g}',
    })  # fmt: skip
  return render.table(rows, 'markdown')


def tested() -> str:
  """How many tests passed with which versions, by `experiments.matrix`."""
  table = records.read(RESULTS / MATRIX).table
  return render.table(table.drop(columns=['name', 'seconds']), 'markdown')


def sources() -> str:
  """The source of every figure and table, for docs/reproduce.md: the command, its study, the records."""
  rows = []
  for name, study in studies.load_all().items():
    for result_name in result_names(name) or [name]:
      about = committed(result_name).records.about if result_names(name) else {}
      where = page(result_name).name + f'#{result_name}'
      if name == 'construct':
        where = '../README.md#all-constructions'
      picture = f'results/{result_name}.png'
      command = about.get('command') or shlex.join(study.command('laptop'))
      rows.append({
        'table': f'[{result_name}]({where})' if about else result_name,
        'figure': f'[figure]({picture})' if (MAP.parent / picture).exists() else '',
        'shows': study.title,
        'command, and its study': f'[`{command}`](../experiments/{name}.py)',
        'records': f'[records](results/{result_name}.json)' if about else 'none yet',
        'minutes, one core': None if result_name.endswith(FULL) else study.minutes,
      })  # fmt: skip
  return render.table(rows, 'markdown')


def compiled() -> str:
  """What a chip needs for the programs that were compiled without one: the trainings of the notebook, and each study."""
  table = records.read(RESULTS / 'compiled.json').table
  table = table.astype(object).where(table.notna(), None)
  train, others = (table[(table['study'] == 'train') == own] for own in (True, False))
  by = others.groupby(['study', 'target'], sort=False)
  totals = by.apply(largest_peak).unstack(sort=False).reset_index()
  totals.insert(1, 'programs', by.size().unstack(sort=False).max(axis=1).to_numpy())
  first = [
    one_compiled(r) | {'steps a second, estimated': f'{CLOCK / r["cycles"]:.0f}' if r['part'] == 'sweep' and r['cycles'] else '–'}
    for r in train.to_dict('records')
  ]  # fmt: skip
  return '\n'.join(render.table(rows, 'markdown') for rows in (first, totals))


def largest_peak(programs: pd.DataFrame) -> str:
  """In MiB, and as a fraction of a device's memory; or why a program was refused."""
  if reasons := [reason for reason in programs.get('refused', ()) if isinstance(reason, str)]:
    return f'refused: {reasons[0]}'
  most, available = programs[['peak_bytes', 'available_bytes']].astype(float).max()
  return 'lowered' if pd.isna(most) else f'{mebibytes(most)} ({most / available:.1%})'


def mebibytes(count: float) -> str:
  return f'{count / 2**20:,.0f}'


def one_compiled(r: dict[str, Any]) -> dict[str, Any]:
  number = lambda name: '–' if r.get(name) is None else f'{r[name]:.2g}'
  return {
    'chips': r['target'], 'run': ' '.join(filter(None, (r['study'], r['part'], r['scale'], r.get('size')))), 'program': f'`{r["program"]}`',
    'arguments, MiB': mebibytes(r['argument_bytes']), 'temporaries': mebibytes(r['temporary_bytes']),
    'peak': mebibytes(r['peak_bytes']), 'of the memory': f'{r["peak_bytes"] / r["available_bytes"]:.1%}',
    'elements stored / used': number('padding'), 'operations': number('flops'), 'cycles': number('cycles'),
    'of them with products': number('product_cycles'), 'between chips': r['collectives'] or 'nothing',
    'products': r['products'],
  }  # fmt: skip


def add_place(path: Path, result_name: str, title: str):
  """Mark the place of a study's table, if the page does not yet: after its other preset's, or at the end."""
  text = path.read_text(encoding='utf-8')
  if BEGIN.format(result_name) in text:
    return
  before, there, rest = text.partition(BEGIN.format(result_name.removesuffix(FULL)))
  if there:
    table, end, rest = rest.partition(END)
    text = before + there + table + end + '\n' + BEGIN.format(result_name) + END + rest
  else:
    text += f'\n## {title[0].upper()}{title[1:]}\n\n{BEGIN.format(result_name)}{END}'
  records.write_text(path, text)


def splice(path: Path, name: str, table: str):
  """Replace one of a page's tables: the text between its mark and the next end."""
  text, begin = path.read_text(encoding='utf-8'), BEGIN.format(name)
  if begin not in text:
    raise InputError(
      f'{path}: the line that marks a table is missing from the page: {begin.strip()}'
    )
  before, rest = text.split(begin)
  records.write_text(path, before + begin + table + END + rest.split(END, 1)[1])


def draw(result_name: str):
  """Draw the figure that the page shows."""
  found = committed(result_name)
  found.study.draw(found.records.table, RESULTS, result_name, ['.png'])


def commit_records(name: str, folder: Path):
  """Copy a run's records into docs/results, with the device and the versions, and without timings.

  Parts of the preset that this run lacks are kept from the committed records.
  """
  found = records.read(folder)
  if (scale := found.about['scale']) == 'smoke':
    raise InputError(
      f'{folder}: a run of --scale=smoke, whose numbers are no evidence; take a larger one'
    )
  path = RESULTS / f'{name}{FULL * (scale == "full")}.json'
  if (parts := records.split(found)) and path.exists():
    kept, presets = records.split(records.read(path)), studies.load(name).parts(scale)
    for part in (kept.keys() - parts.keys()) & presets.keys():
      setting = json.loads(json.dumps(dataclasses.asdict(presets[part])))
      if any(setting.get(key) != value for key, value in kept[part].about['setting'].items()):
        cli.warn(f'part {part} of {path.name} was measured by another preset than today’s')
    parts = kept | parts
    order = [part for part in presets if part in parts]
    found = records.merge(found.about, {part: parts[part] for part in order})
  table = found.table.drop(columns=[c for c in found.table.columns if c.endswith('_seconds')])
  about = {key: value for key, value in found.about.items() if key != 'code'}
  records.write(path, Records(about, table), digits=6)


def main(options: Options):
  if options.workdir and not options.commit_records:
    raise InputError('--workdir means nothing without --commit_records')
  if name := options.commit_records:
    studies.load(name)
    commit_records(name, Path(options.workdir or f'runs/{name}'))
  for result_name in result_names():
    draw(result_name)
    if result_name != 'construct':
      add_place(page(result_name), result_name, studies.load(result_name.removesuffix(FULL)).title)
      splice(page(result_name), result_name, section(result_name))
  of_claims = {claim.name: own for found in at_full() for claim, own in found.claims}
  with matplotlib.rc_context(plotting.STYLE):
    plotting.save(primary_outcomes(of_claims), RESULTS / 'primary_outcomes', ['.png'])
  splice(PAGE, 'overview', overview())
  splice(PAGE, 'decisions', decisions())
  splice(README, 'overview', overview('docs/'))
  for table in (theorems, timings, published, tested):
    splice(README, table.__name__, table())
  splice(page('structure_full'), 'models', models())
  splice(MAP, 'sources', sources())
  splice(ACCELERATORS, 'compiled', compiled())
  print(
    ', '.join(
      map(str, dict.fromkeys((README, PAGE, MAP, ACCELERATORS, *map(page, result_names()))))
    )
  )


if __name__ == '__main__':
  cli.run(main, Options)
