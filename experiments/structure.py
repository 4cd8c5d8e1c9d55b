"""Is the embedding a superposition, and the MLP its selector? Claims 2, 3 and 4.

  python -m experiments.structure

Expected: with weight decay 1 the sum of one linear map per relation explains at least 0.8 of the
embeddings of subjects that it was not fitted to, and linear maps back find at least 0.95 of their
attributes among all N; each hidden unit keeps to one relation; moving an embedding along one map
changes that one answer. All of it is clearer in models trained as `experiments.transfer` does.
Controls: models that are untrained, or learned with fixed random
embeddings, maps fitted to shuffled facts, random directions and random units; and a constructed
selector, for which every score must be perfect.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from constructions import registry
from experiments import claims
from experiments.figures import structure as structure_figure
from experiments.harness import building, cli, fitting, statistics
from experiments.harness.findings import CHECK, Finding, found, only
from geomem import model
from geomem.config import Config
from geomem.inside import intervene, linear_maps
from geomem.training import batched, optimization
from geomem.training.optimization import Recipe

FLAGS = flags.FLAGS
fitting.define('structure', claims.minutes('structure'))

COLUMNS = (
  'model',
  'dim',
  'weight_decay',
  'measurement',
  'control',
  'dose',
  'seeds',
  'value',
  'least',
  'most',
)
LEARNED = ('trained', 'trained for transfer')
DOSES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of trained model, and how it is trained."""

  name: str
  dim: int
  width: int
  weight_decay: float
  steps: int
  rate: float = 1e-2
  noise: float = 0.0
  haste: float = 1.0
  frozen: tuple[str, ...] = ()

  def recipe(self, batch: int) -> Recipe:
    return Recipe.with_warmup(
      self.steps, batch=batch, target=None, noise=self.noise, frozen=self.frozen,
      embedding_lr_multiplier=self.haste,
    )  # fmt: skip

  def task(self, facts, seed: int) -> batched.Task:
    config = Config.trained(facts.subjects, facts.relations, self.dim, self.width)
    return batched.Task(config, facts, self.rate, self.weight_decay, seed)


@dataclasses.dataclass(frozen=True)
class Setting:
  """Every size of the learned kinds is also looked at untrained."""

  subjects: int
  relations: int
  kinds: tuple[Kind, ...]
  batch: int
  seeds: int


def plain(dim: int, width: int, decays, steps: int) -> tuple[Kind, ...]:
  """Nothing but AdamW, at several weight decays."""
  return tuple(Kind('trained', dim, width, decay, steps) for decay in decays)


FOR_TRANSFER = {'rate': 5e-3, 'noise': 0.5, 'haste': 6.0, 'frozen': optimization.QK_PARAMS}
FIXED = {'frozen': ('embed/subjects', 'unembed')}  # the facts must go into the weights: larger ones
PRESETS = {
  'smoke': Setting(
    24, 2,
    (*plain(8, 12, (0.0, 1.0), 60), Kind('trained for transfer', 8, 12, 1.0, 60, **FOR_TRANSFER),
     Kind('fixed embeddings', 8, 32, 0.01, 60, **FIXED)), 8, 1,
  ),
  'laptop': Setting(
    512, 3,
    (*plain(32, 36, (0.0, 0.3, 1.0), 1600), Kind('trained for transfer', 96, 96, 1.0, 1000, **FOR_TRANSFER),
     Kind('fixed embeddings', 64, 256, 0.01, 1600, **FIXED)), 128, 5,
  ),
  'accelerator': Setting(
    1024, 4,
    (*plain(32, 48, (0.0, 0.3, 1.0), 1600), Kind('trained for transfer', 128, 128, 1.0, 1000, **FOR_TRANSFER),
     Kind('fixed embeddings', 64, 384, 0.01, 1600, **FIXED)), 256, 5,
  ),
}  # fmt: skip


