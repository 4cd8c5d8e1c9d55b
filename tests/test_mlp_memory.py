"""The MLP memory: what it computes, that padding and batching change nothing, and what it can hold."""

import jax
import jax.numpy as jnp
import numpy as np

from geomem.training import mlp_memory


def test_its_loss_and_accuracy_are_those_of_plain_numpy():
  recipe = mlp_memory.MemoryRecipe(5, 7)
  one = mlp_memory.draw(recipe, 11, seed=0, rows=16)
  params = {name: np.asarray(w) + 0.1 for name, w in one.params.items()}
  x, u = one.keys_NxD[:11], one.values_NxD[:11]
  np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-6)
  logits = np.maximum(x @ params['in'] + params['in_bias'], 0) @ params['out'] @ u.T
  odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  np.testing.assert_allclose(mlp_memory.loss(params, one), -np.log(np.diag(odds)).mean(), rtol=1e-5)
  np.testing.assert_allclose(
    mlp_memory.accuracy(params, one), (logits.argmax(1) == np.arange(11)).mean()
  )


def test_rows_that_are_no_facts_change_nothing():
  recipe = mlp_memory.MemoryRecipe(6, 6, steps=64, check=32)
  ends = []
  for rows in (9, 20):
    one = jax.tree.map(jnp.asarray, mlp_memory.draw(recipe, 9, seed=3, rows=rows))
    slopes = jax.grad(mlp_memory.loss)(one.params, one)
    ends.append((slopes, mlp_memory.learn(recipe, one)[0]))
  for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_each_is_learned_as_alone():
  recipe = mlp_memory.MemoryRecipe(6, 6, steps=256, check=64)
  sizes, seeds = (7, 40, 12), (0, 1, 2)
  best, done = mlp_memory.learn_all(recipe, sizes, seeds)
  for i in range(3):
    alone = mlp_memory.learn_all(recipe, sizes[i : i + 1], seeds[i : i + 1])
    np.testing.assert_allclose(best[i], alone[0][0], atol=1e-6)
    assert done[i] == alone[1][0]
  assert best[0] >= 0.99 > best[1] and done[0] < done[1] == 256
