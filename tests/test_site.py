"""The site's own rules: every anchor is unique, links lead somewhere, and the reference has every public name."""

import json
import re
import runpy
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / 'docs'


@pytest.fixture(scope='module')
def conf():
  return runpy.run_path(str(DOCS / 'conf.py'))


def test_every_public_name_must_be_in_the_reference(conf):
  """The check that a build makes, in which a warning is an error, finds a name that is left out."""
  text = (DOCS / 'api.md').read_text(encoding='utf-8')
  public = set(conf['missing'](()))
  assert {'geomem.train', 'geomem.Facts', 'constructions.build'} < public and len(public) > 18
  assert conf['missing'](public) == []
  assert conf['missing'](public - {'geomem.Trace'}) == ['geomem.Trace']
  for package in conf['PACKAGES']:  # all names in its __all__
    assert re.search(rf'automodule:: {package}\n   :members:\n', text), package


def test_links_lead_to_pages_of_the_site_to_pictures_and_else_to_github(conf):
  page, link = DOCS / 'reproduce.md', conf['link']
  source = 'https://github.com/geomem/geomem/blob/main/'
  for there in (
    'theory.md#setting', '#lower-bounds', 'results/bounds.png', 'https://arxiv.org/abs/2605.12426', 'none.md',
  ):  # fmt: skip
    assert link(page, there) == there
  assert link(page, 'results.md#structure') == '#at-structure'
  assert link(page, '../geomem/facts.py') == source + 'geomem/facts.py'
  assert link(page, '../README.md#all-constructions') == source + 'README.md#all-constructions'
  assert link(page, '../constructions') == source.replace('blob', 'tree') + 'constructions'
  read = conf['for_site'](page, 'a\n<a id="structure"></a>\n\nb [c](results.md#structure)')
  assert read == 'a\n(at-structure)=\n\nb [c](#at-structure)'


def test_no_place_has_two_names(conf):
  """Links to a place on another page use the place's name alone."""
  names = [name for page in DOCS.glob('*.md') for name in conf['ANCHOR'].findall(page.read_text())]
  assert len(names) == len(set(names)) and set(names) == conf['anchors']()


@pytest.mark.parametrize('planted', [False, True])
def test_it_is_built_without_a_warning(planted, tmp_path, monkeypatch, conf):
  """A few pages, with a notebook that is not run, build without a warning; a broken link is an error."""
  pytest.importorskip('sphinx', reason="needs pip install -e '.[docs]'")
  pytest.importorskip('myst_nb')
  from sphinx.cmd.build import build_main

  source = tmp_path / 'docs'
  (source / 'notebooks').mkdir(parents=True)
  for name in ('conf.py', 'api.md', 'assumptions.md'):
    shutil.copy(DOCS / name, source)
  shutil.copy(ROOT / 'notebooks/inside.ipynb', source / 'notebooks')
  text = '# x\n\n' + '[a](nowhere.md)\n\n' * planted
  (source / 'index.md').write_text(text + '```{toctree}\n:glob:\n*\nnotebooks/*\n```\n')
  monkeypatch.setenv('EXECUTE', 'off')
  page = (source / 'assumptions.md').read_text()
  (source / 'assumptions.md').write_text(conf['LINK'].sub('https://example.org', page))
  status = build_main(['-W', '-q', '-b', 'html', str(source), str(tmp_path / 'html')])
  assert bool(status) == planted
  if not planted:
    assert 'constructions.build' in (tmp_path / 'html/api.html').read_text()
    assert (tmp_path / 'html/notebooks/inside.html').exists()


def test_notebooks_are_pages_in_the_order_in_which_they_are_read():
  index = (DOCS / 'index.md').read_text(encoding='utf-8')
  assert 'notebooks/quickstart\nnotebooks/*\n' in index and '\n*\n' in index
  assert (DOCS / 'notebooks').resolve() == ROOT / 'notebooks'
  for path in (ROOT / 'notebooks').glob('*.ipynb'):
    first = json.loads(path.read_text(encoding='utf-8'))['cells'][0]
    assert ''.join(first['source']).startswith('# '), path
