"""Is the embedding a superposition, and does the MLP select from it? Claims 2 to 5, on subjects that the model never saw.

  python -m experiments.structure

A model is trained on R random bijections and frozen. Subjects that it never saw then learn only
their embeddings, by the recipe that trained it. Linear maps fitted to the model's own subjects are
judged on these fresh subjects, whose facts neither the weights nor a trained unembedding can have
seen. Expected: the sum of one linear map per relation explains the fresh embeddings with an R² of
at least 0.75; linear maps in the other direction identify at least 0.95 of their attributes among
all N; moving an embedding by the image of another attribute, under maps trained through the frozen
model, changes that one answer; embeddings assembled from the fitted maps for new facts, without
training, reach an accuracy of at least 0.95. The controls are predictions from other attributes
alone, one map for all relations, shuffled facts, an untrained model, random weights with learned
embeddings and an associative memory; a constructed selector is measured as well.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import fresh_subjects, instances, plotting
from experiments.harness.findings import Claim, over_seeds
from experiments.harness.model_kinds import ASSOCIATIVE, Sizes, sizes
from experiments.harness.statistics import groups, select, values
from experiments.harness.study import FIRST_SEED, Study
from geomem import model
from geomem.config import Config
from geomem.inside import intervene, linear_maps, new_facts
from geomem.training.recipe import Recipe

FRESH = 256  # subjects that the model never saw
FRACTIONS = (0.125, 0.25, 0.5, 1.0)  # fractions of the model's own subjects to fit maps to
ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
OTHERS, SHARED, SHUFFLED, DIRECTION = (
  'other attributes alone', 'one map for all relations', 'shuffled facts', 'random direction',
)  # fmt: skip
REFIT = 'fitted to the other half of them'  # in the records; as shown:
OTHER_HALF = 'maps fitted to their other half'
MAPS = 'fitted maps', 'calibrated maps', 'maps through the model'
EMBEDDING_KINDS = 'embedding', 'reconstruction'
SWAPS = 'flipped', 'kept', 'all swapped'  # the scores of a swap
WIDE = 'random weights, wide'
CONTROLS = 'untrained', 'random weights', WIDE, 'associative'
NAMES = 'model', 'relations', 'unembedding', 'answer_dim'  # the fields that distinguish cases


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset(Sizes):
  """Models of these sizes.

  `memory_width`: F of the associative memory. `wide`: factor on d and F for the second model with
  random weights. `map_steps`: training steps for maps fitted through the model. `control_seeds`:
  maximum number of seeds for models that no claim is about. `only`: names of the models to measure;
  default: all.
  """

  memory_width: int
  wide: int
  map_steps: int
  seeds: int
  control_seeds: int = 5
  only: tuple[str, ...] = ()

  def kinds(self):
    """The kinds of model to analyse; the last is trained with plain AdamW."""
    first = self.geometric()
    every = [first, dataclasses.replace(first, unembedding='trained')]
    every += [
      dataclasses.replace(first, model=name)
      for name in ('untrained', 'random weights', 'constructed')
    ]
    if self.wide > 1:
      wider: Any = {'dim': self.wide * self.dim, 'width': self.wide * self.width}
      every.append(dataclasses.replace(first, model=WIDE, **wider))
    memory = dataclasses.replace(first, width=self.memory_width, **ASSOCIATIVE)
    return [
      kind for kind in (*every, memory, self.plain()) if not self.only or kind.model in self.only
    ]


EIGHT: Any = sizes(subjects=2048, relations=8, batch=256, steps=4000) | {
  'memory_width': 4096, 'wide': 2, 'map_steps': 300, 'seeds': 5, 'control_seeds': 2,
}  # fmt: skip
PRESETS = {
  'smoke': Preset(**sizes(subjects=32, relations=2, batch=8, steps=300), memory_width=64, wide=1, map_steps=10, seeds=1),
  'laptop': Preset(**sizes(subjects=256, relations=2, batch=64, steps=1000), memory_width=256, wide=2, map_steps=200, seeds=5),
  'full': {
    'R2': Preset(
      **sizes(subjects=2048, relations=2, batch=256, steps=2000),
      memory_width=1024, wide=8, map_steps=300, seeds=10, control_seeds=4,
    ),
    'R4': Preset(
      **sizes(subjects=2048, relations=4, batch=256, steps=2000),
      memory_width=2048, wide=4, map_steps=300, seeds=5, control_seeds=2,
    ),
    'R8': Preset(**EIGHT, only=('trained',)),
    'R8_controls': Preset(**EIGHT | {'memory_width': 1024}, only=('constructed', 'plain AdamW', *CONTROLS)),
  },
}  # fmt: skip


def scores(map_steps: int, config: Config, recipe: Recipe, params, job, other_RxN, constructed_NxD):
  """All scores of one model, by name; 'score|control' is a control for a score."""
  keys = instances.eval_keys(job.seed, 5)
  u_AxD = model.apply(config, params, method='unembedding')
  table_RxS, e_NxD = other_RxN[:, :FRESH], params['embed']['subjects']
  e_SxD = fresh_subjects.embeddings(config, recipe, params, job, table_RxS, constructed_NxD)
  known = e_NxD, u_AxD, job.answers_RxN
  ridge = linear_maps.best_ridge(*known)
  maps = linear_maps.fit_maps(*known, ridge)
  through, _ = new_facts.fit_maps_through_model(
    config, params, maps, keys[1], map_steps, recipe.batch or FRESH
  )
  all_maps = maps, linear_maps.calibrate(maps, *known, ridge), through
  learned = _learned(config, recipe, params, job, known, table_RxS) if len(constructed_NxD) else {}
  return {
    'accuracy': intervene.accuracy(config, params, e_NxD, job.answers_RxN.T),
    **fresh_subjects.memorised(config, params, job), **learned,
    **_linear(config, known, e_SxD, table_RxS, other_RxN),
    **_swaps(config, params, u_AxD, e_SxD, table_RxS, all_maps, keys),
    **_units(config, params, e_NxD, e_SxD, table_RxS.T, keys[4]),
  }  # fmt: skip


def _learned(config, recipe, params, job, known, table_RxS) -> dict:
  """For a constructed model, also scores of the embeddings that gradient descent finds through it.

  It starts where every hidden unit is on, because a unit that is off has no gradient, and it trains
  under noise: in trials that are not recorded, embeddings learned without noise were answered
  correctly, but no linear map could read the attributes from them.
  """
  recipe = dataclasses.replace(recipe, noise=0.5, label_smoothing=0.0, embedding_lr_multiplier=1.0)
  job = job.replace(weight_decay=jnp.float32(0), learning_rate=jnp.float32(0.05))
  ones_SxD = jnp.ones((table_RxS.shape[1], config.dim))
  e_SxD = new_facts.learn_embeddings(config, recipe, params, job, table_RxS, ones_SxD)
  data = fresh_subjects.fitted_and_fresh(known, e_SxD, table_RxS)
  return {
    'learned_accuracy': intervene.accuracy(config, params, e_SxD, table_RxS.T),
    'learned_probe_accuracy': linear_maps.probe_accuracy(*data),
    'learned_superposition_r2': linear_maps.superposition_r2(*data),
  }


def _linear(config, known, e_SxD, table_RxS, other_RxN) -> dict:
  """R² and probe accuracy of maps, with their controls: fitted to all or some of the model's
  subjects and judged on fresh ones, or fitted to one half and judged on the other."""
  e_NxD, u_AxD, own_RxN = known
  n = config.subjects
  held, e_BxD = min(len(e_SxD), n // 2), jnp.concatenate([e_NxD, e_SxD])

  def comparison(table_RxN, fraction: float, first: int):
    # A smaller subset is repeated to n rows, so that all fits have one shape and share one program.
    fit_T = np.arange(n) * round(fraction * n) // n
    return jnp.concatenate([table_RxN, table_RxS], 1), fit_T, first + np.arange(held)

  half = len(e_SxD) // 2
  halves = n + np.arange(n) * half // n, n + half + np.arange(held) % half
  comparisons = {
    'fresh': comparison(own_RxN, 1.0, n),
    'own': comparison(own_RxN, 0.5, n - held),
    f'fresh|{SHUFFLED}': comparison(other_RxN, 1.0, n),
    f'own|{SHUFFLED}': comparison(other_RxN, 0.5, n - held),
    **{f'fresh of {part:g}': comparison(own_RxN, part, n) for part in FRACTIONS},
    f'fresh, {REFIT}': (jnp.concatenate([own_RxN, table_RxS], 1), *halves),
  }
  stack = lambda some: jax.tree.map(lambda *arrays: jnp.stack(arrays), *some)
  judge = lambda score, some: jax.lax.map(lambda one: score(e_BxD, u_AxD, *one), stack(some))
  both = [comparisons['fresh'], comparisons['own']]
  alone = judge(linear_maps.other_attributes_scores, both)
  found: dict = {}
  for name, score, shared, of_others in (
    ('superposition_r2', linear_maps.superposition_r2, linear_maps.shared_map_r2, alone[0]),
    ('probe_accuracy', linear_maps.probe_accuracy, linear_maps.shared_probe_accuracy, alone[1]),
  ):
    for key, value in zip(comparisons, judge(score, list(comparisons.values())), strict=True):
      where, bar, control = key.partition('|')
      found[f'{where}_{name}{bar}{control}'] = value
    for control, pair in ((OTHERS, of_others), (SHARED, judge(shared, both))):
      found |= {f'fresh_{name}|{control}': pair[0], f'own_{name}|{control}': pair[1]}
  return found


def _swaps(config, params, u_AxD, e_SxD, table_RxS, all_maps, keys) -> dict:
  """Accuracy on fresh subjects and their reconstructions, and the effect of swapping one of their
  attributes, or all: at α = 1 for every kind of maps, at every α for those fitted through the
  model.
  """
  targets_SxR = table_RxS.T
  wanted_SxR = intervene.other_attributes(keys[2], config.answers, targets_SxR)
  rebuilt = [linear_maps.superpose(maps, u_AxD, table_RxS) for maps in all_maps]
  right = lambda e_SxD: intervene.accuracy(config, params, e_SxD, targets_SxR)
  names = 'fresh_accuracy', *(f'reconstruction answered, {maps}' for maps in MAPS)
  found = dict(zip(names, jax.lax.map(right, jnp.stack([e_SxD, *rebuilt])), strict=True))
  steer = lambda maps: intervene.steering_vectors(maps[0], u_AxD, targets_SxR, wanted_SxR)
  vectors = [steer(maps) for maps in all_maps]
  random = intervene.random_directions(keys[3], vectors[-1])
  comparisons = [
    (f', {maps}, {on}', e_BxD, own)
    for maps, e_hat_SxD, own in zip(MAPS, rebuilt, vectors, strict=True)
    for on, e_BxD in zip(EMBEDDING_KINDS, (e_SxD, e_hat_SxD), strict=True)
  ] + [
    (control, e_SxD, alpha * some)
    for control, some in (('', vectors[-1]), (f'|{DIRECTION}', random))
    for alpha in ALPHAS
  ]

  def swap(one):
    e_BxD, some_RxSxD = one
    flipped, kept = intervene.swap_effects(
      config, params, e_BxD, some_RxSxD, wanted_SxR, jnp.ones(1)
    )
    at_once = intervene.accuracy(config, params, e_BxD + jnp.sum(some_RxSxD, axis=0), wanted_SxR)
    return flipped.mean(), kept.mean(), at_once

  name_T, e_T, vectors_T = zip(*comparisons, strict=True)
  effects = jax.lax.map(swap, (jnp.stack(e_T), jnp.stack(vectors_T)))
  for outcome, values_T in zip(SWAPS, effects, strict=True):
    for name in dict.fromkeys(name_T):
      found[outcome + name] = values_T[np.flatnonzero([own == name for own in name_T])]
  return found


def _units(config, params, e_NxD, e_SxD, targets_SxR, key) -> dict:
  """Which relation each hidden unit belongs to, and how much its relation depends on it.

  Units are assigned by their activations on the model's own subjects. Of the accuracy that the MLP
  adds on fresh subjects, the scores are the shares kept by a relation's own units alone and lost
  without them, averaged over the relations to which the MLP adds a tenth of the answers or more.
  """
  inputs, hidden_NxRxF = intervene.mlp_activations(config, params, e_NxD[:FRESH])
  units = intervene.unit_selectivity(hidden_NxRxF)
  own_F, held = units['own'], (config, params, e_SxD, targets_SxR)
  cut = lambda owner_F: intervene.ablated_accuracy(*held, owner_F)
  keep = lambda owner_F: jnp.diagonal(intervene.ablated_accuracy(*held, owner_F, others=True))
  shuffled_F, nobody_F = jax.random.permutation(key, own_F), jnp.full_like(own_F, config.relations)
  owners = jnp.stack([own_F, shuffled_F, nobody_F])
  ablated_TxRxR, only_TxR = jax.lax.map(cut, owners), jax.lax.map(keep, owners)
  # `nobody_F` assigns no unit to any relation: none is ablated (whole), and none is kept (floor).
  whole_R, floor_R = ablated_TxRxR[2, 0], only_TxR[2]
  counts_R = whole_R - floor_R >= 0.1
  part = lambda right_R: (right_R - floor_R) / jnp.where(counts_R, whole_R - floor_R, 1.0)
  mean = lambda part_R: (
    jnp.sum(jnp.where(counts_R, part_R, 0.0)) / jnp.sum(counts_R, dtype=jnp.float32)
  )
  others_RxR = ~jnp.eye(config.relations, dtype=bool)
  mean_RxD = jnp.mean(inputs, axis=0)
  add_RxD = jnp.roll(mean_RxD, -1, axis=0) - mean_RxD
  patch = lambda add_RxD: intervene.patched_accuracy(*held, add_RxD, 1)
  random_RxD = intervene.random_directions(jax.random.fold_in(key, 1), add_RxD)
  patched = jax.lax.map(patch, jnp.stack([add_RxD, random_RxD]))
  found = {
    'relation_selectivity': jnp.sum(units['activation_fraction'] * units['relation']),
    'without_units': jnp.mean(floor_R),
    'patched_accuracy': patched[0], f'patched_accuracy|{DIRECTION}': patched[1],
  }  # fmt: skip
  for i, control in enumerate(('', '|random units')):
    others_R = jnp.mean(ablated_TxRxR[i], axis=0, where=others_RxR)  # rows: the ablated relation
    found[f'own_units_keep{control}'] = mean(part(only_TxR[i]))
    found[f'own_units_lose{control}'] = mean(1 - part(jnp.diagonal(ablated_TxRxR[i])))
    found[f'other_units_lose{control}'] = mean(1 - part(others_R))
  return found


def measure(trainer, preset: Preset, seeds) -> list[dict]:
  """Records of all models."""
  score, at = functools.partial(scores, preset.map_steps), [{'alpha': alpha} for alpha in ALPHAS]
  some = lambda kind: seeds if kind.model == 'trained' else seeds[: preset.control_seeds]
  return [row for kind in preset.kinds() for row in kind.records(trainer, some(kind), score, at)]


LINEAR = OTHERS, SHARED, SHUFFLED
OUTCOMES: tuple = (  # claim, measurement, label, lower bound, controls on the same model
  (2, 'fresh_superposition_r2', 'superposition R², fresh subjects', 0.75, LINEAR),
  (2, 'own_superposition_r2', 'superposition R², own subjects held out', None, LINEAR),
  (2, f'fresh, {REFIT}_superposition_r2', f'superposition R², fresh subjects, {OTHER_HALF}', None, ()),
  (3, 'fresh_probe_accuracy', 'linear probe accuracy, fresh subjects', 0.95, LINEAR),
  (3, 'own_probe_accuracy', 'linear probe accuracy, own subjects held out', None, LINEAR),
  (3, f'fresh, {REFIT}_probe_accuracy', f'linear probe accuracy, fresh subjects, {OTHER_HALF}', None, ()),
  (4, 'flipped, maps through the model, embedding', 'answers flipped by swaps at α = 1, maps through the model', 0.95, ()),
  (4, 'kept, maps through the model, embedding', 'other answers kept by swaps at α = 1, maps through the model', 0.99, ()),
  (4, 'relation_selectivity', 'relation selectivity of hidden units', None, ()),
  (4, 'without_units', 'accuracy with all hidden units ablated', None, ()),
  (4, 'own_units_keep', "fraction of the MLP's accuracy gain kept by own units alone", None, ('random units',)),
  (4, 'own_units_lose', "fraction of the MLP's accuracy gain lost without own units", None, ('random units',)),
  (4, 'other_units_lose', "fraction of the MLP's accuracy gain lost without another relation's units", None, ('random units',)),
  (4, 'patched_accuracy', 'another relation patched in: its answer given', None, (DIRECTION,)),
  (5, 'reconstruction answered, fitted maps', 'zero-shot accuracy on new facts (a), fitted maps', 0.95, ()),
  (5, 'reconstruction answered, calibrated maps', 'zero-shot accuracy on new facts, calibrated maps', None, ()),
  (5, 'reconstruction answered, maps through the model', 'zero-shot accuracy on new facts (b), maps through the model', None, ()),
  (5, 'old_tuples', 'zero-shot accuracy on old tuples of held-out subjects', None, ()),
  (5, 'memorised', 'memorised: accuracy on held-out old tuples minus new ones', None, ()),
)  # fmt: skip
DECISIVE = tuple(f'N = 2,048, R = {r}' for r in (2, 4, 8))  # the sizes that decide the claims
MARGIN = 0.3  # by which R² must exceed its controls
PERFECT = {  # scores of a constructed model, by claim, with fresh subjects as it writes them
  2: ('accuracy', 'fresh_accuracy', *(f'{where}_superposition_r2' for where in ('fresh', 'own'))),
  3: ('own_probe_accuracy', 'fresh_probe_accuracy'),
  4: ('relation_selectivity', 'own_units_keep', 'own_units_lose', 'patched_accuracy',
      *(f'{name}, {maps}, {on}' for name in SWAPS for maps in MAPS for on in EMBEDDING_KINDS)),
  5: ('old_tuples', *(f'reconstruction answered, {maps}' for maps in MAPS)),
}  # fmt: skip
LEARNED = {  # of embeddings that are learned through a constructed model: label, lower bound
  'learned_accuracy': ('accuracy', 0.99),
  'learned_probe_accuracy': ('linear probe accuracy', 0.99),
  'learned_superposition_r2': ('superposition R²', None),
}


def cases(table):
  """Yields (description, rows, whether a claim is about it) for every trained kind of model."""
  for (name, _, unembedding, _), rows in groups(table, *NAMES):
    if name in ('trained', 'plain AdamW'):
      n, r, d, f = (rows[c].iloc[0] for c in ('subjects', 'relations', 'dim', 'width'))
      how = f'unembedding {unembedding}' if name == 'trained' else name
      yield f'N = {n:,}, R = {r}, d = {d}, F = {f}, {how}', rows, name == 'trained'


def score(rows, measurement: str, control: str | None = None, alpha: float | None = None):
  """One number per seed."""
  return values(rows, measurement=measurement, control=control, alpha=alpha)


def expect(table):
  """Every trained kind of model, with an untrained model, random weights and an associative memory
  of as many relations as controls."""
  for text, rows, claimed in cases(table):
    same_size = select(table, relations=rows['relations'].iloc[0])
    models = {name: select(same_size, model=name) for name in CONTROLS}
    for measurement, words in (
      ('accuracy', 'accuracy'),
      ('fresh_accuracy', 'accuracy on fresh subjects, embeddings learned'),
    ):
      least, controls = 0.99 if claimed else None, _of_each(models, measurement)
      learned = score(rows, measurement)
      yield from over_seeds(f'{text}: {words}', learned, least, check=True, **controls)
    for outcome in OUTCOMES:
      yield from _outcome(text, rows, models, claimed, *outcome)
    for maps, on in itertools.product(MAPS, EMBEDDING_KINDS):
      flipped, kept, all_swapped = (f'{what}, {maps}, {on}' for what in SWAPS)
      controls = {'others kept': score(rows, kept), 'all swapped at once': score(rows, all_swapped)}
      controls |= _of_each(models, flipped)
      what = f'{text}: answers flipped at α = 1, {maps}, on the {on}'
      yield from over_seeds(what, score(rows, flipped), claim='Claim 4', **controls)
    yield from _generalised(text, rows, models['untrained'])
  yield from _passed(table)
  memory = select(table, model='associative', measurement='accuracy')
  for (relations, width), rows in groups(memory, 'relations', 'width'):
    text = f'associative memory, R = {relations}, F = {width:,}: accuracy'
    yield from over_seeds(text, rows['value'].tolist(), 0.99, check=True)
  built = select(table, model='constructed', control=None)
  for claim, names in PERFECT.items():
    worst = built[built['measurement'].isin(names)].groupby('seed')['value'].min().tolist()
    yield from over_seeds(f'constructed: lowest score, claim {claim}', worst, 0.999, check=True)
  for (relations,), rows in groups(built, 'relations'):
    for measurement, (words, least) in LEARNED.items():
      what = f'R = {relations}: embeddings learned through the constructed selector: {words}'
      yield from over_seeds(what, score(rows, measurement), least, check=True)


def _of_each(models: dict, measurement: str) -> dict[str, Any]:
  """What other models score, by name."""
  return {name: score(rows, measurement) for name, rows in models.items()}


def _outcome(
  text: str, rows, models: dict, claimed: bool, claim: int, measurement, words, bound, names
):
  """One of the `OUTCOMES` with its controls; where it is a claim's R², also the margins over them."""
  own, at_least = score(rows, measurement), bound if claimed else None
  fixed = rows['unembedding'].iloc[0] == 'fixed'
  decides = at_least is not None and text.startswith(DECISIVE) and (fixed or claim == 3)
  about: Any = {'claim': f'Claim {claim}', 'primary': decides}
  controls = {name: score(rows, measurement, name) for name in names}
  controls |= _of_each(models, measurement)
  if bound and claim == 4:  # random directions of the same lengths
    controls[DIRECTION] = score(rows, measurement.partition(',')[0], DIRECTION, alpha=1.0)
  yield from over_seeds(f'{text}: {words}', own, at_least, **about, **controls)
  for name in (OTHERS, SHARED, 'random weights') if claim == 2 and bound else ():
    if not controls[name]:  # measured by another part
      continue
    # A control below 0 counts as 0, the R² of predicting the mean. Other models have other seeds: use their mean.
    reached = controls[name] if name in LINEAR else np.mean(controls[name])
    above = np.subtract(own, np.maximum(reached, 0)).tolist()
    least = MARGIN if claimed and name != 'random weights' else None
    counts = about | {'primary': decides and least is not None}
    yield from over_seeds(f'{text}: {words}, margin over {name}', above, least, **counts)


