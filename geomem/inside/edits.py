"""Edit a model's facts: in a subject's embedding, in the MLP, or by gradient descent on all weights.

An edit is a pure function from a one-block model's parameters and its table of facts to new parameters, so it can be
mapped over models. An edited fact is a subject, a relation, and the attribute that the subject is to have from now on.

  >>> facts = Facts.bijections(16, 2)
  >>> built = constructions.build('selector', facts)
  >>> config, params, table_RxN = built.config, built.params, facts.answers_RxN
  >>> u_AxD = model.apply(config, params, method='unembedding')
  >>> maps = linear_maps.fit_maps(params['embed']['subjects'], u_AxD, table_RxN)
  >>> some = draw(jax.random.key(0), table_RxN, 16, count=3)
  >>> by_rows = edit_rows(config, maps, params, table_RxN, some)
  >>> in_turn = sequential(functools.partial(edit_rows, config, maps), params, table_RxN, some)
  >>> by_mlp = edit_mlp(config, second_moments(config, params), 0.1, 0.1, params, table_RxN, some)
  >>> tuned = fine_tune(config, 1e-2, 100, 0.1, params, table_RxN, some, replayed=8)
  >>> answers = lambda after: intervene.answers(config, after, after['embed']['subjects']).T
  >>> right = lambda after: round(float((answers(after) == edit_table(table_RxN, some)).mean()), 1)
  >>> [right(after) for after in (by_rows, in_turn, by_mlp, tuned)]
  [1.0, 1.0, 0.8, 1.0]

Shapes: N subjects, R relations, D width, F hidden units, A answers; E edits.
"""

import functools
from collections.abc import Callable

import chex
import flax.struct
import jax
import jax.numpy as jnp
import optax
from chex import Array

from geomem import linalg, model
from geomem.config import Config
from geomem.inside import intervene
from geomem.inside.linear_maps import Maps
from geomem.training import optimization

VALUE_STEPS = 500  # at most, in the search for the MLP's new output
JITTER = 1e-6


class Edits(flax.struct.PyTreeNode):
  """Facts to change: `subject_E` is to have `attribute_E` under `relation_E`.

  >>> one = Edits(jnp.array([3]), jnp.array([1]), jnp.array([7]))  # s3 is to have a7 under r1
  >>> int(edit_table(jnp.zeros((2, 8), int), one)[1, 3])
  7
  """

  subject_E: chex.Array
  relation_E: chex.Array
  attribute_E: chex.Array


def draw(key: Array, answers_RxN: Array, attributes: int, count: int) -> Edits:
  """Draw `count` distinct facts at random, and for each a new attribute that differs from its own."""
  which_key, other_key = jax.random.split(key)
  relations, subjects = answers_RxN.shape
  which_E = jax.random.permutation(which_key, relations * subjects)[:count]
  relation_E, subject_E = which_E // subjects, which_E % subjects
  old_E = answers_RxN[relation_E, subject_E]
  return Edits(subject_E, relation_E, intervene.other_attributes(other_key, attributes, old_E))


def edit_table(answers_RxN: Array, edits: Edits) -> Array:
  """The table of facts after the edits."""
  return jnp.asarray(answers_RxN).at[edits.relation_E, edits.subject_E].set(edits.attribute_E)


def sequential(
  edit: Callable[[dict, Array, Edits], dict], params: dict, answers_RxN: Array, edits: Edits
) -> dict:
  """Apply the edits one after another, each to the model and the facts that the previous edit left."""

  def step(before, fact):
    params, table_RxN = before
    return (edit(params, table_RxN, fact), edit_table(table_RxN, fact)), None

  each = jax.tree.map(lambda a: a[:, None], edits)
  return jax.lax.scan(step, (params, jnp.asarray(answers_RxN)), each)[0][0]


