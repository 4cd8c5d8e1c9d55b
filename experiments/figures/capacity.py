"""Draw bits of facts per parameter, and per bit of weight, against the number of facts."""

import matplotlib
import numpy as np

from experiments.figures import drawing
from experiments.figures.threshold import LINES
from experiments.harness import statistics

AXES = {
  'bits_a_parameter': 'bits of facts per parameter',
  'bits_a_bit': 'bits of facts per bit of weight',
}


@matplotlib.rc_context(drawing.STYLE)
def draw(records: list[dict], folder) -> list:
  """Two panels; trained models a mark a seed, everything else at its mean."""
  figure, panels = drawing.new(10.4, 3.6, 1, 2)
  for ax, (name, label) in zip(panels, AXES.items(), strict=True):
    own = [r for r in records if r[name] is not None]
    for i, kind in enumerate(dict.fromkeys(r['model'] for r in own)):
      _series(ax, statistics.where(own, model=kind), name, kind, i)
    drawing.logarithmic(ax.xaxis)
    ax.set(yscale='log', xlabel='facts, $N R$', ylabel=label)
  for bits, dashes in LINES.items():
    panels[0].axhline(bits, linestyle=dashes, color=drawing.GREY, linewidth=1)
    panels[0].annotate(f'{bits:g}', (1.0, bits), xycoords=('axes fraction', 'data'), va='center')
  panels[1].axhline(1, color=drawing.GREY, linewidth=1)
  panels[1].annotate('limit', (1.0, 1), xycoords=('axes fraction', 'data'), va='center')
  drawing.legend_beside(panels[1])
  return drawing.save(figure, folder / 'capacity')


def _series(ax, records, name: str, kind: str, i: int):
  color, marker = drawing.cycle(i)
  if kind == 'trained':
    points = [(r['subjects'] * r['relations'], r[name]) for r in records]
    style = {'color': drawing.BLACK, 'alpha': 0.5, 'linestyle': '', 'markersize': 4}
    ax.plot(*zip(*points, strict=True), 'o', label='trained, at threshold', **style)
    return
  groups = statistics.groups(records, 'subjects', 'relations')
  points = [(g[0]['subjects'] * g[0]['relations'], np.mean([r[name] for r in g])) for g in groups]
  ax.plot(
    *zip(*points, strict=True),
    marker,
    color=color,
    markersize=4,
    alpha=0.8,
    label=kind.replace('_', ' '),
  )
