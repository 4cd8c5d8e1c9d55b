"""Freeze a trained model and give it other facts: does what it learned to do with superpositions hold for them?

Shapes: R relations, D width, A attributes; B subjects in a step, each with attributes at random.
"""

import chex
import jax
import jax.numpy as jnp
import optax
from chex import Array

from geomem import head, model
from geomem.config import Config
from geomem.inside import intervene, linear_maps
from geomem.inside.linear_maps import Maps
from geomem.training import optimization


def fit_maps_through_model(
  config: Config, params: dict, maps: Maps, key: Array, steps: int, batch: int, rate: float = 1e-3
) -> tuple[Maps, Array]:
  """The maps (M_RxDxE, b_E) from which the frozen model answers best, by gradient descent from `maps`.

  Every step draws subjects anew, their attributes independent and uniform: no table of facts is seen twice.
  """
  u_AxD = model.apply(config, params, method='unembedding').astype(jnp.float32)
  adam = optax.adam(optax.cosine_decay_schedule(rate, steps))

  def loss(maps, answers_BxR):
    e_BxE = linear_maps.superpose(maps, u_AxD, answers_BxR.T)
    x_QxD = intervene.final_residuals(config, params, e_BxE).reshape(-1, config.dim)
    return head.cross_entropy(x_QxD, u_AxD, answers_BxR.reshape(-1))[0] / len(x_QxD)

  def step(state, key):
    maps, opt_state = state
    answers_BxR = jax.random.randint(key, (batch, config.relations), 0, config.answers)
    value, grads = jax.value_and_grad(loss)(maps, answers_BxR)
    updates, opt_state = optimization.adam_update(adam, grads, opt_state)
    return (optax.apply_updates(maps, updates), opt_state), value

  (maps, _), losses = jax.lax.scan(step, (maps, adam.init(maps)), jax.random.split(key, steps))
  return maps, losses


def learn_embeddings(
  config: Config, params: dict, answers_RxN: Array, key: Array, steps: int, rate: float = 0.1
) -> Array:
  """Embeddings NxD for these facts, each trained by itself through the frozen model, from near zero.

  Under noise that decreases to zero, so that no unit stays inactive; noise and rate are in units of the
  old embeddings' standard deviation. Nothing else is trained, so that subjects are independent: they
  are learned block by block, each with random numbers of its own.
  """
  chex.assert_shape(answers_RxN, (config.relations, None))
  u_AxD = model.apply(config, params, method='unembedding').astype(jnp.float32)
  scale = jnp.std(params['embed']['subjects'])
  decay = optax.cosine_decay_schedule(1.0, steps)
  adam = optax.adam(lambda count: rate * scale * decay(count))

  def loss(e_BxD, answers_BxR):
    x_QxD = intervene.final_residuals(config, params, e_BxD).reshape(-1, config.dim)
    return head.cross_entropy(x_QxD, u_AxD, answers_BxR.reshape(-1))[0]

  def some(e_BxD, answers_BxR, subject_Bx1):
    key_B = jax.vmap(lambda s: jax.random.fold_in(noise_key, s))(subject_Bx1[:, 0])

    def step(i, state):
      e_BxD, opt_state = state
      drawn = lambda key: jax.random.normal(jax.random.fold_in(key, i), e_BxD.shape[1:])
      drawn_BxD = jax.vmap(drawn)(key_B)
      grads = jax.grad(loss)(e_BxD + scale * decay(i) * drawn_BxD, answers_BxR)
      updates, opt_state = optimization.adam_update(adam, grads, opt_state)
      return optax.apply_updates(e_BxD, updates), opt_state

    return jax.lax.fori_loop(0, steps, step, (e_BxD, adam.init(e_BxD)))[0]

  subjects = answers_RxN.shape[1]
  initial_key, noise_key = jax.random.split(key)
  initial_NxD = 0.1 * scale * jax.random.normal(initial_key, (subjects, config.dim))
  return intervene.by_blocks(some, initial_NxD, answers_RxN.T, jnp.arange(subjects)[:, None])


def shared_cosine(unembedding_AxD: Array, answers_RxN: Array) -> Array:
  """Mean cosine between the vectors of two attributes of one subject: 0 if they have nothing to do with each other."""
  chex.assert_rank([unembedding_AxD, answers_RxN], 2)
  u_AxD = unembedding_AxD - jnp.mean(unembedding_AxD, axis=0, keepdims=True)
  u_AxD = u_AxD / jnp.linalg.norm(u_AxD, axis=1, keepdims=True)
  u_NxRxD = u_AxD[answers_RxN.T]
  relations = len(answers_RxN)
  total_N = jnp.sum(jnp.sum(u_NxRxD, axis=1) ** 2, axis=1) - relations
  return jnp.mean(total_N) / max(1, relations * (relations - 1))
