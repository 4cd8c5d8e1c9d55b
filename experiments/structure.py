"""Is the embedding a superposition, and the MLP its selector? Claims 2, 3 and 4, on subjects that nothing has seen.

  python -m experiments.structure

A model learns R random bijections and is frozen. Subjects that it never saw learn their embeddings
alone, as its own did. Maps fitted to its own subjects are then judged on these: neither the weights
nor a trained unembedding can have seen their facts. Expected: the sum of one linear map per relation
explains at least 0.75 of their embeddings; linear maps back find at least 0.95 of their attributes
among all N; moving an embedding by the image of another attribute changes that one answer. Beside
each stand maps of other attributes alone, one map for all relations, shuffled facts, an untrained
model, random weights with learned embeddings, an associative memory, and a constructed selector.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import instances, plotting
from experiments.harness.findings import Claim, over_seeds
from experiments.harness.model_kinds import ASSOCIATIVE, RECIPE, Kind
from experiments.harness.statistics import groups, select, split_key, values
from experiments.harness.study import Study
from geomem import model
from geomem.config import Config
from geomem.inside import intervene, linear_maps, new_facts
from geomem.training.optimization import Recipe

FRESH = 256  # subjects that the model never saw
FRACTIONS = (0.125, 0.25, 0.5, 1.0)  # of the model's own subjects, to which maps are fitted
ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
OTHERS, SHARED, SHUFFLED, DIRECTION = (
  'other attributes alone', 'one map for all relations', 'shuffled facts', 'random direction',
)  # fmt: skip
MAPS = 'fitted maps', 'calibrated maps', 'maps through the model'
ON = 'embedding', 'reconstruction'
CONTROLS = ('untrained', 'random weights', 'associative')
NAMES = 'model', 'relations', 'unembedding', 'answer_dim'  # what tells cases apart


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """Models of these sizes; `memory_width`: F of the associative memory; `map_steps`: of maps fitted through the model."""

  subjects: int
  relations: int
  dim: int
  width: int
  batch: int
  memory_width: int
  steps: int
  map_steps: int
  seeds: int

  def kinds(self):
    """All models that are looked into; the last is what plain AdamW finds."""
    names = 'subjects', 'relations', 'dim', 'width', 'batch', 'steps'
    first = Kind(**{name: getattr(self, name) for name in names}, **RECIPE)
    yield first
    yield dataclasses.replace(first, unembedding='trained')
    for name in ('untrained', 'random weights', 'constructed'):
      yield dataclasses.replace(first, model=name)
    yield dataclasses.replace(first, width=self.memory_width, **ASSOCIATIVE)
    plain = 'answer_dim', 'label_smoothing', 'noise', 'embedding_lr_multiplier', 'attention', 'unembedding'
    default = {field.name: field.default for field in dataclasses.fields(Kind)}
    yield dataclasses.replace(first, model='plain AdamW', **{name: default[name] for name in plain})


PRESETS = {
  'smoke': Preset(
    subjects=32, relations=2, dim=32, width=32, batch=8, memory_width=64, steps=300, map_steps=10, seeds=1,
  ),
  'laptop': Preset(
    subjects=256, relations=2, dim=64, width=64, batch=64, memory_width=256, steps=1000, map_steps=200, seeds=5,
  ),
  'full': {
    'R2': Preset(
      subjects=2048, relations=2, dim=64, width=64, batch=256, memory_width=256, steps=2000, map_steps=300, seeds=10,
    ),
    'R4': Preset(
      subjects=2048, relations=4, dim=128, width=128, batch=256, memory_width=512, steps=2000, map_steps=300, seeds=5,
    ),
    'R8': Preset(
      subjects=2048, relations=8, dim=256, width=256, batch=256, memory_width=1024, steps=4000, map_steps=300, seeds=5,
    ),
  },
}  # fmt: skip


def scores(map_steps: int, config: Config, recipe: Recipe, params, job, other_RxN, written_NxD):
  """All that is measured of one model, by name; 'score|control' is the control of a score."""
  keys = instances.eval_keys(job.seed, 5)
  u_AxD = model.apply(config, params, method='unembedding')
  table_RxS, e_NxD = other_RxN[:, :FRESH], params['embed']['subjects']
  e_SxD = written_NxD[:FRESH]
  if not len(written_NxD):
    e_SxD = new_facts.learn_embeddings(config, recipe, params, job, table_RxS)
  known = e_NxD, u_AxD, job.answers_RxN
  ridge = linear_maps.best_ridge(*known)
  maps = linear_maps.fit_maps(*known, ridge)
  through, _ = new_facts.fit_maps_through_model(config, params, maps, keys[1], map_steps, recipe.batch)
  all_maps = maps, linear_maps.calibrate(maps, *known, ridge), through
  return {
    'accuracy': intervene.accuracy(config, params, e_NxD, job.answers_RxN.T),
    **_linear(config, params, known, e_SxD, table_RxS, other_RxN),
    **_swaps(config, params, u_AxD, e_SxD, table_RxS, all_maps, keys),
    **_units(config, params, e_NxD, e_SxD, table_RxS.T, keys[4]),
  }  # fmt: skip


def _linear(config, params, known, e_SxD, table_RxS, other_RxN) -> dict:
  """R² and readout of maps, fitted to all or some of the model's subjects and judged on fresh ones, or fitted to half
  and judged on the others; with their controls."""
  e_NxD, u_AxD, own_RxN = known
  n, s = config.subjects, len(e_SxD)
  held = min(s, n // 2)
  e_BxD, whole = jnp.concatenate([e_NxD, e_SxD]), lambda own: jnp.concatenate([own, table_RxS], 1)
  # Of fewer subjects every one is there as often, so that all fits are of one size, and one program.
  some = lambda fraction: np.repeat(np.arange(round(fraction * n)), round(1 / fraction))
  arms = {'fresh': (whole(own_RxN), 1.0, n), 'own': (whole(own_RxN), 0.5, n - held)}
  arms |= {f'{where}|{SHUFFLED}': (whole(other_RxN), *arms[where][1:]) for where in arms}
  arms |= {f'fresh of {fraction:g}': (whole(own_RxN), fraction, n) for fraction in FRACTIONS}
  splits = [(table, some(fraction), first + np.arange(held)) for table, fraction, first in arms.values()]
  stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *splits)
  judge = lambda score: lambda arm: score(e_BxD, u_AxD, *arm)
  pairs = {
    'superposition_r2': (linear_maps.superposition_r2, linear_maps.shared_map_r2),
    'probe_accuracy': (linear_maps.probe_accuracy, linear_maps.shared_probe_accuracy),
  }  # fmt: skip
  true = jax.tree.map(lambda a: a[:2], stacked)
  alone = jax.lax.map(judge(linear_maps.other_attributes_scores), true)
  found = {}
  for i, (name, (score, shared)) in enumerate(pairs.items()):
    of_arm, of_shared = jax.lax.map(judge(score), stacked), jax.lax.map(judge(shared), true)
    found |= {'_'.join((arm.partition('|')[0], name)) + arm[len(arm.partition('|')[0]):]: of_arm[j]
              for j, arm in enumerate(arms)}  # fmt: skip
    for j, where in enumerate(('fresh', 'own')):
      found |= {f'{where}_{name}|{OTHERS}': alone[i][j], f'{where}_{name}|{SHARED}': of_shared[j]}
  return found


def _swaps(config, params, u_AxD, e_SxD, table_RxS, all_maps, keys) -> dict:
  """Fresh subjects whose attributes are swapped, one or all, at α = 1; and at every α along the maps through the model."""
  targets_SxR = table_RxS.T
  wanted_SxR = intervene.other_attributes(keys[2], config.answers, targets_SxR)
  rebuilt = [linear_maps.superpose(maps, u_AxD, table_RxS) for maps in all_maps]
  right = lambda e_SxD: intervene.accuracy(config, params, e_SxD, targets_SxR)
  names = 'fresh_accuracy', *(f'reconstruction answered, {maps}' for maps in MAPS)
  found = dict(zip(names, jax.lax.map(right, jnp.stack([e_SxD, *rebuilt])), strict=True))
  steer = lambda maps: intervene.steering_vectors(maps[0], u_AxD, targets_SxR, wanted_SxR)
  vectors = [steer(maps) for maps in all_maps]
  random = intervene.random_directions(keys[3], vectors[-1])
  arms = {f'{maps}, {ON[0]}': (e_SxD, own) for maps, own in zip(MAPS, vectors, strict=True)}
  arms |= {f'{maps}, {ON[1]}': pair for maps, *pair in zip(MAPS, rebuilt, vectors, strict=True)}
  arms |= {f'{i}': (e_SxD, alpha * some) for i, some in enumerate((vectors[-1], random)) for alpha in ALPHAS
           for i in [f'{alpha:g} {i}']}  # fmt: skip

  def swap(arm):
    swapped = config, params, *arm, wanted_SxR
    flipped, kept = intervene.swap_effects(*swapped, jnp.ones(1))
    return flipped[0], kept[0], intervene.joint_swap(*swapped)

  stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *map(tuple, arms.values()))
  effects = dict(zip(('flipped', 'kept', 'all swapped'), jax.lax.map(swap, stacked), strict=True))
  first, count = 2 * len(MAPS), len(ALPHAS)
  for name, values_T in effects.items():
    found |= {f'{name}, {arm}': values_T[i] for i, arm in enumerate(list(arms)[:first])}
    found |= {name: values_T[first : first + count], f'{name}|{DIRECTION}': values_T[first + count :]}
  return found


def _units(config, params, e_NxD, e_SxD, targets_SxR, key) -> dict:
  """Whose the hidden units are, by what they do for the model's own subjects; what fresh ones lose without them."""
  inputs, hidden_NxRxF = intervene.mlp_activations(config, params, e_NxD[:FRESH])
  units = intervene.unit_selectivity(hidden_NxRxF)
  own_F, held = units['own'], (config, params, e_SxD, targets_SxR)
  cut = lambda owner_F: intervene.accuracy_without_units(*held, owner_F)
  keep = lambda owner_F: intervene.accuracy_with_own_units_only(*held, owner_F)
  shuffled_F, nobody_F = jax.random.permutation(key, own_F), jnp.full_like(own_F, config.relations)
  owners = jnp.stack([own_F, shuffled_F, nobody_F])
  without_TxRxR, only_TxR = jax.lax.map(cut, owners[:2]), jax.lax.map(keep, owners)
  mean_RxD = jnp.mean(inputs, axis=0)
  add_RxD = jnp.roll(mean_RxD, -1, axis=0) - mean_RxD
  patch = lambda add_RxD: intervene.patched_accuracy(*held, add_RxD, 1)
  patched = jax.lax.map(patch, jnp.stack([add_RxD, intervene.random_directions(key, add_RxD)]))
  found = {f'unit_{name}': units[name] for name in ('relation', 'attribute', 'activation_fraction')}
  found['relation_selectivity'] = jnp.sum(units['activation_fraction'] * units['relation'])
  found['without_units'] = jnp.mean(only_TxR[2])
  for i, arm in enumerate(('', '|random units')):
    found[f'without_own_units{arm}'] = jnp.mean(jnp.diagonal(without_TxRxR[i]))
    found[f'own_units_only{arm}'] = jnp.mean(only_TxR[i])
  return found | {'patched_accuracy': patched[0], f'patched_accuracy|{DIRECTION}': patched[1]}


