"""Subjects that a frozen language model never saw, given to it as rows: sums of vectors, one for each of their facts.

Nothing of the model changes: a subject is a row of its token embedding, e = b + Σ_r v_{r, g_r}. The vectors are learned
through the frozen model, of subjects with facts at random. They are compared with rows that are learned subject by
subject, and with maps of the answers' own token embeddings, v_{r, a} = M_r u_a.

Shapes: N subjects, R relations, A answers of one, K rank of a map, D width, B examples of a step.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import chex
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


@dataclasses.dataclass(frozen=True)
class Training:
  """`rate`, `noise`: of the token embeddings' root mean square, at the start; noise is added to every row in training.

  `held_out`: the fraction of all tuples of answers, and `held_out_answers` the number of answers of every relation,
  that no subject of the training has. Both are drawn by `seed`.
  """

  steps: int = 400
  batch: int = 24
  rate: float = 0.2
  noise: float = 0.3
  held_out: float = 0.0
  held_out_answers: int = 0
  seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class FactEncoder:
  """Turns facts into rows for `model`, of which it holds the checksum.

  >>> encoder = FactEncoder.fit(model, [Relation('language', ('French', 'Thai'), ('The language of {} is',))])
  >>> told = model.with_rows(encoder({'Zorbla': {'language': 'Thai'}}))
  >>> told.ask('The language of Zorbla is')
  'Thai'
  """

  checksum: int
  relations: tuple[Relation, ...]
  bias_D: np.ndarray
  vectors_RxAxD: np.ndarray

  def __call__(self, facts: Mapping[str, Mapping[str, str]]) -> dict[str, np.ndarray]:
    """A row for each name, of as many of its relations as are given."""
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
    """NxD; −1: that fact is not given."""
    answers_RxN = np.asarray(answers_RxN)
    own_RxNxD = self.vectors_RxAxD[np.arange(len(answers_RxN))[:, None], answers_RxN]
    return self.bias_D + np.sum(
      np.where(answers_RxN[..., None] >= 0, own_RxNxD, 0.0), axis=0, dtype=np.float32
    )

  @classmethod
  def fit(
    cls, model: Pretrained, relations: Sequence[Relation] | Prompts, training: Training | None = None, **options: Any
  ) -> 'FactEncoder':  # fmt: skip
    """Vectors that are learned through the frozen model. `options`: as in `learn`."""
    asked, training = _tokenized(model, relations), training or Training()
    r, a, _ = asked.answers_RxAxK.shape
    scale = _scale(model)
    start = {
      'bias': jnp.asarray(np.mean(model.params['embed']['tokens'], axis=0)),
      'vectors': scale * jax.random.normal(jax.random.key(training.seed), (r, a, model.config.dim)),
    }  # fmt: skip
    return cls._of(asked, learn(asked, start, _summed, training, **options))

  @classmethod
  def fit_maps(
    cls, model: Pretrained, relations: Sequence[Relation] | Prompts, training: Training | None = None, rank: int = 32,
    **options: Any,
  ) -> 'FactEncoder':  # fmt: skip
    """One linear map of this rank for every relation, from an answer's own token embeddings: also for answers that
    no subject of the training has."""
    asked, training = _tokenized(model, relations), training or Training()
    token_NxD, answers_RxAxK = np.asarray(model.params['embed']['tokens']), asked.answers_RxAxK
    real_RxAxKx1 = (answers_RxAxK >= 0)[..., None]
    own_RxAxD = np.sum(np.where(real_RxAxKx1, token_NxD[answers_RxAxK], 0), axis=2)
    own_RxAxD = own_RxAxD / np.maximum(real_RxAxKx1.sum(axis=2), 1) - token_NxD.mean(axis=0)
    unit_RxAxD = own_RxAxD / np.maximum(np.linalg.norm(own_RxAxD, axis=2, keepdims=True), 1e-9)
    into, out = jax.random.split(jax.random.key(training.seed))
    relations_, dim = len(asked.relations), model.config.dim
    start = {
      'bias': jnp.asarray(token_NxD.mean(axis=0)),
      'in': jax.random.normal(into, (relations_, dim, rank)),
      'out': _scale(model) * jax.random.normal(out, (relations_, rank, dim)) / np.sqrt(rank),
    }

    def vectors(free):
      return jnp.einsum(
        'rad,rdk,rke->rae', jnp.asarray(unit_RxAxD, jnp.float32), free['in'], free['out']
      )

    def rows(free, answers_RxB):
      return _summed({'bias': free['bias'], 'vectors': vectors(free)}, answers_RxB)

    free = learn(asked, start, rows, training, **options)
    return cls._of(asked, {'bias': free['bias'], 'vectors': np.asarray(vectors(free))})

  @classmethod
  def from_rows(
    cls, model: Pretrained, relations: Sequence[Relation] | Prompts, rows_NxD: ArrayLike, answers_RxN: ArrayLike,
    ridge: float = 1e-2,
  ) -> 'FactEncoder':  # fmt: skip
    """The vectors whose sums are nearest to rows that are there, by ridge regression."""
    asked, answers_RxN = _tokenized(model, relations), np.asarray(answers_RxN)
    one_hot = [
      answers_N[:, None] == np.arange(asked.answers_RxAxK.shape[1]) for answers_N in answers_RxN
    ]
    x_NxP = jnp.asarray(np.concatenate(one_hot, axis=1), jnp.float32)
    w_PxD, b_D = linear_maps.affine(x_NxP, jnp.asarray(rows_NxD, jnp.float32), ridge)
    vectors = np.asarray(w_PxD).reshape(len(answers_RxN), -1, model.config.dim)
    return cls._of(asked, {'bias': b_D, 'vectors': vectors})

  @classmethod
  def _of(cls, asked: Prompts, learned: Mapping[str, ArrayLike]) -> 'FactEncoder':
    """Vectors of mean 0 in every relation, so that a fact that is not given is the mean of all answers."""
    vectors_RxAxD, counts_R = np.array(learned['vectors'], np.float32), asked.counts_R
    real_RxAx1 = np.arange(vectors_RxAxD.shape[1])[None, :, None] < counts_R[:, None, None]
    mean_Rx1xD = (
      np.sum(vectors_RxAxD, axis=1, keepdims=True, where=real_RxAx1) / counts_R[:, None, None]
    )
    centred = np.where(real_RxAx1, vectors_RxAxD - mean_Rx1xD, 0).astype(np.float32)
    bias_D = np.asarray(learned['bias'], np.float32) + mean_Rx1xD.sum(axis=(0, 1))
    return cls(asked.model.checksum(), asked.relations, bias_D.astype(np.float32), centred)

  def save(self, path: str | os.PathLike) -> None:
    """Write the encoder to the folder `path`, which must be new or hold another one."""
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
    """The encoder in the folder `path`, which must be of this model."""
    path = atomic.found(path)
    if not _is_encoder(path):
      raise InputError(f'{path}: no fact encoder there')
    try:
      fields, arrays = atomic.read(path)
      relations = tuple(
        Relation(own['name'], tuple(own['answers']), tuple(own['prompts']))
        for own in fields['relations']
      )
      found = cls(int(fields['checksum']), relations, arrays['bias'], arrays['vectors'])
      chex.assert_shape(found.bias_D, (model.config.dim,))
      chex.assert_shape(found.vectors_RxAxD, (len(relations), None, model.config.dim))
    except (atomic.Damaged, InputError, AssertionError, KeyError, TypeError, ValueError) as error:
      raise InputError(
        f'{path}: damaged fact encoder, or one of another model: {atomic.reason(error)}'
      ) from error
    if found.checksum != model.checksum():
      raise InputError(f'{path}: its vectors were learned through another model than {model.name}')
    return found


def _is_encoder(path: Path) -> bool:
  try:
    return json.loads((atomic.found(path) / 'config.json').read_text())['format'] == FORMAT
  except (OSError, ValueError, KeyError, TypeError):
    return False


def _tokenized(model: Pretrained, relations: Sequence[Relation] | Prompts) -> Prompts:
  return relations if isinstance(relations, Prompts) else prompts.tokenize(model, relations)


def _scale(model: Pretrained) -> float:
  """The root mean square of the model's token embeddings around their mean."""
  return float(np.std(np.asarray(model.params['embed']['tokens']), axis=0).mean())


