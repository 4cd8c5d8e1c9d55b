"""Asking a model: which queries are read, what the answer says, and what the binary does and refuses."""

import dataclasses
import io
import itertools
import sys

import jax
import numpy as np
import oracle
import pytest

from constructions import registry
from experiments import ask
from experiments.harness import records
from geomem import model
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.inside import asking
from geomem.saved import models

PLAIN = Facts.bijections(8, 3)
NAMED = Facts(
  np.array([[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]]),
  5,
  True,
  ('Marie Curie', 'Zoë', 'Paris, Texas', 'Ann', 'Ann Lee'),
  ('born in', 'knows'),
  ('Marie Curie', 'Zoë', 'Paris, Texas', 'Ann', 'Ann Lee'),
)


@pytest.mark.parametrize(
  ('facts', 'text', 'expected'),
  [
    (PLAIN, 's7 r2', (7, (2,))),
    (PLAIN, '  s7\t r2 \n', (7, (2,))),
    (PLAIN, 's3,r1', (3, (1,))),
    (PLAIN, 's3 r1, r2', (3, (1, 2))),
    (PLAIN, 's3, r1|r2', (3, (1, 2))),
    (NAMED, 'Marie Curie born in, knows', (0, (0, 1))),
    (PLAIN, 's3 | r1 | r0', (3, (1, 0))),
    (PLAIN, 's3 r1 r0 r0 r2', (3, (1, 0, 0, 2))),
    (NAMED, 'Marie Curie born in', (0, (0,))),
    (NAMED, 'Marie  Curie,born in', (0, (0,))),
    (NAMED, 'Marie Curie | born in | knows', (0, (0, 1))),
    (NAMED, 'Zoe\u0308 knows', (1, (1,))),  # another Unicode composition of the same name
    (NAMED, 'Paris, Texas, knows', (2, (1,))),
    (NAMED, 'Paris, Texas | knows', (2, (1,))),
    (NAMED, 'Paris, Texas knows', (2, (1,))),
    (NAMED, 'Ann knows', (3, (1,))),
    (NAMED, 'Ann Lee knows', (4, (1,))),
  ],
)
def test_queries_that_can_be_read(facts, text, expected):
  assert asking.parse_query(facts, text, len(expected[1])) == expected


@pytest.mark.parametrize(
  ('facts', 'hops', 'text', 'told'),
  [
    (PLAIN, 1, '', ['empty query', '"s0 r0"']),
    (PLAIN, 2, ' \t', ['empty query', 'a subject and 2 relation(s)']),
    (PLAIN, 1, 's8 r0', ["unknown subject 's8'", 's0, s1 … s7']),
    (PLAIN, 1, 'r0 s1', ["unknown subject 'r0'"]),
    (PLAIN, 1, 's1 r3', ["unknown relation 'r3'", 'r0, r1, r2']),
    (PLAIN, 1, 's1 r0 r1', ['2 relation(s)', 'a subject and 1 relation(s)']),
    (PLAIN, 2, 's1 r0', ['1 relation(s)', 'a subject and 2 relation(s)']),
    (PLAIN, 2, 's1', ['0 relation(s)']),
    (PLAIN, 1, 's1 | | r0', ["unknown relation ''"]),
    (PLAIN, 1, '|', ["unknown subject ''"]),
    (PLAIN, 1, 's1' + ' r0' * 5000, ['5000 relation(s)']),
    (NAMED, 1, 'Marie Cury born in', ["'Marie Cury'", "did you mean 'Marie Curie'?"]),
    (NAMED, 1, 'marie curie | born in', ["did you mean 'Marie Curie'?"]),
    (NAMED, 1, 'Zoë borne in', ["unknown relation 'borne in'", "did you mean 'born in'?"]),
    (NAMED, 1, 'xyzzy knows', ["unknown subject 'xyzzy'", 'the subjects are Marie Curie, Zoë']),
    (NAMED, 2, 'Zoë | knows', ['1 relation(s)', '"Marie Curie | born in | born in"']),
  ],
)
def test_queries_that_cannot(facts, hops, text, told):
  with pytest.raises(InputError) as error:
    asking.parse_query(facts, text, hops)
  message = str(error.value)
  assert all(part in message for part in told), message
  assert '\n' not in message


def test_a_query_with_two_readings_is_refused():
  names = ('a', 'a b'), ('b c', 'c'), ('a', 'a b')
  facts = Facts(np.array([[0, 1], [1, 0]]), 2, True, *names)
  with pytest.raises(InputError, match='more than one way; separate the names by |'):
    asking.parse_query(facts, 'a b c', 1)
  assert asking.parse_query(facts, 'a | b c', 1) == (0, (0,))
  assert asking.parse_query(facts, 'a b, c', 1) == (1, (1,))


