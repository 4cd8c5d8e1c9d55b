"""Bits inside a network against bits in a subject's embedding: constructions, and lower bounds."""

import contextlib
import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from constructions import partly_precomputed, registry
from experiments.harness import instances, plotting, statistics
from geomem.checks import lower_bounds
from geomem.errors import InputError

MAX_QUERIES = 2**17  # larger instances are not verified here; experiments.construct does that
POINTS = 300  # points of a curve, and the most root counts that are tried for a local bound
STYLES = {
  'global': ('global, the paper', plotting.BLUE, '--'),
  'sharp_global': ('global, ours', plotting.BLUE, '-'),
  'local': ('local by trees, ours', plotting.ORANGE, '--'),
  'sharp_local': ('local sharper, ours', plotting.ORANGE, '-'),
  'closed_local': ('local by closed trees, ours', plotting.GREEN, '-'),
  'exact': ('exact count', plotting.BLACK, ':'),
}


def measure(
  subjects: int, relations: int, hops: int, seed: int, progress: Callable = lambda *_: None,
  subject_bits: float = 0.0,
) -> list[dict]:  # fmt: skip
  """A record for every construction that answers k-hop questions about bijections of the subjects, and for the bounds.

  The bounds cover B_emb from 1 to four times the largest of a construction, or of another model with `subject_bits`.
  """
  facts = instances.random_facts('bijections', subjects, relations, seed)
  check = 'auto' if subjects * relations**hops <= MAX_QUERIES else None
  fits = lambda known: not known.own_answers and (known.multi_hop or hops == 1)
  names = [name for name, known in registry.REGISTRY.items() if fits(known)]

  def build(name):
    progress(names.index(name), len(names), name)
    return {'kind': 'construction'} | instances.build_and_check(name, facts, hops, check=check)[1]

  records = instances.build_each(names, build)
  largest = max(subject_bits, *(r['subject_bits'] for r in records))
  return records + bounds(subjects, relations, hops, 4 * largest)


def bounds(subjects: int, relations: int, hops: int, max_bits: float) -> list[dict]:
  """The lower bounds on B_int as records, for B_emb from 1 to `max_bits` bits."""
  sizes = subjects, relations, hops
  lines = {  # bound → [(M, bits)]: B_int ≥ bits − M·B_emb
    'global': [(subjects, lower_bounds.global_bits(*sizes))],
    'sharp_global': [(subjects, lower_bounds.sharp_global_bits(*sizes))],
    'local': _local(lower_bounds.local_bits, sizes, lower_bounds.max_roots(*sizes)),
    'sharp_local': _local(lower_bounds.sharp_local_bits, sizes, subjects // hops),
  }
  if hops > 1:
    lines['closed_local'] = _local(lower_bounds.closed_local_bits, sizes, subjects, coprime=hops)
  with contextlib.suppress(InputError):  # too many tables to count
    lines['exact'] = _local(lower_bounds.exact_bits, sizes, subjects)
  emb_P = np.geomspace(1, max_bits, POINTS)
  highest = lambda line: np.max([0 * emb_P, *(bits - m * emb_P for m, bits in line)], axis=0)
  return [
    {'kind': 'bound', 'bound': name, 'subject_bits': emb_bits, 'internal_bits': bits}
    for name, line in lines.items()
    for emb_bits, bits in zip(emb_P.tolist(), highest(line).tolist(), strict=True)
  ]


def _local(bound: Callable, sizes: tuple, limit: int, coprime: int = 1) -> list[tuple[int, float]]:
  roots = np.unique(np.geomspace(1, max(1, limit), POINTS).round().astype(int)).tolist()
  return [(m, bound(*sizes, m)) for m in roots if m <= limit and math.gcd(m, coprime) == 1]


def line(subjects: int, relations: int, hops: int) -> list[dict]:
  """The line that `partly_precomputed` traces, by its formulas: a record for every S = 1 … R.

  `fact_bits` depend on the facts; `internal_bits` also count the N·m bits each of detectors and unembedding.
  """
  records = []
  bits = 2 * subjects * max(1, (subjects - 1).bit_length())
  for stored in range(1, relations + 1):
    own, rest = partly_precomputed.fact_bits(subjects, relations, hops, stored)
    records.append({
      'kind': 'line', 'subjects': subjects, 'relations': relations, 'hops': hops, 'beta': stored / relations,
      'subject_bits': own, 'fact_bits': rest, 'internal_bits': rest + bits,
      'bound_bits': lower_bounds.internal_bits(subjects, relations, hops, own),
    })  # fmt: skip
  return records


def draw_bounds(ax, table: pd.DataFrame):
  """A line for every bound that is not zero everywhere."""
  for name, (label, color, dashes) in STYLES.items():
    curve = statistics.select(table, bound=name)
    if curve['internal_bits'].any():
      ax.plot(curve['subject_bits'], curve['internal_bits'], dashes, color=color, label=label)
