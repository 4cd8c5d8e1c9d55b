"""New subjects for a frozen language model, each given as one embedding row: a sum of vectors, one per fact.

The model itself does not change: a new subject is a row of its token embedding,
e = b + Σ_r v_{r, g_r}. The vectors are learned by gradient descent through the frozen model, on
subjects with random facts. They are compared with rows learned separately for each subject, and with
linear maps of the answers' own token embeddings, v_{r, a} = M_r u_a.

Shapes: N subjects, R relations, A answers per relation, K rank of a map, D width, B examples per step.
"""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from geomem.errors import InputError
from geomem.inside import linear_maps
from geomem.pretrained import prompts
from geomem.pretrained.load import Pretrained
from geomem.pretrained.prompts import Examples, Prompts, Relation
from geomem.saved import atomic
from geomem.training import optimization

FORMAT, VERSION = 'geomem fact encoder', 1
ADAM = optax.scale_by_adam()
OnProgress = Callable[[int, int, float], None]  # steps done, total steps, loss
# Called with work that returns a tree of arrays; may return instead what it returned before the program was killed.
Cached = Callable[[Callable[[], Any]], Any]
CHUNK = 200  # steps of such work


def silent(done: int, total: int, loss: float) -> None:
  """The default `on_progress`: ignores progress."""


def uncached(work: Callable[[], Any]) -> Any:
  """The default `cached`: keeps nothing."""
  return work()


@dataclasses.dataclass(frozen=True)
class Training:
  """`rate` (at the start) and `noise` (added to every row) are multiples of the token embeddings' `spread`.

  `held_out`: the fraction of answer tuples that no training subject has (each tuple is held out
  with this probability). `untrained_answers`: the number of answers of each relation that no
  training subject has. `seed` determines both choices, and all other random draws of the training.

  >>> Training(steps=100, held_out=0.25).batch
  24
  """

  steps: int = 400
  batch: int = 24
  rate: float = 0.2
  noise: float = 0.3
  held_out: float = 0.0
  untrained_answers: int = 0
  seed: int = 0

  def __post_init__(self) -> None:
    for name in ('steps', 'batch'):
      if getattr(self, name) < 1:
        raise InputError(f'{name} of the training is {getattr(self, name)}; it must be at least 1')
    for name in ('rate', 'noise', 'held_out', 'untrained_answers'):
      most = 1.0 if name == 'held_out' else math.inf
      if not 0 <= getattr(self, name) < most:
        raise InputError(f'{name} of the training is {getattr(self, name)}; it must be 0 … {most}')
    if not 0 <= self.seed < 2**32:
      raise InputError(f'seed of the training is {self.seed}; it must be 0 … {2**32 - 1}')


