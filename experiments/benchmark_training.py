"""Time training beside what people use today: the measurements of `experiments.benchmark` that train.

Every function yields records. Both sides have the same model, parameters, facts, schedule and steps
(`peers`; a test compares their losses); compilation counts only where that is said.
"""

import functools
import importlib.util
import json
import math
import subprocess
import sys
import time
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from experiments import frozen_embeddings, peers
from experiments.harness import searching, statistics
from experiments.harness.timing import seconds, side_by_side
from geomem import model
from geomem.config import Config
from geomem.facts import Facts
from geomem.training import batched, bisection, optimization, scheduling
from geomem.training import mlp_memory as mlp
from geomem.training.optimization import Recipe


def task(subjects: int, relations: int, dim: int, seed: int = 0) -> batched.Task:
  """The default model with F = 4d."""
  config = Config.trained(subjects, relations, dim)
  return batched.Task(config, Facts.bijections(subjects, relations, seed), seed=seed)


def _sizes(subjects: int, relations: int, dim: int, **more) -> str:
  return ', '.join(
    f'{name}={value:,}' for name, value in {'N': subjects, 'R': relations, 'd': dim, **more}.items()
  )


def torch_version() -> dict[str, str]:
  """Of the peer, if it is installed."""
  found = importlib.util.find_spec('torch')
  return {'torch': metadata.version('torch')} if found else {}


def _available(names):
  """The peers that are installed; the others are named once."""
  missing = [] if torch_version() else [name for name in names if name.startswith('torch')]
  if missing:
    print(f'not measured, as torch is not installed: {", ".join(missing)}', file=sys.stderr)
  return [name for name in names if name not in missing]


def step(subjects: int, relations: int, dim: int, steps: int, names=peers.NAMES):
  """Steps of one model, a call each, beside the same number of a peer's."""
  recipe, one = Recipe(steps=10**6, target=None), task(subjects, relations, dim)
  ours = _Ours(recipe, one)
  for name in _available(names):
    theirs = peers.make(name, recipe, one)
    pair = side_by_side(lambda: _steps(ours, steps), lambda t=theirs: _steps(t, steps))
    yield {
      'measurement': 'step',
      'peer': name,
      **_per(pair, steps),
      'sizes': _sizes(subjects, relations, dim),
    }


class _Ours:
  """One model, a jitted step a call."""

  def __init__(self, recipe: Recipe, one: batched.Task):
    run = functools.partial(optimization.step, one.config, recipe)
    self._step, self.job = (
      jax.jit(run, donate_argnums=1),
      jax.device_put(batched.job(one, one.config)),
    )
    self.state = jax.device_put(
      optimization.initial_state(recipe, model.draw(one.config, one.seed))
    )

  def step(self):
    self.state = self._step(self.job, self.state)

  def wait(self):
    jax.block_until_ready(self.state)


def _steps(runner, count: int):
  for _ in range(count):
    runner.step()
  runner.wait()


def _per(pair: dict, count: int) -> dict:
  """Seconds for one of `count` alike."""
  return {k: v / count if k.endswith('seconds') else v for k, v in pair.items()}


def many(models: int, steps: int, sizes, names=('jax', 'torch'), rounds: int = 3):
  """A sweep beside the same models trained one after another; seconds per step of one model."""
  recipe = Recipe(steps=10**6, target=None)
  for subjects, relations, dim in sizes:
    tasks = [task(subjects, relations, dim, seed) for seed in range(models)]
    ours = _Sweep(recipe, tasks)
    for name in _available(names):
      loop = [peers.make(name, recipe, one) for one in tasks]
      theirs = lambda loop=loop: [_steps(peer, steps) for peer in loop]
      pair = side_by_side(lambda: ours.advance(steps), theirs, rounds)  # noqa: B023
      yield {
        'measurement': 'sweep', 'peer': name, **_per(pair, steps * models),
        'sizes': _sizes(subjects, relations, dim, models=models),
      }  # fmt: skip


class _Sweep:
  def __init__(self, recipe: Recipe, tasks):
    self.laid, self.states = batched.set_up(recipe, tasks)

  def advance(self, steps: int):
    self.states = jax.block_until_ready(batched.advance(self.laid, self.states, steps))


