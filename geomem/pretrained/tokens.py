"""Text to token ids, as the model was trained with: from a GGUF file's fields, or a tokenizer.json."""

import json
from pathlib import Path
from typing import TypeGuard

from geomem.errors import InputError
from geomem.pretrained.safetensors_file import read_json

CONTROL = 3  # the type of a token that no text is split into, but that may stand in it


class Tokenizer:
  """A `tokenizers.Tokenizer` that answers in lists; a text's special tokens are recognized."""

  def __init__(self, inner):
    self._inner = inner

  @property
  def size(self) -> int:
    """One more than the largest id."""
    return 1 + max(self._inner.get_vocab(with_added_tokens=True).values(), default=-1)

  def encode(self, text: str) -> list[int]:
    return self._inner.encode(text).ids

  def spans(self, text: str) -> list[tuple[int, int]]:
    """Of every token, the characters it stands for, as (first, one past the last)."""
    return self._inner.encode(text).offsets

  def decode(self, ids) -> str:
    return self._inner.decode(list(map(int, ids)), skip_special_tokens=False)


def from_gguf(fields: dict) -> Tokenizer:
  """The byte-level BPE of SmolLM2, put together from its tokens and merges."""
  tokenizers = _package()
  kind, pre = (fields.get(f'tokenizer.ggml.{name}') for name in ('model', 'pre'))
  if (kind, pre) != ('gpt2', 'smollm'):
    raise InputError(f'tokenizer {kind!r} with pre-tokenizer {pre!r} is not known, only smollm is')
  if fields.get('tokenizer.ggml.add_bos_token') not in (None, False):
    raise InputError('a tokenizer that begins every text with a token of its own is not known')
  names = ('tokens', 'merges', 'token_type')
  tokens, merges, types = (fields.get(f'tokenizer.ggml.{name}') for name in names)
  if not _texts(tokens) or not _texts(merges) or len(set(tokens)) < len(tokens):
    raise InputError('tokens or merges of the tokenizer are not lists of texts, each token once')
  if not isinstance(types, list) or len(types) != len(tokens):
    raise InputError('the tokenizer does not say of every token what type it is')
  pairs = [tuple(merge.split(' ', 1)) for merge in merges]
  if any(len(pair) != 2 for pair in pairs):
    raise InputError('a merge of the tokenizer is not two tokens')

  def build():
    inner = tokenizers.Tokenizer(
      tokenizers.models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs)
    )
    pre = tokenizers.pre_tokenizers
    split = pre.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.pre_tokenizer = pre.Sequence([pre.Digits(individual_digits=True), split])
    inner.decoder = tokenizers.decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    inner.add_special_tokens(
      [tokenizers.AddedToken(token, special=True, normalized=False) for token in control]
    )
    return inner

  return Tokenizer(_guarded('the tokenizer', build))


def from_folder(folder: Path) -> Tokenizer:
  """The byte-pair encoding in tokenizer.json."""
  path = folder / 'tokenizer.json'
  if not path.exists():
    raise InputError(f'{folder}: no tokenizer.json; no other kind of tokenizer is read')
  tokenizers = _package()
  about = read_json(path)
  model = about.get('model')
  kind = (
    model.get('type', 'BPE' if 'merges' in model else None) if isinstance(model, dict) else None
  )
  if kind != 'BPE':
    raise InputError(f'{path}: a tokenizer of type {str(kind)[:40]!r}; only BPE is known')
  # A limit of its own would cut prompts without a word, padding would move their ends.
  text = json.dumps({**about, 'truncation': None, 'padding': None})
  inner = _guarded(path, lambda: tokenizers.Tokenizer.from_str(text))
  whole, bare = (inner.encode('a', add_special_tokens=added).ids for added in (True, False))
  if whole[len(whole) - len(bare) :] != bare:
    raise InputError(f'{path}: a tokenizer that ends every text with a token of its own')
  return Tokenizer(inner)


def _texts(values) -> TypeGuard[list[str]]:
  return isinstance(values, list) and all(isinstance(v, str) for v in values)


def _package():
  try:
    import tokenizers
  except ImportError as error:
    raise InputError('the package tokenizers is missing; pip install "geomem[lm]"') from error
  return tokenizers


def _guarded(what, build):
  """The package reports damage as a bare Exception, or as a panic, which is not even that."""
  try:
    return build()
  except (KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
    raise InputError(f'{what}: not a sound tokenizer: {reason}') from error
