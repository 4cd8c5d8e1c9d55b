"""Claim 1 at sizes where laws differ: how many dimensions do facts need, and how many bits does a parameter hold?

  python -m experiments.laws

For every N and R, that is, R facts about each of N subjects, models of several sizes d, with F =
4d, are trained on all facts for a fixed number of passes. The learning rate that is given holds up
to d = 8 and falls as 1/d beyond, because wider models stay untrained at the same rate. Every model
enters with its accuracy over all answers and with the bits of its facts that it holds, N·R·log₂N
less the cross-entropy; there is no search for a smallest model. A law d₅₀ = d₀ + c·R^p·(log₂N)^q is
fitted to all curves together, and so are the alternatives, with N^q, √N and N in place of
(log₂N)^q. R random bijections contain log₂N!/N bits per subject and relation and not log₂N, which
makes a difference at small N; q with these bits in place of log₂N is reported as well. One test
needs no fit: sizes with the same R·log₂N, from N = 64 up, should have the same d₅₀, although they
differ many times in R·√N and R·N, and less in R·N^¼ and √R·log₂N. The law is read at the largest
budget, from sizes whose d₅₀ moved by no more than 5 % when the budget was last doubled.
Intervals over seeds leave out what the law itself gets wrong at some size, which all seeds of a
size share: so d₅₀ = c·R^p·(log₂N)^q is fitted to the sizes as well, one point each, with intervals
over sizes.
Expected: the 95% interval of q over seeds lies within 0.8 and 1.25; with any one seed left out, the
AIC of every alternative is larger by 10. What a parameter holds is reported at every d, with the
fewest bits a weight can be rounded to, next to the exact constructions.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import scipy.optimize
import scipy.stats

from constructions import registry
from experiments.harness import curves, instances, plotting, scaling_law, stored_bits
from experiments.harness.findings import Claim, of_all_seeds, over_seeds
from experiments.harness.statistics import groups, select
from experiments.harness.study import FIRST_SEED, Study
from geomem.config import Config
from geomem.training.recipe import Recipe
from geomem.training.sweeps import Task

CELL = 'subjects', 'relations'  # the columns that name one of the preset's cells
LAW = 'd₅₀ = d₀ + c·R^p·(log₂N)^q'
BEYOND = 'the same law beyond relation-blind'
OVER_SIZES = 'd₅₀ = c·R^p·(log₂N)^q over sizes'
CAPACITY = 'd₅₀ at a parameter for every κ bits of all facts, over sizes'
DENSE = 'trained, all rows in every step'
DASHES = '-.', ':', '--', '-'  # of OTHER_SCALINGS, in the figure
FREE_PARAMETERS = 4  # this few sizes do not determine a law of four numbers
MIN_AIC_GAP = 10.0  # by which the AIC of an alternative must be larger
MAX_RATIO = 1.5
MAX_DIFFERENCE = (
  0.03  # of accuracies with optimizer state of all rows, and of those that a step reads
)
OTHER_SCALINGS: dict[str, Callable] = {  # what d₅₀ might be proportional to instead
  'R·N^¼': lambda n, r: r * n**0.25, '√R·log₂N': lambda n, r: r**0.5 * math.log2(n),
  'R·√N': lambda n, r: r * n**0.5, 'R·N': lambda n, r: r * n,
}  # fmt: skip
ALTERNATIVES = {'N^q': ('power', None), '√N': ('power', 0.5), 'N': ('power', 1.0)}
FIXED_Q = {'log₂N': ('log2', 1.0), 'log₂(N!)/N': ('bijections', 1.0), 'N^¼': ('power', 0.25)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """`cells`: pairs of N and R. `passes`: budgets, as the minimum number of passes over all facts;
  the law is read at the last. `steps`: minimum number of steps at the first budget, and in
  proportion at the others, so that few subjects are seen in far more passes. `negatives`: answers
  sampled for the softmax when there are at least `sampled_from` subjects; with fewer it is over all
  answers. `dims`: values of d; by default `sizes` of them around those in `middles`, one for each
  cell, or else around the d at which half the facts should be known. `lazy`: a step updates only the embeddings that it reads.
  """

  cells: tuple[tuple[int, int], ...]
  passes: tuple[int, ...]
  steps: int = 2000
  negatives: int = 2048
  sampled_from: int = 2**13
  learning_rate: float = 0.06
  embedding_lr_multiplier: float = 3.0
  weight_decay: float = 0.03
  seeds: int = 3
  sizes: int = 8
  middles: tuple[float, ...] = ()
  dims: tuple[int, ...] = ()
  lazy: bool = True


FULL = {
  'small': Preset(cells=((64, 8), (256, 6), (256, 3), (256, 12)), passes=(100, 200), seeds=5, middles=(9, 9, 5, 17)),
  'two_4096': Preset(cells=((4096, 2),), passes=(100, 200), seeds=5, middles=(5,), sizes=6),
  # Optimizer state and decay of all rows in every step, for comparison with the first budget of two_4096.
  'dense_4096': Preset(cells=((4096, 2),), passes=(100,), seeds=5, dims=(4, 5), lazy=False),
  # The first two parts showed that d₅₀ is smaller than guessed, 5.7 for R·log₂N = 48 and 9.3 for 96, and that it had not
  # settled: at (256, 12) it moved by 5.2 % in 2,000 instead of 1,000 passes, at (4096, 2) by 8.8 % in 250 instead of 125.
  # So the others take more passes and smaller d, both chosen before they were run. That left no time for (4096, 8), for
  # which the protocol asked.
  'twelve_256': Preset(cells=((256, 12),), passes=(400,), steps=8000, seeds=5, dims=(7, 8, 9, 10, 12, 14)),
  'two_4096_500': Preset(cells=((4096, 2),), passes=(500,), seeds=5, dims=(3, 4, 5)),
  'two_4096_1000': Preset(cells=((4096, 2),), passes=(1000,), seeds=5, dims=(3, 4, 5)),
  'two_4096_1000_2': Preset(cells=((4096, 2),), passes=(1000,), seeds=5, dims=(2,)),  # one seed knew half at d = 3 already
  'two_4096_2000': Preset(cells=((4096, 2),), passes=(2000,), seeds=5, dims=(2, 3, 4)),  # d₅₀ had moved by 5.5 % before
  'iso_4096_500': Preset(cells=((4096, 4),), passes=(500,), seeds=3, dims=(4, 5, 6, 7, 8, 11)),
  'iso_4096_1000': Preset(cells=((4096, 4),), passes=(1000,), seeds=3, dims=(4, 5, 6, 7, 8, 11)),
  'iso_65536_100': Preset(cells=((65536, 3),), passes=(100,), seeds=2, dims=(4, 5, 6, 7, 9)),
  # In 100 passes no d up to 9 learned half of the facts, and two seeds with d = 9 learned .56 and .08. So the second
  # budget has larger d, not the 5, 6 and 7 that were planned.
  'iso_65536_200': Preset(cells=((65536, 3),), passes=(200,), seeds=2, dims=(7, 9, 11)),
  'million': Preset(cells=((10**6, 2),), passes=(50,), seeds=1, dims=(24,)),
  # Added when the law had been decided: of the sizes that settled, N = 64 has only R = 8 and N = 4,096 only R = 2, so
  # that N and R are told apart by N = 256 alone. These do not decide.
  'added': Preset(cells=((64, 4), (64, 16), (1024, 3), (1024, 6)), passes=(500, 1000), seeds=5),
}  # fmt: skip
# All others must be measured for the law to be decided, and only they decide it.
ADDED = {*FULL['added'].cells}
CELLS = {cell for part in FULL.values() if len(part.dims) != 1 for cell in part.cells} - ADDED
PRESETS = {
  'smoke': Preset(
    cells=((16, 2), (32, 2)), passes=(2,), steps=20, sampled_from=32, negatives=8, seeds=1, sizes=3
  ),
  'laptop': Preset(cells=((64, 6), (4096, 3)), passes=(100,), seeds=2, sizes=5),
  'full': FULL,
}


def recipe_of(preset: Preset, subjects: int, passes: int) -> Recipe:
  batch = min(subjects, max(128, min(1024, subjects // 16)))
  least = preset.steps * passes // preset.passes[0]
  steps = max(least, passes * -(-subjects // batch))
  negatives = preset.negatives if subjects >= preset.sampled_from else None
  return Recipe.with_warmup(
    steps, batch=batch, passes=True, lazy=preset.lazy, negatives=negatives, target=None, evaluate=False,
    embedding_lr_multiplier=preset.embedding_lr_multiplier,
  )  # fmt: skip


def measure(trainer, preset: Preset, seeds) -> list[dict]:
  """One record per model and budget, and one per construction."""
  small = [cell for cell in preset.cells if cell[0] <= stored_bits.MAX_SUBJECTS_ROUNDED]
  records = [row for n, r in small for row in built(n, r, seeds[0])]
  for (n, r), passes in itertools.product(preset.cells, preset.passes):
    middle = dict(zip(preset.cells, preset.middles, strict=False)).get((n, r))
    sizes = preset.dims or stored_bits.dims(middle or stored_bits.guess(n, r), preset.sizes)
    rate = functools.partial(stored_bits.learning_rate, preset.learning_rate)
    facts = functools.partial(instances.bijections, n, r)
    tasks = [
      Task(Config.trained(n, r, dim=d), facts(seed), rate(d), preset.weight_decay, seed)
      for d, seed in itertools.product(sizes, seeds)
    ]
    recipe = recipe_of(preset, n, passes)
    passed = recipe.steps * (recipe.batch or n) / n
    about = {'model': 'trained' if preset.lazy else DENSE, 'passes': passed}
    records += stored_bits.measure(trainer, recipe, tasks, about)
  return records


def built(n: int, r: int, seed: int) -> list[dict]:
  """Records of the exact one-hop constructions; experiments.construct checks their answers."""
  records = []
  for name, known in registry.REGISTRY.items():
    if known.exact and not known.multi_hop:
      facts = instances.random_facts('bijections', n, r, seed, known.own_answers)
      built = registry.build(name, facts)
      book, bits = built.ledger(), n * r * math.log2(n)
      records.append({
        'measurement': 'bits of facts per parameter', 'model': name, 'control': None, 'subjects': n, 'relations': r,
        'seed': seed, 'dim': built.config.dim, 'parameters': book.total_parameters, 'bits': bits, 'accuracy': 1.0,
        'value': bits / book.total_parameters, 'bits_per_weight_bit': bits / sum(book.bits.values()),
      })  # fmt: skip
  return records


def largest(table: pd.DataFrame) -> pd.DataFrame:
  """The models of every N and R that were trained with the largest budget."""
  return curves.at_largest(select(table, model='trained'), 'passes', *CELL)


def expect(table):
  """The law of all curves and its alternatives, sizes with the same R·log₂N, what more training would
  change, and bits per parameter."""
  last = largest(table)
  last = last[last.groupby(list(CELL))['dim'].transform('nunique') > 2]  # whole curves
  changed = changes(table)
  decides = set(changed) >= CELLS
  of_rows = list(zip(last['subjects'], last['relations'], strict=True))
  every = set(of_rows)
  read = settled(table) & every
  read_from = {
    f'{len(read - ADDED)} settled sizes': read - ADDED,
    f'{len(read)} settled sizes, with those added later': read,
    f'all {len(every)} sizes, settled or not': every,
  }
  seen: list[set] = []
  by_law: dict[str, scaling_law.Law] = {}
  kappa = 0.0
  for sizes, cells in read_from.items():
    if len(cells) <= FREE_PARAMETERS or cells in seen:
      continue
    rows = last[[cell in cells for cell in of_rows]]
    fits = scaling_law.Fits(rows, scaling_law.fit)
    seen.append(cells)
    if cells == read - ADDED:
      by_law['by the law of the settled sizes'] = fits()
      yield from law(fits, f'{LAW}, {sizes}', decides)
    else:
      yield from compared(fits, f'{LAW}, {sizes}')
    known = curves.above_relation_blind(rows['accuracy'], rows['relations']).clip(lower=0)
    beyond = rows.assign(accuracy=known)
    yield from compared(scaling_law.Fits(beyond, scaling_law.fit), f'{BEYOND}, {sizes}')
    if cells <= read:
      yield from without_one_size(rows, f'{LAW}, {sizes}')
      halves = half_sizes(rows)
      by_law.setdefault('by that over sizes', scaling_law.fit_power(halves))
      yield from over_sizes(halves, f'{OVER_SIZES}, {sizes}')
      yield from over_sizes(half_sizes(beyond), f'{OVER_SIZES}, beyond relation-blind, {sizes}')
      kappa = kappa or fit_capacity(halves)
      yield from constant_capacity(halves, f'{CAPACITY}, {sizes}')
  yield from same_bits(last[[cell not in ADDED for cell in of_rows]])
  for (n, r), rows in groups(last, *CELL):
    says = {name: [law.half(n, r)] for name, law in by_law.items()}
    if kappa:
      says['at constant capacity'] = at_capacity(half_sizes(rows), kappa).tolist()
    yield from curves.expected_half_sizes(
      f'N = {n:,}, R = {r}: d₅₀', curves.half_sizes(rows), **says
    )
  for (n, r), of_S in changed.items():
    what = f'N = {n:,}, R = {r}: d₅₀ at the last doubling of passes'
    yield from curves.expected_change(what, of_S)
  yield from bits_per_parameter(last)
  yield from dense_rows(table)
  yield from largest_capacity(table)


def settled(table: pd.DataFrame) -> set[tuple[int, int]]:
  """The sizes whose d₅₀ the last doubling of the passes changes little."""
  return {cell for cell, of_S in changes(table).items() if curves.settled(of_S)}


def changes(table: pd.DataFrame) -> dict[tuple[int, int], list[float]]:
  """The relative change of every size's d₅₀ at the last doubling of passes."""
  return {
    cell: curves.last_change(rows, 'passes', curves.half_sizes)
    for cell, rows in groups(select(table, model='trained'), *CELL)
  }


