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

COLUMNS = (
  'measurement', 'peer', 'ours_seconds', 'theirs_seconds', 'ratio', 'sizes', 'peak_gigabytes',
)  # fmt: skip
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
  params, every_R = jax.device_put(built.params), jnp.arange(relations)
  pairs = jnp.arange(subjects), every_R[:, None]
  x_QxD = model.apply(built.config, params, *pairs, method='all_pairs')
  x_QxD = x_QxD.reshape(-1, built.config.dim)
  product = jax.jit(lambda x, u: x @ u.T)

  def bare(rows: int):
    for start in range(0, len(x_QxD), rows):
      product(x_QxD[start : start + rows], params['unembed']['answers']).block_until_ready()

  # The product writes every logit to memory; how many rows at once suit it best is not ours to choose.
  choices = [partial(bare, rows) for rows in (256, 512, 1024, 4096)]
  for run in choices:
    run()  # compile
  best = min(choices, key=lambda run: min(seconds(run) for _ in range(2)))
  yield Comparison(
    sizes=named(N=subjects, R=relations, d=built.config.dim),
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
  """Training steps of a model among so many at once (or a call each, of one), beside loops of plain JAX, PyTorch
  and torch.compile over the models."""
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
  A second loop does the same at the sizes that our search tries: what is left of the ratio is the engine's.
  """
  recipe = Recipe(steps, target=0.99)
  setting = searching.Setting(recipe, 0, 0, tuple((rate, 0.01) for rate in rates))
  cases = [searching.Case('dim', n, relations, seed) for n in subjects for seed in range(seeds)]

  def together():
    train = partial(scheduling.train_tasks, compiled=[])
    found = searching.measure(cases, setting, train)
    smallest = [r['value'] for r in found if r['kind'] == 'threshold']
    return {'found': smallest, 'probes': len(found) - len(smallest)}

  def succeeds(one) -> bool:
    peers.compiled.cache_clear()
    return peers.plain_jax(recipe, one).best_accuracy(recipe) >= recipe.target

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
  """Steps beside as many multiplications in the product of matrices that this machine does fastest."""
  one = task(subjects, relations, dim)
  own, needed = one_model(ENDLESS, one), 6 * scheduling.multiplications(one.config, ENDLESS)
  run, done = _fastest(shapes or SHAPES['cpu' if jax.default_backend() == 'cpu' else 'other'])
  times = max(1, round(steps * needed / done))
  record = Comparison(
    sizes=named(N=subjects, R=relations, d=dim), ours=partial(own.run, steps),
    theirs=lambda: [run() for _ in range(times)], ours_count=steps, theirs_count=times * done / needed,
  ).in_turns()  # fmt: skip
  yield record | {'flops_per_second': needed / record['theirs_seconds']}


SHAPES = {  # of products, rows by inner by columns
  'cpu': ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 64, 4096), (4096, 4096, 64)),
  'other': ((8192, 8192, 8192), (16384, 16384, 16384)),
}


def _fastest(shapes):
  """Of a few plain products the one of most floating-point operations a second, and their number."""
  product, speeds = jax.jit(jnp.matmul), {}
  for m, k, n in shapes:
    a, b = jnp.ones((m, k)), jnp.ones((k, n))
    runs = [partial(lambda a, b: product(a, b).block_until_ready(), a, b)]
    if jax.default_backend() == 'cpu':  # NumPy's BLAS may be faster
      runs.append(partial(np.matmul, np.asarray(a), np.asarray(b)))
    for run in runs:
      run()
      speeds[run, 2 * m * k * n] = 2 * m * k * n / min(seconds(run) for _ in range(8))
  return max(speeds, key=speeds.__getitem__)


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
      shape = {**base, axis: value}
      models, (n, r, d) = (
        shape['models'],
        (shape[name] for name in ('subjects', 'relations', 'dim')),
      )
      run = partial(sweep_of([task(n, r, d, seed) for seed in range(models)]), steps)
      run()  # compile
      taken.append(min(seconds(run) for _ in range(3)) / steps / models)
      sizes = named(N=n, R=r, d=d, models=models)
      yield {'axis': axis, 'value': value, 'ours_seconds': taken[-1], 'sizes': sizes}
    exponent = statistics.line(np.log(values), np.log(taken))[1]
    yield {'measurement': 'scaling_exponent', 'axis': axis, 'exponent': exponent}


SMALL = (32, 4, 8), (128, 4, 16)
BASE = {'subjects': 64, 'relations': 4, 'dim': 16, 'models': 16}
AXES = {
  'models': (2, 4, 8, 16, 32, 64, 128), 'subjects': (16, 32, 64, 128, 256, 512),
  'relations': (1, 2, 4, 8, 16), 'dim': (4, 8, 16, 32, 64),
}  # fmt: skip
LAPTOP = {
  'exhaustive': partial(exhaustive, subjects=20_000, relations=4),
  'certificate': partial(certificate, subjects=1_000_000, relations=8),
  'step': partial(steps_of, models=1, steps=10, shapes=[(1024, 4, 64)], names=peers.NAMES),
  'sweep': partial(steps_of, models=64, steps=20, shapes=SMALL, names=('jax', 'torch'), rounds=3),
  'capacity': partial(
    capacity, subjects=(32, 64, 128, 256), relations=4, seeds=3, rates=(0.01, 0.03, 0.1)
  ),
  'mlp_memory': partial(memories, dims=(8, 11, 16), seeds=5),
  'products': partial(products, subjects=4096, relations=4, dim=64),
  'memory': partial(memory, subjects=65_536, relations=4, dim=64),
  'scaling': partial(scaling, base=BASE, axes=AXES, steps=50),
}
CHANGES = {  # of the other scales
  'smoke': {
    'exhaustive': {'subjects': 200, 'relations': 2, 'rounds': 1},
    'certificate': {'subjects': 1000, 'relations': 2},
    'step': {'steps': 2, 'shapes': [(16, 2, 4)], 'names': ['jax']},
    'sweep': {'models': 2, 'steps': 2, 'shapes': [(8, 2, 4)], 'names': ['jax'], 'rounds': 1},
    'capacity': {'subjects': [8], 'relations': 2, 'seeds': 1, 'rates': [0.03], 'steps': 100},
    'mlp_memory': {'dims': [4], 'seeds': 2, 'steps': 512},
    'products': {'subjects': 16, 'relations': 2, 'dim': 4},
    'memory': {'subjects': 64, 'relations': 2, 'dim': 8},
    'scaling': {'base': {**BASE, 'models': 2}, 'axes': {'dim': (2, 4)}, 'steps': 2},
  },
  'laptop': {},
  'full': {
    'exhaustive': {'subjects': 100_000, 'relations': 8},
    'step': {'steps': 100},
    'sweep': {'models': 1024, 'rounds': 1},
    'scaling': {'axes': {**AXES, 'models': (16, 64, 256, 1024)}},
  },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  scale: Annotated[Literal['smoke', 'laptop', 'full'], 'How large; smoke shows that it runs.'] = 'laptop'  # fmt: skip
  only: Annotated[str | None, f'Of {", ".join(LAPTOP)} these alone, with commas between.'] = None
  workdir: str = 'runs/benchmark'
  redraw: Annotated[bool, 'Draw the figure again from the records in the workdir.'] = False


def measure(scale: str, names: Sequence[str], about: dict, folder: Path) -> Records:
  """The records of all measurements, written as they come."""
  rows: list[dict] = []
  for name in names:
    measurement = partial(LAPTOP[name], **CHANGES[scale].get(name, {}))
    print(f'{name}: {measurement.keywords}', file=sys.stderr, flush=True)
    for row in measurement():
      rows.append({'measurement': name, **row})
      found = Records(about, pd.DataFrame(rows, dtype=object))
      records.write(folder / records.FILE, found)
  return found


LABELS = {
  'models': 'models, $M$', 'subjects': 'subjects, $N$', 'relations': 'relations, $R$', 'dim': 'width, $d$',
}  # fmt: skip


def plot(table: pd.DataFrame):
  """Seconds a step of one model against each size that grew, with the exponent of the power law through them."""
  axes = table['axis'].dropna().unique() if 'axis' in table else ()
  if not len(axes):
    return None
  figure, panels = plotting.new(2.3 * len(axes), 2.4, 1, len(axes), squeeze=False, sharey=True)
  for i, (ax, axis) in enumerate(zip(panels[0], axes, strict=True)):
    color, marker = plotting.cycle(i)
    own = statistics.select(table, axis=axis, measurement='scaling')
    ax.plot(own['value'].tolist(), own['ours_seconds'].tolist(), marker + '-', color=color)
    (exponent,) = statistics.select(table, axis=axis, measurement='scaling_exponent')['exponent']
    plotting.logarithmic(ax.xaxis, ax.yaxis)
    ax.set(xlabel=LABELS[axis], title=f'exponent {exponent:.2f}')
  panels[0][0].set_ylabel('seconds per step of a model')
  return figure


def main(options: Options):
  folder = cli.writable(options.workdir)
  names = (options.only or ','.join(LAPTOP)).split(',')
  if unknown := set(names) - set(LAPTOP):
    raise InputError(f'--only={min(unknown)}: known are {", ".join(LAPTOP)}')
  if options.redraw:
    if options != Options(redraw=True, workdir=options.workdir):
      raise InputError('--only or --scale and --redraw contradict each other: the records decide')
    found = records.read(folder)
    if 'experiments.benchmark' not in found.about.get('command', '').split():
      raise InputError(f'{folder}: not results of experiments.benchmark')
  else:
    machine.one_device_per_core()
    command = f'python -m experiments.benchmark --scale={options.scale}'
    command += f' --only={options.only}' if options.only else ''
    torch = {'torch': version('torch')} if importlib.util.find_spec('torch') else {}
    about = {'device': machine.device(), 'versions': machine.versions() | torch}
    found = measure(options.scale, names, {'command': command, **about}, folder)
  table = found.table
  shown = table[table['measurement'] != 'scaling_exponent']
  print(render.table(shown, columns=COLUMNS))
  with matplotlib.rc_context(plotting.STYLE):
    if figure := plot(table):
      plotting.save(figure, folder / 'scaling')
  print(f'on {found.about["device"]}; records and figure: {folder}')


if __name__ == '__main__':
  about = [f'  {name}: {call.func.__doc__.splitlines()[0]}' for name, call in LAPTOP.items()]
  cli.run(main, Options, doc='\n'.join([__doc__, *about]))
