"""Linear layer, softmax and cross-entropy in one pass over blocks of rows, the gradients with them.

The full rows × answers matrix of logits never exists: each block's logits are computed, turned into
the block's loss and its part of both gradients while they are in cache, and discarded. So the forward
pass of a differentiated call does all the work, and the backward pass only scales the saved gradients.

On a mesh, each device holds its own rows and a slice of the answers. For each block, the devices
along the vocabulary axis gather their rows, each computes the logits of its answers, and the few
numbers per row that depend on all answers (the largest logit, the sum, the target's) are reduced.

Shapes: B rows, D width, A answers, T blocks of S rows.
"""

import functools

import chex
import jax
import jax.numpy as jnp
from chex import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from geomem.errors import InputError
from geomem.mesh import FACTS, SLICED, SPREAD, VOCABULARY
from geomem.model import product


def rows_at_once(answers: int) -> int:
  """Rows per block: few enough to keep their logits in cache, many enough for efficient products."""
  return min(512, max(128, 2**20 // answers))


def cross_entropy(
  x_BxD: Array, u_AxD: Array, targets_B: Array, weights_B: Array | None = None,
  in_use_A: Array | None = None, block: int | None = None, precision: str | None = None,
  mesh: Mesh | None = None, smoothing: float = 0.0, runner_ups: bool = False,
) -> tuple[Array, Array]:  # fmt: skip
  """Σ_b w_b (log Σ_a exp⟨x_b, u_a⟩ − ⟨x_b, u_target⟩), and Σ_b w_b [the target's logit is strictly largest].

  With `runner_ups`, the second value is instead, for every row, the answer with the largest logit other
  than the target. The sums over a are over the answers `in_use_A` (default all; for padded models).
  `smoothing`: weight of the uniform distribution over these answers in the smoothed labels.
  Differentiable in x and u; the second value has no gradient. On a `mesh` the rows must divide evenly
  among all devices, and the answers among those along the vocabulary axis.
  """
  rows = _rows(x_BxD, u_AxD, targets_B, weights_B, in_use_A)
  static = block or rows_at_once(len(u_AxD)), precision, mesh, smoothing, runner_ups
  return _head(static, x_BxD, u_AxD, rows)


def right(
  x_BxD: Array, u_AxD: Array, targets_B: Array, in_use_A: Array | None = None,
  block: int | None = None, precision: str | None = None, mesh: Mesh | None = None,
) -> Array:  # fmt: skip
  """Whether each row's target has the strictly largest logit."""
  rows = _rows(x_BxD, u_AxD, targets_B, None, in_use_A)
  static = block or rows_at_once(len(u_AxD)), precision, mesh, 0.0, False
  return _pass(static, x_BxD, u_AxD, rows, gradients=False)[1]


def _rows(x_BxD, u_AxD, targets_B, weights_B, in_use_A):
  if weights_B is None:
    weights_B = jnp.ones(targets_B.shape, jnp.float32)
  if in_use_A is None:
    in_use_A = jnp.ones(len(u_AxD), bool)
  chex.assert_rank(u_AxD, 2)
  chex.assert_shape(x_BxD, (None, u_AxD.shape[1]))
  chex.assert_shape([targets_B, weights_B], (len(x_BxD),))
  chex.assert_shape(in_use_A, (len(u_AxD),))
  return targets_B.astype(jnp.int32), weights_B.astype(jnp.float32), in_use_A


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _head(static, x_BxD, u_AxD, rows):
  return _pass(static, x_BxD, u_AxD, rows, gradients=False)[0]


def _forward(static, x_BxD, u_AxD, rows):
  return _pass(static, x_BxD, u_AxD, rows, gradients=True)


def _backward(static, grads, cotangents):
  scale, _ = cotangents
  return *((scale * g.astype(jnp.float32)).astype(g.dtype) for g in grads), None


_head.defvjp(_forward, _backward)


def _pass(static, x_BxD, u_AxD, rows, gradients: bool):
  """(loss, right), and the gradients in x and u or, without `gradients`, which rows are right.

  With `runner_ups`, every row's runner-up takes the place of both `right` and the rows that are right.
  """
  block, precision, mesh, smoothing, runner_ups = static
  if mesh is None:
    about = block, precision, False, smoothing, runner_ups, gradients
    return _per_device(*about, x_BxD, u_AxD, rows)
  if runner_ups:
    raise InputError('runner_ups=True is not supported on a mesh')
  per_device_block = max(1, block // mesh.shape[VOCABULARY])
  return jax.shard_map(
    functools.partial(_per_device, per_device_block, precision, True, smoothing, False, gradients),
    mesh=mesh,
    in_specs=(SPREAD, SLICED, (SPREAD, SPREAD, SLICED)),
    out_specs=((P(), P()), (SPREAD, SLICED) if gradients else SPREAD),
    check_vma=False,
  )(x_BxD, u_AxD, rows)


def _per_device(block, precision, sharded, smoothing, runner_ups, gradients, x_BxD, u_AxD, rows):
  """One device's part of `_pass`, block by block."""
  targets_B, weights_B, in_use_A = rows
  dot = functools.partial(product, precision=precision)
  count, (total, dim) = len(u_AxD), x_BxD.shape
  split = functools.partial(_in_blocks, min(block, max(1, total)))
  gather, scatter, own_rows, largest, add, add_facts = _reductions(sharded)

  first = count * jax.lax.axis_index(VOCABULARY) if sharded else 0
  u32_AxD = u_AxD.astype(jnp.float32)
  if smoothing:  # the label's mass on every answer in use
    count_in_use = add(jnp.sum(in_use_A, dtype=jnp.float32))
    smoothing_A = jnp.where(in_use_A, smoothing / count_in_use, 0.0)

  def step(carry, xs):
    loss, right, du_DxA = carry
    x_SxD, target_S, weight_S = map(gather, xs)
    target_S, row_S = target_S - first, jnp.arange(len(target_S))
    logits_SxA = dot('sd,ad->sa', x_SxD, u_AxD)
    logits_SxA = jnp.where(in_use_A[None], logits_SxA, -jnp.inf)
    target_logit_S = add(_target_logits(logits_SxA, target_S))
    top_S = largest(jnp.max(logits_SxA, axis=1))
    exp_SxA = jnp.exp(logits_SxA - top_S[:, None])
    sum_S = add(jnp.sum(exp_SxA, axis=1))
    loss_S = jnp.log(sum_S) + top_S - target_logit_S
    if smoothing:
      mean_S = add(jnp.sum(jnp.where(in_use_A[None], smoothing_A[None] * logits_SxA, 0.0), axis=1))
      loss_S = loss_S + smoothing * target_logit_S - mean_S
    loss = loss + jnp.sum(jnp.where(weight_S > 0, weight_S * loss_S, 0.0))
    right_S = add(jnp.sum(logits_SxA >= target_logit_S[:, None], axis=1, dtype=jnp.int32)) == 1
    right = right + jnp.sum(jnp.where(right_S, weight_S, 0.0))
    runner_up_S = _runner_up(logits_SxA, target_S) if runner_ups else jnp.zeros(0, jnp.int32)
    if not gradients:
      return (loss, right, du_DxA), runner_up_S if runner_ups else own_rows(right_S)
    # (p − label) up to a factor per row, which is applied to the narrow arrays instead.
    label_S = (1.0 - smoothing) * sum_S
    dlogits_SxA = exp_SxA.at[row_S, _inside(target_S, count)].add(-label_S, mode='drop')
    if smoothing:
      dlogits_SxA = dlogits_SxA - sum_S[:, None] * smoothing_A[None]
    scale_Sx1 = (weight_S / sum_S)[:, None]
    dx_SxD = scale_Sx1 * dot('sa,ad->sd', dlogits_SxA, u32_AxD)
    # Transposed, narrow side first: XLA's CPU matrix products are several times as fast this way.
    x_DxS = jax.lax.optimization_barrier((scale_Sx1 * x_SxD.astype(jnp.float32)).T)
    du_DxA = du_DxA + dot('ds,sa->da', x_DxS, dlogits_SxA)
    dx_SxD = scatter(dx_SxD)
    return (loss, right, du_DxA), (dx_SxD.astype(x_BxD.dtype), runner_up_S)

  du_DxA = jnp.zeros((dim, count) if gradients else (), jnp.float32)
  start = jnp.float32(0), jnp.float32(0), du_DxA
  sums, each = jax.lax.scan(step, start, (split(x_BxD), split(targets_B), split(weights_B)))
  loss, right, du_DxA = jax.tree.map(add_facts, sums)
  join = lambda a: a.reshape(-1, *a.shape[2:])[:total]
  if not gradients:
    return (loss, join(each) if runner_ups else right), join(each)
  dx_BxD, runner_up_B = map(join, each)
  du_AxD = jax.lax.optimization_barrier(du_DxA).T
  return (loss, runner_up_B if runner_ups else right), (dx_BxD, du_AxD.astype(u_AxD.dtype))


def _in_blocks(size, a):
  """Rows split into blocks of equal size, the last one padded with zeros."""
  blocks = -(-len(a) // size)
  a = jnp.pad(a, [(0, blocks * size - len(a))] + [(0, 0)] * (a.ndim - 1))
  return a.reshape(blocks, size, *a.shape[1:])


def _reductions(sharded):
  """The collectives between devices; if not sharded, identity functions."""

  def over(axis, reduce, **how):
    return (lambda a: reduce(a, axis, **how)) if sharded else (lambda a: a)

  def own_rows(a):
    count = len(a) // jax.lax.axis_size(VOCABULARY)
    return jax.lax.dynamic_slice_in_dim(a, count * jax.lax.axis_index(VOCABULARY), count)

  return (
    over(VOCABULARY, jax.lax.all_gather, tiled=True),
    over(VOCABULARY, jax.lax.psum_scatter, tiled=True),
    own_rows if sharded else (lambda a: a),
    over(VOCABULARY, jax.lax.pmax),
    over(VOCABULARY, jax.lax.psum),
    over(FACTS, jax.lax.psum),
  )


def _inside(target_S, count):
  """The target's index among these answers, or one past the end: a negative one would wrap around."""
  return jnp.where((target_S >= 0) & (target_S < count), target_S, count)


def _runner_up(logits_SxA, target_S):
  """The answer with the largest logit other than the target's.

  Computed by two reductions, for which XLA's CPU backend generates better code than for an argmax.
  """
  answer_A = jnp.arange(logits_SxA.shape[1], dtype=jnp.int32)
  others_SxA = jnp.where(answer_A[None] == target_S[:, None], -jnp.inf, logits_SxA)
  top_Sx1 = jnp.max(others_SxA, axis=1, keepdims=True)
  return jnp.max(jnp.where(others_SxA == top_Sx1, answer_A[None], 0), axis=1)


def _target_logits(logits_SxA, target_S):
  """The target's logit; 0 if the target is not among these answers."""
  count = logits_SxA.shape[1]
  here_S = jnp.clip(target_S, 0, count - 1)
  own_S = jnp.take_along_axis(logits_SxA, here_S[:, None], axis=1)[:, 0]
  return jnp.where(here_S == target_S, own_S, 0.0)