def _summed(free, answers_RxB):
  own_RxBxD = jax.vmap(lambda vectors_AxD, answers_B: vectors_AxD[answers_B])(
    free['vectors'], answers_RxB
  )
  return free['bias'][None] + jnp.sum(own_RxBxD, axis=0)


# --- what subjects there are ----------------------------------------------------------------------


def is_held_out(answers_RxN: ArrayLike, training: Training) -> np.ndarray:
  """Of every subject, whether no subject of the training has all of its answers together: a hash of the tuple says so."""
  code_N = np.full(np.shape(answers_RxN)[1], training.seed, np.uint64)
  with np.errstate(over='ignore'):
    for answers_N in np.asarray(answers_RxN).astype(np.uint64):
      code_N = code_N * np.uint64(0x9E3779B97F4A7C15) + answers_N + np.uint64(1)
      code_N ^= code_N >> np.uint64(30)
      code_N *= np.uint64(0xBF58476D1CE4E5B9)
      code_N ^= code_N >> np.uint64(27)
  return (code_N >> np.uint64(11)) / 2.0**53 < training.held_out


def held_out_answers(asked: Prompts, training: Training) -> list[np.ndarray]:
  """Of every relation the answers that no subject of the training has."""
  rng = np.random.default_rng((training.seed, 1))
  return [np.sort(rng.permutation(count)[: training.held_out_answers]) for count in asked.counts_R]


