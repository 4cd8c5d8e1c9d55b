"""Model files: every family against plain NumPy and frozen values; files that are not sound are refused.

No weights are needed: models here are tiny and random. Refusals take one line and no memory.
"""

import json
import struct
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pretrained_models as models
import pretrained_reference as reference
import pytest

from geomem.errors import InputError
from geomem.pretrained import decoder, gguf_file, load, safetensors_file

pytest.importorskip('gguf', reason='the extra lm is not installed')
pytest.importorskip('tokenizers', reason='the extra lm is not installed')


def logits(model, ids=models.IDS):
  @jax.jit
  def run(params, ids_L):
    x_LxD = decoder.embed(model.config, params, ids_L)
    x_LxD = decoder.residuals(model.config, params, x_LxD)[-1]
    return jax.vmap(lambda x_D: decoder.logits(model.config, params, x_D))(x_LxD)

  return np.asarray(run(model.params, jnp.array(ids)))


@pytest.mark.parametrize('family', models.FAMILIES)
@pytest.mark.parametrize('dtype, shards', [('float32', 1), ('float32', 3), ('bfloat16', 2)])
def test_every_family_answers_as_plain_numpy(family, dtype, shards, tmp_path):
  weights = models.write(tmp_path, family, dtype, shards)
  model = load.load(tmp_path)
  expected = models.forward(family, weights)
  assert np.std(expected) > 0.1
  np.testing.assert_allclose(logits(model), expected, atol=2e-4)
  if dtype == 'float32':
    np.testing.assert_allclose(expected, np.load(reference.FILE)[f'tiny_{family}'], atol=1e-5)


def test_half_precision_is_read_too(tmp_path):
  weights = models.write(tmp_path, 'gpt2', 'float16')
  np.testing.assert_allclose(
    logits(load.load(tmp_path)), models.forward('gpt2', weights), atol=2e-4
  )


def test_names_without_a_prefix_and_buffers_are_read(tmp_path):
  weights = models.write(tmp_path, 'gpt2')
  bare = {name.removeprefix('transformer.'): a for name, a in weights.items()}
  bare |= {f'h.{i}.attn.bias': np.ones((1, 1, 4, 4), np.float32) for i in range(models.DEPTH)}
  (tmp_path / 'model.safetensors').write_bytes(models.safetensors(bare))
  np.testing.assert_allclose(
    logits(load.load(tmp_path)), models.forward('gpt2', weights), atol=2e-4
  )


def test_new_spelling_of_rotary_positions(tmp_path):
  weights = models.write(tmp_path, 'llama')
  about = models.config('llama')
  about['rope_parameters'] = {'rope_type': 'default', 'rope_theta': about.pop('rope_theta')}
  (tmp_path / 'config.json').write_text(json.dumps(about))
  np.testing.assert_allclose(
    logits(load.load(tmp_path)), models.forward('llama', weights), atol=2e-4
  )


def test_a_prompts_padding_and_later_tokens_change_nothing_before(tmp_path):
  models.write(tmp_path, 'gpt_neox')
  model = load.load(tmp_path)
  other = (*models.IDS[:5], 1, 1, 1, 1)
  np.testing.assert_array_equal(logits(model)[:5], logits(model, other)[:5])


# --- folders that are refused ---------------------------------------------------------------------


def refused(model, *words):
  """Checks that loading is refused in one line with the path and these words, using next to no memory."""
  tracemalloc.start()
  try:
    with pytest.raises(InputError) as caught:
      load.load(model)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  text = str(caught.value)
  assert str(model) in text and '\n' not in text and len(text) < 600
  assert all(word in text for word in words), text
  assert peak < 32 * 2**20


CONFIGS = {
  'architecture': ({'model_type': 'mamba'}, 'mamba'),
  'no architecture': ({'model_type': None}, 'None'),
  'scaling': ({'rope_scaling': {'rope_type': 'llama3', 'factor': 8}}, 'llama3'),
  'new scaling': ({'rope_parameters': {'rope_type': 'yarn'}}, 'yarn'),
  'activation': ({'hidden_act': 'relu6'}, 'relu6'),
  'depth': ({'num_hidden_layers': 10**9}, 'depth'),
  'believable depth': ({'num_hidden_layers': 10**6}, 'weights'),
  'another depth': ({'num_hidden_layers': models.DEPTH - 1}, 'no place'),
  'width': ({'hidden_size': 2**20, 'head_dim': 4}, 'weights'),
  'text for a number': ({'hidden_size': '16'}, 'hidden_size'),
  'fewer tokens': ({'vocab_size': 10}, 'tokens'),
  'heads': ({'num_key_value_heads': 3}, 'evenly'),
  'no heads': ({'num_attention_heads': 0}, 'heads'),
  'not a number': ({'rms_norm_eps': float('nan')}, 'norm_eps'),
}


