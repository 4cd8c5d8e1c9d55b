"""Linear structure: planted superpositions score 1, everything else scores what it must, and nothing leaks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from constructions import registry
from experiments import structure as experiment
from experiments.harness import instances
from geomem import model
from geomem.config import Config
from geomem.facts import Facts
from geomem.inside import linear_maps
from geomem.training import sweeps

N, R, D = 400, 3, 9
superposition_r2 = jax.jit(linear_maps.superposition_r2)
probe_accuracy = jax.jit(linear_maps.probe_accuracy)


def planted(noise=0.0):
  """Embeddings Σ_r M_r u_{g_r(s)} + b (plus noise), the unembedding, and the facts."""
  rng = np.random.default_rng(0)
  u = rng.standard_normal((N, D), dtype=np.float32)
  g = np.asarray(Facts.bijections(N, R, 1).answers_RxN)
  maps = rng.standard_normal((R, D, 40), dtype=np.float32)
  e = sum(u[g[r]] @ maps[r] for r in range(R)) + rng.standard_normal(40, dtype=np.float32)
  return e + noise * rng.standard_normal(e.shape, dtype=np.float32), u, g


def test_a_planted_superposition_is_found():
  e, u, g = planted()
  split = linear_maps.hold_out(jax.random.key(0), N)
  assert superposition_r2(e, u, g, *split) > 0.999
  assert probe_accuracy(e, u, g, *split) == 1


def test_embeddings_for_other_facts_are_what_was_planted():
  e, u, g = planted()
  other = np.asarray(Facts.bijections(N, R, 5).answers_RxN)
  rng = np.random.default_rng(0)
  rng.standard_normal((N, D), dtype=np.float32)
  maps = rng.standard_normal((R, D, 40), dtype=np.float32)
  want = sum(u[other[r]] @ maps[r] for r in range(R)) + rng.standard_normal(40, dtype=np.float32)
  np.testing.assert_allclose(
    linear_maps.superpose(linear_maps.fit_maps(e, u, g), u, other), want, atol=2e-2
  )


def test_other_facts_explain_nothing():
  e, u, _ = planted()
  other = Facts.bijections(N, R, 9).answers_RxN
  split = linear_maps.hold_out(jax.random.key(0), N)
  assert superposition_r2(e, u, other, *split) < 0.1
  assert probe_accuracy(e, u, other, *split) < 0.1


def test_noise_is_not_explained():
  e, u, g = planted(noise=3.0)
  split = linear_maps.hold_out(jax.random.key(0), N)
  share = 1 - 9.0 / np.var(e, axis=0).mean()
  assert abs(float(superposition_r2(e, u, g, *split)) - share) < 0.12


def test_a_leak_would_be_seen():
  """With more coordinates than subjects a map fits any facts it was shown, and none it was not."""
  rng = np.random.default_rng(0)
  e, u = (rng.standard_normal((60, 64), dtype=np.float32) for _ in range(2))
  g = np.asarray(Facts.bijections(60, 2, 1).answers_RxN)
  fit, held = linear_maps.hold_out(jax.random.key(0), 60)
  assert superposition_r2(e, u, g, fit, fit) > 0.8 and probe_accuracy(e, u, g, fit, fit) == 1
  assert superposition_r2(e, u, g, fit, held) < 0.2 and probe_accuracy(e, u, g, fit, held) < 0.2


@pytest.mark.parametrize('leaks', [False, True])
def test_a_leak_planted_into_the_experiment_is_seen(leaks, monkeypatch):
  """With random embeddings wider than there are subjects, scores are high exactly if the fit sees the judged subjects."""
  config, table = Config.trained(60, 2, 64, 8), instances.bijections(60, 2, 0)
  job = sweeps.job(sweeps.Task(config, table), config)
  if leaks:
    whole = lambda score: lambda e, u, answers, fit_T, held_S: score(e, u, answers, held_S, held_S)
    for name in ('superposition_r2', 'probe_accuracy'):
      monkeypatch.setattr(linear_maps, name, whole(getattr(linear_maps, name)))
  e_NxD, u_AxD = (
    model.draw(config, 0)['embed']['subjects'],
    model.draw(config, 0)['unembed']['answers'],
  )
  e_SxD = np.random.default_rng(1).standard_normal((60, 64), dtype=np.float32)
  other = jnp.asarray(instances.bijections(60, 2, 0, other=True).answers_RxN)
  known = jnp.asarray(e_NxD), jnp.asarray(u_AxD), jnp.asarray(job.answers_RxN)
  found = jax.jit(lambda e: experiment._linear(config, known, e, other, other))(e_SxD)
  for where in ('fresh', 'own'):
    for name in ('superposition_r2', 'probe_accuracy'):
      assert (found[f'{where}_{name}'] > 0.7) == leaks
      assert (found[f'{where}_{name}|shuffled facts'] > 0.7) == leaks


def test_the_two_parts_are_apart_and_all():
  for n, share in ((10, 0.25), (3, 0.1), (101, 0.5)):
    fit, held = linear_maps.hold_out(jax.random.key(n), n, share)
    assert sorted([*fit.tolist(), *held.tolist()]) == list(range(n))
    assert len(held) == max(1, round(share * n))


def test_a_constructed_selector_scores_one():
  table = Facts.bijections(64, 3)
  built = registry.build('selector', table)
  e, u = built.params['embed']['subjects'], built.params['unembed']['answers']
  split = linear_maps.hold_out(jax.random.key(0), 64)
  arrays = jnp.asarray(e), jnp.asarray(u), jnp.asarray(table.answers_RxN)
  assert superposition_r2(*arrays, *split) == pytest.approx(1, abs=1e-3)
  assert probe_accuracy(*arrays, *split) == 1
