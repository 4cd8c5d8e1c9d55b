"""Is an embedding the superposition of its attributes' vectors? Linear maps, judged on held-out subjects.

Everything is a pure function of arrays, to be mapped over models. Which subjects a map is fitted to
and which it is judged on come in as indices, and never overlap.

Shapes: N subjects, R relations, D width, A attributes; T subjects fitted to, S subjects held out.
"""

import chex
import jax
import jax.numpy as jnp
from chex import Array

Maps = tuple[Array, Array]  # M_RxDxE, b_E
RIDGES = (1e-6, 1e-3, 1e-2, 1e-1, 1.0)  # fractions of the mean variance


def hold_out(key: Array, subjects: int, fraction: float = 0.25) -> tuple[jax.Array, jax.Array]:
  """Subjects to fit to, and subjects to judge on."""
  order_N = jax.random.permutation(key, subjects)
  held = max(1, round(fraction * subjects))
  return order_N[held:], order_N[:held]


def affine(x_TxP: Array, y_TxQ: Array, ridge: Array | float = 1e-6) -> tuple[jax.Array, jax.Array]:
  """Least squares y ≈ x W + b, with a ridge of that fraction of the mean variance: (W, b)."""
  x_P, y_Q = jnp.mean(x_TxP, axis=0), jnp.mean(y_TxQ, axis=0)
  x_TxP, y_TxQ = x_TxP - x_P[None], y_TxQ - y_Q[None]
  gram_PxP = x_TxP.T @ x_TxP
  size = jnp.trace(gram_PxP) / len(gram_PxP)
  w_PxQ = jnp.linalg.solve(
    gram_PxP + (ridge * size + 1e-30) * jnp.eye(len(gram_PxP)), x_TxP.T @ y_TxQ
  )
  return w_PxQ, y_Q - x_P @ w_PxQ


def r2(y_SxQ: Array, guess_SxQ: Array, mean_Q: Array) -> jax.Array:
  """R²: the fraction of the variance around `mean_Q` that the guess explains."""
  chex.assert_equal_shape([y_SxQ, guess_SxQ])
  chex.assert_shape(mean_Q, y_SxQ.shape[1:])
  left, all_ = jnp.sum((y_SxQ - guess_SxQ) ** 2), jnp.sum((y_SxQ - mean_Q[None]) ** 2)
  return 1 - left / all_


def _check(embedding_NxE, unembedding_AxD, answers_RxN):
  """An index past the end would be the last one, without a word."""
  chex.assert_rank([embedding_NxE, unembedding_AxD], 2)
  chex.assert_shape(answers_RxN, (None, len(embedding_NxE)))


def attribute_vectors(unembedding_AxD: Array, answers_RxN: Array) -> jax.Array:
  """Every subject's attribute vectors side by side, N x R·D."""
  u_NxRxD = jnp.asarray(unembedding_AxD)[answers_RxN.T]
  return u_NxRxD.reshape(len(u_NxRxD), -1)


def fit_maps(
  embedding_NxE: Array, unembedding_AxD: Array, answers_RxN: Array, ridge: Array | float = 1e-6
) -> Maps:
  """e_s ≈ Σ_r M_r u_{g_r(s)} + b, one linear map per relation: (M_RxDxE, b_E)."""
  _check(embedding_NxE, unembedding_AxD, answers_RxN)
  w_PxE, b_E = affine(attribute_vectors(unembedding_AxD, answers_RxN), embedding_NxE, ridge)
  return w_PxE.reshape(len(answers_RxN), -1, w_PxE.shape[1]), b_E


def superpose(maps: Maps, unembedding_AxD: Array, answers_RxN: Array) -> jax.Array:
  """Embeddings for any facts, Σ_r M_r u_{g_r(s)} + b."""
  m_RxDxE, b_E = maps
  chex.assert_shape(m_RxDxE, (len(answers_RxN), unembedding_AxD.shape[1], len(b_E)))
  return attribute_vectors(unembedding_AxD, answers_RxN) @ m_RxDxE.reshape(-1, len(b_E)) + b_E[None]


def best_ridge(embedding_NxE: Array, unembedding_AxD: Array, answers_RxN: Array) -> jax.Array:
  """Of `RIDGES` the one whose maps explain a quarter of the subjects best, fitted to the others.

  Maps with nearly as many coefficients as there are subjects fit what is not there.
  """
  last = len(embedding_NxE) - max(1, len(embedding_NxE) // 4)

  def judged(ridge):
    fitted = fit_maps(embedding_NxE[:last], unembedding_AxD, answers_RxN[:, :last], ridge)
    guess_SxE = superpose(fitted, unembedding_AxD, answers_RxN[:, last:])
    return r2(embedding_NxE[last:], guess_SxE, jnp.mean(embedding_NxE[:last], axis=0))

  ridges = jnp.array(RIDGES)
  return ridges[jnp.argmax(jax.lax.map(judged, ridges))]


def superposition_r2(
  embedding_NxE: Array, unembedding_AxD: Array, answers_RxN: Array, fit_T: Array, held_S: Array
) -> jax.Array:
  """R² on held-out subjects of the best superposition; how far to trust its maps the others say."""
  _check(embedding_NxE, unembedding_AxD, answers_RxN)
  known = embedding_NxE[fit_T], unembedding_AxD, answers_RxN[:, fit_T]
  guess_SxE = superpose(
    fit_maps(*known, best_ridge(*known)), unembedding_AxD, answers_RxN[:, held_S]
  )
  return r2(embedding_NxE[held_S], guess_SxE, jnp.mean(known[0], axis=0))


def probe(
  embedding_NxD: Array, unembedding_AxD: Array, answers_RxN: Array, fit_T: Array, held_S: Array
) -> jax.Array:
  """The attributes RxS, of all A, to which a linear map per relation, e_s to u_{g_r(s)}, lands nearest."""
  _check(embedding_NxD, unembedding_AxD, answers_RxN)
  u_AxD = jnp.asarray(unembedding_AxD)
  size_A = jnp.sum(u_AxD**2, axis=1)

  def one(answers_N):
    w_DxD, b_D = affine(embedding_NxD[fit_T], u_AxD[answers_N[fit_T]])
    guess_SxD = embedding_NxD[held_S] @ w_DxD + b_D[None]
    distance_SxA = size_A[None] - 2 * guess_SxD @ u_AxD.T
    return jnp.argmin(distance_SxA, axis=1)

  return jax.vmap(one)(jnp.asarray(answers_RxN))


def probe_accuracy(
  embedding_NxD: Array, unembedding_AxD: Array, answers_RxN: Array, fit_T: Array, held_S: Array
) -> jax.Array:
  """How often `probe` is right."""
  probed_RxS = probe(embedding_NxD, unembedding_AxD, answers_RxN, fit_T, held_S)
  return jnp.mean(probed_RxS == jnp.asarray(answers_RxN)[:, held_S], dtype=jnp.float32)
