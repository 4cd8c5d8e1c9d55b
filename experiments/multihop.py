"""Chains of relations: what do they cost a trained model, with and without chain of thought? Claim 7.

  python -m experiments.multihop

Models of several sizes d, with F = 4d, learn all N·R^k queries of k hops. They answer directly
(without chain of thought), in one layer or more, or emit every intermediate subject (chain of
thought). d₅₀ is the d at which half is known of what a model that ignores the relations cannot
answer. Expected: for direct answers d₅₀ grows with k, fivefold or more from one hop to four; with
chain of thought, a single teacher-forced step takes the d of one hop. The control for direct answers
is one hop of R^k relations that have nothing to do with one another: a model that does not exploit
the composition needs as much for k hops. Whole chains, of which every step must be right, are shown
as well. Models that know 0.99 appear, at the fewest bits per weight that preserve this, in the
figure of the bounds, next to the constructions.

Last, models learn chains of one hop less than the maximum and are asked for one hop more. Learned
position embeddings are untrained at the positions that the extra hop adds; embeddings written by a
rule, an angle for every hop, are defined there.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from experiments.harness import curves, instances, plotting, stored_bits, tradeoff
from experiments.harness.findings import Claim, over_seeds
from experiments.harness.statistics import groups, select
from experiments.harness.study import FIRST_SEED, Study
from geomem.config import Config
from geomem.training import optimization, sweeps
from geomem.training.recipe import Recipe
from geomem.training.sweeps import Task

BATCH = 64  # budgets are in steps of so many subjects


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mode:
  """How models answer, and are trained to. `batch`: subjects per step, each with all its paths. `middle(n, r, hops)`: the
  expected d₅₀, around which sizes lie.

  Rates and sizes are from trials on one seed below 100, at N = 1,024 and k = 1 and 4. Higher rates leave models that
  ignore some of the relations: direct models with d = 43 are right about .13 of the answers to four hops at a rate of
  .02, and about all at .01. Chains need many steps before they tell the relations of a prompt apart, and smaller batches
  give more of them.
  """

  name: str
  chain: bool = False
  batch: int = BATCH
  embedding_lr_multiplier: float = 3.0
  middle: Callable[[int, int, int], float]
  rate: float = 1.0  # of the preset's learning rate
  rule: bool = False  # positions are written, not learned
  one_hop_more: bool = False  # also asked for one hop more than it was trained on

  @property
  def score(self) -> str:
    """The column with what is known of a step."""
    return 'each_step' if self.chain else 'accuracy'


paths = lambda n, r, hops: stored_bits.guess(n, r**hops) * (1.5 if hops > 1 else 1.2)
chains = lambda n, r, hops: stored_bits.guess(n, r) * (0.7 + 0.5 * hops)
CHAIN: Any = {'chain': True, 'batch': 16, 'embedding_lr_multiplier': 1.0, 'middle': chains}
UNRELATED = 'unrelated'
MODES = {
  'direct': Mode(name='direct', middle=paths),
  'chain': Mode(name='chain of thought', one_hop_more=True, **CHAIN),
  # Added when the full run of the one above was known: it was chosen on the trials' seed, for two hops and d = 8 and 12.
  'chain_slow': Mode(
    name='chain of thought, lower rate', rate=0.3, **CHAIN | {'embedding_lr_multiplier': 3.0}
  ),
  'chain_by_rule': Mode(
    name='chain of thought, positions by rule', rule=True, one_hop_more=True, **CHAIN
  ),
  UNRELATED: Mode(name='one hop of R^k relations', middle=paths),
}
SERIES = {mode: i for i, mode in enumerate(MODES)}  # whose colours and marks they have
LINES = '-', '--', '-.', ':'  # in figures, for one hop or layer, two, and so on
TARGET = 0.99
BOUNDS = {  # of d₅₀ at the most hops over d₅₀ at one hop
  ('direct', 1): {'at_least': 5.0},
  ('chain', 1): {'at_most': 1.3},
}
WELL_KNOWN = 0.9
LEAST = 0.9  # accuracy of the largest model: sizes that are all too small would make d₅₀ look large
STEPS, CHAINS = 'steps answered', 'chains answered'
POSITIONS = 'embed/positions'
NOT_IN_ALL_PARTS = (
  'positions', 'trained_to', 'chain_of_thought', 'bound', 'subject_bits', 'internal_bits',
)  # fmt: skip
RULE_DIM = 4  # dimensions that positions by rule take


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """`depths`: of the direct models; all others have one layer. `sizes`: number of values of d. `steps`: budgets, in steps
  of 64 subjects; d₅₀ is read at the last. `learning_rate`: up to d = 8; beyond, it falls as 1/d.
  `longer_dim`: d of the models asked for one hop more.
  """

  subjects: int
  relations: int = 2
  hops: tuple[int, ...] = (1, 2, 3, 4)
  depths: tuple[int, ...] = (1,)
  modes: tuple[str, ...] = 'direct', 'chain', 'chain_by_rule', UNRELATED
  sizes: int = 6
  steps: tuple[int, ...] = (2000,)
  learning_rate: float = 0.01
  weight_decay: float = 0.03
  longer_dim: int = 32
  seeds: int


def full(mode: str, **options) -> Preset:
  return Preset(
    subjects=1024, modes=(mode,), **{'steps': (8000,), 'hops': (1, 4), 'seeds': 3, **options}
  )


PRESETS = {
  'smoke': Preset(
    subjects=16, hops=(1, 2), modes=('direct', 'chain'), sizes=3, steps=(100,), seeds=1
  ),
  'laptop': Preset(subjects=64, hops=(1, 4), sizes=5, steps=(1000,), seeds=2),
  'full': {
    # Direct models get twice the passes of chains: what they need more of cannot be for want of training.
    'direct_1': full('direct', steps=(4000, 8000), hops=(1, 2, 3, 4), seeds=4),
    'direct_2': full('direct', depths=(2,)),
    'unrelated_1': full(UNRELATED),
    'chain_1': full('chain', steps=(2000, 4000), hops=(1, 2, 4), sizes=5),
    'chain_slow_1': full('chain_slow', steps=(4000,), hops=(1, 2, 4), sizes=5),
    'chain_by_rule_1': full('chain_by_rule', steps=(2000, 4000), sizes=5),
  },
}


def measure(trainer, preset, seeds):
  """Records of the models of all sizes, of the longer chains, and of the constructions and bounds
  at the most hops."""
  records = []
  for mode, hops, steps in itertools.product(preset.modes, preset.hops, preset.steps):
    for depth in preset.depths if mode == 'direct' else (1,):
      records += trained(trainer, preset, mode, hops, depth, steps, seeds)
  for mode in preset.modes:
    if MODES[mode].one_hop_more:
      records += long_chains(trainer, preset, seeds, mode)
  if 'direct' not in preset.modes or 1 not in preset.depths:
    return records
  most = max(r.get('subject_bits', 0.0) for r in records)
  sizes = preset.subjects, preset.relations, max(preset.hops)
  return records + tradeoff.measure(*sizes, seeds[0], subject_bits=most)


def trained(
  trainer, preset: Preset, mode: str, hops: int, depth: int, steps: int, seeds
) -> list[dict]:
  """Models of several sizes; those that know nearly all facts with their internal bits and the bits
  in an embedding."""
  n, r, how = preset.subjects, preset.relations, MODES[mode]
  relations, asked = (r**hops, 1) if mode == UNRELATED else (r, hops)
  recipe = recipe_of(preset, how, asked, steps)
  sizes = stored_bits.dims(how.middle(n, r, hops), preset.sizes)
  sizes = [d for d in sizes if d >= RULE_DIM or not how.rule]
  tasks = [
    task(preset, how, d, seed, recipe, relations=relations, depth=depth)
    for d, seed in itertools.product(sizes, seeds)
  ]
  about = {
    'kind': 'trained', 'measurement': 'accuracy', 'model': mode, 'depth': depth, 'hops': hops,
    'relations': r,
  }  # fmt: skip
  records = stored_bits.measure(trainer, recipe, tasks, about)
  for own in records:
    own['value'] = own['accuracy']
    if own['accuracy'] >= TARGET and mode != UNRELATED:
      own['subject_bits'] = own['bits_per_weight'] * own['dim']
      own['internal_bits'] = own['bits_per_weight'] * own['parameters'] - n * own['subject_bits']
  return records


def recipe_of(preset: Preset, how: Mode, hops: int, steps: int) -> Recipe:
  batch = min(how.batch, preset.subjects)
  return Recipe.with_warmup(
    steps * BATCH // how.batch, hops=hops, chain_of_thought=how.chain, loss='chain' if how.chain else 'answer', batch=batch, passes=True, target=None,
    evaluate=False, embedding_lr_multiplier=how.embedding_lr_multiplier, frozen=(POSITIONS,) if how.rule else (),
  )  # fmt: skip


def task(preset: Preset, how: Mode, dim: int, seed: int, recipe: Recipe, **options) -> Task:
  """A model before training, with room for one chain of the recipe's hops, or of `length` tokens."""
  sizes = {'relations': preset.relations, 'length': recipe.length()} | options
  config = Config.trained(preset.subjects, dim=dim, **sizes)
  facts = instances.bijections(preset.subjects, config.relations, seed)
  rate = stored_bits.learning_rate(how.rate * preset.learning_rate, dim)
  one = Task(config, facts, rate, preset.weight_decay, seed)
  if not how.rule:
    return one
  written = with_positions(sweeps.parameters(one, config), recipe.hops)
  return dataclasses.replace(one, params=written)


