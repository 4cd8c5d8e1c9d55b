"""Does a frozen language model select from a superposition? Subjects that it never saw, as sums of attribute vectors.

  python -m experiments.new_subjects
  python -m experiments.new_subjects --table=MINE.csv --model=FOLDER

A new subject is one row of the token embedding, e = b + Σ_r v_{r, g_r}. The vectors are learned through the frozen
model, of subjects with answers at random; a quarter of all tuples of answers no subject of the training has, and
these are asked. Where relations share their answers, nothing but the vector and the wording can tell them apart:
that is the test that counts. Expected: held-out tuples are answered 0.95 right among all tokens, 0.9 in frames that
no training prompt had; a swap of one vector flips its answer and keeps the others in 0.95 of the cases, also on rows
that were learned one by one and are no sums. Beside them stand the best that is blind to the relation, the nearest
tuple that was trained, the same prompts dealt out to relations at random, a model of random weights, rows of random
vectors, and facts that are told in the prompt.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import plotting
from experiments.harness.findings import Claim, over_seeds
from experiments.harness.statistics import groups, select, values
from experiments.harness.study import FIRST_SEED, Study
from experiments.language import natural, places
from geomem.errors import InputError
from geomem.pretrained import answering, fact_encoder, load, prompts, wordings
from geomem.pretrained.fact_encoder import FactEncoder, Training
from geomem.pretrained.load import Pretrained
from geomem.pretrained.prompts import Prompts, Relation
from geomem.pretrained.wordings import Wordings

DATA = Path(__file__).parent / 'data'
ALPHAS = 0.5, 1.0, 1.5, 2.0
NOISES = 0.5, 1.0, 2.0, 4.0  # multiples of the size that a sum of vectors has in one coordinate
NAME = 'Zorbla'  # what a subject is called where its facts are told
NEIGHBOUR, TRIP = 'Quax', 'We went from {} to the sea.'
HELD_OUT = 0.25  # of all tuples
TUPLES = 10**5  # of so many at most the nearest that was trained is sought


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """Every size and number of wordings, of every table, is a case. `sizes`: how many relations, and answers of each; 0: all.

  Vectors are learned in `steps` of `batch` prompts; of so many tuples, `held_out`, none is trained. `shuffled`: prompts are
  dealt out to relations at random. `asked`: so many subjects are; `what`: this is measured. `skip`: so many seeds are another part's.
  """

  tables: tuple[str, ...] = ('colours',)
  sizes: tuple[tuple[int, int], ...] = ((0, 0),)
  wordings: tuple[int, ...] = (2,)
  steps: int
  batch: int = 8
  held_out: float = HELD_OUT
  shuffled: bool = False
  asked: int = 48
  what: tuple[str, ...] = ('recall',)
  seeds: int
  skip: int = 0
  model: Annotated[
    str | None, 'Folder of safetensors, or GGUF file (default: the packaged SmolLM2-135M).'
  ] = None
  table: Annotated[
    str | None, 'Your own relations instead, a CSV of relation,part,text: see the README.'
  ] = None
  model_checksum: int | None = None
  wordings_read: str | None = None


ALL: Any = {'steps': 1600, 'what': ('recall', 'swaps', 'noise', 'no relation', 'told', 'neighbour')}
NAMES = (4, 16), (8, 16), (15, 16), (4, 64), (8, 64), (15, 64)
PRESETS = {
  'smoke': Preset(
    sizes=((2, 5),), wordings=(1,), steps=2, batch=4, asked=2, seeds=1,
    what=('recall', 'swaps', 'noise', 'no relation', 'neighbour'),
  ),
  'laptop': Preset(sizes=((2, 6),), wordings=(1,), steps=300, asked=24, seeds=1, what=('recall', 'swaps')),
  'full': {
    'shared_1': Preset(**ALL, seeds=2),
    'shared_2': Preset(**ALL, seeds=2, skip=2),
    'shared_3': Preset(**ALL, seeds=1, skip=4),
    'inside': Preset(steps=1600, seeds=1, what=('places', 'blocks', 'transplants', 'learned rows')),
    'inside_2': Preset(steps=1600, seeds=1, skip=1, what=('places', 'blocks', 'transplants', 'learned rows')),
    'shuffled': Preset(steps=1600, seeds=2, shuffled=True),
    'sparse': Preset(steps=1600, seeds=2, held_out=0.95),
    'disjoint': Preset(
      tables=('customs',), steps=1600, seeds=2, what=('recall', 'swaps', 'no relation', 'countries'),
    ),
    'wordings': Preset(wordings=(8,), steps=1600, seeds=2),
    'capacity': Preset(tables=('names',), sizes=NAMES, wordings=(1,), steps=800, seeds=1, what=('recall', 'noise')),
    'random_weights': Preset(steps=800, seeds=2, what=('random weights',)),
    'maps': Preset(tables=('names',), sizes=((3, 64),), wordings=(1,), steps=1600, seeds=2, what=('maps',)),
    'adapters': Preset(steps=800, seeds=1, what=('adapters',)),
    'hops': Preset(tables=('homes',), steps=800, seeds=2, what=('recall', 'hops')),
  },
}  # fmt: skip
TRAIN_ANEW = {'random weights', 'maps', 'adapters'}  # these need no vectors of the case
loaded = functools.lru_cache(maxsize=1)(load.load)


def prepare(preset: Preset) -> Preset:
  """Read the model and the tables before anything is written, and try all prompts; a run can only be resumed with the same."""
  if preset.model is None and (reason := load.missing()):
    raise InputError(f'{reason}; or name another with --model')
  for name in ('asked', 'steps', 'batch'):
    if getattr(preset, name) < 2:
      raise InputError(f'--{name}={getattr(preset, name)}; it must be at least 2')
  if preset.table:
    preset = dataclasses.replace(preset, tables=(preset.table,), sizes=((0, 0),))
  model = loaded(preset.model)
  read = []
  for table, size, number in itertools.product(preset.tables, preset.sizes, preset.wordings):
    case = Case(model, table, size, number, preset, 0)
    case.tuples()
    for new in new_prompts(case.own):
      case.ask(**dict.fromkeys(new, True))
    case.of_no_relation()
    read.append(case.own)
  return dataclasses.replace(preset, model_checksum=model.checksum(), wordings_read=repr(read))


class Case:
  """Relations as they are asked of a model, and vectors that are learned for them. `ask(new_frames=, new_wordings=)`:
  its prompts, in what no training prompt had."""

  def __init__(
    self,
    model: Pretrained,
    table: str,
    size: tuple[int, int],
    number: int,
    preset: Preset,
    seed: int,
  ):
    packaged = DATA / f'{table}.csv'
    own = wordings.read(packaged if packaged.exists() else table)
    relations, answers = size
    if relations > len(own.answers):
      raise InputError(f'{table}: {len(own.answers)} relations; {relations} are asked for')
    number = min(number, (1 + len(own.leads)) * min(map(len, own.wordings.values())))
    self.model, self.own, self.subjects, self.wordings = model, own, preset.asked, number
    self.training = Training(
      steps=preset.steps, batch=preset.batch, held_out=preset.held_out, seed=seed
    )
    self._chosen = {
      'names': tuple(own.answers)[: relations or None],
      'answers': answers or None,
      'wordings': number,
    }
    self.asked, self.label = self.ask(), table if packaged.exists() else f'{Path(table).stem} (own)'
    if preset.held_out not in (0, HELD_OUT):
      self.label += f', {preset.held_out:g} held out'
    self.shuffled = preset.shuffled
    if self.shuffled:
      self.label += ', shuffled'
      self.asked = dealt_out(self.asked)
    if len(self.asked.relations) == 1:  # a tuple of one answer that is held out was never trained
      self.training = dataclasses.replace(self.training, held_out=0.0)
    first = np.unique(self.asked.relation_P, return_index=True)[1]
    self.first_P = first  # of every relation the first prompt
    self.some_P = np.concatenate([first + i for i in range(number)])  # in the first frame

  def ask(self, **new: Any) -> Prompts:
    chosen: Any = self._chosen | ({'wordings': None} if new.get('new_wordings') else {})
    return prompts.tokenize(self.model, self.own.relations(**chosen, **new))

  def of_no_relation(self) -> list[Prompts]:
    """For every relation's answers, the wordings that ask for none."""
    frame = self.own.frames[0]
    texts = tuple(f'{frame} {wordings.sentence(text)}' for text in self.own.no_relation)
    own = [Relation(r.name, r.answers, texts) for r in self.asked.relations] if texts else []
    return [prompts.tokenize(self.model, [relation]) for relation in own]

  def learn(self, trainer, label: str):
    """The vectors, or those of before the run was interrupted."""
    report = lambda done, total, loss: trainer.on_progress(done, total, label)

    def fit():
      encoder = FactEncoder.fit(self.model, self.asked, self.training, report)
      return {'bias': encoder.bias_D, 'vectors': encoder.vectors_RxAxD}

    found = trainer.cached(fit)
    about = self.model.checksum(), self.asked.relations
    self.encoder = FactEncoder(*about, found['bias'], found['vectors'])

  def rng(self, *number: int) -> np.random.Generator:
    return np.random.default_rng((self.training.seed, 4, *number))

  def tuples(self, held_out: bool | None = None) -> np.ndarray:
    """Answers RxN of the subjects that are asked: held out, where any are."""
    held_out = self.training.held_out > 0 if held_out is None else held_out
    about = self.asked, self.training, self.subjects, self.rng(held_out), held_out
    return fact_encoder.draw_subjects(*about)


