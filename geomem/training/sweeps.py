"""Train many models at once: one compiled program for a batch of jobs, spread over all devices.

Models of different sizes share a program by padding: parameters are drawn at their own size and
copied into larger arrays of zeros. The padding stays zero (nothing reads it, so no gradient reaches
it), and `optimization.Job` says how much is in use. On an accelerator all models on a device advance
together under `vmap`. On a CPU, with one device per core, as many advance together as fit in the
core's cache, one batch after another.

Shapes: M models, N subjects, R relations.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import chex
import jax
import numpy as np
from chex import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from geomem import facts as fact
from geomem import hosts, model
from geomem.config import BlockConfig, Config
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.training import device_memory, optimization
from geomem.training.optimization import Job, State
from geomem.training.recipe import Recipe

SIZES = ('subjects', 'relations', 'answers', 'dim')
CACHE = 96 * 1024  # floats of a core's cache that models trained together may fill


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """One model to train: its size, facts and rates. It starts from `params` (default: drawn by `seed`).

  >>> Task(Config.trained(8, 2, dim=4), Facts.bijections(8, 2), seed=3).learning_rate
  0.01
  """

  config: Config
  facts: Facts
  learning_rate: float = 1e-2
  weight_decay: float = 0.1
  seed: int = 0
  params: dict | None = None

  def __post_init__(self) -> None:
    fact.check_fit(self.facts, self.config)
    for name in ('learning_rate', 'weight_decay'):
      if not 0 <= getattr(self, name) < float('inf'):
        raise InputError(f'{name} is {getattr(self, name)}; it must be a finite number, at least 0')
    if not 0 <= self.seed < 2**32:
      raise InputError(f'seed is {self.seed}; it must be from 0 to 2^32 - 1')


def unsized(config: Config) -> Config:
  """The config without its sizes: 1 in their place."""
  block = lambda b: BlockConfig(b.heads, hidden=(1,) * len(b.hidden))
  return config.replace(**dict.fromkeys(SIZES, 1), blocks=tuple(map(block, config.blocks)))


def common_config(configs: Sequence[Config]) -> Config:
  """The smallest config that all of these can be padded to; refuses any difference but in size."""
  first = configs[0]
  if len(set(map(unsized, configs))) > 1:
    raise InputError('the models of a sweep may differ in their sizes alone')

  def largest(*blocks):
    hidden = zip(*(b.hidden for b in blocks), strict=True)
    key_dim, head_dim = max(b.key_dim for b in blocks), max(b.head_dim for b in blocks)
    return BlockConfig(blocks[0].heads, key_dim, head_dim, tuple(map(max, hidden)))

  sizes = {name: max(getattr(c, name) for c in configs) for name in SIZES}
  return first.replace(blocks=tuple(map(largest, *(c.blocks for c in configs))), **sizes)


def pad(params: dict, config: Config) -> dict:
  """Parameters padded with zeros at the end of every axis, to the size of `config`."""
  padded = lambda a, shape: np.pad(
    a, [(0, big - small) for small, big in zip(a.shape, shape.shape, strict=True)]
  )
  return jax.tree.map(padded, params, model.shapes(config))


def crop(params: dict, config: Config) -> dict:
  """Undo `pad`: the parameters cropped to the size of `config`."""
  return jax.tree.map(
    lambda a, shape: a[tuple(map(slice, shape.shape))], params, model.shapes(config)
  )


def job(task: Task, config: Config) -> Job:
  """The task as input data for the program compiled for `config`."""
  f = task.facts
  answers_RxN = np.zeros((config.relations, config.subjects), np.int32)
  answers_RxN[: f.relations, : f.subjects] = f.answers_RxN
  sizes = {name: np.int32(getattr(f, name)) for name in ('subjects', 'relations', 'attributes')}
  rates = {name: np.float32(getattr(task, name)) for name in ('learning_rate', 'weight_decay')}
  dim, seed = np.int32(task.config.dim), np.uint32(task.seed)
  return Job(answers_RxN=answers_RxN, dim=dim, seed=seed, **sizes, **rates)


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep:
  """A batch of tasks set up for one program: task i is row `rows[i]` of `jobs` and of the states.

  There are `row_count` rows, equally many on every device, of which `vmap_size` advance at once; rows
  without a task are inactive from the start. `platform`: that of the devices, e.g. 'cpu'.
  """

  recipe: Recipe
  tasks: tuple[Task, ...]
  config: Config
  mesh: jax.sharding.Mesh
  platform: str
  vmap_size: int
  row_count: int
  rows: np.ndarray

  @functools.cached_property
  def jobs(self) -> Job:
    """The tasks as input data, each in its row."""
    jobs = [job(task, self.config) for task in self.tasks]
    return _put(self, _stack(jobs, _task_of_row(self, self.rows)))

  def train(self, states: State, steps: int) -> State:
    """Train for up to `steps` more steps; the buffers of `states` are donated."""
    static = (self.config, self.recipe, self.vmap_size, self.mesh)
    return _train_chunks(*static, np.int32(steps), self.jobs, states)

  def program(self) -> tuple[Any, tuple]:
    """The compiled function that trains it and the arguments of a call, with shapes for arrays, so that none is made."""
    sharding = NamedSharding(self.mesh, P('models'))
    rows = lambda a: jax.ShapeDtypeStruct(
      (self.row_count, *np.shape(a)), a.dtype, sharding=sharding
    )
    begin = functools.partial(optimization.initial_state, self.recipe)
    state = jax.eval_shape(begin, model.shapes(self.config))
    arrays = jax.tree.map(rows, (job(self.tasks[0], self.config), state))
    return _train_chunks, (
      self.config, self.recipe, self.vmap_size, self.mesh, np.int32(1), *arrays,
    )  # fmt: skip

  def with_rows(self, rows: np.ndarray) -> 'Sweep':
    """The same tasks in other rows."""
    return dataclasses.replace(self, rows=rows)

  def of_tasks(self, values_M: Array) -> np.ndarray:
    """A value per row of the states, reordered to one per task."""
    return np.asarray(hosts.to_host(values_M))[self.rows]

  def state_of(self, states: State, i: int) -> State:
    """The state of task i on this host, with parameters at their own size."""
    state = jax.tree.map(lambda a: np.asarray(a)[self.rows[i]], hosts.to_host(states))
    return state.replace(params=crop(state.params, self.tasks[i].config))


def set_up(
  recipe: Recipe, tasks: Iterable[Task], devices: Sequence[jax.Device] | None = None,
  vmap_size: int | None = None, platform: str | None = None, memory: int | None = None,
) -> tuple[Sweep, State]:  # fmt: skip
  """The sweep and its states before the first step, padded as needed.

  `devices`: by default all devices of this process and those it has joined. `platform`: the platform
  to plan for, if not that of the devices. `memory`: the bytes of a device; what needs more is refused.
  """
  sweep = planned(recipe, tasks, devices, vmap_size, platform)
  if memory is not None:
    _check_memory(sweep, memory)
  inactive = np.isin(np.arange(sweep.row_count), sweep.rows, invert=True)
  each = [parameters(task, sweep.config) for task in sweep.tasks]
  params = _stack(each, _task_of_row(sweep, sweep.rows))
  states = _start(recipe, sweep.mesh, _put(sweep, params))
  status = np.where(inactive, optimization.INACTIVE, optimization.RUNNING).astype(np.int32)
  return sweep, states.replace(status=_put(sweep, status))


def planned(
  recipe: Recipe, tasks: Iterable[Task], devices: Sequence[jax.Device] | None = None,
  vmap_size: int | None = None, platform: str | None = None,
) -> Sweep:  # fmt: skip
  """The sweep as `set_up` plans it, before any array is on a device."""
  tasks = tuple(tasks)
  used = np.array(jax.devices() if devices is None else devices)
  platform = platform or used[0].platform
  if len(hosts.processes(used)) == 1:  # no more devices than tasks: every row holds a whole state
    used = used[: len(tasks)]
  config = common_config([task.config for task in tasks])
  check(recipe, tasks, config)
  # Neighbouring tasks tend to cost the same: assign them to the devices in turn.
  each = -(-len(tasks) // used.size)
  if vmap_size is None:
    vmap_size = min(each, _vmap_size(config, recipe)) if platform == 'cpu' else each
  each = -(-each // vmap_size) * vmap_size
  rows = np.arange(each * used.size).reshape(used.size, each).T.ravel()[: len(tasks)]
  mesh = jax.sharding.Mesh(used, ('models',))
  return Sweep(recipe, tasks, config, mesh, platform, vmap_size, each * used.size, rows)


def _check_memory(sweep: Sweep, memory: int) -> None:
  """Refuse a sweep that does not fit; fewer models on each device may fit, or smaller batches of a single one."""
  models = sweep.row_count // sweep.mesh.size

  def fewer(count: int) -> Sweep:
    vmap_size = min(count, sweep.vmap_size)
    row_count = -(-count // vmap_size) * vmap_size * sweep.mesh.size
    return dataclasses.replace(sweep, vmap_size=vmap_size, row_count=row_count)

  def shorter(batch: int) -> Sweep:
    return dataclasses.replace(sweep, recipe=dataclasses.replace(sweep.recipe, batch=batch))

  if models > 1:
    device_memory.check(sweep, fewer, models, 'models per device', memory)
  else:
    batch = sweep.recipe.batch or sweep.config.subjects
    device_memory.check(sweep, shorter, batch, 'subjects per step', memory)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(recipe: Recipe, mesh, params):
  """Initial states, with the sharding that `_train_chunks` returns: another would compile it twice."""
  initial_states = jax.vmap(functools.partial(optimization.initial_state, recipe))
  return jax.shard_map(
    initial_states, mesh=mesh, in_specs=P('models'), out_specs=P('models'), check_vma=False
  )(params)


def _vmap_size(config: Config, recipe: Recipe) -> int:
  """How many models advance together on a CPU: as many as have activations that fit in a core's cache.

  A power of two, at most 8; more models at a time mean fewer calls.
  """
  prompts = (recipe.batch or config.subjects) * config.relations**recipe.hops
  widths = (
    optimization.softmax_size(config, recipe)
    + 4 * config.dim
    + sum(sum(b.hidden) for b in config.blocks)
  )
  fit = CACHE // (prompts * widths)
  return min(8, 1 << (fit.bit_length() - 1)) if fit else 1


def _put(sweep: Sweep, tree):
  """Put arrays with one row per model onto the devices, rows split evenly."""
  return hosts.put(tree, jax.tree.map(lambda _: NamedSharding(sweep.mesh, P('models')), tree))


def _task_of_row(sweep: Sweep, rows: np.ndarray) -> np.ndarray:
  """The task index of every row; rows without a task are copies of the first."""
  tasks = np.zeros(sweep.row_count, int)
  tasks[rows] = np.arange(len(rows))
  return tasks


def check(recipe: Recipe, tasks: Sequence[Task], config: Config) -> None:
  """Refuse a recipe that cannot train these models."""
  trained, frozen = optimization.split(recipe, model.shapes(config))
  for name in recipe.frozen:
    if not optimization.params_below(name, frozen):
      raise InputError(
        f'frozen names {name!r}, but the model has no such parameters; '
        f'it has {", ".join({**trained, **frozen})}'
      )
  if recipe.lazy and (config.tied or optimization.SUBJECTS in frozen):
    raise InputError(
      'lazy training needs subject embeddings that are trained, and an untied unembedding'
    )
  if config.length < recipe.length():
    raise InputError(
      f'the recipe needs {recipe.length()} positions; the models have {config.length}'
    )
  for facts in (task.facts for task in tasks):
    if recipe.hops > 1:
      fact.check_closed(facts, recipe.hops)
    if recipe.loss == 'every' and facts.attributes > facts.subjects:
      raise InputError(
        "loss='every' predicts relations too, in the unembedding rows after the "
        f'{facts.subjects} subjects: no room for {facts.attributes} attributes; choose another loss'
      )
  if recipe.loss == 'every' and any(t.config.answers != config.vocabulary for t in tasks):
    raise InputError(
      "loss='every' predicts every token: all models of a sweep need the same number of subjects, and "
      'answers = subjects + relations'
    )


def parameters(task: Task, config: Config) -> dict:
  """The task's initial parameters, padded to the size of `config`."""
  if task.params is None:
    return pad(model.draw(task.config, task.seed), config)
  chex.assert_trees_all_equal_shapes(task.params, model.shapes(task.config))
  return pad(task.params, config)


