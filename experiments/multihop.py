"""Chains of relations: what they cost a trained model, with and without chain of thought. Claim 7.

  python -m experiments.multihop

Models are trained on all N·R^k queries of k hops: to answer at once (direct), to name every subject
on the way (chain), or with the way shown and the last answer alone trained and asked for (last). Expected: without
chain of thought the width that is needed grows exponentially in k, or depth and width together hold
N·R facts; with it one layer and an embedding that does not depend on k are enough. The trained
models are then rounded to the fewest bits a weight at which they stay at 0.99, and stand in the
figure of the bounds beside the constructions. Last, each is asked for one hop more than it was
trained on. Five minutes on two cores.
"""

import dataclasses
import functools
import itertools

import jax
import numpy as np
from absl import flags

from experiments import bounds, building, cli, fitting, multihop_figure, statistics
from experiments.findings import Finding, found, only
from geomem import ledger, model, rounding, sweep, train
from geomem.config import Config
from geomem.train import Recipe

FLAGS = flags.FLAGS
fitting.define('multihop')

COLUMNS = (
  'mode',
  'hops',
  'depth',
  'dim',
  'width',
  'seeds',
  'value',
  'least',
  'most',
  'bits',
  'one_more',
)
MODES = {'direct': (False, 'answer'), 'chain': (True, 'chain'), 'last': (True, 'answer')}


@dataclasses.dataclass(frozen=True)
class Setting:
  """`sizes`: d with F; `depths`: of the direct models (with chain of thought there is one layer)."""

  subjects: int
  relations: int
  hops: tuple[int, ...]
  sizes: tuple[tuple[int, int], ...]
  depths: tuple[int, ...]
  steps: int
  seeds: int


PRESETS = {
  'smoke': Setting(6, 2, (1, 2), ((6, 12),), (1, 2), 60, 1),
  'laptop': Setting(32, 2, (1, 2, 3, 4), ((4, 16), (8, 32), (16, 64)), (1, 2), 1000, 3),
  'accelerator': Setting(
    64, 3, (1, 2, 3, 4), ((8, 32), (16, 64), (32, 128), (64, 64), (64, 256)), (1, 2, 4), 4000, 5
  ),
}


def configured(setting: Setting, mode: str, hops: int, depth: int, size) -> tuple[Config, Recipe]:
  """The model, with positions for one hop more than it is trained on, and how it is trained."""
  chain, loss = MODES[mode]
  recipe = Recipe.warmed(setting.steps, hops=hops, chain_of_thought=chain, loss=loss, target=None)
  longer = dataclasses.replace(recipe, hops=hops + 1).length()
  config = Config.trained(setting.subjects, setting.relations, *size, depth, length=longer)
  return config, recipe


def scores(config: Config, recipe: Recipe, params, job):
  """Accuracy at the hops trained on, at one more, and the bits a weight needs for the first."""
  right = functools.partial(train.accuracy, config, recipe, job)
  longer = dataclasses.replace(recipe, hops=recipe.hops + 1)
  alone = dataclasses.replace(recipe, loss='chain') if recipe.chain_of_thought else recipe
  return {
    'accuracy': right(params),
    'alone': train.accuracy(config, alone, job, params),
    'one_more': train.accuracy(config, longer, job, params),
    'bits': rounding.bits_needed(right, params),
  }


