"""Training one model: its loss, its step, and chunks of steps that end early when the model is done.

Everything that differs between the models of a sweep is input data (`Job`), so that one compiled
program trains them all: facts, sizes (a model may be padded to larger arrays, whose padding stays
zero), learning rate, weight decay. Everything they share is in a `Recipe`, which shapes the program.

Shapes: N subjects, R relations, K hops, C = R^K paths, B subjects in a step, A answers, D width.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import optax
import optax.contrib
from chex import Array, ArrayTree
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from geomem import head, model, queries
from geomem.config import Config
from geomem.training import sparse_updates
from geomem.training.recipe import Recipe

SUBJECTS, ANSWERS = 'embed/subjects', 'unembed/answers'
# If these are trained, a head may early on stop attending to the subject for all relations but one,
# and then no gradient brings it back.
QK_PARAMS = ('blocks_0/attention/query', 'blocks_0/attention/key')
MUON_RMS = 0.2  # of a parameter's update, at learning rate 1
QUERIES_PER_BLOCK = 2**13  # in evaluations of the accuracy
RUNNING, SOLVED, DIVERGED, INACTIVE = 0, 1, 2, 3


class Job(flax.struct.PyTreeNode):
  """The data specific to one model. The sizes say how much of its padded arrays is in use."""

  answers_RxN: chex.Array
  subjects: chex.Array
  relations: chex.Array
  attributes: chex.Array
  dim: chex.Array
  learning_rate: chex.Array
  weight_decay: chex.Array
  seed: chex.Array


class Lazy(flax.struct.PyTreeNode):
  """Optimizer state of lazy training.

  `whole`: Adam's state of the arrays that every step reads; `rows`: the tables' row states, at the
  paths of the tables in the parameters; `confusers_CxN`: every query's confuser.
  """

  whole: optax.ScaleByAdamState
  rows: dict
  confusers_CxN: jax.Array


class State(flax.struct.PyTreeNode):
  """A model's training state, with the loss of its last batch and its last evaluated accuracy."""

  params: dict
  opt_state: optax.ScaleByAdamState | Lazy
  step: jax.Array
  loss: jax.Array
  accuracy: jax.Array
  status: jax.Array


def initial_state(recipe: Recipe, params: dict, as_tree: bool = False) -> State:
  """The state before the first step.

  The optimizer works on one long vector, which is faster for small models, or, with `as_tree`, on
  separate arrays, so that each can be sharded in its own way.
  """
  trained, _ = split(recipe, params)
  tables = {name: trained.pop(name) for name in _tables(recipe) if name in trained}
  weights, _ = (_as_tree if as_tree or recipe.lazy else ravel_pytree)(trained)
  zero, none = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
  opt_state = _adam(recipe).init(weights)
  if recipe.lazy:
    rows = {name: sparse_updates.Rows.of(table) for name, table in tables.items()}
    shape = 1, 1  # no array may be empty
    if recipe.negatives is not None:
      embed = params['embed']
      shape = len(embed['relations']) ** recipe.hops, len(embed['subjects'])
    confusers_CxN = jnp.full(shape, sparse_updates.NONE)
    opt_state = Lazy(opt_state, unflatten_dict(rows, sep='/'), confusers_CxN)
  return State(params, opt_state, none, zero, zero, none)


def _tables(recipe: Recipe) -> tuple[str, ...]:
  """The paths of the tables that are trained lazily."""
  return (SUBJECTS, ANSWERS)[: recipe.lazy + (recipe.negatives is not None)]


@jax.jit
def copy(states: State) -> State:
  """A copy on the same devices, whose buffers training may donate."""
  return jax.tree.map(jnp.copy, states)


def split(recipe: Recipe, params: dict) -> tuple[dict, dict]:
  """The parameters by path: the trained ones and the frozen ones."""
  flat = flatten_dict(params, sep='/')
  frozen = {name for start in recipe.frozen for name in params_below(start, flat)}
  return {n: w for n, w in flat.items() if n not in frozen}, {n: flat[n] for n in frozen}


