"""The decoder: one Flax linen transformer, for constructed weights and for trained ones.

x ← x + Attn(norm x); x ← x + MLP(norm x); logits are u_a · x. Attention scores are q · k without
the factor 1/√width, which the query's initializer includes instead, so that a construction's scores
are not rescaled. Every product accumulates in float32, whatever the dtype.

Shapes: B batch, L length, D residual width, H heads, N subjects, R relations, A answers,
C paths of relations, K relations in a path.
"""

import dataclasses
import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from geomem import mesh as meshes
from geomem.config import BlockConfig, Config
from geomem.errors import InputError
from geomem.initialization import initial_value


def product(spec: str, a: Array, b: Array, precision: str | None = None) -> Array:
  """An einsum of two arrays of the same dtype, accumulated and returned in float32."""

  def native(a, b):
    return jnp.einsum(spec, a, b, precision=precision, preferred_element_type=jnp.float32)

  if a.dtype == jnp.float32:
    return native(a, b)
  # XLA's CPU backend lacks some bfloat16 products; in float32 every term is exactly the same.
  widened = lambda a, b: native(a.astype(jnp.float32), b.astype(jnp.float32))
  return jax.lax.platform_dependent(a, b, cpu=widened, default=native)


class _Part(nn.Module):
  """Base of all modules: its config, its parameters in the computation dtype, its products.

  `used`: how many of a padded model's coordinates are in use (traced; default all). The others are
  zero and stay zero; of all operations only a norm's average has to know about them.
  """

  config: Config
  used: jax.Array | None = None

  @property
  def dtype(self):
    return jnp.dtype(self.config.dtype)

  def create(self) -> None:
    """Create the parameters without a forward pass: calling any method makes Flax run `setup`."""

  def stored(self, name, shape):
    if self.has_variable('params', name):  # `param` would trace an initializer for the shape
      value: jax.Array = self.get_variable('params', name)
      if np.shape(value) != shape:
        path = '/'.join((*self.path, name))
        raise InputError(f'{path} is of shape {np.shape(value)}, the config asks for {shape}')
      return value
    return self.param(
      name, lambda key: initial_value(name, shape, functools.partial(jax.random.normal, key))
    )

  def weight(self, name, shape):
    return self.stored(name, shape).astype(self.dtype)

  def einsum(self, spec, a, b):
    return product(spec, a, b, self.config.precision)


class Norm(_Part):
  """No norm, RMSNorm or LayerNorm, computed in float32."""

  def setup(self) -> None:
    shape = (self.config.dim,)
    if self.config.norm != 'none':
      self.scale = self.stored('scale', shape)
    if self.config.norm == 'layer':
      self.shift = self.stored('shift', shape)

  def __call__(self, x: Array) -> Array:
    if self.config.norm == 'none':
      return x
    y = x.astype(jnp.float32)
    if self.config.norm == 'layer':
      y = self._in_use(y)  # so that the mean has no gradient in the padding
      y = self._in_use(y - self._mean(y))
    y = y * jax.lax.rsqrt(self._mean(y * y) + self.config.norm_eps)
    y = y * jnp.broadcast_to(self.scale, y.shape)
    if self.config.norm == 'layer':
      y = y + jnp.broadcast_to(self.shift, y.shape)
    return y.astype(self.dtype)

  def _in_use(self, y):
    if self.used is None:
      return y
    in_use = jnp.broadcast_to(jnp.arange(y.shape[-1]) < self.used, y.shape)
    return jnp.where(in_use, y, jnp.zeros_like(y))

  def _mean(self, y):
    if self.used is None:
      return jnp.mean(y, axis=-1, keepdims=True)
    return jnp.sum(y, axis=-1, keepdims=True) / self.used.astype(jnp.float32)


