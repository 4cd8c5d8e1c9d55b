"""Does a better optimizer store more facts in the same model? Claim 1, asked of the training.

  python -m experiments.optimizers

The d that claim 1 reads off may be the optimizer's and not the model's. So models of several sizes d, with F = 4d, learn
all facts in several ways: by AdamW; by AdamW with four times the steps; by Muon, which moves the matrices of the block
along orthogonalised momentum; by steps of everything but the embeddings, in turn with L-BFGS solves of every subject's
embedding on its own; and by AdamW with such solves at the end. Every optimizer takes the learning rate, of those tried,
with the highest mean accuracy. Expected: no optimizer needs less than nine tenths of AdamW's d₅₀, the d at which half of
the facts are known. How near training comes to the limit, one bit of facts per bit of weight, is reported.
"""

import dataclasses
import functools
import itertools
from typing import Any

from experiments.harness import curves, instances, plotting, stored_bits
from experiments.harness.findings import Claim, over_seeds
from experiments.harness.statistics import groups, select
from experiments.harness.study import FIRST_SEED, Study
from geomem.config import Config
from geomem.training import alternating
from geomem.training.recipe import Recipe
from geomem.training.sweeps import Task

FIRST = 'AdamW'
LONGER = 'AdamW, four times the steps'
MUON = 'Muon'
SOLVES = {  # turns, iterations of each solve, whether steps move embeddings as well
  'steps of the rest and solves of embeddings, in turn': (100, 10, False),
  'AdamW, then solves of embeddings': (1, 30, True),
}
OPTIMIZERS = FIRST, LONGER, MUON, *SOLVES
LEAST = 0.9  # times AdamW's d₅₀
DIMS = 4, 5, 6, 7, 8, 10  # around the d₅₀ that experiments.laws found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """`dims`: values of d. `steps`: of every optimizer but the longer one."""

  subjects: int
  relations: int
  dims: tuple[int, ...]
  steps: int = 2000
  batch: int = 128
  learning_rates: tuple[float, ...] = (0.03, 0.06, 0.12)
  optimizers: tuple[str, ...] = OPTIMIZERS
  seeds: int


PRESETS = {
  'smoke': Preset(subjects=16, relations=2, dims=(2, 4, 6), steps=100, batch=16, learning_rates=(0.03,), seeds=1),
  'laptop': Preset(subjects=64, relations=4, dims=(2, 3, 4, 6), steps=500, learning_rates=(0.06,), seeds=2),
  'full': {
    'AdamW': Preset(subjects=256, relations=6, dims=DIMS, optimizers=(FIRST, LONGER), seeds=5),
    'others': Preset(subjects=256, relations=6, dims=DIMS, optimizers=(MUON, *SOLVES), seeds=5),
  },
}  # fmt: skip


def measure(trainer, preset: Preset, seeds) -> list[dict]:
  """A record per optimizer, learning rate, size and seed."""
  n, r, records = preset.subjects, preset.relations, []
  for optimizer, rate in itertools.product(preset.optimizers, preset.learning_rates):
    recipe = Recipe.with_warmup(
      preset.steps * (4 if optimizer == LONGER else 1), batch=min(preset.batch, n), passes=True, target=None,
      optimizer='muon' if optimizer == MUON else 'adamw', embedding_lr_multiplier=3.0,
    )  # fmt: skip
    tasks = [
      Task(Config.trained(n, r, dim=d), instances.bijections(n, r, seed), rate, 0.03, seed)
      for d, seed in itertools.product(preset.dims, seeds)
    ]
    about = {'model': 'trained', 'optimizer': optimizer, 'learning_rate': rate}
    learn = None
    if optimizer in SOLVES:
      rounds, iterations, joint = SOLVES[optimizer]
      turns: Any = {'rounds': min(rounds, preset.steps), 'iterations': iterations, 'joint': joint}
      learn = functools.partial(alternating.learn, **turns)
    records += stored_bits.measure(trainer, recipe, tasks, about, learn)
  return records


def best(table):
  """Every optimizer with its rows at the learning rate with the highest mean accuracy."""
  for (optimizer,), rows in groups(table, 'optimizer'):
    rate = rows.groupby('learning_rate')['accuracy'].mean().idxmax()
    yield optimizer, select(rows, learning_rate=rate)


def expect(table):
  """d₅₀ of every optimizer relative to AdamW's, and the most bits that a parameter and a bit of weight hold."""
  found = dict(best(table))
  for optimizer, rows in found.items():
    halves = curves.half_sizes(rows)
    yield from over_seeds(f'{optimizer}: d₅₀', [*halves.values()])
    if optimizer != FIRST and FIRST in found:
      ratios = curves.ratios(halves, curves.half_sizes(found[FIRST]))
      yield from over_seeds(f'{optimizer}: d₅₀ / that of AdamW', ratios, LEAST, claim='Optimizers')
    for unit, column in (('parameter', 'value'), ('bit of weight', 'bits_per_weight_bit')):
      most = rows.groupby('seed')[column].max().tolist()
      yield from over_seeds(f'{optimizer}: largest bits of facts per {unit}, over all d', most)


def plot(table):
  """Accuracy, and bits of facts per parameter, over d."""
  figure, panels = plotting.new(9, 3.2, 1, 2)
  for i, (optimizer, rows) in enumerate(best(table)):
    plotting.draw_seeds(panels[0], rows.assign(value=rows['accuracy']), 'dim', i, optimizer)
    plotting.draw_seeds(panels[1], rows, 'dim', i)
  panels[0].set(xlabel='d', ylabel='accuracy')
  panels[1].set(xlabel='d', ylabel='bits of facts per parameter')
  plotting.legend(panels[0])
  return figure


STUDY = Study(
  name='optimizers',
  title='facts stored in models of several sizes by other ways of training than AdamW', page='capacity.md',
  claims=(Claim('Optimizers', 'No optimizer that was tried stores the facts in a much smaller d than AdamW does.'),),
  terms='d₅₀: the d at which half of all facts are known. Every optimizer has the better of the learning rates that were '
  'tried. Solves: L-BFGS on every subject’s own facts, with the rest of the model frozen.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot, by=('optimizer', 'learning_rate', 'dim'), minutes=0.9,
  first_seed=FIRST_SEED + 450,
)  # fmt: skip

if __name__ == '__main__':
  STUDY.main()