def measure(trainer, preset: Preset, seeds) -> list[dict]:
  """Records of all models; of single units only those of the first seed."""
  records = []
  for kind in preset.kinds():
    about, found = kind.evaluate(trainer, seeds, functools.partial(scores, preset.map_steps))
    records += [
      {
        **split_key(key), 'alpha': ALPHAS[j] if len(numbers) == len(ALPHAS) else None,
        'unit': j if key.startswith('unit_') else None, **about, 'seed': seed, 'value': float(number),
      }
      for i, seed in enumerate(seeds)
      for key, values_M in found.items()
      if i == 0 or not key.startswith('unit_')
      for numbers in [np.atleast_1d(values_M[i])]
      for j, number in enumerate(numbers)
    ]  # fmt: skip
  return records


MEASURED = (  # claim, measurement, α, in words, at least, at most, controls of the same model
  (2, 'fresh_superposition_r2', None, 'superposition, R² of fresh subjects', 0.75, None, (OTHERS, SHARED, SHUFFLED)),
  (2, 'own_superposition_r2', None, 'superposition, R² of its own subjects, held out', None, None, (OTHERS, SHARED, SHUFFLED)),
  (2, 'fresh_accuracy', None, 'fresh subjects answered once they are learned', None, None, ()),
  *((2, f'reconstruction answered, {maps}', None, f'fresh subjects answered for their superposition, {maps}', None, None, ())
    for maps in MAPS),
  (3, 'fresh_probe_accuracy', None, 'linear readout of fresh subjects', 0.95, None, (OTHERS, SHARED, SHUFFLED)),
  (3, 'own_probe_accuracy', None, 'linear readout of its own subjects, held out', None, None, (OTHERS, SHARED, SHUFFLED)),
  (4, 'flipped, maps through the model, embedding', None, 'swaps at α = 1 that flip the answer', 0.95, None, ()),
  (4, 'kept, maps through the model, embedding', None, 'other answers kept at α = 1', 0.99, None, ()),
  (4, 'relation_selectivity', None, 'units keep to one relation', None, None, ()),
  (4, 'without_units', None, 'right without any hidden unit', None, None, ()),
  (4, 'without_own_units', None, "right without the relation's own units", None, None, ('random units',)),
  (4, 'own_units_only', None, "right with the relation's own units alone", None, None, ('random units',)),
  (4, 'patched_accuracy', None, 'relation patched, its answer given', None, None, (DIRECTION,)),
)  # fmt: skip
MARGIN = 0.3  # by which R² must be above what its controls reach
PERFECT = {  # of a constructed model, by claim, its fresh subjects being as it writes them
  2: ('accuracy', 'fresh_accuracy', *(f'{where}_superposition_r2' for where in ('fresh', 'own')),
      *(f'reconstruction answered, {maps}' for maps in MAPS)),
  3: ('own_probe_accuracy', 'fresh_probe_accuracy'),
  4: ('relation_selectivity', 'own_units_only', 'patched_accuracy',
      *(f'{name}, {maps}, {on}' for name in ('flipped', 'kept', 'all swapped') for maps in MAPS for on in ON)),
}  # fmt: skip


