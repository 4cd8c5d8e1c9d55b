"""Tiny random models of every family: their files, and their logits by plain NumPy.

The forward passes here share no code with the package: one float64 function per family, over the
tensors as the files name and lay them out.
"""

import json
import math
import struct

import ml_dtypes
import numpy as np

DIM, HEADS, DEPTH, HIDDEN, VOCABULARY, LENGTH = 16, 4, 3, 24, 300, 32
FAMILIES = ('llama', 'llama_biased', 'gpt2', 'gpt_neox', 'gpt_neox_serial')
LETTERS = ''  # each is one token together with the space before it
IDS = (7, 250, 31, 31, 2, 99, 180, 64, 5)


def config(family):
  sizes = {
    'vocab_size': VOCABULARY, 'hidden_size': DIM, 'num_hidden_layers': DEPTH,
    'num_attention_heads': HEADS, 'intermediate_size': HIDDEN, 'max_position_embeddings': LENGTH,
  }  # fmt: skip
  if family.startswith('llama'):
    biased = family == 'llama_biased'
    return {'model_type': 'llama', **sizes, 'num_key_value_heads': 2, 'hidden_act': 'silu',
            'rms_norm_eps': 1e-5, 'rope_theta': 500.0, 'attention_bias': biased,
            'mlp_bias': biased, 'tie_word_embeddings': not biased}  # fmt: skip
  if family == 'gpt2':
    return {'model_type': 'gpt2', 'vocab_size': VOCABULARY, 'n_embd': DIM, 'n_layer': DEPTH,
            'n_head': HEADS, 'n_inner': HIDDEN, 'n_positions': LENGTH,
            'activation_function': 'gelu_new', 'layer_norm_epsilon': 1e-5}  # fmt: skip
  return {'model_type': 'gpt_neox', **sizes, 'hidden_act': 'gelu', 'rotary_pct': 0.5,
          'rotary_emb_base': 200, 'layer_norm_eps': 1e-5, 'tie_word_embeddings': False,
          'use_parallel_residual': family == 'gpt_neox'}  # fmt: skip


def tensors(family, seed=0):
  """The float32 arrays by name, as in the family's own files."""
  rng, d, f, out = np.random.default_rng(seed), DIM, HIDDEN, {}

  def put(name, *shape, bias=None, around=0.0):
    scale = 0.5 / math.sqrt(shape[-1]) if len(shape) > 1 else 0.2
    values = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
    out[f'{name}.weight'] = scale * values(*shape) + np.float32(around)
    if bias:
      out[f'{name}.bias'] = 0.2 * values(bias)

  if family.startswith('llama'):
    b = family == 'llama_biased'
    put('model.embed_tokens', VOCABULARY, d)
    out['model.embed_tokens.weight'] *= 8
    for i in range(DEPTH):
      at = f'model.layers.{i}.'
      put(f'{at}input_layernorm', d, around=1)
      put(f'{at}post_attention_layernorm', d, around=1)
      for name, rows in (('q', d), ('k', d // 2), ('v', d // 2), ('o', d)):
        put(f'{at}self_attn.{name}_proj', rows, d, bias=b and rows)
      put(f'{at}mlp.gate_proj', f, d, bias=b and f)
      put(f'{at}mlp.up_proj', f, d, bias=b and f)
      put(f'{at}mlp.down_proj', d, f, bias=b and d)
    put('model.norm', d, around=1)
    if b:
      put('lm_head', VOCABULARY, d)
  elif family == 'gpt2':
    put('transformer.wte', VOCABULARY, d)
    put('transformer.wpe', LENGTH, d)
    for i in range(DEPTH):
      at = f'transformer.h.{i}.'
      put(f'{at}ln_1', d, bias=d, around=1)
      put(f'{at}ln_2', d, bias=d, around=1)
      put(f'{at}attn.c_attn', d, 3 * d, bias=3 * d)
      put(f'{at}attn.c_proj', d, d, bias=d)
      put(f'{at}mlp.c_fc', d, f, bias=f)
      put(f'{at}mlp.c_proj', f, d, bias=d)
    put('transformer.ln_f', d, bias=d, around=1)
  else:
    put('gpt_neox.embed_in', VOCABULARY, d)
    for i in range(DEPTH):
      at = f'gpt_neox.layers.{i}.'
      put(f'{at}input_layernorm', d, bias=d, around=1)
      put(f'{at}post_attention_layernorm', d, bias=d, around=1)
      put(f'{at}attention.query_key_value', 3 * d, d, bias=3 * d)
      put(f'{at}attention.dense', d, d, bias=d)
      put(f'{at}mlp.dense_h_to_4h', f, d, bias=f)
      put(f'{at}mlp.dense_4h_to_h', d, f, bias=d)
    put('gpt_neox.final_layer_norm', d, bias=d, around=1)
    put('embed_out', VOCABULARY, d)
  return out


# --- files ----------------------------------------------------------------------------------------

NAMES = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16'}


def safetensors(arrays, header=None):
  """The bytes of a safetensors file. `header`: replaces the one that describes the arrays."""
  described, data = {'__metadata__': {'format': 'pt'}}, b''
  for name, array in arrays.items():
    raw = array.tobytes()
    described[name] = {
      'dtype': NAMES[str(array.dtype)], 'shape': list(array.shape),
      'data_offsets': [len(data), len(data) + len(raw)],
    }  # fmt: skip
    data += raw
  text = json.dumps(described).encode() if header is None else header
  return struct.pack('<Q', len(text)) + text + data


def tokenizer():
  """A byte-level BPE of 260 tokens, as tokenizer.json."""
  import tokenizers

  letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  merged = [('t', 'h'), ('th', 'e'), ('Ġ', 'a'), ('a', 'n'), *(('Ġ', letter) for letter in LETTERS)]
  vocabulary = {token: i for i, token in enumerate([*letters, *map(''.join, merged)])}
  inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merged))
  inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.decoder = tokenizers.decoders.ByteLevel()
  return inner.to_str()


