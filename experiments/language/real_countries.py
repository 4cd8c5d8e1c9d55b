"""What a model knows of real places, how vectors learned on invented ones act on it, and what fine-tuning costs it."""

import dataclasses
import functools
import math
from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.language.case import record
from geomem.pretrained import fact_encoder, prompts
from geomem.pretrained.load import Pretrained
from geomem.pretrained.prompts import Prompts, Relation

FRAME = 'Here are some facts about {}.'
COUNTRIES = {  # language and capital of countries whose name is one token for many tokenizers
  'France': ('French', 'Paris'), 'Germany': ('German', 'Berlin'), 'Italy': ('Italian', 'Rome'), 'Spain': ('Spanish', 'Madrid'),
  'Russia': ('Russian', 'Moscow'), 'Japan': ('Japanese', 'Tokyo'), 'Greece': ('Greek', 'Athens'), 'Turkey': ('Turkish', 'Ankara'),
  'Portugal': ('Portuguese', 'Lisbon'), 'China': ('Chinese', 'Beijing'), 'Poland': ('Polish', 'Warsaw'),
  'Sweden': ('Swedish', 'Stockholm'),
}  # fmt: skip
ALPHAS = 0.5, 1.0, 2.0
# Middle blocks, rank of their adapters, and rates, of which the better counts.
ADAPTED, RANK, RATES = 10, 1, (1e-3, 4e-3)


def known(model: Pretrained, languages: Collection[str] = ()) -> tuple[Prompts, np.ndarray] | None:
  """Prompts for language and capital, and the rows of the countries, in the order of their answers. Only countries whose
  name is one token and, if given, with one of these languages. None if there are fewer than two."""
  ids = {
    name: model.tokenizer.encode(f' {name}', add_special_tokens=False).ids for name in COUNTRIES
  }
  names = [
    name
    for name, own in ids.items()
    if len(own) == 1 and (not languages or COUNTRIES[name][0] in languages)
  ]
  if len(names) < 2:
    return None
  texts = 'The official language is', 'The capital city is'
  columns = list(zip(*(COUNTRIES[name] for name in names), strict=True))
  asked = prompts.tokenize(model, [
    Relation(name, tuple(answers), (f'{FRAME} {text}',))
    for name, answers, text in zip(('language', 'capital'), columns, texts, strict=True)
  ])  # fmt: skip
  return asked, np.asarray(model.params['embed']['tokens'])[[ids[name][0] for name in names]]


def _said(asked: Prompts, rows_NxD) -> np.ndarray:
  """The most likely language and capital, Nx2."""
  return prompts.recall(asked, rows_NxD, np.tile(np.arange(len(rows_NxD)), (2, 1))).chosen_NxP


def random_as_long(rng: np.random.Generator, vectors_NxD: np.ndarray) -> np.ndarray:
  """Random directions, as long as these vectors."""
  random_NxD = rng.standard_normal(vectors_NxD.shape, dtype=np.float32)
  scale_N = np.linalg.norm(vectors_NxD, axis=1) / np.linalg.norm(random_NxD, axis=1)
  return scale_N[:, None].astype(np.float32) * random_NxD


def countries(case) -> list[dict]:
  """Move the rows of real countries by vectors of languages learned on invented ones, from each language to every other;
  and how often a vector is nearest to the row of its own country, compared with the embedding of the language's token."""
  spoken = {language for language, _ in COUNTRIES.values()}
  answers = [relation.answers for relation in case.asked.relations]
  r = max(range(len(answers)), key=lambda r: len(spoken & set(answers[r])))
  real = known(case.model, answers[r]) if len(spoken & set(answers[r])) > 1 else None
  if real is None:
    return []
  asked, rows_NxD = real
  languages, own_N = asked.relations[0].answers, np.arange(len(rows_NxD))
  vectors_NxD = case.encoder.vectors_RxAxD[r][
    [answers[r].index(language) for language in languages]
  ]
  before_NxR, rng = _said(asked, rows_NxD), case.rng(31)
  knows_NxR = before_NxR == own_N[:, None]
  found = [
    record('known', k, place=own.name)
    for own, k in zip(asked.relations, knows_NxR.mean(axis=0), strict=True)
  ]
  tokens_NxD = np.asarray(case.model.params['embed']['tokens'])[
    asked.answers_RxAxK[0, : len(own_N), 0]
  ]
  length_N = lambda x_NxD: np.linalg.norm(x_NxD, axis=1, keepdims=True)
  directions = {
    None: (vectors_NxD, ALPHAS), 'random direction': (vectors_NxD, (1.0,)),
    'tokens of the languages': (tokens_NxD, (1.0,)), 'rows of the countries': (rows_NxD, (1.0,)),
  }  # fmt: skip
  for control, (some_NxD, alphas) in directions.items():
    for alpha in alphas:
      flipped, kept = [], []
      for shift in range(1, len(own_N)):
        add_NxD = np.roll(vectors_NxD, -shift, axis=0) - vectors_NxD
        if control == 'random direction':
          add_NxD = random_as_long(rng, add_NxD)
        elif control:  # as long as the vectors' differences
          other_NxD = np.roll(some_NxD, -shift, axis=0) - some_NxD
          add_NxD = other_NxD / length_N(other_NxD) * length_N(add_NxD)
        after_NxR = _said(asked, rows_NxD + alpha * add_NxD)
        flipped.append(after_NxR[:, 0] == np.roll(own_N, -shift))
        kept.append((after_NxR == before_NxR)[knows_NxR[:, 1], 1])
      both = ('real flipped', flipped), ('real kept', kept)
      about: Any = {'control': control, 'alpha': alpha}
      found += [record(name, some, **about) for name, some in both if np.size(some)]
  unit = lambda x: (x - x.mean(axis=0)) / np.linalg.norm(x - x.mean(axis=0), axis=1, keepdims=True)
  for control, some_NxD in ((None, vectors_NxD), ('token of the language', tokens_NxD)):
    cosine_NxN = unit(some_NxD) @ unit(rows_NxD).T
    found.append(record('nearest', np.argmax(cosine_NxN, axis=1) == own_N, control=control))
    found.append(record('cosine', np.diagonal(cosine_NxN), control=control))
    others = (cosine_NxN.sum() - np.trace(cosine_NxN)) / max(1, cosine_NxN.size - len(cosine_NxN))
    found.append(record('cosine', others, control=f'{control or "vectors"}, other countries'))
  return found


