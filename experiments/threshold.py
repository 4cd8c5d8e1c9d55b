"""Claim 1: an embedding of size O(R log N) is enough, also for gradient descent.

  python -m experiments.threshold
  python -m experiments.threshold --find=dim --subjects=64 --subjects=256 --relations=4 --seeds=3
  python -m experiments.threshold --redraw

For every N, R and seed the smallest size that reaches --target of all queries, at the best of the
learning rates, found by halving; all cases are halved together. What can be looked for (--find):

  dim            the smallest d, with an MLP of F = 4d
  dim_at_width   the smallest d, with F = --width
  width          the smallest F, at d = --dim
  subjects       the largest N, at d = --dim and F = 4d

Expected: d* grows as R·log2 N, at about four bits of facts per coordinate, and no other law that is as simple
explains it better. F* is 1 until d is too small for the facts, then it grows with them: no line is put
through it. The run can be killed and taken up again.
"""

import dataclasses
import itertools
import math

import numpy as np
from absl import flags

from constructions import registry
from experiments import claims
from experiments.figures import threshold as threshold_figure
from experiments.harness import cli, fitting, machine, statistics, storage
from experiments.harness.findings import Finding, found, only
from experiments.harness.searching import FINDS, Case, Setting, amount, measure
from geomem import facts as fact
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.training.optimization import Recipe

FLAGS = flags.FLAGS
cli.define(
  'redraw',
  'steps',
  'target',
  'save_seconds',
  'profile',
  scale=cli.scale(claims.minutes('threshold')),
  subjects='N (repeatable; default: by --scale).',
  relations='R (repeatable; default: by --scale).',
  learning_rate='Peak learning rate (repeatable; default: 0.01 and 0.03); the best counts.',
  weight_decay='Weight decay of AdamW (repeatable; default: 0.01); the best counts.',
  dim='d, where it is fixed (default: 8).',
  width='F, where it is fixed (default: 64).',
  seed=f'The first seed, of parameters and facts (default: {fitting.FIRST}).',
  seeds='How many seeds, from --seed on (default: 5; 1 at --scale=smoke).',
  workdir='Folder of the run (default: runs/threshold).',
)
flags.DEFINE_multi_enum('find', None, FINDS, 'What to look for (repeatable; default: by --scale).')

PRESETS = {  # find, N, R, seeds
  'smoke': (('dim',), (8, 16), (2,), 1),
  'laptop': (('dim', 'dim_at_width', 'width'), (16, 48, 144), (2, 4), 5),
  'accelerator': (FINDS, (64, 256, 1024, 4096), (2, 4, 8), 5),
}
CONSTRUCTIONS = ('selector', 'attention_only', 'keyvalue')
CHANGES = (  # flags that say something of a search, and nothing of a figure drawn again
  'scale', 'subjects', 'relations', 'find', 'dim', 'width', 'seed', 'seeds', 'steps', 'target',
  'learning_rate', 'weight_decay', 'profile', 'save_seconds',
)  # fmt: skip
USED_BY = {  # what a size of one's own means something to
  'subjects': {'dim', 'dim_at_width', 'width'},
  'dim': {'width', 'subjects'},
  'width': {'dim_at_width'},
}
LAWS = {  # of the size in N and R
  'R·log2 N': lambda n, r: r * math.log2(n),
  'R·√N': lambda n, r: r * math.sqrt(n),
  'R·N': lambda n, r: r * n,
}
FIT_COLUMNS = (
  'find',
  'seeds',
  'missing',
  'slope',
  'slope_low',
  'slope_high',
  'intercept',
  *(f'explained by {name}' for name in LAWS),
)
COLUMNS = (
  'find',
  'subjects',
  'relations',
  'seeds',
  'found',
  'value',
  'least',
  'most',
  'parameters',
  'bits',
)


