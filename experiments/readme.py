"""Write the README's tables: of theorems, from what `make demo` measured, and of timings.

  python -m experiments.readme --workdir=runs/demo

Run it from the root of the repository: it writes README.md, and keeps the demo's records, without
their timings, as docs/results/construct.json, so that the table can be held against them. The timings
are those of docs/results/benchmark_cpu.json, which experiments.benchmark wrote.
"""

import inspect
from pathlib import Path

from absl import flags

from constructions import registry
from experiments.harness import cli, storage
from geomem.errors import InputError

FLAGS = flags.FLAGS
cli.define(workdir='Where `make demo` has written its results.json (default: runs/demo).')

README, RESULTS = Path('README.md'), Path('docs/results')
RECORDS, TIMINGS = RESULTS / 'construct.json', RESULTS / 'benchmark_cpu.json'
MARK = '{}: written by python -m experiments.readme'
END = '<!-- end of table -->\n'


def row(record: dict) -> str:
  """One construction: what it proves, where it is, its size, what came out."""
  name = record['construction']
  known = registry.entry(name)
  module = inspect.getmodule(known.builder).__name__.replace('.', '/') + '.py'
  right = round(record['queries'] * record['accuracy'])
  sizes = f'N={record["subjects"]}, R={record["relations"]}' + (
    f', k={record["hops"]}' if known.multi_hop else ''
  )
  result = f'{sizes}: {right:,} of {record["queries"]:,}'
  if record['promised_margin'] is not None:
    result += f', {record["min_margin"]:.3g} ≥ {record["promised_margin"]:.3g}'
  return f'| {known.theorem} | [`{name}`]({module}) | {known.size} | {result} |'


def theorems(records: list[dict]) -> str:
  head = '| statement | construction | size | verified |\n|---|---|---|---|\n'
  return head + '\n'.join(map(row, records)) + '\n'


def timings(records: list[dict]) -> str:
  """What was measured side by side."""
  lines = ['| measurement | beside | sizes | ours | theirs | ratio | range |', f'|{"---|" * 7}']
  for r in records:
    if r.get('ratio') is not None:
      own = ' | '.join(_time(r[side]) for side in ('ours_seconds', 'theirs_seconds'))
      beside = (r.get('peer') or 'matrix products').replace('_', ' ')
      ratio, *ends = (f'{value:.2g}' for value in (r['ratio'], *r['ratio_range']))
      lines.append(
        f'| {r["measurement"]} | {beside} | {r["sizes"]} | {own} | {ratio} | {" to ".join(ends)} |'
      )
  return '\n'.join(lines) + '\n'


def _time(seconds: float) -> str:
  """Three digits, in the unit that suits them."""
  for unit, size in (('s', 1.0), ('ms', 1e-3)):
    if seconds >= size:
      return f'{seconds / size:.3g} {unit}'
  return f'{seconds * 1e6:.3g} µs'


def splice(text: str, mark: str, table: str) -> str:
  """A page with one of its tables replaced: what stands between its mark and the next end."""
  begin = f'<!-- {mark} -->\n'
  if begin not in text:
    raise InputError(f'the line that marks a table is missing from the page: {begin.strip()}')
  before, rest = text.split(begin)
  return before + begin + table + END + rest.split(END, 1)[1]


def main(argv):
  cli.no_arguments(argv)
  if not README.exists():
    raise InputError('no README.md here; run this from the root of the repository')
  folder = Path(FLAGS.workdir or 'runs/demo')
  if not (folder / 'results.json').exists():
    raise InputError(f'{folder}: no results there; run `make demo` first')
  records = [
    {name: value for name, value in record.items() if not name.endswith('_seconds')}
    for record in storage.read_results(folder)
  ]
  text = splice(README.read_text(encoding='utf-8'), MARK.format('theorems'), theorems(records))
  text = splice(text, MARK.format('timings'), timings(storage.read_results(RESULTS, TIMINGS.name)))
  storage.write_text(README, text)
  storage.write_results(RESULTS, records, RECORDS.name)
  print(theorems(records))


if __name__ == '__main__':
  cli.run(main)
