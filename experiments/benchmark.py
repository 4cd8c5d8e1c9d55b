"""Time geomem beside the thing that it must keep up with, in one run on one machine.

  python -m experiments.benchmark
  python -m experiments.benchmark --only=exhaustive,step --scale=full
  python -m experiments.benchmark --redraw

Both sides of a measurement take turns, so that a busy machine slows both; the ratio is the median over the rounds
of theirs / ours, above 1 where ours is faster. Of the searches, which take minutes, ours is timed before and after
theirs. Both train the same model from the same parameters, on the same facts, with the same schedule and steps
(`peers`). PyTorch is optional: pip install torch==2.13.0. The laptop scale takes about half an hour, most of it in
the loops. What is measured:
"""

import dataclasses
import importlib.util
import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from constructions import registry
from experiments import frozen_embeddings, peers
from experiments.harness import cli, machine, plotting, records, render, searching, statistics
from experiments.harness.records import Records
from experiments.harness.timing import Comparison, own_process, seconds
from geomem import model
from geomem.checks import verify
from geomem.config import Config
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.training import batched, bisection, mlp_memory, optimization, scheduling
from geomem.training.optimization import Recipe

ENDLESS = Recipe(steps=10**6, target=None)


def named(**sizes) -> str:
  """N=1,024, R=4."""
  return ', '.join(f'{name}={value:,}' for name, value in sizes.items())


def task(subjects: int, relations: int, dim: int, seed: int = 0) -> batched.Task:
  """The default model with F = 4d."""
  config = Config.trained(subjects, relations, dim)
  return batched.Task(config, Facts.bijections(subjects, relations, seed), seed=seed)


def one_model(recipe: Recipe, one: batched.Task) -> peers.Loop:
  """Ours, a jitted step a call."""

  def step(state, job):
    state = optimization.step(one.config, recipe, job, state)
    return state, state.loss

  state = optimization.initial_state(recipe, model.draw(one.config, one.seed))
  data = (batched.job(one, one.config),)
  return peers.Loop(jax.jit(step, donate_argnums=0), None, state, data)


def sweep_of(tasks: list[batched.Task]) -> Callable[[int], None]:
  """Ours, many models trained together, so many steps a call."""
  sweep, states = batched.set_up(ENDLESS, tasks)

  def run(steps: int):
    nonlocal states
    states = jax.block_until_ready(batched.advance(sweep, states, steps))

  return run


def exhaustive(subjects: int, relations: int, rounds: int = 5):
  """N·R queries against N answers, beside the product of their residuals with the unembedding."""
  built = registry.build('selector', Facts.bijections(subjects, relations))
  params = jax.device_put(built.params)
  pairs = jnp.arange(subjects), jnp.arange(relations)[:, None]
  x_RxNxD = model.apply(built.config, params, *pairs, method='all_pairs')
  x_QxD, product = x_RxNxD.reshape(built.queries, -1), jax.jit(partial(jnp.einsum, 'qd,ad->qa'))

  def bare(rows: int):
    for start in range(0, len(x_QxD), rows):
      product(x_QxD[start : start + rows], params['unembed']['answers']).block_until_ready()

  # The product writes every logit to memory; how many rows at once suit it best is not ours to choose.
  choices = [partial(bare, rows) for rows in (256, 512, 1024, 4096)]
  for run in choices:
    run()  # compile
  best = min(choices, key=lambda run: min(seconds(run) for _ in range(2)))
  yield Comparison(
    peer='matrix products', sizes=named(N=subjects, R=relations, d=built.config.dim),
    ours=lambda: verify.exhaustive(built), theirs=best,
  ).in_turns(rounds) | {'logits': built.queries * subjects, 'product_rows': best.args[0]}  # fmt: skip


def certificate(subjects: int, relations: int):
  """The whole command in a process of its own: start-up, facts, weights, proof, ledger."""
  with tempfile.TemporaryDirectory() as folder:
    _, taken, gigabytes = own_process(
      '-m', 'experiments.construct', '--construction=selector', '--nosave', '--check=certificate',
      f'--subjects={subjects}', f'--relations={relations}', f'--workdir={folder}',
    )  # fmt: skip
    (record,) = records.read(Path(folder)).table.to_dict('records')
  own = ('queries', 'accuracy', 'min_margin', 'build_seconds', 'check_seconds')
  yield {
    'sizes': named(N=subjects, R=relations, d=record['dim']), 'ours_seconds': taken,
    'peak_gigabytes': gigabytes, **{name: record[name] for name in own},
  }  # fmt: skip


