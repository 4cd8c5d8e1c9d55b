"""Training in turns: steps of all other parameters, then every subject's embedding is solved for on its own.

With the rest of the model frozen, embeddings do not depend on each other: N problems of d numbers.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from chex import Array

from geomem import model, queries
from geomem.config import Config
from geomem.training import optimization
from geomem.training.optimization import SUBJECTS, Job
from geomem.training.recipe import Recipe

RIDGE = 1e-4  # times |e|² / 2: without it, the embedding of a subject that is answered right grows for ever
AT_ONCE = 64  # subjects


def learn(
  config: Config, recipe: Recipe, params: dict, job: Job, *, rounds: int, iterations: int, joint: bool = False,
) -> dict:  # fmt: skip
  """The parameters after `rounds` turns, which have all the recipe's steps together.

  `iterations`: of L-BFGS, in every solve. `joint`: the steps move the embeddings as well.
  """
  frozen = recipe.frozen if joint else (*recipe.frozen, SUBJECTS)
  recipe = dataclasses.replace(recipe, frozen=frozen, target=None)
  step = functools.partial(optimization.step, config, recipe, job)

  def turn(_, state):
    state = jax.lax.fori_loop(0, recipe.steps // rounds, lambda _, state: step(state), state)
    return state.replace(params=solve(config, state.params, job, iterations))

  return jax.lax.fori_loop(0, rounds, turn, optimization.initial_state(recipe, params)).params


@jax.default_matmul_precision('highest')
def solve(config: Config, params: dict, job: Job, iterations: int) -> dict:
  """The parameters with every subject's embedding moved by L-BFGS towards the least loss on its own facts of one hop."""
  e_NxD, u_AxD = params['embed']['subjects'], model.apply(config, params, method='unembedding')
  in_use_A = jnp.arange(config.answers) < job.attributes
  asked_R = jnp.arange(config.relations) < job.relations
  paths_Rx1 = jnp.asarray(queries.every_path(config.relations, 1))

  def loss(e_D: Array, answers_R: Array) -> Array:
    apply = functools.partial(model.apply, config, params, used=job.dim)
    (x_RxD,) = apply(e_D[None], paths_Rx1, method='from_embeddings')
    logits_RxA = jnp.where(in_use_A[None], x_RxD @ u_AxD.T, -jnp.inf)
    own_R = jnp.take_along_axis(logits_RxA, answers_R[:, None], axis=1)[:, 0]
    nats_R = jax.nn.logsumexp(logits_RxA, axis=1) - own_R
    return jnp.sum(jnp.where(asked_R, nats_R, 0.0)) + RIDGE / 2 * jnp.sum(e_D**2)

  def one(subject) -> Array:
    e_D, answers_R = subject
    own = functools.partial(loss, answers_R=answers_R)
    lbfgs = optax.lbfgs(memory_size=10, linesearch=optax.scale_by_zoom_linesearch(10))

    def update(_, before):
      e_D, state = before
      value, grads_D = jax.value_and_grad(own)(e_D)
      updates, state = lbfgs.update(grads_D, state, e_D, value=value, grad=grads_D, value_fn=own)
      return optax.apply_updates(e_D, updates), state

    found_D, _ = jax.lax.fori_loop(0, iterations, update, (e_D, lbfgs.init(e_D)))
    return jnp.where(own(found_D) <= own(e_D), found_D, e_D)  # also if it is not finite

  with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):  # optax needs both
    subjects = e_NxD, job.answers_RxN.T
    solved_NxD = jax.lax.map(one, subjects, batch_size=min(AT_ONCE, config.subjects))
  in_use_Nx1 = (jnp.arange(config.subjects) < job.subjects)[:, None]
  embed = {**params['embed'], 'subjects': jnp.where(in_use_Nx1, solved_NxD, e_NxD)}
  return {**params, 'embed': embed}
