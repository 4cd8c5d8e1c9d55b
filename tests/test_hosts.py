"""Two processes that connect over the loopback address give the results of one, written once."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from experiments.harness import records
from geomem import hosts
from geomem.config import BlockConfig, Config
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.mesh import AXES
from geomem.training import sharded, sweeps
from geomem.training.recipe import Recipe

ROOT = Path(__file__).parents[1]
RECIPE = Recipe(steps=6, warmup=2, check=3, target=None, block=16)


def tasks():
  c = Config(10, 2, 10, 2, 6, (BlockConfig(1, 6, 6, (12,)),), norm='rms')
  table = Facts.bijections(10, 2)
  return [sweeps.Task(c, table, seed=s) for s in range(3)]


def trained() -> list:
  """Loss, accuracy and parameters of three models of a sweep, and of one sharded model on each of two meshes."""
  sweep, states = sweeps.set_up(RECIPE, tasks())
  states = sweeps.advance(sweep, states, RECIPE.steps)
  results = [sweep.state_of(states, i) for i in range(3)]
  for shape in ((1, 2), (2, 1)):
    mesh = Mesh(np.array(jax.devices()).reshape(shape), AXES)
    sweep, state = sharded.set_up(RECIPE, tasks()[1], mesh)
    results.append(sweep.state_of(sharded.advance(sweep, state, RECIPE.steps)))
  return jax.tree.leaves([(r.loss, r.accuracy, r.params) for r in results])


PROCESS = """
import sys
import warnings
warnings.simplefilter('error')
import jax
import numpy as np
from geomem import hosts
from geomem.errors import InputError
from tests import test_hosts

jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')
hosts.join(sys.argv[1], 2, int(sys.argv[2]))
np.savez(sys.argv[3], *test_hosts.trained())

mine = {'word': sys.argv[2], 'bits': np.array([[-0.0, np.nan], [1, 2]], np.float32), 'none': np.zeros(0)}
told = hosts.broadcast(mine)
assert told['word'] == '0' and told['bits'].tobytes() == mine['bits'].tobytes() and told['none'].size == 0
acted = []
assert hosts.on_first_process(lambda: acted.append(1) or 7)() == 7 and len(acted) == (sys.argv[2] == '0')
def refuse():
  raise InputError(f'no, says {sys.argv[2]}')
try:
  hosts.on_first_process(refuse)()
except InputError as error:
  assert str(error) == 'no, says 0'
  print('refused')
def break_off():
  raise KeyError('x')
try:
  hosts.on_first_process(break_off)()
except (KeyError, RuntimeError) as error:
  print(repr(error))
"""


def free_port() -> int:
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    return listener.getsockname()[1]


def start(*arguments, folder, name):
  flags = ['--xla_force_host_platform_device_count=1', '--xla_cpu_use_fusion_emitters=false']
  flags = flags if jax.__version_info__ < (0, 11) else flags[:1]
  environment = {
    **os.environ,
    'PYTHONPATH': str(ROOT),
    'XLA_FLAGS': ' '.join(flags),
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
  }
  with open(folder / f'{name}.out', 'w') as out, open(folder / f'{name}.err', 'w') as err:
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=out, stderr=err)


def end(processes, folder, statuses=(0, 0), seconds=300):
  """Waits for all processes and returns their outputs; if one fails, kills the others and shows all errors."""
  deadline = time.monotonic() + seconds
  try:
    while any(p.poll() is None for p in processes):
      failed = any(p.poll() not in (None, s) for p, s in zip(processes, statuses, strict=True))
      if failed or time.monotonic() > deadline:
        break
      time.sleep(0.05)
  finally:
    for process in processes:
      process.kill()
      process.wait()
  said = '\n'.join(path.read_text() for path in sorted(folder.glob('*.err')))
  assert tuple(p.returncode for p in processes) == statuses, said
  return [(folder / f'{i}.out').read_text() for i in range(len(processes))]


def test_two_processes_agree_with_one(tmp_path):
  place = f'127.0.0.1:{free_port()}'
  processes = [
    start('-c', PROCESS, place, str(i), str(tmp_path / f'{i}.npz'), folder=tmp_path, name=i)
    for i in range(2)
  ]
  try:
    alone = trained()
  finally:
    said = end(processes, tmp_path)
  assert all('refused' in text for text in said)
  assert "\nKeyError('x')" in said[0] and 'RuntimeError("KeyError on the first process' in said[1]
  zero, one = (list(np.load(tmp_path / f'{i}.npz').values()) for i in range(2))
  for a, b, want in zip(zero, one, alone, strict=True):
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(a, want, atol=1e-5, rtol=1e-4)


SMALL = ('--subjects=12', '--relations=2', '--dim=6', '--target=1', '--save_seconds=0')


def launch(folder, *arguments):
  folder.mkdir(exist_ok=True)
  place = ('--processes=2', f'--coordinator=127.0.0.1:{free_port()}', f'--workdir={folder / "run"}')
  module = ('-m', 'experiments.train')
  return [
    start(*module, *SMALL, *arguments, *place, f'--process={i}', folder=folder, name=i)
    for i in range(2)
  ]


def written(folder):
  return [(folder / 'run' / name).read_text() for name in ('results.json', 'metrics.jsonl')]


def test_a_sweep_of_two_processes_is_written_once(tmp_path):
  said = end(launch(tmp_path, '--seeds=3', '--steps=400'), tmp_path)
  assert [text.count('results.json') for text in said] == [1, 0]
  results, curve = written(tmp_path)
  assert records.read(tmp_path / 'run').table['seed'].tolist() == [0, 1, 2]
  steps = [json.loads(line)['step'] for line in curve.splitlines()]
  assert steps == sorted(set(steps))
  refused = end(launch(tmp_path, '--seeds=2', '--steps=400'), tmp_path, statuses=(2, 2))
  assert refused and written(tmp_path) == [results, curve]
  assert 'error: ' in (tmp_path / '1.err').read_text()


def test_a_sharded_model_of_two_processes_resumes_to_the_same_bits(tmp_path):
  options = ('--shard', '--steps=400', '--learning_rate=1e-4', '--batch=4')
  end(launch(tmp_path, *options), tmp_path)
  whole = written(tmp_path)
  assert whole[1].count('\n') == 2
  (tmp_path / 'run' / 'results.json').unlink()
  # As if killed before the last checkpoint was written.
  shutil.rmtree(max((tmp_path / 'run' / 'checkpoints').iterdir()))
  end(launch(tmp_path, *options), tmp_path)
  assert written(tmp_path) == whole


@pytest.mark.parametrize(
  ('arguments', 'told'),
  [
    (('host:1', 2, 2), 'numbered from 0'),
    (('host', 2, 0), 'HOST:PORT'),
    (('host:x', 2, 0), 'HOST:PORT'),
  ],
)
def test_a_meeting_that_makes_no_sense_is_refused(arguments, told):
  with pytest.raises(InputError, match=told):
    hosts.join(*arguments)


def test_alone_an_error_stays_what_it_is():
  broken = TypeError('no such thing')

  def work():
    raise broken

  with pytest.raises(TypeError) as error:
    hosts.on_first_process(work)()
  assert error.value is broken and error.traceback[-1].name == 'work'
