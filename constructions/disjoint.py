"""One hop where every relation has D answers of its own: no MLP at all (Appendix F).

d = R·⌈log₂D⌉ + ⌈log₂R⌉ and F = 0, against the O(N·R) MLP or attention parameters of Nichani et
al. (2025). Block r of the subject's embedding holds the sign code c_j of its answer, the j-th of
relation r; the relation's embedding holds the sign code ρ_query. Attention adds the subject's blocks
to the relation token, and the unembedding selects: the row of answer (r, j) has c_j in block r and
ρ_r in the relation slot, so its logit is ⟨c_j, block r⟩ + ⟨ρ_r, ρ_query⟩. A wrong answer of the same
relation loses at least 2 in the first term, an answer of another relation in the second. Margin 2.
"""

import numpy as np

from constructions import parts
from geomem import codes
from geomem.config import BlockConfig
from geomem.construction import Construction, OwnReadout
from geomem.facts import Facts
from geomem.layout import OWN_ANSWER, RELATION, Layout, Slot


def disjoint(facts: Facts) -> Construction:
  """No MLP and no gate: the unembedding distinguishes the relations. Margin 2."""
  relation_A, index_A = facts.own_sets()
  R, code, rho = facts.relations, codes.Sign(int(index_A.max()) + 1), codes.Sign(facts.relations)
  layout = Layout.of(
    Slot('blocks', ((RELATION, R),), code, OWN_ANSWER), Slot('relation', (), rho, RELATION)
  )
  built = parts.draft('disjoint', facts, layout, BlockConfig(head_dim=max(1, R * code.width)))
  encode_index = parts.encoder(layout, 'blocks', code)
  encode = lambda answers_RxN: encode_index(index_A[answers_RxN])
  built.params['embed']['relations'][:, layout['relation']] = rho.words()
  # Attention averages both tokens; a relation's blocks are empty, so twice the mean is the subject's.
  blocks = layout['blocks']
  parts.write_ov(built.params['blocks_0']['attention'], 0, parts.copy_ov(blocks, blocks, scale=2))
  choices = tuple(np.flatnonzero(relation_A == r) for r in range(R))
  readout = OwnReadout(layout, relation_A, index_A)
  return parts.finish(built, 2, readout, encode, choices=choices)
