"""Tokenized prompts that ask a pretrained model for facts, with a place for the subject's embedding row.

A prompt is a text with {} in place of the subject, which becomes one token. The text before it, the
prefix, is the same for all subjects, so its keys and values are computed once. An answer follows
the prompt, and all its tokens count.

Shapes: R relations, A answers per relation, K tokens per answer, P prompts, F prefixes, O tokens
per prefix; B examples per batch, L tokens of an example from the subject on; D width.
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

SUBJECT = '⁂'  # placeholder for the subject during tokenization
MULTIPLE = 4  # prefixes are padded to a multiple of this many tokens
NONE = -1  # pads the tokens of an answer; also an answer that is not given


@dataclasses.dataclass(frozen=True)
class Relation:
  """`prompts`: texts with {} for the subject, each to be followed by a space and one of the answers.

  >>> Relation('language', ('French', 'Thai'), ('The language of {} is',)).prompts[0].format('Zorbla')
  'The language of Zorbla is'
  """

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
  """Prompts, each followed by an answer. `tokens_BxL`: the tokens from the subject on. `last_B`:
  the index of each prompt's last token. `targets_BxK`: the answer's tokens, which are to follow it.
  `prefix_B`: the index of its prefix."""

  tokens_BxL: chex.Array
  last_B: chex.Array
  prefix_B: chex.Array
  targets_BxK: chex.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
  """All prompts of all relations; `relation_P`: the relation of each prompt. Answers are padded with −1.

  `prefixes`: the keys and values of the F distinct prefixes, stacked on the first axis of each leaf.
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
    """The number of answers of every relation."""
    return np.array([len(relation.answers) for relation in self.relations])

  def examples(self, prompt_B: np.ndarray, answer_B: np.ndarray) -> Examples:
    """These prompts, each with the given answer of its relation."""
    relation_B, answer_B = self.relation_P[prompt_B], np.asarray(answer_B)
    if not ((answer_B >= 0) & (answer_B < self.counts_R[relation_B])).all():
      raise InputError('a prompt asks for a relation to which the subject has no valid answer')
    targets_BxK = self.answers_RxAxK[relation_B, answer_B]
    said = self.answers_RxAxK.shape[2] - 1  # tokens of an answer in an example: all but the last
    longest = max(map(len, self.tokens_P)) + said
    tokens_BxL = np.zeros((len(prompt_B), longest), np.int32)
    last_B = np.array([len(self.tokens_P[p]) - 1 for p in prompt_B], np.int32)
    for tokens_L, p, last, own_K in zip(tokens_BxL, prompt_B, last_B, targets_BxK, strict=True):
      tokens_L[: last + 1] = self.tokens_P[p]
      tokens_L[last + 1 : last + 1 + said] = np.maximum(own_K[:said], 0)
    return Examples(tokens_BxL, last_B, self.prefix_P[prompt_B].astype(np.int32), targets_BxK)


def tokenize(model: Pretrained, relations: Sequence[Relation]) -> Prompts:
  """Tokenize the prompts for this model, and compute the keys and values of the prefixes."""
  if len({relation.name for relation in relations}) < len(relations):
    raise InputError('two relations have the same name')
  if SUBJECT in model.names:
    raise InputError(f'{SUBJECT!r} is the placeholder for the subject; no name may be that')
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
      f'a prompt with its answer has {longest} tokens; the model reads {model.config.length}'
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
        raise InputError(f'{relation.name}: {answer!r} is tokenized differently after {text!r}')
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
  """The logits BxKxV for the answer's tokens, where the embedding of each example's subject is its row.

  The gradient with respect to the rows computes no gradient of the weights, and no matrix product twice.
  """
  positions_K = jnp.arange(examples.targets_BxK.shape[1])

  def one(row_D, tokens_L, last, prefix):
    rows_MxD = jnp.concatenate([params['embed'].get('rows', row_D[None][:0]), row_D[None]])
    own = params | {'embed': params['embed'] | {'rows': rows_MxD}}
    x_LxD = decoder.embed(config, own, tokens_L, prefix.count)
    x_LxD = decoder.residuals(config, params, x_LxD, prefix=prefix, save_products=True)[-1]
    return jax.vmap(lambda x_D: decoder.logits(config, params, x_D))(x_LxD[last + positions_K])

  chosen = jax.tree.map(lambda leaf: leaf[examples.prefix_B], prefixes)
  return jax.vmap(one)(rows_BxD, examples.tokens_BxL, examples.last_B, chosen)


