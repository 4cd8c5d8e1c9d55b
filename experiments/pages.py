"""Write the tables and figures of the pages from the committed records.

  python -m experiments.pages
  python -m experiments.pages --commit_records=transfer --workdir=runs/transfer

Run it from the root of the repository. For every study of which docs/results holds the records, NAME.json of the
laptop's preset or NAME_full.json, it draws NAME.png there and puts the table of its findings into docs/results.md
or docs/language_model.md, after the line that marks its place. What all claims come to stands in docs/results.md
and the README, and the README has the tables of the theorems and of the timings. --commit_records first copies
a run's records there.
"""

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

from constructions import registry
from experiments.harness import cli, records, render, studies
from experiments.harness.findings import of_claim, verdict
from experiments.harness.records import Records
from experiments.harness.study import Study
from geomem.errors import InputError

README, PAGE, RESULTS = Path('README.md'), Path('docs/results.md'), Path('docs/results')
OWN_PAGES = {'language_model': Path('docs/language_model.md')}
FULL = '_full'
LONG = 12  # rows of a table; of longer ones what was expected stands first
SIZES = {
  'subjects': 'N', 'relations': 'R', 'hops': 'k', 'dim': 'd', 'width': 'F', 'steps': 'steps', 'batch': 'batch',
}  # fmt: skip
MARK = '<!-- {}: written by python -m experiments.pages -->\n'
END = '<!-- end of table -->\n'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  commit_records: Annotated[
    str | None, 'Copy the records of a run of this study to docs/results first.'
  ] = None
  workdir: Annotated[
    str | None, 'Where that run has written its results.json (default: runs/NAME).'
  ] = None


def committed() -> list[str]:
  """What there are records of: NAME of the laptop's preset, NAME_full of the other."""
  stems = [f'{name}{suffix}' for name in studies.NAMES for suffix in ('', FULL)]
  return [stem for stem in stems if (RESULTS / f'{stem}.json').exists()]


def study(stem: str) -> Study:
  return studies.load(stem.removesuffix(FULL))


def kept(stem: str) -> Records:
  return records.read(RESULTS / f'{stem}.json')


def page(stem: str) -> Path:
  """Where its table stands."""
  return OWN_PAGES.get(stem, PAGE)


def section(stem: str) -> str:
  """What a study is to show, with what it was measured, and what it found."""
  own, found = study(stem), kept(stem)
  findings, about = own.findings(found.table), found.about
  parts = [f'<a id="{stem}"></a>\n']
  if not stem.endswith(FULL):  # once, not of each preset
    parts.append(
      ''.join(f'> **{claim.name}.** {claim.says}\n>\n' for claim in own.claims) + f'> {own.terms}\n'
    )
  where = (
    f'{about["device"]}, jax {about["versions"]["jax"]}' if 'device' in about else 'any device'
  )
  parts.append(f'`{about["command"]}`, {where}. {sizes(about)}'.strip() + '\n')
  if own.plot:
    parts.append(f'![{stem}](results/{stem}.png)\n')
  expected = [f for f in findings if f.holds is not None]
  if len(findings) <= LONG or not expected:
    return '\n'.join([*parts, render.findings(findings, 'markdown')])
  others = [f for f in findings if f.holds is None]
  more = f'<details><summary>{len(others)} more findings</summary>\n\n{render.findings(others, "markdown")}\n</details>\n'
  return '\n'.join([*parts, render.findings(expected, 'markdown'), more])


def sizes(about: dict) -> str:
  """Of what models and runs the records are, as far as their setting says it."""
  found: dict[str, set] = {}

  def walk(value, key=None):
    if isinstance(value, dict):
      for name, some in value.items():
        walk(some, name)
    elif isinstance(value, list | tuple):
      for some in value:
        walk(some, key)
    elif key in SIZES and isinstance(value, int) and value:
      found.setdefault(key, set()).add(value)

  walk(about)
  texts = {
    name: ', '.join(f'{value:,}' for value in sorted(values)) for name, values in found.items()
  }
  words = [
    f'{texts[name]} steps' if name == 'steps' else f'{letter} = {texts[name]}'
    for name, letter in SIZES.items() if name in texts
  ]  # fmt: skip
  return f'{"; ".join(words)}.' if words else ''


