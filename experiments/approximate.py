"""Accuracy against size, where it is not 1 by construction: superposition and associative memories.

  python -m experiments.approximate --subjects=256 --relations=4
  python -m experiments.approximate --redraw

Random superposition has D = c·R·m dimensions of memory (m = ⌈log₂N⌉), an associative memory in
attention D² = c·N·ln N a head, one in an MLP F·d = c·N·R·ln N with F = 8d; c grows until all is
right. Beside them the exact selector and key-value memory. About a minute at 1,024 subjects and 8
relations, which are those of docs/results/approximate.json, a copy of the results.json written here.
"""

import math

from absl import flags

from experiments.figures import approximate as approximate_figure
from experiments.harness import building, cli, fitting, machine, statistics, storage
from geomem import facts as fact

FLAGS = flags.FLAGS
cli.define(
  'redraw',
  subjects='N, the number of subjects (default: 256).',
  relations='R, the number of relations (default: 4).',
  seed='The first seed (default: 0).',
  seeds='How many seeds, from --seed on: facts and random vectors at every size (default: 3).',
  workdir='Folder for results.json and the figure (default: runs/approximate).',
)

CONSTANTS = {
  'superposition': (1, 2, 3, 4, 6, 8, 10, 12),
  'associative_attention': (0.5, 1, 1.5, 2, 3, 4, 5, 6),
  'associative_mlp': (0.5, 1, 1.5, 2, 3, 4, 5, 6),
}
EXACT = ('selector', 'keyvalue')
COLUMNS = (
  'construction',
  'constant',
  'dim',
  'width',
  'parameters',
  'seeds',
  'accuracy',
  'least',
  'most',
)


def size(name: str, constant: float, subjects: int, relations: int) -> dict[str, int]:
  """The options of the construction whose memory has `constant` times its natural unit."""
  bits, pairs = max(1, (subjects - 1).bit_length()), subjects * math.log(subjects)
  if name == 'superposition':
    return {'dim': relations + bits + math.ceil(constant * relations * bits)}
  if name == 'associative_attention':
    return {'dim': (relations - 1).bit_length() + 2 + math.ceil(math.sqrt(constant * pairs))}
  dim = math.ceil(math.sqrt(constant * relations * pairs / 8))
  return {'dim': dim, 'width': 8 * dim}


def measure(subjects: int, relations: int, seeds: range, progress=None) -> list[dict]:
  """A record a construction, size and seed."""
  jobs = [(name, c, seed) for name in CONSTANTS for c in CONSTANTS[name] for seed in seeds]
  jobs += [(name, None, seed) for name in EXACT for seed in seeds]
  records = []
  for i, (name, constant, seed) in enumerate(jobs):
    options = (
      {} if constant is None else {'seed': seed, **size(name, constant, subjects, relations)}
    )
    facts = building.random_facts('bijections', subjects, relations, seed)
    _, record = building.build_and_check(name, facts, 1, **options)
    untimed = {key: value for key, value in record.items() if not key.endswith('_seconds')}
    records.append({**untimed, 'constant': constant, 'seed': seed})
    if progress:
      progress(i + 1, len(jobs))
  return records


def summary(records: list[dict]) -> list[dict]:
  """Mean and range over seeds."""
  return statistics.over_seeds(records, 'construction', 'constant', of='accuracy')


def main(argv):
  cli.no_arguments(argv)
  folder = cli.workdir('runs/approximate')
  if FLAGS.redraw:
    cli.check_redraw('subjects', 'relations', 'seed', 'seeds')
    records = storage.read_results(folder)
  else:
    subjects, relations = cli.value('subjects', 256), cli.value('relations', 4)
    seeds = cli.seeds(0, 3)
    fact.check_sizes(subjects, relations)
    progress = cli.Progress('models', 'models')
    records = measure(subjects, relations, seeds, progress)
    progress.clear()
    about = {
      'command': fitting.command('approximate'),
      'device': machine.device(),
      'versions': machine.versions(),
    }
    storage.write_results(folder, records, about=about)
  paths = approximate_figure.draw(records, folder)
  print(cli.table(COLUMNS, summary(records)))
  print(f'records: {folder / "results.json"}; figure: {", ".join(map(str, paths))}')


if __name__ == '__main__':
  cli.run(main)