def long_chains(trainer, preset: Preset, seeds, mode: str) -> list[dict]:
  """Records of models trained on chains of one hop less than the most: accuracy of the steps of
  these chains and of chains of the most hops, each step by itself and all of a chain."""
  n, r, most, how = preset.subjects, preset.relations, max(preset.hops), MODES[mode]
  learned = max(1, most - 1)
  recipe = recipe_of(preset, how, learned, preset.steps[-1])
  tasks = [task(preset, how, preset.longer_dim, seed, recipe, length=2 * most) for seed in seeds]
  config = tasks[0].config

  def answered(params, job):
    def of(hops, per_step):
      own = with_positions(params, hops) if how.rule else params
      asked = dataclasses.replace(recipe, hops=hops)
      return optimization.accuracy(config, asked, job, own, per_step=per_step)

    return {
      f'{hops} {what}': of(hops, what == STEPS)
      for hops, what in itertools.product((learned, most), (STEPS, CHAINS))
    }

  found = trainer.train_and_evaluate(recipe, tasks, answered)
  return [
    {
      'kind': 'longer', 'measurement': what, 'model': 'chain', 'control': None, 'depth': 1, 'subjects': n,
      'relations': r, 'hops': int(hops), 'trained_to': learned, 'positions': 'by rule' if how.rule else 'learned',
      'dim': preset.longer_dim, 'seed': seed, 'value': float(value),
    } for key, values_S in found.items() for hops, _, what in [key.partition(' ')]
    for seed, value in zip(seeds, values_S, strict=True)
  ]  # fmt: skip


