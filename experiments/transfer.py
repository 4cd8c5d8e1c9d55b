"""Freeze the model, swap the facts: does the decoder answer for superpositions it was never trained on? Claim 5.

  python -m experiments.transfer

A model learns R random bijections; all but the subjects' embeddings is frozen; new bijections are
drawn. (a) zero-shot: new embeddings are put together by the maps that explain the old ones.
(b) zero-shot: by maps fitted through the frozen model to attributes at random. (c) new embeddings
are trained, nothing else. Expected where the structure is clean: (a) and (b) at least 0.95, (c) 1.
Controls: the same with an untrained model, whose maps in (b) have the same freedom, and with an
associative memory (fixed random embeddings, the facts in the MLP), whose MLP must not transfer.
Every case is trained with several seeds, and reported with what may decide it. Five minutes on two
cores.
"""

import dataclasses
import functools

import jax
import numpy as np
from absl import flags

from experiments import building, cli, fitting, statistics, transfer_figure
from geomem import intervene, model, structure, sweep, transfer
from geomem.config import Config
from geomem.train import Recipe

FLAGS = flags.FLAGS
fitting.define('transfer')

COLUMNS = (
  'model', 'subjects', 'relations', 'dim', 'width', 'weight_decay', 'unembedding', 'measurement',
  'seeds', 'value', 'low', 'high', 'least', 'most',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
  """One kind of model. `model`: trained, untrained, or associative: its embeddings fixed."""

  subjects: int
  relations: int
  dim: int
  width: int
  weight_decay: float = 1.0
  unembedding: str = 'fixed'
  model: str = 'trained'

  def recipe(self, setting: 'Setting') -> Recipe:
    frozen = ('unembed',) if self.unembedding == 'fixed' else ()
    frozen += ('embed/subjects',) if self.model == 'associative' else ()
    return Recipe.warmed(setting.steps, batch=setting.batch, target=None, frozen=frozen)


@dataclasses.dataclass(frozen=True)
class Setting:
  """`maps`: steps by which (b) fits its maps; `embeddings`: steps by which (c) trains new embeddings."""

  cases: tuple[Case, ...]
  batch: int
  steps: int
  maps: int
  embeddings: int
  seeds: int


def scores(config: Config, setting: Setting, params, job, other_RxN):
  """All that is measured of one model, by name."""
  answers_RxN = job.answers_RxN
  keys = jax.random.split(jax.random.key(job.seed), 4)
  fit_T, held_S = structure.hold_out(keys[0], config.subjects)
  e_NxD, u_AxD = params['embed']['subjects'], model.apply(config, params, method='unembedding')
  right = lambda e_NxD, table: intervene.accuracy(config, params, e_NxD, table.T)

  known = e_NxD, u_AxD, answers_RxN
  maps = structure.maps(*known, structure.best_ridge(*known))
  through, _ = transfer.through(config, params, maps, keys[1], setting.maps, setting.batch)
  relearned_NxD = transfer.relearn(config, params, other_RxN, keys[2], setting.embeddings)
  return {
    'accuracy': right(e_NxD, answers_RxN),
    'superposition': structure.superposition(*known, fit_T, held_S),
    'shared_cosine': transfer.shared_cosine(u_AxD, answers_RxN),
    'old_facts': right(structure.superpose(maps, u_AxD, answers_RxN), answers_RxN),
    'a': right(structure.superpose(maps, u_AxD, other_RxN), other_RxN),
    'b': right(structure.superpose(through, u_AxD, other_RxN), other_RxN),
    'c': right(relearned_NxD, other_RxN),
  }


def measure(fitter, setting: Setting, seeds) -> list[dict]:
  """Records of all cases."""
  records = []
  for case in setting.cases:
    config = Config.trained(case.subjects, case.relations, case.dim, case.width)
    table = functools.partial(building.bijections, case.subjects, case.relations)
    tasks = [sweep.Task(config, table(seed), 1e-2, case.weight_decay, seed) for seed in seeds]
    others = np.stack([table(seed, other=True).answers_RxN for seed in seeds])
    found = fitter.measured(
      case.recipe(setting), tasks, functools.partial(scores, config, setting), others,
      trained=case.model != 'untrained',
    )  # fmt: skip
    records += [
      {
        'claim': 5,
        'measurement': name,
        **dataclasses.asdict(case),
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


PRESETS = {
  'smoke': Setting((Case(24, 2, 8, 12), Case(24, 2, 8, 12, model='untrained')), 8, 60, 10, 10, 1),
  'laptop': Setting(
    (
      Case(1024, 2, 128, 64), Case(1024, 2, 128, 64, unembedding='trained'),
      Case(1024, 2, 128, 64, model='untrained'), Case(1024, 2, 64, 512, 0.01, model='associative'),
    ),
    256, 2000, 500, 300, 5,
  ),
  'accelerator': Setting(
    tuple(
      Case(4096, relations, dim, 96, decay, unembedding)
      for relations, dim in ((2, 128), (4, 256), (8, 512))
      for decay in (0.3, 1.0)
      for unembedding in ('fixed', 'trained')
    ),
    1024, 4000, 2000, 500, 5,
  ),
}  # fmt: skip


def main(argv):
  fitting.main(argv, 'transfer', PRESETS, measure, transfer_figure.draw, COLUMNS, summary)


if __name__ == '__main__':
  cli.run(main)