def dealt_out(asked: Prompts) -> Prompts:
  """The same prompts, every relation's wordings taken from all in turn: what a relation means is arbitrary."""
  count = len(asked.relations)
  place_P = np.concatenate([np.arange(np.sum(asked.relation_P == r)) for r in range(count)])
  return dataclasses.replace(asked, relation_P=(asked.relation_P + place_P) % count)


def scores(asked: Prompts, rows_NxD, answers_RxN, prompt_P=None, **about) -> list[dict]:
  """How often answers are the likeliest of all tokens, and of their relation's; how often a wrong one is the subject's answer
  to another relation; how many bits the answers say of all facts of a subject."""
  right_NxP, chosen_NxP, log_p_NxP = prompts.recall(asked, rows_NxD, answers_RxN, prompt_P)
  relation_P = asked.relation_P if prompt_P is None else asked.relation_P[prompt_P]
  chosen_right_NxP, other_NxP = places.whose(asked, answers_RxN, relation_P, chosen_NxP)
  bits_P = np.log2(asked.counts_R[relation_P]) + np.mean(log_p_NxP, axis=0) / np.log(2)
  found = {
    'top-1': right_NxP.mean(), 'candidates': chosen_right_NxP.mean(), 'another own': other_NxP.mean(),
    'bits': sum(bits_P[relation_P == r].mean() for r in np.unique(relation_P)),
  }  # fmt: skip
  return [{'measurement': name, 'value': float(value), **about} for name, value in found.items()]


