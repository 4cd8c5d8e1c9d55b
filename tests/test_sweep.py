"""Sweeps train each model as alone: padding, devices, order, batching and the fate of a neighbour change nothing."""

import contextlib
import functools

import chex
import jax
import numpy as np
import pytest

from geomem import model
from geomem.config import BlockConfig, Config
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.training import optimization, sweeps
from geomem.training.recipe import Recipe

RECIPE = Recipe(steps=8, warmup=2, target=None, check=4)


def task(n, d, r=2, f=None, norm='rms', **options):
  c = Config(n, r, n, 2, d, (BlockConfig(1, d, d, (f or 2 * d,)),), norm=norm)
  return sweeps.Task(c, Facts.bijections(n, r, n), **options)


def trained(tasks, recipe=RECIPE, **options):
  sweep, states = sweeps.set_up(recipe, tasks, **options)
  states = sweeps.advance(sweep, states, recipe.steps)
  return [sweep.state_of(states, i) for i in range(len(tasks))]


def close(one, other):
  shown = lambda state: (state.params, state.step, state.loss, state.accuracy, state.status)
  for a, b in zip(jax.tree.leaves(shown(one)), jax.tree.leaves(shown(other)), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-5)


@functools.cache
def each_alone(norm):
  tasks = [task(9, 4, norm=norm), task(5, 6, r=3, norm=norm, seed=3), task(4, 3, f=7, norm=norm)]
  return tasks, [trained([one], devices=jax.devices()[:1])[0] for one in tasks]


@pytest.mark.parametrize('norm,together', [('none', 2), ('rms', 1), ('rms', 3), ('layer', 2)])
def test_padded_models_train_as_alone(norm, together):
  tasks, alone = each_alone(norm)
  for one, want, state in zip(tasks, alone, trained(tasks, vmap_size=together), strict=True):
    close(want, state)
    assert jax.tree.map(np.shape, state.params) == jax.tree.map(np.shape, model.draw(one.config, 0))


def test_what_is_padded_stays_zero():
  tasks = [task(9, 6), task(4, 3)]
  sweep, states = sweeps.set_up(RECIPE, tasks)
  states = sweeps.advance(sweep, states, 8)
  whole = jax.tree.map(lambda a: np.asarray(a[sweep.rows[1]]), states.params)
  inside = sweeps.pad(sweeps.crop(whole, tasks[1].config), sweep.config)
  assert all(map(np.array_equal, jax.tree.leaves(whole), jax.tree.leaves(inside)))


def test_one_device_and_two_agree():
  tasks = [task(6, 4, seed=s) for s in range(5)]
  for one, two in zip(trained(tasks, devices=jax.devices()[:1]), trained(tasks), strict=True):
    close(one, two)


def test_a_diverged_model_does_not_touch_its_neighbours():
  tasks = [task(6, 4, seed=s, norm='none') for s in range(4)]
  sick = list(tasks)
  sick[1] = task(6, 4, seed=1, norm='none', learning_rate=1e30)
  well, beside = trained(tasks), trained(sick)
  assert [state.status for state in beside] == [0, optimization.DIVERGED, 0, 0]
  for i in (0, 2, 3):
    assert all(map(np.array_equal, jax.tree.leaves(well[i]), jax.tree.leaves(beside[i])))


def test_training_starts_from_given_parameters():
  first = task(6, 4, seed=2)
  params = model.draw(first.config, 2)
  close(trained([first])[0], trained([task(6, 4, seed=2, params=params)])[0])


def test_models_that_differ_in_more_than_size_share_no_program():
  with pytest.raises(InputError, match='sizes alone'):
    sweeps.set_up(RECIPE, [task(5, 4), task(5, 4, norm='none')])


def test_facts_must_fit_the_model():
  c = task(5, 4).config
  with pytest.raises(InputError, match='do not fit'):
    sweeps.Task(c, Facts.bijections(6, 2))


@pytest.mark.parametrize('attributes, options, told', [
  (3, {'hops': 2}, 'cannot be chained'),
  (3, {'hops': 2, 'chain_of_thought': True, 'loss': 'chain'}, 'cannot be chained'),
  (6, {'loss': 'every'}, 'no room for 6 attributes'),
  (5, {'loss': 'every'}, None),
])  # fmt: skip
def test_attributes_that_are_no_subjects_are_not_chained(attributes, options, told):
  c = Config(5, 2, 7, 4, 4, (BlockConfig(1, 4, 4, (8,)),))
  open_facts = Facts.random_maps(5, 2, attributes)
  recipe = Recipe(steps=1, warmup=0, **options)
  with pytest.raises(InputError, match=told) if told else contextlib.nullcontext():
    sweeps.check(recipe, (sweeps.Task(c, open_facts),), c)


@pytest.mark.parametrize('together', [1, 2])
def test_models_dealt_out_anew_end_as_alone(together):
  """The models of one device succeed early; those of the other are redistributed, and keep their identity."""
  recipe = Recipe(steps=400, warmup=10, check=10, target=0.99)
  quick = lambda s: task(8, 16, f=64, seed=2 * s, weight_decay=0.0)
  slow = lambda s: task(8, 16, f=64, seed=s, learning_rate=1e-6 * (s + 1))
  tasks = [kind(s) for s in range(4) for kind in (quick, slow)]
  sweep, states = sweeps.set_up(recipe, tasks, vmap_size=together)
  first = sweep.rows
  for sweep, states in sweeps.fit(sweep, states, 100):  # noqa: B020
    pass
  assert not np.array_equal(first, sweep.rows) and sorted(sweep.rows) == sorted(first)
  statuses = [int(sweep.state_of(states, i).status) for i in range(8)]
  assert statuses == [optimization.SOLVED, optimization.RUNNING] * 4
  for i in (1, 3, 4, 7):
    alone, state = sweeps.set_up(recipe, [tasks[i]], devices=jax.devices()[:1])
    for alone, state in sweeps.fit(alone, state, 100):  # noqa: B020
      pass
    one, other = alone.state_of(state, 0), sweep.state_of(states, i)
    assert one.step == other.step
    for a, b in zip(*map(jax.tree.leaves, (one.params, other.params)), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-3)  # rounding grows in hundreds of steps


def test_rates_that_are_no_numbers_are_refused():
  for bad in ({'learning_rate': float('nan')}, {'weight_decay': -1.0}, {'seed': 2**32}):
    with pytest.raises(InputError, match='must be'):
      task(5, 4, **bad)


def test_states_can_be_trained_from_twice():
  sweep, states = sweeps.set_up(RECIPE, [task(6, 5), task(5, 4)])

  def ends():
    for last, ended in sweeps.fit(sweep, states, 3):
      pass
    return [last.state_of(ended, i) for i in range(2)]

  first = ends()
  chex.assert_trees_all_equal(first, ends())
  again = sweeps.advance(sweep, states, 8)
  chex.assert_trees_all_equal(first, [sweep.state_of(again, i) for i in range(2)])
  assert all(sweep.state_of(states, i).step == 0 for i in range(2))


def test_a_program_is_compiled_once():
  sweep, states = sweeps.set_up(RECIPE, [task(7, 5), task(6, 4)])
  before = sweeps._train_chunks._cache_size()
  for _ in range(3):
    states = sweeps.advance(sweep, states, 2)
  assert sweeps._train_chunks._cache_size() == before + 1
