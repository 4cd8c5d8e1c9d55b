"""Does a frozen language model select from a superposition? Subjects that it never saw, as sums of attribute vectors.

  python -m experiments.new_subjects
  python -m experiments.new_subjects --table=MINE.csv --model=FOLDER

A new subject is one row of the token embedding, e = b + Σ_r v_{r, g_r}. The vectors are learned through the frozen
model, of subjects with answers at random; a quarter of all tuples of answers no subject of the training has, and
these are asked. Where relations share their answers, nothing but the vector and the wording can tell them apart:
that is the test that counts. Expected: held-out tuples are answered 0.95 right among all tokens, 0.9 in frames that
no training prompt had; a swap of one vector flips its answer and keeps the others in 0.95 of the cases. Beside
them stand the best that is blind to the relation, a model of random weights, rows of random vectors, rows learned
subject by subject, and facts that are told in the prompt.
"""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import plotting
from experiments.harness.findings import Claim, over_seeds
from experiments.harness.statistics import groups, select, values
from experiments.harness.study import Study
from experiments.language import natural, places
from geomem.errors import InputError
from geomem.pretrained import fact_encoder, load, prompts, wordings
from geomem.pretrained.fact_encoder import FactEncoder, Training
from geomem.pretrained.load import Pretrained
from geomem.pretrained.prompts import Prompts, Relation
from geomem.pretrained.wordings import Wordings

DATA = Path(__file__).parent / 'data'
ALPHAS = 0.5, 1.0, 1.5, 2.0
NOISES = 0.25, 0.5, 1.0, 2.0  # multiples of how far token embeddings spread
NAME = 'Zorbla'  # what a subject is called where its facts are told
NEIGHBOUR = 'Quax'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """Every number of relations, with every number of answers and of wordings in the training, of every table, is a case; 0: all that
  there are.

  Vectors are learned in `steps` of `batch` prompts. `subjects` are asked; `what`: this is measured.
  """

  tables: tuple[str, ...] = ('colours',)
  relations: tuple[int, ...] = (0,)
  answers: tuple[int, ...] = (0,)
  wordings: tuple[int, ...] = (2,)
  steps: int
  batch: int = 24
  subjects: int = 24
  what: tuple[str, ...] = ('recall',)
  seeds: int
  model: Annotated[
    str | None, 'Folder of safetensors, or GGUF file (default: the packaged SmolLM2-135M).'
  ] = None
  table: Annotated[
    str | None,
    'Your own relations instead, a CSV of relation,part,text: see docs/language_model.md.',
  ] = None
  model_checksum: int | None = None
  wordings_read: str | None = None


FULL: Any = {'steps': 1152, 'seeds': 5}
PRESETS = {
  'smoke': Preset(
    relations=(2,), answers=(3,), wordings=(1,), steps=2, batch=4, subjects=2, seeds=1,
    what=('recall', 'swaps', 'noise', 'no relation', 'neighbour'),
  ),
  'laptop': Preset(wordings=(1,), steps=160, seeds=2, what=('recall', 'swaps')),
  'full': {
    'shared': Preset(**FULL, what=('recall', 'swaps', 'noise', 'no relation', 'in context', 'neighbour')),
    'disjoint': Preset(**FULL, tables=('customs',), what=('recall', 'swaps', 'noise', 'no relation')),
    'wordings': Preset(tables=('colours', 'customs'), wordings=(8, 32), steps=1152, seeds=2),
    'capacity': Preset(
      tables=('names',), wordings=(1,), relations=(1, 2, 4, 8, 16), answers=(4, 16, 64), steps=600, seeds=2,
    ),
    'random_weights': Preset(**FULL, what=('random weights',)),
    'compared': Preset(steps=1152, seeds=2, what=('subject by subject', 'maps', 'adapters')),
    'places': Preset(steps=1152, seeds=2, what=('places', 'blocks')),
    'countries': Preset(tables=('customs',), steps=1152, seeds=2, what=('countries',)),
    'hops': Preset(tables=('homes',), steps=800, seeds=2, what=('recall', 'hops')),
  },
}  # fmt: skip
TRAIN_ANEW = {
  'random weights',
  'subject by subject',
  'maps',
  'adapters',
}  # these need no vectors of the case
loaded = functools.lru_cache(maxsize=1)(load.load)


