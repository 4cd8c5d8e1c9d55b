"""Decompositions that a CPU with several devices cannot hang in: what is compiled, the values, and the gradient."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geomem import linalg

ROOT = Path(__file__).parents[1]
BATCH, SIZE = 3, 5


def matrices(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def functions():
  """Each of them mapped over a batch, with its arguments."""
  a, b = matrices(0, BATCH, SIZE, SIZE), matrices(1, BATCH, SIZE, 2)
  gradient = jax.grad(lambda a, b: jnp.sum(linalg.solve(a, b) ** 2), argnums=(0, 1))
  return {
    'solve': (linalg.solve, (a, b)), 'gradient': (gradient, (a, b)), 'svd': (linalg.svd, (b,)),
    'eigh': (linalg.eigh, (a @ a.mT,)),
  }  # fmt: skip


def batched_kernels(function, arguments, platform='cpu') -> list[str]:
  """Calls of library kernels, in the program that `vmap` makes of the function, with more than one matrix at a time."""
  lowered = jax.jit(jax.vmap(function)).trace(*arguments).lower(lowering_platforms=(platform,))
  calls = [line for line in lowered.as_text().splitlines() if 'custom_call' in line]
  assert calls
  return [line for line in calls if re.search(rf'tensor<{BATCH}x\d+x', line)]


@pytest.mark.parametrize('name', ['solve', 'gradient', 'svd', 'eigh'])
def test_a_cpu_takes_one_matrix_after_another(name):
  assert not batched_kernels(*functions()[name])


def test_an_accelerator_takes_the_batch_at_once():
  assert batched_kernels(*functions()['solve'], platform='tpu')


def test_what_would_hang_is_seen():
  """The planted fault: JAX's own function is lowered to one call for the whole batch."""
  assert batched_kernels(jnp.linalg.solve, functions()['solve'][1])


@pytest.mark.accelerator
def test_values_and_gradient_are_those_of_jax():
  found = functions()
  (_, (a, b)), (svd, (c,)), (eigh, (s,)) = found['solve'], found['svd'], found['eigh']
  np.testing.assert_allclose(jax.vmap(linalg.solve)(a, b), np.linalg.solve(a, b), atol=1e-4)
  u, size, v = jax.vmap(svd)(c)
  np.testing.assert_allclose((u * size[:, None]) @ v, c, atol=1e-5)
  value, vector = jax.vmap(eigh)(s)
  np.testing.assert_allclose((vector * value[:, None]) @ vector.mT, s, atol=1e-4)
  plain = jax.grad(lambda a, b: jnp.sum(jnp.linalg.solve(a, b) ** 2), argnums=(0, 1))
  for ours, theirs in zip(jax.vmap(found['gradient'][0])(a, b), jax.vmap(plain)(a, b), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_nothing_goes_around_them():
  """No module asks JAX for a decomposition itself; a norm is none."""
  for folder in ('geomem', 'constructions', 'experiments'):
    for path in (ROOT / folder).rglob('*.py'):
      used = re.findall(r'\bjnp\.linalg\.(\w+)', path.read_text(encoding='utf-8'))
      assert path.name == 'linalg.py' or {*used} <= {'norm'}, path
