"""Start gradient descent at a construction: does it stay, and how far is what it finds from what was built?

  python -m experiments.from_constructed

The selector that lives in the architecture that is trained (norms on), and two without norms, are
trained from their exact weights, from weights with noise on every one of them, and from scratch at the
same size. Expected: from the exact weights accuracy never falls, the loss shrinks, and embeddings stay a
linear map of the built ones, which is one map per relation; from noise accuracy comes back, though the
weights need not. Found from scratch embeddings are no such map, for a free unembedding need not be
linear in the built codes; but they are the superposition of its own vectors. Both are judged on
held-out subjects; the control is shuffled facts.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax.traverse_util import flatten_dict, unflatten_dict

from constructions import registry
from experiments import claims
from experiments.figures import from_constructed as from_constructed_figure
from experiments.harness import building, cli, fitting, statistics
from experiments.harness.findings import Finding, found, only
from geomem import model
from geomem.config import Config
from geomem.inside import linear_maps
from geomem.training import batched, optimization
from geomem.training.optimization import Recipe

FLAGS = flags.FLAGS
fitting.define('from_constructed', claims.minutes('from_constructed'))

COLUMNS = (
  'construction', 'start', 'weight_decay', 'measurement', 'control', 'seeds', 'value', 'least', 'most',
)  # fmt: skip
SCRATCH = 'scratch'


@dataclasses.dataclass(frozen=True)
class Setting:
  """`noises`: of the perturbed starts, as a share of each array's root mean square, or, where it is all zeros, of
  a fresh initialization's; `looks`: steps at which; `rates`: learning rates, from built weights and from scratch.
  """

  constructions: tuple[str, ...]
  subjects: int
  relations: int
  noises: tuple[float, ...]
  decays: tuple[float, ...]
  looks: tuple[int, ...]
  seeds: int
  rates: tuple[float, float] = (1e-3, 1e-2)


BUILT = ('selector_normed', 'selector', 'attention_only')
PRESETS = {
  'smoke': Setting(BUILT[:1], 48, 2, (0.0, 0.3), (0.0,), (20, 40), 1),
  'laptop': Setting(BUILT, 128, 4, (0.0, 0.1, 0.3), (0.0, 0.3), (50, 200, 500, 1000), 5),
  'accelerator': Setting(
    BUILT, 1024, 4, (0.0, 0.03, 0.1, 0.3, 1.0), (0.0, 0.1, 0.3, 1.0), (50, 200, 1000, 4000), 10
  ),
}


def starts(setting: Setting, name: str, seed: int):
  """(start, parameters) for every start of a construction; None: drawn anew."""
  built = _built(setting, name, seed)
  rng = np.random.default_rng((seed, 2))
  for noise in setting.noises:
    shaken = {
      path: np.asarray(w + noise * size * rng.standard_normal(w.shape), np.float32)
      for path, (w, size) in _sizes(built, seed).items()
    }
    yield f'noise {noise:g}' if noise else 'exact', unflatten_dict(shaken)
  yield SCRATCH, None


def _sizes(built, seed: int) -> dict[tuple[str, ...], tuple[np.ndarray, float]]:
  """Every array with its root mean square; of one that is all zeros, that of a fresh initialization.

  A bias starts at zero too: it is shaken as much as the matrix before it would be.
  """
  fresh = flatten_dict(model.draw(built.config, seed))
  size = lambda w: float(np.sqrt(np.mean(np.square(w))))
  before = lambda path: (*path[:-1], path[-1].removesuffix('_bias'))
  return {
    path: (w, size(w) or size(fresh[before(path)]))
    for path, w in flatten_dict(built.params).items()
  }


@functools.lru_cache(maxsize=256)
def _built(setting: Setting, name: str, seed: int, other: bool = False):
  """The construction of a seed's facts, or of others."""
  return registry.build(name, building.bijections(setting.subjects, setting.relations, seed, other))


def scores(config: Config, recipe: Recipe, params, job, built_NxD, shuffled_NxD, other_RxN, built):
  """Accuracy, loss, and how near the embeddings and all weights are to those built."""
  everyone = jnp.ones(config.subjects, bool)
  e_NxD, u_AxD = params['embed']['subjects'], model.apply(config, params, method='unembedding')
  split = linear_maps.hold_out(jax.random.key(job.seed), config.subjects)
  away, size = (
    sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))
    for tree in (jax.tree.map(jnp.subtract, params, built), built)
  )
  return {
    'accuracy': optimization.accuracy(config, recipe, job, params),
    'loss': optimization.loss(config, recipe, params, job, None, everyone),
    'aligned': _aligned(built_NxD, e_NxD, *split),
    'aligned|shuffled facts': _aligned(shuffled_NxD, e_NxD, *split),
    **{
      name: linear_maps.superposition_r2(e_NxD, u_AxD, table, *split)
      for name, table in (
        ('superposition', job.answers_RxN),
        ('superposition|shuffled facts', other_RxN),
      )
    },
    'away': jnp.sqrt(away / size),
  }


