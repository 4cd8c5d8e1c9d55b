"""Find the dimensions of an embedding that each relation occupies: one projector per relation, learned by interchange.

A projector P_r of rank K extracts relation r's part of an embedding. If it is right, then given e_s + P_r (e_t − e_s)
the model answers r as for subject t, and all other relations as for subject s. Projectors are oblique: the parts of an
embedding that belong to different relations add up, but need not be orthogonal. Learned orthogonal projectors, whose
`into` and `along` are the same, are the distributed alignment search of Geiger et al. (2023).

Shapes: N subjects, R relations, E width of the embedding; K columns; B pairs of subjects per step, S evaluated.
"""

import chex
import jax
import jax.numpy as jnp
import optax
from chex import Array

from geomem import head, linalg, model
from geomem.config import Config
from geomem.inside import intervene
from geomem.inside.linear_maps import Maps
from geomem.training import optimization

Frames = tuple[Array, Array]  # into_RxExK: the directions written; along_RxExK: those read
# Dimensions with less than this fraction of a relation's largest principal variance count as unoccupied.
SMALLEST = 1e-4


@jax.default_matmul_precision('highest')
def from_maps(
  maps: Maps, embedding_NxE: Array, unembedding_AxD: Array, answers_RxN: Array
) -> Frames:
  """Every relation's principal directions of its part M_r u, and the regression of its coordinates along them on e.

  There are E // R columns; those beyond the rank of the part are 0.
  """
  m_RxDxE, b_E = maps
  columns = len(b_E) // len(answers_RxN)
  centred = lambda x: x - jnp.mean(x, axis=0, keepdims=True)
  e_NxE = centred(jnp.asarray(embedding_NxE))
  whole_ExE = e_NxE.T @ e_NxE
  whole_ExE = whole_ExE + 1e-6 * jnp.trace(whole_ExE) / len(b_E) * jnp.eye(len(b_E))

  def one(m_DxE, answers_N):
    part_NxE = centred(jnp.asarray(unembedding_AxD)[answers_N]) @ m_DxE
    variance_E, directions_ExE = linalg.eigh(part_NxE.T @ part_NxE)
    into_ExK = directions_ExE[:, ::-1][:, :columns]
    occupied_K = variance_E[::-1][:columns] > SMALLEST * variance_E[-1]
    along_ExK = linalg.solve(whole_ExE, e_NxE.T @ (part_NxE @ into_ExK))
    return jnp.where(occupied_K[None], into_ExK, 0.0), jnp.where(occupied_K[None], along_ExK, 0.0)

  return jax.vmap(one)(m_RxDxE, jnp.asarray(answers_RxN))


def random_frames(key: Array, relations: int, dim: int) -> Frames:
  """Random directions, E // R columns for every relation, independent of the model."""
  shape = relations, dim, dim // relations
  into, along = (jax.random.normal(k, shape) / dim**0.5 for k in jax.random.split(key))
  return into, along


def truncate(frames: Frames, rank: Array | int) -> Frames:
  """The frames with their first `rank` columns; the others are set to 0."""
  kept_K = jnp.arange(frames[0].shape[2]) < rank
  return jax.tree.map(lambda frame: jnp.where(kept_K[None, None], frame, 0.0), frames)


@jax.default_matmul_precision('highest')
def project(frames: Frames, x_SxE: Array) -> Array:
  """P_r x for every relation, RxSxE, where P_r = B (CᵀB)⁻¹ Cᵀ, B is `into` and C is `along`; columns of 0 are left out."""
  into_RxExK, along_RxExK = frames
  chex.assert_equal_shape(frames)
  length = lambda frame: jnp.sqrt(jnp.sum(frame**2, axis=1, keepdims=True))
  none_RxK = (length(into_RxExK) * length(along_RxExK))[:, 0] == 0
  unit = lambda frame: (
    frame / jnp.where(none_RxK[:, None], 1.0, length(jax.lax.stop_gradient(frame)))
  )
  into_RxExK, along_RxExK = unit(into_RxExK), unit(along_RxExK)
  inner_RxKxK = jnp.einsum('rek,req->rkq', along_RxExK, into_RxExK)
  inner_RxKxK = inner_RxKxK + jax.vmap(jnp.diag)(none_RxK.astype(jnp.float32))
  read_RxKxS = jnp.einsum('rek,se->rks', along_RxExK, x_SxE)
  solved_RxKxS = jax.vmap(linalg.solve)(inner_RxKxK, read_RxKxS)
  return jnp.einsum('rek,rks->rse', into_RxExK, solved_RxKxS)


