"""What files of each family call the parts of one decoder, and how they lay them out.

A family says two things: a `DecoderConfig` from the file's own description, and the parameters, outer
and of block i, from its tensors. `take(name, *shape)` is the tensor of that name, refused if its shape
is another. Files keep a matrix output first, but for GPT-2; parameters here are input first.
"""

import dataclasses
from collections.abc import Callable

from geomem.errors import InputError
from geomem.pretrained.config import DecoderConfig

MISSING = object()


@dataclasses.dataclass(frozen=True)
class Family:
  """`ignored`: ends of names of tensors that are no weights."""

  config: Callable
  outer: Callable
  block: Callable
  ignored: tuple[str, ...] = ()


def field(fields: dict, name: str, kind, default=MISSING):
  """A field of that kind, or the default where it is absent or null."""
  value = fields.get(name)
  if value is None and default is not MISSING:
    return default
  if kind is float and type(value) is int:
    value = float(value)
  if type(value) is not kind:
    raise InputError(f'{name} is {str(value)[:60]!r}; it must be of type {kind.__name__}')
  return value


def _only(fields: dict, **allowed):
  """Refuse a switch that this decoder does not have."""
  for name, value in allowed.items():
    if fields.get(name, value) not in (None, value):
      raise InputError(f'{name} is {str(fields[name])[:60]!r}; only {value!r} is known')


def _activation(name: str) -> str:
  names = {'silu': 'silu', 'swish': 'silu', 'gelu': 'gelu', 'gelu_new': 'gelu_tanh'}
  names |= {'gelu_pytorch_tanh': 'gelu_tanh', 'gelu_fast': 'gelu_tanh'}
  if name not in names:
    raise InputError(f'activation {name[:40]!r} is not known; known: {", ".join(names)}')
  return names[name]


def _rope(fields: dict, base_name: str, share_name: str | None = None) -> tuple[float, float]:
  """Base and share of the rotary coordinates, in old and new spelling; scaled ones are refused."""
  new = field(fields, 'rope_parameters', dict, {})
  for about in (new, field(fields, 'rope_scaling', dict, {})):
    kind = about.get('rope_type', about.get('type', 'default'))
    if kind not in ('default', None):
      raise InputError(f'RoPE scaling {str(kind)[:40]!r} is not known; only unscaled positions are')
  base = field(new, 'rope_theta', float, field(fields, base_name, float, 10000.0))
  share = field(fields, share_name, float, 1.0) if share_name else 1.0
  return base, field(new, 'partial_rotary_factor', float, share)


def _dense(name: str, take, bias: bool, inner: int, outer: int, ours: str) -> dict:
  part = {ours: take(f'{name}.weight', outer, inner).T}
  return part | ({f'{ours}_bias': take(f'{name}.bias', outer)} if bias else {})


def _norm(name: str, take, c: DecoderConfig) -> dict:
  part = {'scale': take(f'{name}.weight', c.dim)}
  return part | ({'shift': take(f'{name}.bias', c.dim)} if c.norm == 'layer' else {})


def _attention(name: str, take, c: DecoderConfig, names, undo=lambda w, heads: w) -> dict:
  """Query, key, value and output, each a matrix of its own."""
  part = {}
  for ours, theirs, heads in zip(
    ('query', 'key', 'value'), names, (c.heads, c.key_heads, c.key_heads), strict=False
  ):
    w_OxD = take(f'{name}{theirs}.weight', heads * c.head_dim, c.dim)
    w_OxD = undo(w_OxD, heads) if ours != 'value' else w_OxD
    part[ours] = w_OxD.T.reshape(c.dim, heads, c.head_dim)
    if c.attention_bias:
      bias = take(f'{name}{theirs}.bias', heads * c.head_dim)
      part[f'{ours}_bias'] = bias.reshape(heads, c.head_dim)
  out = _dense(name + names[3], take, c.attention_bias, c.heads * c.head_dim, c.dim, 'output')
  return part | out | {'output': out['output'].reshape(c.heads, c.head_dim, c.dim)}


def _outer(tokens: str, norm: str, head: str, positions: str | None = None) -> Callable:
  """Embeddings, the last norm and the unembedding, by the family's names for them."""

  def outer(take, c: DecoderConfig) -> dict:
    embed = {'tokens': take(f'{tokens}.weight', c.vocabulary, c.dim)}
    if positions:
      embed['positions'] = take(f'{positions}.weight', c.length, c.dim)
    params = {'embed': embed, 'norm_final': _norm(norm, take, c)}
    return params if c.tied else params | {'unembed': take(f'{head}.weight', c.vocabulary, c.dim)}

  return outer


# --- Llama ----------------------------------------------------------------------------------------


