"""Bits of facts per parameter, and per bit of weight: constructions, associative memories, trained models.

  python -m experiments.capacity

For every N and R: each exact one-hop construction; the random superposition and both associative
memories at the smallest of a few sizes that reaches accuracy 0.99; and models trained at their
threshold, the smallest d at F = 4d, rounded to the fewest bits per weight at which they stay at 0.99.
Expected: a construction stores at most one bit of facts for each bit of weight, and 0.1 to 1 a
parameter; trained models about 1, below the 2 and 3.6 bits reported of language models; nothing is
above the limit of one bit per bit.
"""

import bisect
import dataclasses
import functools
import itertools

import numpy as np
from absl import flags

from constructions import registry
from experiments import approximate, claims
from experiments.figures import capacity as capacity_figure
from experiments.harness import building, cli, fitting, searching, statistics
from experiments.harness.findings import Finding, found
from geomem import facts as fact
from geomem.checks import accounting
from geomem.training.optimization import Recipe

FLAGS = flags.FLAGS
fitting.define('capacity', claims.minutes('capacity'))

COLUMNS = (
  'model', 'subjects', 'relations', 'seeds', 'found', 'parameters', 'value', 'least', 'most', 'bits_a_bit',
  'weight_bits',
)  # fmt: skip
RATES = ((0.01, 0.01), (0.03, 0.01))
TARGET = 0.99


@dataclasses.dataclass(frozen=True)
class Setting:
  """`sizes`: N and R."""

  sizes: tuple[tuple[int, int], ...]
  steps: int
  seeds: int


PRESETS = {
  'smoke': Setting(((8, 2),), 200, 1),
  'laptop': Setting(tuple(itertools.product((32, 128), (2, 4))), 2000, 5),
  'accelerator': Setting(tuple(itertools.product((64, 256, 1024, 4096), (2, 4, 8))), 4000, 5),
}


def constructed(setting: Setting, seeds) -> list[dict]:
  """Exact constructions, of the first seed, for they are alike for all; and memories that are random.

  That the exact ones are right is for experiments.construct to check: here only what they spend counts.
  """
  records = []
  for (n, r), name in itertools.product(setting.sizes, registry.REGISTRY):
    known = registry.entry(name)
    if known.exact and not known.multi_hop:
      table = building.random_facts('bijections', n, r, seeds[0], known.own_answers)
      records.append(_built(name, table, seeds[0], check=None))
    elif name in approximate.CONSTANTS:
      records += [_smallest(name, n, r, seed) for seed in seeds]
  return records


def _smallest(name: str, n: int, r: int, seed: int) -> dict:
  """The smallest of the sizes of experiments.approximate that is right often enough, found by halving."""
  table, constants = building.random_facts('bijections', n, r, seed), approximate.CONSTANTS[name]

  @functools.cache
  def built(constant):
    return _built(name, table, seed, seed=seed, **approximate.size(name, constant, n, r))

  first = bisect.bisect_left(constants, TARGET, key=lambda constant: built(constant)['accuracy'])
  if first < len(constants):
    return built(constants[first])
  return built(constants[-1]) | {'bits_a_parameter': None, 'bits_a_bit': None, 'parameters': None}


def _built(name: str, table, first: int, **options) -> dict:
  _, found = building.build_and_check(name, table, 1, **options)
  n, r = table.subjects, table.relations
  weights, stored = n * found['subject_bits'] + found['internal_bits'], accounting.fact_bits(table)
  return {
    **_about(name, n, r, first), 'dim': found['dim'], 'width': found['width'], 'accuracy': found['accuracy'],
    'parameters': found['parameters'], 'weight_bits': weights / found['parameters'],
    'bits_a_parameter': stored / found['parameters'], 'bits_a_bit': stored / weights,
  }  # fmt: skip


def _about(name: str, n: int, r: int, seed: int) -> dict:
  about = {'claim': 1, 'measurement': 'bits a parameter', 'model': name, 'control': None}
  return {**about, 'subjects': n, 'relations': r, 'seed': seed}


def trained(fitter, setting: Setting, seeds) -> list[dict]:
  """Models at their threshold; the best of the learning rates counts."""
  recipe = Recipe.with_warmup(setting.steps, target=TARGET)
  search = searching.Setting(recipe, 0, 0, RATES)
  cases = [searching.Case('dim', n, r, seed) for n, r in setting.sizes for seed in seeds]
  found = [r for r in searching.measure(cases, search, fitter) if r['kind'] == 'threshold']
  records = []
  for group in statistics.groups(
    [{'case': c, 'at': f, 'n': c.subjects} for c, f in zip(cases, found, strict=True)], 'n'
  ):
    records += _rounded(fitter, search, [(pair['case'], pair['at']) for pair in group])
  return records


def _rounded(fitter, search: searching.Setting, group) -> list[dict]:
  """The models found, trained again and rounded, those of one N in one program."""
  found = {case: at['value'] for case, at in group if at['value'] is not None}
  scored = searching.rounded(found, search, fitter)
  records = []
  for case, at in group:
    about = _about('trained', case.subjects, case.relations, case.seed)
    if case not in scored:
      records.append({**about, 'accuracy': None, 'bits_a_parameter': None, 'bits_a_bit': None})
      continue
    bits = int(scored[case]['bits'])
    records.append({
      **about, 'dim': at['dim'], 'width': at['width'], 'accuracy': float(scored[case]['accuracy']),
      'parameters': at['parameters'], 'weight_bits': bits,
      'bits_a_parameter': at['bits'], 'bits_a_bit': at['bits'] / bits,
    })  # fmt: skip
  return records


def measure(fitter, setting: Setting, seeds) -> list[dict]:
  """Records of all."""
  for n, r in setting.sizes:
    fact.check_sizes(n, r)
  records = constructed(setting, seeds) + trained(fitter, setting, seeds)
  return [{**r, 'value': r['bits_a_parameter']} for r in records]


def summary(records: list[dict]) -> list[dict]:
  """Means over the seeds, and the range of bits per parameter; no mean where some seed found nothing."""
  rows = []
  for group in statistics.groups(records, 'model', 'subjects', 'relations'):
    row = {name: group[0][name] for name in ('model', 'subjects', 'relations')}
    rows.append(row | statistics.if_all(group, 'parameters', 'bits_a_bit', 'weight_bits'))
  return rows


def findings(records: list[dict]) -> list[Finding]:
  """Bits a parameter and a bit of weight of every kind, over all sizes; no kind above the limit."""
  known = statistics.complete(records, 'model', 'subjects', 'relations')
  mean = lambda group, name: [
    float(np.mean([r[name] for r in own])) for own in statistics.groups(group, 'seed')
  ]
  found_all = []
  for group in statistics.groups(known, 'model'):
    sizes = lambda rows, name=group[0]['model']: len(
      {(r['subjects'], r['relations']) for r in rows if r['model'] == name}
    )
    name = f'{group[0]["model"].replace("_", " ")}, {sizes(group)} of {sizes(records)} sizes'
    found_all += found(f'{name}: bits per parameter', mean(group, 'bits_a_parameter'))
    found_all += found(f'{name}: bits per bit of weight', mean(group, 'bits_a_bit'))
  highest = sorted(r['bits_a_bit'] for r in known)[-1:]
  return found_all + found(
    'most bits of facts per bit of weight, of all records', highest, most=1.0
  )


def main(argv):
  fitting.main(argv, 'capacity', PRESETS, measure, capacity_figure.draw, COLUMNS, summary)


if __name__ == '__main__':
  cli.run(main)
