"""k hops with all R^k answers in the subject's embedding (Theorem 4.3, second half).

The embedding holds a tree with one branch per path of relations: the sign code of the path's answer.
Attention brings it to the last position.

`precomputed`, the paper's: depth k, one slot per level of the tree. In layer l a head fetches r_l and
lays −1 on every branch of level l−1 that does not begin with r_l. ReLU keeps the bits of the others,
and the MLP writes their words into level l, which is R times smaller. The unembedding reads level k,
a single word. d = m·(R^k + … + R + 1) + R + ⌈log₂(k+1)⌉ + 1, F = R^{k−l+1}·m in layer l. Margin 2.

`precomputed_depth1`, ours: k+1 heads fetch s and every relation at once. Head l lays −1 on every
branch w with w_l ≠ r_l; ReLU keeps the bits of the one branch that no head touched, and the MLP writes
its word over branch 0, where the unembedding reads it. d = R^k·m + R + ⌈log₂(k+1)⌉ + 1, F = R^k·m.
Margin 2.
"""

import numpy as np

from constructions import parts
from geomem import codes, queries
from geomem.config import BlockConfig
from geomem.construction import Construction, Readout
from geomem.facts import Facts, check_closed
from geomem.layout import BRANCH, POSITION, RELATION, Layout, Slot


def precomputed(facts: Facts, hops: int) -> Construction:
  """Depth k: layer l is a selector from level l−1 (R^{k−l+1} branches) into level l."""
  check_closed(facts, hops)
  R, code = facts.relations, codes.Sign(facts.attributes)
  levels = [Slot(f'level{j}', ((BRANCH, R ** (hops - j)),), code) for j in range(hops + 1)]
  layers = [
    Layout.of(Slot('selected', ((BRANCH, R ** (hops - j)),), codes.Bits(facts.attributes)))
    for j in range(hops)
  ]
  blocks = [
    BlockConfig(
      heads=1 + (j == 0),
      key_dim=codes.log2_ceil(hops + 1),
      head_dim=units.dim if j == 0 else R,
    )
    for j, units in enumerate(layers)
  ]
  hidden = tuple((units,) for units in layers)
  built = _draft('precomputed', facts, hops, levels, blocks, hidden)
  layout = built.layout
  for j in range(hops):
    block, level, rest = built.params[f'blocks_{j}'], layout[f'level{j}'], R ** (hops - j - 1)
    closing = layout['relation'], level, -parts.all_but_own(R, rest * code.width)
    parts.fetch(block['attention'], 0, layout, j + 1, closing)
    if j == 0:
      parts.fetch(block['attention'], 1, layout, 0, parts.copy_ov(level, level))
    block['mlp']['in'][level] = np.eye(layers[j].dim)
    block['mlp']['out'][:, layout[f'level{j + 1}']] = 2 * parts.sum_of_blocks(R, rest * code.width)
    block['mlp']['out_bias'][layout[f'level{j + 1}']] = -1
  readout = Readout(layout[f'level{hops}'], code)
  return parts.finish(built, 2, readout, parts.encoder(layout, 'level0', code))


def precomputed_depth1(facts: Facts, hops: int) -> Construction:
  """Depth 1: a touched branch is at most 0; ±(k+2) is written over branch 0, which held |y| ≤ k+1."""
  check_closed(facts, hops)
  R, code = facts.relations, codes.Sign(facts.attributes)
  tree = Slot('tree', ((BRANCH, R**hops),), code)
  hidden = Layout.of(Slot('selected', ((BRANCH, R**hops),), codes.Bits(facts.attributes)))
  key_dim, head_dim = codes.log2_ceil(hops + 1), max(hidden.dim, R)
  sized = BlockConfig(heads=hops + 1, key_dim=key_dim, head_dim=head_dim)
  built = _draft('precomputed_depth1', facts, hops, [tree], [sized], ((hidden,),))
  layout, paths = built.layout, queries.every_path(R, hops)
  attention, mlp = (built.params['blocks_0'][part] for part in ('attention', 'mlp'))
  parts.fetch(attention, 0, layout, 0, parts.copy_ov(layout['tree'], layout['tree']))
  for hop in range(hops):
    off_path = parts.off_path(paths, hop, R, code.width)
    closing = layout['relation'], layout['tree'], -off_path
    parts.fetch(attention, hop + 1, layout, hop + 1, closing)
  mlp['in'][layout['tree']] = np.eye(hidden.dim)
  mlp['out'][:, layout['tree', 0]] = 2 * (hops + 2) * parts.sum_of_blocks(R**hops, code.width)
  mlp['out_bias'][layout['tree', 0]] = -(hops + 2)
  readout = Readout(layout['tree', 0], code)
  return parts.finish(built, 2, readout, parts.encoder(layout, 'tree', code))


def _draft(name, facts: Facts, hops: int, memory: list[Slot], blocks, hidden) -> Construction:
  """Lays out the memory's slots, the relation and the position; writes relation and position embeddings."""
  layout = Layout.of(
    *memory,
    Slot('relation', (), codes.OneHot(facts.relations), RELATION),
    Slot('position', (), codes.Sign(hops + 1), POSITION),
    Slot('one'),
  )
  built = parts.draft(name, facts, layout, *blocks, hops=hops, hidden=hidden)
  built.params['embed']['relations'][:, layout['relation']] = np.eye(facts.relations)
  parts.number_positions(built)
  return built