def half_sizes(rows: pd.DataFrame) -> pd.DataFrame:
  """The d₅₀ of every size, the geometric mean over its seeds; and `count`, a polynomial in d: the number of parameters."""
  found = [
    {
      'subjects': n, 'relations': r, 'size': (n, r), 'half_size': scipy.stats.gmean([*curves.half_sizes(own).values()]),
      'count': np.polynomial.Polynomial.fit(own['dim'], own['parameters'], 2),
    } for (n, r), own in groups(rows, *CELL)
  ]  # fmt: skip
  return pd.DataFrame(found)


def over_sizes(halves: pd.DataFrame, text: str):
  """The law without an offset, every size one point; a power of N in its place; and laws with a single free number."""
  fits = scaling_law.Fits(halves, scaling_law.fit_power, 'size')
  yield from compared(fits, text)
  of_n = lambda units: fits('power', units=units).q
  yield of_all_seeds(f'{text}: power of N in place of (log₂N)^q', fits.units, of_n)
  for name, size in ({'R·log₂N': lambda n, r: r * math.log2(n)} | OTHER_SCALINGS).items():
    ratio = halves['half_size'] / [size(n, r) for n, r in halves['size']]
    yield from over_seeds(
      f'{text}: AIC increase if {name} replaces R^p·(log₂N)^q', [aic(np.log(ratio)) - fits().aic]
    )


