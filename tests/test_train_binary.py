"""The training binary gives the same results, to the last bit, when it is killed and started again."""

import functools
import json
import signal
import time

import processes
import pytest
from test_bad_input import run

from experiments.harness import records

SMALL = ('--subjects=12', '--relations=2', '--dim=3', '--steps=3000', '--target=1', '--learning_rate=0.003',
         '--learning_rate=0.01', '--weight_decay=1', '--seeds=2', '--batch=4', '--save_seconds=0')  # fmt: skip


start = functools.partial(processes.start, 'train')


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs') / 'whole'
  process = start(folder, *SMALL)
  out, err = process.communicate()
  assert process.returncode == 0, err
  return folder, out


def written(folder):
  return [(folder / name).read_text() for name in ('results.json', 'metrics.jsonl')]


def test_every_model_of_the_grid_is_recorded(whole):
  table = records.read(whole[0]).table
  grid = [(0.003, 0), (0.003, 1), (0.01, 0), (0.01, 1)]
  assert list(zip(table['learning_rate'], table['seed'], strict=True)) == grid
  assert table['accuracy'].between(0.3, 1, inclusive='right').all()
  assert table['status'].isin(['solved', 'steps over']).all()
  assert 'learning rate' in whole[1] and len(whole[1].splitlines()) == 5
  about = json.loads((whole[0] / 'config.json').read_text())
  assert about['recipe']['batch'] == 4 and about['versions']['jax'] and about['device']


def test_killed_and_started_again_it_ends_in_the_same_bits(whole, tmp_path):
  folder = whole[0].parent / 'killed'
  for wanted in (1, 4):
    process = start(folder, *SMALL)
    lines = lambda: (
      (folder / 'metrics.jsonl').exists()
      and len((folder / 'metrics.jsonl').read_text().splitlines())
    )
    deadline = time.monotonic() + 120
    while lines() < wanted and process.poll() is None and time.monotonic() < deadline:
      time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (folder / 'results.json').exists()
  process = start(folder, *SMALL)
  assert process.communicate()[0] == whole[1].replace(str(whole[0]), str(folder))
  assert written(folder) == written(whole[0])


def test_another_configuration_is_refused(whole):
  before = written(whole[0])
  other = (o for o in SMALL if not o.startswith('--dim'))
  status, _, err = run('train', *other, '--dim=7', f'--workdir={whole[0]}')
  assert status == 2 and err.count('\n') == 1
  assert 'holds another run: its config/' in err and written(whole[0]) == before


def test_a_diverged_model_spoils_nothing_and_a_profile_is_written(tmp_path):
  process = start(
    tmp_path / 'sick', '--subjects=6', '--relations=2', '--dim=4', '--steps=300', '--norm=none',
    '--learning_rate=1e-5', '--learning_rate=1e30', '--target=1', '--profile',
  )  # fmt: skip
  _, err = process.communicate(timeout=200)
  assert process.returncode == 0 and 'warning' not in err, err
  refuse = lambda name: pytest.fail(f'{name} in metrics.jsonl')
  lines = (tmp_path / 'sick/metrics.jsonl').read_text().splitlines()
  curve = [json.loads(line, parse_constant=refuse) for line in lines]
  assert [r['diverged'] for r in curve] == [1] * len(curve) and curve[0]['loss'] > 0
  assert records.read(tmp_path / 'sick').table['status'].tolist() == ['steps over', 'diverged']
  assert list((tmp_path / 'sick/profile').rglob('*.xplane.pb'))