@pytest.mark.parametrize('name', CONFIGS)
def test_a_configuration_that_is_not_known_is_refused(name, tmp_path):
  models.write(tmp_path, 'llama')
  change, word = CONFIGS[name]
  (tmp_path / 'config.json').write_text(json.dumps({**models.config('llama'), **change}))
  refused(tmp_path, word)


def test_folders_without_what_a_model_needs_are_refused(tmp_path):
  refused(tmp_path / 'none', 'no such')
  refused(tmp_path, 'config.json')
  models.write(tmp_path, 'llama')
  (tmp_path / 'tokenizer.json').unlink()
  refused(tmp_path, 'tokenizer.json')
  models.write(tmp_path, 'llama')
  (tmp_path / 'model.safetensors').rename(tmp_path / 'pytorch_model.bin')
  refused(tmp_path, 'pytorch_model.bin', 'pickle')
  refused(tmp_path / 'pytorch_model.bin', 'pickles are not read')


@pytest.mark.parametrize('text, word', [
  ('{"model": {"type": "Unigram", "vocab": []}}', 'Unigram'),
  ('{"model": {"type": "BPE", "vocab": {"a": -3}, "merges": 7}}', 'tokenizer'),
  ('{"model": 3}', 'valid'), ('[1]', 'valid'), ('{', 'valid'), ('[' * 10**5, 'valid'),
])  # fmt: skip
def test_tokenizers_that_are_not_known_are_refused(text, word, tmp_path):
  models.write(tmp_path, 'llama')
  (tmp_path / 'tokenizer.json').write_text(text)
  refused(tmp_path, word)


@pytest.mark.parametrize('text, word', [
  ('{"a": 1, "a": 1}', 'parsed'), ('[1]', 'not an object'), ('{', 'parsed'), ('[' * 10**5, 'parsed'),
])  # fmt: skip
def test_configurations_that_are_not_valid_json_are_refused(text, word, tmp_path):
  models.write(tmp_path, 'llama')
  (tmp_path / 'config.json').write_text(text)
  refused(tmp_path, 'config.json', word)


@pytest.mark.parametrize('around', ['<s> $A', '$A </s>', '<s> $A </s>'])
def test_tokenizers_that_end_every_text_are_refused(around, tmp_path):
  import tokenizers

  models.write(tmp_path, 'llama')
  inner = tokenizers.Tokenizer.from_str(models.tokenizer())
  inner.add_special_tokens(['<s>', '</s>'])
  special = [(token, inner.token_to_id(token)) for token in ('<s>', '</s>')]
  inner.post_processor = tokenizers.processors.TemplateProcessing(around, special_tokens=special)
  (tmp_path / 'tokenizer.json').write_text(inner.to_str())
  if around == '<s> $A':
    assert load.load(tmp_path).tokenizer.encode('the').ids[0] == special[0][1]
  else:
    refused(tmp_path, 'adds a token after every text')


@pytest.mark.parametrize('where, word', [
  ({'a': '../../etc/passwd'}, 'not a file'), ({'a': '/abs.safetensors'}, 'not a file'),
  ({'a': 3}, 'not a file'), ({}, 'weight_map'), ([], 'weight_map'),
  ({'a': 'gone.safetensors'}, 'gone'), ({'a': 'model-00001-of-00002.safetensors'}, "no 'a'"),
])  # fmt: skip
def test_an_index_that_leads_elsewhere_is_refused(where, word, tmp_path):
  models.write(tmp_path, 'llama', shards=2)
  index = tmp_path / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': where}))
  refused(tmp_path, word)


# --- safetensors: the header ----------------------------------------------------------------------


def entry(shape=(4,), offsets=(0, 16), dtype='F32'):
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(offsets)}


def file_of(header, data=bytes(16)):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack('<Q', len(text)) + text + data


