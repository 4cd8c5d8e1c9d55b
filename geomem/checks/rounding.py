"""How many bits the weights of a trained model need: round them, and see when it still knows its facts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from chex import Array

BITS = tuple(range(2, 13))
NONE = 32  # where none of these is enough: weights as they are


def rounded(params: dict, bits: Array | float) -> dict:
  """Every array on 2^bits − 1 values, equally far apart, zero among them."""

  def one(w):
    step = jnp.maximum(jnp.max(jnp.abs(w)), 1e-30) / (2.0 ** (bits - 1) - 1)
    return step * jnp.round(w / step)

  return jax.tree.map(one, params)


def bits_needed(accuracy: Callable[[dict], Array], params: dict, target: float) -> Array:
  """The fewest bits per weight from which on `accuracy(params)` stays at the target; `NONE` if all are too few."""
  bits_T = jnp.array(BITS, jnp.float32)
  enough_T = jax.lax.map(lambda bits: accuracy(rounded(params, bits)) >= target, bits_T)
  from_there_T = jnp.flip(jnp.cumprod(jnp.flip(enough_T.astype(jnp.int32))))
  return jnp.where(enough_T[-1], BITS[-1] + 1 - jnp.sum(from_there_T), NONE)
