"""Draw zero-shot transfer: what it is in every case, and against what may decide it."""

import math

import matplotlib
import numpy as np

from experiments import figures, statistics

ARMS = {
  'a': '(a) maps of the old facts',
  'b': '(b) maps fitted through',
  'c': '(c) embeddings trained',
}
CAUSES = {
  'width of the embedding': (r'$d\,/\,(R\,\log_2 N)$', lambda r: r['dim'] / (r['relations'] * math.log2(r['subjects']))),
  'weight decay': ('weight decay', lambda r: r['weight_decay']),
  'MLP': ('$F$', lambda r: r['width']),
  'subjects': ('$N$', lambda r: r['subjects']),
}  # fmt: skip
NAMES = 'model', 'subjects', 'relations', 'dim', 'width', 'weight_decay', 'unembedding'


@matplotlib.rc_context(figures.STYLE)
def draw(records: list[dict], folder) -> list:
  """A row of cases, and zero-shot (a) against each cause and against the unembeddings' cosine."""
  figure, panels = figures.new(11.6, 5.6, 2, 3)
  _cases(panels[0, 0], records)
  trained = [r for r in records if r['model'] == 'trained']
  for ax, (title, (label, at)) in zip(panels.flat[1:], CAUSES.items(), strict=False):
    _against(ax, trained, at)
    ax.set(xlabel=label, title=title)
  _cosine(panels[1, 2], trained)
  return figures.save(figure, folder / 'transfer')


def _labels(case: dict) -> str:
  text = f'N={case["subjects"]:,} R={case["relations"]} d={case["dim"]} F={case["width"]}'
  extra = {'untrained': ', untrained', 'associative': ', associative'}.get(case['model'], '')
  return text + extra + (', $u$ trained' if case['unembedding'] == 'trained' else '')


def _cases(ax, records):
  """Every case a row: (a), (b) and (c), each seed a mark."""
  groups = statistics.groups(records, *NAMES)
  for row, group in enumerate(groups):
    for i, name in enumerate(ARMS):
      color, marker = figures.cycle(i)
      values = [r['value'] for r in group if r['measurement'] == name]
      y = [len(groups) - row + 0.22 * (1 - i)] * len(values)
      ax.plot(values, y, marker, color=color, alpha=0.35, markersize=3)
      ax.plot(
        np.mean(values),
        y[0],
        marker,
        color=color,
        markersize=5,
        label=ARMS[name] if row == 0 else None,
      )
  ax.set_yticks(range(len(groups), 0, -1), [_labels(group[0]) for group in groups], fontsize=5)
  ax.axvline(0.95, color=figures.GREY, linestyle='--', linewidth=1)
  ax.set(xlabel='right answers on new bijections', xlim=(-0.03, 1.03), title='freeze and swap')
  ax.legend(fontsize=5)


def _against(ax, records, at):
  """(a) against one thing, a mark a seed, a colour for each number of relations."""
  for i, relations in enumerate(sorted({r['relations'] for r in records})):
    for name, filled in (('a', True), ('b', False)):
      own = [r for r in records if r['relations'] == relations and r['measurement'] == name]
      color, marker = figures.cycle(i)
      face = color if filled else 'white'
      label = f'$R$ = {relations}, ({name})'
      ax.plot([at(r) for r in own], [r['value'] for r in own], marker, color=color, markerfacecolor=face,
              alpha=0.7, markersize=4, label=label)  # fmt: skip
  ax.set(ylabel='zero-shot', ylim=(-0.03, 1.03))


def _cosine(ax, records):
  """(a) against the cosine of unembeddings that share a subject."""
  by_model = statistics.groups(records, *NAMES, 'seed')
  for i, kind in enumerate(('fixed', 'trained')):
    color, marker = figures.cycle(i)
    points = [
      ({r['measurement']: r['value'] for r in group})
      for group in by_model
      if group[0]['unembedding'] == kind
    ]
    ax.plot([p['shared_cosine'] for p in points], [p['a'] for p in points], marker, color=color, alpha=0.7,
            markersize=4, label=f'unembedding {kind}')  # fmt: skip
  ax.set(
    xlabel='cosine of attributes that share a subject', ylabel='zero-shot (a)', ylim=(-0.03, 1.03)
  )
  ax.set_title('co-adaptation')
  ax.legend(fontsize=6)