def test_close_names_are_found_among_many():
  subjects = tuple(f'person {i}' for i in range(30_000))
  facts = Facts(np.zeros((1, 30_000), np.int32), 30_000, True, subjects, ('knows',), subjects)
  with pytest.raises(
    InputError, match="unknown subject 'persom 29999'; did you mean 'person 29999'"
  ):
    asking.parse_query(facts, 'persom 29999 | knows', 1)


@pytest.mark.parametrize('name', ['chain_of_thought', 'chain_of_thought_compact'])
def test_a_chain_of_thought_is_the_models_own(name):
  c = registry.build(name, Facts.bijections(5, 2, 1), 3)
  for subject, path in itertools.product(range(5), itertools.product(range(2), repeat=3)):
    got, steps = asking.answer(c, subject, path), oracle.answers(c.facts, subject, path)
    assert got.steps == tuple(f's{s}' for s in steps)
    assert got.tokens_L.tolist() == [subject, *(5 + r for r in path), *steps[:-1]]
    assert got.margin >= c.margin


def test_a_chain_goes_on_from_what_the_model_said():
  """A model whose unembedding names its answers wrongly follows its own mistakes."""
  c = registry.build('chain_of_thought', PLAIN, 2)
  mixed = np.roll(c.params['unembed']['answers'], 1, axis=0)  # says a + 1 for a
  c = c.replace(params={**c.params, 'unembed': {'answers': mixed}})
  first = (int(PLAIN.answers_RxN[1, 3]) + 1) % 8
  second = (int(PLAIN.answers_RxN[2, first]) + 1) % 8
  got = c.ask('s3 r1 r2')
  assert got.steps == (f's{first}', f's{second}') and got.wrong_step == 1
  said = f'{got.steps[got.step - 1]} over {got.runner_up}'
  assert ', step 1 wrong, least margin ' in str(got) and f' at step {got.step} ({said})' in str(got)


@pytest.mark.parametrize('name', ['selector', 'keyvalue', 'disjoint'])
def test_answers(name):
  known = registry.entry(name)
  facts = Facts.disjoint(8, 3, 8) if known.own_answers else PLAIN
  c = registry.build(name, facts, 1 + known.multi_hop)
  path = (2, 1)[: c.hops]
  query = ' '.join(['s3', *(f'r{r}' for r in path)])
  got = dataclasses.asdict(c.ask(query, 'bfloat16'))
  logits_A = oracle.logits(c.config, c.params, [3, *(8 + r for r in path)])[-1]
  truth = facts.attribute_name(oracle.answers(facts, 3, path)[-1])
  best, second = np.sort(logits_A)[[-1, -2]]
  assert got.pop('tokens_L').tolist() == [3, *(8 + r for r in path)]
  assert got == {
    'query': query,
    'answer': truth,
    'truth': truth,
    'correct': True,
    'margin': best - second,
    'runner_up': facts.attribute_name(int(np.argsort(-logits_A, kind='stable')[1])),
    'steps': (truth,),
    'step': 1,
    'wrong_step': None,
  }


def test_a_wrong_answer_is_called_wrong():
  c = registry.build('selector', PLAIN)
  config = c.config
  c = c.replace(params=model.init(config, jax.random.key(3)), margin=None)
  answers = [c.ask(f's{s} r{r}') for s in range(8) for r in range(3)]
  assert any(not got.correct for got in answers)
  for got in answers:
    assert got.correct == (got.answer == got.truth) and got.margin >= 0
  wrong = next(got for got in answers if not got.correct)
  assert f'(wrong, it is {wrong.truth}, margin' in str(wrong)


def test_a_dtype_that_cannot_hold_the_model_is_refused():
  c = registry.build('selector_multilevel', Facts.bijections(1024, 2), bits=10)
  assert c.ask('s1000 r1').correct
  with pytest.raises(InputError, match='bfloat16 cannot hold'):
    c.ask('s1000 r1', 'bfloat16')


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp('runs')
  for name in ('selector', 'chain_of_thought'):
    models.save(path / name, registry.build(name, PLAIN, 1 if name == 'selector' else 2))
  return path