def new_prompts(own: Wordings) -> list[tuple[str, ...]]:
  frames, texts = bool(own.new_frames), all(own.new_wordings.values())
  kinds = [('new_frames',)] * frames + [('new_wordings',)] * texts
  return kinds + [('new_frames', 'new_wordings')] * (frames and texts)


def recall(case: Case) -> list[dict]:
  """Of tuples that training allows and that are held out, in prompts that were trained and in new ones; and what else
  might say as much."""
  found = []
  for held_out in (False, True)[: 1 + (case.training.held_out > 0)]:
    answers_RxN = case.tuples(held_out)
    about = {'tuples': 'held out' if held_out else 'allowed'}
    rows_NxD = case.encoder.rows(answers_RxN)
    found += scores(case.asked, rows_NxD, answers_RxN, prompts='trained', **about)
    if held_out and not case.shuffled:
      for new in new_prompts(case.own):
        asked = case.ask(**dict.fromkeys(new, True))
        found += scores(
          asked, rows_NxD, answers_RxN, prompts=' and '.join(new).replace('_', ' '), **about
        )
  about |= {'prompts': 'trained'}
  random = rows_NxD.mean(axis=0) + natural.of_length(case.rng(5), rows_NxD - rows_NxD.mean(axis=0))
  found += scores(case.asked, random, answers_RxN, **about, control='random vectors')
  controls = (
    blind(case.asked, answers_RxN) + type_cue(case, answers_RxN) + nearest(case, answers_RxN)
  )
  return found + [about | own for own in controls]


def blind(asked: Prompts, answers_RxN) -> list[dict]:
  """The best that a map can do that does not know which relation is asked: one order of preference for every subject."""
  own_NxR, ids_RxA = places.own_answers(asked, answers_RxN).T, places.answer_ids(asked)
  sets = [set(ids_RxA[r, :n].tolist()) for r, n in enumerate(asked.counts_R)]
  top = [
    max(np.count_nonzero(own_R == answer) for answer in own_R) / len(own_R) for own_R in own_NxR
  ]
  if all(some == sets[0] for some in sets):
    among = top
  elif sum(map(len, sets)) == len(set().union(*sets)):
    among = [
      np.float64(1)
    ]  # among a relation's own answers there is one only that is the subject's
  else:
    return [{'measurement': 'top-1', 'value': float(np.mean(top)), 'control': BLIND}]
  both = ('top-1', top), ('candidates', among)
  return [
    {'measurement': name, 'value': float(np.mean(own)), 'control': BLIND} for name, own in both
  ]


BLIND, CUE, NEAREST = 'blind to the relation', 'type of the answer', 'nearest trained tuple'


def type_cue(case: Case, answers_RxN) -> list[dict]:
  """A subject's own answer that fits the prompt best, as the model says where the row is b alone."""
  asked, count = case.asked, len(case.asked.relation_P)
  tokens = asked.answers_RxAxK[:, :, 0]
  if len(np.unique(tokens)) < len(np.unique(places.answer_ids(asked))):
    return []  # what an answer begins with does not tell it from all others
  rows_PxD = jnp.asarray(np.tile(case.encoder.bias_D, (count, 1)))
  examples = asked.examples(np.arange(count), np.zeros(count, int))
  about = case.model.config, case.model.params, asked.prefixes, rows_PxD, examples
  own_RxN = np.take_along_axis(tokens, answers_RxN, axis=1)
  best_PxN = np.argmax(np.asarray(_first_logits(*about))[:, own_RxN], axis=1)
  right = np.take_along_axis(own_RxN, best_PxN, axis=0) == own_RxN[asked.relation_P]
  return [{'measurement': 'top-1', 'value': float(right.mean()), 'control': CUE}]


@functools.partial(jax.jit, static_argnums=0)
def _first_logits(config, params, prefixes, rows_PxD, examples):
  return prompts.final_logits(config, params, prefixes, rows_PxD, examples)[:, 0]


