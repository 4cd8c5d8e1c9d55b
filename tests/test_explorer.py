"""The explorer shows what the library computes, in its data and in a real browser on every query."""

import json
import re
from urllib.parse import urlencode

import browser
import jax
import numpy as np
import pytest

from constructions import registry
from experiments import report
from experiments.harness import machine
from experiments.web import explorer
from experiments.web.explorer import ExplorerModel, models
from geomem import model, queries
from geomem.facts import Facts
from geomem.inside import trace

LIMIT = 3_000_000
PAGE = (
  '<!doctype html><html lang="en"><meta charset="utf-8">'
  '<meta name="viewport" content="width=device-width, initial-scale=1"><title>t</title>'
  '<body style="margin:0 1rem">{}</body></html>'
)


@pytest.fixture(scope='module')
def all_models():
  """All models; the trained one is trained so little that it is sometimes wrong."""
  return models(steps=20)


@pytest.fixture(scope='module')
def section(all_models):
  return page(explorer.data(all_models))


def page(found) -> str:
  """The part of the report that shows these data."""
  return report.page('explorer.html', explorer=found)


@pytest.fixture(scope='module')
def told(section):
  text = re.search('<script type="application/json"[^>]*>(.*?)</script>', section, re.DOTALL)[1]
  return json.loads(text)['models']


def answers(one) -> list[list[str]]:
  """The model's own answers at every step of every query, in order."""
  c = one.model
  subjects_B = np.array([s for s, _ in one.queries()], np.int32)
  paths_BxK = np.array([path for _, path in one.queries()], np.int32)
  tokens = np.asarray(queries.prompts(c.facts.subjects, subjects_B, paths_BxK))
  say = jax.jit(lambda tokens: model.apply(c.config, c.params, tokens)[:, -1].argmax(-1))
  steps = []
  for _ in range(c.hops if c.chain_of_thought else 1):
    steps.append(np.asarray(say(tokens), np.int32))
    tokens = np.concatenate([tokens, steps[-1][:, None]], axis=1)
  return [[c.facts.attribute_name(int(a)) for a in chain] for chain in np.stack(steps, 1)]


def asked(one) -> list[str]:
  facts = one.model.facts
  names = lambda s, path: [facts.subject_name(s), *map(facts.relation_name, path)]
  return [trace.join_names(names(s, path)) for s, path in one.queries()]


def test_the_data_are_what_the_models_say(all_models, told):
  assert len(told) == len(all_models) >= 9
  for one, shown in zip(all_models, told, strict=True):
    assert [query['query'] for query in shown['queries']] == asked(one)
    assert [query['answer'] for query in shown['queries']] == answers(one)
    for query in shown['queries']:
      assert [step['logits'][0][0] for step in query['steps']] == query['answer']


def test_probes_tell_a_superposition_from_an_associative_memory(all_models, told):
  found = {shown['name']: shown['probes'] for shown in told}
  assert found['superposition'] == [1, 1] and found['selector'] is None
  assert found['associative_mlp'][0] < 0.1 and found['associative_mlp'][1] < 0.2
  for one in all_models:
    if one.probes:  # the parts add up to the embedding
      embed = one.model.params['embed']
      whole = embed['subjects'][one.subjects] + embed['positions'][0][None]
      parts = one.probes.parts_SxPxD.sum(axis=1)
      np.testing.assert_allclose(parts, whole, rtol=1e-3, atol=1e-4)


def test_the_section_is_small_and_whole(section):
  assert len(section.encode()) < LIMIT
  assert not re.search(r'//\w+\.\w|src=|href=|@import|fetch\(|XMLHttp|innerHTML', section)
  assert not re.search(r'(id|class)="(?!explorer)', section)


def test_names_cannot_break_out(all_models):
  c = all_models[0].model
  names = ('</script><script>alert(1)</script>', '<!--', *'abcdef')
  facts = Facts(c.facts.answers_RxN, 8, True, names, ('<b>', '&amp;', '"\''), names)
  one = ExplorerModel('</script>', '<i>', c.replace(facts=facts), np.arange(8))
  section = page(explorer.data([one]))
  assert section.count('</script>') == 2 and '<!--' not in section and 'alert(1)<' not in section


def test_what_is_shown_is_made_once_by_one_code(tmp_path, monkeypatch, capsys):
  c = registry.build('selector', Facts.bijections(4, 2))
  made, path = [ExplorerModel('selector', '', c, np.arange(4))], tmp_path / 'explorer.json'
  monkeypatch.setattr(explorer, 'models', lambda: made)
  first = explorer.kept(path)
  assert first == explorer.data(made) and 'making' in capsys.readouterr().err
  made *= 2
  assert page(explorer.kept(path)) == page(first)
  assert capsys.readouterr().err == ''
  monkeypatch.setattr(machine, 'code_hash', lambda: 'other')
  assert len(explorer.kept(path)['models']) == 2
  path.write_text('{')
  assert len(explorer.kept(path)['models']) == 2 and json.loads(path.read_text())['code'] == 'other'


