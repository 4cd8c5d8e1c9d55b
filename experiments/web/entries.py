"""The residual stream split into entries, as the figure of a trace and the explorer show it.

An entry is one word of a slot; a slot of plain numbers is one entry.
"""

from typing import NamedTuple

import numpy as np

from geomem.facts import Facts
from geomem.inside import trace as tracing
from geomem.inside.trace import Trace
from geomem.layout import Layout, Slot


class SlotEntry(NamedTuple):
  slot: Slot
  name: str
  at: slice


def entries(facts: Facts, layout: Layout) -> list[SlotEntry]:
  found = []
  for slot in layout.slots:
    width, start = slot.width if slot.code else slot.size, layout[slot.name].start
    for e in range(slot.size // max(width, 1)):
      name = tracing.entry_label(facts, slot, e).removeprefix(slot.name) if slot.code else ''
      found.append(SlotEntry(slot, name[1:-1], slice(start + e * width, start + (e + 1) * width)))
  return found


def stages(trace: Trace, block: int, position: int) -> list[tuple]:
  """After attention and after the MLP: the residual, the residual before, and what relations added in between."""
  read_D, written_D = trace.blocks[block].read_LxD[position], trace.blocks[block].written_LxD[position]  # fmt: skip
  relations_D = tracing.relation_outputs(trace, block, position)
  after_attention = read_D, trace.before(block)[position], relations_D
  return [after_attention, (written_D, read_D, np.zeros_like(read_D))]


def label(trace: Trace, values_D, before_D, relations_D=None) -> list[tuple[str, str]]:
  """A word and a state for every entry at a stage; without `relations_D`, for an embedding.

  States: 'held' or left 'open' by an embedding, 'new', 'closed', 'unchanged' since the previous stage.
  """
  embedding, labels = relations_D is None, []
  new = 'held' if embedding else 'new'
  changes = tracing.changes(trace, values_D, before_D, relations_D)
  for slot, values, decoded, new_E, closed_E in changes:
    if not decoded:
      labels.append(('', new if embedding or new_E.any() else 'unchanged'))
    for e in range(len(values)) if decoded else ():
      if closed_E[e]:
        labels.append(('closes' if embedding else 'closed', 'closed'))
      elif new_E[e]:
        word = tracing.describe(trace.construction.facts, slot, values, decoded, e).split(' ±')[0]
        labels.append((word.removeprefix(f'{slot.of} '), new))
      else:
        labels.append(('open', 'open') if embedding and closed_E.any() else ('', 'unchanged'))
  return labels
