"""How Sphinx makes the site of these pages, of the notebooks and of the packages' docstrings: `make docs`."""

import importlib
import os
import re
from importlib.util import find_spec
from pathlib import Path

import geomem

DOCS = Path(__file__).parent
ROOT = DOCS.parent
SOURCE = 'https://github.com/geomem/geomem'
PACKAGES = 'geomem', 'constructions'  # whose public names the reference must have
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
# EXECUTE=off leaves the notebooks as they are.
nb_execution_mode = os.environ.get('EXECUTE', 'force')
nb_execution_timeout = 600  # seconds a cell, on a busy machine
nb_execution_raise_on_error = True
nb_execution_in_temp = True  # what they write is of no use to the checkout
# What a notebook needs that the extra `docs` does not bring; where it is missing, the notebook is not run.
NEEDS = {'interop': 'transformer_lens'}
nb_execution_excludepatterns = [
  f'notebooks/{name}.ipynb' for name, needed in NEEDS.items() if find_spec(needed) is None
]

autodoc_typehints = 'signature'
autodoc_member_order = 'bysource'
default_role = 'code'  # a name in single quotes, in docstrings


def anchors() -> set[str]:
  """The names that pages give to places other than headings."""
  return {name for page in DOCS.glob('*.md') for name in ANCHOR.findall(page.read_text('utf-8'))}


def link(page: Path, target: str) -> str:
  """Where a link of a page leads on the site: pages and pictures are there, other files are on GitHub."""
  path, _, name = target.partition('#')
  there = (page.parent / path).resolve() if path else page
  if re.match(r'[a-z]+:', target) or there.suffix in ('.png', '.svg') or not there.exists():
    return target
  if there.parent == DOCS and there.suffix == '.md':
    return f'#at-{name}' if name in anchors() else target
  kind = 'tree' if there.is_dir() else 'blob'
  return f'{SOURCE}/{kind}/main/{there.relative_to(ROOT)}{"#" * bool(name)}{name}'


def for_site(page: Path, text: str) -> str:
  """A page, written for GitHub, as MyST reads it."""
  return ANCHOR.sub(r'(at-\1)=', LINK.sub(lambda found: link(page, found[1]), text))


def missing(names) -> list[str]:
  """The public names of the packages that are not among those that the reference describes."""
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
