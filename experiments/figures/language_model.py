"""Draw what was found in a language model: R² by depth, swaps, where facts leave, linear predictions."""

import matplotlib
import numpy as np

from experiments.figures import drawing
from experiments.harness import statistics

FEATURES = ('own token + attributes', 'own token', 'attribute embeddings', 'attributes')
ARMS = (
  'superposition', 'embedding maps', 'class means', 'relational embedding',
  "donor's whole vector", 'shuffled facts', 'random direction',
)  # fmt: skip


@matplotlib.rc_context(drawing.STYLE)
def draw(records: list[dict], folder) -> list:
  """Four panels of the first table; bands and bars are bootstrap intervals over subjects, averaged."""
  first = next((r['table'] for r in records), None)
  own = [r for r in records if r['table'] == first]
  figure, panels = drawing.new(12.4, 3.1, 1, 4)
  _explained(panels[0], own)
  _swaps(panels[1], own)
  _depth(panels[2], own)
  _faithful(panels[3], own)
  return drawing.save(figure, folder / 'language_model')


def _line(ax, records, i, label, **options):
  """Means over frames and seeds by place, in a band of their mean intervals."""
  groups = {group[0]['place']: group for group in statistics.groups(records, 'place')}
  places = sorted(groups)
  mean = lambda name: [np.mean([r[name] for r in groups[p]]) for p in places]
  color, _ = drawing.cycle(i)
  color = options.pop('color', color)
  ax.plot(places, mean('value'), color=color, label=label, **options)
  ax.fill_between(places, mean('low'), mean('high'), color=color, alpha=0.15, linewidth=0)


def _explained(ax, records):
  for i, name in enumerate(FEATURES):
    _line(ax, statistics.where(records, measurement='R2', features=name, control=None), i, name)
  shuffled = statistics.where(
    records, measurement='R2', features='attributes', control='shuffled facts'
  )
  _line(ax, shuffled, 0, 'attributes, shuffled', color=drawing.GREY, linestyle=':')
  ax.set(xlabel='after block', ylabel='$R^2$ on held-out subjects', title='what explains a subject')
  drawing.legend(ax)


def _swaps(ax, records):
  """Every method a curve over its doses; what was chosen beforehand is filled."""
  records = [
    r for r in records if r['measurement'] in ('flipped', 'kept') and r['relation'] is None
  ]
  for i, arm in enumerate(ARMS):
    color, marker = drawing.cycle(i)
    doses = statistics.groups([r for r in records if r['control'] == arm], 'dose', 'rank')
    mean = lambda group, name: np.mean([r['value'] for r in group if r['measurement'] == name])
    doses = sorted(doses, key=lambda g: (g[0]['dose'] or 0, g[0]['rank'] or 0))
    points = [(mean(g, 'flipped'), mean(g, 'kept')) for g in doses]
    if not points:
      continue
    ax.plot(*zip(*points, strict=True), marker, linestyle='-', color=color, markersize=4,
            markerfacecolor='white', linewidth=0.8)  # fmt: skip
    chosen = [r for r in records if r['control'] == arm and r['chosen']]
    ax.plot(mean(chosen, 'flipped'), mean(chosen, 'kept'), marker, color=color, label=arm)
  ax.set(
    xlabel='answers flipped as wanted', ylabel='other answers kept', title='swapping one attribute'
  )
  ax.set(xlim=(-0.03, 1.8), ylim=(-0.03, 1.03), xticks=(0, 0.5, 1))  # beside them the legend
  drawing.legend(ax, loc='upper right')


def _depth(ax, records):
  for i, group in enumerate(
    statistics.groups(statistics.where(records, measurement='donor answer'), 'relation')
  ):
    _line(ax, group, i, group[0]['relation'], marker=drawing.cycle(i)[1], markersize=3)
  ax.set(
    xlabel="donor's vector put in after block",
    ylabel="gives the donor's answer",
    ylim=(-0.03, 1.03),
  )
  ax.set_title('where the fact leaves the subject')
  drawing.legend(ax)


def _faithful(ax, records):
  """How often each linear prediction is what the model says, a bar a relation."""
  records = statistics.where(records, measurement='faithful')
  relations = list(dict.fromkeys(r['relation'] for r in records))
  arms = ('relational embedding', 'fitted readout', 'own token')
  for j, arm in enumerate(arms):
    color, _ = drawing.cycle(j)
    for i, relation in enumerate(relations):
      group = [r for r in records if r['control'] == arm and r['relation'] == relation]
      if group:
        best = max(group, key=lambda r: r['place'] or 0)  # the deepest place
        x, value = i + (j - 1) * 0.25, best['value']
        ax.bar(x, value, 0.22, color=color, label=arm if i == 0 else None)
        ax.plot([x, x], [best['low'], best['high']], color=drawing.BLACK, linewidth=0.8)
  ax.set_xticks(range(len(relations)), relations)
  ax.set(ylabel='agrees with the model', ylim=(0, 1.03), title='linear predictions')
  drawing.legend(ax)
