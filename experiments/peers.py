"""The same training as people write it today, to be measured against: plain JAX, and PyTorch.

One model after another, a step a call: the model reads every prompt (s, r), optax's or PyTorch's own
cross-entropy is taken of all logits, derivatives are the library's, AdamW is the library's. Same
parameters, facts, schedule and steps as `geomem.training.optimization`; a test holds the losses against each other.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from geomem import model
from geomem.config import Config
from geomem.training import batched, mlp_memory, optimization
from geomem.training.optimization import Recipe

NAMES = ('jax', 'torch', 'torch_compile')


def prompts(task: batched.Task) -> tuple[np.ndarray, np.ndarray]:
  """All prompts (s, r) as tokens, and their answers."""
  f = task.facts
  s, r = np.meshgrid(np.arange(f.subjects), np.arange(f.relations), indexing='ij')
  tokens = np.stack([s.ravel(), f.subjects + r.ravel()], axis=1)
  return tokens.astype(np.int32), np.asarray(f.answers_RxN)[r.ravel(), s.ravel()].astype(np.int32)


@functools.lru_cache
def _compiled(config: Config, recipe: Recipe):
  """The optimizer's start, a step and the accuracy, jitted; the rates are data."""
  adam = optax.scale_by_adam(recipe.b1, recipe.b2, recipe.eps)

  def logits(params, tokens):
    return model.apply(config, params, tokens, last=1)[:, 0]

  def objective(params, tokens, targets):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, tokens), targets)
    return jnp.mean(losses)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, tokens, targets, learning_rate, weight_decay):
    params, moments, count = state
    loss, slopes = jax.value_and_grad(objective)(params, tokens, targets)
    with jax.numpy_dtype_promotion('standard'):
      updates, moments = adam.update(slopes, moments, params)
    rate = learning_rate * optimization.schedule(recipe, count)
    decayed = lambda u, w: -rate * (u + weight_decay * w if w.ndim > 1 else u)
    updates = jax.tree.map(decayed, updates, params)
    return (optax.apply_updates(params, updates), moments, count + 1), loss

  @jax.jit
  def right(params, tokens, targets):
    return jnp.mean(jnp.argmax(logits(params, tokens), -1) == targets, dtype=jnp.float32)

  return adam.init, step, right


class Jax:
  """Plain JAX: one jitted step, optax's loss and AdamW; compiled once a size."""

  def __init__(self, recipe: Recipe, task: batched.Task, params=None):
    begin, self._step, self._right = _compiled(task.config, recipe)
    rates = np.float32(task.learning_rate), np.float32(task.weight_decay)
    self.data, self.rates = jax.device_put(prompts(task)), jax.device_put(rates)
    params = jax.device_put(model.draw(task.config, task.seed) if params is None else params)
    self.state = params, begin(params), jnp.int32(0)

  def step(self):
    self.state, loss = self._step(self.state, *self.data, *self.rates)
    return loss

  def accuracy(self) -> float:
    return float(self._right(self.state[0], *self.data))

  def wait(self):
    jax.block_until_ready(self.state)


class MlpMemory:
  """The MLP memory of `geomem.training.mlp_memory` as its authors train it: a jitted step a call, compiled for every run."""

  def __init__(self, recipe: mlp_memory.Recipe, facts: int, seed: int):
    one = mlp_memory.draw(recipe, facts, seed, facts)
    keys_NxD, values_NxD, answers_N = one.keys_NxD, one.values_NxD, np.arange(facts)
    adam = optax.adam(recipe.rate)

    def logits(params):
      hidden_NxF = jax.nn.relu(keys_NxD @ params['in'] + params['in_bias'][None])
      return hidden_NxF @ params['out'] @ values_NxD.T

    def objective(params):
      return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits(params), answers_N))

    @jax.jit
    def step(params, moments):
      loss, slopes = jax.value_and_grad(objective)(params)
      with jax.numpy_dtype_promotion('standard'):
        updates, moments = adam.update(slopes, moments, params)
      return (optax.apply_updates(params, updates), moments), loss

    right = lambda params: jnp.mean(jnp.argmax(logits(params), -1) == answers_N, dtype=jnp.float32)
    self._step, self._right, self.state = step, jax.jit(right), (one.params, adam.init(one.params))

  def step(self):
    self.state, loss = self._step(*self.state)
    return loss

  def accuracy(self) -> float:
    return float(self._right(self.state[0]))

  def wait(self):
    jax.block_until_ready(self.state)


