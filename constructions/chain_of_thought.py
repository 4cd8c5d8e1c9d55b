"""k hops with chain of thought: one layer for any k (Theorem 4.4).

After the prompt s r₁ … r_k the model emits s₁ … s_k. At position k+i, one head brings the blocks of
the current subject s_i: from position 0 for i = 0, afterwards from the token itself. The other head
brings r_{i+1}, which closes every block except its own. The MLP is that of the one-hop `selector`,
F = R·m: its hidden units are the bits of the one open block, and it writes their word over block 0,
where the unembedding reads s_{i+1}. Margin 4 at each step.

`chain_of_thought`: d = 2R·m + R + 3⌈log₂(2k+1)⌉ + 1. A subject's embedding fills the slot `subject`,
which a head copies into the empty slot `blocks`. A position's embedding holds its own code and the
codes of the two positions to attend to.

`chain_of_thought_compact`, ours: d = R·m + ⌈log₂R⌉ + 2·max(1, ⌈log₂k⌉) + 2. After the first step the
token itself is the current subject, so its blocks are already in place and need no second slot: the
first head then attends to the relations, whose blocks are empty. Blocks are closed by the sign codes
of relations alone: the second head finds the queried relation by its place among the hops and adds
(⟨ρ_r, ρ_query⟩ − ⌈log₂R⌉)/2 to block r, which is 0 for the queried relation and at most −1 for all
others.
"""

import numpy as np

from constructions import parts
from geomem import codes
from geomem.config import BlockConfig
from geomem.construction import Construction, Readout
from geomem.facts import Facts, check_closed
from geomem.layout import POSITION, RELATION, Layout, Slot


def chain_of_thought(facts: Facts, hops: int) -> Construction:
  """The paper's size: two heads bring the current subject and the next relation. Margin 4 per step."""
  R, code, pi = facts.relations, codes.Sign(facts.attributes), codes.Sign(2 * hops + 1)
  layout = Layout.of(
    Slot('subject', ((RELATION, R),), code),
    Slot('blocks', ((RELATION, R),), code),
    Slot('relation', (), codes.OneHot(R), RELATION),
    Slot('position', (), pi, POSITION),
    Slot('subject_at', (), pi, POSITION),
    Slot('relation_at', (), pi, POSITION),
    Slot('one'),
  )
  built = _draft('chain_of_thought', facts, hops, layout, 'subject', pi.width)
  params = built.params
  params['embed']['relations'][:, layout['relation']] = np.eye(R)
  parts.number_positions(built)
  positions, step = params['embed']['positions'], np.arange(hops)
  positions[hops + step, layout['subject_at']] = pi.words()[np.where(step > 0, hops + step, 0)]
  positions[hops + step, layout['relation_at']] = pi.words()[step + 1]
  attention, blocks = params['blocks_0']['attention'], layout['blocks']
  for head, target in enumerate(('subject_at', 'relation_at')):
    attention['query'][head, layout[target]] = parts.SHARPNESS * np.eye(pi.width)
    attention['key'][head, layout['position']] = np.eye(pi.width)
  parts.write_ov(attention, 0, parts.copy_ov(layout['subject'], blocks))
  # −1 on all blocks, and +1 back on the relation's own.
  own_back = np.repeat(np.eye(R), code.width, axis=1)
  parts.write_ov(attention, 1, (layout['one'], blocks, -1), (layout['relation'], blocks, own_back))
  return _select(built, signal=4)


def chain_of_thought_compact(facts: Facts, hops: int) -> Construction:
  """The same in about half the residual width. Margin 4 per step."""
  R, code, rho = facts.relations, codes.Sign(facts.attributes), codes.Sign(facts.relations)
  at = codes.Sign(max(2, hops))  # codes for a relation's place among the hops
  layout = Layout.of(
    Slot('blocks', ((RELATION, R),), code),
    Slot('relation', (), rho, RELATION),
    Slot('is_relation'),
    Slot('hop', (), at, 'hop'),
    Slot('hop_wanted', (), at, 'hop'),
    Slot('thinking'),  # −1 at the last position of the prompt, +1 afterwards
  )
  built = _draft('chain_of_thought_compact', facts, hops, layout, 'blocks', at.width)
  params = built.params
  params['embed']['relations'][:, layout['relation']] = rho.words()
  params['embed']['relations'][:, layout['is_relation']] = 1
  positions, step = params['embed']['positions'], np.arange(hops)
  positions[1 + step, layout['hop']] = at.words()[step]
  positions[hops + step, layout['hop_wanted']] = at.words()[step]
  positions[hops + step, layout['thinking']] = np.where(step > 0, 1, -1)[:, None]
  attention, blocks = params['blocks_0']['attention'], layout['blocks']
  attention['query'][0, layout['thinking'], 0] = parts.SHARPNESS
  attention['key'][0, layout['is_relation'], 0] = 1
  parts.write_ov(attention, 0, parts.copy_ov(blocks, blocks))
  attention['query'][1, layout['hop_wanted']] = parts.SHARPNESS * np.eye(at.width)
  attention['key'][1, layout['hop']] = np.eye(at.width)
  closing = layout['relation'], blocks, np.repeat(rho.words().T / 2, code.width, axis=1)
  parts.write_ov(attention, 1, closing, (layout['is_relation'], blocks, -rho.width / 2))
  signal = rho.width + 3  # block 0 held ±1, minus at most ⌈log₂R⌉
  return _select(built, signal)


def _draft(
  name: str, facts: Facts, hops: int, layout: Layout, memory: str, key_dim: int
) -> Construction:
  """One block with a subject head, a relation head and the selector's units; subject embeddings are written."""
  check_closed(facts, hops)
  bits, encode = codes.Bits(facts.attributes), parts.encoder(layout, memory, layout.code(memory))
  units = Layout.of(Slot('selected', ((RELATION, facts.relations),), bits))
  head_dim = max(units.dim, layout.slot('relation').size + 1)
  sized = BlockConfig(heads=2, key_dim=key_dim, head_dim=head_dim)
  chain = {'hops': hops, 'length': 2 * hops + 1}
  built = parts.draft(name, facts, layout, sized, hidden=((units,),), **chain)
  built.params['embed']['subjects'] = encode(facts.answers_RxN)
  return built


def _select(built: Construction, signal: int) -> Construction:
  """Writes the selector: the bits of the one open block go over block 0 as ±`signal`."""
  layout, mlp = built.layout, built.params['blocks_0']['mlp']
  code, answer = layout.code('blocks'), layout['blocks', 0]
  mlp['in'][layout['blocks']] = np.eye(layout.slot('blocks').size)
  mlp['out'][:, answer] = 2 * signal * parts.sum_of_blocks(built.facts.relations, code.width)
  mlp['out_bias'][answer] = -signal
  return parts.finish(built, 4, Readout(answer, code), chain_of_thought=True)