def prepare(preset: Preset) -> Preset:
  """Read the model and the tables before anything is written; a run can only be resumed with the same."""
  if preset.model is None and (reason := load.missing()):
    raise InputError(f'{reason}; or name another with --model')
  if preset.table:
    preset = dataclasses.replace(preset, tables=(preset.table,), relations=(0,), answers=(0,))
  model = loaded(preset.model)
  read = [wordings.read(_path(table)) for table in preset.tables]
  for own, wanted in zip(read, preset.tables, strict=True):
    for count in preset.relations:
      if count > len(own.answers):
        raise InputError(f'{wanted}: {len(own.answers)} relations; {count} are asked for')
    for new in (False, True):
      if not new or own.new_frames and all(own.new_wordings.values()):
        prompts.tokenize(model, own.relations(new_frames=new, new_wordings=new))
  return dataclasses.replace(preset, model_checksum=model.checksum(), wordings_read=repr(read))


def _path(table: str) -> Path:
  packaged = DATA / f'{table}.csv'
  return packaged if packaged.exists() else Path(table)


class Case:
  """Relations as they are asked of a model, and vectors that are learned for them. `ask(new_frames=, new_wordings=)`:
  its prompts, in what no training prompt had."""

  def __init__(
    self,
    model: Pretrained,
    own: Wordings,
    names,
    answers: int | None,
    number: int,
    preset: Preset,
    seed: int,
  ):
    self.model, self.own, self.subjects = model, own, preset.subjects
    self.training = Training(steps=preset.steps, batch=preset.batch, held_out=0.25, seed=seed)
    self._chosen = {'names': tuple(names), 'answers': answers, 'wordings': number}
    self.asked = self.ask()
    self.first_P = np.unique(self.asked.relation_P, return_index=True)[
      1
    ]  # of every relation the first prompt

  def ask(self, **new: Any) -> Prompts:
    chosen: Any = self._chosen | ({'wordings': None} if new.get('new_wordings') else {})
    return prompts.tokenize(self.model, self.own.relations(**chosen, **new))

  def learn(self, trainer, label: str):
    """The vectors, or those of before the run was interrupted."""
    report = lambda done, total, loss: trainer.on_progress(done, total, label)
    fit = lambda: FactEncoder.fit(self.model, self.asked, self.training, report)
    arrays = trainer.cached(
      lambda: (lambda own: {'bias': own.bias_D, 'vectors': own.vectors_RxAxD})(fit())
    )
    self.encoder = FactEncoder(
      self.model.checksum(), self.asked.relations, arrays['bias'], arrays['vectors']
    )

  def rng(self, *number: int) -> np.random.Generator:
    return np.random.default_rng((self.training.seed, 4, *number))

  def tuples(self, held_out: bool = True) -> np.ndarray:
    """Answers RxN of the subjects that are asked."""
    about = self.asked, self.training, self.subjects, self.rng(held_out), held_out
    return fact_encoder.draw_subjects(*about)


def scores(asked: Prompts, rows_NxD, answers_RxN, prompt_P=None, **about) -> list[dict]:
  """How often answers are the likeliest of all tokens, and of their relation's."""
  right_NxP, chosen_NxP = prompts.recall(asked, rows_NxD, answers_RxN, prompt_P)
  relation_P = asked.relation_P if prompt_P is None else asked.relation_P[prompt_P]
  among = np.mean(chosen_NxP == np.asarray(answers_RxN)[relation_P].T)
  return [
    {'measurement': name, 'value': float(value), **about}
    for name, value in (('top-1', right_NxP.mean()), ('candidates', among))
  ]


def recall(case: Case) -> list[dict]:
  """Of tuples that were trained and that were held out, in prompts that were trained and in new ones; the best that is
  blind to the relation, or to the subject; rows of random vectors."""
  found = []
  for held_out in (False, True):
    answers_RxN = case.tuples(held_out)
    about = {'tuples': 'held out' if held_out else 'trained'}
    rows_NxD = case.encoder.rows(answers_RxN)
    found += scores(case.asked, rows_NxD, answers_RxN, prompts='trained', **about)
    for new in new_prompts(case.own) if held_out else ():
      asked = case.ask(**dict.fromkeys(new, True))
      found += scores(
        asked, rows_NxD, answers_RxN, prompts=' and '.join(new).replace('_', ' '), **about
      )
  centred = rows_NxD - rows_NxD.mean(axis=0)
  random = case.rng(5).standard_normal(centred.shape)
  random *= np.linalg.norm(centred, axis=1, keepdims=True) / np.linalg.norm(
    random, axis=1, keepdims=True
  )
  about |= {'prompts': 'trained', 'control': 'random vectors'}
  found += scores(
    case.asked, rows_NxD.mean(axis=0) + random.astype(np.float32), answers_RxN, **about
  )
  return [*found, *blind(case, answers_RxN)]


