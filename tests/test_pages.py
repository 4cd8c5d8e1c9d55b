"""The measurements on the pages are those of the committed records."""

import dataclasses
import re
from math import nan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import pages
from experiments.harness import plotting, records, statistics
from experiments.harness.findings import Finding
from experiments.harness.primary_figure import primary_outcomes
from experiments.harness.records import Records
from geomem.errors import InputError

ROOT = Path(__file__).parents[1]


def test_every_record_is_named_on_the_page_that_says_where_it_comes_from():
  page = (ROOT / 'docs/reproduce.md').read_text(encoding='utf-8')
  for path in pages.RESULTS.glob('*.json'):
    assert f'(results/{path.name})' in page, path.name


def test_the_sizes_are_those_that_were_asked_for():
  sizes = lambda stem: pages.sizes(pages.committed(stem).records.about)
  assert sizes('multihop').startswith('N = 64; R = 2')
  assert 'passes ≥ 100' in sizes('laws') and 'steps' not in sizes(
    'laws'
  )  # those are only the least
  assert '1,000 steps' in sizes('structure') and 'batch = 64' in sizes('structure')
  assert pages.sizes({}) == ''


def test_the_place_of_a_table_is_marked_once_after_the_other_preset_or_at_the_end(tmp_path):
  page = tmp_path / 'page.md'
  page.write_text(f'above\n\n{pages.BEGIN.format("a")}old\n{pages.END}\nbelow\n')
  for _ in range(2):
    (
      pages.add_place(page, 'a', 'first'),
      pages.add_place(page, 'a_full', 'first'),
      pages.add_place(page, 'b', 'second'),
    )
  pages.splice(page, 'a_full', 'new\n'), pages.splice(page, 'b', 'last\n')
  assert page.read_text() == (
    f'above\n\n{pages.BEGIN.format("a")}old\n{pages.END}\n{pages.BEGIN.format("a_full")}new\n{pages.END}\nbelow\n'
    f'\n## Second\n\n{pages.BEGIN.format("b")}last\n{pages.END}'
  )


def test_splice_replaces_one_table_and_refuses_a_page_without_its_mark(tmp_path):
  page, mark = tmp_path / 'page.md', pages.BEGIN
  page.write_text(f'a\n{mark.format("m")}old\n{pages.END}b\n{mark.format("n")}kept\n{pages.END}')
  pages.splice(page, 'm', 'new\n')
  new = page.read_text()
  assert 'new' in new and 'old' not in new and 'kept' in new and new.startswith('a\n')
  with pytest.raises(InputError, match='missing'):
    pages.splice(page, 'other', '')


@pytest.mark.parametrize('stem', [stem for stem in pages.result_names() if stem != 'construct'])
def test_the_page_says_what_the_records_say(stem):
  assert pages.section(stem) in pages.page(stem).read_text(encoding='utf-8')


def test_the_overviews_and_the_tables_of_the_readme_say_what_the_records_say():
  readme, page = (path.read_text(encoding='utf-8') for path in (pages.README, pages.PAGE))
  assert pages.overview().count('\n') > 8 and pages.overview() in page
  assert pages.decisions() in page and pages.decide()
  assert (
    pages.overview('docs/') in readme and pages.theorems() in readme and pages.timings() in readme
  )


def test_the_page_of_accelerators_says_what_was_compiled():
  assert pages.compiled().count('\n') > 4
  assert pages.compiled() in pages.ACCELERATORS.read_text(encoding='utf-8')
  fits = pd.DataFrame(
    {'peak_bytes': [2**20, 3 * 2**20], 'available_bytes': [2**30] * 2, 'refused': [None, None]}
  )
  assert pages.largest_peak(fits) == '3 (0.3%)'
  assert pages.largest_peak(fits.assign(peak_bytes=float('nan'))) == 'lowered'
  assert pages.largest_peak(fits.assign(refused=[None, 'too large'])) == 'refused: too large'


def test_the_table_of_models_says_what_the_findings_say():
  table = pages.models()
  assert pages.BEGIN.format('models') + table + pages.END in pages.page('structure_full').read_text(
    encoding='utf-8'
  )
  (trained,) = (
    line for line in table.splitlines() if line.startswith('| trained, unembedding fixed')
  )
  (probe,) = (line for line in table.splitlines() if line.startswith('| random weights |'))
  of = lambda what: [
    f for f in pages.committed('structure_full').findings if f'unembedding fixed: {what}' in f.what
  ]
  r2 = [f for f in of('superposition R²') if f.what.endswith('fresh subjects')]
  assert ', '.join(f'{f.value:.2f}' for f in r2) in trained
  assert ', '.join(f'{f.controls["random weights"]:.2f}' for f in r2) in probe