CHECK = """((number) => {
  const at = (id) => document.getElementById('explorer-' + id), found = []
  const change = (control) => control.dispatchEvent(new Event('change', {bubbles: true}))
  const wide = () => document.documentElement.scrollWidth - document.documentElement.clientWidth
  const texts = (list) => [...list.children].map((one) => one.textContent)
  at('model').value = number
  change(at('model'))
  const fields = [...at('hops').querySelectorAll('fieldset')].map((field) => [...field.querySelectorAll('input')])
  const paths = fields.reduce((some, inputs) => some.flatMap((path) => inputs.map((one) => [...path, one])), [[]])
  for (const subject of at('subject').options) {
    for (const path of paths) {
      subject.selected = true
      path.forEach((input) => { input.checked = true })
      change(path[0])
      const right = !at('answer').classList.contains('explorer-wrong')
      const fired = [...document.querySelectorAll('.explorer-fired')].map(texts)
      const over = path === paths[1] && subject.index < 2 ? wide() : 0
      found.push([at('answer').querySelector('b').textContent, right, fired, over])
    }
  }
  return found
})(%d)"""


def fired(one, query) -> list[list[str]]:
  """The names of all units that fire, layer by layer, for models whose units are few enough to be named."""
  c, (subject, path) = one.model, query
  seen = trace.trace_prompt(c, [subject, *(c.facts.subjects + r for r in path)])
  layers = [(i, j, v[-1]) for i, b in enumerate(seen.blocks) for j, v in enumerate(b.hidden)]
  return [
    sorted(trace.unit_name(seen.construction, i, j, u) for u in np.flatnonzero(v)) or [trace.idle(seen, i, j, c.hops)]
    for i, j, v in layers
  ]  # fmt: skip


@pytest.mark.skipif(not browser.PATH, reason=browser.MISSING)
def test_in_a_browser(all_models, section, told, tmp_path):
  path = tmp_path / 'page.html'
  path.write_text(PAGE.format(section), encoding='utf-8')
  with browser.tab(tmp_path / 'profile') as tab:
    tab.open(path.as_uri(), 375)
    for i, (one, shown) in enumerate(zip(all_models, told, strict=True)):
      check_answers(one, shown, tab.ask(CHECK % i))
    for shown in told:
      check_link(tab, path, shown)
    check_keys(tab, path)
    check_wrong_links(tab, path)
    assert not tab.complaints
    assert all(url.startswith(('file:', 'about:')) for url in tab.asked)


def check_answers(one, shown: dict, found: list):
  """Checks every query in a narrow window: its answer, whether it is right, which units fire, and no overflow."""
  said = [f'{q} → {" → ".join(a)}' for q, a in zip(asked(one), answers(one), strict=True)]
  assert [answer for answer, *_ in found] == said
  right = [query['answer'][-1] == query['truth'] for query in shown['queries']]
  assert [is_right for _, is_right, *_ in found] == right
  assert all(over <= 0 for *_, over in found), shown['name']
  c = one.model
  if c.hidden and not one.probes and not c.chain_of_thought:
    for i in (0, len(found) // 2, len(found) - 1):
      assert [sorted(names) for names in found[i][2]] == fired(one, one.queries()[i])


ANSWER = "document.querySelector('#explorer-answer b').textContent"


def check_link(tab, page, shown: dict):
  """Checks that a link selects a query, and that a wide window holds the page."""
  query = shown['queries'][-1]
  link = urlencode({'model': shown['name'], 'query': query['query']})
  tab.open(f'{page.as_uri()}#explorer:{link}', 1280)
  assert tab.ask(ANSWER).startswith(f'{query["query"]} → {query["answer"][0]}')
  assert tab.ask('document.documentElement.scrollWidth <= innerWidth')


def check_keys(tab, page):
  """Checks that the arrow keys select another query and update the link, without adding to the history."""
  tab.open(page.as_uri() + '#explorer:model=selector&query=s2+r1', 1280)
  before = tab.ask('history.length')
  assert tab.ask(ANSWER).startswith('s2 r1 → ')
  tab.ask("document.getElementById('explorer-subject').focus()")
  tab.press('ArrowDown', 40)
  assert tab.ask(ANSWER).startswith('s3 r1 → ')
  tab.press('Tab', 9)
  tab.press('ArrowRight', 39)
  assert tab.ask(ANSWER).startswith('s3 r2 → ')
  tab.ask('new Promise((done) => setTimeout(done, 300))')
  assert tab.ask('location.hash') == '#explorer:model=selector&query=s3+r2'
  assert tab.ask('history.length') == before


def check_wrong_links(tab, page):
  """Checks that a link to an unknown model or query shows what the page shows without a link."""
  tab.open(page.as_uri(), 1280)
  without = tab.ask(ANSWER)
  for words in ('model=typo&query=s2+r1', 'model=factored&query=typo', 'model=factored&query='):
    tab.open(f'{page.as_uri()}#explorer:{words}', 1280)
    assert tab.ask(ANSWER) == without, words
  tab.open(f'{page.as_uri()}#explorer:model=selector', 1280)
  assert tab.ask(ANSWER).startswith('s0 r0 → ')