def with_positions(params: dict, hops: int) -> dict:
  """The parameters with position embeddings for chains of `hops` hops, written by a rule: what a
  token is (a key) and what is to be said next (a query) are each numbered from 0 on, as angles. Those of three hops span
  all others; multiples of the angles would not be spanned, and a longer chain would ask in directions that are untrained.
  """
  positions_LxD = params['embed']['positions']
  length = len(positions_LxD)
  index = np.arange(length)
  keys_L, queries_L = np.where(index <= hops, index, -1), np.where(index >= hops, index - hops, -1)
  code_LxD = np.zeros(positions_LxD.shape, np.float32)
  code_LxD[:, :2], code_LxD[:, 2:4] = _angles(keys_L), _angles(queries_L)
  return {**params, 'embed': {**params['embed'], 'positions': code_LxD}}


def _angles(count_L: np.ndarray) -> np.ndarray:
  """cos and sin of an eighth of a turn per count; 0 where there is nothing to count (a negative
  count)."""
  angle_L = 2 * np.pi / 8 * count_L
  both_Lx2 = np.stack([np.cos(angle_L), np.sin(angle_L)], axis=1)
  return np.where(count_L[:, None] < 0, 0, both_Lx2)


def with_all_columns(table: pd.DataFrame) -> pd.DataFrame:
  """The table with columns of missing values for what a part of a preset does not measure."""
  return table.reindex(columns=[*dict.fromkeys((*table, *NOT_IN_ALL_PARTS))])


