"""Other ways to train than AdamW: Muon's updates are what they should be; solved embeddings are minima of their loss."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.optimize
from test_sweep import RECIPE, close, task, trained

from experiments import optimizers
from experiments.harness import records
from geomem import model
from geomem.training import alternating, optimization, sweeps

MUON = dataclasses.replace(RECIPE, optimizer='muon')


# --- Muon -----------------------------------------------------------------------------------------


def test_the_singular_values_of_an_update_are_about_equal():
  rng = np.random.default_rng(0)
  shapes = {'blocks_0/mlp/in': (6, 24), 'blocks_0/attention/value': (2, 6, 6)}
  momentum = {name: 1e-3 * rng.standard_normal(shape) ** 3 for name, shape in shapes.items()}
  more = {'blocks_0/mlp/in_bias': np.ones(24), 'embed/relations': np.ones((3, 6))}
  found = optimization._muon({n: jnp.float32(m) for n, m in (momentum | more).items()})
  assert {*found} == {*shapes}
  for name, update in found.items():
    values = np.linalg.svd(update, compute_uv=False)
    before = np.linalg.svd(momentum[name], compute_uv=False)
    assert values.max() / values.min() < 2.5 < before.max() / before.min()
    assert np.sqrt(np.mean(np.square(update))) == pytest.approx(optimization.MUON_RMS, rel=1e-4)


def test_all_but_the_matrices_of_the_blocks_move_by_adamw():
  one = [task(6, 4)]
  short = dataclasses.replace(RECIPE, steps=1)
  (want,) = trained(one, short)
  (got,) = trained(one, dataclasses.replace(short, optimizer='muon'))
  moved, plain = (optimization.split(short, state.params)[0] for state in (got, want))
  for name, weight in moved.items():
    same = np.array_equal(weight, plain[name])
    assert same == (not name.startswith('blocks_') or weight.ndim == 1), name


def test_padding_changes_nothing():
  tasks = [task(9, 4), task(5, 6, r=3, seed=3)]
  alone = [trained([one], MUON, devices=jax.devices()[:1])[0] for one in tasks]
  for want, got in zip(alone, trained(tasks, MUON), strict=True):
    close(want, got)


# --- solves of the embeddings ---------------------------------------------------------------------


@functools.cache
def half_trained():
  """A model whose facts are learned only in part, padded to more subjects and dimensions than it has."""
  sweep, states = sweeps.set_up(dataclasses.replace(RECIPE, steps=30), [task(8, 5), task(9, 6)])
  states = sweeps.advance(sweep, states, 30)
  row = sweep.rows[0]
  own = lambda tree: jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[row]), tree)
  return sweep.config, own(states.params), own(sweep.jobs)


def losses(config, params, job):
  """Every subject's loss, by the forward pass of all pairs."""
  x_NxRxD = model.apply(
    config, params, None, np.arange(config.relations)[:, None], method='all_pairs', used=job.dim
  )
  u_AxD = model.apply(config, params, method='unembedding')[: job.attributes]
  logits_NxRxA = x_NxRxD @ u_AxD.T
  own_NxR = jnp.take_along_axis(logits_NxRxA, job.answers_RxN.T[..., None], axis=2)[..., 0]
  e_NxD = params['embed']['subjects']
  nats_N = jnp.sum(jax.nn.logsumexp(logits_NxRxA, axis=2) - own_NxR, axis=1)
  return (nats_N + alternating.RIDGE / 2 * jnp.sum(e_NxD**2, axis=1))[: job.subjects]


def test_solved_embeddings_are_as_good_as_scipys():
  config, params, job = half_trained()
  solved = alternating.solve(config, params, job, 60)
  before, after = losses(config, params, job), losses(config, solved, job)
  assert np.all(after <= before + 1e-6)

  @jax.jit
  def loss(e_D, s):
    e_NxD = params['embed']['subjects'].at[s].set(e_D)
    return losses(config, {**params, 'embed': {**params['embed'], 'subjects': e_NxD}}, job)[s]

  slope = jax.jit(jax.grad(loss))
  minima = []
  for s in range(int(job.subjects)):
    start = np.asarray(params['embed']['subjects'][s])
    of = lambda function, s=s: lambda e: np.asarray(function(jnp.float32(e), s), np.float64)
    minima.append(scipy.optimize.minimize(of(loss), start, jac=of(slope), method='L-BFGS-B').fun)
  # The loss has kinks and several minima, so single subjects may end elsewhere.
  assert np.mean(minima) < before.mean() - 0.1
  assert np.sum(after < np.array(minima) + 0.05) >= 6


def test_nothing_else_moves_and_padding_stays():
  config, params, job = half_trained()
  solved = alternating.solve(config, params, job, 5)
  flat, before = (optimization.split(RECIPE, own)[0] for own in (solved, params))
  for name, weight in flat.items():
    if name != optimization.SUBJECTS:
      np.testing.assert_array_equal(weight, before[name])
  moved, kept = flat[optimization.SUBJECTS], before[optimization.SUBJECTS]
  n, d = int(job.subjects), int(job.dim)
  np.testing.assert_array_equal(moved[n:], kept[n:])
  np.testing.assert_array_equal(moved[:, d:], kept[:, d:])
  assert not np.array_equal(moved[:n], kept[:n])


@pytest.mark.parametrize('joint', [False, True])
def test_steps_and_solves_in_turn_learn_the_facts(joint):
  one = task(8, 6)
  job, recipe = sweeps.job(one, one.config), dataclasses.replace(RECIPE, steps=150)
  params = sweeps.parameters(one, one.config)
  learn = functools.partial(
    alternating.learn, one.config, recipe, rounds=6, iterations=10, joint=joint
  )
  found = jax.jit(learn)(params, job)
  _, right = optimization.cross_entropy(one.config, recipe, job, found)
  assert right > 0.9


# --- the study ------------------------------------------------------------------------------------


def test_the_study_measures_every_optimizer_and_judges_each_by_its_best_rate(tmp_path):
  optimizers.STUDY.main(['optimizers', '--scale=smoke', f'--workdir={tmp_path}'])
  table = records.read(tmp_path).table
  assert {*table['optimizer']} == {*optimizers.OPTIMIZERS} and table['value'].between(0, 9).all()
  worse = table.assign(learning_rate=1.0, accuracy=0.0)
  both = pd.concat([table, worse], ignore_index=True)
  for (name, own), (_, want) in zip(optimizers.best(both), optimizers.best(table), strict=True):
    assert own['accuracy'].tolist() == want['accuracy'].tolist(), name
