"""Draw where gradient descent goes from a construction: accuracy, loss, and how alike it stays."""

import matplotlib
import numpy as np

from experiments.figures import drawing
from experiments.harness import statistics

PANELS = {
  'accuracy': 'accuracy',
  'loss': 'loss',
  'aligned': 'linear in the built ones, $R^2$',
  'superposition': 'superposition of its own, $R^2$',
  'away': 'away from the built, share',
}


@matplotlib.rc_context(drawing.STYLE)
def draw(records: list[dict], folder) -> list:
  """A row a construction, a panel a measure; colour the start, dashes the weight decay; means and ranges."""
  names = list(dict.fromkeys(r['construction'] for r in records))
  figure, panels = drawing.new(14, 2.6 * len(names), len(names), len(PANELS), squeeze=False)
  starts = list(dict.fromkeys(r['start'] for r in records))
  decays = sorted({r['weight_decay'] for r in records})
  for row, name in zip(panels, names, strict=True):
    for ax, (measure, label) in zip(row, PANELS.items(), strict=True):
      own = [
        r
        for r in records
        if r['construction'] == name and r['measurement'] == measure and not r['control']
      ]
      for group in statistics.groups(own, 'start', 'weight_decay'):
        _line(ax, group, starts.index(group[0]['start']), decays.index(group[0]['weight_decay']))
      ax.set(xlabel='step', ylabel=label, xscale='symlog')
      if measure == 'loss':
        ax.set_yscale('log')
    row[0].set_title(name.replace('_', ' '))
  panels[0][0].legend(fontsize=5)
  return drawing.save(figure, folder / 'from_constructed')


def _line(ax, group, i: int, j: int):
  color, marker = drawing.cycle(i)
  steps = sorted({r['step'] for r in group})
  values = [[r['value'] for r in group if r['step'] == step] for step in steps]
  label = f'{group[0]["start"]}, decay {group[0]["weight_decay"]:g}'
  ax.plot(
    steps,
    [np.mean(v) for v in values],
    '-' if j == 0 else '--',
    marker=marker,
    color=color,
    label=label,
    markersize=3,
  )
  ax.fill_between(
    steps, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.1, linewidth=0
  )