def longest(rows: pd.DataFrame) -> pd.DataFrame:
  """The models that were trained for the most steps."""
  return curves.at_largest(rows, 'steps', 'model', 'depth', 'hops')


def above_relation_blind(rows: pd.DataFrame) -> pd.DataFrame:
  """The rows with scores that are 0 for a model that knows one of R^k paths, or one of R steps, and 1 if all are right."""
  paths = rows['relations'] ** rows['hops']
  steps = paths.mask(rows['model'].map(lambda mode: MODES[mode].chain), rows['relations'])
  return rows.assign(
    accuracy=curves.above_relation_blind(rows['accuracy'], paths),
    each_step=curves.above_relation_blind(rows['each_step'], steps),
  )


def growth(rows: pd.DataFrame, score: str = 'accuracy', beyond: float | None = None) -> list[float]:
  """d₅₀ at the most hops over that at one, for every seed. Where no model of the most hops knows half, d₅₀ is beyond all
  sizes: then it is `beyond`, or the largest of them, a lower bound."""
  if not len(rows):
    return []
  one = curves.half_sizes(select(rows, hops=1), score)
  return curves.ratios(reached(select(rows, hops=rows['hops'].max()), score, beyond), one)


def reached(rows: pd.DataFrame, score: str, beyond: float | None) -> dict[Any, float]:
  """d₅₀ of every seed; where no model knows half, `beyond` or the largest d."""
  return {
    seed: curves.half_size(own['dim'], own[score])
    if own[score].max() >= 0.5
    else beyond or own['dim'].max()
    for (seed,), own in groups(rows, 'seed')
  }


def expect(table):
  """d₅₀ at the most hops over that at one; whole chains; internal bits against those of
  the constructions; and chains of one hop more."""
  table = with_all_columns(table)
  every = select(table, kind='trained')
  yield from expected_sizes(every)
  yield from expected_of_pairs(every)
  yield from expected_bits(longest(every), select(table, kind='construction'))
  yield from expected_longer(select(table, kind='longer'))


def expected_sizes(every: pd.DataFrame):
  """d₅₀, its growth from one hop to the most, and whether sizes and budgets were large enough to read it."""
  decides, beyond = every['subjects'].max() >= 1024, above_relation_blind(every)
  unrelated = growth(select(longest(beyond), model=UNRELATED))
  for (mode, depth), budgets in groups(beyond, 'model', 'depth'):
    own = longest(budgets)
    n, most = int(own['subjects'].iloc[0]), own['hops'].max()
    name = f'N = {n:,}, {MODES[mode].name}, depth {depth:.0f}'
    texts = {'accuracy': name + ', whole chains' * MODES[mode].chain}
    if MODES[mode].chain:
      texts = {'each_step': f'{name}, per step (teacher-forced)'} | texts
    for i, (score, text) in enumerate(texts.items()):
      bounds: dict = {} if i else BOUNDS.get((mode, depth), {})
      size = {hops: curves.half_sizes(some, score) for hops, some in own.groupby('hops')}
      for hops, values in size.items():
        if bounds or np.isfinite([*values.values()]).all():
          yield from curves.expected_half_sizes(f'{text}: d₅₀ at k = {hops:.0f}', values)
      if most == 1 or 1 not in size:
        continue
      last = longest(select(every, model=mode, depth=depth, hops=most))
      yield from over_seeds(
        f'{text}: accuracy of the largest model at k = {most:.0f}', last[last['dim'] == last['dim'].max()][score], LEAST, check=True,
      )  # fmt: skip
      for hops in (1, most):
        read = functools.partial(curves.half_sizes, score=score)
        changes = curves.last_change(select(budgets, hops=hops), 'steps', read)
        what = f'{text}, k = {hops:.0f}: d₅₀ at the last doubling of steps'
        yield from curves.expected_change(what, changes)
      grown = growth(own, score, np.inf if 'at_most' in bounds else None)
      if not bounds and not np.isfinite(grown).all():
        continue
      controls: dict = {MODES[UNRELATED].name: unrelated} if mode == 'direct' else {}
      yield from over_seeds(
        f'{text}: d₅₀ at k = {most:.0f} / at k = 1', grown,
        primary=bool(decides and bounds), **bounds, **controls,
      )  # fmt: skip