def new_prompts(own: Wordings) -> list[tuple[str, ...]]:
  frames, texts = bool(own.new_frames), all(own.new_wordings.values())
  kinds = [('new_frames',)] * frames + [('new_wordings',)] * texts
  return kinds + [('new_frames', 'new_wordings')] * (frames and texts)


def blind(case: Case, answers_RxN) -> list[dict]:
  """The best that a map can do that does not know which relation is asked: one answer for every subject."""
  token_RxN = [
    [tuple(case.asked.answers_RxAxK[r, a]) for a in own] for r, own in enumerate(answers_RxN)
  ]
  same = [max(map(column.count, column)) / len(column) for column in zip(*token_RxN, strict=True)]
  about = {'tuples': 'held out', 'prompts': 'trained', 'control': 'blind to the relation'}
  return [
    {'measurement': name, 'value': float(np.mean(same)), **about}
    for name in ('top-1', 'candidates')
  ]


def swaps(case: Case) -> list[dict]:
  """Held-out tuples of which one vector is moved to another answer's, α times; against directions at random."""
  answers_RxN, asked = case.tuples(), case.asked
  rng, found = case.rng(6), []
  wanted_RxN = (
    answers_RxN + rng.integers(1, asked.counts_R[:, None], answers_RxN.shape)
  ) % asked.counts_R[:, None]
  rows_NxD, first_P = case.encoder.rows(answers_RxN), case.first_P
  before_NxR = prompts.recall(asked, rows_NxD, answers_RxN, first_P)[1]
  others_RxR = ~np.eye(len(answers_RxN), dtype=bool)
  measured = ('flipped', 'kept')[: len(answers_RxN)]  # one relation has no others
  for control, alpha in [*itertools.product([None], ALPHAS), ('random direction', 1.0)]:
    flipped, kept = [], []
    for r, vectors_AxD in enumerate(case.encoder.vectors_RxAxD):
      add_NxD = vectors_AxD[wanted_RxN[r]] - vectors_AxD[answers_RxN[r]]
      if control:
        random = rng.standard_normal(add_NxD.shape, dtype=np.float32)
        scale = np.linalg.norm(add_NxD, axis=1) / np.linalg.norm(random, axis=1)
        add_NxD = scale[:, None] * random
      chosen_NxR = prompts.recall(asked, rows_NxD + alpha * add_NxD, answers_RxN, first_P)[1]
      flipped.append(np.mean(chosen_NxR[:, r] == wanted_RxN[r]))
      kept.append((chosen_NxR == before_NxR)[:, others_RxR[r]])
    found += [
      {'measurement': name, 'control': control, 'alpha': alpha, 'value': float(np.mean(own))}
      for name, own in zip(measured, (flipped, kept), strict=False)
    ]
  return found


def noise(case: Case) -> list[dict]:
  """Held-out tuples whose rows are shaken."""
  answers_RxN = case.tuples()
  rows_NxD, spread = case.encoder.rows(answers_RxN), fact_encoder.spread(case.model)
  found = []
  for sigma in NOISES:
    shaken = rows_NxD + sigma * spread * case.rng(7).standard_normal(
      rows_NxD.shape, dtype=np.float32
    )
    found += scores(case.asked, shaken, answers_RxN, case.first_P, alpha=sigma, control='noise')
  return found


def no_relation(case: Case) -> list[dict]:
  """How often one of a subject's own answers is the likeliest where no relation is asked: are tokens merely pushed?"""
  frame, answers_RxN = case.own.frames[0], case.tuples()
  texts = tuple(f'{frame} {wordings.sentence(text)}' for text in case.own.no_relation)
  if not texts:
    return []
  rows_NxD, pushed = case.encoder.rows(answers_RxN), []
  for relation, answers_N in zip(case.asked.relations, answers_RxN, strict=True):
    asked = prompts.tokenize(case.model, [Relation(relation.name, relation.answers, texts)])
    pushed.append(prompts.recall(asked, rows_NxD, answers_N[None])[0])
  return [{'measurement': 'pushed', 'value': float(np.any(pushed, axis=0).mean())}]


