"""One hop without an MLP: one attention head per relation (Theorem 4.1, second half).

H = R heads of width m, d = R·m + ⌈log₂R⌉ + 2. Block r of the subject's embedding holds the sign code
of g_r(s); the relation token carries the sign code ρ_query, and its blocks are empty. At this token,
head r scores the subject Γ(⟨ρ_r, ρ_query⟩ − (⌈log₂R⌉ − 1)), which is positive for the queried
relation only, and scores the relation token itself 0. So the head of the queried relation attends to
the subject and copies its block r into block 0; every other head attends to the relation token and
copies nothing. The unembedding reads the answer's word from block 0. Margin 2.
"""

from constructions import parts
from geomem import codes
from geomem.config import BlockConfig
from geomem.construction import Construction, Readout
from geomem.facts import Facts
from geomem.layout import RELATION, Layout, Slot


def attention_only(facts: Facts) -> Construction:
  """One head per relation, no MLP: d = R·m + ⌈log₂R⌉ + 2, margin 2."""
  R, code, rho = facts.relations, codes.Sign(facts.attributes), codes.Sign(facts.relations)
  layout = Layout.of(
    Slot('blocks', ((RELATION, R),), code),
    Slot('relation', (), rho, RELATION),
    Slot('is_subject'),
    Slot('is_relation'),
  )
  sized = BlockConfig(heads=R, head_dim=code.width)
  built = parts.draft('attention_only', facts, layout, sized)
  params = built.params
  params['embed']['relations'][:, layout['relation']] = rho.words()
  params['embed']['relations'][:, layout['is_relation']] = 1
  attention, beta = params['blocks_0']['attention'], parts.SHARPNESS
  attention['query'][:, layout['relation'], 0] = beta * rho.words()
  attention['query'][:, layout['is_relation'], 0] = -beta * (rho.width - 1)
  attention['key'][:, layout['is_subject'], 0] = 1
  for r in range(R):
    parts.write_ov(attention, r, parts.copy_ov(layout['blocks', r], layout['blocks', 0]))
  encode = parts.encoder(layout, 'blocks', code, one='is_subject')
  return parts.finish(built, 2, Readout(layout['blocks', 0], code), encode)