@dataclasses.dataclass(frozen=True, eq=False)
class FactEncoder:
  """Turns facts into embedding rows for one model, whose checksum it stores.

  >>> encoder = FactEncoder.fit(model, [Relation('language', ('French', 'Thai'), ('The language of {} is',))])
  >>> extended = model.with_rows(encoder({'Zorbla': {'language': 'Thai'}}))
  >>> extended.ask('The language of Zorbla is')
  'Thai'
  """

  checksum: int
  relations: tuple[Relation, ...]
  bias_D: np.ndarray
  vectors_RxAxD: np.ndarray

  def __call__(self, facts: Mapping[str, Mapping[str, str]]) -> dict[str, np.ndarray]:
    """A row for each subject, from its given facts; not every relation needs one."""
    names = [relation.name for relation in self.relations]
    answers_RxN = np.full((len(names), len(facts)), prompts.NONE)
    for n, (subject, own) in enumerate(facts.items()):
      for name, answer in own.items():
        if name not in names:
          raise InputError(f'{subject}: no relation {name!r}; there are {", ".join(names)}')
        known = self.relations[r := names.index(name)].answers
        if answer not in known:
          raise InputError(f'{subject}: {answer!r} is no answer to {name!r}')
        answers_RxN[r, n] = known.index(answer)
    return dict(zip(facts, self.rows(answers_RxN), strict=True))

  def rows(self, answers_RxN: ArrayLike) -> np.ndarray:
    """The rows, NxD; an answer of −1 means that the fact is not given."""
    answers_RxN = np.asarray(answers_RxN)
    counts_R = np.array([len(relation.answers) for relation in self.relations])
    if answers_RxN.ndim != 2 or len(answers_RxN) != len(counts_R):
      raise InputError(f'needs a row of answers for each of {len(counts_R)} relations')
    if (answers_RxN < prompts.NONE).any() or (answers_RxN >= counts_R[:, None]).any():
      raise InputError('an answer has an index that its relation does not have')
    rows_NxD = np.tile(self.bias_D, (answers_RxN.shape[1], 1))
    for vectors_AxD, answers_N in zip(self.vectors_RxAxD, answers_RxN, strict=True):
      rows_NxD += np.where(answers_N[:, None] >= 0, vectors_AxD[answers_N], 0)
    return rows_NxD

  @classmethod
  def fit(
    cls, model: Pretrained, relations: Sequence[Relation] | Prompts, training: Training | None = None,
    on_progress: OnProgress = silent, cached: Cached = uncached,
  ) -> 'FactEncoder':  # fmt: skip
    """Learn the vectors through the frozen model; the vector of an answer that no training subject has is 0."""
    asked, training = _tokenized(model, relations), training or Training()
    shape = *asked.answers_RxAxK.shape[:2], model.config.dim
    start = {
      'bias': jnp.asarray(np.mean(np.asarray(model.params['embed']['tokens']), axis=0)),
      'vectors': spread(model) * jax.random.normal(_keys(training)[0], shape),
    }
    learned = learn(asked, start, sum_rows, training, on_progress, cached=cached)
    return cls._of(asked, learned, untrained_answers(asked, training))

  @classmethod
  def fit_maps(
    cls, model: Pretrained, relations: Sequence[Relation] | Prompts, training: Training | None = None, rank: int = 32,
    on_progress: OnProgress = silent,
  ) -> 'FactEncoder':  # fmt: skip
    """Learn one linear map of rank `rank` per relation. Its input is the mean of an answer's token
    embeddings, minus the mean of all tokens, scaled to length 1; so answers that no training
    subject has get vectors too."""
    asked, training = _tokenized(model, relations), training or Training()
    token_NxD, answers_RxAxK = np.asarray(model.params['embed']['tokens']), asked.answers_RxAxK
    real_RxAxKx1 = (answers_RxAxK >= 0)[..., None]
    own_RxAxD = np.sum(np.where(real_RxAxKx1, token_NxD[answers_RxAxK], 0), axis=2)
    own_RxAxD = own_RxAxD / np.maximum(real_RxAxKx1.sum(axis=2), 1) - token_NxD.mean(axis=0)
    unit_RxAxD = own_RxAxD / np.maximum(np.linalg.norm(own_RxAxD, axis=2, keepdims=True), 1e-9)
    into, out = jax.random.split(_keys(training)[0])
    count, dim = len(asked.relations), model.config.dim
    start = {
      'bias': jnp.asarray(token_NxD.mean(axis=0)),
      'in': jax.random.normal(into, (count, dim, rank)),
      'out': spread(model) * jax.random.normal(out, (count, rank, dim)) / np.sqrt(rank),
    }
    unit_RxAxD = jnp.asarray(unit_RxAxD, jnp.float32)
    free = learn(asked, start, map_rows, training, on_progress, unit_RxAxD)
    vectors_RxAxD = _mapped_vectors(free, unit_RxAxD)
    return cls._of(asked, {'bias': free['bias'], 'vectors': vectors_RxAxD})

  @classmethod
  def from_rows(
    cls, model: Pretrained, relations: Sequence[Relation] | Prompts, rows_NxD: ArrayLike, answers_RxN: ArrayLike,
    ridge: float = 1e-2,
  ) -> 'FactEncoder':  # fmt: skip
    """The vectors whose sums are nearest to the given rows, by ridge regression."""
    asked, answers_RxN = _tokenized(model, relations), np.asarray(answers_RxN)
    one_hot = [
      answers_N[:, None] == np.arange(asked.answers_RxAxK.shape[1]) for answers_N in answers_RxN
    ]
    x_NxP = jnp.asarray(np.concatenate(one_hot, axis=1), jnp.float32)
    w_PxD, b_D = linear_maps.affine(x_NxP, jnp.asarray(rows_NxD, jnp.float32), ridge)
    vectors = np.asarray(w_PxD).reshape(len(answers_RxN), -1, model.config.dim)
    return cls._of(asked, {'bias': b_D, 'vectors': vectors})

  @classmethod
  def _of(
    cls, asked: Prompts, learned: Mapping[str, ArrayLike], untrained: Sequence[np.ndarray] = ()
  ) -> 'FactEncoder':
    """Center every relation's vectors, so that a fact that is not given counts as the mean over
    answers. `untrained`: the answers of each relation for which nothing was learned; the mean leaves
    them out, and their vectors are 0."""
    bias_D, vectors_RxAxD = (np.array(learned[name], np.float32) for name in ('bias', 'vectors'))
    for r, count in enumerate(asked.counts_R):
      known = np.setdiff1d(np.arange(count), untrained[r] if len(untrained) else [])
      mean_D = vectors_RxAxD[r, known].mean(axis=0)
      bias_D += mean_D
      centred = vectors_RxAxD[r, known] - mean_D
      vectors_RxAxD[r] = 0
      vectors_RxAxD[r, known] = centred
    return cls(asked.model.checksum(), asked.relations, bias_D, vectors_RxAxD)

  def save(self, path: str | os.PathLike) -> None:
    """Write the encoder to the folder `path`, which must be new or already hold an encoder."""
    path = Path(path)
    if path.exists() and not _is_encoder(path):
      raise InputError(f'{path} exists and is no fact encoder')
    relations = [dataclasses.asdict(relation) for relation in self.relations]
    fields = {
      'format': FORMAT,
      'version': VERSION,
      'checksum': self.checksum,
      'relations': relations,
    }
    atomic.write(path, fields, {'bias': self.bias_D, 'vectors': self.vectors_RxAxD})

  @classmethod
  def load(cls, path: str | os.PathLike, model: Pretrained) -> 'FactEncoder':
    """Load the encoder in the folder `path`, which must have been learned through this model."""
    path = atomic.locate(path)
    if not _is_encoder(path):
      raise InputError(f'{path}: no fact encoder there')
    try:
      fields, arrays = atomic.read(path)
      if fields['version'] != VERSION:
        raise InputError(f'version {fields["version"]} of the format; this code reads {VERSION}')
      relations = tuple(
        Relation(own['name'], tuple(own['answers']), tuple(own['prompts']))
        for own in fields['relations']
      )
      found = cls(int(fields['checksum']), relations, arrays['bias'], arrays['vectors'])
      most = max(len(relation.answers) for relation in relations)
      chex.assert_shape(found.vectors_RxAxD, (len(relations), most, len(found.bias_D)))
      if not all(np.isfinite(own).all() for own in (found.bias_D, found.vectors_RxAxD)):
        raise InputError('it holds numbers that are not finite')
    except Exception as error:  # whatever is wrong with the files
      raise InputError(f'{path}: damaged fact encoder: {atomic.reason(error)}') from error
    if found.checksum != model.checksum():
      raise InputError(f'{path}: its vectors were learned through another model than {model.name}')
    return found


