"""When are facts kept in the embedding, and when in the weights? A phase diagram.

  python -m experiments.phases

Every cell is one kind of model, trained by the recipe except for what the axes vary: the width (how
many coordinates there are for each of the R·log₂N bits of a subject), hidden units, weight decay,
subjects or relations. A geometric memory answers new facts as well as old ones, once their
embeddings are assembled from the old maps; a model that keeps facts in its weights does not, and
what it answers only for old facts is what it has memorised. The baseline is what a superposition in
random directions, read by a matched filter, can answer at that width: nothing in it is fitted. The
seeds are not those that decide claims.
"""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from experiments.harness import fresh_subjects, plotting
from experiments.harness.findings import Claim, over_seeds
from experiments.harness.model_kinds import GEOMETRIC_OPTIONS, Kind, sizes
from experiments.harness.statistics import groups, select
from experiments.harness.study import FIRST_SEED, Study
from geomem.config import Config
from geomem.training.recipe import Recipe

NEW = 128  # subjects with new facts
SHOWN = {
  'old_maps': 'zero-shot (a)', 'probe_accuracy': 'linear probe accuracy, fresh subjects', 'swapped': 'swaps at α = 1',
  'memorised': 'memorised',
}  # fmt: skip
AXES = {'dim': 'd', 'width': 'F', 'weight_decay': 'weight decay', 'subjects': 'N', 'relations': 'R'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """`first`: the sizes that cells share. `maps`: for each diagram its two axes, fields with their
  values."""

  first: dict[str, int]
  maps: tuple[dict[str, tuple], ...]
  seeds: int = 1

  def kinds(self):
    """Yields (names of the axes, kind of model) for every cell."""
    about: dict[str, Any] = GEOMETRIC_OPTIONS | self.first
    for axes in self.maps:
      for cell in itertools.product(*axes.values()):
        yield tuple(axes), Kind(**about | dict(zip(axes, cell, strict=True)))


LARGE = sizes(subjects=512, relations=4, batch=128, steps=1000)
DIMS = 16, 32, 64, 96, 128, 192
WIDTHS = {'dim': DIMS, 'width': (16, 64, 256, 512)}
DECAYS = 0.0, 0.1, 0.3, 1.0, 2.0
PRESETS = {
  'smoke': Preset(
    first=sizes(subjects=32, relations=2, batch=8, steps=60), maps=({'dim': (8, 16), 'width': (8, 16)},),
  ),
  'laptop': Preset(
    first=sizes(subjects=128, relations=2, batch=32, steps=1000), maps=({'dim': (8, 16, 32, 64), 'width': (8, 128)},), seeds=2,
  ),
  'full': {
    'widths': Preset(first=LARGE, maps=(WIDTHS,), seeds=2),
    'decay': Preset(
      first=LARGE, seeds=2, maps=(
        {'weight_decay': DECAYS, 'width': (16, 64, 256)}, {'weight_decay': (0.0, 0.3, 1.0), 'subjects': (128, 256, 512, 1024)},
      ),
    ),
    'sizes': Preset(
      first=LARGE | {'width': 256, 'batch': 256}, seeds=2, maps=(
        {'dim': DIMS, 'subjects': (128, 256, 512, 1024)}, {'dim': DIMS, 'relations': (2, 8)},
      ),
    ),
  },
}  # fmt: skip


def scores(config: Config, recipe: Recipe, params, job, other_RxN, constructed_NxD):
  """All that is measured of one model, by name."""
  return fresh_subjects.scores(config, recipe, params, job, other_RxN, constructed_NxD, NEW)[0]


def random_directions(kind: Kind, seed: int) -> dict[str, float]:
  """Accuracy when a superposition of the answers' vectors in random directions is read by matched
  filters and by least squares: nothing is learned."""
  rng, codes = np.random.default_rng((seed, 3)), kind.answer_dim or kind.dim
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  code_AxK = unit(rng.standard_normal((kind.subjects, codes)))
  maps_RxKxD = rng.standard_normal((kind.relations, codes, kind.dim)) / math.sqrt(kind.dim)
  if kind.dim >= codes:  # orthonormal rows, which pick up the least interference
    maps_RxKxD = np.swapaxes(np.linalg.qr(np.swapaxes(maps_RxKxD, 1, 2))[0], 1, 2)
  answers_RxN = np.stack([rng.permutation(kind.subjects) for _ in range(kind.relations)])
  e_NxD = np.einsum('rnk,rkd->nd', code_AxK[answers_RxN], maps_RxKxD)
  solved_DxRxK = np.linalg.pinv(maps_RxKxD.reshape(-1, kind.dim)).reshape(kind.dim, -1, codes)
  readers = {'random_directions': maps_RxKxD, 'least_squares': np.moveaxis(solved_DxRxK, 0, 2)}
  found = {}
  for name, reader_RxKxD in readers.items():
    read_RxNxK = np.einsum('nd,rkd->rnk', e_NxD, reader_RxKxD)
    found[name] = float(np.mean(np.argmax(read_RxNxK @ code_AxK.T, axis=-1) == answers_RxN))
  return found


def measure(trainer, preset: Preset, seeds) -> list[dict]:
  """Records of all cells."""
  records = []
  for axes, kind in preset.kinds():
    coordinates = kind.dim / (kind.relations * math.log2(kind.subjects))
    about = {'map': ' × '.join(axes), 'coordinates': coordinates}
    records += kind.records(trainer, seeds, scores, **about)
    about |= {'control': None, **dataclasses.asdict(kind)}
    records += [
      {'measurement': name, **about, 'seed': seed, 'value': value}
      for seed in seeds
      for name, value in random_directions(kind, seed).items()
    ]
  return records


def expect(table):
  """Where (a) starts to hold, and how far learned models exceed what random directions can do."""
  for (name,), rows in groups(table, 'map'):
    axis, best = ('dim', rows['dim'].max()) if name.startswith('dim') else ('weight_decay', 1.0)
    found = select(rows, measurement='old_maps', **{axis: best}).groupby('seed')['value'].mean()
    title = ' × '.join(AXES[own] for own in name.split(' × '))
    what = f'{title}: zero-shot (a) at {AXES[axis]} = {best:g}, mean over cells'
    yield from over_seeds(what, found.tolist(), 0.95)
    if name == 'dim × width':
      narrow = rows[rows['dim'] <= rows['answer_dim'].iloc[0]]
      large = select(narrow, measurement='memorised', width=narrow['width'].max())
      most = narrow['dim'].max()
      what = f'{title}: memorised at d ≤ {most} and the largest F, maximum over cells'
      yield from over_seeds(what, large.groupby('seed')['value'].max().tolist(), 0.2)
    if name in ('dim × subjects', 'dim × relations'):
      yield from _smallest(name.split(' × ')[1], rows)
    mean = rows.pivot_table(index=list(AXES), columns='measurement', values='value')
    learned = mean[mean['accuracy'] >= 0.99]
    geometric, memory = learned['old_maps'] >= 0.95, learned['memorised'] >= 0.2
    counts = {
      'number': len(learned), 'number with (a) ≥ 0.95': geometric.sum(),
      'number with memorised ≥ 0.2': memory.sum(),
    }  # fmt: skip
    if geometric.any():
      least = learned['random_directions'][geometric].min()
      counts['lowest accuracy of random directions (filters) where (a) ≥ 0.95'] = least
    for what, count in counts.items():
      yield from over_seeds(f'{title}, cells with learned facts: {what}', [float(count)])


def _smallest(axis: str, rows):
  """The smallest d of a geometric memory, divided by the sizes that would make this ratio the same
  in every column."""
  for (value,), column in groups(select(rows, measurement='old_maps'), axis):
    enough = column[column['value'] >= 0.95].groupby('seed')['dim'].min()
    own = enough.reindex(column['seed'].unique())
    n, r, k = (column[name].iloc[0] for name in ('subjects', 'relations', 'answer_dim'))
    for law, size in (('R·log₂N', r * math.log2(n)), (f'{k:g}·R', k * r)):
      what = f'{AXES[axis]} = {value:,}: (smallest d with zero-shot (a) ≥ 0.95) / {law}'
      yield from over_seeds(what, (own / size).tolist())


def plot(table):
  """A row of panels per diagram; where d is an axis, also what random directions can do."""
  maps = table['map'].unique()
  figure, panels = plotting.new(12, 3 * len(maps), len(maps), len(SHOWN), squeeze=False)
  for row, name in zip(panels, maps, strict=True):
    rows, (y, x) = select(table, map=name), name.split(' × ')
    grids = {
      what: own.pivot_table(index=y, columns=x, values='value')
      for (what,), own in groups(rows, 'measurement')
    }
    for ax, (measurement, words) in zip(row, SHOWN.items(), strict=True):
      image = _plot_cells(ax, grids[measurement], grids['accuracy'])
      ax.set(xlabel=AXES[x], title=words)
    labels = grids['accuracy'].index.astype(str)
    row[0].set(ylabel=AXES[y])
    if (y, x) == ('dim', 'width'):
      bits = rows.groupby('dim')['coordinates'].first()
      filters, solved = (
        grids[name].mean(axis=1) for name in ('random_directions', 'least_squares')
      )
      labels = [f'{d}  {bits[d]:.1f}  {filters[d]:.2f}  {solved[d]:.2f}' for d in bits.index]
      row[0].set(ylabel='d;  d / R log₂N;  random\ndirections: filters, least squares')
    elif y == 'dim':
      for color, name in (('red', 'random_directions'), ('white', 'least_squares')):
        if grids[name].min(axis=None) < 0.95 < grids[name].max(axis=None):
          row[0].contour(grids[name], [0.95], colors=color)
      row[0].set(ylabel='d;  random directions reach .95:\nfilters red, least squares white')
    row[0].set_yticks(range(len(labels)), labels)
  figure.colorbar(image, ax=panels, shrink=0.6)
  return figure


def _plot_cells(ax, grid, accuracy):
  """A number per cell, in brackets where the facts were not learned."""
  image = ax.imshow(grid, vmin=0, vmax=1, origin='lower', aspect='auto', cmap='viridis')
  for i, j in np.ndindex(grid.shape):
    value = grid.iloc[i, j]
    text = f'{value:.2f}' if accuracy.iloc[i, j] >= 0.99 else f'({value:.2f})'
    color = 'white' if value < 0.6 else 'black'
    ax.text(j, i, text, ha='center', va='center', fontsize=5, color=color)
  ax.set_xticks(range(grid.shape[1]), grid.columns)
  ax.set_yticks(range(grid.shape[0]), [''] * len(grid))
  ax.grid(False)
  return image


STUDY = Study(
  name='phases', title='geometric against associative memory, by width, hidden units, weight decay, subjects and relations', page='geometry.md',
  claims=(Claim('Phases', 'Facts are kept in the embedding where it is wide enough for the answers of all relations side by side; where it is narrow, a large MLP memorises them.'),),
  terms='Measured as for claim 5. In brackets: the facts themselves were not learned to 0.99. Random directions: '
  'superpositions of random vectors of 16 dimensions by random orthonormal maps (Gaussian ones where d is below '
  '16), read by each map’s transpose, or by least squares, and then by the nearest answer. All cells of a diagram '
  'have the same steps and batch size, so fewer subjects are each seen more often.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot, minutes=1.3, first_seed=FIRST_SEED + 900,
)  # fmt: skip

if __name__ == '__main__':
  STUDY.main()
