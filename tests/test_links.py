"""The pages' links: relative ones lead to existing files and headings, and the repository has one address."""

import json
import re
import urllib.parse
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md')])
NOTEBOOKS = sorted(ROOT.glob('notebooks/*.ipynb'))
ADDRESS = 'https://github.com/geomem/geomem'
LINK = re.compile(r'!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)', re.DOTALL)
CODE = re.compile(r'```.*?```|`[^`\n]*`', re.DOTALL)


def prose(text):
  """A page without its code, in which brackets are not links."""
  return CODE.sub('', text)


def anchors(path):
  """The anchors that GitHub gives a page's headings, and those written in the page."""
  text = re.sub(r'```.*?```', '', path.read_text(encoding='utf-8'), flags=re.DOTALL)
  titles = re.findall(r'^#+ +(.+?) *$', text, re.MULTILINE)
  names = [re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles]
  headings = {f'{name}-{names[:i].count(name)}'.removesuffix('-0') for i, name in enumerate(names)}
  return headings | set(re.findall('<a id="(.+?)">', text))


def broken(page, link):
  """Why a link of `page` is broken; None if it is fine or leads to another site."""
  if re.match(r'[a-z]+:', link):
    return None
  path, _, anchor = urllib.parse.unquote(link).partition('#')
  target = (page.parent / path).resolve() if path else page
  if ROOT not in (target, *target.parents) or not target.exists():
    return f'{link}: there is no such file'
  if anchor and anchor not in anchors(target):
    return f'{link}: no such heading'
  return None


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
  links = LINK.findall(prose(page.read_text(encoding='utf-8')))
  assert [told for told in (broken(page, link) for link in links) if told] == []


def test_a_broken_link_is_seen():
  page = ROOT / 'README.md'
  for link in ('docs/none.md', 'docs/theory.md#none', '#none', '../elsewhere', '/etc'):
    assert broken(page, link), link
  for link in (
    'docs/theory.md#setting',
    '#all-constructions',
    'docs',
    'https://arxiv.org/abs/2605.12426',
  ):
    assert broken(page, link) is None, link
  assert LINK.findall(prose('![a\nb](c.svg) [`d`](e#f) [[g](h)](i) `[j](k)`')) == [
    'c.svg',
    'e#f',
    'i',
  ]


def test_the_repository_has_one_address():
  """The repository's files that pages and notebooks link to exist, and none uses another form of the address."""
  texts = {path: path.read_text(encoding='utf-8') for path in [*PAGES, ROOT / 'CITATION.cff']}
  for path in NOTEBOOKS:
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    texts[path] = '\n'.join(''.join(cell['source']) for cell in cells)
  found = 0
  for path, text in texts.items():
    for name in re.findall(r'github(?:\.com/|/)geomem/geomem(?:/blob/main/([\w./-]+))?', text):
      found += 1
      assert (ROOT / name).exists(), f'{path.name}: {name}'
    for other in re.findall(r'https?://[^\s)\]\'"]*geomem/geomem[^\s)\]\'"]*', text):
      colab = 'https://colab.research.google.com/github/geomem/geomem/blob/main/'
      known = [f'{colab}{own.relative_to(ROOT)}' for own in NOTEBOOKS]
      assert other.startswith(ADDRESS) or other in known, f'{path.name}: {other}'
  assert found >= 5
