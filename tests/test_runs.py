"""Runs survive when they are killed at any moment, damaged, started twice, or taken for another."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from geomem.errors import InputError
from geomem.saved import runs

ROOT = Path(__file__).parents[1]
# A run whose state is a function of its step number: 40 steps, each with a checkpoint and a line.
LOOP = """
import sys, numpy as np
from geomem.saved import runs
with runs.Run(sys.argv[1], {'seed': 3}) as run:
  number, state = run.restore() or (0, {'x': np.zeros(50), 'y': {'z': np.int32(7)}})
  while number < 40:
    state = {'x': np.cos(state['x'] + number), 'y': {'z': np.asarray(state['y']['z'] * 3 + 1, np.int32)}}
    number += 1
    run.log({'number': number, 'sum': float(state['x'].sum())})
    run.save(number, state)
    print(number, flush=True)
"""


def start(folder, **options):
  path = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'error'}
  return subprocess.Popen([sys.executable, '-c', LOOP, str(folder)], env=path, text=True, **options)


def final(folder):
  with runs.Run(folder, {'seed': 3}) as run:
    number, state = run.restore()
  return number, state['x'].tobytes(), int(state['y']['z']), (folder / 'metrics.jsonl').read_text()


def test_killed_again_and_again_it_ends_in_the_same_bits(tmp_path):
  assert start(tmp_path / 'whole', stdout=subprocess.DEVNULL).wait() == 0
  for wanted in (4, 21):
    process = start(tmp_path / 'killed', stdout=subprocess.PIPE)
    for line in process.stdout:
      if int(line) >= wanted:
        time.sleep(0.004 * wanted)  # somewhere in the next step, or in its checkpoint
        process.send_signal(signal.SIGKILL)
        break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
  assert start(tmp_path / 'killed', stdout=subprocess.DEVNULL).wait() == 0
  assert final(tmp_path / 'killed') == final(tmp_path / 'whole')
  assert final(tmp_path / 'whole')[0] == 40


@pytest.fixture
def two(tmp_path):
  with runs.Run(tmp_path / 'run', {'seed': 3}) as run:
    for number in (1, 2, 3):
      run.log({'number': number})
      run.save(number, {'x': np.full(4, number)})
  return tmp_path / 'run'


def test_the_newest_two_are_kept(two):
  assert [path.name for path in sorted((two / 'checkpoints').iterdir())] == [
    '000000002',
    '000000003',
  ]


@pytest.mark.parametrize('damage', ['cut', 'gone', 'other'])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(two, damage):
  newest = two / 'checkpoints' / '000000003'
  victim = max(
    (p for p in (newest / 'arrays').rglob('*') if p.is_file()), key=lambda p: p.stat().st_size
  )
  if damage == 'gone':
    victim.unlink()
  else:
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2] if damage == 'cut' else whole[:-1] + b'?')
  told = []
  with runs.Run(two, {'seed': 3}, told.append) as run:
    number, state = run.restore()
    assert number == 2 and np.array_equal(state['x'], np.full(4, 2))
    assert len(told) == 1 and '000000003: damaged checkpoint' in told[0]
    assert logged(two) == [1, 2]
    run.save(3, state)
    assert run.restore()[0] == 3
  assert (newest.with_name('000000003.damaged') / 'config.json').exists()


def logged(folder) -> list[int]:
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line)['number'] for line in lines]


@pytest.mark.parametrize(
  ('place', 'name', 'error'),
  [
    (runs.atomic.hashlib, 'file_digest', OSError(errno.EIO, 'Input/output error')),
    (runs.atomic.hashlib, 'file_digest', MemoryError()),
    (Path, 'read_text', PermissionError(errno.EACCES, 'Permission denied')),
    (runs.atomic.ocp.CheckpointManager, 'restore', ValueError('a fault of its own')),
  ],
)
def test_an_error_that_passes_costs_nothing(place, name, error, two, monkeypatch):
  def fail(*_, **__):
    raise error

  with runs.Run(two, {'seed': 3}) as run:
    with monkeypatch.context() as patch:
      patch.setattr(place, name, fail)
      with pytest.raises(type(error)) as raised:
        run.restore()
    assert not isinstance(raised.value, InputError) and logged(two) == [1, 2, 3]
    assert run.restore()[0] == 3


def test_damage_to_all_is_refused_and_nothing_is_lost(two):
  for config in two.glob('checkpoints/*/config.json'):
    config.unlink()
  for _ in range(2):
    with (
      runs.Run(two, {'seed': 3}, lambda _: None) as run,
      pytest.raises(InputError, match='every checkpoint is damaged; put back a whole one') as error,
    ):
      run.restore()
    assert '\n' not in str(error.value) and logged(two) == [1, 2, 3]
  aside = sorted(two.glob('checkpoints/*'))
  assert [path.name for path in aside] == ['000000002.damaged', '000000003.damaged']
  assert all((path / 'arrays').is_dir() for path in aside)


@pytest.mark.parametrize(('left', 'numbers'), [(None, []), (0, []), (20, [1]), (28, [1, 2])])
def test_metrics_that_were_lost_are_told_and_not_made_up(left, numbers, two):
  metrics, told = two / 'metrics.jsonl', []
  whole = metrics.read_bytes()
  assert len(whole) == 42
  if left is None:
    metrics.unlink()
  else:
    metrics.write_bytes(whole[:left])
  with runs.Run(two, {'seed': 3}, told.append) as run:
    assert run.restore()[0] == 3
    run.log({'number': 4})
  assert len(told) == 1 and 'metrics.jsonl' in told[0] and 'bytes are lost' in told[0]
  assert logged(two) == [*numbers, 4]


def test_a_second_process_is_refused(two):
  with (
    runs.Run(two, {'seed': 3}),
    pytest.raises(InputError, match='another process is at work'),
  ):
    runs.Run(two, {'seed': 3})
  runs.Run(two, {'seed': 3}).close()


def test_another_run_is_refused(two):
  with pytest.raises(InputError, match='holds another run: its seed is 3, not 4'):
    runs.Run(two, {'seed': 4})
  runs.Run(two, {'seed': 3}).close()


def test_a_write_that_fails_leaves_the_last_one(two, monkeypatch):
  def full(*_, **__):
    raise OSError(28, 'No space left on device')

  with runs.Run(two, {'seed': 3}) as run:
    with monkeypatch.context() as patch:
      patch.setattr(runs.atomic.ocp.CheckpointManager, 'save', full)
      with pytest.raises(OSError, match='cannot be saved'):
        run.save(4, {'x': np.zeros(4)})
    assert run.restore()[0] == 3
