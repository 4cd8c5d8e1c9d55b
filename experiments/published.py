"""Published code that stores facts, run unchanged in a checkout that you name, compared with our constructions.

  python -m experiments.published --tracr=../tracr
  python -m experiments.published --hebbian=../hebbian-mlps --nichani=../factual-recall-iclr

tracr: google-deepmind/tracr compiles a look-up of (subject, relation), with the shortest program, and with one whose
tables have no entries that are never asked for. hebbian: HazyResearch/hebbian-mlps stores a random permutation in an MLP
between random embeddings; the smallest hidden layer that is right on every fact. nichani: eshnich/factual-recall-iclr
trains such an MLP, and searches for the most facts that it holds.

None of their code is here, and what it imports has to be installed. For both sides the records have the seconds and the
CPU seconds (the better measure on a busy machine) that a model takes, and separately the CPU seconds in which every query
is checked (a hundred queries of Tracr's models; hebbian-mlps builds and checks all in one, so these are not separate).
`parameters` counts everything but tables with one row per word, `tables` counts those; the bits of the facts are R·N·log₂A.
"""

import contextlib
import dataclasses
import functools
import importlib
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np

from constructions import registry
from experiments.harness import render
from experiments.harness.study import Study
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.training import mlp_memory

MINUTE = 60
SAMPLED = 100  # queries of Tracr's models, which are assembled anew for each
TABLES = ('subjects', 'relations', 'positions', 'answers')
HEBBIAN = {  # their names for the variants, with the options of their own study of capacity
  'random features': {'variant': 'unwhitened'},
  'whitened': {'variant': 'whitened', 'ridge': 1e-6},
  'data-dependent': {'variant': 'data_dependent', 'ridge': 1e-6},
}


def checkout(path: str, module: str, inside: str = '') -> tuple[Callable, str]:
  """A function that imports modules of a checkout, and the commit of the checkout."""
  folder = Path(path, inside).resolve()
  if not (folder / module.split('.')[0]).exists() and not (folder / f'{module}.py').exists():
    raise InputError(f'{path}: no {module} there; name a checkout of it')
  sys.path.insert(0, str(folder))
  revision = subprocess.run(
    ['git', '-C', path, 'rev-parse', '--short=10', 'HEAD'],
    check=False, capture_output=True, text=True,
  )  # fmt: skip

  def load(name: str):
    try:
      return importlib.import_module(name)
    except ImportError as error:
      raise InputError(f'{path}: {name} needs what is not installed: {error}') from error

  load(module)
  return load, revision.stdout.strip() or 'unknown'


