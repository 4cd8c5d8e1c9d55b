"""Three proofs that a model knows its facts: by exhaustion, by certificate, for all facts at once.

`exhaustive`  compares every query's answer with all others, without a queries × answers matrix in memory.
`certificate` takes every query's residual from the real forward pass; if its answer slot decodes to the
              right word with room to spare, this proves the argmax over all answers without their logits.
`universal`   tries every content that a subject's embedding could have: one check for all fact tables.

Shapes: B queries, P answer positions in a query (up to k with chain of thought, else 1), A answers,
S × C a block's subjects and paths, D residual width.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from geomem import facts as fact
from geomem import model
from geomem import queries as query
from geomem.config import Config
from geomem.construction import check_representable
from geomem.errors import InputError
from geomem.facade import FactModel
from geomem.facts import Facts

CHECKS = ('exhaustive', 'certificate', 'universal')
MAX_NUMBERS = 2**27  # limit for all contents of an embedding together
MAX_QUERIES = 2**33  # takes hours; more would take days
ANSWER_BLOCK = 2048


@dataclasses.dataclass(frozen=True)
class Report:
  """`min_margin`: the least logit(answer) − largest other logit over all queries; with a certificate, a
  lower bound on it where it is positive.

  >>> Report('exhaustive', 'float32', queries=8, correct=6, min_margin=-1.0).accuracy
  0.75
  """

  check: str
  dtype: str
  queries: int
  correct: int
  min_margin: float

  @property
  def accuracy(self) -> float:
    return self.correct / self.queries

  def holds(self, margin: float) -> bool:
    """Whether every query is right, with at least the promised margin."""
    return self.correct == self.queries and self.min_margin >= margin


def margins(
  config: Config, params: dict, x_BxD: Array, targets_B: Array, answer_block: int = ANSWER_BLOCK
) -> Array:
  """logit(answer) − largest other logit, for every row, computed in blocks of answers."""
  kind = jnp.dtype(config.dtype)
  rows_AxD = model.apply(config, params, method='unembedding')
  chex.assert_shape(rows_AxD, (config.answers, config.answer_dim or config.dim))
  chex.assert_shape(x_BxD, (*targets_B.shape, rows_AxD.shape[1]))
  dot = functools.partial(model.product, precision=config.precision)
  own_B = dot('bd,bd->b', x_BxD, rows_AxD[targets_B].astype(kind))
  size = min(answer_block, config.answers)

  def best_other(i, best_B):
    # The last block overlaps the one before it instead of running past the end.
    start = jnp.minimum(i * size, config.answers - size)
    block = jax.lax.dynamic_slice_in_dim(rows_AxD, start, size).astype(kind)
    logits = dot('ad,bd->ab', block, x_BxD)
    is_own = start + jnp.arange(size)[:, None] == targets_B[None]
    return jnp.maximum(best_B, jnp.max(jnp.where(is_own, -jnp.inf, logits), axis=0))

  start = jnp.full(targets_B.shape, -jnp.inf, jnp.float32)
  return own_B - jax.lax.fori_loop(0, -(-config.answers // size), best_other, start)


def residuals(
  config: Config, params: dict, answers: Array, subjects_S: Array, paths_CxK: Array,
  chain_of_thought: bool, target: Callable[..., Array], said: tuple[int, ...] | None = None,
) -> tuple[Array, Array]:  # fmt: skip
  """Final residuals SxCxPxD where an answer is due, and the targets SxCxP.

  `said`: the hops after which a chain of thought says a subject (None: every hop).
  """
  s, (c, k) = subjects_S.shape[0], paths_CxK.shape
  pairs = (jnp.repeat(subjects_S, c), jnp.tile(paths_CxK, (s, 1)))
  targets = target(answers, *pairs).reshape(s, c, -1)
  if not chain_of_thought:
    x = model.apply(config, params, subjects_S, paths_CxK, method='all_pairs')
    return x[:, :, None], targets[..., -1:]
  due = np.arange(1, k + 1) if said is None else np.array(said)
  read = np.concatenate([np.arange(k + 1), k + due[:-1]])
  tokens = query.chains(answers, *pairs)[:, read]
  x = model.apply(config, params, tokens, last=len(due), method='residual')
  return x.reshape(s, c, len(due), -1), targets[..., due - 1]


@functools.partial(
  jax.jit, static_argnames=('config', 'chain_of_thought', 'score', 'target', 'said')
)
def _check_block(config, params, answers, block, chain_of_thought, score, more, target, said):
  """How many queries of a block are right at every step, and the least margin among them.

  `more`: further arguments of `score`, passed as data so that other facts need no recompilation.
  """
  subjects_S, paths_CxK, valid_SxC = block
  asked = answers, subjects_S, paths_CxK, chain_of_thought
  x, targets = residuals(config, params, *asked, target, said)
  margin = score(config, params, x.reshape(-1, x.shape[-1]), targets.reshape(-1), *more)
  # NaN counts as wrong: it compares false, but would not become the minimum.
  margin = jnp.nan_to_num(margin, nan=-jnp.inf, posinf=jnp.inf, neginf=-jnp.inf)
  margin_SxC = margin.reshape(targets.shape).min(axis=-1)
  right = jnp.sum(valid_SxC & (margin_SxC > 0))
  return right, jnp.min(jnp.where(valid_SxC, margin_SxC, jnp.inf))


def _check(
  check: str, config: Config, params, answers, hops: int, score, *, block_size: int = 4096,
  progress: Callable[[int, int], None] | None = None, chain_of_thought: bool = False,
  target=query.compose, sample: tuple | None = None, more: tuple = (), said: tuple | None = None,
) -> Report:  # fmt: skip
  """Run `score` over all N·R^k queries, block by block, or over a sample (key, count) of them."""
  fact.check_sizes(config.subjects, config.relations, hops)
  # A block's widest array stays within half a gigabyte.
  widest = max(config.dim, *(max(b.hidden, default=1) for b in config.blocks)) * config.length
  sizes, size = (config.subjects, config.relations, hops), min(block_size, max(1, 2**27 // widest))
  if sample is not None:
    blocks = iter(some := list(query.sampled_blocks(sample[0], *sizes, sample[1], size)))
    total, queries = len(some), sum(block.valid_SxP.size for block in some)
  else:
    total, queries = query.count_blocks(*sizes, size), config.subjects * config.relations**hops
    blocks = query.blocks(*sizes, size)
  if queries > MAX_QUERIES:
    raise InputError(
      f'{config.subjects:,} subjects × {config.relations:,} relations over {hops} hops are more than '
      f'{MAX_QUERIES:,} queries to check; use fewer, or verify.accuracy with a sample'
    )
  params, answers, more = jax.device_put((params, answers, more))
  right, least = 0, np.inf
  for i, block in enumerate(blocks):
    how = chain_of_thought, score, more, target, said
    got = _check_block(config, params, answers, block, *how)
    right, least = right + int(got[0]), min(least, float(got[1]))
    if progress:
      progress(i + 1, total)
  return Report(check, config.dtype, queries, right, least)


def accuracy(config: Config, params: dict, facts: Facts, hops: int = 1, **options: Any) -> Report:
  """Check every query (or a `sample` of them: a key and a count) against every answer, for any parameters."""
  fact.check_fit(facts, config)
  if hops > 1:
    fact.check_closed(facts, hops)
  return _check('exhaustive', config, params, facts.answers_RxN, hops, margins, **options)


def exhaustive(c: FactModel, dtype: str = 'float32', **options: Any) -> Report:
  """Check every query against every answer."""
  check_representable(c, dtype)
  config = c.config.replace(dtype=dtype)
  options = {'chain_of_thought': c.chain_of_thought, 'said': c.said, **options}
  return accuracy(config, c.params, c.facts, c.hops, **options)


def certificate(c: FactModel, dtype: str = 'float32', **options: Any) -> Report:
  """Check every query, bounding its margin from its answer slot alone.

  The bound holds for one unembedding, so the model is first checked to have exactly that one;
  if it does not, nothing is certified.
  """
  if c.readout is None:
    raise InputError(f'{c.name} has no certificate; use --check=exhaustive')
  check_representable(c, dtype)
  # As the model sees it: a dtype that rounds the unembedding changes it.
  rows_AxD = np.asarray(c.params['unembed']['answers']).astype(jnp.dtype(dtype), copy=False)
  if c.config.tied or not c.readout.matches(rows_AxD):
    return Report('certificate', dtype, c.queries, 0, -np.inf)
  asked = c.config.replace(dtype=dtype), c.params, c.facts.answers_RxN, c.hops
  more = c.readout, c.readout.largest(c.config.dim)
  chain = {'chain_of_thought': c.chain_of_thought, 'said': c.said}
  options = {'block_size': 2**14, **chain, **options}
  return _check('certificate', *asked, _certified_margins, more=more, **options)


def _certified_margins(config, params, x_BxD, targets_B, readout, largest_D):
  """The readout's bound, minus the most that rounding can take from two logits; -inf where x is not finite."""
  bound_B = readout.bound(params['unembed']['answers'], x_BxD, targets_B)
  x_BxD = x_BxD.astype(jnp.float32)
  size_B = jnp.sum(jnp.abs(x_BxD) * largest_D[None], axis=1)
  slack_B = 2 * jnp.count_nonzero(largest_D).astype(jnp.float32) * 2.0**-23 * size_B
  for bits in (0, 10):  # sums of multiples of 2⁻ᵇ that stay small enough are exact
    whole_BxD = (largest_D[None] == 0) | (x_BxD * 2.0**bits == jnp.round(x_BxD * 2.0**bits))
    slack_B = jnp.where(jnp.all(whole_BxD, axis=1) & (size_B * 2.0**bits < 2**23), 0.0, slack_B)
  return jnp.where(jnp.all(jnp.isfinite(x_BxD), axis=1), bound_B - slack_B, -jnp.inf)


