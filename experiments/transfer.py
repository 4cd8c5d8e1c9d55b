"""What does it take for a frozen model to answer facts that it was never trained on? The recipe, part by part.

  python -m experiments.transfer

A model is trained on R random bijections; then everything but the subjects' embeddings is frozen
and new bijections are drawn. New embeddings are assembled, zero-shot, from (a) the maps that explain
the old ones or (b) maps fitted through the frozen model, or are (c) trained. (a) is decisive: a
model that keeps facts in its weights answers old tuples, but fewer new tuples of the same
attributes, and the difference is what it has memorised.
Each part of the recipe is removed on its own; the number of subjects that maps are fitted to is
crossed with the number that the model is trained on, and with its number of hidden units. The
controls are an untrained model, random weights with learned embeddings and an associative memory; a
constructed selector must score 1. That models trained by the recipe transfer is measured, at larger
sizes, by experiments.structure.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from experiments.harness import fresh_subjects, instances, plotting
from experiments.harness.findings import Claim, over_seeds
from experiments.harness.model_kinds import ASSOCIATIVE, GEOMETRIC_OPTIONS, Kind, sizes
from experiments.harness.statistics import groups, select, values
from experiments.harness.study import Study
from geomem import model
from geomem.config import Config
from geomem.inside import linear_maps, new_facts
from geomem.training.recipe import Recipe

NEW = 256  # subjects with new facts
FRACTIONS = (0.125, 0.25, 0.5, 1.0)  # fractions of the subjects to which the maps of (a) are fitted
CONTROLS = ('untrained', 'random weights', 'associative')
WAYS = {
  'old_maps': 'zero-shot accuracy on new facts (a), fitted maps',
  'fitted_maps': 'zero-shot accuracy on new facts (b), maps through the model',
  'learned_embeddings': 'accuracy on new facts (c), embeddings learned',
  'memorised': 'memorised: accuracy on held-out old tuples minus new ones',
}  # fmt: skip
LABELS = {  # labels of the fields that distinguish cases
  'model': '{}', 'subjects': 'N = {:,}', 'relations': 'R = {}', 'dim': 'd = {}', 'width': 'F = {:,}', 'batch': 'batch = {:,}',
  'answer_dim': 'answer vectors of {} dimensions', 'label_smoothing': 'label smoothing = {:g}',
  'weight_decay': 'weight decay = {:g}', 'embedding_lr_multiplier': 'lr multiplier = {:g}',
  'embedding_decay_multiplier': 'decay multiplier = {}', 'noise': 'noise = {:g}',
  'unembedding': 'unembedding {}', 'attention': 'attention {}',
}  # fmt: skip
FIELDS = tuple(LABELS)
MIN_DROP = 0.05  # the drop that counts when a part is removed
GEOMETRIC = 'old_maps', 'probe_accuracy', 'swapped'  # scores that are high in a geometric memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """`first`: the sizes of the first case, and what else differs from the recipe. Every other case
  makes one of the `changes`, or all changes of `combined`. `memory_width`: F of the associative memory that is added as a control; 0:
  none. `map_steps`: steps in which (b) fits its maps.
  """

  first: dict[str, Any]
  changes: dict[str, tuple] = dataclasses.field(default_factory=dict)
  combined: dict[str, Any] = dataclasses.field(default_factory=dict)
  memory_width: int = 0
  map_steps: int
  seeds: int

  def kinds(self):
    """The kind of model of every case."""
    first: Any = Kind(**GEOMETRIC_OPTIONS | self.first)
    yield first
    for name, others in self.changes.items():
      yield from (dataclasses.replace(first, **{name: other}) for other in others)
    if self.combined:
      yield dataclasses.replace(first, **self.combined)
    if self.memory_width:
      yield dataclasses.replace(first, width=self.memory_width, **ASSOCIATIVE)


CONTROL_KINDS = {'model': ('untrained', 'random weights', 'constructed')}
ABLATIONS = {  # each entry removes one part of the recipe
  'answer_dim': (None, 32), 'label_smoothing': (0.0,), 'weight_decay': (0.0,), 'embedding_lr_multiplier': (1.0,),
  'embedding_decay_multiplier': (0.0,), 'noise': (0.0,), 'attention': ('trained',), 'unembedding': ('trained',),
}  # fmt: skip
# R = 8 needed neither of these two parts, so the bound is also stated without both, for R = 2, 4 and 8.
SIMPLER: dict[str, Any] = {'noise': 0.0, 'unembedding': 'trained'}
REMAINING: dict[str, tuple] = {
  name: changes[:1] for name, changes in ABLATIONS.items() if name not in SIMPLER
}
EIGHT = sizes(subjects=1024, relations=8, batch=256, steps=1000)
PRESETS = {
  'smoke': Preset(first=sizes(subjects=32, relations=2, batch=8, steps=300), changes=CONTROL_KINDS, memory_width=64, map_steps=10, seeds=1),
  'laptop': Preset(
    first=sizes(subjects=256, relations=2, batch=64, steps=1000),
    changes={'answer_dim': (None,), 'unembedding': ('trained',), 'width': (16,)} | CONTROL_KINDS,
    memory_width=256, map_steps=200, seeds=5,
  ),
  'full': {  # at R = 8, where every part is expected to matter
    'recipe': Preset(first=EIGHT, changes=ABLATIONS, map_steps=300, seeds=4),
    'units': Preset(
      first=EIGHT, changes={'width': (64, 512)} | CONTROL_KINDS, combined=SIMPLER, memory_width=1024, map_steps=300, seeds=4,
    ),
    **{
      f'R{relations}': Preset(
        first=sizes(subjects=1024, relations=relations, batch=256, steps=1000), combined=SIMPLER, map_steps=300, seeds=4,
      )
      for relations in (2, 4)
    },
    # Is each part of the simpler recipe needed?
    'simpler': Preset(first=EIGHT | SIMPLER, changes=REMAINING, map_steps=300, seeds=4),
    'subjects': Preset(
      first=sizes(subjects=512, relations=8, batch=256, steps=1000), changes={'batch': (128,), 'width': (64, 512)}, map_steps=300, seeds=4,
    ),
    # Four seeds did not decide whether the simpler recipe needs fixed attention.
    'attention': Preset(first=EIGHT | SIMPLER, changes={'attention': ('trained',)}, map_steps=300, seeds=10),
  },
}  # fmt: skip


def scores(map_steps: int, config: Config, recipe: Recipe, params, job, other_RxN, constructed_NxD):
  """All that is measured of one model, by name."""
  found, maps = fresh_subjects.scores(config, recipe, params, job, other_RxN, constructed_NxD, NEW)
  e_NxD, u_AxD = params['embed']['subjects'], model.apply(config, params, method='unembedding')
  new_RxS = other_RxN[:, :NEW]
  found[f'old_maps of {FRACTIONS[-1]:g}'] = found['old_maps']  # fitted to all of them
  for fraction in FRACTIONS[:-1]:
    some = slice(round(fraction * config.subjects))
    own = linear_maps.fit_best_maps(e_NxD[some], u_AxD, job.answers_RxN[:, some])
    found[f'old_maps of {fraction:g}'] = fresh_subjects.zero_shot(config, params, own, new_RxS)
  key, size = instances.eval_keys(job.seed, 4)[3], recipe.batch or NEW
  through, _ = new_facts.fit_maps_through_model(config, params, maps, key, map_steps, size)
  return found | {'fitted_maps': fresh_subjects.zero_shot(config, params, through, new_RxS)}


def measure(trainer, preset: Preset, seeds) -> list[dict]:
  """Records of all cases."""
  score = functools.partial(scores, preset.map_steps)
  return [row for kind in preset.kinds() for row in kind.records(trainer, seeds, score)]


def display(value):
  """A value as displayed: None as 'all', and whole floats as integers, because pandas stores
  integers as floats in a column with missing values."""
  if value is None:
    return 'all'
  return int(value) if isinstance(value, float) and value.is_integer() else value


def cases(table):
  """Yields every case as (its fields, those that differ from the first case of its size,
  description, rows)."""
  firsts: dict[tuple, dict] = {}
  # Parts share some cases: the last part's models are taken, which has the most seeds, in the place of the first.
  same = [*FIELDS, 'measurement', 'seed']
  number = table.groupby(same, sort=False, dropna=False).ngroup()
  last = table[~table.duplicated(same, keep='last')]
  table = last.loc[number[last.index].sort_values().index]
  for keys, rows in groups(table, *FIELDS):
    case = dict(zip(FIELDS, keys, strict=True))
    first = firsts.setdefault((case['relations'], case['subjects']), case)
    differs = [name for name in FIELDS if case[name] != first[name]]
    words = {name: LABELS[name].format(display(value)) for name, value in case.items()}
    size = f'{words["subjects"]}, {words["relations"]}'
    if case is first:
      text = ', '.join(words[name] for name in ('subjects', 'relations', 'dim', 'width'))
    elif case['model'] in ('associative', 'constructed'):
      text = f'{size}, {words["model"]}, {words["width"]}'
    else:
      text = f'{size}, but ' + ', '.join(words[name] for name in differs)
    yield case, differs, text, rows


def expect(table):
  """Zero-shot transfer in every case. It is expected at R = 8 with the whole recipe, and for every
  R without the two parts of `SIMPLER`; at R = 8 removing any one part of either recipe is expected
  to cost at least `MIN_DROP`.
  """
  best: dict[tuple, dict[int, float]] = {}
  for case, differs, text, rows in cases(table):
    first, built = not differs, case['model'] == 'constructed'
    whole = first and case['relations'] == 8
    right = values(rows, measurement='accuracy')
    learned = 0.99 if first or built else None
    yield from over_seeds(f'{text}: accuracy', right, learned, check=True)
    for name, way in WAYS.items():
      control_rows = select(
        table, measurement=name, relations=case['relations'], subjects=case['subjects']
      )
      controls: Any = {kind: values(control_rows, model=kind) for kind in CONTROLS} if first else {}
      exact = 0.999 if built and name != 'memorised' else None
      own = values(rows, measurement=name)
      yield from over_seeds(f'{text}: {way}', own, exact, check=built, **controls)
    least = rows[rows['measurement'].isin(GEOMETRIC)].groupby('seed')['value'].min().to_dict()
    simpler = all(case[name] == value for name, value in SIMPLER.items())
    base = 'the simpler recipe' if simpler else 'the full recipe'
    changed = {*differs} - {*SIMPLER} if simpler else {*differs}
    what = f'{text}: lowest of zero-shot accuracy (a), linear probe accuracy and swaps'
    bounded = whole or (simpler and not changed)
    yield from over_seeds(what, [*least.values()], 0.95 if bounded else None)
    if case['relations'] == 8 and not changed:
      best[base, case['subjects']] = least
    ablated = case['relations'] == 8 and len(changed) == 1 and changed <= {*ABLATIONS}
    if ablated and (before := best.get((base, case['subjects']))) is not None:  # paired by seed
      drops = [before[seed] - value for seed, value in least.items() if seed in before]
      yield from over_seeds(f'{what}: drop from {base}', drops, MIN_DROP)


def plot(table):
  """All scores, a row per case; (a) against the number of subjects that its maps are fitted to."""
  found = list(cases(table))
  figure, (left, right) = plotting.new(
    11, max(3.6, 0.8 + 0.24 * len(found)), 1, 2, width_ratios=(1.5, 1)
  )
  for row, (_, _, _, rows) in enumerate(found):
    for i, (name, way) in enumerate(WAYS.items()):
      color, marker = plotting.cycle(i)
      own, y = values(rows, measurement=name), row + 0.2 * (i - 1.5)
      style: dict = {'alpha': 0.3, 'markersize': 3, 'markeredgewidth': 0}
      left.plot(own, [y] * len(own), marker, color=color, **style)
      left.plot(np.mean(own), y, marker, color=color, markersize=4, label=None if row else way)
  firsts = [(text, rows) for _, differs, text, rows in found if not differs]
  for i, (text, rows) in enumerate(firsts):
    some = rows[rows['measurement'].str.startswith('old_maps of ')]
    fitted = some['measurement'].str.split().str[-1].astype(float) * some['subjects']
    plotting.draw_seeds(right, some.assign(fitted=fitted), 'fitted', i, text)
  left.set_yticks(range(len(found)), [text for _, _, text, _ in found], fontsize=6)
  left.set_ylim(len(found) - 0.4, -0.6)
  left.axvline(0.95, color=plotting.GREY, linestyle='--', linewidth=1)
  left.set_xlabel('accuracy of frozen models on new bijections; memorised: a difference of two')
  left.set_xlim(-0.1, 1.03)
  right.set(xlabel='subjects used to fit the maps', ylabel='zero-shot (a)', ylim=(-0.03, 1.03))
  plotting.legend(left, loc='lower center', bbox_to_anchor=(0.5, 1), ncols=2)
  plotting.legend(right, loc='lower center', bbox_to_anchor=(0.5, 1))
  return figure


STUDY = Study(
  name='transfer', title='what it takes for a model to answer facts that it was never trained on', page='geometry.md',
  claims=(
    Claim('Recipe', 'With this recipe gradient descent finds a geometric memory at R = 8; without most of its parts it does not.'),
  ),
  terms='New bijections, with everything but the subjects’ embeddings frozen. The new embeddings are (a) sums of linear '
  'maps of their attributes’ vectors, with maps fitted to the old embeddings, (b) the same with maps trained '
  'through the frozen model on random attributes, starting from those of (a), or (c) learned as the model learned '
  'its own, with everything else frozen. Memorised: with maps fitted to three quarters of the subjects, the '
  'accuracy on the old tuples of the remaining ones less that on other tuples of the same attributes; a model that '
  'answers neither also scores 0. Where a case says “but”, the parts of the recipe that it names are changed and no '
  'others; lr multiplier: a factor on the embeddings’ learning rate and weight decay, decay multiplier: on their '
  'decay alone, both relative to the rest; answer vectors of all dimensions: the unembedding is as wide as the model, its '
  'rows of any length. Random weights: embeddings trained, everything else as initialised. Associative: the subjects’ '
  'embeddings fixed as well as what the recipe fixes, no noise or smoothing, weight decay .01, and more hidden units.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot, by=(*FIELDS, 'measurement'), minutes=1.4,
)  # fmt: skip

if __name__ == '__main__':
  STUDY.main()
