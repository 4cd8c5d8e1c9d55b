"""Train models on random bijections: one, or a grid of learning rates, weight decays and seeds at once.

  python -m experiments.train --subjects=64 --relations=4 --dim=16
  python -m experiments.train --dim=8 --learning_rate=0.01 --learning_rate=0.03 --seeds=8

All models of the grid are trained by one compiled program, on all devices; each stops when it
answers --target of its queries. The run can be killed at any time: the same command takes it up
where it was, and on CPUs ends in the same bits.

  python -m experiments.train --subjects=100000 --dim=64 --batch=4096 --shard
  python -m experiments.train --coordinator=HOST:PORT --processes=2 --process=0  # and 1, elsewhere

With --shard all devices work on one model, too large for one of them: its vocabulary is cut into
slices, its facts are shared out. Several processes, each told its number, join their devices; the
first alone reads and writes --workdir.
"""

import dataclasses
import itertools

import jax
import numpy as np
from absl import flags

from experiments.harness import cli, fitting, machine, statistics, storage
from geomem import facts as fact
from geomem import hosts
from geomem import mesh as meshes
from geomem.config import NORMS, Config
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.training import batched, optimization, sharded
from geomem.training.optimization import Recipe

FLAGS = flags.FLAGS
cli.define(
  'dtype',
  'steps',
  'target',
  'save_seconds',
  'profile',
  'coordinator',
  'processes',
  'process',
  subjects='N, the number of subjects (default: 64).',
  relations='R, the number of relations (default: 4).',
  hops='k, the relations in a query (default: 1).',
  dim='d, the residual width (default: 16).',
  width='F, the hidden width of the MLP (default: 4d).',
  seed='The first seed, of parameters and facts (default: 0).',
  learning_rate='Peak learning rate (repeatable; default: 0.01).',
  weight_decay='Weight decay of AdamW (repeatable; default: 0.1).',
  seeds='How many seeds, from --seed on (default: 1).',
  workdir='Folder of the run (default: runs/train).',
)
flags.DEFINE_bool('shard', False, 'Train one model, spread over all devices.')
flags.DEFINE_integer('batch', None, 'Subjects in a step (default: all).', lower_bound=1)
flags.DEFINE_enum('norm', 'rms', NORMS, 'Norm before every part.')
flags.DEFINE_integer('depth', 1, 'Blocks.', lower_bound=1)
flags.DEFINE_bool('chain_of_thought', False, 'Let the model name every subject on the way.')
flags.DEFINE_enum(
  'loss',
  None,
  optimization.LOSSES,
  'What it is trained to say (default: answer; chain of thought: chain).',
)

STATUS = {
  optimization.RUNNING: 'steps over',
  optimization.SOLVED: 'solved',
  optimization.DIVERGED: 'diverged',
}
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


def tasks(config: Config, rates, decays, seeds) -> list[batched.Task]:
  """The grid; the facts go by the seed alone."""
  tables = {s: Facts.bijections(config.subjects, config.relations, s) for s in seeds}
  return [
    batched.Task(config, tables[s], rate, decay, s)
    for rate, decay, s in itertools.product(rates, decays, seeds)
  ]


def record(laid, states, i: int) -> dict:
  task, state = laid.tasks[i], laid.state_of(states, i)
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
  return [
    {
      **group[0],
      'models': len(group),
      'solved': sum(r['status'] == 'solved' for r in group),
      'diverged': sum(r['status'] == 'diverged' for r in group),
      **statistics.spread(group, 'accuracy'),
      'step': float(np.mean([r['step'] for r in group])),
    }
    for group in statistics.groups(records, 'learning_rate', 'weight_decay')
  ]


def _configured() -> tuple[Config, Recipe]:
  n, r, hops, dim = (
    cli.value(*a) for a in (('subjects', 64), ('relations', 4), ('hops', 1), ('dim', 16))
  )
  fact.check_sizes(n, r, hops)
  loss = FLAGS.loss or ('chain' if FLAGS.chain_of_thought else 'answer')
  recipe = Recipe.with_warmup(
    FLAGS.steps,
    hops=hops,
    chain_of_thought=FLAGS.chain_of_thought,
    loss=loss,
    batch=FLAGS.batch,
    target=FLAGS.target,
  )
  config = Config.trained(
    n,
    r,
    dim,
    cli.value('width', 4 * dim),
    FLAGS.depth,
    answers=n + r if loss == 'every' else n,
    length=recipe.length(),
    norm=FLAGS.norm,
    dtype=FLAGS.dtype,
  )
  return config, recipe


def main(argv):
  cli.no_arguments(argv)
  machine.one_device_a_core()
  cli.join()
  config, recipe = _configured()
  folder = hosts.by_first(cli.workdir)('runs/train')
  grid = {
    'learning_rate': cli.values('learning_rate', [0.01]),
    'weight_decay': cli.values('weight_decay', [0.1]),
    'seeds': list(cli.seeds(0, 1)),
  }
  models = tasks(config, *grid.values())
  if FLAGS.shard and len(models) > 1:
    raise InputError(
      f'--shard trains one model, not a grid of {len(models)}; name one of each, or drop it'
    )
  mesh = meshes.whole() if FLAGS.shard else None
  about = {
    'config': dataclasses.asdict(config),
    'recipe': vars(recipe),
    **grid,
    **({'mesh': dict(mesh.shape)} if mesh else {}),
  }
  if mesh:
    fit, (laid, states) = sharded.fit, sharded.set_up(recipe, *models, mesh)
  else:
    fit, (laid, states) = batched.fit, batched.set_up(recipe, models)
  with fitting.run(folder, about) as fitter:
    laid, states = fitter.follow(fit, laid, states)
    fitter.save(laid, states)
    states = jax.device_get(hosts.to_host(states))
    records = [record(laid, states, i) for i in range(len(laid.tasks))]
    hosts.by_first(storage.write_results)(folder, records)
  if hosts.first():
    print(cli.table(COLUMNS, summary(records)))
    print(f'records: {folder / "results.json"}, curves: {folder / "metrics.jsonl"}')


if __name__ == '__main__':
  cli.run(main)