def _generalised(text: str, rows, untrained):
  """R² extrapolated to maps fitted to ever more subjects, and unit selectivity rescaled so that
  untrained models score 0 and perfect selectivity 1."""
  half, whole = (score(rows, f'fresh of {part:g}_superposition_r2') for part in FRACTIONS[-2:])
  what = 'superposition R², fresh subjects, extrapolated to infinitely many fitted subjects'
  more = (2 * np.array(whole) - half).tolist()
  yield from over_seeds(f'{text}: {what}', more, claim='Claim 2')
  if chance := score(untrained, 'relation_selectivity'):
    own = np.array(score(rows, 'relation_selectivity'))
    above = ((own - np.mean(chance)) / (1 - np.mean(chance))).tolist()
    what = 'relation selectivity of hidden units, rescaled (untrained: 0)'
    yield from over_seeds(f'{text}: {what}', above, claim='Claim 4')


def _passed(table):
  """Every control must fail every claim by missing at least one of its bounds: the smallest ratio of
  an outcome to its bound."""
  for name, claim in itertools.product(CONTROLS, (2, 3, 4, 5)):
    bounds = {what: bound for own, what, _, bound, _ in OUTCOMES if own == claim and bound}
    for (n, r), rows in groups(select(table, model=name, control=None), 'subjects', 'relations'):
      parts = [np.divide(values(rows, measurement=what), bound) for what, bound in bounds.items()]
      least = np.min(parts, axis=0).tolist()
      what = f'N = {n:,}, R = {r}, {name}: must fail claim {claim}: smallest outcome / bound'
      yield from over_seeds(what, least, at_most=1.0, claim=f'Claim {claim}')


