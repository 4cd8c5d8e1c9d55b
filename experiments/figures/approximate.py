"""Draw how accuracy grows with size where a construction is not exact."""

from pathlib import Path

import matplotlib

from experiments.figures import drawing
from experiments.harness import statistics
from geomem.errors import InputError


@matplotlib.rc_context(drawing.STYLE)
def draw(records: list[dict], folder: Path) -> list[Path]:
  """Accuracy against parameters, the band from the worst seed to the best."""
  if not records or any('constant' not in record for record in records):
    raise InputError(f'{folder}: not results of experiments.approximate')
  figure, ax = drawing.new(width=6.0, height=3.4)
  rows = statistics.over_seeds(records, 'construction', 'constant', of='accuracy')
  for i, name in enumerate(dict.fromkeys(r['construction'] for r in records)):
    color, marker = drawing.cycle(i)
    own = [row for row in rows if row['construction'] == name]
    x = [row['parameters'] for row in own]
    ax.plot(x, [row['accuracy'] for row in own], marker + '-', color=color, label=name)
    ax.fill_between(
      x,
      [row['least'] for row in own],
      [row['most'] for row in own],
      color=color,
      alpha=0.2,
      linewidth=0,
    )
  first = records[0]
  drawing.logarithmic(ax.xaxis)
  ax.set(ylim=(0, 1.03), xlabel='parameters', ylabel='accuracy over all queries')
  ax.set_title(f'N = {first["subjects"]}, R = {first["relations"]}, {rows[0]["seeds"]} seeds')
  drawing.legend_beside(ax)
  return drawing.save(figure, folder / 'approximate')
