"""Start gradient descent at a construction: does it stay there, and how far is what it finds from what was built?

  python -m experiments.from_constructed

The selector inside the trained architecture (norms on), and two constructions without norms, are
trained from their exact weights, from weights with noise on every one of them, and from scratch at
the same size. Expected: from the exact weights accuracy never falls, the loss shrinks, and
embeddings stay an invertible linear map of the built ones, which is one map per relation; from
noisy weights accuracy recovers. Training from scratch learns the facts as well, so recovery by
itself is no evidence of a basin. The evidence is where training ends, compared with where it ends
from scratch: up to the best linear map, in both directions, on held-out subjects; and whether
models halfway to the built weights still answer right.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from constructions import registry
from experiments.harness import instances, plotting, stages
from experiments.harness.findings import Claim, over_seeds
from experiments.harness.statistics import groups, parse_score_name, select, summarize, values
from experiments.harness.study import Study
from geomem import model
from geomem.config import Config
from geomem.inside import linear_maps
from geomem.training import optimization, sweeps
from geomem.training.recipe import Recipe

BUILT = ('selector_normed', 'selector', 'attention_only')
LABELS = {
  'accuracy': 'final accuracy', 'half_way': 'accuracy halfway to the built weights',
  'linear_r2': 'held-out R² of a linear map from built to final embeddings',
  'built_r2': 'held-out R² of a linear map from final to built embeddings',
  'distance': 'distance from the built weights / their norm',
  'superposition_r2': 'held-out superposition R², own attribute vectors',
}  # fmt: skip
AXES = {  # what the figure calls them
  'half_way': 'accuracy halfway', 'linear_r2': 'R², built to final', 'built_r2': 'R², final to built',
  'superposition_r2': 'superposition R²', 'distance': 'relative distance',
}  # fmt: skip
BASIN = 'half_way', 'linear_r2', 'built_r2'  # what tells the construction's basin from another
NEARBY = 'exact', 'noise 0.03', 'noise 0.1'  # starts from which training should end in that basin


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """`noises`: noise of the perturbed starts, as a fraction of each array's root mean square, or of
  a fresh initialisation's where the array is all zeros."""

  constructions: tuple[str, ...] = BUILT
  subjects: int
  relations: int
  noises: tuple[float, ...]
  weight_decays: tuple[float, ...]
  evaluation_steps: tuple[int, ...]
  seeds: int


PRESETS = {
  'smoke': Preset(
    constructions=BUILT[:1], subjects=48, relations=2, noises=(0.0, 0.3), weight_decays=(0.0,),
    evaluation_steps=(20, 40), seeds=1,
  ),
  'laptop': Preset(
    subjects=128, relations=4, noises=(0.0, 0.1, 0.3), weight_decays=(0.0, 0.3),
    evaluation_steps=(50, 200, 500, 1000), seeds=5,
  ),
  'full': {
    f'{name}_{decay:g}': Preset(
      constructions=(name,), subjects=512, relations=4, noises=(0.0, 0.03, 0.1, 0.3, 1.0),
      weight_decays=(decay,), evaluation_steps=(50, 200, 1000, 2000), seeds=5,
    )
    for name in BUILT for decay in (0.0, 0.3)
  },
}  # fmt: skip


@functools.lru_cache(maxsize=256)
def build(preset: Preset, name: str, seed: int, other: bool = False):
  """The construction for a seed's facts, or for other facts."""
  return registry.build(name, instances.bijections(preset.subjects, preset.relations, seed, other))


def starts(preset: Preset, name: str, weight_decay: float, seed: int):
  """Yields (name, task) for every start of a construction."""
  built, rng = build(preset, name, seed), np.random.default_rng((seed, 2))
  own = built.config, built.facts
  task = functools.partial(sweeps.Task, *own, weight_decay=weight_decay, seed=seed)
  for noise in preset.noises:
    noised = stages.noised(built.config, built.params, noise, rng, seed)
    start = f'noise {noise:g}' if noise else 'exact'
    yield start, task(learning_rate=stages.LEARNING_RATE, params=noised)
  yield 'scratch', task(learning_rate=stages.FROM_SCRATCH)


@jax.default_matmul_precision('highest')
def scores(config: Config, recipe: Recipe, params, job, built, other_NxD, other_RxN):
  """Accuracy, loss, and how near the embeddings and all weights are to the built ones; the control
  is a construction for other facts."""
  e_NxD, u_AxD = params['embed']['subjects'], model.apply(config, params, method='unembedding')
  split = linear_maps.hold_out(jax.random.key(job.seed), config.subjects)
  # R² on held-out subjects of the best linear map from x to y; if x is built, it is one map per relation.
  map_r2 = lambda x_NxD, y_NxD: linear_maps.linear_r2(x_NxD, y_NxD, *split)
  built_NxD = built['embed']['subjects']
  half_way = jax.tree.map(lambda a, b: (a + b) / 2, params, built)
  superposition_r2 = lambda table: linear_maps.superposition_r2(e_NxD, u_AxD, table, *split)
  square = lambda tree: sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))
  away = square(jax.tree.map(jnp.subtract, params, built))
  return {
    'accuracy': optimization.accuracy(config, recipe, job, params),
    'loss': optimization.loss(config, recipe, params, job, None, jnp.ones(config.subjects, bool)),
    'half_way': optimization.accuracy(config, recipe, job, half_way),
    'linear_r2': map_r2(built_NxD, e_NxD),
    'linear_r2|shuffled facts': map_r2(other_NxD, e_NxD),
    'built_r2': map_r2(e_NxD, built_NxD),
    'built_r2|shuffled facts': map_r2(e_NxD, other_NxD),
    'superposition_r2': superposition_r2(job.answers_RxN),
    'superposition_r2|shuffled facts': superposition_r2(other_RxN),
    'distance': jnp.sqrt(away / square(built)),
  }


