"""k hops with the facts in the MLP, j hops per layer: subject detectors, then AND-units (ours).

depth ⌈k/j⌉, d = 2m + R + jR + ⌈log₂(k+1)⌉ + 1, F = (N + jR, R^j·m + m + jR). The slot `state` holds
the sign code of the current subject, which the first layer copies from the subject token. In each
layer, j heads copy the one-hot codes of the next j relations into `fetched`.

First hidden layer: one detector per subject, ReLU(⟨c_s, state⟩ − (m−1)), which is 1 for the current
subject and 0 for all others; and a copy of the j one-hots. Second hidden layer: for bit i of every
path w, an AND-unit ReLU(Σ_s b_i(answer of s on path w)·detector_s + Σ_h fetched_h(w_h) − j), which is
1 if w is the queried path and the answer's bit is 1, and 0 otherwise; and copies of the old state's
bits and of the one-hots. The output layer adds 2·(new bits) − 2·(old bits) to the state, which turns
it into the answer's word, and subtracts the one-hots from `fetched`. The unembedding reads the state.
Margin 2.

With j = 1 the width is N + R where a unit per fact takes N·R; with j = k the depth is 1 and all
answers are in the MLP. If fewer hops are left for the last layer, it is built for just those.
"""

import numpy as np

from constructions import parts
from geomem import codes, queries
from geomem.config import BlockConfig
from geomem.construction import Construction, Readout
from geomem.errors import InputError
from geomem.facts import Facts, check_closed
from geomem.layout import BRANCH, POSITION, RELATION, SUBJECT, Layout, Slot


def factored(facts: Facts, hops: int, hops_per_layer: int = 1) -> Construction:
  """⌈k/j⌉ layers of width N + jR and R^j·m + m + jR, j = `hops_per_layer`. Margin 2."""
  check_closed(facts, hops)
  if not 1 <= hops_per_layer <= hops:
    raise InputError(f'hops_per_layer is {hops_per_layer}; it must be 1 … {hops}, the hops')
  N, R = facts.subjects, facts.relations
  c, one_hot = codes.Sign(N), codes.OneHot(R)
  layout = Layout.of(
    Slot('subject', (), c, SUBJECT),
    Slot('state', (), c, SUBJECT),
    Slot('relation', (), one_hot, RELATION),
    Slot('fetched', (('hop', hops_per_layer),), one_hot, RELATION),
    Slot('position', (), codes.Sign(hops + 1), POSITION),
    Slot('one'),
  )
  starts = range(0, hops, hops_per_layer)
  spans = [min(hops_per_layer, hops - start) for start in starts]
  hidden = tuple(_hidden(N, R, span) for span in spans)
  blocks = tuple(
    BlockConfig(
      heads=span + (start == 0),
      key_dim=codes.log2_ceil(hops + 1),
      head_dim=max(c.width, R) if start == 0 else R,
    )
    for start, span in zip(starts, spans, strict=True)
  )
  built = parts.draft('factored', facts, layout, *blocks, hops=hops, hidden=hidden)
  params = built.params
  params['embed']['subjects'][:, layout['subject']] = c.words()
  params['embed']['relations'][:, layout['relation']] = np.eye(R)
  parts.number_positions(built)
  for i, (start, span) in enumerate(zip(starts, spans, strict=True)):
    block = params[f'blocks_{i}']
    for h in range(span):
      relation = parts.copy_ov(layout['relation'], layout['fetched', h])
      parts.fetch(block['attention'], h, layout, start + h + 1, relation)
    if start == 0:
      subject = parts.copy_ov(layout['subject'], layout['state'])
      parts.fetch(block['attention'], span, layout, 0, subject)
    _fill_mlp(block['mlp'], facts, layout, hidden[i], span)
  return parts.finish(built, 2, Readout(layout['state'], c))


def _hidden(N: int, R: int, span: int) -> tuple[Layout, Layout]:
  """The units of both hidden layers of a block that takes `span` hops."""
  bits, relations = codes.Bits(N), Slot('relations', (('hop', span),), codes.OneHot(R), RELATION)
  return (
    Layout.of(Slot('detector', (), codes.OneHot(N), SUBJECT), relations),
    Layout.of(Slot('path', ((BRANCH, R**span),), bits), Slot('old', (), bits, SUBJECT), relations),
  )


def _fill_mlp(mlp: dict, facts: Facts, layout: Layout, hidden, span: int):
  first, second = hidden
  R, c = facts.relations, codes.Sign(facts.subjects)
  m, bits = c.width, codes.Bits(facts.subjects).words()
  fetched = slice(layout['fetched'].start, layout['fetched'].start + span * R)
  mlp['in'][layout['state'], first['detector']] = c.words().T
  mlp['in_bias'][first['detector']] = -(m - 1)
  mlp['in'][fetched, first['relations']] = np.eye(span * R)
  # Row s, path w: the bits of the answer. An AND-unit sums to j + 1 with its j flags, else at most to j.
  answers_NxW = queries.tree(facts.answers_RxN, span).T
  mlp['middle'][first['detector'], second['path']] = bits[answers_NxW].reshape(len(bits), -1)
  paths = queries.every_path(R, span)
  for h in range(span):
    flags_RxW = (paths[:, h] == np.arange(R)[:, None]).astype(np.float32)
    relation = slice(first['relations', h].start, first['relations', h].stop)
    mlp['middle'][relation, second['path']] = np.repeat(flags_RxW, m, axis=1)
  mlp['middle_bias'][second['path']] = -span
  mlp['middle'][first['detector'], second['old']] = bits
  mlp['middle'][first['relations'], second['relations']] = np.eye(span * R)
  # state ← state + 2·(new bits) − 2·(old bits), which is a sign code again; `fetched` is cleared.
  mlp['out'][second['path'], layout['state']] = 2 * parts.sum_of_blocks(R**span, m)
  mlp['out'][second['old'], layout['state']] = -2 * np.eye(m)
  mlp['out'][second['relations'], fetched] = -np.eye(span * R)
