"""Train models on random bijections: one, or a grid of learning rates, weight decays and seeds at once.

  python -m experiments.train --subjects=64 --relations=4 --dim=16
  python -m experiments.train --dim=8 --learning_rate=0.01 --learning_rate=0.03 --seeds=8

One compiled program trains all models of the grid, on all devices; each stops when it answers a
fraction --target of its queries. The run can be killed at any time: the same command resumes it,
and on CPUs ends in the same bits.

  python -m experiments.train --subjects=100000 --dim=64 --batch=4096 --shard
  python -m experiments.train --coordinator=HOST:PORT --processes=2 --process=0  # and 1, elsewhere

With --shard all devices work on one model that is too large for one of them: its vocabulary is cut
into slices, and its facts are distributed. Several processes, each given its number, join their
devices; only the first reads and writes --workdir. A GPU or a TPU says how much memory it has: what
needs more is refused before the first step, with the largest size that fits.
"""

import dataclasses
import itertools
import math
from typing import Annotated, Any, Literal

import flax.serialization
import jax
import pandas as pd

from experiments.harness import cli, machine, records, render
from experiments.harness.records import Records
from experiments.harness.trainer import training
from geomem import facts as fact
from geomem import hosts, model
from geomem.config import Config
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.training import optimization, sharded, sweeps
from geomem.training.recipe import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  subjects: int = 64
  relations: int = 4
  hops: int = 1
  dim: int = 16
  width: Annotated[int | None, 'F, the hidden width of the MLP (default: 4d).', 1] = None
  depth: Annotated[int, 'Number of blocks.', 1] = 1
  norm: Annotated[Literal['none', 'rms', 'layer'], 'Norm before every sublayer.'] = 'rms'
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  chain_of_thought: Annotated[bool, 'Let the model name every intermediate subject.'] = False
  loss: Annotated[
    Literal['answer', 'chain', 'every'] | None,
    'What it is trained to predict (default: answer; with chain of thought: chain).',
  ] = None
  learning_rate: tuple[float, ...] = (0.01,)
  weight_decay: tuple[float, ...] = (0.1,)
  seed: Annotated[int, 'The first seed, for parameters and facts.'] = 0
  seeds: int = 1
  batch: Annotated[int | None, 'Subjects per step (default: all).', 1] = None
  steps: int = 2000
  target: float = 0.99
  shard: Annotated[bool, 'Train one model, sharded over all devices.'] = False
  coordinator: Annotated[str | None, 'HOST:PORT of the first process, where all connect.'] = None
  processes: Annotated[int | None, 'Number of processes that connect.', 1] = None
  process: Annotated[int | None, "This process's number, from 0 on.", 0] = None
  workdir: Annotated[str, 'Folder of the run.'] = 'runs/train'
  save_seconds: int = 30
  profile: bool = False


STATUS = {
  optimization.RUNNING: 'steps over',
  optimization.SOLVED: 'solved',
  optimization.DIVERGED: 'diverged',
}


def join(options: Options):
  """Join the other processes, if there are any, before JAX starts."""
  given: Any = options.coordinator, options.processes, options.process
  if None not in given:
    hosts.join(*given)
  elif given != (None, None, None):
    raise InputError('--coordinator, --processes and --process belong together; give all three')


def configure(o: Options) -> tuple[Config, Recipe]:
  """The model and how it is trained."""
  fact.check_sizes(o.subjects, o.relations, o.hops)
  recipe = Recipe.with_warmup(
    o.steps, hops=o.hops, chain_of_thought=o.chain_of_thought, batch=o.batch, target=o.target,
    loss=o.loss or ('chain' if o.chain_of_thought else 'answer'),
  )  # fmt: skip
  answers = o.subjects + o.relations * (recipe.loss == 'every')
  config = Config.trained(
    o.subjects, o.relations, o.dim, o.width, o.depth, answers=answers,
    length=recipe.length(), norm=o.norm, dtype=o.dtype,
  )  # fmt: skip
  return config, recipe


def tabulate(sweep, found: dict) -> pd.DataFrame:
  """A row for every model."""
  c = sweep.tasks[0].config
  of_task = lambda name: [getattr(task, name) for task in sweep.tasks]
  return pd.DataFrame({
    'subjects': c.subjects, 'relations': c.relations, 'hops': sweep.recipe.hops, 'dim': c.dim,
    'width': c.blocks[0].hidden[0], 'depth': c.depth,
    **{name: of_task(name) for name in ('learning_rate', 'weight_decay', 'seed')},
    **{name: found[name].tolist() for name in ('step', 'loss', 'accuracy')},
    'status': [STATUS[status] for status in found['status'].tolist()],
    'parameters': sum(math.prod(a.shape) for a in jax.tree.leaves(model.shapes(c))),
  })  # fmt: skip


def summary(table: pd.DataFrame) -> pd.DataFrame:
  """A row for each learning rate and weight decay."""
  count = lambda status: ('status', lambda ended: (ended == status).sum())
  groups = table.groupby(['learning_rate', 'weight_decay'], sort=False, as_index=False)
  return groups.agg(
    models=('seed', 'size'), solved=count('solved'), diverged=count('diverged'),
    accuracy=('accuracy', 'mean'), least=('accuracy', 'min'), step=('step', 'mean'),
  )  # fmt: skip


def main(options: Options):
  machine.one_device_per_core()
  join(options)
  config, recipe = configure(options)
  folder = hosts.on_first_process(cli.writable)(options.workdir)
  seeds = cli.seeds(options.seed, options.seeds)
  facts = {s: Facts.bijections(config.subjects, config.relations, s) for s in seeds}
  tasks = [
    sweeps.Task(config, facts[s], rate, decay, s)
    for rate, decay, s in itertools.product(options.learning_rate, options.weight_decay, seeds)
  ]
  machine.keep_compiled(folder.parent)
  memory = machine.memory()
  sweep: Any
  if options.shard:
    if len(tasks) > 1:
      raise InputError(f'--shard trains one model, not a grid of {len(tasks)}; name one of each')
    sweep, states = sharded.set_up(recipe, tasks[0], memory=memory)
  else:
    sweep, states = sweeps.set_up(recipe, tasks, memory=memory)
  about = {
    'config': dataclasses.asdict(config), 'recipe': vars(recipe), 'learning_rate': options.learning_rate,
    'weight_decay': options.weight_decay, 'seeds': list(seeds), 'mesh': dict(sweep.mesh.shape), **machine.made_with(),
  }  # fmt: skip
  with training('train', folder, about, options.save_seconds, options.profile) as trainer:

    def train() -> dict:
      """The models' final states, one row per task, in the order of the tasks."""
      done, ended = trainer.run_to_end(sweeps.fit, sweep, states)
      return flax.serialization.to_state_dict(jax.tree.map(done.of_tasks, ended))

    table = tabulate(sweep, trainer.cached(train))
    hosts.on_first_process(records.write)(folder / records.FILE, Records(about, table))
  if hosts.is_first():
    print(render.table(summary(table)))
    print(f'records: {folder / records.FILE}, curves: {folder / "metrics.jsonl"}')


if __name__ == '__main__':
  cli.run(main, Options)