def cases(table):
  """Every trained kind of model: (in words, its rows, whether it is one that a claim is about)."""
  for (name, relations, unembedding, dim), rows in groups(table, *NAMES):
    if name in ('trained', 'plain AdamW'):
      sizes = ', '.join(f'{letter} = {rows[column].iloc[0]:,}' for letter, column in zip(
        'NRdF', ('subjects', 'relations', 'dim', 'width'), strict=True))  # fmt: skip
      how = 'plain AdamW' if name != 'trained' else f'unembedding {unembedding}'
      yield f'{sizes}, {how}', rows, name == 'trained'


def expect(table):
  """Of every trained kind, beside the same sizes untrained, with random weights, and of an associative memory."""
  for text, rows, claimed in cases(table):
    relations, unembedding = rows['relations'].iloc[0], rows['unembedding'].iloc[0]
    beside = {name: select(table, model=name, relations=relations) for name in CONTROLS}
    learned = values(rows, measurement='accuracy')
    yield from over_seeds(f'{text}: right answers', learned, 0.99 if claimed else None, check=True)
    for claim, measurement, alpha, words, at_least, at_most, names in MEASURED:
      of = functools.partial(values, measurement=measurement, alpha=alpha)
      primary = claimed and at_least is not None and (claim == 3 or unembedding == 'fixed')
      bounds = (at_least, at_most) if claimed else (None, None)
      controls: Any = {name: of(rows, control=name) for name in names}
      controls |= {name: of(some, control=None) for name, some in beside.items()}
      about: Any = {'claim': f'Claim {claim}', 'primary': primary}
      own = of(rows, control=None)
      yield from over_seeds(f'{text}: {words}', own, *bounds, **about, **controls)
      if measurement == 'fresh_superposition_r2':
        for name in (OTHERS, SHARED):
          above = np.subtract(own, controls[name]).tolist()
          least = MARGIN if claimed else None
          yield from over_seeds(f'{text}: {words}, above {name}', above, least, **about)
    for maps, on in itertools.product(MAPS, ON):
      flipped, *others = (values(rows, measurement=f'{name}, {maps}, {on}') for name in ('flipped', 'kept', 'all swapped'))
      controls = dict(zip(('others kept', 'all swapped at once'), others, strict=True))
      yield from over_seeds(f'{text}: swaps at α = 1 that flip, {maps}, on the {on}', flipped, claim='Claim 4', **controls)
    share = lambda name: _share(rows, name)
    for name, words in (('without_own_units', 'lost without them'), ('own_units_only', 'kept by them alone')):
      yield from over_seeds(
        f"{text}: of what the MLP does for a relation, {words}: its own units", share(name), claim='Claim 4'
      )  # fmt: skip
  built = select(table, model='constructed', control=None)
  for claim, names in PERFECT.items():
    worst = built[built['measurement'].isin(names)].groupby('seed')['value'].min().tolist()
    yield from over_seeds(f'constructed: the worst score, claim {claim}', worst, 0.999, check=True)