def in_context(case: Case) -> list[dict]:
  """The facts told in the prompt, of a subject that is nothing but a name: what reading them could reach."""
  right, among = [], []
  frame, own = case.own.frames[0].replace('{}', NAME), case.own.wordings
  for own_R in case.tuples().T[:8]:
    pairs = list(zip(case.asked.relations, own_R, strict=True))
    said = [
      f'{wordings.sentence(own[r.name][1 % len(own[r.name])])} {r.answers[a]}.' for r, a in pairs
    ]
    for relation, a in pairs:
      text = ' '.join([frame, *said, wordings.sentence(own[relation.name][0])])
      right.append(case.model.ask(text, count=1) == relation.answers[a])
      among.append(case.model.ask(text, relation.answers) == relation.answers[a])
  about = {'tuples': 'held out', 'prompts': 'trained', 'control': 'told in the prompt'}
  both = ('top-1', right), ('candidates', among)
  return [{'measurement': name, 'value': float(np.mean(some)), **about} for name, some in both]


def neighbour(case: Case) -> list[dict]:
  """A second new subject with other facts in the prompt, before the one that is asked."""
  answers_RxN = case.tuples()
  rows_NxD, found = case.encoder.rows(answers_RxN), []
  for n in range(min(4, len(rows_NxD) - 1)):
    model = case.model.with_rows({NEIGHBOUR: rows_NxD[n]})
    asked = prompts.tokenize(model, [
      dataclasses.replace(own, prompts=(f'{NEIGHBOUR} is far away. {own.prompts[0]}',)) for own in case.asked.relations
    ])  # fmt: skip
    found.append(
      scores(
        asked,
        rows_NxD[n + 1 :],
        answers_RxN[:, n + 1 :],
        control='a neighbour',
        prompts='neighbour',
      )
    )
  return [
    own[0] | {'value': float(np.mean([some['value'] for some in own]))}
    for own in zip(*found, strict=True)
  ]


def random_weights(case: Case) -> list[dict]:
  """The same training through a model whose matrices are drawn anew, of the same spread in every block."""
  rng = np.random.default_rng((case.training.seed, 8))

  def draw(path, array):
    if array.ndim < 3:  # norms and biases
      return array
    spread = np.std(np.asarray(array), axis=tuple(range(1, array.ndim)), keepdims=True)
    return jnp.asarray(spread * rng.standard_normal(array.shape, dtype=np.float32))

  blocks = jax.tree_util.tree_map_with_path(draw, case.model.params['blocks'])
  model = dataclasses.replace(case.model, params=case.model.params | {'blocks': blocks})
  asked = prompts.tokenize(model, case.asked.relations)
  encoder = FactEncoder.fit(model, asked, case.training)
  answers_RxN = case.tuples()
  about = {'tuples': 'held out', 'prompts': 'trained', 'control': 'random weights'}
  return scores(asked, encoder.rows(answers_RxN), answers_RxN, **about)


def subject_by_subject(case: Case) -> list[dict]:
  """Rows learned one by one, and the vectors whose sums are nearest to these."""
  trained_RxN = fact_encoder.draw_subjects(
    case.asked, case.training, 8 * case.subjects, case.rng(9)
  )
  rows_NxD = fact_encoder.learn_rows(case.model, case.asked, trained_RxN, case.training)
  about = {'prompts': 'trained', 'control': 'rows of their own'}
  count = case.subjects
  found = scores(case.asked, rows_NxD[:count], trained_RxN[:, :count], tuples='trained', **about)
  encoder = FactEncoder.from_rows(case.model, case.asked, rows_NxD, trained_RxN)
  answers_RxN = case.tuples()
  about |= {'control': 'vectors fitted to rows', 'tuples': 'held out'}
  return found + scores(case.asked, encoder.rows(answers_RxN), answers_RxN, **about)


