"""If embeddings cannot learn, the facts must go into the weights: how many are needed? Claim 6.

  python -m experiments.frozen_embeddings

Two searches for the smallest model that reaches accuracy 0.99. With fixed random embeddings and
unembedding: the smallest F at one d, in the full preset at several, counting what is trained. With
learned ones: the smallest d at F = 4d, counting everything. And a third for the largest N that the MLP memory of Nichani et al.
(2025) holds, as they ran it (`geomem.training.mlp_memory`), at d = F; their code found 43, 65 and 166 at 8, 11
and 16, one seed each. Expected: fixed embeddings need F·d in proportion to N·R·log(N·R), about
0.35 of it (their fit), learned ones d in proportion to R·log N alone.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np

from experiments.harness import plotting, searching, statistics
from experiments.harness.findings import Claim, over_seeds
from experiments.harness.statistics import complete, groups, select, values
from experiments.harness.study import Study
from geomem.training import mlp_memory
from geomem.training.recipe import Recipe

FROZEN = ('embed/subjects', 'unembed')
PUBLISHED = {8: 43, 11: 65, 16: 166}  # d = F: N, one seed each, by the code of Nichani et al.
CELL = 'kind', 'dim', 'subjects', 'relations'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """`sizes`: N and R of the searches; `dims`: of fixed embeddings, None: learned; `memories`: d = F of MLP memories.

  `rates`: learning rates with weight decays, of which the best counts; MLP memories have their authors' own.
  """

  sizes: tuple[dict[str, int], ...] = ()
  dims: tuple[int | None, ...] = ()
  memories: tuple[int, ...] = ()
  rates: tuple[tuple[float, float], ...] = ((0.01, 0.01), (0.03, 0.01))
  steps: int
  memory_steps: int = 2**15
  seeds: int = 5


sizes = lambda *pairs: tuple({'subjects': n, 'relations': r} for n, r in pairs)
LARGE = sizes(*itertools.product((64, 256, 1024), (1, 4, 8)))
PRESETS = {
  'smoke': Preset(
    sizes=sizes((8, 2)), dims=(None, 8), memories=(4,), steps=100, memory_steps=512, seeds=1
  ),
  'laptop': Preset(
    sizes=sizes((64, 1), (256, 1), (64, 4)), dims=(None, 16), memories=(8, 11, 16), steps=2000
  ),
  'full': {
    'memory': Preset(memories=(8, 11, 16, 22, 32, 45), steps=4000),
    'learned': Preset(sizes=LARGE, dims=(None,), steps=4000),
    **{f'fixed_{dim}': Preset(sizes=LARGE, dims=(dim,), steps=4000) for dim in (32, 64, 128)},
  },
}


def measure(trainer, preset, seeds):
  """Records of the three searches; the size that one finds is the value alone."""
  records = memories(trainer, preset, seeds)
  for dim in preset.dims:
    records += searched(trainer, preset, seeds, dim)
  return records


def searched(trainer, preset, seeds, dim: int | None) -> list[dict]:
  """Smallest F at fixed embeddings of this d; or, where it is None, smallest d where all is learned."""
  kind, find, frozen = ('learned', 'dim', ()) if dim is None else ('fixed', 'width', FROZEN)
  recipe = Recipe.with_warmup(preset.steps, target=0.99, frozen=frozen)
  cases = [searching.Case(find, **at, seed=seed) for at in preset.sizes for seed in seeds]
  setting = searching.Setting(recipe, preset.rates, dim or 0)
  about = {
    'kind': kind, 'measurement': f'smallest {find}', 'model': f'{kind} embeddings', 'control': None,
    'dim': dim,
  }  # fmt: skip
  found, _ = searching.measure(cases, setting, trainer.train, **about)
  return [*found.values()]


def memories(trainer, preset, seeds) -> list[dict]:
  """The largest N that the MLP memory holds."""
  held = lambda *asked: trainer.cached(lambda: mlp_memory.learn_all(*asked)[0])
  return [
    {
      'kind': 'memory', 'measurement': 'largest subjects', 'model': 'MLP memory', 'control': None, 'subjects': None,
      'relations': 1, 'dim': dim, 'width': dim, 'seed': seed, 'value': border.found, 'floor': border.failed is None,
      'parameters': 2 * dim * dim + dim,
    }
    for dim in preset.memories
    for seed, border in searching.largest_memory(mlp_memory.Recipe(dim, dim, preset.memory_steps), seeds, held).items()
  ]  # fmt: skip


def costs(table):
  """Of transformers: the number of facts n = N·R, and the trained parameters but for attention's four matrices."""
  own = table[table['kind'] != 'memory']
  dim = own['dim'].where(own['kind'] == 'fixed', own['value']).astype(float)
  beside = own['parameters'].astype(float) - 4 * dim**2
  return own.assign(facts=own['subjects'].astype(int) * own['relations'], beside=beside)


