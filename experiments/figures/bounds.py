"""Draw the lower bounds on the bits inside a network, and every construction beside them."""

from pathlib import Path

import matplotlib

from experiments.figures import drawing
from geomem.errors import InputError

STYLES = {
  'global': ('global, the paper', drawing.BLUE, '--'),
  'sharp_global': ('global, ours', drawing.BLUE, '-'),
  'local': ('local by trees, ours', drawing.ORANGE, '--'),
  'sharp_local': ('local sharper, ours', drawing.ORANGE, '-'),
  'exact': ('exact count', drawing.BLACK, ':'),
}


def _share(point: dict) -> str:
  if point['exact'] or point['accuracy'] is None:
    return ''
  return f' ({point["accuracy"]:.1%} right)'


@matplotlib.rc_context(drawing.STYLE)
def draw(records: list[dict], folder: Path) -> list[Path]:
  """The figure from the records alone."""
  built = [record for record in records if record.get('kind') == 'construction']
  if not built:
    raise InputError(f'{folder}: no constructions among the results; run experiments.bounds first')
  figure, ax = drawing.new(width=6.4, height=3.9)
  best, lowest = {}, min(point['internal_bits'] for point in built)
  for name, (label, color, dashes) in STYLES.items():
    curve = [(c['subject_bits'], c['internal_bits']) for c in records if c.get('bound') == name]
    if not any(bits for _, bits in curve):
      continue
    lowest = min(lowest, curve[0][1])
    ax.plot(*zip(*curve, strict=True), dashes, color=color, label=label)
    for price, bits in curve:
      best[price] = max(bits, best.get(price, 0))
  ax.fill_between(list(best), list(best.values()), color=drawing.GREY, alpha=0.15, linewidth=0)
  for i, point in enumerate(built):
    color, marker = drawing.cycle(i)
    face = 'white' if point['chain_of_thought'] else color
    name = point['construction'] + _share(point)
    name += ' (global bounds)' if point['chain_of_thought'] else ''
    at = point['subject_bits'], point['internal_bits']
    ax.plot(*at, marker, color=color, markerfacecolor=face, linestyle='', label=name)
  ax.set(xscale='log', yscale='log')
  ax.set_ylim(bottom=lowest / 4)
  ax.set_xlim(left=1)
  ax.set_xlabel('bits in one subject embedding, $B_{emb}$')
  ax.set_ylabel('bits in the rest of the network, $B_{int}$')
  sizes = ', '.join(
    f'{a} = {built[0][name]}'
    for a, name in zip('NRk', ('subjects', 'relations', 'hops'), strict=True)
  )
  figure.suptitle(
    f'{sizes}: without chain of thought, no model lies in the shaded region', fontsize=9
  )
  drawing.legend_beside(ax)
  return drawing.save(figure, folder / 'bounds')