@jax.default_matmul_precision('highest')
def edit_rows(config: Config, maps: Maps, params: dict, answers_RxN: Array, edits: Edits) -> dict:
  """Edit the subject's embedding in closed form: subtract M_r u of the old attribute and add M_r u of the new one.

  `maps`: the superposition maps of the model's embeddings, as `linear_maps` fits them; `answers_RxN`: the facts
  before the edits.
  """
  u_AxD = model.apply(config, params, method='unembedding').astype(jnp.float32)
  old_E = jnp.asarray(answers_RxN)[edits.relation_E, edits.subject_E]
  change_ExD = u_AxD[edits.attribute_E] - u_AxD[old_E]
  vectors_ExP = jnp.einsum('ed,edp->ep', change_ExD, maps[0][edits.relation_E])
  rows_NxP = jnp.asarray(params['embed']['subjects']).at[edits.subject_E].add(vectors_ExP)
  return {**params, 'embed': {**params['embed'], 'subjects': rows_NxP}}


@jax.default_matmul_precision('highest')
def second_moments(config: Config, params: dict) -> Array:
  """Second moments of the hidden units, FxF, summed over every query that the model was trained on."""
  _, hidden_NxRxF = intervene.mlp_activations(config, params, params['embed']['subjects'])
  return jnp.einsum('nrf,nrg->fg', hidden_NxRxF, hidden_NxRxF)


@jax.default_matmul_precision('highest')
def edit_mlp(
  config: Config, second_moment_FxF: Array, weight: Array | float, nats: Array | float, params: dict, answers_RxN: Array,
  edits: Edits,
) -> dict:  # fmt: skip
  """Change W_out by least squares, so that the MLP's output at every edited query yields the new answer.

  `second_moment_FxF`: of all queries; those that are not edited are to keep their MLP output. `weight`: the weight of
  each of them relative to an edited one: the least-squares edit of MEMIT. For a single edit and weight 0 the edit is
  exact (up to `JITTER`), and is that of ROME. `nats`: the new answer's cross-entropy at which the search for its output
  stops; at a smaller one the output changes more. `answers_RxN` is not used: all edits take the same arguments.
  """
  hidden_ExF, change_ExD = _target_changes(config, nats, params, edits)
  second_moment_FxF = second_moment_FxF - hidden_ExF.T @ hidden_ExF
  size = jnp.trace(second_moment_FxF) / len(second_moment_FxF)
  second_moment_FxF = second_moment_FxF + JITTER * size * jnp.eye(len(second_moment_FxF))
  spread_FxE = linalg.solve(second_moment_FxF, hidden_ExF.T)
  gram_ExE = hidden_ExF @ spread_FxE
  gram_ExE = gram_ExE + (weight + JITTER * jnp.trace(gram_ExE) / len(gram_ExE)) * jnp.eye(
    len(gram_ExE)
  )
  update_FxD = spread_FxE @ linalg.solve(gram_ExE, change_ExD)
  mlp = params['blocks_0']['mlp']
  block = {**params['blocks_0'], 'mlp': {**mlp, 'out': mlp['out'] + update_FxD}}
  return {**params, 'blocks_0': block}


def _target_changes(config: Config, nats, params: dict, edits: Edits) -> tuple[Array, Array]:
  """Hidden activations at every edited query, ExF, and the MLP output changes that yield the new answers, ExD."""
  e_ExP = jnp.asarray(params['embed']['subjects'])[edits.subject_E]
  _, hidden_ExRxF = intervene.mlp_activations(config, params, e_ExP)
  hidden_ExF = jnp.take_along_axis(hidden_ExRxF, edits.relation_E[:, None, None], axis=1)[:, 0]
  change = functools.partial(_target_change, config, nats, params)
  return hidden_ExF, jax.vmap(change)(e_ExP, hidden_ExF, edits.relation_E, edits.attribute_E)


