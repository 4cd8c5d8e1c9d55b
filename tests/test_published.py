"""Published code beside ours: what is searched, counted and refused; with stand-ins for their checkouts."""

import math
import sys

import pytest

from experiments import published
from geomem.errors import InputError
from geomem.facts import Facts


@pytest.mark.parametrize('least', [1, 2, 3, 37, 64, 1000])
def test_the_smallest_size_is_found_up_to_its_precision(least):
  tried = []
  found = published.smallest(lambda size: tried.append(size) or size >= least)
  assert least <= found <= max(least, math.ceil(1.06 * least))
  assert len(tried) < 2 * math.log2(least) + 8


@pytest.mark.parametrize('held', [5, 11, 23, 62])
def test_the_most_facts_are_searched_as_they_search(held):
  assert published.most(lambda facts: facts <= held, 5, 64) == held


def test_our_side_is_checked_and_counted():
  facts = Facts.bijections(16, 2)
  row = published.ours('selector', facts)
  m = 4  # bits of 16 answers
  d = 2 * m
  assert row['accuracy'] == 1 and row['bits'] == 16 * 2 * m
  assert row['tables'] == d * (16 + 2 + 2 + 16)
  assert (
    row['parameters'] == 2 * d + 2 * d * d + 2 * d * d + 2 * d
  )  # heads of key width 1, the MLP, its biases
  assert row['seconds'] > 0 and row['cpu_seconds'] > 0


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
  """A checkout of hebbian-mlps in which 37 hidden units are enough."""
  folder = tmp_path / 'src/hebbian/expts/mlp_capacity'
  folder.mkdir(parents=True)
  for inside in (folder, *list(folder.parents)[:2]):
    (inside / '__init__.py').touch()
  (folder / 'helpers.py').write_text("""
def run_mlp_experiment(d_model, num_facts, m, method_label, method_spec, device, seed):
  right = m >= 37 and method_spec['mlp_method'] == 'hebbian'
  return {'best_acc': float(right), 'param_count': 3 * d_model * m, 'success': right}
""")
  (tmp_path / 'src/torch.py').write_text('float64 = 8')
  monkeypatch.setattr(sys, 'path', sys.path[:])
  for name in [name for name in sys.modules if name.split('.')[0] in ('hebbian', 'torch')]:
    monkeypatch.delitem(sys.modules, name)
  yield tmp_path
  for name in [name for name in sys.modules if name.split('.')[0] in ('hebbian', 'torch')]:
    del sys.modules[name]


def test_both_sides_are_counted_in_the_same_way(stand_in):
  preset = published.Preset(hebbian=str(stand_in), dim=16, facts=16)
  theirs, *_, keyvalue, selector = rows = list(published.hebbian(preset, seed=0))
  assert [row['side'] for row in rows] == ['theirs'] * 3 + ['ours'] * 3
  assert theirs['parameters'] == 3 * 16 * theirs['width'] and 37 <= theirs['width'] <= 38
  assert theirs['tables'] == 16 * 16 and theirs['commit'] == 'unknown'
  assert {row['bits'] for row in rows} == {64.0}
  assert keyvalue['accuracy'] == selector['accuracy'] == 1


def test_what_is_no_checkout_is_refused(tmp_path, capsys):
  with pytest.raises(InputError, match='no tracr there; name a checkout of it'):
    list(published.tracr(published.Preset(tracr=str(tmp_path)), seed=0))
  with pytest.raises(SystemExit) as end:
    published.STUDY.main(['x', f'--workdir={tmp_path / "out"}'])
  assert end.value.code == 2
  assert 'name a checkout: --tracr=FOLDER' in capsys.readouterr().err
