"""k hops, a share β of the last level in the embedding and the rest in the weights (ours; Theorem 4.2's middle).

For every path of k−1 relations, the embedding holds the answers to S = βR ≥ 1 of the R possible
last relations, 0 … S−1. Let t be the subject that the path leads to. As g_0 is a bijection, the
first of these words, that of g_0(t), identifies t. So the other R − S relations need nothing in the
embedding: the weights map g_0(t) to g_r(t), and nothing else in the weights depends on the facts.
Depth 2,

  d = S·(R^{k−1} + 1)·m + R + ⌈log₂(k+1)⌉ + 1,
  F = S·R^{k−1}·m, then (N + S·m + R − S, (R − S + 1)·m), without the N where S = R.

In block 1 attention brings the subject's branches and closes (with −1) all but the queried path's,
as in `precomputed_depth1`. The MLP writes the S words of the open branch into the slot `words`. In
block 2, one detector per subject recognises g_0(t) in the first word. If the queried relation r is
not stored (r ≥ S), AND-units of detectors and relation flag give the bits of g_r(t); if it is,
units ReLU(word + 2·1_r − 2) copy them from its word. The output layer writes the answer's word
over the first word, where the unembedding reads it. Margin 2.

If g_0 is not a bijection, or β = 0, t itself is stored too: S + 1 words per branch, in d and in the first F.
"""

import math

import numpy as np

from constructions import parts
from geomem import codes, queries
from geomem.config import BlockConfig
from geomem.construction import Construction, Readout
from geomem.errors import InputError
from geomem.facts import Facts, check_closed
from geomem.layout import ATTRIBUTE, BRANCH, POSITION, RELATION, Layout, Slot


def partly_precomputed(facts: Facts, hops: int, beta: float | None = None) -> Construction:
  """`beta`: the share S/R, a multiple of 1/R; by default ⌈R/2⌉/R. Margin 2."""
  check_closed(facts, hops)
  R, code, bits = facts.relations, codes.Sign(facts.attributes), codes.Bits(facts.attributes)
  S = _stored(R, beta)
  maps_WxN, own = _words(facts, S)
  W, branches = len(maps_WxN), R ** (hops - 1)
  layout = Layout.of(
    Slot('tree', ((BRANCH, branches), ('stored', W)), code),
    Slot('words', (('stored', W),), code),
    Slot('relation', (), codes.OneHot(R), RELATION),
    Slot('position', (), codes.Sign(hops + 1), POSITION),
    Slot('one'),
  )
  kept = Layout.of(Slot('kept', ((BRANCH, branches), ('stored', W)), bits))
  hidden = (kept,), _last_hop(facts, S)
  key_dim, head_dim = codes.log2_ceil(hops + 1), max(kept.dim, R)
  blocks = BlockConfig(heads=hops, key_dim=key_dim, head_dim=head_dim), BlockConfig()
  built = parts.draft('partly_precomputed', facts, layout, *blocks, hops=hops, hidden=hidden)
  params = built.params
  params['embed']['relations'][:, layout['relation']] = np.eye(R)
  parts.number_positions(built)
  encode = parts.encoder(layout, 'tree', code)
  ends_BxN = queries.tree(facts.answers_RxN, hops - 1)
  params['embed']['subjects'] = encode(
    maps_WxN[:, ends_BxN].swapaxes(0, 1).reshape(-1, facts.subjects)
  )
  _keep_branch(params['blocks_0'], layout, R, hops)
  _answer(params['blocks_1']['mlp'], facts, layout, hidden[1], S, maps_WxN[0], own)
  whole = S == R and W == R  # then the embedding holds all answers, in the order of their paths
  return parts.finish(built, 2, Readout(layout['words', 0], code), encode if whole else None)


def fact_bits(subjects: int, relations: int, hops: int, stored: int) -> tuple[int, int]:
  """Bits of an embedding, and fact-dependent bits of the weights, for S = `stored` ≥ 1 and bijections.

  The detectors and the unembedding, N·m bits each, are the same for all facts.
  """
  m = codes.Sign(subjects).width
  return stored * relations ** (hops - 1) * m, (relations - stored) * subjects * m


