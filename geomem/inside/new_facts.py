"""Freeze a trained model and give it new facts: does what it learned to do with superpositions transfer to them?

Shapes: R relations, D width, A attributes; B subjects per step, each with random attributes.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import optax
from chex import Array
from flax.traverse_util import flatten_dict, unflatten_dict

from geomem import head, model
from geomem.config import Config
from geomem.errors import InputError
from geomem.initialization import initial_value
from geomem.inside import intervene, linear_maps
from geomem.inside.linear_maps import Maps
from geomem.training import optimization
from geomem.training.optimization import Job
from geomem.training.recipe import Recipe


@jax.default_matmul_precision('highest')
def fit_maps_through_model(
  config: Config, params: dict, maps: Maps, key: Array, steps: int, batch: int, rate: float = 1e-3
) -> tuple[Maps, Array]:
  """Fit the maps (M_RxDxE, b_E) from which the frozen model answers best, by gradient descent from `maps`.

  Every step draws new subjects with independent uniform attributes, so no table of facts is seen twice.
  """
  u_AxD = model.apply(config, params, method='unembedding').astype(jnp.float32)
  adam = optax.adam(optax.cosine_decay_schedule(rate, steps))

  def loss(maps, answers_BxR):
    e_BxE = linear_maps.superpose(maps, u_AxD, answers_BxR.T)
    x_QxD = intervene.final_residuals(config, params, e_BxE).reshape(-1, u_AxD.shape[1])
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
  config: Config, recipe: Recipe, params: dict, job: Job, answers_RxS: Array, start_SxD: Array | None = None
) -> Array:  # fmt: skip
  """Embeddings SxD of subjects that the model never saw, learned with the model's own recipe.

  All other weights are frozen, and the random numbers differ. A subject is in a batch as often as one of the model's
  own was. The embeddings start at `start_SxD`, or from the initialisation of the model's own.
  """
  chex.assert_shape(answers_RxS, (config.relations, None))
  if recipe.hops > 1 or recipe.loss != 'answer' or config.tied:
    raise InputError(
      "fresh subjects need a one-hop recipe with loss 'answer', and an unembedding that is not tied"
    )
  count = answers_RxS.shape[1]
  batch = recipe.batch and max(1, round(recipe.batch * count / config.subjects))
  flat = flatten_dict(params, sep='/')
  frozen = tuple(name for name in flat if name != optimization.SUBJECTS)
  recipe = dataclasses.replace(recipe, batch=batch, target=None, frozen=frozen)
  seed = job.seed ^ jnp.uint32(2**31)
  key = jax.random.fold_in(jax.random.key(seed), 2**30)
  if start_SxD is None:
    draw = functools.partial(jax.random.normal, key)
    start_SxD = initial_value('subjects', (count, config.dim), draw)
  chex.assert_shape(start_SxD, (count, config.dim))
  flat[optimization.SUBJECTS] = start_SxD
  job = job.replace(answers_RxN=answers_RxS, subjects=jnp.int32(count), seed=seed)
  step = functools.partial(optimization.step, config.replace(subjects=count), recipe, job)
  state = optimization.initial_state(recipe, unflatten_dict(flat, sep='/'))
  state = jax.lax.fori_loop(0, recipe.steps, lambda _, state: step(state), state)
  return state.params['embed']['subjects']
