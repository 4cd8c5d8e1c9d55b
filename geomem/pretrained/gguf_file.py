"""GGUF files. The package `gguf` dequantizes the tensors, but this module reads the header.

That package's reader trusts the header. This one checks every size against the file's own size before
anything is allocated, so that a damaged or hostile file is refused.
"""

import functools
import math
import os
import struct
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np

from geomem.errors import InputError
from geomem.pretrained import mmap_files

STRING, ARRAY = 8, 9
NUMBERS = dict(zip((*range(8), 10, 11, 12), 'BbHhIif?Qqd', strict=True))  # their codes in `struct`
MAX_COUNT = 2**16  # limit of fields, of tensors, and of the bytes of a name
VERSIONS = (2, 3)


class Tensor(NamedTuple):
  """`shape`: in NumPy's order; `kind`: the quantization's number; `start`, `size`: where its bytes are."""

  shape: tuple[int, ...]
  kind: int
  start: int
  size: int = 0


class _Reader:
  """Reads a header from its first byte on, never past the end of the file."""

  def __init__(self, data: Any):
    self.data, self.at = data, 0

  def read_bytes(self, count: int) -> bytes:
    if count > len(self.data) - self.at:
      raise InputError(f'it ends at byte {len(self.data):,}, inside its header')
    self.at += count
    return self.data[self.at - count : self.at]

  def unpack(self, code: str, count: int = 1) -> list:
    """`count` values of one type, or one value of each of several types."""
    data = self.read_bytes(count * struct.calcsize(f'<{code}'))
    return list(struct.unpack(f'<{count}{code}', data))

  def text(self, most: float = math.inf) -> str:
    (size,) = self.unpack('Q')
    if size > most:
      raise InputError(f'a name of {size:,} bytes')
    try:
      return str(self.read_bytes(size), 'utf-8')
    except UnicodeDecodeError as error:
      raise InputError(f'text that is not UTF-8 before byte {self.at:,}') from error

  def value(self) -> Any:
    (kind,) = self.unpack('I')
    kind, count = self.unpack('IQ') if (array := kind == ARRAY) else (kind, 1)
    if kind == STRING:
      values = [self.text() for _ in range(count)]
    elif kind in NUMBERS:
      values = self.unpack(NUMBERS[kind], count)
    else:
      raise InputError(f'a value of unknown type {kind}')
    return values if array else values[0]

  def named(self, count: int, what: str, read: Callable) -> dict:
    """`count` values, each preceded by its name."""
    if count > MAX_COUNT:
      raise InputError(f'{count:,} {what}s; at most {MAX_COUNT:,} are allowed')
    found: dict = {}
    for _ in range(count):
      if (name := self.text(MAX_COUNT)) in found:
        raise InputError(f'two {what}s have the name {name!r}')
      found[name] = read()
    return found

  def tensor(self) -> Tensor:
    """A tensor's description: its size is not yet known, and its start is relative to the first tensor's."""
    (dims,) = self.unpack('I')
    if not 1 <= dims <= 4:
      raise InputError(f'a tensor of {dims:,} axes; 1 … 4 are allowed')
    shape, (kind, start) = tuple(self.unpack('Q', dims)[::-1]), self.unpack('IQ')
    return Tensor(shape, kind, start)


class GGUF:
  """An open file: `fields` and `tensors` by name; `array` reads the values of one tensor."""

  def __init__(self, path: str | os.PathLike):
    self._bytes, found = mmap_files.opened(path, 'GGUF', lambda data: _header(_Reader(data)))
    self.fields: dict[str, Any] = found[0]
    self.tensors: dict[str, Tensor] = found[1]

  @property
  def names(self) -> Collection[str]:
    return self.tensors.keys()

  def shape(self, name: str) -> tuple[int, ...]:
    return self.tensors[name].shape

  def array(self, name: str) -> np.ndarray:
    """A tensor in float32."""
    t = self.tensors[name]
    raw = np.frombuffer(self._bytes, np.uint8, t.size, t.start)
    return _quantization(t.kind)[2](raw.reshape(*t.shape[:-1], -1)).reshape(t.shape)


@functools.cache
def _quantization(kind: int) -> tuple[int, int, Callable]:
  """The values per block, the bytes per block, and the function that dequantizes rows of blocks."""
  import gguf  # imports slowly, and is missing without the extra `lm`

  try:
    known = gguf.GGMLQuantizationType(kind)
    values, size = gguf.GGML_QUANT_SIZES[known]
    dequantize = functools.partial(gguf.quants.dequantize, qtype=known)
    dequantize(np.zeros((1, size), np.uint8))
  except (ValueError, KeyError, NotImplementedError) as error:
    raise InputError(
      f'a tensor of type {kind}, which the gguf package cannot dequantize'
    ) from error
  return values, size, dequantize


def _header(read: _Reader) -> tuple[dict, dict[str, Tensor]]:
  """The fields and the tensors, after checking that tensors lie inside the file and do not overlap."""
  if (magic := bytes(read.read_bytes(4))) != b'GGUF':
    raise InputError(f'it begins with {magic!r}, not GGUF')
  version, tensors, count = read.unpack('IQQ')
  if version not in VERSIONS:
    raise InputError(f'version {version}; {VERSIONS[0]} and {VERSIONS[1]} are supported')
  fields = read.named(count, 'field', read.value)
  described = read.named(tensors, 'tensor', read.tensor)
  align = fields.get('general.alignment', 32)
  if type(align) is not int or not 8 <= align <= 2**16 or align & (align - 1):
    raise InputError(f'alignment {align!r}; it must be a power of two, 8 … 65,536')
  found, end, base = {}, 0, -(-read.at // align) * align
  for name, (shape, kind, start, _) in sorted(described.items(), key=lambda item: item[1].start):
    values, bytes_, _ = _quantization(kind)
    if 0 in shape or shape[-1] % values:
      raise InputError(f'{name!r} has shape {shape}, which is not whole blocks of {values} values')
    size = math.prod(shape) // values * bytes_
    if start % align or base + start + size > len(read.data):
      raise InputError(f'{name!r}, {size:,} bytes at {base + start:,}, is not inside the file')
    if start < end:
      raise InputError(f'{name!r} overlaps the tensor before')
    found[name], end = Tensor(shape, kind, base + start, size), start + size
  return fields, found