def nearest(case: Case, answers_RxN) -> list[dict]:
  """What a model says that answers by the trained tuple that has most answers in common."""
  counts_R = case.asked.counts_R
  if np.prod(counts_R.astype(float)) > TUPLES or not case.training.held_out:
    return []
  every_RxT = np.stack(np.unravel_index(np.arange(int(np.prod(counts_R))), counts_R))
  trained_RxT = every_RxT[:, ~fact_encoder.is_held_out(every_RxT, case.training)]
  same = [np.mean(own_R[:, None] == trained_RxT, axis=0).max() for own_R in answers_RxN.T]
  return [{'measurement': 'top-1', 'value': float(np.mean(same)), 'control': NEAREST}]


def other_answers(case: Case, answers_RxN, number: int) -> np.ndarray:
  """For every relation another answer, with which the tuple is held out as well, if there is such a one: RxN."""
  rng, wanted_RxN = case.rng(number), np.empty_like(answers_RxN)
  for (r, n), own in np.ndenumerate(answers_RxN):
    others = np.setdiff1d(np.arange(int(case.asked.counts_R[r])), [own])
    moved_RxA = np.repeat(answers_RxN[:, n : n + 1], len(others), axis=1)
    moved_RxA[r] = others
    held = fact_encoder.is_held_out(moved_RxA, case.training)
    wanted_RxN[r, n] = rng.choice(others[held] if held.any() else others)
  return wanted_RxN


def swaps(case: Case) -> list[dict]:
  """Sums of vectors for held-out tuples, of which one vector is moved to another answer's, α times: at α = 1 another sum."""
  answers_RxN = case.tuples()[:, :24]
  return swapped(case, case.encoder.rows(answers_RxN), answers_RxN, ALPHAS)


def swapped(case: Case, rows_NxD, answers_RxN, alphas: Iterable[float], **about) -> list[dict]:
  """How often the answer becomes the one wanted; of the others that were right, how often they stay so."""
  asked, some_P = case.asked, case.some_P
  wanted_RxN, rng = other_answers(case, answers_RxN, 6), case.rng(7)
  before_NxP = prompts.recall(asked, rows_NxD, answers_RxN, some_P).right_NxP
  relation_P, found = asked.relation_P[some_P], []
  for control, alpha in [*itertools.product([None], alphas), ('random direction', 1.0)]:
    flipped, kept = [], []
    for r, vectors_AxD in enumerate(case.encoder.vectors_RxAxD):
      add_NxD = vectors_AxD[wanted_RxN[r]] - vectors_AxD[answers_RxN[r]]
      add_NxD = natural.of_length(rng, add_NxD) if control else add_NxD
      changed_RxN = np.where(np.arange(len(answers_RxN))[:, None] == r, wanted_RxN, answers_RxN)
      right_NxP = prompts.recall(asked, rows_NxD + alpha * add_NxD, changed_RxN, some_P).right_NxP
      flipped.append(right_NxP[:, relation_P == r].ravel())
      kept.append((right_NxP[before_NxP & (relation_P != r)]).ravel())
    found += [
      {
        'measurement': name,
        'control': control,
        'alpha': alpha,
        'value': float(np.mean(some)),
        **about,
      }
      for name, some in (('flipped', np.concatenate(flipped)), ('kept', np.concatenate(kept)))
      if len(some)
    ]
  return found


def noise(case: Case) -> list[dict]:
  """Rows that are shaken, in multiples of what a sum of vectors has in one coordinate; and how many bits of facts can be in
  any row so shaken, whoever reads it: ½ log₂ det(1 + Σ / σ²), of vectors with this covariance."""
  answers_RxN = case.tuples()
  rows_NxD, vectors_RxAxD = case.encoder.rows(answers_RxN), case.encoder.vectors_RxAxD
  spread_DxD = sum(
    own_AxD[:n].T @ own_AxD[:n] / n
    for own_AxD, n in zip(vectors_RxAxD, case.asked.counts_R, strict=True)
  )
  size, found = float(np.sqrt(np.trace(spread_DxD) / len(spread_DxD))), []
  power_D = np.maximum(np.linalg.eigvalsh(spread_DxD), 0)
  for sigma in NOISES:
    shaken_NxD = rows_NxD + sigma * size * case.rng(8).standard_normal(
      rows_NxD.shape, dtype=np.float32
    )
    found += scores(case.asked, shaken_NxD, answers_RxN, case.some_P, sigma=sigma, control='noise')
    bound = float(np.sum(np.log2(1 + power_D / (sigma * size) ** 2)) / 2)
    found.append({'measurement': 'bound', 'sigma': sigma, 'control': 'noise', 'value': bound})
  return [*found, {'measurement': 'size', 'value': size / fact_encoder.spread(case.model)}]


