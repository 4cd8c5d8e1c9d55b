"""Runs all tests with the strictest settings: two devices, and no silent dtype or rank promotion."""

import gc
import itertools
import os
import shutil
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import pytest

flags = ['--xla_force_host_platform_device_count=2']
if jax.__version_info__ < (0, 11):  # XLA aborts on an unknown flag, and this one may be removed
  flags.append('--xla_cpu_use_fusion_emitters=false')  # compiles four times as fast
os.environ['XLA_FLAGS'] = ' '.join([*flags, os.environ.get('XLA_FLAGS', '')])

for name, value in (
  ('jax_numpy_dtype_promotion', 'strict'),
  ('jax_numpy_rank_promotion', 'raise'),
  # The tests spend most of their time compiling hundreds of small programs, so compile them quickly on a CPU.
  ('jax_disable_most_optimizations', os.environ['JAX_PLATFORMS'] == 'cpu'),
):
  jax.config.update(name, value)
  os.environ[name.upper()] = str(value)  # for the processes that tests start
# The workers cache what they compile, for each other and for the next run. Processes that tests start do not,
# because some of them are killed while they write. Git ignores the folder.
COMPILED = Path(__file__).parents[1] / '.jax_cache'
jax.config.update('jax_compilation_cache_dir', str(COMPILED))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.05)
# For the workers, which start after this: malloc keeps freed memory instead of requesting it again page by page.
for name in ('MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_'):
  os.environ.setdefault(name, str(2**30))
MAPS, LOOKS = Path('/proc/self/maps'), itertools.cycle([*[False] * 19, True])


def pytest_sessionstart(session):
  """Empties a compilation cache of over 1 GiB; nothing else removes programs whose code has changed."""
  first = 'PYTEST_XDIST_WORKER' not in os.environ
  if first and sum(path.stat().st_size for path in COMPILED.glob('*')) > 2**30:
    shutil.rmtree(COMPILED, ignore_errors=True)


def pytest_collection_finish():
  """Lets Python look for garbage rarely: tracing makes many objects, and nearly all of them are freed without it."""
  gc.freeze()
  gc.set_threshold(50_000, 10, 10)


@pytest.fixture(autouse=True)
def forget_programs():
  """Drops compiled programs before a process reaches its limit of some 65,000 memory maps.

  Every compiled program holds some. Counting takes a moment, so it is done only after every 20th test.
  """
  yield
  if next(LOOKS) and MAPS.exists() and MAPS.read_bytes().count(b'\n') > 30000:
    jax.clear_caches()
    gc.collect()
