"""Drawings of traces: which texts they contain, and that they can be drawn at all."""

import html
import re

import matplotlib
import numpy as np
import pytest
from test_trace import ask, build

from constructions import registry
from experiments.web import trace_figure
from geomem.facts import Facts
from geomem.inside import trace


@pytest.mark.parametrize(
  'name',
  ['selector_literal', 'disjoint', 'factored', 'chain_of_thought_compact', 'superposition'],
)
def test_drawing(name, tmp_path):
  seen, _ = ask(build(name), 3, (1, 0)[: 1 + registry.entry(name).multi_hop])
  trace_figure.draw(seen, tmp_path / 'a.png')
  assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')


def drawn(seen, path):
  """Draws a trace and returns the texts of the drawing."""
  with matplotlib.rc_context({'svg.fonttype': 'none'}):
    trace_figure.draw(seen, path)
  return [html.unescape(text) for text in re.findall('<text[^>]*>(.*?)<', path.read_text())]


def test_a_drawing_keeps_heads_of_other_weights_apart(tmp_path):
  seen, _ = ask(build('chain_of_thought_compact'), 3, (1, 2))
  told = drawn(seen, tmp_path / 'a.svg')
  assert 'head 1: ½' in told and 'head 2: 1' in told
  seen, _ = ask(build('attention_only', 16, 12), 3, (7,))
  assert {'head 8', 'heads 1–7, 9–12'} <= set(drawn(seen, tmp_path / 'a.svg'))


def test_numbers_are_drawn_where_a_row_has_room_for_them(tmp_path):
  seen, _ = ask(build('selector'), 3, (1,))
  assert {'−½', 'open'} <= set(drawn(seen, tmp_path / 'a.svg'))
  seen, _ = ask(build('associative_mlp', 32, 4), 3, (1,))
  assert np.abs(seen.embedded_LxD[0]).max() < 1
  told = drawn(seen, tmp_path / 'a.svg')
  assert not any(re.fullmatch(r'−?0\.\d+', text) for text in told)


def test_long_and_foreign_names_can_be_drawn(tmp_path, capsys):
  names = ('東京', 'a name ' * 20)
  facts = Facts(np.array([[1, 0], [0, 1]]), 2, True, names, ('首都', 'of ' * 40), names)
  told = drawn(trace.trace_prompt(registry.build('selector', facts), [1, 3]), tmp_path / 'a.svg')
  assert max(map(len, told)) < 80
  assert len(capsys.readouterr().err.splitlines()) <= 1


@pytest.mark.parametrize('kind', ['svg', 'pdf'])
def test_a_drawing_is_reproducible(kind, tmp_path):
  seen, _ = ask(build('selector'), 2, (1,))
  for name in 'ab':
    trace_figure.draw(seen, tmp_path / f'{name}.{kind}')
  assert (tmp_path / f'a.{kind}').read_bytes() == (tmp_path / f'b.{kind}').read_bytes()


@pytest.mark.parametrize(
  ('name', 'told'),
  [('keyvalue', 'memory[s3, r1]'), ('precomputed_depth1', 'tree (and 115 more)')],
)
def test_huge_layers_can_be_drawn(name, told, tmp_path):
  seen, _ = ask(build(name, 40, 5, 3), 3, (1, 4, 0))
  trace_figure.draw(seen, tmp_path / 'a.svg')
  assert told in (tmp_path / 'a.svg').read_text()