def _stored(R: int, beta: float | None) -> int:
  """S, the number of last relations whose answers are in the embedding."""
  stored = -(-R // 2) if beta is None else beta * R
  if not (math.isfinite(stored) and abs(stored - round(stored)) < 0.05 and 0 <= round(stored) <= R):
    raise InputError(f'beta is {beta}; it must be one of 0, 1/{R}, … 1, steps of one relation')
  return round(stored)


def _words(facts: Facts, S: int) -> tuple[np.ndarray, int]:
  """The maps WxN whose words every branch stores, the first one invertible; and the index of relation 0."""
  maps_SxN = facts.answers_RxN[:S]
  if S and len(np.unique(maps_SxN[0])) == facts.subjects:
    return maps_SxN, 0
  return np.concatenate([np.arange(facts.subjects, dtype=np.int32)[None], maps_SxN]), 1


def _last_hop(facts: Facts, S: int) -> tuple[Layout, Layout]:
  """The units of block 2: detectors, gated stored words and relation flags; then the answer's bits."""
  N, R, bits = facts.subjects, facts.relations, codes.Bits(facts.attributes)
  rest = [Slot('detector', (), codes.OneHot(N), ATTRIBUTE)] if S < R else []
  return (
    Layout.of(*rest, Slot('chosen', (('stored', S),), bits), Slot('asked', ((RELATION, R - S),))),
    Layout.of(Slot('looked_up', ((RELATION, R - S),), bits), Slot('read', (), bits)),
  )


def _keep_branch(block: dict, layout: Layout, R: int, hops: int):
  """Block 1: fetch the tree, close every branch off the queried path, and write the open one's words."""
  words, tree = layout['words'], layout['tree']
  width, paths_BxK = words.stop - words.start, queries.every_path(R, hops - 1)
  parts.fetch(block['attention'], 0, layout, 0, parts.copy_ov(tree, tree))
  for hop in range(hops - 1):
    closing = layout['relation'], tree, -parts.off_path(paths_BxK, hop, R, width)
    parts.fetch(block['attention'], hop + 1, layout, hop + 1, closing)
  block['mlp']['in'][tree] = np.eye(tree.stop - tree.start)
  block['mlp']['out'][:, words] = 2 * parts.sum_of_blocks(len(paths_BxK), width)
  block['mlp']['out_bias'][words] = -1


def _answer(mlp: dict, facts: Facts, layout: Layout, hidden, S: int, key_N: np.ndarray, own: int):
  """Block 2: write the answer, as 4·bits − 2, over the first word; from stored words or from the weights."""
  first, second = hidden
  R, code = facts.relations, layout.code('words')
  m, relation, answer = code.width, layout['relation'].start, layout['words', 0]
  if S < R:
    mlp['in'][layout['words', 0], first['detector']] = code.words().T
    mlp['in_bias'][first['detector']] = -(m - 1)
    subject_N = np.argsort(key_N)  # by first word
    answers_NxR = facts.answers_RxN[S:, subject_N].T
    looked_up = codes.Bits(code.count).words()[answers_NxR].reshape(len(answers_NxR), -1)
    mlp['middle'][first['detector'], second['looked_up']] = looked_up
  for r in range(S):
    chosen = first['chosen', r]
    mlp['in'][layout['words', own + r], chosen] = np.eye(m)
    mlp['in'][relation + r, chosen] = 2
    mlp['middle'][chosen, second['read']] = np.eye(m)
  mlp['in_bias'][first['chosen']] = -2
  asked = slice(relation + S, relation + R)
  mlp['in'][asked, first['asked']] = np.eye(R - S)
  mlp['middle'][first['asked'], second['looked_up']] = np.repeat(np.eye(R - S), m, axis=1)
  mlp['middle_bias'][second['looked_up']] = -1
  mlp['out'][:, answer] = 4 * parts.sum_of_blocks(R - S + 1, m)
  mlp['out_bias'][answer] = -2
