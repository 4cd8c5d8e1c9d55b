"""Emulates an accelerator's matrix products on a CPU: at default precision their operands are rounded.

A TPU rounds the float32 operands of a product of default precision to bfloat16, a GPU to TF32; both accumulate in
float32. So does every program compiled inside `with rounded(TPU):`, whatever calls it. The rounding is inserted where
JAX lowers a product for the compiler, after all transformations, so it does not matter which transformation or
control flow contains the product. Products of highest precision, or of another dtype than float32, are unchanged.

It is here and not in the library because it replaces JAX internals, which the next release may rename.
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
_now: dict = {}  # `to`: what operands are rounded to; `found`: the products


@dataclasses.dataclass(frozen=True)
class Product:
  """A product whose operands were rounded. `asked`: whether it asks for `default` explicitly. `calls`: its call stack."""

  asked: bool
  calls: str


@contextlib.contextmanager
def rounded(to: dict[str, int]) -> Iterator[list[Product]]:
  """Rounds products of default precision inside it; the list gains each of them when it is compiled."""
  jax.clear_caches()
  _now.update(to=to, found=[])
  try:
    yield _now['found']
  finally:
    _now.clear()
    jax.clear_caches()


def _lower(before, ctx, left, right, *, precision, **how):
  """Lowers a product for the compiler, with its operands rounded first if they must be."""
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
  """Replaces a primitive's lowering on CPUs, once, on import; outside of `rounded` it changes nothing."""
  own = rules._platform_specific_lowerings['cpu'].get(primitive) or rules._lowerings[primitive]
  # Not cached, so that every product is lowered here, with its own place in the code.
  mlir.register_lowering(
    primitive, functools.partial(_lower, own.rule), platform='cpu', cacheable=False
  )


for product in (jax.lax.dot_general_p, jax.lax.conv_general_dilated_p):
  _install(product)
