"""Time geomem against the baseline that it must keep up with, in one run on one machine.

  python -m experiments.benchmark
  python -m experiments.benchmark --list
  python -m experiments.benchmark --only=exhaustive --only=step --scale=full
  python -m experiments.benchmark --redraw

Both sides of a measurement take turns, so that a busy machine slows both; the ratio is the median over rounds
of theirs / ours, above 1 where ours is faster. Where it takes minutes, ours is timed before and after
theirs. Both train the same model from the same parameters, on the same facts, with the same schedule and steps
(`peers`). PyTorch is optional: pip install torch==2.13.0. Most of the time goes into the loops.
"""

import dataclasses
import json
import math
import operator
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.stats

from constructions import registry
from experiments.harness import cli, peers, plotting, records, render, statistics, timing
from experiments.harness.study import Study
from geomem import model
from geomem.checks import verify
from geomem.config import Config
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.training import optimization, step_time, sweeps
from geomem.training.recipe import Recipe

ENDLESS = Recipe(steps=10**6, target=None)
AXES = {
  'models': (2, 4, 8, 16, 32, 64, 128), 'subjects': (16, 32, 64, 128, 256, 512),
  'relations': (1, 2, 4, 8, 16), 'dim': (4, 8, 16, 32, 64),
}  # fmt: skip


def about(peer: str | None = None, **sizes) -> dict:
  """The description of a record: the peer that ours is timed against, if any, and the sizes, as in N=1,024, R=4."""
  text = ', '.join(f'{name}={size:,}' for name, size in sizes.items())
  return {'sizes': text} if peer is None else {'peer': peer, 'sizes': text}


def task(subjects: int, relations: int, dim: int, seed: int = 0) -> sweeps.Task:
  """The default model with F = 4d."""
  config = Config.trained(subjects, relations, dim)
  return sweeps.Task(config, Facts.bijections(subjects, relations, seed), seed=seed)


def one_model(recipe: Recipe, one: sweeps.Task) -> peers.Loop:
  """Ours, one jitted step per call."""

  def step(state, job):
    state = optimization.step(one.config, recipe, job, state)
    return state, state.loss

  accuracy = lambda state, job: optimization.accuracy(one.config, recipe, job, state.params)
  state = optimization.copy(optimization.initial_state(recipe, model.draw(one.config, one.seed)))
  data = (sweeps.job(one, one.config),)
  return peers.Loop(jax.jit(step, donate_argnums=0), jax.jit(accuracy), state, data)


def sweep_of(recipe: Recipe, tasks: list[sweeps.Task]) -> Callable[[int], None]:
  """Ours, many models trained together, `steps` steps per call."""
  sweep, states = sweeps.set_up(recipe, tasks)

  def run(steps: int):
    nonlocal states
    states = jax.block_until_ready(sweeps.advance(sweep, states, steps))

  return run


def exhaustive(subjects=20_000, relations=4, rounds=5, seed=0):
  """N·R queries against N answers, compared with the product of their residuals with the unembedding."""
  built = registry.build('selector', Facts.bijections(subjects, relations, seed))
  params = jax.device_put(built.params)
  pairs = jnp.arange(subjects), jnp.arange(relations)[:, None]
  x_RxNxD = model.apply(built.config, params, *pairs, method='all_pairs')
  x_QxD, product = x_RxNxD.reshape(built.queries, -1), jax.jit(partial(jnp.einsum, 'qd,ad->qa'))

  def bare(rows: int):
    for start in range(0, len(x_QxD), rows):
      product(x_QxD[start : start + rows], params['unembed']['answers']).block_until_ready()

  # The product writes every logit to memory, so it gets the number of rows at a time that suits it best.
  rows = min((256, 512, 1024, 4096), key=lambda rows: timing.least_seconds(partial(bare, rows), 2))
  timed = timing.in_turns(lambda: verify.exhaustive(built), partial(bare, rows), rounds)
  sizes = about('matrix products', N=subjects, R=relations, d=built.config.dim)
  yield timed | sizes | {'logits': built.queries * subjects, 'product_rows': rows}


def certificate(subjects=10**6, relations=8, seed=0):
  """The whole command in its own process: start-up, facts, weights, proof, ledger."""
  with tempfile.TemporaryDirectory() as folder:
    _, taken, gigabytes = timing.own_process(
      '-m', 'experiments.construct', '--construction=selector', '--nosave', '--check=certificate',
      f'--subjects={subjects}', f'--relations={relations}', f'--seed={seed}', f'--workdir={folder}',
    )  # fmt: skip
    record = records.read(Path(folder)).table.iloc[0]
  own = ['queries', 'accuracy', 'min_margin', 'build_seconds', 'check_seconds']
  sizes = about(N=subjects, R=relations, d=record['dim'])
  yield {**sizes, 'ours_seconds': taken, 'peak_gigabytes': gigabytes, **record[own]}


