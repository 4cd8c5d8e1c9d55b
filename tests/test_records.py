"""Tables come back from disk as they were, whatever their fields contain."""

import json

import numpy as np
import pandas as pd
import pytest

from experiments.harness import records, render, statistics
from experiments.harness.findings import over_seeds
from experiments.harness.records import Records
from geomem.errors import InputError


def written(tmp_path, rows, **options):
  path = tmp_path / 'results.json'
  records.write(path, Records({'command': 'x'}, pd.DataFrame(rows)), **options)
  return path, records.read(path).table


def test_a_name_that_reads_like_a_number_stays_a_name(tmp_path):
  names = ['nan', 'inf', '-inf', 'NaN', 'Infinity', 'null', '1e999']
  _, table = written(tmp_path, {'relation': names, 'value': range(len(names))})
  assert table['relation'].tolist() == names


def test_numbers_that_json_has_not_come_back(tmp_path):
  path, table = written(tmp_path, {'value': [1.5, np.inf, -np.inf, np.nan], 'size': [1, 2, 3, 4]})
  np.testing.assert_array_equal(table['value'], [1.5, np.inf, -np.inf, np.nan])
  assert table['size'].tolist() == [1, 2, 3, 4]
  text = path.read_text()
  assert 'NaN' not in text and 'Infinity' not in text and text.count('\n') == 8


def test_what_does_not_apply_is_missing(tmp_path):
  _, table = written(tmp_path, [{'control': None, 'value': 1.0}, {'control': 'a', 'value': 2.0}])
  assert statistics.values(table, control=None) == [1.0]
  assert statistics.values(table, control='a') == [2.0]
  assert [keys for keys, _ in statistics.groups(table, 'control')] == [(None,), ('a',)]


def test_digits_are_cut_where_that_is_asked_for(tmp_path):
  path, table = written(tmp_path, {'value': [1 / 3], 'list': [[1 / 3, 2]]}, digits=3)
  assert table['value'].tolist() == [0.333] and table['list'].tolist() == [[0.333, 2]]


@pytest.mark.parametrize(
  'text', ['', '[]', '{"columns": ["a"]}', '{"about": {}, "columns": ["a"], "data": [[1, 2]]}']
)
def test_what_is_no_table_is_refused(text, tmp_path):
  path = tmp_path / 'results.json'
  path.write_text(text)
  with pytest.raises(InputError, match='not readable as results'):
    records.read(path)
  with pytest.raises(InputError, match='no results there'):
    records.read(tmp_path / 'none.json')


def test_findings_are_written_with_their_verdict(tmp_path):
  found = over_seeds(
    'right', [0.9, 1.0, 0.95], at_least=0.9, primary=True, shuffled_facts=[0.0, 0.1]
  )
  records.write_findings(tmp_path / 'findings.json', found)
  (fields,) = json.loads((tmp_path / 'findings.json').read_text())
  assert fields['holds'] and fields['primary'] and fields['controls'] == {'shuffled facts': 0.05}
  assert {'what', 'value', 'low', 'high', 'at_least', 'at_most', 'claim', 'seeds'} < fields.keys()


def test_tables_say_the_same_in_every_form():
  found = over_seeds('a < b', [0.2, 0.9], at_least=0.5) + over_seeds(
    'c', [0.6, 0.6], at_least=0.7, check=True
  )
  markdown, terminal = (render.findings(found, form) for form in ('markdown', 'terminal'))
  assert '| a < b | 0.55 |' in markdown and 'yes ~' in markdown and '**no** (check)' in markdown
  for text in (markdown, terminal):
    for words in ('95% interval', '0.55', '≥ 0.5', '≥ 0.7'):
      assert words in text
  assert max(map(len, terminal.splitlines())) < 120


@pytest.mark.parametrize(
  ('value', 'text'),
  [(None, '–'), (np.nan, '–'), (np.inf, '∞'), (True, 'yes'), (12345, '12,345'), (12345.0, '12,345'),
   (12345.6, '12,346'), (0.123456, '0.1235'), (2.0, '2'), ('x', 'x')],
)  # fmt: skip
def test_a_cell(value, text):
  assert render.cell(value) == text