def scores(config: Config, params, job, shuffled_RxN):
  """All that is measured of one model, by name; what is named after a bar is a control of it."""
  answers_RxN = job.answers_RxN
  keys = building.eval_keys(job.seed, 6)
  fit_T, held_S = linear_maps.hold_out(keys[0], config.subjects)
  e, u = params['embed']['subjects'], model.apply(config, params, method='unembedding')
  targets_SxR = answers_RxN.T[held_S]
  linear = lambda table: {
    'superposition': linear_maps.superposition_r2(e, u, table, fit_T, held_S),
    'readout': linear_maps.probe_accuracy(e, u, table, fit_T, held_S),
  }
  values = {'accuracy': intervene.accuracy(config, params, e, answers_RxN.T), **linear(answers_RxN)}
  values |= {f'{name}|shuffled facts': value for name, value in linear(shuffled_RxN).items()}
  read_TxRxD, hidden_TxRxF = intervene.mlp_activations(config, params, e[fit_T])
  units = intervene.unit_selectivity(hidden_TxRxF)
  values |= _selector(config, params, e[held_S], targets_SxR, units, keys[1])
  values |= _patches(config, params, e[held_S], targets_SxR, jnp.mean(read_TxRxD, axis=0), keys[2])
  wanted_SxR = intervene.other_attributes(keys[3], config.answers, targets_SxR)

  def move(table):
    known = e[fit_T], u, table[:, fit_T]
    maps, _ = linear_maps.fit_maps(*known, linear_maps.best_ridge(*known))
    return intervene.steering_vectors(maps, u, targets_SxR, wanted_SxR)

  moves = move(answers_RxN)
  arms = {
    '': moves,
    '|shuffled facts': move(shuffled_RxN),
    '|random direction': intervene.random_directions(keys[4], moves),
  }
  swap = lambda moved: intervene.swap_effects(
    config, params, e[held_S], moved, wanted_SxR, jnp.array(DOSES)
  )
  swapped = jax.lax.map(swap, jnp.stack(list(arms.values())))
  for name, shares in zip(('flipped', 'kept'), swapped, strict=True):
    values |= {f'{name}{arm}': share for arm, share in zip(arms, shares, strict=True)}
  return values | {
    'unit_relation': units['relation'],
    'unit_attribute': units['attribute'],
    'unit_share': units['activation_fraction'],
  }


def _selector(config, params, e_SxD, targets_SxR, units, key):
  """Selectivity, and what cutting off a relation's units, or as many at random, leaves."""
  values = {
    f'{name}_selectivity': jnp.sum(units['activation_fraction'] * units[name])
    for name in ('relation', 'attribute')
  }
  own_2xF = jnp.stack([units['own'], jax.random.permutation(key, units['own'])])
  cut = lambda own_F: intervene.accuracy_without_units(config, params, e_SxD, targets_SxR, own_F)
  others_RxR = ~jnp.eye(config.relations, dtype=bool)
  for arm, right_RxR in zip(('', '|random units'), jax.lax.map(cut, own_2xF), strict=True):
    values[f'ablated_own{arm}'] = jnp.mean(jnp.diagonal(right_RxR))
    values[f'ablated_other{arm}'] = jnp.mean(right_RxR, where=others_RxR)
  return values


def _patches(config, params, e_SxD, targets_SxR, mean_RxD, key):
  """How often another relation, put in at the MLP's input, is the one answered; all shifts alike."""
  shifts = jnp.arange(1, config.relations)
  add_TxRxD = jax.vmap(lambda shift: jnp.roll(mean_RxD, -shift, axis=0) - mean_RxD)(shifts)
  hit = lambda pair: intervene.patched_accuracy(config, params, e_SxD, targets_SxR, *pair)
  arms = {'': add_TxRxD, '|random direction': intervene.random_directions(key, add_TxRxD)}
  added = jnp.concatenate(list(arms.values())), jnp.tile(shifts, len(arms))
  patched = jax.lax.map(hit, added).reshape(len(arms), -1).mean(axis=1)
  return {f'patched{arm}': share for arm, share in zip(arms, patched, strict=True)}


def measure(fitter, setting: Setting, seeds) -> list[dict]:
  """Records of all models."""
  table = functools.partial(building.bijections, setting.subjects, setting.relations)
  of_kind = lambda name, kind, trained: (
    name, kind.recipe(setting.batch), [kind.task(table(seed), seed) for seed in seeds], trained
  )  # fmt: skip
  groups = [of_kind(kind.name, kind, True) for kind in setting.kinds]
  sizes = {(kind.dim, kind.width): kind for kind in setting.kinds if kind.name in LEARNED}
  groups += [of_kind('untrained', kind, False) for kind in sizes.values()]
  selectors = [registry.build('selector', table(seed)) for seed in seeds]
  built = [
    batched.Task(b.config, b.facts, seed=seed, params=b.params)
    for seed, b in zip(seeds, selectors, strict=True)
  ]
  groups.append(('constructed', Recipe(), built, False))
  records = []
  for name, recipe, tasks, trained in groups:
    shuffled = np.stack([table(seed, other=True).answers_RxN for seed in seeds])
    one = functools.partial(scores, tasks[0].config)
    found = fitter.measured(recipe, tasks, one, shuffled, trained=trained)
    for i, task in enumerate(tasks):
      how = {
        'weight_decay': task.weight_decay,
        'noise': recipe.noise,
        'haste': recipe.embedding_lr_multiplier,
      }
      about = {'model': name, **(how if trained else dict.fromkeys(how))}
      values = {key: value[i] for key, value in found.items()}
      records += _records(about, task, values, seeds[0])
  return records


