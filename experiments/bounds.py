"""The figure of the theory: bits inside the network against bits in a subject's embedding.

  python -m experiments.bounds --subjects=64 --relations=4 --hops=2
  python -m experiments.bounds --subjects=3 --relations=2 --hops=2
  python -m experiments.bounds --redraw

Below the curves no model can answer all k-hop questions about all bijections. The curves are the
paper's global bound and our sharper one; our local bound by trees (the paper has a weaker one,
whose formula we lack) and our sharper ones; and, where all tables can be counted (up to N = 4 or
so), the count itself. Each construction is a point; it is built here, and verified if it has at
most 2¹⁷ queries. With chain of thought only the global bounds hold, so those points are hollow.
Expected: no construction lies below the bounds.

The lower panel shows, in units of N·R·log₂N and R^k·log₂N, the line that partly_precomputed runs
along at sizes too large to build, for k = 2 and 3, by its formulas: the bits that depend on the
facts, and those of all words in its weights. Expected: at β = ½ the bits that depend on the facts
are at most 1.25 times the bound.
"""

import dataclasses
import math

from experiments.harness import plotting, render, tradeoff
from experiments.harness.findings import Claim, over_seeds
from experiments.harness.statistics import groups, select
from experiments.harness.study import Study
from geomem import facts as fact

COLUMNS = [
  'construction', 'depth', 'dim', 'width', 'accuracy', 'subject_bits', 'internal_bits', 'bound_bits',
  'times_bound',
]  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  subjects: int = 64
  relations: int = 4
  hops: int = 2
  line_subjects: int = 10**6
  line_relations: int = 8


PRESETS = {'smoke': Preset(subjects=3, relations=2), 'laptop': Preset(), 'full': Preset()}


def measure(progress, preset, seeds):
  """One record per construction, per point of the curves, and per point of the lines in the lower
  panel."""
  sizes = preset.subjects, preset.relations, preset.hops
  fact.check_sizes(*sizes)
  records = tradeoff.measure(*sizes, seeds[0], progress)
  large = preset.line_subjects, preset.line_relations
  return records + [record for hops in (2, 3) for record in tradeoff.line(*large, hops)]


def expect(table):
  """How far the constructions lie above the bounds, and our sharper bounds above the plain ones."""
  built = select(table, kind='construction', chain_of_thought=False)
  for name, times in zip(built['construction'], built['times_bound'].astype(float), strict=True):
    if times > 0:
      what = f'{name.replace("_", " ")}: B_int / highest lower bound at its B_emb'
      yield from over_seeds(what, [times], 1.0)
  for kind, what in (
    ('global', 'global bound: ours / the paper’s'),
    ('local', 'our local bounds: sharper / by trees'),
  ):
    bits = [select(table, bound=b)['internal_bits'].to_numpy() for b in (kind, f'sharp_{kind}')]
    ratios = [sharp / plain for plain, sharp in zip(*bits, strict=True) if plain]
    yield from over_seeds(f'{what}, minimum over B_emb', [min(ratios)] if ratios else [], 1.0)
  for (hops,), some in groups(select(table, kind='line', beta=0.5), 'hops'):
    bits, bound = (some[name].astype(float).tolist() for name in ('fact_bits', 'bound_bits'))
    N, R = some.iloc[0]['subjects'], some.iloc[0]['relations']
    text = f'k = {hops:.0f}, β = ½: '
    whole = [bound[0] / (N * R * math.log2(N))]
    yield from over_seeds(f'{text}lower bound / N·R·log₂N', whole, 0.389)
    what = f'{text}internal bits that depend on the facts / lower bound'
    yield from over_seeds(what, [bits[0] / bound[0]], 1.0, 1.25)


def plot(table):
  """The curves and the constructions, with the region below the highest curve shaded; and the
  lines."""
  figure, (ax, line) = plotting.new(width=6.4, height=6.6, rows=2)
  _plot_built(ax, select(table, kind='construction'), select(table, kind='bound'))
  _plot_line(line, select(table, kind='line'))
  first = select(table, kind='construction').iloc[0]
  figure.suptitle(
    f'N = {first["subjects"]:.0f}, R = {first["relations"]:.0f}, k = {first["hops"]:.0f}: '
    'without chain of thought, no model lies in the shaded region', fontsize=9,
  )  # fmt: skip
  return figure


def _plot_built(ax, built, bounds):
  tradeoff.draw_bounds(ax, bounds)
  highest = bounds.groupby('subject_bits')['internal_bits'].max()
  ax.fill_between(highest.index, highest, color=plotting.GREY, alpha=0.15, linewidth=0)
  for i, point in enumerate(built.to_dict('records')):
    color, marker = plotting.cycle(i)
    face, name = color, point['construction']
    if not point['exact'] and point['accuracy'] >= 0:
      name += f' (accuracy {point["accuracy"]:.1%})'
    if point['chain_of_thought']:
      face, name = 'white', f'{name} (global bounds)'
    at = point['subject_bits'], point['internal_bits']
    ax.plot(*at, marker, color=color, markerfacecolor=face, linestyle='', label=name)
  peaks = bounds.groupby('bound')['internal_bits'].max()
  lowest = min([*peaks[peaks > 0], *built['internal_bits']])
  ax.set(xscale='log', yscale='log', xlabel='bits in one subject embedding, $B_{emb}$',
         ylabel='bits in the rest of the network, $B_{int}$')  # fmt: skip
  ax.set(xlim=(1, None), ylim=(lowest / 4, None))
  plotting.legend_beside(ax)


def _plot_line(ax, rows):
  for i, ((hops,), some) in enumerate(groups(rows, 'hops')):
    N, R = some.iloc[0]['subjects'], some.iloc[0]['relations']
    x = some['subject_bits'] / (R**hops * math.log2(N))
    (color, _), whole = plotting.cycle(i), N * R * math.log2(N)
    for column, style, what in (
      ('internal_bits', 's:', 'partly_precomputed, all bits'),
      ('fact_bits', 'o-', 'partly_precomputed, bits that depend on the facts'),
      ('bound_bits', '--', 'lower bound'),
    ):
      label = f'k = {hops:.0f}: {what}'
      size = {'markersize': 8 - 4 * i, 'linewidth': 3 - 1.8 * i}  # the lines nearly coincide
      ax.plot(x, some[column] / whole, style, color=color, label=label, **size)
  ax.set(xlabel='$B_{emb}$ / $R^k\\log_2N$', ylabel='$B_{int}$ / $N R\\log_2N$', ylim=(0, None))
  ax.set_title(f'N = {N:,.0f}, R = {R:.0f}: the line 1 − β')
  plotting.legend_beside(ax)


STUDY = Study(
  name='bounds', title='the lower bounds, together with every construction', page='theory.md',
  claims=(
    Claim('Theorem 4.2', 'Without chain of thought, bits inside the network trade off against bits in an embedding: no '
          'construction lies below the bound. Our bounds are the sharper ones, and one construction runs along the line of this trade-off (in bits that depend on the facts, at large N).'),
  ),
  terms='B_emb: bits in a subject’s embedding. B_int: bits in everything else.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot, minutes=0.2, first_seed=0,
  resumes=False,
  more=lambda table: render.table(select(table, kind='construction')[COLUMNS]),
)  # fmt: skip


if __name__ == '__main__':
  STUDY.main()