def step(models=1, steps=10, shapes=((1024, 4, 64),), names=peers.NAMES, rounds=5, seed=0):
  """Training steps of one model, one per call, compared with plain JAX and PyTorch."""
  for n, r, d in shapes:
    tasks = [task(n, r, d, seed + i) for i in range(models)]
    for name in names:
      yield about(name, N=n, R=r, d=d, models=models) | compare(name, ENDLESS, tasks, steps, rounds)


def compare(name: str, recipe: Recipe, tasks: list[sweeps.Task], steps: int, rounds: int) -> dict:
  """A step of a model: ours, with all of them trained together, compared with a peer's, one after another."""
  run = sweep_of(recipe, tasks) if len(tasks) > 1 else one_model(recipe, *tasks).run
  loops = [peers.make(name, recipe, one) for one in tasks]
  theirs = lambda: [loop.run(steps) for loop in loops]
  return timing.in_turns(partial(run, steps), theirs, rounds, 2 * [steps * len(tasks)])


def batches(
  steps=10, shapes=((65_536, 3, 16, 512, 2048), (4096, 4, 64, 512, None)), models=(1, 8),
  names=peers.NAMES[1:], rounds=5, seed=0,
):  # fmt: skip
  """Steps in batches of subjects, of one model and of several: with the softmax over some answers, drawn at random, and
  sparse gradients (PyTorch: SparseAdam, not compiled), or over all answers."""  # fmt: skip
  for n, r, d, batch, negatives in shapes:
    recipe = dataclasses.replace(ENDLESS, batch=batch, passes=True, lazy=True, negatives=negatives)
    for count in models if negatives else models[:1]:
      tasks = [task(n, r, d, seed + i) for i in range(count)]
      for name in names[:1] if negatives else names:
        sizes = about(name, N=n, R=r, d=d, batch=batch, models=count, negatives=negatives or 0)
        yield sizes | compare(name, recipe, tasks, steps, rounds)


def sweep(
  models=64, steps=20, shapes=((32, 4, 8), (128, 4, 16)), names=peers.NAMES[:2], rounds=3, seed=0
):
  """Training steps of many models together, compared with loops over them."""
  yield from step(models, steps, shapes, names, rounds, seed)


def products(subjects=4096, relations=4, dim=64, batch=512, steps=16, shapes=None, seed=0):
  """Training steps of a model, in batches of subjects with the softmax over all answers, compared with as many
  multiplications in the matrix product, rows by inner by columns, that this machine does fastest."""
  one, cpu = task(subjects, relations, dim, seed), jax.default_backend() == 'cpu'
  recipe = dataclasses.replace(ENDLESS, batch=batch, passes=True, lazy=True)
  own, needed = one_model(recipe, one), 6 * step_time.multiplications(one.config, recipe)
  product, speeds = jax.jit(jnp.matmul), []
  on_cpu = (1024, 1024, 1024), (2048, 2048, 2048), (4096, 64, 4096), (4096, 4096, 64)
  for m, k, n in shapes or (on_cpu if cpu else ((8192, 8192, 8192), (16384, 16384, 16384))):
    a, b = jnp.ones((m, k)), jnp.ones((k, n))
    runs: list[Callable] = [lambda a=a, b=b: product(a, b).block_until_ready()]
    if cpu:  # where NumPy's BLAS may be faster
      runs.append(partial(np.matmul, np.asarray(a), np.asarray(b)))
    done = 2 * m * k * n
    speeds += [(done / timing.least_seconds(run, 8), done, run) for run in runs]
  _, done, fastest = max(speeds, key=operator.itemgetter(0))
  times = max(1, round(steps * needed / done))
  theirs, pieces = lambda: [fastest() for _ in range(times)], (steps, times * done / needed)
  timed = timing.in_turns(partial(own.run, steps), theirs, pieces=pieces)
  sizes = about('matrix products', N=subjects, R=relations, d=dim, batch=batch)
  yield timed | sizes | {'flops_per_second': needed / timed['theirs_seconds']}


