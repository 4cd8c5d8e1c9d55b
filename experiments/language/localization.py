"""Where in a language model one attribute is selected from a row that is the sum of several.

At every layer: which attributes, the one asked for and the others, a linear map reads at the subject's token and at the
prompt's last one; whether patching in the residual of a subject that differs in one attribute, at either token, brings
that attribute's answer, or leaves it alone; and which blocks' attention and MLP, and which heads, the answers need.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.language.case import record
from geomem.errors import InputError
from geomem.inside import linear_maps
from geomem.pretrained import decoder, fact_encoder, prompts
from geomem.pretrained.decoder import Patch
from geomem.pretrained.prompts import Prompts
from geomem.pretrained.runner import Runner

FITTED, RIDGE = 10, 0.1  # maps are fitted to FITTED times as many subjects as are asked
LAYERS = 16  # at most this many are patched
CHUNK = 128  # subjects in the model at once
SOME = 24  # subjects, where there are many ablations
UNASKED = 'differs in another relation'
INTACT = 'nothing'  # is ablated


class Stream:
  """The residual stream of one prompt, for subjects with these rows: `subject` and `last` (at that token) are NxTxD."""

  def __init__(self, asked: Prompts, p: int, rows_NxD: np.ndarray):
    config, embed = (
      asked.model.config,
      asked.model.params['embed'] | {'rows': jnp.asarray(rows_NxD)},
    )
    if asked.model.names:
      raise InputError('needs prompts of a model without names of its own')
    model = dataclasses.replace(asked.model, params=asked.model.params | {'embed': embed})
    self.runner, count = Runner(model), len(rows_NxD)
    tokens_L = np.array(asked.tokens_P[p], np.int32)
    self.tokens_NxL = np.tile(tokens_L, (count, 1))
    self.tokens_NxL[:, 0] = config.vocabulary + np.arange(count)
    first, every = asked.prefix_P[p], asked.prefixes
    repeated = lambda leaf: np.repeat(np.asarray(leaf[first])[None], count, axis=0)
    self.prefix = jax.tree.map(repeated, every)
    self.last_N = np.full(count, len(tokens_L) - 1, np.int32)
    layers = tuple(range(config.depth + 1))
    about = self.tokens_NxL, self.prefix, self.last_N, layers
    self.subject, _, stream_NxTxLxD = self.runner.residuals(*about)
    self.embedded, self.last = stream_NxTxLxD[:, 0], stream_NxTxLxD[:, :, -1]

  def patched(self, layer: int, position: int, residual_NxD: np.ndarray) -> np.ndarray:
    """The final residuals when this residual replaces the one at a layer and position."""
    count = len(residual_NxD)
    at = lambda value, kind: np.full((count, 1), value, kind)
    patch = Patch(
      at(layer, np.int32), at(position, np.int32), at(0, np.float32), residual_NxD[:, None]
    )
    return self.runner.patched(self.embedded, 0, patch, self.prefix, self.last_N)


def answer_ids(asked: Prompts) -> np.ndarray:
  """A number for every answer of every relation, RxA; answers with the same tokens have the same number."""
  count, most, length = asked.answers_RxAxK.shape
  _, ids = np.unique(asked.answers_RxAxK.reshape(-1, length), axis=0, return_inverse=True)
  return ids.reshape(count, most)


def own_answers(asked: Prompts, answers_RxN: np.ndarray) -> np.ndarray:
  """Every subject's answer to every relation, as a number that is the same for relations that share the answer, RxN."""
  return np.take_along_axis(answer_ids(asked), np.asarray(answers_RxN), axis=1)


def classify(asked: Prompts, answers_RxN, relation_P, chosen_NxP) -> tuple[np.ndarray, np.ndarray]:
  """Whether the answer chosen is right, and whether it is instead the subject's answer to another relation, NxP."""
  right_NxP = chosen_NxP == np.asarray(answers_RxN)[relation_P].T
  said_NxP = answer_ids(asked)[relation_P[None], chosen_NxP]
  own_RxN = own_answers(asked, answers_RxN)
  return right_NxP, ~right_NxP & np.any(said_NxP[None] == own_RxN[:, :, None], axis=0)


def flips(
  asked: Prompts, p: int, rows_NxD, donors_NxD, wanted_N, layers: Sequence[int]
) -> dict[str, list[float]]:
  """How often the answer becomes the wanted one when the residual of a donor's prompt is patched in after each of these
  blocks, at the subject's token or at the prompt's last one."""
  r, found = asked.relation_P[p], {}
  token_A = asked.answers_RxAxK[r, : asked.counts_R[r], 0]
  if len(set(token_A.tolist())) < len(token_A):
    raise InputError(f'{asked.relations[r].name}: two answers begin with the same token')
  own, other = Stream(asked, p, rows_NxD), Stream(asked, p, donors_NxD)
  for name, position in (('subject', 0), ('last token', own.tokens_NxL.shape[1] - 1)):
    donor_NxTxD = other.subject if name == 'subject' else other.last
    final = (own.patched(t, position, donor_NxTxD[:, t]) for t in layers)
    said = [np.argmax(own.runner.logits(x_NxD, token_A), axis=1) for x_NxD in final]
    found[name] = [float(np.mean(said_N == wanted_N)) for said_N in said]
  return found