def main(*arguments, stdin='', **values):
  """Runs the binary's main with these arguments, options and standard input."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, 'stdin', io.StringIO(stdin))
    ask.main(ask.Options(arguments=arguments, **values))


def kept(workdir) -> dict[str, list]:
  """The columns of the records."""
  return records.read(workdir / 'ask').table.to_dict('list')


def test_answers_records_and_table(workdir, capsys):
  main(workdir=str(workdir), construction='chain_of_thought', stdin='s1 r0 r2\n\n s2|r1|r1\n')
  told = capsys.readouterr().out.splitlines()
  first, second = (
    ['s1', *(f's{s}' for s in oracle.answers(PLAIN, 1, (0, 2)))],
    ['s2', *(f's{s}' for s in oracle.answers(PLAIN, 2, (1, 1)))],
  )
  assert told[0].startswith(f's1 r0 r2 → {first[1]} → {first[2]}   (correct, least margin ')
  assert told[1].startswith(f's2 r1 r1 → {second[1]} → {second[2]}   (correct, least margin ')
  assert told[2].split()[:2] == ['query', 'answer'] and len(told) == 6
  assert kept(workdir)['answer'] == [first[2], second[2]]


def test_trace_and_figure(workdir, tmp_path, capsys):
  figure = tmp_path / 'seen.PNG'
  main('s2 r1', workdir=str(workdir), construction='selector', trace=True, figure=str(figure))
  told = capsys.readouterr().out
  answers = PLAIN.answers_RxN[:, 2]
  assert (
    f'blocks[r0] = s{answers[0]}; blocks[r1] = s{answers[1]}; blocks[r2] = s{answers[2]}' in told
  )
  assert f'blocks[r1] = s{answers[1]}; closed: blocks[r0]; blocks[r2]' in told
  assert figure.read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
  ('arguments', 'values', 'told'),
  [
    (['s0 r0'], {'construction': None}, 'holds chain_of_thought, selector'),
    (['s0 r0'], {'construction': 'keyvalue'}, 'holds chain_of_thought, selector'),
    (['s0 r0'], {'figure': 'a.gif'}, 'use .png, .pdf, .svg'),
    (['s0 r0'], {'figure': 'picture'}, 'use .png, .pdf, .svg'),
    (['s0 r0', 's1 r0'], {'figure': 'a.png'}, 'draws one query, in quotes; there are 2'),
    ([], {'figure': 'a.png'}, 'there are 0'),
    ([], {}, 'no query; the model answers'),
    (['s0 r0'], {'workdir': '/no/such/folder'}, 'no models there'),
    (['s9 r0'], {}, "unknown subject 's9'"),
    (['s0', 'r0'], {}, 'like "s0 r0"'),
    (['s0 r0'], {'construction': 'selektor'}, 'choose one with --construction=NAME'),
  ],
)
def test_refusals_are_one_line(workdir, arguments, values, told):
  values = {'workdir': str(workdir), 'construction': 'selector', **values}
  with pytest.raises(InputError) as error:
    main(*arguments, **values)
  assert told in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('piped', [False, True])
def test_what_was_answered_is_kept(piped, workdir, capsys):
  texts = ['s0 r0', 's9 r0', 's1 r0']
  arguments, stdin = ([], '\n'.join(texts)) if piped else (texts, '')
  with pytest.raises(InputError, match="^unknown subject 's9'; the subjects are s0, s1 … s7$"):
    main(*arguments, workdir=str(workdir), construction='selector', stdin=stdin)
  assert len(capsys.readouterr().out.splitlines()) == 4
  assert kept(workdir)['query'] == ['s0 r0']


def test_the_folder_of_a_model_can_be_named(workdir, capsys):
  main('s4 r0', workdir=str(workdir / 'selector'), construction=None)
  main('s4 r0', workdir=str(workdir / 'selector'), construction='selector')
  assert capsys.readouterr().out.count('s4 r0 → ') == 2
  assert 's4 r0' in (workdir / 'ask' / 'results.json').read_text()


def test_exported_models_are_asked_by_their_folders_names(tmp_path, capsys):
  built = registry.build('selector', PLAIN)
  for seed in range(2):
    built.replace(name=f'lion-{seed}').export(tmp_path / f'lion-{seed}')
  main('s4 r0', workdir=str(tmp_path), construction='lion-1')
  main('s4 r0', workdir=str(tmp_path / 'lion-0'), construction=None)
  assert capsys.readouterr().out.count(f'{built.ask("s4 r0")}\n') == 2
  with pytest.raises(InputError, match='holds lion-0, lion-1$'):
    main('s4 r0', workdir=str(tmp_path), construction=None)


def test_a_query_is_echoed_with_separators_where_any_name_has_a_space():
  built = registry.build('selector', NAMED)
  assert built.ask('Ann | knows').query == 'Ann | knows'
  assert built.ask('Ann Lee knows').query == 'Ann Lee | knows'


def test_a_lone_model_needs_no_name(tmp_path, capsys):
  with pytest.raises(InputError, match='no models there'):
    main('s0 r0', workdir=str(tmp_path))
  models.save(tmp_path / 'selector', registry.build('selector', PLAIN))
  main('s0 r0', workdir=str(tmp_path))
  assert capsys.readouterr().out.startswith('s0 r0 → ')
