"""How to train, the same for all models of a sweep: what a compiled program of training is shaped by."""

import dataclasses
from typing import Any

from geomem.config import PRECISIONS
from geomem.errors import InputError

LOSSES = ('answer', 'chain', 'every')


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How to train; the same for all models of a sweep.

  `loss`: of the answer alone, of every step of the chain of thought, or of every next token.
  `shorter`: the queries of fewer hops are trained as well, each number of hops with equal weight.
  `batch`: subjects in a step, each with all its paths; None: all of them.
  `target`: stop at this accuracy over all queries, evaluated every `check` steps; None: train to the end,
  and evaluate there.
  `frozen`: parameters that are not trained, by the start of their path: 'unembed', 'embed/subjects'.
  `noise`: standard deviation of Gaussian noise added to the subjects' embeddings at every step, as a
  multiple of their root mean square.
  `embedding_lr_multiplier`: the subjects' embeddings are trained with this multiple of the learning rate.
  `embedding_decay_multiplier`: in a step they decay by this multiple of learning rate × weight decay;
  None: the same multiple, as if the whole step of AdamW were taken so many times as long.
  `label_smoothing`: the label is mixed with so much of the uniform distribution over the answers.
  `passes`: subjects come in passes, each over all of them in an order of its own; otherwise each batch is drawn anew.
  `lazy`: of the subjects' embeddings a step touches only those that it reads, as in `geomem.training.lazy`.
  `negatives`: the softmax is over the answers due in the batch, so many drawn uniformly, and confusers, and `lazy`
  holds of answers' vectors too; None: over all answers.
  `precision`: of the products of a step, 'default' or 'highest'; on CPUs they are the same.

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
  precision: str = 'default'

  def __post_init__(self) -> None:
    for name in ('steps', 'warmup', 'hops', 'batch', 'check', 'block', 'negatives'):
      value, least = getattr(self, name), int(name not in ('warmup', 'negatives'))
      if value is not None and value < least:
        raise InputError(f'{name} is {value}; it must be at least {least}')
    for name in ('noise', 'embedding_lr_multiplier', 'embedding_decay_multiplier'):
      value = getattr(self, name)
      if value is not None and not 0 <= value < float('inf'):
        raise InputError(f'{name} is {value}; it must be a number from 0 on')
    if self.embedding_decay_multiplier and not self.embedding_lr_multiplier:
      raise InputError(
        'embedding_lr_multiplier is 0: embeddings that are not trained do not decay; leave '
        'embedding_decay_multiplier out'
      )
    if not 0 <= self.label_smoothing < 1:
      raise InputError(f'label_smoothing is {self.label_smoothing}; it lies in [0, 1)')
    if self.loss not in LOSSES:
      raise InputError(f'loss is {self.loss!r}; it must be one of {", ".join(LOSSES)}')
    if self.precision not in PRECISIONS:
      raise InputError(
        f'precision is {self.precision!r}; it must be one of {", ".join(PRECISIONS)}'
      )
    if self.loss == 'chain' and not self.chain_of_thought:
      raise InputError("loss='chain' needs chain_of_thought=True: there is no chain otherwise")
    if (self.passes or self.lazy) and not self.batch:
      raise InputError('a pass is in batches, and lazy is what no batch reads: name a batch')
    if self.lazy and (not self.passes or self.loss != 'answer' or self.chain_of_thought):
      raise InputError(
        "lazy training is of a pass after another, and of answers alone: it needs passes=True, loss='answer' and no "
        'chain of thought'
      )
    if self.lazy and (self.noise or self.shorter):
      raise InputError('lazy training has no noise, and no shorter queries')
    if self.negatives is not None and not self.lazy:
      raise InputError('negatives need lazy=True: otherwise the softmax is over all answers')
    if self.target is not None and not 0 < self.target <= 1:
      raise InputError(f'target is {self.target}; an accuracy lies in (0, 1]')

  @classmethod
  def with_warmup(cls, steps: int, **changes: Any) -> 'Recipe':
    """With the usual warm-up: a tenth of the steps, a hundred at most."""
    return cls(steps, min(100, steps // 10), **changes)

  def length(self) -> int:
    """Tokens that a model reads."""
    return 2 * self.hops if self.chain_of_thought else self.hops + 1
