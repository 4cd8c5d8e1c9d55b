"""Is an embedding the superposition of its attributes' vectors? Linear maps, evaluated on held-out subjects.

Everything is a pure function of arrays and can be mapped over models. The subjects that a map is fitted to
and those that it is evaluated on are passed as indices and never overlap.

Shapes: N subjects, R relations, D width, A attributes; T subjects to fit to, S held-out subjects.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from geomem import linalg

Maps = tuple[Array, Array]  # M_RxDxE, b_E
RIDGES = (1e-6, 1e-3, 1e-2, 1e-1, 1.0)  # fractions of the mean variance


def hold_out(key: Array, subjects: int, fraction: float = 0.25) -> tuple[jax.Array, jax.Array]:
  """Random indices of the subjects to fit to, and of the held-out subjects."""
  order_N = jax.random.permutation(key, subjects)
  held = max(1, round(fraction * subjects))
  return order_N[held:], order_N[:held]


@jax.default_matmul_precision('highest')
def affine(x_TxP: Array, y_TxQ: Array, ridge: Array | float = 1e-6) -> tuple[jax.Array, jax.Array]:
  """Ridge regression y ≈ x W + b: (W, b). `ridge` is a fraction of the mean variance of x."""
  x_P, y_Q = jnp.mean(x_TxP, axis=0), jnp.mean(y_TxQ, axis=0)
  x_TxP, y_TxQ = x_TxP - x_P[None], y_TxQ - y_Q[None]
  gram_PxP = x_TxP.T @ x_TxP
  size = jnp.trace(gram_PxP) / len(gram_PxP)
  w_PxQ = linalg.solve(gram_PxP + (ridge * size + 1e-30) * jnp.eye(len(gram_PxP)), x_TxP.T @ y_TxQ)
  return w_PxQ, y_Q - x_P @ w_PxQ


def r2(y_SxQ: Array, guess_SxQ: Array, mean_Q: Array) -> jax.Array:
  """R²: the fraction of the variance around `mean_Q` that the guess explains."""
  chex.assert_equal_shape([y_SxQ, guess_SxQ])
  chex.assert_shape(mean_Q, y_SxQ.shape[1:])
  left, all_ = jnp.sum((y_SxQ - guess_SxQ) ** 2), jnp.sum((y_SxQ - mean_Q[None]) ** 2)
  return 1 - left / all_


@jax.default_matmul_precision('highest')
def linear_r2(x_NxP: Array, y_NxQ: Array, fit_T: Array, held_S: Array) -> jax.Array:
  """R² on held-out rows of the linear map from x to y fitted with the best ridge."""
  x_NxP, y_NxQ = jnp.asarray(x_NxP), jnp.asarray(y_NxQ)
  w_PxQ, b_Q = affine(x_NxP[fit_T], y_NxQ[fit_T], _best_ridge(x_NxP[fit_T], y_NxQ[fit_T]))
  return r2(y_NxQ[held_S], x_NxP[held_S] @ w_PxQ + b_Q[None], jnp.mean(y_NxQ[fit_T], axis=0))


def _check(embedding_NxE, unembedding_AxD, answers_RxN):
  """Check the shapes, since JAX silently clamps an index past the end to the last row."""
  chex.assert_rank([embedding_NxE, unembedding_AxD], 2)
  chex.assert_shape(answers_RxN, (None, len(embedding_NxE)))


def attribute_vectors(unembedding_AxD: Array, answers_RxN: Array) -> jax.Array:
  """Every subject's attribute vectors, concatenated, N x R·D."""
  u_NxRxD = jnp.asarray(unembedding_AxD)[answers_RxN.T]
  return u_NxRxD.reshape(len(u_NxRxD), -1)


def fit_maps(
  embedding_NxE: Array, unembedding_AxD: Array, answers_RxN: Array, ridge: Array | float = 1e-6
) -> Maps:
  """Fit e_s ≈ Σ_r M_r u_{g_r(s)} + b, one linear map per relation: (M_RxDxE, b_E)."""
  _check(embedding_NxE, unembedding_AxD, answers_RxN)
  w_PxE, b_E = affine(attribute_vectors(unembedding_AxD, answers_RxN), embedding_NxE, ridge)
  return w_PxE.reshape(len(answers_RxN), -1, w_PxE.shape[1]), b_E


@jax.default_matmul_precision('highest')
def superpose(maps: Maps, unembedding_AxD: Array, answers_RxN: Array) -> jax.Array:
  """Embeddings for any facts, Σ_r M_r u_{g_r(s)} + b."""
  m_RxDxE, b_E = maps
  chex.assert_shape(m_RxDxE, (len(answers_RxN), unembedding_AxD.shape[1], len(b_E)))
  return attribute_vectors(unembedding_AxD, answers_RxN) @ m_RxDxE.reshape(-1, len(b_E)) + b_E[None]


