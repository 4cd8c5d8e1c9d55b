"""The facts and random keys that a seed stands for, and constructions of such facts: built, verified, accounted for."""

import math
import time
from collections.abc import Callable, Sequence

import jax

from constructions import registry
from experiments.harness import cli
from geomem.construction import Construction, check_representable
from geomem.errors import InputError
from geomem.facts import Facts

MEMORY_CONSTANTS = {  # c in the sizes of approximate constructions: the smallest err, the largest hardly do
  'superposition': (1, 2, 3, 4, 6, 8, 10, 12),
  'associative_attention': (0.5, 1, 1.5, 2, 3, 4, 5, 6),
  'associative_mlp': (0.5, 1, 1.5, 2, 3, 4, 5, 6),
}


def random_facts(
  kind: str, subjects: int, relations: int, seed: int, own_answers: bool = False
) -> Facts:
  """Random facts in the form a construction needs: all relations map into the subjects, or each into its own set."""
  if own_answers:
    return Facts.disjoint(subjects, relations, subjects, seed)
  if kind == 'maps':
    return Facts.random_maps(subjects, relations, seed=seed)
  return Facts.bijections(subjects, relations, seed)


def bijections(subjects: int, relations: int, seed: int, other: bool = False) -> Facts:
  """A seed's facts; or others of the same size, as a control for what was learned about these."""
  return random_facts('bijections', subjects, relations, (seed + 10**6 * other) % 2**32)


def eval_keys(seed, count: int) -> jax.Array:
  """Keys for evaluating a model that this seed trained, separate from the random numbers of training."""
  return jax.random.split(jax.random.fold_in(jax.random.key(seed), 2**31), count)


def memory_options(name: str, constant: float, subjects: int, relations: int) -> dict[str, int]:
  """The options of the construction whose memory has `constant` times its natural unit.

  With m = ⌈log₂N⌉: D = c·R·m dimensions for a superposition, D² = c·N·ln N per head for an associative memory in
  attention, F·d = c·N·R·ln N for one in an MLP, where F = 8d.
  """
  bits, pairs = max(1, (subjects - 1).bit_length()), subjects * math.log(subjects)
  if name == 'superposition':
    return {'dim': relations + bits + math.ceil(constant * relations * bits)}
  if name == 'associative_attention':
    return {'dim': (relations - 1).bit_length() + 2 + math.ceil(math.sqrt(constant * pairs))}
  dim = math.ceil(math.sqrt(constant * relations * pairs / 8))
  return {'dim': dim, 'width': 8 * dim}


def build_and_check(
  name: str, facts: Facts, hops: int, *, dtype: str = 'float32', check: str | None = 'auto',
  progress: Callable | None = None, timed: bool = False, **options,
) -> tuple[Construction, dict]:  # fmt: skip
  """A construction, built and (unless `check` is None) verified, and its record, with the seconds if `timed`."""
  start = time.perf_counter()
  built = registry.build(name, facts, hops, **options)
  check_representable(built, dtype)
  built_at = time.perf_counter()
  report = built.verify(check, dtype, progress) if check else None
  seconds = {'build_seconds': built_at - start, 'check_seconds': time.perf_counter() - built_at}
  book = built.ledger()
  return built, {
    'construction': name, 'subjects': facts.subjects, 'relations': facts.relations, 'hops': hops,
    'exact': built.margin is not None, 'chain_of_thought': built.chain_of_thought,
    'dim': built.config.dim, 'width': max((max(hidden, default=0) for hidden in book.hidden), default=0),
    'heads': max(book.heads), 'depth': book.depth,
    'dtype': dtype, 'check': report and report.check, 'queries': built.queries, 'accuracy': report and report.accuracy,
    'min_margin': report and report.min_margin, 'promised_margin': built.margin,
    'parameters': book.total_parameters, 'subject_bits': book.subject_bits,
    'internal_bits': book.internal_bits, 'bound_bits': book.bound_bits,
    'times_bound': book.times_bound if book.bound_bits else None,  # a bound of 0 says nothing
    **(seconds if timed else {}),
  }  # fmt: skip


def build_each(names: Sequence[str], build: Callable[[str], dict]) -> list[dict]:
  """The records of the constructions that can be built; the others are skipped with a warning that says why."""
  records: list[dict] = []
  skipped: dict[str, list[str]] = {}
  for name in names:
    try:
      records.append(build(name))
    except InputError as error:
      skipped.setdefault(str(error), []).append(name)
  if not records:
    raise InputError(f'no construction can be built at these sizes: {next(iter(skipped))}')
  for reason, without in skipped.items():
    cli.warn(f'skipped {", ".join(without)}: {reason}')
  return records
