"""A model sharded over many devices is the same model: the head, the training, and what no device may hold.

All of this needs four devices, which the first test provides by running this file in a process of its own; sweeps of
many models run there too.
"""

import functools
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from geomem import head
from geomem.config import BlockConfig, Config
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.mesh import AXES
from geomem.training import optimization, sharded, sweeps
from geomem.training.recipe import Recipe

FOUR = len(jax.devices()) == 4
on_four = pytest.mark.skipif(not FOUR, reason='done by test_on_four_devices')


def mesh(shape):
  return Mesh(np.array(jax.devices()[: math.prod(shape)]).reshape(shape), AXES)


@pytest.mark.skipif(FOUR, reason='here they are')
def test_on_four_devices():
  flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=4'
  path = Path(__file__)
  command = [sys.executable, '-m', 'pytest', '-n', '0', '-p', 'no:cacheprovider', str(path)]
  environment = {**os.environ, 'XLA_FLAGS': flags}
  for name in [name for name in environment if name.startswith('PYTEST_')]:
    del environment[name]
  four = subprocess.run(
    command,
    check=False,
    env=environment,
    cwd=path.parents[1],
    timeout=900,
    text=True,
    capture_output=True,
  )
  assert four.returncode == 0, four.stdout + four.stderr


def inputs(rows, answers, dim, dtype=jnp.float32, scale=1.0):
  rng = np.random.default_rng(0)
  x, u = (jnp.asarray(scale * rng.standard_normal((n, dim)), dtype) for n in (rows, answers))
  in_use = np.arange(answers) % 5 != 3
  targets = rng.choice(np.flatnonzero(in_use), rows).astype(np.int32)
  weights = rng.integers(0, 3, rows).astype(np.float32)
  return x, u, targets, weights, in_use


@functools.partial(jax.jit, static_argnames=('block', 'mesh'))
def ask(x, u, targets, weights, in_use, **options):
  """The loss and the count of right rows, the same with the slopes of the loss, and which rows are right."""
  given = x, u, targets, weights, in_use
  loss = functools.partial(head.cross_entropy, **options)
  slopes = jax.value_and_grad(loss, (0, 1), has_aux=True)(*given)
  return loss(*given), slopes, head.right(x, u, targets, in_use, **options)


@on_four
@pytest.mark.parametrize(
  ('shape', 'block', 'options'),
  [
    ((1, 4), 16, {}),
    ((4, 1), 256, {'scale': 3e4}),
    ((2, 2), 32, {'dtype': jnp.bfloat16}),
  ],
)
def test_the_head_is_that_of_one_device(shape, block, options):
  given = inputs(104, 40, 5, **options)
  _, ((loss, right), want), one = ask(*given, block=block)
  plain, slopes, spread_one = ask(*given, block=block, mesh=mesh(shape))
  (spread_loss, spread_right), got = slopes
  np.testing.assert_allclose(spread_loss, loss, rtol=2e-6)
  assert spread_right == right
  for a, b in zip(got, want, strict=True):
    assert a.dtype == b.dtype
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    rounding = 2**-8 if 'dtype' in options else 1e-5
    np.testing.assert_allclose(a, b, rtol=rounding, atol=1e-5 * np.abs(b).max())
  np.testing.assert_array_equal(one, spread_one)
  assert one.dtype == bool and np.sum(given[3] * np.asarray(one)) == right
  np.testing.assert_allclose(plain, (loss, right), rtol=2e-6)


@on_four
def test_a_tie_with_another_slice_is_wrong():
  u = np.zeros((8, 2), np.float32)
  u[[0, 7]] = 1
  x, targets, weights = np.ones((8, 2), np.float32), np.zeros(8, np.int32), np.ones(8, np.float32)
  right = jax.jit(
    lambda used: head.cross_entropy(x, u, targets, weights, used, mesh=mesh((1, 4)))[1]
  )
  assert right(np.ones(8, bool)) == 0 and right(np.arange(8) < 7) == 8
  assert right(np.arange(8) < 1) == 8  # most slices have no answer in use


def task(n, r=2, answers=None, depth=1, norm='rms', length=2, rate=1e-2, **changes):
  blocks = (BlockConfig(1, 6, 6, (12,)),) * depth
  c = Config(n, r, answers or n, length, 6, blocks, norm=norm).replace(**changes)
  return sweeps.Task(c, Facts.bijections(n, r), rate)


def alone(recipe, t):
  sweep, states = sweeps.set_up(recipe, [t], devices=jax.devices()[:1])
  return sweep.state_of(sweeps.advance(sweep, states, recipe.steps), 0)


