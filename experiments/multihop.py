"""Chains of relations: what do they cost a trained model, with and without chain of thought? Claim 7.

  python -m experiments.multihop

Models of several sizes d, with F = 4d, learn all N·R^k queries of k hops in the same number of
passes. They answer directly (without chain of thought), in one layer or more, or emit every
intermediate subject (chain of thought). Every model enters with its accuracy; d₅₀ is the d at which
half of the answers are right. Expected: for direct answers d₅₀ grows with k, fivefold or more from
one hop to four; with chain of thought, a single teacher-forced step takes the d of one hop. The
control for direct answers is one hop of R^k relations that have nothing to do with one another: a
model that does not exploit the composition needs as much for k hops. Whole chains, of which every
step must be right, are shown as well. Models that know 0.99 appear, at the fewest bits per weight
that preserve this, in the figure of the bounds, next to the constructions.

Last, models learn chains of one hop less than the maximum and are asked for one hop more. Learned
position embeddings are untrained at the positions that the extra hop adds; embeddings written by a
rule, an angle for every hop, are defined there.
"""

import dataclasses
import functools
import itertools

import numpy as np
import pandas as pd

from experiments.harness import instances, plotting, scaling_law, stored_bits, tradeoff
from experiments.harness.findings import Claim, over_seeds
from experiments.harness.statistics import groups, select
from experiments.harness.study import FIRST_SEED, Study
from geomem.config import Config
from geomem.training import batched, optimization
from geomem.training.batched import Task
from geomem.training.recipe import Recipe

UNRELATED = 'unrelated'
MODES = {'direct': (False, 'answer'), 'chain': (True, 'chain'), UNRELATED: (False, 'answer')}
NAMES = {'direct': 'direct', 'chain': 'chain of thought', UNRELATED: 'one hop of R^k relations'}
TARGET = 0.99
LEAST = 0.9  # accuracy of the largest model: sizes that are all too small would make d₅₀ look large
STABLE_DIM, EMBEDDING_LR_MULTIPLIER = 8, 3.0  # as experiments.laws has found
STEPS, CHAINS = 'steps answered', 'chains answered'
POSITIONS = 'embed/positions'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """`depths`: of the direct models; all others have one layer. `sizes`: number of values of d.

  `batch`: subjects per step, each with all its paths. `steps`: budgets; d₅₀ is read at the last.
  `learning_rate`: up to d = 8; beyond, it falls as 1/d. `longer_dim`: d of the models asked for one
  hop more.
  """

  subjects: int
  relations: int = 2
  hops: tuple[int, ...] = (1, 2, 3, 4)
  depths: tuple[int, ...] = (1, 2)
  modes: tuple[str, ...] = tuple(MODES)
  sizes: int = 6
  batch: int = 64
  steps: tuple[int, ...] = (2000,)
  learning_rate: float = 0.06
  weight_decay: float = 0.03
  longer_dim: int = 32
  seeds: int


PRESETS = {
  'smoke': Preset(
    subjects=16, hops=(1, 2), depths=(1,), modes=('direct', 'chain'), sizes=3, steps=(200,), seeds=1, batch=16,
  ),
  'laptop': Preset(subjects=64, hops=(1, 4), depths=(1,), sizes=4, seeds=2),
  'full': {
    f'{mode}_{depth}': Preset(subjects=1024, modes=(mode,), depths=(depth,), steps=steps, sizes=sizes, seeds=4)
    for mode, depth, steps, sizes in (
      ('chain', 1, (2000, 4000), 8), ('direct', 1, (2000, 4000), 6), ('direct', 2, (4000,), 6), (UNRELATED, 1, (4000,), 6),
    )
  },
}  # fmt: skip


def measure(trainer, preset, seeds):
  """Records of the models of all sizes, of the longer chains, and of the constructions and bounds
  at the most hops."""
  records = []
  for mode, hops, steps in itertools.product(preset.modes, preset.hops, preset.steps):
    for depth in preset.depths if mode == 'direct' else (1,):
      records += trained(trainer, preset, mode, hops, depth, steps, seeds)
  if 'chain' in preset.modes:
    records += [row for rule in (False, True) for row in long_chains(trainer, preset, seeds, rule)]
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
  n, r, (chain, loss) = preset.subjects, preset.relations, MODES[mode]
  relations, asked = (r**hops, 1) if mode == UNRELATED else (r, hops)
  recipe = Recipe.with_warmup(
    steps,
    hops=asked,
    chain_of_thought=chain,
    loss=loss,
    batch=min(preset.batch, n),
    passes=True,
    target=None,
    evaluate=False,
    embedding_lr_multiplier=EMBEDDING_LR_MULTIPLIER,
  )
  middle = 1.3 * stored_bits.guess(n, r) if chain else stored_bits.guess(n, r**hops)
  sizes = stored_bits.dims(middle, preset.sizes)
  if hops == max(preset.hops):
    sizes.append(round(3 * middle))  # so that one knows nearly all answers
  config = lambda d: Config.trained(n, relations, d, depth=depth, length=recipe.length())
  facts = functools.partial(instances.bijections, n, relations)
  tasks = [
    Task(config(d), facts(seed), rate(preset, d), preset.weight_decay, seed)
    for d, seed in itertools.product(sizes, seeds)
  ]
  about = {
    'kind': 'trained', 'measurement': 'accuracy', 'model': mode, 'control': None, 'depth': depth,
    'hops': hops, 'subjects': n, 'relations': r,
  }  # fmt: skip
  records = stored_bits.measure(trainer, recipe, tasks, [about] * len(tasks))
  for own in records:
    own['value'] = own['accuracy']
    if own['accuracy'] >= TARGET and mode != UNRELATED:
      own['subject_bits'] = own['bits_per_weight'] * own['dim']
      own['internal_bits'] = own['bits_per_weight'] * own['parameters'] - n * own['subject_bits']
  return records