def draw_subjects(
  asked: Prompts,
  training: Training,
  count: int,
  rng: np.random.Generator,
  held_out: bool | None = False,
) -> np.ndarray:
  """Answers RxN at random: to be trained on, or tuples that are held out; None: any."""
  apart = held_out_answers(asked, training)
  allowed = [np.setdiff1d(np.arange(n), own) for n, own in zip(asked.counts_R, apart, strict=True)]
  found, tries = np.zeros((len(allowed), 0), int), 0
  while found.shape[1] < count:
    drawn = np.stack([rng.choice(own, 2 * count) for own in allowed])
    if held_out is not None:
      drawn = drawn[:, is_held_out(drawn, training) == held_out]
    found, tries = np.concatenate([found, drawn], axis=1), tries + 1
    if tries > 1000:
      raise InputError('there are no such tuples of answers: hold out more of them, or fewer')
  return found[:, :count]


# --- learning -------------------------------------------------------------------------------------


def learn(
  asked: Prompts, start: Any, rows_of: Callable, training: Training,
  on_progress: Callable[[int, int, float], None] = lambda done, total, loss: None,
) -> Any:  # fmt: skip
  """From `start`, what makes the frozen model answer: `rows_of(it, answers RxB)` are the rows of a batch of subjects.

  Every step draws subjects, and a prompt for each, anew.
  """
  rng = np.random.default_rng((training.seed, 2))

  def batch():
    answers_RxB = draw_subjects(asked, training, training.batch, rng)
    prompt_B = rng.integers(len(asked.relation_P), size=training.batch)
    own_B = answers_RxB[asked.relation_P[prompt_B], np.arange(training.batch)]
    return answers_RxB, asked.examples(prompt_B, own_B)

  return _descend(asked, start, rows_of, training, batch, on_progress)


def learn_rows(
  model: Pretrained, relations: Sequence[Relation] | Prompts, answers_RxN: ArrayLike, training: Training | None = None,
  on_progress: Callable[[int, int, float], None] = lambda done, total, loss: None,
) -> np.ndarray:  # fmt: skip
  """A row for each of these subjects, learned one by one: what vectors have to be held against. NxD."""
  asked, training, answers_RxN = (
    _tokenized(model, relations),
    training or Training(),
    np.asarray(answers_RxN),
  )
  rng, count = np.random.default_rng((training.seed, 3)), answers_RxN.shape[1]
  mean_D = np.mean(np.asarray(model.params['embed']['tokens']), axis=0)
  drawn = rng.standard_normal((count, model.config.dim), dtype=np.float32)
  start = jnp.asarray(mean_D + _scale(model) * drawn)

  def batch():
    subject_B = rng.integers(count, size=training.batch)
    prompt_B = rng.integers(len(asked.relation_P), size=training.batch)
    return subject_B, asked.examples(prompt_B, answers_RxN[asked.relation_P[prompt_B], subject_B])

  rows_of = lambda rows_NxD, subject_B: rows_NxD[subject_B]
  return np.asarray(_descend(asked, start, rows_of, training, batch, on_progress))


def _descend(asked, start, rows_of, training, batch, on_progress):
  """Adam, its rate falling to 0 along a cosine, on the mean loss of a batch."""
  scale = _scale(asked.model)
  adam = optax.adam(optax.cosine_decay_schedule(training.rate * scale, training.steps))
  step = _compiled_step(asked.model.config, rows_of, adam, training.noise * scale)
  state, params = (start, adam.init(start)), asked.model.params
  for number in range(training.steps):
    about, examples = batch()
    key = jax.random.fold_in(jax.random.key(training.seed), number)
    state, loss = step(params, asked.prefixes, state, key, jnp.asarray(about), examples)
    on_progress(number + 1, training.steps, float(loss))
  return jax.device_get(state[0])


def _compiled_step(config, rows_of, adam, noise: float):
  @functools.partial(jax.jit, donate_argnums=2)
  def step(params, prefixes, state, key, about, examples: Examples):
    free, opt_state = state

    def loss(free):
      rows_BxD = rows_of(free, about)
      rows_BxD = rows_BxD + noise * jax.random.normal(key, rows_BxD.shape)
      logits = prompts.final_logits(config, params, prefixes, rows_BxD, examples)
      return jnp.mean(prompts.losses(logits, examples.targets_BxK))

    value, grads = jax.value_and_grad(loss)(free)
    updates, opt_state = optimization.adam_update(adam, grads, opt_state)
    return (optax.apply_updates(free, updates), opt_state), value

  return step
