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
through it. How many bits of facts a parameter comes to hold is reported, and nothing expected of it.
"""

import dataclasses
import itertools
from typing import Annotated, Literal, get_args

import numpy as np
import pandas as pd

from constructions import registry
from experiments.harness import plotting, render, searching, statistics
from experiments.harness.findings import Claim, Finding, over_seeds
from experiments.harness.statistics import complete, groups, select
from experiments.harness.study import Study
from geomem import facts as fact
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.training.recipe import Recipe

Find = Literal['dim', 'dim_at_width', 'width', 'subjects']
FINDS = get_args(Find)
SUBJECTS = {'smoke': (8, 16), 'laptop': (16, 48, 144), 'full': (64, 256, 1024, 4096)}
USED_BY: dict[str, tuple] = {  # the searches that use a flag, and the values that presets give it
  'subjects': ({'dim', 'dim_at_width', 'width'}, SUBJECTS.values()),
  'dim': ({'width', 'subjects'}, [8]),
  'width': ({'dim_at_width'}, [64]),
}
TITLES = {
  'dim': 'smallest d, F = 4d',
  'dim_at_width': 'smallest d, F = {width:.0f}',
  'width': 'smallest F, d = {dim:.0f}',
  'subjects': 'largest N, d = {dim:.0f}, F = 4d',
}
LAWS = {'R·log2 N': np.log2, 'R·√N': np.sqrt, 'R·N': np.positive}  # of the size, but for R
CELL = 'find', 'subjects', 'relations'
slope = lambda by_seed: line(by_seed)[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """Every pair of a learning rate and a weight decay is tried; the best counts."""

  find: Annotated[tuple[Find, ...], 'What to look for.']
  subjects: tuple[int, ...]
  relations: tuple[int, ...]
  dim: Annotated[int, 'd, where it is fixed.', 1] = 8
  width: Annotated[int, 'F, where it is fixed.', 1] = 64
  learning_rate: tuple[float, ...] = (0.01, 0.03)
  weight_decay: tuple[float, ...] = (0.01,)
  steps: int = 2000
  target: float = 0.99
  seeds: int = 5

  def __post_init__(self):
    for sizes in itertools.product(self.subjects, self.relations):
      fact.check_sizes(*sizes)
    for name, (users, given) in USED_BY.items():
      if not users & {*self.find} and getattr(self, name) not in given:
        raise InputError(f'--{name} means nothing to --find={",".join(self.find)}; leave it out')
    Recipe(self.steps, target=self.target)  # refuses what is no accuracy


PRESETS = {
  'smoke': Preset(find=('dim',), subjects=SUBJECTS['smoke'], relations=(2,), seeds=1),
  'laptop': Preset(find=FINDS[:3], subjects=SUBJECTS['laptop'], relations=(2, 4)),
  'full': {
    find: Preset(find=(find,), subjects=SUBJECTS['full'], relations=(2, 4, 8)) for find in FINDS
  },
}


def measure(trainer, preset, seeds):
  """A record a case, one a size that was tried, and the exact constructions at the same N and R for their bits."""
  recipe = Recipe.with_warmup(preset.steps, target=preset.target)
  rates = tuple(itertools.product(preset.learning_rate, preset.weight_decay))
  cases = [
    searching.Case(find, *case)
    for find in preset.find
    for case in itertools.product(
      [0] if find == 'subjects' else preset.subjects, preset.relations, seeds
    )
  ]
  setting = searching.Setting(recipe, rates, preset.dim, preset.width)
  found, probes = searching.measure(cases, setting, trainer.train, kind='threshold')
  records = [*found.values(), *probes]
  for n, r in dict.fromkeys((c.subjects, c.relations) for c in cases if c.subjects):
    for name in ('selector', 'attention_only', 'keyvalue'):
      book = registry.build(name, Facts.bijections(n, r)).ledger()
      records.append({
        'kind': 'construction', 'construction': name, 'subjects': n, 'relations': r,
        'parameters': book.total_parameters, 'bits_per_parameter': book.bits_per_parameter,
      })  # fmt: skip
  return records


def line(by_seed, law: str = 'R·log2 N') -> tuple[float, float, float]:
  """Intercept, slope and R² of the line through the sizes against a law, those of all seeds taken together."""
  rows = pd.concat(by_seed)
  return statistics.line(rows['relations'] * LAWS[law](rows['subjects']), rows['value'])


def fitted(table):
  """(find, the sizes by seed, how many are left out) of what a line goes through: several sizes of several N and R.

  Left out are cases in which nothing was found, or nothing smaller failed.
  """
  for find in ('dim', 'dim_at_width'):
    own = select(table, kind='threshold', find=find)
    found = own[own['value'].notna() & own['floor'].ne(True)]
    by_seed = [rows for _, rows in groups(found, 'seed')]
    if found['value'].nunique() > 1 and np.isfinite(slope(by_seed)):
      yield find, by_seed, len(own) - len(found)


def name_of(table, find: str) -> str:
  """What was looked for, as the figure has it; only what was found has sizes."""
  own = select(table, kind='threshold', find=find)
  return TITLES[find].format(**own[own['value'].notna()].iloc[0])


def expect(table):
  """The lines, with their intervals over seeds, and the bits at threshold."""
  law, *others = LAWS
  r2 = lambda by_seed: line(by_seed, law)[2]
  ahead = lambda by_seed: r2(by_seed) - max(line(by_seed, other)[2] for other in others)

  def joint(what, statistic, at_least=None, **controls):
    interval = statistics.jackknife(by_seed, statistic)
    return Finding(what, statistic(by_seed), *interval, len(by_seed), at_least, controls=controls)

  for find, by_seed, _ in fitted(table):
    yield joint(f'{name_of(table, find)}: slope against R·log2 N', slope)
  for find, by_seed, _ in fitted(table):
    beside = {other: line(by_seed, other)[2] for other in others}
    yield joint(f'{name_of(table, find)}: R² of a line in R·log2 N', r2, 0.8, **beside)
    yield joint(f'{name_of(table, find)}: R² ahead of the best other law', ahead, 0.0)
  found, highest = complete(asked(table), *CELL), pd.Series(dtype=float)
  for (find, n, r), rows in groups(select(found, find='width'), *CELL):
    yield from over_seeds(f'{name_of(table, find)}, N = {n}, R = {r:.0f}', rows['value'])
  for (find, n), rows in groups(complete(found, *CELL, bordered=True), 'find', 'subjects'):
    bits = rows.groupby('seed')['bits_per_parameter'].mean()
    highest = max(highest, bits, key=lambda bits: bits.mean() if len(bits) else 0.0)
    yield from over_seeds(f'bits of facts per parameter: {name_of(table, find)}, N = {n}', bits)
  yield from over_seeds('bits of facts per parameter, the highest of all sizes', highest)


def asked(table):
  """What was looked for, with the N that was asked for."""
  own = select(table, kind='threshold')
  whole = own['subjects'].astype(int).astype(object)
  return own.assign(subjects=whole.mask(own['find'] == 'subjects', 'any'))


def more(table):
  """The sizes found, and the lines through them."""
  text = render.table(statistics.summarize(asked(table), *CELL))
  for find, by_seed, missing in fitted(table):
    ends = '{:.3g} + {:.3g}·R·log2 N, R² {:.3g}'.format(*line(by_seed))
    text += f'\n\n{find} = {ends}; left out: {missing}'
  if asked(table)['value'].isna().all():
    text += '\n\nno size succeeded: no figure; more --steps, or another --learning_rate?'
  return text


def plot(table):
  """A panel for each kind of search, and one of bits per parameter at the border."""
  found = select(table[table['value'].notna()], kind='threshold')
  finds = [find for find in TITLES if (found['find'] == find).any()]
  if not finds:
    return None
  figure, panels = plotting.new(2.9 * (len(finds) + 1), 2.9, 1, len(finds) + 1, squeeze=False)
  lines = {find: by_seed for find, by_seed, _ in fitted(table)}
  for ax, find in zip(panels[0], finds, strict=False):
    _plot_sizes(ax, find, select(found, find=find), lines.get(find))
    ax.set_title(name_of(table, find))
  _plot_bits(panels[0][-1], found, select(table, kind='construction'))
  return figure


def _plot_sizes(ax, find: str, own, by_seed):
  """What was found against R·log2 N (for `subjects`: against R), every seed a mark."""
  at = lambda rows: rows['relations'] * (1 if find == 'subjects' else np.log2(rows['subjects']))
  for i, (relations, rows) in enumerate(own.groupby('relations')):
    color, marker = plotting.cycle(i)
    label = f'$R$ = {relations:.0f}'
    ax.plot(at(rows), rows['value'], marker, color=color, alpha=0.6, label=label)
  if by_seed:
    intercept, through, _ = line(by_seed)
    low, high = statistics.jackknife(by_seed, slope)
    label = f'slope {through:.2g}' + f' [{low:.2g}, {high:.2g}]' * bool(np.isfinite(low))
    ends = np.array([at(own).min(), at(own).max()])
    ax.plot(ends, intercept + through * ends, '-', color=plotting.GREY, label=label)
  ax.set_xlabel('relations, $R$' if find == 'subjects' else r'$R\,\log_2 N$')
  ax.set_ylabel({'width': '$F^*$', 'subjects': '$N^*$'}.get(find, '$d^*$'))
  if find == 'subjects':
    plotting.logarithmic(ax.yaxis)
  else:
    ax.set_ylim(bottom=0)
  ax.legend()


def _plot_bits(ax, found, built):
  """Facts, in bits, for each parameter of the whole model, next to what others report."""
  draw = lambda name, rows, *style, **more: ax.plot(
    rows['subjects'] * rows['relations'], rows['bits_per_parameter'], *style, label=name.replace('_', ' '), **more
  )  # fmt: skip
  for i, (find, rows) in enumerate(found.groupby('find', sort=False)):
    color, marker = plotting.cycle(i)
    draw(find, rows, marker, color=color, alpha=0.6)
  faces = itertools.cycle((plotting.BLACK, plotting.GREY, 'white'))
  for (name, rows), face in zip(built.groupby('construction', sort=False), faces, strict=False):
    draw(name, rows, 'P', color=plotting.BLACK, markerfacecolor=face, markersize=4)
  for bits, dashes in plotting.LANGUAGE_MODELS.items():
    plotting.level(ax, bits, f'{bits:g} bits', dashes)
  plotting.logarithmic(ax.xaxis)
  ax.set(ylim=(0, 4), xlabel='facts, $N R$', title='bits per parameter')
  plotting.legend_beside(ax)


STUDY = Study(
  name='threshold',
  title='the smallest models that learn all facts, against R·log₂N',
  claims=(Claim('Claim 1', 'The smallest d that gradient descent needs grows as R·log₂N.'),),
  terms='A size is the smallest at which 99% of the queries are right. The smallest that can be tried is no '
  'threshold: lines leave such sizes out, and bits the cases in which a seed has one. Bits of facts: R·log₂N!, less '
  'what wrong answers leave open at most by Fano’s inequality.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot, more=more, minutes=2.5,
)  # fmt: skip


if __name__ == '__main__':
  STUDY.main()