def no_relation(case: Case) -> list[dict]:
  """Where none of the relations is asked, how often the likeliest of their answers is one of the subject's own: are tokens
  merely pushed? Beside it that of another subject."""
  answers_RxN, found = case.tuples(), []
  rows_NxD, own_RxN = case.encoder.rows(answers_RxN), places.own_answers(case.asked, answers_RxN)
  said = [
    places.answer_ids(case.asked)[
      r, prompts.recall(asked, rows_NxD, answers_RxN[r : r + 1]).chosen_NxP
    ]
    for r, asked in enumerate(case.of_no_relation())
  ]
  for control, some_RxN in ((None, own_RxN), ("another subject's", np.roll(own_RxN, 1, axis=1))):
    among = [np.any(said_NxP[None] == some_RxN[:, :, None], axis=0) for said_NxP in said]
    if among:
      found.append({'measurement': 'pushed', 'control': control, 'value': float(np.mean(among))})
  return found


def told(case: Case) -> list[dict]:
  """The facts told in the prompt, in another wording and in any order, of a subject that is nothing but a name."""
  right, among, rng = [], [], case.rng(9)
  frame, own = case.own.frames[0].replace('{}', NAME), case.own.wordings
  for own_R in case.tuples().T[:12]:
    pairs = list(zip(case.asked.relations, own_R, strict=True))
    said = [
      f'{wordings.sentence(own[r.name][1 % len(own[r.name])])} {r.answers[a]}.' for r, a in pairs
    ]
    for relation, a in pairs:
      text = ' '.join([frame, *rng.permutation(said), wordings.sentence(own[relation.name][0])])
      log_p_A = answering.log_probabilities(case.model, text, relation.answers)
      among.append(np.argmax(log_p_A) == a)
      count = len(answering.answer_tokens(case.model, text, relation.answers)[a])
      right.append(case.model.ask(text, count=count) == relation.answers[a])
  about = {'tuples': 'held out', 'prompts': 'trained', 'control': 'told in the prompt'}
  both = ('top-1', right), ('candidates', among)
  return [{'measurement': name, 'value': float(np.mean(some)), **about} for name, some in both]


def neighbour(case: Case) -> list[dict]:
  """A second new subject with other facts in the prompt, before the one that is asked: is it the one that is answered for?"""
  answers_RxN = case.tuples()[:, :12]
  rows_NxD, found = case.encoder.rows(answers_RxN), []
  for n in range(min(4, len(rows_NxD) - 1)):
    model = case.model.with_rows({NEIGHBOUR: rows_NxD[n]})
    asked = prompts.tokenize(model, [
      dataclasses.replace(own, prompts=(f'{TRIP.format(NEIGHBOUR)} {own.prompts[0]}',)) for own in case.asked.relations
    ])  # fmt: skip
    others = rows_NxD[n + 1 :], answers_RxN[:, n + 1 :]
    found += scores(asked, *others, control='a neighbour', prompts='neighbour')
    chosen_NxR = prompts.recall(asked, *others).chosen_NxP
    told_N = np.mean((chosen_NxR == answers_RxN[:, n]) & (answers_RxN[:, n] != others[1].T))
    found.append(
      {
        'measurement': "the neighbour's",
        'value': float(told_N),
        'control': 'a neighbour',
        'prompts': 'neighbour',
      }
    )
  by_name = {own['measurement']: own for own in found}
  mean = lambda name: float(np.mean([own['value'] for own in found if own['measurement'] == name]))
  return [own | {'value': mean(name)} for name, own in by_name.items()]


def learned_rows(case: Case) -> list[dict]:
  """Rows learned one by one, which are no sums: what they answer, swaps by the vectors, and vectors fitted to them."""
  trained_RxN = fact_encoder.draw_subjects(
    case.asked, case.training, 4 * case.subjects, case.rng(10)
  )
  rows_NxD = fact_encoder.learn_rows(case.model, case.asked, trained_RxN, case.training)
  some = rows_NxD[:24], trained_RxN[:, :24]
  about = {'prompts': 'trained', 'tuples': 'allowed', 'control': 'rows of their own'}
  found = scores(case.asked, *some, **about) + swapped(
    case, *some, (1.0,), place='rows of their own'
  )
  encoder = FactEncoder.from_rows(case.model, case.asked, rows_NxD, trained_RxN)
  answers_RxN = case.tuples()
  about |= {'control': 'vectors fitted to rows', 'tuples': 'held out'}
  return found + scores(case.asked, encoder.rows(answers_RxN), answers_RxN, **about)


def random_weights(case: Case) -> list[dict]:
  """The same training through a model whose matrices have their inputs exchanged at random: the same entries and spectra."""
  rng = np.random.default_rng((case.training.seed, 8))

  def exchange(path, array):
    if path[-1].key != 'kernel':  # norms and biases stay
      return array
    return jnp.stack([own[rng.permutation(len(own))] for own in array])

  blocks = jax.tree_util.tree_map_with_path(exchange, case.model.params['blocks'])
  model = dataclasses.replace(case.model, params=case.model.params | {'blocks': blocks})
  found = []
  for relations in (case.asked.relations, case.asked.relations[:1]):
    asked = prompts.tokenize(model, relations)
    training = (
      case.training if len(relations) > 1 else dataclasses.replace(case.training, held_out=0.0)
    )
    encoder = FactEncoder.fit(model, asked, training)
    for held_out in (False, True)[: 1 + (training.held_out > 0)]:
      answers_RxN = case.tuples(held_out)[: len(relations)]
      kind = 'held out' if held_out else 'allowed'
      control = 'random weights' if len(relations) > 1 else 'random weights, one relation'
      found += scores(
        asked,
        encoder.rows(answers_RxN),
        answers_RxN,
        tuples=kind,
        prompts='trained',
        control=control,
      )
  return found


