"""One hop, every relation with D answers of its own: no MLP at all (Appendix F).

d = R·⌈log₂D⌉ + ⌈log₂R⌉ and F = 0, against the O(N·R) MLP or attention parameters of Nichani et
al. (2025). Block r of the subject holds the code of its answer within relation r, the relation
carries ρ_r, attention adds the two up, and the unembedding does the rest:
logit of answer (r, j) = ⟨c_j, block r⟩ + ⟨ρ_r, ρ_query⟩. Margin 2.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from constructions import parts
from geomem import codes
from geomem.construction import Construction, blank
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.layout import RELATION, Layout, Slot
from geomem.model import BlockConfig, Config


@dataclasses.dataclass(frozen=True, eq=False)
class DisjointReadout:
  """Rows (r, j): c_j in block r and ρ_r in the relation slot."""

  layout: Layout
  relation_A: np.ndarray
  index_A: np.ndarray

  def rows(self, dim: int) -> np.ndarray:
    """The unembedding that the bound below speaks about, AxD."""
    code, rho = (self.layout.slot(name).code for name in ('blocks', 'relation'))
    rows_AxD = np.zeros((len(self.relation_A), dim), np.float32)
    rows_AxD[:, self.layout['relation']] = rho.words()[self.relation_A]
    for r in range(rho.count):
      own = self.relation_A == r
      rows_AxD[own, self.layout['blocks', r]] = code.words()[self.index_A[own]]
    return rows_AxD

  def matches(self, unembedding_AxD) -> bool:
    return np.array_equal(unembedding_AxD, self.rows(self.layout.dim))

  def bound(self, unembedding_AxD, x_BxD, answers_B):
    """Within relation r as for a sign code. Against another relation, ρ is worth 2 min ρ_i x_i or more,
    the answer's block has Σ c_i x_i, and the best of the other block is at most Σ|x_i| over it."""
    blocks = self.layout.slot('blocks')
    u_BxD, x_BxD = unembedding_AxD[answers_B].astype(jnp.float32), x_BxD.astype(jnp.float32)
    shape = (*x_BxD.shape[:-1], *blocks.shape, blocks.width)
    u_BxRxM = u_BxD[..., self.layout['blocks']].reshape(shape)
    x_BxRxM = x_BxD[..., self.layout['blocks']].reshape(shape)
    agree = u_BxRxM * x_BxRxM
    own = jax.nn.one_hot(jnp.asarray(self.relation_A)[answers_B], blocks.shape[0], dtype=bool)
    within = 2 * jnp.min(agree, axis=(-1, -2), where=own[..., None], initial=jnp.inf)
    best_other = jnp.max(jnp.sum(jnp.abs(x_BxRxM), axis=-1), axis=-1, where=~own, initial=-jnp.inf)
    rho = (u_BxD * x_BxD)[..., self.layout['relation']]
    across = 2 * jnp.min(rho, axis=-1, initial=jnp.inf) + jnp.sum(agree, axis=(-1, -2)) - best_other
    return jnp.minimum(within, across)


def disjoint(facts: Facts) -> Construction:
  relation_A, index_A, largest = _own_sets(facts)
  R, code, rho = facts.relations, codes.Sign(largest), codes.Sign(facts.relations)
  layout = Layout.of(
    Slot('blocks', ((RELATION, R),), code), Slot('relation', (), rho, RELATION)
  )
  if not layout.dim:
    raise InputError('one relation with one answer has nothing to tell apart; give more of either')
  config = Config(
    subjects=facts.subjects,
    relations=R,
    answers=facts.attributes,
    length=2,
    dim=layout.dim,
    blocks=(BlockConfig(head_dim=max(1, R * code.width)),),
  )
  params = blank(config)
  encode_index = parts.encoder(layout, 'blocks', code)
  encode = lambda answers_RxN: encode_index(index_A[answers_RxN])
  readout = DisjointReadout(layout, relation_A, index_A)
  params['embed']['subjects'] = encode(facts.answers_RxN)
  params['embed']['relations'][:, layout['relation']] = rho.words()
  # Both tokens are averaged, and a relation's blocks are empty: twice the mean is the subject.
  blocks = layout['blocks']
  parts.move(params['blocks_0']['attention'], 0, parts.copy(blocks, blocks, times=2))
  params['unembed']['answers'] = readout.rows(layout.dim)
  return Construction(
    'disjoint',
    config,
    params,
    layout,
    facts,
    margin=2,
    readout=readout,
    encode=encode,
    choices=tuple(np.flatnonzero(relation_A == r) for r in range(R)),
  )


def _own_sets(facts: Facts) -> tuple[np.ndarray, np.ndarray, int]:
  """For every attribute its relation and its number within it; the size of the largest set."""
  relation_A = np.full(facts.attributes, -1)
  index_A = np.zeros(facts.attributes, np.int64)
  largest = 0
  for r, answers_N in enumerate(facts.answers_RxN):
    own = np.unique(answers_N)
    if (relation_A[own] >= 0).any():
      raise InputError('disjoint: two relations share an attribute; use the selector for such facts')
    relation_A[own], index_A[own] = r, np.arange(len(own))
    largest = max(largest, len(own))
  if (relation_A < 0).any():
    raise InputError('disjoint: some attribute is nobody\'s answer, so it belongs to no relation')
  return relation_A, index_A, largest
