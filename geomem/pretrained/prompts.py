"""Facts of subjects asked of a pretrained model, as tokens, with a place for a subject's row.

A prompt is a text with {} for the subject, which is one token there; whatever stands before it is the same for all
subjects, and its keys and values are computed once. It goes on with an answer, of which every token counts.

Shapes: R relations, A answers of one, K tokens of an answer, P prompts, F prefixes, O tokens of one; B examples of a
batch, L tokens of an example from the subject on; D width.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from geomem.errors import InputError
from geomem.pretrained import answering, decoder
from geomem.pretrained.config import DecoderConfig
from geomem.pretrained.load import Pretrained
from geomem.pretrained.runner import BATCH, Runner

SUBJECT = '⁂'  # stands for the subject while prompts become tokens
MULTIPLE = 4  # prefixes are padded to a multiple of so many tokens
NONE = -1  # pads the tokens of an answer


@dataclasses.dataclass(frozen=True)
class Relation:
  """`prompts`: texts with {} for the subject, each of which is to be followed by a space and one of the answers."""

  name: str
  answers: tuple[str, ...]
  prompts: tuple[str, ...]

  def __post_init__(self) -> None:
    if len(self.answers) < 2 or len(set(self.answers)) < len(self.answers):
      raise InputError(f'{self.name}: needs two answers or more, all different')
    if not self.prompts:
      raise InputError(f'{self.name}: needs a wording')
    for text in (*self.prompts, *self.answers):
      if text != text.strip() or not text:
        raise InputError(f'{self.name}: {text!r} is empty, or begins or ends with a space')
    for prompt in self.prompts:
      if prompt.count('{}') != 1:
        raise InputError(f'{self.name}: {prompt!r} needs {{}} once, in the place of the subject')


@flax.struct.dataclass
class Examples:
  """Prompts that go on with an answer: from the subject on, `tokens_BxL`; at `last_B` each prompt ends, and the tokens
  that are to come there are `targets_BxK`. `prefix_B`: of what stands before the subject, which."""

  tokens_BxL: chex.Array
  last_B: chex.Array
  prefix_B: chex.Array
  targets_BxK: chex.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
  """All prompts of all relations; `relation_P`: of which each is. Answers are padded with −1.

  `prefixes`: the keys and values before the subject of all that differ, a leaf with F rows.
  """

  model: Pretrained
  relations: tuple[Relation, ...]
  relation_P: np.ndarray
  tokens_P: tuple[tuple[int, ...], ...]
  prefix_P: np.ndarray
  prefixes: decoder.Prefix
  answers_RxAxK: np.ndarray

  @property
  def counts_R(self) -> np.ndarray:
    """How many answers every relation has."""
    return np.array([len(relation.answers) for relation in self.relations])

  def examples(self, prompt_B: np.ndarray, answer_B: np.ndarray) -> Examples:
    """These prompts, with these answers of their relations."""
    relation_B, answer_B = self.relation_P[prompt_B], np.asarray(answer_B)
    if not ((answer_B >= 0) & (answer_B < self.counts_R[relation_B])).all():
      raise InputError('a relation is asked of a subject to which no answer of it is given')
    targets_BxK = self.answers_RxAxK[relation_B, answer_B]
    said = self.answers_RxAxK.shape[2] - 1  # tokens of an answer that stand in an example
    longest = max(map(len, self.tokens_P)) + said
    tokens_BxL = np.zeros((len(prompt_B), longest), np.int32)
    last_B = np.array([len(self.tokens_P[p]) - 1 for p in prompt_B], np.int32)
    for tokens_L, p, last, own_K in zip(tokens_BxL, prompt_B, last_B, targets_BxK, strict=True):
      tokens_L[: last + 1] = self.tokens_P[p]
      tokens_L[last + 1 : last + 1 + said] = np.maximum(own_K[:said], 0)
    return Examples(tokens_BxL, last_B, self.prefix_P[prompt_B].astype(np.int32), targets_BxK)


def tokenize(model: Pretrained, relations: Sequence[Relation]) -> Prompts:
  """The prompts as tokens of this model, and the keys and values of what stands before the subject."""
  if len({relation.name for relation in relations}) < len(relations):
    raise InputError('two relations have the same name')
  if SUBJECT in model.names:
    raise InputError(f'{SUBJECT!r} stands for the subject: no name of a model can be that')
  with_name = model.with_rows({SUBJECT: np.zeros(model.config.dim, np.float32)})
  subject = model.config.vocabulary + len(model.names)
  found, before, of_relation = [], [], []
  for r, relation in enumerate(relations):
    for prompt in relation.prompts:
      if re.search(r'\s\s\{\}|[^\S ]\{\}', prompt):
        raise InputError(
          f'{relation.name}: in {prompt!r} white space other than one space stands before {{}}'
        )
      ids = answering.tokens_of(with_name, prompt.replace('{}', SUBJECT))
      if ids.count(subject) != 1:
        raise InputError(f'{relation.name}: in {prompt!r} the subject is no word of its own')
      at = ids.index(subject)
      if not at:
        raise InputError(
          f'{relation.name}: {prompt!r} begins with the subject; put a word before it'
        )
      before.append(tuple(ids[:at]))
      found.append(tuple(ids[at:]))
      of_relation.append(r)
  answers = [_answers(with_name, relation) for relation in relations]
  most = max(len(own) for some in answers for own in some)
  answers_RxAxK = np.full((len(relations), max(map(len, answers)), most), NONE, np.int32)
  for own_AxK, some in zip(answers_RxAxK, answers, strict=True):
    for own_K, own in zip(own_AxK, some, strict=False):
      own_K[: len(own)] = own
  every = list(dict.fromkeys(before))
  longest = max(map(len, found)) + max(map(len, every)) + most
  if longest > model.config.length:
    raise InputError(
      f'a prompt with its answer of {longest} tokens; the model reads {model.config.length}'
    )
  return Prompts(
    model, tuple(relations), np.array(of_relation), tuple(found), np.array([every.index(own) for own in before]),
    _prefixes(model, every), answers_RxAxK,
  )  # fmt: skip


def _answers(model: Pretrained, relation: Relation) -> list[list[int]]:
  """The tokens of a relation's answers, which must be the same after each of its prompts."""
  texts = [prompt.replace('{}', SUBJECT) for prompt in relation.prompts]
  found = answering.answer_tokens(model, texts[0], relation.answers)
  for text in texts[1:]:
    others = answering.answer_tokens(model, text, relation.answers)
    for answer, own, other in zip(relation.answers, found, others, strict=True):
      if own != other:
        raise InputError(f'{relation.name}: {answer!r} is other tokens after {text!r}')
  return found


