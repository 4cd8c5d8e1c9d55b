"""If embeddings cannot learn, the facts must go into the weights: how many are needed? Claim 6.

  python -m experiments.frozen_embeddings

Two searches for the smallest model that reaches accuracy 0.99. With fixed random embeddings and
unembedding: the smallest F at several d, counting what is trained. With learned ones: the smallest d
at F = 4d, counting everything. And a third for the largest N that the MLP memory of Nichani et al.
(2025) holds, as they ran it (`geomem.training.mlp_memory`), at d = F; their code found 43, 65 and 166 at 8, 11
and 16, one seed each. Expected: fixed embeddings need F·d in proportion to N·R·log(N·R), about
0.35 of it (their fit), learned ones d in proportion to R·log N alone.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np
from absl import flags

from experiments import claims
from experiments.figures import frozen_embeddings as frozen_embeddings_figure
from experiments.harness import cli, fitting, searching, statistics
from experiments.harness.findings import CHECK, Finding, found, only
from geomem import model
from geomem.training import bisection, mlp_memory, optimization
from geomem.training.optimization import Recipe

FLAGS = flags.FLAGS
fitting.define('frozen_embeddings', claims.minutes('frozen_embeddings'))

COLUMNS = (
  'kind',
  'subjects',
  'relations',
  'dim',
  'seeds',
  'found',
  'value',
  'least',
  'most',
  'parameters',
)
FROZEN = ('embed/subjects', 'unembed')


@dataclasses.dataclass(frozen=True)
class Setting:
  """`sizes`: N and R of the searches; `dims`: of fixed embeddings; `memories`: d = F of the MLP memory."""

  sizes: tuple[tuple[int, int], ...]
  dims: tuple[int, ...]
  memories: tuple[int, ...]
  steps: int
  memory_steps: int
  seeds: int


PRESETS = {
  'smoke': Setting(((8, 2),), (8,), (4,), 100, 512, 1),
  'laptop': Setting(
    ((64, 1), (256, 1), (64, 4)), (16,), (8, 11, 16), 2000, 2**15, 5
  ),
  'accelerator': Setting(
    tuple((n, r) for n in (64, 256, 1024) for r in (1, 4, 8)), (32, 64, 128), (8, 11, 16, 22, 32, 45),
    4000, 2**15, 5,
  ),
}  # fmt: skip
RATES = ((0.01, 0.01), (0.03, 0.01))


def searched(fitter, setting: Setting, seeds, dim: int | None) -> list[dict]:
  """Smallest F at fixed embeddings of this d; or, where it is None, smallest d where all is learned."""
  frozen = () if dim is None else FROZEN
  recipe = Recipe.with_warmup(setting.steps, target=0.99, frozen=frozen)
  search = searching.Setting(recipe, dim or 0, 0, RATES)
  find = 'dim' if dim is None else 'width'
  cases = [searching.Case(find, n, r, seed) for n, r in setting.sizes for seed in seeds]
  found = searching.measure(cases, search, fitter)
  records, kind = statistics.where(found, kind='threshold'), 'learned' if dim is None else 'fixed'
  return [
    {
      'claim': 6, 'control': None, 'measurement': f'smallest {find}', 'kind': kind,
      'model': f'{kind} embeddings', 'subjects': case.subjects, 'relations': case.relations, 'seed': case.seed, 'dim': r.get('dim', dim),
      'width': r.get('width'), 'value': r['value'], 'floor': r.get('floor'), 'parameters': _trained(case, r['value'], search),
    }
    for case, r in zip(cases, records, strict=True)
  ]  # fmt: skip


def _trained(case, size: int | None, search) -> int | None:
  """Parameters that training moved, of the model found."""
  if size is None:
    return None
  trained, _ = optimization.split(
    search.recipe, model.shapes(searching.configured(case, size, search))
  )
  return sum(math.prod(a.shape) for a in jax.tree.leaves(trained))


def memories(fitter, setting: Setting, seeds) -> list[dict]:
  """The largest N that the MLP memory holds."""
  records = []
  for dim in setting.memories:
    held = lambda recipe, asked: fitter.once(lambda: best(recipe, asked))
    found = largest(mlp_memory.Recipe(dim, dim, setting.memory_steps), seeds, held)
    records += [
      {
        'claim': 6, 'control': None, 'measurement': 'largest subjects', 'kind': 'memory', 'model': 'MLP memory', 'subjects': facts,
        'relations': 1, 'seed': seed, 'dim': dim, 'width': dim, 'value': facts, 'floor': border.failed is None,
        'parameters': 2 * dim * dim + dim,
      }
      for seed, border in found.items() for facts in [border.found]
    ]  # fmt: skip
  return records


def largest(recipe: mlp_memory.Recipe, seeds, best: Callable) -> dict[int, bisection.Bisection]:
  """The largest N of each seed, `best` being the best accuracy of each (seed, N) of a round.

  From d to F·d facts, the middle first, to one part in a hundred, which is where they searched.
  """
  least, most = recipe.dim, recipe.dim * recipe.width
  span = bisection.Range(least, most, (least + most) // 2, False, resolution=0.01)
  attempt = lambda asked: [held >= recipe.target for held in best(recipe, asked)]
  return bisection.search({seed: span for seed in seeds}, attempt)


def best(recipe: mlp_memory.Recipe, asked) -> np.ndarray:
  """The best accuracy of each (seed, N), trained together."""
  seeds, sizes = zip(*asked, strict=True)
  return mlp_memory.learn_all(recipe, sizes, seeds)[0]


def measure(fitter, setting: Setting, seeds) -> list[dict]:
  """Records of the three searches."""
  records = memories(fitter, setting, seeds) + searched(fitter, setting, seeds, None)
  for dim in setting.dims:
    records += searched(fitter, setting, seeds, dim)
  return records


def summary(records: list[dict]) -> list[dict]:
  """A row a size; no mean where some seed found nothing, for that would be too good."""
  rows = []
  for group in statistics.groups(_asked(records), *ASKED):
    first = group[0]
    row = {'kind': first['kind'], 'subjects': first['for'], 'relations': first['relations']}
    rows.append(row | {'dim': first['at']} | statistics.if_all(group, 'parameters'))
  return rows


ASKED = 'kind', 'at', 'for', 'relations'


def _asked(records: list[dict]) -> list[dict]:
  """With the d and the N that were asked for: of the two that a search has, one is what it found."""
  at = lambda r: None if r['kind'] == 'learned' else r['dim']
  of = lambda r: None if r['kind'] == 'memory' else r['subjects']
  return [{**r, 'at': at(r), 'for': of(r)} for r in records]


def findings(records: list[dict]) -> list[Finding]:
  """The MLP memory beside what was published of it, and what fixed embeddings cost."""
  known = statistics.complete(_asked(records), *ASKED, bordered=True)
  found_all = []
  for dim, count in frozen_embeddings_figure.PUBLISHED.items():
    held = only(known, kind='memory', dim=dim)
    found_all += found(f'MLP memory, d = F = {dim}: facts held', held, 0.8 * count, 1.25 * count,
                       CHECK, published=[count])  # fmt: skip
  found_all += _growth(statistics.where(known, kind='memory'))
  facts = lambda r: r['subjects'] * r['relations']
  fixed = [r | {'value': r['width'] * r['dim'] / (facts(r) * math.log(facts(r)))}
           for r in known if r['kind'] == 'fixed']  # fmt: skip
  for group in statistics.groups(fixed, 'dim'):
    sizes = ', '.join(map(str, sorted({facts(r) for r in group})))
    found_all += found(
      f'fixed embeddings, d = {group[0]["dim"]}, n = N·R = {sizes}: F·d / (n·ln n)',
      _by_seed(group),
      0.35 / 2,
      0.35 * 2,
      published=[0.35],
    )
  learned = [r | {'value': r['value'] / (r['relations'] * math.log2(r['subjects']))}
             for r in known if r['kind'] == 'learned']  # fmt: skip
  found_all += found('learned embeddings: d / (R·log2 N)', _by_seed(learned))
  for name in ('learned', 'fixed'):
    bits = [
      r | {'value': frozen_embeddings_figure.beside_attention(r) / facts(r)}
      for r in known
      if r['kind'] == name
    ]
    for group in statistics.groups(sorted(bits, key=facts), 'subjects', 'relations'):
      first = group[0]
      text = f'{name}: trained parameters per fact beside attention, N = {first["subjects"]}, R = {first["relations"]}'
      found_all += found(text, _by_seed(group))
  return found_all


def _growth(memory) -> list[Finding]:
  """The exponent of F·d in the facts held; expected nearer to that of n·ln n than to n's."""
  slope = lambda n, size: float(np.polyfit(np.log(n), np.log(size), 1)[0])
  by_seed = [{r['dim']: r['value'] for r in own} for own in statistics.groups(memory, 'seed')]
  if not by_seed or len(by_seed[0]) < 3:
    return []
  dims = np.array(sorted(by_seed[0]))
  held = np.array([[sizes[dim] for dim in dims.tolist()] for sizes in by_seed], float)
  mean, published = held.mean(axis=0), frozen_embeddings_figure.PUBLISHED
  law = slope(mean, mean * np.log(mean))
  rivals = {'n·ln_n': [law], 'n': [1.0]}
  if published.keys() >= {*dims.tolist()}:
    rivals['published'] = [slope([published[dim] for dim in dims.tolist()], dims**2)]
  text = f'MLP memory, d = F = {", ".join(map(str, dims))}: F·d grows as n to the power'
  bounds = (1 + law) / 2, law + (law - 1) / 2
  return found(text, [slope(n, dims**2) for n in held], *bounds, **rivals)


def _by_seed(records) -> list[float]:
  return [float(np.mean(only(group))) for group in statistics.groups(records, 'seed')]


def main(argv):
  draw = frozen_embeddings_figure.draw
  fitting.main(argv, 'frozen_embeddings', PRESETS, measure, draw, COLUMNS, summary, quick=False)


if __name__ == '__main__':
  cli.run(main)
