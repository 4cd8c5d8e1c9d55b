"""Train models on random bijections: one, or a grid of learning rates, weight decays and seeds at once.

  python -m experiments.train --subjects=64 --relations=4 --dim=16
  python -m experiments.train --dim=8 --learning_rate=0.01 --learning_rate=0.03 --seeds=8

All models of the grid are trained by one compiled program, on all devices; each stops when it
answers --target of its queries. The run can be killed at any time: the same command takes it up
where it was, and ends in the same bits.
"""

import itertools
import time
from pathlib import Path

import flax.serialization
import jax
import numpy as np
from absl import flags

from experiments import cli
from geomem import facts as fact
from geomem import runs, sweep, train
from geomem.config import NORMS, BlockConfig, Config
from geomem.train import Recipe

FLAGS = flags.FLAGS
cli.define(
  'dtype',
  subjects='N, the number of subjects (default: 64).',
  relations='R, the number of relations (default: 4).',
  hops='k, the relations in a query (default: 1).',
  dim='d, the residual width (default: 16).',
  width='F, the hidden width of the MLP (default: 4d).',
  seed='The first seed, of parameters and facts (default: 0).',
  seeds='How many seeds, from --seed on (default: 1).',
  workdir='Folder of the run (default: runs/train).',
)
flags.DEFINE_multi_float('learning_rate', [0.01], 'Peak learning rate (repeatable).', lower_bound=0)
flags.DEFINE_multi_float(
  'weight_decay', [0.1], 'Weight decay of AdamW (repeatable).', lower_bound=0
)
flags.DEFINE_integer('steps', 2000, 'Steps at most.', lower_bound=1)
flags.DEFINE_integer('batch', None, 'Subjects in a step (default: all).', lower_bound=1)
flags.DEFINE_float('target', 0.99, 'Accuracy at which a model stops.')
flags.DEFINE_enum('norm', 'rms', NORMS, 'Norm before every part.')
flags.DEFINE_integer('depth', 1, 'Blocks.', lower_bound=1)
flags.DEFINE_bool('chain_of_thought', False, 'Let the model name every subject on the way.')
flags.DEFINE_enum('loss', 'answer', train.LOSSES, 'What it is trained to say.')
flags.DEFINE_integer('save_seconds', 30, 'Time between checkpoints.', lower_bound=0)

STRETCHES = 4  # looks at all queries between two looks at the clock
STATUS = {train.RUNNING: 'steps over', train.SOLVED: 'solved', train.DIVERGED: 'diverged'}
COLUMNS = (
  'learning_rate',
  'weight_decay',
  'models',
  'solved',
  'diverged',
  'accuracy',
  'least',
  'step',
)


def tasks(config: Config, rates, decays, seeds) -> list[sweep.Task]:
  """The grid; the facts go by the seed alone."""
  tables = {s: fact.bijections(jax.random.key(s), config.subjects, config.relations) for s in seeds}
  return [
    sweep.Task(config, tables[s], rate, decay, s)
    for rate, decay, s in itertools.product(rates, decays, seeds)
  ]


def fit(recipe: Recipe, grid, run: runs.Run, save_seconds: float, progress=None):
  """Advance the sweep until no model is under way, from where `run` was left; the sweep and its states."""
  laid, states = sweep.lay_out(recipe, grid)
  stretch, done = STRETCHES * recipe.check, 0
  place = jax.tree.map(lambda a: a.sharding, states)
  left = run.restore()
  if left:
    done, arrays = left
    states = jax.device_put(flax.serialization.from_state_dict(states, arrays), place)
  saved = time.monotonic()
  while (
    np.any(going := np.asarray(states.status) == train.RUNNING) and done * stretch < recipe.steps
  ):
    states = sweep.advance(laid, states, stretch)
    done += 1
    status = np.asarray(states.status)[laid.rows]
    loss = np.asarray(states.loss)[laid.rows]
    solved = float(np.mean(status == train.SOLVED))
    run.log(
      {'step': min(done * stretch, recipe.steps), 'loss': float(np.mean(loss)), 'solved': solved}
    )
    if progress:
      progress(
        min(done * stretch, recipe.steps),
        recipe.steps,
        int(going.sum()),
        float(np.mean(loss)),
        solved,
      )
    if time.monotonic() - saved >= save_seconds:
      run.save(done, flax.serialization.to_state_dict(jax.device_get(states)))
      saved = time.monotonic()
  run.save(done, flax.serialization.to_state_dict(jax.device_get(states)))
  return laid, states