SAFETENSORS = {
  'empty': b'',
  'short': b'\0' * 7,
  'header longer than the file': struct.pack('<Q', 2**40) + b'{}',
  'header of 2⁶⁴ − 1 bytes': struct.pack('<Q', 2**64 - 1) + b'{}' * 8,
  'not JSON': file_of(b'{"a": '),
  'not text': file_of(b'\xff\xfe\x00'),
  'too deep': file_of(b'{"a": ' * 50000 + b'1' + b'}' * 50000),
  'deep lists': file_of(b'{"a": ' + b'[' * 10**5 + b']' * 10**5 + b'}'),
  'a list': file_of([1, 2]),
  'not a description': file_of({'a': 5}),
  'a huge number': file_of(b'{"a": ' + b'9' * 10**4 + b'}'),
  'one more field': file_of({'a': {**entry(), 'code': 'x'}}),
  'unknown dtype': file_of({'a': entry(dtype='Q9')}),
  'dtype is a list': file_of({'a': entry(dtype=['F32'])}),
  'negative offset': file_of({'a': entry(offsets=(-16, 0))}),
  'backwards': file_of({'a': entry(offsets=(16, 0))}),
  'three offsets': file_of({'a': entry(offsets=(0, 8, 16))}),
  'out of range': file_of({'a': entry((400,), (0, 1600))}),
  'huge shape': file_of({'a': entry((2**62, 2**62, 2**62))}),
  'shape of zeros and a huge one': file_of({'a': entry((2**80, 0), (0, 0))}),
  'negative shape': file_of({'a': entry((-2, -2))}),
  'a fraction': file_of({'a': entry((4.0,))}),
  'true is no number': file_of({'a': entry((True, 4))}),
  'shape is less': file_of({'a': entry((3,))}),
  'overlap': file_of({'a': entry(), 'b': entry((3,), (4, 16))}),
  'gap': file_of({'a': entry((2,), (8, 16))}),
  'bytes left over': file_of({'a': entry()}, bytes(32)),
  'duplicate': file_of(
    b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
    b'"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
  ),
}


@pytest.mark.parametrize('name', SAFETENSORS)
def test_safetensors_that_are_not_sound_are_refused(name, tmp_path):
  models.write(tmp_path, 'llama')
  (tmp_path / 'model.safetensors').write_bytes(SAFETENSORS[name])
  refused(tmp_path, 'model.safetensors')


def test_a_sound_file_is_read(tmp_path):
  path = tmp_path / 'x.safetensors'
  path.write_bytes(
    file_of({'b': entry((2, 2)), 'a': entry((0, 3), (0, 0))}, np.arange(4.0, dtype='f').tobytes())
  )
  file = safetensors_file.Safetensors(path)
  np.testing.assert_array_equal(file.array('b'), [[0, 1], [2, 3]])
  assert file.array('a').shape == (0, 3)


@pytest.mark.parametrize('seed', range(3))
def test_flipped_and_cut_safetensors_are_refused_or_read_and_nothing_else(seed, tmp_path):
  models.write(tmp_path, 'llama')
  whole = (tmp_path / 'model.safetensors').read_bytes()
  rng = np.random.default_rng(seed)
  for _ in range(60):
    data = bytearray(whole)
    for at in rng.integers(0, 3000, 3):
      data[at] = rng.integers(256)
    if rng.random() < 0.3:
      del data[rng.integers(len(data)) :]
    path = tmp_path / 'x.safetensors'
    path.write_bytes(data)
    try:
      safetensors_file.Safetensors(path)
    except InputError as error:
      assert '\n' not in str(error)


# --- GGUF: the header -----------------------------------------------------------------------------


def text(s):
  data = s.encode() if isinstance(s, str) else s
  return struct.pack('<Q', len(data)) + data


def gguf(tensors=(), fields=(), data=bytes(256), magic=b'GGUF', version=3, counts=None):
  """The bytes of a GGUF file with these tensors (name, shape, kind, offset) and fields (raw bytes)."""
  count_t, count_f = counts or (len(tensors), len(fields))
  out = magic + struct.pack('<IQQ', version, count_t, count_f) + b''.join(fields)
  for name, shape, kind, offset in tensors:
    out += text(name) + struct.pack(f'<I{len(shape)}Q', len(shape), *shape)
    out += struct.pack('<IQ', kind, offset)
  return out + bytes(-len(out) % 32) + data


