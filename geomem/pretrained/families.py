"""The names that each model family's files use for the fields and tensors of a decoder.

A family is a table: it maps the fields of its configuration to a `DecoderConfig`, and the names of
its tensors to the parameter tree of `decoder.shapes`.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from geomem.errors import InputError
from geomem.pretrained.config import DecoderConfig

TYPES = {f.name: f.type for f in dataclasses.fields(DecoderConfig)}
OPTIONAL = ('vocabulary', 'kv_heads', 'head_dim', 'hidden')  # derived from the others if absent
ACTIVATIONS = {
  'silu': 'silu', 'swish': 'silu', 'gelu': 'gelu', 'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh', 'gelu_fast': 'gelu_tanh',
}  # fmt: skip
QKV = ('query', 'key', 'value')
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Family:
  """`fields` and `tensors`: from our names to the file's. `block`: the prefix of tensor names in block i.

  `defaults`: values of fields that may be missing. `only`: fields with just one supported value.
  `fixed`: settings that no field gives. `rope`: computes the rotary part of the configuration.
  `read`: reads a tensor outside the embeddings, output axis first. `ignored`: name suffixes of
  tensors that are not weights.
  """

  fields: Mapping[str, str]
  tensors: Mapping[str, str]
  block: str
  defaults: Mapping[str, Any]
  only: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  rope: Callable = lambda fields, config, tensors: {}
  read: Callable = lambda fetch, config, module, name, shape: fetch(name, *shape)
  ignored: tuple[str, ...] = ()


def field(fields: Mapping[str, Any], name: str, kind: Any) -> Any:
  """The field of that name, which must be of that type."""
  value = fields.get(name)
  if kind is float and type(value) is int and abs(value) < 2**53:
    value = float(value)
  if type(value) is not kind:
    raise InputError(f'{name} is {repr(value)[:60]}; it must be of type {kind.__name__}')
  return value


def config(family: Family, given: Mapping[str, Any], tensors: Collection[str]) -> DecoderConfig:
  """The configuration that the fields of a file describe; null counts as absent."""
  fields = {**family.defaults, **{name: v for name, v in given.items() if v is not None}}
  for name, value in family.only.items():
    if fields.get(name, value) != value:
      raise InputError(f'{name} is {str(fields[name])[:60]!r}; only {value!r} is supported')
  sizes = {
    ours: field(fields, name, TYPES[ours])
    for ours, name in family.fields.items()
    if name in fields or ours not in OPTIONAL
  }
  dim, heads, words = sizes['dim'], sizes['heads'], fields.get('tokenizer.ggml.tokens')
  if (name := sizes.pop('activation', 'silu')) not in ACTIVATIONS:
    raise InputError(f'activation {name[:40]!r} is not supported; {", ".join(ACTIVATIONS)} are')
  derived = {
    'vocabulary': len(words) if isinstance(words, list) else 0,
    'kv_heads': heads, 'head_dim': dim // max(1, heads), 'hidden': 4 * dim,
    'tied': f'{family.tensors["unembed"]}.weight' not in tensors,
  }  # fmt: skip
  found = DecoderConfig(**{**derived, **sizes, **family.fixed, 'activation': ACTIVATIONS[name]})
  return dataclasses.replace(found, **family.rope(fields, found, tensors))


def parameter(
  family: Family, c: DecoderConfig, fetch: Callable, path: tuple[str, ...], shape: Shape, block: int
) -> np.ndarray:
  """The parameter at a path in the tree. `fetch(name, *shape)` reads a tensor of the file, refusing other shapes."""
  *_, module, kind = ('', *path)
  if path[0] in ('embed', 'unembed'):
    return fetch(f'{family.tensors.get(kind, kind)}.weight', *shape)
  name = f'{family.tensors[module]}.{"bias" if kind == "bias" else "weight"}'
  if path[0] == 'blocks':
    name = family.block.format(block) + name
  inputs = math.prod(shape[: 2 if module == 'output' else 1])
  outputs_first = (math.prod(shape) // inputs, inputs) if kind == 'kernel' else (math.prod(shape),)
  return family.read(fetch, c, module, name, outputs_first).T.reshape(shape)


def _rope(fields: Mapping, c: DecoderConfig, tensors: Collection[str]) -> dict:
  """The base and the fraction of rotated coordinates, from old or new field names; scaling is refused."""
  new = field(fields, 'rope_parameters', dict)
  for about in (new, field(fields, 'rope_scaling', dict)):
    kind = about.get('rope_type', about.get('type', 'default'))
    if kind not in ('default', None):
      raise InputError(f'RoPE scaling {str(kind)[:40]!r} is not supported')
  defaults = {'rope_theta': c.rotary_base, 'partial_rotary_factor': fields['rotary_pct']}
  base, fraction = (field({**defaults, **new}, name, float) for name in defaults)
  if not 0 < fraction <= 1:
    raise InputError(f'RoPE of {fraction:g} of the coordinates of a head; it must be in (0, 1]')
  return {'rotary': int(fraction * c.head_dim), 'rotary_base': base}


def _gguf_rope(fields: Mapping, c: DecoderConfig, tensors: Collection[str]) -> dict:
  if 'rope_freqs.weight' in tensors:
    raise InputError('rope_freqs.weight scales the positions; RoPE scaling is not supported')
  name = 'llama.rope.dimension_count'
  rotary = field({name: c.head_dim, **fields}, name, int)
  if rotary != c.head_dim or rotary % 2:
    text = f'RoPE rotates {rotary} of {c.head_dim} coordinates of a head'
    raise InputError(f'{text}; only all of an even number are supported')
  return {'rotary': rotary}


def _gguf_read(fetch, c: DecoderConfig, module: str, name: str, shape: Shape) -> np.ndarray:
  """Undoes GGUF's interleaving of the two halves of a head's coordinates that RoPE rotates together."""
  tensor = fetch(name, *shape)
  if module not in ('query', 'key'):
    return tensor
  return tensor.reshape(-1, c.head_dim // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def _gpt2_read(fetch, c: DecoderConfig, module: str, name: str, shape: Shape) -> np.ndarray:
  """GPT-2 stores the input axis first, and all queries, all keys and all values side by side in one tensor."""
  if module not in QKV:
    return fetch(name, *shape[::-1]).T
  return np.split(fetch(name, *shape[:0:-1], 3 * shape[0]), 3, axis=-1)[QKV.index(module)].T


def _neox_read(fetch, c: DecoderConfig, module: str, name: str, shape: Shape) -> np.ndarray:
  """GPT-NeoX stores the query, key and value of the first head, then those of the next, in one tensor."""
  if module not in QKV:
    return fetch(name, *shape)
  heads = fetch(name, 3 * shape[0], *shape[1:]).reshape(c.heads, 3, c.head_dim, *shape[1:])
  return heads[:, QKV.index(module)].reshape(shape)


_HF = {
  'vocabulary': 'vocab_size', 'length': 'max_position_embeddings', 'dim': 'hidden_size',
  'depth': 'num_hidden_layers', 'heads': 'num_attention_heads', 'hidden': 'intermediate_size',
  'activation': 'hidden_act', 'attention_bias': 'attention_bias', 'tied': 'tie_word_embeddings',
}  # fmt: skip
_HF_DEFAULTS = {
  'max_position_embeddings': 2048, 'tie_word_embeddings': False,
  'rope_parameters': {}, 'rope_scaling': {},
}  # fmt: skip
FAMILIES = {
  'llama': Family(
    fields=_HF | {
      'kv_heads': 'num_key_value_heads', 'head_dim': 'head_dim', 'norm_eps': 'rms_norm_eps',
      'rotary_base': 'rope_theta', 'mlp_bias': 'mlp_bias'},
    defaults=_HF_DEFAULTS | {
      'rms_norm_eps': 1e-6, 'hidden_act': 'silu', 'attention_bias': False, 'mlp_bias': False,
      'rope_theta': 10000.0, 'rotary_pct': 1.0},
    tensors={
      'tokens': 'model.embed_tokens', 'norm_final': 'model.norm', 'unembed': 'lm_head',
      'norm_attention': 'input_layernorm', 'norm_mlp': 'post_attention_layernorm',
      'query': 'self_attn.q_proj', 'key': 'self_attn.k_proj', 'value': 'self_attn.v_proj',
      'output': 'self_attn.o_proj', 'gate': 'mlp.gate_proj', 'up': 'mlp.up_proj',
      'down': 'mlp.down_proj'},
    block='model.layers.{}.', rope=_rope, ignored=('rotary_emb.inv_freq',),
  ),
  'gguf': Family(
    fields={
      'dim': 'llama.embedding_length', 'length': 'llama.context_length',
      'vocabulary': 'llama.vocab_size', 'depth': 'llama.block_count',
      'heads': 'llama.attention.head_count', 'kv_heads': 'llama.attention.head_count_kv',
      'head_dim': 'llama.attention.key_length', 'hidden': 'llama.feed_forward_length',
      'norm_eps': 'llama.attention.layer_norm_rms_epsilon', 'rotary_base': 'llama.rope.freq_base'},
    defaults={'llama.rope.freq_base': 10000.0},
    only={'llama.rope.scaling.type': 'none', 'llama.rope.scaling.factor': 1.0},
    tensors={
      'tokens': 'token_embd', 'norm_final': 'output_norm', 'unembed': 'output',
      'norm_attention': 'attn_norm', 'norm_mlp': 'ffn_norm', 'query': 'attn_q', 'key': 'attn_k',
      'value': 'attn_v', 'output': 'attn_output', 'gate': 'ffn_gate', 'up': 'ffn_up',
      'down': 'ffn_down'},
    block='blk.{}.', rope=_gguf_rope, read=_gguf_read,
  ),
  'gpt2': Family(
    fields={
      'vocabulary': 'vocab_size', 'length': 'n_positions', 'dim': 'n_embd', 'depth': 'n_layer',
      'heads': 'n_head', 'hidden': 'n_inner', 'norm_eps': 'layer_norm_epsilon',
      'activation': 'activation_function', 'tied': 'tie_word_embeddings'},
    defaults={
      'n_positions': 1024, 'layer_norm_epsilon': 1e-5, 'activation_function': 'gelu_new',
      'tie_word_embeddings': True},
    only={
      'scale_attn_weights': True, 'scale_attn_by_inverse_layer_idx': False,
      'add_cross_attention': False},
    fixed={'norm': 'layer', 'gated': False, 'attention_bias': True, 'mlp_bias': True},
    tensors={
      'tokens': 'wte', 'positions': 'wpe', 'norm_final': 'ln_f', 'unembed': 'lm_head',
      'norm_attention': 'ln_1', 'norm_mlp': 'ln_2', **dict.fromkeys(QKV, 'attn.c_attn'),
      'output': 'attn.c_proj', 'up': 'mlp.c_fc', 'down': 'mlp.c_proj'},
    block='h.{}.', read=_gpt2_read, ignored=('.attn.bias', '.attn.masked_bias'),
  ),
  'gpt_neox': Family(
    fields=_HF | {
      'norm_eps': 'layer_norm_eps', 'parallel': 'use_parallel_residual',
      'rotary_base': 'rotary_emb_base'},
    defaults=_HF_DEFAULTS | {
      'layer_norm_eps': 1e-5, 'hidden_act': 'gelu', 'use_parallel_residual': True,
      'attention_bias': True, 'rotary_emb_base': 10000.0, 'rotary_pct': 0.25},
    fixed={'norm': 'layer', 'gated': False, 'mlp_bias': True},
    tensors={
      'tokens': 'gpt_neox.embed_in', 'norm_final': 'gpt_neox.final_layer_norm',
      'unembed': 'embed_out', 'norm_attention': 'input_layernorm',
      'norm_mlp': 'post_attention_layernorm', **dict.fromkeys(QKV, 'attention.query_key_value'),
      'output': 'attention.dense', 'up': 'mlp.dense_h_to_4h', 'down': 'mlp.dense_4h_to_h'},
    block='gpt_neox.layers.{}.', rope=_rope, read=_neox_read,
    ignored=('.attention.bias', '.attention.masked_bias', 'rotary_emb.inv_freq'),
  ),
}  # fmt: skip