def _aligned(built_NxD, e_NxD, fit_T, held_S):
  """R² on held-out subjects of the best linear map of built embeddings, which is one map per relation."""
  w, b = linear_maps.affine(built_NxD[fit_T], e_NxD[fit_T])
  guess = built_NxD[held_S] @ w + b[None]
  return linear_maps.r2(e_NxD[held_S], guess, jnp.mean(e_NxD[fit_T], axis=0))


def measure(fitter, setting: Setting, seeds) -> list[dict]:
  """A record a number, start and look."""
  records = []
  for name, decay in itertools.product(setting.constructions, setting.decays):
    tasks, labels = [], []
    for seed in seeds:
      built = _built(setting, name, seed)
      for label, params in starts(setting, name, seed):
        rate = setting.rates[params is None]
        tasks.append(batched.Task(built.config, built.facts, rate, decay, seed, params))
        labels.append(label)
    records += _followed(fitter, setting, name, tasks, labels)
  return records


def _followed(fitter, setting: Setting, name: str, tasks, labels) -> list[dict]:
  """Looks at all starts of a construction as training goes on."""
  config = tasks[0].config
  recipe = Recipe(setting.looks[-1], warmup=0, target=None)
  own, others = ([_built(setting, name, t.seed, other) for t in tasks] for other in (False, True))
  embeddings = lambda all_built: np.stack([b.params['embed']['subjects'] for b in all_built])
  answers = np.stack([b.facts.answers_RxN for b in others])
  weights = jax.tree.map(lambda *a: np.stack(a), *(b.params for b in own))
  more = embeddings(own), embeddings(others), answers, weights
  function = functools.partial(scores, config, recipe)

  def work():
    laid, states = batched.set_up(recipe, tasks)
    found = [batched.evaluate(laid, states, function, *more)]
    for before, look in itertools.pairwise((0, *setting.looks)):
      states = batched.advance(laid, states, look - before)
      found.append(batched.evaluate(laid, states, function, *more))
    return {key: np.stack([f[key] for f in found]) for key in found[0]}

  found = fitter.once(work)
  return [
    {
      'claim': 'from built to learned', 'measurement': key.partition('|')[0],
      'control': key.partition('|')[2] or None, 'model': f'{name}, {label}', 'construction': name, 'start': label, 'step': step,
      'seed': task.seed, 'subjects': config.subjects, 'relations': config.relations, 'dim': config.dim,
      'norm': config.norm, 'weight_decay': task.weight_decay, 'value': float(values[i, j]),
    }
    for key, values in found.items()
    for i, step in enumerate((0, *setting.looks))
    for j, (task, label) in enumerate(zip(tasks, labels, strict=True))
  ]  # fmt: skip


def summary(records: list[dict]) -> list[dict]:
  """Mean and range over the seeds, at the end."""
  last = max(r['step'] for r in records)
  names = 'construction', 'start', 'weight_decay', 'measurement', 'control'
  return statistics.over_seeds([r for r in records if r['step'] == last], *names)


def findings(records: list[dict]) -> list[Finding]:
  """Whether training stays, and how near what is found lies to what was built."""
  last = max(r['step'] for r in records)
  found_all = []
  for group in statistics.groups(records, 'construction', 'weight_decay', 'start'):
    first = group[0]
    about = f'{first["construction"]}, decay {first["weight_decay"]:g}, {first["start"]}: '
    of = lambda name, control=None, group=group, step=last: only(
      group, measurement=name, control=control, step=step
    )
    exact, learned = first['start'] == 'exact', first['start'] == SCRATCH
    if exact:
      by_seed = statistics.groups(statistics.where(group, measurement='accuracy'), 'seed')
      worst = [np.min(only(own)).item() for own in by_seed]
      found_all += found(about + 'right answers at the worst look', worst, 1.0)
      shrunk = np.divide(of('loss'), of('loss', step=0))
      found_all += found(about + 'loss in the end / at the start', shrunk, most=1.0)
    text, least = about + 'right answers in the end', None if learned else 0.99
    found_all += found(text, of('accuracy'), least, at_the_start=of('accuracy', step=0))
    text = about + 'distance from the built weights / their size'
    found_all += found(text, of('away'), at_the_start=of('away', step=0))
    text = about + 'embeddings a linear map of the built ones, held-out R²'
    found_all += found(
      text, of('aligned'), 0.9 if exact else None,
      at_the_start=of('aligned', step=0), shuffled_facts=of('aligned', 'shuffled facts'),
    )  # fmt: skip
    text = about + 'embeddings a superposition of its own attribute vectors, held-out R²'
    found_all += found(
      text, of('superposition'), shuffled_facts=of('superposition', 'shuffled facts')
    )
  return found_all


def main(argv):
  draw = from_constructed_figure.draw
  fitting.main(argv, 'from_constructed', PRESETS, measure, draw, COLUMNS, summary)


if __name__ == '__main__':
  cli.run(main)
