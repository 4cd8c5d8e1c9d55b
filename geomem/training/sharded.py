"""Train one large model on a device mesh: its vocabulary sharded, its batches split over all devices.

Arrays as long as the vocabulary (the subject embeddings, the unembedding, their moments) are sharded
along the axis 'vocabulary' and are never whole on a device; the rest is small, and replicated. The
rows of a batch are split over all devices, and the head combines both block by block. The training
step is that of `optimization`: XLA partitions the model's products by the sharding of their inputs.

A model whose sizes do not divide evenly among the devices is padded, as in a sweep.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from chex import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from geomem import hosts, model
from geomem import mesh as meshes
from geomem.config import Config
from geomem.errors import InputError
from geomem.mesh import AXES, SLICED, VOCABULARY
from geomem.training import device_memory, optimization, sweeps
from geomem.training.optimization import Job, State
from geomem.training.recipe import Recipe
from geomem.training.sweeps import Task

WORDS = ('subjects', 'answers')  # parameters with one row per word


@dataclasses.dataclass(frozen=True, eq=False)
class Sharded:
  """A task set up on a mesh; used like a `sweeps.Sweep` of one model."""

  recipe: Recipe
  tasks: tuple[Task]
  config: Config
  mesh: Mesh
  job: Job

  rows = np.zeros(1, int)
  row_count = vmap_size = 1

  @property
  def platform(self) -> str:
    """The platform of its devices."""
    return self.mesh.devices.flat[0].platform

  def train(self, state: State, steps: int) -> State:
    """Train for up to `steps` more steps; the buffers of `state` are donated."""
    return _train_chunk(self.config, self.recipe, self.mesh, np.int32(steps), self.job, state)

  def program(self) -> tuple[Any, tuple]:
    """The compiled function that trains it and the arguments of a call, with shapes for arrays, so that none is made."""
    begin = functools.partial(optimization.initial_state, self.recipe, as_tree=True)
    tree = self.job, jax.eval_shape(begin, model.shapes(self.config))
    with_sharding = lambda a, own: jax.ShapeDtypeStruct(np.shape(a), a.dtype, sharding=own)
    arrays = jax.tree.map(with_sharding, tree, _shardings(self.mesh, tree))
    return _train_chunk, (self.config, self.recipe, self.mesh, np.int32(1), *arrays)

  def with_rows(self, _: np.ndarray) -> 'Sharded':
    """Itself, as there is only one row."""
    return self

  def of_tasks(self, value: Array) -> np.ndarray:
    """A value of the state, as an array with one entry per task."""
    return np.asarray(hosts.to_host(value))[None]

  def state_of(self, state: State, i: int = 0) -> State:
    """The state on this host, with parameters at their own size."""
    state = jax.tree.map(np.asarray, hosts.to_host(state))
    return state.replace(params=sweeps.crop(state.params, self.tasks[i].config))


def set_up(
  recipe: Recipe, task: Task, mesh: Mesh | None = None, memory: int | None = None
) -> tuple[Sharded, State]:
  """The model on the mesh (default: all devices), and its state before the first step.

  `memory`: the bytes of a device; what needs more is refused.
  """
  own = planned(recipe, task, meshes.make_mesh() if mesh is None else mesh)
  if memory is not None:
    _check_memory(own, memory)
  params = sweeps.parameters(task, own.config)
  params = hosts.put(params, _shardings(own.mesh, params))
  begin = functools.partial(optimization.initial_state, recipe, as_tree=True)
  shardings = _shardings(own.mesh, jax.eval_shape(begin, params))
  state = jax.jit(begin, out_shardings=shardings)(params)
  return dataclasses.replace(own, job=hosts.put(own.job, _shardings(own.mesh, own.job))), state


def planned(recipe: Recipe, task: Task, mesh: Mesh) -> Sharded:
  """The model as `set_up` plans it, before any array is on a device."""
  if mesh.axis_names != AXES:
    raise InputError(f'the axes of the mesh are {mesh.axis_names}; they must be {AXES}')
  if recipe.lazy:
    raise InputError(
      'lazy training needs a model that is whole on a device: use a sweep of one model'
    )
  sweeps.check(recipe, (task,), task.config)
  config = _padded(recipe, task.config, mesh)
  return Sharded(recipe, (task,), config, mesh, sweeps.job(task, config))


def _check_memory(own: Sharded, memory: int) -> None:
  """Refuse a model that does not fit; a smaller batch may."""
  count = own.mesh.size

  def shorter(batch: int) -> Sharded:
    return planned(dataclasses.replace(own.recipe, batch=batch * count), own.tasks[0], own.mesh)

  batch = -(-(own.recipe.batch or own.config.subjects) // count)
  device_memory.check(own, shorter, batch, 'subjects per step and device', memory)


def _padded(recipe: Recipe, config: Config, mesh: Mesh) -> Config:
  """A config with sizes that divide evenly: subjects over all devices, answers over the slices."""
  if recipe.batch and recipe.batch % mesh.size:
    raise InputError(f'batch is {recipe.batch}; {mesh.size} devices need a multiple of {mesh.size}')
  up = lambda size, by: -(-size // by) * by
  subjects = up(config.subjects, mesh.size)
  if recipe.loss == 'every' and subjects != config.subjects:
    raise InputError(
      f"subjects is {config.subjects}; with loss='every' the {mesh.size} devices need a multiple of "
      f'{mesh.size}, or choose another loss'
    )
  answers = subjects if config.tied else up(config.answers, mesh.shape[VOCABULARY])
  return config.replace(subjects=subjects, answers=answers)


def _shardings(mesh: Mesh, tree):
  """The sharding of every array in a tree; a parameter and its moments share their last key, a name."""
  sliced = lambda path: getattr(path[-1], 'key', None) in WORDS
  sharding = lambda path, _: NamedSharding(mesh, SLICED if sliced(path) else P())
  return jax.tree_util.tree_map_with_path(sharding, tree)


fit, advance = sweeps.fit, sweeps.advance  # one model is trained like many


@functools.partial(jax.jit, static_argnums=range(3), donate_argnums=5)
def _train_chunk(config, recipe, mesh, steps, job, state):
  state = optimization.train_chunk(config, recipe, steps, job, state, mesh)
  return jax.lax.with_sharding_constraint(state, _shardings(mesh, state))
