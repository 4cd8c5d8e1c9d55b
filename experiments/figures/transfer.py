"""Draw zero-shot transfer: what it is in every case, and against each thing that may decide it."""

import math

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator

from experiments.figures import drawing
from experiments.harness import statistics

ARMS = {
  'a': '(a) maps of the old facts',
  'b': '(b) maps fitted through',
  'c': '(c) embeddings trained',
}
NAMES = (
  'model', 'subjects', 'relations', 'dim', 'width', 'weight_decay', 'noise', 'haste', 'unembedding', 'attention',
)  # fmt: skip
CAUSES = {
  'dim': ('width of the embedding', r'$d\,/\,(R\,\log_2 N)$'),
  'width': ('MLP', '$F$'),
  'subjects': ('subjects', '$N$'),
  'weight_decay': ('weight decay', 'weight decay'),
  'noise': ('noise in training', 'share of the embeddings’ RMS'),
  'haste': ('haste of the embeddings', 'their learning rate / that of the rest'),
}


@matplotlib.rc_context(drawing.STYLE)
def draw(records: list[dict], folder) -> list:
  """A row a case; and zero-shot transfer against each cause that was varied, all else the same."""
  cases = statistics.groups(records, *NAMES)
  trained = [r for r in records if r['model'] == 'trained']
  causes = [name for name in CAUSES if _varied(trained, name)]
  rows = math.ceil(len(causes) / 3) + 1
  figure, _ = drawing.new(12, max(5.4, 0.8 + 0.26 * len(cases)))
  figure.clear()
  grid = figure.add_gridspec(rows, 4, width_ratios=(1.5, 1, 1, 1))
  _cases(figure.add_subplot(grid[:, 0]), cases)
  floor = min([1.0, *(r['value'] for r in trained if r['measurement'] in ('a', 'b'))])
  low = (0.0 if floor < 0.5 else floor) - 0.04  # one scale for all, that shows what differs
  for i, name in enumerate(causes):
    title, label = CAUSES[name]
    ax = figure.add_subplot(grid[i // 3, 1 + i % 3])
    _against(ax, trained, name)
    ax.set(xlabel=label, title=title, ylim=(low, 1.02))
  found = [{r['measurement']: r['value'] for r in group} | {'unembedding': group[0]['unembedding']}
           for group in statistics.groups(trained, *NAMES, 'seed')]  # fmt: skip
  for i, (name, label) in enumerate((
    ('shared_cosine', 'cosine of attributes that share a subject'),
    ('superposition', '$R^2$ of the superposition, held out'),
    ('accuracy', 'right answers on the facts learned'),
  )):  # fmt: skip
    ax = figure.add_subplot(grid[rows - 1, 1 + i])
    _beside(ax, found, name)
    ax.set(xlabel=label, ylabel='zero-shot (a)', ylim=(low, 1.02))
    ax.xaxis.set_major_locator(MaxNLocator(3))
  return drawing.save(figure, folder / 'transfer')


SHORT = {'subjects': 'N', 'relations': 'R', 'dim': 'd', 'width': 'F', 'weight_decay': 'decay'}


def differs(case: dict, base: dict) -> list[str]:
  return [name for name in NAMES if case[name] != base[name]]


def plain(case: dict, base: dict | None) -> str:
  """What a case is; of one that varies another, in what it differs."""
  if base and case['model'] in ('associative', 'constructed'):
    return f'R = {case["relations"]}, {case["model"]}, F = {case["width"]}'
  if base is None:
    sizes = ', '.join(f'{SHORT[name]} = {case[name]:,}' for name in NAMES[1:5])
    return sizes if case['model'] == 'trained' else f'{case["model"]}, {sizes}'
  parts = []
  for name in differs(case, base):
    value = case[name]
    parts.append(value if name == 'model' else f'{SHORT.get(name, name)} {value}' if isinstance(value, str)
                 else f'{SHORT.get(name, name)} = {value:,g}')  # fmt: skip
  return f'R = {case["relations"]}, but ' + ', '.join(parts)


def _cases(ax, cases):
  """Every case a row: (a), (b) and (c), each seed a faint mark, the mean a full one."""
  base, names = {}, []
  for row, group in enumerate(cases):
    case = group[0]
    names.append(plain(case, base.get(case['relations'])))
    base.setdefault(case['relations'], case)
    for i, name in enumerate(ARMS):
      color, marker = drawing.cycle(i)
      values = [r['value'] for r in group if r['measurement'] == name]
      y = len(cases) - row + 0.24 * (1 - i)
      ax.plot(
        values, [y] * len(values), marker, color=color, alpha=0.3, markersize=3, markeredgewidth=0
      )
      ax.plot(np.mean(values), y, marker, color=color, markersize=4, label=None if row else ARMS[name])  # fmt: skip
  ax.set_yticks(range(len(cases), 0, -1), names, fontsize=6, ha='left')
  ax.tick_params(axis='y', pad=112, length=0)
  ax.axvline(0.95, color=drawing.GREY, linestyle='--', linewidth=1)
  ax.set(xlabel='right answers on new bijections', xlim=(-0.03, 1.03), title='freeze and swap')
  ax.set_ylim(0.4, len(cases) + 0.6)
  ax.legend(fontsize=6, loc='lower center', bbox_to_anchor=(0.2, -0.16), ncol=3, columnspacing=0.8)


def _at(name: str, r: dict) -> float:
  return r['dim'] / (r['relations'] * math.log2(r['subjects'])) if name == 'dim' else r[name]


def _varied(records, name) -> list[list[dict]]:
  """Records that differ in this alone."""
  others = [n for n in NAMES if n != name]
  return [g for g in statistics.groups(records, *others) if len({r[name] for r in g}) > 1]


def _against(ax, records, name):
  """(a) full and (b) open against one cause, where nothing else differs; seeds faint, means joined."""
  lines = _varied(records, name)
  for i, line in enumerate(lines):
    color, marker = drawing.cycle(i)
    for arm, face, dashes in (('a', color, '-'), ('b', 'white', ':')):
      own = sorted((r for r in line if r['measurement'] == arm), key=lambda r: r[name])
      means = [(_at(name, g[0]), np.mean([r['value'] for r in g])) for g in statistics.groups(own, name)]  # fmt: skip
      ax.plot([_at(name, r) for r in own], [r['value'] for r in own], marker, color=color, alpha=0.3,
              markersize=2.5, markeredgewidth=0)  # fmt: skip
      ax.plot(*zip(*means, strict=True), marker=marker, color=color, markerfacecolor=face, linestyle=dashes,
              markersize=4, label=f'$R$ = {line[0]["relations"]}, ({arm})')  # fmt: skip
  if name in ('width', 'subjects'):
    ax.set_xscale('log', base=2)
    ticks = sorted({r[name] for line in lines for r in line})
    ax.set_xticks(ticks, [f'{tick:,}' for tick in ticks])
  ax.set(ylabel='zero-shot')
  drawing.legend(ax)


def _beside(ax, found, name):
  """(a) against something measured, a mark a model."""
  for i, kind in enumerate(('fixed', 'trained')):
    color, marker = drawing.cycle(i)
    points = [p for p in found if p['unembedding'] == kind]
    ax.plot([p[name] for p in points], [p['a'] for p in points], marker, color=color, alpha=0.6,
            markersize=3.5, markeredgewidth=0, label=f'unembedding {kind}')  # fmt: skip
  drawing.legend(ax)