def _is_encoder(path: Path) -> bool:
  try:
    return json.loads((atomic.locate(path) / 'config.json').read_text())['format'] == FORMAT
  except (OSError, ValueError, KeyError, TypeError):
    return False


def _tokenized(model: Pretrained, relations: Sequence[Relation] | Prompts) -> Prompts:
  if not isinstance(relations, Prompts):
    return prompts.tokenize(model, relations)
  if relations.model is not model:
    raise InputError('these prompts were tokenized for another model')
  return relations


def spread(model: Pretrained) -> float:
  """How far token embeddings are from their mean: the standard deviation, averaged over coordinates."""
  return float(np.std(np.asarray(model.params['embed']['tokens']), axis=0).mean())


def _keys(training: Training) -> jax.Array:
  """Random keys for the initial values and for the noise."""
  return jax.random.split(jax.random.key(training.seed))


def sum_rows(free: dict, answers_RxB: jax.Array) -> jax.Array:
  """b + Σ_r v_{r, g_r}."""
  own_RxBxD = jax.vmap(lambda vectors_AxD, answers_B: vectors_AxD[answers_B])(
    free['vectors'], answers_RxB
  )
  return free['bias'][None] + jnp.sum(own_RxBxD, axis=0)


def map_rows(free: dict, answers_RxB: jax.Array, unit_RxAxD: jax.Array) -> jax.Array:
  """b + Σ_r M_r u_{g_r}."""
  return sum_rows({'bias': free['bias'], 'vectors': _mapped_vectors(free, unit_RxAxD)}, answers_RxB)


