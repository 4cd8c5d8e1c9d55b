"""The studies that do not train (construct, bounds, approximate), and the README's commands and examples."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from constructions import registry
from experiments import approximate, bounds, construct, pages
from experiments.harness import instances, records, studies, tradeoff
from experiments.harness.statistics import select, summarize
from experiments.harness.trainer import Progress
from geomem.saved import models

ROOT = Path(__file__).parents[1]


# --- construct ------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
  some = {name: registry.entry(name) for name in ('selector', 'keyvalue', 'superposition')}
  monkeypatch.setattr(registry, 'REGISTRY', some)


@pytest.mark.parametrize(
  ('asked', 'hops'),
  [({}, [1, 2, 1]), ({'hops': 3}, [1, 3, 1]), ({'construction': ('selector', 'keyvalue')}, [1, 1])],
)
def test_hops_of_all_and_of_those_named(asked, hops, few, tmp_path):
  found = construct.STUDY.run(workdir=tmp_path, subjects=4, relations=2, save=False, **asked).table
  assert found['hops'].tolist() == hops and (found['accuracy'] == 1).all()


def test_the_models_are_saved_again_in_the_same_place(few, tmp_path):
  for subjects in (4, 5):
    found = construct.STUDY.run(workdir=tmp_path, subjects=subjects, relations=2).table
    assert found['subjects'].tolist() == [subjects] * 3 and (found['build_seconds'] > 0).all()
  for name in registry.REGISTRY:
    assert models.load(tmp_path / name).facts.subjects == 5


def test_a_promise_that_is_broken_fails(few, tmp_path, monkeypatch):
  build = registry.build
  lame = lambda name, *about, **more: build(name, *about, **more).replace(margin=1e6)
  monkeypatch.setattr(registry, 'build', lame)
  sizes = '--construction=selector', '--subjects=4', '--relations=2'
  with pytest.raises(SystemExit, match='FAILED: selector, N = 4, R = 2, k = 1: smallest margin'):
    construct.STUDY.main(['construct', *sizes, f'--workdir={tmp_path}'])
  assert records.read(tmp_path).table['accuracy'].tolist() == [1]


def test_the_committed_records_have_every_construction_and_each_keeps_its_promise():
  table = pages.committed('construct').records.table
  assert table['construction'].tolist() == list(registry.REGISTRY)
  held = [f.holds for f in construct.STUDY.findings(table)]
  assert held.count(True) == 2 * sum(known.exact for known in registry.REGISTRY.values())
  assert False not in held


# --- bounds ---------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('bounds')


@pytest.fixture(scope='module')
def table(folder):
  return bounds.STUDY.run('smoke', folder).table


def curve(table, name):
  return select(table, bound=name)['internal_bits'].to_numpy()


def test_every_construction_is_a_verified_point(table):
  points = select(table, kind='construction')
  assert points['construction'].tolist() == registry.multi_hop() and (points['accuracy'] == 1).all()
  assert (points['min_margin'] >= points['promised_margin']).all()


def test_curves_are_in_order_and_below_every_point(table):
  exact = curve(table, 'exact')
  for name in ('global', 'local'):
    assert np.all(curve(table, name) <= curve(table, f'sharp_{name}') + 1e-9)
    assert np.all(curve(table, f'sharp_{name}') <= exact + 1e-9)
  assert exact[0] > curve(table, 'sharp_local')[0] > curve(table, 'local')[0] > 0
  price = select(table, bound='exact')['subject_bits']
  for point in select(table, kind='construction').to_dict('records'):
    assert point['internal_bits'] > np.interp(point['subject_bits'], price, exact)


def test_only_the_global_bound_is_called_the_papers(table):
  papers = [name for name, style in tradeoff.STYLES.items() if 'the paper' in style[0]]
  assert papers == ['global']
  curves = pd.DataFrame(tradeoff.bounds(64, 4, 2, max_bits=500))
  mixed = pd.concat([select(table, kind='construction'), curves])
  assert [f.what for f in bounds.expect(mixed) if 'B_int' not in f.what] == [
    'global bound: ours / the paper’s, minimum over B_emb',
    'our local bounds: sharper / by trees, minimum over B_emb',
  ]


def test_the_figure_is_drawn_from_the_saved_records(table, folder):
  first = [path.read_bytes() for path in bounds.STUDY.draw(table, folder)]
  again = [path.read_bytes() for path in bounds.STUDY.draw(records.read(folder).table, folder)]
  assert first == again and all(len(drawn) > 5000 for drawn in first)


# --- approximate ----------------------------------------------------------------------------------


def test_accuracy_grows_with_size_and_the_exact_ones_are_exact(tmp_path, monkeypatch):
  ends = {name: some[:: len(some) - 1] for name, some in instances.MEMORY_CONSTANTS.items()}
  monkeypatch.setattr(instances, 'MEMORY_CONSTANTS', ends)
  found = approximate.STUDY.run('smoke', tmp_path).table
  rows = summarize(found, 'construction', 'constant')
  for name in ends:
    least, most = select(rows, construction=name)['value']
    assert least < 0.9 < most
  for name in approximate.EXACT:
    assert select(rows, construction=name)['least'].tolist() == [1]
  assert all(path.stat().st_size > 5000 for path in approximate.STUDY.draw(found, tmp_path))


# --- what a terminal shows ------------------------------------------------------------------------


def test_progress_says_what_is_under_way_and_nothing_to_a_file(monkeypatch, capsys, tmp_path):
  with Progress('study', tmp_path) as quiet:
    quiet(200, 2000, 'sweep 1')
  assert capsys.readouterr() == ('', '')
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
  monkeypatch.setenv('TERM', 'xterm')
  with Progress('study', tmp_path) as told:
    told(200, 2000, 'sweep 1: 7 models')
  out, err = capsys.readouterr()
  assert out == '' and 'sweep 1: 7 models' in err and '200/2000' in err


# --- the README -----------------------------------------------------------------------------------


def in_readme(language):
  return re.findall(rf'```{language}\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)


@pytest.fixture
def new_folder(tmp_path, monkeypatch):
  (tmp_path / 'docs').symlink_to(ROOT / 'docs')
  monkeypatch.chdir(tmp_path)


SMOKE = [f'python -m experiments.{name} --scale=smoke' for name in studies.NAMES]
BLOCKS = [[line for line in b.splitlines() if line not in SMOKE] for b in in_readme('sh')]


@pytest.mark.usefixtures('new_folder')
@pytest.mark.parametrize('lines', [lines for lines in BLOCKS if lines], ids=lambda lines: lines[0])
def test_the_lines_of_the_readme_run(lines, monkeypatch):
  """The lines of every block run, except presets that other tests run; `train` takes only a few steps.

  All run in this process: others test that binaries run in processes of their own.
  """
  for line in lines:
    python, option, module, *given = shlex.split(line)
    assert (python, option) == ('python', '-m')
    if module == 'experiments.train' and not any(word.startswith('--steps') for word in given):
      given = [*given, '--steps=20']
    path = str(ROOT.joinpath(*module.split('.')).with_suffix('.py'))
    monkeypatch.setattr(sys, 'argv', [path, *given])
    runpy.run_path(path, run_name='__main__')


@pytest.mark.usefixtures('new_folder')
def test_the_python_of_the_readme_runs(capsys):
  first, recipe, *_ = in_readme('python')  # the others: test_new_subjects.py, test_interop.py
  exec(compile(first, 'README.md', 'exec'), {})
  assert 'queries=4000, correct=4000' in capsys.readouterr().out
  exec(compile(recipe, 'README.md', 'exec'), {})
  assert float(capsys.readouterr().out) >= 0.99  # what the README says of it
