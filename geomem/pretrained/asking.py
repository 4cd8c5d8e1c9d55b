"""Facts asked of a pretrained model: prompts in which the subject comes before its relation, and answers.

The subject is never the first token, which many models use as a sink, and what stands before the
relation is the same for all relations: so is, in a causal model, the subject's representation.
An answer is told by its first token; attributes of a relation that share one are one answer.

Shapes: S subjects, R relations, L length, D width, T places, A attributes of a relation, B prompts.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from geomem.errors import InputError
from geomem.pretrained import decoder, relational
from geomem.pretrained.load import Pretrained

BATCH, STEP = (
  24,
  4,
)  # prompts in a program; what stands before subjects is padded to a multiple of this


@dataclasses.dataclass(frozen=True)
class Frame:
  """`before` ends where the subject's name begins; `after` says for each relation how to go on."""

  before: str
  after: dict[str, str]


@dataclasses.dataclass(frozen=True, eq=False)
class Relation:
  """`right_SxA`: which attributes are right; `token_A`: the first token of each, after the prompt."""

  name: str
  attributes: tuple[str, ...]
  right_SxA: np.ndarray
  token_A: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
  """Each prompt cut before the last token of its subject, which is the first of its own L tokens.

  `older_SxO`: what stands before, `count_S` tokens. `tokens_SxRxL`: from there on. `last_SxR`: the
  prompt's last token among these. All are filled up at the end.
  """

  older_SxO: np.ndarray
  count_S: np.ndarray
  tokens_SxRxL: np.ndarray
  last_SxR: np.ndarray


def relations(model: Pretrained, table, subjects, frame: Frame) -> list[Relation]:
  """The table's relations, as this model spells their answers in this frame."""
  found = []
  for name, rows in table.items():
    attributes = tuple(dict.fromkeys(value for s in subjects for value in rows.get(s, ())))
    column = {value: a for a, value in enumerate(attributes)}
    right_SxA = np.zeros((len(subjects), len(attributes)), bool)
    for s, subject in enumerate(subjects):
      right_SxA[s, [column[value] for value in rows.get(subject, ())]] = True
    prompt = frame.before + subjects[0] + frame.after[name]
    token_A = np.array([_first_token(model, prompt, value) for value in attributes])
    found.append(Relation(name, attributes, right_SxA, token_A))
  return found


def _first_token(model: Pretrained, prompt: str, value: str) -> int:
  """Of the value, after the prompt."""
  before = model.tokenizer.encode(prompt)
  ids = model.tokenizer.encode(f'{prompt} {value}')
  if ids[: len(before)] != before:
    raise InputError(f'{prompt!r} is other tokens where {value!r} comes after it')
  if len(ids) == len(before):
    raise InputError(f'{value!r} adds no token to {prompt!r}')
  return ids[len(before)]


