"""Published code compared with ours: what is searched, counted and refused, with stand-ins for the checkouts."""

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
  assert published.largest(lambda facts: facts <= held, 5, 64) == held


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
  assert row['seconds'] > 0 and row['cpu_seconds'] >= 0  # that clock may tick only every few ms


@pytest.fixture
def write(tmp_path, monkeypatch):
  """Writes the files of a checkout, whose modules are unloaded afterwards."""
  known = set(sys.modules)
  monkeypatch.setattr(sys, 'path', sys.path[:])
  for name in [name for name in known if name.split('.')[0] == 'torch']:
    monkeypatch.delitem(sys.modules, name)

  def files(**sources):
    for name, source in sources.items():
      path = tmp_path.joinpath(*name.split('__')).with_suffix('.py')
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(source)
    return str(tmp_path)

  yield files
  for name in set(sys.modules) - known:
    if getattr(sys.modules[name], '__file__', None) is None or str(tmp_path) in str(
      sys.modules[name].__file__
    ):
      del sys.modules[name]


INTERPRETER = """
tokens = lambda ts: ts
Map = lambda f, a: lambda ts: [f(x) for x in a(ts)]
Select = lambda keys, queries, p: lambda ts: [[p(k, q) for k in keys(ts)] for q in queries(ts)]
SequenceMap = lambda f, a, b: lambda ts: [f(x, y) for x, y in zip(a(ts), b(ts), strict=True)]

def Aggregate(select, a):
  def read(ts):
    rows = [[x for x, on in zip(a(ts), row, strict=True) if on] for row in select(ts)]
    assert all(len(row) == 1 for row in rows)
    return [row[0] for row in rows]
  return read
"""
COMPILER = """
import types

import numpy as np

def compile_rasp_to_model(program, vocab, max_seq_len):
  apply = lambda ts: types.SimpleNamespace(decoded=ts[:1] + program(ts[1:]))
  params = {'token_embed': {'embeddings': np.zeros((3, 5))}, 'layer': {'w': np.zeros(7), 'b': np.zeros(2)}}
  return types.SimpleNamespace(apply=apply, params=params)
"""


def test_both_programs_look_every_fact_up(write):
  path = write(tracr__rasp__rasp=INTERPRETER, tracr__compiler__compiling=COMPILER)
  rows = list(published.tracr(published.Preset(tracr=path, subjects=(5, 8), relations=3), seed=0))
  assert [(row['side'], row['subjects'], row['accuracy']) for row in rows] == [
    ('theirs', 5, 1.0), ('theirs', 5, 1.0), ('ours', 5, 1.0),
    ('theirs', 8, 1.0), ('theirs', 8, 1.0), ('ours', 8, 1.0),
  ]  # fmt: skip
  assert rows[0]['tables'] == 15 and rows[0]['parameters'] == 9


def test_a_program_that_takes_too_long_is_not_tried_at_more_subjects(write, monkeypatch):
  monkeypatch.setattr(published, 'MINUTE', 2)
  slow = COMPILER.replace('params =', 'n = len(vocab)\n  while n > 8: n += 1\n  params =')
  path = write(tracr__rasp__rasp=INTERPRETER, tracr__compiler__compiling=slow)
  rows = published.tracr(published.Preset(tracr=path, subjects=(5, 8), relations=3), seed=0)
  assert [(row['side'], row['subjects']) for row in rows] == [
    ('theirs', 5), ('theirs', 5), ('ours', 5), ('ours', 8)
  ]  # fmt: skip


def test_both_searches_are_of_the_same_memory(write, monkeypatch):
  search = 'binary_sweep = lambda d, m, low, high, rates, rng, M, fixed: low + high + rng'
  path = write(mlp_sweep=search, util='RNG = int')
  monkeypatch.setattr(published, '_learns', lambda recipe, seed, facts: facts <= recipe.dim + 2)
  theirs, ours = published.nichani(published.Preset(nichani=path, dims=(4,)), seed=7)
  assert (theirs['subjects'], ours['subjects']) == (4 + 16 + 7, 6)
  assert theirs['parameters'] == ours['parameters'] == 4 * 4 * 2 + 4


HEBBIAN = """
def run_mlp_experiment(d_model, num_facts, m, method_label, method_spec, device, seed):
  right = m >= 37 and method_spec['mlp_method'] == 'hebbian'
  return {'best_acc': float(right), 'param_count': 3 * d_model * m, 'success': right}
"""


def test_both_sides_are_counted_in_the_same_way(write):
  """The stand-in for theirs needs 37 hidden units."""
  path = write(src__hebbian__expts__mlp_capacity__helpers=HEBBIAN, src__torch='float64 = 8')
  preset = published.Preset(hebbian=path, dim=8, facts=8)
  theirs, *_, keyvalue, selector = rows = list(published.hebbian(preset, seed=0))
  assert [row['side'] for row in rows] == ['theirs'] * 3 + ['ours'] * 3
  assert theirs['parameters'] == 3 * 8 * theirs['width'] and 37 <= theirs['width'] <= 38
  assert theirs['tables'] == 8 * 8 and theirs['commit'] == 'unknown'
  assert {row['bits'] for row in rows} == {24.0}
  assert keyvalue['accuracy'] == selector['accuracy'] == 1


def test_what_is_no_checkout_is_refused(tmp_path, capsys):
  with pytest.raises(InputError, match='no tracr there; name a checkout of it'):
    list(published.tracr(published.Preset(tracr=str(tmp_path)), seed=0))
  with pytest.raises(SystemExit) as end:
    published.STUDY.main(['x', f'--workdir={tmp_path / "out"}'])
  assert end.value.code == 2
  assert 'name a checkout: --tracr=FOLDER' in capsys.readouterr().err
