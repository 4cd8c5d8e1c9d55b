"""Which models share a program: everyone has one that fits, for what padding and compiling cost."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geomem.config import BlockConfig, Config
from geomem.facts import Facts
from geomem.training import batched, optimization, scheduling
from geomem.training.recipe import Recipe
from geomem.training.scheduling import Costs

RECIPE = Recipe(steps=8, warmup=2, target=None, check=4)


def task(n, d, r=2, f=None, norm='rms', answers=None, **options):
  c = Config(n, r, answers or n, 2, d, (BlockConfig(1, d, d, (f or 2 * d,)),), norm=norm)
  return batched.Task(c, Facts.bijections(n, r, n), **options)


sizes = st.tuples(
  st.sampled_from([4, 5, 7, 16, 40]),
  st.sampled_from([2, 3, 8, 20]),
  st.sampled_from(['rms', 'none']),
)


@settings(max_examples=30, deadline=None)
@given(
  st.lists(sizes, min_size=1, max_size=20),
  st.sampled_from([0.0, 1e-3, 0.1, 1e9]),
  st.integers(1, 3),
)
def test_everyone_has_one_place_that_fits(chosen, compiling, devices):
  tasks = [task(n, d, norm=norm) for n, d, norm in chosen]
  shared = scheduling.assign(tasks, RECIPE, (), devices, Costs(compiling=compiling))
  members = [i for _, group in shared for i in group]
  assert sorted(members) == list(range(len(tasks)))
  for program, group in shared:
    assert len(group) <= program.rows and program.rows % devices == 0
    configs = [tasks[i].config for i in group]
    assert batched.common_config([program.config, *configs]) == program.config
  if compiling == 1e9:
    assert len({program for program, _ in shared}) == len({norm for _, _, norm in chosen})
  if compiling == 0:
    assert all(len({tasks[i].config for i in group}) == 1 for _, group in shared)


def test_what_is_compiled_already_is_used_where_it_is_cheaper():
  small, large = task(16, 8), task(64, 32)
  ((first, _),) = scheduling.assign([task(16, 9)] * 4, RECIPE)
  assert batched.common_config([first.config, small.config]) == first.config
  shared = scheduling.assign([small, large], RECIPE, [first], costs=Costs(compiling=1e-3))
  assert [(program == first, group) for program, group in shared] == [(True, (0,)), (False, (1,))]
  dear = scheduling.assign(
    [small], RECIPE, [scheduling.Program(large.config, 8)], costs=Costs(compiling=0.0)
  )
  assert dear[0][0].config == small.config
  many = scheduling.assign([small] * 20, RECIPE, [first])
  assert [len(group) for _, group in many] == [8, 8, 4] and {p for p, _ in many} == {first}


def test_every_token_asks_for_one_vocabulary():
  recipe = dataclasses.replace(RECIPE, loss='every')
  tasks = [task(n, 4, answers=n + 2) for n in (5, 6, 6)]
  shared = scheduling.assign(tasks, recipe, costs=Costs(compiling=1e9))
  assert sorted(group for _, group in shared) == [(0,), (1, 2)]
  for program, group in shared:
    batched.set_up(recipe, [tasks[i] for i in group], config=program.config)


@pytest.mark.parametrize('compiling', [0.0, 1e9])
def test_trained_in_whatever_program_they_end_alike(compiling, monkeypatch):
  tasks = [task(9, 4), task(5, 6, r=3, seed=3), task(9, 4, seed=1)]
  monkeypatch.setattr(scheduling, 'CPU', Costs(compiling=compiling))
  compiled = []
  found = scheduling.train_tasks(RECIPE, tasks, compiled=compiled)
  assert len(compiled) == (1 if compiling else 2)
  for i, one in enumerate(tasks):
    sweep, states = batched.set_up(RECIPE, [one], devices=jax.devices()[:1])
    for sweep, states in batched.fit(sweep, states, 8):  # noqa: B020
      pass
    alone = sweep.state_of(states, 0)
    np.testing.assert_allclose(found['loss'][i], alone.loss, rtol=1e-5)
    assert found['accuracy'][i] == pytest.approx(float(alone.accuracy))
    assert (found['step'][i], found['status'][i]) == (8, optimization.RUNNING)


def test_rivals_of_the_solved_rest_and_nobody_else():
  recipe = Recipe(steps=400, warmup=10, check=10, target=0.99)
  rates = [0.03, 0.0, 0.03, 0.0]
  tasks = [task(8, 12, f=32, learning_rate=rate, weight_decay=0.0) for rate in rates]
  found = scheduling.train_tasks(recipe, tasks, groups=['a', 'a', 'b', 'c'])
  assert list(found['status']) == [
    optimization.SOLVED,
    optimization.INACTIVE,
    optimization.SOLVED,
    optimization.RUNNING,
  ]
  assert found['step'][1] < 400 == found['step'][3]
  assert found['accuracy'][0] >= 0.99 > found['accuracy'][3]
