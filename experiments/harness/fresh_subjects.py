"""What a frozen model does with facts that it never saw: embeddings composed by its own maps, or learned ones."""

import jax
import jax.numpy as jnp

from experiments.harness import instances
from geomem import model
from geomem.config import Config
from geomem.inside import intervene, linear_maps, new_facts
from geomem.inside.linear_maps import Maps
from geomem.training.recipe import Recipe


def scores(
  config: Config, recipe: Recipe, params, job, other_RxN, constructed_NxD, count: int
) -> tuple[dict, Maps]:
  """Scores by name, and the maps fitted to the model's own subjects.

  `old_maps`: accuracy on new facts with embeddings composed by the maps of the old ones. `learned_embeddings`: accuracy
  with embeddings that are learned, or written by a construction; R², linear probes and swaps at α = 1 are measured on these.
  A swap score is the lower of the fractions that flip the answer, and that keep the others.
  """
  e_NxD, u_AxD = params['embed']['subjects'], model.apply(config, params, method='unembedding')
  own_RxN, new_RxS = job.answers_RxN, other_RxN[:, :count]
  right = lambda e_BxD, table: intervene.accuracy(config, params, e_BxD, table.T)
  maps = linear_maps.fit_best_maps(e_NxD, u_AxD, own_RxN)
  e_SxD = embeddings(config, recipe, params, job, new_RxS, constructed_NxD)
  data = fitted_and_fresh((e_NxD, u_AxD, own_RxN), e_SxD, new_RxS)
  swap_key = instances.eval_keys(job.seed, 2)[1]
  flipped_R, kept_R = swapped(config, params, maps, e_SxD, new_RxS, swap_key)
  return {
    'accuracy': right(e_NxD, own_RxN),
    'old_maps': zero_shot(config, params, maps, new_RxS),
    **memorised(config, params, job),
    'learned_embeddings': right(e_SxD, new_RxS),
    'superposition_r2': linear_maps.superposition_r2(*data),
    'probe_accuracy': linear_maps.probe_accuracy(*data),
    'swapped': jnp.minimum(flipped_R.mean(), kept_R.mean()),
  }, maps  # fmt: skip


def memorised(config: Config, params, job) -> dict:
  """With maps fitted to three quarters of the subjects: accuracy on the `old_tuples` of the others, and how much lower
  it is for the same attributes in other tuples: the part that depends on having seen the tuple is `memorised`. A model
  that answers neither also has a gap of 0."""
  split_key, _, mix_key = instances.eval_keys(job.seed, 3)
  e_NxD, u_AxD = params['embed']['subjects'], model.apply(config, params, method='unembedding')
  fit_T, held_S = linear_maps.hold_out(split_key, config.subjects)
  maps = linear_maps.fit_best_maps(e_NxD[fit_T], u_AxD, job.answers_RxN[:, fit_T])
  old_RxS = job.answers_RxN[:, held_S]
  mixed_RxS = jax.vmap(jax.random.permutation)(jax.random.split(mix_key, len(old_RxS)), old_RxS)
  old_tuples, mixed = (zero_shot(config, params, maps, some) for some in (old_RxS, mixed_RxS))
  return {'old_tuples': old_tuples, 'memorised': old_tuples - mixed}


def zero_shot(config: Config, params, maps: Maps, new_RxS):
  """Accuracy on new facts whose embeddings are composed by these maps."""
  u_AxD = model.apply(config, params, method='unembedding')
  e_SxD = linear_maps.superpose(maps, u_AxD, new_RxS)
  return intervene.accuracy(config, params, e_SxD, new_RxS.T)


def embeddings(config: Config, recipe: Recipe, params, job, new_RxS, constructed_NxD):
  """Embeddings of subjects with these facts: written by the construction where there is one, else learned."""
  if len(constructed_NxD):
    return constructed_NxD[: new_RxS.shape[1]]
  return new_facts.learn_embeddings(config, recipe, params, job, new_RxS)


def fitted_and_fresh(known, e_SxD, new_RxS) -> tuple:
  """The arguments of the scores in `linear_maps`, for maps of the model's own subjects that are judged on fresh ones."""
  e_NxD, u_AxD, own_RxN = known
  n, s = len(e_NxD), len(e_SxD)
  joined = jnp.concatenate([e_NxD, e_SxD]), u_AxD, jnp.concatenate([own_RxN, new_RxS], 1)
  return *joined, jnp.arange(n), n + jnp.arange(s)


def swapped(config: Config, params, maps: Maps, e_SxD, new_RxS, key) -> tuple:
  """Swaps at α = 1: for every relation, the fractions that flip its answer, and that keep the others."""
  u_AxD = model.apply(config, params, method='unembedding')
  wanted_SxR = intervene.other_attributes(key, config.answers, new_RxS.T)
  vectors = intervene.steering_vectors(maps[0], u_AxD, new_RxS.T, wanted_SxR)
  effects = intervene.swap_effects(config, params, e_SxD, vectors, wanted_SxR, jnp.ones(1))
  return effects[0][0], effects[1][0]
