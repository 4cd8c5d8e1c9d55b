"""An exported model reads back to the same bits or is refused in one line."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import oracle
import pytest
from test_checkpoint import OWN, build, same

import constructions
import geomem
from constructions import registry
from geomem import export
from geomem.config import BlockConfig, Config
from geomem.errors import InputError
from geomem.export import bridge
from geomem.facts import Facts
from geomem.training import trained


@pytest.mark.parametrize('name', registry.REGISTRY)
def test_every_construction_reads_back(name, tmp_path):
  known = build(name)
  known.export(tmp_path / name)
  assert same(export.load(tmp_path / name), known)
  assert same(constructions.load(tmp_path / name), known)


def test_a_trained_model_reads_back(tmp_path):
  model = trained.train(Config.trained(4, 2, dim=8), Facts.bijections(4, 2), steps=100)
  model.export(tmp_path / 'model', license='CC-BY-4.0')
  loaded = geomem.load(tmp_path / 'model')
  assert isinstance(loaded, geomem.Trained)
  assert (loaded.recipe, loaded.accuracy, loaded.seed) == (model.recipe, model.accuracy, model.seed)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)
  assert described(tmp_path / 'model')['license'] == 'CC-BY-4.0'


def described(path) -> dict:
  return json.loads((path / 'config.json').read_text(encoding='utf-8'))


def test_everything_has_its_name(tmp_path):
  known = registry.build('disjoint', OWN)
  known.export(tmp_path / 'own')
  fields = described(tmp_path / 'own')
  assert fields['tokens'] == ['Marie Curie', 'Zoë', '居里', 'a | b', 'e', 'born in', 'R']
  assert fields['answers'] == ['Marie Curie', 'Zoë', '居里', 'a | b', 'e']
  assert fields['facts']['answers_RxN'] == OWN.answers_RxN.tolist()
  slots = {slot['name']: (slot['start'], slot['stop']) for slot in fields['residual']}
  assert slots == {
    s.name: (known.layout[s.name].start, known.layout[s.name].stop) for s in known.layout.slots
  }
  (hidden,) = described_hidden(tmp_path)
  assert (hidden['name'], hidden['start'], hidden['stop']) == ('selected', 0, 6)


def described_hidden(tmp_path):
  build('selector').export(tmp_path / 'selector')
  return described(tmp_path / 'selector')['hidden'][0][0]


def test_only_an_export_is_replaced(tmp_path):
  known = build('selector')
  known.export(tmp_path / 'model')
  build('keyvalue').export(tmp_path / 'model')
  assert export.load(tmp_path / 'model').name == 'keyvalue'
  assert sorted(p.name for p in (tmp_path / 'model').iterdir()) == [
    'config.json',
    'model.safetensors',
  ]
  (tmp_path / 'model' / 'notes.txt').touch()
  with pytest.raises(InputError, match=r'notes\.txt'):
    known.export(tmp_path / 'model')
  known.save(tmp_path / 'saved')
  with pytest.raises(InputError, match='is not an export of a geomem model; choose another'):
    known.export(tmp_path / 'saved')
  with pytest.raises(InputError, match='is not a geomem model; choose another'):
    known.save(tmp_path / 'model')


@pytest.fixture
def written(tmp_path):
  build('selector').export(tmp_path / 'model')
  return tmp_path / 'model'


def change(path, **fields):
  (path / 'config.json').write_text(json.dumps(described(path) | fields))


def with_arrays(path, change_header, more=b''):
  """Writes the weights with another header, and their new checksum into the description."""
  data = (path / 'model.safetensors').read_bytes()
  size = int.from_bytes(data[:8], 'little')
  header = json.dumps(change_header(json.loads(data[8 : 8 + size]))).encode()
  data = len(header).to_bytes(8, 'little') + header + data[8 + size :] + more
  (path / 'model.safetensors').write_bytes(data)
  change(path, sha256=hashlib.sha256(data).hexdigest())


def renamed(header):
  header['blocks_0.attention.spare'] = header.pop('blocks_0.attention.query')
  return header


def transposed(header):
  header['embed.relations']['shape'] = header['embed.relations']['shape'][::-1]
  return header


def huge(header):
  header['embed.relations']['shape'] = [2**40, 2**20]
  return header


@pytest.mark.parametrize(
  'header, message',
  [
    (renamed, "has an unknown 'blocks_0.attention.spare'|lacks 'blocks_0.attention.query'"),
    (transposed, r'embed\.relations is F32 of shape \(6, 2\); it must be F32 of shape \(2, 6\)'),
    (huge, 'not a valid safetensors file'),
    (lambda header: {}, 'not a valid safetensors file: tensors of 0 bytes'),
  ],
)
def test_other_arrays_are_refused(written, header, message):
  with_arrays(written, header)
  with pytest.raises(InputError, match=message) as caught:
    export.load(written)
  assert '\n' not in str(caught.value)


def half(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
  data = bytearray(path.read_bytes())
  data[-5] ^= 1
  path.write_bytes(bytes(data))


@pytest.mark.parametrize(
  'damage', [half, flipped, lambda path: path.unlink(), lambda path: path.write_bytes(b'')]
)
@pytest.mark.parametrize('file', ['config.json', 'model.safetensors'])
def test_damaged_files_are_refused(written, damage, file):
  damage(written / file)
  with pytest.raises(InputError) as caught:
    export.load(written)
  assert '\n' not in str(caught.value)


def nested(depth):
  return '[' * depth + ']' * depth


@pytest.mark.parametrize(
  'name, value',
  [
    ('architecture', {'kind': 'Facts'}),
    ('architecture', None),
    ('architecture.blocks', [{'kind': 'BlockConfig'}] * 10**5),
    ('architecture.dim', 2**60),
    ('architecture.dim', 6.0),
    ('architecture.norm', 'batch'),
    ('architecture.precision', 'rough'),
    ('architecture.norm_eps', 'small'),
    ('kind', 'Slot'),
    ('kind', 'State'),
    ('kind', 'slice'),
    ('kind', 'os'),
    ('name', 7),
    ('hops', -1),
    ('hops', '2'),
    ('margin', 'wide'),
    ('thoughts', 'many'),
    ('tokens', ['a']),
    ('answers', []),
    ('facts', 3),
    ('facts.answers_RxN', [[0, 1, 2, 3, 9]] * 2),
    ('facts.answers_RxN', [[0, 1], [1]]),
    ('facts.answers_RxN', [['0', '1', '2', '3', '4']] * 2),
    ('residual', []),
    ('residual', [{'kind': 'Slot', 'name': 'blocks', 'start': 0, 'stop': 6}]),
    ('hidden', [[[]]]),
    ('hidden', [[[{'kind': 'Slot', 'name': 'x', 'axes': [['unit', 2**60]], 'code': None, 'of': 'a'}]]]),
    ('more', 1),
  ],
)  # fmt: skip
def test_descriptions_that_make_no_sense_are_refused(written, name, value):
  fields = at = described(written)
  *above, last = name.split('.')
  for part in above:
    at = at[part]
  at[last] = value
  change(written, **fields)
  with pytest.raises(InputError) as caught:
    export.load(written)
  assert str(written) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('version', [0, 2, '1', None])
def test_other_versions_are_refused(written, version):
  change(written, version=version)
  with pytest.raises(InputError, match=f'version {version!r} of the format; this code reads 1'):
    export.load(written)


@pytest.mark.parametrize('text', ['{', '[]', nested(10**5), '{"format": "a thesis"}', ''])
def test_what_is_no_export_is_refused(written, text):
  (written / 'config.json').write_text(text)
  with pytest.raises(InputError, match='not an export of a geomem model'):
    export.load(written)


# --- in the form that TransformerLens has ----------------------------------------------------------


def native(sizes, arrays, tokens):
  """The logits (BxLxA) of TransformerLens' own decoder, in NumPy after its documentation."""
  linear = lambda name, x: x @ arrays[f'{name}.weight'].T + arrays[f'{name}.bias']
  x_BxLxD = arrays['embed.weight'][tokens] + arrays['pos_embed.weight'][: tokens.shape[1]]
  later = np.triu(np.ones((tokens.shape[1],) * 2, bool), 1)
  for i in range(sizes['n_layers']):
    at = f'blocks.{i}.'
    normed = norm(sizes, arrays, f'{at}ln1', x_BxLxD)
    heads = (*tokens.shape, sizes['n_heads'], sizes['d_head'])
    q, k, v = (linear(f'{at}attn.{n}', normed).reshape(heads).swapaxes(1, 2) for n in 'qkv')
    scores = np.where(later, -np.inf, q @ k.swapaxes(2, 3) / sizes['attn_scale'])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    read = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(1, 2)
    x_BxLxD = x_BxLxD + linear(f'{at}attn.o', read.reshape(*tokens.shape, -1))
    if not sizes['attn_only']:
      hidden = np.maximum(linear(f'{at}mlp.in', norm(sizes, arrays, f'{at}ln2', x_BxLxD)), 0)
      x_BxLxD = x_BxLxD + linear(f'{at}mlp.out', hidden)
  return linear('unembed', norm(sizes, arrays, 'ln_final', x_BxLxD))


