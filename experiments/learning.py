"""Does training by this engine find what quick trials with plain code found? Five seeds each.

  python -m experiments.learning

Three leads. Accuracy against width: N = 64, R = 4, F = 4d, 2,000 full-batch steps; the trials had
0.77 to 0.83 at d = 4, 0.99 to 1 at d = 8, and 1 from d = 12 on. Structure against weight decay:
N = 1,024, R = 4, d = 32, F = 48, 4,000 steps of 256 subjects; the trials had accuracy 1 throughout,
and held-out R² of the superposition and accuracy of linear readouts of 0.52, 0.4 at no decay, 0.79,
0.9 at 0.3 and 0.84, 0.97 at 1; with shuffled facts R² is at most 0. And new facts for old weights:
N = 2,048, R = 2, d = 128, F = 96, a frozen random unembedding, weight decay 1, 2,000 steps of 256
subjects; embeddings superposed for new bijections were answered at 0.998. Six minutes on two cores.
"""

import jax
import numpy as np
from absl import flags

from experiments import cli, fitting, statistics
from geomem import facts as fact
from geomem import structure, sweep, verify
from geomem.config import Config
from geomem.train import Recipe

FLAGS = flags.FLAGS
cli.define(
  'scale',
  'save_seconds',
  'profile',
  seed='The first seed, of parameters and facts (default: 0).',
  seeds='How many seeds, from --seed on (default: 5; 1 at --scale=smoke).',
  workdir='Folder of the run (default: runs/learning).',
)

COLUMNS = (
  'measurement',
  'subjects',
  'dim',
  'width',
  'weight_decay',
  'seeds',
  'value',
  'least',
  'most',
  'seen',
)
WIDTHS = {4: '0.77-0.83', 8: '0.99-1', 12: '1', 16: '1'}
DECAYS = {0.0: (1, 0.52, 0.4), 0.3: (1, 0.79, 0.9), 1.0: (1, 0.84, 0.97)}
STRUCTURE = ('accuracy', 'superposition', 'readout', 'superposition_shuffled')


def task(subjects: int, dim: int, width: int, decay: float, seed: int) -> sweep.Task:
  config = Config.trained(subjects, 4, dim, width)
  table = fact.bijections(jax.random.key(seed), subjects, 4)
  return sweep.Task(config, table, 1e-2, decay, seed)


