"""Matrix decompositions that are safe on a CPU with several devices.

In JAX 0.10 (fixed in 0.11) LAPACK kernels split a batch of matrices over the thread pool that executes them,
and wait there. When several run at the same time, one per device for example, they can occupy all of its threads while
their own tasks are still queued: the process hangs. So on a CPU these functions, when mapped by `vmap`, take one matrix
after another; on accelerators they remain batched.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from chex import Array


def _one_by_one(function: Callable) -> Callable:
  """`function` of single matrices, which on a CPU `vmap` maps sequentially."""
  sequential = jax.custom_batching.sequential_vmap(function)
  return lambda *args: jax.lax.platform_dependent(*args, cpu=sequential, default=function)


eigh = _one_by_one(lambda a_KxK: tuple(jnp.linalg.eigh(a_KxK)))
svd = _one_by_one(lambda a_KxL: tuple(jnp.linalg.svd(a_KxL, full_matrices=False)))
_solve = _one_by_one(jnp.linalg.solve)


@jax.custom_vjp
def solve(a_KxK: Array, b_KxS: Array) -> Array:
  """X with A X = B. It can be differentiated in reverse mode; `eigh` and `svd` cannot."""
  return _solve(a_KxK, b_KxS)


def _solve_forward(a_KxK, b_KxS):
  x_KxS = _solve(a_KxK, b_KxS)
  return x_KxS, (a_KxK, x_KxS)


def _solve_backward(kept, grad_KxS):
  a_KxK, x_KxS = kept
  grad_b_KxS = _solve(a_KxK.T, grad_KxS)
  return -jnp.matmul(grad_b_KxS, x_KxS.T, precision='highest'), grad_b_KxS


solve.defvjp(_solve_forward, _solve_backward)
