"""Time geomem beside the thing that it must keep up with, in one run on one machine.

  python -m experiments.benchmark
  python -m experiments.benchmark --only=exhaustive --scale=accelerator
  python -m experiments.benchmark --redraw

Both sides of a measurement take turns, so that a busy machine slows both; the ratio is the median
over the rounds of theirs / ours, above 1 where ours is faster. Of the searches, which take minutes,
ours is timed before and after theirs. What is measured:

  exhaustive    every logit of every query with its runner-up, beside the bare matrix product
  certificate   a command: a million subjects' facts drawn, built, certified; seconds and peak memory
  step          training steps of one model, beside plain JAX, PyTorch and torch.compile
  sweep         a step of one model among many trained at once, beside loops over the models
  capacity      smallest d for several N and seeds, compiling included, beside a loop over the models
  mlp_memory    the largest N of the MLP memory, a seed, compiling included, beside a loop over its models
  products      a step beside its multiplications at the best speed that this machine shows
  memory        peak memory of a process that takes a step of a large model
  scaling       a step of one model as the number of models, N, R and d grow: exponents and a figure

PyTorch is optional: pip install torch==2.13.0. The laptop scale takes about half an hour, most of
it in the loops.
"""

import functools
import os
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
from absl import flags

from constructions import registry
from experiments import benchmark_training as training
from experiments.figures import benchmark as benchmark_figure
from experiments.harness import cli, machine, storage, timing
from geomem import model
from geomem.checks import verify
from geomem.errors import InputError
from geomem.facts import Facts

FLAGS = flags.FLAGS
cli.define('scale', 'redraw', 'workdir')

COLUMNS = (
  'measurement',
  'peer',
  'ours_seconds',
  'theirs_seconds',
  'ratio',
  'sizes',
  'peak_gigabytes',
  'device',
)


def exhaustive(subjects: int, relations: int, rounds: int = timing.ROUNDS) -> dict:
  """N·R queries against N answers, beside the product of their residuals with the unembedding."""
  built = registry.build('selector', Facts.bijections(subjects, relations))
  params = jax.device_put(built.params)
  paths = jnp.arange(relations)[:, None]
  x_QxD = model.apply(built.config, params, jnp.arange(subjects), paths, method='all_pairs')
  x_QxD = x_QxD.reshape(-1, built.config.dim)
  product = jax.jit(lambda x, u: jax.lax.dot_general(x, u, (((1,), (1,)), ((), ()))))

  def bare(rows: int):
    for start in range(0, len(x_QxD), rows):
      product(x_QxD[start : start + rows], params['unembed']['answers']).block_until_ready()

  # The product writes every logit to memory; how many rows at once suit it best is not ours to choose.
  sizes = (256, 512, 1024, 4096)
  for rows in sizes:
    bare(rows)  # compile
  rows = min(sizes, key=lambda rows: min(timing.seconds(lambda: bare(rows)) for _ in range(2)))
  return {
    **timing.side_by_side(lambda: verify.exhaustive(built), functools.partial(bare, rows), rounds),
    'sizes': f'N={subjects}, R={relations}, d={built.config.dim}',
    'logits': built.queries * subjects,
    'product_rows': rows,
  }


def certificate(subjects: int, relations: int) -> dict:
  """The whole command in a process of its own: start-up, facts, weights, proof, ledger."""
  with tempfile.TemporaryDirectory() as folder:
    command = [
      sys.executable, '-m', 'experiments.construct', '--construction=selector', '--nosave',
      '--check=certificate', f'--subjects={subjects}', f'--relations={relations}', f'--workdir={folder}',
    ]  # fmt: skip
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
      _, status, usage = os.wait4(process.pid, 0)
      process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
      raise SystemExit(f'{" ".join(command)} ended with status {process.returncode}')
    (record,) = storage.read_results(folder)
  return {
    'ours_seconds': seconds,
    'theirs_seconds': None,
    'ratio': None,
    'sizes': f'N={subjects}, R={relations}, d={record["dim"]}',
    'peak_gigabytes': usage.ru_maxrss * (1 if sys.platform == 'darwin' else 1024) / 1e9,
    **{
      name: record[name]
      for name in ('queries', 'accuracy', 'min_margin', 'build_seconds', 'check_seconds')
    },
  }


