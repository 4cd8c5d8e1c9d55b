"""The smallest associative memory, trained: an MLP between fixed random input and output embeddings.

N keys x_n and N values u_n, random and of length 1, are fixed; the MLP's output for key n must be
nearer to u_n than to any other value. This is the MLP memory of Nichani et al. (2025), as they trained
it: no transformer around it, full batch, AdamW without weight decay at a constant learning rate; a run
succeeds if it reaches the target accuracy at one of the evaluations.

Shapes: N facts, D width of the embeddings, F hidden units; M models.
"""

import dataclasses
import functools
from collections.abc import Sequence

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from chex import Array

from geomem.training import optimization, sweeps

ROWS = 32  # facts are padded to a multiple of this: recompiling costs more than rows of zeros


@dataclasses.dataclass(frozen=True)
class MemoryRecipe:
  """How the memories are trained; they are evaluated every `check` steps."""

  dim: int
  width: int
  steps: int = 2**15
  check: int = 2**8
  rate: float = 3e-2
  target: float = 0.99


@flax.struct.dataclass
class Memory:
  """One model: its facts (the first `count` rows) and its weights."""

  count: chex.Array
  keys_NxD: chex.Array
  values_NxD: chex.Array
  params: dict


def draw(recipe: MemoryRecipe, facts: int, seed: int, rows: int) -> Memory:
  """Facts and initial weights, in arrays of `rows` facts. Weights are drawn as by Flax's Dense."""
  d, f = recipe.dim, recipe.width
  rng = np.random.default_rng((seed, facts, d, f))

  def directions():
    x_NxD = np.zeros((rows, d), np.float32)
    x_NxD[:facts] = rng.standard_normal((facts, d))
    return x_NxD / np.maximum(np.linalg.norm(x_NxD, axis=1, keepdims=True), 1e-30)

  def dense(a, b):
    w = rng.standard_normal((a, b))
    while (far := np.abs(w) > 2).any():  # truncated at two standard deviations
      w[far] = rng.standard_normal(far.sum())
    return np.asarray(w / (0.87962566 * np.sqrt(a)), np.float32)

  params = {'in': dense(d, f), 'in_bias': np.zeros(f, np.float32), 'out': dense(f, d)}
  return Memory(np.int32(facts), directions(), directions(), params)


def logits(memory: Memory, params: dict) -> tuple[Array, Array]:
  """Logits NxN, where padding cannot be the answer, and the mask of real facts."""
  hidden_NxF = jax.nn.relu(memory.keys_NxD @ params['in'] + params['in_bias'][None])
  logits_NxN = (hidden_NxF @ params['out']) @ memory.values_NxD.T
  inside_N = jnp.arange(len(memory.keys_NxD)) < memory.count
  return jnp.where(inside_N[None], logits_NxN, -jnp.inf), inside_N


def loss(params: dict, memory: Memory) -> Array:
  """Mean cross-entropy over the facts."""
  logits_NxN, inside_N = logits(memory, params)
  each_N = jax.nn.logsumexp(logits_NxN, axis=1) - jnp.where(inside_N, jnp.diagonal(logits_NxN), 0.0)
  return jnp.sum(jnp.where(inside_N, each_N, 0.0)) / memory.count.astype(jnp.float32)


@jax.default_matmul_precision('highest')
def accuracy(params: dict, memory: Memory) -> Array:
  """The fraction of facts recalled."""
  logits_NxN, inside_N = logits(memory, params)
  right_N = inside_N & (jnp.argmax(logits_NxN, axis=1) == jnp.arange(len(logits_NxN)))
  return jnp.sum(right_N, dtype=jnp.float32) / memory.count.astype(jnp.float32)


def learn(recipe: MemoryRecipe, memory: Memory) -> tuple[Array, Array]:
  """The best accuracy of all evaluations, and the number of steps trained."""
  adam = optax.adam(recipe.rate)

  def step(_, state):
    params, opt_state = state
    with jax.default_matmul_precision('default'):
      grads = jax.grad(loss)(params, memory)
    updates, opt_state = optimization.adam_update(adam, grads, opt_state)
    return optax.apply_updates(params, updates), opt_state

  def evaluate(state):
    params, opt_state, best, done = state
    params, opt_state = jax.lax.fori_loop(0, recipe.check, step, (params, opt_state))
    return params, opt_state, jnp.maximum(best, accuracy(params, memory)), done + recipe.check

  def running(state):
    return (state[2] < recipe.target) & (state[3] < recipe.steps)

  initial = memory.params, adam.init(memory.params), jnp.float32(0), jnp.int32(0)
  *_, best, done = jax.lax.while_loop(running, evaluate, initial)
  return best, done


def learn_all(
  recipe: MemoryRecipe, sizes: Sequence[int], seeds: Sequence[int], devices: Sequence[jax.Device] | None = None,
  platform: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
  """`learn` for many (facts, seed) over all devices; `devices` and `platform` as in `sweeps.set_up`."""
  used = np.array(jax.devices() if devices is None else devices)[: len(sizes)]
  rows, count = -(-max(sizes) // ROWS) * ROWS, -(-len(sizes) // used.size) * used.size
  models = [draw(recipe, n, s, rows) for n, s in zip(sizes, seeds, strict=True)]
  row_M, model_of_row = np.zeros(len(sizes), int), np.zeros(count, int)
  order = np.argsort(-np.array(sizes), kind='stable')  # assign the costly ones first
  row_M[order] = np.arange(count).reshape(used.size, -1).T.ravel()[: len(order)]
  model_of_row[row_M] = np.arange(len(sizes))
  memories = jax.tree.map(lambda *leaves: np.stack(leaves)[model_of_row], *models)
  mesh = jax.sharding.Mesh(used, ('models',))
  platform = platform or used[0].platform
  learned = sweeps.map_models(functools.partial(learn, recipe), mesh, platform, memories)
  best, done = (np.asarray(values)[row_M] for values in learned)
  return best, done