def constructed(cases: list[Case]) -> list[dict]:
  """The exact constructions at the same N and R, for their bits per parameter."""
  sizes = dict.fromkeys((c.subjects, c.relations) for c in cases if c.subjects)
  records = []
  for (n, r), name in itertools.product(sizes, CONSTRUCTIONS):
    config = registry.build(name, Facts.bijections(n, r)).config
    about = {'kind': 'construction', 'construction': name, 'subjects': n, 'relations': r}
    records.append({**about, **amount(config)})
  return records


def fits(records: list[dict]) -> list[dict]:
  """The line through size against R·log2 N, a seed's points drawn together; and what rival laws explain.

  Cases in which no size succeeded, or the smallest of all, are left out, and counted.
  """
  rows = []
  for find in FINDS:
    own = [r for r in records if r.get('kind') == 'threshold' and r['find'] == find]
    found = [r for r in own if statistics.is_border(r)]
    law = LAWS['R·log2 N']
    by_seed = [
      [(law(r['subjects'], r['relations']), r['value']) for r in group]
      for group in statistics.groups(found, 'seed')
    ]
    through_all = lambda seeds: statistics.line(list(itertools.chain(*seeds)))
    points = list(itertools.chain(*by_seed))
    varied = min(len({point[i] for point in points}) for i in (0, 1))
    if not find.startswith('dim') or varied < 2:  # no line through one size
      continue
    through = statistics.line(points)
    low, high = statistics.interval(by_seed, through_all)
    rows.append({
      'kind': 'fit', 'find': find, 'seeds': len(by_seed), 'missing': len(own) - len(found),
      'intercept': through[0], 'slope': through[1],
      'slope_low': low[1], 'slope_high': high[1],
      **{f'explained by {name}': _explained(law, found) for name, law in LAWS.items()},
    })  # fmt: skip
  return [{k: float(v) if isinstance(v, np.floating) else v for k, v in r.items()} for r in rows]


def _thresholds(records: list[dict]) -> list[dict]:
  """What was found, with the N that was asked for."""
  return [
    {**r, 'subjects': 'any'} if r['find'] == 'subjects' else r
    for r in records
    if r.get('kind') == 'threshold'
  ]


def _explained(law, records: list[dict]) -> float:
  """R² of the line through size against this law's."""
  points = [(law(r['subjects'], r['relations']), r['value']) for r in records]
  return statistics.explained(points, statistics.line(points))


def summary(records: list[dict]) -> list[dict]:
  """A row a case, over its seeds; no mean where some seed found nothing, for that would be too good."""
  rows = []
  for group in statistics.groups(_thresholds(records), 'find', 'subjects', 'relations'):
    row = {name: group[0][name] for name in ('find', 'subjects', 'relations')}
    rows.append(row | statistics.if_all(group, 'parameters', 'bits'))
  return rows


def _asked_for() -> tuple[list[Case], Setting]:
  """The cases and their setting by the flags, and where those are silent by the scale."""
  find, subjects, relations, seeds = PRESETS[FLAGS.scale]
  find, seeds = cli.values('find', find), cli.seeds(fitting.FIRST, seeds)
  subjects, relations = cli.values('subjects', subjects), cli.values('relations', relations)
  for n, r in itertools.product(subjects, relations):
    fact.check_sizes(n, r, 1)
  recipe = Recipe.with_warmup(FLAGS.steps, target=FLAGS.target)
  rates = cli.values('learning_rate', [0.01, 0.03]), cli.values('weight_decay', [0.01])
  for name, users in USED_BY.items():
    if FLAGS[name].value is not None and not set(find) & users:
      raise InputError(f'--{name} means nothing to --find={",".join(find)}; leave it out')
  sizes = cli.value('dim', 8), cli.value('width', 64)
  return [
    Case(f, n, r, s)
    for f in find
    for n, r, s in itertools.product([0] if f == 'subjects' else subjects, relations, seeds)
  ], Setting(recipe, *sizes, tuple(itertools.product(*rates)))


def _search(folder) -> list[dict]:
  cases, setting = _asked_for()
  about = {
    'command': fitting.command('threshold'),
    'scale': FLAGS.scale,
    'setting': dataclasses.asdict(setting),
    'cases': [dataclasses.astuple(c) for c in cases],
  }
  with fitting.run(folder, about) as fitter:
    records = measure(cases, setting, fitter)
    fitter.save()
    records += fits(records) + constructed(cases)
    storage.write_results(folder, records)
  return records


