"""Write the README's table of theorems from what `make demo` measured.

  python -m experiments.readme --workdir=runs/demo

Run it from the root of the repository: it writes README.md, and keeps the records, without their
timings, as docs/results/construct.json, so that the table can be held against them.
"""

import inspect
from pathlib import Path

from absl import flags

from constructions import registry
from experiments import cli
from geomem.errors import InputError

FLAGS = flags.FLAGS
cli.define(workdir='Where `make demo` has written its results.json (default: runs/demo).')

README, RECORDS = Path('README.md'), Path('docs/results/construct.json')
BEGIN = '<!-- table: written by python -m experiments.readme -->\n'
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


def table(records: list[dict]) -> str:
  head = '| statement | construction | exact size | verified |\n|---|---|---|---|\n'
  return head + '\n'.join(map(row, records)) + '\n'


def splice(text: str, records: list[dict]) -> str:
  """The README with its table replaced."""
  if BEGIN not in text or END not in text:
    raise InputError(f'{README}: the lines that mark its table are missing')
  before, rest = text.split(BEGIN)
  return before + BEGIN + table(records) + END + rest.split(END)[1]


def main(argv):
  cli.no_arguments(argv)
  records = [
    {name: value for name, value in record.items() if not name.endswith('_seconds')}
    for record in cli.read_results(Path(FLAGS.workdir or 'runs/demo'))
  ]
  if not README.exists():
    raise InputError('no README.md here; run this from the root of the repository')
  cli.write_text(README, splice(README.read_text(encoding='utf-8'), records))
  cli.write_results(RECORDS.parent, records, RECORDS.name)
  print(table(records))


if __name__ == '__main__':
  cli.run(main)
