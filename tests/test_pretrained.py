"""The packaged language model: the frozen outputs of another implementation, patches, and where a fact lies.

Skipped if the weights are not installed; the files themselves are tested in test_pretrained_files.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pretrained_reference as reference
import pytest

from geomem.pretrained import decoder, load

pytestmark = pytest.mark.skipif(load.missing() is not None, reason=str(load.missing()))


@pytest.fixture(scope='module')
def model():
  return load.load()


@pytest.fixture(scope='module')
def frozen():
  return np.load(reference.FILE)


@pytest.fixture(scope='module')
def run(model):
  """Residuals (BxTxLxD) of prompts of equal length, patched or not."""

  @jax.jit
  def run(params, tokens_BxL, patch):
    def one(tokens_L, patch):
      x_LxD = decoder.embed(model.config, params, tokens_L)
      return decoder.residuals(model.config, params, x_LxD, patch)

    return jax.vmap(one)(tokens_BxL, patch)

  return lambda tokens_BxL, patch=None: run(model.params, jnp.array(tokens_BxL), patch)


def final_logits(model, x_LxD):
  one = lambda params, x_D: decoder.logits(model.config, params, x_D)
  return np.asarray(jax.jit(jax.vmap(one, (None, 0)))(model.params, x_LxD), np.float64)


def test_token_ids_are_the_references(model, frozen):
  for text, ids in zip(reference.STRINGS, frozen['ids'], strict=True):
    assert model.tokenizer.encode(text).ids == json.loads(str(ids))
    assert model.tokenizer.decode(json.loads(str(ids)), skip_special_tokens=False) == text
  assert model.tokenizer.encode(reference.PARAGRAPH).ids == frozen['paragraph'].tolist()


def test_logits_and_perplexity_are_the_references(model, frozen, run):
  ids = frozen['paragraph']
  logits_LxV = final_logits(model, run(ids[None])[0, -1])
  assert len(frozen['logits']) == 160
  np.testing.assert_allclose(logits_LxV[:160, reference.SHOWN], frozen['logits'], atol=1e-3, rtol=0)
  sums_L = np.logaddexp.reduce(logits_LxV, axis=1)
  np.testing.assert_allclose(sums_L[:160], frozen['sums'], atol=1e-3, rtol=0)
  log_probability_L = logits_LxV[np.arange(len(ids) - 1), ids[1:]] - sums_L[:-1]
  assert abs(np.exp(-log_probability_L.mean()) - float(frozen['perplexity'])) < 0.1


PROMPTS = (
  'Here are some facts about Japan. The country lies in',
  'Here are some facts about Nigeria. The country lies in',
)
WANTED = (' Asia', ' Africa')


@pytest.fixture(scope='module')
def prompts(model):
  encodings = [model.tokenizer.encode(text) for text in PROMPTS]
  ids = [encoding.ids for encoding in encodings]
  at = [encoding.offsets.index((25, 25 + len(name))) for encoding, name in
        zip(encodings, (' Japan', ' Nigeria'), strict=True)]  # fmt: skip
  assert len(ids[0]) == len(ids[1]) and at[0] == at[1] > 0
  return np.array(ids), at[0]


def patched(layers, position, scale, add_BxD):
  ones = lambda value: jnp.full((len(layers), 1), value)
  return decoder.Patch(
    jnp.array(layers)[:, None], ones(position), ones(float(scale)), jnp.asarray(add_BxD)[:, None]
  )


def test_a_patch_of_nothing_changes_no_bit(run, prompts):
  ids, position = prompts
  plain = np.asarray(run(ids))
  dim = plain.shape[-1]
  nothing = patched([7, 30], position, 1, np.zeros((2, dim), np.float32))
  nowhere = patched([99, -1], position, 0, np.ones((2, dim), np.float32))
  same = patched([7, 7], position, 0, plain[:, 7, position])
  for patch in (nothing, nowhere, same):
    np.testing.assert_array_equal(np.asarray(run(ids, patch)), plain)


def test_a_patch_changes_what_comes_after_and_nothing_before(run, prompts):
  ids, position = prompts
  plain = np.asarray(run(ids))
  x = np.asarray(run(ids, patched([9, 0], position, 1, np.ones((2, plain.shape[-1]), np.float32))))
  np.testing.assert_array_equal(x[0, :9], plain[0, :9])
  np.testing.assert_array_equal(x[:, :, :position], plain[:, :, :position])
  assert (np.abs(x[0, 10:, position + 1 :] - plain[0, 10:, position + 1 :]).max(-1) > 0).all()


def test_going_on_from_the_middle_is_the_same(model, run, prompts):
  plain = np.asarray(run(prompts[0]))
  onward = lambda params, x_LxD: decoder.residuals(model.config, params, x_LxD, first=18)
  onward = jax.jit(jax.vmap(onward, (None, 0)))(model.params, plain[:, 18])
  np.testing.assert_allclose(onward[:, -1], plain[:, -1], atol=2e-3 * np.abs(plain[:, -1]).max())


@pytest.mark.parametrize('layer, moved', [(6, True), (18, True), (26, False), (30, False)])
def test_a_donors_vector_brings_its_fact_until_the_fact_has_left(model, run, prompts, layer, moved):
  ids, position = prompts
  plain = np.asarray(run(ids))
  x = np.asarray(run(ids, patched([layer] * 2, position, 0, plain[::-1, layer, position])))
  names = [model.tokenizer.encode(text).ids[0] for text in WANTED]
  margin = lambda x: final_logits(model, x[:, -1, -1])[:, names] @ [1, -1]
  before, after = margin(plain), margin(x)
  assert before[0] > 0 > before[1]
  assert (after[0] < 0 < after[1]) if moved else (after[0] > 0 > after[1])


def test_gradients_of_a_patch_are_its_effect(model, prompts):
  """Against finite differences."""
  tokens_L, position = jnp.array(prompts[0][0]), prompts[1]
  x_LxD = decoder.embed(model.config, model.params, tokens_L)

  @jax.jit
  def last(add_D, params):
    patch = decoder.Patch(jnp.array([6]), jnp.array([position]), jnp.ones(1), add_D[None])
    x_TxLxD = decoder.residuals(model.config, params, x_LxD, patch)
    return jnp.sum(x_TxLxD[-1, -1] * jnp.sin(jnp.arange(x_LxD.shape[1], dtype=jnp.float32)))

  direction_D = jnp.cos(jnp.arange(x_LxD.shape[1], dtype=jnp.float32))
  slope = float(jax.jit(jax.grad(last))(jnp.zeros_like(direction_D), model.params) @ direction_D)
  step = (
    float(last(0.05 * direction_D, model.params) - last(-0.05 * direction_D, model.params)) / 0.1
  )
  assert slope == pytest.approx(step, rel=0.02, abs=0.02)