def _prefixes(model: Pretrained, texts: Sequence[Sequence[int]]) -> decoder.Prefix:
  count_F = np.array([len(ids) for ids in texts], np.int32)
  room = -(-count_F.max() // MULTIPLE) * MULTIPLE
  tokens_FxO = np.stack([np.pad(np.array(ids, np.int32), (0, room - len(ids))) for ids in texts])
  k_FxTxOxGxK, v_FxTxOxGxK = Runner(model).keys_values(tokens_FxO)
  return decoder.Prefix(jnp.asarray(k_FxTxOxGxK), jnp.asarray(v_FxTxOxGxK), jnp.asarray(count_F))


def final_logits(
  config: DecoderConfig,
  params: dict,
  prefixes: decoder.Prefix,
  rows_BxD: chex.Array,
  examples: Examples,
) -> jax.Array:
  """The logits BxKxV of the tokens that are to come, where the subject of each example has this row.

  Gradients of the rows cost none of the weights, and nothing that is a matrix product is computed twice.
  """
  places_K = jnp.arange(examples.targets_BxK.shape[1])

  def one(row_D, tokens_L, last, prefix):
    rows_MxD = jnp.concatenate([params['embed'].get('rows', row_D[None][:0]), row_D[None]])
    own = params | {'embed': params['embed'] | {'rows': rows_MxD}}
    x_LxD = decoder.embed(config, own, tokens_L, prefix.count)
    x_LxD = decoder.residuals(config, params, x_LxD, prefix=prefix, remember=True)[-1]
    return jax.vmap(lambda x_D: decoder.logits(config, params, x_D))(x_LxD[last + places_K])

  chosen = jax.tree.map(lambda leaf: leaf[examples.prefix_B], prefixes)
  return jax.vmap(one)(rows_BxD, examples.tokens_BxL, examples.last_B, chosen)


def losses(logits_BxKxV: jax.Array, targets_BxK: jax.Array) -> jax.Array:
  """−log p of every whole answer, B."""
  log_BxKxV = jax.nn.log_softmax(logits_BxKxV)
  own_BxK = jnp.take_along_axis(log_BxKxV, jnp.maximum(targets_BxK, 0)[..., None], axis=2)[..., 0]
  return -jnp.sum(jnp.where(targets_BxK >= 0, own_BxK, 0.0), axis=1)


class Recall(NamedTuple):
  """Of every subject in every prompt, NxP: whether the answer is the likeliest of the whole vocabulary, token after
  token; which of its relation's answers is the likeliest; log p of the answer among these."""

  right_NxP: np.ndarray
  chosen_NxP: np.ndarray
  log_p_NxP: np.ndarray


def recall(
  asked: Prompts, rows_NxD: ArrayLike, answers_RxN: ArrayLike, prompt_P: ArrayLike | None = None,
  on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Recall:  # fmt: skip
  """Every subject asked in these prompts (default: all)."""
  rows_NxD, answers_RxN = np.asarray(rows_NxD, np.float32), np.asarray(answers_RxN)
  if (
    np.shape(answers_RxN) != (len(asked.relations), len(rows_NxD))
    or not np.isfinite(rows_NxD).all()
  ):
    raise InputError('needs for every row an answer to each relation, and rows of finite numbers')
  prompt_P = np.arange(len(asked.relation_P)) if prompt_P is None else np.asarray(prompt_P)
  pairs = np.array([(n, p) for p in prompt_P for n in range(len(rows_NxD))])
  if not len(pairs):
    raise InputError('there is no subject, or no prompt, to ask')
  found = []
  for start in range(0, len(pairs), BATCH):
    count = len(pairs[start : start + BATCH])
    subject_B, prompt_B = pairs[np.minimum(start + np.arange(BATCH), len(pairs) - 1)].T
    own_B = answers_RxN[asked.relation_P[prompt_B], subject_B]
    batch = _recalled(asked, jnp.asarray(rows_NxD[subject_B]), prompt_B, own_B)
    found.append([own[:count] for own in batch])
    on_progress(start + count, len(pairs))
  columns = lambda some: np.concatenate(some).reshape(len(prompt_P), len(rows_NxD)).T
  return Recall(*map(columns, zip(*found, strict=True)))


def _recalled(
  asked: Prompts, rows_BxD, prompt_B, own_B
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """A batch of `recall`."""
  relation_B = asked.relation_P[prompt_B]
  first_BxA = asked.answers_RxAxK[relation_B, :, 0]

  def scored(answer_B):
    examples = asked.examples(prompt_B, answer_B)
    about = asked.model.config, asked.model.params, asked.prefixes, rows_BxD, examples, first_BxA
    return jax.device_get(_scored(*about))

  right_B, _, score_BxA = scored(own_B)
  if asked.answers_RxAxK.shape[2] > 1:  # whole answers, one after another
    last_B = asked.counts_R[relation_B] - 1
    every = (scored(np.minimum(a, last_B))[1] for a in range(first_BxA.shape[1]))
    score_BxA = -np.stack(list(every), axis=1)
  real_BxA = np.arange(first_BxA.shape[1]) < asked.counts_R[relation_B][:, None]
  score_BxA = np.where(real_BxA, score_BxA.astype(float), -np.inf)
  log_p_B = score_BxA[np.arange(len(own_B)), own_B] - np.logaddexp.reduce(score_BxA, axis=1)
  return right_B, np.argmax(score_BxA, axis=1), log_p_B


@functools.partial(jax.jit, static_argnums=0)
def _scored(config, params, prefixes, rows_BxD, examples: Examples, first_BxA):
  """Whether every token of the answer is the likeliest, its −log p, and the logits of these tokens at its beginning."""
  logits_BxKxV = final_logits(config, params, prefixes, rows_BxD, examples)
  likeliest_BxK = jnp.argmax(logits_BxKxV, axis=2)
  right_B = jnp.all((likeliest_BxK == examples.targets_BxK) | (examples.targets_BxK < 0), axis=1)
  first = jnp.take_along_axis(logits_BxKxV[:, 0], jnp.maximum(first_BxA, 0), axis=1)
  return right_B, losses(logits_BxKxV, examples.targets_BxK), first
