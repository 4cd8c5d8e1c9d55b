"""The compiled programs of a study, without running them. The study's own `measure` is called; every call of a compiled
function is recorded with the shapes of its arguments, and returns ones. So no size has to be given a second time.

What a study computes from these results is computed from ones, and meaningless.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from experiments.harness import machine
from experiments.harness.trainer import Trainer
from geomem import hosts
from geomem.config import Config
from geomem.training import sweeps
from geomem.training.recipe import Recipe

JITTED = type(jax.jit(abs))
PLATFORMS = 'cpu', 'cuda', 'rocm', 'tpu'


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
  """A compiled function and the arguments of a call: shapes instead of arrays, everything else as it was given."""

  function: Any
  args: tuple
  options: dict

  @property
  def name(self) -> str:
    """The name of the function, of those that it maps over models, the words that it is called with, and what is special
    about the training."""
    words = [self.function.__qualname__.lstrip('_')]
    leaves = jax.tree.leaves((self.args, self.options))
    partials = [leaf for leaf in leaves if isinstance(leaf, functools.partial)]
    inner = [part for leaf in partials for part in _parts(leaf) or () if not isinstance(part, str)]
    for leaf in [*leaves, *inner]:
      if isinstance(leaf, str) and leaf not in PLATFORMS:
        words.append(leaf)
      elif isinstance(leaf, Recipe):
        sampled = leaf.negatives is not None
        words += (
          ['muon'] * (leaf.optimizer == 'muon') + ['lazy'] * leaf.lazy + ['negatives'] * sampled
        )
      elif callable(leaf) and hasattr(leaf, '__qualname__') and not isinstance(leaf, type):
        words.append(f'{leaf.__module__.rpartition(".")[2]}.{leaf.__qualname__.rpartition(".")[2]}')
    return ' '.join(dict.fromkeys(words))

  @property
  def shapes(self) -> list[jax.ShapeDtypeStruct]:
    leaves = jax.tree.leaves((self.args, self.options))
    return [leaf for leaf in leaves if isinstance(leaf, jax.ShapeDtypeStruct)]

  @property
  def bytes(self) -> int:
    """The size of all arguments."""
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in self.shapes)

  @property
  def models(self) -> int:
    """The number of models on all devices together; 0 if models are not batched."""
    return max((a.shape[0] for a in self.shapes if _by_model(a)), default=0)

  def with_models(self, count: int) -> 'Program':
    """The same program for `count` models."""
    fewer = lambda leaf: leaf.update(shape=(count, *leaf.shape[1:])) if _by_model(leaf) else leaf
    args, options = jax.tree.map(fewer, (self.args, self.options))
    return dataclasses.replace(self, args=args, options=options)

  @property
  def kind(self) -> tuple:
    """The same for programs that differ only in sizes, rates and other numbers, unless one of these is 0. Those of
    batches of models, which can take minutes to compile, may also differ in what arrays and options these models have,
    beyond what the name tells."""
    leaves, tree = jax.tree.flatten((self.args, self.options))
    if self.models:
      rest = [leaf for leaf in leaves if not isinstance(leaf, jax.ShapeDtypeStruct)]
      return self.name, *(_kind(leaf, options=False) for leaf in rest)
    return self.name, tree, *(_kind(leaf, options=True) for leaf in leaves)

  @property
  def digest(self) -> str:
    """Of the arguments, functions by their names, and of where arrays lie; not of code or what a function encloses."""
    leaves, tree = jax.tree.flatten((self.args, self.options))
    text = repr([self.name, str(tree), *map(_in_words, leaves)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]

  def key(self) -> tuple:
    leaves, tree = jax.tree.flatten((self.args, self.options))
    return self.function, tree, tuple(leaves)


def _parts(leaf: Any) -> tuple | None:
  """What a partial function, or the options of a model or its training, consist of."""
  if isinstance(leaf, functools.partial):
    return leaf.func, *leaf.args, *itertools.chain(*sorted(leaf.keywords.items()))
  if isinstance(leaf, Config | Recipe):
    return tuple(vars(leaf).values())
  return leaf if isinstance(leaf, tuple) else None


def _kind(leaf: Any, options: bool) -> Any:
  if isinstance(leaf, Config | Recipe) and not options:
    return type(leaf).__name__
  if isinstance(leaf, Config):
    return sweeps.unsized(leaf)
  if (parts := _parts(leaf)) is not None:
    return tuple(_kind(part, options) for part in parts)
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return str(leaf.dtype), len(leaf.shape)
  if isinstance(leaf, int | float):
    return bool(leaf)
  return leaf if leaf is None or isinstance(leaf, str) else getattr(leaf, '__qualname__', '')


def _in_words(leaf: Any) -> str:
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return f'{leaf.shape} {leaf.dtype} {getattr(leaf.sharding, "spec", "")}'
  if (parts := _parts(leaf)) is not None:
    return ' '.join(map(_in_words, parts))
  if isinstance(leaf, Mesh):
    return f'{leaf.shape}'
  return f'{leaf.__module__}.{leaf.__qualname__}' if hasattr(leaf, '__qualname__') else repr(leaf)


class Ones(np.ndarray):
  """What a recorded call returns: ones of the result's shape and sharding."""

  sharding: Any = None


def ones(shape, sharding: Any = None) -> Any:
  """An array of ones that takes no memory."""
  if jax.dtypes.issubdtype(shape.dtype, jax.dtypes.prng_key):
    return jax.random.split(jax.random.key(0), shape.shape)
  found = np.broadcast_to(np.ones((), shape.dtype), shape.shape).view(Ones)
  found.sharding = sharding
  return found


