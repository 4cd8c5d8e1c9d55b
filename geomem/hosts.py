"""Several processes, on one machine or many, that run the same program on the devices of all.

Every process makes the same calls in the same order; the results are spread over all their devices.
Only the first process handles files and output: `on_first_process` runs a function on it alone and sends the
result to the others.
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
  """Join as process number `process` of `processes`, before JAX looks for devices.

  The processes connect to `coordinator`, HOST:PORT, where the first one listens.
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
    raise InputError(f'{coordinator}: {processes} processes could not connect: {error}') from error


def is_first() -> bool:
  """Whether this is the process that writes files and output."""
  return jax.process_index() == 0


def processes(devices: Iterable[jax.Device]) -> set[int]:
  """The indices of the processes that these devices belong to."""
  return {device.process_index for device in devices}


def put(tree: Any, shardings: Any) -> Any:
  """Put arrays, which every process holds whole, onto devices with the sharding given for each."""
  if jax.process_count() == 1:
    return jax.device_put(tree, shardings)
  make = lambda a, sharding: jax.make_array_from_callback(
    np.shape(a), sharding, np.asarray(a).__getitem__
  )
  return jax.tree.map(make, tree, shardings)


def to_host(tree: Any) -> Any:
  """Gather the arrays, one by one, so that this process can read them; every process must call it."""

  def gather(a):
    if not isinstance(a, jax.Array) or a.is_fully_addressable:
      return a
    assert isinstance(a.sharding, NamedSharding), a.sharding  # as `put` makes them
    return np.asarray(a if a.is_fully_replicated else _replicate(a.sharding.mesh)(a))

  return jax.tree.map(gather, tree)


@functools.cache
def _replicate(mesh):
  return jax.jit(lambda a: a, out_shardings=NamedSharding(mesh, P()))


def broadcast(value: Any) -> Any:
  """Send the first process's value to every process; anything that can be pickled, array by array."""
  if jax.process_count() == 1:
    return value
  buffers: list[pickle.PickleBuffer] = []
  pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
  parts = [memoryview(pickled), *(buffer.raw() for buffer in buffers)]
  count = _send_number(len(parts))
  parts = parts if is_first() else [memoryview(b'')] * count
  whole, *rest = [_send(part, _send_number(len(part))) for part in parts]
  return pickle.loads(whole, buffers=rest)


def _send_number(number: int) -> int:
  return int.from_bytes(_send(number.to_bytes(8), 8))


def _send(data, size: int) -> bytearray:
  """Send the first process's data, whose size in bytes every process knows."""
  data_S = np.frombuffer(data, np.uint8) if is_first() else np.zeros(size, np.uint8)
  return bytearray(multihost_utils.broadcast_one_to_all(data_S))


def on_first_process(work: Callable) -> Callable:
  """Make `work` run on the first process alone; every process gets its value or its error.

  The first process raises the error itself. The others get errors other than InputError and OSError
  as a RuntimeError.
  """

  @functools.wraps(work)
  def everywhere(*args, **options):
    if jax.process_count() == 1:
      return work(*args, **options)
    value, own = None, None
    if is_first():
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
  """An error that can be sent to other processes, as not every error can."""
  if error is None or isinstance(error, (InputError, OSError)):
    return error
  return RuntimeError(f'{type(error).__name__} on the first process: {error}')