def params_below(start: str, names: Iterable[str]) -> list[str]:
  """The names that equal the path `start` or lie below it."""
  return [name for name in names if f'{name}/'.startswith(f'{start}/')]


def merge(trained: dict, frozen: dict) -> dict:
  return unflatten_dict({**trained, **frozen}, sep='/')


def _as_tree(trained: dict):
  """Like `ravel_pytree`, but with the arrays as they are: a nested dict of them, and its inverse."""
  return unflatten_dict(trained, sep='/'), lambda weights: flatten_dict(weights, sep='/')


def _adam(recipe: Recipe):
  return optax.scale_by_adam(recipe.b1, recipe.b2, recipe.eps)


def adam_update(
  adam: optax.GradientTransformation, grads: ArrayTree, opt_state: Any
) -> tuple[Any, Any]:
  """Adam's updates and its new state."""
  with jax.numpy_dtype_promotion('standard'):  # optax raises a float to an integer's power
    return adam.update(grads, opt_state)


def schedule(recipe: Recipe, step: Array) -> Array:
  """Linear warm-up, then cosine decay to zero; the peak is 1."""
  step = jnp.asarray(step, jnp.float32)
  rising = (step + 1) / (recipe.warmup + 1)
  done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
  return jnp.where(step < recipe.warmup, rising, 0.5 + 0.5 * jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))


def softmax_size(config: Config, recipe: Recipe) -> int:
  """The number of answers in a step's softmax."""
  if recipe.negatives is None:
    return config.answers
  return (
    recipe.negatives + 2 * (recipe.batch or 0) * config.relations**recipe.hops
  )  # targets, confusers


def _asked(config, recipe, job, subjects_B, valid_B):
  """All paths, all pairs of a subject and a path, and whether each pair counts."""
  chex.assert_equal_shape([subjects_B, valid_B])
  paths_CxK = jnp.asarray(queries.every_path(config.relations, recipe.hops))
  c, b = len(paths_CxK), len(subjects_B)
  weights_BxC = valid_B[:, None] & jnp.all(paths_CxK < job.relations, axis=1)[None]
  return paths_CxK, (jnp.repeat(subjects_B, c), jnp.tile(paths_CxK, (b, 1))), weights_BxC


def _rows(config, recipe, params, job, subjects_B, valid_B, mesh):
  """Final residuals, their targets and their weights, in the form that the head takes."""
  chex.assert_shape(job.answers_RxN, (config.relations, config.subjects))
  apply = functools.partial(model.apply, config, params, used=job.dim, mesh=mesh)
  every_B = jnp.arange(config.subjects) if subjects_B is None else subjects_B
  paths_CxK, pairs, weights_BxC = _asked(config, recipe, job, every_B, valid_B)
  if recipe.loss == 'answer' and not recipe.chain_of_thought:
    x_BxCxD = apply(subjects_B, paths_CxK, method='all_pairs')
    targets_BxC = queries.compose(job.answers_RxN, *pairs)[:, -1]
    return x_BxCxD.reshape(-1, x_BxCxD.shape[-1]), targets_BxC, weights_BxC.reshape(-1)
  whole = queries.chains(job.answers_RxN, *pairs)
  if not recipe.chain_of_thought:
    whole = whole[:, [*range(recipe.hops + 1), -1]]
  last = {'answer': 1, 'chain': recipe.hops, 'every': whole.shape[1] - 1}[recipe.loss]
  x_QxLxD = apply(whole[:, :-1], last=last, method='residual')
  weights = jnp.repeat(weights_BxC.reshape(-1), last)
  return x_QxLxD.reshape(-1, x_QxLxD.shape[-1]), whole[:, -last:].reshape(-1), weights


def loss(
  config: Config, recipe: Recipe, params: dict, job: Job, subjects_B: Array | None, valid_B: Array,
  mesh: Mesh | None = None,
) -> Array:  # fmt: skip
  """Mean cross-entropy over the rows that count."""
  x_BxD, targets_B, weights_B = _rows(config, recipe, params, job, subjects_B, valid_B, mesh)
  unembedding_AxD = model.apply(config, params, method='unembedding')
  total, _ = head.cross_entropy(
    x_BxD, unembedding_AxD, targets_B, weights_B, _in_use(config, recipe, job), recipe.block,
    config.precision, mesh, recipe.label_smoothing,
  )  # fmt: skip
  return total / jnp.sum(weights_B, dtype=jnp.float32)


