"""Initial parameters: one rule for all of them, whichever generator draws the numbers."""

from collections.abc import Callable

from chex import Array


def initial_value(name: str, shape: tuple[int, ...], normal: Callable[..., Array]) -> Array:
  """A parameter's initial value; `normal(shape)` draws from any generator, JAX's or NumPy's.

  Biases and shifts are 0, norm scales are 1, and all else is Gaussian with variance 2/fan-in after a
  ReLU and 1/fan-in otherwise; the query includes the factor 1/√width that attention scores lack.
  """
  if name.endswith(('bias', 'shift')):
    return 0 * normal(shape)
  if name == 'scale':
    return 0 * normal(shape) + 1
  embeddings = dict.fromkeys(('subjects', 'relations', 'positions', 'answers'), shape[-1])
  heads = {'query': shape[-2] * shape[-1], 'output': shape[0] * shape[1]}
  fan_in = {'middle': shape[0] / 2, 'out': shape[0] / 2, **heads, **embeddings}
  return normal(shape) * fan_in.get(name, shape[-2]) ** -0.5