def aic(logs: np.ndarray) -> float:
  """Of a law with one free number, the factor of d₅₀, given the logarithms of what is measured over what it says."""
  return len(logs) * float(np.log(np.var(logs))) + 2


def at_capacity(halves: pd.DataFrame, kappa: float) -> np.ndarray:
  """The d at which every size has a parameter for every κ bits of all its facts."""
  wanted = [information((n, r)) * n / kappa for n, r in halves['size']]
  return np.array(
    [(count - own).roots().real.max() for count, own in zip(halves['count'], wanted, strict=True)]
  )


def fit_capacity(halves: pd.DataFrame) -> float:
  """κ, by least squares of the logarithm of d₅₀."""
  half = halves['half_size'].to_numpy(float)
  squares = lambda x: float(np.mean(np.log(half / at_capacity(halves, np.exp(x))) ** 2))
  return float(np.exp(scipy.optimize.minimize_scalar(squares, bounds=(-2, 4), method='bounded').x))


def constant_capacity(halves: pd.DataFrame, text: str):
  """κ, how well d₅₀ at this capacity fits, and what the power law makes of it."""
  kappa = of_all_seeds(
    f'{text}: κ', halves['size'].tolist(),
    lambda some: fit_capacity(halves[halves['size'].isin(some)]),
  )  # fmt: skip
  says = at_capacity(halves, kappa.value)
  error = np.log(halves['half_size'].to_numpy(float) / says)
  more = len(halves) * np.log(np.mean(error**2)) + 2 - scaling_law.fit_power(halves).aic
  yield kappa
  yield from over_seeds(f'{text}: AIC increase if it replaces c·R^p·(log₂N)^q', [float(more)])
  largest = float(np.exp(np.abs(error).max()))
  yield from over_seeds(f'{text}: largest ratio of a measured d₅₀ and its own', [largest])
  own = scaling_law.fit_power(halves.assign(half_size=says))
  yield from over_seeds(f'{text}: q of c·R^p·(log₂N)^q fitted to its own d₅₀', [own.q])


