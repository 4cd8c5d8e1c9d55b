"""What a model knows of real places, what vectors learned on invented ones do to it, and what fine-tuning costs it."""

import dataclasses
import functools
import math
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np
import optax

from geomem.pretrained import fact_encoder, prompts
from geomem.pretrained.load import Pretrained
from geomem.pretrained.prompts import Prompts, Relation
from geomem.training import optimization

FRAME = 'Here are some facts about {}.'
PLACES = {  # language and capital of places whose name is one token of many tokenizers
  'France': ('French', 'Paris'), 'Germany': ('German', 'Berlin'), 'Italy': ('Italian', 'Rome'), 'Spain': ('Spanish', 'Madrid'),
  'Russia': ('Russian', 'Moscow'), 'Japan': ('Japanese', 'Tokyo'), 'Greece': ('Greek', 'Athens'), 'Turkey': ('Turkish', 'Ankara'),
  'Portugal': ('Portuguese', 'Lisbon'), 'China': ('Chinese', 'Beijing'), 'Poland': ('Polish', 'Warsaw'),
  'Sweden': ('Swedish', 'Stockholm'),
}  # fmt: skip
ALPHAS = 0.5, 1.0, 2.0
ADAPTED, RANK, RATE = 10, 1, 1e-3  # blocks in the middle, rank and rate of their adapters
ADAM = optax.scale_by_adam()


def known(
  model: Pretrained, languages: Collection[str] = ()
) -> tuple[Prompts, np.ndarray, np.ndarray]:
  """Prompts for language and capital, the places' rows, and their answers: of names that are one token, and of these
  languages alone."""
  ids = {place: model.tokenizer.encode(f' {place}').ids for place in PLACES}
  places = [
    place
    for place, own in ids.items()
    if len(own) == 1 and (not languages or PLACES[place][0] in languages)
  ]
  texts = 'The official language is', 'The capital city is'
  columns = list(zip(*(PLACES[place] for place in places), strict=True))
  asked = prompts.tokenize(model, [
    Relation(name, tuple(answers), (f'{FRAME} {text}',))
    for name, answers, text in zip(('language', 'capital'), columns, texts, strict=True)
  ])  # fmt: skip
  rows_NxD = np.asarray(model.params['embed']['tokens'])[[ids[place][0] for place in places]]
  return asked, rows_NxD, np.tile(np.arange(len(places)), (2, 1))


def countries(case) -> list[dict]:
  """Vectors of languages, learned on invented places, added to real ones; and how near they are to these."""
  spoken = {PLACES[place][0] for place in PLACES}
  learned = max(
    range(len(case.asked.relations)),
    key=lambda r: len(spoken & set(case.asked.relations[r].answers)),
  )
  own = case.asked.relations[learned].answers
  if len(spoken & set(own)) < 2:
    return []
  asked, rows_NxD, answers_RxN = known(case.model, own)
  languages = asked.relations[0].answers
  vectors_NxD = case.encoder.vectors_RxAxD[learned][[own.index(language) for language in languages]]
  before_NxR = prompts.recall(asked, rows_NxD, answers_RxN)[1]
  knows_NxR = before_NxR == answers_RxN.T
  shift = 1 + case.rng(30).integers(len(languages) - 1)
  add_NxD = np.roll(vectors_NxD, -shift, axis=0) - vectors_NxD
  random = case.rng(31).standard_normal(add_NxD.shape, dtype=np.float32)
  random *= np.linalg.norm(add_NxD, axis=1, keepdims=True) / np.linalg.norm(
    random, axis=1, keepdims=True
  )
  found = [
    {'measurement': 'known', 'place': r.name, 'value': float(k)}
    for r, k in zip(asked.relations, knows_NxR.mean(0), strict=True)
  ]
  wanted_N = np.roll(np.arange(len(languages)), -shift)
  for control, some, alphas in ((None, add_NxD, ALPHAS), ('random direction', random, (1.0,))):
    for alpha in alphas:
      after_NxR = prompts.recall(asked, rows_NxD + alpha * some, answers_RxN)[1]
      scores = {
        'real flipped': after_NxR[:, 0] == wanted_N,
        'real kept': (after_NxR == before_NxR)[knows_NxR[:, 1], 1],
      }
      found += [
        {'measurement': name, 'control': control, 'alpha': alpha, 'value': float(np.mean(right))}
        for name, right in scores.items()
      ]
  unit = lambda x: (x - x.mean(0)) / np.linalg.norm(x - x.mean(0), axis=1, keepdims=True)
  near_NxN = unit(vectors_NxD) @ unit(rows_NxD).T
  nearest = np.mean(np.argmax(near_NxN, axis=1) == np.arange(len(languages)))
  return [*found, {'measurement': 'nearest', 'value': float(nearest)}]