ORDER = 'unembedding fixed', 'unembedding trained', *CONTROLS, 'plain AdamW'  # the order of colours
SHOWN = {  # claim: (its decisive measurement, axis label)
  2: ('fresh_superposition_r2', 'superposition $R^2$, fresh subjects'),
  3: ('fresh_probe_accuracy', 'linear probe accuracy, fresh subjects'),
  5: ('reconstruction answered, fitted maps', 'zero-shot accuracy on new facts (a)'),
}


def plot(table):
  """A column per claim, a row per number of relations, a mark per seed; last, R² against the number
  of subjects that maps are fitted to."""
  every = sorted(table['relations'].unique())
  figure, panels = plotting.new(15, 3 * len(every), len(every), 5, squeeze=False)
  for (linear, read, swaps, zero, fitted), relations in zip(panels, every, strict=True):
    kinds = {
      f'unembedding {how}' if name == 'trained' else name: rows
      for (name, _, how, _), rows in groups(select(table, relations=relations), *NAMES)
    }
    for ax, (claim, (measurement, words)) in zip((linear, read, zero), SHOWN.items(), strict=True):
      _plot_scores(ax, kinds, measurement, LINEAR if claim < 5 else ())
      at_least = next(bound for _, name, _, bound, _ in OUTCOMES if name == measurement)
      ax.axhline(at_least, color=plotting.GREY, linewidth=0.8)
      ax.set(ylim=(-0.3, 1.05), ylabel=words, title=f'claim {claim}, R = {relations}')
    for i, name in enumerate(ORDER):
      rows = kinds.get(name, table[:0])
      for measurement, line in (('flipped', '-'), ('kept', ':')):
        some = select(rows, measurement=measurement, control=None)
        plotting.draw_seeds(swaps, some, 'alpha', i, linestyle=line)
      some = rows[rows['measurement'].str.match(r'fresh of \S+_superposition_r2$')]
      fraction = some['measurement'].str.extract(r'of ([\d.]+)_')[0].astype(float)
      plotting.draw_seeds(fitted, some.assign(fitted=fraction * some['subjects']), 'fitted', i)
    swaps.set(title=f'claim 4, R = {relations}', xlabel=r'$\alpha$ of $M_r(u_{a^\prime} - u_a)$')
    swaps.set(ylabel='flipped (solid), others kept (dotted)')
    fitted.set(
      title=f'claim 2, R = {relations}: how many subjects?', xlabel='subjects used to fit the maps'
    )
    fitted.set(ylabel=SHOWN[2][1], ylim=(-0.3, 1.05))
  marks = [ax.get_legend_handles_labels() for ax in panels[:, 0]]
  shown = {label: mark for pair in marks for mark, label in zip(*pair, strict=True)}
  figure.legend(shown.values(), shown.keys(), loc='outside lower center', ncols=7)
  return figure


