"""Draw what a step of training costs against each size."""

import matplotlib

from experiments.figures import drawing

LABELS = {
  'models': 'models, $M$', 'subjects': 'subjects, $N$', 'relations': 'relations, $R$', 'dim': 'width, $d$',
}  # fmt: skip


@matplotlib.rc_context(drawing.STYLE)
def draw(records: list[dict], folder) -> list:
  """Seconds a step of one model against each size that grew, with the power law through them."""
  axes = list(dict.fromkeys(r['axis'] for r in records if r.get('measurement') == 'scaling'))
  if not axes:
    return []
  figure, panels = drawing.new(2.3 * len(axes), 2.4, 1, len(axes), squeeze=False, sharey=True)
  for i, (ax, axis) in enumerate(zip(panels[0], axes, strict=True)):
    color, marker = drawing.cycle(i)
    own = [r for r in records if r.get('axis') == axis]
    points = [(r['value'], r['ours_seconds']) for r in own if r.get('measurement') == 'scaling']
    ax.plot(*zip(*points, strict=True), marker + '-', color=color)
    exponent = next(r['exponent'] for r in own if r.get('measurement') == 'scaling_exponent')
    drawing.logarithmic(ax.xaxis, ax.yaxis)
    ax.set(xlabel=LABELS[axis], title=f'exponent {exponent:.2f}')
  panels[0][0].set_ylabel('seconds per step of a model')
  return drawing.save(figure, folder / 'scaling')
