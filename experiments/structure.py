"""Is the embedding a superposition, and the MLP its selector? Claims 2, 3 and 4.

  python -m experiments.structure

Expected: with weight decay 1 the sum of one linear map per relation explains at least 0.8 of the
embeddings of subjects that it was not fitted to, and linear maps back find at least 0.95 of their
attributes among all N; each hidden unit keeps to one relation; moving an embedding along one map
changes that one answer. All of it is clearer in models trained as `experiments.transfer` does.
Controls: untrained models and fixed random embeddings, maps fitted to shuffled facts, random
directions and units; and a constructed selector, for which every score must be perfect.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import instances, plotting
from experiments.harness.findings import Claim, over_seeds
from experiments.harness.model_kinds import FOR_TRANSFER, Kind
from experiments.harness.statistics import groups, select, split_key, summarize, values
from experiments.harness.study import Study
from geomem import model
from geomem.config import Config
from geomem.inside import intervene, linear_maps

LEARNED = ('trained', 'trained for transfer')
OWN, OTHER = 'accuracy_without_own_units', 'accuracy_without_other_units'
SHUFFLED, DIRECTION, UNITS = 'shuffled facts', 'random direction', 'random units'  # controls
ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """d and F of the models: `plain` ones are trained with AdamW alone, at each of the weight decays; others as for
  `transfer`, for the steps that are said there; the last around `fixed` embeddings.
  """

  subjects: int
  relations: int
  batch: int
  plain: dict[str, int]
  transfer: dict[str, int]
  fixed: dict[str, int]
  weight_decays: tuple[float, ...] = (0.0, 0.3, 1.0)
  steps: int = 1600
  seeds: int = 5

  def kinds(self):
    """All models that are looked into."""
    names = 'subjects', 'relations', 'batch', 'steps'
    about: dict[str, Any] = {name: getattr(self, name) for name in names}
    kind = lambda name, size, **how: Kind(model=name, **about | size | how)
    for decay in self.weight_decays:
      yield kind('trained', self.plain, weight_decay=decay)
    yield kind('trained for transfer', self.transfer, **FOR_TRANSFER)
    unlearned = {'embeddings': 'fixed', 'unembedding': 'fixed'}
    yield kind('fixed embeddings', self.fixed, weight_decay=0.01, **unlearned)
    yield kind('untrained', self.plain)
    yield kind('untrained', self.transfer)
    yield kind('constructed', self.plain)


PRESETS = {
  'smoke': Preset(
    subjects=24, relations=2, batch=8, weight_decays=(0.0, 1.0), steps=60, seeds=1,
    plain={'dim': 8, 'width': 12}, transfer={'dim': 10, 'width': 12, 'steps': 60}, fixed={'dim': 8, 'width': 32},
  ),
  'laptop': Preset(
    subjects=512, relations=3, batch=128,
    plain={'dim': 32, 'width': 36}, transfer={'dim': 96, 'width': 96, 'steps': 1000}, fixed={'dim': 64, 'width': 256},
  ),
  'full': Preset(
    subjects=1024, relations=4, batch=256,
    plain={'dim': 32, 'width': 48}, transfer={'dim': 128, 'width': 128, 'steps': 1000}, fixed={'dim': 64, 'width': 384},
  ),
}  # fmt: skip


def scores(config: Config, params, job, shuffled_RxN):
  """All that is measured of one model, by name; 'score|control' is the control of a score."""
  keys = instances.eval_keys(job.seed, 6)
  fit_T, held_S = linear_maps.hold_out(keys[0], config.subjects)
  e_NxD, u_AxD = params['embed']['subjects'], model.apply(config, params, method='unembedding')
  targets_SxR = job.answers_RxN.T[held_S]
  wanted_SxR = intervene.other_attributes(keys[3], config.answers, targets_SxR)
  held = config, params, e_NxD[held_S]
  found, vectors = {'accuracy': intervene.accuracy(config, params, e_NxD, job.answers_RxN.T)}, {}
  for arm, table_RxN in (('', job.answers_RxN), (f'|{SHUFFLED}', shuffled_RxN)):
    for score in (linear_maps.superposition_r2, linear_maps.probe_accuracy):
      found[score.__name__ + arm] = score(e_NxD, u_AxD, table_RxN, fit_T, held_S)
    known = e_NxD[fit_T], u_AxD, table_RxN[:, fit_T]
    maps, _ = linear_maps.fit_maps(*known, linear_maps.best_ridge(*known))
    vectors[arm] = intervene.steering_vectors(maps, u_AxD, targets_SxR, wanted_SxR)
  vectors[f'|{DIRECTION}'] = intervene.random_directions(keys[4], vectors[''])
  swap = lambda some: intervene.swap_effects(*held, some, wanted_SxR, jnp.array(ALPHAS))
  for arm, (flipped_T, kept_T) in _by_arm(swap, vectors).items():
    found |= {f'flipped{arm}': flipped_T, f'kept{arm}': kept_T}

  read_TxRxD, hidden_TxRxF = intervene.mlp_activations(config, params, e_NxD[fit_T])
  units = intervene.unit_selectivity(hidden_TxRxF)
  found['unit_activation_fraction'] = units['activation_fraction']
  for name in ('relation', 'attribute'):
    found[f'{name}_selectivity'] = jnp.sum(units['activation_fraction'] * units[name])
    found[f'unit_{name}_selectivity'] = units[name]
  cut = lambda own_F: intervene.accuracy_without_units(*held, targets_SxR, own_F)
  others_RxR = ~jnp.eye(config.relations, dtype=bool)
  random = jax.random.permutation(keys[1], units['own'])
  for arm, right_RxR in _by_arm(cut, {'': units['own'], f'|{UNITS}': random}).items():
    found[OWN + arm] = jnp.mean(jnp.diagonal(right_RxR))
    found[OTHER + arm] = jnp.mean(right_RxR, where=others_RxR)

  # Another relation is put in at the MLP's input, one so many further, all distances alike.
  shifts_T, mean_RxD = jnp.arange(1, config.relations), jnp.mean(read_TxRxD, axis=0)
  add_TxRxD = jax.vmap(lambda shift: jnp.roll(mean_RxD, -shift, axis=0) - mean_RxD)(shifts_T)
  one = lambda pair: intervene.patched_accuracy(*held, targets_SxR, *pair)
  patch = lambda add_TxRxD: jnp.mean(jax.lax.map(one, (add_TxRxD, shifts_T)))
  random = intervene.random_directions(keys[2], add_TxRxD)
  for arm, right in _by_arm(patch, {'': add_TxRxD, f'|{DIRECTION}': random}).items():
    found[f'patched_accuracy{arm}'] = right
  return found


def _by_arm(function, arms: dict) -> dict:
  """`function` of what was measured and of its controls, in one program."""
  found = jax.lax.map(function, jnp.stack(list(arms.values())))
  return {arm: jax.tree.map(lambda some, i=i: some[i], found) for i, arm in enumerate(arms)}


def measure(trainer, preset: Preset, seeds) -> list[dict]:
  """Records of all models; of single units only those of the first seed."""
  records = []
  for kind in preset.kinds():
    about, found = kind.evaluate(trainer, seeds, scores)
    for name in ('weight_decay', 'noise', 'embedding_lr_multiplier'):
      about[name] = getattr(kind, name) if kind.trained else None
    records += [
      {
        **split_key(key),
        'alpha': ALPHAS[j] if key.startswith(('flipped', 'kept')) else None,
        'unit': j if key.startswith('unit_') else None,
        **about, 'seed': seed, 'value': float(number),
      }
      for i, seed in enumerate(seeds)
      for key, values_M in found.items()
      if i == 0 or not key.startswith('unit_')
      for j, number in enumerate(np.atleast_1d(values_M[i]))
    ]  # fmt: skip
  return records


SWAPPED = 'flipped and kept'  # an edit that changes nothing keeps everything: the lower of the two
SCORES = (  # claim, measurement, α, in words, at least, at most, the control of the same model
  (2, 'accuracy', None, 'right answers', 0.99, None, None),
  (2, 'superposition_r2', None, 'superposition, held-out R²', 0.8, None, SHUFFLED),
  (3, 'probe_accuracy', None, 'linear probes, held out', 0.95, None, SHUFFLED),
  (4, 'relation_selectivity', None, 'units keep to one relation', 0.5, None, None),
  (4, 'attribute_selectivity', None, 'units keep to few attributes', None, None, None),
  (4, OWN, None, "right once the relation's own units are cut", None, 0.2, UNITS),
  (4, OTHER, None, "right once another relation's units are cut", 0.9, None, UNITS),
  (4, 'patched_accuracy', None, 'relation patched, its answer given', 0.9, None, DIRECTION),
  *(
    (4, measurement, alpha, f'{text}, α = {alpha:g}', at_least, None, DIRECTION)
    for alpha in (1.0, 1.5)
    for measurement, text, at_least in (
      ('flipped', 'swaps that flip the answer', None), ('kept', 'other answers kept', None),
      (SWAPPED, 'swaps, the lower of flipped and kept', 0.9),
    )
  ),
)  # fmt: skip
PERFECT = {  # of a constructed model, by claim
  2: ('accuracy', 'superposition_r2'), 3: ('probe_accuracy',),
  4: ('relation_selectivity', OTHER, 'patched_accuracy', 'flipped', 'kept'),
}  # fmt: skip


def expect(table):
  """Of every learned kind, beside the same models untrained and the fixed embeddings; where it decays most, a claim."""
  learned = table[table['model'].isin(LEARNED)]
  most = learned.groupby('model')['weight_decay'].max()
  fixed = select(table, model='fixed embeddings')
  for (name, dim, decay), rows in groups(learned, 'model', 'dim', 'weight_decay'):
    beside = {'untrained': select(table, model='untrained', dim=dim), 'fixed embeddings': fixed}
    for claim, measurement, alpha, text, at_least, at_most, control in SCORES:
      of = functools.partial(_values, measurement=measurement, alpha=alpha)
      controls: Any = {control: of(rows, control=control)} if control else {}
      controls |= {kind: of(some) for kind, some in beside.items()}
      bounds = (at_least, at_most) if decay == most[name] else (None, None)
      yield from over_seeds(
        f'{name}, d = {dim}, decay {decay:g}: {text}', of(rows), *bounds, claim=f'Claim {claim}',
        check=measurement == 'accuracy', **controls,
      )  # fmt: skip
  built = select(table, model='constructed', control=None)
  built = built[built['alpha'].isna() | (built['alpha'] == 1.0)]
  for claim, names in PERFECT.items():
    worst = summarize(built[built['measurement'].isin(names)], 'seed')['least'].tolist()
    yield from over_seeds(f'constructed: the worst score, claim {claim}', worst, 0.999, check=True)


def _values(table, measurement: str, alpha: float | None, control: str | None = None):
  """A value per seed."""
  if measurement != SWAPPED:
    return values(table, measurement=measurement, alpha=alpha, control=control)
  return np.minimum(*(_values(table, name, alpha, control) for name in ('flipped', 'kept')))


def plot(table):
  """Four panels; every model has its colour, and every seed a mark; of hidden units those of one seed."""
  figure, (left, units, swaps, right) = plotting.new(12, 3.8, 1, 4)
  smallest = table.groupby('model')['dim'].transform('min')
  models = {}
  for (name, decay), rows in groups(table[table['dim'] == smallest], 'model', 'weight_decay'):
    models[f'{name}, decay {decay:g}' if name == 'trained' else name] = rows
  _plot_bars(left, models, 'superposition_r2', 'probe_accuracy')
  _plot_units(units, models)
  _plot_swaps(swaps, models, table['weight_decay'].max())
  _plot_bars(right, models, OWN, OTHER, 'patched_accuracy')
  left.set(ylabel='on held-out subjects', title='superposition')
  right.set(ylabel='right answers', title='cuts and patches')
  figure.legend(*left.get_legend_handles_labels(), loc='outside lower center', ncols=len(models))
  return figure


def _plot_bars(ax, models: dict, *measurements: str):
  """The mean over seeds, a bar a model; after every measurement its control."""
  labels = []
  for i, (name, rows) in enumerate(models.items()):
    color, shift = plotting.cycle(i)[0], 0.8 * ((i + 0.5) / len(models) - 0.5)
    shown = rows[rows['measurement'].isin(measurements)].sort_values('measurement', kind='stable')
    bars = [(keys, own['value']) for keys, own in groups(shown, 'measurement', 'control')]
    labels = [', '.join(filter(None, keys)).replace('_', ' ') for keys, _ in bars]
    for j, (_, own) in enumerate(bars):
      ax.bar(j + shift, own.mean(), 0.7 / len(models), color=color, label=None if j else name)
      ax.plot([j + shift] * len(own), own, '_', color=plotting.BLACK, markersize=3)
  ax.set_xticks(range(len(labels)), labels, rotation=25, ha='right', fontsize=5)


def _plot_units(ax, models: dict):
  """Every hidden unit by how far it keeps to one relation, and to few answers; its area is what it fires."""
  for i, rows in enumerate(models.values()):
    color, marker = plotting.cycle(i)
    x, y, fraction = (
      np.array(values(rows, measurement=f'unit_{part}'))
      for part in ('relation_selectivity', 'attribute_selectivity', 'activation_fraction')
    )
    ax.scatter(x, y, 600 * fraction, color=color, marker=marker, alpha=0.5, linewidths=0)
  ax.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), title='hidden units, one seed')
  ax.set(xlabel='keeps to one relation', ylabel='keeps to few attributes')


def _plot_swaps(ax, models: dict, decay: float):
  """By α how often a swap changes the answer it should, and leaves the others, in models with this decay."""
  for i, rows in enumerate(models.values()):
    rows = select(rows, weight_decay=decay)
    for name, face in (('flipped', plotting.cycle(i)[0]), ('kept', 'white')):
      for control, line in ((None, '-'), (DIRECTION, ':')):
        some = select(rows, measurement=name, control=control)
        plotting.spread(ax, some, 'alpha', i, linestyle=line, markerfacecolor=face)
  ax.set(xlabel=r'$\alpha$ of $M_r(u_{a^\prime} - u_a)$; dotted: random direction')
  ax.set(ylabel='answer flipped (full), others kept (open)', title='swapping one attribute')


STUDY = Study(
  name='structure', title='superposition, probes, units, patches and swaps, with controls',
  claims=(
    Claim('Claim 2', 'A trained subject embedding is the sum of one linear map per relation of its attributes’ vectors, '
          'judged on subjects that the maps were not fitted to.'),
    Claim('Claim 3', 'Linear maps read a subject’s attributes out of its embedding.'),
    Claim('Claim 4', 'The MLP selects by relation: units keep to one, patching the relation or moving the embedding along '
          'one map changes that answer and no other.'),
  ),
  terms='A swap moves a subject’s embedding by α times M_r(u_a′ − u_a), M_r the map fitted for relation r. It should '
  'flip the answer to r and keep the others: the lower of these two fractions counts, for an edit that does '
  'nothing keeps everything. Every unit belongs to the relation for which it fires most on average; '
  'it keeps to that one by 1 if it fires for no other, and by 0 if it fires for all alike. Fixed embeddings: '
  'only the rest was trained.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot, minutes=2.5,
)  # fmt: skip

if __name__ == '__main__':
  STUDY.main()