def prompts(model: Pretrained, subjects, names, frame: Frame) -> Prompts:
  """Every subject × relation."""
  texts = [[frame.before + subject + frame.after[name] for name in names] for subject in subjects]
  ids = [[model.tokenizer.encode(text) for text in row] for row in texts]
  longest = max(len(one) for row in ids for one in row)
  if longest + STEP > model.config.length:
    raise InputError(f'a prompt of {longest} tokens; the model reads {model.config.length}')
  count_S = np.array(
    [_last_token(frame, s, [model.tokenizer.spans(text) for text in row])
     for s, row in zip(subjects, texts, strict=True)]
  )  # fmt: skip
  last_SxR = np.array([[len(one) - 1 for one in row] for row in ids]) - count_S[:, None]
  room = lambda most: -(-most // STEP) * STEP
  older_SxO = np.zeros((len(subjects), room(count_S.max())), np.int32)
  tokens_SxRxL = np.zeros((*last_SxR.shape, 1 + last_SxR.max()), np.int32)
  for s, r in np.ndindex(last_SxR.shape):
    older_SxO[s, : count_S[s]] = ids[s][r][: count_S[s]]
    tokens_SxRxL[s, r, : last_SxR[s, r] + 1] = ids[s][r][count_S[s] :]
    if ids[s][r][: count_S[s] + 1] != ids[s][0][: count_S[s] + 1]:
      raise InputError(
        f'{subjects[s]!r} is other tokens in {texts[s][r]!r} than in {texts[s][0]!r}'
      )
  return Prompts(older_SxO, count_S, tokens_SxRxL, last_SxR)


def _last_token(frame: Frame, subject: str, spans) -> int:
  """The token in which the subject's name ends."""
  end = len(frame.before) + len(subject)
  for position, (first, stop) in enumerate(spans[0]):
    if first < end <= stop and position:
      return position
  raise InputError(f'{subject!r} does not end in a token after the first in a prompt')


class Asker:
  """The compiled programs of one model; all take and give NumPy arrays, of one prompt or more."""

  def __init__(self, model: Pretrained, told=lambda done, total: None):
    self.model, self.told = model, told
    self._programs: dict[tuple, Callable] = {}

  def older(self, prompts: Prompts):
    """The stream before the subjects' last tokens, SxTxOxD."""

    def one(params, tokens_O):
      x_OxD = decoder.embed(self.model.config, params, tokens_O)
      return decoder.residuals(self.model.config, params, x_OxD)

    return self._mapped(('older',), one, prompts.older_SxO)

  def stream(self, tokens_BxL, older: decoder.Older, last_B, places):
    """Of the subject all places, BxTxD; of the prompt's end the last, BxD; of all tokens some places."""

    def one(params, tokens_L, older, last):
      x_LxD = decoder.embed(self.model.config, params, tokens_L, older.count)
      x_TxLxD = decoder.residuals(self.model.config, params, x_LxD, older=older)
      return x_TxLxD[:, 0], x_TxLxD[-1, last], x_TxLxD[jnp.array(places)]

    return self._mapped(('stream', *places), one, tokens_BxL, older, last_B)

  def changed(self, x_BxLxD, first: int, patch: decoder.Patch, older: decoder.Older, last_B):
    """Final residuals BxD, given the stream at place `first`, and patched from there on.

    Prompts of like length go together: what comes after a batch's longest only costs.
    """

    def one(params, x_LxD, patch, older, last):
      c = self.model.config
      return decoder.residuals(c, params, x_LxD, patch, first, older)[-1, last]

    order_B, end_BxD = np.argsort(last_B, kind='stable'), np.empty_like(x_BxLxD[:, 0])
    for start in range(0, len(order_B), BATCH):
      rows = order_B[start : start + BATCH]
      length = last_B[rows].max() + 1
      x, *others = jax.tree.map(lambda a, rows=rows: a[rows], (x_BxLxD, patch, older, last_B))
      end_BxD[rows] = self._batch(('changed', first), one, x[:, :length], *others)
      self.told(start + len(rows), len(order_B))
    return end_BxD

  def jacobian(self, x_LxD, places, older: decoder.Older, last):
    """As `relational.jacobians`, of one prompt."""
    if ('jacobian', *places) not in self._programs:
      one = functools.partial(relational.jacobians, self.model.config)
      self._programs['jacobian', *places] = jax.jit(one, static_argnums=2)
    program = self._programs['jacobian', *places]
    return np.asarray(program(self.model.params, x_LxD, tuple(places), older, last))

  def logits(self, x_BxD, token_A):
    """What final residuals say of these tokens, BxA."""

    def one(params, x_D, token_A):
      return decoder.logits(self.model.config, params, x_D, token_A)

    return self._mapped(('logits',), one, x_BxD, np.tile(token_A, (len(x_BxD), 1)))

  def says(self, x_BxD):
    """The likeliest token of the whole vocabulary."""

    def one(params, x_D):
      return jnp.argmax(decoder.logits(self.model.config, params, x_D))

    return self._mapped(('says',), one, x_BxD)

  def _mapped(self, name, function, *rows):
    """The function of every row, batch after batch."""
    count, found = len(jax.tree.leaves(rows)[0]), []
    for start in range(0, count, BATCH):
      batch = jax.tree.map(lambda a, start=start: a[start : start + BATCH], rows)
      found.append(self._batch(name, function, *batch))
      self.told(min(start + BATCH, count), count)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)

  def _batch(self, name, function, *rows):
    """The function of at most BATCH rows, filled up with the first."""
    if name not in self._programs:
      axes = (None, *[0] * len(rows))
      self._programs[name] = jax.jit(jax.vmap(function, axes))
    count = len(jax.tree.leaves(rows)[0])
    index = np.where(np.arange(BATCH) < count, np.arange(BATCH), 0)
    filled = jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[index]), rows)
    found = jax.device_get(self._programs[name](self.model.params, *filled))
    return jax.tree.map(lambda a: a[:count], found)


def patch(place, keep: float, add_BxD) -> decoder.Patch:
  """One change a prompt, of the subject's last token, at places that are one number or one each."""
  count = len(add_BxD)
  return decoder.Patch(
    np.array(np.broadcast_to(place, count))[:, None],
    np.zeros((count, 1), np.int32),
    np.full((count, 1), keep, np.float32),
    np.asarray(add_BxD, np.float32)[:, None],
  )


def answer(relation: Relation, logits_BxA) -> np.ndarray:
  """The token that is likeliest among the relation's attributes."""
  return relation.token_A[np.argmax(logits_BxA, axis=-1)]


def is_right(relation: Relation, subjects_B, token_B) -> np.ndarray:
  """Whether the token begins a right attribute of the subject."""
  return (relation.right_SxA[subjects_B] & (relation.token_A[None] == token_B[:, None])).any(axis=1)
