"""When does the structure appear: before the facts are learned, with them, or after? Relation by relation, or all at once?

  python -m experiments.dynamics

Training is stopped at intermediate steps. At each stop, subjects that the model never saw learn
their embeddings through the model as it is then, frozen, in as many steps as a whole training
takes; maps fitted to the model's own subjects are judged on them. The study compares the steps at
which facts are answered, fresh subjects' attributes can be read by linear maps, their embeddings
are a superposition, and swaps at α = 1 along fitted maps flip one answer and no other. The control
is random weights of which only the embeddings are trained. A fresh subject has had more steps than
the model's own subjects at the same stop, so its structure is timed against the accuracy of both.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from experiments.harness import fresh_subjects, instances, plotting
from experiments.harness.findings import Claim, over_seeds
from experiments.harness.model_kinds import Sizes, sizes
from experiments.harness.statistics import groups, select, values
from experiments.harness.study import Study
from geomem import model
from geomem.config import Config
from geomem.inside import intervene, linear_maps, new_facts
from geomem.training.recipe import Recipe

CONTROL = 'random weights'
FRESH = 64  # subjects that the model never saw
SCORES = {
  'accuracy': 'accuracy', 'fresh_accuracy': 'accuracy on fresh subjects', 'probe_accuracy': 'linear probe accuracy, fresh subjects',
  'superposition_r2': 'superposition $R^2$, fresh subjects', 'swapped': 'swaps, lower of flipped and kept',
}  # fmt: skip
STRUCTURE = 'probe_accuracy', 'superposition_r2', 'swapped'
BY_RELATION = 'accuracy', 'probe_accuracy', 'swapped'
MAX_LAG = 1.25  # times the step at which the facts are learned; anything later counts as after them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset(Sizes):
  """A model trained by the recipe. `stops`: the steps at which it is analysed, besides the start
  and the end."""

  stops: tuple[int, ...]
  seeds: int


PRESETS = {
  'smoke': Preset(**sizes(subjects=32, relations=2, batch=8, steps=30), stops=(10,), seeds=1),
  'laptop': Preset(
    **sizes(subjects=256, relations=2, batch=64, steps=1000), seeds=5,
    stops=(20, 40, 60, 70, 80, 90, 100, 115, 130, 150, 170, 200, 250, 350, 500),
  ),
  'full': Preset(
    **sizes(subjects=1024, relations=4, batch=256, steps=1000), seeds=5,
    stops=(40, 80, 110, 130, 150, 170, 190, 210, 240, 270, 310, 360, 430, 520, 700),
  ),
}  # fmt: skip


def scores(config: Config, recipe: Recipe, params, job, other_RxN, *_):
  """Scores of a model at a stop, per relation (R² for all relations together)."""
  e_NxD, u_AxD = params['embed']['subjects'], model.apply(config, params, method='unembedding')
  table_RxS = other_RxN[:, :FRESH]
  e_SxD = new_facts.learn_embeddings(config, recipe, params, job, table_RxS)
  known = e_NxD, u_AxD, job.answers_RxN
  data = fresh_subjects.fitted_and_fresh(known, e_SxD, table_RxS)
  maps, key = linear_maps.fit_best_maps(*known), instances.eval_keys(job.seed, 1)[0]
  of_relation = lambda right: jnp.mean(right, axis=0, dtype=jnp.float32)
  flipped_R, kept_R = fresh_subjects.swapped(config, params, maps, e_SxD, table_RxS, key)
  return {
    'accuracy': of_relation(intervene.answers(config, params, e_NxD) == job.answers_RxN.T),
    'fresh_accuracy': of_relation(intervene.answers(config, params, e_SxD) == table_RxS.T),
    'probe_accuracy': of_relation((linear_maps.probe(*data) == table_RxS).T),
    'superposition_r2': linear_maps.superposition_r2(*data),
    'swapped': jnp.minimum(flipped_R, kept_R), 'flipped': flipped_R, 'kept': kept_R,
  }  # fmt: skip


def measure(trainer, preset: Preset, seeds) -> list[dict]:
  """One record per number and stop, and per relation where there is a number for each."""
  first, stops = preset.geometric(), (*preset.stops, preset.steps)
  found = {
    kind.model: kind.evaluate(trainer, seeds, scores, stops)[1]
    for kind in (first, dataclasses.replace(first, model=CONTROL))
  }
  return [
    {
      'model': model, 'control': None if model == 'trained' else model, 'measurement': name, **preset.own(),
      'step': step, 'relation': r if np.ndim(value) else None, 'seed': seed, 'value': float(number),
    }
    for model, own in found.items()
    for name, values_TxM in own.items()
    for step, values_M in zip((0, *stops), values_TxM, strict=True)
    for seed, value in zip(seeds, values_M, strict=True)
    for r, number in enumerate(np.atleast_1d(value))
  ]  # fmt: skip


def first_crossing(rows, level: float) -> float:
  """The step at which a value first reaches the level, interpolated linearly between two stops; NaN
  if it never does."""
  steps, found = rows['step'].to_numpy(float), rows['value'].to_numpy(float)
  above = np.flatnonzero(found >= level)
  if not len(above):
    return float('nan')
  i = above[0]
  return float(np.interp(level, found[i - 1 : i + 1], steps[i - 1 : i + 1])) if i else 0.0


def expect(table):
  """When each score is halfway between the level of random weights and its own final one; how far
  apart relations are."""
  by = ['model', 'measurement', 'seed', 'step']
  mean = table.groupby(by, sort=False, as_index=False)['value'].mean()
  last, trained = select(mean, step=mean['step'].max()), select(mean, model='trained')
  when = {}
  for name, words in SCORES.items():
    words = words.replace('$R^2$', 'R²')
    end, control = (values(last, model=kind, measurement=name) for kind in ('trained', CONTROL))
    level = (float(np.mean(end)) + max(0.0, float(np.mean(control)))) / 2
    rows = select(trained, measurement=name)
    when[name] = np.array([first_crossing(own, level) for _, own in groups(rows, 'seed')])
    yield from over_seeds(f'{words}: final value', end, random_weights=control)
    yield from over_seeds(f'{words}: midpoint step, at {level:.2f}', when[name].tolist())
    for base in ('accuracy', 'fresh_accuracy'):
      if base in when and base != name:
        ratio = (when[name] / when[base]).tolist()
        what = f'{words}: midpoint step / that of {SCORES[base]}'
        yield from over_seeds(what, ratio, at_most=MAX_LAG if name in STRUCTURE else None)
  half = {name: by_relation(table, name) for name in BY_RELATION}
  for name, steps in half.items():
    about = f'{SCORES[name]}: step at which a relation reaches ½'
    yield from over_seeds(
      f'{about}, last relation / first', (steps.max(axis=1) / steps.min(axis=1)).tolist()
    )
    if name != 'accuracy':
      what = f'{about} / that of its accuracy, maximum over relations'
      yield from over_seeds(what, (steps / half['accuracy']).max(axis=1).tolist())


def by_relation(table, measurement: str) -> np.ndarray:
  """The step at which each relation's score reaches one half, seeds × relations."""
  trained = select(table, model='trained', measurement=measurement)
  steps = lambda rows: [first_crossing(own, 0.5) for _, own in groups(rows, 'relation')]
  return np.array([steps(rows) for _, rows in groups(trained, 'seed')])


