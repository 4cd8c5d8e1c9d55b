"""Freeze the model, swap the facts: does the decoder answer for superpositions it was never trained on? Claim 5.

  python -m experiments.transfer

A model learns R random bijections; all but the subjects' embeddings is frozen; new bijections are
drawn. (a) zero-shot: new embeddings are put together by the maps that explain the old ones.
(b) zero-shot: by maps fitted through the frozen model to attributes at random. (c) new embeddings
are trained, nothing else. Expected where the embeddings were learned fast and under noise: (a) and
(b) at least 0.95, (c) 1. Each thing that may decide it is changed alone. Beside them stand a
constructed selector, which must score 1, an untrained model, and an associative memory (fixed random
embeddings, the facts in the MLP), which were said not to transfer. Every case has several seeds. The
accelerator's preset has R = 2, 4 and 8, and --relations picks.
"""

import dataclasses
import functools

import numpy as np
from absl import flags

from constructions import registry
from experiments import claims
from experiments.figures import transfer as transfer_figure
from experiments.harness import building, cli, fitting, statistics
from experiments.harness.findings import CHECK, Finding, found, only
from geomem import model
from geomem.config import Config
from geomem.errors import InputError
from geomem.inside import intervene, linear_maps, new_facts
from geomem.training import batched, optimization
from geomem.training.optimization import Recipe

FLAGS = flags.FLAGS
fitting.define('transfer', claims.minutes('transfer'))
cli.define(relations='Only the cases of the preset with so many relations (repeatable).')

