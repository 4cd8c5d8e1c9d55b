"""Notebooks from the first cell to the last, at sizes of seconds; the first in a process of its own, interop.ipynb in test_interop.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pretrained_models as models
import pytest

from geomem.pretrained import load

ROOT = Path(__file__).parents[1]
PATH, NEW = (ROOT / 'notebooks' / f'{name}.ipynb' for name in ('quickstart', 'new_subjects'))
# What must be true once every cell has run.
TRUE = """
assert report.accuracy == 1 and report.min_margin == built.margin
assert report.queries == 4 * sizes.built == half.queries
assert half.accuracy == 1 and half.dtype == 'bfloat16' and half.min_margin == 4
assert symbols.tolist() == few.answers_RxN[:, 2].tolist()
assert edited.accuracy == 1 and swapped.accuracy == 1
assert all(record['accuracy'] == 1 and record['bound_bits'] <= record['internal_bits'] for record in records)
assert losses[-1].max() < losses[0].min()
(exact_row,) = constructed_rows
for name in ('accuracy', 'superposition', 'swapped', 'kept', 'zero_shot'):
  assert abs(exact_row[name] - 1) < 1e-4, name
for row in untrained_rows + constructed_rows:
  assert row['shuffled'] < 0.5
assert all(row['zero_shot'] < 0.5 for row in untrained_rows)
assert sum(s.data.shape[0] for s in state.params['embed']['subjects'].addressable_shards) >= sizes.large
assert len(plt.get_fignums()) == 2
"""


def cells(path=PATH):
  """The source of every cell, by its id, with its kind."""
  notebook = json.loads(path.read_text(encoding='utf-8'))
  return {c['id']: (c['cell_type'], ''.join(c['source'])) for c in notebook['cells']}


@pytest.mark.parametrize(
  'path', sorted((ROOT / 'notebooks').glob('*.ipynb')), ids=lambda path: path.stem
)
def test_it_is_a_notebook_without_outputs(path):
  notebook = json.loads(path.read_text(encoding='utf-8'))
  assert (notebook['nbformat'], notebook['nbformat_minor']) == (4, 5)
  assert {'cells', 'metadata', 'nbformat', 'nbformat_minor'} == notebook.keys()
  assert len(cells(path)) == len(notebook['cells'])
  for cell in notebook['cells']:
    assert 1 <= len(cell['id']) <= 64 and cell['cell_type'] in ('markdown', 'code')
    if cell['cell_type'] == 'code':
      assert cell['outputs'] == [] and cell['execution_count'] is None
      compile(''.join(cell['source']), cell['id'], 'exec')


@pytest.mark.parametrize(
  'path', sorted((ROOT / 'notebooks').glob('*.ipynb')), ids=lambda path: path.stem
)
def test_colab_opens_this_file(path):
  title = next(iter(cells(path).values()))[1]
  assert f'/blob/main/{path.relative_to(ROOT)}' in title and 'colab-badge.svg' in title


@pytest.fixture
def strict():
  """As conftest.py has it for the other tests, for a process of its own."""
  names = ('NUMPY_DTYPE_PROMOTION=strict', 'NUMPY_RANK_PROMOTION=raise')
  options = dict(f'JAX_{name}'.split('=') for name in names)
  options |= {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1', 'MPLBACKEND': 'Agg', 'GEOMEM_SMALL': '1'}
  return {**os.environ, **options, 'PYTHONPATH': str(ROOT)}


def test_it_runs_from_top_to_bottom(strict, tmp_path):
  ran = [(name, source) for name, (kind, source) in cells().items() if kind == 'code']
  program = tmp_path / 'notebook.py'
  program.write_text(f"""
space = {{'__name__': 'notebook'}}
for name, source in {[*ran, ('what must be true', TRUE)]!r}:
  exec(compile(source, name, 'exec'), space)
""")
  done = subprocess.run(
    [sys.executable, '-W', 'error', str(program)],
    check=False, env=strict, cwd=tmp_path, capture_output=True, text=True, timeout=1800,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_new_subjects_runs_from_top_to_bottom(tmp_path, monkeypatch):
  """With a tiny random model for the real one, in two steps."""
  pytest.importorskip('tokenizers')
  monkeypatch.setattr(models, 'LENGTH', 128)
  monkeypatch.setattr(models, 'LETTERS', 'rbgvwo')  # colours begin with different tokens
  models.write(tmp_path / 'llama', 'llama')
  tiny = load.load(tmp_path / 'llama')
  monkeypatch.setattr(load, 'load', lambda: tiny)
  monkeypatch.setattr(plt, 'show', lambda: None)
  space = {'__name__': 'notebook'}
  for name, (kind, source) in cells(NEW).items():
    if kind == 'code' and name != 'install':
      exec(
        compile(
          source.replace('STEPS = 120', 'STEPS = 2')
          .replace('black', 'violet')
          .replace('gold', 'orange'),
          name,
          'exec',
        ),
        space,
      )
  assert space['said'].shape == (20, 2) and 0 <= space['right'] <= 1
  assert set(space['flips']) == {'subject', 'last token'}
  plt.close('all')
