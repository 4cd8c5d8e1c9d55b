"""The command for all studies keeps finished ones and names failed ones; its report says what the records say."""

import dataclasses
import json
import os
import re
import shutil
import signal
import time
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import processes
import pytest

from experiments import pages, report, reproduce
from experiments.harness import machine, records, studies
from experiments.harness.findings import over_seeds, verdict
from experiments.harness.records import Records
from experiments.harness.study import Study
from geomem.errors import InputError
from geomem.saved import runs

SMALLER = 'laws', 'frozen_embeddings'


BEGIN = f"""
import sys
folder = sys.argv[-1].split('=')[1]
open(folder + '/counted.txt', 'a').write('x')
def measured_by(code):
  about = '{{"about": {{"code": "%s"}}, "columns": [], "data": []}}' % code
  open(folder + '/results.json', 'w').write(about)
measured_by('{machine.code_hash()}')
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fake(Study):
  """A study that runs a line of Python and writes records of this code; counted.txt counts its runs."""

  line: str = 'pass'

  def command(self, scale):
    return ['python', '-c', BEGIN + self.line, f'--scale={scale}']


def fake(name, line='pass', minutes=0.01, **options):
  options = {'presets': {}, 'measure': None, 'expect': lambda table: [], **options}
  return Fake(name=name, title='nothing', minutes=minutes, line=line, **options)


def run(folder, *lines, cores=(None,), again=False):
  """Runs a fake study for each line and returns whether each succeeded."""
  fakes = [fake(f'fake{i}', line) for i, line in enumerate(lines or ('pass',))]
  failed = reproduce.measure(fakes, 'smoke', folder, cores, again)
  return [fake.name not in failed for fake in fakes]


def counted(folder):
  return len((folder / 'counted.txt').read_text())


def test_what_is_finished_is_kept_and_measured_anew_when_asked(tmp_path, capsys, monkeypatch):
  folder = tmp_path / 'fake0'
  assert run(tmp_path) == [True] and counted(folder) == 1
  assert run(tmp_path) == [True] and counted(folder) == 1
  assert 'kept' in capsys.readouterr().err
  monkeypatch.setattr(machine, 'code_hash', lambda: 'other')
  assert run(tmp_path) == [True] and counted(folder) == 1
  assert 'measured with different code' in capsys.readouterr().err
  (folder / 'old').touch()
  assert run(tmp_path, again=True) == [True] and not (folder / 'old').exists()


def test_code_that_changes_during_a_run_is_different_code(tmp_path, capsys):
  """The code that the records name decides, not the code that started the study."""
  assert run(tmp_path, 'measured_by("edited meanwhile")') == [True]
  assert 'different code' in report.result_in(fake('fake0'), tmp_path / 'fake0').origin
  capsys.readouterr()
  assert run(tmp_path) == [True] and counted(tmp_path / 'fake0') == 1
  assert 'fake0 was measured with different code' in capsys.readouterr().err


def test_a_failure_is_said_stops_no_other_and_goes_on_from_where_it_was(tmp_path, capsys):
  assert run(tmp_path, 'raise SystemExit("no luck")', 'pass') == [False, True]
  assert 'FAILED' in capsys.readouterr().err
  assert 'no luck' in (tmp_path / 'fake0' / 'log.txt').read_text()
  assert report.result_in(fake('fake0'), tmp_path / 'fake0') is None
  assert run(tmp_path, 'pass', 'pass') == [True, True]
  assert counted(tmp_path / 'fake0') == 2  # in the same folder, so that a run can resume
  assert counted(tmp_path / 'fake1') == 1


def test_what_different_code_has_started_starts_again(tmp_path, capsys):
  begun = {'fake0': {'code': machine.code_hash()}, 'fake1': {'code': 'other'}, 'fake2': {'seed': 0}}
  for name, about in begun.items():
    records.write_text(tmp_path / name / 'config.json', json.dumps(about))
    (tmp_path / name / 'counted.txt').write_text('x')
  assert run(tmp_path, 'pass', 'pass', 'pass') == [True] * 3
  assert [counted(tmp_path / name) for name in begun] == [2, 1, 1]
  told = capsys.readouterr().err
  assert 'fake0 was started' not in told and told.count('was started with different code') == 2


@pytest.mark.parametrize('again', [False, True])
def test_a_folder_in_which_a_run_is_at_work_is_not_removed(again, tmp_path):
  folder = tmp_path / 'fake0'
  with runs.Run(folder, {'code': 'other'}):
    if again:
      records.write_text(folder / report.RUN_STATUS, json.dumps({'seconds': 1.0, 'finished': True}))
      records.write(folder / records.FILE, Records({}, pd.DataFrame()))
    with pytest.raises(InputError, match='fake0: another process is at work there'):
      run(tmp_path, again=again)
    assert (folder / 'config.json').exists() and not (folder / 'counted.txt').exists()
  assert run(tmp_path, again=again) == [True] and counted(folder) == 1
  assert not (folder / 'config.json').exists()


# A study that ends once another has begun, or after a minute.
MEETS = """
import json, os, pathlib, time
own, start = pathlib.Path(sys.argv[-1].split('=')[1]), time.time()
(own / 'begun').touch()
while len(list(own.parent.glob('*/begun'))) < 2 and time.time() < start + 60:
  time.sleep(0.01)