BATCH = 256  # subjects by which (b) fits its maps
RELEARNED = 128  # subjects whose embeddings (c) trains
CONTROLS = ('untrained', 'associative')
COLUMNS = (
  'model', 'subjects', 'relations', 'dim', 'width', 'weight_decay', 'noise', 'haste', 'unembedding', 'attention',
  'measurement', 'seeds', 'value', 'low', 'high', 'least', 'most',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
  """One kind of model. `model`: trained, untrained, associative (its embeddings fixed), or constructed.

  `unembedding`, `attention` (its query and key): fixed as they were drawn, or trained. `haste` is of
  the embeddings' decay as well, as a learning rate of their own is in AdamW.
  """

  subjects: int
  relations: int
  dim: int
  width: int
  weight_decay: float = 1.0
  noise: float = 0.5
  haste: float = 6.0
  unembedding: str = 'fixed'
  attention: str = 'fixed'
  model: str = 'trained'
  rate: float = 5e-3
  batch: int = 128

  def recipe(self, steps: int) -> Recipe:
    frozen = {
      'unembed': self.unembedding == 'fixed',
      **dict.fromkeys(optimization.QK_PARAMS, self.attention == 'fixed'),
      'embed/subjects': self.model == 'associative',
    }
    return Recipe.with_warmup(
      steps, batch=self.batch, target=None, noise=self.noise, embedding_lr_multiplier=self.haste,
      frozen=tuple(name for name, is_frozen in frozen.items() if is_frozen),
    )  # fmt: skip

  def task(self, seed: int) -> batched.Task:
    """A model of this kind before it is trained."""
    facts = building.bijections(self.subjects, self.relations, seed)
    if self.model == 'constructed':
      built = registry.build('selector', facts)
      return batched.Task(built.config, facts, seed=seed, params=built.params)
    config = Config.trained(self.subjects, self.relations, self.dim, self.width)
    return batched.Task(config, facts, self.rate, self.weight_decay, seed)


@dataclasses.dataclass(frozen=True)
class Setting:
  """`maps`: steps by which (b) fits its maps; `embeddings`: steps by which (c) trains new embeddings."""

  cases: tuple[Case, ...]
  steps: int
  maps: int
  embeddings: int
  seeds: int


def scores(config: Config, setting: Setting, params, job, other_RxN):
  """All that is measured of one model, by name."""
  answers_RxN = job.answers_RxN
  keys = building.eval_keys(job.seed, 3)
  fit_T, held_S = linear_maps.hold_out(keys[0], config.subjects)
  e_NxD, u_AxD = params['embed']['subjects'], model.apply(config, params, method='unembedding')
  right = lambda e_NxD, table: intervene.accuracy(config, params, e_NxD, table.T)

  known = e_NxD, u_AxD, answers_RxN
  maps = linear_maps.fit_maps(*known, linear_maps.best_ridge(*known))
  fitted = e_NxD[fit_T], u_AxD, answers_RxN[:, fit_T]
  partly = linear_maps.fit_maps(*fitted, linear_maps.best_ridge(*fitted))
  held_RxS = answers_RxN[:, held_S]
  through, _ = new_facts.fit_maps_through_model(config, params, maps, keys[1], setting.maps, BATCH)
  some_RxB = other_RxN[:, :RELEARNED]  # each embedding is trained by itself: some speak for all
  relearned_BxD = new_facts.learn_embeddings(config, params, some_RxB, keys[2], setting.embeddings)
  return {
    'accuracy': right(e_NxD, answers_RxN),
    'superposition': linear_maps.superposition_r2(*known, fit_T, held_S),
    'shared_cosine': new_facts.shared_cosine(u_AxD, answers_RxN),
    'old_facts': right(linear_maps.superpose(partly, u_AxD, held_RxS), held_RxS),
    'a': right(linear_maps.superpose(maps, u_AxD, other_RxN), other_RxN),
    'b': right(linear_maps.superpose(through, u_AxD, other_RxN), other_RxN),
    'c': right(relearned_BxD, some_RxB),
  }


def measure(fitter, setting: Setting, seeds) -> list[dict]:
  """Records of all cases."""
  records = []
  for case in setting.cases:
    tasks = [case.task(seed) for seed in seeds]
    other = functools.partial(building.bijections, case.subjects, case.relations, other=True)
    others = np.stack([other(seed).answers_RxN for seed in seeds])
    found = fitter.measured(
      case.recipe(setting.steps), tasks, functools.partial(scores, tasks[0].config, setting), others,
      trained=case.model in ('trained', 'associative'),
    )  # fmt: skip
    records += [
      {
        'claim': 5,
        'measurement': name,
        'control': case.model if case.model in CONTROLS else None,
        **dataclasses.asdict(case),
        'dim': tasks[0].config.dim,
        'width': tasks[0].config.blocks[0].hidden[0],
        'seed': seed,
        'value': float(value),
      }
      for i, seed in enumerate(seeds)
      for name, value in ((name, values[i]) for name, values in found.items())
    ]
  return records


def summary(records: list[dict]) -> list[dict]:
  """Mean over the seeds, with its interval and the range."""
  rows = []
  names = [field.name for field in dataclasses.fields(Case)]
  for group in statistics.groups(records, *names, 'measurement'):
    mean = lambda seeds: np.mean([r['value'] for r in seeds], keepdims=True)
    low, high = statistics.interval(group, mean)
    spread = statistics.spread(group, 'value')
    rows.append(
      {**group[0], 'seeds': len(group), **spread, 'low': float(low[0]), 'high': float(high[0])}
    )
  return rows


def around(base: Case, **changes) -> tuple[Case, ...]:
  """The case, and every one that differs from it in one thing alone."""
  return base, *(
    dataclasses.replace(base, **{name: value})
    for name, values in changes.items()
    for value in values
  )


PAIR = Case(512, 2, 64, 64)
QUADRUPLE, OCTUPLE = Case(1024, 4, 160, 128, batch=256), Case(1024, 8, 384, 256, batch=256)
MEMORY = {'weight_decay': 0.01, 'noise': 0.0, 'haste': 1.0, 'model': 'associative'}
PRESETS = {
  'smoke': Setting(
    (
      Case(24, 2, 8, 12, batch=8), Case(24, 2, 8, 12, model='untrained'),
      Case(24, 2, 8, 32, batch=8, **MEMORY), Case(24, 2, 0, 0, model='constructed'),
    ),
    60, 10, 200, 1,
  ),
  'laptop': Setting(
    (
      *around(PAIR, unembedding=('trained',), dim=(32, 96), width=(16,), weight_decay=(0.1,),
              noise=(0.0,), haste=(1.0,), attention=('trained',), subjects=(128,), model=('untrained', 'constructed')),
      dataclasses.replace(PAIR, width=512, **MEMORY),
    ),
    800, 200, 300, 5,
  ),
  'accelerator': Setting(
    (
      *around(PAIR, unembedding=('trained',), model=('untrained', 'constructed')),
      dataclasses.replace(PAIR, width=512, **MEMORY),
      *around(QUADRUPLE, unembedding=('trained',), model=('untrained', 'constructed')),
      dataclasses.replace(QUADRUPLE, width=1024, **MEMORY),
      *around(OCTUPLE, unembedding=('trained',), model=('untrained', 'constructed')),
      dataclasses.replace(OCTUPLE, width=2048, **MEMORY),
    ),
    1000, 500, 300, 5,
  ),
}  # fmt: skip


def findings(records: list[dict]) -> list[Finding]:
  """Zero-shot transfer in every case; where it is expected, with the controls beside it."""
  found_all, base = [], {}
  for group in statistics.groups(records, *transfer_figure.NAMES):
    case = group[0]
    first = base.setdefault(case['relations'], case)
    text = transfer_figure.plain(case, None if case is first else first)
    of = lambda name, group=group: only(group, measurement=name)
    hoped = case is first or (
      case['unembedding'] == 'trained' and transfer_figure.differs(case, first) == ['unembedding']
    )
    beside = {} if case is not first else {
      name: {
        kind: only(records, model=kind, measurement=name, relations=case['relations'])
        for kind in CONTROLS
      }
      for name in 'abc'
    }  # fmt: skip
    least = 1.0 if case['model'] == 'constructed' else 0.95 if hoped else None
    most = 0.5 if case['model'] in CONTROLS else None
    right = f'{text}: right on the facts learned'
    claim = CHECK if case['model'] == 'constructed' else ''
    found_all += found(right, of('accuracy'), 0.99 if hoped else None, claim=CHECK)
    for name in 'abc':
      at_least = 0.99 if least and name == 'c' else least
      found_all += found(
        f'{text}: {transfer_figure.ARMS[name]}',
        of(name),
        at_least,
        most,
        claim,
        **beside.get(name, {}),
      )
  return found_all


def main(argv):
  if FLAGS.redraw:
    cli.check_redraw('relations')
  setting, asked = PRESETS[FLAGS.scale], FLAGS.relations
  if asked:
    cases = tuple(case for case in setting.cases if case.relations in asked)
    if unknown := set(asked) - {case.relations for case in cases}:
      raise InputError(f'--relations={min(unknown)}: --scale={FLAGS.scale} has no such case')
    setting = dataclasses.replace(setting, cases=cases)
  presets = {FLAGS.scale: setting}
  fitting.main(argv, 'transfer', presets, measure, transfer_figure.draw, COLUMNS, summary)


if __name__ == '__main__':
  cli.run(main)
