"""A pretrained decoder whose residual stream can be read and patched at any layer and position.

x ← x + Attn(norm x); x ← x + MLP(norm x), or both in parallel from the same x. All functions are pure
and take one prompt; map them over prompts with `jax.vmap`. The layers and positions of a patch are
arrays, so one compiled program runs a batch of prompts that are each patched at a different place.
Layer 0 is the embedding, layer i the residual stream after the i-th block.

A patch changes no token before the first patched one, so these can be run once and passed as a `Prefix`.

Shapes: L length, D residual width, T layers (depth + 1), H heads, K head width, V vocabulary,
P patches of a prompt, O tokens of the prefix, M all tokens attended to (O + L), G key–value heads.
"""

import functools
from collections.abc import Callable

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from geomem.pretrained.config import DecoderConfig

ACTIVATIONS: dict[str, Callable] = {
  'silu': nn.silu,
  'gelu': functools.partial(nn.gelu, approximate=False),
  'gelu_tanh': functools.partial(nn.gelu, approximate=True),
}


@flax.struct.dataclass
class Patch:
  """At `layer` and `position`, x becomes scale · x + add. A prompt has P patches, applied in order."""

  layer_P: chex.Array
  position_P: chex.Array
  scale_P: chex.Array
  add_PxD: chex.Array


@flax.struct.dataclass
class Prefix:
  """The keys and values of the preceding tokens at every block; tokens from `count` on are padding."""

  k_TxOxGxK: chex.Array
  v_TxOxGxK: chex.Array
  count: chex.Array


def _norm(c: DecoderConfig, name: str | None = None) -> nn.Module:
  if c.norm == 'rms':
    return nn.RMSNorm(epsilon=c.norm_eps, name=name)
  return nn.LayerNorm(epsilon=c.norm_eps, use_fast_variance=False, name=name)


