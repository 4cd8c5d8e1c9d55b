"""Training one model: its loss, its step, and chunks of steps that end early when the model is done.

Everything that differs between the models of a sweep is data (`Job`), so that one compiled program
trains them all: facts, sizes (a model may be padded to larger arrays, where zeros stay zero),
learning rate, weight decay. What all of them have in common is a `Recipe`, which shapes the program.

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
from chex import Array, ArrayTree
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from geomem import head, model, queries
from geomem.config import Config
from geomem.errors import InputError

LOSSES = ('answer', 'chain', 'every')
SUBJECTS = 'embed/subjects'
# Trained, a head may stop attending to the subject for all relations but one, early in training, and
# then has no gradient that would bring it back.
QK_PARAMS = ('blocks_0/attention/query', 'blocks_0/attention/key')
QUERIES_PER_BLOCK = 2**13  # when the accuracy is evaluated
RUNNING, SOLVED, DIVERGED, INACTIVE = 0, 1, 2, 3


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How to train; the same for all models of a sweep.

  `loss`: of the answer alone, of every step of the chain of thought, or of every next token.
  `shorter`: the queries of fewer hops are trained as well, each number of hops with equal weight.
  `batch`: subjects in a step, each with all its paths; None: all of them.
  `target`: stop at this accuracy over all queries, evaluated every `check` steps; None: train to the end,
  and evaluate there.
  `frozen`: parameters that are not trained, by the start of their path: 'unembed', 'embed/subjects'.
  `noise`: standard deviation of Gaussian noise added to the subjects' embeddings at every step, as a
  multiple of their root mean square.
  `embedding_lr_multiplier`: the subjects' embeddings are trained with this multiple of the learning rate.
  `embedding_decay_multiplier`: in a step they decay by this multiple of learning rate × weight decay;
  None: the same multiple, as if the whole step of AdamW were taken so many times as long.
  `label_smoothing`: the label is mixed with so much of the uniform distribution over the answers.

  >>> Recipe.with_warmup(steps=50, target=None).warmup
  5
  """

  steps: int = 2000
  warmup: int = 100
  hops: int = 1
  chain_of_thought: bool = False
  shorter: bool = False
  loss: str = 'answer'
  batch: int | None = None
  target: float | None = 0.99
  check: int = 50
  frozen: tuple[str, ...] = ()
  noise: float = 0.0
  embedding_lr_multiplier: float = 1.0
  embedding_decay_multiplier: float | None = None
  label_smoothing: float = 0.0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  block: int | None = None

  def __post_init__(self) -> None:
    for name in ('steps', 'warmup', 'hops', 'batch', 'check', 'block'):
      value, least = getattr(self, name), int(name != 'warmup')
      if value is not None and value < least:
        raise InputError(f'{name} is {value}; it must be at least {least}')
    for name in ('noise', 'embedding_lr_multiplier', 'embedding_decay_multiplier'):
      value = getattr(self, name)
      if value is not None and not 0 <= value < float('inf'):
        raise InputError(f'{name} is {value}; it must be a number from 0 on')
    if self.embedding_decay_multiplier and not self.embedding_lr_multiplier:
      raise InputError(
        'embedding_lr_multiplier is 0: embeddings that are not trained do not decay; leave '
        'embedding_decay_multiplier out'
      )
    if not 0 <= self.label_smoothing < 1:
      raise InputError(f'label_smoothing is {self.label_smoothing}; it lies in [0, 1)')
    if self.loss not in LOSSES:
      raise InputError(f'loss is {self.loss!r}; it must be one of {", ".join(LOSSES)}')
    if self.loss == 'chain' and not self.chain_of_thought:
      raise InputError("loss='chain' needs chain_of_thought=True: there is no chain otherwise")
    if self.target is not None and not 0 < self.target <= 1:
      raise InputError(f'target is {self.target}; an accuracy lies in (0, 1]')

  @classmethod
  def with_warmup(cls, steps: int, **changes: Any) -> 'Recipe':
    """With the usual warm-up: a tenth of the steps, a hundred at most."""
    return cls(steps, min(100, steps // 10), **changes)

  def length(self) -> int:
    """Tokens that a model reads."""
    return 2 * self.hops if self.chain_of_thought else self.hops + 1


class Job(flax.struct.PyTreeNode):
  """What is a model's own. The sizes say how much of its padded arrays is in use."""

  answers_RxN: chex.Array
  subjects: chex.Array
  relations: chex.Array
  attributes: chex.Array
  dim: chex.Array
  learning_rate: chex.Array
  weight_decay: chex.Array
  seed: chex.Array


class State(flax.struct.PyTreeNode):
  """Where a model's training stands: the loss of its last batch, its accuracy when last evaluated."""

  params: dict
  opt_state: optax.ScaleByAdamState
  step: jax.Array
  loss: jax.Array
  accuracy: jax.Array
  status: jax.Array


def initial_state(recipe: Recipe, params: dict, apart: bool = False) -> State:
  """Before the first step.

  The optimizer sees one long vector, which is faster for small models. Or it keeps the arrays `apart`,
  so that each can be spread over devices in its own way.
  """
  trained, _ = split(recipe, params)
  weights, _ = (_apart if apart else ravel_pytree)(trained)
  zero, none = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
  return State(params, _adam(recipe).init(weights), none, zero, zero, none)


@jax.jit
def copy(states: State) -> State:
  """Arrays of their own on the same devices, for training to use up."""
  return jax.tree.map(jnp.copy, states)


def split(recipe: Recipe, params: dict) -> tuple[dict, dict]:
  """Parameters by path: those that are trained, and the frozen ones."""
  flat = flatten_dict(params, sep='/')
  frozen = {name for start in recipe.frozen for name in params_below(start, flat)}
  return {n: w for n, w in flat.items() if n not in frozen}, {n: flat[n] for n in frozen}


def params_below(start: str, names: Iterable[str]) -> list[str]:
  """Parameters whose path begins so."""
  return [name for name in names if f'{name}/'.startswith(f'{start}/')]


def merge(trained: dict, frozen: dict) -> dict:
  return unflatten_dict({**trained, **frozen}, sep='/')


def _apart(trained: dict):
  """As `ravel_pytree`, with the arrays as they are: the arrays, and the way back."""
  return unflatten_dict(trained, sep='/'), lambda weights: flatten_dict(weights, sep='/')


def _adam(recipe: Recipe):
  return optax.scale_by_adam(recipe.b1, recipe.b2, recipe.eps)


def adam_update(
  adam: optax.GradientTransformation, grads: ArrayTree, opt_state: Any
) -> tuple[Any, Any]:
  """Adam's updates, and its new state."""
  with jax.numpy_dtype_promotion('standard'):  # optax raises a float to an integer's power
    return adam.update(grads, opt_state)


def schedule(recipe: Recipe, step: Array) -> Array:
  """Linear warm-up, then a cosine to zero; the peak is 1."""
  step = jnp.asarray(step, jnp.float32)
  rising = (step + 1) / (recipe.warmup + 1)
  done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
  return jnp.where(step < recipe.warmup, rising, 0.5 + 0.5 * jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))


def _rows(config, recipe, params, job, subjects_B, valid_B, mesh):
  """Final residuals, the answers due there, and each one's weight, as the head takes them."""
  chex.assert_shape(job.answers_RxN, (config.relations, config.subjects))
  apply = functools.partial(model.apply, config, params, used=job.dim, mesh=mesh)
  paths_CxK = jnp.asarray(queries.every_path(config.relations, recipe.hops))
  weights_BxC = valid_B[:, None] & jnp.all(paths_CxK < job.relations, axis=1)[None]
  every_B = jnp.arange(config.subjects) if subjects_B is None else subjects_B
  chex.assert_equal_shape([every_B, valid_B])
  c, b = len(paths_CxK), len(every_B)
  pairs = jnp.repeat(every_B, c), jnp.tile(paths_CxK, (b, 1))
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
  """Answers that this model has; where every token is asked for, relations are tokens too."""
  answer_A = jnp.arange(config.answers)
  in_use_A = answer_A < job.attributes
  if recipe.loss == 'every':
    relation_A = answer_A - config.subjects
    in_use_A |= (relation_A >= 0) & (relation_A < job.relations)
  return in_use_A


def step(config: Config, recipe: Recipe, job: Job, state: State, mesh: Mesh | None = None) -> State:
  """One step of AdamW on a batch of subjects with all their paths."""
  subjects_B, valid_B = None, jnp.arange(config.subjects) < job.subjects
  key = jax.random.fold_in(jax.random.key(job.seed), state.step)
  if recipe.batch:
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
  ravel = _apart if isinstance(state.opt_state.mu, dict) else ravel_pytree  # as `initial_state` did
  weights, restore = ravel(trained)
  updates, opt_state = adam_update(_adam(recipe), ravel(grads)[0], state.opt_state)
  rate = job.learning_rate * schedule(recipe, state.step)

  def per_parameter(number):  # one number for every parameter, in arrays like the weights
    full = {name: jnp.full(w.shape, number(name, w), w.dtype) for name, w in trained.items()}
    return ravel(full)[0]

  multiplier, decay_multiplier = recipe.embedding_lr_multiplier, recipe.embedding_decay_multiplier
  ratio = 1.0 if decay_multiplier in (None, multiplier) else decay_multiplier / multiplier
  # Matrices and embeddings decay, biases and the scales of norms do not.
  decay = per_parameter(lambda name, w: (w.ndim > 1) * (ratio if name == SUBJECTS else 1.0))
  delta = lambda w, update, decay: rate * (update + job.weight_decay * decay * w)
  deltas = jax.tree.map(delta, weights, updates, decay)
  if multiplier != 1:
    multipliers = per_parameter(lambda name, _: multiplier if name == SUBJECTS else 1.0)
    deltas = jax.tree.map(jnp.multiply, deltas, multipliers)
  weights = jax.tree.map(jnp.subtract, weights, deltas)
  status = jnp.where(jnp.isfinite(value), jnp.int32(RUNNING), jnp.int32(DIVERGED))
  params = merge(restore(weights), frozen)
  return State(params, opt_state, state.step + 1, value, state.accuracy, status)


def _noise(recipe: Recipe, job: Job, e_NxD, key):
  """For the embeddings in use; padding stays zero."""
  square = jnp.sum(jax.lax.stop_gradient(e_NxD) ** 2) / (job.subjects * job.dim).astype(jnp.float32)
  drawn_NxD = jax.random.normal(jax.random.fold_in(key, 1), e_NxD.shape)
  in_use_NxD = (jnp.arange(len(e_NxD)) < job.subjects)[:, None] & (
    jnp.arange(e_NxD.shape[1]) < job.dim
  )[None]
  return jnp.where(in_use_NxD, recipe.noise * jnp.sqrt(square) * drawn_NxD, 0.0)


def accuracy(
  config: Config, recipe: Recipe, job: Job, params: dict, mesh: Mesh | None = None
) -> Array:
  """The fraction of all queries that are answered right, whatever the loss is of; with chain of thought, at every
  step, unless the loss is of the last answer alone: then after the right chain.

  Not a number where a residual is not finite. Blocks of subjects, one after another: as many as have
  `QUERIES_PER_BLOCK` queries, and at least one, on every device.
  """
  per_device = min(1024, max(1, QUERIES_PER_BLOCK // config.relations**recipe.hops))
  size = min(per_device * (mesh.size if mesh else 1), config.subjects)
  chained = recipe.chain_of_thought and recipe.loss != 'answer'
  asked = dataclasses.replace(recipe, loss='chain' if chained else 'answer')
  steps = recipe.hops if chained else 1
  unembedding_AxD = model.apply(config, params, method='unembedding')

  def block(right, first):
    subject_B = first + jnp.arange(size)
    inside_B = subject_B < job.subjects
    subjects_B = jnp.minimum(subject_B, config.subjects - 1)
    x_BxD, targets_B, weights_B = _rows(config, asked, params, job, subjects_B, inside_B, mesh)
    right_B = head.right(
      x_BxD, unembedding_AxD, targets_B, _in_use(config, recipe, job), recipe.block,
      config.precision, mesh,
    )  # fmt: skip
    all_Q = jnp.all(right_B.reshape(-1, steps), axis=1)
    finite = jnp.all(jnp.isfinite(x_BxD))
    count = jnp.sum(all_Q & weights_B.reshape(-1, steps)[:, 0], dtype=jnp.float32)
    return right + jnp.where(finite, count, jnp.nan), None

  right, _ = jax.lax.scan(block, jnp.float32(0), jnp.arange(0, config.subjects, size))
  subjects, relations = (a.astype(jnp.float32) for a in (job.subjects, job.relations))
  return right / (subjects * relations**recipe.hops)  # integers would overflow


def train_chunk(
  config: Config, recipe: Recipe, steps: Array, job: Job, state: State, mesh: Mesh | None = None
) -> State:
  """Up to `steps` more, with an evaluation over all queries whenever one is due; a model that is done stays as it is.

  When one is due does not depend on how training is cut into chunks.
  """
  until = jnp.minimum(state.step + steps, recipe.steps)
  every = recipe.check if recipe.target else recipe.steps

  def running(state):
    return (state.step < until) & (state.status == RUNNING)

  def evaluate(state):
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