def _plot_scores(ax, kinds: dict, measurement: str, controls: tuple):
  """A column per kind of model, then one per control of the first kind, with open marks."""
  names = [name for name in ORDER if name in kinds]
  columns: list = [(ORDER.index(name), name, None) for name in names]
  columns += [(len(ORDER) + i, names[0], control) for i, control in enumerate(controls)]
  for x, name, control in columns:
    color, marker = plotting.cycle(ORDER.index(name))
    own = score(kinds[name], measurement, control)
    style: dict = {'markerfacecolor': 'white'} if control else {'alpha': 0.7, 'label': name}
    ax.plot([x] * len(own), own, marker, color=color, markersize=4, **style)
  places = range(len(ORDER), len(ORDER) + len(controls))
  ax.set_xticks(places, controls, fontsize=6, rotation=40, ha='right')
  ax.set_xlim(-0.6, len(ORDER) + len(controls) - 0.4)


STUDY = Study(
  name='structure', title='superposition, linear probes, swaps and transfer, judged on subjects that the model never saw', page='geometry.md',
  claims=(
    Claim('Claim 2', 'A trained subject embedding is the sum, over relations, of one linear map per relation applied to the attribute’s vector (unembedding fixed).', DECISIVE),
    Claim('Claim 3', 'Linear maps read a subject’s attributes out of its embedding (unembedding fixed, and trained).', DECISIVE),
    Claim('Claim 4', 'The MLP selects by relation: moving the embedding along one relation’s map changes that relation’s answer and no other (unembedding fixed).', DECISIVE),
    Claim('Claim 5', 'A frozen model answers new facts once embeddings are assembled for them from maps fitted to the old ones (unembedding fixed).', DECISIVE),
  ),
  terms='Fresh subjects: subjects that the model never saw. The model is frozen, and they learn only their embeddings, by '
  'the recipe that trained it; maps are fitted to the model’s own subjects and judged on the fresh ones. Other '
  'attributes alone: each attribute’s vector as a linear map predicts it from the subject’s other attributes, '
  'without looking at the embedding (the sum of these predictions can still explain a part of it where no attribute is named); in a margin over a control, a negative R² counts as 0. A swap moves an embedding, or its reconstruction, by M_r(u_a′ − u_a); all '
  'swapped at once: the swaps of all relations together. Maps are fitted (ridge), calibrated (each rescaled to the length that '
  'held-out subjects support) or trained through the frozen model on random attributes, starting from the fitted ones; these, the maps through the model, '
  'decide claim 4. Must fail: a control has to miss at least one bound of a claim. A unit’s own relation is '
  'the one for which it fires most; the MLP’s accuracy gain: what it adds to a relation’s accuracy with all '
  'hidden units ablated. Random weights: embeddings trained, everything else as initialised; wide: several times the width '
  'and the hidden units. Associative: the subjects’ embeddings fixed as well as what the recipe fixes, no noise or smoothing, weight decay .01, and more hidden units. Plain AdamW: the recipe’s weight '
  'decay and learning rate (with less decay some seeds do not learn the facts in these steps), an unembedding as '
  'wide as the model, and none of the recipe’s other parts. Unembedding trained: the answers’ vectors are trained, '
  f'their projection into the model is not. {OTHER_HALF[0].upper()}{OTHER_HALF[1:]}: fitted to one half of the fresh '
  'subjects and judged on the other; where maps of the model’s own subjects say nothing, as with fixed embeddings, these maps may. '
  'Zero-shot (a): new facts whose embeddings are sums of linear maps of their attributes’ vectors, with maps fitted '
  'to the old embeddings; (b): with maps trained through the frozen model. Memorised: with maps fitted to three '
  'quarters of the subjects, the accuracy on the old tuples of the remaining ones less that on other tuples of the '
  'same attributes; a model that answers neither also scores 0.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot, minutes=1.8, first_seed=FIRST_SEED + 1000,
)  # fmt: skip

if __name__ == '__main__':
  STUDY.main()
