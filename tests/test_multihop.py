"""What chains of relations cost, whole, at the smoke preset: records, bits, bounds, figure, the same again."""

from pathlib import Path

import numpy as np
import pytest

from experiments import pages
from experiments.harness import records, statistics
from experiments.multihop import STUDY

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('runs')


def test_it_records_what_it_measured_and_draws_that(folder, capsys):
  arguments = 'multihop', f'--workdir={folder}'
  STUDY.main([*arguments, '--scale=smoke', '--save_seconds=0'])
  told = capsys.readouterr().out
  assert 'figure: ' in told and 'smallest d for 2 hops' in told and 'chains answered' in told
  before = (folder / records.FILE).read_bytes()
  STUDY.main([*arguments, '--scale=smoke', '--save_seconds=0'])  # answered from the checkpoint
  assert (folder / records.FILE).read_bytes() == before
  drawn = (folder / 'multihop.png').read_bytes()
  STUDY.main([*arguments, '--redraw'])
  assert (folder / 'multihop.png').read_bytes() == drawn and len(drawn) > 8000

  table = records.read(folder).table
  trained = statistics.select(table, kind='trained')
  assert trained['seed'].tolist() == [100] and (trained['accuracy'] >= 0.99).all()
  longer = statistics.select(table, kind='longer')
  assert longer['hops'].tolist() == [1, 2] and longer['value'].tolist()[0] > 0.9
  for rows in (trained, longer):
    assert rows[['measurement', 'model', 'subjects', 'relations']].notna().all(axis=None)
    assert rows['control'].isna().all()
  built = statistics.select(table, kind='construction')
  assert (built['accuracy'] == 1).all() and set(built['chain_of_thought']) == {False, True}
  inside = [f for f in STUDY.findings(table) if 'bits inside' in f.what]
  smallest = built['internal_bits'][built['chain_of_thought'].astype(bool)].min()
  assert [f.value for f in inside] == [pytest.approx(trained['internal_bits'].item() / smallest)]


def test_a_seed_that_found_nothing_gives_no_mean():
  """It may have been the one that needs the most: neither a mean nor growth is said without it."""
  table = pages.committed('multihop').records.table
  lost = (
    (table['model'] == 'direct')
    & (table['depth'] == 1)
    & (table['hops'] == 4)
    & (table['seed'] == 101)
  )
  assert lost.sum() == 1
  whats = [f.what for f in STUDY.findings(table.assign(value=table['value'].mask(lost)))]
  assert (
    'at once, depth 1: smallest d for 3 hops' in whats and np.isnan(table['value'].mask(lost)).any()
  )
  assert not any(
    what.startswith('at once, depth 1: ') and '4 hops' in what and 'd for' in what for what in whats
  )
