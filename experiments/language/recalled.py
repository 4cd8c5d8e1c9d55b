"""How well subjects that are sums of vectors are answered, baselines that might do as well, and how far it goes: swaps, noise,
neighbours, rows that are no sums, maps, two hops."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.language import localization, real_countries
from experiments.language.case import Case, few_prompts, new_prompts, record
from geomem.pretrained import answering, fact_encoder, prompts, wordings
from geomem.pretrained.fact_encoder import FactEncoder
from geomem.pretrained.prompts import Prompts, Relation

OTHER_ALPHAS = 0.5, 1.5, 2.0  # multiples of a swap's vector
NOISES = 0.5, 1.0, 2.0, 4.0, 8.0, 16.0  # multiples of a sum's root mean square per coordinate
FIRST_HOPS = 'the country where it lies is', 'its rival is'
NAME = 'Zorbla'  # the name of a subject whose facts are told in the prompt
NEIGHBOUR, TRIP = 'Quax', 'We went from {} to the sea.'
TUPLES = 10**5  # with more tuples than this, the nearest trained one is not sought
BATCH = 24  # prompts
OWN_AT_RANDOM = 'one of the own answers at random'
BLIND, CUE, NEAREST = 'blind to the relation', 'type of the answer', 'nearest trained tuple'


def scores(asked: Prompts, rows_NxD, answers_RxN, prompt_P=None, **about) -> list[dict]:
  """How often answers are the most likely of all tokens, and of their relation's; how often a wrong one is the subject's
  answer to another relation; how many bits the answers give about all facts of a subject."""
  right_NxP, chosen_NxP, log_p_NxP = prompts.recall(asked, rows_NxD, answers_RxN, prompt_P)
  relation_P = asked.relation_P if prompt_P is None else asked.relation_P[prompt_P]
  chosen_right_NxP, other_NxP = localization.classify(asked, answers_RxN, relation_P, chosen_NxP)
  bits_P = np.log2(asked.counts_R[relation_P]) + np.mean(log_p_NxP, axis=0) / np.log(2)
  found = {
    'top-1': right_NxP.mean(), 'candidates': chosen_right_NxP.mean(), 'another own': other_NxP.mean(),
    'bits': sum(bits_P[relation_P == r].mean() for r in np.unique(relation_P)),
  }  # fmt: skip
  return [record(name, value, **about) for name, value in found.items()]


def recall(case: Case) -> list[dict]:
  """Recall of tuples that training allows and of held-out ones, in prompts that were trained and in new ones; and of the
  baselines."""
  found = []
  for held_out in (False, True)[: 1 + (case.training.held_out > 0)]:
    answers_RxN = case.tuples(held_out)
    about = {'tuples': 'held out' if held_out else 'allowed'}
    rows_NxD = case.encoder.rows(answers_RxN)
    found += scores(case.asked, rows_NxD, answers_RxN, case.few_P, prompts='trained', **about)
    if held_out and not case.shuffled:
      for new in new_prompts(case.own):
        asked, some_P, text = in_new_prompts(case, new)
        found += scores(asked, rows_NxD, answers_RxN, some_P, prompts=text, **about)
  about |= {'prompts': 'trained'}
  random = rows_NxD.mean(axis=0) + real_countries.random_as_long(
    case.rng(5), rows_NxD - rows_NxD.mean(axis=0)
  )
  found += scores(case.asked, random, answers_RxN, case.few_P, **about, control='random vectors')
  controls = (
    blind(case.asked, answers_RxN) + type_cue(case, answers_RxN) + nearest(case, answers_RxN)
  )
  return found + [about | own for own in controls]


def in_new_prompts(case: Case, new: tuple[str, ...]) -> tuple[Prompts, np.ndarray, str]:
  """Prompts that no training had, those of them in few frames, and their name."""
  asked = case.ask(**dict.fromkeys(new, True))
  frames = case.own.new_frames if 'new_frames' in new else case.own.frames
  return asked, few_prompts(asked, len(frames)), ' and '.join(new).replace('_', ' ')


def blind(asked: Prompts, answers_RxN) -> list[dict]:
  """The best score of a map that does not know which relation is asked: one order of preference for every subject."""
  own_NxR, ids_RxA = localization.own_answers(asked, answers_RxN).T, localization.answer_ids(asked)
  sets = [set(ids_RxA[r, :n].tolist()) for r, n in enumerate(asked.counts_R)]
  top = [
    max(np.count_nonzero(own_R == answer) for answer in own_R) / len(own_R) for own_R in own_NxR
  ]
  if all(some == sets[0] for some in sets):
    among = top
  elif sum(map(len, sets)) == len(set().union(*sets)):
    among = [np.float64(1)]  # only one of a relation's own answers is the subject's
  else:
    return [record('top-1', top, control=BLIND)]
  return [record('top-1', top, control=BLIND), record('candidates', among, control=BLIND)]


def type_cue(case: Case, answers_RxN) -> list[dict]:
  """Baseline: the subject's own answer that fits the prompt best, according to the model when the row is b alone."""
  asked, some_P = case.asked, case.few_P
  tokens = asked.answers_RxAxK[:, :, 0]
  if len(np.unique(tokens)) < len(np.unique(localization.answer_ids(asked))):
    return []  # the first token does not distinguish an answer from all others
  own_RxN, rights = np.take_along_axis(tokens, answers_RxN, axis=1), []
  for chunk_P in np.array_split(some_P, -(-len(some_P) // BATCH)):
    rows_PxD = jnp.asarray(np.tile(case.encoder.bias_D, (len(chunk_P), 1)))
    examples = asked.examples(chunk_P, np.zeros(len(chunk_P), int))
    about = case.model.config, case.model.params, asked.prefixes, rows_PxD, examples
    best_PxN = np.argmax(np.asarray(_first_logits(*about))[:, own_RxN], axis=1)
    best = np.take_along_axis(own_RxN, best_PxN, axis=0)
    rights.append((best == own_RxN[asked.relation_P[chunk_P]]).ravel())
  return [record('top-1', np.concatenate(rights), control=CUE)]


@functools.partial(jax.jit, static_argnums=0)
def _first_logits(config, params, prefixes, rows_PxD, examples):
  return prompts.final_logits(config, params, prefixes, rows_PxD, examples)[:, 0]


def nearest(case: Case, answers_RxN) -> list[dict]:
  """Baseline: a model that answers by the trained tuple with the most answers in common."""
  counts_R = case.asked.counts_R
  if np.prod(counts_R.astype(float)) > TUPLES or not case.training.held_out:
    return []
  every_RxT = np.stack(np.unravel_index(np.arange(int(np.prod(counts_R))), counts_R))
  trained_RxT = every_RxT[:, ~fact_encoder.is_held_out(every_RxT, case.training)]
  same = [np.mean(own_R[:, None] == trained_RxT, axis=0).max() for own_R in answers_RxN.T]
  return [record('top-1', same, control=NEAREST)]


def other_answers(case: Case, answers_RxN, number: int) -> np.ndarray:
  """For every relation another answer with which the tuple is held out, if there is one: RxN."""
  rng, wanted_RxN = case.rng(number), np.empty_like(answers_RxN)
  for (r, n), own in np.ndenumerate(answers_RxN):
    others = np.setdiff1d(np.arange(int(case.asked.counts_R[r])), [own])
    moved_RxA = np.repeat(answers_RxN[:, n : n + 1], len(others), axis=1)
    moved_RxA[r] = others
    held = fact_encoder.is_held_out(moved_RxA, case.training)
    wanted_RxN[r, n] = rng.choice(others[held] if held.any() else others)
  return wanted_RxN


def swaps(case: Case, alphas=(1.0,)) -> list[dict]:
  """Sums of vectors for held-out tuples, one vector of which becomes another answer's: another sum."""
  answers_RxN = case.tuples()[:, :24]
  return swapped(case, case.encoder.rows(answers_RxN), answers_RxN, alphas)


def swaps_at_other_alphas(case: Case) -> list[dict]:
  """Such swaps α times the way."""
  return swaps(case, OTHER_ALPHAS)


def swapped(case: Case, rows_NxD, answers_RxN, alphas=(1.0,), **about) -> list[dict]:
  """How often the answer becomes the wanted one, and the others that were right stay right; at α = 1 also in a random direction."""
  asked, some_P = case.asked, case.some_P
  wanted_RxN, rng = other_answers(case, answers_RxN, 6), case.rng(7)
  before_NxP = prompts.recall(asked, rows_NxD, answers_RxN, some_P).right_NxP
  relation_P, found = asked.relation_P[some_P], []
  both = [(None, alpha) for alpha in alphas] + [('random direction', a) for a in alphas if a == 1]
  for control, alpha in both:
    flipped, kept = [], []
    for r, vectors_AxD in enumerate(case.encoder.vectors_RxAxD):
      add_NxD = vectors_AxD[wanted_RxN[r]] - vectors_AxD[answers_RxN[r]]
      add_NxD = real_countries.random_as_long(rng, add_NxD) if control else add_NxD
      changed_RxN = np.where(np.arange(len(answers_RxN))[:, None] == r, wanted_RxN, answers_RxN)
      right_NxP = prompts.recall(asked, rows_NxD + alpha * add_NxD, changed_RxN, some_P).right_NxP
      flipped.append(right_NxP[:, relation_P == r].ravel())
      kept.append((right_NxP[before_NxP & (relation_P != r)]).ravel())
    found += [
      record(name, some, control=control, alpha=alpha, **about)
      for name, some in (('flipped', np.concatenate(flipped)), ('kept', np.concatenate(kept)))
      if len(some)
    ]
  return found


def noise(case: Case) -> list[dict]:
  """Recall from noisy rows, in multiples of the size of a sum of vectors in one coordinate; and how many bits of facts any
  reader can get from such a row: ½ log₂ det(1 + Σ / σ²), for vectors with this covariance."""
  answers_RxN = case.tuples()
  rows_NxD, vectors_RxAxD = case.encoder.rows(answers_RxN), case.encoder.vectors_RxAxD
  covariance_DxD = sum(
    own_AxD[:n].T @ own_AxD[:n] / n
    for own_AxD, n in zip(vectors_RxAxD, case.asked.counts_R, strict=True)
  )
  size, found = float(np.sqrt(np.trace(covariance_DxD) / len(covariance_DxD))), []
  power_D = np.maximum(np.linalg.eigvalsh(covariance_DxD), 0)
  for sigma in NOISES:
    noisy_NxD = rows_NxD + sigma * size * case.rng(8).standard_normal(
      rows_NxD.shape, dtype=np.float32
    )
    found += scores(case.asked, noisy_NxD, answers_RxN, case.some_P, sigma=sigma, control='noise')
    bound = float(np.sum(np.log2(1 + power_D / (sigma * size) ** 2)) / 2)
    found.append(record('bound', bound, sigma=sigma, control='noise'))
  return [*found, record('size', size / fact_encoder.spread(case.model))]


def no_relation(case: Case) -> list[dict]:
  """How often the most likely of the relations' answers is one of the subject's own when none of the relations is asked:
  are tokens merely boosted? Control: those of another subject."""
  answers_RxN, found = case.tuples(), []
  rows_NxD, own_RxN = (
    case.encoder.rows(answers_RxN),
    localization.own_answers(case.asked, answers_RxN),
  )
  said = [
    localization.answer_ids(case.asked)[
      r, prompts.recall(asked, rows_NxD, answers_RxN[r : r + 1]).chosen_NxP
    ]
    for r, asked in enumerate(case.of_no_relation())
  ]
  for control, some_RxN in ((None, own_RxN), ("another subject's", np.roll(own_RxN, 1, axis=1))):
    among = [np.any(said_NxP[None] == some_RxN[:, :, None], axis=0) for said_NxP in said]
    if among:
      found.append(record('pushed', among, control=control))
  return found


def in_context(case: Case) -> list[dict]:
  """Baseline: the facts are told in the prompt, in another wording and in any order, and the subject is only a name. Asked
  in a wording that was trained, and in one that was not."""
  found = told_and_asked(case, case.own.wordings, 'trained')
  if all(case.own.new_wordings.values()):
    found += told_and_asked(case, case.own.new_wordings, 'new wordings')
  return found


def told_and_asked(case: Case, texts: Mapping[str, Sequence[str]], name: str) -> list[dict]:
  right, among, rng = [], [], case.rng(9)
  frame, own = case.own.frames[0].replace('{}', NAME), case.own.wordings
  for own_R in case.tuples().T[:12]:
    pairs = list(zip(case.asked.relations, own_R, strict=True))
    said = [
      f'{wordings.sentence(own[r.name][1 % len(own[r.name])])} {r.answers[a]}.' for r, a in pairs
    ]
    for relation, a in pairs:
      text = ' '.join([frame, *rng.permutation(said), wordings.sentence(texts[relation.name][0])])
      log_p_A = answering.log_probabilities(case.model, text, relation.answers)
      among.append(np.argmax(log_p_A) == a)
      count = len(answering.answer_tokens(case.model, text, relation.answers)[a])
      right.append(case.model.ask(text, count=count) == relation.answers[a])
  about = {'tuples': 'held out', 'prompts': name, 'control': 'told in the prompt'}
  return [record('top-1', right, **about), record('candidates', among, **about)]


def neighbour(case: Case) -> list[dict]:
  """A second new subject with other facts precedes the one asked about in the prompt: whose facts are answered?"""
  answers_RxN = case.tuples()[:, :12]
  rows_NxD, found = case.encoder.rows(answers_RxN), []
  for n in range(min(4, len(rows_NxD) - 1)):
    model = case.model.with_rows({NEIGHBOUR: rows_NxD[n]})
    asked = prompts.tokenize(model, [
      dataclasses.replace(own, prompts=(f'{TRIP.format(NEIGHBOUR)} {own.prompts[0]}',)) for own in case.asked.relations
    ])  # fmt: skip
    others = rows_NxD[n + 1 :], answers_RxN[:, n + 1 :]
    about: Any = {'control': 'a neighbour', 'prompts': 'neighbour'}
    found += scores(asked, *others, **about)
    chosen_NxR = prompts.recall(asked, *others).chosen_NxP
    neighbour_rate = np.mean((chosen_NxR == answers_RxN[:, n]) & (answers_RxN[:, n] != others[1].T))
    found.append(record("the neighbour's", neighbour_rate, **about))
  by_name = {own['measurement']: own for own in found}
  mean = lambda name: float(np.mean([own['value'] for own in found if own['measurement'] == name]))
  return [own | {'value': mean(name)} for name, own in by_name.items()]


def learned_rows(case: Case) -> list[dict]:
  """Rows learned one by one, which are no sums: what they answer, swaps by the vectors, and vectors fitted to them."""
  trained_RxN = fact_encoder.draw_subjects(
    case.asked, case.training, 2 * case.subjects, case.rng(10)
  )
  training = dataclasses.replace(case.training, steps=-(-case.training.steps // 4))
  rows_NxD = fact_encoder.learn_rows(case.model, case.asked, trained_RxN, training)
  some = rows_NxD[:24], trained_RxN[:, :24]
  about = {'prompts': 'trained', 'tuples': 'allowed', 'control': 'rows of their own'}
  found = scores(case.asked, *some, case.few_P, **about)
  for new in new_prompts(case.own):
    asked, some_P, text = in_new_prompts(case, new)
    found += scores(asked, *some, some_P, **about | {'prompts': text})
  found += swapped(case, *some, place='rows of their own')
  encoder = FactEncoder.from_rows(case.model, case.asked, rows_NxD, trained_RxN)
  answers_RxN = case.tuples()
  about |= {'control': 'vectors fitted to rows', 'tuples': 'held out'}
  return found + scores(case.asked, encoder.rows(answers_RxN), answers_RxN, case.few_P, **about)


def random_weights(case: Case) -> list[dict]:
  """The same training through a model whose matrices have their inputs permuted at random: the same entries and spectra."""
  rng = np.random.default_rng((case.training.seed, 8))

  def exchange(path, array):
    if path[-1].key != 'kernel':  # norms and biases stay
      return array
    return jnp.stack([own[rng.permutation(len(own))] for own in array])

  blocks = jax.tree_util.tree_map_with_path(exchange, case.model.params['blocks'])
  model = dataclasses.replace(case.model, params=case.model.params | {'blocks': blocks})
  found = []
  for relations in (case.asked.relations, case.asked.relations[:1]):
    asked, training, control = prompts.tokenize(model, relations), case.training, 'random weights'
    if len(relations) == 1:
      training = dataclasses.replace(training, held_out=0.0, steps=-(-training.steps // 4))
      control = f'{control}, one relation'
    few_P = few_prompts(asked, len(case.own.frames))
    encoder = FactEncoder.fit(model, asked, training)
    for held_out in (False, True)[: 1 + (training.held_out > 0)]:
      answers_RxN = case.tuples(held_out)[: len(relations)]
      about: Any = {'tuples': 'held out' if held_out else 'allowed', 'prompts': 'trained'}
      rows_NxD = encoder.rows(answers_RxN)
      found += scores(asked, rows_NxD, answers_RxN, few_P, control=control, **about)
  return found


def maps(case: Case) -> list[dict]:
  """One linear map per relation from the answers' own token embeddings: for trained answers, and for an untrained quarter."""
  count = int(case.asked.counts_R.min()) // 4
  training = dataclasses.replace(case.training, untrained_answers=count)
  encoder, asked = FactEncoder.fit_maps(case.model, case.asked, training), case.asked
  about: Any = {'prompts': 'trained', 'control': 'maps of token embeddings'}
  answers_RxN = fact_encoder.draw_subjects(
    asked, training, case.subjects, case.rng(11), held_out=True
  )
  found = scores(asked, encoder.rows(answers_RxN), answers_RxN, tuples='held out', **about)
  found += [{'tuples': 'held out', 'prompts': 'trained'} | own for own in blind(asked, answers_RxN)]
  # A reader of the row that does not know which relation is asked.
  guess: Any = {'tuples': 'answers never trained', 'prompts': 'trained', 'control': OWN_AT_RANDOM}
  found.append(record('top-1', 1 / len(answers_RxN), **guess))
  never: list[list[dict]] = []
  for r, apart in enumerate(fact_encoder.untrained_answers(asked, training)):
    if len(apart):
      own_RxN = answers_RxN.copy()
      own_RxN[r] = case.rng(12, r).choice(apart, case.subjects)
      about_r = asked, encoder.rows(own_RxN), own_RxN, np.flatnonzero(asked.relation_P == r)
      never.append(scores(*about_r, tuples='answers never trained', **about))
  return found + [
    own[0] | {'value': float(np.mean([some['value'] for some in own]))}
    for own in zip(*never, strict=True)
  ]


def hops(case: Case) -> list[dict]:
  """Answers are places whose language the model knows: two hops in one prompt. Controls: the first hop alone in the same
  words; a prompt that names no relation; and facts told in the prompt."""
  relations = case.asked.relations
  if not all(set(relation.answers) <= real_countries.COUNTRIES.keys() for relation in relations):
    return []
  answers_RxN, frame = case.tuples(), case.own.frames[0]
  texts = tuple(f'The official language of {text}' for text in FIRST_HOPS)
  languages = [
    tuple(real_countries.COUNTRIES[answer][0] for answer in relation.answers)
    for relation in relations
  ]
  ask = lambda texts, answers: prompts.tokenize(case.model, [
    Relation(relation.name, own, (f'{frame} {text}',))
    for relation, own, text in zip(relations, answers, texts, strict=False)
  ])  # fmt: skip
  about: Any = {'tuples': 'held out', 'prompts': 'two hops'}
  rows_NxD = case.encoder.rows(answers_RxN)
  found = scores(ask(texts, languages), rows_NxD, answers_RxN, **about)
  one_hop = ask(map(wordings.sentence, FIRST_HOPS), [relation.answers for relation in relations])
  found += scores(one_hop, rows_NxD, answers_RxN, **about, control='the first hop alone')
  no_hop = ask(['The official language is'] * len(relations), languages)
  found += scores(no_hop, rows_NxD, answers_RxN, **about, control='no relation named')
  right, openings = [], ('It lies in', 'Its rival is')
  for own_R in answers_RxN.T[:12]:  # a row holds both facts, so the prompt tells both
    pairs = zip(openings, relations, own_R, strict=False)
    told = ' '.join(f'{fact} {relation.answers[a]}.' for fact, relation, a in pairs)
    for relation, a, text, own in zip(relations, own_R, texts, languages, strict=False):
      said = case.model.ask(f'{frame.replace("{}", NAME)} {told} {text}', own)
      right.append(said == real_countries.COUNTRIES[relation.answers[a]][0])
  return [*found, record('candidates', right, control='told in the prompt', **about)]
