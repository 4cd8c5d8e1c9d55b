"""A run of an experiment: by one code, and told by the command that redoes it."""

import json
import shlex

import numpy as np
import pytest
from absl import flags

from experiments import language_model, structure, threshold, transfer
from experiments.harness import fitting, machine
from geomem.errors import InputError

FLAGS = flags.FLAGS


@pytest.fixture(autouse=True)
def parsed(monkeypatch):
  monkeypatch.setattr(machine, 'keep_compiled', lambda folder: None)
  FLAGS.unparse_flags()
  FLAGS([structure.__name__])


def found(folder, value):
  """What the run's only piece of work finds, or found before."""
  with fitting.run(folder, {'scale': 'smoke'}) as fitter:
    got = fitter.once(lambda: np.array(value))
    fitter.save()
  return int(got)


def test_a_run_goes_on_by_the_code_that_began_it_alone(tmp_path, monkeypatch):
  assert found(tmp_path, 1) == found(tmp_path, 2) == 1
  config = tmp_path / 'config.json'
  about = json.loads(config.read_text())
  assert about.pop('code') == machine.code()
  with (
    monkeypatch.context() as patched,
    pytest.raises(InputError, match='its code is .* not .other.'),
  ):
    patched.setattr(machine, 'code', lambda: 'other')
    found(tmp_path, 2)
  config.write_text(json.dumps(about))  # as runs were before they said
  with pytest.raises(InputError, match='its code is None'):
    found(tmp_path, 2)


def test_the_mark_is_of_modules_their_names_and_tables(tmp_path):
  module, table = tmp_path / 'geomem' / 'a.py', tmp_path / 'experiments' / 'data' / 'x.csv'
  marks = []

  def mark():
    marks.append(machine.code.__wrapped__(tmp_path))

  for path in (module, table):
    path.parent.mkdir(parents=True)
    path.write_text('one')
  mark()
  table.with_name('README.md').write_text('said')
  mark()
  assert marks[0] == marks[1]
  table.write_text('other')
  mark()
  module.write_text('other')
  mark()
  module.rename(module.with_name('b.py'))
  mark()
  assert len(set(marks)) == 4


@pytest.mark.parametrize(
  ('binary', 'given'),
  [
    (structure, ()),
    (transfer, ('--seed=3', '--seeds=2', '--relations=2', '--relations=4')),
    (language_model, ('--model=a folder', '--table=mine.csv')),
    (threshold, ('--find=dim', '--find=width', '--learning_rate=0.03', '--target=0.9', '--dim=4')),
  ],
)
def test_the_command_redoes_a_run(binary, given):
  FLAGS.unparse_flags()
  FLAGS(['x', *given, '--scale=smoke', '--workdir=w', '--save_seconds=1', '--noprofile'])
  name = binary.__name__.removeprefix('experiments.')
  python, m, module, scale, *rest = shlex.split(fitting.command(name))
  assert (python, m, module, scale) == ('python', '-m', binary.__name__, '--scale=smoke')
  assert sorted(rest) == sorted(given)