def universal(c: FactModel, dtype: str = 'float32', **options: Any) -> Report:
  """Check every possible content of an embedding, answered through the model's own other weights.

  With W answers stored in an embedding these are A^W subjects, which hold all fact tables at once.
  This proves the model right for its own facts if its embeddings are what its facts encode to: all
  queries of a subject whose embedding differs count as wrong.
  """
  check_representable(c, dtype)
  stored, choices = universal_contents(c)
  assert c.encode is not None  # or universal_contents would have refused
  every = fact.every_content(choices)
  own_WxN = query.tree(c.facts.answers_RxN, c.hops)
  differs_N = np.any(np.asarray(c.params['embed']['subjects']) != c.encode(own_WxN), axis=1)
  params = {**c.params, 'embed': {**c.params['embed'], 'subjects': c.encode(every)}}
  asked = c.config.replace(dtype=dtype, subjects=every.shape[1]), params, every, c.hops
  report = _check('universal', *asked, margins, target=query.look_up, **options)
  if not differs_N.any():
    return report
  wrong = int(differs_N.sum()) * stored
  return dataclasses.replace(report, correct=max(0, report.correct - wrong), min_margin=-np.inf)


def universal_contents(c: FactModel) -> tuple[int, tuple[np.ndarray, ...]]:
  """The number of answers in an embedding, and what each can be; refuses models without a universal check."""
  if c.encode is None or c.chain_of_thought:
    loaded = '' if c.chain_of_thought else ', or the model was loaded, and its encoder is not saved'
    raise InputError(
      f'{c.name} has no universal check: one embedding does not hold all answers{loaded}; use another check'
    )
  stored = c.facts.relations**c.hops
  choices = c.choices or (np.arange(c.facts.attributes),) * stored
  numbers = sum(np.log2(len(choice)) for choice in choices) + np.log2(c.config.dim)
  if numbers > np.log2(MAX_NUMBERS):
    raise InputError(
      f'{c.name}: {c.facts.attributes}^{stored} contents of {c.config.dim} coordinates are more than '
      f'{MAX_NUMBERS:,} numbers; use fewer subjects, relations or hops for --check=universal'
    )
  return stored, choices