def capacity(subjects, relations: int, seeds: int, rates, steps: int = 2000):
  """Smallest d for every N and seed, all compiling included: all searches together, or a loop.

  The loop does as the public code of Nichani et al. (2025): it halves a range, here d from 1 to
  R·log2 N, trains a model after another, learning rate after learning rate until one succeeds, and
  compiles every run as it comes. A second loop does the same, but looks where our search looks: what
  is left of the ratio is the engine's. Ours is timed before and after each loop.
  """
  setting = searching.Setting(
    Recipe(steps, target=0.99), 0, 0, tuple((rate, 0.01) for rate in rates)
  )
  cases = [searching.Case('dim', n, relations, seed) for n in subjects for seed in range(seeds)]
  ours = lambda: searching.measure(
    cases, setting, functools.partial(scheduling.train_tasks, compiled=[])
  )
  records, before = _from_nothing(ours)
  for name, search in (('jax', _halve), ('jax, our search', _as_ours)):
    found, theirs = _from_nothing(lambda: [search(case, setting) for case in cases])  # noqa: B023
    _, after = _from_nothing(ours)
    mean = (before + after) / 2
    yield {
      'measurement': 'capacity', 'peer': name, 'ours_seconds': mean, 'theirs_seconds': theirs,
      'ratio': theirs / mean, 'ratio_range': [theirs / max(before, after), theirs / min(before, after)],
      'sizes': f'N={",".join(map(str, subjects))}, R={relations}, seeds={seeds}, rates={len(rates)}',
      'ours_found': [r['value'] for r in records if r['kind'] == 'threshold'],
      'ours_probes': sum(r['kind'] == 'probe' for r in records),
      'theirs_found': [size for size, _ in found], 'theirs_probes': sum(probes for _, probes in found),
    }  # fmt: skip
    before = after


def _from_nothing(work):
  """What the work gives, and its seconds, nothing compiled before and nothing read from a cache."""
  peers.forget()
  jax.clear_caches()
  cached = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()  # whether there is one is asked once
  start = time.perf_counter()
  try:
    return work(), time.perf_counter() - start
  finally:
    jax.config.update('jax_enable_compilation_cache', cached)
    compilation_cache.reset_cache()


def _halve(case: searching.Case, setting: searching.Setting) -> tuple[int, int]:
  """The smallest d by plain halving, one training after another; and how many were tried."""
  failed, passed, probes = 0, math.ceil(case.relations * math.log2(case.subjects)), 0
  while passed - failed > 1:
    size, probes = (passed + failed) // 2, probes + 1
    failed, passed = (failed, size) if _passes(case, size, setting) else (size, passed)
  return passed, probes


def _as_ours(case: searching.Case, setting: searching.Setting) -> tuple[int, int]:
  """As `_halve`, by the steps of our search."""
  search = bisection.Bisection(searching.looked_for(case, setting))
  while size := search.ask():
    search.tell(size, _passes(case, size, setting))
  return search.found, search.asked


def _passes(case: searching.Case, size: int, setting: searching.Setting) -> bool:
  tasks = searching.attempts([(case, size)], setting)
  return any(_succeeds(one, setting.recipe) for one in tasks)


def _succeeds(one: batched.Task, recipe: Recipe) -> bool:
  peers.forget()
  peer = peers.Jax(recipe, one)
  for _ in range(0, recipe.steps, recipe.check):
    _steps(peer, recipe.check)
    if peer.accuracy() >= recipe.target:
      return True
  return False


def mlp_memory(dims, seeds: int, steps: int = 2**15):
  """The largest N that an MLP memory of d = F holds, a seed: all seeds together, or a loop over one seed's models.

  All compiling and drawing included. Ours is timed before and after the loop of each size.
  """
  for dim in dims:
    recipe = mlp.Recipe(dim, dim, steps)
    ours = lambda: frozen_embeddings.largest(recipe, range(seeds), frozen_embeddings.best)  # noqa: B023
    found, before = _from_nothing(ours)
    theirs, taken = _from_nothing(lambda: frozen_embeddings.largest(recipe, [0], _in_turn))  # noqa: B023
    _, after = _from_nothing(ours)
    each = sorted((before / seeds, after / seeds))
    yield {
      'measurement': 'mlp_memory', 'peer': 'jax', 'ours_seconds': sum(each) / 2, 'theirs_seconds': taken,
      'ratio': 2 * taken / sum(each), 'ratio_range': [taken / each[1], taken / each[0]],
      'sizes': f'd=F={dim}, seeds={seeds}', 'ours_found': [b.found for b in found.values()], 'theirs_found': [b.found for b in theirs.values()],
    }  # fmt: skip


