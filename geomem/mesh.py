"""The device mesh that one large model is sharded over: which array lies where, and sharded look-ups.

Arrays with a row per word are sharded along the axis 'vocabulary'. The rows of a batch, one per query,
are sharded over all devices, first along 'vocabulary', so that a batch of all subjects lies where
their embeddings do.

Shapes: N rows of a table, D width, B look-ups.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from geomem import hosts

FACTS, VOCABULARY = AXES = ('facts', 'vocabulary')
SLICED, SPREAD = P(VOCABULARY), P((VOCABULARY, FACTS))


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh of all devices: 'vocabulary' within a process, 'facts' across processes.

  The devices of a process are near each other.
  """
  every = jax.devices() if devices is None else devices
  every = sorted(every, key=lambda device: (device.process_index, device.id))
  return Mesh(np.array(every).reshape(len(hosts.processes(every)), -1), AXES)


def look_up(mesh: Mesh, table_NxD: Array, index_B: Array) -> Array:
  """Look up rows of a sharded table, each sent to the device that needs it; any rank of index."""

  def per_device(slice_NxD, index_B):
    all_B = jax.lax.all_gather(index_B, VOCABULARY, tiled=True)
    count = len(slice_NxD)
    here_B = all_B - count * jax.lax.axis_index(VOCABULARY)
    inside_B = (0 <= here_B) & (here_B < count)
    found_BxD = jnp.where(inside_B[..., None], slice_NxD[jnp.clip(here_B, 0, count - 1)], 0.0)
    return jax.lax.psum_scatter(found_BxD, VOCABULARY, tiled=True)

  return jax.shard_map(
    per_device, mesh=mesh, in_specs=(SLICED, SPREAD), out_specs=SPREAD, check_vma=False
  )(table_NxD, index_B)
