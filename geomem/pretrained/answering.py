"""What a pretrained model says after a text: the tokens likeliest to come, and how likely whole answers are.

Shapes: L length, V vocabulary, A answers.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from geomem.errors import InputError
from geomem.pretrained import decoder

if TYPE_CHECKING:
  from geomem.pretrained.load import Pretrained

MULTIPLE = 8  # texts are padded to a multiple of so many tokens: fewer programs are compiled
END = ('.', '\n')


def tokens_of(model: 'Pretrained', text: str) -> list[int]:
  """The tokens of a text that leaves room for an answer."""
  ids = model.tokenizer.encode(text).ids
  if not 0 < len(ids) < model.config.length:
    raise InputError(
      f'{len(ids)} tokens; the model reads 1 … {model.config.length - 1}: {text[:60]!r}'
    )
  return ids


def answer_tokens(model: 'Pretrained', text: str, answer: str) -> list[int]:
  """The tokens that an answer adds to a text, after a space."""
  before, whole = tokens_of(model, text), tokens_of(model, f'{text} {answer}')
  if whole[: len(before)] != before:
    raise InputError(f'{text!r} becomes other tokens when {answer!r} follows it')
  if len(whole) == len(before):
    raise InputError(f'{answer!r} adds no token to {text!r}')
  return whole[len(before) :]


def continuation(model: 'Pretrained', text: str, count: int = 8) -> str:
  """The likeliest token, `count` times or to the end of a sentence or line, as text."""
  ids = tokens_of(model, text)
  start = len(ids)
  while len(ids) < min(start + count, model.config.length):
    ids.append(int(np.argmax(_logits(model, ids)[-1])))
    said = model.tokenizer.decode(ids[start:])
    if ids[-1] >= model.config.vocabulary or any(end in said for end in END):
      break
  said = model.tokenizer.decode(ids[start:])
  return min((said.split(end)[0] for end in END), key=len).strip()


def log_probabilities(model: 'Pretrained', text: str, answers: Sequence[str]) -> np.ndarray:
  """Of every answer, all its tokens together: A."""
  before = tokens_of(model, text)
  if len({tuple(answer_tokens(model, text, a)) for a in answers}) < len(answers):
    raise InputError(f'two of these answers are the same tokens: {", ".join(answers)[:80]}')

  def one(answer: str) -> float:
    own = answer_tokens(model, text, answer)
    log_LxV = jax.nn.log_softmax(_logits(model, before + own[:-1])[len(before) - 1 :])
    return float(jnp.sum(log_LxV[jnp.arange(len(own)), jnp.array(own)]))

  return np.array([one(answer) for answer in answers])


def _logits(model: 'Pretrained', ids: Sequence[int]) -> jax.Array:
  """The logits after every token, LxV."""
  padded = np.zeros(min(-(-len(ids) // MULTIPLE) * MULTIPLE, model.config.length), np.int32)
  padded[: len(ids)] = ids
  return _after_each(model.config, model.params, padded)[: len(ids)]


@functools.partial(jax.jit, static_argnums=0)
def _after_each(config, params, tokens_L):
  x_LxD = decoder.residuals(config, params, decoder.embed(config, params, tokens_L))[-1]
  return jax.vmap(functools.partial(decoder.logits, config, params))(x_LxD)
