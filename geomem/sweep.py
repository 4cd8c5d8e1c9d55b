"""Many models trained at once: one compiled program for a batch of jobs, spread over all devices.

Models of different sizes share a program by padding: parameters are drawn at their own size and
laid into larger arrays of zeros, where zeros stay (nothing reads them, so no gradient reaches
them), and `train.Job` says how much is in use. On an accelerator the models of a device advance
together under `vmap`; on a CPU, where batched small products are slow, one after another under
`lax.map`, a device a core, each model's arrays staying in its core's cache.

Shapes: M models, N subjects, R relations.
"""

import dataclasses
import functools

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from geomem import facts as fact
from geomem import model, train
from geomem.config import BlockConfig, Config
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.train import Job, Recipe, State

BATCHINGS = ('map', 'vmap')


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """One model to train: its size, its facts, what moves it; from `params` if given, else drawn by `seed`."""

  config: Config
  facts: Facts
  learning_rate: float = 1e-2
  weight_decay: float = 0.1
  seed: int = 0
  params: dict | None = None

  def __post_init__(self):
    fact.check_fit(self.facts, self.config)


def hull(configs) -> Config:
  """The smallest config that all of these can be padded to; refuses what differs in more than size."""
  first = configs[0]
  shape = lambda c: (
    c.length,
    len(c.blocks),
    c.norm,
    c.norm_eps,
    c.bias,
    c.tied,
    c.dtype,
    c.precision,
  )
  layers = lambda c: [(b.heads, len(b.hidden)) for b in c.blocks]
  if any(shape(c) != shape(first) or layers(c) != layers(first) for c in configs):
    raise InputError('models of one program may differ in their sizes alone')
  largest = lambda get: max(map(get, configs))
  blocks = tuple(
    BlockConfig(
      b.heads,
      largest(lambda c, i=i: c.blocks[i].key_dim),
      largest(lambda c, i=i: c.blocks[i].head_dim),
      tuple(largest(lambda c, i=i, j=j: c.blocks[i].hidden[j]) for j in range(len(b.hidden))),
    )
    for i, b in enumerate(first.blocks)
  )
  sizes = {name: largest(lambda c, name=name: getattr(c, name)) for name in SIZES}
  return first.replace(blocks=blocks, **sizes)


SIZES = ('subjects', 'relations', 'answers', 'dim')


def pad(params, config: Config):
  """Parameters laid into the corner of zeros of the size of `config`."""
  lay = lambda a, shape: np.pad(
    a, [(0, big - small) for small, big in zip(a.shape, shape.shape, strict=True)]
  )
  return jax.tree.map(lay, params, model.shapes(config))


def crop(params, config: Config):
  """What `pad` laid in."""
  return jax.tree.map(
    lambda a, shape: a[tuple(map(slice, shape.shape))], params, model.shapes(config)
  )


def job(task: Task, config: Config) -> Job:
  """The task as data for the program of `config`."""
  f = task.facts
  answers_RxN = np.zeros((config.relations, config.subjects), np.int32)
  answers_RxN[: f.relations, : f.subjects] = f.answers_RxN
  return Job(
    answers_RxN,
    *(np.int32(size) for size in (f.subjects, f.relations, f.attributes, task.config.dim)),
    *(np.float32(rate) for rate in (task.learning_rate, task.weight_decay)),
    np.uint32(task.seed),
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep:
  """A batch of tasks laid out for one program: task i is row `rows[i]` of `jobs` and of the states.

  There are as many rows as devices can share evenly; those that are no task's rest from the start.
  """

  recipe: Recipe
  tasks: tuple[Task, ...]
  config: Config
  mesh: jax.sharding.Mesh
  batching: str
  rows: np.ndarray
  jobs: Job

  def result(self, states: State, i: int) -> State:
    """The state of task i, its parameters at their own size."""
    state = jax.tree.map(lambda a: np.asarray(a[self.rows[i]]), states)
    return state.replace(params=crop(state.params, self.tasks[i].config))


def lay_out(
  recipe: Recipe, tasks, devices=None, batching: str | None = None
) -> tuple[Sweep, State]:
  """The sweep and its states before the first step."""
  tasks = tuple(tasks)
  devices = np.array(jax.devices() if devices is None else devices)
  config = hull([task.config for task in tasks])
  _check(recipe, tasks, config)
  if batching is None:
    batching = 'map' if devices[0].platform == 'cpu' else 'vmap'
  if batching not in BATCHINGS:
    raise InputError(f'batching is {batching!r}; it must be one of {", ".join(BATCHINGS)}')
  # Neighbours in the list tend to cost alike: deal them out, one to each device in turn.
  each = -(-len(tasks) // devices.size)
  rows = np.arange(each * devices.size).reshape(devices.size, each).T.ravel()[: len(tasks)]
  task_of_row = np.zeros(each * devices.size, int)
  task_of_row[rows] = np.arange(len(tasks))
  resting = np.isin(np.arange(len(task_of_row)), rows, invert=True)
  mesh = jax.sharding.Mesh(devices, ('models',))
  each_its_own = NamedSharding(mesh, P('models'))
  put = functools.partial(jax.device_put, device=each_its_own)
  jobs = _stack([job(task, config) for task in tasks], task_of_row)
  params = _stack([_parameters(task, config) for task in tasks], task_of_row)
  sweep = Sweep(recipe, tasks, config, mesh, batching, rows, put(jobs))
  begin = jax.jit(jax.vmap(functools.partial(train.start, recipe)), out_shardings=each_its_own)
  states = begin(put(params))
  status = np.where(resting, train.RESTING, train.RUNNING).astype(np.int32)
  return sweep, states.replace(status=put(status))


def _check(recipe: Recipe, tasks, config: Config):
  if config.length < recipe.length():
    raise InputError(f'the recipe reads {recipe.length()} tokens, the models {config.length}')
  if recipe.loss == 'every' and any(t.config.answers != config.vocabulary for t in tasks):
    raise InputError(
      "loss='every' asks for every token: give all models of a program the same subjects, and "
      'answers = subjects + relations'
    )


def _parameters(task: Task, config: Config):
  return pad(model.draw(task.config, task.seed) if task.params is None else task.params, config)


def _stack(trees, index):
  return jax.tree.map(lambda *leaves: np.stack(leaves)[index], *trees)


def advance(sweep: Sweep, states: State, steps: int) -> State:
  """Up to so many steps more of every model that is not done. The old states are used up."""
  shared = (sweep.config, sweep.recipe, sweep.batching, sweep.mesh)
  return _advance(*shared, np.int32(steps), sweep.jobs, states)


@functools.partial(jax.jit, static_argnums=range(4), donate_argnums=6)
def _advance(config, recipe, batching, mesh, steps, jobs, states):
  def share(steps, jobs, states):
    one = functools.partial(train.stretch, config, recipe, steps)
    if batching == 'vmap':
      return jax.vmap(one)(jobs, states)
    return jax.lax.map(lambda pair: one(*pair), (jobs, states))

  return jax.shard_map(
    share,
    mesh=mesh,
    in_specs=(P(), P('models'), P('models')),
    out_specs=P('models'),
    check_vma=False,
  )(steps, jobs, states)