def residuals(asked: Prompts, p: int, rows_NxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The residuals after every block at the subject and at the last token, NxTxD, with few subjects in memory at once."""
  found = []
  for first in range(0, len(rows_NxD), CHUNK):
    stream = Stream(asked, p, rows_NxD[first : first + CHUNK])
    found.append((np.array(stream.subject), np.array(stream.last)))
  subject, last = (np.concatenate(own) for own in zip(*found, strict=True))
  return subject, last


def probes(case) -> list[dict]:
  """What a linear map reads at every layer, and the effect of patching in another subject's residual there."""
  asked, counts_R, depth = case.asked, case.asked.counts_R, case.model.config.depth
  about = asked, case.training, FITTED * case.subjects, case.rng(20)
  fitted_RxN, held_RxN = fact_encoder.draw_subjects(*about), case.tuples()
  count, every_RxN = fitted_RxN.shape[1], np.concatenate([fitted_RxN, held_RxN], axis=1)
  layers = np.unique(np.linspace(0, depth, LAYERS).round().astype(int)).tolist()
  read: dict[tuple, list] = {}
  for r, p in enumerate(case.first_P):
    rows_NxD, wanted_RxN = case.encoder.rows(every_RxN), held_RxN.copy()
    wanted_RxN[r] += case.rng(21, r).integers(1, counts_R[r], held_RxN.shape[1])
    wanted_RxN[r] %= counts_R[r]
    for name, x_NxTxD in zip(('subject', 'last token'), residuals(asked, p, rows_NxD), strict=True):
      for t, x_NxD in enumerate(np.moveaxis(x_NxTxD, 1, 0)):
        for q, answers_N in enumerate(every_RxN):
          right = _probe(x_NxD, answers_N, counts_R[q], count)
          read.setdefault(('probe', name, None if q == r else 'not asked', t), []).append(right)
    others_RxN, q = held_RxN.copy(), (r + 1) % len(held_RxN)
    others_RxN[q] = (others_RxN[q] + 1) % counts_R[q]
    donors = [(None, wanted_RxN, wanted_RxN[r]), (UNASKED, others_RxN, held_RxN[r])]
    for control, donors_RxN, answer_N in donors[: len(held_RxN)]:  # one relation has no other
      rows = case.encoder.rows(held_RxN), case.encoder.rows(donors_RxN)
      for name, own in flips(asked, p, *rows, answer_N, layers).items():
        for t, value in zip(layers, own, strict=True):
          read.setdefault(('patched', name, control, t), []).append(value)
  return [
    record(what, own, place=place, control=control, layer=t)
    for (what, place, control, t), own in read.items()
  ]


@jax.default_matmul_precision('highest')
def _probe(x_NxD: np.ndarray, answers_N: np.ndarray, answers: int, count: int) -> float:
  """How often a map fitted to the first `count` subjects reads the answers of the others."""
  x, one_hot = jnp.asarray(x_NxD), jax.nn.one_hot(answers_N, answers)
  w_DxA, b_A = linear_maps.affine(x[:count], one_hot[:count], RIDGE)
  guess = jnp.argmax(x[count:] @ w_DxA + b_A[None], axis=1)
  return float(np.mean(np.asarray(guess) == answers_N[count:]))


def blocks(case) -> list[dict]:
  """Ablate one block's attention or MLP, from the subject on: how often the answer is right among its relation's, or
  the same subject's answer to another relation (so that the selection is lost, not the content)."""
  depth = case.model.config.depth
  found = ablated(case, place=INTACT)
  for part, kernel in (('attention', 'output'), ('mlp', 'down')):
    for layer in range(depth):
      found += ablated(case, part, kernel, (layer,), place=part, layer=layer)
    found += ablated(case, part, kernel, (slice(None),), place=f'all {part}')
  return found


def heads(case) -> list[dict]:
  """The same without one attention head."""
  config, name = case.model.config, 'without a head'
  found = ablated(case, count=SOME, measurement=name, place=INTACT)
  for layer, head in itertools.product(range(config.depth), range(config.heads)):
    about = {'place': f'head {head}', 'layer': layer}
    found += ablated(case, 'attention', 'output', (layer, head), SOME, name, **about)
  return found


def ablated(
  case, part: str | None = None, kernel: str = '', at: tuple = (), count: int | None = None, measurement: str = 'without', **about
):  # fmt: skip
  """Records of the answers, from the subject on, when these weights write nothing into the residual stream; or, without
  a part, those of the intact model."""
  held_RxN, params = case.tuples()[:, :count], case.model.params
  if part:
    blocks = params['blocks']
    written = blocks[part][kernel] | {'kernel': blocks[part][kernel]['kernel'].at[at].set(0.0)}
    if 'bias' in written and len(at) == 1:
      written['bias'] = written['bias'].at[at].set(0.0)
    params = params | {'blocks': blocks | {part: blocks[part] | {kernel: written}}}
  asked = dataclasses.replace(case.asked, model=dataclasses.replace(case.model, params=params))
  rows_NxD = case.encoder.rows(held_RxN)
  chosen_NxR = prompts.recall(asked, rows_NxD, held_RxN, case.first_P).chosen_NxP
  right_NxR, other_NxR = classify(asked, held_RxN, asked.relation_P[case.first_P], chosen_NxR)
  return [
    record(measurement, some, control=control, **about)
    for control, some in ((None, right_NxR), ("another relation's answer", other_NxR))
  ]


# --- what the relation controls -------------------------------------------------------------------

PARTS = {
  'queries': ('query',),
  'gates': ('gate', 'up'),
  'queries and gates': ('query', 'gate', 'up'),
  'keys and values': ('key', 'value'),
  'queries, keys, values and gates': ('query', 'key', 'value', 'gate', 'up'),
}


def transplants(case) -> list[dict]:
  """Does attention select, or the MLP? The queries, the keys and values, or the MLP gates, of another relation's prompt for the same subject are
  patched into one relation's prompt, at every token after the subject: whose answer is given? Only for subjects whose
  answers to both differ, and that are answered right without the patch."""
  asked, held_RxN = case.asked, case.tuples()
  rows_NxD, found = case.encoder.rows(held_RxN), []
  for r, q in itertools.permutations(range(len(asked.relations)), 2):
    p, donor = case.first_P[r], case.first_P[q]
    if len(asked.tokens_P[p]) == len(asked.tokens_P[donor]):  # every token has a partner
      found += _transplanted(
        Stream(asked, p, rows_NxD), Stream(asked, donor, rows_NxD), asked, r, q, held_RxN
      )
  return [
    record('transplanted', right, place=name, control=control)
    for name, control in itertools.product(PARTS, (None, 'own answer'))
    if len(
      right := np.concatenate([[], *(own for *about, own in found if about == [name, control])])
    )
  ]


def _transplanted(
  own: Stream, other: Stream, asked: Prompts, r: int, q: int, answers_RxN
) -> list[tuple]:
  """(what was patched, whose answer is meant, whether it is given) for relation r's prompts with parts of relation q's."""
  parts = 'query', 'key', 'value', 'gate' if asked.model.config.gated else 'up'
  blank = {name: np.zeros((len(own.last_N), 0), np.float32) for name in parts}
  token_A, ids_RxA = asked.answers_RxAxK[r, : asked.counts_R[r], 0], answer_ids(asked)

  def run(stream: Stream, given: dict, patched: tuple[str, ...]):
    about = stream.embedded, stream.prefix, stream.last_N, given
    return stream.runner.map(_intercepted, (patched,), *about)

  def said(given: dict, patched: tuple[str, ...]) -> np.ndarray:
    final_NxD, _ = run(own, given, patched)
    return ids_RxA[r, np.argmax(own.runner.logits(final_NxD, token_A), axis=1)]

  _, given = run(other, blank, ())
  own_N, other_N = (ids_RxA[relation, answers_RxN[relation]] for relation in (r, q))
  counts_N = (own_N != other_N) & (said(blank, ()) == own_N)
  found = []
  for name, which in PARTS.items():
    said_N = said(given, tuple(part for part in which if part in parts))
    found += [
      (name, None, (said_N == other_N)[counts_N]),
      (name, 'own answer', (said_N == own_N)[counts_N]),
    ]
  return found


def _intercepted(config, params, x_LxD, prefix, last, given, patched):
  """The final residual, and the queries and inputs to the MLP gates at every block. Those in `patched` are replaced by the
  `given` ones, except at the first token."""
  at = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)

  def step(x_LxD, i):
    seen = {}

    def intercept(call, arguments, options, context):
      out, name = call(*arguments, **options), context.module.name
      if name in given and context.method_name == '__call__':
        seen[name] = out
        out = out.at[1:].set(at(given[name], i)[1:]) if name in patched else out
      return out

    block = jax.tree.map(lambda a: at(a, i), params['blocks'])
    before = at(prefix.k_TxOxGxK, i), at(prefix.v_TxOxGxK, i), prefix.count
    with nn.intercept_methods(intercept):
      x_LxD, _ = decoder.Block(config).apply({'params': block}, x_LxD, *before)
    return x_LxD, seen

  with jax.default_matmul_precision('highest'):
    x_LxD, seen = jax.lax.scan(step, x_LxD, jnp.arange(config.depth))
  return x_LxD[last], seen