def _records(about: dict, task: batched.Task, values: dict, first: int) -> list[dict]:
  """One for every number; of single units only those of the first seed."""
  c = task.config
  about |= {
    'seed': task.seed, 'subjects': c.subjects, 'relations': c.relations, 'dim': c.dim,
    'width': c.blocks[0].hidden[0],
  }  # fmt: skip
  records = []
  for key, value in values.items():
    measurement, _, control = key.partition('|')
    if measurement.startswith('unit_') and task.seed != first:
      continue
    for i, number in enumerate(np.atleast_1d(value)):
      records.append({
        'claim': _claim(measurement), 'measurement': measurement, 'control': control or None,
        'dose': DOSES[i] if measurement in ('flipped', 'kept') else None,
        'unit': i if measurement.startswith('unit_') else None, **about, 'value': float(number),
      })  # fmt: skip
  return records


def _claim(measurement: str) -> int:
  return {'accuracy': 2, 'superposition': 2, 'readout': 3}.get(measurement, 4)


def summary(records: list[dict]) -> list[dict]:
  """Mean and range over the seeds; of the doses, two."""
  records = [r for r in records if r['unit'] is None and r['dose'] in (None, 1.0, 1.5)]
  names = 'model', 'dim', 'weight_decay', 'measurement', 'control', 'dose'
  return statistics.over_seeds(records, *names)


BOTH = 'flipped and kept'
SCORES = (  # measurement, in words, at least, at most, the control of the same model
  ('accuracy', 'right answers', 0.99, None, None),
  ('superposition', 'superposition, held-out R²', 0.8, None, 'shuffled facts'),
  ('readout', 'linear readouts, held out', 0.95, None, 'shuffled facts'),
  ('relation_selectivity', 'units keep to one relation', 0.5, None, None),
  ('attribute_selectivity', 'units keep to few attributes', None, None, None),
  ('ablated_own', "right once the relation's own units are cut", None, 0.2, 'random units'),
  ('ablated_other', "right once another relation's units are cut", 0.9, None, 'random units'),
  ('patched', 'relation patched, its answer given', 0.9, None, 'random direction'),
)


def findings(records: list[dict]) -> list[Finding]:
  """Of every learned kind, beside the same models untrained and the fixed embeddings; where it decays most, a claim."""
  found_all = []
  learned = [r for r in records if r['model'] in LEARNED]
  for group in statistics.groups(learned, 'model', 'weight_decay'):
    first = group[0]
    claimed = first['weight_decay'] == max(
      r['weight_decay'] for r in learned if r['model'] == first['model']
    )
    about = f'{first["model"]}, d = {first["dim"]}, decay {first["weight_decay"]:g}: '
    for name, text, least, most, control, dose in _claims():
      of = lambda records, control=None, name=name, dose=dose, **about: _values(
        records, name, control=control, dose=dose, **about
      )
      controls = {control: of(group, control)} if control else {}
      controls['untrained'] = of(records, model='untrained', dim=first['dim'])
      controls['fixed embeddings'] = of(records, model='fixed embeddings')
      bounds = (least, most) if claimed else (None, None)
      claim = CHECK if name == 'accuracy' else f'Claim {_claim(name)}'
      found_all += found(about + text, of(group), *bounds, claim, **controls)
  worst = [
    found(f'constructed: the worst score, claim {i}', _worst(records, i), 0.999, claim=CHECK)
    for i in (2, 3, 4)
  ]
  return found_all + list(itertools.chain(*worst))


def _values(records, name: str, **about) -> list[float]:
  """A value per seed; an edit that changes nothing keeps everything, so that of a swap both must be high."""
  if name != BOTH:
    return only(records, measurement=name, **about)
  both = [only(records, measurement=one, **about) for one in ('flipped', 'kept')]
  return np.minimum(*both).tolist()


def _claims():
  """`SCORES`, and the swaps at two doses."""
  yield from ((*score, None) for score in SCORES)
  for dose in (1.0, 1.5):
    for name, text in (('flipped', 'swaps that flip the answer'), ('kept', 'other answers kept')):
      yield name, f'{text}, α = {dose:g}', None, None, 'random direction', dose
    yield (
      BOTH,
      f'swaps, the lower of flipped and kept, α = {dose:g}',
      0.9,
      None,
      'random direction',
      dose,
    )


def _worst(records, claim: int) -> list[float]:
  """Of what must be 1 in the constructed model, of every seed."""
  perfect = [name for name, _, least, *_ in SCORES if least]
  records = [r for r in records if r['claim'] == claim]
  own = [
    r for r in records
    if r['model'] == 'constructed' and r['control'] is None
    and (r['measurement'] in perfect or (r['measurement'] in ('flipped', 'kept') and r['dose'] == 1.0))
  ]  # fmt: skip
  return [np.min(only(group)).item() for group in statistics.groups(own, 'seed')]


def main(argv):
  fitting.main(argv, 'structure', PRESETS, measure, structure_figure.draw, COLUMNS, summary)


if __name__ == '__main__':
  cli.run(main)