def steps_of(models: int, steps: int, shapes, names, rounds: int = 5):
  """Training steps of one model, a call each, or of many at once, beside loops of plain JAX and PyTorch over them."""
  missing = [n for n in names if n.startswith('torch') and not importlib.util.find_spec('torch')]
  if missing:
    print(f'not measured, as torch is not installed: {", ".join(missing)}', file=sys.stderr)
  for n, r, d in shapes:
    tasks, count = [task(n, r, d, seed) for seed in range(models)], steps * models
    run = sweep_of(tasks) if models > 1 else one_model(ENDLESS, *tasks).run
    for name in [name for name in names if name not in missing]:
      loops = [peers.make(name, ENDLESS, one) for one in tasks]
      yield Comparison(
        peer=name, sizes=named(N=n, R=r, d=d, models=models), ours=partial(run, steps),
        theirs=lambda loops=loops: [loop.run(steps) for loop in loops],
        ours_count=count, theirs_count=count,
      ).in_turns(rounds)  # fmt: skip


def capacity(subjects, relations: int, seeds: int, rates, steps: int = 2000):
  """The smallest d for every N and seed, all compiling included: all searches together, beside a loop.

  The loop does as the public code of Nichani et al. (2025): it halves a range, here d from 1 to R·log2 N, trains
  a model after another, learning rate after learning rate until one succeeds, and compiles every run as it comes.
  A second loop tries the sizes that our search tries: what is left of the ratio is the engine's.
  """
  recipe, target = Recipe(steps, target=0.99), 0.99
  setting = searching.Setting(recipe, 0, 0, tuple((rate, 0.01) for rate in rates))
  cases = [searching.Case('dim', n, relations, seed) for n in subjects for seed in range(seeds)]

  def together():
    found = searching.measure(cases, setting, partial(scheduling.train_tasks, compiled=[]))
    smallest = [r['value'] for r in found if r['kind'] == 'threshold']
    return {'found': smallest, 'probes': len(found) - len(smallest)}

  def succeeds(one) -> bool:
    peers.compiled.cache_clear()
    return peers.plain_jax(recipe, one).best_accuracy(recipe) >= target

  def in_turn(halving: bool):
    searches = []
    for case in cases:
      search = bisection.Bisection(searching.looked_for(case, setting))
      if halving:
        search.failed, search.passed = 0, math.ceil(relations * math.log2(case.subjects))
      while size := search.ask():
        search.tell(size, any(map(succeeds, searching.attempts([(case, size)], setting))))
      searches.append(search)
    return {'found': [s.found for s in searches], 'probes': sum(s.asked for s in searches)}

  for peer, halving in (('jax', True), ('jax, our search', False)):
    yield Comparison(
      peer=peer, ours=together, theirs=partial(in_turn, halving),
      sizes=f'N={",".join(map(str, subjects))}, R={relations}, seeds={seeds}, rates={len(rates)}',
    ).cold()  # fmt: skip


def memories(dims, seeds: int, steps: int = 2**15):
  """The largest N that an MLP memory of d = F holds, a seed, all compiling and drawing included: all seeds together,
  beside a loop over one seed's models."""

  def in_turn(recipe, asked):
    return [peers.plain_mlp_memory(recipe, n, seed).best_accuracy(recipe) for seed, n in asked]

  def largest(recipe, count: int, best):
    searches = frozen_embeddings.largest(recipe, range(count), best)
    return {'found': [search.found for search in searches.values()]}

  for dim in dims:
    recipe = mlp_memory.Recipe(dim, dim, steps)
    yield Comparison(
      peer='jax', sizes=f'd=F={dim}, seeds={seeds}', ours_count=seeds,
      ours=partial(largest, recipe, seeds, frozen_embeddings.best),
      theirs=partial(largest, recipe, 1, in_turn),
    ).cold()  # fmt: skip