@jax.default_matmul_precision('highest')
def learn(
  config: Config, params: dict, frames: Frames, embedding_NxE: Array, answers_RxN: Array, key: Array, steps: int,
  batch: int, orthogonal: bool = False, rate: float = 1e-2,
) -> Frames:  # fmt: skip
  """Train the projectors by gradient descent from `frames`, so that the frozen model answers interchanges best.

  Every step draws new pairs of the given subjects. All answers of a pair have equal weight, the one that is to change
  and the others. Columns of 0 stay 0. `orthogonal`: `along` is the same as `into`.
  """
  e_NxE, targets_NxR = jnp.asarray(embedding_NxE), jnp.asarray(answers_RxN).T
  chex.assert_shape(targets_NxR, (len(e_NxE), config.relations))
  u_AxD = model.apply(config, params, method='unembedding').astype(jnp.float32)
  adam = optax.adam(optax.cosine_decay_schedule(rate, steps))
  own_RxR = jnp.eye(config.relations, dtype=bool)
  both = lambda free: (free[0], free[-1])

  def loss(free, pair_2xB):
    (e_BxE, other_BxE), (own_BxR, other_BxR) = e_NxE[pair_2xB], targets_NxR[pair_2xB]
    mixed_RxBxE = e_BxE[None] + project(both(free), other_BxE - e_BxE)
    wanted_RxBxR = jnp.where(own_RxR[:, None], other_BxR[None], own_BxR[None])
    x_QxRxD = intervene.final_residuals(config, params, mixed_RxBxE.reshape(-1, e_BxE.shape[1]))
    x_QxD, wanted_Q = x_QxRxD.reshape(-1, u_AxD.shape[1]), wanted_RxBxR.reshape(-1)
    return head.cross_entropy(x_QxD, u_AxD, wanted_Q)[0] / len(x_QxD)

  def step(state, key):
    free, opt_state = state
    pair_2xB = jax.random.randint(key, (2, batch), 0, len(e_NxE))
    grads = jax.grad(loss)(free, pair_2xB)
    grads = jax.tree.map(jnp.where, there, grads, nothing)
    updates, opt_state = optimization.adam_update(adam, grads, opt_state)
    return (optax.apply_updates(free, updates), opt_state), None

  free = frames[:1] if orthogonal else frames
  there = jax.tree.map(lambda frame: jnp.any(frame != 0, axis=1, keepdims=True), free)
  nothing = jax.tree.map(jnp.zeros_like, free)
  (free, _), _ = jax.lax.scan(step, (free, adam.init(free)), jax.random.split(key, steps))
  return both(free)


def interchange(
  config: Config, params: dict, frames: Frames, e_SxE: Array, answers_RxS: Array
) -> tuple[Array, Array]:
  """Give every subject the next subject's part, one relation at a time: how often that answer becomes the next
  subject's, and how often the other answers stay unchanged."""
  wanted_SxR = jnp.roll(jnp.asarray(answers_RxS).T, -1, axis=0)
  vectors_RxSxE = project(frames, jnp.roll(e_SxE, -1, axis=0) - e_SxE)
  swapped = intervene.swap_effects(config, params, e_SxE, vectors_RxSxE, wanted_SxR, jnp.ones(1))
  return swapped[0].mean(), swapped[1].mean()
