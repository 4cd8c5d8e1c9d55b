"""The additive selector inside the architecture that is trained: pre-RMSNorms and a final norm on.

d = R·m, F = R·m with constant-weight words of A attributes, C(m, ⌊m/2⌋) ≥ A, and no biases. Every
norm met before the MLP's output is the same for all subjects and all relations, because all words
weigh the same; ReLU is positively homogeneous, so a norm is a known positive scale: the first is
undone in W_V, the second in the output gain, and the last cannot change an argmax. (ε of the norm
only perturbs the scales. With R = 1 the relation's embedding is zero, and with ε > 0 so is its norm.)
"""

import math

import numpy as np

from constructions import parts
from geomem import codes
from geomem.config import BlockConfig
from geomem.construction import Construction, Readout
from geomem.facts import Facts
from geomem.layout import RELATION, Layout, Slot

GAIN = 4  # what the MLP writes over block 0, where what was there before differs by at most 1
ROUNDING = 2**-5  # the scales are not dyadic: what bfloat16 may take from the margin


def normed(facts: Facts) -> Construction:
  """The selector with a pre-RMSNorm before every part and a final one; its margin is computed below."""
  R, code = facts.relations, codes.ConstantWeight(facts.attributes)
  m, w = code.width, code.weight
  d = R * m
  layout = Layout.of(Slot('blocks', ((RELATION, R),), code))
  hidden = Layout.of(Slot('selected', ((RELATION, R),), code))
  name, sized = 'selector_normed', BlockConfig(head_dim=d)
  built = parts.draft(
    name, facts, layout, sized, hidden=((hidden,),), norm='rms', bias=False, precision='highest'
  )
  eps = built.config.norm_eps
  built.params['embed']['relations'][:] = -parts.all_but_own(R, m)
  rms_subject = math.sqrt(w / m + eps)
  rms_relation = math.sqrt((R - 1) / R + eps)
  # Attention reads ½(e_s/rms_subject + e_r/rms_relation); times 2 rms_subject it brings e_s itself,
  # and closes every block but r by `closed`, the relation's own −1 included.
  undo = 2 * rms_subject
  closed = 1 + rms_subject / rms_relation
  block = built.params['blocks_0']
  parts.write_ov(
    block['attention'], 0, parts.copy_ov(layout['blocks'], layout['blocks'], times=undo)
  )
  selected_square = w + (R - 1) * (w * (1 - closed) ** 2 + (m - w) * closed**2)
  rms_selected = math.sqrt(selected_square / d + eps)
  block['mlp']['in'][:] = np.eye(d)
  block['mlp']['out'][:, layout['blocks', 0]] = GAIN * rms_selected * parts.sum_of_blocks(R, m)
  readout = Readout(layout['blocks', 0], code)
  margin = _margin(R, m, w, closed, eps)
  return parts.finish(built, margin, readout, parts.encoder(layout, 'blocks', code))


def _margin(R: int, m: int, w: int, closed: float, eps: float) -> float:
  """A swapped one is worth GAIN − 1 at least, over the largest final norm; less rounding.

  The final norm grows or falls linearly with the overlap of the answer's word and the word that
  block 0 held, so an end of its range is its maximum. With R = 1, or asking for r = 0, the two are one.
  """
  others_square = w * (1 - closed) ** 2 + (m - w) * closed**2
  own_block_0 = w * (GAIN + 1) ** 2 + (R - 1) * others_square
  margins = [(GAIN + 1) / math.sqrt(own_block_0 / (R * m) + eps)]
  for overlap in (max(0, 2 * w - m), w) if R > 1 else ():
    block_0 = (
      overlap * (GAIN + 1 - closed) ** 2
      + (w - overlap) * ((GAIN - closed) ** 2 + (1 - closed) ** 2)
      + (m - 2 * w + overlap) * closed**2
    )
    square = block_0 + w + (R - 2) * others_square
    margins.append((GAIN - 1) / math.sqrt(square / (R * m) + eps))
  return min(margins) * (1 - ROUNDING)