def plot(table):
  """All scores against steps, those of random weights dotted; and every relation of every seed."""
  figure, (left, right) = plotting.new(9, 3.4, 1, 2)
  for i, (name, words) in enumerate(SCORES.items()):
    for kind, line in (('trained', '-'), (CONTROL, ':')):
      rows = select(table, model=kind, measurement=name)
      mean = rows.groupby(['seed', 'step'], as_index=False)['value'].mean()
      plotting.draw_seeds(left, mean, 'step', i, words if line == '-' else None, linestyle=line)
  seeds = list(table['seed'].unique())
  for name, line in (('accuracy', '-'), ('swapped', ':')):
    some = select(table, model='trained', measurement=name)
    for (seed, _), rows in groups(some, 'seed', 'relation'):
      color, marker = plotting.cycle(seeds.index(seed))
      style: dict = {'color': color, 'marker': marker, 'markersize': 3, 'linewidth': 0.8}
      right.plot(rows['step'], rows['value'], line, **style)
  for ax in (left, right):
    ax.set(xlabel='step', xscale='symlog')
  left.set(ylabel='score (random weights dotted)', ylim=(-0.3, 1.03))
  right.set_ylabel('accuracy (swaps that flip and keep dotted)')
  right.set_title('one line per relation, one colour per seed')
  plotting.legend(left)
  return figure


STUDY = Study(
  name='dynamics', title='facts, superposition, linear probes and swaps in the course of training', page='geometry.md',
  claims=(Claim('Dynamics', 'The structure appears with the facts, not after them.'),),
  terms='Fresh subjects: subjects that the model never saw; it is frozen as it is at that step, and they learn only their '
  'embeddings. Swaps: at α = 1 along fitted maps; for every relation the lower of two fractions: swaps that flip '
  'its answer, and other answers that are kept. Midpoint step: the step at which a score first reaches the mean of its '
  'own final value and that of random weights (at least 0). Last relation / first: the largest of '
  'the relations’ steps over the smallest, at least 1 by construction.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot, minutes=0.6,
)  # fmt: skip

if __name__ == '__main__':
  STUDY.main()
