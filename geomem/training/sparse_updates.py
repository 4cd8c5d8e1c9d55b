"""Lazy training: of tables with one row per word, a step updates only the rows that it reads.

Every row keeps its own clock. Its Adam moments cover only the steps that read the row, and are
bias-corrected for their number. Between these steps the row stays as it is: the weight decay it has
missed is made up for, exactly, when it is next read, and the drift from its momentum is dropped. A row
read every p-th step moves √p times as far in that step as its learning rate says, which is how far
dense Adam, whose second moment counts the steps in between as zeros, moves it in p steps. If every
step reads every row, this is AdamW up to the last rounding.

Subjects come in passes over all of them, each in its own random order, which is computed rather than
stored. With very many answers, the softmax can be over some of them: the batch's targets, some at
random, and for every query its confuser, the wrong answer that has come nearest so far.

Shapes: N rows of a table, of which a step reads C; D width; B subjects of a batch, Q its queries.
"""

import chex
import flax.struct
import jax
import jax.numpy as jnp
from chex import Array

NONE = -1  # a query has no confuser yet
ROUNDS = 5  # of the Feistel network that shuffles


class Rows(flax.struct.PyTreeNode):
  """The optimizer state of every row of a table: Adam's moments, how often it was read, its decay.

  `decayed_Nx2`: the logarithm of the decay factor applied to the row so far; `decay_2`: that of the
  factor due by now, for a row that was never read. Every logarithm is a sum of two floats.
  """

  mu_NxD: chex.Array
  nu_NxD: chex.Array
  read_N: chex.Array
  decayed_Nx2: chex.Array
  decay_2: chex.Array

  @classmethod
  def of(cls, table_NxD: Array) -> 'Rows':
    """The state before the first step."""
    n, zeros = len(table_NxD), jnp.zeros(table_NxD.shape, jnp.float32)
    return cls(zeros, zeros, jnp.zeros(n, jnp.int32), jnp.zeros((n, 2)), jnp.zeros(2))


def read(table_NxD: Array, rows: Rows | None, index_C: Array) -> Array:
  """The indexed rows, decayed up to now; an index past the end reads the last row.

  A table without `rows` is not trained, and read as it is.
  """
  index_C = jnp.minimum(index_C, len(table_NxD) - 1)
  if rows is None:
    return table_NxD[index_C]
  missed_C = jnp.sum(rows.decay_2[None] - rows.decayed_Nx2[index_C], axis=1)
  return table_NxD[index_C] * jnp.exp(missed_C)[:, None]


def write(
  table_NxD: Array, rows: Rows, index_C: Array, values_CxD: Array, grads_CxD: Array, rate: Array, decay: Array,
  betas: tuple[float, float, float],
) -> tuple[Array, Rows]:  # fmt: skip
  """The table after a step of AdamW on the indexed rows, which were read as `values_CxD`.

  Indices past the end are dropped; no row may occur twice. `decay`: the fraction of every row that
  this step's weight decay removes.
  """
  b1, b2, eps = betas
  at_C = jnp.minimum(index_C, len(table_NxD) - 1)
  count_C = rows.read_N[at_C] + 1
  mu_CxD = b1 * rows.mu_NxD[at_C] + (1 - b1) * grads_CxD
  nu_CxD = b2 * rows.nu_NxD[at_C] + (1 - b2) * grads_CxD**2
  corrected = lambda b, x_CxD: x_CxD / (1 - b ** count_C.astype(jnp.float32))[:, None]
  update_CxD = corrected(b1, mu_CxD) / (jnp.sqrt(corrected(b2, nu_CxD)) + eps)
  values_CxD = values_CxD - (rate * update_CxD + decay * values_CxD)
  decay_2 = _add(rows.decay_2, jnp.log1p(-decay))
  put = lambda a, value: a.at[index_C].set(value, mode='drop', unique_indices=True)
  return put(table_NxD, values_CxD), Rows(
    put(rows.mu_NxD, mu_CxD), put(rows.nu_NxD, nu_CxD), put(rows.read_N, count_C),
    put(rows.decayed_Nx2, jnp.broadcast_to(decay_2, (len(index_C), 2))), decay_2,
  )  # fmt: skip


def apply_decay(table_NxD: Array, rows: Rows) -> tuple[Array, Rows]:
  """The table with every row decayed up to now."""
  everything = jnp.arange(len(table_NxD))
  decayed_Nx2 = jnp.broadcast_to(rows.decay_2, rows.decayed_Nx2.shape)
  return read(table_NxD, rows, everything), rows.replace(decayed_Nx2=decayed_Nx2)


def _add(sum_2: Array, term: Array) -> Array:
  """Compensated addition: a plain running sum of 10^5 small terms would lose their digits."""
  total = sum_2[0] + term
  of_term = total - sum_2[0]
  lost = (sum_2[0] - (total - of_term)) + (term - of_term)
  return jnp.stack([total, sum_2[1] + lost])


# --- which subjects a step reads ------------------------------------------------------------------


def in_passes(key: Array, step: Array, subjects: Array, batch: int) -> tuple[Array, Array]:
  """The subjects of a step's batch, and which of them count: a pass's last batch has what is left."""
  steps = -(-subjects // batch)
  position_B = step % steps * batch + jnp.arange(batch)
  of_pass = jax.random.bits(jax.random.fold_in(key, step // steps), (ROUNDS,))
  valid_B = position_B < subjects
  return shuffled(of_pass, subjects, jnp.where(valid_B, position_B, 0)), valid_B


def shuffled(keys_K: Array, count: Array, position_B: Array) -> Array:
  """The images of these positions under a pseudorandom permutation of 0 … count − 1.

  A Feistel network over pairs, applied again as long as its result is past the end.
  """
  count = jnp.asarray(count, jnp.uint32)
  side = jnp.ceil(jnp.sqrt(count.astype(jnp.float32))).astype(jnp.uint32)
  side = jnp.where(side * side < count, side + 1, side)  # the root is of a rounded number

  def network(x_B):
    left_B, right_B = x_B // side, x_B % side
    for key in keys_K:
      left_B, right_B = right_B, (left_B + _mixed(right_B ^ key) % side) % side
    return left_B * side + right_B

  outside = lambda x_B: jnp.any(x_B >= count)
  again = lambda x_B: jnp.where(x_B < count, x_B, network(x_B))
  found_B = jax.lax.while_loop(outside, again, network(position_B.astype(jnp.uint32)))
  return found_B.astype(jnp.int32)


def _mixed(x_B: Array) -> Array:
  """A hash of x by multiplication and shift."""
  for multiplier, shift in ((0x85EBCA6B, 15), (0xC2B2AE35, 13)):
    x_B = x_B * jnp.uint32(multiplier)
    x_B = x_B ^ (x_B >> shift)
  return x_B


# --- which answers the softmax is over ------------------------------------------------------------


def candidates(
  key: Array, targets_Q: Array, confusers_Q: Array, negatives: int, answers: Array, fill: int
) -> tuple[Array, Array]:
  """The C answers of the softmax, distinct and ascending, and every query's target as an index into them.

  `fill`, an index past the end of all tables, fills the remaining positions.
  """
  drawn_K = jax.random.randint(key, (negatives,), 0, answers)
  confusers_Q = jnp.where(confusers_Q == NONE, fill, confusers_Q)
  every = jnp.concatenate([targets_Q, drawn_K, confusers_Q])
  found_C = jnp.unique(every, size=len(every), fill_value=fill)
  return found_C, jnp.searchsorted(found_C, targets_Q).astype(jnp.int32)
