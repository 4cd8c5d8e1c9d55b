"""k hops with t thoughts, 0 ≤ t < k: between Theorems 4.3 and 4.4 (ours).

The k hops are cut into t + 1 segments of j = ⌈k/(t+1)⌉ hops, the later ones of j − 1 if t + 1 does not
divide k; the model emits the subject that each segment leads to. One layer of j + 1 heads. With δ = 1
if t + 1 does not divide k, else 0,

  d = (R^j + δ·R^{j−1})·m + R + (j+2)·⌈log₂(k+t+1)⌉,  F = (R^j + δ·R^{j−1})·m.

A subject's embedding holds a tree of all its answers over j hops (slot `long`) and, if δ = 1, one
over j − 1 hops (`short`). Position k + i handles segment i. One head brings the trees of the
current subject: from position 0 for i = 0; afterwards the token itself is that subject, and the
head attends to a relation, whose trees are empty. The other heads attend to the segment's
relations, and each closes (with −1) the branches that take another relation at its hop. The
position's own embedding closes the tree of the other length. The rest is as in
`precomputed_depth1`: ReLU keeps the bits of the one open branch, and the MLP writes its word over
branch 0 of the long tree, where the unembedding reads it. Margin 2 per step.
"""

import numpy as np

from constructions import parts
from geomem import codes, queries
from geomem.config import BlockConfig
from geomem.construction import Construction, Readout
from geomem.errors import InputError
from geomem.facts import Facts, check_closed
from geomem.layout import BRANCH, POSITION, RELATION, Layout, Slot


def few_thoughts(facts: Facts, hops: int, thoughts: int | None = None) -> Construction:
  """t = `thoughts`, by default ⌊k/2⌋. Margin 2 per step."""
  check_closed(facts, hops)
  t = hops // 2 if thoughts is None else thoughts
  if not 0 <= t < hops:
    raise InputError(f'thoughts is {t}; it must be 0 … {hops - 1}, fewer than the hops')
  R, code, pi = facts.relations, codes.Sign(facts.attributes), codes.Sign(hops + t + 1)
  starts, stops = (0, *queries.stops(hops, t)[:-1]), queries.stops(hops, t)
  longest = stops[0]
  lengths = {longest: 'long'} | ({longest - 1: 'short'} if hops % (t + 1) else {})
  trees = {name: ((BRANCH, R**j),) for j, name in lengths.items()}
  layout = Layout.of(
    *(Slot(name, axes, code) for name, axes in trees.items()),
    Slot('relation', (), codes.OneHot(R), RELATION),
    Slot('position', (), pi, POSITION),
    Slot('subject_at', (), pi, POSITION),
    Slot('relation_at', (('hop', longest),), pi, POSITION),
  )
  bits = codes.Bits(facts.attributes)
  units = Layout.of(*(Slot(name, axes, bits) for name, axes in trees.items()))
  memory = slice(0, units.dim)
  block = BlockConfig(heads=longest + 1, key_dim=pi.width, head_dim=max(units.dim, R))
  size: dict[str, int] = {'hops': hops, 'length': hops + t + 1}
  built = parts.draft('few_thoughts', facts, layout, block, hidden=((units,),), **size)
  attention, mlp = (built.params['blocks_0'][part] for part in ('attention', 'mlp'))
  _embed(built, lengths)
  positions = built.params['embed']['positions']
  positions[:, layout['position']] = pi.words()
  for i, (start, stop) in enumerate(zip(starts, stops, strict=True)):
    here = positions[hops + i]
    here[layout['subject_at']] = pi.words()[min(i, 1)]
    for hop in range(longest):
      # A head without a relation to fetch attends to the subject, whose relation slot is empty.
      at = start + 1 + hop if hop < stop - start else 0
      here[layout['relation_at', hop]] = pi.words()[at]
    for j, name in lengths.items():
      here[layout[name]] = -1.0 * (j != stop - start)
  targets: list[str | tuple] = ['subject_at', *(('relation_at', hop) for hop in range(longest))]
  for head, target in enumerate(targets):
    attention['query'][head, layout[target]] = parts.SHARPNESS * np.eye(pi.width)
    attention['key'][head, layout['position']] = np.eye(pi.width)
  parts.write_ov(attention, 0, parts.copy_ov(memory, memory))
  for hop in range(longest):
    off_path = [
      parts.off_path(queries.every_path(R, j), hop, R, code.width)
      if hop < j
      else np.zeros((R, R**j * code.width), np.float32)
      for j in lengths
    ]
    closing = layout['relation'], memory, -np.concatenate(off_path, axis=1)
    parts.write_ov(attention, hop + 1, closing)
  answer, signal = layout['long', 0], longest + 2
  mlp['in'][memory] = np.eye(units.dim)
  mlp['out'][:, answer] = 2 * signal * parts.sum_of_blocks(units.dim // code.width, code.width)
  mlp['out_bias'][answer] = -signal
  built = built.replace(chain_of_thought=t > 0, thoughts=t or None)
  return parts.finish(built, 2, Readout(answer, code))


def _embed(built: Construction, lengths: dict[int, str]):
  """Writes the answers over each number of hops in `lengths` into subjects, and one-hots into relations."""
  facts, layout, embed = built.facts, built.layout, built.params['embed']
  for j, name in lengths.items():
    answers_WxN = queries.tree(facts.answers_RxN, j)
    embed['subjects'] += parts.encoder(layout, name, layout.code(name))(answers_WxN)
  embed['relations'][:, layout['relation']] = np.eye(facts.relations)
