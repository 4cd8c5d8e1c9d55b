"""Scores are chance-corrected, methods rotate with the model, and wrong answers score nothing."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from constructions import registry
from experiments import leaderboard
from experiments.harness import instances, methods, records
from experiments.harness.statistics import values
from geomem.inside import symmetry, truth

SIZE = 16, 3


def test_average_precision_is_of_a_random_order_zero_and_of_the_right_one_one():
  serves = np.array([[True, True, False, False, False]])
  scores = [methods.unit_score(np.array([order], float), serves) for order in itertools.permutations(range(5))]  # fmt: skip
  assert np.mean(scores) == pytest.approx(0, abs=1e-12) and max(scores) == 1 and min(scores) < 0
  assert scores.count(1) == 2 * 6
  tied = [methods.unit_score(np.zeros((1, 5)), serves, seed) for seed in range(300)]
  assert np.mean(tied) == pytest.approx(0, abs=0.06)  # equal answers score nothing
  assert np.isnan(methods.unit_score(np.ones((1, 3)), np.zeros((1, 3), bool)))


def test_overlap_is_of_random_subspaces_zero_whatever_their_rank():
  rng, frame = np.random.default_rng(0), np.eye(12)[:3]
  for rank in (1, 3, 7):
    draws = [np.linalg.qr(rng.standard_normal((12, rank)))[0] for _ in range(400)]
    mean = np.mean([methods.subspace_score((q @ q.T)[None], [frame]) for q in draws])
    assert mean == pytest.approx(0, abs=0.03)
  score = lambda columns: methods.subspace_score((columns.T @ columns)[None], [frame])
  assert score(np.eye(12)[:3]) == pytest.approx(1) and score(np.eye(12)) == 0
  assert score(np.eye(12)[3:6]) < 0
  # A subspace that is too small or too large does not score one.
  assert 0 < score(np.eye(12)[:6]) < score(np.eye(12)[:4]) < 1 and 0 < score(np.eye(12)[:1]) < 1


@pytest.fixture(scope='module')
def pair():
  built = registry.build('selector', instances.bijections(*SIZE, seed=0))
  hidden, by = symmetry.disguise(built, seed=1)
  return built, hidden, by


def asked(method, model):
  config = model.config.replace(precision='highest')
  function = jax.jit(functools.partial(method, config))
  return np.asarray(function(model.params, model.facts.answers_RxN, jax.random.key(0)))


@pytest.mark.parametrize('name', methods.UNITS)
def test_units_are_found_wherever_they_are(name, pair):
  built, hidden, by = pair
  serves = truth.of(built).serves_RxF[0][0]
  found = asked(methods.UNITS[name], built)
  assert methods.unit_score(found, serves) == pytest.approx(1)
  rotated = asked(methods.UNITS[name], hidden)
  assert methods.unit_score(rotated, serves[:, by.units[0][0]]) == pytest.approx(1)
  assert methods.unit_score(rotated, serves) < 0.8


@pytest.mark.parametrize(
  'name', ['linear probe', 'superposition', 'activation patching', 'ablation']
)
def test_a_method_sees_directions_or_coordinates(name, pair):
  built, hidden, by = pair
  frames, transformed = (
    [s.frame_KxD for s in t.subspaces] for t in (truth.of(built), truth.of(built).transformed(by))
  )
  found, rotated = (asked(methods.SUBSPACES[name], model) for model in (built, hidden))
  assert methods.subspace_score(found, frames) == pytest.approx(1, abs=1e-2)
  blind = name in leaderboard.BY_COORDINATE
  score = methods.subspace_score(rotated, transformed)
  assert score < 0.5 if blind else score == pytest.approx(1, abs=1e-2)
  if not blind:
    q = by.rotation_DxD
    np.testing.assert_allclose(rotated, q.T @ found @ q, atol=2e-2)


def test_the_effect_tells_the_truth_from_what_is_planted(pair):
  built, *_ = pair
  known = truth.of(built)
  right = np.stack([s.frame_KxD.T @ s.frame_KxD for s in known.subspaces])
  for effect, answer in (
    (methods.patch_effect, right),
    (methods.ablation_effect, known.serves_RxF[0][0]),
  ):
    worth = lambda given, effect=effect: float(
      effect(built.config, built.params, jnp.asarray(given, jnp.float32), built.facts.answers_RxN)
    )
    assert worth(answer) > 0.9 and worth(np.roll(answer, 1, axis=0)) < 0.2
    assert worth(np.zeros_like(answer)) < 0.2


def test_the_study_measures_what_it_says(tmp_path, monkeypatch):
  few = {'units': ('ablation',), 'subspaces': ('linear probe',)}  # those that compile fastest
  answers = {q: {name: leaderboard.ANSWERS[q][name] for name in few[q]} for q in few}
  monkeypatch.setattr(leaderboard, 'ANSWERS', answers)
  smoke = dataclasses.replace(leaderboard.PRESETS['smoke'], steps=100)
  study = dataclasses.replace(leaderboard.STUDY, presets={'smoke': smoke})
  table = study.run('smoke', tmp_path).table
  for question, named in leaderboard.ANSWERS.items():
    for stage in leaderboard.STAGES[:3]:
      of = functools.partial(values, table, question=question, stage=stage, measurement='score')
      assert of(answer=leaderboard.TRUTH) == pytest.approx([1])
      assert of(answer='next relation')[0] < 0 and abs(of(answer='random')[0]) < 0.1
      assert all(len(of(answer=name)) == 1 for name in named)
    assert not values(table, question=question, stage='scratch', measurement='score')
    effects = values(table, question=question, stage='scratch', measurement='effect')
    assert len(effects) == len(named)
  assert records.read(tmp_path).table.equals(table)
  assert study.findings(table) and study.draw(table, tmp_path)
