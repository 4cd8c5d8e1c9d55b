"""The mechanism experiments, whole, at their smoke presets: records, controls, figures, bad claims caught."""

import functools
import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags

from experiments import claims
from experiments.harness import machine

FLAGS = flags.FLAGS
NAMES = ('structure', 'transfer', 'frozen_embeddings', 'from_constructed', 'capacity')
SIZES = {'subjects', 'relations'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('runs')


def run(name, folder, *arguments):
  """A binary's main, here: with what the tests forbid forbidden there too."""
  binary = importlib.import_module(f'experiments.{name}')
  FLAGS.unparse_flags()
  FLAGS([name, f'--workdir={folder / name}', '--save_seconds=0', *arguments])
  binary.main([name])
  return json.loads((folder / name / 'results.json').read_text())


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
  monkeypatch.setattr(machine, 'keep_compiled', lambda folder: None)


def values(records, **about):
  return [r['value'] for r in records if all(r[key] == value for key, value in about.items())]


def structure(records):
  """A construction scores one everywhere, and its controls do not."""
  built = [r for r in records if r['model'] == 'constructed']
  for name in (
    'accuracy',
    'superposition',
    'readout',
    'relation_selectivity',
    'patched',
    'ablated_other',
  ):
    assert values(built, measurement=name, control=None) == pytest.approx([1], abs=1e-4)
  for name in ('flipped', 'kept'):
    assert values(built, measurement=name, control=None, dose=1.0) == [1]
  assert values(built, measurement='ablated_own', control=None)[0] < 0.1
  for name, control in (('superposition', 'shuffled facts'), ('readout', 'shuffled facts'),
                        ('patched', 'random direction'), ('ablated_other', 'random units')):  # fmt: skip
    assert values(built, measurement=name, control=control)[0] < 0.7
  assert values(built, measurement='flipped', control='random direction', dose=1.0)[0] < 0.3


def from_constructed(records):
  """Gradient descent starts at what was built, and does not leave the right answers."""
  first = [r for r in records if r['step'] == 0 and r['start'] == 'exact']
  assert values(first, measurement='accuracy') == [1] and values(first, measurement='away') == [0]
  assert values(first, measurement='aligned', control=None) == pytest.approx([1], abs=1e-4)
  assert values(first, measurement='aligned', control='shuffled facts')[0] < 0.5
  last = [r for r in records if r['step'] == 40 and r['start'] == 'exact']
  assert values(last, measurement='accuracy') == [1]
  assert values(last, measurement='loss') < values(first, measurement='loss')


@pytest.mark.parametrize('name', ['selector_normed', 'selector', 'attention_only'])
def test_noise_shakes_every_array(name):
  """Also those that are all zeros, like a selector's query: unshaken they would get no gradient."""
  from_constructed = importlib.import_module('experiments.from_constructed')
  setting = from_constructed.Setting((name,), 16, 3, (0.0, 0.3), (0.0,), (1,), 1)
  exact, shaken, _ = (params for _, params in from_constructed.starts(setting, name, 0))
  for path, old in jax.tree_util.tree_leaves_with_path(exact):
    new = functools.reduce(lambda tree, key: tree[key.key], path, shaken)
    assert 0.01 < np.std(new - old) and new.dtype == old.dtype, jax.tree_util.keystr(path)


def transfer(records):
  """A construction answers for facts that it was not built for, however its embeddings are found."""
  built = [r for r in records if r['model'] == 'constructed']
  for name in ('accuracy', 'old_facts', 'a', 'b', 'c', 'superposition'):
    assert values(built, measurement=name) == pytest.approx([1], abs=1e-4)
  for control in ('untrained', 'associative'):
    assert values(records, model=control, measurement='a')[0] < 0.5


CHECKS = {'structure': structure, 'transfer': transfer, 'from_constructed': from_constructed}


@pytest.mark.parametrize('name', NAMES)
def test_an_experiment_records_what_it_measured_and_draws_that(name, folder, capsys, monkeypatch):
  figure, drawn = claims.EXPERIMENTS[name].figure, []
  with monkeypatch.context() as patch:
    patch.setattr(figure, 'draw', lambda records, _: drawn.append(records) or ['a figure'])
    records = run(name, folder, '--scale=smoke')
    told = capsys.readouterr().out
    before = (folder / name / 'results.json').read_bytes()
    run(name, folder, '--scale=smoke')  # answered from the checkpoint, to the last bit
    assert (folder / name / 'results.json').read_bytes() == before
    FLAGS.unparse_flags()
    FLAGS([name, f'--workdir={folder / name}', '--redraw'])
    importlib.import_module(f'experiments.{name}').main([name])
  assert json.loads(json.dumps(drawn)) == [records] * 3
  for record in records:
    if record.get('kind') not in ('construction', 'bound'):  # of experiments.bounds, drawn beside
      assert {'claim', 'measurement', 'model', 'control', 'seed', 'value'} | SIZES <= record.keys()
  assert 'figure: a figure' in told and len(told.splitlines()) > 4
  paths = figure.draw(records, folder / name)
  assert {Path(path).suffix for path in paths} == {'.png', '.pdf'}
  assert all(Path(path).stat().st_size > 8000 for path in paths)
  if name in CHECKS:
    CHECKS[name](records)
