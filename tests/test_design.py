"""docs/design.md, docs/theory.md and the pages around them are right about imports, examples and statements."""

import ast
import functools
import graphlib
import math
import re
import sys
import types
from pathlib import Path

import pytest

from constructions import registry
from experiments.harness import records
from geomem.checks import lower_bounds, verify
from geomem.facts import Facts

ROOT = Path(__file__).parents[1]
ALLOWED = {
  'geomem': {'geomem'},
  'constructions': {'constructions', 'geomem'},
  'experiments': {'experiments', 'constructions', 'geomem'},
}


@functools.cache
def imported(path, anywhere=True):
  """Dotted names of all modules that a file imports: anywhere, or only at its top level."""
  found, tree = set(), ast.parse(path.read_text(encoding='utf-8'))
  for node in ast.walk(tree) if anywhere else tree.body:
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: a relative import'
      found |= {f'{node.module}.{alias.name}' for alias in node.names} | {node.module}
  return found


@pytest.mark.parametrize('package', ALLOWED)
def test_imports_point_one_way(package):
  others = {*ALLOWED, 'tests', 'conftest'} - ALLOWED[package]
  for path in (ROOT / package).rglob('*.py'):
    assert not {name.split('.')[0] for name in imported(path)} & others, path


@pytest.mark.parametrize('package', ['geomem', 'constructions'])
def test_no_modules_import_each_other(package):
  modules = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts): path
    for path in (ROOT / package).rglob('*.py')
    if path.name != '__init__.py'
  }
  graph = {name: imported(path, anywhere=False) & modules.keys() for name, path in modules.items()}
  assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(modules)


# --- docs/design.md -------------------------------------------------------------------------------


@functools.cache
def examples():
  """The page's Python examples: a construction, its use, an experiment."""
  return re.findall(r'```python\n(.*?)```', (ROOT / 'docs/design.md').read_text(), re.DOTALL)


def test_every_module_is_on_the_map():
  """The page links all modules but constructions, binaries, figures and geomem/pretrained, and all folders."""
  text = (ROOT / 'docs/design.md').read_text(encoding='utf-8')
  shown = [*(ROOT / 'geomem').rglob('*.py'), *(ROOT / 'experiments/harness').glob('*.py'),
           *ROOT.glob('experiments/web/*.py'), *ROOT.glob('experiments/language/*.py')]  # fmt: skip
  modules = {path.relative_to(ROOT) for path in shown if path.name != '__init__.py'}
  assert len(modules) > 40
  for path in modules:
    assert path.parent.name == 'pretrained' or f'](../{path})' in text, path
  for path in {*ROOT.glob('geomem/*/'), *ROOT.glob('experiments/*/')}:
    if (path / '__init__.py').exists():
      assert f'](../{path.relative_to(ROOT)})' in text, path


def test_no_folders_of_the_library_import_each_other():
  """Imports between the folders have no cycle; no module next to them imports one, except the façade in its methods."""
  folders = {path.parent.name for path in ROOT.glob('geomem/*/__init__.py')}
  facade = ROOT / 'geomem/facade.py'

  def rooms(paths, anywhere=True):
    parts = [name.split('.') for path in paths for name in imported(path, anywhere)]
    return {name[1] for name in parts if name[0] == 'geomem' and len(name) > 1} & folders

  graph = {f: rooms((ROOT / 'geomem' / f).glob('*.py')) - {f} for f in folders}
  assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(folders) == 6
  beside = {path for path in ROOT.glob('geomem/*.py') if path.name != '__init__.py'}
  assert not rooms(beside - {facade}) and not rooms({facade}, anywhere=False)
  shared = {name for path in ROOT.glob('experiments/harness/*.py') for name in imported(path)}
  assert all(name.startswith('experiments.harness') for name in shared if 'experiments' in name)


def code_lines(source):
  """Lines that are neither blank nor part of the docstring."""
  body = source.split('"""', 2)[2]
  return [line for line in body.splitlines() if line.strip()]


