"""What a frozen model does for facts that it never saw: put together by the maps of its own, or learned."""

import jax
import jax.numpy as jnp

from experiments.harness import instances
from geomem import model
from geomem.config import Config
from geomem.inside import intervene, linear_maps, new_facts
from geomem.inside.linear_maps import Maps
from geomem.training.optimization import Recipe


def scores(
  config: Config, recipe: Recipe, params, job, other_RxN, written_NxD, count: int
) -> tuple[dict, Maps]:
  """By name, and the maps of the model's own subjects.

  `old_maps`: right answers for new facts, embeddings put together by maps of the old ones. `memorised`: by maps of three
  quarters of the subjects, right answers for the old tuples of the others (`old_tuples`), less those for the same
  attributes in other tuples: what depends on having seen the tuple. A model that answers neither has a gap of 0 too.
  `learned_embeddings`: once embeddings are learned, or as they are written; of these are R², readout and swaps at α = 1.
  """
  split_key, swap_key, mix_key = instances.eval_keys(job.seed, 3)
  e_NxD, u_AxD = params['embed']['subjects'], model.apply(config, params, method='unembedding')
  own_RxN, new_RxS = job.answers_RxN, other_RxN[:, :count]
  right = lambda e_BxD, table: intervene.accuracy(config, params, e_BxD, table.T)
  superposed = lambda maps, table: right(linear_maps.superpose(maps, u_AxD, table), table)
  fit_T, held_S = linear_maps.hold_out(split_key, config.subjects)
  maps = fit(e_NxD, u_AxD, own_RxN)
  some = fit(e_NxD[fit_T], u_AxD, own_RxN[:, fit_T])
  e_SxD = written_NxD[:count]
  if not len(written_NxD):
    e_SxD = new_facts.learn_embeddings(config, recipe, params, job, new_RxS)
  both = jnp.concatenate([e_NxD, e_SxD]), u_AxD, jnp.concatenate([own_RxN, new_RxS], 1)
  split = jnp.arange(len(e_NxD)), len(e_NxD) + jnp.arange(len(e_SxD))
  wanted_SxR = intervene.other_attributes(swap_key, config.answers, new_RxS.T)
  vectors = intervene.steering_vectors(maps[0], u_AxD, new_RxS.T, wanted_SxR)
  flipped, kept = intervene.swap_effects(config, params, e_SxD, vectors, wanted_SxR, jnp.ones(1))
  old_RxS = own_RxN[:, held_S]
  mixed_RxS = jax.vmap(jax.random.permutation)(jax.random.split(mix_key, len(old_RxS)), old_RxS)
  old_tuples = superposed(some, old_RxS)
  return {
    'accuracy': right(e_NxD, own_RxN),
    'old_maps': superposed(maps, new_RxS),
    'old_tuples': old_tuples,
    'memorised': old_tuples - superposed(some, mixed_RxS),
    'learned_embeddings': right(e_SxD, new_RxS),
    'superposition_r2': linear_maps.superposition_r2(*both, *split),
    'probe_accuracy': linear_maps.probe_accuracy(*both, *split),
    'swapped': jnp.minimum(flipped[0], kept[0]),
  }, maps  # fmt: skip


def fit(e_TxD, u_AxD, table_RxT) -> Maps:
  """The maps, by the ridge that is best on a part of the subjects."""
  known = e_TxD, u_AxD, table_RxT
  return linear_maps.fit_maps(*known, linear_maps.best_ridge(*known))