def _share(rows, name: str) -> list[float]:
  """How much of what the MLP adds to the answers units of one relation lose when they are cut, or keep alone; per seed."""
  of = lambda name: np.array(values(rows, measurement=name, control=None))
  floor = of('without_units')
  part = (of(name) - floor) / np.maximum(of('fresh_accuracy') - floor, 1e-9)
  return (1 - part if name == 'without_own_units' else part).tolist()


def plot(table):
  """A row of panels for every number of relations; colour the kind of model, every seed a mark."""
  every = sorted(table['relations'].unique())
  figure, panels = plotting.new(12, 3.2 * len(every), len(every), 4, squeeze=False)
  figure.get_layout_engine().set(wspace=0.05)
  for (left, curve, swaps, units), relations in zip(panels, every, strict=True):
    kinds = {}
    for (name, _, how, _), rows in groups(select(table, relations=relations), *NAMES):
      if name != 'constructed':
        kinds[f'{name}, unembedding {how}' if name == 'trained' else name] = rows
    _plot_scores(left, kinds)
    for i, rows in enumerate(kinds.values()):
      subjects = rows['subjects'].iloc[0]
      some = rows[rows['measurement'].str.match(r'fresh of \S+_superposition_r2$')]
      some = some.assign(fitted=some['measurement'].str.extract(r'of ([\d.]+)_')[0].astype(float) * subjects)
      plotting.spread(curve, some, 'fitted', i)
      for measurement, line in (('flipped', '-'), ('kept', ':')):
        some = select(rows, measurement=measurement, control=None)
        plotting.spread(swaps, some, 'alpha', i, linestyle=line)
      color, marker = plotting.cycle(i)
      units.plot(_share(rows, 'without_own_units'), _share(rows, 'own_units_only'), marker, color=color, alpha=0.6)
    left.set(title=f'R = {relations}: maps judged on fresh subjects')
    curve.set(xlabel='subjects that maps are fitted to', ylabel='$R^2$ of fresh subjects', ylim=(-0.3, 1.02))
    swaps.set(xlabel=r'$\alpha$ of $M_r(u_{a^\prime} - u_a)$', ylabel='flipped (full), others kept (dotted)')
    units.set(xlabel='of its function, lost without own units', ylabel='kept by own units alone')
    units.set(xlim=(-0.3, 1.3), ylim=(-0.3, 1.3))
  figure.legend(*panels[0][0].get_legend_handles_labels(), loc='outside lower center', ncols=6)
  return figure