MEASUREMENTS = {
  'exhaustive': exhaustive,
  'certificate': certificate,
  'step': training.step,
  'sweep': training.many,
  'capacity': training.capacity,
  'mlp_memory': training.mlp_memory,
  'products': training.products,
  'memory': training.memory,
  'scaling': training.scaling,
}
SMALL = ((32, 4, 8), (128, 4, 16))
BASE = {'subjects': 64, 'relations': 4, 'dim': 16, 'models': 16}
AXES = {
  'models': (2, 4, 8, 16, 32, 64, 128),
  'subjects': (16, 32, 64, 128, 256, 512),
  'relations': (1, 2, 4, 8, 16),
  'dim': (4, 8, 16, 32, 64),
}
SIZES = {  # for each scale, the arguments of each measurement
  'smoke': {
    'exhaustive': (200, 2, 1),
    'certificate': (1000, 2),
    'step': (16, 2, 4, 2, ('jax',)),
    'sweep': (2, 2, ((8, 2, 4),), ('jax',), 1),
    'capacity': ((8,), 2, 1, (0.03,), 100),
    'mlp_memory': ((4,), 2, 512),
    'products': (16, 2, 4),
    'memory': (64, 2, 8),
    'scaling': ({**BASE, 'models': 2}, {'dim': (2, 4)}, 2),
  },
  'laptop': {
    'exhaustive': (20_000, 4),
    'certificate': (1_000_000, 8),
    'step': (1024, 4, 64, 10),
    'sweep': (64, 20, SMALL),
    'capacity': ((32, 64, 128, 256), 4, 3, (0.01, 0.03, 0.1)),
    'mlp_memory': ((8, 11, 16), 5),
    'products': (4096, 4, 64),
    'memory': (65_536, 4, 64),
    'scaling': (BASE, AXES, 50),
  },
  'accelerator': {
    'exhaustive': (100_000, 8),
    'certificate': (1_000_000, 8),
    'step': (1024, 4, 64, 100),
    'sweep': (1024, 20, SMALL, ('jax', 'torch'), 1),
    'capacity': ((32, 64, 128, 256), 4, 3, (0.01, 0.03, 0.1)),
    'mlp_memory': ((8, 11, 16), 5),
    'products': (4096, 4, 64),
    'memory': (65_536, 4, 64),
    'scaling': (BASE, {**AXES, 'models': (16, 64, 256, 1024)}, 50),
  },
}

cli.define(only=f'Measure these alone: of {", ".join(MEASUREMENTS)}, with commas between.')


def measure(names, scale: str, folder) -> list[dict]:
  """The records of all measurements, written as they come."""
  records = []
  for name in names:
    arguments = SIZES[scale][name]
    print(f'{name}: {arguments}', file=sys.stderr, flush=True)
    made = MEASUREMENTS[name](*arguments)
    for record in [made] if isinstance(made, dict) else made:
      about = {
        'device': machine.device(),
        'versions': {**machine.versions(), **training.torch_version()},
      }
      records.append({'measurement': name, **record, **about})
      storage.write_results(folder, records)
  return records


def main(argv):
  cli.no_arguments(argv)
  machine.one_device_a_core()
  folder = cli.workdir('runs/benchmark')
  if FLAGS.redraw:
    cli.check_redraw('only', 'scale')
    records = storage.read_results(folder)
    if not all('measurement' in r for r in records):
      raise InputError(f'{folder}: not results of experiments.benchmark')
  else:
    if unknown := set(FLAGS.only or ()) - set(MEASUREMENTS):
      raise InputError(f'--only={min(unknown)}: known are {", ".join(MEASUREMENTS)}')
    records = measure(FLAGS.only or MEASUREMENTS, FLAGS.scale, folder)
  paths = benchmark_figure.draw(records, folder)
  print(cli.table(COLUMNS, [r for r in records if r['measurement'] != 'scaling_exponent']))
  print(f'records: {folder / "results.json"}' + ''.join(f', {path}' for path in paths))


if __name__ == '__main__':
  cli.run(main)