class Embed(_Part):
  """Token and position embeddings: one row per subject, per relation and per position.

  A token that is neither a subject nor a relation is embedded as NaN.
  """

  mesh: jax.sharding.Mesh | None = None

  def setup(self) -> None:
    c = self.config
    # Kept as stored and cast after the look-up: a table can be far larger than the rows read from it.
    self.subjects = self.stored('subjects', (c.subjects, c.dim))
    self.relations = self.stored('relations', (c.relations, c.dim))
    self.positions = self.stored('positions', (c.length, c.dim))

  def __call__(self, tokens_BxL: Array) -> Array:
    n = self.config.subjects
    subject = self.subject(jnp.minimum(tokens_BxL, n - 1))
    relation = self.relation(jnp.maximum(tokens_BxL - n, 0))
    x_BxLxD = jnp.where((tokens_BxL < n)[..., None], subject, relation)
    known_BxL = (tokens_BxL >= 0) & (tokens_BxL < self.config.vocabulary)
    x_BxLxD = jnp.where(known_BxL[..., None], x_BxLxD, jnp.full_like(x_BxLxD, jnp.nan))
    return x_BxLxD + self.position(slice(tokens_BxL.shape[-1]))[None]

  def subject(self, s: Array | slice) -> Array:
    if self.mesh and not isinstance(s, slice):
      return meshes.look_up(self.mesh, self.subjects, s).astype(self.dtype)
    return jnp.asarray(self.subjects)[s].astype(self.dtype)  # a tracer cannot index a NumPy array

  def relation(self, r: Array) -> Array:
    return jnp.asarray(self.relations)[r].astype(self.dtype)

  def position(self, p: slice) -> Array:
    if p.stop > self.config.length:  # a slice with fewer rows might broadcast
      raise InputError(f'{p.stop} tokens, but the model has {self.config.length} positions')
    return self.positions[p].astype(self.dtype)


class Attention(_Part):
  """Causal attention with its own head widths, for any tokens or for all subject–path pairs."""

  block: BlockConfig = dataclasses.field(kw_only=True)

  def setup(self) -> None:
    d, b = self.config.dim, self.block
    self.query = self.weight('query', (b.heads, d, b.key_dim))
    self.key = self.weight('key', (b.heads, d, b.key_dim))
    self.value = self.weight('value', (b.heads, d, b.head_dim))
    self.output = self.weight('output', (b.heads, b.head_dim, d))

  def __call__(self, x_BxLxD: Array, last: int) -> Array:
    """The attention output at the `last` positions, each attending to itself and all before it."""
    length = x_BxLxD.shape[-2]
    q = self.einsum('bld,hdk->bhlk', x_BxLxD[:, length - last :], self.query).astype(self.dtype)
    k = self.einsum('bld,hdk->bhlk', x_BxLxD, self.key).astype(self.dtype)
    v = self.einsum('bld,hdk->bhlk', x_BxLxD, self.value).astype(self.dtype)
    scores = self.einsum('bhqk,bhlk->bhql', q, k)
    seen = jnp.arange(length)[None] <= jnp.arange(length - last, length)[:, None]
    weights = jax.nn.softmax(jnp.where(seen[None, None], scores, -jnp.inf), axis=-1).astype(
      self.dtype
    )
    self.sow('trace', 'attention', weights)
    heads = self.einsum('bhql,bhlk->bhqk', weights, v).astype(self.dtype)
    return self.einsum('bhqk,hkd->bqd', heads, self.output).astype(self.dtype)

  def all_pairs(self, x_BxD: Array, x_CxKxD: Array) -> Array:
    """The output at the last position of every prompt b ⧺ c.

    Keys and values are computed once per subject and once per path, and so is each head's output for
    every position it might attend to: a query only takes the weighted sum of these outputs, in H·D
    multiplications instead of H·head_dim·D.
    """
    q = self.einsum('cd,hdk->chk', x_CxKxD[:, -1], self.query).astype(self.dtype)
    k_B = self.einsum('bd,hdk->bhk', x_BxD, self.key).astype(self.dtype)
    k_C = self.einsum('cld,hdk->clhk', x_CxKxD, self.key).astype(self.dtype)
    scores_B = self.einsum('chk,bhk->bch', q, k_B)[..., None]
    scores_C = self.einsum('chk,clhk->chl', q, k_C)
    scores = jnp.concatenate(
      [scores_B, jnp.broadcast_to(scores_C, scores_B.shape[:1] + scores_C.shape)], axis=-1
    )
    weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
    v_B = self.einsum('bd,hdk->bhk', x_BxD, self.value).astype(self.dtype)
    v_B = self.einsum('bhk,hkd->bhd', v_B, self.output).astype(self.dtype)
    v_C = self.einsum('cld,hdk->chlk', x_CxKxD, self.value).astype(self.dtype)
    v_C = self.einsum('chlk,hkd->chld', v_C, self.output).astype(self.dtype)
    out = self.einsum('bch,bhd->bcd', weights[..., 0], v_B)
    out = out + self.einsum('bchl,chld->bcd', weights[..., 1:], v_C)
    return out.astype(self.dtype)