def measure(trainer, preset: Preset, seeds) -> list[dict]:
  """One record per number, start and evaluation."""
  records = []
  for name, weight_decay in itertools.product(preset.constructions, preset.weight_decays):
    started = [pair for seed in seeds for pair in starts(preset, name, weight_decay, seed)]
    found = evaluations(trainer, preset, name, [task for _, task in started])
    config = started[0][1].config
    about = {
      'construction': name, 'subjects': config.subjects, 'relations': config.relations,
      'dim': config.dim, 'norm': config.norm, 'weight_decay': weight_decay,
    }  # fmt: skip
    records += [
      {**parse_score_name(key), **about, 'start': start, 'step': step, 'seed': task.seed, 'value': float(value)}
      for key, values_TxM in found.items()
      for step, values_M in zip((0, *preset.evaluation_steps), values_TxM, strict=True)
      for (start, task), value in zip(started, values_M, strict=True)
    ]  # fmt: skip
  return records


def evaluations(trainer, preset: Preset, name: str, tasks) -> dict:
  """Scores of all starts of a construction in the course of training."""
  recipe = Recipe(preset.evaluation_steps[-1], warmup=0, target=None)
  stack = lambda trees: jax.tree.map(lambda *arrays: np.stack(arrays), *trees)
  own, others = ([build(preset, name, t.seed, other) for t in tasks] for other in (False, True))
  built, other_built = (stack([b.params for b in some]) for some in (own, others))
  more = built, other_built['embed']['subjects'], np.stack([b.facts.answers_RxN for b in others])
  function = functools.partial(scores, tasks[0].config, recipe)
  return trainer.evaluate_at(preset.evaluation_steps, recipe, tasks, function, *more)


def expect(table):
  """Whether training stays, and how near its result is to what was built."""
  last = table['step'].max()
  for (name, decay, start), rows in groups(table, 'construction', 'weight_decay', 'start'):
    about, exact = f'{name}, decay {decay:g}, {start}: ', start == 'exact'
    end, first = select(rows, step=last), select(rows, step=0)
    of = lambda rows, name, control=None: values(rows, measurement=name, control=control)
    if exact:
      worst = summarize(select(rows, measurement='accuracy'), 'seed')['least'].tolist()
      yield from over_seeds(about + 'lowest accuracy during training', worst, 1.0)
      shrunk = np.divide(of(end, 'loss'), of(first, 'loss')).tolist()
      yield from over_seeds(about + 'final loss / initial loss', shrunk, at_most=1.0)
    scratch = select(table, construction=name, weight_decay=decay, start='scratch', step=last)
    bounds = dict.fromkeys(BASIN, 0.9) if start in NEARBY else {}
    for measurement, text in LABELS.items():
      at_least = bounds.get(measurement)
      if measurement == 'accuracy' and start != 'scratch':
        at_least = 0.99
      controls: Any = {'shuffled facts': of(end, measurement, 'shuffled facts')}
      if measurement != 'superposition_r2':
        controls = {'at the start': of(first, measurement), **controls}
      if start != 'scratch':
        controls |= {'from scratch': of(scratch, measurement)}
      yield from over_seeds(about + text, of(end, measurement), at_least, **controls)


def plot(table):
  """A row per construction, a panel per measurement; colours are starts, dashes weight decays."""
  shown = select(table, control=None)
  columns = 'construction', 'measurement', 'start', 'weight_decay'
  names, measurements, starts, decays = (shown[column].unique().tolist() for column in columns)
  size = len(names), len(measurements)
  figure, panels = plotting.new(14, 2.6 * len(names), *size, squeeze=False)
  cells = itertools.product(names, measurements)
  for ax, (name, measurement) in zip(panels.flat, cells, strict=True):
    own = select(shown, construction=name, measurement=measurement)
    for (start, decay), rows in groups(own, 'start', 'weight_decay'):
      label, line = f'{start}, decay {decay:g}', '-' if decay == decays[0] else '--'
      plotting.draw_seeds(ax, rows, 'step', starts.index(start), label, linestyle=line)
    ax.set(xlabel='step', ylabel=AXES.get(measurement, measurement), xscale='symlog')
    ax.set(title=name.replace('_', ' '), yscale='log' if measurement == 'loss' else 'linear')
  handles = panels[0][0].get_legend_handles_labels()
  figure.legend(*handles, loc='outside lower center', ncols=len(starts))
  return figure


STUDY = Study(
  name='from_constructed', title='gradient descent started at the constructions', page='from_constructions.md',
  claims=(
    Claim('From built to learned', 'Gradient descent stays in the basin of a construction, also when its weights are perturbed a little.'),
  ),
  terms='Exact: training starts at the built weights; noise: Gaussian noise of this many times each array’s RMS is added '
  'to them first; scratch: it starts at random weights, with ten times the learning rate. Lowest '
  'accuracy: over all evaluations during training. Decay: weight decay. Halfway: the weights are the mean of those found and '
  'those built. Weights found from scratch would first have to be matched to the built ones, unit by unit and up to '
  'the maps that change no answer; that is not tried.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot, minutes=1.4,
)  # fmt: skip

if __name__ == '__main__':
  STUDY.main()
