"""One hop: the subject's embedding is a superposition, and the MLP selects (Theorem 4.1).

d = R·m and F = R·m exactly, one head, one hidden layer; a word of m coordinates names one of A
attributes. The residual stream is R blocks of m coordinates. Block r of e_s holds the word of g_r(s);
that is all the memory there is. The relation's embedding e_r is 0 on block r and negative on all
others. Queries and keys are zero, so the last token averages both tokens, and W_V·W_O, which copies
the blocks, doubles the mean (`scale=2`). At the last token, which already holds e_r, this leaves

  x = e_s + 2 e_r       the answer's word in block r, and nothing positive elsewhere,
  hidden = ReLU(x)      keeps what is positive in block r: the gate *is* the sum,
  out                   adds the blocks up and writes the answer's word over block 0,

and the unembedding reads block 0.
"""

import numpy as np

from constructions import parts
from geomem import codes
from geomem.config import BlockConfig
from geomem.construction import Construction, Readout
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.layout import RELATION, Layout, Slot


def selector(facts: Facts) -> Construction:
  """Sign code, m = ⌈log₂ A⌉: every weight in {0, ±½, ±1, 2, −4, 8}, one bit per coordinate, margin 4.

  The old contents of block 0 shift a logit difference by at most 4h against a signal of 8h, where
  h ≥ 1 is the Hamming distance of the two codewords.
  """
  code = codes.Sign(facts.attributes)
  built = _selector('selector', facts, code, gain=8, bias=True, margin=4)
  built.params['blocks_0']['mlp']['out_bias'][built.layout['blocks', 0]] = -4
  return built


def constant_weight(facts: Facts) -> Construction:
  """Words of 0 and 1 of constant weight, m the least with C(m, ⌊m/2⌋) ≥ A: no biases; margin 3.

  If two words swap h ≥ 1 ones, the signal is 4h, and the old contents of block 0 take at most h from it.
  """
  code = codes.ConstantWeight(facts.attributes)
  return _selector('selector_constant_weight', facts, code, gain=4, bias=False, margin=3)


def _selector(name, facts, code, *, gain, bias, margin) -> Construction:
  R, m = facts.relations, code.width
  layout = Layout.of(Slot('blocks', ((RELATION, R),), code))
  rectified = codes.Bits(code.count) if isinstance(code, codes.Sign) else code
  hidden = Layout.of(Slot('selected', ((RELATION, R),), rectified))
  sized = BlockConfig(head_dim=layout.dim)
  built = parts.draft(name, facts, layout, sized, hidden=((hidden,),), bias=bias)
  block = built.params['blocks_0']
  built.params['embed']['relations'][:] = -parts.all_but_own(R, m) / 2
  parts.write_ov(block['attention'], 0, parts.copy_ov(layout['blocks'], layout['blocks'], scale=2))
  block['mlp']['in'][:] = np.eye(R * m)
  block['mlp']['out'][:, layout['blocks', 0]] = gain * parts.sum_of_blocks(R, m)
  readout = Readout(layout['blocks', 0], code)
  return parts.finish(built, margin, readout, parts.encoder(layout, 'blocks', code))


def selector_residual(facts: Facts) -> Construction:
  """F = (R−1)·m (ours): relation 0 needs no gate, as block 0 already holds its answer; margin 2.

  Hidden unit i of relation q ≥ 1 is ReLU(x_qi − x_0i). If q is queried, block 0 holds
  c_{g_0(s)} − 2, and the units are 2 + c_{g_q(s)} − c_{g_0(s)}; if not, they are 0. The MLP adds all
  units to block 0, which then holds c_{g_r(s)}. No biases.
  """
  code, R = codes.Sign(facts.attributes), facts.relations
  m = code.width
  layout = Layout.of(Slot('blocks', ((RELATION, R),), code))
  gated = Layout.of(Slot('difference', ((RELATION, R - 1), ('bit', m))))
  hidden = ((gated,),) if R > 1 else ()
  sized = BlockConfig(head_dim=layout.dim)
  built = parts.draft('selector_residual', facts, layout, sized, hidden=hidden, bias=False)
  block, asked = built.params['blocks_0'], built.params['embed']['relations']
  asked[0] = -parts.all_but_own(R, m)[0]
  asked[1:] = -2 * parts.all_but_own(R, m)[1:]
  asked[1:, layout['blocks', 0]] = -1
  parts.write_ov(block['attention'], 0, parts.copy_ov(layout['blocks'], layout['blocks'], scale=2))
  if R > 1:
    rest = slice(m, R * m)
    block['mlp']['in'][rest] = np.eye(gated.dim)
    block['mlp']['in'][layout['blocks', 0]] = -parts.sum_of_blocks(R - 1, m).T
    block['mlp']['out'][:, layout['blocks', 0]] = parts.sum_of_blocks(R - 1, m)
  readout = Readout(layout['blocks', 0], code)
  return parts.finish(built, 2, readout, parts.encoder(layout, 'blocks', code))


def multilevel(facts: Facts, bits: int = 4) -> Construction:
  """b bits per coordinate: d = (R+1)·⌈m/b⌉ + 1, F = R·⌈m/b⌉, m = ⌈log₂A⌉, margin 1.

  This trades dimensions for precision; the number of bits is conserved, R·log₂A per subject. The
  answer is written into a slot of its own, where nothing else adds to its levels. A constant 1 next to
  it brings −|v_a|² into the logits 2⟨v_a, x⟩ − |v_a|².
  """
  code = codes.MultiLevel(facts.attributes, bits)
  R, m = facts.relations, code.width
  if (largest := 2 * m * code.top**2) > 2**24:
    raise InputError(
      f'multi-level code with {bits} bits per coordinate: sums reach {largest}, more than float32 adds '
      'exactly (2²⁴); use fewer bits'
    )
  layout = Layout.of(Slot('blocks', ((RELATION, R),), code), Slot('one'), Slot('answer', (), code))
  hidden = Layout.of(Slot('selected', ((RELATION, R),), code))
  memory = slice(0, layout['one'].stop)
  # By default, accelerators round the operands of products to as few as 8 significant bits.
  precision = 'highest' if m * code.top**2 > 2**8 else None
  sized, name = BlockConfig(head_dim=memory.stop), 'selector_multilevel'
  built = parts.draft(
    name, facts, layout, sized, hidden=((hidden,),), bias=False, precision=precision
  )
  block = built.params['blocks_0']
  built.params['embed']['relations'][:, layout['blocks']] = -code.top / 2 * parts.all_but_own(R, m)
  parts.write_ov(block['attention'], 0, parts.copy_ov(memory, memory, scale=2))
  block['mlp']['in'][layout['blocks']] = np.eye(R * m)
  block['mlp']['out'][:, layout['answer']] = parts.sum_of_blocks(R, m)
  readout = Readout(slice(layout['one'].start, layout['answer'].stop), code)
  return parts.finish(built, 1, readout, parts.encoder(layout, 'blocks', code, one='one'))