def expect(table):
  """The MLP memory beside what was published of it, and what fixed embeddings cost."""
  known = complete(table, *CELL, bordered=True)
  memory, models = select(known, kind='memory'), costs(known)
  by_seed = lambda rows, numbers: numbers.groupby(rows['seed']).mean()
  for dim, count in PUBLISHED.items():
    held, text = values(memory, dim=dim), f'MLP memory, d = F = {dim}: facts held'
    yield from over_seeds(text, held, 0.8 * count, 1.25 * count, check=True, published=[count])
  yield from growth(memory)
  for (dim,), rows in groups(select(models, kind='fixed'), 'dim'):
    n = rows['facts']
    text = f'fixed embeddings, d = {dim:.0f}, n = N·R = {", ".join(map(str, sorted({*n})))}: F·d / (n·ln n)'
    ratio = by_seed(rows, rows['value'] * dim / (n * np.log(n)))
    yield from over_seeds(text, ratio, 0.35 / 2, 0.35 * 2, published=[0.35])
  learned = select(models, kind='learned')
  bits = learned['relations'] * np.log2(learned['subjects'].astype(float))
  yield from over_seeds(
    'learned embeddings: d / (R·log2 N)', by_seed(learned, learned['value'] / bits)
  )
  for kind in ('learned', 'fixed'):
    own = select(models, kind=kind).sort_values('facts', kind='stable')
    for (n, r), rows in groups(own, 'subjects', 'relations'):
      text = f'{kind}: trained parameters per fact beside attention, N = {n:.0f}, R = {r}'
      yield from over_seeds(text, by_seed(rows, rows['beside'] / rows['facts']))


def growth(memory):
  """The exponent of F·d in the facts held; expected nearer to that of n·ln n than to n's."""
  held_SxD = memory.pivot(index='seed', columns='dim', values='value').astype(float)
  dims = held_SxD.columns.to_numpy(int)
  if len(dims) < 3:
    return []
  slope = lambda n, size: statistics.line(np.log(n), np.log(size))[1]
  mean = held_SxD.mean().to_numpy()
  law = slope(mean, mean * np.log(mean))
  laws: dict[str, Any] = {'n·ln_n': [law], 'n': [1.0]}
  if PUBLISHED.keys() >= {*dims.tolist()}:
    laws['published'] = [slope([PUBLISHED[dim] for dim in dims.tolist()], dims**2)]
  text = f'MLP memory, d = F = {", ".join(map(str, dims))}: F·d grows as n to the power'
  slopes = [slope(n, dims**2) for n in held_SxD.to_numpy()]
  return over_seeds(text, slopes, (1 + law) / 2, law + (law - 1) / 2, **laws)


def plot(table):
  """Parameters against facts, and the MLP memory beside its known fit; every seed that found something a mark."""
  figure, (left, right) = plotting.new(8.4, 3.2, 1, 2)
  found = table[table['value'].notna()]
  models, memory = costs(found), select(found, kind='memory')
  for i, ((kind, dim), rows) in enumerate(groups(models, 'kind', 'dim')):
    color, marker = plotting.cycle(i)
    label = 'learned embeddings' if kind == 'learned' else f'fixed embeddings, $d$ = {dim:.0f}'
    left.plot(rows['facts'], rows['beside'], marker, color=color, alpha=0.6, label=label)
  if len(models):
    n, grey = np.geomspace(models['facts'].min(), models['facts'].max()), plotting.GREY
    left.plot(n, 1.3 * n * np.log(n), '--', color=grey, label='1.3 $n$ log $n$ (linear memory)')
    left.plot(n, 2 * 0.35 * n * np.log(n), ':', color=grey, label='2·0.35 $n$ log $n$ (MLP)')
  plotting.logarithmic(left.xaxis, left.yaxis)
  left.set(
    xlabel='facts, $n = N R$', ylabel='parameters beside attention', title='trained until 0.99'
  )
  size, known = memory['width'] * memory['dim'], [d for d in PUBLISHED if d in {*memory['dim']}]
  right.plot(size, memory['value'], 'o', color=plotting.BLUE, alpha=0.6, label='ours')
  right.plot([d * d for d in known], [PUBLISHED[d] for d in known], 'D', color=plotting.RED,
             markerfacecolor='white', label='Nichani et al., their code, one seed')  # fmt: skip
  if len(memory):
    n, label = np.linspace(2, 1.3 * float(memory['value'].max())), '$F d = 0.35\\,N \\log N$'
    right.plot(0.35 * n * np.log(n), n, ':', color=plotting.GREY, label=label)
  title = f'MLP memory, {memory["seed"].nunique()} seeds'
  right.set(xlabel='$F d$', ylabel='largest $N$', title=title)
  plotting.legend(left, fontsize=5.5)
  plotting.legend(right)
  return figure


STUDY = Study(
  name='frozen_embeddings',
  title='what it costs when embeddings cannot learn',
  claims=(Claim('Claim 6', 'With fixed random embeddings the weights must hold the facts: parameters grow as N·R·log(N·R).'),),
  terms='MLP memory: one MLP on fixed random embeddings, trained as Nichani et al. (2025) did; n is the most facts '
  'that it holds. Fixed: the smallest F of a transformer whose embeddings are fixed. Learned: its smallest d, at '
  'F = 4d, where all is trained.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot, by=CELL, minutes=3.5, compile_quickly=False,
)  # fmt: skip


if __name__ == '__main__':
  STUDY.main()