def record(laid: sweep.Sweep, states, i: int) -> dict:
  task, state = laid.tasks[i], laid.result(states, i)
  return {
    'subjects': task.config.subjects,
    'relations': task.config.relations,
    'hops': laid.recipe.hops,
    'dim': task.config.dim,
    'width': task.config.blocks[0].hidden[0],
    'depth': task.config.depth,
    'learning_rate': task.learning_rate,
    'weight_decay': task.weight_decay,
    'seed': task.seed,
    'step': int(state.step),
    'loss': float(state.loss),
    'accuracy': float(state.accuracy),
    'status': STATUS[int(state.status)],
    'parameters': sum(a.size for a in jax.tree.leaves(state.params)),
  }


def summary(records: list[dict]) -> list[dict]:
  """A row for each learning rate and weight decay."""
  groups = {}
  for r in records:
    groups.setdefault((r['learning_rate'], r['weight_decay']), []).append(r)
  return [
    {
      'learning_rate': rate,
      'weight_decay': decay,
      'models': len(group),
      'solved': sum(r['status'] == 'solved' for r in group),
      'diverged': sum(r['status'] == 'diverged' for r in group),
      'accuracy': float(np.mean([r['accuracy'] for r in group])),
      'least': min(r['accuracy'] for r in group),
      'step': float(np.mean([r['step'] for r in group])),
    }
    for (rate, decay), group in groups.items()
  ]


def _configured() -> tuple[Config, Recipe]:
  n, r, hops, dim = (
    cli.value(*a) for a in (('subjects', 64), ('relations', 4), ('hops', 1), ('dim', 16))
  )
  fact.check_sizes(n, r, hops)
  recipe = Recipe(
    steps=FLAGS.steps,
    warmup=min(100, FLAGS.steps // 10),
    hops=hops,
    chain_of_thought=FLAGS.chain_of_thought,
    loss=FLAGS.loss,
    batch=FLAGS.batch,
    target=FLAGS.target,
  )
  config = Config(
    subjects=n,
    relations=r,
    answers=n + r if FLAGS.loss == 'every' else n,
    length=recipe.length(),
    dim=dim,
    blocks=(BlockConfig(1, dim, dim, (cli.value('width', 4 * dim),)),) * FLAGS.depth,
    norm=FLAGS.norm,
    dtype=FLAGS.dtype,
  )
  return config, recipe


def main(argv):
  cli.no_arguments(argv)
  cli.one_device_a_core()
  config, recipe = _configured()
  folder = Path(cli.workdir('runs/train'))
  grid = {
    'learning_rate': FLAGS.learning_rate,
    'weight_decay': FLAGS.weight_decay,
    'seeds': [FLAGS.seed + i for i in range(cli.value('seeds', 1))],
  }
  about = {
    'config': config.to_json(),
    'recipe': vars(recipe),
    **grid,
    'device': cli.device(),
    'versions': cli.versions(),
  }
  cli.keep_compiled(folder.parent)
  progress = cli.Training()
  with runs.Run(folder, about, cli.warn) as run:
    laid, states = fit(recipe, tasks(config, *grid.values()), run, FLAGS.save_seconds, progress)
    progress.clear()
    records = [record(laid, states, i) for i in range(len(laid.tasks))]
    cli.write_results(folder, records)
  print(cli.table(COLUMNS, summary(records)))
  print(f'records: {folder / "results.json"}, curves: {folder / "metrics.jsonl"}')


if __name__ == '__main__':
  cli.run(main)