def timed(work: Callable[[], Any]) -> tuple[Any, dict]:
  """The result of the work, and the seconds it took, with nothing compiled before."""
  jax.clear_caches()
  start = time.perf_counter(), time.process_time()
  found = work()
  ends = time.perf_counter(), time.process_time()
  return found, {'seconds': ends[0] - start[0], 'cpu_seconds': ends[1] - start[1]}


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
  """Stop work that takes more seconds of CPU time, with TimeoutError."""

  def stop(*_):
    raise TimeoutError

  before = signal.signal(signal.SIGPROF, stop)
  signal.setitimer(signal.ITIMER_PROF, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


def built_and_checked(build: Callable[[], Any], check: Callable[[Any], float]) -> tuple[Any, dict]:
  """A model and its accuracy, with the seconds of each; TimeoutError if building takes more than a minute of CPU time."""
  with time_limit(MINUTE):
    model, seconds = timed(build)
  accuracy, checked = timed(functools.partial(check, model))
  return model, {'accuracy': accuracy, **seconds, 'check_cpu_seconds': checked['cpu_seconds']}


def sizes(facts: Facts) -> dict:
  """N, R and the bits of the facts."""
  n, r = facts.subjects, facts.relations
  return {'subjects': n, 'relations': r, 'bits': r * n * math.log2(facts.attributes)}


def ours(name: str, facts: Facts, **options) -> dict:
  """A construction, built and verified on every query."""
  build = functools.partial(registry.build, name, facts, **options)
  built, found = built_and_checked(build, lambda built: built.verify().accuracy)
  counts = {'parameters': 0, 'tables': 0}
  for path, weights in jax.tree_util.tree_leaves_with_path(built.params):
    counts['tables' if path[-1].key in TABLES else 'parameters'] += np.size(weights)
  return {'side': 'ours', 'model': name, **sizes(facts), **counts, **found}


def smallest(works: Callable[[int], bool], low: int = 1, precision: float = 0.05) -> int:
  """The smallest size that works, to within `precision`, by doubling and bisection."""
  high = low
  while not works(high):
    low, high = high, 2 * high
  while high - low > max(1, precision * low):
    low, high = (low, half) if works(half := (low + high) // 2) else (half, high)
  return high


def lookups(rasp, facts: Facts) -> dict[str, Callable]:
  """The look-up as RASP programs: the last token, a relation, reads the subject, and a table has the answer."""
  answers, n = facts.answers_RxN.tolist(), facts.subjects

  def shortest():
    subject = rasp.Select(rasp.tokens, rasp.tokens, lambda key, _: isinstance(key, int) and key < n)
    read = rasp.Aggregate(subject, rasp.tokens)
    answer = lambda s, t: answers[t - n][s] if s < n <= t else 0
    return rasp.SequenceMap(answer, read, rasp.tokens)

  def narrow():
    named = rasp.Map(lambda token: min(token, n), rasp.tokens)
    asked = rasp.Map(lambda token: max(token, n - 1) - n, rasp.tokens)
    subject = rasp.Select(named, named, lambda key, _: isinstance(key, int) and key < n)
    answer = lambda s, r: answers[r][s] if s < n and r >= 0 else 0
    return rasp.SequenceMap(answer, rasp.Aggregate(subject, named), asked)

  return {'Tracr, shortest program': shortest, 'Tracr, narrow tables': narrow}


def tracr(preset: 'Preset', seed: int) -> Iterator[dict]:
  """Every program at N = 8, 16, … until compiling it, or building ours, would take more than a minute of CPU time."""
  load, commit = checkout(preset.tracr, 'tracr')
  compiling, rasp = load('tracr.compiler.compiling'), load('tracr.rasp.rasp')
  done: set[str] = set()
  for n in preset.subjects:
    facts = Facts.bijections(n, preset.relations, seed)
    works = {
      name: functools.partial(compiled, compiling, program, facts, commit)
      for name, program in lookups(rasp, facts).items()
    } | {'selector': functools.partial(ours, 'selector', facts)}
    for name in (name for name in works if name not in done):
      try:
        yield works[name]() | {'model': name}
      except TimeoutError:
        done.add(name)
        print(f'tracr: {name} takes more than a minute at N = {n}', file=sys.stderr, flush=True)


def compiled(compiling, program, facts: Facts, commit: str) -> dict:
  """The program as Tracr's transformer, asked about some of the facts."""
  vocabulary = set(range(facts.subjects + facts.relations))

  def right(model) -> float:
    said = lambda s, r: model.apply(['compiler_bos', s, facts.subjects + r]).decoded[-1]
    every = list(np.ndenumerate(facts.answers_RxN))
    some = np.random.default_rng(0).permutation(len(every))[:SAMPLED]
    return float(np.mean([said(s, r) == a for (r, s), a in (every[i] for i in some)]))

  build = lambda: compiling.compile_rasp_to_model(program(), vocabulary, max_seq_len=2)
  model, found = built_and_checked(build, right)
  counts = {'parameters': 0, 'tables': 0}
  for name, part in model.params.items():
    kind = 'tables' if name.endswith('_embed') else 'parameters'
    counts[kind] += sum(np.size(weights) for weights in part.values())
  return {'side': 'theirs', **sizes(facts), **counts, **found, 'commit': commit}


def hebbian(preset: 'Preset', seed: int) -> Iterator[dict]:
  """Each of their constructions with the smallest hidden layer that is right on all facts; ours for as many facts."""
  load, commit = checkout(preset.hebbian, 'hebbian', inside='src')
  run = load('hebbian.expts.mlp_capacity.helpers').run_mlp_experiment
  dtype, d, n = load('torch').float64, preset.dim, preset.facts
  facts = Facts.bijections(n, 1, seed)
  fields = {**sizes(facts), 'dim': d}
  for name, options in HEBBIAN.items():
    spec = {'mlp_method': 'hebbian', 'mlp_dtype': dtype, 'mlp_method_kwargs': options}
    build = functools.partial(
      _seeded, run, seed, d_model=d, num_facts=n, method_label=name, method_spec=spec, device='cpu'
    )
    width = smallest(functools.partial(_succeeds, build))
    found, seconds = timed(functools.partial(build, width=width))
    yield fields | {
      'side': 'theirs', 'model': f'hebbian-mlps, {name}', 'width': width, 'accuracy': found['best_acc'],
      'parameters': found['param_count'], 'tables': n * d,  # one table for input and output
      **seconds, 'commit': commit,
    }  # fmt: skip
  exact = lambda m: registry.build('associative_mlp', facts, dim=d, width=m).verify().accuracy == 1
  width = smallest(exact)
  yield fields | {'width': width} | ours('associative_mlp', facts, dim=d, width=width)
  yield from (ours(name, facts) for name in ('keyvalue', 'selector'))


def _seeded(run: Callable[..., dict], seed: int, width: int, **options) -> dict:
  """Seed NumPy's global generator, from which they draw the permutation, so that every width gets the same facts."""
  np.random.seed(seed)
  return run(m=width, seed=seed, **options)


def _succeeds(build: Callable[..., dict], width: int) -> bool:
  return build(width=width)['success']


def nichani(preset: 'Preset', seed: int) -> Iterator[dict]:
  """The most facts that an MLP with d = F holds, by their search and by ours with their rule, for one seed."""
  load, commit = checkout(preset.nichani, 'mlp_sweep')
  sweep, RNG = load('mlp_sweep').binary_sweep, load('util').RNG
  for d in preset.dims:
    found = timed(functools.partial(sweep, d, d, d, d * d, [3e-2], RNG(seed), None, False))
    holds = functools.partial(_learns, mlp_memory.MemoryRecipe(d, d), seed)
    own = timed(functools.partial(largest, holds, d, d * d))
    for side, (n, seconds) in {'theirs': found, 'ours': own}.items():
      yield {'side': side, 'model': 'trained MLP', 'subjects': n, 'relations': 1, 'dim': d, 'width': d,
             'parameters': d * d * 2 + d, 'tables': 2 * n * d, 'bits': n * math.log2(n), **seconds,
             'commit': commit if side == 'theirs' else None}  # fmt: skip


def _learns(recipe: mlp_memory.MemoryRecipe, seed: int, facts: int) -> bool:
  best, _ = mlp_memory.learn_all(recipe, [facts], [seed])
  return bool(best[0] >= recipe.target)


def largest(holds: Callable[[int], bool], low: int, high: int) -> int:
  """As in their search: bisection, to within one in a hundred."""
  while high / low > 1.01 and high - low > 1:
    low, high = (half, high) if holds(half := (low + high) // 2) else (low, half)
  return low


PEERS: dict[str, Callable] = {'tracr': tracr, 'hebbian': hebbian, 'nichani': nichani}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  tracr: Annotated[str, 'A checkout of google-deepmind/tracr.'] = ''
  hebbian: Annotated[str, 'A checkout of HazyResearch/hebbian-mlps.'] = ''
  nichani: Annotated[str, 'A checkout of eshnich/factual-recall-iclr.'] = ''
  subjects: tuple[int, ...] = (8, 16, 32, 64)
  relations: int = 4
  dim: int = 64
  facts: int = 1024
  dims: tuple[int, ...] = (8, 11)


def measure(progress, preset, seeds):
  """The records of the peers whose checkouts are named."""
  if not any(getattr(preset, name) for name in PEERS):
    raise InputError('name a checkout: ' + ', '.join(f'--{name}=FOLDER' for name in PEERS))
  rows: list[dict] = []
  for name, peer in PEERS.items():
    if getattr(preset, name):
      for row in peer(preset, seeds[0]):
        rows.append({'measurement': name, **row})
        print(f'{name}: {row["model"]}, {row["seconds"]:.1f} s', file=sys.stderr, flush=True)
  return rows


def shown(table) -> str:
  """A table for each peer, with the bits per parameter, tables counted."""
  every = table['parameters'] + table['tables']
  return render.measurements(table.assign(bits_per_parameter=table['bits'] / every))


STUDY = Study(
  name='published', title='geomem compared with published code', measure=measure,
  expect=lambda table: [], more=shown,
  presets={
    'smoke': Preset(subjects=(8,), dim=16, facts=32, dims=(4,)), 'laptop': Preset(),
    'full': Preset(subjects=tuple(2**i for i in range(3, 17)), dims=(8, 11, 16)),
  },
  minutes=20, first_seed=0, compile_quickly=False, resumes=False,
)  # fmt: skip


if __name__ == '__main__':
  STUDY.main()