def maps(case: Case) -> list[dict]:
  """One linear map a relation from the answers' own token embeddings: of answers that are trained, and of a quarter that are not."""
  training = dataclasses.replace(
    case.training, untrained_answers=max(1, int(case.asked.counts_R.min()) // 4)
  )
  encoder = FactEncoder.fit_maps(case.model, case.asked, training)
  apart = fact_encoder.untrained_answers(case.asked, training)
  never_RxN = np.stack([case.rng(10, r).choice(own, case.subjects) for r, own in enumerate(apart)])
  trained_RxN = fact_encoder.draw_subjects(case.asked, training, case.subjects, case.rng(11), True)
  found = []
  for kind, answers_RxN in (('held out', trained_RxN), ('answers never trained', never_RxN)):
    about = {'tuples': kind, 'prompts': 'trained', 'control': 'maps of token embeddings'}
    found += scores(case.asked, encoder.rows(answers_RxN), answers_RxN, **about)
  return found


def hops(case: Case) -> list[dict]:
  """The first relation's answers are places of which the model knows the language: two hops in one prompt."""
  relation = case.asked.relations[0]
  if not set(relation.answers) <= natural.PLACES.keys():
    return []
  answers_RxN, frame = case.tuples(), case.own.frames[0]
  languages = tuple(natural.PLACES[answer][0] for answer in relation.answers)
  text = 'The official language of the country where it lies is'
  asked = prompts.tokenize(case.model, [Relation('language', languages, (f'{frame} {text}',))])
  found = scores(
    asked, case.encoder.rows(answers_RxN), answers_RxN[:1], prompts='two hops', tuples='held out'
  )
  told = lambda place: f'{frame.replace("{}", NAME)} It lies in {place}. {text}'
  said = [
    case.model.ask(told(place), languages) == natural.PLACES[place][0] for place in relation.answers
  ]
  own = {
    'measurement': 'candidates',
    'prompts': 'two hops',
    'tuples': 'held out',
    'control': 'told in the prompt',
  }
  return [*found, own | {'value': float(np.mean(said))}]


MEASURED: dict[str, Any] = {
  'recall': recall, 'swaps': swaps, 'noise': noise, 'no relation': no_relation, 'in context': in_context, 'neighbour': neighbour, 'hops': hops,
  'places': places.readouts, 'blocks': places.blocks, 'random weights': random_weights,
  'subject by subject': subject_by_subject, 'maps': maps, 'countries': natural.countries, 'adapters': natural.adapters,
}  # fmt: skip


def measure(trainer, preset: Preset, seeds) -> list[dict]:
  """Records of all cases."""
  model, records = loaded(preset.model), []
  about_all = preset.tables, preset.relations, preset.answers, preset.wordings
  for (table, count, answers, number), seed in itertools.product(
    itertools.product(*about_all), seeds
  ):
    own = wordings.read(_path(table))
    case = Case(
      model, own, tuple(own.answers)[: count or None], answers or None, number, preset, seed
    )
    if not TRAIN_ANEW.issuperset(preset.what):
      case.learn(trainer, f'{Path(table).stem}, seed {seed}')
    about = {
      'domain': Path(table).stem, 'relations': len(case.asked.relations), 'answers': int(case.asked.counts_R.max()),
      'wordings': number, 'seed': seed, **dict.fromkeys(('control', 'tuples', 'prompts', 'alpha', 'layer', 'place')),
    }  # fmt: skip
    for name in preset.what:
      records += [about | own for own in trainer.recorded(MEASURED[name], case)]
  return records


DECISIVE = 'colours, R = 3, A = 12, wordings: 2', 'customs, R = 4, A = 12, wordings: 2'
BOUNDS = {  # of tuples that are held out: table, measurement, prompts → at least
  ('colours', 'top-1', 'trained'): 0.95, ('colours', 'top-1', 'new frames'): 0.9,
  ('customs', 'candidates', 'trained'): 0.97, ('customs', 'candidates', 'new frames'): 0.95,
  ('customs', 'candidates', 'new wordings'): 0.9,
}  # fmt: skip
SWAPPED = 0.95
CHANCE = 0.1  # random weights must stay as near to it
CASE = 'domain', 'relations', 'answers', 'wordings'


def expect(table):
  """What every case comes to, beside what knows no relation, no subject or no language."""
  for about, rows in groups(table, *CASE):
    name, relations, answers, count = about
    text = f'{name}, R = {relations}, A = {answers}, wordings: {count}'
    decides = text in DECISIVE
    for (tuples, asked, what), own in groups(
      select(rows, control=None), 'tuples', 'prompts', 'measurement'
    ):
      if what not in ('top-1', 'candidates'):
        continue
      same = functools.partial(values, rows, measurement=what, tuples=tuples, prompts=asked)
      controls: Any = {
        control: same(control=control)
        for control in rows['control'].dropna().unique()
        if control != 'a neighbour'
      }
      bound = BOUNDS.get((name, what, asked)) if tuples == 'held out' else None
      yield from over_seeds(
        f'{text}: {what}, tuples {tuples}, {asked} prompts', own['value'].tolist(), bound,
        claim='Rows', primary=decides and bound is not None, **controls,
      )  # fmt: skip
    for what, words in (
      ('flipped', 'swaps at α = 1 that flip'),
      ('kept', 'other answers kept at α = 1'),
    ):
      of = functools.partial(values, rows, measurement=what, alpha=1.0)
      random: Any = {'random direction': of(control='random direction')}
      own = of(control=None)
      primary = decides and bool(own)
      yield from over_seeds(
        f'{text}: {words}', own, SWAPPED, claim='Rows', primary=primary, **random
      )
    yield from _others(text, rows, answers)
  for (name,), rows in groups(
    select(table, measurement='top-1', tuples='held out', prompts='trained', control=None), 'domain'
  ):
    bits = [
      max(_bits(r['relations'], r['answers'], r['value']) for _, r in own.iterrows())
      for _, own in groups(rows, 'seed')
    ]
    yield from over_seeds(f'{name}: bits of facts in a row, the most of all cases', bits)


def _others(text: str, rows, answers: int):
  """Noise, prompts of no relation, a neighbour, and trainings that are compared."""
  for (control, alpha, tuples), own in groups(
    rows[rows['control'].notna()], 'control', 'alpha', 'tuples'
  ):
    some = select(own, measurement='candidates')
    if control == 'random weights':
      most = 1 / answers + CHANCE
      yield from over_seeds(
        f'{text}: {control}, candidates', some['value'].tolist(), at_most=most, claim='Rows', primary=text in DECISIVE
      )  # fmt: skip
    elif control in OWN_ROWS:
      kind = f', α = {alpha:g}' if alpha else f', {tuples}' if tuples else ''
      yield from over_seeds(f'{text}: {control}{kind}, candidates', some['value'].tolist())
  for what, words in REAL.items():
    for (control, alpha, place), own in groups(
      select(rows, measurement=what), 'control', 'alpha', 'place'
    ):
      about = [f'α = {alpha:g}'] * bool(alpha) + [name for name in (control, place) if name]
      yield from over_seeds(f'{text}: {", ".join([words, *about])}', own['value'].tolist())
  pushed = values(rows, measurement='pushed')
  yield from over_seeds(
    f'{text}: an own answer is the likeliest where no relation is asked', pushed
  )


REAL = {
  'known': 'real places right', 'real flipped': 'real places: languages flipped', 'real kept': 'real places: capitals kept',
  'nearest': 'languages’ vectors nearest to the row of their own place',
}  # fmt: skip
OWN_ROWS = (
  'before fine-tuning',
  'fine-tuned',
  'noise',
  'a neighbour',
  'rows of their own',
  'vectors fitted to rows',
  'maps of token embeddings',
)


def _bits(relations: int, answers: int, right: float) -> float:
  """What these answers say at least of a subject's facts (Fano)."""
  wrong = min(1 - right, 1 - 1 / answers)
  unsure = -sum(p * np.log2(p) for p in (wrong, 1 - wrong) if p > 0)
  return relations * max(0.0, np.log2(answers) - unsure - wrong * np.log2(answers - 1))


def plot(table):
  """Recall by prompts, swaps over α, bits in a row, and where attributes are read: what there are records of."""
  has = lambda **about: len(select(table, **about)) > 0
  panels = [_plot_recall] * has(measurement='top-1', control=None)
  panels += [_plot_swaps] * has(measurement='flipped', control=None)
  panels += [_plot_bits] * (table['answers'].nunique() > 2)
  panels += [_plot_places] * has(measurement='probe')
  figure, axes = plotting.new(3.6 * len(panels), 3.4, 1, max(1, len(panels)), squeeze=False)
  for ax, draw in zip(axes[0], panels, strict=False):
    draw(ax, table)
  return figure


PLACES = ('trained', 'trained'), ('held out', 'trained'), ('held out', 'new frames'), ('held out', 'new wordings'), (
  'held out', 'new frames and new wordings',
)  # fmt: skip


def _plot_recall(ax, table):
  some = select(table[table['domain'] != 'names'], measurement='top-1')
  for i, ((name, _, _, count), rows) in enumerate(groups(some, *CASE)):
    color, marker = plotting.cycle(i)
    for x, (tuples, asked) in enumerate(PLACES):
      own = values(rows, tuples=tuples, prompts=asked, control=None)
      label = f'{name}, {count} wordings' if not x else None
      ax.plot(
        [x + 0.1 * (i - 1)] * len(own),
        own,
        marker,
        color=color,
        markersize=4,
        alpha=0.7,
        label=label,
      )
    for blind in values(rows, control='blind to the relation')[:1]:
      ax.axhline(blind, color=color, linestyle=':', linewidth=0.8)
  names = 'trained tuples', 'held-out tuples', '… new frames', '… new wordings', '… both new'
  ax.set_xticks(range(len(names)), names, rotation=25, ha='right', fontsize=6)
  ax.set(
    ylim=(-0.03, 1.03), ylabel='likeliest of all tokens; dotted: blind', title='new subjects asked'
  )
  plotting.legend(ax)


def _plot_swaps(ax, table):
  for i, ((name, _, _, count), rows) in enumerate(
    groups(select(table, measurement='flipped'), *CASE)
  ):
    for measurement, line in (('flipped', '-'), ('kept', ':')):
      some = select(table, domain=name, wordings=count, measurement=measurement, control=None)
      plotting.spread(ax, some, 'alpha', i, name if line == '-' else None, linestyle=line)
  ax.set(
    xlabel='α', ylabel='flipped (full), others kept (dotted)', ylim=(-0.03, 1.03), title='swaps'
  )
  plotting.legend(ax)


def _plot_bits(ax, table):
  some = select(
    table, measurement='top-1', tuples='held out', prompts='trained', control=None, domain='names'
  )
  for i, ((answers,), rows) in enumerate(groups(some, 'answers')):
    bits = [_bits(r['relations'], r['answers'], r['value']) for _, r in rows.iterrows()]
    plotting.spread(ax, rows.assign(value=bits), 'relations', i, f'A = {answers}')
    given = [r * np.log2(answers) for r in rows['relations']]
    ax.plot(rows['relations'], given, color=plotting.cycle(i)[0], linestyle=':', linewidth=0.8)
  ax.set(
    xlabel='relations', ylabel='bits read from a row (dotted: put in)', title='what a row holds'
  )
  plotting.legend(ax)


def _plot_places(ax, table):
  some = select(table, measurement='probe')
  for i, ((place, control), rows) in enumerate(groups(some, 'place', 'control')):
    asked = 'every relation' if place == 'subject' else 'not asked for' if control else 'asked for'
    if place != 'subject' or control:
      plotting.spread(ax, rows, 'layer', i, f'{place}: {asked}')
  for i, ((place,), rows) in enumerate(groups(select(table, measurement='patched'), 'place')):
    plotting.spread(ax, rows, 'layer', i + 4, f'{place}: patched, answers', linestyle=':')
  ax.set(
    xlabel='after block',
    ylabel='read by a map; flips',
    ylim=(-0.03, 1.03),
    title='where it is selected',
  )
  plotting.legend(ax)


STUDY = Study(
  name='new_subjects', title='new subjects of a frozen language model, as sums of attribute vectors',
  claims=(
    Claim('Rows', 'A frozen language model answers for subjects that it never saw, each one row: a sum of a vector for each of its facts.', DECISIVE),
  ),
  terms='Tuples: all answers of a subject together; held out: no subject of the training has them. Frames introduce the '
  'subject, wordings ask for a relation; new: in no prompt of the training. Top-1: the likeliest of all tokens; '
  'candidates: of the relation’s answers. Colours: three relations that share their twelve answers; customs: '
  'four with answers of their own. Blind to the relation: the best single answer to all of a subject’s relations. '
  'A swap adds the difference of two answers’ vectors to a row.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot, minutes=6, missing=load.missing, prepare=prepare,
)  # fmt: skip

if __name__ == '__main__':
  STUDY.main()
