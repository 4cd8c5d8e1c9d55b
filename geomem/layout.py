"""Named coordinates: a space (the residual stream, a hidden layer) as a row of named slots.

Constructions write weights by these names (`w[layout['state'], layout['answer']] = ...`), and traces
report them.
"""

import dataclasses
import math

import numpy as np

from geomem import codes

SUBJECT, RELATION, POSITION, ATTRIBUTE = 'subject', 'relation', 'position', 'attribute'
OWN_ANSWER = 'own answer'  # an attribute, numbered among the answers of the entry's relation
BRANCH = 'branch'  # a path of relations, as an index in base R, first hop most significant


@dataclasses.dataclass(frozen=True)
class Slot:
  """A named array over `axes` ((label kind, size), ...) of words of `code` for symbols of kind `of`.

  Without a code, each entry is a single number.
  """

  name: str
  axes: tuple[tuple[str, int], ...] = ()
  code: codes.Code | None = None
  of: str = ATTRIBUTE

  @property
  def shape(self) -> tuple[int, ...]:
    return tuple(size for _, size in self.axes)

  @property
  def width(self) -> int:
    return self.code.width if self.code else 1

  @property
  def size(self) -> int:
    return math.prod(self.shape) * self.width


@dataclasses.dataclass(frozen=True)
class Layout:
  """Slots side by side. `layout['name']` is the slice of a slot, `layout['name', i]` of one entry."""

  slots: tuple[Slot, ...]

  @classmethod
  def of(cls, *slots: Slot) -> 'Layout':
    names = [slot.name for slot in slots]
    if len(set(names)) < len(names):
      raise ValueError(f'two slots share a name: {names}')
    return cls(slots)

  @classmethod
  def unnamed(cls, dim: int) -> 'Layout':
    """Of a residual stream whose coordinates mean nothing by themselves, as in a trained model."""
    return cls.of(Slot('stream', (('direction', dim),)))

  @property
  def dim(self) -> int:
    return sum(slot.size for slot in self.slots)

  def slot(self, name: str) -> Slot:
    for slot in self.slots:
      if slot.name == name:
        return slot
    raise KeyError(f'no slot {name!r} among {[slot.name for slot in self.slots]}')

  def code(self, name: str) -> codes.Code:
    """The code of a slot that holds words."""
    if (code := self.slot(name).code) is None:
      raise KeyError(f'slot {name!r} holds numbers, not words of a code')
    return code

  def __getitem__(self, key: str | tuple) -> slice:
    name, *index = key if isinstance(key, tuple) else (key,)
    slot = self.slot(name)
    start = sum(before.size for before in self.slots[: self.slots.index(slot)])
    if not index:
      return slice(start, start + slot.size)
    flat = int(np.ravel_multi_index(index, slot.shape))
    return slice(start + flat * slot.width, start + (flat + 1) * slot.width)