def rate(preset: Preset, dim: int) -> float:
  return preset.learning_rate * min(1.0, STABLE_DIM / dim)


def long_chains(trainer, preset: Preset, seeds, rule: bool) -> list[dict]:
  """Records of models trained on chains of one hop less than the most: accuracy of the steps of
  these chains and of chains of the most hops, each step by itself and all of a chain."""
  n, r, most = preset.subjects, preset.relations, max(preset.hops)
  learned = max(1, most - 1)
  recipe = Recipe.with_warmup(
    preset.steps[-1],
    hops=learned,
    chain_of_thought=True,
    loss='chain',
    batch=min(preset.batch, n),
    passes=True,
    target=None,
    evaluate=False,
    embedding_lr_multiplier=EMBEDDING_LR_MULTIPLIER,
    frozen=(POSITIONS,) if rule else (),
  )
  config = Config.trained(n, r, dim=preset.longer_dim, length=2 * most)
  tasks = [
    Task(
      config, instances.bijections(n, r, seed), rate(preset, config.dim), preset.weight_decay, seed
    )
    for seed in seeds
  ]
  if rule:
    written = lambda task: batched.parameters(task, config)
    tasks = [
      dataclasses.replace(task, params=with_positions(written(task), learned)) for task in tasks
    ]

  def answered(params, job):
    def of(hops, per_step):
      own = with_positions(params, hops) if rule else params
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
      'relations': r, 'hops': int(hops), 'trained_to': learned, 'positions': 'by rule' if rule else 'learned',
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


def longest(rows: pd.DataFrame) -> pd.DataFrame:
  """The models that were trained for the most steps."""
  by = rows.groupby(['model', 'depth', 'hops'])['steps']
  return rows[rows['steps'] == by.transform('max')]


def growth(rows: pd.DataFrame, score: str = 'accuracy', beyond: float | None = None) -> list[float]:
  """d₅₀ at the most hops over that at one, for every seed. Where no model of the most hops knows half, d₅₀ is beyond all
  sizes: then it is `beyond`, or the largest of them, a lower bound."""
  if not len(rows):
    return []
  one = scaling_law.half_sizes(select(rows, hops=1), score)
  of_most = select(rows, hops=rows['hops'].max())
  most = [
    scaling_law.half_size(own['dim'], own[score])
    if own[score].max() >= 0.5
    else beyond or own['dim'].max()
    for _, own in groups(of_most, 'seed')
  ]
  return [a / b for a, b in zip(most, one, strict=True)]


def expect(table):
  """d₅₀ at the most hops over that at one; whole chains; internal bits against those of
  the constructions; and chains of one hop more."""
  every = select(table, kind='trained')
  rows, decides = longest(every), every['subjects'].max() >= 1024
  unrelated = growth(select(rows, model=UNRELATED))
  for (mode, depth), own in groups(rows, 'model', 'depth'):
    n, most = int(own['subjects'].iloc[0]), own['hops'].max()
    name = f'N = {n:,}, {NAMES[mode]}, depth {depth:.0f}'
    scores = ('each_step', 'accuracy') if mode == 'chain' else ('accuracy',)
    for score in scores:
      text = name + {'each_step': ', per step (teacher-forced)'}.get(
        score, ', whole chains' * (mode == 'chain')
      )
      size = {hops: scaling_law.half_sizes(some, score) for hops, some in own.groupby('hops')}
      for hops, values in size.items():
        yield from over_seeds(f'{text}: d₅₀ at k = {hops:.0f}', values)
      if most > 1 and 1 in size:
        bounds: dict = {('direct', 1): {'at_least': 5.0}, ('chain', 1): {'at_most': 1.3}}.get(
          (mode, depth), {}
        )
        bounds = bounds if score == scores[0] else {}
        last = select(own, hops=most)
        yield from over_seeds(
          f'{text}: accuracy of the largest model at k = {most:.0f}', last[last['dim'] == last['dim'].max()][score], LEAST, check=True,
        )  # fmt: skip
        same = select(every, model=mode, depth=depth)
        for hops in (1, most):
          read = functools.partial(scaling_law.half_sizes, score=score)
          changes = scaling_law.last_change(select(same, hops=hops), 'steps', read)
          yield from over_seeds(
            f'{text}, k = {hops:.0f}: relative change of d₅₀ at the last doubling of steps', changes, at_most=scaling_law.SETTLED, check=True,
          )  # fmt: skip
        grown = growth(own, score, np.inf if 'at_most' in bounds else None)
        controls: dict = {NAMES[UNRELATED]: unrelated} if mode == 'direct' else {}
        yield from over_seeds(
          f'{text}: d₅₀ at k = {most:.0f} / at k = 1', grown,
          primary=bool(decides and bounds), **bounds, **controls,
        )  # fmt: skip
  built = select(table, kind='construction')
  known = rows[rows['internal_bits'].notna()]
  for (mode, depth), some in groups(known[known['hops'] == rows['hops'].max()], 'model', 'depth'):
    least = some.loc[some.groupby('seed')['internal_bits'].idxmin(), 'internal_bits']
    like = select(built, chain_of_thought=mode != 'direct')['internal_bits']
    text = f'{NAMES[mode]}, depth {depth:.0f}: fewest internal bits of a model with accuracy ≥ 0.99 / fewest of a construction'
    yield from over_seeds(text, list(least / like.min()) if len(like) else [])
  for (positions, hops, learned, what), own in groups(
    select(table, kind='longer'), 'positions', 'hops', 'trained_to', 'measurement'
  ):
    text = f'positions {positions}, trained on {learned:.0f} hops, asked {hops:.0f}: {what}'
    chance = [1 / float(own['subjects'].iloc[0])]
    yield from over_seeds(
      text, own['value'], 0.99 if hops <= learned else None, check=True, chance=chance
    )