def test_the_construction_of_the_page(capsys):
  construction, use, _ = examples()
  assert len(code_lines(construction)) < 50
  space = {}
  for source in (construction, use):
    exec(source, space)
  told = capsys.readouterr().out
  assert space['report'].queries == 48 and space['report'].accuracy == 1
  assert 'one_hot: d = 48, 16.2 bits' in told and 'selector: d = 12, 12.0 bits' in told
  answer = space['table'].answers_RxN[2, 5]
  assert f'answer              s{answer}, by a margin of' in told


def test_the_experiment_of_the_page(tmp_path, capsys, monkeypatch):
  """The example runs as if it were a module of experiments."""
  assert len(code_lines(examples()[2])) < 50
  module = types.ModuleType('experiments.noise')
  monkeypatch.setitem(sys.modules, module.__name__, module)
  exec(compile(examples()[2], 'noise', 'exec'), module.__dict__)

  def run(*arguments):
    module.STUDY.main(['noise', f'--workdir={tmp_path}', *arguments])
    return (tmp_path / 'results.json').read_bytes(), (tmp_path / 'noise.png').read_bytes()

  first = run('--scale=smoke')
  table = records.read(tmp_path).table
  assert len(table) == 2 * 2 * 6 and 'records: ' in capsys.readouterr().out
  assert run('--scale=smoke') == run('--redraw') == first
  right, ruined = module.STUDY.findings(table)
  assert right.holds and ruined.holds and right.seeds == 2 and 'other facts' in right.controls
  exact = table[(table['noise'] == 0) & table['control'].isna()]
  assert exact['value'].tolist() == [1, 1]


# --- docs/theory.md -------------------------------------------------------------------------------


@functools.cache
def theory():
  return ' '.join((ROOT / 'docs/theory.md').read_text(encoding='utf-8').split())


@pytest.mark.parametrize('name', registry.REGISTRY)
def test_every_construction_has_its_statement(name):
  """docs/theory.md has each construction's theorem, size (if it is exact), module and test."""
  known = registry.entry(name)
  module = known.builder.__module__.replace('.', '/') + '.py'
  assert f'](../{module})' in theory() and f'`{name}`' in theory()
  assert known.theorem.split(' (')[0].split(',')[0] in theory()
  if known.exact:
    assert known.size in theory()
  (row,) = re.findall(
    rf'\| [^|]*`{name}`[^|]*\| \[\w+\.py\]\(\.\./{module}\) \| ([^|]*) \|', theory()
  )
  assert '](../tests/test_' in row


def test_no_formula_is_read_as_emphasis():
  """After a prime an underscore opens emphasis in Markdown; after a letter it does not."""
  lines = (ROOT / 'docs/theory.md').read_text(encoding='utf-8').splitlines()
  assert [line for line in lines if '′_' in line and not line.startswith('    ')] == []


@pytest.mark.parametrize('relations, hops', [(2, 2), (2, 4), (3, 3), (8, 2), (16, 3)])
def test_the_corollary_follows_from_the_bounds(relations, hops):
  """B_emb ≤ ⅛ R^k log₂(N/4e) leaves B_int ≥ ⅛ N R log₂(N/4e), as soon as a tree fits."""
  least = lower_bounds.tree_vertices(relations, hops)
  for subjects in (least, least + 1, 2 * least - 1, 10 * least + 3, 10**6):
    share = math.log2(subjects / (4 * math.e)) / 8
    if share > 0:
      got = lower_bounds.internal_bits(subjects, relations, hops, share * relations**hops)
      assert got >= share * subjects * relations


def test_random_directions_hold_whole_tables_as_often_as_proved():
  """The default D is the theorem's for δ = ¼: at least three in four draws of directions answer every query."""
  table = Facts.bijections(16, 2)
  right = [
    verify.exhaustive(registry.build('superposition', table, seed=seed)).accuracy == 1
    for seed in range(24)
  ]
  assert sum(right) / len(right) >= 0.75


# --- the pages around them ------------------------------------------------------------------------


def test_the_citation_is_of_this_version():
  cited = (ROOT / 'CITATION.cff').read_text(encoding='utf-8')
  (version,) = re.findall(r'^version = (\S+)$', (ROOT / 'setup.cfg').read_text(), re.MULTILINE)
  assert f'\nversion: {version}\n' in cited and '\ncff-version: 1.2.0\n' in f'\n{cited}'
  assert 'preferred-citation:' in cited and 'arXiv:2605.12426' in cited
