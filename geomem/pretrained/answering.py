"""A pretrained model's continuations of a text: greedy decoding, and log-probabilities of whole answers.

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

MULTIPLE = 8  # texts are padded to a multiple of this many tokens, to compile fewer programs


def tokens_of(model: 'Pretrained', text: str) -> list[int]:
  """The tokens of a text, which must fit into the model's context."""
  ids = model.tokenizer.encode(text).ids
  if not 0 < len(ids) <= model.config.length:
    raise InputError(f'{len(ids)} tokens; the model reads 1 … {model.config.length}: {text[:60]!r}')
  return ids


def answer_tokens(model: 'Pretrained', text: str, answers: Sequence[str]) -> list[list[int]]:
  """The tokens that each answer adds after a text and a space; none may be a prefix of another's."""
  before, found = tokens_of(model, text), []
  for answer in answers:
    whole = model.tokenizer.encode(f'{text} {answer}').ids
    if whole[: len(before)] != before:
      raise InputError(f'{text!r} is tokenized differently when {answer!r} follows it')
    if len(whole) == len(before):
      raise InputError(f'{answer!r} adds no token to {text!r}')
    if len(whole) > model.config.length + 1:  # the last token is not read
      raise InputError(
        f'{len(whole)} tokens with {answer!r}; the model reads {model.config.length}'
      )
    if max(whole[len(before) :]) >= model.config.vocabulary:
      raise InputError(f'{answer!r} contains a name that the model cannot write')
    found.append(whole[len(before) :])
  for i, own in enumerate(found):
    for j, other in enumerate(found):
      if i != j and other[: len(own)] == own:
        raise InputError(
          f'{answers[j]!r} begins with the tokens of {answers[i]!r}, or has the same ones'
        )
  return found


def continuation(model: 'Pretrained', text: str, count: int = 8) -> str:
  """Greedy decoding of at most `count` tokens, to the end of a sentence or line or to a special token; as text."""
  ids = tokens_of(model, text)
  start, special = len(ids), model.tokenizer.get_added_tokens_decoder()
  while len(ids) < min(start + count, model.config.length):
    ids.append(int(jnp.argmax(_after(model, ids, 1)[0])))
    if ids[-1] in special:
      break
    said = model.tokenizer.decode(ids[start:])
    if '\n' in said.lstrip() or said.endswith('.') or '. ' in said:
      break
  said = model.tokenizer.decode(ids[start:]).strip().split('\n')[0].split('. ')[0]
  return said.removesuffix('.')


def log_probabilities(model: 'Pretrained', text: str, answers: Sequence[str]) -> np.ndarray:
  """The log-probability of every whole answer after the text: A."""
  if not answers:
    raise InputError('there are no answers to choose from')
  before, found = tokens_of(model, text), []
  for own in answer_tokens(model, text, answers):
    log_KxV = _after(model, before + own[:-1], len(own))
    found.append(float(jnp.sum(log_KxV[jnp.arange(len(own)), jnp.array(own)])))
  return np.array(found)


def _after(model: 'Pretrained', ids: Sequence[int], last: int) -> jax.Array:
  """log p of every next token after each of the `last` final tokens of a text, KxV."""
  padded = np.zeros(min(-(-len(ids) // MULTIPLE) * MULTIPLE, model.config.length), np.int32)
  padded[: len(ids)] = ids
  return _log_probabilities(model.config, last, model.params, padded, len(ids))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_probabilities(config, last, params, tokens_L, length):
  x_LxD = decoder.residuals(config, params, decoder.embed(config, params, tokens_L))[-1]
  x_KxD = jax.lax.dynamic_slice_in_dim(x_LxD, length - last, last)
  return jax.nn.log_softmax(jax.vmap(functools.partial(decoder.logits, config, params))(x_KxD))
