"""New subjects of a pretrained model: rows that are read in place of their names, and vectors learned through the model.

Tested on tiny random models of two families, one with learned positions, against whole prompts and plain NumPy.
"""

import dataclasses
import itertools

import jax
import numpy as np
import pretrained_models as models
import pytest

from geomem.errors import InputError
from geomem.pretrained import answering, fact_encoder, load, prompts
from geomem.pretrained.fact_encoder import (
  FactEncoder,
  Training,
  draw_subjects,
  is_held_out,
  learn_rows,
  untrained_answers,
)
from geomem.pretrained.prompts import Relation

pytest.importorskip('tokenizers')
RELATIONS = (
  Relation('letter', ('x', 'y', 'than'), ('the {} has', 'an {} is')),
  Relation('digit', ('1', '7'), ('so the {} of', 'an {} at')),
)
SHORT = tuple(dataclasses.replace(r, answers=r.answers[:2]) for r in RELATIONS)  # one token each


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  folder = tmp_path_factory.mktemp('models')
  return {
    family: (folder / family, models.write(folder / family, family)) for family in ('llama', 'gpt2')
  }


@pytest.fixture(scope='module', params=['llama', 'gpt2'])
def model(weights, request):
  return load.load(weights[request.param][0])


def rows(model, count, seed=0):
  return np.random.default_rng(seed).standard_normal((count, model.config.dim), dtype=np.float32)


# --- names ----------------------------------------------------------------------------------------


def test_a_name_is_one_token_with_the_space_before_it(model):
  told = model.with_rows({'Zor': rows(model, 1)[0], 'Bel Air': rows(model, 1)[0]})
  v, plain = model.config.vocabulary, model.tokenizer.encode
  assert told.tokenizer.encode('the Zor, an Bel Air').ids == [
    *plain('the').ids,
    v,
    *plain(', an').ids,
    v + 1,
  ]
  for text in ('the Zorro has', 'the zor', 'the BelAir'):
    assert told.tokenizer.encode(text).ids == plain(text).ids


def test_a_prompt_without_new_names_has_the_same_logits_to_the_last_bit(model):
  told = model.with_rows({'Zor': 1e6 * rows(model, 1)[0]})
  ids = model.tokenizer.encode('the thane has an a').ids
  assert np.array_equal(
    answering._after(told, ids, len(ids)), answering._after(model, ids, len(ids))
  )
  assert (
    answering._after(told, ids, 1).shape[1] == model.config.vocabulary
  )  # no new name can be predicted


def test_a_row_is_read_in_the_place_of_its_name(model):
  token = model.tokenizer.encode(' t').ids[-1]
  told = model.with_rows({'Zor': np.asarray(model.params['embed']['tokens'])[token]})
  ids = told.tokenizer.encode('the Zor has').ids
  other = [token if i == model.config.vocabulary else i for i in ids]
  np.testing.assert_array_equal(answering._after(told, ids, 1), answering._after(model, other, 1))


def test_rows_are_added_and_replaced(model):
  a, b, c = rows(model, 3)
  told = model.with_rows({'Zor': a, 'Bel': b}).with_rows({'Bel': c, 'Kip': a})
  assert told.names == ('Zor', 'Bel', 'Kip')
  np.testing.assert_array_equal(told.params['embed']['rows'], [a, c, a])
  assert told.tokenizer.encode('the Kip').ids[-1] == model.config.vocabulary + 2
  assert told.checksum() == model.checksum()


@pytest.mark.parametrize(
  ('given', 'error'),
  [
    ({'': 16}, 'is no name'), ({' Zor': 16}, 'is no name'), ({'a\nb': 16}, 'is no name'),
    ({'the': 16}, 'is a token that the model knows'), ({'Zor': 15}, 'not 16 finite numbers'),
    ({'Zor': 16, 'Zor Bel': 16}, "'Zor' is a part of 'Zor Bel'"),
  ],
)  # fmt: skip
def test_names_and_rows_that_make_no_sense_are_refused(given, error, model):
  with pytest.raises(InputError, match=error):
    model.with_rows({name: np.zeros(size) for name, size in given.items()})


# --- what is said ---------------------------------------------------------------------------------