time.sleep(0.1)
on = sorted(os.sched_getaffinity(0))
(own / 'ran.json').write_text(json.dumps([on, start, time.time()]))
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason='there is only one core')
def test_experiments_run_at_once_on_cores_of_their_own(tmp_path):
  cores = sorted(os.sched_getaffinity(0))[:2]
  assert run(tmp_path, MEETS, MEETS, cores=[{core} for core in cores]) == [True] * 2
  ran = [json.loads((tmp_path / f'fake{i}' / 'ran.json').read_text()) for i in range(2)]
  assert sorted(on for on, _, _ in ran) == [[core] for core in cores]
  assert max(start for _, start, _ in ran) < min(end for _, _, end in ran)


def test_what_takes_too_long_is_interrupted_if_it_can_be_resumed(tmp_path, capsys):
  asked = [fake(name, 'import time; time.sleep(4)', resumes=name == 'a') for name in 'ab']
  measure = lambda minutes: reproduce.measure(asked, 'smoke', tmp_path, [None], minutes=minutes)
  assert not measure(2 / 60)
  told = capsys.readouterr().err
  assert 'a: not finished: give the command again' in told and 'b: done (' in told
  assert report.result_in(asked[0], tmp_path / 'a') is None
  assert not measure(1) and 'a: done (' in capsys.readouterr().err
  assert [counted(tmp_path / name) for name in 'ab'] == [2, 1]


@pytest.mark.parametrize('end', [KeyboardInterrupt, SystemExit, OSError])
def test_time_is_counted_over_interruptions(end, tmp_path, monkeypatch):
  def interrupt(seconds):
    if counted(tmp_path / 'fake0'):
      raise end

  with monkeypatch.context() as patched, pytest.raises(end):
    patched.setattr(reproduce.time, 'sleep', interrupt)
    (tmp_path / 'fake0').mkdir()
    (tmp_path / 'fake0' / 'counted.txt').touch()
    run(tmp_path, 'import time; time.sleep(60)')
  first = json.loads((tmp_path / 'fake0' / report.RUN_STATUS).read_text())['seconds']
  assert 0 < first < 30 and report.result_in(fake('fake0'), tmp_path / 'fake0') is None
  assert run(tmp_path) == [True]
  assert report.result_in(fake('fake0'), tmp_path / 'fake0').seconds > first


@pytest.mark.skipif(not Path('/proc/self/cmdline').exists(), reason='no /proc')
def test_told_to_end_it_ends_what_it_has_started(tmp_path):
  process = processes.start('reproduce', tmp_path, '--scale=smoke', '--only=laws')
  own, deadline = tmp_path / 'smoke' / 'laws', time.monotonic() + 300
  started = lambda: [line for line in processes.at_work(own) if 'experiments.laws' in line]
  while not started() and process.poll() is None and time.monotonic() < deadline:
    time.sleep(0.05)
  assert started()
  process.terminate()
  process.communicate()
  assert process.returncode == 128 + signal.SIGTERM and not processes.at_work(tmp_path)
  assert json.loads((own / report.RUN_STATUS).read_text())['finished'] is False


def test_a_signal_waits_until_what_is_being_started_is_known():
  before = signal.getsignal(signal.SIGTERM)
  known = []
  try:
    reproduce.exit_on_signal()
    with pytest.raises(SystemExit) as ended, reproduce.signals_put_off():
      signal.raise_signal(signal.SIGTERM)
      known.append('process')
    assert known and ended.value.code == 128 + signal.SIGTERM
  finally:
    signal.signal(signal.SIGTERM, before)