def plot(table):
  """Accuracy against d; d₅₀ against hops; the bounds with trained models at the most hops. A mark
  is a seed."""
  figure, panels = plotting.new(11.6, 3.2, 1, 3)
  for ax, draw, size in zip(
    panels, (_plot_curves, _plot_halves, _plot_bits), (6, 6, 5), strict=True
  ):
    draw(ax, table)
    plotting.legend(ax, fontsize=size)
  return figure


def _plot_curves(ax, table):
  rows = longest(select(table, kind='trained', depth=1))
  for i, ((mode, hops), own) in enumerate(groups(rows, 'model', 'hops')):
    score = 'each_step' if mode == 'chain' else 'accuracy'
    plotting.spread(ax, own.assign(value=own[score]), 'dim', i, f'{NAMES[mode]}, k = {hops:.0f}')
  plotting.logarithmic(ax.xaxis)
  ax.set(xlabel='$d$', ylabel='accuracy (chains: per step)', ylim=(0, 1.03), title='one layer')


def _plot_halves(ax, table):
  rows = longest(select(table, kind='trained'))
  for i, ((mode, depth), own) in enumerate(groups(rows, 'model', 'depth')):
    score = 'each_step' if mode == 'chain' else 'accuracy'
    sizes = [
      (hops, half)
      for hops, some in own.groupby('hops')
      for half in scaling_law.half_sizes(some, score)
    ]
    drawn = pd.DataFrame(sizes, columns=['hops', 'value']).dropna()
    label = NAMES[mode] + (', per step' if mode == 'chain' else f', depth {depth:.0f}')
    if len(drawn):
      plotting.spread(ax, drawn, 'hops', i, label)
  ax.set(
    xlabel='hops, $k$', ylabel='$d_{50}$', ylim=(0, None), xticks=sorted(rows['hops'].unique())
  )


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
  for mode, color in (('direct', plotting.RED), ('chain', plotting.PINK)):
    own = select(rows, model=mode, hops=most)
    ax.plot(own['subject_bits'], own['internal_bits'], 'o', color=color, alpha=0.7, markersize=4,
            markerfacecolor=color if mode == 'direct' else 'white', label=f'trained, {NAMES[mode]}')  # fmt: skip
  ax.set(xscale='log', yscale='log', xlabel='$B_{emb}$', ylabel='$B_{int}$')
  ax.set_title(f'bits at $k$ = {most:.0f}')


STUDY = Study(
  name='multihop',
  title='chains of relations, with and without chain of thought',
  claims=(
    Claim('Claim 7', 'Answering k hops directly, without chain of thought, takes a width that grows with k; with chain of thought it does not grow.',
          ('N = 1,024, direct', 'N = 1,024, chain of thought')),
  ),
  terms='d₅₀: the d, at F = 4d, at which half of the answers are right; in the ratio of direct answers, the largest d that was tried if none reaches it. Direct: without chain of thought, the model emits only the answer. Chain of '
  'thought: every intermediate subject is emitted and trained on; accuracy per step is teacher-forced (given the correct chain '
  'before the step); a whole chain must be right at every step. One hop of R^k relations: bijections that have nothing to do with one '
  'another, as many as there are paths of k hops. Internal bits: those outside the subject’s embedding.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot,
  by=('kind', 'measurement', 'model', 'positions', 'depth', 'hops', 'dim'), minutes=5.5, first_seed=FIRST_SEED + 500,
)  # fmt: skip


if __name__ == '__main__':
  STUDY.main()
