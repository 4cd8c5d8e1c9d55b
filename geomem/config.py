"""The sizes and switches of a model."""

import dataclasses
from typing import Any

from geomem.errors import InputError

NORMS = ('none', 'rms', 'layer')
DTYPES = ('float32', 'bfloat16')
PRECISIONS = ('default', 'highest')  # of matrix products: the device's fastest, or float32


@dataclasses.dataclass(frozen=True)
class BlockConfig:
  """One block: attention heads with their own widths, and an MLP of zero, one or two hidden layers.

  >>> BlockConfig(heads=2, hidden=(8,))
  BlockConfig(heads=2, key_dim=1, head_dim=1, hidden=(8,))
  """

  heads: int = 1
  key_dim: int = 1
  head_dim: int = 1
  hidden: tuple[int, ...] = ()

  def __post_init__(self) -> None:
    if min(self.heads, self.key_dim, self.head_dim, *self.hidden, 1) < 1:
      raise InputError(f'every width of a block must be at least 1, got {self}')
    if len(self.hidden) > 2:
      raise InputError(f'the MLP has {len(self.hidden)} hidden layers; it may have 0, 1 or 2')


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that shapes the parameters and the forward pass.

  `answer_dim`: the final residual is projected to this many coordinates, in which answer vectors
  have length 1; None: answer vectors are as wide as the residual and have any length.
  `precision`: 'highest' if the weights need more bits than an accelerator's matrix products keep by
  default; None: set by the code that runs the model, and if it sets nothing, the default is enough.

  >>> Config.trained(subjects=64, relations=2, dim=16).blocks[0].hidden
  (64,)
  """

  subjects: int
  relations: int
  answers: int
  length: int
  dim: int
  blocks: tuple[BlockConfig, ...]
  norm: str = 'none'
  norm_eps: float = 1e-6
  bias: bool = True
  tied: bool = False
  answer_dim: int | None = None
  dtype: str = 'float32'
  precision: str | None = None

  def __post_init__(self) -> None:
    sizes = self.subjects, self.relations, self.answers, self.length, self.dim, self.answer_dim or 1
    if min(sizes) < 1 or self.answer_dim == 0:
      raise InputError(f'every size of a model must be at least 1, got {self}')
    if self.norm not in NORMS:
      raise InputError(f'norm is {self.norm!r}; it must be one of {", ".join(NORMS)}')
    if self.dtype not in DTYPES:
      raise InputError(f'dtype is {self.dtype!r}; it must be one of {", ".join(DTYPES)}')
    if self.precision not in (None, *PRECISIONS):
      raise InputError(
        f'precision is {self.precision!r}; it must be one of {", ".join(PRECISIONS)}'
      )
    if self.tied and self.answer_dim:
      raise InputError(
        'a tied unembedding has the coordinates of the residual: leave answer_dim out'
      )
    if self.tied and self.answers > self.subjects:
      raise InputError(
        f'a tied unembedding has {self.subjects} rows, fewer than {self.answers} answers'
      )

  @property
  def depth(self) -> int:
    return len(self.blocks)

  @property
  def vocabulary(self) -> int:
    return self.subjects + self.relations

  def replace(self, **changes: Any) -> 'Config':
    return dataclasses.replace(self, **changes)

  @classmethod
  def trained(
    cls, subjects: int, relations: int, dim: int, width: int | None = None, depth: int = 1,
    **changes: Any,
  ) -> 'Config':  # fmt: skip
    """The experiments' models: RMSNorm, one head of the model's width, F = `width` or 4d, two tokens."""
    block = BlockConfig(1, dim, dim, (4 * dim if width is None else width,))
    options = {'length': 2, 'norm': 'rms', 'answers': subjects, **changes}
    return cls(subjects, relations, dim=dim, blocks=(block,) * depth, **options)
