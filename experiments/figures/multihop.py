"""Draw what chains of relations cost: width by hops, the bounds with trained models, one hop more."""

import matplotlib
import numpy as np

from experiments.figures import drawing
from experiments.figures.bounds import STYLES
from experiments.harness import statistics

NAMES = {'direct': 'at once', 'chain': 'chain of thought', 'last': 'chain shown, last trained'}


@matplotlib.rc_context(drawing.STYLE)
def draw(records: list[dict], folder) -> list:
  """Three panels; every seed a mark."""
  figure, panels = drawing.new(11.6, 3.2, 1, 3)
  trained = [r for r in records if r['kind'] == 'trained']
  _by_hops(panels[0], trained)
  _bounds(panels[1], records, trained)
  _longer(panels[2], [r for r in records if r['kind'] == 'longer'])
  return drawing.save(figure, folder / 'multihop')


def _by_hops(ax, records):
  """The smallest d against the hops, a line a mode and depth through the means of complete cases."""
  for i, group in enumerate(statistics.groups(records, 'model', 'depth')):
    color, marker = drawing.cycle(i)
    first = group[0]
    depth = f', depth {first["depth"]}' if first['model'] == 'direct' else ''
    known = [r for r in group if r['value'] is not None]
    ax.plot([r['hops'] + 0.05 * i for r in known], [r['value'] for r in known], marker, color=color,
            alpha=0.4, markersize=3)  # fmt: skip
    means = [
      (own[0]['hops'] + 0.05 * i, np.mean([r['value'] for r in own]))
      for own in statistics.groups(statistics.complete(group, 'hops'), 'hops')
    ]
    if means:
      ax.plot(*zip(*means, strict=True), marker=marker, color=color, markersize=4, label=NAMES[first['model']] + depth)  # fmt: skip
  ax.set_xticks(sorted({r['hops'] for r in records}))
  ax.set(
    xlabel='hops, $k$',
    ylabel='smallest $d$',
    title='to answer 0.99 of $N R^k$ queries',
  )
  drawing.legend(ax)


def _bounds(ax, records, trained):
  """Trained models that reach 0.99, at the bits that they need, beside the bounds without chain of thought."""
  most = max(r['hops'] for r in trained)
  own = [r for r in trained if r['hops'] == most and r['value'] is not None]
  built = [r for r in records if r['kind'] == 'construction']
  for name, (label, color, dashes) in STYLES.items():
    curve = [(c['subject_bits'], c['internal_bits']) for c in records if c.get('bound') == name]
    if any(bits for _, bits in curve):
      ax.plot(*zip(*curve, strict=True), dashes, color=color, label=label)
  for chain in (False, True):
    points = [
      (p['subject_bits'], p['internal_bits']) for p in built if p['chain_of_thought'] == chain
    ]
    face = 'white' if chain else drawing.BLACK
    label = 'built, chain of thought' if chain else 'built'
    ax.plot(
      *np.reshape(points, (-1, 2)).T,
      'P',
      color=drawing.BLACK,
      markerfacecolor=face,
      label=label,
      markersize=4,
    )
  for i, mode in enumerate(('direct', 'chain')):
    points = [(r['subject_bits'], r['internal_bits']) for r in own if r['model'] == mode]
    if points:
      color = (drawing.RED, drawing.PINK)[i]
      face = color if mode == 'direct' else 'white'
      ax.plot(*zip(*points, strict=True), 'o', color=color, markerfacecolor=face, alpha=0.7,
              label=f'trained, {NAMES[mode]}')  # fmt: skip
  ax.set(
    xscale='log',
    yscale='log',
    xlabel='$B_{emb}$',
    ylabel='$B_{int}$',
    title=f'bits at $k$ = {most}',
  )
  drawing.legend(ax, fontsize=5)


def _longer(ax, records):
  """Chains answered, by their length; those longer than any that was learned are beyond the line."""
  for group in statistics.groups(records, 'seed'):
    ax.plot(
      [r['hops'] for r in group], [r['value'] for r in group], 'o-', color=drawing.BLUE, alpha=0.6
    )
  hops = sorted({r['hops'] for r in records})
  chance = [records[0]['subjects'] ** -k for k in hops]
  ax.plot(hops, chance, ':', color=drawing.GREY, label='chance')
  ax.axvline(
    records[0]['trained_to'] + 0.5, color=drawing.GREY, linestyle='--', label='learned up to here'
  )
  ax.set_xticks(hops)
  ax.set(
    xlabel='hops asked for', ylabel='chains answered', ylim=(-0.03, 1.03), title='one hop more'
  )
  drawing.legend(ax)
