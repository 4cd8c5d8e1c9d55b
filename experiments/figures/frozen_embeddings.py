"""Draw what fixed embeddings cost: parameters against facts, and the MLP memory beside its known fit."""

import matplotlib
import numpy as np

from experiments.figures import drawing

PUBLISHED = {
  8: 43,
  11: 65,
  16: 166,
}  # d = F: N, one seed each, by the code of Nichani et al. (2025)


@matplotlib.rc_context(drawing.STYLE)
def draw(records: list[dict], folder) -> list:
  """Two panels; every seed that found something a mark."""
  figure, (left, right) = drawing.new(8.4, 3.2, 1, 2)
  _parameters(left, [r for r in records if r['kind'] != 'memory' and r['value'] is not None])
  _memories(right, [r for r in records if r['kind'] == 'memory' and r['value'] is not None])
  return drawing.save(figure, folder / 'frozen_embeddings')


def beside_attention(record: dict) -> int:
  """The parameters that were trained, but for attention's four matrices."""
  return record['parameters'] - 4 * record['dim'] ** 2


def _parameters(ax, records):
  """What had to be trained until 0.99, but for the four matrices of attention, against the number of facts."""
  names = {'learned': 'learned embeddings'}
  groups = dict.fromkeys((r['kind'], r['dim'] if r['kind'] == 'fixed' else None) for r in records)
  for i, (kind, dim) in enumerate(groups):
    own = [r for r in records if r['kind'] == kind and dim in (None, r['dim'])]
    color, marker = drawing.cycle(i)
    points = [(r['subjects'] * r['relations'], beside_attention(r)) for r in own]
    label = names.get(kind, f'fixed embeddings, $d$ = {dim}')
    ax.plot(*zip(*points, strict=True), marker, color=color, alpha=0.6, label=label)
  if sizes := [r['subjects'] * r['relations'] for r in records]:
    facts = np.geomspace(min(sizes), max(sizes))
    growth, grey = facts * np.log(facts), {'color': drawing.GREY}
    ax.plot(facts, 1.3 * growth, '--', label='1.3 $n$ log $n$ (linear memory)', **grey)
    ax.plot(facts, 2 * 0.35 * growth, ':', label='2·0.35 $n$ log $n$ (MLP)', **grey)
  drawing.logarithmic(ax.xaxis, ax.yaxis)
  ax.set(
    xlabel='facts, $n = N R$', ylabel='parameters beside attention', title='trained until 0.99'
  )
  drawing.legend(ax, fontsize=5.5)


def _memories(ax, records):
  """Facts held by the MLP memory against its size, every seed a mark."""
  size = lambda r: r['width'] * r['dim']
  ax.plot(
    [size(r) for r in records],
    [r['value'] for r in records],
    'o',
    color=drawing.BLUE,
    alpha=0.6,
    label='ours',
  )
  known = {d: n for d, n in PUBLISHED.items() if any(r['dim'] == d for r in records)}
  ax.plot([d * d for d in known], list(known.values()), 'D', color=drawing.RED, markerfacecolor='white',
          label='Nichani et al., their code, one seed')  # fmt: skip
  if records:
    n = np.linspace(2, 1.3 * max(r['value'] for r in records))
    ax.plot(0.35 * n * np.log(n), n, ':', color=drawing.GREY, label='$F d = 0.35\\,N \\log N$')
  ax.set(
    xlabel='$F d$',
    ylabel='largest $N$',
    title=f'MLP memory, {len({r["seed"] for r in records})} seeds',
  )
  drawing.legend(ax)