def spread(recipe, t, shape):
  sweep, state = sharded.set_up(recipe, t, mesh(shape))
  for part in (recipe.check, recipe.steps - recipe.check):
    state = sharded.advance(sweep, state, part)
  return sweep.state_of(state)


def close(got, want, atol=1e-5):
  shown = lambda s: (s.params, s.step, s.loss, s.accuracy, s.status)
  for a, b in zip(jax.tree.leaves(shown(got)), jax.tree.leaves(shown(want)), strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_allclose(a, b, atol=atol, rtol=1e-4)


SHORT = functools.partial(Recipe, steps=6, warmup=2, check=3, target=None, block=16)


@on_four
@pytest.mark.parametrize(
  ('recipe', 'options', 'shapes'),
  [
    ({'batch': 8, 'frozen': ('unembed',)}, {'n': 16, 'norm': 'layer'}, [(1, 4)]),
    ({}, {'n': 13, 'answers': 13, 'tied': True}, [(1, 4), (2, 2)]),
    ({'batch': 8, 'hops': 2}, {'n': 13, 'depth': 2, 'length': 3}, [(2, 2)]),
    ({'loss': 'every'}, {'n': 16, 'answers': 18, 'depth': 2}, [(4, 1)]),
    ({'batch': 8, 'label_smoothing': 0.5}, {'n': 16, 'answer_dim': 4}, [(2, 2)]),
    ({}, {'n': 16, 'dtype': 'bfloat16'}, [(2, 2)]),
  ],
)
def test_training_is_that_of_one_device(recipe, options, shapes):
  recipe, t = SHORT(**recipe), task(**options)
  want = alone(recipe, t)
  for shape in shapes:
    close(spread(recipe, t, shape), want, atol=0.02 if 'dtype' in options else 1e-5)


@on_four
@pytest.mark.parametrize(
  ('rate', 'status'), [(1e-2, optimization.SOLVED), (1e30, optimization.DIVERGED)]
)
def test_it_ends_when_one_device_does(rate, status):
  recipe = Recipe(steps=60, warmup=2, check=10, target=0.5)
  t = task(8, norm='none' if rate > 1 else 'rms', rate=rate)
  got, want = spread(recipe, t, (2, 2)), alone(recipe, t)
  assert got.status == want.status == status and got.step == want.step < 60


@on_four
@pytest.mark.parametrize(('shape', 'batch'), [((2, 2), None), ((1, 4), 64)])
def test_no_device_holds_a_whole_vocabulary(shape, batch):
  n, dim = 2**16, 16
  t = task(n, dim=dim, blocks=(BlockConfig(1, 4, 4, (8,)),))
  sweep, state = sharded.set_up(SHORT(batch=batch), t, mesh(shape))
  program = sharded._train_chunk.lower(
    sweep.config, sweep.recipe, sweep.mesh, np.int32(1), sweep.job, state
  ).compile()
  sizes = re.findall(r'\b(?:f32|bf16|s32|u32|pred)\[([\d,]+)\]', program.as_text())
  largest = max(math.prod(map(int, size.split(','))) for size in sizes)
  assert n * dim // shape[1] <= largest < 2 * n * dim / shape[1]


@pytest.mark.parametrize(
  ('recipe', 'n', 'axes', 'told'),
  [
    ({'batch': 3}, 16, AXES, 'need a multiple'),
    ({'loss': 'every'}, 13, AXES, 'need a multiple'),
    ({}, 16, ('x', 'y'), 'axes of the mesh'),
  ],
)
def test_what_cannot_be_shared_out_is_refused(recipe, n, axes, told):
  t = task(n, answers=n + 2 if 'loss' in recipe else n)
  with pytest.raises(InputError, match=told):
    sharded.set_up(SHORT(**recipe), t, Mesh(np.array(jax.devices()).reshape(1, -1), axes))


@on_four
def test_a_sweep_on_four_devices_is_that_of_one():
  tasks = [task(n, r) for n, r in zip((9, 12, 7) * 4, (2, 3) * 6, strict=True)]
  recipe = Recipe(steps=8, warmup=2, target=None, check=4)
  ends = []
  for devices in (jax.devices(), jax.devices()[:1]):
    sweep, states = sweeps.set_up(recipe, tasks, devices=devices)
    assert sweep.mesh.size == len(devices)
    states = sweeps.advance(sweep, states, 8)
    ends.append([sweep.state_of(states, i).params for i in range(len(tasks))])
  for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-5)