def _stack(trees, index):
  return jax.tree.map(lambda *leaves: np.stack(leaves)[index], *trees)


def fit(sweep: Any, states: State, steps: int) -> Iterator[tuple[Any, State]]:
  """Advance by `steps` steps at a time until every model is done; yields after each chunk.

  `sweep`: a `Sweep`, or an object with the same methods such as `sharded.Sharded`. The given states
  stay valid; the yielded ones are donated to the next chunk.
  """
  states = optimization.copy(states)
  while _running(sweep, states).any():
    states = sweep.train(states, steps)
    sweep, states = _balance(sweep, states)
    yield sweep, states


def _running(sweep, states: State) -> np.ndarray:
  """Whether each row's model is still training."""
  status, step = map(np.asarray, hosts.to_host((states.status, states.step)))
  return (status == optimization.RUNNING) & (step < sweep.recipe.steps)


def _balance(sweep, states: State):
  """Reassign rows to devices if one has more unfinished batches than an even split would give it."""
  if sweep.row_count <= sweep.vmap_size * sweep.mesh.size:
    return sweep, states
  running = _running(sweep, states)
  batches = running.reshape(sweep.mesh.size, -1, sweep.vmap_size).any(2).sum(1)
  if batches.max() <= -(-running.sum() // (sweep.mesh.size * sweep.vmap_size)):
    return sweep, states
  order = np.argsort(~running, kind='stable').reshape(-1, sweep.mesh.size).T.ravel()
  states = jax.tree.map(lambda a: np.asarray(a)[order], hosts.to_host(states))
  return sweep.with_rows(np.argsort(order)[sweep.rows]), _put(sweep, states)


def advance(sweep: Any, states: State, steps: int) -> State:
  """Train every model that is not done for up to `steps` more steps; `states` stay valid."""
  return sweep.train(optimization.copy(states), steps)


def evaluate(sweep: Sweep, states: State, function: Callable, *more_M: Any) -> Any:
  """`function(params, job, *more)` for every model: a tree of arrays with one row per task, in order.

  `more_M`: trees of arrays with one row per task.
  """
  arguments = states.params, sweep.jobs, *_rows(sweep, more_M)
  values = map_models(function, sweep.mesh, sweep.platform, *arguments)
  return jax.tree.map(lambda a: np.asarray(a)[sweep.rows], hosts.to_host(values))


def check_evaluation(
  sweep: Sweep, states: State, function: Callable, *more_M: Any, memory: int
) -> None:
  """Refuse an evaluation that does not fit in the bytes of a device, before its models are trained.

  The evaluation then compiles nothing again.
  """
  arguments = states.params, sweep.jobs, *_rows(sweep, more_M)
  own = _parts(function), sweep.mesh, sweep.platform

  def compiled(arguments):
    device_memory.compiled(_map_models.lower(*own, arguments), memory)

  def fewer(models: int):
    shape = lambda a: (models * sweep.mesh.size, *a.shape[1:])
    smaller = lambda a: jax.ShapeDtypeStruct(shape(a), a.dtype, sharding=a.sharding)
    compiled(jax.tree.map(smaller, arguments))

  models, what = sweep.row_count // sweep.mesh.size, 'the evaluation after training'
  device_memory.try_out(what, lambda: compiled(arguments), fewer, models, 'models per device')


def _rows(sweep: Sweep, more_M: Any):
  """Arrays with one row per task, with a row for every row of the sweep, on the devices."""
  index = _task_of_row(sweep, sweep.rows)
  return _put(sweep, jax.tree.map(lambda a: np.asarray(a)[index], more_M))


def map_models(
  function: Callable, mesh: jax.sharding.Mesh, platform: str, *arguments_M: Any
) -> Any:
  """`function` of every row: on a CPU, every core processes its rows in turn; elsewhere under `vmap`.

  Partials of the same function with equal arguments, which must be hashable, share a compiled program.
  """
  return _map_models(_parts(function), mesh, platform, arguments_M)


def _parts(function: Callable) -> tuple:
  """A partial equals only itself, so its parts are compared."""
  call = functools.partial(function)
  return call.func, call.args, tuple(sorted(call.keywords.items()))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _map_models(parts, mesh, platform, arguments_M):
  function = functools.partial(parts[0], *parts[1], **dict(parts[2]))

  def per_device(arguments_M):
    if platform == 'cpu':
      return jax.lax.map(lambda arguments: function(*arguments), arguments_M)
    return jax.vmap(function)(*arguments_M)

  return jax.shard_map(
    per_device, mesh=mesh, in_specs=(P('models'),), out_specs=P('models'), check_vma=False
  )(arguments_M)


@functools.partial(jax.jit, static_argnums=range(4), donate_argnums=6)
def _train_chunks(config, recipe, vmap_size, mesh, steps, jobs, states):
  def per_device(steps, jobs, states):
    one = functools.partial(optimization.train_chunk, config, recipe, steps)
    if 1 < vmap_size == len(states.step):
      return jax.vmap(one)(jobs, states)
    batch = vmap_size if vmap_size > 1 else None
    return jax.lax.map(lambda pair: one(*pair), (jobs, states), batch_size=batch)

  specs = P(), P('models'), P('models')
  return jax.shard_map(
    per_device, mesh=mesh, in_specs=specs, out_specs=P('models'), check_vma=False
  )(steps, jobs, states)
