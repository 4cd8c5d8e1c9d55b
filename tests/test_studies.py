"""Every study is one object, imports no other study, and has the numbers that the code before it had."""

import ast
import dataclasses
import functools
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from experiments import pages
from experiments.harness import machine, records, studies
from experiments.harness.findings import Claim, decisions, over_seeds
from experiments.harness.study import SCALES, Study
from geomem.errors import InputError

ROOT = Path(__file__).parents[1]
FROZEN = json.loads((ROOT / 'tests/data/findings.json').read_text())
LANGUAGE = 'language_model', 'new_subjects'  # the studies of a pretrained model
# Findings added since, by how they begin; and studies whose sizes have become those of another preset.
ADDED = {
  'construct': ('selector residual', 'selector coded', 'superposition coded', 'partly precomputed', 'few thoughts')
}  # fmt: skip
MOVED = {'language_model': 'language_model_full'}


# --- the list of studies --------------------------------------------------------------------------


@pytest.mark.parametrize('name', studies.NAMES)
def test_a_study_is_whole(name):
  study = studies.load(name)
  assert study.name == name and study.title and study.presets.keys() >= {'smoke', 'laptop'}
  assert study.presets.keys() <= set(SCALES) and (study.terms or not study.claims)
  for preset in study.presets.values():
    for part in preset.values() if isinstance(preset, Mapping) else [preset]:
      assert dataclasses.is_dataclass(part) and part.__dataclass_params__.frozen
      assert all(field.kw_only for field in dataclasses.fields(part))


def imports(path):
  found = set()
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      found |= {node.module} | {f'{node.module}.{alias.name}' for alias in node.names}
  return found


@pytest.mark.parametrize('name', studies.NAMES)
def test_a_study_imports_no_other(name):
  """Nor does it import geomem.pretrained, unless it is a study of a language model."""
  allowed = ('experiments.harness',) + ('experiments.language',) * (name in LANGUAGE)
  for module in imports(ROOT / 'experiments' / f'{name}.py'):
    if module.startswith('experiments.'):
      assert module.startswith(allowed), module
    assert not module.startswith('geomem.pretrained') or name in LANGUAGE


def test_importing_a_study_loads_neither_the_others_nor_a_language_model():
  script = (
    'import experiments.structure, sys; print([m for m in sys.modules if m.startswith("geomem.pretrained") or'
    ' m.startswith("experiments.") and not m.startswith("experiments.harness")])'
  )
  told = subprocess.run(
    [sys.executable, '-c', script], cwd=ROOT, check=True, capture_output=True, text=True
  )
  assert told.stdout == "['experiments.structure']\n"


# --- numbers and verdicts -------------------------------------------------------------------------


@pytest.mark.parametrize('stem', FROZEN)
def test_numbers_and_verdicts_are_what_they_were(stem):
  """They are those that the code before studies found in the committed records; intervals changed on purpose."""
  old, found = FROZEN[stem], pages.committed(MOVED.get(stem, stem)).findings
  found = [f for f in found if not f.what.startswith(ADDED.get(stem, 'no'))]
  new = [{**vars(f), 'holds': f.holds} for f in found]
  to_9_digits = lambda v: float(f'{v:.9g}') if isinstance(v, float) else v
  names = 'at_least', 'at_most', 'holds', 'check', 'seeds'
  said = lambda f: [to_9_digits(f[name]) for name in names]
  order = lambda f: (str(said(f)), np.inf if np.isnan(v := f['value'] or 0) else v)
  before, now = sorted(old, key=order), sorted(new, key=order)
  assert list(map(said, now)) == list(map(said, before))
  values = lambda findings: [np.nan if f['value'] is None else f['value'] for f in findings]
  np.testing.assert_allclose(values(now), values(before), rtol=1e-4)
  controls = lambda rows: sorted(float(f'{value:.3g}') for values in rows for value in values)
  np.testing.assert_allclose(
    controls(f['controls'].values() for f in new),
    controls(f['controls'] for f in old),
    rtol=6e-3,
    atol=1e-6,
  )


@pytest.mark.parametrize('name', ['structure', 'transfer', 'from_constructed', 'language_model'])
def test_a_model_that_diverged_ends_no_report(name, tmp_path):
  study, table = studies.load(name), pages.committed(name).records.table
  tell = [c for c in ('seed', 'weight_decay', 'start') if c in table]
  first = table[table['seed'].notna()].iloc[0]
  sick = (table[tell] == first[tell]).all(axis=1)
  spoilt = table.copy()
  spoilt.loc[sick, [c for c in ('value', 'low', 'high') if c in table]] = np.nan
  path = tmp_path / records.FILE
  records.write(path, records.Records({}, spoilt))
  again = records.read(path).table
  found = study.findings(again)
  assert [f.what for f in found] == [f.what for f in study.findings(table)]
  spoilt = [f for f in found if np.isnan(f.value)]
  assert spoilt and not any(f.holds for f in spoilt)
  assert study.draw(again, tmp_path)


