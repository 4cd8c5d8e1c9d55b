"""How a trained network processes an embedding: which hidden units fire, and what an intervention changes.

Everything is a pure function of a one-block model's parameters and can be mapped over models. Subjects
are passed as embeddings, which may be learned, superposed or changed.

Shapes: N subjects, R relations, D width, F hidden units, A answers; S subjects passed in, T scale factors.
"""

import contextlib
import functools
from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from chex import Array

from geomem import model
from geomem.config import Config

ROWS_AT_ONCE = 256  # subjects per block; the logits of one block are in memory at a time


@jax.default_matmul_precision('highest')
def final_residuals(
  config: Config, params: dict, e_SxD: Array, add_RxD: Array | None = None
) -> Array:
  """Final residuals SxRxD of every one-hop query; `add_RxD` is added to the MLP's input."""
  if add_RxD is not None:
    chex.assert_shape(add_RxD, (config.relations, config.dim))
  paths_Rx1 = jnp.arange(config.relations)[:, None]
  with around_mlp(before=lambda x: x if add_RxD is None else x + add_RxD[None]):
    return model.apply(config, params, e_SxD, paths_Rx1, method='from_embeddings')


@jax.default_matmul_precision('highest')
def answers(config: Config, params: dict, e_SxD: Array, add_RxD: Array | None = None) -> Array:
  """The model's answers to every one-hop query, SxR."""
  u_AxD = model.apply(config, params, method='unembedding').astype(jnp.float32)

  def answer(e_BxD):
    x_BxRxD = final_residuals(config, params, e_BxD, add_RxD).astype(jnp.float32)
    return jnp.argmax(jnp.einsum('brd,ad->bra', x_BxRxD, u_AxD), axis=-1)

  return map_blocks(answer, e_SxD)


def map_blocks(function: Callable[..., Array], *rows: Array) -> Array:
  """Apply `function` to matrices with a row per subject, block by block, and concatenate the resulting rows."""
  chex.assert_rank(rows, 2)
  chex.assert_equal_shape_prefix(rows, 1)
  count, size = len(rows[0]), min(ROWS_AT_ONCE, len(rows[0]))
  blocks = lambda a: jnp.pad(a, ((0, -count % size), (0, 0))).reshape(-1, size, a.shape[1])
  found_TxBxP = jax.lax.map(lambda block: function(*block), tuple(map(blocks, rows)))
  return found_TxBxP.reshape(-1, found_TxBxP.shape[2])[:count]


def accuracy(config: Config, params: dict, e_SxD: Array, targets_SxR: Array) -> Array:
  """The fraction of queries answered right."""
  chex.assert_shape(targets_SxR, (len(e_SxD), config.relations))
  return jnp.mean(answers(config, params, e_SxD) == targets_SxR, dtype=jnp.float32)


def around_mlp(
  before: Callable[[Array], Array] = lambda x: x, after: Callable[[Array], Array] = lambda x: x
) -> contextlib.AbstractContextManager:
  """A context in which every MLP reads `before` of its input, and writes `after` of its output."""

  def intercept(call, args, kwargs, context):
    if isinstance(context.module, model.MLP) and context.method_name == '__call__':
      return after(call(before(args[0])))
    return call(*args, **kwargs)

  return nn.intercept_methods(intercept)


@jax.default_matmul_precision('highest')
def mlp_activations(config: Config, params: dict, e_SxD: Array) -> tuple[Array, Array]:
  """The MLP's inputs, SxRxD, and its hidden activations, SxRxF."""
  inputs = []

  def record(x):
    inputs.append(x)
    return x

  paths_Rx1 = jnp.arange(config.relations)[:, None]
  with around_mlp(before=record):
    _, sown = model.apply(
      config, params, e_SxD, paths_Rx1, method='from_embeddings', mutable=['trace']
    )
  return inputs[0], sown['trace']['blocks_0']['mlp']['hidden'][0]


def unit_selectivity(hidden_SxRxF: Array) -> dict[str, Array]:
  """Every hidden unit's selectivity for one relation and for few of its answers, and its activation.

  `own`: the relation that the unit fires most for. `relation`: 0 if it fires equally for all relations, 1 if
  only for that one. `attribute`: 0 if it fires equally for all answers of that relation, near 1 if only for
  one of them. `activation_fraction`: its share of the total activation.
  """
  chex.assert_rank(hidden_SxRxF, 3)
  mass_RxF = jnp.mean(hidden_SxRxF, axis=0)
  total_F = jnp.sum(mass_RxF, axis=0)
  own_F = jnp.argmax(mass_RxF, axis=0)
  relations = len(mass_RxF)
  relation_F = (relations * jnp.max(mass_RxF, axis=0) / _clip(total_F) - 1) / max(1, relations - 1)
  fired_SxF = jnp.take_along_axis(hidden_SxRxF, own_F[None, None], axis=1)[:, 0]
  spread_F = jnp.mean(fired_SxF, axis=0) ** 2 / _clip(jnp.mean(fired_SxF**2, axis=0))
  return {
    'own': own_F,
    'relation': jnp.where(total_F > 0, relation_F, 0.0),
    'attribute': jnp.where(total_F > 0, 1 - spread_F, 0.0),
    'activation_fraction': total_F / _clip(jnp.sum(total_F)),
  }