def products(subjects: int, relations: int, dim: int, steps: int = 2, shapes=None):
  """Training steps of a model beside as many multiplications in the product of matrices, rows by inner by columns,
  that this machine does fastest."""
  one, cpu = task(subjects, relations, dim), jax.default_backend() == 'cpu'
  own, needed = one_model(ENDLESS, one), 6 * scheduling.multiplications(one.config, ENDLESS)
  product, speeds = jax.jit(jnp.matmul), {}
  on_cpu = (1024, 1024, 1024), (2048, 2048, 2048), (4096, 64, 4096), (4096, 4096, 64)
  for m, k, n in shapes or (on_cpu if cpu else ((8192, 8192, 8192), (16384, 16384, 16384))):
    a, b = jnp.ones((m, k)), jnp.ones((k, n))
    # NumPy's BLAS may be faster.
    numpy = [partial(np.matmul, np.asarray(a), np.asarray(b))] if cpu else []
    for run in [partial(lambda a, b: product(a, b).block_until_ready(), a, b), *numpy]:
      run()  # compile
      speeds[run, 2 * m * k * n] = 2 * m * k * n / min(seconds(run) for _ in range(8))
  fastest, done = max(speeds, key=speeds.__getitem__)
  times = max(1, round(steps * needed / done))
  record = Comparison(
    peer='matrix products', sizes=named(N=subjects, R=relations, d=dim), ours=partial(own.run, steps),
    theirs=lambda: [fastest() for _ in range(times)], ours_count=steps, theirs_count=times * done / needed,
  ).in_turns()  # fmt: skip
  yield record | {'flops_per_second': needed / record['theirs_seconds']}


ONE_STEP = """
import json, sys
from experiments import benchmark as b
own = b.one_model(b.ENDLESS, b.task(*map(int, sys.argv[1:])))
taken = b.seconds(lambda: own.run(1))
peak = (b.jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use', 0)
print(json.dumps([taken, peak / 1e9, float(own.state.loss)]))
"""


def memory(subjects: int, relations: int, dim: int):
  """Peak memory, of the device where it says so, of a process that takes one full-batch step, compiling included."""
  printed, _, gigabytes = own_process('-c', ONE_STEP, *map(str, (subjects, relations, dim)))
  taken, on_device, loss = json.loads(printed)
  yield {
    'sizes': named(N=subjects, R=relations, d=dim), 'ours_seconds': taken, 'loss': loss,
    'peak_gigabytes': on_device or gigabytes, 'logits_gigabytes': 4e-9 * subjects**2 * relations,
  }  # fmt: skip


def scaling(base: dict, axes: dict, steps: int):
  """Seconds a step of one model as one size grows, and the exponent of a power law through them."""
  for axis, values in axes.items():
    taken = []
    for value in values:
      n, r, d, models = {**base, axis: value}.values()
      run = partial(sweep_of([task(n, r, d, seed) for seed in range(models)]), steps)
      run()  # compile
      taken.append(min(seconds(run) for _ in range(3)) / steps / models)
      sizes = named(N=n, R=r, d=d, models=models)
      yield {'axis': axis, 'value': value, 'ours_seconds': taken[-1], 'sizes': sizes}
    exponent = statistics.line(np.log(values).tolist(), np.log(taken).tolist())[1]
    yield {'measurement': 'scaling_exponent', 'axis': axis, 'exponent': exponent}