def one_step(*sizes: int):
  """For a separate process: a step's seconds, the device's peak memory if it reports one, the loss."""
  own = one_model(ENDLESS, task(*sizes))
  taken = timing.seconds(partial(own.run, 1))
  peak = (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use', 0)
  print(json.dumps([taken, peak / 1e9, float(own.state.loss)]))


def memory(subjects=65_536, relations=4, dim=64, seed=0):
  """Peak memory (the device's, if it reports one) of a process that takes one full-batch step, including compilation."""
  sizes = f'{subjects}, {relations}, {dim}, {seed}'
  step = f'from experiments import benchmark; benchmark.one_step({sizes})'
  printed, _, gigabytes = timing.own_process('-c', step)
  taken, on_device, loss = json.loads(printed)
  yield {
    **about(N=subjects, R=relations, d=dim), 'ours_seconds': taken, 'loss': loss,
    'peak_gigabytes': on_device or gigabytes, 'logits_gigabytes': 4e-9 * subjects**2 * relations,
  }  # fmt: skip


def scaling(subjects=64, relations=4, dim=16, models=16, steps=50, axes=AXES, seed=0):
  """Seconds per step of one model as one size grows, and the exponent of a power law fitted to them."""
  base = {'subjects': subjects, 'relations': relations, 'dim': dim, 'models': models}
  for axis, values in axes.items():

    def timed(value, axis=axis):
      n, r, d, models = (base | {axis: value}).values()
      run = sweep_of(ENDLESS, [task(n, r, d, seed + i) for i in range(models)])
      seconds = timing.least_seconds(partial(run, steps), 3) / steps / models
      return seconds, about(N=n, R=r, d=d, models=models)

    yield from growth(axis, values, timed)


def growth(axis: str, values: Sequence[int], timed: Callable[[int], tuple[float, dict]]):
  """The seconds and sizes at each value, and the exponent of a power law fitted to the seconds."""
  taken = []
  for value in values:
    seconds, sizes = timed(value)
    taken.append(seconds)
    yield {'axis': axis, 'value': value, 'ours_seconds': seconds, **sizes}
  exponent = float(scipy.stats.linregress(np.log(values), np.log(taken)).slope)
  yield {'measurement': 'scaling_exponent', 'axis': axis, 'exponent': exponent}


def vocabulary(
  subjects=(4096, 16_384, 65_536, 262_144), relations=3, dim=16, batch=512, negatives=2048, steps=20, seed=0
):  # fmt: skip
  """Seconds per step in batches of one size, with the softmax over some answers, as N grows; the exponent of a power law
  fitted to them is 0 if a step takes as long at every N."""
  recipe = dataclasses.replace(ENDLESS, batch=batch, passes=True, lazy=True, negatives=negatives)

  def timed(n):
    run = one_model(recipe, task(n, relations, dim, seed)).run
    seconds = timing.least_seconds(partial(run, steps), 3) / steps
    return seconds, about(N=n, R=relations, d=dim, batch=batch, negatives=negatives)

  yield from growth(f'subjects, batch {batch}', subjects, timed)


def rows(batch=24, steps=8, rounds=5, seed=0):
  """Steps of `fact_encoder`, which learn rows of new subjects through the frozen language model, compared with the
  matrix products that they need: of every token with every matrix, and of the gradients with its transpose."""
  from experiments.language.case import DATA
  from geomem.pretrained import fact_encoder, load, prompts, wordings

  if reason := load.missing():
    cli.warn(f'rows: {reason}')
    return
  language_model = load.load()
  asked = prompts.tokenize(
    language_model, wordings.read(DATA / 'colours.csv').relations(wordings=2)
  )
  training = fact_encoder.Training(steps=steps, batch=batch, seed=seed)
  tokens = batch * max(map(len, asked.tokens_P))
  leaves = jax.tree_util.tree_leaves_with_path(language_model.params['blocks'])
  kernels = {str(path): leaf for path, leaf in leaves if path[-1].key == 'kernel'}
  # Of a kernel's axes, the number that are multiplied.
  into = lambda name, a: len(a.shape) - 2 if 'output' in name else 1
  matrices = [
    a.reshape(len(a), math.prod(a.shape[1 : 1 + into(name, a)]), -1) for name, a in kernels.items()
  ]
  embedding_VxD = language_model.params['embed']['tokens']

  @jax.jit
  @jax.default_matmul_precision('highest')
  def products(matrices, embedding_VxD):
    there_and_back = lambda x, w: (x @ w) @ w.T
    through = lambda w_TxPxQ: jax.lax.scan(
      lambda x, w: (there_and_back(x, w), None), jnp.ones((tokens, w_TxPxQ.shape[1])), w_TxPxQ
    )[0]
    head = there_and_back(jnp.ones((batch, embedding_VxD.shape[1])), embedding_VxD.T)
    return [through(w) for w in matrices], head

  own = lambda: fact_encoder.FactEncoder.fit(language_model, asked, training)
  theirs = lambda: [jax.block_until_ready(products(matrices, embedding_VxD)) for _ in range(steps)]
  timed = timing.in_turns(own, theirs, rounds, 2 * [steps])
  yield timed | about('matrix products', prompts=batch, tokens=tokens, blocks=len(matrices[0]))


MEASUREMENTS: dict[str, Callable] = {
  'exhaustive': exhaustive, 'certificate': certificate, 'step': step, 'sweep': sweep, 'batches': batches,
  'products': products, 'memory': memory, 'scaling': scaling, 'vocabulary': vocabulary, 'rows': rows,
}  # fmt: skip
ALL = ', '.join(MEASUREMENTS)
SIZES: dict[str, dict[str, dict]] = {  # for each scale, where they differ from the laptop's
  'smoke': {
    'exhaustive': {'subjects': 200, 'relations': 2, 'rounds': 1},
    'certificate': {'subjects': 1000, 'relations': 2},
    'step': {'steps': 2, 'shapes': [(16, 2, 4)], 'names': ['jax'], 'rounds': 1},
    'sweep': {'models': 2, 'steps': 2, 'shapes': [(8, 2, 4)], 'names': ['jax'], 'rounds': 1},
    'batches': {
      'steps': 2,
      'shapes': [(32, 2, 4, 8, 4), (16, 2, 4, 8, None)],
      'models': [1, 2],
      'rounds': 1,
    },
    'products': {'subjects': 16, 'relations': 2, 'dim': 4, 'batch': 8},
    'memory': {'subjects': 64, 'relations': 2, 'dim': 8},
    'scaling': {'models': 2, 'steps': 2, 'axes': {'dim': (2, 4)}},
    'vocabulary': {'subjects': (16, 32), 'batch': 8, 'negatives': 4, 'steps': 2},
    'rows': {'batch': 2, 'steps': 1, 'rounds': 1},
  },
  'laptop': {},
  'full': {
    'exhaustive': {'subjects': 100_000, 'relations': 8},
    'step': {'steps': 100},
    'sweep': {'models': 1024, 'rounds': 1},
    'scaling': {'axes': AXES | {'models': (16, 64, 256, 1024)}},
  },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  only: Annotated[tuple[str, ...], f'Only these of {ALL} (default: all).'] = ()
  sizes: dict[str, dict]

  def __post_init__(self):
    if unknown := set(self.only) - MEASUREMENTS.keys():
      raise InputError(f'--only={min(unknown)}: known are {ALL}')


def measure(progress, preset, seeds):
  """The records of all measurements, written as they come, because they take long."""
  run = {'command': 'python -m experiments.benchmark', 'setting': dataclasses.asdict(preset)}
  rows: list[dict] = []
  if not peers.TORCH:
    cli.warn('PyTorch is not installed, and not measured')
  for name in preset.only or MEASUREMENTS:
    sizes = preset.sizes.get(name, {})
    print(f'{name}: {sizes or "as on a laptop"}', file=sys.stderr, flush=True)
    for row in MEASUREMENTS[name](**sizes, seed=seeds[0]):
      rows.append({'measurement': name, **row})
      so_far = records.Records(run, pd.DataFrame(rows, dtype=object))
      records.write(progress.folder / records.FILE, so_far)
  return rows


def plot(table):
  """Seconds per step of one model against each size that grew, with the exponent of the fitted power law."""
  axes = table['axis'].dropna().unique() if 'axis' in table else []
  if not len(axes):
    return None
  figure, panels = plotting.new(2.3 * len(axes), 2.4, 1, len(axes), squeeze=False, sharey=True)
  for i, (ax, axis) in enumerate(zip(panels[0], axes, strict=True)):
    (color, marker), own = plotting.cycle(i), statistics.select(table, axis=axis)
    ax.plot(own['value'].tolist(), own['ours_seconds'].tolist(), marker + '-', color=color)
    plotting.logarithmic(ax.xaxis, ax.yaxis)
    ax.set(xlabel=axis, title=f'exponent {own["exponent"].max():.2f}')
  panels[0][0].set_ylabel('seconds per step of a model')
  return figure


def listed():
  """A line for each measurement."""
  does = lambda call: ' '.join((call.__doc__ or '').split())
  return '\n'.join(f'{name}: {does(call)}' for name, call in MEASUREMENTS.items())


STUDY = Study(
  name='benchmark',
  title='geomem beside what it must keep up with',
  presets={scale: Preset(sizes=sizes) for scale, sizes in SIZES.items()},
  measure=measure, expect=lambda table: [], more=render.measurements, plot=plot, listed=listed,
  minutes=30, first_seed=0, compile_quickly=False, resumes=False,
)  # fmt: skip


if __name__ == '__main__':
  STUDY.main()