def adapters(case) -> list[dict]:
  """Fine-tuning as the alternative: low-rank adapters in the MLPs of some middle blocks learn the facts of subjects with
  random rows. Measures what these answer, and what the model still knows of real places."""
  model, rng = case.model, case.rng(40)
  answers_RxN = fact_encoder.draw_subjects(case.asked, case.training, case.subjects, rng)
  tokens_VxD = np.asarray(model.params['embed']['tokens'])
  normal = rng.standard_normal((case.subjects, model.config.dim), dtype=np.float32)
  rows_NxD = tokens_VxD.mean(axis=0) + fact_encoder.spread(model) * normal
  found = []
  scores = functools.partial(_of_adapted, case, rows_NxD, answers_RxN)
  tuned = [scores(_adapted(case, rows_NxD, answers_RxN, rate)) for rate in RATES]
  best = max(tuned, key=lambda own: own['candidates'])
  for control, own in (('before fine-tuning', scores(model)), ('fine-tuned', best)):
    if 'known' in own:
      found.append(record('known', own.pop('known'), control=control))
    about = {'tuples': 'allowed', 'prompts': 'trained', 'control': control}
    found += [record(name, value, **about) for name, value in own.items()]
  return found


def _of_adapted(case, rows_NxD: np.ndarray, answers_RxN: np.ndarray, model: Pretrained) -> dict:
  """Recall, with the keys and values of prefixes as in training, those of the frozen model; and what it knows of real places."""
  asked = dataclasses.replace(case.asked, model=model)
  right_NxP, chosen_NxP, _ = prompts.recall(asked, rows_NxD, answers_RxN, case.few_P)
  wanted_NxP = answers_RxN[asked.relation_P[case.few_P]].T
  found = {'top-1': np.mean(right_NxP), 'candidates': np.mean(chosen_NxP == wanted_NxP)}
  if real := known(model):
    found['known'] = np.mean(_said(*real) == np.arange(len(real[1]))[:, None])
  return found


def _adapted(case, rows_NxD: np.ndarray, answers_RxN: np.ndarray, rate: float) -> Pretrained:
  """The model after the case's steps; in training, the frozen model computes what precedes the subject."""
  asked, training, rng = case.asked, case.training, case.rng(41)
  config, count = asked.model.config, min(ADAPTED, asked.model.config.depth)
  out = rng.standard_normal((count, RANK, config.dim), dtype=np.float32) / math.sqrt(config.dim)
  start = {'in': jnp.zeros((count, config.hidden, RANK)), 'out': jnp.asarray(out)}

  batch = functools.partial(fact_encoder.facts_of, asked, answers_RxN, training.batch, rng)
  training = dataclasses.replace(training, rate=rate / fact_encoder.spread(case.model), noise=0.0)
  about = asked, start, _as_given, training, batch, fact_encoder.silent, jnp.asarray(rows_NxD)
  free = fact_encoder.descend(*about, params_of=_with)
  return dataclasses.replace(case.model, params=_with(case.model.params, free))


def _as_given(free, subject_B, rows_NxD):
  return rows_NxD[subject_B]


def _with(params: dict, free: dict) -> dict:
  down = params['blocks']['mlp']['down']
  first = max(0, (len(down['kernel']) - ADAPTED) // 2)
  layers = first + jnp.arange(len(free['in']))
  changed = down['kernel'].at[layers].add(jnp.einsum('tfk,tkd->tfd', free['in'], free['out']))
  mlp = params['blocks']['mlp'] | {'down': down | {'kernel': changed}}
  return params | {'blocks': params['blocks'] | {'mlp': mlp}}
