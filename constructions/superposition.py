"""The literal linear superposition: random directions in place of blocks (Theorem 4.1, in few dimensions).

e_s = Σ_r A_r c_{g_r(s)}, where the R·m columns of (A_1 … A_R) are random unit vectors in the D
dimensions of the slot `memory`; R·m may be more or less than D. Attention copies the subject's memory
to the relation token, which holds the one-hot 1_r. Hidden units come in gated pairs, F = 2R·m,

  ReLU(±⟨A_ri, x⟩ + G·1_r − G)   with G ≥ any |⟨A_ri, x⟩|.

The difference of a pair is ⟨A_ri, x⟩ if relation r is queried and 0 if not. The MLP writes it to
coordinate i of the slot `answer`, which the unembedding reads, so the logits are the matched filter
⟨A_r c_a, e_s⟩. d = D + R + m. Bit i is read correctly while the noise from the R·m − 1 other
directions, of variance (R·m − 1) / D, stays below 1. Not exact: at N = 1024, R = 8, with
D = 2, 4, 6, 8, 10, 12 times R·m the accuracy is .44, .80, .93, .98, .992, .997
(docs/results/approximate.json, by experiments.approximate).
"""

import math
from collections.abc import Callable

import numpy as np

from constructions import parts
from geomem import codes
from geomem.config import BlockConfig
from geomem.construction import Construction, Readout
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.layout import RELATION, Layout, Slot


def superposition(facts: Facts, dim: int | None = None, seed: int = 0) -> Construction:
  """`dim`: the total residual width; by default D = ⌈2·R·m·ln(4·N·R·m)⌉.

  Proved for the default: with probability 3/4 or more, all N·R queries are right (docs/theory.md,
  δ = ¼). Heuristic: a union bound as if the noise were Gaussian gives 7/8. Measured on random
  bijections, N = 2 … 1024, R = 1 … 8: mean accuracy .993 or more, and every query of every table right
  from N = 16 on.
  """
  R, code = facts.relations, codes.Sign(facts.attributes)
  enough = math.ceil(2 * R * code.width * math.log(4 * facts.subjects * R * code.width))
  layout, hidden = layouts('superposition', R, code, enough, dim)

  def draw() -> np.ndarray:
    """Unit columns, near-orthogonal: inner products are about ±1/√D."""
    rng, shape = np.random.default_rng(seed), (layout['memory'].stop, R * code.width)
    directions_DxRM = rng.standard_normal(shape, np.float32)
    return directions_DxRM / np.linalg.norm(directions_DxRM, axis=0)

  return build('superposition', facts, code, layout, hidden, draw, None)


def build(
  name: str, facts: Facts, code: codes.Code, layout: Layout, hidden: Layout, draw: Callable[[], np.ndarray],
  margin: float | None, gate: float = 0.0,
) -> Construction:  # fmt: skip
  """The superposition of words along the directions that `draw` returns, and the matched filter that reads it.

  `draw` is called only after the size has been accepted. `gate`: a lower bound on G, besides the one
  that closes every gate without noise.
  """
  R, m, memory = facts.relations, code.width, layout['memory']
  sized = BlockConfig(head_dim=memory.stop)
  built = parts.draft(name, facts, layout, sized, hidden=((hidden,),))
  params, directions_DxRM = built.params, draw()
  params['embed']['relations'][:, layout['relation']] = np.eye(R)
  # Attention averages both tokens; a relation's memory is empty, so twice the mean is the subject's.
  parts.write_ov(params['blocks_0']['attention'], 0, parts.copy_ov(memory, memory, scale=2))
  _filter(params['blocks_0']['mlp'], layout, hidden, R, m, directions_DxRM, gate)
  encode = _encoder(layout, code, directions_DxRM)
  return parts.finish(built, margin, Readout(layout['answer'], code), encode)


def layouts(
  name: str, R: int, code: codes.Code, memory: int, dim: int | None = None
) -> tuple[Layout, Layout]:
  """The residual stream and the hidden pairs. `dim`: the total width; the memory gets what the other slots leave."""
  m = code.width
  if dim is not None:
    memory = dim - R - m
  if memory < 1:
    raise InputError(
      f'{name}: dim is {dim}; it must be at least {R + m + 1}: {R} for the relation, '
      f'{m} for the answer, and the rest for the memory'
    )
  filtered = (RELATION, R), ('bit', m)
  return (
    Layout.of(
      Slot('memory', (('direction', memory),)),
      Slot('relation', (), codes.OneHot(R), RELATION),
      Slot('answer', (), code),
    ),
    Layout.of(Slot('positive', filtered), Slot('negative', filtered)),
  )


def _encoder(
  layout: Layout, code: codes.Code, directions_DxRM: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
  """Maps answers to embeddings: the superposition Σ_r A_r c_{answer r} in the memory."""
  words = code.words()

  def encode(answers_RxN: np.ndarray) -> np.ndarray:
    embeddings_NxD = np.zeros((answers_RxN.shape[1], layout.dim), np.float32)
    for answers_N, own_DxM in zip(
      answers_RxN, np.split(directions_DxRM, len(answers_RxN), axis=1), strict=True
    ):
      embeddings_NxD[:, layout['memory']] += words[answers_N] @ own_DxM.T
    return embeddings_NxD

  return encode


def _filter(
  mlp: dict,
  layout: Layout,
  hidden: Layout,
  relations: int,
  m: int,
  directions_DxRM: np.ndarray,
  min_gate: float,
) -> None:
  """Write the matched filter, with G large enough for every table of facts: |⟨A_ri, e_s⟩| ≤ Σ |⟨A_ri, A_qj⟩|."""
  bound = np.abs(directions_DxRM.T @ directions_DxRM).sum(axis=1).max()
  gate = 2.0 ** math.ceil(
    math.log2(max(1.01 * bound, min_gate))
  )  # exact in bfloat16, with room for rounding
  for half, sign in (('positive', 1), ('negative', -1)):
    mlp['in'][layout['memory'], hidden[half]] = sign * directions_DxRM
    mlp['in'][layout['relation'], hidden[half]] = gate * np.repeat(np.eye(relations), m, axis=1)
    mlp['out'][hidden[half], layout['answer']] = sign * parts.sum_of_blocks(relations, m)
  mlp['in_bias'][:] = -gate
