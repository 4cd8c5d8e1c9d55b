"""Products on a CPU as an accelerator makes them: those that ask for nothing round what they multiply.

A TPU rounds the float32 operands of a product of default precision to bfloat16, a GPU to TF32; both add up in float32.
Inside `with rounded(TPU):` so does every program that is compiled, whatever calls it: it is done where JAX hands a
product to the compiler, after all transformations, so that it makes no difference what the product stands in. What
asks for the highest precision, or is of another type than float32, is as everywhere.

It is here and not in the library because what it replaces is inside JAX, and may be called otherwise in the next release.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator

import jax
import numpy as np
from jax._src import source_info_util
from jax._src.interpreters import mlir as rules
from jax.interpreters import mlir

TPU, GPU = {'exponent_bits': 8, 'mantissa_bits': 7}, {'exponent_bits': 8, 'mantissa_bits': 10}
DEFAULT, HIGHEST = jax.lax.Precision.DEFAULT, jax.lax.Precision.HIGHEST
_now: dict = {}  # to what operands are rounded, and of which products


@dataclasses.dataclass(frozen=True)
class Product:
  """One whose operands were rounded: whether `default` was asked for or nothing was, and the calls that lead to it."""

  asked: bool
  calls: str


@contextlib.contextmanager
def rounded(to: dict[str, int]) -> Iterator[list[Product]]:
  """Inside it products of default precision are rounded; the list has each of them, once it is compiled."""
  jax.clear_caches()
  _now.update(to=to, found=[])
  try:
    yield _now['found']
  finally:
    _now.clear()
    jax.clear_caches()


def _lower(before, ctx, left, right, *, precision, **how):
  """The product for the compiler; its operands are rounded first where that is due."""
  asked = set(precision) if isinstance(precision, tuple) else {precision}
  if not _now or asked == {HIGHEST} or any(aval.dtype != np.float32 for aval in ctx.avals_in):
    return before(ctx, left, right, precision=precision, **how)
  if not asked <= {None, DEFAULT}:
    raise NotImplementedError(f'what a product of precision {precision} rounds is not known here')
  frames = source_info_util.user_frames(ctx.traceback)
  calls = ' < '.join(f'{frame.function_name} in {frame.file_name}' for frame in frames)
  _now['found'].append(Product(asked == {DEFAULT}, calls))
  round_one = mlir.lower_fun(
    functools.partial(jax.lax.reduce_precision, **_now['to']), multiple_results=False
  )
  operands = []
  for aval, operand in zip(ctx.avals_in, (left, right), strict=True):
    alone = ctx.replace(primitive=None, avals_in=[aval], avals_out=[aval])
    operands += round_one(alone, operand)
  return before(ctx, *operands, precision=precision, **how)


def _install(primitive) -> None:
  """Once, when this is imported; outside of `rounded` it changes nothing."""
  own = rules._platform_specific_lowerings['cpu'].get(primitive) or rules._lowerings[primitive]
  # Not cached, so that every product comes here, with its place in the code.
  mlir.register_lowering(
    primitive, functools.partial(_lower, own.rule), platform='cpu', cacheable=False
  )


for product in (jax.lax.dot_general_p, jax.lax.conv_general_dilated_p):
  _install(product)
