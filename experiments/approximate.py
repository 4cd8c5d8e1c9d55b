"""Accuracy against size, where it is not 1 by construction: superposition and associative memories.

  python -m experiments.approximate --subjects=256 --relations=4
  python -m experiments.approximate --redraw

Random superposition has D = c·R·m dimensions of memory (m = ⌈log₂N⌉), an associative memory in
attention D² = c·N·ln N a head, one in an MLP F·d = c·N·R·ln N with F = 8d; c grows until all is
right. Beside them the exact selector and key-value memory. Nothing is claimed.
"""

import dataclasses

from experiments.harness import instances, plotting
from experiments.harness.findings import over_seeds
from experiments.harness.statistics import groups
from experiments.harness.study import Study
from geomem import facts as fact

EXACT = ('selector', 'keyvalue')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  subjects: int = 1024
  relations: int = 8
  seeds: int = 3


SMOKE = Preset(subjects=32, relations=2, seeds=2)
PRESETS = {'smoke': SMOKE, 'laptop': Preset(), 'full': Preset()}


def measure(progress, preset, seeds):
  """A record a construction, size and seed."""
  sizes = preset.subjects, preset.relations
  fact.check_sizes(*sizes)
  constants = instances.MEMORY_CONSTANTS | dict.fromkeys(EXACT, (None,))
  jobs = [(name, c, seed) for name, some in constants.items() for c in some for seed in seeds]
  records = []
  for i, (name, constant, seed) in enumerate(jobs):
    progress(i, len(jobs), name)
    options = instances.memory_options(name, constant, *sizes) | {'seed': seed} if constant else {}
    facts = instances.bijections(*sizes, seed)
    _, record = instances.build_and_check(name, facts, 1, **options)
    value = record.pop('accuracy')
    about = {'measurement': 'accuracy', 'constant': constant, 'seed': seed, 'value': value}
    records.append(record | about)
  return records


def expect(table):
  """What the largest size comes to; of those that are exact it is a check."""
  for (name,), own in groups(table, 'construction'):
    right = own['value'][own['parameters'] == own['parameters'].max()]
    what = f'{name.replace("_", " ")}: accuracy at the largest size'
    yield from over_seeds(what, right, 1.0 if name in EXACT else None, check=True)


def plot(table):
  """Accuracy against parameters, every seed a mark."""
  figure, ax = plotting.new(width=6.0, height=3.4)
  for i, ((name,), own) in enumerate(groups(table, 'construction')):
    plotting.spread(ax, own, 'parameters', i, name)
  first = table.iloc[0]
  plotting.logarithmic(ax.xaxis)
  ax.set(ylim=(0, 1.03), xlabel='parameters', ylabel='accuracy over all queries')
  ax.set_title(
    f'N = {first["subjects"]}, R = {first["relations"]}, {table["seed"].nunique()} seeds'
  )
  plotting.legend_beside(ax)
  return figure


STUDY = Study(
  name='approximate', title='accuracy against size of what is not exact',
  presets=PRESETS, measure=measure, expect=expect, plot=plot,
  by=('construction', 'constant', 'dim', 'width', 'parameters'),
  minutes=1, first_seed=0, resumes=False,
)  # fmt: skip


if __name__ == '__main__':
  STUDY.main()
