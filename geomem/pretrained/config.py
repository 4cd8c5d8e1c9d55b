"""The sizes and switches in which one pretrained decoder differs from another."""

import dataclasses

from geomem.errors import InputError

ACTIVATIONS = ('silu', 'gelu', 'gelu_tanh')
MAX_SIZE = 2**20  # limit of a size; 64 times that for the vocabulary and the length


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """A decoder of the Llama, GPT-2 or GPT-NeoX family.

  `rotary`: the number of coordinates of a head that RoPE rotates; 0 means learned position embeddings.
  `parallel`: attention and MLP read the same residual stream. `gated`: the MLP has a gate (SwiGLU).
  """

  vocabulary: int
  length: int
  dim: int
  depth: int
  heads: int
  kv_heads: int
  head_dim: int
  hidden: int
  norm: str = 'rms'
  norm_eps: float = 1e-5
  activation: str = 'silu'
  gated: bool = True
  rotary: int = 0
  rotary_base: float = 10000.0
  parallel: bool = False
  attention_bias: bool = False
  mlp_bias: bool = False
  tied: bool = True

  def __post_init__(self) -> None:
    sizes = ('vocabulary', 'length', 'dim', 'depth', 'heads', 'kv_heads', 'head_dim', 'hidden')
    for name in sizes:
      size, most = getattr(self, name), MAX_SIZE * (64 if name in ('vocabulary', 'length') else 1)
      if type(size) is not int or not 1 <= size <= most:
        raise InputError(f'{name} of the model is {size!r}; it must be a whole number, 1 … {most}')
    if self.heads % self.kv_heads:
      raise InputError(f'{self.heads} heads cannot share {self.kv_heads} key-value heads evenly')
    if type(self.rotary) is not int or self.rotary % 2 or not 0 <= self.rotary <= self.head_dim:
      raise InputError(f'{self.rotary!r} rotary coordinates; need an even number ≤ {self.head_dim}')
    if self.norm not in ('rms', 'layer') or self.activation not in ACTIVATIONS:
      raise InputError(f'norm {self.norm!r} or activation {self.activation!r} is not supported')
    for name in ('norm_eps', 'rotary_base'):
      value = getattr(self, name)
      if type(value) not in (int, float) or not 0 < value < 1e12:
        raise InputError(f'{name} of the model is {value!r}; it must be a positive number')
