"""The machine that computes: its setup before JAX starts, its description, and the hash of the code it runs."""

import contextlib
import functools
import hashlib
import importlib.util
import os
import platform
from importlib import metadata
from pathlib import Path

import jax

from geomem import hosts

PACKAGES = ('geomem', 'constructions', 'experiments')
QUICK = ('--xla_backend_optimization_level=1', '--xla_cpu_use_fusion_emitters=false')


def one_device_per_core():
  """Make every core of a CPU a device, if JAX has not started yet and nobody has decided otherwise."""
  flags = os.environ.get('XLA_FLAGS', '')
  if 'host_platform_device_count' in flags or 'JAX_NUM_CPU_DEVICES' in os.environ:
    return
  with contextlib.suppress(RuntimeError):  # JAX has started
    jax.config.update('jax_num_cpu_devices', cores())


def memory() -> int | None:
  """The bytes that programs may use on each device of the first host; None where devices do not tell, as CPUs do not."""
  try:
    limits = [(one.memory_stats() or {}).get('bytes_limit', 0) for one in jax.local_devices()]
  except (jax.errors.JaxRuntimeError, NotImplementedError):
    limits = [0]
  return hosts.broadcast(min(limits)) or None


def cores() -> int:
  """The number of cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def compile_quickly():
  """Shorten compile times on CPUs by a quarter or more: small studies spend half of their time compiling.

  Works only if JAX has not started yet, and only for versions that are known to have these flags.
  """
  if jax.__version_info__ < (0, 11):  # XLA stops at an unknown flag
    given = os.environ.get('XLA_FLAGS', '')
    os.environ['XLA_FLAGS'] = ' '.join([*QUICK, given]).strip()


def keep_compiled(folder: Path):
  """Keep compiled programs in this folder for the next run."""
  if getattr(jax.config, 'jax_compilation_cache_dir', None) is None:
    jax.config.update('jax_compilation_cache_dir', str(Path(folder, '.jax_cache').absolute()))


def device() -> str:
  """A description of the devices."""
  devices = jax.devices()
  text = f'{len(devices)} × {devices[0].device_kind}'
  return f'{text}, {cores()} of {os.cpu_count()} cores' if devices[0].platform == 'cpu' else text


def versions() -> dict[str, str]:
  names: tuple[str, ...] = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'pandas', 'scipy')
  names += ('torch',) * bool(importlib.util.find_spec('torch'))  # optional: only a baseline
  return {'python': platform.python_version(), **{name: metadata.version(name) for name in names}}


def made_with() -> dict:
  """What a measurement depends on besides its setting."""
  return {'code': code_hash(), 'device': device(), 'versions': versions()}


@functools.lru_cache
def code_hash(root: Path = Path(__file__).parents[2]) -> str:
  """Hash of the code that measures and the tables it uses, as they were at the first call."""
  digest = hashlib.sha256()
  for package in PACKAGES:
    for path in sorted((root / package).rglob('*')):
      if path.suffix in ('.py', '.csv'):
        digest.update(f'{path.relative_to(root).as_posix()}\0'.encode() + path.read_bytes())
  return digest.hexdigest()[:16]