def without_one_size(rows: pd.DataFrame, text: str):
  """How far q moves if a size is left out: sizes share what a law gets wrong, and seeds of one size share it too."""
  sizes = list(zip(rows['subjects'], rows['relations'], strict=True))
  fits = scaling_law.Fits(rows.assign(size=sizes), scaling_law.fit, 'size')
  q = [fits(units=some).q for some in fits.left_out()]
  yield from over_seeds(f'{text}: smallest q with one size left out', [min(q)])
  yield from over_seeds(f'{text}: largest q with one size left out', [max(q)])


def equal_bits(last: pd.DataFrame) -> Iterator[tuple[float, dict]]:
  """Every R·log₂N that several sizes have, with d₅₀ by seed of those whose every seed reaches it, by increasing N."""
  halves = {cell: curves.half_sizes(rows) for cell, rows in groups(last, *CELL)}
  known = [cell for cell, by_seed in halves.items() if np.isfinite([*by_seed.values()]).all()]
  by_bits = sorted(known, key=lambda cell: (information(cell), cell))
  for bits, cells in itertools.groupby(by_bits, key=information):
    if len(some := list(cells)) > 1:
      yield bits, {cell: halves[cell] for cell in some}


def same_bits(last: pd.DataFrame):
  """d₅₀ at the largest N over that at the smallest, among sizes with the same R·log₂N; and what other scalings predict."""
  for bits, halves in equal_bits(last):
    some = list(halves)
    (small, few), (large, more) = some[0], some[-1]
    controls: dict[str, Any] = {
      f'if d₅₀ ∝ {name}': [size(large, more) / size(small, few)]
      for name, size in OTHER_SCALINGS.items()
    }
    what = f'R·log₂N = {bits:.0f}: d₅₀ at N = {large:,} / at N = {small:,}'
    yield from over_seeds(
      what,
      curves.ratios(halves[large, more], halves[small, few]),
      1 / MAX_RATIO,
      MAX_RATIO,
      **controls,
    )