def findings(records: list[dict]) -> list[Finding]:
  """The fits, with their intervals over seeds, and the bits at threshold."""
  fits = [r for r in records if r.get('kind') == 'fit']
  found_all = [
    Finding(
      f'{_told(records, r)}: slope against R·log2 N', r['slope'], r['slope_low'], r['slope_high'], r['seeds']
    )
    for r in fits
  ]  # fmt: skip
  found_all += itertools.chain(*(_straightness(records, r) for r in fits))
  cell = 'find', 'subjects', 'relations'
  all_found = statistics.complete(_thresholds(records), *cell)
  for group in statistics.groups(
    statistics.where(all_found, find='width'), 'subjects', 'relations'
  ):
    first = group[0]
    text = f'{_told(records, first)}, N = {first["subjects"]}, R = {first["relations"]}'
    found_all += found(text, only(group))
  known, highest = statistics.complete(all_found, *cell, bordered=True), []
  for group in statistics.groups(known, 'find', 'subjects'):
    bits = [np.mean([r['bits'] for r in own]) for own in statistics.groups(group, 'seed')]
    highest = max(highest, bits, key=lambda values: np.mean(values) if values else 0.0)
    text = f'bits of facts per parameter: {_told(records, group[0])}, N = {group[0]["subjects"]}'
    found_all += found(text, bits)
  return found_all + found(
    'bits of facts per parameter, the highest of all sizes', highest, most=2.0
  )


def _told(records, about: dict) -> str:
  """What was looked for, as the figure has it; only what was found has sizes."""
  own = statistics.where(records, kind='threshold', find=about['find'])
  sizes = next(r for r in own if r['value'] is not None)
  return threshold_figure.TITLES[about['find']].format(**sizes).replace('$', '')


def _straightness(records, fit: dict) -> list[Finding]:
  """R² of the law over the sizes found, and by how much it is ahead of the best of its rivals."""
  own = statistics.where(records, kind='threshold', find=fit['find'])
  by_seed = statistics.groups(filter(statistics.is_border, own), 'seed')

  def judged(seeds) -> np.ndarray:
    law, *rivals = (_explained(law, list(itertools.chain(*seeds))) for law in LAWS.values())
    return np.array([law, law - max(rivals)])

  ends = zip(judged(by_seed), *statistics.interval(by_seed, judged), strict=True)
  (square, ahead), told = (tuple(map(float, row)) for row in ends), _told(records, fit)
  _, *rivals = (f'{name} {fit[f"explained by {name}"]:.3g}' for name in LAWS)
  return [
    Finding(
      f'{told}: R² of a line in R·log2 N', *square, fit['seeds'], 0.8, control=', '.join(rivals)
    ),
    Finding(f'{told}: R² ahead of the best other law', *ahead, fit['seeds'], 0.0),
  ]


def main(argv):
  cli.no_arguments(argv)
  machine.suit_small_models()
  folder = cli.workdir('runs/threshold')
  if FLAGS.redraw:
    cli.check_redraw(*CHANGES)
  records = storage.read_results(folder) if FLAGS.redraw else _search(folder)
  if not any(r.get('kind') == 'threshold' for r in records):
    raise InputError(f'{folder}: no thresholds among the results; run experiments.threshold first')
  print(cli.table(COLUMNS, summary(records)))
  if lines := [r for r in records if r.get('kind') == 'fit']:
    print('\nsize = intercept + slope · R·log2 N, with the 95% interval over seeds')
    print(cli.table(FIT_COLUMNS, lines))
  if not any(r['value'] for r in records if r.get('kind') == 'threshold'):
    print('no size succeeded: no figure; more --steps, or another --learning_rate?')
  else:
    print('figure: ' + ', '.join(map(str, threshold_figure.draw(records, folder))))
  print(f'records: {folder / "results.json"}')


if __name__ == '__main__':
  cli.run(main)
