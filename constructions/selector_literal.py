"""The paper's selector, literally (Theorem 4.1): relation flags in their own coordinates, a 3-layer MLP.

d = R·m + R, F = (R·m, m). The embedding of s stacks the sign codes of its R answers in R blocks; the
embedding of r is a one-hot in separate coordinates. Attention adds the subject's blocks to the
relation token. The first hidden layer is an AND of every bit with its relation's flag,
ReLU(c + 2·1_r − 2): the answer's bits in block r, 0 elsewhere. The second adds the blocks up; the
output layer writes these bits as signs over block 0, where the unembedding reads. Margin 6. The
additive selector needs neither the flags nor the middle layer.
"""

import numpy as np

from constructions import parts
from geomem import codes
from geomem.config import BlockConfig
from geomem.construction import Construction, Readout
from geomem.facts import Facts
from geomem.layout import RELATION, Layout, Slot


def literal(facts: Facts) -> Construction:
  """Relation flags in coordinates of their own, hidden widths (R·m, m). Margin 6."""
  R, code, bits = facts.relations, codes.Sign(facts.attributes), codes.Bits(facts.attributes)
  m = code.width
  layout = Layout.of(
    Slot('blocks', ((RELATION, R),), code), Slot('relation', (), codes.OneHot(R), RELATION)
  )
  gated = Layout.of(Slot('gated', ((RELATION, R),), bits))
  selected = Layout.of(Slot('selected', (), bits))
  sized = BlockConfig(head_dim=R * m)
  built = parts.draft('selector_literal', facts, layout, sized, hidden=((gated, selected),))
  attention, mlp = (built.params['blocks_0'][part] for part in ('attention', 'mlp'))
  built.params['embed']['relations'][:, layout['relation']] = np.eye(R)
  # Attention averages both tokens; a relation's blocks are empty, so twice the mean is the subject's.
  parts.write_ov(attention, 0, parts.copy_ov(layout['blocks'], layout['blocks'], scale=2))
  mlp['in'][layout['blocks']] = np.eye(R * m)
  mlp['in'][layout['relation']] = 2 * np.repeat(np.eye(R), m, axis=1)
  mlp['in_bias'][:] = -2
  mlp['middle'][:] = parts.sum_of_blocks(R, m)
  mlp['out'][:, layout['blocks', 0]] = 8 * np.eye(m)
  mlp['out_bias'][layout['blocks', 0]] = -4
  readout = Readout(layout['blocks', 0], code)
  return parts.finish(built, 6, readout, parts.encoder(layout, 'blocks', code))