ONE = ('a', (8,), 0, 0)
GGUFS = {
  'empty': b'',
  'magic': gguf([ONE], magic=b'GGML'),
  'version 1': gguf([ONE], version=1),
  'another byte order': gguf([ONE], version=3 << 24),
  'ends in the header': gguf([ONE])[:20],
  'huge tensor count': gguf([ONE], counts=(2**63, 0)),
  'huge field count': gguf([ONE], counts=(1, 2**40)),
  'more tensors than there are': gguf([ONE], counts=(60000, 0)),
  'string of 2⁶³ bytes': gguf([], [struct.pack('<Q', 2**63)], counts=(0, 1)),
  'string beyond the end': gguf([], [text('k') + struct.pack('<IQ', 8, 10**6)]),
  'name of a megabyte': gguf([], [text('k' * 2**20) + struct.pack('<II', 4, 1)]),
  'not UTF-8': gguf([], [text(b'\xff\xfe') + struct.pack('<II', 4, 1)]),
  'unknown type of a field': gguf([], [text('k') + struct.pack('<II', 77, 1)]),
  'unknown type of an array': gguf([], [text('k') + struct.pack('<IIQ', 9, 77, 1)]),
  'array in an array': gguf([], [text('k') + struct.pack('<IIQ', 9, 9, 2**40)]),
  'huge array': gguf([], [text('k') + struct.pack('<IIQ', 9, 4, 2**61)]),
  'huge array of strings': gguf([], [text('k') + struct.pack('<IIQ', 9, 8, 2**61)]),
  'field twice': gguf([], [text('k') + struct.pack('<II', 4, 1)] * 2),
  'tensor twice': gguf([ONE, ('a', (8,), 0, 32)]),
  'alignment 0': gguf([], [text('general.alignment') + struct.pack('<II', 4, 0)]),
  'alignment 24': gguf([], [text('general.alignment') + struct.pack('<II', 4, 24)]),
  'alignment in words': gguf([], [text('general.alignment') + struct.pack('<I', 8) + text('x')]),
  'no axes': gguf([('a', (), 0, 0)]),
  'nine axes': gguf([('a', (1,) * 9, 0, 0)]),
  'huge axes': gguf([('a', (2**63, 2**63, 2**63, 2), 0, 0)]),
  'empty axis': gguf([('a', (0, 8), 0, 0)]),
  'unknown quantization': gguf([('a', (8,), 999, 0)]),
  'blocks not filled': gguf([('a', (33,), 8, 0)]),
  'offset out of range': gguf([('a', (8,), 0, 2**40)]),
  'offset wraps around': gguf([('a', (8,), 0, 2**64 - 32)]),
  'offset not aligned': gguf([('a', (8,), 0, 4)]),
  'too large': gguf([('a', (80,), 0, 0)]),
  'overlap': gguf([('a', (16,), 0, 0), ('b', (8,), 0, 32)]),
}  # fmt: skip


@pytest.mark.parametrize('name', GGUFS)
def test_gguf_files_that_are_not_sound_are_refused(name, tmp_path):
  path = tmp_path / 'model.gguf'
  path.write_bytes(GGUFS[name])
  refused(path, 'not a')


def test_a_sound_gguf_file_of_something_else_is_refused(tmp_path):
  path = tmp_path / 'model.gguf'
  kind = text('general.architecture') + struct.pack('<I', 8) + text('whisper')
  path.write_bytes(gguf([ONE], [kind]))
  refused(path, 'whisper')
  path.write_bytes(gguf([ONE], [kind.replace(b'\x07' + bytes(7) + b'whisper', text('llama'))]))
  refused(path, 'llama.embedding_length')


def test_a_sound_gguf_file_is_read(tmp_path):
  path = tmp_path / 'x.gguf'
  values = np.arange(16, dtype=np.float32)
  fields = [
    text('n') + struct.pack('<IIQ3h', 9, 3, 3, -1, 2, 3),
    text('s') + struct.pack('<I', 8) + text('é'),
  ]
  path.write_bytes(gguf([('b', (4, 2), 0, 32), ('a', (8,), 0, 0)], fields, values.tobytes()))
  file = gguf_file.GGUF(path)
  assert file.fields == {'n': [-1, 2, 3], 's': 'é'}
  np.testing.assert_array_equal(file.array('a'), values[:8])
  np.testing.assert_array_equal(file.array('b'), values[8:].reshape(2, 4))


@pytest.mark.parametrize('seed', range(3))
def test_flipped_and_cut_gguf_files_are_refused_or_read_and_nothing_else(seed, tmp_path):
  fields = [text(f'k{i}') + struct.pack('<I', 8) + text('v' * i) for i in range(9)]
  whole = gguf([ONE, ('b', (32, 2), 8, 32)], fields)
  rng = np.random.default_rng(seed)
  path = tmp_path / 'x.gguf'
  for _ in range(200):
    data = bytearray(whole)
    for at in rng.integers(4, len(data), rng.integers(1, 5)):
      data[at] = rng.integers(256)
    if rng.random() < 0.2:
      del data[rng.integers(1, len(data)) :]
    path.write_bytes(data)
    try:
      gguf_file.GGUF(path)
    except InputError as error:
      assert '\n' not in str(error)


