"""Does training by this engine find what quick trials with plain code found? Five seeds each.

  python -m experiments.learning

Three leads. Accuracy against width: N = 64, R = 4, F = 4d, 2,000 full-batch steps; the trials had
0.77 to 0.83 at d = 4, 0.99 to 1 at d = 8, and 1 from d = 12 on. Structure against weight decay:
N = 1,024, R = 4, d = 32, F = 48, 4,000 steps of 256 subjects; the trials had accuracy 1 throughout,
and held-out R² of the superposition and accuracy of linear readouts of 0.52, 0.4 at no decay, 0.79,
0.9 at 0.3 and 0.84, 0.97 at 1; with shuffled facts R² is at most 0; at d = 64, F = 96, weight decay 3: 0.91 and 1. And new facts for old weights:
N = 2,048, R = 2, d = 128, F = 96, a frozen random unembedding, weight decay 1, 2,000 steps of 256
subjects; embeddings superposed for new bijections were answered at 0.998. Six minutes on two cores.
"""

import functools

import jax
import numpy as np
from absl import flags

from experiments import building, cli, fitting, machine, statistics, storage
from geomem import intervene, structure, sweep
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
  'measurement', 'subjects', 'dim', 'width', 'weight_decay', 'seeds', 'value', 'least', 'most', 'seen',
)  # fmt: skip
WIDTHS = {4: '0.77-0.83', 8: '0.99-1', 12: '1', 16: '1'}
STRUCTURES = {  # d, F, weight decay: what the trials saw
  (32, 48, 0.0): {'r2': '0.52', 'readout': '0.4'},
  (32, 48, 0.3): {'r2': '0.79', 'readout': '0.9'},
  (32, 48, 1.0): {'r2': '0.84', 'readout': '0.97'},
  (64, 96, 3.0): {'r2': '0.91', 'readout': '1'},
}


def task(
  subjects: int, relations: int, dim: int, width: int, decay: float, seed: int
) -> sweep.Task:
  config = Config.trained(subjects, relations, dim, width)
  return sweep.Task(config, building.bijections(subjects, relations, seed), 1e-2, decay, seed)


def against_width(fitter, seeds, subjects: int, steps: int) -> list[dict]:
  """Accuracy of models too narrow, about right, and wide enough."""
  tasks = [task(subjects, 4, d, 4 * d, 0.1, seed) for d in WIDTHS for seed in seeds]
  found = fitter(Recipe.warmed(steps, target=None), tasks)
  return [
    record('accuracy', one, value, WIDTHS[one.config.dim])
    for one, value in zip(tasks, found['accuracy'], strict=True)
  ]


def against_decay(fitter, seeds, subjects: int, batch: int, steps: int) -> list[dict]:
  """Accuracy and linear structure of models with and without weight decay."""
  recipe = Recipe.warmed(steps, batch=batch, target=None)
  records = []
  for (dim, width, decay), seen in STRUCTURES.items():
    tasks = [task(subjects, 4, dim, width, decay, seed) for seed in seeds]
    seen = {'accuracy': '1', **seen, 'r2_shuffled': '<= 0'}
    records += _measured(fitter, recipe, tasks, linear, seen)
  return records


def new_facts(fitter, seeds, subjects: int, batch: int, steps: int) -> list[dict]:
  """Accuracy on bijections that were never trained, with embeddings superposed for them."""
  tasks = [task(subjects, 2, 128, 96, 1.0, seed) for seed in seeds]
  recipe = Recipe.warmed(steps, batch=batch, target=None, frozen=('unembed',))
  return _measured(fitter, recipe, tasks, zero_shot, {'accuracy': '1', 'zero_shot': '0.998'})


def _measured(fitter, recipe: Recipe, tasks, function, seen: dict) -> list[dict]:
  """A record for every number, with what the trials saw of it."""
  c = tasks[0].config
  others = [
    building.bijections(c.subjects, c.relations, one.seed, other=True).answers_RxN for one in tasks
  ]
  found = fitter.measured(recipe, tasks, functools.partial(function, c), np.stack(others))
  return [
    record(name, one, found[name][i], trial)
    for i, one in enumerate(tasks)
    for name, trial in seen.items()
  ]


def linear(config: Config, params, job, other_RxN) -> dict:
  """Accuracy, and what is linear in the embeddings of held-out subjects; other facts as a control."""
  e, u, g = params['embed']['subjects'], params['unembed']['answers'], job.answers_RxN
  split = structure.hold_out(jax.random.key(job.seed), config.subjects)
  return {
    'accuracy': intervene.accuracy(config, params, e, g.T),
    'r2': structure.superposition(e, u, g, *split),
    'readout': structure.readout(e, u, g, *split),
    'r2_shuffled': structure.superposition(e, u, other_RxN, *split),
  }


def zero_shot(config: Config, params, job, other_RxN) -> dict:
  """Accuracy on the facts learned, and on others with embeddings superposed for them."""
  e, u, g = params['embed']['subjects'], params['unembed']['answers'], job.answers_RxN
  new = structure.superpose(structure.maps(e, u, g, structure.best_ridge(e, u, g)), u, other_RxN)
  return {
    'accuracy': intervene.accuracy(config, params, e, g.T),
    'zero_shot': intervene.accuracy(config, params, new, other_RxN.T),
  }


def record(measurement: str, one: sweep.Task, value: float, seen: str) -> dict:
  return {
    'claim': 'learning', 'measurement': measurement, 'subjects': one.config.subjects,
    'relations': one.config.relations, 'dim': one.config.dim, 'width': one.config.blocks[0].hidden[0],
    'weight_decay': one.weight_decay, 'seed': one.seed, 'value': float(value), 'seen': seen,
  }  # fmt: skip


def summary(records: list[dict]) -> list[dict]:
  """Mean and range over the seeds."""
  return statistics.over_seeds(records, 'measurement', 'subjects', 'dim', 'weight_decay')


PRESETS = {  # subjects and steps; subjects, batch and steps, twice; seeds
  'smoke': ((8, 50), (16, 8, 50), (16, 8, 50), 1),
  'laptop': ((64, 2000), (1024, 256, 4000), (2048, 256, 2000), 5),
  'accelerator': ((64, 2000), (1024, 256, 4000), (2048, 256, 2000), 20),
}


def main(argv):
  cli.no_arguments(argv)
  machine.one_device_a_core()
  folder = cli.workdir('runs/learning')
  width, decay, new, seeds = PRESETS[FLAGS.scale]
  seeds = range(FLAGS.seed, FLAGS.seed + cli.value('seeds', seeds))
  about = {
    'width': (WIDTHS, width),
    'structures': (list(map(list, STRUCTURES)), decay),
    'new': new,
    'seeds': list(seeds),
  }
  with fitting.run(folder, about) as fitter:
    records = against_width(fitter, seeds, *width) + against_decay(fitter, seeds, *decay)
    records += new_facts(fitter, seeds, *new)
    fitter.save()
    storage.write_results(folder, records)
  print(cli.table(COLUMNS, summary(records)))
  print(f'records: {folder / "results.json"}')


if __name__ == '__main__':
  cli.run(main)