# --- findings -------------------------------------------------------------------------------------


def test_a_finding_is_the_mean_with_its_interval_and_its_control():
  (finding,) = over_seeds('x', [0.9, 1.0, 0.95], 0.9, shuffled_facts=[0.0, 0.1])
  assert finding.value == pytest.approx(0.95) and finding.seeds == 3
  assert finding.low == pytest.approx(
    0.95 - 4.302653 * 0.05 / 3**0.5
  )  # Student's t, 2 degrees of freedom
  assert finding.high - finding.value == pytest.approx(finding.value - finding.low)
  assert finding.controls == {'shuffled facts': 0.05}
  assert over_seeds('nothing', []) == []


def test_primary_outcomes_decide_claims_and_the_worst_of_them_counts():
  claims = [Claim(f'Claim {i}', '', ('R = 2', 'R = 4')) for i in (1, 2, 3)] + [
    Claim('Claim 4', 'has none')
  ]
  own = functools.partial(over_seeds, at_least=0.9, primary=True)
  sure = [0.99, 0.98, 0.99, 0.98, 0.99]
  found = [
    *own('R = 2, sure', sure, claim='Claim 1'),
    *own('R = 4, all alike', [1.0] * 5, claim='Claim 1'),
    *own('R = 2, short', [0.8, 0.9, 0.85], claim='Claim 2'),
    *own('R = 4, sure', sure, claim='Claim 2'),
    *own('R = 2, sure', sure, claim='Claim 3'),
    *over_seeds('R = 4, no primary outcome', [0.1, 0.2], at_least=0.9, claim='Claim 3'),
  ]
  one, two, three = decisions(claims, found)
  assert (one['primary outcomes'], one['within bounds'], one['verdict']) == (2, 2, 'stands')
  assert (
    one['p after Holm'] == pytest.approx(3 * one['largest p']) and one['largest p'] == found[0].p
  )
  assert (two['within bounds'], two['verdict']) == (1, 'falls short') and two['largest p'] > 0.8
  assert (three['not measured'], three['verdict'], three['largest p']) == ('R = 4', 'open', 1)
  spread = own('R = 2, within its bound by chance', [0.85, 0.99, 0.95], claim='Claim 2')
  (unsure,) = decisions([Claim('Claim 2', 'is unsure', ('R = 2',))], spread)
  assert (unsure['within bounds'], unsure['verdict']) == (1, 'unsure')


@pytest.mark.parametrize(
  ('at_least', 'at_most', 'holds'),
  [(None, None, None), (0.5, None, True), (0.7, None, False), (None, 0.5, False), (0.5, 0.7, True)],
)
def test_a_finding_holds_where_its_range_says(at_least, at_most, holds):
  (finding,) = over_seeds('x', [0.6, 0.6], at_least, at_most)
  assert finding.holds is holds and np.isnan(finding.low)


@pytest.mark.parametrize('values', [[np.nan, 0.9, 0.9], [np.nan, np.nan], [np.inf, 1.0]])
def test_a_mean_that_is_no_number_does_not_hold(values):
  (finding,) = over_seeds('x', values, 0.5, 2.0, control=values)
  assert finding.holds is False and np.isnan(finding.low) and not finding.unsure


# --- a run ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  subjects: int
  seeds: int = 2


def counting(calls, **options):
  """A dummy study that counts in `calls` how often it was measured."""

  def measure(trainer, preset, seeds):
    count = lambda seed: calls.append(seed) or np.array(float(seed))
    values = {seed: float(trainer.cached(lambda seed=seed: count(seed))) for seed in seeds}
    return [
      {'subjects': preset.subjects, 'seed': seed, 'value': value} for seed, value in values.items()
    ]

  parts = {'a': Preset(subjects=3), 'b': Preset(subjects=4)}
  return Study(
    name='counting', title='nothing', presets={'smoke': Preset(subjects=2), 'full': parts}, measure=measure,
    expect=lambda table: over_seeds('mean', table['value'].tolist(), 100), **options,
  )  # fmt: skip


