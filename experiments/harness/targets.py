"""Devices that programs are compiled for without having them: TPUs, by libtpu's compiler, and NVIDIA's GPUs, by that of
JAX's plug-in for CUDA. For a GPU that is not named they are only lowered.

A compiled program says what a chip needs for it. One that does not fit, or calls back to the host, is `Refused`.
"""

import collections
import dataclasses
import functools
import importlib.util
import math
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from experiments.harness.programs import Program
from geomem.errors import InputError
from geomem.training import device_memory
from geomem.training.device_memory import Refused

GPUS = 'cuda', 'rocm'
# By NVIDIA's data sheets: the MiB of a GPU's memory, and what else its compiler must know of one that is not here.
NVIDIA = {
  't4': (15095, 'core_count: 40 fpus_per_core: 64 threads_per_core_limit: 1024 shared_memory_per_core: 65536 '
    'shared_memory_per_block_optin: 65536 l2_cache_size: 4194304 memory_bandwidth: 320000000000 clock_rate_ghz: 1.59 '
    'cuda_compute_capability { major: 7 minor: 5 }'),
  'h100': (81090, 'core_count: 132 fpus_per_core: 128 threads_per_core_limit: 2048 shared_memory_per_core: 233472 '
    'shared_memory_per_block_optin: 232448 l2_cache_size: 52428800 memory_bandwidth: 3352000000000 clock_rate_ghz: 1.98 '
    'cuda_compute_capability { major: 9 minor: 0 }'),
}  # fmt: skip
DESCRIBED = """platform_name: "CUDA" device_description_str: "%s" runtime_version { major: 12 minor: 8 }
dnn_version_info { major: 9 minor: 8 } gpu_device_info { threads_per_warp: 32 threads_per_block_limit: 1024
shared_memory_per_block: 49152 registers_per_core_limit: 65536 registers_per_block_limit: 65536
block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 device_memory_size: %d %s }"""
NO_TRITON = '--xla_gpu_enable_triton_gemm=false'
# A product that XLA compiles itself, or that a library of CUDA computes.
PRODUCT = re.compile(
  r'= \(?(\w+)\[[^=]*? (?:convolution\(|dot\(|custom-call\([^=]*custom_call_target="__cublas)([^\n]*)'
)
ALLOCATED = 0.75  # of a GPU's memory, by JAX, unless it is told otherwise
ESTIMATED = re.compile(r'estimated_cycles":"(\d+)"')
COLLECTIVES = 'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute'
SETTINGS = {  # libtpu must not look up which TPU it is on, and two processes may compile at once
  'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_ACCELERATOR_TYPE': 'v5litepod-8', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Target:
  """`devices`: their descriptions or, where programs are only lowered, this machine's devices, which only set their number."""

  name: str
  platform: str
  devices: tuple

  @functools.cached_property
  def memory(self) -> float | None:
    """The bytes that a device has for a program, of a TPU from the compiler's message about a program that needs more; None
    if there is no compiler."""
    if self.platform != 'tpu':
      gpu = NVIDIA.get(self.name.partition(':')[0])
      return ALLOCATED * 2**20 * gpu[0] if gpu else None
    sharding = jax.sharding.SingleDeviceSharding(self.devices[0])
    large = jax.ShapeDtypeStruct((2**40,), np.float32, sharding=sharding)
    try:
      device_memory.compiled(jax.jit(lambda a: a + 1).lower(large))
    except Refused as error:
      return error.available
    raise AssertionError('four terabytes fit')


def find(name: str) -> Target:
  """The target with this name: v5e:2x4 is eight chips of a TPU v5e, h100:8 eight GPUs, h100 one, cuda one that is not named."""
  kind, _, shape = name.partition(':')
  if kind in NVIDIA:
    return Target(name, 'cuda', nvidia(kind, shape))
  if kind in GPUS:
    count = int(shape or 1) if (shape or '1').isdigit() else 0
    devices = jax.devices('cpu')
    if not 1 <= count <= len(devices):
      raise InputError(f'--target={name}: 1 to {len(devices)} devices can be planned for here')
    return Target(name, kind, tuple(devices[:count]))
  if not re.fullmatch(r'v\d\w*', kind) or not re.fullmatch(r'\d+(x\d+)+', shape):
    raise InputError(
      f'--target={name}: name a TPU, as v5e:2x4 or v6e:2x2, or a GPU: {", ".join((*NVIDIA, *GPUS))}'
    )
  if importlib.util.find_spec('libtpu') is None:
    raise InputError(
      f"--target={name} needs libtpu's compiler: pip install 'jax[tpu]', or make tpu"
    )
  for variable, value in SETTINGS.items():
    os.environ.setdefault(variable, value)
  one = {'chips_per_host_bounds': (1, 1, 1)} if set(shape.split('x')) == {'1'} else {}
  try:
    found = topologies.get_topology_desc(platform='tpu', topology_name=name, **one)
  except (jax.errors.JaxRuntimeError, ValueError) as error:  # no such TPU
    raise InputError(f'--target={name}: {error}') from None
  return Target(name, 'tpu', tuple(found.devices))


def nvidia(kind: str, count: str) -> tuple:
  """Descriptions of GPUs of a kind that are not here, as many as `count` says, or one."""
  if not re.fullmatch(r'([1-9]\d*)?', count):
    raise InputError(f'--target={kind}:{count}: {kind}:8 is eight of them')
  if importlib.util.find_spec('jax_cuda12_plugin') is None:
    raise InputError(
      f"--target={kind} needs the compiler of JAX's plug-in: pip install 'jax[cuda12]', or make cuda"
    )
  os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')  # it would ask for a GPU
  # Without a GPU to try them out, XLA finds no tiles for some small products that Triton would compile.
  if NO_TRITON not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {NO_TRITON}'
  mebibytes, others = NVIDIA[kind]
  described = DESCRIBED % (kind, 2**20 * mebibytes, others)
  found = topologies.get_topology_desc(
    platform='cuda', target_config=described, topology=f'1x1x{count or 1}'
  )
  return tuple(found.devices)


def build(program: Program, target: Target) -> dict[str, Any]:
  """Compile the program, or lower it if there is no compiler: a record of the time taken and the resources needed."""
  start = time.perf_counter()
  traced = program.function.trace(*program.args, **program.options)
  if asked := next(callbacks(traced.jaxpr.jaxpr), None):
    raise Refused(
      f'{program.name}: it calls back to the host ({asked}), which {target.name} cannot'
    )
  if target.memory is None:
    lowered = traced.lower(lowering_platforms=(target.platform,))
    return {
      'lower_seconds': time.perf_counter() - start,
      'text_bytes': len(lowered.as_text()),
    }
  lowered = traced.lower()
  lowered_at = time.perf_counter()
  try:
    compiled = device_memory.compiled(lowered, target.memory)
  except Refused as error:
    raise Refused(f'{program.name}: {error}', error.needed, error.available) from None
  seconds = {
    'lower_seconds': lowered_at - start,
    'compile_seconds': time.perf_counter() - lowered_at,
  }
  return seconds | needs(compiled) | {'available_bytes': target.memory}


def needs(compiled: Any) -> dict[str, Any]:
  """Bytes and operations per chip, as reported by the compiler; a loop's body counts once."""
  memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
  text = compiled.as_text()
  moved, products = collectives(text), precisions(text)
  return {
    'argument_bytes': memory.argument_size_in_bytes, 'output_bytes': memory.output_size_in_bytes,
    'temporary_bytes': memory.temp_size_in_bytes, 'peak_bytes': memory.peak_memory_in_bytes,
    'flops': max(0, costs['flops']) if 'flops' in costs else None,  # −1 or less: nothing to count
    **cycles(text), 'padding': padding(text),
    'collectives': '; '.join(f'{count} {kind} of {device_memory.in_words(size)}' for kind, (count, size) in moved.items()),
    'collective_bytes': sum(size for _, size in moved.values()),
    'products': '; '.join(f'{count} {how}' for how, count in products.items()),
  }  # fmt: skip


def cycles(text: str) -> dict[str, int | None]:
  """The compiler's own estimate of the cycles of all operations in a compiled text, and of those with a product in them;
  None if it makes none."""
  found = {'cycles': 0, 'product_cycles': 0}
  own, with_product = '', set()
  for line in text.splitlines():  # a computation follows those that it calls
    if head := re.match(r'(?:ENTRY )?(%\S+) \(.*\{$', line):
      own = head[1]
      continue
    called = re.search(r'calls=(%[^,\s]+)', line)
    product = (called and called[1] in with_product) or re.search(
      r'= .*? (?:convolution|dot)\(', line
    )
    if product:
      with_product.add(own)
    if estimated := ESTIMATED.search(line):
      found['cycles'] += int(estimated[1])
      found['product_cycles'] += int(estimated[1]) if product else 0
  return {name: count or None for name, count in found.items()}


def padding(text: str) -> float | None:
  """Elements stored per meaningful element, over all results in a compiled text: the overhead of padding to tiles."""
  meant = padded = 0
  for shape, order, *tile in re.findall(
    r'\w+\[([\d,]+)\]\{([\d,]+):T\((\d+),(\d+)\)[^=]*? fusion\(', text
  ):
    sizes = [int(n) for n in shape.split(',')]
    minor_first = [sizes[int(i)] for i in order.split(',')]
    meant += math.prod(sizes)
    for i, width in enumerate(map(int, reversed(tile[: len(minor_first)]))):
      minor_first[i] = -(-minor_first[i] // width) * width
    padded += math.prod(minor_first)
  return padded / meant if meant else None


def callbacks(jaxpr: Any) -> Iterator[str]:
  """The primitives in it, at any depth, that call back to the host."""
  for eqn in jaxpr.eqns:
    if re.search('callback|debug_print|infeed|outfeed', eqn.primitive.name):
      yield eqn.primitive.name
    for inner in jax.tree.leaves(tuple(eqn.params.values()), is_leaf=_is_jaxpr):
      if _is_jaxpr(inner):
        yield from callbacks(getattr(inner, 'jaxpr', inner))


def _is_jaxpr(x: Any) -> bool:
  return hasattr(x, 'eqns') or hasattr(getattr(x, 'jaxpr', None), 'eqns')


def collectives(text: str) -> dict[str, tuple[int, int]]:
  """For each kind of collective between chips in a compiled text, their number and the bytes of their results."""
  alone = re.compile(r'replica_groups=(\{\{\d+\}|\[\d+,1\])')
  kinds = '|'.join(COLLECTIVES)
  found: dict[str, tuple[int, int]] = {}
  for line in text.splitlines():
    if (match := re.search(rf'= (.*?) ({kinds})(-start)?\(', line)) and not alone.search(line):
      count, size = found.get(match[2], (0, 0))
      found[match[2]] = count + 1, size + _bytes(match[1])
  return found


def _bytes(shapes: str) -> int:
  """The total size of the arrays in the text of a type."""
  return sum(
    -(-int(bits or 8) // 8) * math.prod(int(n) for n in sizes.split(',') if n)
    for bits, sizes in re.findall(r'\b[a-z]+(\d*)\[([\d,]*)\]', shapes)
  )


def precisions(text: str) -> dict[str, int]:
  """The number of matrix products in a compiled text, by type of the result and precision."""
  found: collections.Counter = collections.Counter()
  for kind, rest in PRODUCT.findall(text):
    said = re.search(r'operand_precision"?[=:][{[]"?(\w+)', rest)
    found[f'{kind} {said[1].lower() if said else "default"}'] += 1
  return dict(found)
