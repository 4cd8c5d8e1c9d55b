"""The mechanism studies, whole, at their smoke presets: records, controls, figures, bad claims caught."""

import dataclasses
import functools

import jax
import numpy as np
import pandas as pd
import pytest

from experiments import from_constructed as experiment
from experiments.harness import machine, records, studies
from experiments.harness.statistics import select, values
from experiments.harness.study import Study

NAMES = ('structure', 'transfer', 'frozen_embeddings', 'from_constructed', 'capacity')
FIELDS = {'measurement', 'control', 'seed', 'subjects', 'relations', 'value'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('runs')


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
  monkeypatch.setattr(machine, 'keep_compiled', lambda folder: None)


def structure(table):
  """A construction scores one everywhere, and its controls do not."""
  built = select(table, model='constructed')
  score = functools.partial(values, built)
  for name in (
    'accuracy',
    'superposition_r2',
    'probe_accuracy',
    'relation_selectivity',
    'patched_accuracy',
    'accuracy_without_other_units',
  ):
    assert score(measurement=name, control=None) == pytest.approx([1], abs=1e-4)
  for name in ('flipped', 'kept'):
    assert score(measurement=name, control=None, alpha=1.0) == [1]
  assert score(measurement='accuracy_without_own_units', control=None)[0] < 0.1
  for name, control in (
    ('superposition_r2', 'shuffled facts'),
    ('probe_accuracy', 'shuffled facts'),
    ('patched_accuracy', 'random direction'),
    ('accuracy_without_other_units', 'random units'),
  ):
    assert score(measurement=name, control=control)[0] < 0.7
  assert score(measurement='flipped', control='random direction', alpha=1.0)[0] < 0.3


def from_constructed(table):
  """Gradient descent starts at what was built, and does not leave the right answers."""
  exact = functools.partial(values, select(table, start='exact'))
  assert exact(step=0, measurement='accuracy') == [1] and exact(step=0, measurement='distance') == [
    0
  ]
  first = exact(step=0, measurement='linear_r2', control=None)
  assert first == pytest.approx([1], abs=1e-4)
  assert exact(step=0, measurement='linear_r2', control='shuffled facts')[0] < 0.5
  assert exact(step=40, measurement='accuracy') == [1]
  assert exact(step=40, measurement='loss') < exact(step=0, measurement='loss')


def transfer(table):
  """A construction answers for facts that it was not built for, however its embeddings are found."""
  built = select(table, model='constructed')
  arms = ('old_maps', 'fitted_maps', 'learned_embeddings')
  for name in ('accuracy', 'old_facts', *arms, 'superposition_r2'):
    assert values(built, measurement=name) == pytest.approx([1], abs=1e-4)
  for control in ('untrained', 'associative'):
    assert values(table, model=control, measurement='old_maps')[0] < 0.5


CHECKS = {'structure': structure, 'transfer': transfer, 'from_constructed': from_constructed}


@pytest.mark.parametrize('name', NAMES)
def test_a_study_records_what_it_measured_and_draws_that(name, folder, capsys, monkeypatch):
  study, drawn, workdir = studies.load(name), [], folder / name
  main = lambda *flags: study.main([name, f'--workdir={workdir}', *flags])
  with monkeypatch.context() as patch:
    patch.setattr(Study, 'draw', lambda self, table, _: drawn.append(table) or ['a figure'])
    main('--scale=smoke', '--save_seconds=0')
    told = capsys.readouterr().out
    before = (workdir / records.FILE).read_bytes()
    main('--scale=smoke', '--save_seconds=0')  # answered from the checkpoint, to the last bit
    assert (workdir / records.FILE).read_bytes() == before
    main('--redraw')
  table = records.read(workdir).table
  assert len(drawn) == 3
  for some in drawn:
    pd.testing.assert_frame_equal(some, table)
  if 'kind' in table:  # of experiments.bounds, drawn beside
    table = table[~table['kind'].isin(['construction', 'bound'])]
  assert FIELDS <= set(table.columns) and table['measurement'].notna().all()
  assert 'figure: a figure' in told and len(told.splitlines()) > 4
  paths = study.draw(records.read(workdir).table, workdir)
  assert {path.suffix for path in paths} == {'.png', '.pdf'}
  assert all(path.stat().st_size > 8000 for path in paths)
  if name in CHECKS:
    CHECKS[name](table)


@pytest.mark.parametrize('name', ['selector_normed', 'selector', 'attention_only'])
def test_noise_shakes_every_array(name):
  """Also those that are all zeros, like a selector's query: unshaken they would get no gradient."""
  preset = dataclasses.replace(experiment.PRESETS['smoke'], subjects=16, relations=3)
  exact, shaken, _ = (task.params for _, task in experiment.starts(preset, name, 0.0, 0))
  for path, old in jax.tree_util.tree_leaves_with_path(exact):
    new = functools.reduce(lambda tree, key: tree[key.key], path, shaken)
    assert 0.01 < np.std(new - old) and new.dtype == old.dtype, jax.tree_util.keystr(path)
