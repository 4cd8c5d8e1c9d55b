"""Rounding keeps what few bits can represent, zeros above all, and finds how many bits are needed."""

import jax.numpy as jnp
import numpy as np
import pytest

from geomem.checks import rounding


@pytest.mark.parametrize('bits', [2, 3, 8])
def test_rounded_weights_have_few_values_near_by(bits):
  w = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)
  w[3] = 0
  got = np.asarray(rounding.rounded({'w': jnp.asarray(w)}, float(bits))['w'])
  step = np.abs(w).max() / (2 ** (bits - 1) - 1)
  assert len(np.unique(got)) <= 2**bits - 1 and np.all(got[3] == 0)
  assert np.abs(got - w).max() <= 0.51 * step
  np.testing.assert_allclose(
    rounding.rounded({'w': jnp.asarray(got)}, float(bits))['w'], got, atol=1e-6
  )


@pytest.mark.parametrize('needed', [2, 5, 12])
def test_the_fewest_bits_are_found(needed):
  step = 1 / (2.0 ** (needed - 1) - 1)
  w = jnp.array([1.0, step * (1 if needed > 2 else 0)])
  near = lambda params: jnp.where(jnp.max(jnp.abs(params['w'] - w)) < 0.5 * step, 1.0, 0.0)
  assert rounding.bits_needed(near, {'w': w}, 0.99) == needed
  assert rounding.bits_needed(lambda _: jnp.float32(0.5), {'w': w}, 0.99) == 32