def _plot_scores(ax, kinds: dict):
  """R², readout and answers of fresh subjects, a mark a seed; of trained models the controls of the same model, open."""
  shown = {
    '$R^2$': 'fresh_superposition_r2', 'readout': 'fresh_probe_accuracy',
    'reconstruction\nanswered': 'reconstruction answered, fitted maps',
  }  # fmt: skip
  for i, (name, rows) in enumerate(kinds.items()):
    color, marker = plotting.cycle(i)
    for j, measurement in enumerate(shown.values()):
      for control, options in ((None, {}), (OTHERS, {'markerfacecolor': 'white'}), (SHARED, {'fillstyle': 'left'})):
        own = values(rows, measurement=measurement, control=control) if control is None or i < 2 else []
        x = j + 0.8 * ((i + 0.5) / len(kinds) - 0.5)
        label = name if not j and control is None else None
        ax.plot([x] * len(own), own, marker, color=color, markersize=4, alpha=0.7, label=label, **options)
  ax.set_xticks(range(len(shown)), shown)
  ax.set(ylim=(-0.3, 1.05), ylabel='open: other attributes alone; half: one map')


STUDY = Study(
  name='structure', title='superposition, readout, swaps and units, judged on subjects that nothing has seen',
  claims=(
    Claim('Claim 2', 'A trained subject embedding is the sum of one linear map per relation of its attributes’ vectors.'),
    Claim('Claim 3', 'Linear maps read a subject’s attributes out of its embedding.'),
    Claim('Claim 4', 'The MLP selects by relation: moving the embedding along one map changes that answer and no other.'),
  ),
  terms='Fresh subjects: the model never saw them; it is frozen, they learn their embeddings alone, by the recipe that '
  'trained it; maps are fitted to its own subjects and judged on these. Other attributes alone: each attribute’s '
  'vector as a linear map predicts it from the subject’s others, the embedding never looked at. A swap moves an '
  'embedding, or its reconstruction, by M_r(u_a′ − u_a); all swapped: of all relations at once. Maps are fitted '
  '(ridge), calibrated (each as long as subjects say that it was not fitted to) or trained through the frozen model '
  'on attributes at random. A unit’s own relation is that for which it fires most. Random weights: embeddings '
  'trained, all else as drawn. Associative: embeddings fixed, all else trained.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot, minutes=3,
)  # fmt: skip

if __name__ == '__main__':
  STUDY.main()