def against_width(fitter, seeds, subjects: int, steps: int) -> list[dict]:
  """Accuracy of models too narrow, about right, and wide enough."""
  tasks = [task(subjects, d, 4 * d, 0.1, seed) for d in WIDTHS for seed in seeds]
  found = fitter(Recipe(steps, warmup=min(100, steps // 10), target=None), tasks)
  return [
    record('accuracy', one, value, WIDTHS[one.config.dim])
    for one, value in zip(tasks, found['accuracy'], strict=True)
  ]


def against_decay(fitter, seeds, subjects: int, batch: int, steps: int) -> list[dict]:
  """Accuracy and linear structure of models with and without weight decay."""
  tasks = [task(subjects, 32, 48, decay, seed) for decay in DECAYS for seed in seeds]
  recipe = Recipe(steps, warmup=min(100, steps // 10), batch=batch, target=None)

  def work():
    laid, states = fitter.follow(sweep.fit, *sweep.lay_out(recipe, tasks))
    return np.array([_structure(laid.result(states, i), tasks[i]) for i in range(len(tasks))])

  return [
    record(name, one, value, str(seen))
    for one, values in zip(tasks, fitter.once(work), strict=True)
    for name, value, seen in zip(
      STRUCTURE, values, (*DECAYS[one.weight_decay], '<= 0'), strict=True
    )
  ]


def new_facts(fitter, seeds, subjects: int, batch: int, steps: int) -> list[dict]:
  """Accuracy on bijections that were never trained, with embeddings superposed for them."""
  config = Config.trained(subjects, 2, 128, 96)
  table = lambda seed: fact.bijections(jax.random.key(seed), subjects, 2)
  tasks = [sweep.Task(config, table(seed), 1e-2, 1.0, seed) for seed in seeds]
  frozen = ('unembed',)
  recipe = Recipe(steps, warmup=min(100, steps // 10), batch=batch, target=None, frozen=frozen)

  def zero_shot(state, one):
    e, u = state.params['embed']['subjects'], state.params['unembed']['answers']
    other = table(one.seed + 10**6)
    embed = structure.superposed(e, u, one.facts.answers_RxN, other.answers_RxN)
    params = {**state.params, 'embed': {**state.params['embed'], 'subjects': embed}}
    return verify.accuracy(config, params, other).accuracy

  def work():
    laid, states = fitter.follow(sweep.fit, *sweep.lay_out(recipe, tasks))
    ends = [laid.result(states, i) for i in range(len(tasks))]
    return np.array(
      [[float(s.accuracy), zero_shot(s, t)] for s, t in zip(ends, tasks, strict=True)]
    )

  return [
    record(name, one, value, seen)
    for one, values in zip(tasks, fitter.once(work), strict=True)
    for name, value, seen in zip(('accuracy', 'zero_shot'), values, ('1', '0.998'), strict=True)
  ]


def _structure(state, one: sweep.Task) -> list[float]:
  e, u, g = (
    state.params['embed']['subjects'],
    state.params['unembed']['answers'],
    one.facts.answers_RxN,
  )
  split = structure.hold_out(jax.random.key(one.seed), len(e))
  shuffled = fact.bijections(jax.random.key(one.seed + 10**6), len(e), len(g)).answers_RxN
  measures = _measures(e, u, np.asarray(g), np.asarray(shuffled), *split)
  return [float(state.accuracy), *map(float, measures)]


@jax.jit
def _measures(e, u, g, shuffled, fit_T, held_S):
  return (
    structure.superposition(e, u, g, fit_T, held_S),
    structure.readout(e, u, g, fit_T, held_S),
    structure.superposition(e, u, shuffled, fit_T, held_S),
  )


def record(measurement: str, one: sweep.Task, value: float, seen: str) -> dict:
  return {
    'claim': 'learning', 'measurement': measurement, 'subjects': one.config.subjects,
    'relations': one.config.relations, 'dim': one.config.dim, 'width': one.config.blocks[0].hidden[0],
    'weight_decay': one.weight_decay, 'seed': one.seed, 'value': float(value), 'seen': seen,
  }  # fmt: skip


def summary(records: list[dict]) -> list[dict]:
  """Mean and range over the seeds."""
  return [
    {**group[0], 'seeds': len(group), **statistics.spread(group, 'value')}
    for group in statistics.groups(records, 'measurement', 'subjects', 'dim', 'weight_decay')
  ]


PRESETS = {  # subjects and steps; subjects, batch and steps, twice; seeds
  'smoke': ((8, 50), (16, 8, 50), (16, 8, 50), 1),
  'laptop': ((64, 2000), (1024, 256, 4000), (2048, 256, 2000), 5),
  'accelerator': ((64, 2000), (1024, 256, 4000), (2048, 256, 2000), 20),
}


def main(argv):
  cli.no_arguments(argv)
  cli.one_device_a_core()
  folder = cli.workdir('runs/learning')
  width, decay, new, seeds = PRESETS[FLAGS.scale]
  seeds = range(FLAGS.seed, FLAGS.seed + cli.value('seeds', seeds))
  about = {
    'width': (WIDTHS, width),
    'decay': (list(map(list, DECAYS.items())), decay),
    'new': new,
    'seeds': list(seeds),
  }
  with fitting.run(folder, about) as fitter:
    records = against_width(fitter, seeds, *width) + against_decay(fitter, seeds, *decay)
    records += new_facts(fitter, seeds, *new)
    fitter.save()
    cli.write_results(folder, records)
  print(cli.table(COLUMNS, summary(records)))
  print(f'records: {folder / "results.json"}')


if __name__ == '__main__':
  cli.run(main)
