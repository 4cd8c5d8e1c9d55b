"""Parameters before training: one rule for all, whatever generator draws them."""

from collections.abc import Callable

from chex import Array


def initial_value(name: str, shape: tuple[int, ...], normal: Callable[..., Array]) -> Array:
  """A parameter before training; `normal(shape)` draws from any generator, JAX's or NumPy's.

  Biases and shifts are 0, scales of norms 1, all else Gaussian: with a ReLU before it of variance
  2/fan-in, else 1/fan-in, and the query takes the 1/√width that scores do not have.
  """
  if name.endswith(('bias', 'shift')):
    return 0 * normal(shape)
  if name == 'scale':
    return 0 * normal(shape) + 1
  embeddings = dict.fromkeys(('subjects', 'relations', 'positions', 'answers'), shape[-1])
  heads = {'query': shape[-2] * shape[-1], 'output': shape[0] * shape[1]}
  fan_in = {'middle': shape[0] / 2, 'out': shape[0] / 2, **heads, **embeddings}
  return normal(shape) * fan_in.get(name, shape[-2]) ** -0.5
