"""Bits of facts per parameter, and per bit of weight: constructions, associative memories, trained models.

  python -m experiments.capacity

For every N and R: each exact one-hop construction; the random superposition and both associative
memories at the smallest of a few sizes that reaches accuracy 0.99; and models trained at their
threshold, the smallest d at F = 4d, rounded to the fewest bits per weight at which they stay at 0.99.
Expected: a construction stores 0.1 to 1 bit of facts a parameter; trained models about 1, below the 2 and 3.6 bits
reported of language models. That nothing stores more than one bit per bit of weight can be counted: a check.
"""

import bisect
import dataclasses
import functools
import itertools

from constructions import registry
from experiments.harness import instances, plotting, searching
from experiments.harness.findings import over_seeds
from experiments.harness.statistics import complete, groups, select
from experiments.harness.study import Study
from geomem import facts as fact
from geomem.checks import accounting
from geomem.training.recipe import Recipe

TARGET = 0.99
CELL = 'model', 'subjects', 'relations'
LABELS = {
  'value': 'bits of facts per parameter',
  'bits_per_weight_bit': 'bits of facts per bit of weight',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """Every pair of an N and an R is a size; `rates`: learning rates with weight decays, of which the best counts."""

  subjects: tuple[int, ...]
  relations: tuple[int, ...]
  rates: tuple[tuple[float, float], ...] = ((0.01, 0.01), (0.03, 0.01))
  steps: int
  seeds: int

  def __post_init__(self):
    for sizes in itertools.product(self.subjects, self.relations):
      fact.check_sizes(*sizes)


PRESETS = {
  'smoke': Preset(subjects=(8,), relations=(2,), steps=200, seeds=1),
  'laptop': Preset(subjects=(32, 128), relations=(2, 4), steps=2000, seeds=5),
  'full': {
    f'subjects_{n}': Preset(subjects=(n,), relations=(2, 4, 8), steps=4000, seeds=5)
    for n in (64, 256, 1024, 4096)
  },
}


def measure(trainer, preset, seeds):
  """Exact constructions, of the first seed, for they are alike for all; memories that are random; trained models.

  That the exact ones are right is for experiments.construct to check: here only what they spend counts.
  """
  records = []
  for n, r in itertools.product(preset.subjects, preset.relations):
    for name, known in registry.REGISTRY.items():
      if known.exact and not known.multi_hop:
        facts = instances.random_facts('bijections', n, r, seeds[0], known.own_answers)
        records.append(built(name, facts, seeds[0], check=None))
      elif name in instances.MEMORY_CONSTANTS:
        records += [smallest(name, instances.bijections(n, r, seed), seed) for seed in seeds]
  return records + trained(trainer, preset, seeds)


def record(name: str, facts, seed: int, own: dict, bits, kept: float = 1.0) -> dict:
  """What a model comes to that takes so many bits per weight; `kept`: the accuracy to which it was rounded."""
  accuracy, size = 1.0 if own['accuracy'] is None else own['accuracy'], own['parameters']
  all_bits, queries = accounting.fact_bits(facts), facts.subjects * facts.relations
  held = lambda right: accounting.recovered_bits(all_bits, right, queries, facts.attributes)
  return {
    'measurement': 'bits per parameter', 'model': name, 'control': None, 'subjects': facts.subjects,
    'relations': facts.relations, 'seed': seed, 'dim': own['dim'], 'width': own['width'],
    'accuracy': own['accuracy'], 'parameters': size, 'bits_per_weight': bits,
    'bits_per_weight_bit': held(min(kept, accuracy)) / (bits * size) if size else None,
    'value': held(accuracy) / size if size else None,
  }  # fmt: skip


def built(name: str, facts, of: int, **options) -> dict:
  """A construction of this seed's facts."""
  _, own = instances.build_and_check(name, facts, 1, **options)
  bits = facts.subjects * own['subject_bits'] + own['internal_bits']
  return record(name, facts, of, own, bits / own['parameters'])


def smallest(name: str, facts, seed: int) -> dict:
  """The smallest of a few sizes that is right often enough, found by halving."""
  sizes, constants = (facts.subjects, facts.relations), instances.MEMORY_CONSTANTS[name]

  @functools.cache
  def at(constant):
    return built(name, facts, seed, seed=seed, **instances.memory_options(name, constant, *sizes))

  first = bisect.bisect_left(constants, TARGET, key=lambda constant: at(constant)['accuracy'])
  if first < len(constants):
    return at(constants[first])
  return at(constants[-1]) | dict.fromkeys(('parameters', 'bits_per_weight_bit', 'value'))


def trained(trainer, preset, seeds) -> list[dict]:
  """Models at their threshold, trained again to the end and rounded, those of one N in one program."""
  search = searching.Setting(Recipe.with_warmup(preset.steps, target=TARGET), preset.rates)
  sizes = itertools.product(preset.subjects, preset.relations, seeds)
  cases = [searching.Case('dim', *size) for size in sizes]
  found, _ = searching.measure(cases, search, trainer.train)
  for n in preset.subjects:
    of_n = {case: own for case, own in found.items() if case.subjects == n}
    found |= searching.rounded(of_n, search, trainer)
  facts = lambda case: instances.bijections(case.subjects, case.relations, case.seed)
  return [
    record('trained', facts(case), case.seed, own, own['bits'], TARGET)
    for case, own in found.items()
  ]


def expect(table):
  """Bits a parameter and a bit of weight of every kind, over all sizes; no kind above the limit."""
  known = complete(table, *CELL)
  for (model,), rows in groups(known, 'model'):
    count = lambda rows: rows.groupby(['subjects', 'relations']).ngroups
    sizes = f'{count(rows)} of {count(select(table, model=model))} sizes'
    for column, label in LABELS.items():
      text = f'{model.replace("_", " ")}, {sizes}: {label.replace("of facts ", "")}'
      yield from over_seeds(text, rows.groupby('seed')[column].mean())
  highest = known['bits_per_weight_bit'].nlargest(1)
  text = 'most bits of facts per bit of weight, of all records'
  yield from over_seeds(text, highest, at_most=1.0, check=True)


def plot(table):
  """Against the number of facts; trained models a mark a seed, everything else at its mean."""
  figure, panels = plotting.new(10.4, 3.6, 1, 2)
  table = table.assign(facts=table['subjects'] * table['relations'])
  for ax, (column, label) in zip(panels, LABELS.items(), strict=True):
    for i, ((model,), rows) in enumerate(groups(table[table[column].notna()], 'model')):
      (color, marker), name = plotting.cycle(i), model.replace('_', ' ')
      if model == 'trained':
        color, marker, name = plotting.BLACK, 'o', 'trained, at threshold'
      else:
        rows = rows.groupby(['subjects', 'relations'])[['facts', column]].mean()
      ax.plot(rows['facts'], rows[column], marker, color=color, alpha=0.6, markersize=4, label=name)
    plotting.logarithmic(ax.xaxis)
    ax.set(yscale='log', xlabel='facts, $N R$', ylabel=label)
  for bits, dashes in plotting.LANGUAGE_MODELS.items():
    plotting.level(panels[0], bits, f'{bits:g} bits', dashes)
  plotting.level(panels[1], 1.0, 'limit')
  plotting.legend_beside(panels[1])
  return figure


STUDY = Study(
  name='capacity',
  title='bits of facts per parameter: built, associative, trained',
  terms='Bits of facts: R·log₂N!, less what wrong answers leave open at most by Fano’s inequality; a rounded model is '
  'taken to be right on the 0.99 at which it is kept. A weight of what is trained takes the fewest bits at which '
  'accuracy stays at 0.99, of what is built the entropy of the values in its array, or the width of its dtype where '
  'they are many. 2 and 3.6 bits per parameter are what was reported of language models.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot, by=CELL, minutes=2.5,
)  # fmt: skip


if __name__ == '__main__':
  STUDY.main()