class MLP(_Part):
  """ReLU MLP with one or two hidden layers."""

  block: BlockConfig = dataclasses.field(kw_only=True)

  def setup(self) -> None:
    widths = (self.config.dim, *self.block.hidden, self.config.dim)
    names = ('in', 'middle', 'out') if len(widths) == 4 else ('in', 'out')
    bias = lambda name, b: self.weight(f'{name}_bias', (b,)) if self.config.bias else None
    layer = lambda name, a, b: (self.weight(name, (a, b)), bias(name, b))
    self.layers = tuple(map(layer, names, widths[:-1], widths[1:]))

  def __call__(self, x: Array) -> Array:
    *rows, _ = x.shape
    x = x.reshape(-1, self.config.dim)
    for i, (w, bias) in enumerate(self.layers):
      if w.shape[0] > w.shape[1]:
        # Transposed so that its gradient has the narrow side first, which is faster in XLA's CPU products.
        x = self.einsum('bi,ji->bj', x, jax.lax.optimization_barrier(w.T))
      else:
        x = self.einsum('bi,ij->bj', x, w)
      if bias is not None:
        x = x + jnp.broadcast_to(bias.astype(jnp.float32), x.shape)
      if i + 1 < len(self.layers):
        x = nn.relu(x)
      x = x.astype(self.dtype)
      if i + 1 < len(self.layers):
        self.sow('trace', 'hidden', x.reshape(*rows, -1))
    return x.reshape(*rows, -1)


class Block(_Part):
  """Pre-norm residual block."""

  block: BlockConfig = dataclasses.field(kw_only=True)

  def setup(self) -> None:
    self.norm_attention = Norm(self.config, self.used)
    self.attention = Attention(self.config, self.used, block=self.block)
    if self.block.hidden:
      self.norm_mlp = Norm(self.config, self.used)
      self.mlp = MLP(self.config, self.used, block=self.block)

  def create(self) -> None:
    self.norm_attention.create()
    self.attention.create()
    if self.block.hidden:
      self.norm_mlp.create()
      self.mlp.create()

  def add_mlp(self, x: Array) -> Array:
    self.sow('trace', 'residual', x)
    if self.block.hidden:
      x = x + self.mlp(self.norm_mlp(x))
      self.sow('trace', 'residual', x)
    return x

  def __call__(self, x_BxLxD: Array, last: int) -> Array:
    read = self.attention(self.norm_attention(x_BxLxD), last)
    return self.add_mlp(x_BxLxD[:, x_BxLxD.shape[1] - last :] + read)

  def all_pairs(self, x_BxD: Array, x_CxKxD: Array) -> Array:
    read = self.attention.all_pairs(self.norm_attention(x_BxD), self.norm_attention(x_CxKxD))
    return self.add_mlp(x_CxKxD[None, :, -1] + read)


class Transformer(_Part):
  """Token ids to logits. Apply with `apply(config, params, tokens)` below.

  There are two ways to compute the same residuals. `__call__` and `residual` take any tokens.
  `all_pairs` takes subjects and paths separately, and computes keys and values once per subject and
  once per path; verification and training use it, unless there is a chain of thought or a loss at
  every token.

  `mesh`: the device mesh over which the subject embeddings are sharded, if they are.
  """

  mesh: jax.sharding.Mesh | None = None

  def setup(self) -> None:
    self.embed = Embed(self.config, mesh=self.mesh)
    self.blocks = tuple(Block(self.config, self.used, block=b) for b in self.config.blocks)
    self.norm_final = Norm(self.config, self.used)
    if not self.config.tied:
      self.unembed = Unembed(self.config)

  def create(self) -> None:
    for part in (self.embed, *self.blocks, self.norm_final):
      part.create()
    if not self.config.tied:
      self.unembed.create()

  def residual(self, tokens_BxL: Array, last: int | None = None) -> Array:
    """The final residual at the `last` positions (default: all), as the unembedding reads it."""
    tokens_BxL = jnp.asarray(tokens_BxL)
    chex.assert_rank(tokens_BxL, 2)
    length = tokens_BxL.shape[-1]
    last = length if last is None else last
    x = self.embed(tokens_BxL)
    self.sow('trace', 'residual', x)
    for i, block in enumerate(self.blocks):
      x = block(x, last if i + 1 == len(self.blocks) else length)
    return self._to_answers(x[:, x.shape[1] - last :])

  def all_pairs(self, subjects_B: Array | None, paths_CxK: Array) -> Array:
    """The final residual at the last position of every prompt s r₁ … r_k in subjects × paths: BxCxD.

    With one block, keys and values are computed once per subject and once per path; with more
    blocks, separately for every prompt. `subjects_B`: None for all subjects, without a look-up.
    """
    everyone = slice(self.config.subjects)
    return self.from_embeddings(
      self.embed.subject(everyone if subjects_B is None else subjects_B), paths_CxK
    )

  def from_embeddings(self, e_BxD: Array, paths_CxK: Array) -> Array:
    """Like `all_pairs`, for given subject embeddings."""
    chex.assert_rank(paths_CxK, 2)
    chex.assert_shape(e_BxD, (None, self.config.dim))
    k = paths_CxK.shape[1]
    x_BxD = e_BxD.astype(self.dtype) + self.embed.position(slice(0, 1))
    x_CxKxD = self.embed.relation(paths_CxK) + self.embed.position(slice(1, k + 1))[None]
    if len(self.blocks) == 1:
      return self._to_answers(self.blocks[0].all_pairs(x_BxD, x_CxKxD))
    shape = (len(x_BxD), *x_CxKxD.shape)
    x = jnp.broadcast_to(x_CxKxD[None], shape)
    x = jnp.concatenate([jnp.broadcast_to(x_BxD[:, None, None], x[:, :, :1].shape), x], axis=2)
    x = x.reshape(-1, k + 1, self.config.dim)
    for i, block in enumerate(self.blocks):
      x = block(x, 1 if i + 1 == len(self.blocks) else k + 1)
    return self._to_answers(x).reshape(shape[0], shape[1], -1)

  def _to_answers(self, x: Array) -> Array:
    """The final residual in the coordinates of the unembedding."""
    x = self.norm_final(x)
    if self.config.answer_dim is None:
      return x
    return self.einsum('...d,de->...e', x, self.unembed.project).astype(self.dtype)

  def unembedding(self) -> Array:
    """One row per answer, AxD; with `answer_dim`, rows of that many coordinates and of length 1."""
    if self.config.tied:
      return self.embed.subject(slice(self.config.answers))
    rows_AxD = self.unembed.answers
    if self.config.answer_dim is None:
      return rows_AxD
    rows_AxD = rows_AxD.astype(jnp.float32)
    square_Ax1 = jnp.sum(rows_AxD**2, axis=1, keepdims=True)
    return (rows_AxD * jax.lax.rsqrt(jnp.maximum(square_Ax1, 1e-30))).astype(self.dtype)

  def __call__(self, tokens_BxL: Array, last: int | None = None) -> Array:
    x = self.residual(tokens_BxL, last)
    return self.einsum('bld,ad->bla', x, self.unembedding())