def test_the_figure_of_primary_outcomes_has_a_panel_for_each_claim_and_a_row_for_each_outcome():
  one = Finding(
    'N = 8, R = 2: within', 0.9, 0.8, 1.0, 3, at_least=0.75, primary=True, controls={'blind': 0.4}
  )
  four = dataclasses.replace(one, what='N = 8, R = 4: within')
  two = Finding('outside', 2.0, nan, nan, 3, at_most=1.3, primary=True)
  other = Finding('decides nothing', 5.0, 4.0, 6.0, 3, at_least=1.0)
  figure = primary_outcomes({'A': [one, four, other], 'B': [two], 'C': [other]})
  assert [ax.get_title(loc='left') for ax in figure.axes] == ['A, N = 8', 'B']
  assert [[label.get_text() for label in ax.get_yticklabels()] for ax in figure.axes] == [
    ['R = 2: within', 'R = 4: within'],
    ['outside'],
  ]
  drawn = [
    [line for line in ax.lines if line.get_marker() == 'o' and line.get_color() != plotting.GREY]
    for ax in figure.axes
  ]
  assert [[line.get_xdata()[0] for line in lines] for lines in drawn] == [[0.9, 0.9], [2.0]]
  assert [[line.get_color() for line in lines] for lines in drawn] == [
    [plotting.BLUE] * 2,
    [plotting.RED],
  ]
  (legend,) = figure.legends
  assert [text.get_text() for text in legend.get_texts()] == ['blind']
  beyond = dataclasses.replace(two, value=np.inf)
  (ax,) = primary_outcomes({'B': [beyond]}).axes
  assert '>' in {line.get_marker() for line in ax.lines} and ax.get_xlim()[1] < 2
  assert not primary_outcomes({'C': [other]}).axes[0].lines
  within, outside = (ax.patches[0] for ax in figure.axes)  # the ranges within the bounds
  assert within.get_x() == 0.75 and within.get_x() + within.get_width() > 1
  assert outside.get_x() < 0 and outside.get_x() + outside.get_width() == 1.3


def test_the_map_names_every_study_and_what_there_is_of_it():
  text = pages.MAP.read_text(encoding='utf-8')
  assert pages.sources() in text
  for name in pages.studies.NAMES:
    assert f'](../experiments/{name}.py)' in text, name
  for stem in pages.result_names():
    assert (
      f'](results/{stem}.json)' in text and pages.committed(stem).records.about['command'] in text
    )


@pytest.mark.parametrize('path', sorted(pages.RESULTS.glob('*.json')), ids=lambda path: path.stem)
def test_records_say_what_they_were_measured_with(path):
  about = records.read(path).about
  assert about['command']
  if path.stem != 'construct':  # computed, and the same everywhere
    assert about['device'] and about['versions']['jax']


def test_a_run_is_committed_with_its_device_and_versions(tmp_path, monkeypatch):
  table = pages.committed('laws').records.table[:60]
  about = {
    'scale': 'laptop', 'code': '0123', 'setting': {'seeds': 5}, 'device': 'an abacus', 'versions': {'jax': '9'},
    'command': 'python -m experiments.laws --scale=laptop --seed=7 --seeds=2',
  }  # fmt: skip
  run = tmp_path / 'run' / records.FILE
  records.write(run, Records(about, table.assign(build_seconds=1.0)))
  monkeypatch.setattr(pages, 'RESULTS', tmp_path)
  pages.commit_records('laws', run.parent)
  kept = pages.committed('laws').records
  assert kept.about == {name: value for name, value in about.items() if name != 'code'}
  assert 'build_seconds' not in kept.table
  assert '--scale=laptop --seed=7 --seeds=2`, an abacus, jax 9' in pages.section('laws')
  records.write(run, Records({**about, 'scale': 'smoke'}, table))
  with pytest.raises(InputError, match='no evidence'):
    pages.commit_records('laws', run.parent)


def test_parts_that_are_run_one_by_one_are_committed_together(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(pages, 'RESULTS', tmp_path / 'results')
  part = lambda value: Records(
    {'command': 'x', 'setting': {'seeds': 99}},
    pd.DataFrame({'value': [value] * 3, 'seed': range(3)}),
  )

  def commit(**parts):
    about = {'command': 'y', 'scale': 'full', 'device': 'an abacus', 'versions': {}}
    merged = records.merge(about, {name: part(value) for name, value in parts.items()})
    records.write(tmp_path / 'run' / records.FILE, merged)
    pages.commit_records('phases', tmp_path / 'run')
    kept = records.split(records.read(tmp_path / 'results' / 'phases_full.json'))
    return {name: own.table['value'].tolist() for name, own in kept.items()}

  assert commit(sizes=1) == {'sizes': [1, 1, 1]} and not capsys.readouterr().err
  # In the order of the preset; the kept part has not its setting.
  assert list(commit(decay=3, widths=2)) == ['widths', 'decay', 'sizes']
  assert 'part sizes of phases_full.json was measured by another preset' in capsys.readouterr().err
  assert commit(sizes=4) == {'widths': [2] * 3, 'decay': [3] * 3, 'sizes': [4] * 3}


def test_what_the_page_of_countries_quotes_is_in_the_records():
  """Every `value [low, high]` in the text is the mean of some group of records over its runs."""
  text = (ROOT / 'docs/countries.md').read_text(encoding='utf-8').replace('−', '-')
  quoted = re.findall(r'(-?\d\.\d+)\s+\[(-?\d\.\d+),\s+(-?\d\.\d+)\]', text)
  table = pages.committed('language_model_full').records.table
  table = table[table['low'].notna()]
  about = 'measurement', 'features', 'relation', 'control', 'chosen'
  means = np.array([
    group[['value', 'low', 'high']].mean()
    for by in (about, (*about, 'layer'), (*about, 'layer', 'alpha', 'seed', 'template'))
    for _, group in statistics.groups(table, *by)
  ])  # fmt: skip
  assert len(quoted) > 10
  for one in quoted:
    half = 0.5 * 10.0 ** -max(len(number.partition('.')[2]) for number in one) + 1e-6
    assert (np.abs(means - np.array(one, float)) <= half).all(axis=1).any(), one


@pytest.mark.parametrize('stem', ['structure', 'structure_full'])
def test_controls_fail_every_claim_and_the_construction_meets_them(stem):
  found = pages.committed(stem).findings
  controls = [f for f in found if 'must fail' in f.what]
  built = [f for f in found if f.what.startswith('constructed: lowest score')]
  assert len(controls) >= 4 * 4 and all(f.holds for f in controls)
  assert len(built) == 4 and all(f.holds for f in built)
