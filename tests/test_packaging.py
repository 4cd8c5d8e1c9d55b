"""Packaging: the lock pins the installed versions, the matrix names the tested ones, the changelog says what changed."""

import configparser
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import geomem
from experiments import matrix, pages
from experiments.harness import records
from geomem.errors import InputError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def setup():
  parser = configparser.ConfigParser()
  parser.read(ROOT / 'setup.cfg', encoding='utf-8')
  return parser


def locked():
  """Yields every requirement of the lock, with its hashes."""
  text = (ROOT / 'requirements.lock').read_text(encoding='utf-8')
  text = re.sub('^#.*\n', '', text, flags=re.MULTILINE).replace('\\\n', '')
  for line in text.splitlines():
    requirement, *hashes = line.split(' --hash=')
    yield Requirement(requirement), [own.strip() for own in hashes]


def test_the_lock_pins_all_that_is_asked_for_and_names_no_address(setup):
  pinned = {}
  for own, hashes in locked():
    (pin,) = own.specifier
    assert pin.operator == '==' and not own.url, own
    assert hashes and all(re.fullmatch('sha256:[0-9a-f]{64}', one) for one in hashes), own
    pinned.setdefault(own.name, []).append(Version(pin.version))
  asked = setup['options']['install_requires'].split()
  for extra in ('test', 'check', 'lm'):
    asked += setup['options.extras_require'][extra].split()
  for one in map(Requirement, [*asked, 'setuptools>=68']):
    assert pinned[one.name] and all(one.specifier.contains(v) for v in pinned[one.name]), one
  assert '://' not in (ROOT / 'requirements.lock').read_text(encoding='utf-8')


def test_the_oldest_jax_is_the_first_that_is_allowed(setup, tmp_path):
  name, _, version = matrix.first_allowed('jax').partition('==')
  assert name == 'jax' and f'jax>={version}' in setup['options']['install_requires'].split()
  other = tmp_path / 'setup.cfg'
  other.write_text('[options]\ninstall_requires =\n  jax\n')
  with pytest.raises(InputError, match='no oldest version of jax'):
    matrix.first_allowed('jax', other)
  with pytest.raises(InputError, match='no such Python'):
    matrix.environment(tmp_path, 'python-that-there-is-not')


def test_tests_are_counted_and_what_cannot_be_run_is_no_result(tmp_path):
  one = tmp_path / 'test_one.py'
  one.write_text(
    'import pytest\ndef test_a(): pass\ndef test_b(): assert False\ndef test_c(): pytest.skip()\n'
  )
  found = matrix.tested(sys.executable, ('-n0', f'--rootdir={tmp_path}', str(one)), tmp_path / 'x')
  assert (found['passed'], found['failed'], found['skipped']) == (1, 1, 1)
  assert found['jax'] and found['python'].startswith('3.') and found['ran'].endswith('test_one.py')
  with pytest.raises(InputError, match='could not run'):
    matrix.tested(sys.executable, ('-n0', str(tmp_path / 'none.py')), tmp_path / 'x')


def test_the_table_of_the_readme_is_of_tests_that_passed_at_both_ends(setup):
  table = records.read(pages.RESULTS / pages.MATRIX).table
  assert pages.tested() in (ROOT / 'README.md').read_text(encoding='utf-8')
  assert list(table['name']) == ['oldest', 'newest'] and not table['failed'].any()
  assert (table['passed'] > 2000).all() and set(table['ran']) == {'all tests'}
  oldest, newest = map(Version, table['jax'])
  allowed = Requirement(matrix.first_allowed('jax')).specifier
  assert allowed.contains(oldest) and oldest < newest


def test_the_changelog_is_of_this_version_or_of_the_next():
  text = (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8')
  versions = [Version(found) for found in re.findall(r'^## (\S+?),? ', text, re.MULTILINE)]
  assert versions == sorted(versions, reverse=True) and Version(geomem.__version__) in versions[:2]
  cited = (ROOT / 'CITATION.cff').read_text(encoding='utf-8')
  assert f'\nversion: {geomem.__version__}\n' in cited