def norm(sizes, arrays, place, x):
  if (kind := sizes['normalization_type']) is None:
    return x
  x = x - x.mean(-1, keepdims=True) if kind == 'LN' else x
  x = x / np.sqrt((x * x).mean(-1, keepdims=True) + sizes['eps'])
  return x * arrays[f'{place}.weight'] + arrays.get(f'{place}.bias', 0)


BLOCKS = BlockConfig(2, 3, 1, (5, 3)), BlockConfig(3, 1, 4, ()), BlockConfig(1, 1, 1, (4, 2))


@pytest.mark.parametrize(
  'changes',
  [
    {'blocks': BLOCKS}, {'blocks': BLOCKS[1:2], 'bias': False}, {'blocks': BLOCKS[1:], 'tied': True},
    {'norm': 'rms', 'answer_dim': 3}, {'norm': 'layer', 'norm_eps': 0.1},
  ],
)  # fmt: skip
def test_the_form_of_transformer_lens_has_the_same_logits(changes):
  """In float64 NumPy, logits agree at every position of random prompts, for random weights, biases and scales."""
  blocks = BlockConfig(2, 3, 2, (5,)), BlockConfig(1, 1, 4)
  config = Config(5, 2, answers=4, length=3, dim=6, blocks=blocks).replace(**changes)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda a: rng.standard_normal(a.shape, np.float32), geomem.model.shapes(config)
  )
  sizes, arrays = bridge.converted(config, params)
  tokens = rng.integers(0, config.vocabulary, (20, 3))
  expected = oracle.logits(config, params, tokens)
  np.testing.assert_allclose(native(sizes, oracle.cast(arrays, float), tokens), expected, atol=1e-4)


def test_a_norm_before_two_hidden_layers_cannot_be_held():
  config = Config(4, 2, 4, 2, dim=6, blocks=(BlockConfig(hidden=(5, 3)),), norm='rms')
  with pytest.raises(InputError, match="two with norm 'rms' cannot be converted"):
    bridge.converted(config, geomem.model.draw(config, 0))


def test_the_plain_module_is_short():
  lines = (
    (Path(__file__).parents[1] / 'docs/torch_model.py').read_text(encoding='utf-8').splitlines()
  )
  assert len(lines) < 80
  assert not any('geomem' in line for line in lines if 'import' in line)
