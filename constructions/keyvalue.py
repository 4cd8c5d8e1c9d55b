"""k hops with the facts in the MLP: one hidden unit per fact, one layer per hop (Theorem 4.3, first half).

depth k, F = N·R per layer, d = 2m + 2⌈log₂R⌉ + ⌈log₂(k+1)⌉ + 1. The slot `state` holds the sign code
of the current subject, which layer 1 copies from the subject token. Attention in layer l copies the
sign code of r_l into `fetched`. Hidden unit
(s, r) = ReLU(⟨c_s, state⟩ + ⟨ρ_r, fetched⟩ − (m + ⌈log₂R⌉) + 1) is 1 if both match and 0 otherwise. It
adds c_{g_r(s)} − c_s to the state, which becomes the next subject's word, and −ρ_r to `fetched`, which
becomes empty. The unembedding reads the state after layer k. Margin 2.
"""

import functools

import numpy as np

from constructions import parts
from geomem import codes
from geomem.config import BlockConfig
from geomem.construction import Construction, Readout
from geomem.facts import Facts, check_closed
from geomem.layout import POSITION, RELATION, SUBJECT, Layout, Slot


def keyvalue(facts: Facts, hops: int) -> Construction:
  """k layers of N·R hidden units, one per fact. Margin 2."""
  check_closed(facts, hops)
  N, R = facts.subjects, facts.relations
  c, rho = codes.Sign(N), codes.Sign(R)
  layout = Layout.of(
    Slot('subject', (), c, SUBJECT),
    Slot('state', (), c, SUBJECT),
    Slot('relation', (), rho, RELATION),
    Slot('fetched', (), rho, RELATION),
    Slot('position', (), codes.Sign(hops + 1), POSITION),
    Slot('one'),
  )
  hidden = Layout.of(Slot('memory', ((SUBJECT, N), (RELATION, R))))
  relation = parts.copy_ov(layout['relation'], layout['fetched'])
  subject = parts.copy_ov(layout['subject'], layout['state'])
  sized = functools.partial(BlockConfig, key_dim=codes.log2_ceil(hops + 1))
  first = sized(heads=2, head_dim=max(c.width, rho.width))
  later = sized(heads=1, head_dim=max(1, rho.width))
  blocks = (first,) + (later,) * (hops - 1)
  built = parts.draft('keyvalue', facts, layout, *blocks, hops=hops, hidden=((hidden,),) * hops)
  params = built.params
  params['embed']['subjects'][:, layout['subject']] = c.words()
  params['embed']['relations'][:, layout['relation']] = rho.words()
  parts.number_positions(built)
  memory = _memory(facts, layout, c, rho)
  for hop in range(hops):
    block = params[f'blocks_{hop}']
    parts.fetch(block['attention'], 0, layout, hop + 1, relation)
    if hop == 0:
      parts.fetch(block['attention'], 1, layout, 0, subject)
    block['mlp'].update(memory)
  return parts.finish(built, 2, Readout(layout['state'], c))


def _memory(facts: Facts, layout: Layout, c: codes.Sign, rho: codes.Sign) -> dict:
  """Keys (c_s, ρ_r), values (c_{g_r(s)} − c_s, −ρ_r), one unit per fact; the same in every layer."""
  N, R = facts.subjects, facts.relations
  c_words, rho_words = c.words(), rho.words()
  subject_F, relation_F = np.divmod(np.arange(N * R), R)
  keys = np.zeros((layout.dim, N * R), np.float32)
  keys[layout['state']] = c_words[subject_F].T
  keys[layout['fetched']] = rho_words[relation_F].T
  values = np.zeros((N * R, layout.dim), np.float32)
  values[:, layout['state']] = (
    c_words[facts.answers_RxN[relation_F, subject_F]] - c_words[subject_F]
  )
  values[:, layout['fetched']] = -rho_words[relation_F]
  threshold = np.full(N * R, 1 - (c.width + rho.width), np.float32)
  return {
    'in': keys,
    'in_bias': threshold,
    'out': values,
    'out_bias': np.zeros(layout.dim, np.float32),
  }
