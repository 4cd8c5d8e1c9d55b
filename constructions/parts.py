"""Building blocks that several constructions share."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from geomem import codes, queries
from geomem.config import BlockConfig, Config
from geomem.construction import Construction, OwnReadout, Readout, blank
from geomem.facts import Facts
from geomem.layout import Layout

Write = tuple[slice, slice, Any]  # source, target, and the matrix or number between them
SHARPNESS = 128  # Γ: a score gap of Γ makes every other softmax weight exactly 0 in float32


def all_but_own(count: int, width: int) -> np.ndarray:
  """Row r is 1 on every block of `width` coordinates except the r-th, where it is 0."""
  return 1 - np.repeat(np.eye(count, dtype=np.float32), width, axis=1)


def sum_of_blocks(count: int, width: int) -> np.ndarray:
  """The matrix that adds up `count` blocks of `width` coordinates."""
  return np.tile(np.eye(width, dtype=np.float32), (count, 1))


def encoder(
  layout: Layout, slot: str, code: codes.Code, one: str | None = None
) -> Callable[[np.ndarray], np.ndarray]:
  """Maps answers to embeddings, the superposition: entry w of `slot` is the word of answer w; slot `one` is 1."""
  words, shape = code.words(), layout.slot(slot).shape

  def encode(answers_WxN: np.ndarray) -> np.ndarray:
    embeddings_NxD = np.zeros((answers_WxN.shape[1], layout.dim), np.float32)
    for w, answers_N in enumerate(answers_WxN):
      embeddings_NxD[:, layout[slot, *np.unravel_index(w, shape)]] = words[answers_N]
    if one:
      embeddings_NxD[:, layout[one]] = 1
    return embeddings_NxD

  return encode


def draft(
  name: str, facts: Facts, layout: Layout, *blocks: BlockConfig, hops: int = 1,
  hidden: tuple[tuple[Layout, ...], ...] = (), length: int | None = None, **config_options: Any,
) -> Construction:  # fmt: skip
  """A construction with all weights zero, to be filled in; `hidden` names the hidden units of each block's MLP."""
  sizes = facts.subjects, facts.relations, facts.attributes, length or hops + 1, layout.dim
  widths = [tuple(units.dim for units in layers) for layers in hidden] or [()] * len(blocks)
  shaped = [dataclasses.replace(b, hidden=f) for b, f in zip(blocks, widths, strict=True)]
  config = Config(*sizes, tuple(shaped), **config_options)
  return Construction(name, config, blank(config), layout, facts, hops, hidden)


def finish(
  built: Construction,
  margin: float | None,
  readout: Readout | OwnReadout,
  encode: Callable[[np.ndarray], np.ndarray] | None = None,
  **more: Any,
) -> Construction:
  """Write the readout's unembedding and, given `encode`, subject embeddings that hold the answers to all paths."""
  if encode:
    answers_WxN = queries.tree(built.facts.answers_RxN, built.hops)
    built.params['embed']['subjects'] = encode(answers_WxN)
  built.params['unembed']['answers'] = readout.rows(built.layout.dim)
  return built.replace(margin=margin, readout=readout, encode=encode, **more)


def write_ov(attention: dict, head: int, *writes: Write) -> None:
  """Write a head's W_V and W_O: each (source, target, matrix) adds matrixᵀ · x[source] to the target slice."""
  channel = 0
  for source, target, matrix in writes:
    width = source.stop - source.start
    channels = slice(channel, channel + width)
    attention['value'][head, source, channels] = np.eye(width)
    attention['output'][head, channels, target] = matrix
    channel += width


def copy_ov(source: slice, target: slice, scale: float = 1) -> Write:
  return source, target, scale * np.eye(source.stop - source.start)


def off_path(paths_WxK: np.ndarray, hop: int, relations: int, width: int) -> np.ndarray:
  """Row r is 1 on the `width` coordinates of every path that takes a relation other than r at `hop`, else 0."""
  others_RxW = paths_WxK[:, hop] != np.arange(relations)[:, None]
  return np.repeat(others_RxW, width, axis=1).astype(np.float32)


def number_positions(built: Construction) -> None:
  """Write its code π_p, and the constant 1, into every position's embedding."""
  positions, layout = built.params['embed']['positions'], built.layout
  positions[:, layout['position']] = layout.code('position').words()
  positions[:, layout['one']] = 1


def fetch(attention: dict, head: int, layout: Layout, position: int, *writes: Write) -> None:
  """Make the head attend to one absolute position (query Γ π_position from the constant, keys π_p) and write."""
  code = layout.code('position')
  attention['query'][head, layout['one'], : code.width] = SHARPNESS * code.words()[position]
  attention['key'][head, layout['position'], : code.width] = np.eye(code.width)
  write_ov(attention, head, *writes)