@pytest.mark.parametrize('family', ['llama', 'gpt2'])
def test_answers_are_as_likely_as_plain_numpy_says(family, weights):
  folder, tensors = weights[family]
  model, text = load.load(folder), 'the tin has'
  found = answering.log_probabilities(model, text, ('x', 'than'))
  for answer, value in zip(('x', 'than'), found, strict=True):
    before, whole = (model.tokenizer.encode(t).ids for t in (text, f'{text} {answer}'))
    logits_LxV = models.forward(family, tensors, whole)
    log_LxV = logits_LxV - np.logaddexp.reduce(logits_LxV, axis=1, keepdims=True)
    at = np.arange(len(before), len(whole))
    assert value == pytest.approx(log_LxV[at - 1, np.array(whole)[at]].sum(), abs=1e-3)
  assert model.ask(text, ('x', 'than')) == ('x', 'than')[int(np.argmax(found))]
  first = np.argmax(models.forward(family, tensors, model.tokenizer.encode(text).ids)[-1])
  said = answering.continuation(model, text, 1)
  assert said == model.tokenizer.decode([int(first)]).split('.')[0].split('\n')[0].strip()


def test_prompts_with_a_row_say_what_whole_texts_with_its_name_say(model):
  """Batches of padded prompts after cached prefixes give the losses of whole texts, for answers of any length."""
  asked = prompts.tokenize(model, RELATIONS)
  assert asked.answers_RxAxK.shape == (2, 3, 3) and len(asked.prefixes.count) == 3
  own = rows(model, 4)
  prompt_B, answer_B = np.array([0, 1, 2, 3]), np.array([2, 0, 1, 0])
  examples = asked.examples(prompt_B, answer_B)
  logits = prompts.final_logits(model.config, model.params, asked.prefixes, own, examples)
  losses = prompts.losses(logits, examples.targets_BxK)
  for row, p, a, loss in zip(own, prompt_B, answer_B, losses, strict=True):
    relation = RELATIONS[asked.relation_P[p]]
    text = relation.prompts[p % 2].replace('{}', 'Zor')
    told = model.with_rows({'Zor': row})
    assert -loss == pytest.approx(
      answering.log_probabilities(told, text, relation.answers)[a], abs=1e-3
    )


def test_recall_is_what_asking_says(model):
  asked = prompts.tokenize(model, RELATIONS)
  own, answers = rows(model, 5), np.array([[0, 1, 2, 0, 1], [1, 0, 1, 0, 1]])
  right, chosen, log_p = prompts.recall(asked, own, answers, [3, 0])
  assert right.shape == chosen.shape == log_p.shape == (5, 2)
  for n, row in enumerate(own):
    told = model.with_rows({'Zor': row})
    for i, relation in ((0, RELATIONS[1]), (1, RELATIONS[0])):
      text = relation.prompts[1 - i].replace('{}', 'Zor')
      assert relation.answers[chosen[n, i]] == told.ask(text, relation.answers)
      said_A = answering.log_probabilities(told, text, relation.answers)
      among = said_A[answers[1 - i, n]] - np.logaddexp.reduce(said_A)
      assert log_p[n, i] == pytest.approx(among, abs=1e-3)
      ids = answering.answer_tokens(told, text, [relation.answers[answers[1 - i, n]]])[0]
      before = told.tokenizer.encode(text).ids
      said = np.argmax(answering._after(told, before + ids[:-1], len(ids)), axis=1)
      assert right[n, i] == (said.tolist() == ids)


@pytest.mark.parametrize(
  ('relation', 'error'),
  [
    (('x', ('a', 'b'), ()), 'needs a wording'),
    (('x', ('a',), ('the {} is',)), 'two answers or more'),
    (('x', ('a', 'a'), ('the {} is',)), 'all different'),
    (('x', ('a', 'b'), ('the is',)), 'once, in the place of the subject'),
    (('x', ('a', 'b'), ('the {} is ',)), 'ends with a space'),
    (('x', ('a', 'b'), ('the{} is',)), 'no word of its own'),
    (('x', ('a', 'b'), ('the {}s is',)), 'no word of its own'),
    (('x', ('a', 'b'), ('{} is',)), 'begins with the subject'),
    (('x', ('a', 'b'), ('the {} is' + ' a' * 40,)), 'the model reads'),
    (('x', ('a', ' b'), ('the {} is',)), 'ends with a space'),
    (('x', ('a', 'ab'), ('the {} is',)), "'ab' begins with the tokens of 'a'"),
    (('x', ('a', 'b'), ('the  {} is',)), 'white space other than one space'),
    (('x', ('a', 'b'), ('the\n{} is',)), 'white space other than one space'),
  ],
)
def test_relations_that_cannot_be_asked_are_refused(relation, error, model):
  with pytest.raises(InputError, match=error):
    prompts.tokenize(model, [Relation(*relation)])


