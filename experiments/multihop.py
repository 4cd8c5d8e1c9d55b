"""Chains of relations: what they cost a trained model, with and without chain of thought. Claim 7.

  python -m experiments.multihop

The smallest d, at F = 4d, that answers 0.99 of all N·R^k queries of k hops: at once (direct, of one
layer and of more), naming every subject on the way (chain), or told the way and asked for the last
answer alone (last). Expected: direct, the width grows with k, exponentially, or depth and width
together hold N·R facts; with chain of thought one layer and a width that does not depend on k are
enough. Those found for the most hops are rounded to the fewest bits per weight at which they stay at
0.99; at once and with the chain said they stand in the figure of the bounds, beside the constructions. Last,
chains of fewer hops than the most are learned together and one hop more is asked for, at a position that was
never trained.
"""

import dataclasses

import numpy as np

from experiments.harness import instances, plotting, render, searching, tradeoff
from experiments.harness.findings import Claim, over_seeds
from experiments.harness.statistics import complete, groups, select, summarize, values
from experiments.harness.study import Study
from geomem.config import Config
from geomem.training import batched, optimization
from geomem.training.recipe import Recipe

RATES = ((0.01, 0.01),)  # of 45 that learned at this rate or a third of it, 44 did at this one
RESOLUTION = 0.1  # widths closer than this, as a fraction, are not told apart
MODES = {'direct': (False, 'answer'), 'chain': (True, 'chain'), 'last': (True, 'answer')}
NAMES = {'direct': 'at once', 'chain': 'chain of thought', 'last': 'chain shown, last trained'}
EXPECTED: dict = {
  ('direct', 1): {'at_least': 2.0},
  ('chain', 1): {'at_most': 1.5},
}  # of the growth of d


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """`depths`: of the direct models (with chain of thought there is one layer). `dim`: d, of the longer chains.

  `modes`: of `MODES`, those searched. `guess`: the d where a mode's first search begins, if known better.
  """

  subjects: int
  relations: int
  hops: tuple[int, ...] = (1, 2, 3, 4)
  depths: tuple[int, ...]
  dim: int
  steps: int
  seeds: int
  modes: tuple[str, ...] = tuple(MODES)
  guess: int | None = None


PRESETS = {
  'smoke': Preset(
    subjects=4, relations=2, hops=(2,), depths=(1,), dim=8, steps=300, seeds=1, modes=('chain',), guess=14
  ),
  'laptop': Preset(subjects=16, relations=2, depths=(1, 2), dim=16, steps=800, seeds=4),
  'full': Preset(subjects=64, relations=3, depths=(1, 2, 4), dim=64, steps=4000, seeds=5),
}  # fmt: skip


def measure(trainer, preset, seeds):
  """Records of the longer chains, of all searches, and of what is built for the most hops with the bounds there."""
  records = longer(trainer, preset, seeds)
  for mode in preset.modes:
    for depth in preset.depths if mode == 'direct' else (1,):
      guess = preset.guess
      for hops in preset.hops:
        if mode == 'last' and hops == 1:
          continue  # one hop is a chain of one
        own = searched(trainer, preset, mode, hops, depth, seeds, guess)
        guess = max((r['value'] for r in own if r['value']), default=guess)
        records += own
  most = max(r.get('subject_bits', 0.0) for r in records)
  sizes = preset.subjects, preset.relations, max(preset.hops)
  return records + tradeoff.measure(*sizes, seeds[0], subject_bits=most)


def longer(trainer, preset, seeds):
  """Chains of up to one hop less than the most, learned together; each length asked for, and the most."""
  sizes, most = {'subjects': preset.subjects, 'relations': preset.relations}, max(preset.hops)
  recipe = Recipe.with_warmup(
    preset.steps, hops=most - 1, chain_of_thought=True, loss='chain', shorter=True, target=None
  )
  config = Config.trained(**sizes, dim=preset.dim, length=2 * most)
  tasks = [batched.Task(config, instances.bijections(**sizes, seed=s), *RATES[0], s) for s in seeds]

  def answered(params, job):
    of = lambda hops: dataclasses.replace(recipe, hops=hops)
    return {f'{k}': optimization.accuracy(config, of(k), job, params) for k in range(1, most + 1)}

  found = trainer.train_and_evaluate(recipe, tasks, answered)
  return [
    {
      'kind': 'longer', 'measurement': 'chains answered', 'model': 'chain', 'control': None, 'depth': 1, **sizes,
      'hops': int(k), 'trained_to': most - 1, 'dim': preset.dim, 'seed': seed, 'value': float(value),
    } for k, values_S in found.items()
    for seed, value in zip(seeds, values_S, strict=True)
  ]  # fmt: skip


def searched(trainer, preset, mode, hops, depth, seeds, guess):
  """The smallest d of every seed, sought from a guess on, and, of the most hops, the bits that its weights need."""
  chain, loss = MODES[mode]
  recipe = Recipe.with_warmup(preset.steps, hops=hops, chain_of_thought=chain, loss=loss)
  search = searching.Setting(recipe, RATES, depth=depth, guess=guess, resolution=RESOLUTION)
  cases = [searching.Case('dim', preset.subjects, preset.relations, seed) for seed in seeds]
  about = {
    'kind': 'trained', 'measurement': 'smallest dim', 'model': mode, 'control': None, 'depth': depth,
    'hops': hops,
  }  # fmt: skip
  found, _ = searching.measure(cases, search, trainer.train, **about)
  if hops == max(preset.hops):
    found = searching.rounded(found, search, trainer)
  for own in found.values():
    if bits := own.get('bits'):
      internal = own['parameters'] - own['subjects'] * own['value']
      own |= {'internal_bits': bits * internal, 'subject_bits': bits * own['value']}
  return [*found.values()]


