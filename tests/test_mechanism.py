"""The mechanism studies run as a whole at their smoke presets: records, controls, figures, and bad claims caught."""

import dataclasses
import functools

import jax
import numpy as np
import pandas as pd
import pytest

from experiments import dynamics, phases
from experiments import from_constructed as experiment
from experiments import transfer as transfer_study
from experiments.harness import records, studies
from experiments.harness.model_kinds import GEOMETRIC_OPTIONS, Kind, sizes
from experiments.harness.statistics import select, values
from experiments.harness.study import Study
from geomem.facts import Facts
from geomem.model import draw
from geomem.training import optimization

NAMES = 'structure', 'transfer', 'phases', 'dynamics', 'from_constructed'
READERS = 'random_directions', 'least_squares'
FIELDS = {'measurement', 'control', 'seed', 'subjects', 'relations', 'value'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('runs')


def structure(table):
  """A construction scores one, its controls do not, and the controls of trained models reach no bound."""
  study = studies.load('structure')
  checks = [f for f in study.findings(table) if f.what.startswith('constructed')]
  assert len(checks) == 4 and all(f.value == pytest.approx(1, abs=1e-4) for f in checks)
  built = functools.partial(values, select(table, model='constructed'))
  assert built(measurement='learned_accuracy')[0] > 0.95
  assert (
    built(measurement='learned_probe_accuracy')[0] > 0.5
  )  # with the few steps of the smoke preset
  for name in (
    'fresh_superposition_r2',
    'fresh_probe_accuracy',
    'patched_accuracy',
    'own_units_keep',
  ):
    controls = select(table, model='constructed', measurement=name)['control'].dropna()
    assert len(controls) and all(built(measurement=name, control=c)[0] < 0.7 for c in controls)
  assert built(measurement='flipped', control='random direction', alpha=1.0)[0] < 0.3
  for control in ('untrained', 'random weights', 'associative'):
    of = functools.partial(values, select(table, model=control, control=None))
    assert of(measurement='fresh_superposition_r2')[0] < 0.75
    assert of(measurement='fresh_probe_accuracy')[0] < 0.95
    assert of(measurement='flipped, maps through the model, embedding')[0] < 0.95


def from_constructed(table):
  """Gradient descent starts at the construction and keeps all answers right."""
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
  """A construction answers facts that it was not built for; models that store no facts in embeddings do not."""
  built = select(table, model='constructed')
  for name in (
    'accuracy',
    'old_tuples',
    'old_maps',
    'fitted_maps',
    'learned_embeddings',
    'superposition_r2',
  ):
    assert values(built, measurement=name) == pytest.approx([1], abs=1e-4)
  assert values(built, measurement='memorised') == [0]
  for control in ('untrained', 'random weights', 'associative'):
    assert values(table, model=control, measurement='old_maps')[0] < 0.95


# Restricts the smoke presets to the kinds of model that CHECKS look at, and to those that share a compiled program.
FEWER = {
  'structure': {'only': ('trained', 'untrained', 'random weights', 'associative', 'constructed')},
  'phases': {
    'first': sizes(32, 2, 8, 60) | {'dim': 16},
    'maps': ({'dim': (16,), 'width': (8,)}, {'weight_decay': (0.3, 1.0), 'width': (8,)}),
  },
}
CHECKS = {'structure': structure, 'transfer': transfer, 'from_constructed': from_constructed}


@pytest.mark.parametrize('name', NAMES)
def test_a_study_records_what_it_measured_and_draws_that(name, folder, capsys, monkeypatch):
  study, drawn, workdir = studies.load(name), [], folder / name
  main = lambda *flags: study.main([name, f'--workdir={workdir}', *flags])
  with monkeypatch.context() as patch:
    smoke = dataclasses.replace(study.presets['smoke'], **FEWER.get(name, {}))
    patch.setitem(study.presets, 'smoke', smoke)
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
  assert FIELDS <= set(table.columns) and table['measurement'].notna().all()
  assert 'figure: a figure' in told and len(told.splitlines()) > 4
  paths = study.draw(records.read(workdir).table, workdir)
  assert {path.suffix for path in paths} == {'.png', '.pdf'}
  assert all(path.stat().st_size > 8000 for path in paths)
  if name in CHECKS:
    CHECKS[name](table)


@pytest.mark.parametrize('name', ['selector_normed', 'selector', 'attention_only'])
def test_noise_shakes_every_array(name):
  """Noise also reaches all-zero arrays, like a selector's query, which would otherwise get no gradient."""
  preset = dataclasses.replace(experiment.PRESETS['smoke'], subjects=16, relations=3)
  exact, noised, _ = (task.params for _, task in experiment.starts(preset, name, 0.0, 0))
  for path, old in jax.tree_util.tree_leaves_with_path(exact):
    new = functools.reduce(lambda tree, key: tree[key.key], path, noised)
    assert 0.01 < np.std(new - old) and new.dtype == old.dtype, jax.tree_util.keystr(path)


def test_when_a_level_is_reached():
  reached = lambda values: dynamics.first_crossing(
    pd.DataFrame({'step': [0, 10, 20, 30], 'value': values}), 0.5
  )
  assert reached([0.0, 0.25, 0.75, 1.0]) == 15 and reached([0.6, 0.0, 0.0, 1.0]) == 0
  assert reached([0.0, 1.0, 0.0, 1.0]) == 5 and np.isnan(reached([0.0, 0.1, 0.2, 0.4]))


def test_relations_that_come_one_after_the_other_are_told_from_those_that_come_at_once():
  stops = [0, 10, 20, 30]
  curves = {'accuracy': ([0, 1, 1, 1], [0, 0, 0, 1]), 'flipped': ([0, 0, 1, 1], [0, 0, 1, 1])}
  table = pd.DataFrame([
    {'model': 'trained', 'measurement': name, 'seed': 0, 'relation': r, 'step': step, 'value': float(v)}
    for name, own in curves.items()
    for r, values in enumerate(own)
    for step, v in zip(stops, values, strict=True)
  ])  # fmt: skip
  np.testing.assert_array_equal(dynamics.by_relation(table, 'accuracy'), [[5, 25]])
  np.testing.assert_array_equal(dynamics.by_relation(table, 'flipped'), [[15, 15]])


@pytest.mark.parametrize('axis', ['subjects', 'relations'])
def test_the_smallest_width_of_a_geometric_memory_is_found(axis, tmp_path):
  preset, rows = phases.PRESETS['full']['sizes'], []
  for axes, kind in preset.kinds():
    if axes[1] == axis:
      value = float(kind.dim >= 16 * kind.relations)
      names = 'accuracy', 'old_maps', 'probe_accuracy', 'swapped', 'memorised', *READERS
      about = dataclasses.asdict(kind) | {
        'map': ' × '.join(axes),
        'coordinates': 1.0,
        'control': None,
      }
      rows += [
        about | {'measurement': name, 'seed': s, 'value': value} for name in names for s in (0, 1)
      ]
  table = pd.DataFrame(rows)
  found = [f for f in phases.expect(table) if '/ 16·R' in f.what]
  assert len(found) == table[axis].nunique() and all(f.value == 1 for f in found)
  assert phases.STUDY.draw(table, tmp_path)


def test_random_directions_are_read_better_the_wider_they_are_and_alone_always():
  def right(relations, dim):
    own = sizes(64, relations, 8, 1) | {'dim': dim}
    return phases.random_directions(Kind(**own, **GEOMETRIC_OPTIONS), seed=0)

  found = pd.DataFrame([right(4, dim) for dim in (8, 32, 64, 256)])
  assert (np.diff(found, axis=0)[:2] > 0).all() and found['random_directions'].iloc[3] > 0.95
  assert (
    found['least_squares'][2:] == 1
  ).all()  # where d is at least R times the width of the codes
  assert right(1, 16) == {'random_directions': 1, 'least_squares': 1}


@pytest.mark.parametrize(
  ('model', 'trained'),
  [
    ('trained', {'subjects', 'relations', 'positions', 'value', 'output', 'scale'}),
    ('random weights', {'subjects'}),
  ],
)
def test_a_kind_trains_what_it_says(model, trained):
  """The last parts of the names of the trained parameters are those listed, and those of the MLP if it is trained."""
  kind = Kind(
    model=model, subjects=8, relations=2, steps=1, dim=32, width=4, batch=4, **GEOMETRIC_OPTIONS
  )
  free, _ = optimization.split(kind.recipe(), draw(kind.task(Facts.bijections(8, 2), 0).config, 0))
  mlp = {'in', 'in_bias', 'out', 'out_bias'} if model == 'trained' else set()
  assert {name.split('/')[-1] for name in free} == trained | mlp


def test_parts_of_the_recipe_are_taken_away_one_by_one_or_together():
  """Each case names what it lacks; the one that lacks all unneeded parts has a bound of its own, at every R."""
  preset = transfer_study.Preset(
    first=sizes(16, 2, 4, 10), changes={'noise': (0.0,), 'answer_dim': (None,)}, map_steps=1, seeds=2,
    combined=transfer_study.SIMPLER,
  )  # fmt: skip
  rows = [
    {**dataclasses.asdict(kind), 'measurement': measurement, 'control': None, 'seed': seed, 'value': 0.9}
    for kind in preset.kinds() for seed in (0, 1)
    for measurement in ('accuracy', *transfer_study.WAYS, *transfer_study.GEOMETRIC)
  ]  # fmt: skip
  table = pd.DataFrame(rows)
  texts = [text for _, _, text, _ in transfer_study.cases(table)]
  assert texts == [
    'N = 16, R = 2, d = 64, F = 64', 'N = 16, R = 2, but noise = 0', 'N = 16, R = 2, but answer vectors of all dimensions',
    'N = 16, R = 2, but noise = 0, unembedding trained',
  ]  # fmt: skip
  bound = {
    f.what: f.at_least for f in transfer_study.STUDY.findings(table) if 'lowest of' in f.what
  }
  assert list(bound.values()) == [None, None, None, 0.95]


def test_a_case_that_two_parts_share_is_the_later_ones(monkeypatch):
  """With more seeds there; a drop is that of the seeds that both have, each from its own part's first case."""
  monkeypatch.setattr(transfer_study, 'GEOMETRIC', ('old_maps',))
  kind = dataclasses.asdict(Kind(**GEOMETRIC_OPTIONS | sizes(8, 8, 8, 1) | transfer_study.SIMPLER))
  row = lambda value, seed, **other: {
    **kind, 'attention': 'fixed', **other, 'measurement': 'old_maps', 'control': None, 'seed': seed, 'value': value,
  }  # fmt: skip
  rows = [row(0.5, 0), row(0.1, 0, attention='trained'), row(0.2, 0, label_smoothing=0.0)]
  rows += [row(1.0, seed) for seed in (0, 1)] + [
    row(0.4, seed, attention='trained') for seed in (0, 1)
  ]
  found = {
    f.what.split(': ')[0] + f.what[-6:]: f
    for f in transfer_study.expect(pd.DataFrame(rows))
    if 'drop' in f.what
  }
  drops = [(f.value, f.seeds) for f in found.values()]
  assert sorted(drops) == [(pytest.approx(0.6), 2), (pytest.approx(0.8), 1)]