def test_what_no_answer_is_given_to_is_not_asked(model):
  asked = prompts.tokenize(model, RELATIONS)
  for answers in ([[0], [2]], [[0], [-1]], [[0]], [[0, 1], [0, 1]]):
    with pytest.raises(InputError):
      prompts.recall(asked, rows(model, 1), answers)
  with pytest.raises(InputError, match='finite'):
    prompts.recall(asked, rows(model, 1) * np.nan, [[0], [0]])


def test_names_are_no_answers(model):
  told = model.with_rows({'Zor': rows(model, 1)[0]})
  for answers, error in ((('Zor', 'x'), 'cannot write'), ((), 'no answers')):
    with pytest.raises(InputError, match=error):
      told.ask('the Zor has', answers)
  assert model.with_rows({}) is model


# --- learning -------------------------------------------------------------------------------------


def test_tuples_that_are_held_out_are_a_share_of_all_and_never_drawn(model):
  asked, training = prompts.tokenize(model, RELATIONS), Training(held_out=0.4, seed=3)
  every = np.stack(np.meshgrid(np.arange(3), np.arange(2))).reshape(2, -1)
  assert 0 < is_held_out(every, training).sum() < 6
  many = np.random.default_rng(0).integers(50, size=(3, 20000))
  assert abs(is_held_out(many, training).mean() - 0.4) < 0.02
  rng = np.random.default_rng(0)
  for held in (False, True):
    assert (is_held_out(draw_subjects(asked, training, 99, rng, held), training) == held).all()
  apart = dataclasses.replace(training, held_out=0.0, untrained_answers=1)
  drawn = draw_subjects(asked, apart, 99, rng)
  for own, out in zip(drawn, untrained_answers(asked, apart), strict=True):
    assert len(out) == 1 and not np.isin(own, out).any()


def test_rows_that_are_sums_give_their_vectors_back(model):
  asked, rng = prompts.tokenize(model, RELATIONS), np.random.default_rng(0)
  planted = FactEncoder._of(
    asked, {'bias': rows(model, 1)[0], 'vectors': rng.standard_normal((2, 3, model.config.dim))}
  )
  answers = draw_subjects(asked, Training(), 200, rng)
  found = FactEncoder.from_rows(model, asked, planted.rows(answers), answers, ridge=1e-6)
  np.testing.assert_allclose(found.vectors_RxAxD, planted.vectors_RxAxD, atol=1e-2)
  np.testing.assert_allclose(found.rows(answers), planted.rows(answers), atol=1e-2)


@pytest.fixture(scope='module')
def fitted(weights):
  """Vectors learned through a model whose attention is scaled up to carry more than random weights do."""
  model = load.load(weights['llama'][0])
  params = jax.tree.map(lambda leaf: leaf, model.params)
  params['embed']['tokens'] /= 3
  for name in ('value', 'output'):
    params['blocks']['attention'][name]['kernel'] *= 10
  model = dataclasses.replace(model, params=params)
  asked, losses = prompts.tokenize(model, SHORT), []
  training = Training(steps=200, batch=16, rate=0.1, noise=0.1)
  tell = lambda done, total, loss: losses.append(loss)
  return model, asked, FactEncoder.fit(model, asked, training, on_progress=tell), losses


def test_learning_changes_the_vectors_and_not_the_model(fitted, weights):
  model, asked, _, losses = fitted
  assert np.mean(losses[-20:]) < np.mean(losses[:5]) - 1.5
  again = load.load(weights['llama'][0]).params['blocks']['mlp']
  assert all(
    map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(model.params['blocks']['mlp']))
  )
  answers = np.stack(np.meshgrid([0, 1], [0, 1])).reshape(2, -1)
  rows = learn_rows(model, asked, answers, Training(steps=200, batch=16, rate=0.1, noise=0.1))
  assert np.mean(prompts.recall(asked, rows, answers)[1] == answers[asked.relation_P].T) > 0.6