def best_ridge(embedding_NxE: Array, unembedding_AxD: Array, answers_RxN: Array) -> jax.Array:
  """The value in `RIDGES` whose maps, fitted to three quarters of the subjects, best explain the other quarter."""
  _check(embedding_NxE, unembedding_AxD, answers_RxN)
  return _best_ridge(attribute_vectors(unembedding_AxD, answers_RxN), jnp.asarray(embedding_NxE))


@jax.default_matmul_precision('highest')
def _best_ridge(x_TxP: Array, y_TxQ: Array) -> jax.Array:
  """Choose the ridge on the last quarter of the rows: maps with nearly as many coefficients as rows overfit."""
  last = len(x_TxP) - max(1, len(x_TxP) // 4)

  def judged(ridge):
    w_PxQ, b_Q = affine(x_TxP[:last], y_TxQ[:last], ridge)
    return r2(y_TxQ[last:], x_TxP[last:] @ w_PxQ + b_Q[None], jnp.mean(y_TxQ[:last], axis=0))

  ridges = jnp.array(RIDGES)
  return ridges[jnp.argmax(jax.lax.map(judged, ridges))]


def fit_best_maps(embedding_NxE: Array, unembedding_AxD: Array, answers_RxN: Array) -> Maps:
  """As `fit_maps`, with the best ridge."""
  known = embedding_NxE, unembedding_AxD, answers_RxN
  return fit_maps(*known, best_ridge(*known))


def superposition_r2(
  embedding_NxE: Array, unembedding_AxD: Array, answers_RxN: Array, fit_T: Array, held_S: Array
) -> jax.Array:
  """R² on held-out subjects of the best superposition; the ridge is chosen on the other subjects."""
  _check(embedding_NxE, unembedding_AxD, answers_RxN)
  known = embedding_NxE[fit_T], unembedding_AxD, answers_RxN[:, fit_T]
  guess_SxE = superpose(fit_best_maps(*known), unembedding_AxD, answers_RxN[:, held_S])
  return r2(embedding_NxE[held_S], guess_SxE, jnp.mean(known[0], axis=0))


def shared_map_r2(
  embedding_NxE: Array, unembedding_AxD: Array, answers_RxN: Array, fit_T: Array, held_S: Array
) -> jax.Array:
  """Control for `superposition_r2` with one map for all relations, e_s ≈ M Σ_r u_{g_r(s)} + b."""
  _check(embedding_NxE, unembedding_AxD, answers_RxN)
  sum_NxD = jnp.sum(jnp.asarray(unembedding_AxD)[answers_RxN], axis=0)
  return linear_r2(sum_NxD, embedding_NxE, fit_T, held_S)


@jax.default_matmul_precision('highest')
def shared_probe_accuracy(
  embedding_NxD: Array, unembedding_AxD: Array, answers_RxN: Array, fit_T: Array, held_S: Array
) -> jax.Array:
  """Control for `probe_accuracy` with one linear map for all relations: right about at most one of them."""
  _check(embedding_NxD, unembedding_AxD, answers_RxN)
  u_AxD = jnp.asarray(unembedding_AxD)
  mean_NxD = jnp.mean(u_AxD[answers_RxN], axis=0)  # the best fit to all pairs (s, r)
  w_DxD, b_D = affine(embedding_NxD[fit_T], mean_NxD[fit_T])
  nearest_S = _nearest(embedding_NxD[held_S] @ w_DxD + b_D[None], u_AxD)
  return jnp.mean(nearest_S[None] == jnp.asarray(answers_RxN)[:, held_S], dtype=jnp.float32)


@jax.default_matmul_precision('highest')
def from_other_attributes(
  unembedding_AxD: Array, answers_RxN: Array, fit_T: Array, held_S: Array
) -> jax.Array:
  """Every attribute's vector predicted from the other attributes of its subject, RxSxD, without using embeddings.

  A trained unembedding has seen which attributes share a subject, so for subjects that it was trained on this may
  predict as much as their embeddings do. For subjects that it never saw it can predict nothing.
  """
  u_AxD = jnp.asarray(unembedding_AxD)
  vectors_RxNxD = u_AxD[answers_RxN]

  def one(r):
    others_RxNxD = jnp.where((jnp.arange(len(answers_RxN)) == r)[:, None, None], 0.0, vectors_RxNxD)
    x_NxP = jnp.swapaxes(others_RxNxD, 0, 1).reshape(answers_RxN.shape[1], -1)
    w_PxD, b_D = affine(x_NxP[fit_T], vectors_RxNxD[r, fit_T], 1e-2)
    return x_NxP[held_S] @ w_PxD + b_D[None]

  return jax.lax.map(one, jnp.arange(len(answers_RxN)))


@jax.default_matmul_precision('highest')
def other_attributes_scores(
  embedding_NxE: Array, unembedding_AxD: Array, answers_RxN: Array, fit_T: Array, held_S: Array
) -> tuple[jax.Array, jax.Array]:
  """Controls for `superposition_r2` and `probe_accuracy` that predict each attribute from the subject's others."""
  _check(embedding_NxE, unembedding_AxD, answers_RxN)
  guess_RxSxD = from_other_attributes(unembedding_AxD, answers_RxN, fit_T, held_S)
  known = embedding_NxE[fit_T], unembedding_AxD, answers_RxN[:, fit_T]
  m_RxDxE, b_E = fit_best_maps(*known)
  guess_SxE = jnp.einsum('rsd,rde->se', guess_RxSxD, m_RxDxE) + b_E[None]
  score = r2(embedding_NxE[held_S], guess_SxE, jnp.mean(known[0], axis=0))
  nearest_RxS = jax.lax.map(
    lambda guess: _nearest(guess, jnp.asarray(unembedding_AxD)), guess_RxSxD
  )
  right = jnp.mean(nearest_RxS == jnp.asarray(answers_RxN)[:, held_S], dtype=jnp.float32)
  return score, right


@jax.default_matmul_precision('highest')
def calibrate(
  maps: Maps, embedding_NxE: Array, unembedding_AxD: Array, answers_RxN: Array,
  ridge: Array | float = 1e-6, folds: int = 4,
) -> Maps:  # fmt: skip
  """The maps, each rescaled by cross-validation, because a ridge shrinks them.

  Every fold's embeddings are regressed on their components M_r u, with M_r fitted to the other folds; the
  coefficient of a relation, one number for all folds, multiplies its map.
  """
  _check(embedding_NxE, unembedding_AxD, answers_RxN)
  relations, subjects = answers_RxN.shape
  embedding_NxE, answers_RxN = jnp.asarray(embedding_NxE), jnp.asarray(answers_RxN)
  # Folds of equal size, so that all share one compiled program.
  fold_N = np.arange(subjects - subjects % folds) % folds

  def judge(held_S, fit_T):
    m_RxDxE, _ = fit_maps(embedding_NxE[fit_T], unembedding_AxD, answers_RxN[:, fit_T], ridge)
    u_RxSxD = jnp.asarray(unembedding_AxD)[answers_RxN[:, held_S]]
    part_RxSxE = jnp.einsum('rsd,rde->rse', u_RxSxD, m_RxDxE)
    part_RxSxE = part_RxSxE - jnp.mean(part_RxSxE, axis=1, keepdims=True)
    e_SxE = embedding_NxE[held_S] - jnp.mean(embedding_NxE[held_S], axis=0, keepdims=True)
    gram_RxR = jnp.einsum('rse,qse->rq', part_RxSxE, part_RxSxE)
    return gram_RxR, jnp.einsum('rse,se->r', part_RxSxE, e_SxE)

  held = np.stack([np.flatnonzero(fold_N == fold) for fold in range(folds)])
  fitted = np.stack([np.flatnonzero(fold_N != fold) for fold in range(folds)])
  parts = jax.lax.map(lambda fold: judge(*fold), (jnp.asarray(held), jnp.asarray(fitted)))
  gram, moment = (jnp.sum(part, axis=0) for part in parts)
  gram = gram + 1e-12 * jnp.trace(gram) * jnp.eye(relations)
  slope_R = linalg.solve(gram, moment[:, None])[:, 0]
  m_RxDxE, b_E = maps
  u_RxD = jnp.mean(jnp.asarray(unembedding_AxD)[answers_RxN], axis=1)
  longer_RxDxE = slope_R[:, None, None] * m_RxDxE
  return longer_RxDxE, b_E + jnp.einsum('rd,rde->e', u_RxD, m_RxDxE - longer_RxDxE)


@jax.default_matmul_precision('highest')
def probe(
  embedding_NxD: Array, unembedding_AxD: Array, answers_RxN: Array, fit_T: Array, held_S: Array
) -> jax.Array:
  """A linear probe per relation, e_s to u_{g_r(s)}: for its outputs, the nearest of all A attributes, RxS."""
  _check(embedding_NxD, unembedding_AxD, answers_RxN)
  u_AxD, e_NxD = jnp.asarray(unembedding_AxD), jnp.asarray(embedding_NxD)

  def one(answers_N):
    known = e_NxD[fit_T], u_AxD[answers_N[fit_T]]
    w_DxD, b_D = affine(*known, _best_ridge(*known))
    return _nearest(e_NxD[held_S] @ w_DxD + b_D[None], u_AxD)

  return jax.lax.map(one, jnp.asarray(answers_RxN))


@jax.default_matmul_precision('highest')
def _nearest(guess_SxD: Array, u_AxD: Array) -> jax.Array:
  """The attribute with the nearest vector, for every guess."""
  distance_SxA = jnp.sum(u_AxD**2, axis=1)[None] - 2 * guess_SxD @ u_AxD.T
  return jnp.argmin(distance_SxA, axis=1)


def probe_accuracy(
  embedding_NxD: Array, unembedding_AxD: Array, answers_RxN: Array, fit_T: Array, held_S: Array
) -> jax.Array:
  """How often `probe` is right."""
  probed_RxS = probe(embedding_NxD, unembedding_AxD, answers_RxN, fit_T, held_S)
  return jnp.mean(probed_RxS == jnp.asarray(answers_RxN)[:, held_S], dtype=jnp.float32)
