"""The additive selector inside the trained architecture: with pre-RMSNorms and a final norm.

d = R·m, F = R·m with constant-weight words of A attributes, C(m, ⌊m/2⌋) ≥ A, and no biases. As all
words have equally many ones, the norm is the same for all subject embeddings, for all relation
embeddings, and for the residual streams of all queries before the MLP. So the RMSNorms up to there
divide by known positive numbers. The first is undone in W_V; the second in the output gain, ReLU
being positively homogeneous; the final norm cannot change an argmax. (ε of the norm only perturbs
the scales. With R = 1 the relation's embedding is zero, and with ε > 0 it stays zero when
normalised.)
"""

import math

import numpy as np

from constructions import parts
from geomem import codes
from geomem.config import BlockConfig
from geomem.construction import Construction, Readout
from geomem.facts import Facts
from geomem.layout import RELATION, Layout, Slot

GAIN = 4  # scale of the word that the MLP writes over block 0, whose old contents vary by at most 1
ROUNDING = 2**-5  # share of the margin that bfloat16 may round away: the scales are not dyadic


def normed(facts: Facts) -> Construction:
  """The selector with a pre-RMSNorm before every part and a final one; `_margin` computes its margin."""
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
  # Attention averages the normalised tokens, ½(e_s/rms_subject + e_r/rms_relation). Times
  # 2·rms_subject this adds e_s itself, and every block but r is closed by `closed`, which includes the
  # −1 of the relation's own embedding.
  undo = 2 * rms_subject
  closed = 1 + rms_subject / rms_relation
  block = built.params['blocks_0']
  parts.write_ov(
    block['attention'], 0, parts.copy_ov(layout['blocks'], layout['blocks'], scale=undo)
  )
  selected_square = w + (R - 1) * (w * (1 - closed) ** 2 + (m - w) * closed**2)
  rms_selected = math.sqrt(selected_square / d + eps)
  block['mlp']['in'][:] = np.eye(d)
  block['mlp']['out'][:, layout['blocks', 0]] = GAIN * rms_selected * parts.sum_of_blocks(R, m)
  readout = Readout(layout['blocks', 0], code)
  margin = _margin(R, m, w, closed, eps)
  return parts.finish(built, margin, readout, parts.encoder(layout, 'blocks', code))


def _margin(R: int, m: int, w: int, closed: float, eps: float) -> float:
  """Each one that two words swap is worth at least GAIN − 1, over the largest final norm; minus rounding.

  The square of the final norm is linear in the overlap of the answer's word with the word that
  block 0 held, so it is largest at an end of the overlap's range. With R = 1, or for relation 0,
  both words are the same, and a swapped one is worth GAIN + 1.
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