def maps(case: Case) -> list[dict]:
  """One linear map a relation from the answers' own token embeddings: of answers that are trained, and of a quarter that are not."""
  count = int(case.asked.counts_R.min()) // 4
  training = dataclasses.replace(case.training, untrained_answers=count)
  encoder, asked = FactEncoder.fit_maps(case.model, case.asked, training), case.asked
  about: Any = {'prompts': 'trained', 'control': 'maps of token embeddings'}
  answers_RxN = fact_encoder.draw_subjects(
    asked, training, case.subjects, case.rng(11), held_out=True
  )
  found = scores(asked, encoder.rows(answers_RxN), answers_RxN, tuples='held out', **about)
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
  """Answers are places of which the model knows the language: two hops in one prompt, beside one that asks for no relation."""
  relations = case.asked.relations
  if not all(set(relation.answers) <= natural.COUNTRIES.keys() for relation in relations):
    return []
  answers_RxN, frame = case.tuples(), case.own.frames[0]
  texts = tuple(
    f'The official language of {text}' for text in ('the country where it lies is', 'its rival is')
  )
  languages = [
    tuple(natural.COUNTRIES[answer][0] for answer in relation.answers) for relation in relations
  ]
  ask = lambda texts: prompts.tokenize(case.model, [
    Relation(relation.name, own, (f'{frame} {text}',))
    for relation, own, text in zip(relations, languages, texts, strict=False)
  ])  # fmt: skip
  about: Any = {'tuples': 'held out', 'prompts': 'two hops'}
  rows_NxD = case.encoder.rows(answers_RxN)
  found = scores(ask(texts), rows_NxD, answers_RxN, **about)
  no_hop = ask(['The official language is'] * len(relations))
  found += scores(no_hop, rows_NxD, answers_RxN, **about, control='no relation named')
  said = lambda place: case.model.ask(
    f'{frame.replace("{}", NAME)} It lies in {place}. {texts[0]}', languages[0]
  )
  right = [said(place) == natural.COUNTRIES[place][0] for place in relations[0].answers]
  own = {'measurement': 'candidates', 'control': 'told in the prompt', **about}
  return [*found, own | {'value': float(np.mean(right))}]


MEASURED: dict[str, Any] = {
  'recall': recall, 'swaps': swaps, 'noise': noise, 'no relation': no_relation, 'told': told, 'neighbour': neighbour,
  'learned rows': learned_rows, 'random weights': random_weights, 'maps': maps, 'hops': hops,
  'places': places.readouts, 'blocks': places.blocks, 'transplants': places.transplants, 'countries': natural.countries, 'adapters': natural.adapters,
}  # fmt: skip
BLANK = dict.fromkeys(('control', 'tuples', 'prompts', 'alpha', 'sigma', 'layer', 'place'))


def measure(trainer, preset: Preset, seeds) -> list[dict]:
  """Records of all cases."""
  model, records = loaded(preset.model), []
  cases = itertools.product(preset.tables, preset.sizes, preset.wordings)
  for (table, size, number), seed in itertools.product(
    cases, [seed + preset.skip for seed in seeds]
  ):
    case = Case(model, table, size, number, preset, seed)
    if not TRAIN_ANEW.issuperset(preset.what):
      case.learn(trainer, f'{case.label}, seed {seed}')
    about = {
      'domain': case.label, 'relations': len(case.asked.relations), 'answers': int(case.asked.counts_R.max()),
      'wordings': case.wordings, 'seed': seed, **BLANK,
    }  # fmt: skip
    for name in preset.what:
      records += [about | own for own in trainer.recorded(MEASURED[name], case)]
  return records


DECISIVE = ('colours, R = 3, A = 12, wordings: 2',)
ON = 'sums', 'rows of their own'  # swaps are judged on both
CUSTOMS = 'customs, R = 4, A = 12, wordings: 2'
BOUNDS = {  # of tuples that are held out: case, measurement, prompts → at least
  (DECISIVE[0], 'top-1', 'trained'): 0.95, (DECISIVE[0], 'top-1', 'new frames'): 0.9,
  (CUSTOMS, 'candidates', 'trained'): 0.97, (CUSTOMS, 'candidates', 'new frames'): 0.95,
  (CUSTOMS, 'candidates', 'new wordings'): 0.9,
}  # fmt: skip
SWAPPED = 0.95
BEYOND = 0.1  # the best of what knows no relation, or no composition
CASE = 'domain', 'relations', 'answers', 'wordings'


