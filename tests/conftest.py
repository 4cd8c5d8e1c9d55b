"""The strictest settings: two devices, no silent dtype or rank promotion."""

import itertools
import os
import shutil
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import pytest

flags = ['--xla_force_host_platform_device_count=2']
if jax.__version_info__ < (0, 11):  # XLA stops at a flag it does not know, and this one may go
  flags.append('--xla_cpu_use_fusion_emitters=false')  # compiles four times as fast
os.environ['XLA_FLAGS'] = ' '.join([*flags, os.environ.get('XLA_FLAGS', '')])

for name, value in (
  ('jax_numpy_dtype_promotion', 'strict'),
  ('jax_numpy_rank_promotion', 'raise'),
  # Hundreds of small programs: compiling them is most of the work, so compile them quickly.
  ('jax_disable_most_optimizations', True),
):
  jax.config.update(name, value)
  os.environ[name.upper()] = str(value)  # for the processes that tests start
# The workers keep what they compile, for each other and for the next run; the processes that tests start,
# some of which are killed while they write, do not. Git ignores the folder.
COMPILED = Path(__file__).parents[1] / '.jax_cache'
jax.config.update('jax_compilation_cache_dir', str(COMPILED))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.05)
# For the workers, which start after this: memory once had is kept, not asked for anew, page by page.
for name in ('MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_'):
  os.environ.setdefault(name, str(2**30))
MAPS, LOOKS = Path('/proc/self/maps'), itertools.cycle([*[False] * 19, True])


def pytest_sessionstart(session):
  """Nothing else removes the programs of code that has changed since."""
  first = 'PYTEST_XDIST_WORKER' not in os.environ
  if first and sum(path.stat().st_size for path in COMPILED.glob('*')) > 2**30:
    shutil.rmtree(COMPILED, ignore_errors=True)


@pytest.fixture(autouse=True)
def forget_programs():
  """Every compiled program holds maps of memory; with some 65,000 a process is at its end.

  To count them takes a moment, so only after every 20th test.
  """
  yield
  if next(LOOKS) and MAPS.exists() and MAPS.read_bytes().count(b'\n') > 30000:
    jax.clear_caches()
