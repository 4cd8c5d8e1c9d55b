"""Does a program fit in the memory of a device? Its compiler says so, before anything runs.

How much memory a device has is an argument: the device need not be present.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax

from geomem.errors import InputError

TOO_LARGE = re.compile(r'Ran out of memory|exceeds available HBM|RESOURCE_EXHAUSTED')
UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


class Refused(InputError):
  """A program that a device cannot run. If memory is the reason, it needs `needed` bytes of `available`."""

  def __init__(self, text: str, needed: float = 0, available: float = 0):
    super().__init__(text)
    self.needed, self.available = needed, available


def check(plan: Any, smaller: Callable[[int], Any], size: int, unit: str, available: int) -> None:
  """Refuse to train what does not fit in the `available` bytes of a device, and name the largest size that does.

  `plan`: an object whose `program()` is a compiled function and its arguments, with shapes for
  arrays; it has this size, in these units. `smaller(size)`: the same at a smaller size. The last
  argument is the state; `fit` keeps another copy of it. Training then compiles nothing again.
  """

  def attempt(plan):
    function, arguments = plan.program()
    compiled(function.lower(*arguments), available, _bytes_on_a_device(arguments[-1]))

  try_out('training', lambda: attempt(plan), lambda size: attempt(smaller(size)), size, unit)


def try_out(
  what: str, attempt: Callable[[], Any], smaller: Callable[[int], Any], size: int, unit: str
) -> None:
  """Attempt it; if it is refused, name the largest size at which `smaller(size)` is not."""
  try:
    attempt()
  except Refused as error:
    raise InputError(f'{what} {with_largest(error, smaller, size, unit)}') from None


def compiled(
  lowered: jax.stages.Lowered, available: float = math.inf, kept: int = 0
) -> jax.stages.Compiled:
  """Compile a program. Refused if a device needs more bytes than are available; `kept`: those needed besides."""
  try:
    found = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if not TOO_LARGE.search(str(error)):
      raise
    needed, limit = sizes(str(error))
    if not math.isfinite(needed):
      raise
    available = min(available, limit)
  else:
    memory: Any = found.memory_analysis()
    whole = (
      memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    ) - memory.alias_size_in_bytes
    # Compilers count in different ways, and a refusal without need is worse than a failure later.
    needed = kept + min(memory.peak_memory_in_bytes or whole, whole)
    if needed <= available:
      return found
  text = f'needs {in_words(needed)} of the {in_words(available)} that a device has'
  raise Refused(text, needed, available)


def with_largest(error: Refused, attempt: Callable[[int], Any], size: int, unit: str) -> str:
  """The reason for a refusal at `size`, and the largest size at which `attempt` is not refused."""
  if not size or not 0 < error.needed < math.inf:
    return str(error)
  fits = fitting(attempt, size, error)
  return f'{error}; the most {unit} that fit: {fits:,}'


def fitting(attempt: Callable[[int], Any], size: int, error: Refused) -> int:
  """The largest size at which `attempt` is not refused, to within a tenth; 0 if there is none. `error`: the refusal at `size`."""
  fits, over, guess = 0, size, int(size * error.available / error.needed)
  while over > 1.1 * fits + 1:
    if not fits < guess < over:
      guess = max(fits + 1, int(math.sqrt(fits * over)))
    try:
      attempt(guess)
      # Memory mostly grows in proportion to the size: then a tenth more is too much.
      fits, guess = guess, int(1.1 * guess) + 1 if not fits else 0
    except Refused as again:
      fraction = again.available / again.needed if 0 < again.needed < math.inf else 1
      over, guess = (
        guess,
        int(fraction * guess) if fraction < 0.8 else 0,
      )  # or else most of it is fixed
  return fits


def sizes(error: str) -> tuple[float, float]:
  """(needed, available) bytes, from the compiler's message."""
  found = [
    float(n) * UNITS[unit] for n, unit in re.findall(r'\b(\d+(?:\.\d+)?)([KMGT])(?:iB|B)?\b', error)
  ]
  return (found[0], found[1]) if len(found) > 1 else (math.inf, math.inf)


def in_words(size: float | None) -> str:
  """A number of bytes, with a unit."""
  if size is None or not math.isfinite(size):
    return '–'
  unit = next((u for u in ('G', 'M', 'K') if 1.024 * size >= UNITS[u]), '')
  return f'{size / UNITS[unit]:.3g} {unit + "i" if unit else ""}B'


def _bytes_on_a_device(shapes: Any) -> int:
  return sum(
    math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(shapes)
  )