def adapters(case) -> list[dict]:
  """Fine-tuning instead: low-rank changes of MLPs, as many numbers as the vectors are, learn the facts of subjects with
  rows at random. What they answer, and what the model still knows of real places."""
  model, rng = case.model, case.rng(40)
  answers_RxN = fact_encoder.draw_subjects(case.asked, case.training, case.subjects, rng)
  tokens_VxD = np.asarray(model.params['embed']['tokens'])
  normal = rng.standard_normal((case.subjects, model.config.dim), dtype=np.float32)
  rows_NxD = tokens_VxD.mean(axis=0) + fact_encoder.spread(model) * normal
  params = _adapted(case, rows_NxD, answers_RxN)
  found = []
  for control, own in (('before fine-tuning', model.params), ('fine-tuned', params)):
    changed = lambda asked, own=own: dataclasses.replace(
      asked, model=dataclasses.replace(model, params=own)
    )
    right_NxP, chosen_NxP = prompts.recall(changed(case.asked), rows_NxD, answers_RxN)
    among = np.mean(chosen_NxP == answers_RxN[case.asked.relation_P].T)
    asked, places_NxD, real_RxN = known(model)
    kept = prompts.recall(changed(asked), places_NxD, real_RxN)[1] == real_RxN.T
    about = {'tuples': 'trained', 'prompts': 'trained', 'control': control}
    pairs = ('top-1', right_NxP.mean()), ('candidates', among), ('known', kept.mean())
    found += [{'measurement': name, 'value': float(value), **about} for name, value in pairs]
  return found


def _adapted(case, rows_NxD: np.ndarray, answers_RxN: np.ndarray) -> dict:
  """The parameters after as many steps as the vectors had."""
  c, training, rng = case.model.config, case.training, case.rng(41)
  first = max(0, (c.depth - ADAPTED) // 2)
  layers = jnp.arange(first, min(c.depth, first + ADAPTED))
  out = rng.standard_normal((len(layers), RANK, c.dim), dtype=np.float32) / math.sqrt(c.dim)
  free = {'in': jnp.zeros((len(layers), c.hidden, RANK)), 'out': jnp.asarray(out)}
  state = free, ADAM.init(free)
  for number in range(training.steps):
    subject_B = rng.integers(len(rows_NxD), size=training.batch)
    prompt_B = rng.integers(len(case.asked.relation_P), size=training.batch)
    examples = case.asked.examples(
      prompt_B, answers_RxN[case.asked.relation_P[prompt_B], subject_B]
    )
    rate = np.float32(RATE * (1 + math.cos(math.pi * number / training.steps)) / 2)
    state = _step(
      c, case.model.params, case.asked.prefixes, state, rate, layers, rows_NxD[subject_B], examples
    )
  return _with(case.model.params, state[0], layers)


def _with(params: dict, free: dict, layers) -> dict:
  add = jnp.einsum('tfk,tkd->tfd', free['in'], free['out'])
  down = params['blocks']['mlp']['down']
  changed = down | {'kernel': down['kernel'].at[layers].add(add)}
  return params | {
    'blocks': params['blocks'] | {'mlp': params['blocks']['mlp'] | {'down': changed}}
  }


@functools.partial(jax.jit, static_argnums=0)
def _step(config, params, prefixes, state, rate, layers, rows_BxD, examples):
  def loss(free):
    logits = prompts.final_logits(config, _with(params, free, layers), prefixes, rows_BxD, examples)
    return jnp.mean(prompts.losses(logits, examples.targets_BxK))

  free, opt_state = state
  updates, opt_state = optimization.adam_update(ADAM, jax.grad(loss)(free), opt_state)
  return optax.apply_updates(free, jax.tree.map(lambda update: -rate * update, updates)), opt_state
