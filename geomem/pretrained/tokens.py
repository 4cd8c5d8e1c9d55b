"""The tokenizer that a model was trained with, from a GGUF file's fields or a tokenizer.json.

Both give a `tokenizers.Tokenizer`; only byte-pair encoding is supported. Special tokens in a text are recognized.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from geomem.errors import InputError

if TYPE_CHECKING:
  from tokenizers import Tokenizer

CONTROL = 3  # the type of special tokens: text is never split into them, but may contain them


def from_gguf(fields: Mapping[str, Any], vocabulary: int) -> 'Tokenizer':
  """The byte-level BPE of SmolLM2 from its tokens and merges."""
  names = ('model', 'pre', 'add_bos_token', 'tokens', 'merges', 'token_type')
  model, split, bos, tokens, merges, types = (fields.get(f'tokenizer.ggml.{n}') for n in names)
  if (model, split) != ('gpt2', 'smollm'):
    raise InputError(f'tokenizer {model!r} with pre-tokenizer {split!r}; only smollm is supported')
  if bos not in (None, False):
    raise InputError('a tokenizer that begins every text with a token of its own is not supported')
  if not _texts(tokens) or not _texts(merges) or len(set(tokens)) < len(tokens):
    raise InputError('tokens and merges of the tokenizer must be lists of texts, each token once')
  if not isinstance(types, list) or len(types) != len(tokens):
    raise InputError('the tokenizer does not give every token a type')
  pairs = [(left, right) for left, _, right in (merge.partition(' ') for merge in merges)]
  if not all(right for _, right in pairs):
    raise InputError('a merge of the tokenizer is not two tokens')

  def build(tokenizers: Any) -> 'Tokenizer':
    ids = {token: i for i, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=pairs))
    pre = tokenizers.pre_tokenizers
    digits, words = pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre.Sequence([digits, words])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    special = lambda token: tokenizers.AddedToken(token, special=True, normalized=False)
    tokenizer.add_special_tokens(list(map(special, control)))
    return tokenizer

  return _guarded('the tokenizer', vocabulary, build)


def from_folder(folder: Path, vocabulary: int) -> 'Tokenizer':
  """The byte-pair encoding in tokenizer.json, without any truncation or padding."""
  path = folder / 'tokenizer.json'
  if not path.exists():
    raise InputError(f'{folder}: no tokenizer.json; no other kind of tokenizer is supported')
  tokenizer = _guarded(path, vocabulary, lambda t: t.Tokenizer.from_file(str(path)))
  if (kind := type(tokenizer.model).__name__) != 'BPE':
    raise InputError(f'{path}: a tokenizer of type {kind}; only BPE is supported')
  tokenizer.no_truncation()
  tokenizer.no_padding()
  whole, bare = (tokenizer.encode('a', add_special_tokens=added).ids for added in (True, False))
  if whole[len(whole) - len(bare) :] != bare:
    raise InputError(f'{path}: a tokenizer that adds a token after every text is not supported')
  return tokenizer


def with_names(tokenizer: 'Tokenizer', vocabulary: int, names: Iterable[str]) -> 'Tokenizer':
  """The tokenizer with one token per name, which includes the white space before it; ids begin at `vocabulary`."""
  import tokenizers

  names = list(names)
  for name in names:
    if not name or name != ' '.join(name.split()):
      raise InputError(f'{name!r} is no name: use words separated by single spaces')
    if within := [other for other in names if other != name and f' {name} ' in f' {other} ']:
      raise InputError(f'{name!r} is a part of {within[0]!r}: they cannot be told apart everywhere')
  whole = tokenizers.Tokenizer.from_str(tokenizer.to_str())
  ids = whole.get_vocab()
  if taken := [name for name in names if name in ids]:
    raise InputError(f'{taken[0]!r} is a token that the model knows already')
  new = functools.partial(tokenizers.AddedToken, normalized=False)
  filler = [
    new(f'<|no token {i}|>', special=True) for i in range(1 + max(ids.values()), vocabulary)
  ]
  whole.add_tokens(filler)  # so that ids have no gaps
  whole.add_tokens([new(name, single_word=True, lstrip=True) for name in names])
  for i, name in enumerate(names):
    if whole.token_to_id(name) != vocabulary + i:
      raise InputError(f'{name!r} cannot be added after the {vocabulary} tokens of this tokenizer')
    for after in (' is', ',', "'s"):
      plain = whole.encode(f'a{after}', add_special_tokens=False).ids[1:]
      if whole.encode(name + after, add_special_tokens=False).ids != [vocabulary + i, *plain]:
        raise InputError(
          f'this tokenizer splits {after!r} differently after a new name: not supported'
        )
  return whole


def _texts(values: Any) -> TypeGuard[list[str]]:
  return isinstance(values, list) and all(isinstance(v, str) for v in values)


def _guarded(what: object, vocabulary: int, build: Callable) -> 'Tokenizer':
  """Build with the package `tokenizers`, which reports damage as a bare Exception or as a Rust panic."""
  try:
    import tokenizers
  except ImportError as error:
    raise InputError('the package tokenizers is missing; pip install "geomem[lm]"') from error
  try:
    tokenizer = build(tokenizers)
  except (KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
    raise InputError(f'{what}: not a valid tokenizer: {reason}') from error
  if (size := 1 + max(tokenizer.get_vocab().values(), default=-1)) > vocabulary:
    raise InputError(f'{what}: {size} tokens, but the model has {vocabulary}')
  return tokenizer
