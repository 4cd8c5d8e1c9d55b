"""The paper's selector, literally (Theorem 4.1): relations in coordinates of their own, a 3-layer MLP.

d = R·m + R, F = (R·m, m). The embedding of s stacks the codes of its R answers, that of r is a
one-hot beside them. The first hidden layer is an AND of every bit with its relation's flag,
ReLU(c + 2·1_r − 2); the second adds the blocks up; the last layer turns bits into signs over
block 0. Margin 6. The additive selector needs neither the flags nor the middle layer.
"""

import numpy as np

from constructions import parts
from geomem import codes
from geomem.config import BlockConfig
from geomem.construction import Construction, Readout
from geomem.facts import Facts
from geomem.layout import RELATION, Layout, Slot


def literal(facts: Facts) -> Construction:
  """Relation flags beside the blocks, hidden widths (R·m, m). Margin 6."""
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
  # Both tokens are averaged, and a relation's blocks are empty: twice the mean is the subject.
  parts.write_ov(attention, 0, parts.copy_ov(layout['blocks'], layout['blocks'], times=2))
  mlp['in'][layout['blocks']] = np.eye(R * m)
  mlp['in'][layout['relation']] = 2 * np.repeat(np.eye(R), m, axis=1)
  mlp['in_bias'][:] = -2
  mlp['middle'][:] = parts.sum_of_blocks(R, m)
  mlp['out'][:, layout['blocks', 0]] = 8 * np.eye(m)
  mlp['out_bias'][layout['blocks', 0]] = -4
  readout = Readout(layout['blocks', 0], code)
  return parts.finish(built, 6, readout, parts.encoder(layout, 'blocks', code))