def _in_use(config: Config, recipe: Recipe, job: Job):
  """Mask of this model's answers; if the loss is on every token, these include the relations."""
  answer_A = jnp.arange(config.answers)
  in_use_A = answer_A < job.attributes
  if recipe.loss == 'every':
    relation_A = answer_A - config.subjects
    in_use_A |= (relation_A >= 0) & (relation_A < job.relations)
  return in_use_A


def step(config: Config, recipe: Recipe, job: Job, state: State, mesh: Mesh | None = None) -> State:
  """One step of AdamW on a batch of subjects with all their paths."""
  with jax.default_matmul_precision(recipe.precision):
    if recipe.lazy:
      return _step_lazily(config, recipe, job, state)
    return _step(config, recipe, job, state, mesh)


def _step(config: Config, recipe: Recipe, job: Job, state: State, mesh: Mesh | None) -> State:
  subjects_B, valid_B = None, jnp.arange(config.subjects) < job.subjects
  key = jax.random.fold_in(jax.random.key(job.seed), state.step)
  if recipe.passes:
    subjects_B, valid_B = _in_passes(recipe, job, state.step)
  elif recipe.batch:
    subjects_B = jax.random.randint(key, (recipe.batch,), 0, job.subjects)
    valid_B = jnp.ones(recipe.batch, bool)
  trained, frozen = split(recipe, state.params)

  def objective(trained):
    params = merge(trained, frozen)
    if recipe.noise:
      params['embed']['subjects'] += _noise(recipe, job, params['embed']['subjects'], key)
    hops = range(1, recipe.hops + 1) if recipe.shorter else (recipe.hops,)
    some = [dataclasses.replace(recipe, hops=k) for k in hops]
    return sum(loss(config, r, params, job, subjects_B, valid_B, mesh) for r in some) / len(some)

  value, grads = jax.value_and_grad(objective)(trained)
  trained, opt_state = _adamw(recipe, job, state.step, trained, grads, state.opt_state)
  return _after(state, merge(trained, frozen), opt_state, value)


def _after(state: State, params: dict, opt_state, value: Array) -> State:
  status = jnp.where(jnp.isfinite(value), jnp.int32(RUNNING), jnp.int32(DIVERGED))
  return State(params, opt_state, state.step + 1, value, state.accuracy, status)


def _adamw(recipe: Recipe, job: Job, step: Array, trained: dict, grads: dict, opt_state):
  """The parameters and the optimizer state after a step."""
  ravel = _as_tree if isinstance(opt_state.mu, dict) else ravel_pytree  # as `initial_state` did
  weights, restore = ravel(trained)
  updates, opt_state = adam_update(_adam(recipe), ravel(grads)[0], opt_state)
  if recipe.optimizer == 'muon':
    updates, _ = ravel({**restore(updates), **_muon(restore(opt_state.mu))})
  rate = job.learning_rate * schedule(recipe, step)

  def per_parameter(number):  # one number per parameter, in arrays like the weights
    full = {name: jnp.full(w.shape, number(name, w), w.dtype) for name, w in trained.items()}
    return ravel(full)[0]

  multiplier, ratio = recipe.embedding_lr_multiplier, _decay_ratio(recipe)
  # Matrices and embeddings decay, biases and the scales of norms do not.
  decay = per_parameter(lambda name, w: (w.ndim > 1) * (ratio if name == SUBJECTS else 1.0))
  delta = lambda w, update, decay: rate * (update + job.weight_decay * decay * w)
  deltas = jax.tree.map(delta, weights, updates, decay)
  if multiplier != 1:
    multipliers = per_parameter(lambda name, _: multiplier if name == SUBJECTS else 1.0)
    deltas = jax.tree.map(jnp.multiply, deltas, multipliers)
  return restore(jax.tree.map(jnp.subtract, weights, deltas)), opt_state