class Unembed(_Part):
  def setup(self) -> None:
    dim, answer_dim = self.config.dim, self.config.answer_dim
    self.answers = self.weight('answers', (self.config.answers, answer_dim or dim))
    if answer_dim is not None:
      self.project = self.weight('project', (dim, answer_dim))


def init(config: Config, key: Array) -> dict:
  """Random parameters, a plain nested dict."""
  return Transformer(config).init(key, method='create')['params']


def draw(config: Config, seed: int) -> dict:
  """Like `init`, with NumPy's generator: no compilation, and the same numbers on every device."""
  rng = np.random.default_rng((seed, 1))  # not the stream that facts of this seed are drawn from
  normal = functools.partial(rng.standard_normal, dtype=np.float32)
  value = lambda name, shape: np.asarray(initial_value(name, shape, normal), np.float32)
  return _fill(config, value)


def zeros(config: Config) -> dict:
  """Parameters of the same shapes, all zero (norm scales one), as NumPy arrays to write into."""
  value = lambda name, shape: (np.ones if name == 'scale' else np.zeros)(shape, np.float32)
  return _fill(config, value)


def _fill(config: Config, make) -> dict:
  return jax.tree_util.tree_map_with_path(
    lambda path, a: make(path[-1].key, a.shape), shapes(config)
  )


@functools.lru_cache(maxsize=1024)
def shapes(config: Config) -> dict:
  """The parameters' shapes and dtypes, without values."""
  return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def apply(
  config: Config, params: dict, *args: Any, method: str | None = None, used: Array | None = None,
  mesh: jax.sharding.Mesh | None = None, **kwargs: Any,
) -> Any:  # fmt: skip
  """The model as a function of its parameters: logits at all tokens, or the result of another `method`.

  Tokens outside the vocabulary are refused if their values are known. Inside a compiled function they
  are not known, and the logits of such a prompt are NaN.
  """
  if method in (None, 'residual'):
    _check_tokens(config, *args[:1])
  return Transformer(config, used, mesh).apply({'params': params}, *args, method=method, **kwargs)


def _check_tokens(config: Config, tokens_BxL=()):
  for part in jax.tree.leaves(tokens_BxL):
    if isinstance(part, jax.core.Tracer) or not getattr(part, 'is_fully_addressable', True):
      return
  tokens = np.asarray(tokens_BxL)
  for token in tokens[(tokens < 0) | (tokens >= config.vocabulary)][:1]:
    raise InputError(
      f'token {token} is outside the vocabulary; subjects are 0 … {config.subjects - 1}, relations '
      f'{config.subjects} … {config.vocabulary - 1}'
    )