BASE = {'subjects': 64, 'relations': 4, 'dim': 16, 'models': 16}
AXES = {
  'models': (2, 4, 8, 16, 32, 64, 128), 'subjects': (16, 32, 64, 128, 256, 512),
  'relations': (1, 2, 4, 8, 16), 'dim': (4, 8, 16, 32, 64),
}  # fmt: skip
SHAPES, MANY, RATES = ((32, 4, 8), (128, 4, 16)), (32, 64, 128, 256), (0.01, 0.03, 0.1)
SCALES = ('smoke', 'laptop', 'full')
MEASUREMENTS: dict[str, tuple[Callable, dict[str, tuple]]] = {  # arguments at each scale
  'exhaustive': (exhaustive, {
    'subjects': (200, 20_000, 100_000), 'relations': (2, 4, 8), 'rounds': (1, 5, 5),
  }),
  'certificate': (certificate, {'subjects': (1000, 10**6, 10**6), 'relations': (2, 8, 8)}),
  'step': (steps_of, {
    'models': (1, 1, 1), 'steps': (2, 10, 100), 'shapes': ([(16, 2, 4)], *[[(1024, 4, 64)]] * 2),
    'names': (['jax'], peers.NAMES, peers.NAMES), 'rounds': (1, 5, 5),
  }),
  'sweep': (steps_of, {
    'models': (2, 64, 1024), 'steps': (2, 20, 20), 'shapes': ([(8, 2, 4)], SHAPES, SHAPES),
    'names': (['jax'], peers.NAMES[:2], peers.NAMES[:2]), 'rounds': (1, 3, 1),
  }),
  'capacity': (capacity, {
    'subjects': ([8], MANY, MANY), 'relations': (2, 4, 4), 'seeds': (1, 3, 3),
    'rates': ([0.03], RATES, RATES), 'steps': (100, 2000, 2000),
  }),
  'mlp_memory': (memories, {
    'dims': ([4], (8, 11, 16), (8, 11, 16)), 'seeds': (2, 5, 5), 'steps': (512, 2**15, 2**15),
  }),
  'products': (products, {'subjects': (16, 4096, 4096), 'relations': (2, 4, 4), 'dim': (4, 64, 64)}),
  'memory': (memory, {'subjects': (64, 65_536, 65_536), 'relations': (2, 4, 4), 'dim': (8, 64, 64)}),
  'scaling': (scaling, {
    'base': ({**BASE, 'models': 2}, BASE, BASE), 'steps': (2, 50, 50),
    'axes': ({'dim': (2, 4)}, AXES, {**AXES, 'models': (16, 64, 256, 1024)}),
  }),
}  # fmt: skip
NAMES = ', '.join(MEASUREMENTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  scale: Annotated[Literal['smoke', 'laptop', 'full'], 'Sizes; smoke only shows that it runs.'] = (
    'laptop'
  )
  only: Annotated[str | None, f'Of {NAMES} these alone, with commas between.'] = None
  workdir: str = 'runs/benchmark'
  redraw: Annotated[bool, 'Draw the figure again from the records in the workdir.'] = False


def at_scale(name: str, scale: str) -> partial:
  """A measurement with its arguments."""
  function, arguments = MEASUREMENTS[name]
  return partial(function, **{key: some[SCALES.index(scale)] for key, some in arguments.items()})


def measure(options: Options, names: Sequence[str]) -> Records:
  """The records of all measurements, written as they come."""
  command = f'python -m experiments.benchmark --scale={options.scale}'
  command += f' --only={options.only}' if options.only else ''
  torch = {'torch': version('torch')} if importlib.util.find_spec('torch') else {}
  about = {'command': command, 'device': machine.device(), 'versions': machine.versions() | torch}
  rows: list[dict] = []
  for name in names:
    call = at_scale(name, options.scale)
    print(f'{name}: {call.keywords}', file=sys.stderr, flush=True)
    for row in call():
      rows.append({'measurement': name, **row})
      found = Records(about, pd.DataFrame(rows, dtype=object))
      records.write(Path(options.workdir, records.FILE), found)
  return found


def plot(table: pd.DataFrame) -> Figure | None:
  """Seconds a step of one model against each size that grew, with the exponent of the power law through them."""
  axes = table['axis'].dropna().unique() if 'axis' in table else []
  if not len(axes):
    return None
  symbols = {'models': 'M', 'subjects': 'N', 'relations': 'R', 'dim': 'd'}
  figure, panels = plotting.new(2.3 * len(axes), 2.4, 1, len(axes), squeeze=False, sharey=True)
  for i, (ax, axis) in enumerate(zip(panels[0], axes, strict=True)):
    color, marker = plotting.cycle(i)
    own = statistics.select(table, axis=axis)
    ax.plot(own['value'].tolist(), own['ours_seconds'].tolist(), marker + '-', color=color)
    plotting.logarithmic(ax.xaxis, ax.yaxis)
    ax.set(xlabel=f'{axis}, ${symbols[axis]}$', title=f'exponent {own["exponent"].max():.2f}')
  panels[0][0].set_ylabel('seconds per step of a model')
  return figure


def main(options: Options):
  folder = cli.writable(options.workdir)
  names = (options.only or ','.join(MEASUREMENTS)).split(',')
  if unknown := set(names) - MEASUREMENTS.keys():
    raise InputError(f'--only={min(unknown)}: known are {NAMES}')
  if not options.redraw:
    machine.one_device_per_core()
    found = measure(options, names)
  elif options != Options(redraw=True, workdir=options.workdir):
    raise InputError('--scale or --only and --redraw contradict each other: the records decide')
  else:
    found = records.read(folder)
    if 'experiments.benchmark' not in found.about.get('command', '').split():
      raise InputError(f'{folder}: not results of experiments.benchmark')
  columns = [
    'measurement', 'peer', 'ours_seconds', 'theirs_seconds', 'ratio', 'sizes', 'peak_gigabytes',
  ]  # fmt: skip
  print(render.table(found.table[found.table['sizes'].notna()], columns=columns))
  with matplotlib.rc_context(plotting.STYLE):
    if figure := plot(found.table):
      plotting.save(figure, folder / 'scaling')
  print(f'on {found.about["device"]}; records and figure: {folder}')


if __name__ == '__main__':
  does = lambda call: ' '.join((call.__doc__ or '').split())
  lines = [f'  {name}: {does(call)}' for name, (call, _) in MEASUREMENTS.items()]
  cli.run(main, Options, doc='\n'.join([__doc__, *lines]))
