"""A pretrained decoder whose residual stream is read and changed at any layer and position.

x ← x + Attn(norm x); x ← x + MLP(norm x), or both at once from the same x. All functions are of one
prompt, pure, to be mapped over prompts: layers and positions of a patch are data, so a batch of
prompts that are each patched somewhere else is one program. Place 0 is before the first block,
place i after the i-th.

Tokens before the first one that is changed stay what they are: they can be left out, and only read.

Shapes: L length, D residual width, T places (depth + 1), H heads, G key heads, K head width, F hidden
width, V vocabulary, P patches of a prompt, O older tokens, M all tokens read (O + L).
"""

import functools
from collections.abc import Callable

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from geomem.model import product
from geomem.pretrained.config import DecoderConfig

ZEROS = nn.initializers.zeros
ACTIVATIONS: dict[str, Callable] = {
  'silu': nn.silu,
  'gelu': functools.partial(nn.gelu, approximate=False),
  'gelu_tanh': functools.partial(nn.gelu, approximate=True),
}
einsum = functools.partial(product, precision=jax.lax.Precision.HIGHEST)


@flax.struct.dataclass
class Patch:
  """At `place` and `position`, x becomes keep · x + add. A prompt has P of them, one after another."""

  place_P: chex.Array
  position_P: chex.Array
  keep_P: chex.Array
  add_PxD: chex.Array


@flax.struct.dataclass
class Older:
  """What stands before the tokens of a stream, at all places; the first `count` of O rows mean something."""

  x_TxOxD: chex.Array
  count: chex.Array


class Norm(nn.Module):
  config: DecoderConfig

  @nn.compact
  def __call__(self, x):
    y = x
    if self.config.norm == 'layer':
      y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.config.norm_eps)
    y = y * _rows(self.param('scale', nn.initializers.ones, x.shape[-1:]), y)
    if self.config.norm == 'layer':
      y = y + _rows(self.param('shift', ZEROS, x.shape[-1:]), y)
    return y


def _rows(a, like):
  return jnp.broadcast_to(a, like.shape)


class Attention(nn.Module):
  """Causal, with fewer keys than queries if so configured, and heads that turn with the position."""

  config: DecoderConfig

  @nn.compact
  def __call__(self, x_LxD, x_OxD, count):
    c, length, older = self.config, len(x_LxD), len(x_OxD)
    x_MxD = jnp.concatenate([x_OxD, x_LxD])
    at_M = jnp.concatenate([jnp.arange(older), count + jnp.arange(length)])
    q_LxHxK = self._heads('query', x_LxD, c.heads)
    k_MxGxK, v_MxGxK = (self._heads(name, x_MxD, c.key_heads) for name in ('key', 'value'))
    if c.rotary:
      q_LxHxK = turn(q_LxHxK, at_M[older:], c.rotary, c.rotary_base)
      k_MxGxK = turn(k_MxGxK, at_M, c.rotary, c.rotary_base)
    q = q_LxHxK.reshape(length, c.key_heads, -1, c.head_dim) / c.head_dim**0.5
    scores = einsum('qgsk,mgk->gsqm', q, k_MxGxK)
    real_M = (jnp.arange(older + length) >= older) | (at_M < count)
    seen_LxM = (at_M[None] <= at_M[older:, None]) & real_M[None]
    weights = jax.nn.softmax(jnp.where(_rows(seen_LxM, scores), scores, -jnp.inf), axis=-1)
    read = einsum('gsqm,mgk->qgsk', weights, v_MxGxK).reshape(length, c.heads, c.head_dim)
    output = self.param('output', ZEROS, (c.heads, c.head_dim, c.dim))
    out_LxD = einsum('lhk,hkd->ld', read, output)
    if c.attention_bias:
      out_LxD = out_LxD + _rows(self.param('output_bias', ZEROS, (c.dim,)), out_LxD)
    return out_LxD

  def _heads(self, name, x_LxD, heads):
    shape = (heads, self.config.head_dim)
    weight = self.param(name, ZEROS, (self.config.dim, *shape))
    out = einsum('ld,dhk->lhk', x_LxD, weight)
    if self.config.attention_bias:
      out = out + _rows(self.param(f'{name}_bias', ZEROS, shape), out)
    return out