def _target_change(config: Config, nats, params: dict, e_P, hidden_F, r, attribute):
  """The MLP output change, by gradient descent from 0 until the new answer's cross-entropy is at most `nats`."""
  u_AxD = model.apply(config, params, method='unembedding').astype(jnp.float32)
  adam = optax.adam(1.0)
  rate = 0.1 * (_rms(e_P) + _rms(hidden_F @ params['blocks_0']['mlp']['out']))

  def loss(change_P):
    with intervene.around_mlp(after=lambda x: x + jnp.broadcast_to(change_P, x.shape)):
      x_1x1xD = model.apply(config, params, e_P[None], r[None, None], method='from_embeddings')
    logits_A = u_AxD @ x_1x1xD[0, 0].astype(jnp.float32)
    return jax.nn.logsumexp(logits_A) - logits_A[attribute]

  def step(state):
    change_P, opt_state, count, _ = state
    value, grads_P = jax.value_and_grad(loss)(change_P)
    updates_P, opt_state = optimization.adam_update(adam, grads_P, opt_state)
    moved_P = jnp.where(value > nats, change_P + rate * updates_P, change_P)
    return moved_P, opt_state, count + 1, value <= nats

  nothing_P = jnp.zeros_like(e_P)
  state = nothing_P, adam.init(nothing_P), jnp.int32(0), jnp.bool_(False)
  return jax.lax.while_loop(lambda now: (now[2] < VALUE_STEPS) & ~now[3], step, state)[0]


def _rms(x: Array) -> Array:
  return jnp.sqrt(jnp.mean(x**2))


@jax.default_matmul_precision('highest')
def fine_tune(
  config: Config, rate: Array | float, steps: int, nats: Array, params: dict, answers_RxN: Array, edits: Edits,
  rows_only: bool = False, replayed: int = 0,
) -> dict:  # fmt: skip
  """Fine-tune with Adam on the edited facts until all are right and their mean cross-entropy is at most `nats`.

  Trains all weights, or with `rows_only` only the subjects' embeddings, for at most `steps` steps. With `rows_only` or
  `replayed`, all facts of the edited subjects count as well, and those of `replayed` subjects, drawn from all anew for
  every step: their mean cross-entropy is added, and they must be right too.
  """
  all_facts, table_NxR = rows_only or replayed > 0, edit_table(answers_RxN, edits).T
  moving = params['embed']['subjects'] if rows_only else params
  adam, key = optax.adam(1.0), jax.random.key(0)
  for number in (edits.subject_E[0], edits.relation_E[0]):  # edits in turn replay different facts
    key = jax.random.fold_in(key, number)

  def whole(moving):
    return {**params, 'embed': {**params['embed'], 'subjects': moving}} if rows_only else moving

  def loss(moving, some_S):
    """The loss on these subjects, of which the first are the edited ones, and whether all that counts is right."""
    own = whole(moving)
    u_AxD = model.apply(config, own, method='unembedding').astype(jnp.float32)
    e_SxP = jnp.asarray(own['embed']['subjects'])[some_S]
    x_SxRxD = intervene.final_residuals(config, own, e_SxP).astype(jnp.float32)
    logits_SxRxA, wanted_SxR = x_SxRxD @ u_AxD.T, table_NxR[some_S]
    own_SxR = jnp.take_along_axis(logits_SxRxA, wanted_SxR[..., None], axis=-1)[..., 0]
    nats_SxR = jax.nn.logsumexp(logits_SxRxA, axis=-1) - own_SxR
    right_SxR = jnp.argmax(logits_SxRxA, axis=-1) == wanted_SxR
    edited_E = jnp.arange(len(edits.subject_E)), edits.relation_E
    if all_facts:
      return jnp.mean(nats_SxR[edited_E]) + jnp.mean(nats_SxR), jnp.all(right_SxR)
    return jnp.mean(nats_SxR[edited_E]), jnp.all(right_SxR[edited_E])

  limit = nats * (2 if all_facts else 1)

  def step(state):
    moving, opt_state, count, _ = state
    other_B = jax.random.randint(
      jax.random.fold_in(key, count), (replayed,), 0, answers_RxN.shape[1]
    )
    some_S = jnp.concatenate([edits.subject_E, other_B])
    (value, right), grads = jax.value_and_grad(loss, has_aux=True)(moving, some_S)
    done = right & (value <= limit)
    updates, opt_state = optimization.adam_update(adam, grads, opt_state)
    after = jax.tree.map(lambda a, u: jnp.where(done, a, a + rate * u), moving, updates)
    return after, opt_state, count + 1, done

  state = moving, adam.init(moving), jnp.int32(0), jnp.bool_(False)
  return whole(jax.lax.while_loop(lambda now: (now[2] < steps) & ~now[3], step, state)[0])