class Attention(nn.Module):
  """Causal attention to the prefix and the tokens themselves, with grouped queries and RoPE if configured."""

  config: DecoderConfig

  @nn.compact
  def __call__(
    self, x_LxD: chex.Array, k_OxGxK: chex.Array, v_OxGxK: chex.Array, count: chex.Array
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The attention output, and the keys and values of these tokens."""
    c, length, prefix = self.config, len(x_LxD), len(k_OxGxK)
    dense = functools.partial(nn.DenseGeneral, use_bias=c.attention_bias)
    position_M = jnp.concatenate([jnp.arange(prefix), count + jnp.arange(length)])
    q_LxHxK = dense((c.heads, c.head_dim), name='query')(x_LxD)
    k_LxGxK = dense((c.kv_heads, c.head_dim), name='key')(x_LxD)
    v_LxGxK = dense((c.kv_heads, c.head_dim), name='value')(x_LxD)
    if c.rotary:
      turn = lambda x: rotate(x, position_M[prefix:], c.rotary, c.rotary_base)
      q_LxHxK, k_LxGxK = turn(q_LxHxK), turn(k_LxGxK)
    k_MxGxK = jnp.concatenate([k_OxGxK, k_LxGxK])
    v_MxGxK = jnp.concatenate([v_OxGxK, v_LxGxK])
    real_M = (jnp.arange(prefix + length) >= prefix) | (position_M < count)
    mask_LxM = (position_M[None] <= position_M[prefix:, None]) & real_M[None]
    read_LxHxK = jax.nn.dot_product_attention(q_LxHxK, k_MxGxK, v_MxGxK, mask=mask_LxM[None])
    return dense(c.dim, axis=(-2, -1), name='output')(read_LxHxK), (k_LxGxK, v_LxGxK)


def rotate(x_LxHxK: jax.Array, position_L: jax.Array, rotary: int, base: float) -> jax.Array:
  """RoPE: rotates coordinate i of the first half of `rotary` coordinates with coordinate i of the second half."""
  frequency = base ** (-jnp.arange(0, rotary, 2, dtype=jnp.float32) / rotary)
  angle = position_L.astype(jnp.float32)[:, None, None] * frequency[None, None]
  a, b, rest = jnp.split(x_LxHxK, (rotary // 2, rotary), axis=-1)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


class MLP(nn.Module):
  config: DecoderConfig

  @nn.compact
  def __call__(self, x_LxD: chex.Array) -> jax.Array:
    c = self.config
    dense = functools.partial(nn.Dense, use_bias=c.mlp_bias)
    up = dense(c.hidden, name='up')(x_LxD)
    activation = ACTIVATIONS[c.activation]
    hidden = activation(dense(c.hidden, name='gate')(x_LxD)) * up if c.gated else activation(up)
    return dense(c.dim, name='down')(hidden)


class Block(nn.Module):
  config: DecoderConfig

  @nn.compact
  def __call__(
    self, x_LxD: chex.Array, *before: chex.Array
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The stream after the block, and these tokens' keys and values; `before`: the prefix's, and its count."""
    c = self.config
    norm, mlp = _norm(c, 'norm_attention'), MLP(c, name='mlp')
    norm_mlp = _norm(c, 'norm_mlp')
    read_LxD, own = Attention(c, name='attention')(norm(x_LxD), *before)
    if c.parallel:
      return x_LxD + read_LxD + mlp(norm_mlp(x_LxD)), own
    x_LxD = x_LxD + read_LxD
    return x_LxD + mlp(norm_mlp(x_LxD)), own


def _empty_prefix(c: DecoderConfig) -> tuple[jax.Array, jax.Array, int]:
  none_OxGxK = jnp.zeros((0, c.kv_heads, c.head_dim))
  return none_OxGxK, none_OxGxK, 0


def shapes(config: DecoderConfig) -> dict:
  """The parameters' shapes and dtypes, without values; all blocks are stacked on the first axis."""
  c, key, x_LxD = config, jax.random.key(0), jnp.zeros((1, config.dim))

  def init():
    block = lambda key: Block(c).init(key, x_LxD, *_empty_prefix(c))['params']
    embed = {'tokens': jnp.zeros((c.vocabulary, c.dim))}
    params = {
      'embed': embed if c.rotary else embed | {'positions': jnp.zeros((c.length, c.dim))},
      'blocks': jax.vmap(block)(jax.random.split(key, c.depth)),
      'norm_final': _norm(c).init(key, x_LxD)['params'],
    }
    return params if c.tied else params | {'unembed': jnp.zeros((c.vocabulary, c.dim))}

  return jax.eval_shape(init)


def embed(
  config: DecoderConfig, params: dict, tokens_L: chex.Array, start: chex.Array | int = 0
) -> jax.Array:
  """Layer 0 of tokens whose first position is `start`; ids past the vocabulary index the added `rows`."""
  chex.assert_rank(tokens_L, 1)
  x_LxD = params['embed']['tokens'][tokens_L]
  if 'rows' in params['embed']:
    new_L = jnp.asarray(tokens_L) - config.vocabulary
    rows_LxD = params['embed']['rows'][jnp.maximum(new_L, 0)]
    x_LxD = jnp.where((new_L >= 0)[:, None], rows_LxD, x_LxD)
  if config.rotary:
    return x_LxD
  return x_LxD + params['embed']['positions'][start + jnp.arange(len(tokens_L))]


def residuals(
  config: DecoderConfig,
  params: dict,
  x_LxD: chex.Array,
  patch: Patch | None = None,
  first: int = 0,
  prefix: Prefix | None = None,
  save_products: bool = False,
) -> jax.Array:
  """The residual stream at every layer from `first` on, TxLxD, where `x_LxD` is the stream at layer `first`.

  Positions of a patch count from the first token of x. `save_products`: the backward pass keeps the
  results of all matrix products instead of recomputing them.
  """
  return _run(config, params, x_LxD, patch, first, prefix, save_products)[0]


def keys_values(
  config: DecoderConfig, params: dict, tokens_O: chex.Array
) -> tuple[jax.Array, jax.Array]:
  """The keys and values of these tokens at every block, from which a `Prefix` is made."""
  return _run(config, params, embed(config, params, tokens_O))[1]


def _run(
  config, params, x_LxD, patch: Patch | None = None, first=0, prefix: Prefix | None = None, save_products=False
):  # fmt: skip
  chex.assert_shape(x_LxD, (None, config.dim))
  if prefix is not None:
    of_a_block = None, config.kv_heads, config.head_dim
    chex.assert_shape([prefix.k_TxOxGxK, prefix.v_TxOxGxK], (config.depth, *of_a_block))
  if patch is not None:
    chex.assert_equal_shape([patch.layer_P, patch.position_P, patch.scale_P])
    chex.assert_shape(patch.add_PxD, (len(patch.layer_P), config.dim))
  x_LxD = _patched(x_LxD, first, patch)
  at = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)

  def step(x_LxD, i):
    block = jax.tree.map(lambda a: at(a, i), params['blocks'])
    before: tuple = _empty_prefix(config)
    if prefix is not None:
      before = at(prefix.k_TxOxGxK, i), at(prefix.v_TxOxGxK, i), prefix.count
    x_LxD, own = Block(config).apply({'params': block}, x_LxD, *before)
    x_LxD = _patched(x_LxD, i + 1, patch)
    return x_LxD, (x_LxD, own)

  # With a checkpoint, the backward pass slices the blocks' weights from the stack again and keeps no copy.
  policy = jax.checkpoint_policies.dots_saveable if save_products else None
  with jax.default_matmul_precision('highest'):
    blocks = jnp.arange(first, config.depth)
    _, (after_TxLxD, own) = jax.lax.scan(jax.checkpoint(step, policy=policy), x_LxD, blocks)
  return jnp.concatenate([x_LxD[None], after_TxLxD]), own


def _patched(x_LxD: chex.Array, layer: chex.Array | int, patch: Patch | None) -> chex.Array:
  if patch is None:
    return x_LxD
  for p in range(len(patch.layer_P)):
    here_L = (jnp.arange(len(x_LxD)) == patch.position_P[p]) & (patch.layer_P[p] == layer)
    patched_LxD = patch.scale_P[p] * x_LxD + patch.add_PxD[p][None]
    x_LxD = jnp.where(here_L[:, None], patched_LxD, x_LxD)
  return x_LxD


def logits(
  config: DecoderConfig, params: dict, x_D: chex.Array, tokens_A: chex.Array | None = None
) -> jax.Array:
  """The logits that a final residual gives to every token, or only to `tokens_A`."""
  rows_VxD = params['embed']['tokens'] if config.tied else params['unembed']
  rows_AxD = rows_VxD if tokens_A is None else rows_VxD[tokens_A]
  with jax.default_matmul_precision('highest'):
    return rows_AxD @ _norm(config).apply({'params': params['norm_final']}, x_D)