def _llama_config(fields: dict, _) -> DecoderConfig:
  base, share = _rope(fields, 'rope_theta')
  dim, heads = field(fields, 'hidden_size', int), field(fields, 'num_attention_heads', int)
  head_dim = field(fields, 'head_dim', int, dim // max(1, heads))
  return DecoderConfig(
    vocabulary=field(fields, 'vocab_size', int),
    length=field(fields, 'max_position_embeddings', int, 2048),
    dim=dim,
    depth=field(fields, 'num_hidden_layers', int),
    heads=heads,
    key_heads=field(fields, 'num_key_value_heads', int, heads),
    head_dim=head_dim,
    hidden=field(fields, 'intermediate_size', int),
    norm_eps=field(fields, 'rms_norm_eps', float, 1e-6),
    activation=_activation(field(fields, 'hidden_act', str, 'silu')),
    rotary=round(share * head_dim),
    rotary_base=base,
    attention_bias=field(fields, 'attention_bias', bool, False),
    mlp_bias=field(fields, 'mlp_bias', bool, False),
    tied=field(fields, 'tie_word_embeddings', bool, False),
  )


def _llama_block(take, c: DecoderConfig, at: str, names: dict, undo=lambda w, heads: w) -> dict:
  mlp: dict = {}
  for ours in ('gate', 'in'):
    mlp |= _dense(at + names[ours], take, c.mlp_bias, c.dim, c.hidden, ours)
  return {
    'norm_attention': _norm(at + names['norm_attention'], take, c),
    'attention': _attention(at, take, c, names['attention'], undo),
    'norm_mlp': _norm(at + names['norm_mlp'], take, c),
    'mlp': mlp | _dense(at + names['out'], take, c.mlp_bias, c.hidden, c.dim, 'out'),
  }


def _hf_block(take, c: DecoderConfig, i: int) -> dict:
  names = {
    'norm_attention': 'input_layernorm', 'norm_mlp': 'post_attention_layernorm',
    'attention': [f'self_attn.{part}_proj' for part in 'qkvo'],
    'gate': 'mlp.gate_proj', 'in': 'mlp.up_proj', 'out': 'mlp.down_proj',
  }  # fmt: skip
  return _llama_block(take, c, f'model.layers.{i}.', names)


# --- Llama in a GGUF file -------------------------------------------------------------------------


def _gguf_config(fields: dict, names) -> DecoderConfig:
  for kind in ('rope.scaling.type', 'rope.scaling.factor'):
    if fields.get(f'llama.{kind}') not in (None, 'none', 1.0):
      raise InputError(f'{kind} is {str(fields[f"llama.{kind}"])[:40]!r}; no RoPE scaling is known')
  if 'rope_freqs.weight' in names:
    raise InputError('rope_freqs.weight scales the positions; no RoPE scaling is known')
  size = lambda name, *default: field(fields, f'llama.{name}', int, *default)
  dim, heads = size('embedding_length'), size('attention.head_count')
  head_dim = size('attention.key_length', dim // max(1, heads))
  if (rotary := size('rope.dimension_count', head_dim)) != head_dim or head_dim % 2:
    raise InputError(f'{rotary} of {head_dim} coordinates of a head turn; only all, in pairs, may')
  tokens = field(fields, 'tokenizer.ggml.tokens', list)
  return DecoderConfig(
    vocabulary=size('vocab_size', len(tokens)),
    length=size('context_length'),
    dim=dim,
    depth=size('block_count'),
    heads=heads,
    key_heads=size('attention.head_count_kv', heads),
    head_dim=head_dim,
    hidden=size('feed_forward_length'),
    norm_eps=field(fields, 'llama.attention.layer_norm_rms_epsilon', float),
    rotary=rotary,
    rotary_base=field(fields, 'llama.rope.freq_base', float, 10000.0),
    tied='output.weight' not in names,
  )


def _gguf_block(take, c: DecoderConfig, i: int) -> dict:
  names = {
    'norm_attention': 'attn_norm', 'norm_mlp': 'ffn_norm',
    'attention': ['attn_q', 'attn_k', 'attn_v', 'attn_output'],
    'gate': 'ffn_gate', 'in': 'ffn_up', 'out': 'ffn_down',
  }  # fmt: skip

  def undo(w_OxD, heads):
    """The format pairs neighbouring coordinates of a head for rotation; here it is halves."""
    pairs = w_OxD.reshape(heads, c.head_dim // 2, 2, c.dim)
    return pairs.swapaxes(1, 2).reshape(w_OxD.shape)

  return _llama_block(take, c, f'blk.{i}.', names, undo)


# --- GPT-2 ----------------------------------------------------------------------------------------


def _gpt2_config(fields: dict, _) -> DecoderConfig:
  _only(fields, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
  _only(fields, add_cross_attention=False)
  dim, heads = field(fields, 'n_embd', int), field(fields, 'n_head', int)
  return DecoderConfig(
    vocabulary=field(fields, 'vocab_size', int),
    length=field(fields, 'n_positions', int, 1024),
    dim=dim,
    depth=field(fields, 'n_layer', int),
    heads=heads,
    key_heads=heads,
    head_dim=dim // max(1, heads),
    hidden=field(fields, 'n_inner', int, 4 * dim),
    norm='layer',
    norm_eps=field(fields, 'layer_norm_epsilon', float, 1e-5),
    activation=_activation(field(fields, 'activation_function', str, 'gelu_new')),
    gated=False,
    attention_bias=True,
    mlp_bias=True,
    tied=field(fields, 'tie_word_embeddings', bool, True),
  )


def _gpt2_block(take, c: DecoderConfig, i: int) -> dict:
  at, heads = f'h.{i}.', (c.heads, c.head_dim)
  w_DxO = take(f'{at}attn.c_attn.weight', c.dim, 3 * c.dim).reshape(c.dim, 3, *heads)
  bias = take(f'{at}attn.c_attn.bias', 3 * c.dim).reshape(3, *heads)
  attention = {
    'output': take(f'{at}attn.c_proj.weight', c.dim, c.dim).reshape(*heads, c.dim),
    'output_bias': take(f'{at}attn.c_proj.bias', c.dim),
  }
  for j, name in enumerate(('query', 'key', 'value')):
    attention |= {name: w_DxO[:, j], f'{name}_bias': bias[j]}
  return {
    'norm_attention': _norm(f'{at}ln_1', take, c),
    'attention': attention,
    'norm_mlp': _norm(f'{at}ln_2', take, c),
    'mlp': {
      'in': take(f'{at}mlp.c_fc.weight', c.dim, c.hidden),
      'in_bias': take(f'{at}mlp.c_fc.bias', c.hidden),
      'out': take(f'{at}mlp.c_proj.weight', c.hidden, c.dim),
      'out_bias': take(f'{at}mlp.c_proj.bias', c.dim),
    },
  }


# --- GPT-NeoX (Pythia) ----------------------------------------------------------------------------


def _neox_config(fields: dict, _) -> DecoderConfig:
  dim, heads = field(fields, 'hidden_size', int), field(fields, 'num_attention_heads', int)
  head_dim = dim // max(1, heads)
  base, share = _rope({'rotary_pct': 0.25, **fields}, 'rotary_emb_base', 'rotary_pct')
  return DecoderConfig(
    vocabulary=field(fields, 'vocab_size', int),
    length=field(fields, 'max_position_embeddings', int, 2048),
    dim=dim,
    depth=field(fields, 'num_hidden_layers', int),
    heads=heads,
    key_heads=heads,
    head_dim=head_dim,
    hidden=field(fields, 'intermediate_size', int),
    norm='layer',
    norm_eps=field(fields, 'layer_norm_eps', float, 1e-5),
    activation=_activation(field(fields, 'hidden_act', str, 'gelu')),
    gated=False,
    rotary=int(share * head_dim),
    rotary_base=base,
    parallel=field(fields, 'use_parallel_residual', bool, True),
    attention_bias=field(fields, 'attention_bias', bool, True),
    mlp_bias=True,
    tied=field(fields, 'tie_word_embeddings', bool, False),
  )


def _neox_block(take, c: DecoderConfig, i: int) -> dict:
  at, fused = f'gpt_neox.layers.{i}.', f'gpt_neox.layers.{i}.attention.query_key_value'
  w = take(f'{fused}.weight', 3 * c.dim, c.dim).reshape(c.heads, 3, c.head_dim, c.dim)
  dense = _dense(f'{at}attention.dense', take, c.attention_bias, c.dim, c.dim, 'output')
  attention = dense | {'output': dense['output'].reshape(c.heads, c.head_dim, c.dim)}
  for j, name in enumerate(('query', 'key', 'value')):
    attention[name] = w[:, j].transpose(2, 0, 1)
  if c.attention_bias:
    bias = take(f'{fused}.bias', 3 * c.dim).reshape(c.heads, 3, c.head_dim)
    attention |= {f'{name}_bias': bias[:, j] for j, name in enumerate(('query', 'key', 'value'))}
  mlp = _dense(f'{at}mlp.dense_h_to_4h', take, True, c.dim, c.hidden, 'in')
  return {
    'norm_attention': _norm(f'{at}input_layernorm', take, c),
    'attention': attention,
    'norm_mlp': _norm(f'{at}post_attention_layernorm', take, c),
    'mlp': mlp | _dense(f'{at}mlp.dense_4h_to_h', take, True, c.hidden, c.dim, 'out'),
  }


FAMILIES = {
  'llama': Family(
    _llama_config,
    _outer('model.embed_tokens', 'model.norm', 'lm_head'),
    _hf_block,
    ('rotary_emb.inv_freq',),
  ),
  'gpt2': Family(
    _gpt2_config,
    _outer('wte', 'ln_f', 'lm_head', positions='wpe'),
    _gpt2_block,
    ('.attn.bias', '.attn.masked_bias'),
  ),
  'gpt_neox': Family(
    _neox_config,
    _outer('gpt_neox.embed_in', 'gpt_neox.final_layer_norm', 'embed_out'),
    _neox_block,
    ('.attention.bias', '.attention.masked_bias', 'rotary_emb.inv_freq'),
  ),
  'gguf': Family(_gguf_config, _outer('token_embd', 'output_norm', 'output'), _gguf_block),
}
