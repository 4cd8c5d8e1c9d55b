"""Draw what the embeddings and the MLP of trained models are: superposition, units, swaps, cuts."""

import matplotlib
import numpy as np

from experiments.figures import drawing
from experiments.harness import statistics

LEARNED = ('trained', 'trained for transfer')
MODELS = (*LEARNED, 'constructed', 'untrained', 'fixed embeddings')


@matplotlib.rc_context(drawing.STYLE)
def draw(records: list[dict], folder) -> list:
  """Four panels; every seed a mark, means joined; of hidden units those of one seed."""
  figure, panels = drawing.new(12, 3.8, 1, 4)
  decays = {r['weight_decay'] for r in records if r['model'] == 'trained'}
  dim = min(r['dim'] for r in records if r['model'] == 'trained')
  records_of = lambda name: [
    r
    for r in records
    if r['model'] == name
    and (name != 'trained' or r['weight_decay'] == max(decays))
    and (name != 'untrained' or r['dim'] == dim)
  ]
  _linear(panels[0], records)
  _units(panels[1], {name: records_of(name) for name in MODELS})
  _doses(panels[2], {name: records_of(name) for name in LEARNED})
  _cuts(panels[3], {name: records_of(name) for name in MODELS})
  return drawing.save(figure, folder / 'structure')


def _named(records, measurement, control=None):
  return statistics.where(records, measurement=measurement, control=control)


def _linear(ax, records):
  """R² and readout accuracy against weight decay, with their controls; other models as lines."""
  trained = [r for r in records if r['model'] in LEARNED]
  kinds = sorted({(LEARNED.index(r['model']), r['weight_decay']) for r in trained})
  place = lambda r: kinds.index((LEARNED.index(r['model']), r['weight_decay']))
  arms = [('superposition', None, 'superposition, $R^2$'), ('readout', None, 'linear readouts'),
          ('superposition', 'shuffled facts', '$R^2$, shuffled facts')]  # fmt: skip
  for i, (name, control, label) in enumerate(arms):
    color, marker = drawing.cycle(i)
    for model in LEARNED:  # two ways of training: no line from one to the other
      own = _named([r for r in trained if r['model'] == model], name, control)
      _spread(ax, own, place, color, marker, label if model == LEARNED[0] else None)
  for name, dashes in (('untrained', ':'), ('fixed embeddings', '--')):
    own = _named([r for r in records if r['model'] == name], 'superposition')
    if own:
      mean = np.mean([r['value'] for r in own])
      ax.axhline(mean, color=drawing.GREY, linestyle=dashes, linewidth=1, label=f'$R^2$, {name}')
  ax.set_xticks(
    range(len(kinds)), [f'{decay:g}' + '\nfor transfer' * (kind > 0) for kind, decay in kinds]
  )
  ax.set(xlabel='weight decay', ylabel='on held-out subjects', title='superposition')
  ax.legend(fontsize=6)


def _spread(ax, records, at, color, marker, label, **options):
  """Every seed a mark, their means a line."""
  ax.plot(
    [at(r) for r in records],
    [r['value'] for r in records],
    marker,
    color=color,
    alpha=0.4,
    markersize=3,
  )
  groups = {}
  for r in records:
    groups.setdefault(at(r), []).append(r['value'])
  x = sorted(groups)
  ax.plot(
    x,
    [np.mean(groups[i]) for i in x],
    marker=marker,
    color=color,
    label=label,
    markersize=4,
    **{'linestyle': '-', **options},
  )


def _units(ax, models):
  """Every hidden unit by how far it keeps to one relation, and to few answers; its area is what it fires."""
  for i, (name, records) in enumerate(models.items()):
    color, marker = drawing.cycle(i)
    one = {
      part: np.array([r['value'] for r in _named(records, f'unit_{part}')])
      for part in ('relation', 'attribute', 'share')
    }
    if len(one['share']):
      area = 600 * one['share']
      ax.scatter(
        one['relation'],
        one['attribute'],
        area,
        color=color,
        marker=marker,
        alpha=0.5,
        label=name,
        linewidths=0,
      )
  ax.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), title='hidden units, one seed')
  ax.set(xlabel='keeps to one relation', ylabel='keeps to few attributes')
  below = {'loc': 'upper center', 'bbox_to_anchor': (0.5, -0.2), 'ncol': 2}
  for handle in ax.legend(fontsize=6, **below).legend_handles:
    handle.set_sizes([20])


def _doses(ax, models):
  """How often a swap changes the answer it should, and leaves the others, by its dose."""
  arms = [('flipped', None, 'flips'), ('kept', None, 'keeps the others'),
          ('flipped', 'random direction', 'flips, random direction'),
          ('kept', 'random direction', 'keeps, random direction')]  # fmt: skip
  for j, records in enumerate(models.values()):
    for i, (name, control, label) in enumerate(arms):
      if j and control:
        continue
      color, marker = drawing.cycle(2 * j + i % 2)
      dashes = {
        'linestyle': ':' if control else '-',
        'markerfacecolor': 'white' if control else color,
      }
      label = label + ', for transfer' * j
      _spread(
        ax, _named(records, name, control), lambda r: r['dose'], color, marker, label, **dashes
      )
  ax.set(
    xlabel=r'dose $\alpha$ of $M_r(u_{a^\prime} - u_a)$',
    ylabel='share of answers',
    ylim=(-0.03, 1.03),
  )
  ax.set_title('swapping one attribute')
  ax.legend(fontsize=6, loc='upper center', bbox_to_anchor=(0.5, -0.2), ncol=2)


def _cuts(ax, models):
  """What cutting off the units of a relation leaves of it and of the others; and the patched relation."""
  bars = [('ablated_own', None, 'own units cut'), ('ablated_other', None, "another's units cut"),
          ('ablated_own', 'random units', 'random units cut'), ('patched', None, 'relation patched'),
          ('patched', 'random direction', 'patched at random')]  # fmt: skip
  present = [name for name in models if models[name]]
  for i, name in enumerate(present):
    color, _ = drawing.cycle(list(MODELS).index(name))
    for j, (measurement, control, _) in enumerate(bars):
      values = [r['value'] for r in _named(models[name], measurement, control)]
      x = j + (i - (len(present) - 1) / 2) * 0.18
      if values:
        ax.bar(x, np.mean(values), 0.16, color=color, label=name if j == 0 else None)
        ax.plot([x] * len(values), values, '_', color=drawing.BLACK, markersize=4, linewidth=0)
  ax.set_xticks(
    range(len(bars)), [label for *_, label in bars], rotation=25, ha='right', fontsize=6
  )
  ax.set(ylabel='right answers', ylim=(0, 1.03), title='cuts and patches')
  ax.legend(fontsize=6, loc='upper center', bbox_to_anchor=(0.4, -0.28), ncol=3)