def test_a_run_goes_on_by_the_code_that_began_it_alone(tmp_path, monkeypatch):
  calls = []
  study = counting(calls)
  first = study.run('smoke', tmp_path, save_seconds=0)
  again = study.run('smoke', tmp_path, save_seconds=0)
  assert calls == [100, 101] and first.table.equals(again.table)
  with (
    monkeypatch.context() as patched,
    pytest.raises(InputError, match='its code is .* not .other.'),
  ):
    patched.setattr(machine, 'code_hash', lambda: 'other')
    study.run('smoke', tmp_path)
  config = tmp_path / 'config.json'
  config.write_text(
    json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != 'code'})
  )
  with pytest.raises(InputError, match='its code is None'):
    study.run('smoke', tmp_path)


def test_parts_run_apart_and_their_records_merge(tmp_path):
  calls = []
  study = counting(calls)
  one = study.run('full', tmp_path, part=('b',))
  assert one.table['subjects'].tolist() == [4, 4] and calls == [100, 101]
  both = study.run('full', tmp_path)
  assert both.table['subjects'].tolist() == [3, 3, 4, 4] and len(calls) == 4
  assert both.about['parts'].keys() == {'a', 'b'}
  assert both.about['command'] == 'python -m experiments.counting --scale=full'
  assert '--part=b' in both.about['parts']['b']['command']
  with pytest.raises(InputError, match='--part=c: --scale=full has a, b'):
    study.run('full', tmp_path, part=('c',))


def test_parts_that_are_done_have_records_though_a_later_one_fails(tmp_path):
  study = counting([])
  fails = lambda trainer, preset, seeds: (
    1 / (preset.subjects - 4) and study.measure(trainer, preset, seeds)
  )
  with pytest.raises(ZeroDivisionError):
    dataclasses.replace(study, measure=fails).run('full', tmp_path)
  assert records.read(tmp_path).about['parts'].keys() == {'a'}


def main(study, capsys, *arguments):
  study.main(['counting', *map(str, arguments)])
  return capsys.readouterr().out


def test_the_binary_says_what_it_found_and_redraws_it(tmp_path, capsys):
  study = counting([], by=('subjects', 'of another part'))
  told = main(study, capsys, '--scale=smoke', f'--workdir={tmp_path}', '--seeds=3', '--subjects=7')
  assert 'mean' in told and '≥ 100' in told and 'records: ' in told
  found = records.read(tmp_path)
  assert found.table['subjects'].tolist() == [7] * 3
  command = shlex.split(found.about['command'])
  assert command == [
    'python',
    '-m',
    'experiments.counting',
    '--scale=smoke',
    '--subjects=7',
    '--seeds=3',
  ]
  assert main(study, capsys, '--redraw', f'--workdir={tmp_path}') == told
  assert json.loads((tmp_path / records.FINDINGS).read_text())[0]['holds']


@pytest.mark.parametrize(
  ('arguments', 'told'),
  [
    ('--redraw --scale=smoke', '--scale and --redraw contradict each other'),
    ('--redraw --subjects=3', '--subjects and --redraw contradict each other'),
    ('--redraw', 'no results there'),
    ('--scale=laptop', '--scale=laptop: experiments.counting has smoke, full'),
    ('--scale=smoke --part=a', '--part=a: --scale=smoke has no parts'),
    ('--scale=smoke --seeds=0', 'seeds'),
    ('--scale=smoke --seed=4294967295', 'above 4294967295'),
    ('--frobnicate', "Unknown command line flag 'frobnicate'"),
  ],
)
def test_bad_input_ends_in_one_line(arguments, told, tmp_path, capsys):
  with pytest.raises(SystemExit) as end:
    main(counting([]), capsys, f'--workdir={tmp_path / "new"}', *shlex.split(arguments))
  error = capsys.readouterr().err
  assert (
    end.value.code == 2 and told in error and error.startswith('error: ') and error.count('\n') == 1
  )
  assert not (tmp_path / 'new').exists()


def test_the_hash_of_the_code_is_of_modules_their_names_and_tables(tmp_path):
  module, table = tmp_path / 'geomem' / 'a.py', tmp_path / 'experiments' / 'data' / 'x.csv'
  hashes = []
  look = lambda: hashes.append(machine.code_hash.__wrapped__(tmp_path))
  for path in (module, table):
    path.parent.mkdir(parents=True)
    path.write_text('one')
  look()
  table.with_name('README.md').write_text('said')
  look()
  assert hashes[0] == hashes[1]
  table.write_text('other')
  look()
  module.write_text('other')
  look()
  module.rename(module.with_name('b.py'))
  look()
  assert len(set(hashes)) == 4
