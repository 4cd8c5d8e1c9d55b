"""One command for all: what is finished is kept, what failed is said, the report says what the records say."""

import dataclasses
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from absl import flags

from experiments import claims, cli, report, reproduce
from experiments.findings import found
from geomem.errors import InputError

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Fake(claims.Experiment):
  """Runs a line of Python instead; how often is in counted.txt."""

  line: str = 'pass'

  def command(self, scale):
    write = 'import sys; open(sys.argv[-1].split("=")[1] + "/counted.txt", "a").write("x")\n'
    return ['python', '-c', write + self.line, f'--scale={scale}']


@pytest.fixture(autouse=True)
def parsed():
  FLAGS.unparse_flags()
  FLAGS(['reproduce'])


def run(folder, line='pass'):
  fake = Fake('fake', 'nothing', 0.01, line=line)
  return reproduce.measure(fake, 'smoke', folder, reproduce.Progress([fake]))


def counted(folder):
  return len((folder / 'counted.txt').read_text())


def test_what_is_finished_is_kept_and_measured_anew_when_asked(tmp_path, capsys, monkeypatch):
  folder = tmp_path / 'fake'
  assert run(folder) and counted(folder) == 1
  assert run(folder) and counted(folder) == 1
  assert 'kept' in capsys.readouterr().err
  monkeypatch.setattr(reproduce, 'code', lambda: 'other')
  assert run(folder) and counted(folder) == 1
  assert 'measured by other code' in capsys.readouterr().err
  FLAGS(['reproduce', '--again'])
  assert run(folder) and counted(folder) == 1  # the folder was emptied first
  assert json.loads((folder / reproduce.DONE).read_text())['code'] == 'other'


def test_a_failure_is_said_and_goes_on_from_where_it_was(tmp_path, capsys):
  folder = tmp_path / 'fake'
  assert not run(folder, 'raise SystemExit("no luck")')
  assert 'FAILED' in capsys.readouterr().err
  assert 'no luck' in (folder / 'log.txt').read_text()
  assert not (folder / reproduce.DONE).exists()
  assert run(folder) and counted(folder) == 2  # the same folder, so that a run takes itself up


def test_time_is_counted_over_interruptions(tmp_path):
  tmp_path.joinpath('x').mkdir()
  with pytest.raises(KeyboardInterrupt), reproduce.timed(tmp_path / 'x'):
    time.sleep(0.05)
    raise KeyboardInterrupt
  with reproduce.timed(tmp_path / 'x') as total:
    time.sleep(0.05)
  assert 0.1 <= total['seconds'] < 10


@pytest.mark.parametrize(
  ('arguments', 'told'), [(['--only=nonsense'], 'known are'), (['--only='], 'known are')]
)
def test_unknown_experiments_are_refused(arguments, told):
  FLAGS(['reproduce', *arguments])
  with pytest.raises(InputError, match=told):
    reproduce.chosen()


def test_every_claim_names_an_experiment_that_has_findings():
  for claim in claims.CLAIMS:
    assert callable(claims.EXPERIMENTS[claim.experiment].module.findings)
  assert {c.experiment for c in claims.CLAIMS} == claims.EXPERIMENTS.keys()


@pytest.mark.parametrize(
  ('values', 'kind'),
  [((1.0, 1.0), 'holds'), ((1.0, 0.0), 'part'), ((0.0, 0.0), 'short'), ((), 'none')],
)
def test_a_verdict_is_of_all_that_was_expected(values, kind):
  findings = [f for v in values for f in found('x', [v], 0.5)] + found('not expected', [0.0])
  assert report.verdict(findings)[0] == kind


class Page(HTMLParser):
  """What a page refers to, and its text."""

  def __init__(self):
    super().__init__()
    self.ids, self.links, self.text = set(), [], ''

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.ids |= {attrs['id']} if 'id' in attrs else set()
    self.links += [attrs[name] for name in ('href', 'src') if name in attrs]

  def handle_data(self, data):
    self.text += data


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """A report of what is committed, and of one run in which a control has a hostile name."""
  folder = tmp_path_factory.mktemp('report')
  records = cli.read_results(report.COMMITTED, 'construct.json')
  own = folder / 'construct'
  cli.write_results(own, [{'others_facts': 0.0, **r} for r in records])
  done = {'command': 'python -m experiments.construct <b>&', 'code': '', 'seconds': 61.0}
  (own / reproduce.DONE).write_text(json.dumps(done))
  report.write(folder, 'laptop')
  return folder


def test_the_report_is_one_file_that_names_every_claim(written):
  text = (written / 'report.html').read_text(encoding='utf-8')
  page = Page()
  page.feed(text)
  assert not [link for link in page.links if not link.startswith(('#', 'data:image/'))]
  assert {link[1:] for link in page.links if link.startswith('#')} <= page.ids
  for claim in claims.CLAIMS:
    assert claim.says in page.text
  assert 'experiments.construct <b>&' in page.text and '{{' not in text
  assert '1.0 min' in page.text and 'from the committed records' in page.text
  assert len(text) < 15 * 2**20


def test_the_markdown_links_to_figures_that_are_there(written):
  text = (written / 'report.md').read_text(encoding='utf-8')
  pictures = re.findall(r'!\[.*?\]\((.*?)\)', text)
  assert pictures and all((written / p).stat().st_size > 8000 for p in pictures)
  assert all(Path(written / p).with_suffix('.pdf').exists() for p in pictures)
  assert text.count('| Theorem') == 5


def test_a_report_of_nothing_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(report, 'COMMITTED', tmp_path)
  with pytest.raises(InputError, match='nothing was measured'):
    report.write(tmp_path, 'laptop')


def test_the_list_names_every_experiment(capsys):
  FLAGS(['reproduce', '--list'])
  reproduce.main(['reproduce'])
  told = capsys.readouterr().out
  assert all(name in told for name in claims.EXPERIMENTS)