def _muon(momentum: dict) -> dict:
  """Updates of the matrices of the blocks: their momentum, with all its singular values made about equal.

  Their root mean square, over the entries in use, is that of a typical AdamW update, so that the
  same learning rates fit.
  """
  matrices = {n: m for n, m in momentum.items() if n.startswith('blocks_') and m.ndim > 1}
  axes = {
    n: optax.contrib.MuonDimensionNumbers(m.ndim - 2, m.ndim - 1) for n, m in matrices.items()
  }
  # The momentum is Adam's: it is not averaged again.
  muon = optax.contrib.scale_by_muon(beta=0.0, nesterov=False, weight_dimension_numbers=axes)
  with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
    found, _ = muon.update(matrices, muon.init(matrices))
  size = lambda m: jnp.sum(m != 0).astype(m.dtype)
  scale = lambda m: MUON_RMS * jnp.sqrt(size(m) / jnp.maximum(jnp.sum(m**2), 1e-30))
  return {name: scale(m) * m for name, m in found.items()}


def _decay_ratio(recipe: Recipe) -> float:
  """The ratio of the embeddings' decay to the decay that their learning rate alone would give."""
  multiplier, decay_multiplier = recipe.embedding_lr_multiplier, recipe.embedding_decay_multiplier
  return 1.0 if decay_multiplier in (None, multiplier) else decay_multiplier / multiplier


def _in_passes(recipe: Recipe, job: Job, step: Array) -> tuple[Array, Array]:
  key = jax.random.fold_in(jax.random.key(job.seed), 2**31)  # not the number of any step
  assert recipe.batch
  return sparse_updates.in_passes(key, step, job.subjects, recipe.batch)


def _step_lazily(config: Config, recipe: Recipe, job: Job, state: State) -> State:
  """Like `_step`, but reads and writes only the batch's rows of the tables."""
  assert isinstance(state.opt_state, Lazy)
  subjects_B, valid_B = _in_passes(recipe, job, state.step)
  paths_CxK, pairs, weights_BxC = _asked(config, recipe, job, subjects_B, valid_B)
  targets_Q = queries.compose(job.answers_RxN, *pairs)[:, -1]
  trained, frozen = split(recipe, state.params)
  index = {SUBJECTS: jnp.where(valid_B, subjects_B, config.subjects)}
  confusers_CxN, in_use_C = state.opt_state.confusers_CxN, _in_use(config, recipe, job)
  if recipe.negatives is not None:
    key = jax.random.fold_in(jax.random.key(job.seed), state.step)
    confusers_Q = confusers_CxN[:, subjects_B].T.reshape(-1)
    about = recipe.negatives, job.attributes, config.answers
    index[ANSWERS], targets_Q = sparse_updates.candidates(key, targets_Q, confusers_Q, *about)
    in_use_C = index[ANSWERS] < config.answers
  every, rows = {**trained, **frozen}, flatten_dict(state.opt_state.rows, sep='/')
  values = {name: sparse_updates.read(every[name], rows.get(name), index[name]) for name in index}
  small = config.replace(subjects=len(subjects_B), answers=len(in_use_C))

  def objective(free, values):
    params = merge({**free, **values}, {n: w for n, w in frozen.items() if n not in values})
    x_BxCxD = model.apply(small, params, None, paths_CxK, method='all_pairs', used=job.dim)
    total, runner_up_Q = head.cross_entropy(
      x_BxCxD.reshape(len(targets_Q), -1), model.apply(small, params, method='unembedding'), targets_Q,
      weights_BxC.reshape(-1), in_use_C, recipe.block, config.precision, None, recipe.label_smoothing,
      runner_ups=recipe.negatives is not None,
    )  # fmt: skip
    return total / jnp.sum(weights_BxC, dtype=jnp.float32), runner_up_Q

  free = {name: w for name, w in trained.items() if name not in rows}
  (value, runner_up_Q), (grads, row_grads) = jax.value_and_grad(objective, (0, 1), has_aux=True)(
    free, values
  )
  free, whole = _adamw(recipe, job, state.step, free, grads, state.opt_state.whole)
  written, rows = _write(recipe, job, state.step, trained, rows, index, values, row_grads)
  if recipe.negatives is not None:
    nearest_BxC = index[ANSWERS][runner_up_Q].reshape(len(subjects_B), -1)
    confusers_CxN = confusers_CxN.at[:, index[SUBJECTS]].set(nearest_BxC.T, mode='drop')
  params = merge({**free, **written}, frozen)
  return _after(state, params, Lazy(whole, unflatten_dict(rows, sep='/'), confusers_CxN), value)


