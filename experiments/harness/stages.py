"""Constructions at four stages of hiddenness, and what is known of the inside at each, for models that know all their facts.

built: as written. disguised: transformed by symmetries, the same function. retrained: the disguised model with noise
on every weight, trained on its facts again. scratch: the same sizes, trained from random weights, so that nothing is
known about the inside.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.harness.trainer import Trainer
from geomem import model as transformer
from geomem.config import Config
from geomem.construction import Construction
from geomem.facade import FactModel
from geomem.inside import symmetry, truth
from geomem.inside.truth import Truth
from geomem.layout import Layout
from geomem.training import sweeps, trained
from geomem.training.recipe import Recipe

STAGES = 'built', 'disguised', 'retrained', 'scratch'
LEARNING_RATE, FROM_SCRATCH = 1e-3, 1e-2
EXACT = 0.999  # ablation confirms at least this much for a construction and its disguise
CONFIRMED = {'units': 0.5, 'heads': 0.5, 'subspaces': 0.9}  # the same for a retrained model


@dataclasses.dataclass(frozen=True, eq=False)
class ZooModel:
  """A model at one stage, and its truth, if any is known. `found`: how much of the truth about units, heads and subspaces
  is confirmed by ablation and interchange, None where there is nothing to confirm. `noise`: the noise it was retrained from."""

  stage: str
  model: FactModel
  truth: Truth | None
  accuracy: float
  min_margin: float
  found: dict[str, float | None]
  noise: float = 0.0

  @property
  def confirmed(self) -> bool:
    """Whether every query is answered right, and the truth is confirmed."""
    least = {**CONFIRMED} if self.stage == 'retrained' else dict.fromkeys(self.found, EXACT)
    return self.accuracy == 1 and all(
      value is None or value >= least[name] for name, value in self.found.items()
    )


def zoo_model(stage: str, model: FactModel, known: Truth | None, noise: float = 0.0) -> ZooModel:
  """The model with its accuracy on all queries and the results of the ablations."""
  tests = {'units': truth.unit_specificity, 'heads': truth.head_specificity, 'subspaces': truth.interchange_accuracy}  # fmt: skip
  found = {name: test(model, known) if known else None for name, test in tests.items()}
  return ZooModel(stage, model, known, *truth.evaluate(model), found, noise)


def train_with(trainer: Trainer, tasks: Sequence[sweeps.Task], **options) -> list[FactModel]:
  """`trained.sweep` of models of one size in a run that can be resumed."""
  recipe = Recipe(**options)
  found = trainer.train_and_evaluate(recipe, tasks, lambda params, job: {'params': params})
  one = lambda i: jax.tree.map(lambda arrays: arrays[i], found['params'])
  return [
    FactModel(
      'trained', task.config, one(i), Layout.unnamed(task.config.dim), task.facts, recipe.hops,
      chain_of_thought=recipe.chain_of_thought,
    )
    for i, task in enumerate(tasks)
  ]  # fmt: skip


def at_all_stages(
  built: Sequence[Construction], seeds: Sequence[int], noises: Sequence[float], steps: int,
  sweep: Callable[..., Sequence[FactModel]] = trained.sweep,
) -> list[list[ZooModel]]:  # fmt: skip
  """A model at each stage for each of these constructions, which are of one kind and differ only in size. The retrained
  model has the first noise level from which it learns its facts again and the truth is confirmed, else the last.
  `sweep` trains."""
  truths = [truth.of(one) for one in built]
  disguised = [symmetry.disguise(one, seed) for one, seed in zip(built, seeds, strict=True)]
  transformed = [k.transformed(by) for k, (_, by) in zip(truths, disguised, strict=True)]
  tasks = []
  for (one, _), seed in zip(disguised, seeds, strict=True):
    task = functools.partial(sweeps.Task, one.config, one.facts, weight_decay=0.0, seed=seed)
    for noise in noises:
      params = noised(one.config, one.params, noise, np.random.default_rng((seed, 2)), seed)
      tasks.append(task(LEARNING_RATE, params=params))
    tasks.append(task(FROM_SCRATCH))
  chain = built[0].chain_of_thought
  learned = iter(sweep(
    tasks, steps=steps, warmup=0, target=None, hops=built[0].hops, chain_of_thought=chain,
    loss='chain' if chain else 'answer',
  ))  # fmt: skip
  rows = []
  for one, k, (model, _), c in zip(built, truths, disguised, transformed, strict=True):
    retrained = [zoo_model('retrained', next(learned), c, noise) for noise in noises]
    best = next((r for r in retrained if r.confirmed), retrained[-1])
    scratch = zoo_model('scratch', next(learned), None)
    rows.append([zoo_model('built', one, k), zoo_model('disguised', model, c), best, scratch])
  return rows


def noised(config: Config, params: dict, noise: float, rng: np.random.Generator, seed: int) -> dict:
  """Add noise to every weight, relative to its array's root mean square, or to a fresh initialisation's where that is 0."""
  arrays, fresh = flatten_dict(params), flatten_dict(transformer.draw(config, seed))
  rms = lambda w: float(np.sqrt(np.mean(np.square(w))))
  # A bias is initialised to zero too: its noise is scaled like that of the matrix before it.
  before = lambda path: (*path[:-1], path[-1].removesuffix('_bias'))
  size = {path: rms(w) or rms(fresh[before(path)]) for path, w in arrays.items()}
  return unflatten_dict({
    path: np.asarray(w + noise * size[path] * rng.standard_normal(w.shape), np.float32)
    for path, w in arrays.items()
  })  # fmt: skip