def _by_model(leaf: Any) -> bool:
  """Whether it is an array with one row per model."""
  return isinstance(getattr(leaf, 'sharding', None), NamedSharding) and leaf.sharding.spec == P(
    'models'
  )


def _is_array(leaf: Any) -> bool:
  return isinstance(leaf, np.ndarray | np.generic | jax.Array)


def _shape(leaf: Any, default: Any) -> Any:
  """The shape of an array; anything else stays as it is."""
  if not _is_array(leaf):
    return leaf
  sharding = leaf.sharding if isinstance(leaf, Ones) and leaf.sharding is not None else default
  return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)


class Recorded:
  """Stands for a compiled function while programs are recorded."""

  def __init__(self, function: Any, device: jax.Device, programs: list[Program], declared: Any):
    self.function, self.device, self.programs, self.declared = function, device, programs, declared
    functools.update_wrapper(self, function)

  def __call__(self, *args, **options):
    leaves = jax.tree.leaves((args, options))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):  # a call inside another program
      return self.function(*args, **options)
    meshes = [leaf for leaf in leaves if isinstance(leaf, Mesh)]
    given = [
      leaf.sharding for leaf in leaves if isinstance(leaf, Ones) and leaf.sharding is not None
    ]
    default: Any = None if meshes else SingleDeviceSharding(self.device)
    if given and isinstance(given[0], NamedSharding):
      default = NamedSharding(given[0].mesh, P())
    args, options = jax.tree.map(lambda leaf: _shape(leaf, default), (args, options))
    self.programs.append(Program(self.function, args, options))
    found = self.function.eval_shape(*args, **options)
    return jax.tree.map(ones, found, self._shardings(found, (*args, *options.values()), given))

  def _shardings(self, found: Any, args: tuple, given: list) -> Any:
    """The declared shardings; or those of the argument of the same structure; or that of all arguments, if they agree."""
    tree: Any = jax.tree.structure(found)
    if self.declared is not None:
      return self.declared
    for arg in args:
      if jax.tree.structure(arg) == tree:
        return jax.tree.map(lambda leaf: getattr(leaf, 'sharding', None), arg)
    alike = given[0] if given and all(sharding == given[0] for sharding in given) else None
    return jax.tree.unflatten(tree, [alike] * tree.num_leaves)


@contextlib.contextmanager
def recording(device: jax.Device) -> Iterator[list[Program]]:
  """Inside this context no compiled function of ours runs: calls go into the list. Arrays on no mesh are for `device`."""
  programs: list[Program] = []
  real = jax.jit

  def jit(function: Callable | None = None, **how):
    if function is None:
      return functools.partial(jit, **how)
    return Recorded(real(function, **how), device, programs, how.get('out_shardings'))

  def put(tree, shardings):
    return jax.tree.map(lambda a, s: _with_sharding(np.asarray(a), s), tree, shardings)

  with contextlib.ExitStack() as patches:
    patch = lambda owner, name, own: patches.enter_context(mock.patch.object(owner, name, own))
    for module in list(sys.modules.values()):
      if module.__name__.partition('.')[0] in machine.PACKAGES:
        for name, own in vars(module).copy().items():
          if isinstance(own, JITTED):
            patch(module, name, Recorded(own, device, programs, None))
    patch(jax, 'jit', jit)
    patch(hosts, 'put', put)
    yield programs


def _with_sharding(a: np.ndarray, sharding: Any) -> Ones:
  found = a.view(Ones)
  found.sharding = sharding
  return found


class Recorder(Trainer):
  """Takes the place of a trainer, or of a progress line: nothing is trained, kept or shown."""

  def __init__(self, folder: Path, devices: Sequence[jax.Device], platform: str):
    self.folder, self.placement = folder, {'devices': devices, 'platform': platform}
    self.resume_from = self.trace = None

  def __call__(self, *_, **__):
    """Report no progress."""

  on_progress: Any = __call__

  def cached(self, work: Callable):
    return work()

  def timed(self, function: Callable, *arguments):
    return function(*arguments)

  def recorded(self, function: Callable, *arguments) -> list[dict]:
    return function(*arguments)

  def run_to_end(self, fit: Callable, sweep, states):
    """Run one chunk, whatever the states are: they are ones, which would look as if all training were done."""
    return sweep, sweeps.advance(sweep, states, 1)


def of_study(
  study: Any, preset: Any, devices: Sequence[jax.Device], platform: str
) -> list[Program]:
  """All distinct programs of a study's preset on these devices."""
  preset = study.prepare(preset)
  seeds = range(study.first_seed, study.first_seed + getattr(preset, 'seeds', 1))
  with (
    tempfile.TemporaryDirectory() as folder,
    recording(devices[0]) as programs,
    np.errstate(all='ignore'),
    contextlib.redirect_stdout(io.StringIO()),
  ):
    study.measure(Recorder(Path(folder), devices, platform), preset, seeds)
  return list({program.key(): program for program in programs}.values())


def largest(found: Sequence[tuple[Program, str]]) -> list[tuple[Program, str]]:
  """Of every kind, the program with the largest arguments; with the part of a preset that each comes from."""
  best: dict[tuple, tuple[Program, str]] = {}
  for one in sorted(found, key=lambda one: one[0].bytes):
    best[one[0].kind] = one
  return sorted(best.values(), key=lambda one: one[0].name)