def measure(fitter, setting: Setting, seeds) -> list[dict]:
  """A record a model; those of all sizes are one program, which takes longer to compile than to run."""
  table = functools.partial(building.bijections, setting.subjects, setting.relations)
  records = []
  for mode, hops in itertools.product(MODES, setting.hops):
    if mode == 'last' and hops == 1:
      continue  # one hop is a chain of one
    for depth in setting.depths if mode == 'direct' else (1,):
      kinds = [configured(setting, mode, hops, depth, size) for size in setting.sizes]
      tasks = [
        sweep.Task(config, table(seed), 1e-2, 0.01, seed) for config, _ in kinds for seed in seeds
      ]
      _, recipe = kinds[0]
      function = functools.partial(scores, sweep.hull([task.config for task in tasks]), recipe)
      found = fitter.measured(recipe, tasks, function)
      records += [
        {
          'claim': 7, 'kind': 'trained', 'measurement': 'accuracy', 'model': mode, 'control': None, 'mode': mode, 'hops': hops, 'depth': depth,
          'subjects': setting.subjects, 'relations': setting.relations, 'dim': task.config.dim,
          'width': task.config.blocks[0].hidden[0], 'seed': task.seed, 'value': float(found['accuracy'][i]), 'alone': float(found['alone'][i]),
          'one_more': float(found['one_more'][i]), **_bits(task.config, int(found['bits'][i])),
        }
        for i, task in enumerate(tasks)
      ]  # fmt: skip
  return records + _bounds(setting, records, seeds[0])


def _bounds(setting: Setting, records: list[dict], seed: int) -> list[dict]:
  """What is built for the most hops, and the bounds there: trained models stand beside them."""
  sizes = setting.subjects, setting.relations, max(setting.hops)
  built = bounds.points(*sizes, seed)
  reach = 4 * max(r['subject_bits'] for r in [*records, *built])
  timed = lambda name: name.endswith('_seconds')
  built = [{name: v for name, v in r.items() if not timed(name)} for r in built]
  return built + bounds.curves(*sizes, reach)


def _bits(config: Config, bits: int) -> dict:
  """Bits inside the network and in one embedding, if every weight takes so many."""
  internal = sum(
    np.prod(a.shape)
    for path, a in jax.tree_util.tree_leaves_with_path(model.shapes(config))
    if ledger.role_of(path) != 'subjects'
  )
  return {
    'bits': bits,
    'internal_bits': float(bits * internal),
    'subject_bits': float(bits * config.dim),
  }


def summary(records: list[dict]) -> list[dict]:
  """Mean and range over the seeds."""
  records = [r for r in records if r['kind'] == 'trained']
  mean = lambda group, name: float(np.mean([r[name] for r in group]))
  return [
    {
      **group[0],
      'seeds': len(group),
      **statistics.spread(group, 'value'),
      **{name: mean(group, name) for name in ('bits', 'one_more')},
    }
    for group in statistics.groups(records, 'mode', 'hops', 'depth', 'dim', 'width')
  ]


def findings(records: list[dict]) -> list[Finding]:
  """Every size that was trained, by how it answers and over how many hops; and one hop more."""
  records = [r for r in records if r['kind'] == 'trained']
  most = max(r['hops'] for r in records)
  found_all = []
  for group in statistics.groups(records, 'mode', 'depth', 'dim', 'width'):
    first = group[0]
    about = f'{multihop_figure.NAMES[first["mode"]]}, depth {first["depth"]}, d = {first["dim"]}, F = {first["width"]}'  # fmt: skip
    by_hops = {hops: only(group, hops=hops) for hops in sorted({r['hops'] for r in group})}
    controls = {f'{k} hops': values for k, values in by_hops.items() if k != most}
    found_all += found(f'{about}: {most} hops', by_hops[most], **controls)
  for mode, name in multihop_figure.NAMES.items():
    for hops in sorted({r['hops'] for r in records}):
      own = [r for r in records if r['mode'] == mode and r['hops'] == hops and r['value'] >= 0.99]
      text = f'{name}: {hops + 1} hops, after {hops} learned'
      found_all += found(text, [np.mean([r['one_more'] for r in g]) for g in statistics.groups(own, 'seed')],
                         chance=[1 / records[0]['subjects']])  # fmt: skip
  return found_all


def main(argv):
  fitting.main(argv, 'multihop', PRESETS, measure, multihop_figure.draw, COLUMNS, summary)


if __name__ == '__main__':
  cli.run(main)