def _clip(x):
  return jnp.maximum(x, 1e-30)


def ablate_units(params: dict, ablated_F: Array) -> dict:
  """The model with these hidden units ablated (their output weights set to zero)."""
  mlp = params['blocks_0']['mlp']
  chex.assert_shape(ablated_F, mlp['out'].shape[:1])
  out = jnp.where(ablated_F[:, None], 0.0, mlp['out'])
  return {**params, 'blocks_0': {**params['blocks_0'], 'mlp': {**mlp, 'out': out}}}


def ablated_accuracy(
  config: Config, params: dict, e_SxD: Array, targets_SxR: Array, own_F: Array, others: bool = False
) -> Array:  # fmt: skip
  """RxR: the accuracy on every relation (column) with the units of one relation (row), or all `others`, ablated."""
  chex.assert_shape(targets_SxR, (len(e_SxD), config.relations))

  def one(r):
    answers_SxR = answers(config, ablate_units(params, (own_F == r) != others), e_SxD)
    return jnp.mean(answers_SxR == targets_SxR, axis=0, dtype=jnp.float32)

  return jax.lax.map(one, jnp.arange(config.relations))


def patched_accuracy(
  config: Config, params: dict, e_SxD: Array, targets_SxR: Array, add_RxD: Array, shift: int
) -> Array:
  """How often the model, asked for r, answers relation r + shift (mod R) with `add_RxD` added to the MLP's input."""
  chex.assert_shape(targets_SxR, (len(e_SxD), config.relations))
  answers_SxR = answers(config, params, e_SxD, add_RxD)
  return jnp.mean(answers_SxR == jnp.roll(targets_SxR, -shift, axis=1), dtype=jnp.float32)


def swap_effects(
  config: Config, params: dict, e_SxD: Array, vectors_RxSxD: Array, wanted_SxR: Array,
  alphas_T: Array,
) -> tuple[Array, Array]:  # fmt: skip
  """Change embeddings for one relation at a time, by alpha times its vector: how often the answer to that
  relation becomes the wanted one, and how often the answers to the other relations stay unchanged: (TxR, TxR)."""
  chex.assert_shape(vectors_RxSxD, (config.relations, *e_SxD.shape))
  chex.assert_shape(wanted_SxR, (len(e_SxD), config.relations))
  before_SxR = answers(config, params, e_SxD)
  others_RxR = ~jnp.eye(config.relations, dtype=bool)

  def one(pair):
    alpha, r = pair
    answers_SxR = answers(config, params, e_SxD + alpha * vectors_RxSxD[r])
    flipped = jnp.mean(answers_SxR[:, r] == wanted_SxR[:, r], dtype=jnp.float32)
    kept_R = jnp.mean(answers_SxR == before_SxR, axis=0, dtype=jnp.float32)
    return flipped, jnp.sum(jnp.where(others_RxR[r], kept_R, 0.0)) / max(1, config.relations - 1)

  count = len(alphas_T), config.relations
  pairs = jnp.repeat(alphas_T, count[1]), jnp.tile(jnp.arange(count[1]), count[0])
  flipped, kept = jax.lax.map(one, pairs)
  return flipped.reshape(count), kept.reshape(count)


@jax.default_matmul_precision('highest')
def steering_vectors(
  maps_RxDxE: Array, u_AxD: Array, targets_SxR: Array, wanted_SxR: Array
) -> Array:
  """Vectors M_r (u_wanted − u_own) that move a subject from its own attribute to another along the superposition."""
  chex.assert_equal_shape([targets_SxR, wanted_SxR])
  difference_SxRxD = u_AxD[wanted_SxR] - u_AxD[targets_SxR]
  return jnp.einsum('srd,rde->rse', difference_SxRxD, maps_RxDxE)


def random_directions(key: Array, vectors: Array) -> Array:
  """Vectors of the same lengths in random directions."""
  noise = jax.random.normal(key, vectors.shape)
  length = functools.partial(jnp.linalg.norm, axis=-1, keepdims=True)
  return noise * length(vectors) / length(noise)


def other_attributes(key: Array, attributes: int, targets_SxR: Array) -> Array:
  """A random attribute for every query, uniform among those that are not its answer."""
  step = jax.random.randint(key, targets_SxR.shape, 1, attributes)
  return (targets_SxR + step) % attributes
