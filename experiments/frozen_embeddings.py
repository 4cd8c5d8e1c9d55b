"""If embeddings cannot learn, the facts must go into the weights: how many weights do they need? Claim 6.

  python -m experiments.frozen_embeddings

First the associative memory alone, one MLP between fixed random embeddings
(`geomem.training.mlp_memory`): for every F its accuracy at several numbers n of facts; n₅₀ is the
number of which half are known. There are two laws for what a parameter holds: a constant number of
bits, n₅₀·log₂n₅₀ in all, or of facts, n₅₀ in all. A power of n₅₀ is fitted to what a parameter
holds. Expected: n₅₀·log₂n₅₀ per parameter changes by less than 15 % over the whole range of F, in either
direction; doubling the steps changes n₅₀ by no more than 5 %.

Then transformers with fixed and with learned embeddings at equal numbers of trained parameters: the
bits of facts that each holds.

Last the protocol of Nichani et al. (2025), d = F: the largest N, of a few that are tried, that
their memory holds to 0.99. Their code, run by experiments.published on one seed, found 43, 78 and
158 at d = 8, 11 and 16.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats

from experiments.harness import curves, instances, plotting, stored_bits
from experiments.harness.findings import Claim, of_all_seeds, over_seeds
from experiments.harness.statistics import groups, select
from experiments.harness.study import FIRST_SEED, Study
from geomem.config import Config
from geomem.training import mlp_memory
from geomem.training.recipe import Recipe
from geomem.training.sweeps import Task

FROZEN = ('embed/subjects', 'unembed')
PUBLISHED = {8: 43, 11: 78, 16: 158}  # d = F: N by the code of Nichani et al., in published.json
BITS = 3.0  # of facts per parameter: the guess around which n₅₀ is sought
COUNTS = 0.4, 0.55, 0.7, 0.85, 1.0, 1.15, 1.3, 1.5  # values of n, relative to that guess
RATIOS = 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5  # values of N, relative to the published one
CLAIMED = 'n₅₀·log₂n₅₀'
LAWS = {CLAIMED: lambda n: n * np.log2(n), 'n₅₀': lambda n: n}
MAX_CHANGE = 1.15
# Curves are steeper at a larger F: half of the facts is one place to read them.
OTHER_LEVELS = 0.7, 0.8, 0.9, 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """`widths`: F of the memories, with d = `dim`, trained for `memory_steps`. `published`: d = F of
  the protocol.

  `sizes`: N and R of the transformers. `fixed_dim`: their d where embeddings are fixed. `points`:
  number of sizes of each.
  """

  widths: tuple[int, ...] = ()
  dim: int = 64
  counts: int = 8
  memory_steps: tuple[int, ...] = (2**12,)
  published: tuple[int, ...] = ()
  protocol_steps: int = 2**15
  sizes: tuple[tuple[int, int], ...] = ()
  fixed_dim: int = 32
  points: int = 5
  passes: int = 200
  batch: int = 128
  seeds: int


PRESETS = {
  'smoke': Preset(
    widths=(2, 4), dim=8, counts=3, memory_steps=(512,), published=(8,), protocol_steps=512, sizes=((16, 2),), fixed_dim=8,
    points=2, passes=20, seeds=1,
  ),
  'laptop': Preset(
    widths=(4, 8, 16), dim=32, counts=6, memory_steps=(2**11,), published=(8,), sizes=((256, 4),), fixed_dim=16, points=4, seeds=2
  ),
  'full': {
    'memory': Preset(widths=(4, 8, 16), memory_steps=(2**12, 2**13), counts=6, seeds=4),
    'memory_32': Preset(widths=(32,), memory_steps=(2**12, 2**13), counts=6, seeds=4),
    'published': Preset(published=(8, 11, 16), seeds=5),
    'transformers': Preset(sizes=((1024, 2), (1024, 4)), points=8, passes=400, seeds=3),
  },
}  # fmt: skip


def measure(trainer, preset: Preset, seeds) -> list[dict]:
  """Records of the memories, the transformers and the protocol."""
  records = []
  for width in preset.widths:
    middle, factors = guess(2 * preset.dim * width), np.linspace(0, len(COUNTS) - 1, preset.counts)
    counts = [round(middle * c) for c in np.interp(factors, range(len(COUNTS)), COUNTS)]
    for steps in preset.memory_steps:
      recipe = mlp_memory.MemoryRecipe(preset.dim, width, steps)
      records += memories(trainer, recipe, counts, seeds, 'memory')
  for dim in preset.published:
    counts = [round(PUBLISHED[dim] * c) for c in RATIOS]
    recipe = mlp_memory.MemoryRecipe(dim, dim, preset.protocol_steps)
    records += memories(trainer, recipe, counts, seeds, 'protocol')
  for (n, r), kind in itertools.product(preset.sizes, ('learned', 'fixed')):
    records += transformers(trainer, preset, n, r, kind, seeds)
  return records


def guess(parameters: int) -> float:
  """The n whose n·log₂n bits are `BITS` per parameter."""
  n = 2.0
  for _ in range(50):
    n = BITS * parameters / math.log2(max(n, 2))
  return n


def memories(
  trainer, recipe: mlp_memory.MemoryRecipe, counts: list[int], seeds, kind: str
) -> list[dict]:
  """The best accuracy that a memory reached, for every number of facts and seed."""
  learn = lambda n: mlp_memory.learn_all(recipe, [n] * len(seeds), seeds, **trainer.placement)[0]
  # Together the smaller ones would be padded to the largest, which takes three times as long.
  found = [trainer.cached(functools.partial(learn, n)) for n in counts]
  return [
    {
      'kind': kind, 'measurement': 'accuracy', 'model': 'MLP memory', 'control': None, 'subjects': n, 'relations': 1,
      'dim': recipe.dim, 'width': recipe.width, 'parameters': 2 * recipe.dim * recipe.width, 'steps': recipe.steps, 'seed': seed, 'value': float(value),
    } for n, values in zip(counts, found, strict=True) for seed, value in zip(seeds, values, strict=True)
  ]  # fmt: skip


def transformers(trainer, preset: Preset, n: int, r: int, kind: str, seeds) -> list[dict]:
  """Models of several sizes with learned embeddings, or with fixed ones and the same numbers of
  trained parameters."""
  frozen = () if kind == 'learned' else FROZEN
  batch = min(preset.batch, n)
  steps = max(2000 if preset.points > 2 else 100, preset.passes * -(-n // batch))
  recipe = Recipe.with_warmup(steps, batch=batch, target=None, frozen=frozen)
  sizes = stored_bits.dims(stored_bits.guess(n, r), preset.points)
  configs = [Config.trained(n, r, dim=d) for d in sizes]
  if kind == 'fixed':
    wanted = [stored_bits.trained_parameters(Recipe(), config) for config in configs]
    configs = [config for p in wanted if (config := match_size(recipe, n, r, preset.fixed_dim, p))]
  tasks = [
    Task(config, instances.bijections(n, r, seed), 0.03 if kind == 'learned' else 0.01, 0.03, seed)
    for config, seed in itertools.product(configs, seeds)
  ]
  about = {'kind': 'transformer', 'model': f'{kind} embeddings'}
  return stored_bits.measure(trainer, recipe, tasks, about) if tasks else []


def match_size(recipe: Recipe, n: int, r: int, dim: int, parameters: int) -> Config | None:
  """The model of this d whose F gives it about this many trained parameters, if there is one."""
  of = lambda width: stored_bits.trained_parameters(recipe, Config.trained(n, r, dim, width))
  one, two = of(1), of(2)
  width = 1 + round((parameters - one) / (two - one))
  return Config.trained(n, r, dim, width) if width >= 1 else None


def half_counts(rows, level: float = 0.5) -> dict[Any, float]:
  """n₅₀ of every seed, or the n at which another fraction of the facts is known."""
  return {
    seed: 1 / curves.half_size(1 / own['subjects'], own['value'], level)
    for (seed,), own in groups(rows, 'seed')
  }


def half_of_widths(memory, level: float = 0.5) -> dict[float, np.ndarray]:
  """n₅₀ by F, or the n at another fraction, for the seeds that all widths have."""
  seeds = set.intersection(*(set(rows['seed']) for _, rows in groups(memory, 'width')))
  shared = memory[memory['seed'].isin(seeds)].sort_values(['width', 'seed'], kind='stable')
  return {
    width: np.array([*half_counts(rows, level).values()])
    for (width,), rows in groups(shared, 'width')
  }


def change_of_held(half: dict[float, np.ndarray], dim: int, size: Callable) -> list[float]:
  """What a parameter holds at the largest F over that at the smallest, by the power fitted to all, for every seed."""
  n_WxS = np.array([*half.values()])
  held_WxS = size(n_WxS) / (2 * dim * np.array([*half])[:, None])
  return [
    float(
      np.exp(scipy.stats.linregress(np.log(n_W), np.log(held_W)).slope * np.log(n_W[-1] / n_W[0]))
    )
    for n_W, held_W in zip(n_WxS.T, held_WxS.T, strict=True)
  ]


def _memory(memory):
  """What a parameter holds at n₅₀ by both laws, how that grows with F, and what doubling the steps changes."""
  if not len(memory):
    return
  longest = curves.at_largest(memory, 'steps', 'width')
  half, dim = half_of_widths(longest), memory['dim'].iloc[0]
  n_WxS = np.array(list(half.values()))
  range_of = f'F = {min(half):.0f} … {max(half):.0f}'
  for name, size in LAWS.items():
    held_WxS = size(n_WxS) / (2 * dim * np.array(list(half))[:, None])
    for width, values in zip(half, held_WxS, strict=True):
      what = f'memory, d = {dim}, F = {width:.0f}: {name} per parameter'
      yield from over_seeds(what, list(values))
    if len(half) == 1:
      continue
    power = [scipy.stats.linregress(np.log(list(half)), np.log(size(n_W))).slope for n_W in n_WxS.T]
    yield from over_seeds(
      f'memory, d = {dim}, {range_of}: power of F with which {name} grows', power
    )
    claimed = name == CLAIMED
    yield from over_seeds(
      f'memory, d = {dim}, {range_of}: {name} per parameter, at the largest F / at the smallest (fitted power)', change_of_held(half, dim, size),
      1 / MAX_CHANGE if claimed else None, MAX_CHANGE if claimed else None, primary=max(half) >= 8 * min(half) and claimed,
    )  # fmt: skip
    if claimed:
      yield from read_elsewhere(longest, f'memory, d = {dim}, {range_of}')
  for (width,), rows in groups(memory, 'width'):
    found = curves.last_change(rows, 'steps', half_counts)
    what = f'memory, d = {dim}, F = {width:.0f}: n₅₀ at the last doubling of steps'
    yield from curves.expected_change(what, found)


def read_elsewhere(memory, text: str):
  """The claimed law with an interval over widths, and read where more of the facts are known."""
  size, dim = LAWS[CLAIMED], memory['dim'].iloc[0]
  held = {width: np.log(size(n_S)).mean() for width, n_S in half_of_widths(memory).items()}
  power = lambda some: scipy.stats.linregress(np.log(some), [held[width] for width in some]).slope
  if len(held) > 3:
    what = f'{text}: power of F with which {CLAIMED} grows, interval over widths'
    yield of_all_seeds(what, [*held], power)
  for level in OTHER_LEVELS:
    known = half_of_widths(memory, level)
    what = f'{text}: n·log₂n per parameter where {level:g} of the facts are known, at the largest F / at the smallest (fitted power)'
    if np.isfinite([*known.values()]).all():
      yield from over_seeds(what, change_of_held(known, dim, size))


def expect(table):
  """What a parameter of a memory holds by both laws; transformers at equal parameter counts; the
  protocol."""
  yield from _memory(select(table, kind='memory'))
  for (n, r), rows in groups(select(table, kind='transformer'), 'subjects', 'relations'):
    most = {}
    for (kind,), own in groups(rows, 'model'):
      most[kind] = own.groupby('seed')['value'].max()
      yield from over_seeds(
        f'N = {n:,}, R = {r}, {kind}: largest bits of facts per trained parameter', list(most[kind])
      )
    if len(most) == 2:
      fixed, learned = most['fixed embeddings'], most['learned embeddings']
      yield from over_seeds(
        f'N = {n:,}, R = {r}: largest bits of facts per trained parameter, fixed / learned embeddings',
        list(fixed / learned),
      )
  for (dim,), rows in groups(select(table, kind='protocol'), 'dim'):
    held = [own.loc[own['value'] >= 0.99, 'subjects'].max() for _, own in groups(rows, 'seed')]
    published = [float(PUBLISHED[int(dim)])]
    what = f'protocol of Nichani et al., d = F = {dim:.0f}: largest N with accuracy ≥ 0.99'
    yield from over_seeds(what, held, their_code=published)


def plot(table):
  """Accuracy of memories against n, what a parameter holds at n₅₀ by both laws, and transformers
  against parameter count."""
  figure, panels = plotting.new(11, 3.2, 1, 3)
  memory = curves.at_largest(select(table, kind='memory'), 'steps', 'width')
  for i, ((width,), rows) in enumerate(groups(memory, 'width')):
    plotting.draw_seeds(panels[0], rows, 'subjects', i, f'F = {width:.0f}')
  panels[0].set(
    xlabel='facts $n$', ylabel='accuracy', ylim=(0, 1.03), title='MLP memory, fixed embeddings'
  )
  plotting.logarithmic(panels[0].xaxis)
  halves = [
    (width, n)
    for (width,), rows in groups(memory, 'width')
    for n in half_counts(rows).values()
    if np.isfinite(n)
  ]
  for i, (name, size) in enumerate(LAWS.items()):
    color, marker = plotting.cycle(i)
    if halves:
      width, n = np.array(halves).T
      held = size(n) / (2 * memory['dim'].iloc[0] * width)
      unit = held[width == width.min()].mean()
      panels[1].plot(
        n, held / unit, marker, color=color, label=f'{name} per parameter, in units of {unit:.3g}'
      )
  panels[1].set(
    xlabel='$n_{50}$', ylabel='relative to the smallest F', ylim=(0, None), title='two laws'
  )
  if halves:
    plotting.logarithmic(panels[1].xaxis)
  for i, ((n, r, kind), rows) in enumerate(
    groups(select(table, kind='transformer'), 'subjects', 'relations', 'model')
  ):
    plotting.draw_seeds(panels[2], rows, 'parameters', i, f'N = {n:,}, R = {r}, {kind}')
  panels[2].set(xlabel='trained parameters', ylabel='bits of facts per parameter')
  panels[2].set(ylim=(0, None), title='transformers')
  plotting.logarithmic(panels[2].xaxis)
  for panel in panels:
    plotting.legend(panel, fontsize=6)
  return figure


STUDY = Study(
  name='frozen_embeddings',
  title='facts stored in the weights when embeddings are fixed', page='capacity.md',
  claims=(
    Claim('Claim 6', 'Without trained embeddings, the weights need parameters in proportion to the bits of all facts.', ('memory, d = 64',)),
  ),
  terms='n₅₀: the number of facts of which half are known. Trained parameters of a memory: 2·F·d. Bits of facts: '
  'N·R·log₂N less the cross-entropy over all answers.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot,
  by=('kind', 'measurement', 'model', 'subjects', 'relations', 'dim', 'width'), minutes=1.2, first_seed=FIRST_SEED + 600,
)  # fmt: skip


if __name__ == '__main__':
  STUDY.main()