def _write(recipe, job, step, tables, rows, index, values, grads) -> tuple[dict, dict]:
  """The trained tables and the state of their rows after a step."""
  rate, betas = job.learning_rate * schedule(recipe, step), (recipe.b1, recipe.b2, recipe.eps)
  tables_after, rows_after = {}, {}
  for name, own in rows.items():
    faster = recipe.embedding_lr_multiplier if name == SUBJECTS else 1.0
    decay = faster * job.weight_decay * (_decay_ratio(recipe) if name == SUBJECTS else 1.0)
    count = (job.subjects if name == SUBJECTS else job.attributes).astype(jnp.float32)
    rarely = jnp.sqrt(jnp.maximum(count / len(index[name]), 1.0))
    about = index[name], values[name], grads[name], rate * faster * rarely, rate * decay, betas
    tables_after[name], rows_after[name] = sparse_updates.write(tables[name], own, *about)
  return tables_after, rows_after


def with_decay(recipe: Recipe, state: State) -> State:
  """The state with all rows of lazy tables decayed up to now, for code that reads them directly."""
  if not recipe.lazy:
    return state
  flat, rows = flatten_dict(state.params, sep='/'), {}
  for name, own in flatten_dict(state.opt_state.rows, sep='/').items():
    flat[name], rows[name] = sparse_updates.apply_decay(flat[name], own)
  return state.replace(
    params=unflatten_dict(flat, sep='/'),
    opt_state=state.opt_state.replace(rows=unflatten_dict(rows, sep='/')),
  )


def _noise(recipe: Recipe, job: Job, e_NxD, key):
  """Noise for the embeddings in use; padding stays zero."""
  square = jnp.sum(jax.lax.stop_gradient(e_NxD) ** 2) / (job.subjects * job.dim).astype(jnp.float32)
  drawn_NxD = jax.random.normal(jax.random.fold_in(key, 1), e_NxD.shape)
  in_use_NxD = (jnp.arange(len(e_NxD)) < job.subjects)[:, None] & (
    jnp.arange(e_NxD.shape[1]) < job.dim
  )[None]
  return jnp.where(in_use_NxD, recipe.noise * jnp.sqrt(square) * drawn_NxD, 0.0)


@jax.default_matmul_precision('highest')
def accuracy(
  config: Config,
  recipe: Recipe,
  job: Job,
  params: dict,
  mesh: Mesh | None = None,
  per_step: bool = False,
) -> Array:
  """The fraction of all queries that are answered correctly, whatever the training loss.

  With chain of thought, a query is correct if every step is; if the loss is on the last answer alone,
  only that answer counts, given the correct chain. `per_step`: the fraction of correct steps instead, each
  given the correct steps before it.

  NaN if a residual is not finite. Evaluated in blocks of subjects, one after another: on every device
  as many as have `QUERIES_PER_BLOCK` queries, but at least one and at most 1024.
  """
  chained = recipe.chain_of_thought and recipe.loss != 'answer'
  asked = dataclasses.replace(recipe, loss='chain' if chained else 'answer')
  steps = recipe.hops if chained else 1

  def count(x_BxD, targets_B, weights_B, unembedding_AxD, in_use_A, block, precision):
    of = x_BxD, unembedding_AxD, targets_B, in_use_A, block, precision, mesh
    right_B = head.right(*of)
    right_QxS = right_B.reshape(-1, steps)
    right_Q = jnp.mean(right_QxS, axis=1) if per_step else jnp.all(right_QxS, axis=1)
    return jnp.sum(jnp.where(weights_B.reshape(-1, steps)[:, 0], right_Q.astype(jnp.float32), 0.0))

  in_use_A = _in_use(config, recipe, job)
  return _mean_over_queries(config, asked, job, params, in_use_A, count, mesh)


