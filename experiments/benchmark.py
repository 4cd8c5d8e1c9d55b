"""Time geomem beside the thing that it must keep up with, in one run on one machine.

  python -m experiments.benchmark
  python -m experiments.benchmark --only=exhaustive --scale=accelerator

Both sides of a measurement take turns, so that a busy machine slows both; the ratio is the median
over the rounds of theirs / ours, above 1 where ours is faster. What is measured:

  exhaustive    every logit of every query with its runner-up, beside the bare matrix product
  certificate   a command: a million subjects' facts drawn, built, certified; seconds and peak memory
"""

import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import flags

from constructions import registry
from experiments import cli
from geomem import facts as fact
from geomem import model, verify

FLAGS = flags.FLAGS
cli.define('scale', 'workdir')

COLUMNS = (
  'measurement',
  'ours_seconds',
  'theirs_seconds',
  'ratio',
  'sizes',
  'peak_gigabytes',
  'device',
)
ROUNDS = 5


def side_by_side(ours: Callable, theirs: Callable, rounds: int = ROUNDS) -> dict:
  """Median seconds of both, and the median of their ratio, after one unmeasured call of each."""
  ours(), theirs()
  pairs = []
  for _ in range(rounds):
    pairs.append((_seconds(ours), _seconds(theirs)))
  return {
    'ours_seconds': statistics.median(a for a, _ in pairs),
    'theirs_seconds': statistics.median(b for _, b in pairs),
    'ratio': statistics.median(b / a for a, b in pairs),
    'ratio_range': [min(b / a for a, b in pairs), max(b / a for a, b in pairs)],
    'rounds': rounds,
  }


def _seconds(run: Callable) -> float:
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def exhaustive(subjects: int, relations: int, rounds: int = ROUNDS) -> dict:
  """N·R queries against N answers, beside the product of their residuals with the unembedding."""
  built = registry.build('selector', fact.bijections(jax.random.key(0), subjects, relations))
  params = jax.device_put(built.params)
  paths = jnp.arange(relations)[:, None]
  x_QxD = model.apply(built.config, params, jnp.arange(subjects), paths, method='grid')
  x_QxD = x_QxD.reshape(-1, built.config.dim)
  product = jax.jit(lambda x, u: jax.lax.dot_general(x, u, (((1,), (1,)), ((), ()))))

  def bare(rows: int):
    for start in range(0, len(x_QxD), rows):
      product(x_QxD[start : start + rows], params['unembed']['answers']).block_until_ready()

  # The product writes every logit to memory; how many rows at once suit it best is not ours to choose.
  sizes = (256, 512, 1024, 4096)
  for rows in sizes:
    bare(rows)  # compile
  rows = min(sizes, key=lambda rows: min(_seconds(lambda: bare(rows)) for _ in range(2)))
  return {
    **side_by_side(lambda: verify.exhaustive(built), functools.partial(bare, rows), rounds),
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
    (record,) = cli.read_results(folder)
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


MEASUREMENTS = {'exhaustive': exhaustive, 'certificate': certificate}
SIZES = {  # for each scale, the arguments of each measurement
  'smoke': {'exhaustive': (200, 2, 1), 'certificate': (1000, 2)},
  'laptop': {'exhaustive': (20_000, 4), 'certificate': (1_000_000, 8)},
  'accelerator': {'exhaustive': (100_000, 8), 'certificate': (1_000_000, 8)},
}

flags.DEFINE_multi_enum('only', None, MEASUREMENTS, 'Measure this alone (repeatable).')


def main(argv):
  cli.no_arguments(argv)
  folder = cli.workdir('runs/benchmark')
  records = []
  for name in FLAGS.only or MEASUREMENTS:
    arguments = SIZES[FLAGS.scale][name]
    print(f'{name}: {arguments}', file=sys.stderr, flush=True)
    record = MEASUREMENTS[name](*arguments)
    records.append(
      {'measurement': name, **record, 'device': cli.device(), 'versions': cli.versions()}
    )
    cli.write_results(folder, records)
  print(cli.table(COLUMNS, records))
  print(f'records: {folder / "results.json"}')


if __name__ == '__main__':
  cli.run(main)