def bits_per_parameter(last: pd.DataFrame):
  """At d₅₀, for every size whose curves reach it, and how they change with N."""
  at_half = {cell: curves.at_half_sizes(rows, 'value') for cell, rows in groups(last, *CELL)}
  held = {
    cell: by_seed for cell, by_seed in at_half.items() if np.isfinite([*by_seed.values()]).all()
  }
  for (n, r), by_seed in held.items():
    yield from over_seeds(
      f'N = {n:,}, R = {r}: bits of facts per parameter at d₅₀', [*by_seed.values()]
    )
  if len({n for n, _ in held}) > 2:
    log2_n = [math.log2(n) for n, _ in held]
    shared = set.intersection(*map(set, held.values()))
    slopes = [
      scipy.stats.linregress(log2_n, [by_seed[seed] for by_seed in held.values()]).slope
      for seed in sorted(shared)
    ]
    yield from over_seeds('bits of facts per parameter at d₅₀, change per doubling of N', slopes)


def dense_rows(table: pd.DataFrame):
  """Models whose every row is updated in every step, compared with those that update the rows that a step reads."""
  for (n, r, d, passes), rows in groups(select(table, model=DENSE), *CELL, 'dim', 'passes'):
    same = select(table, model='trained', subjects=n, relations=r, dim=d, passes=passes)
    more = rows.set_index('seed')['accuracy'] - same.set_index('seed')['accuracy']
    yield from over_seeds(
      f'N = {n:,}, R = {r}, d = {d}, {passes:.0f} passes: accuracy with all rows in every step less that with those it reads',
      more.dropna().tolist(), -MAX_DIFFERENCE, MAX_DIFFERENCE, check=True,
    )  # fmt: skip


