"""How many bits the weights of a trained model need: round them, and test whether it still knows its facts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from chex import Array

BITS = tuple(range(2, 13))
NONE = 32  # if none of these is enough: weights are not rounded


def rounded(params: dict, bits: Array | float) -> dict:
  """Round every array to 2^bits − 1 equally spaced values, including zero."""

  def one(w):
    step = jnp.maximum(jnp.max(jnp.abs(w)), 1e-30) / (2.0 ** (bits - 1) - 1)
    return step * jnp.round(w / step)

  return jax.tree.map(one, params)


def bits_needed(accuracy: Callable[[dict], Array], params: dict, target: float) -> Array:
  """The fewest bits per weight from which on rounding keeps `accuracy` at `target` or above; `NONE` if all are too few."""
  bits_T = jnp.array(BITS, jnp.float32)
  enough_T = jax.lax.map(lambda bits: accuracy(rounded(params, bits)) >= target, bits_T)
  from_there_T = jnp.flip(jnp.cumprod(jnp.flip(enough_T.astype(jnp.int32))))
  return jnp.where(enough_T[-1], BITS[-1] + 1 - jnp.sum(from_there_T), NONE)
