"""safetensors files: one file, or a folder's several shards.

The package `safetensors` is not used: this reader checks every size against the file's own size before
anything is allocated, so that a damaged or hostile file is refused.
"""

import json
import math
import mmap
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from geomem.errors import InputError
from geomem.pretrained import mmap_files

DTYPES = {
  'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16,
  'I64': np.int64, 'I32': np.int32, 'I16': np.int16, 'I8': np.int8, 'U8': np.uint8, 'BOOL': np.bool_,
}  # fmt: skip
FLOATS = ('F32', 'F16', 'BF16')
MAX_BYTES = 32 * 2**20  # limit of the bytes of a header or a configuration
INDEX = 'model.safetensors.index.json'


def read_json(path: Path) -> dict:
  return mmap_files.opened(path, 'JSON', _object)[1]


def _object(data: bytes | mmap.mmap) -> dict:
  """Parse the JSON object in these bytes, in which no name may occur twice."""
  if len(data) > MAX_BYTES:
    raise InputError(f'{len(data):,} bytes; at most {MAX_BYTES:,} are allowed')

  def without_repeats(pairs: list) -> dict:
    if len(names := dict(pairs)) < len(pairs):
      raise ValueError('a name occurs twice')
    return names

  try:
    found = json.loads(bytes(data).decode(), object_pairs_hook=without_repeats)
  except (ValueError, RecursionError) as error:
    raise InputError(f'it cannot be parsed as JSON ({type(error).__name__})') from error
  if not isinstance(found, dict):
    raise InputError(f'it is JSON, but {type(found).__name__} and not an object')
  return found


class Safetensors:
  """An open file: the dtype, shape, start and end of every tensor by name; `array` reads one's values."""

  def __init__(self, path: Path):
    self.path = path
    self._bytes, (self._base, self.tensors) = mmap_files.opened(path, 'safetensors', _header)

  def array(self, name: str) -> np.ndarray:
    """A tensor in float32."""
    dtype, shape, start, _ = self.tensors[name]
    if dtype not in FLOATS:
      raise InputError(f'{self.path}: {name!r} is {dtype}; weights must be {", ".join(FLOATS)}')
    flat = np.frombuffer(self._bytes, DTYPES[dtype], math.prod(shape), self._base + start)
    return flat.astype(np.float32).reshape(shape)


def _header(data: mmap.mmap) -> tuple[int, dict[str, tuple]]:
  """Where the tensors' bytes begin, and each tensor's description; there may be no gaps between them."""
  size = int.from_bytes(data[:8], 'little')
  if size > min(MAX_BYTES, len(data) - 8):
    raise InputError(f'a header of {size:,} bytes in a file of {len(data):,}')
  header = _object(data[8 : 8 + size])
  header.pop('__metadata__', None)
  found = {name: _described(name, about) for name, about in header.items()}
  end = 0
  for name, (_, _, start, stop) in sorted(found.items(), key=lambda item: item[1][2:]):
    if start != end:
      raise InputError(f'{name!r} starts at {start:,}, where the tensor before ends at {end:,}')
    end = stop
  if end != len(data) - 8 - size:
    raise InputError(f'tensors of {end:,} bytes, but {len(data) - 8 - size:,} follow')
  return 8 + size, found


def _described(name: str, about: Any) -> tuple[str, tuple[int, ...], int, int]:
  """The dtype, shape, start and end of a tensor, which must be consistent."""
  match about:
    case {'dtype': str(dtype), 'shape': [*shape], 'data_offsets': [start, end], **more} if not more:
      pass
    case _:
      raise InputError(f'{name[:80]!r} is not described by dtype, shape and data_offsets')
  if dtype not in DTYPES:
    raise InputError(f'{name[:80]!r} has dtype {dtype[:40]!r}; known: {", ".join(DTYPES)}')
  if len(shape) > 8 or any(type(n) is not int or not 0 <= n < 2**63 for n in (*shape, start, end)):
    raise InputError(f'{name[:80]!r} has a shape or offsets that no tensor has')
  if math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize != end - start:
    raise InputError(f'{name[:80]!r} has shape {shape}, but its bytes are {start:,} to {end:,}')
  return dtype, tuple(shape), start, end


class Folder:
  """All tensors of a model's folder, in one file or in several that an index lists."""

  def __init__(self, folder: Path):
    index, single = folder / INDEX, folder / 'model.safetensors'
    if not index.exists() and not single.exists():
      pickles = [p.name for p in sorted(folder.iterdir()) if p.suffix in ('.bin', '.pt', '.pth')]
      also = f'; {pickles[0]} is a pickle, which can run code and is not read' if pickles else ''
      raise InputError(f'{folder}: no model.safetensors and no {INDEX}{also}')
    if not index.exists():
      file = Safetensors(single)
      self._files = dict.fromkeys(file.tensors, file)
      return
    where = read_json(index).get('weight_map')
    if not isinstance(where, dict) or not where:
      raise InputError(f'{index}: no weight_map that says where tensors are')
    for name in where.values():
      if not isinstance(name, str) or not re.fullmatch(r'[\w.-]+\.safetensors', name):
        raise InputError(f'{index}: {str(name)[:80]!r} is not a file of that folder')
    files = {name: Safetensors(folder / name) for name in sorted(set(where.values()))}
    for tensor, name in where.items():
      if tensor not in files[name].tensors:
        raise InputError(f'{index}: {name} has no {tensor[:80]!r}')
    self._files = {tensor: files[name] for tensor, name in where.items()}

  @property
  def names(self) -> Collection[str]:
    return self._files.keys()

  def shape(self, name: str) -> tuple[int, ...]:
    return self._files[name].tensors[name][1]

  def array(self, name: str) -> np.ndarray:
    return self._files[name].array(name)