def expect(table):
  """The width needed as hops are added, beside that of one hop; the bits inside; and the longer chains."""
  trained = select(table, kind='trained')
  for (mode, depth), group in groups(complete(trained, 'model', 'depth', 'hops'), 'model', 'depth'):
    name, most = f'{NAMES[mode]}, depth {depth:.0f}', group['hops'].max()
    for hops, own in group.groupby('hops'):
      yield from over_seeds(f'{name}: smallest d for {hops:.0f} hops', own['value'])
    alike = {'last': 'chain'}.get(mode, mode)  # one hop is a chain of one
    one = np.array(values(trained, model=alike, depth=depth, hops=1))
    if most > 1 and len(one) and not np.isnan(one).any():
      growth = list(values(group, hops=most) / one)
      text = f'{name}: d for {most:.0f} hops / d for one'
      yield from over_seeds(text, growth, **EXPECTED.get((mode, depth), {}))
  built = select(table, kind='construction')
  rounded = trained[trained['internal_bits'].notna()]
  for (mode, depth, hops), own in groups(rounded, 'model', 'depth', 'hops'):
    text = f'{NAMES[mode]}, depth {depth:.0f}: bits inside, {hops:.0f} hops / those of the smallest built'
    like = select(built, chain_of_thought=mode != 'direct')['internal_bits']
    yield from over_seeds(text, own['internal_bits'] / like.min() if len(like) else [])
  for (hops, most), own in groups(select(table, kind='longer'), 'hops', 'trained_to'):
    text = f'chains of up to {most:.0f} learned, {hops:.0f} asked'
    chance = float(own['subjects'].iloc[0]) ** -hops
    least = 0.99 if hops <= most else None
    yield from over_seeds(text, own['value'], least, check=True, chance=[chance])


def plot(table):
  """Width by hops; the bounds with trained models at the most hops; one hop more than learned. A seed is a mark."""
  figure, panels = plotting.new(11.6, 3.2, 1, 3)
  for ax, draw, size in zip(panels, (_plot_dims, _plot_bits, _plot_longer), (6, 5, 6), strict=True):
    draw(ax, table)
    plotting.legend(ax, fontsize=size)
  return figure


def _plot_dims(ax, table):
  """The smallest d against the hops, a line a mode and depth through the means of complete cases."""
  trained = select(table, kind='trained')
  for i, ((mode, depth), own) in enumerate(groups(trained, 'model', 'depth')):
    label = NAMES[mode] + f', depth {depth:.0f}' * (mode == 'direct')
    plotting.spread(ax, own.assign(hops=own['hops'] + 0.05 * i), 'hops', i, label)
  ax.set(xlabel='hops, $k$', ylabel='smallest $d$', title='to answer 0.99 of $N R^k$ queries',
         xticks=sorted(trained['hops'].unique()))  # fmt: skip


def _plot_bits(ax, table):
  """Trained models that reach 0.99, at the bits that they need, beside the bounds without chain of thought."""
  tradeoff.draw_bounds(ax, table)
  for chain, label in ((False, 'built'), (True, 'built, chain of thought')):
    built = select(table, kind='construction', chain_of_thought=chain)
    ax.plot(built['subject_bits'], built['internal_bits'], 'P', color=plotting.BLACK, markersize=4,
            markerfacecolor='white' if chain else plotting.BLACK, label=label)  # fmt: skip
  for mode, color in (('direct', plotting.RED), ('chain', plotting.PINK)):
    own = select(table, kind='trained', model=mode)
    ax.plot(own['subject_bits'], own['internal_bits'], 'o', color=color, alpha=0.7,
            markerfacecolor=color if mode == 'direct' else 'white', label=f'trained, {NAMES[mode]}')  # fmt: skip
  most = select(table, kind='trained')['hops'].max()
  ax.set(xscale='log', yscale='log', xlabel='$B_{emb}$', ylabel='$B_{int}$')
  ax.set_title(f'bits at $k$ = {most:.0f}')


def _plot_longer(ax, table):
  """Chains answered, by their length; those longer than any that was learned are beyond the line."""
  longer = select(table, kind='longer')
  plotting.spread(ax, longer, 'hops', 0)
  hops, first = np.unique(longer['hops']), longer.iloc[0]
  ax.plot(hops, first['subjects'] ** -hops, ':', color=plotting.GREY, label='chance')
  ax.axvline(first['trained_to'] + 0.5, color=plotting.GREY, ls='--', label='learned up to here')
  ax.set(xlabel='hops asked for', ylabel='chains answered', title='one hop more')
  ax.set(xticks=hops, ylim=(-0.03, 1.03))


STUDY = Study(
  name='multihop',
  title='chains of relations, with and without chain of thought',
  claims=(
    Claim('Claim 7', 'Hops at once cost width that grows with their number; with chain of thought they do not.'),
  ),
  terms='Smallest d, at F = 4d, for 99% of all queries. At once: only the answer is said. Chain of thought: every '
  'subject on the way is said, trained, and must be right. Chain shown, last trained: the way is given, the answer '
  'alone trained and asked.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot, minutes=6,
  more=lambda table: render.table(
    summarize(table[table['measurement'].notna()], 'measurement', 'model', 'depth', 'hops')),
)  # fmt: skip


if __name__ == '__main__':
  STUDY.main()