def largest_capacity(table: pd.DataFrame):
  """The most that a parameter, and a bit of a weight, holds at any d, compared with the constructions."""
  for (n, r), rows in groups(largest(table), *CELL):
    if rows['dim'].nunique() == 1:
      yield from over_seeds(
        f'N = {n:,}, R = {r}, d = {rows["dim"].iloc[0]}: accuracy', rows['accuracy']
      )
    same = select(table, subjects=n, relations=r)
    for unit, column in (('parameter', 'value'), ('bit of weight', 'bits_per_weight_bit')):
      most = rows.groupby('seed')[column].max().dropna().tolist()
      best = same.loc[~same['model'].isin(['trained', DENSE]), column].max()
      what = f'N = {n:,}, R = {r}: largest bits of facts per {unit}, over all d'
      yield from over_seeds(what, most, best_construction=[best] if np.isfinite(best) else [])


def law(fits: scaling_law.Fits, text: str, decides: bool):
  """The law of the models that decide about it, and its alternatives with each seed left out."""
  yield from scaling_law.exponents(fits, text, 0.8, 1.25, decides)
  for name, (size, q) in ALTERNATIVES.items():
    worse = [fits(size, q, some).aic - fits(units=some).aic for some in fits.left_out()]
    what = f'{text}: AIC increase if {name} replaces (log₂N)^q, minimum over left-out seeds'
    yield from over_seeds(what, [min(worse)], MIN_AIC_GAP)
  yield from scaling_law.aic_increases(fits, text, FIXED_Q)


def compared(fits: scaling_law.Fits, text: str):
  """The law and its alternatives for other sizes, or for another measure of what is known; nothing is expected."""
  yield from scaling_law.exponents(fits, text)
  yield from scaling_law.aic_increases(fits, text, ALTERNATIVES | FIXED_Q)


def information(cell: tuple[int, int]) -> float:
  """R·log₂N."""
  return round(cell[1] * math.log2(cell[0]), 6)


