"""Training options that all models of a sweep share, and that shape the compiled program."""

import dataclasses
from typing import Any

from geomem.config import PRECISIONS
from geomem.errors import InputError

LOSSES = ('answer', 'chain', 'every')
OPTIMIZERS = ('adamw', 'muon')


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How to train; the same for all models of a sweep.

  `loss`: on the answer alone, on every step of the chain of thought, or on every next token.
  `shorter`: also train on the queries of fewer hops, each number of hops with equal weight.
  `batch`: subjects per step, each with all its paths; None: all subjects.
  `target`: stop at this accuracy over all queries, evaluated every `check` steps; None: train to the
  end, and evaluate there.
  `evaluate`: False: the accuracy is not evaluated and stays NaN; of a million subjects that takes longer than training.
  `frozen`: parameters that are not trained, by prefixes of their paths: 'unembed', 'embed/subjects'.
  `noise`: standard deviation of Gaussian noise added to the subject embeddings at every step, as a
  multiple of their root mean square.
  `embedding_lr_multiplier`: multiple of the learning rate at which the subject embeddings are trained.
  `embedding_decay_multiplier`: multiple of learning rate × weight decay by which they decay per step;
  None: the same as `embedding_lr_multiplier`, as if the whole AdamW step were scaled by it.
  `label_smoothing`: weight of the uniform distribution over the answers in the label.
  `passes`: subjects come in passes over all of them, each in its own random order; otherwise every
  batch is drawn independently.
  `lazy`: a step updates only the subject embeddings that it reads, as in `geomem.training.sparse_updates`.
  `negatives`: the softmax is over the batch's targets, this many uniformly drawn answers, and the
  confusers, and `lazy` then applies to the answer vectors too; None: over all answers.
  `optimizer`: 'adamw', or 'muon', by which the matrices of the blocks move along their momentum with all
  its singular values made about equal; all other parameters still move by AdamW.
  `precision`: of a step's matrix products, 'default' or 'highest'; on CPUs they are the same.

  >>> Recipe.with_warmup(steps=50, target=None).warmup
  5
  """

  steps: int = 2000
  warmup: int = 100
  hops: int = 1
  chain_of_thought: bool = False
  shorter: bool = False
  loss: str = 'answer'
  batch: int | None = None
  target: float | None = 0.99
  check: int = 50
  evaluate: bool = True
  frozen: tuple[str, ...] = ()
  noise: float = 0.0
  embedding_lr_multiplier: float = 1.0
  embedding_decay_multiplier: float | None = None
  label_smoothing: float = 0.0
  passes: bool = False
  lazy: bool = False
  negatives: int | None = None
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  block: int | None = None
  optimizer: str = 'adamw'
  precision: str = 'default'

  def __post_init__(self) -> None:
    for name in ('steps', 'warmup', 'hops', 'batch', 'check', 'block', 'negatives'):
      value, least = getattr(self, name), int(name not in ('warmup', 'negatives'))
      if value is not None and value < least:
        raise InputError(f'{name} is {value}; it must be at least {least}')
    if self.target is not None and not self.evaluate:
      raise InputError(
        f'training to an accuracy of {self.target} has to evaluate it: evaluate=False needs target=None'
      )
    for name in ('noise', 'embedding_lr_multiplier', 'embedding_decay_multiplier'):
      value = getattr(self, name)
      if value is not None and not 0 <= value < float('inf'):
        raise InputError(f'{name} is {value}; it must be a finite number, at least 0')
    if self.embedding_decay_multiplier and not self.embedding_lr_multiplier:
      raise InputError(
        'embedding_lr_multiplier is 0: embeddings that are not trained do not decay; leave '
        'embedding_decay_multiplier out'
      )
    if not 0 <= self.label_smoothing < 1:
      raise InputError(f'label_smoothing is {self.label_smoothing}; it lies in [0, 1)')
    if self.loss not in LOSSES:
      raise InputError(f'loss is {self.loss!r}; it must be one of {", ".join(LOSSES)}')
    if self.optimizer not in OPTIMIZERS:
      raise InputError(
        f'optimizer is {self.optimizer!r}; it must be one of {", ".join(OPTIMIZERS)}'
      )
    if self.precision not in PRECISIONS:
      raise InputError(
        f'precision is {self.precision!r}; it must be one of {", ".join(PRECISIONS)}'
      )
    if self.loss == 'chain' and not self.chain_of_thought:
      raise InputError("loss='chain' needs chain_of_thought=True: there is no chain otherwise")
    if (self.passes or self.lazy) and not self.batch:
      raise InputError('passes=True and lazy=True need batches of subjects: set batch')
    if self.lazy and (not self.passes or self.loss != 'answer' or self.chain_of_thought):
      raise InputError("lazy training needs passes=True, loss='answer' and no chain of thought")
    if self.lazy and (self.noise or self.shorter):
      raise InputError('lazy training supports neither noise nor shorter; leave them out')
    if self.negatives is not None and not self.lazy:
      raise InputError('negatives need lazy=True: otherwise the softmax is over all answers')
    if self.target is not None and not 0 < self.target <= 1:
      raise InputError(f'target is {self.target}; an accuracy lies in (0, 1]')

  @classmethod
  def with_warmup(cls, steps: int, **changes: Any) -> 'Recipe':
    """A recipe with the usual warm-up: a tenth of the steps, at most a hundred."""
    return cls(steps, min(100, steps // 10), **changes)

  def length(self) -> int:
    """The number of tokens that a model reads."""
    return 2 * self.hops if self.chain_of_thought else self.hops + 1
