"""How many dimensions of an embedding does a relation occupy? Projectors learned by interchange, rank by rank.

  python -m experiments.dimensions

A projector for each relation picks out the part of an embedding that belongs to it. Projectors are
learned on pairs of the model's own subjects, one of which is given this part of the other, and
judged on pairs of fresh ones. Expected: in a constructed selector, which writes every attribute in
m = ⌈log₂N⌉ bits, projectors score 1 at rank m and less below it; a trained model needs as many
dimensions as its answers' vectors have, and the dimensions of one relation carry nothing about
another. The controls are projectors that follow from fitted maps and are not learned, orthogonal
projectors that are learned from random directions, an untrained model, and random weights with
learned embeddings.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import fresh_subjects, instances, plotting
from experiments.harness.findings import Claim, over_seeds
from experiments.harness.model_kinds import GEOMETRIC_OPTIONS, Kind, sizes
from experiments.harness.statistics import groups, select
from experiments.harness.study import Study
from geomem import model
from geomem.config import Config
from geomem.inside import intervene, linear_maps, projectors
from geomem.training.recipe import Recipe

FRESH = 256  # subjects that the model never saw
BATCH = 64  # pairs of subjects per step
PROJECTORS = {  # the names in the records, and in findings and the legend
  'of fitted maps': 'projectors of fitted maps',
  'oblique, learned from these': 'learned oblique projectors',
  'orthogonal, learned from random ones': 'learned orthogonal projectors',
}
FITTED, _, ORTHOGONAL = PROJECTORS
CONTROLS = 'untrained', 'random weights'
ENOUGH = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """Models of `relations` relations, for every number of `subjects` and every dimension of the
  answers' vectors in `answer_dims`."""

  subjects: tuple[int, ...]
  relations: int
  answer_dims: tuple[int, ...]
  steps: int
  projector_steps: int
  ranks: tuple[int, ...]
  seeds: int

  def kinds(self):
    """For every number of subjects: the recipe with every dimension of the answers' vectors, a
    constructed selector, and the controls."""
    for subjects in self.subjects:
      own: Any = sizes(subjects, self.relations, min(256, subjects // 4), self.steps)
      first = Kind(**own, **GEOMETRIC_OPTIONS)
      for answer_dim in self.answer_dims:
        yield dataclasses.replace(first, answer_dim=answer_dim)
      for name in ('constructed', *CONTROLS):
        yield dataclasses.replace(first, model=name)


PRESETS = {
  'smoke': Preset(
    subjects=(32,), relations=2, answer_dims=(16,), steps=300, projector_steps=30, ranks=(4, 5, 16, 20), seeds=1,
  ),
  'laptop': Preset(
    subjects=(256,), relations=2, answer_dims=(8, 16), steps=1000, projector_steps=200,
    ranks=(2, 4, 6, 7, 8, 12, 16, 20), seeds=2,
  ),
  'full': {
    f'N{subjects}R{relations}': Preset(
      subjects=(subjects,), relations=relations, answer_dims=(8, 16), steps=1000, projector_steps=200,
      ranks=(2, 4, 6, 7, 8, 9, 10, 11, 12, 16, 20), seeds=3,
    )
    for subjects, relations in ((128, 2), (512, 2), (2048, 2), (512, 4))
  },
}  # fmt: skip


def scores(preset: Preset, config: Config, recipe: Recipe, params, job, other_RxN, constructed_NxD):
  """For every rank and every way to find projectors: the fraction of one relation's answers that
  change, and of the other answers that stay."""
  e_NxD, u_AxD = params['embed']['subjects'], model.apply(config, params, method='unembedding')
  new_RxS = other_RxN[:, :FRESH]
  e_SxD = fresh_subjects.embeddings(config, recipe, params, job, new_RxS, constructed_NxD)
  known = e_NxD, u_AxD, job.answers_RxN
  frames = projectors.from_maps(linear_maps.fit_best_maps(*known), *known)
  key, start_key = instances.eval_keys(job.seed, 2)
  blind = projectors.random_frames(start_key, config.relations, config.dim)

  def at(rank):
    learn = lambda start, orthogonal: projectors.learn(
      config, params, projectors.truncate(start, rank), e_NxD, job.answers_RxN, key, preset.projector_steps, BATCH, orthogonal
    )  # fmt: skip
    found = projectors.truncate(frames, rank), learn(frames, False), learn(blind, True)
    judged = [projectors.interchange(config, params, f, e_SxD, new_RxS) for f in found]
    names = [f'{what}, {which}' for which in PROJECTORS for what in ('flipped', 'kept')]
    return dict(zip(names, itertools.chain(*judged), strict=True))

  accuracy = intervene.accuracy(config, params, e_NxD, job.answers_RxN.T)
  return {'accuracy': accuracy, **jax.lax.map(at, jnp.array(preset.ranks))}


def measure(trainer, preset: Preset, seeds) -> list[dict]:
  """Records of all models, one number per rank."""
  score, ranks = functools.partial(scores, preset), [{'rank': rank} for rank in preset.ranks]
  return [row for kind in preset.kinds() for row in kind.records(trainer, seeds, score, ranks)]


def cases(table):
  """Yields every kind of model as (its name, description, rows)."""
  by = 'model', 'subjects', 'relations', 'answer_dim'
  for (name, subjects, relations, answer_dim), rows in groups(table, *by):
    text = f'N = {subjects:,}, R = {relations}, {name}'
    if name == 'trained':
      text += f', answer vectors of {answer_dim:g} dimensions'
    yield name, text, rows


def by_rank(rows, which: str):
  """The lower of the fractions of answers that change and of other answers that stay: a row per
  rank, a column per seed."""
  own = lambda what: select(rows, measurement=f'{what}, {which}')
  flipped, kept = (
    own(what).pivot(index='rank', columns='seed', values='value') for what in ('flipped', 'kept')
  )
  return np.minimum(flipped, kept)


def expect(table):
  """What projectors achieve at the rank of the answers' vectors, or of the constructed bits, and
  the smallest rank that is enough."""
  for name, text, rows in cases(table):
    bits, built = max(1, (int(rows['subjects'].iloc[0]) - 1).bit_length()), name == 'constructed'
    rank = bits if built else int(rows['answer_dim'].iloc[0])
    for which, words in PROJECTORS.items():
      found, about = by_rank(rows, which), f'{text}; {words}'
      # Projectors from random directions may not converge in a few hundred steps.
      exact = built and which != ORTHOGONAL
      least = 0.999 if exact else ENOUGH if name == 'trained' and which != FITTED else None
      what = f'{about}: lower of changed and stayed at rank {rank}'
      yield from over_seeds(what, found.loc[rank].tolist(), least, check=exact)
      enough = found >= ENOUGH
      if enough.any().all():  # every seed has such a rank
        built_in = bits if exact else None
        what = f'{about}: smallest sufficient rank tried'
        yield from over_seeds(what, enough.idxmax().tolist(), built_in, built_in, check=exact)


def plot(table):
  """A panel per kind of model: the answers that change, and those that stay, against the rank."""
  every = list(cases(table))
  lines = math.ceil(len(every) / 5)
  figure, panels = plotting.new(12, 2.6 * lines, lines, 5, squeeze=False, sharey=True)
  for ax in panels.flat[len(every) :]:
    ax.set_axis_off()
  for ax, (_, text, rows) in zip(panels.flat, every, strict=False):
    for i, (which, words) in enumerate(PROJECTORS.items()):
      for what, line, label in (('flipped', '-', words), ('kept', ':', None)):
        some = select(rows, measurement=f'{what}, {which}')
        plotting.draw_seeds(ax, some, 'rank', i, label, linestyle=line)
    ax.axvline(math.log2(rows['subjects'].iloc[0]), color=plotting.GREY, linewidth=1)
    ax.set(title=text.replace(', answer', ',\nanswer'), xlabel='rank', ylim=(-0.03, 1.03))
  panels[0][0].set(ylabel='changed (solid), stayed (dotted)')
  figure.legend(*panels[0][0].get_legend_handles_labels(), loc='outside lower center', ncols=3)
  return figure


STUDY = Study(
  name='dimensions', title='projectors learned by interchange, rank by rank', page='geometry.md',
  claims=(
    Claim('Dimensions', 'A relation occupies as many dimensions of the embedding as its answers’ vectors have, no fewer, and they carry nothing of the other relations.'),
  ),
  terms='A relation’s projector picks out the part of an embedding that belongs to the relation: given that part of '
  'another subject, the model should answer this relation as for that subject (changed) and all others as before '
  '(stayed). Projectors are learned by gradient descent on pairs of the model’s own subjects and judged on pairs of '
  'fresh ones. Oblique: the directions that are read and those that are written are learned separately, starting from '
  'those of fitted maps; orthogonal: they are the same (distributed alignment search), and start from random directions; of fitted maps: the principal '
  f'directions of the maps’ images, whose rank is at most that of the answers’ vectors. Sufficient: both fractions are at least {ENOUGH}. '
  'The bound tests that the rank of the answers’ vectors is sufficient; the smallest sufficient rank tried shows whether a lower one is. '
  'Grey line: log₂N.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot, minutes=0.8,
)  # fmt: skip

if __name__ == '__main__':
  STUDY.main()
