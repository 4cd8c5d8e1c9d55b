"""k hops, all R^k answers in the subject's embedding (Theorem 4.3, second half).

`precomputed`, the paper's: depth k. Layer l keeps the branches that begin with r_l and writes them
into the next, R times smaller level: d = m·(R^k + … + R + 1) + R + ⌈log₂(k+1)⌉ + 1,
F = R^{k−l+1}·m in layer l. Margin 2.

`precomputed_depth1`, ours: k+1 heads fetch s and every relation at once; head l lays −1 on every
branch w with w_l ≠ r_l, and ReLU keeps the one branch that no head touched:
d = R^k·m + R + ⌈log₂(k+1)⌉ + 1, F = R^k·m. Margin 2.
"""

import numpy as np

from constructions import parts
from geomem import codes, queries
from geomem.config import BlockConfig, Config
from geomem.construction import Construction, Readout, blank
from geomem.facts import Facts, check_closed
from geomem.layout import BRANCH, POSITION, RELATION, Layout, Slot


def precomputed(facts: Facts, hops: int) -> Construction:
  """Depth k: a selector a layer, from level l−1 (R^{k−l+1} branches) into level l."""
  check_closed(facts, hops)
  R, code, length = facts.relations, codes.Sign(facts.attributes), hops + 1
  m = code.width
  levels = [Slot(f'level{j}', ((BRANCH, R ** (hops - j)),), code) for j in range(hops + 1)]
  layout = Layout.of(*levels, *_addresses(R, length))
  layers = [
    Layout.of(Slot('selected', ((BRANCH, R ** (hops - j)),), codes.Bits(facts.attributes)))
    for j in range(hops)
  ]
  shape = {'key_dim': codes.log2_ceil(length)}
  blocks = tuple(
    BlockConfig(heads=1 + (j == 0), head_dim=h.dim if j == 0 else R, hidden=(h.dim,), **shape)
    for j, h in enumerate(layers)
  )
  params, config = _embedded(facts, layout, length, blocks)
  for j in range(hops):
    block, level, rest = params[f'blocks_{j}'], layout[f'level{j}'], R ** (hops - j - 1)
    parts.attend_to_position(block['attention'], 0, layout, j + 1, length)
    parts.write_ov(
      block['attention'], 0, (layout['relation'], level, -parts.all_but_own(R, rest * m))
    )
    if j == 0:
      parts.attend_to_position(block['attention'], 1, layout, 0, length)
      parts.write_ov(block['attention'], 1, parts.copy_ov(level, level))
    block['mlp']['in'][level] = np.eye(layers[j].dim)
    block['mlp']['out'][:, layout[f'level{j + 1}']] = 2 * parts.sum_of_blocks(R, rest * m)
    block['mlp']['out_bias'][layout[f'level{j + 1}']] = -1
  hidden = tuple((h,) for h in layers)
  return _finish(
    'precomputed', config, params, layout, facts, hops, hidden, 'level0', f'level{hops}'
  )


def precomputed_depth1(facts: Facts, hops: int) -> Construction:
  """Depth 1: a touched branch is at most 0, and what branch 0 keeps, |y| ≤ k+1, is less than k+2."""
  check_closed(facts, hops)
  R, code, length = facts.relations, codes.Sign(facts.attributes), hops + 1
  m, branches = code.width, R**hops
  layout = Layout.of(Slot('tree', ((BRANCH, branches),), code), *_addresses(R, length))
  hidden = Layout.of(Slot('selected', ((BRANCH, branches),), codes.Bits(facts.attributes)))
  block_config = BlockConfig(
    heads=hops + 1,
    key_dim=codes.log2_ceil(length),
    head_dim=max(hidden.dim, R),
    hidden=(hidden.dim,),
  )
  params, config = _embedded(facts, layout, length, (block_config,))
  attention, mlp = params['blocks_0']['attention'], params['blocks_0']['mlp']
  parts.attend_to_position(attention, 0, layout, 0, length)
  parts.write_ov(attention, 0, parts.copy_ov(layout['tree'], layout['tree']))
  paths = queries.every_path(R, hops)
  for hop in range(hops):
    off_path_RxW = (paths[:, hop] != np.arange(R)[:, None]).astype(np.float32)
    parts.attend_to_position(attention, hop + 1, layout, hop + 1, length)
    closing = -np.repeat(off_path_RxW, m, axis=1)
    parts.write_ov(attention, hop + 1, (layout['relation'], layout['tree'], closing))
  mlp['in'][layout['tree']] = np.eye(hidden.dim)
  mlp['out'][:, layout['tree', 0]] = 2 * (hops + 2) * parts.sum_of_blocks(branches, m)
  mlp['out_bias'][layout['tree', 0]] = -(hops + 2)
  answer = ('tree', 0)
  return _finish(
    'precomputed_depth1', config, params, layout, facts, hops, ((hidden,),), 'tree', answer
  )


def _addresses(relations: int, length: int) -> tuple[Slot, ...]:
  return (
    Slot('relation', (), codes.OneHot(relations), RELATION),
    Slot('position', (), codes.Sign(length), POSITION),
    Slot('one'),
  )


def _embedded(facts: Facts, layout: Layout, length: int, blocks) -> tuple[dict, Config]:
  """Blank parameters with the relation and position embeddings filled in."""
  config = Config(
    subjects=facts.subjects,
    relations=facts.relations,
    answers=facts.attributes,
    length=length,
    dim=layout.dim,
    blocks=blocks,
  )
  params = blank(config)
  params['embed']['relations'][:, layout['relation']] = np.eye(facts.relations)
  params['embed']['positions'][:, layout['position']] = codes.Sign(length).words()
  params['embed']['positions'][:, layout['one']] = 1
  return params, config


def _finish(name, config, params, layout, facts, hops, hidden, memory, answer) -> Construction:
  """Fill in what the facts decide: the trees in the subject embeddings, and the unembedding."""
  code = codes.Sign(facts.attributes)
  encode = parts.encoder(layout, memory, code)
  readout = Readout(layout[answer], code)
  params['embed']['subjects'] = encode(queries.tree(facts.answers_RxN, hops))
  params['unembed']['answers'] = readout.rows(layout.dim)
  return Construction(
    name,
    config,
    params,
    layout,
    facts,
    hops,
    hidden=hidden,
    margin=2,
    readout=readout,
    encode=encode,
  )