def expect(table):
  """What every case comes to, beside what knows no relation, no subject or no language."""
  # Of a table of one's own several parts of a preset measure the same: the first of them counts.
  table = table.drop_duplicates([*CASE, 'seed', 'measurement', *BLANK])
  for (domain, relations, answers, count), rows in groups(table, *CASE):
    text = f'{domain}, R = {relations}, A = {answers}, wordings: {count}'
    decides = text in DECISIVE
    recalled = select(rows[rows['measurement'].isin(SCORES) & rows['tuples'].notna()], control=None)
    for (tuples, asked, what), own in groups(recalled, 'tuples', 'prompts', 'measurement'):
      same = select(rows, measurement=what, tuples=tuples, prompts=asked)
      controls: Any = {
        name: some['value'].tolist() for (name,), some in groups(same, 'control') if name
      }
      bound = BOUNDS.get((text, what, asked)) if tuples == 'held out' else None
      yield from over_seeds(
        f'{text}, {SCORES[what]}, tuples {tuples}, {asked} prompts', own['value'].tolist(), bound,
        claim='Rows', primary=decides and bound is not None, **controls,
      )  # fmt: skip
    trained = select(rows, measurement='top-1', tuples='held out', prompts='trained')
    controls = [
      np.mean(own) for name in (BLIND, CUE, NEAREST) if (own := values(trained, control=name))
    ]
    beyond = [value - max(controls) for value in values(trained, control=None) if controls]
    what = f'{text}, the likeliest token, tuples held out, beyond the best of what knows no relation and the nearest tuple'
    least = None if domain.endswith('shuffled') else BEYOND
    yield from over_seeds(what, beyond, least, claim='Rows')
    for what, words in (('flipped', 'that flip'), ('kept', 'that keep the other answers')):
      for place, on in zip((None, ON[1]), ON, strict=True):
        of = functools.partial(values, rows, measurement=what, alpha=1.0, place=place)
        random: Any = {'random direction': of(control='random direction')}
        yield from over_seeds(
          f'{text}, on {on}, swaps at α = 1 {words}', own := of(control=None), SWAPPED, claim='Rows, swapped',
          primary=decides and bool(own), **random,
        )  # fmt: skip
    yield from _compared(text, rows)


SCORES = {
  'top-1': 'the likeliest token', 'candidates': 'the likeliest candidate', 'another own': "another relation's own answer instead",
  'bits': 'bits of a subject',
}  # fmt: skip
COMPARED = {
  'pushed': 'an own answer is the likeliest candidate where no relation is asked', 'known': 'real countries right',
  'real flipped': 'real countries, languages flipped', 'real kept': 'real countries, capitals kept',
  'nearest': 'languages’ vectors nearest to the row of their own country', 'size': 'sum of vectors / spread of token embeddings',
  'transplanted': "another relation's put in, and its answer given", 'bound': 'bits that can be in a row under noise', "the neighbour's": "the neighbour's answer instead", **SCORES,
}  # fmt: skip


def _compared(text: str, rows):
  """Noise, a neighbour, prompts of no relation, and trainings that are compared; where in the model it happens."""
  shown = rows[rows['measurement'].isin(COMPARED)]
  plain = shown['control'].isna() & shown['tuples'].notna()
  for (what, control, tuples, asked, alpha, sigma, place), own in groups(
    shown[~plain], 'measurement', 'control', 'tuples', 'prompts', 'alpha', 'sigma', 'place'
  ):
    if control in (BLIND, CUE, NEAREST, 'random vectors'):  # beside what they are of
      continue
    about = [
      COMPARED[what],
      control,
      tuples and f'tuples {tuples}',
      asked and f'{asked} prompts',
      place,
    ]
    about += [f'{name} = {size:g}' if size else None for name, size in (('α', alpha), ('σ', sigma))]
    yield from over_seeds(', '.join([text, *filter(None, about)]), own['value'].tolist())
  for (place,), own in groups(select(rows, measurement='without', control=None), 'place'):
    worst = own.groupby(['seed', 'layer'])['value'].mean().groupby('seed').min()
    yield from over_seeds(
      f'{text}, the least right without the {place} of one block', worst.tolist()
    )
  for (place,), own in groups(select(rows, measurement='patched'), 'place'):
    last = [
      some[some['value'] >= 0.5]['layer'].agg('max' if place == 'subject' else 'min')
      for _, some in own.groupby('seed')
    ]
    if not np.isnan(last).any():
      end = 'last' if place == 'subject' else 'first'
      yield from over_seeds(
        f"{text}, the {end} block after which a donor's {place} decides", list(map(float, last))
      )


def plot(table):
  """Recall by prompts, swaps over α, bits in a row, and where attributes are read: what there are records of."""
  has = lambda **about: len(select(table, **about)) > 0
  panels: list = [_plot_recall] * has(measurement='top-1', control=None, tuples='held out')
  panels += [_plot_swaps] * has(measurement='flipped', control=None)
  panels += [_plot_noise] * has(measurement='bound')
  panels += [_plot_places] * has(measurement='probe')
  if not panels:
    return None
  figure, axes = plotting.new(3.8 * len(panels), 3.4, 1, len(panels), squeeze=False)
  for ax, draw in zip(axes[0], panels, strict=True):
    draw(ax, table)
  return figure


