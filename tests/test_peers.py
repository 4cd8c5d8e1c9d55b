"""The benchmark's peers train the same model: step by step, they have the same losses."""

import numpy as np
import pytest

from experiments import benchmark
from experiments.harness import peers
from geomem.training.recipe import Recipe

TORCH = pytest.mark.skipif(not peers.TORCH, reason='needs PyTorch: pip install torch==2.13.0')


@pytest.mark.parametrize(
  'name', ['jax', *(pytest.param(name, marks=TORCH) for name in ('torch', 'torch_compile'))]
)
@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # from torch.compile, about torch
def test_a_peer_takes_the_same_steps(name):
  recipe, one = Recipe(steps=12, warmup=4, target=None), benchmark.task(10, 3, 6, seed=4)
  ours, theirs = benchmark.one_model(recipe, one), peers.make(name, recipe, one)
  for _ in range(12):
    loss, their_loss = ours.step(), theirs.step()
    np.testing.assert_allclose(loss, float(their_loss), rtol=2e-5)
  assert theirs.accuracy() == pytest.approx(ours.accuracy(), abs=1e-6)
  assert np.isfinite(float(theirs.step()))  # after the last step the rate stays as it is


@pytest.mark.skipif(not peers.TORCH, reason='needs PyTorch')
@pytest.mark.parametrize('negatives', [None, 32])
def test_in_batches_pytorch_learns_as_much(negatives):
  """From the same parameters, but in another order and with other negatives, it ends at about the same loss."""
  one = benchmark.task(128, 2, 8)
  recipe = Recipe(
    steps=600, warmup=10, batch=32, passes=True, lazy=True, target=None, negatives=negatives
  )
  loops = benchmark.one_model(recipe, one), peers.make('torch', recipe, one)
  losses = [[float(loop.step()) for _ in range(600)] for loop in loops]
  first, last = (
    np.array([np.mean(own[part]) for own in losses]) for part in (slice(5), slice(-50, None))
  )
  np.testing.assert_allclose(first[0], first[1], rtol=0.1)
  assert all(last < 0.3 * first) and 0.3 < last[0] / last[1] < 3
  assert all(loop.accuracy() > 0.9 for loop in loops)
