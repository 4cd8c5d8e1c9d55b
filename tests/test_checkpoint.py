"""A saved model loads back to the same bits or is refused in one line; nothing is half-written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from constructions import registry
from experiments import ask
from geomem.checks import verify
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.inside import trace
from geomem.saved import models

NAMES = ('Marie Curie', 'Zoë', '居里', 'a | b', 'e')
CLOSED = Facts(
  np.array([[1, 2, 3, 4, 0], [0, 0, 2, 1, 4]], np.int32), 5, True, NAMES, ('born in', 'R'), NAMES
)
OWN = Facts(  # the first relation has two distinct answers, the second three
  np.array([[0, 3, 3, 0, 0], [4, 1, 2, 4, 4]], np.int32), 5, False, NAMES, ('born in', 'R'), NAMES
)


def build(name, seed=None):
  known = registry.entry(name)
  facts = OWN if known.own_answers else CLOSED
  if seed is not None:
    facts = Facts.bijections(6, 2, seed)
  return registry.build(name, facts, 2 if known.multi_hop else 1)


def same(one, other) -> bool:
  """Whether two constructions are the same to the bit, except for what only their builder can provide."""
  (bits, shape), (other_bits, other_shape) = (
    jax.tree.flatten(jax.tree.map(lambda a: (a.dtype, a.shape, a.tobytes()), c.params))
    for c in (one, other)
  )
  fields = ('name', 'config', 'layout', 'hidden', 'hops', 'margin', 'chain_of_thought', 'options')
  names = ('attributes', 'closed', 'subject_names', 'relation_names', 'attribute_names')
  return (
    (bits, shape) == (other_bits, other_shape)
    and np.array_equal(one.facts.answers_RxN, other.facts.answers_RxN)
    and all(getattr(one, field) == getattr(other, field) for field in fields)
    and all(getattr(one.facts, name) == getattr(other.facts, name) for name in names)
  )


def contents(folder) -> dict[str, bytes | None]:
  paths = sorted(Path(folder).rglob('*'))
  return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


@pytest.mark.parametrize('name', registry.REGISTRY)
def test_every_construction_loads_back(name, tmp_path):
  built = build(name)
  models.save(tmp_path / name, built)
  loaded = models.load(tmp_path / name)
  assert same(loaded, built)
  if built.readout is None:
    assert loaded.readout is None
  else:
    report = verify.certificate(loaded)
    assert report == verify.certificate(built)
    assert built.margin is None or report.holds(built.margin)


def test_a_loaded_disjoint_model_is_traced_by_name(tmp_path):
  models.save(tmp_path / 'own', build('disjoint'))
  text = '\n'.join(trace.lines(trace.trace_prompt(models.load(tmp_path / 'own'), [1, 6])))
  assert 'blocks[born in] = a | b; blocks[R] = Zoë' in text and 'own answer' not in text


def test_odd_bits_survive(tmp_path):
  built = build('selector')
  odd = np.array([-0.0, np.inf, np.nan, 1e-45, np.float32(0.1)], np.float32)
  built.params['embed']['relations'].ravel()[:5] = odd
  built.params['embed']['positions'].view(np.uint32).ravel()[0] = 0x7FC12345  # a NaN with a payload
  models.save(tmp_path / 'odd', built)
  assert same(models.load(tmp_path / 'odd'), built)


def test_saving_again_replaces_all(tmp_path):
  models.save(tmp_path / 'model', build('precomputed'))
  (tmp_path / 'model' / 'notes.txt').touch()
  with pytest.raises(InputError, match=r'notes\.txt'):
    models.save(tmp_path / 'model', build('selector'))
  (tmp_path / 'model' / 'notes.txt').unlink()
  built = build('selector', seed=1)
  models.save(tmp_path / 'model', built)
  assert same(models.load(tmp_path / 'model'), built)
  assert sorted(p.name for p in (tmp_path / 'model').iterdir()) == ['arrays', 'config.json']
  assert [p.name for p in tmp_path.iterdir()] == ['model']


def test_an_empty_folder_can_be_saved_to(tmp_path, monkeypatch):
  (tmp_path / 'model').mkdir()
  monkeypatch.chdir(tmp_path)
  models.save('model', build('selector'))
  assert same(models.load('model'), build('selector'))


@pytest.mark.parametrize('foreign', ['file', 'folder', 'other format'])
def test_nothing_else_is_written_over(foreign, tmp_path):
  path = tmp_path / 'thesis'
  if foreign == 'file':
    path.write_text('x')
  else:
    path.mkdir()
    (path / 'config.json').write_text('{"format": "a thesis"}' if foreign != 'folder' else 'x')
  before = contents(tmp_path)
  with pytest.raises(InputError, match='thesis exists and is not a geomem model; choose another'):
    models.save(path, build('selector'))
  assert contents(tmp_path) == before


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  path = tmp_path_factory.mktemp('models') / 'selector'
  models.save(path, build('selector'))
  return path


def halve(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
  path.write_bytes(b'')


def flip(path):
  """Flips a bit at five places of the file, one at a time."""
  whole = path.read_bytes()
  for at in np.linspace(0, len(whole) - 1, 5, dtype=int).tolist() if whole else ():
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    yield


@pytest.mark.parametrize('damage', [halve, empty, Path.unlink, flip])
def test_damage_is_refused_or_harmless(damage, saved, tmp_path):
  files = sorted(p.relative_to(saved) for p in saved.rglob('*') if p.is_file())
  assert len(files) > 5
  built = build('selector')
  for file in files:
    model = tmp_path / 'model'
    shutil.copytree(saved, model)
    for _ in damage(model / file) or [None]:
      try:
        loaded = models.load(model)
      except InputError as error:
        assert str(model) in str(error) and '\n' not in str(error) and len(str(error)) < 400
      else:  # whitespace in config.json, or half of an empty file
        assert same(loaded, built)
        assert file.name == 'config.json' or not (saved / file).stat().st_size
    shutil.rmtree(model)


@pytest.mark.parametrize(
  ('change', 'told'),
  [
    ({'version': 1}, 'version 1 of the format; this code reads 2'),
    ({'version': None}, 'version None of the format'),
    ({'format': 'other'}, 'not a geomem model'),
    ({'model': {'hops': 2}}, 'config.json is not what was saved'),
    ({'model': {'margin': 5}}, 'config.json is not what was saved'),
    ({'crc32': None}, 'config.json is not what was saved'),
    ({'arrays': {}}, 'config.json is not what was saved'),
    ({'model': {'config': None}}, 'config.json is not what was saved'),
    ({'model': {'options': {'dim': 6}}}, 'config.json is not what was saved'),
  ],
)
def test_another_config_is_refused(change, told, saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'model')
  config = tmp_path / 'model' / 'config.json'
  fields = json.loads(config.read_text())
  change = {k: {**fields[k], **v} if isinstance(v, dict) and v else v for k, v in change.items()}
  config.write_text(json.dumps({**fields, **change}))
  with pytest.raises(InputError) as error:
    models.load(tmp_path / 'model')
  assert told in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('make', 'told'),
  [
    (lambda path: None, 'no model there; build one with python -m experiments.construct'),
    (Path.touch, 'no model there'),
    (Path.mkdir, 'not a geomem model'),
  ],
)
def test_what_is_no_model_is_not_loaded(make, told, tmp_path):
  make(tmp_path / 'model')
  with pytest.raises(InputError, match=told):
    models.load(tmp_path / 'model')


def test_a_model_without_arrays_is_refused(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'model')
  shutil.rmtree(tmp_path / 'model' / 'arrays')
  with pytest.raises(
    InputError, match='damaged model: arrays/.* is missing, or not what was saved'
  ):
    models.load(tmp_path / 'model')


class Full(Exception):
  pass


def full(*_, **__):
  raise Full('No space left on device')


@pytest.mark.parametrize(
  ('step', 'older'),
  [(step, older) for step in ('arrays', 'config', 'in', 'space') for older in (False, True)]
  + [('out', True)],
)
def test_an_interrupted_save_leaves_things_as_they_were(step, older, saved, tmp_path, monkeypatch):
  if older:
    shutil.copytree(saved, tmp_path / 'model')
  before, rename = contents(tmp_path), Path.rename
  if step == 'arrays':
    monkeypatch.setattr(ocp.CheckpointManager, 'save', full)
  elif step == 'config':
    monkeypatch.setattr(Path, 'write_text', full)
  elif step == 'space':
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(100, 50, 50))
  else:
    last = {'out': 'model', 'in': 'new'}[step]
    moved = lambda path, to: full() if path.name == last else rename(path, to)
    monkeypatch.setattr(Path, 'rename', moved)
  with pytest.raises((Full, OSError, InputError), match='No space left|do not fit') as error:
    models.save(tmp_path / 'model', build('selector', seed=2))
  assert '\n' not in str(error.value)
  monkeypatch.undo()
  assert contents(tmp_path) == before


KILLED = """
import os, sys
from pathlib import Path
from geomem.saved import models
built, rename = models.load(sys.argv[1]), Path.rename
Path.rename = lambda path, to: os._exit(9) if path.name == sys.argv[3] else rename(path, to)
models.save(sys.argv[2], built)
"""


@pytest.mark.parametrize('step', ['new', '.model.replaced'])
def test_a_save_that_is_killed_leaves_one_model(step, saved, tmp_path):
  older, newer = build('selector', seed=1), models.load(saved)
  models.save(tmp_path / 'model', older)
  arguments = (sys.executable, '-c', KILLED, saved, tmp_path / 'model', step)
  environment = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[1])}
  assert subprocess.run(arguments, check=False, env=environment).returncode == 9
  assert (tmp_path / 'model').exists() == (step != 'new')
  assert models.names(tmp_path) == ['model'] and models.is_model(tmp_path / 'model')
  assert same(models.load(tmp_path / 'model'), older if step == 'new' else newer)
  assert ask.find_model(tmp_path, None) == ask.find_model(tmp_path / 'model', None)
  models.save(tmp_path / 'model', newer)
  assert same(models.load(tmp_path / 'model'), newer)
  assert not list(tmp_path.glob('.*.replaced'))


def test_a_place_that_cannot_be_written_to(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(OSError):
    models.save(tmp_path / 'file' / 'model', build('selector'))
  assert contents(tmp_path) == {'file': b''}