def _in_turn(recipe: mlp.Recipe, asked) -> list[float]:
  """The best accuracy of each (seed, N), one model after another."""
  best = []
  for seed, facts in asked:
    peer, seen = peers.MlpMemory(recipe, facts, seed), [0.0]
    for _ in range(0, recipe.steps, recipe.check):
      _steps(peer, recipe.check)
      seen.append(peer.accuracy())
      if seen[-1] >= recipe.target:
        break
    best.append(max(seen))
  return best


def products(subjects: int, relations: int, dim: int, steps: int = 2, shapes=None):
  """Steps beside as many multiplications in the product of matrices that this machine does fastest."""
  one, recipe = task(subjects, relations, dim), Recipe(steps=10**6, target=None)
  ours, operations = _Ours(recipe, one), 6 * steps * scheduling.multiplications(one.config, recipe)
  run, own = _fastest(shapes or SHAPES[jax.default_backend() == 'cpu'])
  times = max(1, round(operations / own))
  pair = side_by_side(lambda: _steps(ours, steps), lambda: [run() for _ in range(times)])
  share = operations / (own * times)  # of what they did that we had to
  pair |= {name: share * pair[name] for name in ('theirs_seconds', 'ratio')}
  pair['ratio_range'] = [share * ratio for ratio in pair['ratio_range']]
  speed = operations / pair['theirs_seconds']
  yield {
    'measurement': 'products', **_per(pair, steps),
    'sizes': _sizes(subjects, relations, dim), 'flops_per_second': speed,
  }  # fmt: skip


SHAPES = {  # of products, rows by inner by columns
  True: ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 64, 4096), (4096, 4096, 64)),
  False: ((8192, 8192, 8192), (16384, 16384, 16384)),
}


def _fastest(shapes):
  """Of a few plain products the one of most floating-point operations a second, and their number."""
  best = 0.0, None
  for m, k, n in shapes:
    a, b = jnp.ones((m, k)), jnp.ones((k, n))
    product = jax.jit(jnp.matmul)
    runs = [functools.partial(lambda f, *given: jax.block_until_ready(f(*given)), product, a, b)]
    if jax.default_backend() == 'cpu':  # NumPy's BLAS may be faster
      runs.append(functools.partial(np.matmul, np.asarray(a), np.asarray(b)))
    for run in runs:
      run()
      speed = 2 * m * k * n / min(seconds(run) for _ in range(8))
      best = max(best, (speed, (run, 2 * m * k * n)), key=lambda found: found[0])
  return best[1]


_ONE_STEP = """
import json, resource, sys, time
from experiments import benchmark_training as b
one, recipe = b.task(*map(int, sys.argv[1:4])), b.Recipe(steps=2, target=None)
ours = b._Ours(recipe, one)
start = time.perf_counter()
b._steps(ours, 1)
peak = (b.jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
print(json.dumps([time.perf_counter() - start, peak / 1e9, float(ours.state.loss)]))
"""


def memory(subjects: int, relations: int, dim: int):
  """Peak memory of a process that takes one full-batch step, compiling included."""
  command = [sys.executable, '-c', _ONE_STEP, *map(str, (subjects, relations, dim))]
  done = subprocess.run(command, check=False, capture_output=True, text=True)
  if done.returncode:
    raise SystemExit(f'the memory measurement failed: {done.stderr[-500:]}')
  taken, peak, loss = json.loads(done.stdout)
  yield {
    'measurement': 'memory', 'ours_seconds': taken, 'theirs_seconds': None, 'ratio': None,
    'peak_gigabytes': peak, 'loss': loss, 'sizes': _sizes(subjects, relations, dim),
    'logits_gigabytes': 4e-9 * subjects**2 * relations,
  }  # fmt: skip


def scaling(base: dict, axes: dict, steps: int):
  """Seconds a step of one model as one size grows, and the exponent of a power law through them."""
  recipe = Recipe(steps=10**6, target=None)
  for axis, values in axes.items():
    points = []
    for value in values:
      sizes = {**base, axis: value}
      models = sizes.pop('models')
      ours = _Sweep(recipe, [task(**sizes, seed=seed) for seed in range(models)])
      ours.advance(steps)
      taken = min(seconds(lambda o=ours: o.advance(steps)) for _ in range(3)) / steps / models
      points.append((math.log(value), math.log(taken)))
      yield {
        'measurement': 'scaling', 'axis': axis, 'value': value, 'ours_seconds': taken,
        'sizes': _sizes(*sizes.values(), models=models),
      }  # fmt: skip
    exponent = float(statistics.line(points)[1])
    yield {'measurement': 'scaling_exponent', 'axis': axis, 'exponent': exponent}
