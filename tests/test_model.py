"""The model against plain float64 NumPy, for random parameters of every shape."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geomem import model, queries
from geomem.config import DTYPES, NORMS, BlockConfig, Config
from geomem.errors import InputError

FLOAT32 = 2e-5  # the largest allowed error, relative to the largest value
BFLOAT16 = 0.06  # eight significant bits, a handful of roundings in a row
HIDDEN = ((), (5,), (7, 4))
N, R, L = 5, 3, 4


def make_config(norm, hidden, tied, heads=2, depth=2, bias=True, **more):
  first = BlockConfig(heads, key_dim=2, head_dim=3, hidden=hidden)
  second = BlockConfig(3 - heads % 3, key_dim=3, head_dim=1, hidden=hidden[::-1])
  blocks, answers = (first, second)[:depth], 4 if tied else 7
  return Config(N, R, answers, L, dim=6, blocks=blocks, norm=norm, tied=tied, bias=bias, **more)


CONFIGS = [
  make_config(norm, hidden, i % 2 == 1, 1 + i % 3, depth=1 + (i // 2) % 2, bias=i % 4 != 1)
  for i, (norm, hidden) in enumerate(itertools.product(NORMS, HIDDEN))
] + [make_config('rms', (5,), False, depth=depth, answer_dim=3) for depth in (1, 2)]


def make_params(config, seed):
  """Random parameters, norms and biases included."""
  rng = np.random.default_rng(seed)
  scale = lambda a: 1.3 / math.sqrt(a.shape[-2]) if a.ndim > 1 else 0.7
  draw = lambda a: (rng.normal(size=a.shape) * scale(a)).astype(np.float32)
  return jax.tree.map(draw, model.zeros(config))


def close(got, want, tolerance):
  error = np.abs(np.asarray(got, np.float64) - np.asarray(want, np.float64)).max()
  return error <= tolerance * (1 + np.abs(np.asarray(want, np.float64)).max())


def share_prefixes():
  """A sequence of both kinds of tokens, and L−1 sequences that differ from it after position p = 0 … L−2."""
  base = np.array([1, N + 2, 3, N])
  other = np.array([2, 0, N + 1, 4])
  parted = [np.where(np.arange(L) <= p, base, other) for p in range(L - 1)]
  return np.stack([base, *parted]).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def views(config, params, tokens_BxL, subjects_B, paths_CxK):
  """Logits at all positions and at the last two; last residuals of all pairs, computed in two ways."""
  apply = functools.partial(model.apply, config, params)
  c = len(paths_CxK)
  prompts = queries.prompts(N, jnp.repeat(subjects_B, c), jnp.tile(paths_CxK, (len(subjects_B), 1)))
  one_by_one = apply(prompts, last=1, method='residual').reshape(len(subjects_B), c, -1)
  pairs = apply(subjects_B, paths_CxK, method='all_pairs')
  return apply(tokens_BxL), apply(tokens_BxL, last=2), pairs, one_by_one


def see(config, params):
  subjects = np.arange(N, dtype=np.int32)
  return views(
    config, params, share_prefixes(), subjects, queries.paths(R, L - 1, np.array([5, 0, 21]))
  )


@pytest.mark.parametrize('config', CONFIGS)
def test_agrees_with_numpy_at_every_position(config):
  for seed in range(2):
    params = make_params(config, seed)
    logits, tail, pairs, one_by_one = see(config, params)
    want = oracle.logits(config, params, share_prefixes())
    assert close(logits, want, FLOAT32)
    assert close(tail, logits[:, -2:], FLOAT32)
    assert close(pairs, one_by_one, FLOAT32)
    assert np.ptp(pairs, axis=(0, 1)).min() > 1e-3
    for p in range(L - 1):  # later tokens are not seen, to the last bit
      np.testing.assert_array_equal(logits[0, : p + 1], logits[p + 1, : p + 1])
      assert np.any(logits[0, p + 1 :] != logits[p + 1, p + 1 :])


@settings(deadline=None, max_examples=6, derandomize=True)
@given(
  st.sampled_from(NORMS), st.lists(st.integers(1, 6), max_size=2), st.booleans(), st.integers(1, 3),
  st.integers(1, 2), st.booleans(), st.integers(1, 3), st.integers(0, 99),
)  # fmt: skip
def test_all_pairs_answer_as_their_tokens_do(norm, hidden, tied, heads, depth, bias, hops, seed):
  config = make_config(norm, tuple(hidden), tied, heads, depth, bias)
  params = make_params(config, seed)
  subjects_B = np.random.default_rng(seed).permutation(N)[:3].astype(np.int32)
  paths_CxK = queries.paths(R, hops, np.arange(0, R**hops, 2))
  pairs = jnp.repeat(subjects_B, len(paths_CxK)), jnp.tile(paths_CxK, (3, 1))
  apply = jax.jit(functools.partial(model.apply, config), static_argnames=('method', 'last'))
  x_BxCxD = apply(params, subjects_B, paths_CxK, method='all_pairs')
  got_BxCxA = x_BxCxD @ apply(params, method='unembedding').T
  logits = apply(params, queries.prompts(N, *pairs), last=1)
  assert close(got_BxCxA, np.reshape(logits, got_BxCxA.shape), 1e-5)


@pytest.mark.parametrize('token', [-1, N + R, 500])
def test_tokens_outside_the_vocabulary_are_refused_or_answered_by_no_number(token):
  config = make_config('rms', (5,), False)
  params, tokens = make_params(config, 0), np.array([[0, N, token], [4, N + R - 1, N]], np.int32)
  for given_as in (tokens, jnp.asarray(tokens), tokens.tolist()):
    for method in (None, 'residual'):
      with pytest.raises(InputError, match=f'^token {token} is outside the vocabulary; subjects'):
        model.apply(config, params, given_as, method=method)
  compiled = jax.jit(functools.partial(model.apply, config))
  logits = compiled(params, tokens)
  assert np.isnan(logits[0, -1]).all()
  np.testing.assert_array_equal(logits[1], compiled(params, tokens.clip(0, N + R - 1))[1])


@pytest.mark.parametrize('config', CONFIGS[1::4])
def test_bfloat16_is_near_float32(config):
  params = make_params(config, 0)
  exact, rounded = (see(config.replace(dtype=dtype), params) for dtype in DTYPES)
  assert rounded[0].dtype == jnp.float32 and rounded[2].dtype == jnp.bfloat16
  for a, b in zip(rounded, exact, strict=True):
    assert close(a, b, BFLOAT16) and not close(a, b, FLOAT32)


@pytest.mark.parametrize(
  'config', [make_config('none', (), False), make_config('layer', (5,), True)]
)
def test_gradient_flows_from_earlier_positions_only(config):
  params = jax.tree.map(jnp.asarray, make_params(config, 0))

  def largest(positions):
    moved = {**params, 'embed': {**params['embed'], 'positions': positions}}
    return model.apply(config, moved, share_prefixes()[:1])[0].max(axis=-1)

  slopes_LxL = np.abs(jax.jit(jax.jacrev(largest))(params['embed']['positions'])).max(axis=-1)
  assert not np.triu(slopes_LxL, 1).any()
  assert slopes_LxL[np.tril_indices(L)].min() > 0


def query_loss(logits, answers):
  """Cross-entropy at the last position, in NumPy or jax.numpy as `logits` is."""
  xp = jnp if isinstance(logits, jax.Array) else np
  last = logits[:, -1]
  return xp.mean(xp.log(xp.sum(xp.exp(last), axis=-1)) - last[np.arange(len(answers)), answers])


@pytest.mark.parametrize(
  'dtype,tied,tolerance',
  [('float32', False, 1e-4), ('float32', True, 1e-4), ('bfloat16', True, 0.1)],
)
def test_gradients_of_a_batch_of_models(dtype, tied, tolerance):
  """jit ∘ vmap ∘ grad agrees with finite differences of the NumPy model along the gradient."""
  config = make_config('rms', (5,), tied, dtype=dtype)
  tokens, answers = share_prefixes(), np.array([0, 1, 3, 2])
  loss = lambda params: query_loss(model.apply(config, params, tokens), answers)
  models = [make_params(config, seed) for seed in range(3)]
  stacked = jax.tree.map(lambda *a: np.stack(a), *models)
  losses, slopes = jax.jit(jax.vmap(jax.value_and_grad(loss)))(stacked)
  assert jax.tree.map(jnp.shape, slopes) == jax.tree.map(np.shape, stacked)

  def moved(params, direction, step):
    params = jax.tree.map(lambda a, g: a.astype(np.float64) + step * g, params, direction)
    return query_loss(oracle.logits(config, params, tokens), answers)

  for i, params in enumerate(models):
    slope = jax.tree.map(lambda a, i=i: np.asarray(a[i], np.float64), slopes)
    length = math.sqrt(sum(np.sum(a * a) for a in jax.tree.leaves(slope)))
    unit = jax.tree.map(lambda a, length=length: a / length, slope)
    steepness = (moved(params, unit, 1e-4) - moved(params, unit, -1e-4)) / 2e-4
    assert losses[i] == pytest.approx(moved(params, unit, 0), rel=tolerance)
    assert steepness == pytest.approx(length, rel=tolerance)


def shapes(params):
  return {
    '/'.join(key.key for key in path): a.shape
    for path, a in jax.tree_util.tree_leaves_with_path(params)
  }


def test_parameters_have_these_names_and_shapes():
  full = Config(
    9, 2, 8, 3, 6, (BlockConfig(2, 4, 5, (7, 3)), BlockConfig(1, 1, 2, (3,))), norm='layer'
  )
  norms = [
    'norm_final',
    *(f'blocks_{i}/norm_{part}' for i in (0, 1) for part in ('attention', 'mlp')),
  ]
  assert shapes(model.zeros(full)) == {
    'embed/subjects': (9, 6),
    'embed/relations': (2, 6),
    'embed/positions': (3, 6),
    'unembed/answers': (8, 6),
    'blocks_0/attention/query': (2, 6, 4),
    'blocks_0/attention/key': (2, 6, 4),
    'blocks_0/attention/value': (2, 6, 5),
    'blocks_0/attention/output': (2, 5, 6),
    'blocks_0/mlp/in': (6, 7),
    'blocks_0/mlp/in_bias': (7,),
    'blocks_0/mlp/middle': (7, 3),
    'blocks_0/mlp/middle_bias': (3,),
    'blocks_0/mlp/out': (3, 6),
    'blocks_0/mlp/out_bias': (6,),
    'blocks_1/attention/query': (1, 6, 1),
    'blocks_1/attention/key': (1, 6, 1),
    'blocks_1/attention/value': (1, 6, 2),
    'blocks_1/attention/output': (1, 2, 6),
    'blocks_1/mlp/in': (6, 3),
    'blocks_1/mlp/in_bias': (3,),
    'blocks_1/mlp/out': (3, 6),
    'blocks_1/mlp/out_bias': (6,),
    **{f'{norm}/{part}': (6,) for norm in norms for part in ('scale', 'shift')},
  }


def test_what_is_switched_off_has_no_parameters():
  bare = Config(9, 2, 8, 3, 6, (BlockConfig(), BlockConfig(hidden=(3,))), bias=False, tied=True)
  names = set(shapes(model.zeros(bare)))
  attention = {
    f'blocks_{i}/attention/{a}' for i in (0, 1) for a in ('query', 'key', 'value', 'output')
  }
  embed = {f'embed/{table}' for table in ('subjects', 'relations', 'positions')}
  assert names == attention | embed | {'blocks_1/mlp/in', 'blocks_1/mlp/out'}
  rms = set(shapes(model.zeros(bare.replace(norm='rms')))) - names
  assert {name.split('/')[-1] for name in rms} == {'scale'}
  few = shapes(model.zeros(bare.replace(tied=False, answer_dim=4)))
  assert few['unembed/answers'] == (8, 4) and few['unembed/project'] == (6, 4)


@pytest.mark.parametrize(
  'make',
  [lambda c, seed: jax.jit(model.init, static_argnums=0)(c, jax.random.key(seed)), model.draw],
  ids=['init', 'draw'],
)
def test_random_and_zero_parameters_are_alike(make):
  config = Config(70, 70, 70, 70, 64, (BlockConfig(4, 16, 8, (80, 90)),), norm='layer')
  params, other = (jax.tree.map(np.asarray, make(config, seed)) for seed in (0, 1))
  blank = model.zeros(config)
  assert jax.tree.structure(params) == jax.tree.structure(blank)
  assert shapes(params) == shapes(blank)
  assert {a.dtype for a in jax.tree.leaves((params, blank))} == {np.dtype('float32')}
  for path, a in jax.tree_util.tree_leaves_with_path(params):
    name = path[-1].key
    zero = functools.reduce(lambda tree, key: tree[key.key], path, blank)
    assert np.all(zero == (name == 'scale'))
    if a.ndim == 1:
      np.testing.assert_array_equal(a, zero)
    else:
      fan_in = {'query': 64 * 16, 'output': 4 * 8, 'middle': 80 / 2, 'out': 90 / 2}.get(name, 64)
      assert a.std() == pytest.approx(fan_in**-0.5, rel=0.1), name
      assert np.any(a != functools.reduce(lambda tree, key: tree[key.key], path, other))


@pytest.mark.parametrize(
  'changes',
  [
    *(
      {size: bad}
      for size in ('subjects', 'relations', 'answers', 'length', 'dim')
      for bad in (0, -3)
    ),
    {'norm': 'batch'},
    {'dtype': 'float16'},
    {'tied': True, 'answers': N + 1},
    {'answer_dim': 0},
    {'tied': True, 'answer_dim': 3},
  ],
)
def test_bad_config_is_refused(changes):
  with pytest.raises(InputError) as error:
    CONFIGS[0].replace(**changes)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'fields',
  [{'heads': 0}, {'key_dim': 0}, {'head_dim': -1}, {'hidden': (0,)}, {'hidden': (3, 3, 3)}],
)
def test_bad_block_is_refused(fields):
  with pytest.raises(InputError):
    BlockConfig(**fields)


@pytest.mark.parametrize('depth', [1, 2])
def test_more_tokens_than_positions_are_refused(depth):
  """They are refused even where the rows of positions could be broadcast."""
  config = make_config('none', (), False, depth=depth).replace(length=2)
  params, subjects = model.zeros(config), np.arange(N)
  for hops in (2, 3):
    paths = queries.every_path(R, hops)
    with pytest.raises(InputError, match=f'{hops + 1} tokens, but the model has 2 positions'):
      model.apply(config, params, subjects, paths, method='all_pairs')
    with pytest.raises(InputError, match='positions'):
      model.apply(config, params, np.zeros((1, hops + 1), np.int32), method='residual')
