"""The same training as it is usually written, as a baseline: in plain JAX, and in PyTorch.

Models are trained one after another, one step per call: the model reads every prompt (s, r), the cross-entropy over all
logits is optax's or PyTorch's own, and gradients and AdamW are the library's. Parameters, facts, schedule and steps are
the same as in `geomem.training.optimization`; a test compares the losses.
"""

import functools
import importlib.util
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from geomem import model
from geomem.config import Config
from geomem.training import optimization, sweeps
from geomem.training.recipe import Recipe

TORCH = bool(importlib.util.find_spec('torch'))
NAMES = ('jax', 'torch', 'torch_compile') if TORCH else ('jax',)


class Loop:
  """Trains one model: `step(state, *data)` returns the next state and the loss; `accuracy` takes the same arguments."""

  def __init__(self, step, accuracy, state=(), data=(), wait=jax.block_until_ready):
    self._step, self._accuracy, self._wait = step, accuracy, wait
    self.state, self.data = jax.device_put((state, data))

  def step(self):
    self.state, loss = self._step(self.state, *self.data)
    return loss

  def run(self, steps: int):
    for _ in range(steps):
      self.step()
    self._wait(self.state)

  def accuracy(self) -> float:
    return float(self._accuracy(self.state, *self.data))


def prompts(task: sweeps.Task) -> tuple[np.ndarray, np.ndarray]:
  """All prompts (s, r) as tokens, with their answers."""
  f = task.facts
  s, r = np.indices((f.subjects, f.relations), np.int32).reshape(2, -1)
  return np.stack([s, f.subjects + r], axis=1), np.asarray(f.answers_RxN)[r, s].astype(np.int32)


def _compile(
  logits: Callable, optimizer: optax.GradientTransformation
) -> tuple[Callable, Callable]:
  """A jitted step and a jitted accuracy."""

  def objective(params, inputs, targets):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, inputs), targets)
    return jnp.mean(losses)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, inputs, targets):
    params, opt_state = state
    loss, grads = jax.value_and_grad(objective)(params, inputs, targets)
    with jax.numpy_dtype_promotion('standard'):
      updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss

  @jax.jit
  def accuracy(state, inputs, targets):
    return jnp.mean(jnp.argmax(logits(state[0], inputs), -1) == targets, dtype=jnp.float32)

  return step, accuracy


@functools.lru_cache
def compiled(config: Config, recipe: Recipe, learning_rate: float, weight_decay: float):
  """AdamW, and what `_compile` makes with it for these sizes; `compiled.cache_clear()` forces recompilation."""
  adamw = optax.adamw(
    lambda step: learning_rate * optimization.schedule(recipe, step),
    recipe.b1, recipe.b2, recipe.eps, weight_decay=weight_decay,
    mask=lambda params: jax.tree.map(lambda w: w.ndim > 1, params),
  )  # fmt: skip
  return adamw, *_compile(lambda params, x: model.apply(config, params, x, last=1)[:, 0], adamw)


def plain_jax(recipe: Recipe, task: sweeps.Task) -> Loop:
  """One jitted step, optax's loss and AdamW."""
  rates = task.learning_rate, task.weight_decay
  adamw, step, accuracy = compiled(task.config, recipe, *rates)
  params = model.draw(task.config, task.seed)
  return Loop(step, accuracy, (params, adamw.init(params)), prompts(task))


@functools.lru_cache
def _rates(recipe: Recipe) -> np.ndarray:
  """The schedule of all steps as numbers: PyTorch's schedulers need one in every step."""
  return np.asarray(optimization.schedule(recipe, jnp.arange(recipe.steps + 1)))


def _residual(params, config: Config, x):
  """In PyTorch: the residual that the unembedding reads, at the last of these positions, which attends to all of them."""

  def norm(x, p):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + config.norm_eps) * p['scale']

  import torch

  p = params['blocks_0']
  a, m = p['attention'], p['mlp']
  x = x + params['embed']['positions'][: x.shape[1]]
  y = norm(x, p['norm_attention'])
  q, k, v = y[:, -1:] @ a['query'][0], y @ a['key'][0], y @ a['value'][0]
  x = x[:, -1:] + (q @ k.transpose(1, 2)).softmax(-1) @ v @ a['output'][0]
  y = norm(x, p['norm_mlp'])
  x = x + (y @ m['in'] + m['in_bias']).relu() @ m['out'] + m['out_bias']
  return norm(x[:, -1], params['norm_final'])


