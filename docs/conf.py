"""Sphinx configuration of the site (`make docs`): these pages, the notebooks and the packages' docstrings."""

import importlib
import os
import re
from importlib.util import find_spec
from pathlib import Path

import geomem

DOCS = Path(__file__).parent
ROOT = DOCS.parent
SOURCE = 'https://github.com/geomem/geomem'
PACKAGES = 'geomem', 'constructions'  # docs/api.md must list their public names
ANCHOR, LINK = re.compile(r'<a id="([^"]+)"></a>'), re.compile(r'(?<=\]\()([^()\s]+)(?=\))')

project, author, copyright = 'geomem', 'The geomem authors', '2026, the geomem authors'
version = release = geomem.__version__
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.viewcode']
exclude_patterns = ['**.ipynb_checkpoints']
html_theme = 'sphinx_book_theme'
html_title = 'geomem'
html_theme_options = {
  'navbar_persistent': [],
  'repository_url': SOURCE, 'path_to_docs': 'docs', 'use_repository_button': True,
  'launch_buttons': {'colab_url': 'https://colab.research.google.com'},
}  # fmt: skip

myst_heading_anchors = 4
# EXECUTE=off: do not run the notebooks.
nb_execution_mode = os.environ.get('EXECUTE', 'force')
nb_execution_timeout = 600  # seconds per cell, on a busy machine
nb_execution_raise_on_error = True
nb_execution_in_temp = True  # the files that they write stay out of the checkout
# Packages that notebooks need besides those of the extra `docs`; without its package, a notebook is not run.
NEEDS = {'interop': 'transformer_lens'}
nb_execution_excludepatterns = [
  f'notebooks/{name}.ipynb' for name, needed in NEEDS.items() if find_spec(needed) is None
]

autodoc_typehints = 'signature'
autodoc_member_order = 'bysource'
default_role = 'code'  # for `names` in docstrings


def anchors() -> set[str]:
  """The anchors that pages define, apart from their headings."""
  return {name for page in DOCS.glob('*.md') for name in ANCHOR.findall(page.read_text('utf-8'))}


def link(page: Path, target: str) -> str:
  """The target of a page's link on the site: pages and pictures are local, other files are on GitHub."""
  path, _, name = target.partition('#')
  there = (page.parent / path).resolve() if path else page
  if re.match(r'[a-z]+:', target) or there.suffix in ('.png', '.svg') or not there.exists():
    return target
  if there.parent == DOCS and there.suffix == '.md':
    return f'#at-{name}' if name in anchors() else target
  kind = 'tree' if there.is_dir() else 'blob'
  return f'{SOURCE}/{kind}/main/{there.relative_to(ROOT)}{"#" * bool(name)}{name}'


def for_site(page: Path, text: str) -> str:
  """Convert a page written for GitHub to MyST."""
  return ANCHOR.sub(r'(at-\1)=', LINK.sub(lambda found: link(page, found[1]), text))


def missing(names) -> list[str]:
  """The packages' public names that are not in `names`, those that the API reference describes."""
  public = [f'{own}.{name}' for own in PACKAGES for name in importlib.import_module(own).__all__]
  return sorted({*public} - {*names} - {'geomem.__version__'})


def setup(app):
  from sphinx.util import logging

  def read(app, name, content):
    page = DOCS / f'{name}.md'
    if page.exists():
      content[0] = for_site(page, content[0])

  def check(app, environment):
    for name in missing(environment.domaindata['py']['objects']):
      logging.getLogger(__name__).warning('%s is not in the reference', name)

  app.connect('source-read', read)
  app.connect('env-check-consistency', check)
