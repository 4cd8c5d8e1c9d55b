"""GGUF files: the header is checked against the file's size before anything is read or allocated.

Only the values of tensors go through the `gguf` package, which dequantizes them.
"""

import dataclasses
import math
import os
import struct

import numpy as np

from geomem.errors import InputError
from geomem.pretrained import mapped

STRING, ARRAY = 8, 9
NUMBERS = {
  0: 'B',
  1: 'b',
  2: 'H',
  3: 'h',
  4: 'I',
  5: 'i',
  6: 'f',
  7: '?',
  10: 'Q',
  11: 'q',
  12: 'd',
}
MOST = 2**16  # fields, tensors, bytes of a name
VERSIONS = (2, 3)


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where a tensor lies; `shape` as NumPy has it, `kind` the number of its quantization."""

  shape: tuple[int, ...]
  kind: int
  start: int
  size: int


class _Reader:
  """The bytes of a header, one field after another, never past the end of the file."""

  def __init__(self, data):
    self.data, self.at = data, 0

  def take(self, count: int):
    if count > len(self.data) - self.at:
      raise InputError(f'it ends at byte {len(self.data):,}, inside its header')
    self.at += count
    return self.data[self.at - count : self.at]

  def number(self, code: str):
    return struct.unpack(f'<{code}', self.take(struct.calcsize(f'<{code}')))[0]

  def text(self, most: int | None = None) -> str:
    size = self.number('Q')
    if most is not None and size > most:
      raise InputError(f'a name of {size:,} bytes')
    try:
      return str(self.take(size), 'utf-8')
    except UnicodeDecodeError as error:
      raise InputError(f'text that is not UTF-8 before byte {self.at:,}') from error

  def value(self):
    kind = self.number('I')
    if kind != ARRAY:
      return self._one(kind)
    kind, count = self.number('I'), self.number('Q')
    if kind == STRING:
      self._check_left(count, 8)
      return [self.text() for _ in range(count)]
    code = _code(kind)
    self._check_left(count, struct.calcsize(f'<{code}'))
    return np.frombuffer(self.take(count * struct.calcsize(f'<{code}')), f'<{code}').tolist()

  def _one(self, kind: int):
    return self.text() if kind == STRING else self.number(_code(kind))

  def _check_left(self, count: int, each: int):
    if count * each > len(self.data) - self.at:
      raise InputError(f'an array of {count:,} values, more than the file has room for')


def _code(kind: int) -> str:
  if kind not in NUMBERS:
    raise InputError(f'a value of unknown type {kind}')
  return NUMBERS[kind]


class GGUF:
  """An open file: `fields` by name, `tensors` by name, and their values one at a time."""

  def __init__(self, path: str | os.PathLike):
    self.path = path
    self._bytes, found = mapped.opened(path, 'GGUF', lambda data: _header(_Reader(data)))
    self.fields, self.tensors = found

  @property
  def names(self):
    return self.tensors.keys()

  def shape(self, name: str) -> tuple[int, ...]:
    return self.tensors[name].shape

  def array(self, name: str) -> np.ndarray:
    """A tensor in float32."""
    from gguf import quants  # imports slowly, and only who reads weights needs it

    t = self.tensors[name]
    raw = np.frombuffer(self._bytes, np.uint8, t.size, t.start)
    rows = raw.reshape(*t.shape[:-1], -1)
    return quants.dequantize(rows, _kinds()[t.kind][0]).reshape(t.shape)


def _kinds():
  """Of every quantization that can be undone: itself, the values of a block and their bytes."""
  from gguf import constants, quants

  plain = {constants.GGMLQuantizationType.F32, constants.GGMLQuantizationType.F16}
  known = plain | set(quants._type_traits)
  return {kind.value: (kind, *constants.GGML_QUANT_SIZES[kind]) for kind in known}


def _header(read: _Reader):
  if (magic := bytes(read.take(4))) != b'GGUF':
    raise InputError(f'it begins with {magic!r}, not GGUF')
  if (version := read.number('I')) not in VERSIONS:
    raise InputError(f'version {version}; this code reads {VERSIONS[0]} and {VERSIONS[1]}')
  counts = {name: read.number('Q') for name in ('tensors', 'fields')}
  for name, count in counts.items():
    if count > MOST:
      raise InputError(f'{count:,} {name}; at most {MOST:,} are believed')
  fields = {}
  for _ in range(counts['fields']):
    name = read.text(MOST)
    if name in fields:
      raise InputError(f'two fields are called {name!r}')
    fields[name] = read.value()
  found = {}
  for _ in range(counts['tensors']):
    name = read.text(MOST)
    if name in found:
      raise InputError(f'two tensors are called {name!r}')
    found[name] = _described(name, read)
  align = fields.get('general.alignment', 32)
  if type(align) is not int or not 8 <= align <= 2**16 or align & (align - 1):
    raise InputError(f'alignment {align!r}; it must be a power of two, 8 … 65,536')
  return fields, _placed(found, -(-read.at // align) * align, align, len(read.data))


def _described(name: str, read: _Reader):
  """Shape, kind and offset of a tensor."""
  dims = read.number('I')
  if not 1 <= dims <= 4:
    raise InputError(f'{name!r} has {dims:,} axes; a tensor has 1 … 4')
  shape = tuple(read.number('Q') for _ in range(dims))[::-1]
  return shape, read.number('I'), read.number('Q')


def _placed(found: dict, base: int, align: int, size: int) -> dict[str, Tensor]:
  """Tensors by name, each inside the file and none on top of another."""
  kinds, tensors, end, last = _kinds(), {}, base, None
  for name, (shape, kind, offset) in sorted(found.items(), key=lambda item: item[1][2]):
    if kind not in kinds:
      raise InputError(f'{name!r} is of type {kind}, which the gguf package cannot dequantize')
    _, block, bytes_ = kinds[kind]
    if 0 in shape or shape[-1] % block:
      raise InputError(f'{name!r} has shape {shape}, which blocks of {block} do not fill')
    need = math.prod(shape) // block * bytes_
    start = base + offset
    if offset % align or start + need > size:
      raise InputError(f'{name!r}, {need:,} bytes at {start:,}, does not lie in {size:,} bytes')
    if start < end:
      raise InputError(f'{name!r} lies on top of {last!r}')
    tensors[name], end, last = Tensor(shape, kind, start, need), start + need, name
  return tensors
