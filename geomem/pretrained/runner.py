"""Asks a pretrained model for facts: prompts in which the subject comes before its relation, and answers.

The subject is never the first token, which many models use as an attention sink. The text before the
relation is the same for all relations, so in a causal model the subject's representation is too. An
answer is identified by its first token; attributes of a relation that share it count as one answer.

Shapes: S subjects, R relations, L length, D width, T layers, A attributes of a relation, B prompts,
O tokens before the subject's last.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from geomem.errors import InputError
from geomem.pretrained import decoder
from geomem.pretrained.answering import answer_tokens
from geomem.pretrained.config import DecoderConfig
from geomem.pretrained.decoder import Patch, Prefix
from geomem.pretrained.load import Pretrained

BATCH = 24  # prompts per call of a compiled program
MULTIPLE = 4  # prefixes are padded to a multiple of this, so that fewer programs are compiled

Rows = Mapping[str, Mapping[str, Sequence[str]]]  # relation → subject → its attributes


@dataclasses.dataclass(frozen=True)
class Template:
  """A prompt is `before`, the subject's name, and the relation's text in `after`."""

  before: str
  after: Mapping[str, str]


@dataclasses.dataclass(frozen=True, eq=False)
class RelationTable:
  """`correct_SxA`: which attributes each subject has; `token_A`: the first token of each after the prompt."""

  name: str
  attributes: tuple[str, ...]
  correct_SxA: np.ndarray
  token_A: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenized:
  """The tokenized prompts of every subject and relation, each cut before the last token of its subject.

  `prefix_SxO`: the tokens before the cut, `prefix_length_S` of them. `tokens_SxRxL`: the tokens
  after it. `last_SxR`: the index of the prompt's last token among the latter. All are padded at the
  end.
  """

  prefix_SxO: np.ndarray
  prefix_length_S: np.ndarray
  tokens_SxRxL: np.ndarray
  last_SxR: np.ndarray


def relations(
  model: Pretrained, rows: Rows, subjects: Sequence[str], template: Template
) -> list[RelationTable]:
  """The relations of a table, with the first token of each answer under this model's tokenizer."""
  found = []
  for name, column in rows.items():
    attributes = tuple(dict.fromkeys(value for s in subjects for value in column.get(s, ())))
    correct_SxA = np.array([[a in column.get(s, ()) for a in attributes] for s in subjects], bool)
    prompt = template.before + subjects[0] + template.after[name]
    token_A = np.array([answer_tokens(model, prompt, [value])[0][0] for value in attributes])
    found.append(RelationTable(name, attributes, correct_SxA, token_A))
  return found


