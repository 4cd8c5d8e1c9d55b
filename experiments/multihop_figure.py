"""Draw what chains of relations cost: accuracy by hops, the bounds with trained models, one hop more."""

import matplotlib
import numpy as np

from experiments import bounds, figures, statistics

NAMES = {'direct': 'at once', 'chain': 'chain of thought', 'last': 'chain shown, last trained'}


@matplotlib.rc_context(figures.STYLE)
def draw(records: list[dict], folder) -> list:
  """Three panels; every seed a mark."""
  figure, panels = figures.new(11.6, 3.2, 1, 3)
  trained = [r for r in records if r['kind'] == 'trained']
  _by_hops(panels[0], trained)
  _bounds(panels[1], records, trained)
  _one_more(panels[2], trained)
  return figures.save(figure, folder / 'multihop')


def _by_hops(ax, records):
  """Accuracy against the hops, a line a mode, depth and size."""
  depths = sorted({r['depth'] for r in records})
  sizes = list(dict.fromkeys((r['dim'], r['width']) for r in records))
  for group in statistics.groups(records, 'mode', 'depth', 'dim', 'width'):
    first = group[0]
    if first['mode'] == 'last':
      continue
    color, _ = figures.cycle(sizes.index((first['dim'], first['width'])))
    marker = 's' if first['mode'] == 'chain' else 'ov^'[depths.index(first['depth']) % 3]
    by_hops = {
      hops: [r['value'] for r in group if r['hops'] == hops] for hops in {r['hops'] for r in group}
    }
    x = sorted(by_hops)
    label = f'd={first["dim"]} F={first["width"]}, ' + (
      'chain' if first['mode'] == 'chain' else f'depth {first["depth"]}'
    )
    ax.plot(x, [np.mean(by_hops[k]) for k in x], linestyle='-' if first['mode'] == 'direct' else '--',
            marker=marker, color=color, label=label, markersize=4)  # fmt: skip
  ax.set_xticks(sorted({r['hops'] for r in records}))
  ax.set(xlabel='hops, $k$', ylabel='accuracy', ylim=(-0.03, 1.03), title='all $N R^k$ queries')
  ax.legend(fontsize=5)


def _bounds(ax, records, trained):
  """Trained models that reach 0.99, at the bits that they need, beside the bounds without chain of thought."""
  most = max(r['hops'] for r in trained)
  own = [r for r in trained if r['hops'] == most and r['value'] >= 0.99 and r['bits'] < 32]
  built = [r for r in records if r['kind'] == 'construction']
  for name, (label, color, dashes) in bounds.STYLES.items():
    curve = [(c['subject_bits'], c['internal_bits']) for c in records if c.get('bound') == name]
    if any(bits for _, bits in curve):
      ax.plot(*zip(*curve, strict=True), dashes, color=color, label=label)
  for chain in (False, True):
    points = [
      (p['subject_bits'], p['internal_bits']) for p in built if p['chain_of_thought'] == chain
    ]
    face = 'white' if chain else figures.BLACK
    label = 'built, chain of thought' if chain else 'built'
    ax.plot(
      *zip(*points, strict=True),
      'P',
      color=figures.BLACK,
      markerfacecolor=face,
      label=label,
      markersize=4,
    )
  for i, mode in enumerate(('direct', 'chain')):
    points = [(r['subject_bits'], r['internal_bits']) for r in own if r['mode'] == mode]
    if points:
      color = (figures.RED, figures.PINK)[i]
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
  ax.legend(fontsize=5)


def _one_more(ax, records):
  """Accuracy at one hop more than was trained, against the hops trained on."""
  for i, mode in enumerate(NAMES):
    own = [r for r in records if r['mode'] == mode and r['value'] >= 0.99]
    color, marker = figures.cycle(i)
    if own:
      x = [r['hops'] + 0.08 * (i - 1) for r in own]
      ax.plot(
        x,
        [r['one_more'] for r in own],
        marker,
        color=color,
        alpha=0.5,
        label=NAMES[mode],
        markersize=4,
      )
  ax.axhline(1 / records[0]['subjects'], color=figures.GREY, linestyle=':', label='chance')
  ax.set_xticks(sorted({r['hops'] for r in records}))
  ax.set(
    xlabel='hops trained on, $k$',
    ylabel='accuracy at $k + 1$',
    ylim=(-0.03, 1.03),
    title='one hop more',
  )
  ax.legend(fontsize=6)