def _mapped_vectors(free, unit_RxAxD):
  return jnp.einsum('rad,rdk,rke->rae', unit_RxAxD, free['in'], free['out'])


def own_rows(rows_NxD: jax.Array, subject_B: jax.Array) -> jax.Array:
  """Each subject's own row."""
  return rows_NxD[subject_B]


# --- drawing subjects -----------------------------------------------------------------------------


def is_held_out(answers_RxN: ArrayLike, training: Training) -> np.ndarray:
  """Whether each subject's tuple of answers is held out from training, decided by a hash of the tuple."""
  code_N = np.full(np.shape(answers_RxN)[1], training.seed, np.uint64)
  with np.errstate(over='ignore'):
    for answers_N in np.asarray(answers_RxN).astype(np.uint64):
      code_N = code_N * np.uint64(0x9E3779B97F4A7C15) + answers_N + np.uint64(1)
      code_N ^= code_N >> np.uint64(30)
      code_N *= np.uint64(0xBF58476D1CE4E5B9)
      code_N ^= code_N >> np.uint64(27)
  return (code_N >> np.uint64(11)) / 2.0**53 < training.held_out


def untrained_answers(asked: Prompts, training: Training) -> list[np.ndarray]:
  """For every relation, the answers that no training subject has."""
  rng = np.random.default_rng((training.seed, 1))
  return [np.sort(rng.permutation(count)[: training.untrained_answers]) for count in asked.counts_R]


def draw_subjects(
  asked: Prompts,
  training: Training,
  count: int,
  rng: np.random.Generator,
  held_out: bool | None = False,
) -> np.ndarray:
  """Random answers RxN, without untrained ones: training tuples, held-out tuples, or (None) any tuples."""
  apart = untrained_answers(asked, training)
  if training.untrained_answers > asked.counts_R.min() - 1:
    raise InputError(
      f'{training.untrained_answers} answers cannot be kept from training: a relation has no others'
    )
  allowed = [np.setdiff1d(np.arange(n), own) for n, own in zip(asked.counts_R, apart, strict=True)]
  found, tries = np.zeros((len(allowed), 0), int), 0
  while found.shape[1] < count:
    drawn = np.stack([rng.choice(own, 2 * count) for own in allowed])
    if held_out is not None:
      drawn = drawn[:, is_held_out(drawn, training) == held_out]
    found, tries = np.concatenate([found, drawn], axis=1), tries + 1
    if tries > 1000:
      raise InputError(
        f'too few tuples of answers are {"" if held_out else "not "}held out: change held_out'
      )
  return found[:, :count]


# --- learning -------------------------------------------------------------------------------------


def learn(
  asked: Prompts, start: Any, rows_of: Callable, training: Training, on_progress: OnProgress = silent, *more: Any,
  cached: Cached = uncached,
) -> Any:  # fmt: skip
  """Learn parameters, from `start`, whose rows make the frozen model answer.

  `rows_of(learned, answers RxB, *more)` gives the rows of a batch of subjects. Every step draws new
  subjects, and a prompt for each.
  """
  rng = np.random.default_rng((training.seed, 2))

  def batch():
    answers_RxB = draw_subjects(asked, training, training.batch, rng)
    prompt_B = rng.integers(len(asked.relation_P), size=training.batch)
    own_B = answers_RxB[asked.relation_P[prompt_B], np.arange(training.batch)]
    return answers_RxB, asked.examples(prompt_B, own_B)

  return descend(asked, start, rows_of, training, batch, on_progress, *more, cached=cached)