def test_facts_in_words_are_rows(fitted):
  _, _, encoder, _ = fitted
  given = encoder({'Zor': {'letter': 'y', 'digit': '1'}, 'Kip': {'digit': '7'}})
  np.testing.assert_array_equal(np.stack(list(given.values())), encoder.rows([[1, -1], [0, 1]]))
  for facts, error in (({'colour': 'x'}, 'no relation'), ({'letter': 'q'}, 'no answer')):
    with pytest.raises(InputError, match=error):
      encoder({'Zor': facts})
  for answers in ([0, 1], [[0, 1]], [[0], [2]], [[-2], [0]]):
    with pytest.raises(InputError):
      encoder.rows(answers)


@pytest.mark.parametrize(
  ('options', 'error'),
  [
    ({'steps': 0}, 'steps'), ({'rate': -1.0}, 'rate'), ({'rate': np.nan}, 'rate'), ({'held_out': 1.0}, 'held_out'),
    ({'seed': -1}, 'seed'), ({'untrained_answers': 2}, 'cannot be kept'),
  ],
)  # fmt: skip
def test_trainings_that_make_no_sense_are_refused(options, error, fitted):
  model, asked, _, _ = fitted
  with pytest.raises(InputError, match=error):
    FactEncoder.fit(model, asked, Training(**options))


def test_of_answers_that_were_not_trained_nothing_is_claimed(fitted):
  model, asked, _, _ = fitted
  training = Training(steps=2, untrained_answers=1)
  encoder = FactEncoder.fit(model, asked, training)
  for vectors, (out,) in zip(
    encoder.vectors_RxAxD, untrained_answers(asked, training), strict=True
  ):
    assert not vectors[out].any()


def test_the_same_training_gives_the_same_vectors(fitted):
  model, asked, _, _ = fitted
  one, two = (FactEncoder.fit(model, asked, Training(steps=3)).vectors_RxAxD for _ in range(2))
  np.testing.assert_array_equal(one, two)


def test_a_training_is_taken_up_where_it_was_stopped_to_the_last_bit(fitted, monkeypatch):
  model, asked, _, _ = fitted
  training, kept = Training(steps=8), []
  at_once = FactEncoder.fit(model, asked, training)
  monkeypatch.setattr(fact_encoder, 'CHUNK', 3)

  def tried(most):
    """Killed when more than `most` chunks would be done."""
    calls = itertools.count()

    def cached(work):
      if (call := next(calls)) == len(kept):
        if call == most:
          raise KeyboardInterrupt
        kept.append(work())
      return kept[call]

    return FactEncoder.fit(model, asked, training, cached=cached)

  for most in (1, 2):
    with pytest.raises(KeyboardInterrupt):
      tried(most)
  again = tried(3)
  assert len(kept) == 3
  np.testing.assert_array_equal(again.vectors_RxAxD, at_once.vectors_RxAxD)
  np.testing.assert_array_equal(again.bias_D, at_once.bias_D)


def test_maps_are_of_the_answers_own_token_embeddings(fitted):
  """Maps of rank 2 give five answers vectors that span two dimensions."""
  model = fitted[0]
  letters = Relation('letter', tuple('vwxyz'), ('the {} has',))
  found = FactEncoder.fit_maps(model, [letters], Training(steps=2), rank=2)
  assert np.linalg.matrix_rank(found.vectors_RxAxD[0], tol=1e-5) == 2


def test_an_encoder_is_saved_and_loaded_and_refused_by_another_model(fitted, weights, tmp_path):
  model, _, encoder, _ = fitted
  encoder.save(tmp_path / 'mine')
  encoder.save(tmp_path / 'mine')
  found = FactEncoder.load(tmp_path / 'mine', model)
  assert found.relations == encoder.relations
  np.testing.assert_array_equal(found.vectors_RxAxD, encoder.vectors_RxAxD)
  other = load.load(weights['gpt2'][0])
  with pytest.raises(InputError, match='another model'):
    FactEncoder.load(tmp_path / 'mine', other)
  with pytest.raises(InputError, match='no fact encoder'):
    FactEncoder.load(tmp_path / 'nothing', model)
  broken = dataclasses.replace(encoder, vectors_RxAxD=encoder.vectors_RxAxD * np.nan)
  for other, error in (
    (broken, 'finite'),
    (dataclasses.replace(encoder, bias_D=encoder.bias_D[1:]), 'damaged'),
  ):
    other.save(tmp_path / 'mine')
    with pytest.raises(InputError, match=error):
      FactEncoder.load(tmp_path / 'mine', model)
  (tmp_path / 'own').mkdir()
  (tmp_path / 'own/file').write_text('mine')
  with pytest.raises(InputError, match='is no fact encoder'):
    encoder.save(tmp_path / 'own')