def write(folder, family, dtype='float32', shards=1, seed=0):
  """Writes a model's folder and returns, in float32, the tensors that its files hold."""
  folder.mkdir(parents=True, exist_ok=True)
  kind = {'bfloat16': ml_dtypes.bfloat16}.get(dtype, dtype)
  arrays = {name: a.astype(kind) for name, a in tensors(family, seed).items()}
  (folder / 'config.json').write_text(json.dumps(config(family)))
  (folder / 'tokenizer.json').write_text(tokenizer())
  if shards == 1:
    (folder / 'model.safetensors').write_bytes(safetensors(arrays))
  else:
    where = {}
    for i in range(shards):
      file = f'model-{i + 1:05d}-of-{shards:05d}.safetensors'
      own = dict(list(arrays.items())[i::shards])
      (folder / file).write_bytes(safetensors(own))
      where |= dict.fromkeys(own, file)
    index = {'metadata': {'total_size': 0}, 'weight_map': where}
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  return {name: a.astype(np.float32) for name, a in arrays.items()}


# --- forward passes -------------------------------------------------------------------------------


def forward(family, weights, ids=IDS):
  """Logits at every position."""
  weights = {name: a.astype(np.float64) for name, a in weights.items()}
  if family == 'gpt2':
    return _gpt2(weights, ids)
  return (_llama if family.startswith('llama') else _neox)(family, weights, ids)


def _softmax_causal(scores):
  scores = np.where(np.tri(len(scores), dtype=bool), scores, -np.inf)
  e = np.exp(scores - scores.max(axis=1, keepdims=True))
  return e / e.sum(axis=1, keepdims=True)


