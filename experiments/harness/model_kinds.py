"""A kind of model whose inside is looked into, trained or not, and what is found in it for every seed."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from constructions import registry
from experiments.harness import instances
from experiments.harness.trainer import Trainer
from geomem.config import Config
from geomem.facts import Facts
from geomem.training import batched, optimization
from geomem.training.optimization import Recipe

FOR_TRANSFER: dict[str, Any] = {  # what it takes for other facts to be put into a model that is frozen
  'weight_decay': 1.0, 'noise': 0.5, 'embedding_lr_multiplier': 6.0, 'learning_rate': 5e-3,
  'attention': 'fixed',
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
  """`model`: what it is called. One called untrained is as it was drawn, a constructed one a selector, at its own size.

  It learns `relations` facts of each of its `subjects`, in so many `steps`.
  `embeddings`, `unembedding`, `attention` (its query and key): fixed as they were drawn, or trained.
  `embedding_lr_multiplier` is of the embeddings' decay as well, as a learning rate of their own is in AdamW.
  """

  model: str
  subjects: int
  relations: int
  steps: int
  dim: int
  width: int
  batch: int
  weight_decay: float = 0.0
  noise: float = 0.0
  embedding_lr_multiplier: float = 1.0
  learning_rate: float = 1e-2
  embeddings: str = 'trained'
  unembedding: str = 'trained'
  attention: str = 'trained'

  @property
  def trained(self) -> bool:
    return self.model not in ('untrained', 'constructed')

  def recipe(self) -> Recipe:
    parts = {'embed/subjects': self.embeddings, 'unembed': self.unembedding}
    parts |= dict.fromkeys(optimization.QK_PARAMS, self.attention)
    return Recipe.with_warmup(
      self.steps, batch=self.batch, target=None, noise=self.noise,
      embedding_lr_multiplier=self.embedding_lr_multiplier,
      frozen=tuple(name for name, how in parts.items() if how == 'fixed'),
    )  # fmt: skip

  def task(self, facts: Facts, seed: int) -> batched.Task:
    """A model of this kind before it is trained."""
    if self.model == 'constructed':
      built = registry.build('selector', facts)
      return batched.Task(built.config, facts, seed=seed, params=built.params)
    config = Config.trained(facts.subjects, facts.relations, self.dim, self.width)
    return batched.Task(config, facts, self.learning_rate, self.weight_decay, seed)

  def evaluate(self, trainer: Trainer, seeds: Sequence[int], scores: Callable) -> tuple[dict, dict]:
    """What the models are, and by name `scores(config, params, job, answers to other facts)` for every seed."""
    facts = functools.partial(instances.bijections, self.subjects, self.relations)
    tasks = [self.task(facts(seed), seed) for seed in seeds]
    others = np.stack([facts(seed, other=True).answers_RxN for seed in seeds])
    config = tasks[0].config
    about = {
      'model': self.model, 'subjects': self.subjects, 'relations': self.relations,
      'dim': config.dim, 'width': config.blocks[0].hidden[0],
    }  # fmt: skip
    return about, trainer.train_and_evaluate(
      self.recipe(), tasks, functools.partial(scores, config), others, trained=self.trained
    )
