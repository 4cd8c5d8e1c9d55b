"""Draw capacity thresholds: a panel for each kind of search, and one of bits per parameter."""

import math

import matplotlib

from experiments.figures import drawing

LINES = {2.0: '--', 3.6: ':'}  # what is reported for language models: knowledge, memorized text
FACES = (drawing.BLACK, drawing.GREY, 'white')  # of the constructions
TITLES = {
  'dim': 'smallest $d$, $F = 4d$',
  'dim_at_width': 'smallest $d$, $F$ = {width}',
  'width': 'smallest $F$, $d$ = {dim}',
  'subjects': 'largest $N$, $d$ = {dim}, $F = 4d$',
}


@matplotlib.rc_context(drawing.STYLE)
def draw(records: list[dict], folder) -> list:
  """A panel for each kind of search, and one of bits per parameter at the border."""
  found = [r for r in records if r.get('kind') == 'threshold' and r['value']]
  finds = [find for find in TITLES if any(r['find'] == find for r in found)]
  figure, panels = drawing.new(2.9 * (len(finds) + 1), 2.9, 1, len(finds) + 1, squeeze=False)
  for ax, find in zip(panels[0], finds, strict=False):
    own = [r for r in found if r['find'] == find]
    _sizes(
      ax,
      find,
      own,
      next((r for r in records if r.get('kind') == 'fit' and r['find'] == find), None),
    )
    ax.set_title(TITLES[find].format(**own[0]))
  _bits(panels[0][-1], finds, found, [r for r in records if r.get('kind') == 'construction'])
  return drawing.save(figure, folder / 'threshold')


def _sizes(ax, find: str, own: list[dict], fit: dict | None):
  """What was found against R·log2 N (for `subjects`: against R), every seed a mark."""
  at = (lambda r: r['relations']) if find == 'subjects' else _fact_bits_a_subject
  for i, relations in enumerate(sorted({r['relations'] for r in own})):
    color, marker = drawing.cycle(i)
    points = [(at(r), r['value']) for r in own if r['relations'] == relations]
    ax.plot(*zip(*points, strict=True), marker, color=color, alpha=0.6, label=f'$R$ = {relations}')
  if fit:
    low, high = min(map(at, own)), max(map(at, own))
    ends = [fit['intercept'] + fit['slope'] * x for x in (low, high)]
    interval = f'{fit["slope"]:.2g}'
    if _number(fit['slope_low']):
      interval += f' [{fit["slope_low"]:.2g}, {fit["slope_high"]:.2g}]'
    ax.plot((low, high), ends, '-', color=drawing.GREY, label=f'slope {interval}')
  ax.set_xlabel('relations, $R$' if find == 'subjects' else r'$R\,\log_2 N$')
  ax.set_ylabel({'width': '$F^*$', 'subjects': '$N^*$'}.get(find, '$d^*$'))
  if find == 'subjects':
    drawing.logarithmic(ax.yaxis)
  else:
    ax.set_ylim(bottom=0)
  ax.legend()


def _number(value) -> bool:
  return value is not None and math.isfinite(value)


def _fact_bits_a_subject(r: dict) -> float:
  return r['relations'] * math.log2(r['subjects'])


def _bits(ax, finds, found: list[dict], built: list[dict]):
  """Facts, in bits, for each parameter of the whole model, next to what others report."""
  for i, find in enumerate(finds):
    color, marker = drawing.cycle(i)
    points = [(r['subjects'] * r['relations'], r['bits']) for r in found if r['find'] == find]
    ax.plot(
      *zip(*points, strict=True), marker, color=color, alpha=0.6, label=find.replace('_', ' ')
    )
  for name, face in zip(dict.fromkeys(r['construction'] for r in built), FACES, strict=False):
    points = [
      (r['subjects'] * r['relations'], r['bits']) for r in built if r['construction'] == name
    ]
    if points:
      x, y = zip(*points, strict=True)
      ax.plot(
        x,
        y,
        'P',
        color=drawing.BLACK,
        markerfacecolor=face,
        markersize=4,
        label=name.replace('_', ' '),
      )
  for bits, dashes in LINES.items():
    ax.axhline(bits, linestyle=dashes, color=drawing.GREY, linewidth=1)
    ax.annotate(
      f'{bits:g} bits', (0.99, bits), xycoords=('axes fraction', 'data'), ha='right', va='bottom'
    )
  drawing.logarithmic(ax.xaxis)
  ax.set(
    ylim=(0, 4), xlabel='facts, $N R$', ylabel='bits per parameter', title='bits per parameter'
  )
  drawing.legend_beside(ax)
