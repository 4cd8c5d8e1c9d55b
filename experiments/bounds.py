"""The figure of the theory: bits inside the network against bits in a subject's embedding.

  python -m experiments.bounds --subjects=64 --relations=4 --hops=2
  python -m experiments.bounds --subjects=3 --relations=2 --hops=2
  python -m experiments.bounds --redraw

Below the curves no model can answer all k-hop questions about all bijections: the paper's global
bound and our sharper one, our local bound by trees (the paper has a weaker one, whose formula we
lack) and our sharper one, and where all tables can be counted (up to N = 4 or so) the count itself.
Each construction is a point, built here and up to 2¹⁷ queries verified. With chain of thought only
the global bounds hold, so those points are hollow.
"""

import contextlib
import itertools

import numpy as np
from absl import flags

from constructions import registry
from experiments.figures import bounds as bounds_figure
from experiments.harness import building, cli, storage
from experiments.harness.findings import Finding, found
from geomem import facts as fact
from geomem.checks import lower_bounds
from geomem.errors import InputError

FLAGS = flags.FLAGS
cli.define(
  'seed',
  'redraw',
  subjects='N, the number of subjects (default: 64).',
  relations='R, the number of relations (default: 4).',
  hops='k, the relations in a query (default: 2).',
  workdir='Folder for results.json, lower_bounds.png and lower_bounds.pdf (default: runs/bounds).',
)

COLUMNS = (
  'construction', 'depth', 'dim', 'width', 'accuracy', 'subject_bits', 'internal_bits', 'bound_bits',
  'times_bound',
)  # fmt: skip
SIZES = {'subjects': 64, 'relations': 4, 'hops': 2}
MAX_QUERIES = 2**17  # more are not verified here: experiments.construct does that
GRID = 300  # points of a curve, and at most as many numbers of roots behind a local bound


def points(
  subjects: int, relations: int, hops: int, seed: int, progress=None
) -> tuple[list[dict], dict[str, list[str]]]:
  """A record for every construction that answers k-hop questions about bijections of the subjects.

  And by the reason, which of them cannot be built: R^k branches or N·R units can be too many.
  """
  names = [
    name
    for name, known in registry.REGISTRY.items()
    if not known.own_answers and (known.multi_hop or hops == 1)
  ]
  facts = building.random_facts('bijections', subjects, relations, seed)
  records, skipped = [], {}
  check = 'auto' if subjects * relations**hops <= MAX_QUERIES else None
  for i, name in enumerate(names):
    try:
      _, record = building.build_and_check(name, facts, hops, check=check)
    except InputError as error:
      skipped.setdefault(str(error), []).append(name)
      continue
    finally:
      if progress:
        progress(i + 1, len(names))
    records.append({'kind': 'construction', **record})
  return records, skipped


def curves(subjects: int, relations: int, hops: int, reach: float) -> list[dict]:
  """The bounds on B_int as records, for B_emb from 1 to `reach` bits."""
  sizes = subjects, relations, hops
  lines = {  # bound → [(M, bits)]: B_int ≥ bits − M·B_emb
    'global': [(subjects, lower_bounds.global_bits(*sizes))],
    'sharp_global': [(subjects, lower_bounds.sharp_global_bits(*sizes))],
    'local': _local(lower_bounds.local_bits, sizes, lower_bounds.max_roots(*sizes)),
    'sharp_local': _local(lower_bounds.sharp_local_bits, sizes, subjects // hops),
  }
  with contextlib.suppress(InputError):  # too many tables to count
    lines['exact'] = _local(lower_bounds.exact_bits, sizes, subjects)
  price_P = np.geomspace(1, reach, GRID)
  return [
    {'kind': 'bound', 'bound': name, 'subject_bits': price, 'internal_bits': bits}
    for name, roots in lines.items()
    for price, bits in zip(price_P.tolist(), _envelope(roots, price_P).tolist(), strict=True)
  ]


def _local(bound, sizes, limit: int) -> list[tuple[int, float]]:
  roots = np.unique(np.geomspace(1, max(1, limit), GRID).round().astype(int))
  return [(m, bound(*sizes, m)) for m in roots.tolist() if m <= limit]


def _envelope(lines: list[tuple[int, float]], price_P) -> np.ndarray:
  best_P = np.zeros_like(price_P)
  for roots, bits in lines:
    best_P = np.maximum(best_P, bits - roots * price_P)
  return best_P


def findings(records: list[dict]) -> list[Finding]:
  """How far above the bounds the constructions are, and our sharper bounds above the plain ones."""
  found_all = []
  for r in records:
    if r.get('times_bound') and not r['chain_of_thought']:
      text = f'{r["construction"].replace("_", " ")}: B_int / the highest lower bound at its B_emb'
      found_all += found(text, [r['times_bound']], 1.0)
  for kind, what in (
    ('global', 'global bound: ours / the paper’s'),
    ('local', 'local bound, both ours: the sharper / by trees'),
  ):
    plain, sharp = (
      [r['internal_bits'] for r in records if r.get('bound') == name]
      for name in (kind, f'sharp_{kind}')
    )
    shares = [s / p for s, p in zip(sharp, plain, strict=True) if p]
    if shares:
      found_all += found(f'{what}, the least over B_emb', [min(shares)], 1.0)
  return found_all


def main(argv):
  cli.no_arguments(argv)
  folder, skipped = cli.workdir('runs/bounds'), {}
  if FLAGS.redraw:
    cli.check_redraw(*SIZES, 'seed')
    records = storage.read_results(folder)
  else:
    sizes = tuple(itertools.starmap(cli.value, SIZES.items()))
    fact.check_sizes(*sizes)
    progress = cli.Progress('constructions')
    records, skipped = points(*sizes, cli.value('seed', 0), progress)
    progress.clear()
    if not records:
      raise InputError(f'no construction can be built at these sizes: {next(iter(skipped))}')
    records += curves(*sizes, 4 * max(r['subject_bits'] for r in records))
    storage.write_results(folder, records)
  paths = bounds_figure.draw(records, folder)
  print(cli.table(COLUMNS, [r for r in records if r.get('kind') == 'construction']))
  for reason, without in skipped.items():
    print(f'skipped {", ".join(without)}: {reason}')
  print(f'records: {folder / "results.json"}; figure: {", ".join(map(str, paths))}')


if __name__ == '__main__':
  cli.run(main)