def tokenize(
  model: Pretrained, names: Iterable[str], subjects: Sequence[str], template: Template
) -> Tokenized:
  """Tokenize the prompts of every subject with every relation in `names`."""
  prefixes, tails = [], []
  for subject in subjects:
    texts = [template.before + subject + template.after[name] for name in names]
    encodings = [model.tokenizer.encode(text) for text in texts]
    longest = max(len(encoding.ids) for encoding in encodings)
    if longest + MULTIPLE > model.config.length:
      raise InputError(f'a prompt of {longest} tokens; the model reads {model.config.length}')
    end, offsets = len(template.before) + len(subject), encodings[0].offsets
    last = next((i for i, (start, stop) in enumerate(offsets) if i and start < end <= stop), None)
    if last is None:
      raise InputError(f'{subject!r} must end in a token after the first one of its prompt')
    for text, encoding in zip(texts, encodings, strict=True):
      if encoding.ids[: last + 1] != encodings[0].ids[: last + 1]:
        raise InputError(f'{subject!r} is tokenized differently in {text!r} and {texts[0]!r}')
    prefixes.append(encodings[0].ids[:last])
    tails.append([encoding.ids[last:] for encoding in encodings])
  last_SxR = np.array([[len(ids) - 1 for ids in row] for row in tails])
  length_S = np.array([len(ids) for ids in prefixes])
  room, most = -(-length_S.max() // MULTIPLE) * MULTIPLE, last_SxR.max() + 1
  padded = lambda ids, length: np.pad(np.array(ids, np.int32), (0, length - len(ids)))
  prefix_SxO = np.stack([padded(ids, room) for ids in prefixes])
  tokens_SxRxL = np.stack([[padded(ids, most) for ids in row] for row in tails])
  return Tokenized(prefix_SxO, length_S, tokens_SxRxL, last_SxR)


class Runner:
  """Runs prompts through one model, batch by batch. All arrays in and out are NumPy arrays.

  `on_progress`: called with the number of prompts done and their total number.
  """

  def __init__(
    self, model: Pretrained, on_progress: Callable[[int, int], None] = lambda done, total: None
  ):
    self.model, self.on_progress = model, on_progress

  def keys_values(self, tokens_BxO: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The keys and the values of these tokens at all blocks, each BxTxOxGxK."""
    return self.map(decoder.keys_values, (), tokens_BxO)

  def residuals(
    self, tokens_BxL: np.ndarray, prefix: Prefix, last_B: np.ndarray, layers: tuple[int, ...]
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The residuals of the first token at all layers, BxTxD, of the last at the final one, BxD, of all at `layers`."""
    return self.map(_residuals, (layers,), tokens_BxL, prefix, last_B)

  def patched(
    self, x_BxLxD: np.ndarray, first: int, patch: Patch, prefix: Prefix, last_B: np.ndarray
  ) -> np.ndarray:
    """The final residuals BxD of patched prompts, where x is the residual stream at layer `first`.

    Prompts of similar length share a batch, and each batch is cut to its longest prompt.
    """
    order_B, final_BxD = np.argsort(last_B, kind='stable'), np.empty_like(x_BxLxD[:, 0])
    for start in range(0, len(order_B), BATCH):
      rows = order_B[start : start + BATCH]
      x, *others = jax.tree.map(lambda a, rows=rows: a[rows], (x_BxLxD, patch, prefix, last_B))
      x = x[:, : last_B[rows].max() + 1]
      final_BxD[rows] = self._batch(_final, (first,), x, *others)
      self.on_progress(start + len(rows), len(order_B))
    return final_BxD

  def logits(self, x_BxD: np.ndarray, token_A: np.ndarray) -> np.ndarray:
    """The logits BxA that final residuals give to these tokens."""
    return self.map(decoder.logits, (), x_BxD, np.tile(token_A, (len(x_BxD), 1)))

  def map(self, function: Callable, static: tuple, *rows: Any) -> Any:
    """Apply `function(config, params, *row, *static)` to every row, batch by batch."""
    count, found = len(jax.tree.leaves(rows)[0]), []
    for start in range(0, count, BATCH):
      batch = jax.tree.map(lambda a, start=start: a[start : start + BATCH], rows)
      found.append(self._batch(function, static, *batch))
      self.on_progress(min(start + BATCH, count), count)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)

  def _batch(self, function: Callable, static: tuple, *rows: Any) -> Any:
    """Apply the function to at most BATCH rows, padded with the first row."""
    count = len(jax.tree.leaves(rows)[0])
    index = np.where(np.arange(BATCH) < count, np.arange(BATCH), 0)
    padded = jax.tree.map(lambda a: np.asarray(a)[index], rows)
    found = _compiled(function, self.model.config, static, self.model.params, *padded)
    return jax.tree.map(lambda a: a[:count], jax.device_get(found))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(function, config: DecoderConfig, static: tuple, params, *rows):
  return jax.vmap(lambda *row: function(config, params, *row, *static))(*rows)


def _residuals(config, params, tokens_L, prefix, last, layers):
  x_LxD = decoder.embed(config, params, tokens_L, prefix.count)
  x_TxLxD = decoder.residuals(config, params, x_LxD, prefix=prefix)
  return x_TxLxD[:, 0], x_TxLxD[-1, last], x_TxLxD[jnp.array(layers)]


def _final(config, params, x_LxD, patch, prefix, last, first):
  return decoder.residuals(config, params, x_LxD, patch, first, prefix)[-1, last]