def losses(logits_BxKxV: jax.Array, targets_BxK: jax.Array) -> jax.Array:
  """−log p of every whole answer, B."""
  log_BxKxV = jax.nn.log_softmax(logits_BxKxV)
  own_BxK = jnp.take_along_axis(log_BxKxV, jnp.maximum(targets_BxK, 0)[..., None], axis=2)[..., 0]
  return -jnp.sum(jnp.where(targets_BxK >= 0, own_BxK, 0.0), axis=1)


class Recall(NamedTuple):
  """For every subject in every prompt, NxP: whether each token of the answer is the likeliest of
  the whole vocabulary; which of its relation's answers is the likeliest; log p of the right answer
  among these."""

  right_NxP: np.ndarray
  chosen_NxP: np.ndarray
  log_p_NxP: np.ndarray


def recall(
  asked: Prompts, rows_NxD: ArrayLike, answers_RxN: ArrayLike, prompt_P: ArrayLike | None = None,
  on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Recall:  # fmt: skip
  """Ask for every subject in each of these prompts (default: all)."""
  rows_NxD, answers_RxN = np.asarray(rows_NxD, np.float32), np.asarray(answers_RxN)
  if (
    np.shape(answers_RxN) != (len(asked.relations), len(rows_NxD))
    or not np.isfinite(rows_NxD).all()
  ):
    raise InputError('every row needs an answer to each relation, and must hold finite numbers')
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
  """One batch of `recall`."""
  relation_B = asked.relation_P[prompt_B]
  first_BxA = asked.answers_RxAxK[relation_B, :, 0]

  def scored(answer_B):
    examples = asked.examples(prompt_B, answer_B)
    about = asked.model.config, asked.model.params, asked.prefixes, rows_BxD, examples, first_BxA
    return jax.device_get(_scored(*about))

  right_B, _, score_BxA = scored(own_B)
  if asked.answers_RxAxK.shape[2] > 1:  # score whole answers, one after another
    last_B = asked.counts_R[relation_B] - 1
    every = (scored(np.minimum(a, last_B))[1] for a in range(first_BxA.shape[1]))
    score_BxA = -np.stack(list(every), axis=1)
  real_BxA = np.arange(first_BxA.shape[1]) < asked.counts_R[relation_B][:, None]
  score_BxA = np.where(real_BxA, score_BxA.astype(float), -np.inf)
  log_p_B = score_BxA[np.arange(len(own_B)), own_B] - np.logaddexp.reduce(score_BxA, axis=1)
  return right_B, np.argmax(score_BxA, axis=1), log_p_B


@functools.partial(jax.jit, static_argnums=0)
def _scored(config, params, prefixes, rows_BxD, examples: Examples, first_BxA):
  """Whether every token of the answer is the likeliest; its −log p; the logits of `first_BxA` at its start."""
  logits_BxKxV = final_logits(config, params, prefixes, rows_BxD, examples)
  likeliest_BxK = jnp.argmax(logits_BxKxV, axis=2)
  right_B = jnp.all((likeliest_BxK == examples.targets_BxK) | (examples.targets_BxK < 0), axis=1)
  first = jnp.take_along_axis(logits_BxKxV[:, 0], jnp.maximum(first_BxA, 0), axis=1)
  return right_B, losses(logits_BxKxV, examples.targets_BxK), first