def turn(x_LxHxK, at_L, rotary: int, base: float):
  """Rotary positions: the first `rotary` coordinates, a half against the other."""
  frequency = base ** (-jnp.arange(0, rotary, 2, dtype=jnp.float32) / rotary)
  angle = at_L.astype(jnp.float32)[:, None, None] * frequency[None, None]
  a, b, rest = jnp.split(x_LxHxK, (rotary // 2, rotary), axis=-1)
  cos, sin = _rows(jnp.cos(angle), a), _rows(jnp.sin(angle), a)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


class MLP(nn.Module):
  config: DecoderConfig

  @nn.compact
  def __call__(self, x_LxD):
    c = self.config
    act = ACTIVATIONS[c.activation]
    if c.gated:
      hidden = act(self._linear('gate', x_LxD, c.hidden)) * self._linear('in', x_LxD, c.hidden)
    else:
      hidden = act(self._linear('in', x_LxD, c.hidden))
    return self._linear('out', hidden, c.dim)

  def _linear(self, name, x, width):
    y = einsum('ld,df->lf', x, self.param(name, ZEROS, (x.shape[-1], width)))
    return y + _rows(self.param(f'{name}_bias', ZEROS, (width,)), y) if self.config.mlp_bias else y


class Block(nn.Module):
  config: DecoderConfig

  @nn.compact
  def __call__(self, x_LxD, x_OxD, count):
    norm = Norm(self.config, name='norm_attention')
    norm_mlp = Norm(self.config, name='norm_mlp')
    attention, mlp = Attention(self.config, name='attention'), MLP(self.config, name='mlp')
    read_LxD = attention(norm(x_LxD), norm(x_OxD), count)
    if self.config.parallel:
      return x_LxD + read_LxD + mlp(norm_mlp(x_LxD))
    x_LxD = x_LxD + read_LxD
    return x_LxD + mlp(norm_mlp(x_LxD))


class Embed(nn.Module):
  config: DecoderConfig

  @nn.compact
  def __call__(self, tokens_L, start):
    c = self.config
    x_LxD = self.param('tokens', ZEROS, (c.vocabulary, c.dim))[tokens_L]
    if not c.rotary:
      x_LxD = (
        x_LxD + self.param('positions', ZEROS, (c.length, c.dim))[start + jnp.arange(len(tokens_L))]
      )
    return x_LxD


def shapes(config: DecoderConfig) -> dict:
  """Parameters without their values; those of all blocks are stacked, first axis the layer."""
  key, x_LxD = jax.random.key(0), jnp.zeros((1, config.dim))

  def init():
    blocks = lambda key: Block(config).init(key, x_LxD, x_LxD[:0], 0)['params']
    params = {
      'embed': Embed(config).init(key, jnp.zeros(1, jnp.int32), 0)['params'],
      'blocks': jax.vmap(blocks)(jax.random.split(key, config.depth)),
      'norm_final': Norm(config).init(key, x_LxD)['params'],
    }
    if not config.tied:
      params['unembed'] = jnp.zeros((config.vocabulary, config.dim))
    return params

  return jax.eval_shape(init)


def embed(config: DecoderConfig, params, tokens_L, start=0):
  """Place 0 of tokens that stand at `start` and after."""
  chex.assert_rank(tokens_L, 1)
  return Embed(config).apply({'params': params['embed']}, tokens_L, start)


def residuals(
  config: DecoderConfig,
  params,
  x_LxD,
  patch: Patch | None = None,
  first: int = 0,
  older: Older | None = None,
):
  """The residual stream at every place from `first` on, TxLxD, given what it is there.

  Positions of a patch count from the first token of x.
  """
  chex.assert_shape(x_LxD, (None, config.dim))
  if older is not None:
    chex.assert_shape(older.x_TxOxD, (config.depth + 1, None, config.dim))
  if patch is not None:
    chex.assert_equal_shape([patch.place_P, patch.position_P, patch.keep_P])
    chex.assert_shape(patch.add_PxD, (len(patch.place_P), config.dim))
  x_LxD = _patched(x_LxD, first, patch)
  at = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)

  def step(x_LxD, i):
    layer = jax.tree.map(lambda a: at(a, i), params['blocks'])
    before = (x_LxD[:0], 0) if older is None else (at(older.x_TxOxD, i), older.count)
    x_LxD = Block(config).apply({'params': layer}, x_LxD, *before)
    x_LxD = _patched(x_LxD, i + 1, patch)
    return x_LxD, x_LxD

  # A gradient wants the layers' weights again: taken anew from the stack, rather than kept twice.
  layers = jnp.arange(first, config.depth)
  _, after_TxLxD = jax.lax.scan(jax.checkpoint(step), x_LxD, layers)
  return jnp.concatenate([x_LxD[None], after_TxLxD])


def _patched(x_LxD, place, patch: Patch | None):
  if patch is None:
    return x_LxD
  for p in range(len(patch.place_P)):
    here_L = (jnp.arange(len(x_LxD)) == patch.position_P[p]) & (patch.place_P[p] == place)
    changed_LxD = patch.keep_P[p] * x_LxD + _rows(patch.add_PxD[p], x_LxD)
    x_LxD = jnp.where(_rows(here_L[:, None], x_LxD), changed_LxD, x_LxD)
  return x_LxD


def logits(config: DecoderConfig, params, x_D, only_A=None):
  """What a final residual says of every token, or `only` of these."""
  rows_VxD = params['embed']['tokens'] if config.tied else params['unembed']
  rows_AxD = rows_VxD if only_A is None else rows_VxD[only_A]
  return einsum('d,ad->a', Norm(config).apply({'params': params['norm_final']}, x_D), rows_AxD)
