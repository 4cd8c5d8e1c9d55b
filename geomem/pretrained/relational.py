"""Linear relational embeddings (Hernandez et al., 2023): the model itself, linearised from subject to object.

o ≈ β W s + b. W is the Jacobian of the final residual at the prompt's end with respect to the
subject's residual at some layer, averaged over a few subjects; b is the mean of o − J s, with each
subject's own Jacobian J. An edit that should turn the object into o' is s + W⁺(o' − o), where W⁺ is
the pseudo-inverse of rank ρ.

Shapes: D width, T layers, L length, E examples, B prompts.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from geomem.pretrained import decoder
from geomem.pretrained.config import DecoderConfig


@functools.partial(jax.jit, static_argnums=(0, 1))
def jacobians(
  config: DecoderConfig,
  layers: tuple[int, ...],
  params: dict,
  x_LxD: chex.Array,
  prefix: decoder.Prefix,
  last: chex.Array,
) -> jax.Array:
  """∂ final residual at `last` / ∂ residual of the first token at each layer, TxDxD, in one backward pass.

  `x_LxD`: the residual stream at the first of the layers.
  """
  count, dim = len(layers), config.dim

  def final(add_TxD):
    patch = decoder.Patch(jnp.array(layers), jnp.zeros(count, jnp.int32), jnp.ones(count), add_TxD)
    return decoder.residuals(config, params, x_LxD, patch, layers[0], prefix)[-1, last]

  return jnp.moveaxis(jax.jacrev(final)(jnp.zeros((count, dim))), 0, 1)


def embedding(
  jacobian_ExDxD: np.ndarray, s_ExD: np.ndarray, o_ExD: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The relational embedding (W, b), estimated from examples."""
  w_DxD = jacobian_ExDxD.mean(axis=0)
  return w_DxD, (o_ExD - np.einsum('eij,ej->ei', jacobian_ExDxD, s_ExD)).mean(axis=0)


def predict(relation: tuple[np.ndarray, np.ndarray], s_BxD: np.ndarray, beta: float) -> np.ndarray:
  """The final residuals that the embedding predicts."""
  w_DxD, b_D = relation
  return (beta * s_BxD @ w_DxD.T + b_D).astype(np.float32)


def inverse(w_DxD: np.ndarray, rank: int) -> np.ndarray:
  """The pseudo-inverse of the best approximation of W of that rank."""
  u, size, v = np.linalg.svd(w_DxD)
  return v[:rank].T / size[:rank] @ u[:, :rank].T
