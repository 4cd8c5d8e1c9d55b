"""Kinds of models, trained or not, whose inside is examined, and what is found in them for every seed."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from constructions import registry
from experiments.harness import instances
from experiments.harness.statistics import parse_score_name
from experiments.harness.trainer import Trainer
from geomem.config import Config
from geomem.facts import Facts
from geomem.training import optimization, sweeps
from geomem.training.recipe import Recipe

# The recipe with which gradient descent finds the predicted structure; experiments.transfer ablates it part by part.
GEOMETRIC_OPTIONS: dict[str, Any] = {
  'answer_dim': 16, 'label_smoothing': 0.5, 'weight_decay': 1.0, 'embedding_lr_multiplier': 6.0, 'noise': 0.25,
  'attention': 'fixed', 'unembedding': 'fixed', 'learning_rate': 5e-3,
}  # fmt: skip
# Fixed random embeddings, so that the facts have to go into the MLP, which must be wide. What the recipe fixes stays fixed.
ASSOCIATIVE: dict[str, Any] = {
  'model': 'associative', 'embeddings': 'fixed', 'weight_decay': 0.01, 'noise': 0.0, 'label_smoothing': 0.0,
}  # fmt: skip


def sizes(subjects: int, relations: int, batch: int, steps: int) -> dict[str, Any]:
  """The sizes of a model of the recipe: 32 coordinates and 32 hidden units per relation."""
  return dict(
    subjects=subjects, relations=relations, dim=32 * relations, width=32 * relations,
    batch=batch, steps=steps,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
  """The sizes of a model: the first fields of a kind, and of a preset with one size."""

  subjects: int
  relations: int
  dim: int
  width: int
  batch: int
  steps: int

  def own(self) -> dict[str, Any]:
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(Sizes)}

  def geometric(self) -> 'Kind':
    """A model of the recipe."""
    return Kind(**self.own(), **GEOMETRIC_OPTIONS)

  def plain(self) -> 'Kind':
    """A model trained by plain AdamW, at the rates of the recipe: at others it often fails."""
    same = {name: GEOMETRIC_OPTIONS[name] for name in ('weight_decay', 'learning_rate')}
    return Kind(model='plain AdamW', **self.own(), **same)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind(Sizes):
  """`model`: its name. An untrained one stays as initialised; a constructed one is a selector, at its own size.
  Of a model whose name starts with 'random weights', only the subjects' embeddings are trained.

  It learns `relations` facts about each of its `subjects`, in `steps` steps.
  `embeddings`, `unembedding`, `attention` (its query and key): fixed as initialised, or trained.
  `embedding_lr_multiplier` also scales the embeddings' decay, as a learning rate of their own does in AdamW, unless
  there is an `embedding_decay_multiplier`.
  """

  model: str = 'trained'
  answer_dim: int | None = None
  label_smoothing: float = 0.0
  weight_decay: float = 0.0
  noise: float = 0.0
  embedding_lr_multiplier: float = 1.0
  embedding_decay_multiplier: float | None = None
  learning_rate: float = 1e-2
  embeddings: str = 'trained'
  unembedding: str = 'trained'
  attention: str = 'trained'

  def recipe(self) -> Recipe:
    parts = {optimization.SUBJECTS: self.embeddings, 'unembed': self.unembedding}
    if self.answer_dim and self.model != 'constructed':
      parts['unembed/project'] = 'fixed'  # W_out can already apply any matrix to what it writes
    parts |= dict.fromkeys(optimization.QK_PARAMS, self.attention)
    if self.model.startswith('random weights'):
      rest = ('embed/relations', 'embed/positions', 'blocks_0', 'unembed', 'norm_final')
      parts = dict.fromkeys(rest, 'fixed')
    return Recipe.with_warmup(
      self.steps, batch=self.batch, target=None, noise=self.noise, label_smoothing=self.label_smoothing,
      embedding_lr_multiplier=self.embedding_lr_multiplier,
      embedding_decay_multiplier=self.embedding_decay_multiplier,
      frozen=tuple(name for name, how in parts.items() if how == 'fixed'),
    )  # fmt: skip

  def task(self, facts: Facts, seed: int) -> sweeps.Task:
    """A model of this kind before training."""
    if self.model == 'constructed':
      built = registry.build('selector', facts)
      return sweeps.Task(built.config, facts, seed=seed, params=built.params)
    size = facts.subjects, facts.relations, self.dim, self.width
    config = Config.trained(*size, answer_dim=self.answer_dim)
    return sweeps.Task(config, facts, self.learning_rate, self.weight_decay, seed)

  def evaluate(
    self, trainer: Trainer, seeds: Sequence[int], scores: Callable, stops: Sequence[int] = ()
  ) -> tuple[dict, dict]:
    """The model's description, and by name `scores(config, recipe, params, job, answers to other facts, embeddings)` for
    every seed, after training, or before it and at each of the `stops`. The embeddings are those that a construction of
    the other facts writes; other kinds have none.
    """
    facts = functools.partial(instances.bijections, self.subjects, self.relations)
    tasks = [self.task(facts(seed), seed) for seed in seeds]
    others = [facts(seed, other=True) for seed in seeds]
    config = tasks[0].config
    constructed = np.zeros((len(seeds), 0, config.dim), np.float32)
    if self.model == 'constructed':
      constructed = np.stack(
        [registry.build('selector', o).params['embed']['subjects'] for o in others]
      )
    # Which parameters were frozen does not matter after training: without it, kinds of one size share a program.
    own_scores = functools.partial(scores, config, dataclasses.replace(self.recipe(), frozen=()))
    about = dataclasses.asdict(self) | {'dim': config.dim, 'width': config.blocks[0].hidden[0]}
    more = np.stack([o.answers_RxN for o in others]), constructed
    if stops:
      return about, trainer.evaluate_at(stops, self.recipe(), tasks, own_scores, *more)
    trained = self.model not in ('untrained', 'constructed')
    found = trainer.train_and_evaluate(self.recipe(), tasks, own_scores, *more, trained=trained)
    return about, found

  def records(
    self, trainer: Trainer, seeds: Sequence[int], scores: Callable, points: Sequence[dict] = (), **more
  ) -> list[dict]:  # fmt: skip
    """A record for every number that `evaluate` finds; a score with as many numbers as there are `points` has one at
    each, whose columns it gets. A score 'measurement|control' is a control for the measurement."""
    about, found = self.evaluate(trainer, seeds, scores)
    return [
      {**parse_score_name(key), **at, **about, **more, 'seed': seed, 'value': float(value)}
      for key, values in found.items()
      for seed, own in zip(seeds, values, strict=True)
      for at, value in zip(points if np.ndim(own) and np.size(own) == len(points) else ({},), np.ravel(own), strict=True)
    ]  # fmt: skip