def small_gguf(folder, **more):
  """Writes the tiny Llama as a GGUF file, with queries and keys permuted as that format requires."""
  weights = models.tensors('llama')
  names = {'self_attn.q_proj': 'attn_q', 'self_attn.k_proj': 'attn_k', 'self_attn.v_proj': 'attn_v',
           'self_attn.o_proj': 'attn_output', 'mlp.gate_proj': 'ffn_gate', 'mlp.up_proj': 'ffn_up',
           'mlp.down_proj': 'ffn_down', 'input_layernorm': 'attn_norm',
           'post_attention_layernorm': 'ffn_norm', 'model.norm': 'output_norm',
           'model.embed_tokens': 'token_embd', 'model.layers.': 'blk.'}  # fmt: skip
  tensors, data = [], b''
  for name, a in weights.items():
    for theirs, ours in names.items():
      name = name.replace(theirs, ours)
    if 'attn_q' in name or 'attn_k' in name:
      a = a.reshape(-1, 2, 2, models.DIM).swapaxes(1, 2).reshape(a.shape)
    tensors.append((name, a.shape[::-1], 0, len(data)))
    data += a.tobytes() + bytes(-a.nbytes % 32)
  number = lambda name, value: text(f'llama.{name}') + struct.pack('<II', 4, value)
  real = lambda name, value: text(f'llama.{name}') + struct.pack('<If', 6, value)
  word = lambda name, value: text(name) + struct.pack('<I', 8) + text(value)
  vocabulary = sorted(json.loads(models.tokenizer())['model']['vocab'].items(), key=lambda v: v[1])
  listed = lambda name, kind, items: (
    text(name) + struct.pack('<IIQ', 9, kind, len(items)) + b''.join(items)
  )
  fields = [
    word('general.architecture', 'llama'), word('tokenizer.ggml.model', 'gpt2'),
    word('tokenizer.ggml.pre', 'smollm'), number('embedding_length', models.DIM),
    number('block_count', models.DEPTH), number('context_length', models.LENGTH),
    number('feed_forward_length', models.HIDDEN), number('vocab_size', models.VOCABULARY),
    number('attention.head_count', models.HEADS), number('attention.head_count_kv', 2),
    real('attention.layer_norm_rms_epsilon', 1e-5), real('rope.freq_base', 500.0),
    listed('tokenizer.ggml.tokens', 8, [text(token) for token, _ in vocabulary]),
    listed('tokenizer.ggml.merges', 8, [text(m) for m in ('t h', 'th e', 'Ġ a', 'a n')]),
    listed('tokenizer.ggml.token_type', 5, [struct.pack('<i', 1)] * len(vocabulary)),
  ]  # fmt: skip
  fields += [number(name, value) for name, value in more.items()]
  path = folder / 'tiny.gguf'
  path.write_bytes(gguf(tensors, fields, data))
  return path, weights


@pytest.mark.parametrize('name, value', [('rope.dimension_count', 2), ('attention.key_length', 3)])
def test_a_rotation_of_other_than_whole_heads_in_pairs_is_refused(name, value, tmp_path):
  path, _ = small_gguf(tmp_path, **{name: value})
  refused(path, 'coordinates of a head')


def test_the_rows_of_queries_and_keys_are_put_back(tmp_path):
  path, weights = small_gguf(tmp_path)
  model = load.load(path)
  np.testing.assert_allclose(logits(model), models.forward('llama', weights), atol=2e-4)
  assert model.tokenizer.decode(model.tokenizer.encode('the ant').ids) == 'the ant'


def test_a_cut_or_altered_model_is_refused(tmp_path, monkeypatch):
  path, _ = small_gguf(tmp_path)
  whole = path.read_bytes()
  path.write_bytes(whole[:-64])
  refused(path, 'not inside the file')
  path.write_bytes(whole.replace(b'smollm', b'llama3'))
  refused(path, 'llama3')
  path.write_bytes(whole.replace(b'blk.1.attn_q.weight', b'blk.1.attn_z.weight'))
  refused(path, 'attn_q')
  path.write_bytes(whole[:-4] + struct.pack('<f', np.nan))
  refused(path, 'finite')
  monkeypatch.setattr(load, 'packaged', lambda: path)
  with pytest.raises(InputError, match='SHA-256'):
    load.load()
