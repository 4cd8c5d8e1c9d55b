"""The controls of superposition and linear probes, on unseen subjects: they detect the leak, and not the structure."""

import jax
import jax.numpy as jnp
import numpy as np

import constructions
from geomem import model
from geomem.facts import Facts
from geomem.inside import intervene, linear_maps

N, R = 96, 3


def with_fresh(encode, old: Facts, fresh: Facts):
  """Embeddings and answers of the fitted subjects, followed by those of fresh ones, and the indices of both."""
  e = np.concatenate([encode(old.answers_RxN), encode(fresh.answers_RxN)])
  answers = np.concatenate([old.answers_RxN, fresh.answers_RxN], axis=1)
  return jnp.asarray(e), answers, jnp.arange(N), N + jnp.arange(N)


def selector():
  built = constructions.build('selector', Facts.bijections(N, R, 0))
  u = model.apply(built.config, built.params, method='unembedding')
  return built, jnp.asarray(u), with_fresh(built.encode, built.facts, Facts.bijections(N, R, 1))


def test_rows_that_a_selector_has_written_are_superposed_and_read_and_the_controls_are_not():
  _, u, (e, answers, old, fresh) = selector()
  data = e, u, answers, old, fresh
  assert linear_maps.superposition_r2(*data) > 0.999 and linear_maps.probe_accuracy(*data) == 1
  assert linear_maps.shared_map_r2(*data) < 0.6
  assert linear_maps.shared_probe_accuracy(*data) < 1 / R + 0.05
  r2, right = linear_maps.other_attributes_scores(*data)
  assert r2 < 0.1 and right < 0.1


def test_other_attributes_alone_expose_an_unembedding_that_has_seen_the_subjects():
  """The attribute vectors encode their subjects, each relation's by a map of its own; fresh subjects show no leak."""
  rng = np.random.default_rng(0)
  own_sets = np.arange(R)[:, None] * N
  old, fresh = (own_sets + Facts.bijections(N, R, seed).answers_RxN for seed in (0, 1))
  subject_NxD, u = rng.standard_normal((N, 16)), np.zeros((R * N, 16), np.float32)
  for answers_N in old:
    u[answers_N] = subject_NxD @ rng.standard_normal((16, 16))
  e = jnp.asarray(
    rng.standard_normal((2 * N, 8), dtype=np.float32)
  )  # independent of all attributes
  fit, held = linear_maps.hold_out(jax.random.key(0), N)
  _, right = linear_maps.other_attributes_scores(e[:N], u, old, fit, held)
  assert right > 0.9  # on subjects held out from the maps, but not from the unembedding
  both = np.concatenate([old, fresh], axis=1)
  _, right = linear_maps.other_attributes_scores(e, u, both, jnp.arange(N), N + jnp.arange(N))
  assert right < 0.1


def test_maps_that_a_ridge_has_shortened_get_their_length_back():
  rng, facts = np.random.default_rng(0), Facts.bijections(400, R, 1)
  u = jnp.asarray(rng.standard_normal((400, 9), dtype=np.float32))
  maps = jnp.asarray(rng.standard_normal((R, 9, 40), dtype=np.float32)), jnp.ones(40)
  answers = np.asarray(facts.answers_RxN)
  e = linear_maps.superpose(maps, u, answers)
  short = linear_maps.fit_maps(e, u, answers, 1.0)
  longer = linear_maps.calibrate(short, e, u, answers, 1.0)
  ratio = lambda fitted: float(jnp.sum(fitted[0] * maps[0]) / jnp.sum(maps[0] ** 2))
  assert ratio(short) < 0.6 and abs(ratio(longer) - 1) < 0.05
  mean = lambda fitted: jnp.mean(linear_maps.superpose(fitted, u, answers), axis=0)
  np.testing.assert_allclose(mean(longer), mean(short), atol=1e-3)
  exact = linear_maps.fit_maps(e, u, answers)
  unchanged = linear_maps.calibrate(exact, e, u, answers)
  np.testing.assert_allclose(unchanged[0], exact[0], atol=1e-3)


def test_a_relation_s_own_units_are_enough_in_a_selector_and_all_attributes_swap_at_once():
  built, u, (e, answers, old, fresh) = selector()
  config, params = built.config, jax.tree.map(jnp.asarray, built.params)
  targets = jnp.asarray(answers[:, N:].T)
  _, hidden = intervene.mlp_activations(config, params, e[:N])
  own = intervene.unit_selectivity(hidden)['own']
  held = config, params, e[N:], targets
  kept = intervene.ablated_accuracy(*held, own, others=True)
  np.testing.assert_array_equal(jnp.diagonal(kept), 1.0)
  without = intervene.ablated_accuracy(*held, jnp.full_like(own, -1), others=True)
  assert without.max() < 0.1
  maps, _ = linear_maps.fit_maps(e[:N], u, answers[:, :N])
  wanted = intervene.other_attributes(jax.random.key(0), config.answers, targets)
  vectors = intervene.steering_vectors(maps, u, targets, wanted)
  assert intervene.accuracy(config, params, e[N:] + vectors.sum(0), wanted) == 1