def _in_torch(task: sweeps.Task):
  """The parameter tree of a model in PyTorch, its weights, and a function that makes a tensor on the same device."""
  import torch

  config = task.config
  if config != Config.trained(config.subjects, config.relations, config.dim):
    raise NotImplementedError('the PyTorch peer knows the default model alone')
  cuda = torch.cuda.is_available()
  if cuda:
    torch.set_float32_matmul_precision('high')  # JAX's default there
  tensor = lambda a: torch.tensor(np.array(a), device='cuda' if cuda else 'cpu')
  leaves, tree = jax.tree.flatten(model.draw(config, task.seed))
  weights = [torch.nn.Parameter(tensor(a)) for a in leaves]
  return jax.tree.unflatten(tree, weights), weights, tensor


def _optimizers(recipe: Recipe, task: sweeps.Task, params, weights):
  """AdamW, with decay on matrices only; if the recipe draws negatives, SparseAdam for both tables; and their schedulers."""
  import torch

  sparse = recipe.negatives is not None
  tables = [params['embed']['subjects'], params['unembed']['answers']] if sparse else []
  dense = [w for w in weights if not any(w is table for table in tables)]
  groups = [
    {'params': [w for w in dense if (w.ndim > 1) == decays], 'weight_decay': decays * task.weight_decay}
    for decays in (True, False)
  ]  # fmt: skip
  options = task.learning_rate, (recipe.b1, recipe.b2), recipe.eps
  optimizers = [torch.optim.AdamW(groups, *options)]
  if sparse:
    optimizers.append(torch.optim.SparseAdam(tables, *options))
  rate_S = _rates(recipe)
  rate = lambda step: rate_S[min(step, recipe.steps)].item()
  return optimizers, [torch.optim.lr_scheduler.LambdaLR(own, rate) for own in optimizers]


def _softmax_over(recipe: Recipe, targets, answers: int):
  """The answers that a batch's softmax is over, and the places of the targets among them: None and the targets for all
  answers; if the recipe draws negatives, those due and as many others as ours has, drawn uniformly.
  """
  import torch

  if recipe.negatives is None:
    return None, targets
  drawn = recipe.negatives + len(targets)  # as many as ours has confusers
  others = torch.randint(answers, (drawn,), device=targets.device)
  rows, places = torch.unique(torch.cat([targets, others]), return_inverse=True)
  return rows, places[: len(targets)]


def _wait(_):
  import torch

  return torch.cuda.synchronize() if torch.cuda.is_available() else None


def pytorch(recipe: Recipe, task: sweeps.Task, compiled: bool) -> Loop:
  """PyTorch, eager or compiled, in batches of subjects with all their relations; gradients of both tables are sparse if
  the recipe draws negatives.
  """
  import torch
  from torch.nn.functional import cross_entropy, embedding

  params, weights, tensor = _in_torch(task)
  optimizers, schedulers = _optimizers(recipe, task, params, weights)
  answers_NxR = tensor(np.transpose(task.facts.answers_RxN)).long()
  n, r = answers_NxR.shape
  batch, sparse = recipe.batch or n, recipe.negatives is not None
  device, relations = answers_NxR.device, torch.arange(r)
  prompts_BRx2 = torch.cartesian_prod(r + torch.arange(batch), relations).to(device)

  def residual(params, subjects):
    e = embedding(subjects, params['embed']['subjects'], sparse=sparse)
    x = torch.cat([params['embed']['relations'], e])[prompts_BRx2[: len(e) * r]]
    return _residual(params, task.config, x)

  def objective(params, subjects, rows, targets):
    answers = params['unembed']['answers']
    answers = embedding(rows, answers, sparse=True) if sparse else answers
    return cross_entropy(residual(params, subjects) @ answers.T, targets)

  objective = torch.compile(objective) if compiled else objective

  def batches():
    while True:
      order = torch.randperm(n, device=device)
      for subjects in order[: n // batch * batch].split(batch):
        yield subjects, *_softmax_over(recipe, answers_NxR[subjects].reshape(-1), n)

  drawn = batches()
  if batch == n and not sparse:  # all steps read the same
    drawn = itertools.repeat(next(drawn))

  def step(state):
    subjects, rows, targets = next(drawn)
    for own in optimizers:
      own.zero_grad()
    loss = objective(params, subjects, rows, targets)
    loss.backward()
    for own in (*optimizers, *schedulers):
      own.step()
    return state, loss.detach()

  @torch.no_grad()
  def accuracy(_):
    right = 0
    for subjects in torch.arange(n, device=device).split(batch):
      logits = residual(params, subjects) @ params['unembed']['answers'].T
      right += int((logits.argmax(-1) == answers_NxR[subjects].reshape(-1)).sum())
    return right / (n * r)

  return Loop(step, accuracy, wait=_wait)


def make(name: str, recipe: Recipe, task: sweeps.Task) -> Loop:
  """A peer by name."""
  if name == 'jax':
    return plain_jax(recipe, task)
  return pytorch(recipe, task, name == 'torch_compile')
