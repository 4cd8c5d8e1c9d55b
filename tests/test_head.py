"""The fused head against the plain formula, in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from geomem import head


def plain(x, u, targets, weights, in_use):
  """The summed cross-entropy by optax in float32, for autodiff: NumPy has no gradients."""
  logits = jnp.where(in_use[None], x.astype(jnp.float32) @ u.astype(jnp.float32).T, -jnp.inf)
  return jnp.sum(weights * optax.softmax_cross_entropy_with_integer_labels(logits, targets))


plain_slopes = jax.jit(jax.value_and_grad(plain, (0, 1)))


def inputs(rows, answers, dim, seed=0, scale=1.0):
  rng = np.random.default_rng(seed)
  x, u = (scale * rng.standard_normal((n, dim)).astype(np.float32) for n in (rows, answers))
  targets = rng.integers(0, answers, rows).astype(np.int32)
  weights = rng.uniform(0, 2, rows).astype(np.float32)
  return x, u, targets, weights


@pytest.mark.parametrize(
  ('rows', 'answers', 'dim', 'block'),
  [(1, 2, 1, 256), (64, 7, 3, 64), (100, 33, 5, 32), (257, 20, 8, 256), (513, 129, 16, 128)],
)
def test_equals_the_plain_formula(rows, answers, dim, block):
  x, u, targets, weights = inputs(rows, answers, dim)
  everything = jnp.ones(answers, bool)
  ours = jax.jit(lambda x, u: head.cross_entropy(x, u, targets, weights, block=block))
  (loss, _), slopes = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(x, u)
  expected, expected_slopes = plain_slopes(x, u, targets, weights, everything)
  np.testing.assert_allclose(loss, expected, rtol=2e-6)
  for got, want in zip(slopes, expected_slopes, strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
  undifferentiated, _ = ours(x, u)
  np.testing.assert_allclose(undifferentiated, loss, rtol=1e-6)


@pytest.mark.parametrize('smoothing', [0.1, 0.9])
def test_smoothed_labels_are_mixed_with_the_uniform_distribution_over_the_answers_in_use(smoothing):
  x, u, targets, weights = inputs(100, 33, 5)
  in_use = jnp.arange(33) < 30
  targets = targets % 30

  def plain_smoothed(x, u):
    labels = optax.smooth_labels(jax.nn.one_hot(targets, 30), smoothing)
    return jnp.sum(weights * optax.softmax_cross_entropy(x @ u[:30].T, labels))

  ours = lambda x, u: head.cross_entropy(
    x, u, targets, weights, in_use, block=32, smoothing=smoothing
  )[0]
  (loss, slopes), (expected, expected_slopes) = (
    jax.jit(jax.value_and_grad(function, (0, 1)))(x, u) for function in (ours, plain_smoothed)
  )
  np.testing.assert_allclose(loss, expected, rtol=2e-6)
  for got, want in zip(slopes, expected_slopes, strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_the_cotangent_scales_the_gradient():
  x, u, targets, weights = inputs(50, 9, 4)
  loss = lambda x, u: head.cross_entropy(x, u, targets, weights, block=16)[0]
  once = jax.jit(jax.grad(loss, (0, 1)))(x, u)
  thrice = jax.jit(jax.grad(lambda x, u: 3 * loss(x, u) + 5, (0, 1)))(x, u)
  for a, b in zip(once, thrice, strict=True):
    np.testing.assert_allclose(3 * a, b, rtol=1e-6)


@pytest.mark.parametrize('scale', [30.0, 3e4])
def test_large_logits(scale):
  x, u, targets, weights = inputs(70, 31, 6, scale=scale)
  loss = lambda x, u: head.cross_entropy(x, u, targets, weights, block=32)[0]
  got, slopes = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, u)
  want, expected = plain_slopes(x, u, targets, weights, jnp.ones(31, bool))
  np.testing.assert_allclose(got, want, rtol=1e-5)
  for a, b in zip(slopes, expected, strict=True):
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_right_is_the_one_largest_and_ties_are_wrong():
  u = np.eye(3, dtype=np.float32)
  x = np.array([[2, 1, 0], [1, 2, 0], [1, 1, 0], [0, 0, 0], [np.nan, 0, 0]], np.float32)
  targets = np.zeros(5, np.int32)
  for row, expected in enumerate([1, 0, 0, 0, 0]):
    assert head.cross_entropy(x[row : row + 1], u, targets[:1])[1] == expected
  weights = np.array([0.5, 1, 1, 1, 0], np.float32)
  assert head.cross_entropy(x, u, targets, weights)[1] == 0.5


def test_answers_not_in_use_do_not_exist():
  x, u, targets, weights = inputs(40, 12, 5)
  targets = targets % 8
  in_use = np.arange(12) < 8
  ask = lambda *used: lambda x, u: head.cross_entropy(x, u, targets, weights, *used)[0]
  full = jax.jit(jax.value_and_grad(ask(in_use), (0, 1)))(x, u)
  cut = jax.jit(jax.value_and_grad(ask(), (0, 1)))(x, u[:8])
  np.testing.assert_allclose(full[0], cut[0], rtol=1e-6)
  np.testing.assert_allclose(full[1][0], cut[1][0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(full[1][1][:8], cut[1][1], rtol=1e-5, atol=1e-6)
  assert not np.any(full[1][1][8:])


def test_bfloat16_inputs_are_summed_in_float32():
  x, u, targets, weights = (jnp.asarray(a) for a in inputs(90, 21, 7))
  x, u = x.astype(jnp.bfloat16), u.astype(jnp.bfloat16)
  loss = lambda x, u: head.cross_entropy(x, u, targets, weights, block=32)[0]
  got, slopes = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, u)
  wide = x.astype(jnp.float32), u.astype(jnp.float32)
  want, expected = plain_slopes(*wide, targets, weights, jnp.ones(21, bool))
  np.testing.assert_allclose(got, want, rtol=2e-6)
  for a, b in zip(slopes, expected, strict=True):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-8, atol=1e-5)


def test_memory_grows_with_the_block_and_not_with_rows_times_answers():
  rows, answers, dim = 4096, 8192, 8
  shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((rows, dim), (answers, dim))]
  targets = jax.ShapeDtypeStruct((rows,), jnp.int32)

  def compiled(block):
    slope = jax.grad(lambda x, u, t: head.cross_entropy(x, u, t, block=block)[0], (0, 1))
    return jax.jit(slope).lower(*shapes, targets).compile().memory_analysis().temp_size_in_bytes

  assert (
    compiled(32) < compiled(512) < rows * answers * 4 / 3
  )  # JAX 0.8 takes a hundredth more than a quarter


def test_rows_that_fill_up_a_block_do_not_count():
  """Padding rows have target 0, which may be an answer that is not in use."""
  x, u = jnp.ones((3, 2)), jnp.ones((4, 2))
  in_use = jnp.array([False, True, True, True])
  blocks = [
    head.cross_entropy(x, u, jnp.array([1, 2, 3]), None, in_use, block)[0] for block in (2, 3)
  ]
  np.testing.assert_allclose(blocks, 3 * np.log(3), rtol=1e-6)