def expected_of_pairs(every: pd.DataFrame):
  """d₅₀ of two modes compared seed by seed: direct answers with unrelated relations, and chains at the better of two rates."""
  rows = longest(above_relation_blind(select(every, depth=1)))
  most = rows['hops'].max()

  def of(mode: str, hops: int) -> dict[Any, float]:
    score = MODES[mode].score
    return reached(select(rows, model=mode, hops=hops), score, np.inf)

  text = (
    f'depth 1, k = {most:.0f}: d₅₀ of {MODES["direct"].name} answers / of {MODES[UNRELATED].name}'
  )
  yield from over_seeds(text, curves.ratios(of('direct', most), of(UNRELATED, most)))
  yield from composition(select(rows, hops=most))
  if of('chain', most) and of('chain_slow', most):
    at_most, at_one = (better(of('chain', hops), of('chain_slow', hops)) for hops in (most, 1))
    text = f'{MODES["chain"].name}, depth 1, per step, at the better rate for each k: d₅₀ at k = {most:.0f} / at k = 1'
    yield from over_seeds(text, curves.ratios(at_most, at_one))


def composition(rows: pd.DataFrame):
  """What direct answers gain over unrelated relations, where most facts are known and in bits: half of the answers need not show it."""
  names = f'{MODES["direct"].name} answers / of {MODES[UNRELATED].name}'
  direct, unrelated = (select(rows, model=mode) for mode in ('direct', UNRELATED))
  known = [curves.half_sizes(some, level=WELL_KNOWN) for some in (direct, unrelated)]
  ratios = [ratio for ratio in curves.ratios(*known) if np.isfinite(ratio)]
  yield from over_seeds(f'depth 1: d at which {WELL_KNOWN:g} is known of {names}', ratios)
  for (d,), own in groups(direct.sort_values('dim'), 'dim') if len(unrelated) else ():
    bits = (some.set_index('seed')['bits'].to_dict() for some in (own, select(unrelated, dim=d)))
    yield from over_seeds(f'depth 1, d = {d:.0f}: bits of {names}', curves.ratios(*bits))


def better(one: dict[Any, float], two: dict[Any, float]) -> dict[Any, float]:
  """The smaller d₅₀ of every seed that both have."""
  return {seed: min(one[seed], two[seed]) for seed in one if seed in two}


def expected_bits(rows: pd.DataFrame, built: pd.DataFrame):
  """The fewest internal bits at the most hops, over those of the smallest construction."""
  known = rows[rows['internal_bits'].notna()]
  for (mode, depth), some in groups(known[known['hops'] == rows['hops'].max()], 'model', 'depth'):
    least = some.loc[some.groupby('seed')['internal_bits'].idxmin(), 'internal_bits']
    like = select(built, chain_of_thought=mode != 'direct')['internal_bits']
    text = f'{MODES[mode].name}, depth {depth:.0f}: fewest internal bits of a model with accuracy ≥ 0.99 / fewest of a construction'
    yield from over_seeds(text, list(least / like.min()) if len(like) else [])


def expected_longer(rows: pd.DataFrame):
  """Accuracy of chains that are as long as those learned, and of one hop more."""
  for (positions, hops, learned, what), own in groups(
    rows, 'positions', 'hops', 'trained_to', 'measurement'
  ):
    text = f'positions {positions}, trained on {learned:.0f} hops, asked {hops:.0f}: {what}'
    chance = [1 / float(own['subjects'].iloc[0])]
    yield from over_seeds(
      text, own['value'], 0.99 if hops <= learned else None, check=True, chance=chance
    )


def plot(table):
  """Accuracy against d; d₅₀ against hops; the bounds with trained models at the most hops. A mark
  is a seed."""
  table = with_all_columns(table)
  figure, panels = plotting.new(14.5, 3.2, 1, 4)
  _plot_curves(panels[0], table, chain=False)
  _plot_curves(panels[1], table, chain=True)
  _plot_halves(panels[2], table)
  _plot_bits(panels[3], table)
  for ax, columns in zip(panels, (2, 2, 1, 2), strict=True):
    plotting.legend(ax, below=0.18, ncols=columns)
  return figure