@jax.default_matmul_precision('highest')
def cross_entropy(config: Config, recipe: Recipe, job: Job, params: dict) -> tuple[Array, Array]:
  """Mean cross-entropy of the last answer, over all answers, in nats, and its accuracy, on all queries.

  NaN as in `accuracy`.
  """

  def total(x_BxD, targets_B, weights_B, unembedding_AxD, *head_of):
    return head.cross_entropy(x_BxD, unembedding_AxD, targets_B, weights_B, *head_of)

  asked = dataclasses.replace(recipe, loss='answer')
  return _mean_over_queries(config, asked, job, params, _in_use(config, recipe, job), total)


def _mean_over_queries(config, recipe, job, params, in_use_A, function, mesh=None):
  """The mean over all queries of `function`, whose sums are accumulated block by block.

  `function` takes (residuals, targets, weights, unembedding, answers in use, rows of the head at once,
  precision).
  """
  per_device = min(1024, max(1, QUERIES_PER_BLOCK // config.relations**recipe.hops))
  size = min(per_device * (mesh.size if mesh else 1), config.subjects)
  unembedding_AxD = model.apply(config, params, method='unembedding')
  head_of = unembedding_AxD, in_use_A, recipe.block, config.precision

  def block(first):
    subject_B = first + jnp.arange(size)
    inside_B = subject_B < job.subjects
    subjects_B = jnp.minimum(subject_B, config.subjects - 1)
    x_BxD, targets_B, weights_B = _rows(config, recipe, params, job, subjects_B, inside_B, mesh)
    finite = jnp.all(jnp.isfinite(x_BxD))
    sums = function(x_BxD, targets_B, weights_B, *head_of)
    return jax.tree.map(lambda own: jnp.where(finite, own, jnp.nan), sums)

  blocks = jnp.arange(0, config.subjects, size)
  none = jax.tree.map(lambda a: jnp.zeros(a.shape), jax.eval_shape(block, blocks[0]))
  add = lambda total, first: (jax.tree.map(jnp.add, total, block(first)), None)
  total, _ = jax.lax.scan(add, none, blocks)
  subjects, relations = (a.astype(jnp.float32) for a in (job.subjects, job.relations))
  queries = subjects * relations**recipe.hops  # integers would overflow
  return jax.tree.map(lambda a: a / queries, total)


def train_chunk(
  config: Config, recipe: Recipe, steps: Array, job: Job, state: State, mesh: Mesh | None = None
) -> State:
  """Train for up to `steps` more steps, with an evaluation over all queries whenever one is due.

  A finished model stays as it is. When an evaluation is due does not depend on how training is split
  into chunks.
  """
  until = jnp.minimum(state.step + steps, recipe.steps)
  every = recipe.check if recipe.target else recipe.steps

  def running(state):
    return (state.step < until) & (state.status == RUNNING)

  def evaluate(state):
    state = with_decay(recipe, state)
    if not recipe.evaluate:
      return state.replace(accuracy=jnp.full_like(state.accuracy, jnp.nan))
    right = accuracy(config, recipe, job, state.params, mesh)
    status = jnp.where(right >= (recipe.target or 2.0), jnp.int32(SOLVED), state.status)
    status = jnp.where(jnp.isfinite(right), status, jnp.int32(DIVERGED))
    right = jnp.where(jnp.isfinite(right), right, 0.0)
    return state.replace(
      accuracy=right, status=jnp.where(state.status == RUNNING, status, state.status)
    )

  def train_then_evaluate(state):
    due = jnp.minimum((state.step // every + 1) * every, until)
    before = lambda state: running(state) & (state.step < due)
    state = jax.lax.while_loop(before, lambda state: step(config, recipe, job, state, mesh), state)
    ended = (state.step >= recipe.steps) | (state.status != RUNNING)
    return jax.lax.cond((state.step % every == 0) | ended, evaluate, lambda state: state, state)

  return jax.lax.while_loop(running, train_then_evaluate, state)