def _rotate(x, base, dims):
  """Rotary embedding of x (length × head), which rotates coordinate i with i + dims/2."""
  out = x.copy()
  for p in range(len(x)):
    for i in range(dims // 2):
      angle = p * base ** (-2 * i / dims)
      a, b = x[p, i], x[p, i + dims // 2]
      out[p, i] = a * math.cos(angle) - b * math.sin(angle)
      out[p, i + dims // 2] = b * math.cos(angle) + a * math.sin(angle)
  return out


def _layernorm(x, w, name):
  mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  return (x - mean) / np.sqrt(var + 1e-5) * w[f'{name}.weight'] + w[f'{name}.bias']


def _linear(x, w, name):
  return x @ w[f'{name}.weight'].T + w.get(f'{name}.bias', 0.0)


def _llama(family, w, ids):
  norm = lambda x, name: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w[f'{name}.weight']
  x, head = w['model.embed_tokens.weight'][list(ids)], DIM // HEADS
  for i in range(DEPTH):
    at = f'model.layers.{i}.'
    y = norm(x, f'{at}input_layernorm')
    q, k, v = (_linear(y, w, f'{at}self_attn.{name}_proj') for name in 'qkv')
    reads = []
    for h in range(HEADS):
      own, shared = slice(h * head, (h + 1) * head), slice(h // 2 * head, (h // 2 + 1) * head)
      scores = _rotate(q[:, own], 500.0, head) @ _rotate(k[:, shared], 500.0, head).T
      reads.append(_softmax_causal(scores / math.sqrt(head)) @ v[:, shared])
    x = x + _linear(np.concatenate(reads, axis=1), w, f'{at}self_attn.o_proj')
    y = norm(x, f'{at}post_attention_layernorm')
    gate = _linear(y, w, f'{at}mlp.gate_proj')
    up = _linear(y, w, f'{at}mlp.up_proj')
    x = x + _linear(gate / (1 + np.exp(-gate)) * up, w, f'{at}mlp.down_proj')
  head = w.get('lm_head.weight', w['model.embed_tokens.weight'])
  return norm(x, 'model.norm') @ head.T


def _gpt2(w, ids):
  w = {name.removeprefix('transformer.'): a for name, a in w.items()}
  x, head = w['wte.weight'][list(ids)] + w['wpe.weight'][: len(ids)], DIM // HEADS
  apply = lambda x, name: x @ w[f'{name}.weight'] + w[f'{name}.bias']
  for i in range(DEPTH):
    q, k, v = np.split(apply(_layernorm(x, w, f'h.{i}.ln_1'), f'h.{i}.attn.c_attn'), 3, axis=1)
    reads = []
    for h in range(HEADS):
      own = slice(h * head, (h + 1) * head)
      reads.append(_softmax_causal(q[:, own] @ k[:, own].T / math.sqrt(head)) @ v[:, own])
    x = x + apply(np.concatenate(reads, axis=1), f'h.{i}.attn.c_proj')
    y = apply(_layernorm(x, w, f'h.{i}.ln_2'), f'h.{i}.mlp.c_fc')
    y = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    x = x + apply(y, f'h.{i}.mlp.c_proj')
  return _layernorm(x, w, 'ln_f') @ w['wte.weight'].T


def _neox(family, w, ids):
  x, head = w['gpt_neox.embed_in.weight'][list(ids)], DIM // HEADS
  erf = np.vectorize(math.erf)
  for i in range(DEPTH):
    at = f'gpt_neox.layers.{i}.'
    fused = _linear(_layernorm(x, w, f'{at}input_layernorm'), w, f'{at}attention.query_key_value')
    reads = []
    for h in range(HEADS):
      q, k, v = np.split(fused[:, 3 * head * h : 3 * head * (h + 1)], 3, axis=1)
      scores = _rotate(q, 200.0, head // 2) @ _rotate(k, 200.0, head // 2).T
      reads.append(_softmax_causal(scores / math.sqrt(head)) @ v)
    read = _linear(np.concatenate(reads, axis=1), w, f'{at}attention.dense')
    before = x if family == 'gpt_neox' else x + read
    y = _layernorm(before, w, f'{at}post_attention_layernorm')
    y = _linear(y, w, f'{at}mlp.dense_h_to_4h')
    y = _linear(0.5 * y * (1 + erf(y / math.sqrt(2))), w, f'{at}mlp.dense_4h_to_h')
    x = x + read + y
  return _layernorm(x, w, 'gpt_neox.final_layer_norm') @ w['embed_out.weight'].T