COLUMNS = ('allowed', 'trained'), ('held out', 'trained'), ('held out', 'new frames'), ('held out', 'new wordings'), (
  'held out', 'new frames and new wordings',
)  # fmt: skip


def _plot_recall(ax, table):
  some = table[(table['measurement'] == 'top-1') & ~table['domain'].isin(['names', 'homes'])]
  every = [(about, rows) for about, rows in groups(some, *CASE) if len(select(rows, control=None))]
  for i, ((domain, _, _, count), rows) in enumerate(every):
    color, marker = plotting.cycle(i)
    for x, (tuples, asked) in enumerate(COLUMNS):
      own = values(rows, tuples=tuples, prompts=asked, control=None)
      label = f'{domain}, {count} wordings' if not x else None
      ax.plot(
        [x + 0.6 * ((i + 0.5) / len(every) - 0.5)] * len(own),
        own,
        marker,
        color=color,
        markersize=4,
        alpha=0.7,
        label=label,
      )
  for name, line in ((BLIND, ':'), (NEAREST, '--')):
    if own := values(some, control=name, domain='colours'):
      ax.axhline(
        np.mean(own), color=plotting.GREY, linestyle=line, linewidth=0.8, label=f'colours: {name}'
      )
  names = 'allowed tuples', 'held-out tuples', '… new frames', '… new wordings', '… both new'
  ax.set_xticks(range(len(names)), names, rotation=25, ha='right', fontsize=6)
  ax.set(ylim=(-0.03, 1.03), ylabel='likeliest of all tokens', title='new subjects asked')
  plotting.legend(ax)


def _plot_swaps(ax, table):
  own = select(table[table['measurement'].isin(['flipped', 'kept'])], place=None, control=None)
  for i, (about, rows) in enumerate(groups(own, *CASE)):
    for measurement, line in (('flipped', '-'), ('kept', ':')):
      label = about[0] if line == '-' else None
      plotting.spread(ax, select(rows, measurement=measurement), 'alpha', i, label, linestyle=line)
  ax.set(
    xlabel='α', ylabel='flipped (full), others kept (dotted)', ylim=(-0.03, 1.03), title='swaps'
  )
  plotting.legend(ax)


def _plot_noise(ax, table):
  """What is read of a row, and what can be: no constant is fitted."""
  for i, ((domain, r, a, _), rows) in enumerate(groups(select(table, control='noise'), *CASE)):
    plotting.spread(ax, select(rows, measurement='bits'), 'sigma', i, f'{domain}, {r} × {a}')
    bound = select(rows, measurement='bound').groupby('sigma')['value'].mean()
    ax.plot(
      bound.index, np.minimum(bound, r * np.log2(a)), ':', color=plotting.cycle(i)[0], linewidth=0.8
    )
  ax.set(
    xlabel='noise / size of the sum',
    ylabel='bits read (dotted: in the row)',
    title='what a row holds',
    xscale='log',
  )
  plotting.legend(ax)


def _plot_places(ax, table):
  some = select(table, measurement='probe')
  names = ('subject', None, 'asked, at the subject'), ('last token', None, 'asked, at the last token'), (
    'last token', 'not asked', 'not asked, at the last token',
  )  # fmt: skip
  for i, (place, control, label) in enumerate(names):
    plotting.spread(ax, select(some, place=place, control=control), 'layer', i, label)
  for i, ((place,), rows) in enumerate(groups(select(table, measurement='patched'), 'place'), 3):
    plotting.spread(ax, rows, 'layer', i, f'patched at the {place}', linestyle=':')
  ax.set(
    xlabel='after block',
    ylabel='read by a map; answers flipped',
    ylim=(-0.03, 1.03),
    title='where it is selected',
  )
  plotting.legend(ax)


STUDY = Study(
  name='new_subjects', title='new subjects of a frozen language model, as sums of attribute vectors',
  claims=(
    Claim('Rows', 'A frozen language model answers for subjects that it never saw, each one row: a sum of a vector for each of its facts.', DECISIVE),
    Claim('Rows, swapped', 'Such a vector changes that answer and no other, also on rows that are no sums.', tuple(f'{size}, on {on}' for size in DECISIVE for on in ON)),
  ),
  terms='Tuples: all answers of a subject together; held out: no subject of the training has them; allowed: the others. Frames '
  'introduce the subject, wordings ask for a relation; new: in no prompt of the training. Candidates: the relation’s '
  'answers. Colours: three relations that share their twelve answers; shuffled: their prompts dealt out to relations at random; '
  'customs: four relations with answers of their own, of which one that is blind to the relation is right among the candidates '
  'every time. Blind to the relation: the best order of preference for all of a subject’s relations. Type of the answer: '
  'the subject’s answer that fits the prompt best before anything is known of the subject. Nearest trained tuple: the most '
  'answers that a tuple of the training has in common. A swap adds the difference of two answers’ vectors to a row. '
  'Bits: R·log₂A less the cross-entropy among the candidates.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot, minutes=6, missing=load.missing, prepare=prepare,
  first_seed=FIRST_SEED + 200,
)  # fmt: skip

if __name__ == '__main__':
  STUDY.main()