def _plot_curves(ax, table, chain: bool):
  """The modes differ by colour, the numbers of hops by line."""
  rows = longest(select(table, kind='trained', depth=1))
  for mode, i in SERIES.items():
    for (hops,), own in groups(select(rows, model=mode), 'hops'):
      if MODES[mode].chain == chain:
        label, own = f'{MODES[mode].name}, k = {hops:.0f}', own.assign(value=own[MODES[mode].score])
        plotting.draw_seeds(ax, own, 'dim', i, label, linestyle=LINES[int(hops - 1) % len(LINES)])
  plotting.logarithmic(ax.xaxis)
  title = 'chain of thought, one layer' if chain else 'one forward pass, one layer'
  ax.set(xlabel='$d$', ylabel='accuracy' + ' per step' * chain, ylim=(0, 1.03), title=title)


def _plot_halves(ax, table):
  rows = longest(above_relation_blind(select(table, kind='trained')))
  for (mode, depth), own in groups(rows, 'model', 'depth'):
    score = MODES[mode].score
    sizes = [
      (hops, half)
      for hops, some in own.groupby('hops')
      for half in curves.half_sizes(some, score).values()
    ]
    drawn = pd.DataFrame(sizes, columns=['hops', 'value']).dropna()
    label = MODES[mode].name + (', per step' if MODES[mode].chain else f', depth {depth:.0f}')
    if len(drawn):
      plotting.draw_seeds(
        ax, drawn, 'hops', SERIES[mode], label, linestyle=LINES[int(depth - 1) % len(LINES)]
      )
  ax.set(
    xlabel='hops, $k$',
    ylabel='$d_{50}$',
    xticks=sorted(rows['hops'].unique()),
    title='the $d$ that knows half',
  )
  plotting.logarithmic(ax.yaxis)


def _plot_bits(ax, table):
  """Trained models that know 0.99, at the bits that they need, and the bounds without chain of
  thought."""
  tradeoff.draw_bounds(ax, table)
  for chain, label in ((False, 'constructions'), (True, '… with chain of thought')):
    built = select(table, kind='construction', chain_of_thought=chain)
    ax.plot(built['subject_bits'], built['internal_bits'], 'P', color=plotting.BLACK, markersize=4,
            markerfacecolor='white' if chain else plotting.BLACK, label=label)  # fmt: skip
  rows = longest(select(table, kind='trained'))
  most = rows['hops'].max()
  for mode, i in SERIES.items():
    own = select(rows, model=mode, hops=most)
    color, marker = plotting.cycle(i)
    if own['internal_bits'].notna().any():
      ax.plot(own['subject_bits'], own['internal_bits'], marker, color=color, alpha=0.7, markersize=4,
              markerfacecolor='white' if MODES[mode].chain else color, label=f'trained, {MODES[mode].name}')  # fmt: skip
  ax.set(xlabel='bits in an embedding', ylabel='bits inside the network')
  if ax.dataLim.width > 0:  # a part without direct models has no bits to draw
    ax.set(xscale='log', yscale='log')
  ax.set_title(f'bits at $k$ = {most:.0f}')


STUDY = Study(
  name='multihop',
  title='chains of relations, with and without chain of thought', page='hops.md',
  claims=(
    Claim('Claim 7', 'Answering k hops directly, without chain of thought, takes a width that grows with k; with chain of thought it does not grow.',
          ('N = 1,024, direct', 'N = 1,024, chain of thought')),
  ),
  terms='d₅₀: the d, at F = 4d, at which accuracy is half-way from what a model can know that ignores the relations, one of R^k answers or one of R steps, to everything; '
  'in the ratio of direct answers, the largest d that was tried if none reaches it. Direct: without chain of thought, the model emits only the answer. Chain of '
  'thought: every intermediate subject is emitted and trained on; accuracy per step is teacher-forced (given the correct chain '
  'before the step); a whole chain must be right at every step. One hop of R^k relations: bijections that have nothing to do with one '
  'another, as many as there are paths of k hops. Internal bits: those outside the subject’s embedding.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot,
  by=('kind', 'measurement', 'model', 'positions', 'depth', 'hops', 'dim'), minutes=3.4, first_seed=FIRST_SEED + 500,
)  # fmt: skip


if __name__ == '__main__':
  STUDY.main()
