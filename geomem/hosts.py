"""Several processes, on one machine or many, that run the same program on the devices of all.

Every process makes the same calls in the same order; what they compute lies on all their devices.
Files and output are the first process's: `by_first` lets it alone act, and sends the others its result.
"""

import functools
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from geomem.errors import InputError


def join(coordinator: str, processes: int, process: int) -> None:
  """Become process number `process` of so many, before JAX looks for devices.

  They meet at `coordinator`, HOST:PORT, where the first one listens.
  """
  if not 0 <= process < processes:
    raise InputError(f'process is {process}; {processes} processes are numbered from 0')
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdigit():
    raise InputError(f'coordinator is {coordinator!r}; it must be HOST:PORT')
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    jax.distributed.initialize(coordinator, processes, process)
  except jax.errors.JaxRuntimeError as error:
    raise InputError(f'{coordinator}: {processes} processes did not meet there: {error}') from error


def first() -> bool:
  """Whether this is the process that writes and speaks."""
  return jax.process_index() == 0


def processes(devices: Iterable[jax.Device]) -> set[int]:
  """The numbers of the processes that these belong to."""
  return {device.process_index for device in devices}


def put(tree: Any, places: Any) -> Any:
  """Arrays that every process has whole, each put onto the devices that `places` says."""
  if jax.process_count() == 1:
    return jax.device_put(tree, places)
  make = lambda a, place: jax.make_array_from_callback(
    np.shape(a), place, np.asarray(a).__getitem__
  )
  return jax.tree.map(make, tree, places)


def to_host(tree: Any) -> Any:
  """The arrays such that this process can read all of them, one by one; every process must ask."""

  def gather(a):
    if not isinstance(a, jax.Array) or a.is_fully_addressable:
      return a
    assert isinstance(a.sharding, NamedSharding), a.sharding  # as `put` gives all
    return np.asarray(a if a.is_fully_replicated else _replicate(a.sharding.mesh)(a))

  return jax.tree.map(gather, tree)


@functools.cache
def _replicate(mesh):
  return jax.jit(lambda a: a, out_shardings=NamedSharding(mesh, P()))


def broadcast(value: Any) -> Any:
  """The first process's value, on every process; anything that can be pickled, array by array."""
  if jax.process_count() == 1:
    return value
  buffers: list[pickle.PickleBuffer] = []
  pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
  parts = [memoryview(pickled), *(buffer.raw() for buffer in buffers)]
  count = _send_number(len(parts))
  parts = parts if first() else [memoryview(b'')] * count
  whole, *rest = [_send(part, _send_number(len(part))) for part in parts]
  return pickle.loads(whole, buffers=rest)


def _send_number(number: int) -> int:
  return int.from_bytes(_send(number.to_bytes(8), 8))


def _send(data, size: int) -> bytearray:
  """The first process's data, whose size in bytes all know."""
  data_S = np.frombuffer(data, np.uint8) if first() else np.zeros(size, np.uint8)
  return bytearray(multihost_utils.broadcast_one_to_all(data_S))


def by_first(work: Callable) -> Callable:
  """A function that runs on the first process alone: all get its value, or its error.

  The first process raises the error itself; to the others one of another type is sent as a RuntimeError.
  """

  @functools.wraps(work)
  def everywhere(*args, **options):
    if jax.process_count() == 1:
      return work(*args, **options)
    value, own = None, None
    if first():
      try:
        value = work(*args, **options)
      except Exception as error:
        own = error
    value, failure = broadcast((value, _portable(own)))
    if own or failure:
      raise own or failure
    return value

  return everywhere


def _portable(error: Exception | None) -> Exception | None:
  """Not every error can be sent."""
  if error is None or isinstance(error, (InputError, OSError)):
    return error
  return RuntimeError(f'{type(error).__name__} on the first process: {error}')