def overview(folder: str = '') -> str:
  """What every claim about trained models comes to, for a page from which `folder` leads to the others."""
  rows = ['| claim | what it says | verdict |', '|---|---|---|']
  for stem in committed():
    if stem != 'construct' and not stem.endswith(FULL):
      findings = study(stem).findings(kept(stem).table)
      for claim in study(stem).claims:
        word = verdict(of_claim(claim, findings))[1]
        rows.append(f'| {claim.name} | {claim.says} | [{word}]({folder}{page(stem).name}#{stem}) |')
  return '\n'.join(rows) + '\n'


def theorems() -> str:
  """What each construction proves, where it is, its size, what came out."""
  lines = ['| statement | construction | size | verified |', '|---|---|---|---|']
  for r in kept('construct').table.to_dict('records'):
    known = registry.entry(r['construction'])
    module = known.builder.__module__.replace('.', '/') + '.py'
    at = f'N={r["subjects"]}, R={r["relations"]}' + (f', k={r["hops"]}' if known.multi_hop else '')
    result = f'{at}: {round(r["queries"] * r["accuracy"]):,} of {r["queries"]:,}'
    if known.exact:
      result += f', {r["min_margin"]:.3g} ≥ {r["promised_margin"]:.3g}'
    lines.append(
      f'| {known.theorem} | [`{r["construction"]}`]({module}) | {known.size} | {result} |'
    )
  return '\n'.join(lines) + '\n'


def timings() -> str:
  """What was measured side by side."""
  table = records.read(RESULTS / 'benchmark_cpu.json').table
  rows = []
  for r in table[table['ratio'].notna()].to_dict('records'):
    ratio, least, most = (f'{value:.2g}' for value in (r['ratio'], *r['ratio_range']))
    rows.append({
      'measurement': r['measurement'], 'beside': (r['peer'] or 'matrix products').replace('_', ' '), 'sizes': r['sizes'],
      'ours': _time(r['ours_seconds']), 'theirs': _time(r['theirs_seconds']), 'ratio': ratio, 'range': f'{least} to {most}',
    })  # fmt: skip
  return render.table(rows, 'markdown')


def _time(seconds: float) -> str:
  """Three digits, in the unit that suits them."""
  for unit, size in (('s', 1.0), ('ms', 1e-3)):
    if seconds >= size:
      return f'{seconds / size:.3g} {unit}'
  return f'{seconds * 1e6:.3g} µs'


def splice(path: Path, name: str, table: str):
  """Replace one of a page's tables: what stands between its mark and the next end."""
  text, begin = path.read_text(encoding='utf-8'), MARK.format(name)
  if begin not in text:
    raise InputError(
      f'{path}: the line that marks a table is missing from the page: {begin.strip()}'
    )
  before, rest = text.split(begin)
  records.write_text(path, before + begin + table + END + rest.split(END, 1)[1])


def draw(stem: str):
  """The figure that the page shows."""
  with tempfile.TemporaryDirectory() as folder:
    for path in study(stem).draw(kept(stem).table, Path(folder)):
      if path.suffix == '.png':
        shutil.copyfile(path, RESULTS / f'{stem}.png')


def commit_records(name: str, folder: Path):
  """A run's records into docs/results, with the device and the versions; of constructions, which are the same
  everywhere, without the seconds that they took."""
  found = records.read(folder)
  if (scale := found.about['scale']) == 'smoke':
    raise InputError(
      f'{folder}: a run of --scale=smoke, whose numbers are no evidence; take a larger one'
    )
  table = found.table.drop(columns=[c for c in found.table.columns if c.endswith('_seconds')])
  about = {key: value for key, value in found.about.items() if key != 'code'}
  stem = name + FULL * (scale == 'full')
  records.write(RESULTS / f'{stem}.json', Records(about, table), digits=6)


def main(options: Options):
  if not PAGE.exists():
    raise InputError(f'no {PAGE} here; run this from the root of the repository')
  if options.workdir and not options.commit_records:
    raise InputError('--workdir means nothing without --commit_records')
  if name := options.commit_records:
    studies.load(name)
    commit_records(name, Path(options.workdir or f'runs/{name}'))
  for stem in committed():
    draw(stem)
    if stem != 'construct':
      splice(page(stem), stem, section(stem))
  splice(PAGE, 'overview', overview())
  splice(README, 'overview', overview('docs/'))
  splice(README, 'theorems', theorems())
  splice(README, 'timings', timings())
  print(', '.join(map(str, (README, PAGE, *OWN_PAGES.values()))))


if __name__ == '__main__':
  cli.run(main, Options)
