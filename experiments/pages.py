"""Write the tables and figures of the pages from the committed records.

  python -m experiments.pages
  python -m experiments.pages --commit_records=transfer --workdir=runs/transfer

For every study of which docs/results holds the records, NAME.json of the laptop's preset or NAME_full.json, it draws
NAME.png there and puts the table of its findings into docs/results.md or docs/language_model.md, after the line
that marks its place. What all claims come to stands in docs/results.md and the README, and the README has the tables
of the theorems and of the timings. --commit_records first copies a run's records there.
"""

import collections
import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import jax
from matplotlib.ticker import EngFormatter

from constructions import registry
from experiments.harness import cli, records, render, studies
from experiments.harness.findings import of_claim, verdict
from experiments.harness.records import Records
from experiments.harness.study import Study
from geomem.errors import InputError

ROOT = Path(__file__).parents[1]
README, PAGE, RESULTS = ROOT / 'README.md', ROOT / 'docs/results.md', ROOT / 'docs/results'
OWN_PAGES = {'language_model': ROOT / 'docs/language_model.md'}
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


def committed(*names: str) -> list[str]:
  """What there are records of: NAME of the laptop's preset, then NAME_full of the other."""
  stems = [name + suffix for name in names or studies.NAMES for suffix in ('', FULL)]
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
  about, findings = found.about, own.findings(found.table)
  parts = [f'<a id="{stem}"></a>']
  if not stem.endswith(FULL):  # once, not of each preset
    claims = [f'> **{claim.name}.** {claim.says}\n>\n' for claim in own.claims]
    parts.append(f'{"".join(claims)}> {own.terms}')
  where = 'any device'
  if 'device' in about:
    where = f'{about["device"]}, jax {about["versions"]["jax"]}'
  parts.append(f'`{about["command"]}`, {where}. {sizes(about)}'.strip())
  if own.plot:
    parts.append(f'![{stem}](results/{stem}.png)')
  expected = [f for f in findings if f.holds is not None]
  shown = expected if expected and len(findings) > LONG else findings
  parts.append(render.findings(shown, 'markdown').strip())
  if others := [f for f in findings if f not in shown]:
    table = render.findings(others, 'markdown')
    parts.append(f'<details><summary>{len(others)} more findings</summary>\n\n{table}\n</details>')
  return '\n\n'.join(parts) + '\n'


def sizes(about: dict) -> str:
  """Of what models and runs the records are, as far as their setting says it."""
  found = collections.defaultdict(set)
  for path, value in jax.tree.leaves_with_path(about):
    name = next((part.key for part in reversed(path) if hasattr(part, 'key')), None)
    if name in SIZES and isinstance(value, int) and value:
      found[name].add(value)
  words = []
  for name in [name for name in SIZES if name in found]:
    values = ', '.join(f'{value:,}' for value in sorted(found[name]))
    words.append(f'{values} steps' if name == 'steps' else f'{SIZES[name]} = {values}')
  return f'{"; ".join(words)}.' if words else ''


def overview(folder: str = '') -> str:
  """What every claim about trained models comes to, for a page from which `folder` leads to the others."""
  rows = []
  for stem in committed():
    if stem != 'construct' and not stem.endswith(FULL):
      findings = study(stem).findings(kept(stem).table)
      for claim in study(stem).claims:
        word = verdict(of_claim(claim, findings))[1]
        link = f'[{word}]({folder}{page(stem).name}#{stem})'
        rows.append({'claim': claim.name, 'what it says': claim.says, 'verdict': link})
  return render.table(rows, 'markdown')


def theorems() -> str:
  """What each construction proves, where it is, its size, what came out."""
  rows = []
  for r in kept('construct').table.to_dict('records'):
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
  """What was measured side by side."""
  table, seconds, rows = kept('benchmark_cpu').table, EngFormatter('s'), []
  for r in table[table['ratio'].notna()].to_dict('records'):
    ours, theirs = (seconds(float(f'{r[key]:.3g}')) for key in ('ours_seconds', 'theirs_seconds'))
    ratio, least, most = (f'{value:.2g}' for value in (r['ratio'], *r['ratio_range']))
    rows.append({
      'measurement': r['measurement'], 'beside': (r['peer'] or 'matrix products').replace('_', ' '), 'sizes': r['sizes'],
      'ours': ours, 'theirs': theirs, 'ratio': ratio, 'range': f'{least} to {most}',
    })  # fmt: skip
  return render.table(rows, 'markdown')


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