def forget():
  """Let the next one compile anew."""
  _compiled.cache_clear()


class Torch:
  """PyTorch, eager or compiled: a module of tensors, torch's cross-entropy and AdamW."""

  def __init__(self, recipe: Recipe, task: batched.Task, params=None, compiled: bool = False):
    import torch

    self.torch, config = torch, task.config
    _check(config)
    self.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    tensor = lambda a: torch.tensor(np.array(a), device=self.device)
    tokens, targets = map(tensor, prompts(task))
    self.tokens, self.targets = tokens.long(), targets.long()
    params = model.draw(config, task.seed) if params is None else params
    leaves, tree = jax.tree.flatten(params)
    weights = [torch.nn.Parameter(tensor(a)) for a in leaves]
    self.params = jax.tree.unflatten(tree, weights)
    groups = [
      {'params': [w for w in weights if w.ndim > 1], 'weight_decay': task.weight_decay},
      {'params': [w for w in weights if w.ndim <= 1], 'weight_decay': 0.0},
    ]
    betas = recipe.b1, recipe.b2
    self.optimizer = torch.optim.AdamW(groups, task.learning_rate, betas, recipe.eps)
    rate = lambda step: float(_rates(recipe)[step])
    self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)
    self.logits = functools.partial(_logits, torch, config)

    def objective(params, tokens, targets):
      return torch.nn.functional.cross_entropy(self.logits(params, tokens), targets)

    self.objective = torch.compile(objective) if compiled else objective
    if self.device == 'cuda':
      torch.set_float32_matmul_precision('high')  # as JAX's default there

  def step(self):
    self.optimizer.zero_grad()
    loss = self.objective(self.params, self.tokens, self.targets)
    loss.backward()
    self.optimizer.step()
    self.schedule.step()
    return loss

  def accuracy(self) -> float:
    with self.torch.no_grad():
      right = self.logits(self.params, self.tokens).argmax(-1) == self.targets
      return float(right.float().mean())

  def wait(self):
    if self.device == 'cuda':
      self.torch.cuda.synchronize()


def _check(config: Config):
  plain = config.norm == 'rms' and not config.tied and config.dtype == 'float32'
  if not (plain and all(b.heads == 1 and len(b.hidden) == 1 for b in config.blocks)):
    raise NotImplementedError('the PyTorch peer knows the default model alone')


@functools.lru_cache
def _rates(recipe: Recipe) -> np.ndarray:
  """The schedule as a table: asked for in JAX step by step, it would cost PyTorch time."""
  return np.asarray(optimization.schedule(recipe, np.arange(recipe.steps + 1)))


def _logits(torch, config: Config, params, tokens):
  """The logits at the last position: pre-norm blocks of one head and one hidden layer."""
  norm = lambda x, p: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + config.norm_eps) * p['scale']
  embed = params['embed']
  table = torch.cat([embed['subjects'], embed['relations']])
  x = table[tokens] + embed['positions'][: tokens.shape[1]]
  for i, _ in enumerate(config.blocks):
    p = params[f'blocks_{i}']
    y, a = norm(x, p['norm_attention']), p['attention']
    seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
    if i + 1 == len(config.blocks):  # the last position alone is asked for
      x, seen, z = x[:, -1:], seen[-1:], y[:, -1:]
    else:
      z = y
    q, k, v = z @ a['query'][0], y @ a['key'][0], y @ a['value'][0]
    scores = (q @ k.transpose(1, 2)).masked_fill(~seen, -math.inf)
    x = x + scores.softmax(-1) @ v @ a['output'][0]
    y, m = norm(x, p['norm_mlp']), p['mlp']
    x = x + (y @ m['in'] + m['in_bias']).relu() @ m['out'] + m['out_bias']
  return norm(x[:, -1], params['norm_final']) @ params['unembed']['answers'].T


def make(name: str, recipe: Recipe, task: batched.Task, params=None):
  """A peer by name."""
  if name == 'jax':
    return Jax(recipe, task, params)
  return Torch(recipe, task, params, compiled=name == 'torch_compile')
