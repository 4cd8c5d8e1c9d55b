"""Every notebook is well-formed, and all but interop.ipynb (see test_interop.py) run from top to bottom within seconds."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pretrained_models as models
import pytest

from geomem.pretrained import load

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / 'notebooks').glob('*.ipynb'))
# What must be true once every cell has run.
TRUE = {
  'quickstart': """
assert report.accuracy == 1 and report.min_margin == built.margin and report.queries == 4 * subjects
assert again.correct and again.answer == 'Black Sea' and trained.accuracy == 1
""",
  'inside': """
assert symbols.tolist() == few.answers_RxN[:, 2].tolist()
assert edited.accuracy == 1 and swapped.accuracy == 1
for i, score in enumerate(right.values()):
  assert score[i] < 0.5 and np.delete(score, i).min() == 1
assert all(record['accuracy'] == 1 and record['bound_bits'] <= record['internal_bits'] for record in records)
assert len(plt.get_fignums()) == 1
""",
  'transfer': """
assert losses[-1].max() < losses[0].min()
(exact_row,) = constructed_rows
for name in ('accuracy', 'superposition', 'swapped', 'kept', 'zero_shot'):
  assert abs(exact_row[name] - 1) < 1e-4, name
assert all(row['shuffled'] < 0.5 for row in untrained_rows + constructed_rows)
assert all(row['zero_shot'] < 0.5 for row in untrained_rows)
""",
  'tpu': """
assert half.accuracy == 1 and half.dtype == 'bfloat16' and half.min_margin == 4
assert sum(s.data.shape[0] for s in state.params['embed']['subjects'].addressable_shards) >= subjects
assert sweep.mesh.size == len(jax.devices()) == 2
""",
}


def cells(path):
  """The kind and the source of every cell, by its id."""
  notebook = json.loads(path.read_text(encoding='utf-8'))
  return {c['id']: (c['cell_type'], ''.join(c['source'])) for c in notebook['cells']}


@pytest.mark.parametrize('path', PATHS, ids=lambda path: path.stem)
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


@pytest.mark.parametrize('path', PATHS, ids=lambda path: path.stem)
def test_colab_opens_this_file(path):
  title = next(iter(cells(path).values()))[1]
  assert f'/blob/main/{path.relative_to(ROOT)}' in title and 'colab-badge.svg' in title


class Shell:
  """The part of IPython's shell that the notebooks use: transformers that may change a cell before it runs."""

  def __init__(self):
    self.input_transformers_post = []

  def run(self, path, change=lambda source: source):
    """Runs every code cell and returns what is defined at the end."""
    space = {'__name__': 'notebook', 'get_ipython': lambda: self}
    for name, (kind, source) in cells(path).items():
      lines = change(source).splitlines(keepends=True)
      for transform in self.input_transformers_post:
        lines = transform(lines)
      if kind == 'code':
        exec(compile(''.join(lines), name, 'exec'), space)
    return space


@pytest.fixture
def small(tmp_path, monkeypatch):
  """Sizes that take seconds, a folder of its own, and no display."""
  monkeypatch.setenv('GEOMEM_SMALL', '1')
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(plt, 'show', lambda: None)
  plt.close('all')
  yield
  plt.close('all')


@pytest.mark.parametrize('name', TRUE)
def test_it_runs_from_top_to_bottom(name, small):
  space = Shell().run(ROOT / f'notebooks/{name}.ipynb')
  exec(compile(TRUE[name], 'what must be true', 'exec'), space)


def test_new_subjects_runs_from_top_to_bottom(tmp_path, monkeypatch, small):
  """It runs with a tiny random model in place of the real one, for two steps."""
  pytest.importorskip('tokenizers')
  monkeypatch.setattr(models, 'LENGTH', 128)
  monkeypatch.setattr(models, 'LETTERS', 'rbgvwo')  # colours begin with different tokens
  models.write(tmp_path / 'llama', 'llama')
  tiny = load.load(tmp_path / 'llama')
  monkeypatch.setattr(load, 'missing', lambda: None)
  monkeypatch.setattr(load, 'load', lambda: tiny)
  smaller = {'STEPS = 120': 'STEPS = 2', 'black': 'violet', 'gold': 'orange'}

  def change(source):
    for old, new in smaller.items():
      source = source.replace(old, new)
    return source

  space = Shell().run(ROOT / 'notebooks/new_subjects.ipynb', change)
  assert space['said'].shape == (20, 2) and 0 <= space['right'] <= 1
  assert set(space['flips']) == {'subject', 'last token'}


def test_without_the_language_model_the_notebook_says_so_and_does_nothing_more(
  monkeypatch, small, capsys
):
  monkeypatch.setattr(load, 'missing', lambda: 'there is none')
  monkeypatch.setattr(load, 'load', lambda: pytest.fail('it goes on'))
  space = Shell().run(ROOT / 'notebooks/new_subjects.ipynb')
  assert capsys.readouterr().out == 'The notebook stops here: there is none\n'
  assert 'model' not in space and 'encoder' not in space