def plot(table):
  """Every accuracy curve over d/(R·log₂N) and over parameters per bit of all facts; d₅₀ where R·log₂N is the same, against N;
  the most that a parameter holds, against N."""
  last, read = largest(table).sort_values([*CELL, 'dim']), settled(table)
  figure, (*collapse, iso, capacity) = plotting.new(14.5, 3.2, 1, 4)
  for ax in collapse:
    ax.axhline(0.5, color=plotting.GREY, linewidth=0.8, linestyle=':')  # where d₅₀ is read
  for i, ((n, r), rows) in enumerate(groups(last, *CELL)):
    hollow = {} if (n, r) in read else {'markerfacecolor': 'white'}
    per_bit = rows['dim'] / information((n, r)), rows['parameters'] / information((n, r)) / n
    for ax, scaled in zip(collapse, per_bit, strict=True):
      own = rows.assign(value=rows['accuracy'], scaled=scaled)
      plotting.draw_seeds(ax, own, 'scaled', i, f'N = {n:,}, R = {r}', **hollow)
    most = rows.groupby('seed', as_index=False).agg(
      subjects=('subjects', 'first'), value=('value', 'max')
    )
    plotting.draw_seeds(capacity, most, 'subjects', i)
    same = select(table, subjects=n, relations=r)
    known = same[~same['model'].isin(['trained', DENSE])]
    color = plotting.cycle(i)[0]
    capacity.plot(known['subjects'], known['value'], 'x', color=color, markersize=4)
  draw_same_bits(iso, last)
  across = capacity.get_yaxis_transform()
  # Bits per parameter reported for language models: knowledge, memorised text.
  for bits, dashes in ((2.0, '--'), (3.6, ':')):
    capacity.axhline(bits, linestyle=dashes, color=plotting.GREY, linewidth=1)
    capacity.text(0.3, bits, f'{bits:g} bits', transform=across, va='bottom')
  plotting.logarithmic(iso.xaxis, iso.yaxis, capacity.xaxis)
  collapse[0].set(xlabel='d / (R log₂ N)', ylabel='accuracy')
  collapse[0].set_title('accuracy (hollow: not known to have settled)')
  collapse[1].set(xlabel='parameters / (N R log₂ N)', xlim=(0, 1.3))
  collapse[1].set_title('the same by parameters per bit of all facts')
  iso.set(xlabel='N', ylabel='d₅₀', title='d₅₀ at equal R log₂ N (lines: if d₅₀ grew as …)')
  capacity.set(xlabel='N', ylabel='bits of facts per parameter', ylim=(0, 4))
  capacity.set_title('capacity per parameter (×: constructions)')
  plotting.legend(collapse[0], loc='lower right')
  plotting.legend(iso, loc='upper left')
  return figure


def draw_same_bits(ax, last: pd.DataFrame):
  """d₅₀ of the sizes with the same R·log₂N, and what other scalings say from the smallest of them on."""
  for i, (bits, halves) in enumerate(equal_bits(last)):
    points = [(n, half) for (n, _), by_seed in halves.items() for half in by_seed.values()]
    measured = pd.DataFrame(points, columns=['subjects', 'value'])
    plotting.draw_seeds(ax, measured, 'subjects', i, f'R log₂ N = {bits:.0f}')
    first, by_seed = next(iter(halves.items()))
    start, color = np.mean([*by_seed.values()]), plotting.cycle(i)[0]
    for (name, size), dashes in zip(OTHER_SCALINGS.items(), DASHES, strict=True):
      x, y = zip(*((n, start * size(n, r) / size(*first)) for n, r in halves), strict=True)
      thin = {'linestyle': dashes, 'color': color, 'linewidth': 0.8, 'alpha': 0.6}
      ax.plot(x, y, label=None if i else f'if ∝ {name}', **thin)


STUDY = Study(
  name='laws',
  title='accuracy against d at several N and R: the law of d, and bits of facts per parameter', page='capacity.md',
  claims=(Claim('Claim 1', 'The d that gradient descent needs grows as R·log₂N.', (LAW,)),),
  terms='d₅₀: the d at which half of all facts are known. A size is an N with an R; it '
  'has settled if the last doubling of the passes changes its d₅₀ by at most 5 %. Over sizes: every size is one point, the geometric mean of the d₅₀ of its seeds, and intervals are over the sizes, which the column of seeds then counts. Relation-blind: a model that ignores the '
  'relation is right about one of R answers; beyond it, accuracy is counted from there. A budget is a number of passes over all facts, and at least '
  '2,000 steps. Bits of facts: N·R·log₂N less the cross-entropy over all N answers. 2 and 3.6 bits per parameter '
  'have been reported for language models.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot, by=('model', 'subjects', 'relations', 'passes', 'dim'), minutes=2, first_seed=FIRST_SEED + 400,
)  # fmt: skip

if __name__ == '__main__':
  STUDY.main()
