"""Linear layer, softmax and cross-entropy in one pass over blocks of rows, the gradients with them.

The rows × answers logits never exist at once: a block's logits are made, turned into its loss and
its part of both gradients while they are in cache, and forgotten. So the forward pass of a
differentiated call does all the work, and the backward pass only scales what it kept.

Shapes: B rows, D width, A answers, T blocks of S rows.
"""

import functools

import jax
import jax.numpy as jnp

from geomem.model import product

BLOCK = 256


def cross_entropy(
  x_BxD, u_AxD, targets_B, weights_B=None, in_use_A=None, block: int = BLOCK, precision=None
):
  """Σ_b w_b (log Σ_a exp⟨x_b, u_a⟩ − ⟨x_b, u_target⟩), and Σ_b w_b [the target's logit is the one largest].

  The sums over a are over the answers `in_use_A` (default all; for padded models). Differentiable in
  x and u; the second value, which counts what is right, has no gradient.
  """
  if weights_B is None:
    weights_B = jnp.ones(targets_B.shape, jnp.float32)
  if in_use_A is None:
    in_use_A = jnp.ones(len(u_AxD), bool)
  rows = (targets_B.astype(jnp.int32), weights_B.astype(jnp.float32), in_use_A)
  return _head(min(block, max(1, len(x_BxD))), precision, x_BxD, u_AxD, rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _head(block, precision, x_BxD, u_AxD, rows):
  return _pass(block, precision, x_BxD, u_AxD, rows, gradients=False)[0]


def _forward(block, precision, x_BxD, u_AxD, rows):
  return _pass(block, precision, x_BxD, u_AxD, rows, gradients=True)


def _backward(block, precision, kept, cotangents):
  scale, _ = cotangents
  return *((scale * g.astype(jnp.float32)).astype(g.dtype) for g in kept), None


_head.defvjp(_forward, _backward)


def _pass(block, precision, x_BxD, u_AxD, rows, gradients: bool):
  """(loss, right) and the gradients in x and u, block by block."""
  targets_B, weights_B, in_use_A = rows
  dot = functools.partial(product, precision=precision)
  count, (total, dim) = len(u_AxD), x_BxD.shape
  blocks = -(-total // block)

  def split(a):
    a = jnp.pad(a, [(0, blocks * block - total)] + [(0, 0)] * (a.ndim - 1))
    return a.reshape(blocks, block, *a.shape[1:])

  answer_A = jnp.arange(count, dtype=jnp.int32)
  u32_AxD = u_AxD.astype(jnp.float32)

  def step(carry, xs):
    loss, right, du_DxA = carry
    x_SxD, target_S, weight_S = xs
    logits_SxA = dot('sd,ad->sa', x_SxD, u_AxD)
    logits_SxA = jnp.where(in_use_A[None], logits_SxA, -jnp.inf)
    own_S = jnp.take_along_axis(logits_SxA, target_S[:, None], axis=1)[:, 0]
    top_S = jnp.max(logits_SxA, axis=1)
    odds_SxA = jnp.exp(logits_SxA - top_S[:, None])
    sum_S = jnp.sum(odds_SxA, axis=1)
    loss = loss + jnp.sum(weight_S * (jnp.log(sum_S) + top_S - own_S))
    alone_S = jnp.sum(logits_SxA >= own_S[:, None], axis=1, dtype=jnp.int32) == 1
    right = right + jnp.sum(jnp.where(alone_S, weight_S, 0.0))
    if not gradients:
      return (loss, right, du_DxA), ()
    is_own_SxA = answer_A[None] == target_S[:, None]
    dlogits_SxA = odds_SxA * (weight_S / sum_S)[:, None] - jnp.where(
      is_own_SxA, weight_S[:, None], 0.0
    )
    dx_SxD = dot('sa,ad->sd', dlogits_SxA, u32_AxD)
    # Transposed, narrow rows first: the order that XLA's CPU products like, several times as fast.
    x_DxS = jax.lax.optimization_barrier(x_SxD.astype(jnp.float32).T)
    du_DxA = du_DxA + dot('ds,sa->da', x_DxS, dlogits_SxA)
    return (loss, right, du_DxA), dx_SxD.astype(x_BxD.dtype)

  du_DxA = jnp.zeros((dim, count) if gradients else (), jnp.float32)
  start = jnp.float32(0), jnp.float32(0), du_DxA
  sums, dx_TxSxD = jax.lax.scan(step, start, (split(x_BxD), split(targets_B), split(weights_B)))
  loss, right, du_DxA = sums
  if not gradients:
    return (loss, right), ()
  du_AxD = jax.lax.optimization_barrier(du_DxA).T
  return (loss, right), (dx_TxSxD.reshape(-1, dim)[:total], du_AxD.astype(u_AxD.dtype))