def learn_rows(
  model: Pretrained, relations: Sequence[Relation] | Prompts, answers_RxN: ArrayLike, training: Training | None = None,
  on_progress: OnProgress = silent,
) -> np.ndarray:  # fmt: skip
  """A row learned separately for each of these subjects, NxD: the baseline for the vectors."""
  asked, training = _tokenized(model, relations), training or Training()
  answers_RxN = np.asarray(answers_RxN)
  rng, shape = np.random.default_rng((training.seed, 3)), (answers_RxN.shape[1], model.config.dim)
  mean_D = np.mean(np.asarray(model.params['embed']['tokens']), axis=0)
  start = mean_D + spread(model) * rng.standard_normal(shape, dtype=np.float32)

  batch = functools.partial(facts_of, asked, answers_RxN, training.batch, rng)
  return np.asarray(descend(asked, jnp.asarray(start), own_rows, training, batch, on_progress))


def facts_of(
  asked: Prompts, answers_RxN: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, Examples]:
  """`count` random facts of these subjects: the subjects' indices, and prompts with their answers."""
  subject_B = rng.integers(answers_RxN.shape[1], size=count)
  prompt_B = rng.integers(len(asked.relation_P), size=count)
  return subject_B, asked.examples(prompt_B, answers_RxN[asked.relation_P[prompt_B], subject_B])


def unchanged(params: dict, free: Any) -> dict:
  """The model's parameters, unchanged by what is learned."""
  return params


def descend(
  asked: Prompts, start: Any, rows_of: Callable, training: Training, batch: Callable, on_progress: OnProgress = silent,
  *more: Any, params_of: Callable = unchanged, cached: Cached = uncached,
) -> Any:  # fmt: skip
  """Minimize the mean loss of batches from `start`, by Adam with a cosine decay of the rate to 0.

  `batch()` returns the rows' subjects or answers, `about`, and examples;
  `rows_of(learned, about, *more)` the rows; `params_of(params, learned)` the model's parameters.
  """
  std, model = spread(asked.model), asked.model
  noise_key, state = _keys(training)[1], (start, ADAM.init(start))

  def chunk(state, first: int, batches: list):
    for number, (about, examples) in enumerate(batches, first):
      rate = training.rate * (1 + math.cos(math.pi * number / training.steps)) / 2
      scales = np.array([std * rate, std * training.noise], np.float32)
      key = jax.random.fold_in(noise_key, number)
      functions = model.config, rows_of, params_of
      arrays = model.params, asked.prefixes, state, scales, key, about, examples, more
      state, loss = _step(*functions, *arrays)
      if not math.isfinite(loss := float(loss)):
        raise InputError(f'the loss is {loss} after {number} steps: choose a lower rate')
      on_progress(number + 1, training.steps, loss)
    return flax.serialization.to_state_dict(jax.device_get(state))

  for first in range(0, training.steps, CHUNK):
    batches = [batch() for _ in range(min(CHUNK, training.steps - first))]
    found = cached(functools.partial(chunk, state, first, batches))
    state = flax.serialization.from_state_dict(state, found)
  return jax.device_get(state[0])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
@jax.default_matmul_precision('highest')
def _step(
  config, rows_of, params_of, params, prefixes, state, scales, key, about, examples: Examples, more
):
  (free, opt_state), (rate, noise) = state, scales

  def loss(free):
    rows_BxD = rows_of(free, about, *more)
    rows_BxD = rows_BxD + noise * jax.random.normal(key, rows_BxD.shape)
    own = params_of(params, free)
    logits = prompts.final_logits(config, own, prefixes, rows_BxD, examples)
    return jnp.mean(prompts.losses(logits, examples.targets_BxK))

  value, grads = jax.value_and_grad(loss)(free)
  updates, opt_state = optimization.adam_update(ADAM, grads, opt_state)
  updates = jax.tree.map(lambda update: -rate * update, updates)
  return (optax.apply_updates(free, updates), opt_state), value
