"""The peers of the benchmark train the same model: step by step, the same losses."""

import importlib.util

import numpy as np
import pytest

from experiments import benchmark_training as training
from experiments import peers
from geomem.training import mlp_memory as mlp
from geomem.training import optimization
from geomem.training.optimization import Recipe

TORCH = pytest.mark.skipif(
  importlib.util.find_spec('torch') is None, reason='needs PyTorch: pip install torch==2.13.0'
)


@pytest.mark.parametrize(
  'name', ['jax', *(pytest.param(name, marks=TORCH) for name in ('torch', 'torch_compile'))]
)
@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # of torch.compile, about torch
def test_a_peer_takes_the_same_steps(name):
  recipe, one = Recipe(steps=12, warmup=4, target=None), training.task(10, 3, 6, seed=4)
  ours, theirs = training._Ours(recipe, one), peers.make(name, recipe, one)
  for _ in range(12):
    ours.step()
    loss = theirs.step()
    np.testing.assert_allclose(
      ours.state.loss, float(loss if name == 'jax' else loss.detach()), rtol=2e-5
    )
  right = optimization.accuracy(one.config, recipe, ours.job, ours.state.params)
  assert theirs.accuracy() == pytest.approx(float(right), abs=1e-6)


def test_a_search_one_model_after_another_finds_the_same(monkeypatch):
  monkeypatch.setattr(peers, 'forget', lambda: None)  # what is compiled may stay: this is no timing
  monkeypatch.setattr(training.jax, 'clear_caches', lambda: None)
  records = list(training.capacity((8,), 2, 1, (0.03,), steps=200))
  assert [r['peer'] for r in records] == ['jax', 'jax, our search']
  record = records[1]
  assert (
    record['ours_probes'] == record['theirs_probes']
    or record['ours_found'] != record['theirs_found']
  )
  np.testing.assert_allclose(
    record['ours_found'], record['theirs_found'], atol=1
  )  # of seeds, noise
  assert all(1 < d < 7 for d in record['ours_found']) and record['ours_probes'] > 1
  assert 0 < record['ratio_range'][0] <= record['ratio'] <= record['ratio_range'][1]


def test_the_mlp_memory_of_the_loop_takes_the_same_steps():
  recipe = mlp.Recipe(4, 5, steps=8, check=8)
  one, peer = mlp.draw(recipe, 9, 3, mlp.ROWS), peers.MlpMemory(recipe, 9, 3)
  np.testing.assert_allclose(peer.step(), mlp.loss(one.params, one), rtol=1e-5)
  for _ in range(7):
    peer.step()
  best, _ = mlp.learn(recipe, one)
  assert peer.accuracy() == pytest.approx(float(best), abs=1e-6) and best > 1 / 9


@pytest.mark.parametrize('name', ['step', 'many', 'mlp_memory', 'products', 'scaling'])
def test_training_is_measured(name):
  arguments = {
    'step': (16, 2, 4, 2, ('jax',)),
    'many': (3, 2, ((8, 2, 4),), ('jax',), 1),
    'mlp_memory': ((4,), 2, 512),
    'products': (16, 2, 4, 2, ((32, 32, 32),)),
    'scaling': ({'subjects': 8, 'relations': 2, 'dim': 4, 'models': 2}, {'dim': (2, 4)}, 2),
  }
  records = list(getattr(training, name)(*arguments[name]))
  assert all(r['ours_seconds'] > 0 for r in records if 'ours_seconds' in r)
  if name == 'scaling':
    one, other, fit = records
    slope = np.log(other['ours_seconds'] / one['ours_seconds']) / np.log(2)
    assert fit['exponent'] == pytest.approx(slope)
  elif name != 'products':
    low, high = records[0]['ratio_range']
    assert low <= records[0]['ratio'] <= high
