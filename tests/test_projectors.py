"""Projectors of relations: planted ones are found; learned ones move one relation and leave the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from constructions import registry
from geomem import model
from geomem.facts import Facts
from geomem.inside import linear_maps, projectors

N, R, K, E = 300, 3, 5, 24


@pytest.fixture(scope='module')
def planted():
  """Relations' parts, in directions that are far from orthogonal, the embeddings they sum to, and frames of their maps."""
  rng = np.random.default_rng(0)
  u = rng.standard_normal((N, K), dtype=np.float32)
  g = np.asarray(Facts.bijections(N, R, 1).answers_RxN)
  maps = rng.standard_normal((R, K, E), dtype=np.float32) + 2 * rng.standard_normal(
    (1, 1, E), dtype=np.float32
  )
  parts = np.einsum('rnk,rke->rne', u[g], maps)
  e = parts.sum(0)
  return parts, e, projectors.from_maps(linear_maps.fit_maps(e, u, g), e, u, g)


def matrices(frames):
  """The matrix P_r of every relation."""
  return np.swapaxes(projectors.project(frames, jnp.eye(frames[0].shape[1])), 1, 2)


def test_of_a_superposition_they_take_one_part_and_leave_the_others(planted):
  parts, e, frames = planted
  moved = projectors.project(frames, np.roll(e, -1, 0) - e)
  np.testing.assert_allclose(moved, np.roll(parts, -1, 1) - parts, atol=0.02)
  orthogonal = projectors.project((frames[0], frames[0]), np.roll(e, -1, 0) - e)
  assert np.abs(orthogonal - (np.roll(parts, -1, 1) - parts)).mean() > 0.5


@pytest.mark.parametrize('rank', [0, 1, 3, 5, 7])
def test_they_are_projectors_of_their_rank(planted, rank):
  """The rank is at most the dimension of the attributes' vectors: further columns are 0."""
  frames = projectors.truncate(planted[2], rank)
  for matrix in matrices(frames):
    np.testing.assert_allclose(matrix @ matrix, matrix, atol=1e-3)
    assert np.linalg.matrix_rank(matrix, tol=1e-3) == min(rank, K)


@pytest.fixture(scope='module')
def built():
  return registry.build('selector', Facts.bijections(32, 2, 0)), registry.build(
    'selector', Facts.bijections(32, 2, 7)
  )


def frames_of(built):
  own = (
    built.params['embed']['subjects'],
    model.apply(built.config, built.params, method='unembedding'),
    built.facts.answers_RxN,
  )
  return projectors.from_maps(linear_maps.fit_best_maps(*own), *own)


@pytest.mark.parametrize('orthogonal', [False, True])
def test_of_a_constructed_selector_they_have_a_dimension_for_every_bit(built, orthogonal):
  one, other = built
  frames, own = frames_of(one), (one.params['embed']['subjects'], one.facts.answers_RxN)
  fresh = jnp.asarray(other.params['embed']['subjects']), other.facts.answers_RxN

  @jax.jit
  def judged(rank):
    some = projectors.truncate(frames, rank)
    learned = projectors.learn(
      one.config, one.params, some, *own, jax.random.key(0), 50, 16, orthogonal
    )
    return projectors.interchange(one.config, one.params, learned, *fresh)

  assert np.array(judged(5)).tolist() == [1, 1]
  assert judged(4)[0] < 0.7


def test_directions_at_random_become_the_bits_of_a_selector(built):
  one, other = built
  start = projectors.truncate(projectors.random_frames(jax.random.key(1), 2, one.config.dim), 5)
  own = one.params['embed']['subjects'], one.facts.answers_RxN, jax.random.key(0), 300, 32
  learned = projectors.learn(one.config, one.params, start, *own, orthogonal=True)
  fresh = jnp.asarray(other.params['embed']['subjects']), other.facts.answers_RxN
  judged = lambda frames: np.min(projectors.interchange(one.config, one.params, frames, *fresh))
  assert judged((start[0], start[0])) < 0.5 and judged(learned) > 0.9


def test_learning_mends_what_was_spoilt(built):
  one, _ = built
  own = jnp.asarray(one.params['embed']['subjects']), one.facts.answers_RxN
  rng = np.random.default_rng(0)
  shake = lambda frame: frame + 0.3 * np.std(frame) * rng.standard_normal(frame.shape)
  frames = map(np.asarray, frames_of(one))
  spoilt = tuple(np.where(f == 0, 0, shake(f)).astype(np.float32) for f in frames)
  judged = lambda frames: np.mean(projectors.interchange(one.config, one.params, frames, *own))
  learned = projectors.learn(one.config, one.params, spoilt, *own, jax.random.key(0), 300, 32)
  assert judged(spoilt) < 0.9 < judged(learned)
