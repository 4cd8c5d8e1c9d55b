"""Lower bounds on the dimension of embeddings, for a given number of bits, margin or noise: docs/theory.md.

If directions may be chosen, there is no bound without one of these: in exact arithmetic one number holds all facts.
N subjects, R relations, A attributes; everything outside the embeddings is independent of the facts.
"""

import math

from geomem.checks.lower_bounds import log2_factorial
from geomem.errors import InputError


def from_bits(subjects: int, relations: int, bits: float) -> float:
  """d ≥ R·log₂N!/(N·b) for R bijections, at b bits per coordinate."""
  _check(bits=bits)
  return relations * log2_factorial(subjects) / (subjects * bits)


def from_margin(
  attributes: int, relations: int, radius: float, slope: float, margin: float
) -> float:
  """d ≥ R·log₂A/log₂(1 + ρΛ/γ), if all A^R contents, of length at most ρ, are answered with margin γ.

  Moving an embedding by one unit changes the difference of two logits by at most Λ.
  """
  _check(radius=radius, slope=slope, margin=margin)
  return relations * math.log2(attributes) / math.log2(1 + radius * slope / margin)


def from_noise(attributes: int, relations: int, noise: float, error: float = 0.0) -> float:
  """d ≥ R·[(1−ε)·log₂A − h(ε)]/(½·log₂(1 + σ⁻²)), for independent uniform attributes.

  With Gaussian noise of σ times the root mean square of the embeddings' coordinates, and a fraction ε of answers wrong.
  """
  _check(noise=noise)
  if not 0 <= error <= 1:
    raise InputError(f'bounds: error = {error}; give a fraction')
  entropy = -sum(p * math.log2(p) for p in (error, 1 - error) if p)
  wanted = (1 - error) * math.log2(attributes) - entropy
  return max(0.0, relations * wanted / (0.5 * math.log2(1 + noise**-2)))


def _check(**sizes: float) -> None:
  for name, size in sizes.items():
    if not 0 < size < math.inf:
      raise InputError(f'bounds: {name} = {size}; give a number above 0')