def test_progress_says_what_runs_and_how_long_it_may_take(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv('FORCE_COLOR', '1')  # as on a terminal
  asked = [fake(name, 'import time; time.sleep(1)', minutes=1.0) for name in 'ab']
  assert not reproduce.measure(asked, 'laptop', tmp_path, [None])
  told = re.sub(r'\x1b\[[^a-zA-Z]*[a-zA-Z]', '', capsys.readouterr().err)
  assert re.search(r'a ━+ 0:00:0. 0:0[12]:.. left', told) and re.search(r'b [━╺╸]+ 0:00:', told)
  assert '[1/2] a: done (' in told and '[2/2] b: done (' in told


def test_progress_goes_on_where_a_study_takes_longer_than_it_should(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv('FORCE_COLOR', '1')
  asked = [fake('a', 'import time; time.sleep(3)', minutes=0.001)]
  assert not reproduce.measure(asked, 'laptop', tmp_path, [None])
  told = re.sub(r'\x1b\[[^a-zA-Z]*[a-zA-Z]', '', capsys.readouterr().err)
  assert re.search(r'a [━╺╸]+ 0:00:0[23] ', told)


def test_the_time_left_is_by_the_pace_of_what_is_finished():
  def run_of(minutes, spent):
    run = object.__new__(reproduce.RunningStudy)
    run.study, run.begun = fake('a', minutes=minutes), time.monotonic() - 60 * spent
    return run

  assert run_of(10, 4).minutes_left(1.0) == pytest.approx(6, abs=0.01)
  assert run_of(10, 4).minutes_left(4.0) == pytest.approx(9, abs=0.01)
  assert run_of(10, 400).minutes_left(1.0) == 0.5
  assert run_of(10, 400).minutes_left(float('inf')) == 10  # the pace is not known yet


@pytest.mark.parametrize('name', ['nonsense', ''])
def test_unknown_studies_are_refused(name):
  with pytest.raises(InputError, match='is no study; there are construct'):
    reproduce.chosen([name])


@pytest.mark.parametrize(
  ('values', 'kind'),
  [((1.0, 1.0), 'holds'), ((1.0, 0.0), 'part'), ((0.0, 0.0), 'short'), ((), 'none')],
)
def test_a_verdict_is_of_all_that_was_expected(values, kind):
  findings = [f for v in values for f in over_seeds('x', [v], 0.5)] + over_seeds(
    'not expected', [0.0]
  )
  assert verdict(findings)[0] == kind


def measured(name, here=True, table=None, **about):
  found = Records({'command': '', **about}, pd.DataFrame() if table is None else table)
  return pages.Result(studies.load(name), found, 1.0 if here else None)


@pytest.mark.parametrize(
  ('code', 'said'), [(None, True), ('other', True), (machine.code_hash(), False)]
)
def test_a_section_says_what_different_code_measured(code, said):
  here = measured('bounds', device='an abacus', code=code)
  assert ('measured with different code' in here.origin) is said
  parts = {'a': {'code': machine.code_hash()}, 'b': {'code': code}}
  assert ('with different code' in measured('bounds', device='', parts=parts).origin) is said
  assert 'different code' not in dataclasses.replace(here, seconds=None).origin
  assert pages.Result(here.study).origin == 'not measured'


def test_the_first_paragraph_counts_what_holds_and_what_was_measured_here():
  expect = lambda *some: lambda table: over_seeds('x', *some)
  kinds = {'construct': ([1.0], 0.5), 'multihop': ([0.0], 0.5), 'transfer': ([1.0],)}
  results = [
    pages.Result(
      dataclasses.replace(study, expect=expect(*kinds.get(name, ([],)))),
      Records({'command': ''} if name in kinds else {}, pd.DataFrame()),
      1.0 if name == 'construct' else None,
    )
    for name, study in studies.load_all().items()
  ]
  count = sum(len(study.claims) for study in studies.load_all().values())
  told = report.answer(results)
  assert f'Of {count} statements, 4 held as expected, 0 held in part and 1 fell short; ' in told
  assert f'; not measured: {count - 5}. ' in told and 'This run measured 4 of them' in told


@pytest.mark.parametrize('scale', ['smoke', 'laptop', 'full'])
def test_committed_records_are_of_the_scale_if_there_are_any(scale, tmp_path, monkeypatch):
  monkeypatch.setattr(pages, 'RESULTS', tmp_path)
  table = pd.DataFrame({name: [] for name in ('part', 'value')})
  for stem in ('laws', 'laws_full', 'multihop', 'transfer_full'):
    records.write(tmp_path / f'{stem}.json', Records({'stem': stem}, table))
  monkeypatch.setattr(Study, 'findings', lambda self, table: [])
  found = report.gather(tmp_path / 'none', scale)
  stems = {own.study.name: own.records.about['stem'] for own in found if own.records.about}
  assert stems.pop('laws') == ('laws_full' if scale == 'full' else 'laws')
  assert stems == {'multihop': 'multihop', 'transfer': 'transfer_full'}


class Page(HTMLParser):
  """Collects the ids, the links and the text of a page."""

  def __init__(self):
    super().__init__()
    self.ids, self.links, self.text = set(), [], ''

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.ids |= {attrs['id']} if 'id' in attrs else set()
    self.links += [attrs[name] for name in ('href', 'src') if name in attrs]

  def handle_data(self, data):
    self.text += data


def test_every_study_has_committed_records(tmp_path):
  found = report.gather(tmp_path, 'laptop')
  assert [own.study.name for own in found] == [*studies.NAMES]
  assert all(own.seconds is None and own.findings and own.records.about for own in found)


def test_a_run_is_held_against_the_committed_records():
  kept = pages.committed('multihop').records
  of = lambda table, here=True: [measured('multihop', here, table)]
  told = report.agreement(of(kept.table), 'laptop')
  count = re.search(
    r'(\d+) of \1 intervals overlap and (\d+) of \2 expectations have the same outcome\.$', told
  )
  assert count and int(count[1]) > 5
  assert (
    report.agreement(of(kept.table), 'smoke')
    == report.agreement(of(kept.table, False), 'laptop')
    == ''
  )
  grown = kept.table.assign(dim=kept.table['dim'] * kept.table['hops'])
  told = report.agreement(of(grown), 'laptop')
  assert f'{count[1]} of {count[1]} intervals overlap' not in told and 'exceptions: ' in told


def write_report(folder, monkeypatch):
  """Writes a report of the smaller committed records, and of one run whose command contains markup."""
  kept = pages.committed('construct').records
  own, committed = folder / 'construct', folder / 'committed'
  about = {'command': 'python -m experiments.construct <b>&', 'code': '', 'device': 'here'}
  records.write(own / records.FILE, Records(about, kept.table))
  (own / report.RUN_STATUS).write_text(json.dumps({'finished': True, 'seconds': 61.0}))
  committed.mkdir()
  for name in SMALLER:
    shutil.copy(pages.RESULTS / f'{name}.json', committed)
  monkeypatch.setattr(pages, 'RESULTS', committed)
  # tests/test_explorer.py tests the real one
  monkeypatch.setattr(report.explorer, 'models', list)
  monkeypatch.setattr(report.explorer, 'data', lambda models: {'models': '<explored>'})
  report.write(folder, 'laptop', report.gather(folder, 'laptop'))


def test_the_report_names_every_claim_and_shows_every_figure(tmp_path, monkeypatch):
  write_report(tmp_path, monkeypatch)
  text = (tmp_path / 'report.html').read_text(encoding='utf-8')
  page = Page()
  page.feed(text)
  assert not [link for link in page.links if not link.startswith(('#', 'data:image/'))]
  assert {link[1:] for link in page.links if link.startswith('#')} <= page.ids
  for study in studies.load_all().values():
    assert all(claim.says in page.text for claim in study.claims)
  assert '{"models": "\\u003cexplored\\u003e"}' in page.text
  assert 'experiments.construct <b>&' in page.text and '{{' not in text
  assert '1.0 min; measured with different code' in page.text
  assert 'from the committed records' in page.text
  assert len(text) < 15 * 2**20
  drawn = (tmp_path / 'figures').glob('*.p*')
  sizes = {picture.name: picture.stat().st_size for picture in drawn}
  assert sizes.keys() == {f'{name}.{kind}' for name in SMALLER for kind in ('png', 'pdf')}
  assert min(sizes.values()) > 8000


def test_a_report_of_nothing_is_refused_though_there_are_committed_records(tmp_path):
  with pytest.raises(InputError, match='nothing was measured'):
    report.main(report.Options(workdir=str(tmp_path / 'nothing')))


def test_the_list_names_every_study(capsys):
  reproduce.main(reproduce.Options(list=True))
  told = capsys.readouterr().out
  assert all(name in told for name in studies.NAMES)
