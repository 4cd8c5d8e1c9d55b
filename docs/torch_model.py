"""A model exported by geomem, in plain PyTorch: reads the folder with `safetensors` and without geomem.

python docs/torch_model.py FOLDER s17 r2
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
  """x ← x + attention(norm x); x ← x + MLP(norm x); logits are the rows of the unembedding times norm x."""

  def __init__(self, folder: str):
    super().__init__()
    self.about = json.loads(Path(folder, 'config.json').read_text(encoding='utf-8'))
    self.config = self.about['architecture']
    weights = load_file(Path(folder, 'model.safetensors'))
    self.weights = nn.ParameterDict({name.replace('.', '/'): w for name, w in weights.items()})

  def forward(self, tokens: torch.Tensor) -> torch.Tensor:
    """From tokens (batch × length; subjects first, then relations) to logits (batch × length × answers)."""
    w = self.weights
    x = torch.cat([w['embed/subjects'], w['embed/relations']])[tokens]
    x = x + w['embed/positions'][: tokens.shape[1]]
    for i, block in enumerate(self.config['blocks']):
      x = x + self.attention(f'blocks_{i}/attention/', self.norm(f'blocks_{i}/norm_attention/', x))
      if block['hidden']:
        x = x + self.mlp(f'blocks_{i}/mlp/', self.norm(f'blocks_{i}/norm_mlp/', x))
    x = self.norm('norm_final/', x)
    if self.config['tied']:
      return x @ w['embed/subjects'][: self.config['answers']].T
    if self.config['answer_dim'] is None:
      return x @ w['unembed/answers'].T
    return x @ w['unembed/project'] @ F.normalize(w['unembed/answers'], dim=1, eps=1e-15).T

  def norm(self, at: str, x: torch.Tensor) -> torch.Tensor:
    if self.config['norm'] == 'none':
      return x
    if self.config['norm'] == 'layer':
      x = x - x.mean(-1, keepdim=True)
    x = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.config['norm_eps'])
    x = x * self.weights[at + 'scale']
    return x + self.weights[at + 'shift'] if self.config['norm'] == 'layer' else x

  def attention(self, at: str, x: torch.Tensor) -> torch.Tensor:
    """Causal attention with unscaled scores q · k."""
    into = lambda name: torch.einsum('bld,hdk->bhlk', x, self.weights[at + name])
    scores = into('query') @ into('key').transpose(2, 3)
    later = torch.ones(scores.shape[2:], dtype=torch.bool).triu(1)
    weights = scores.masked_fill(later, -torch.inf).softmax(-1)
    return torch.einsum('bhlk,hkd->bld', weights @ into('value'), self.weights[at + 'output'])

  def mlp(self, at: str, x: torch.Tensor) -> torch.Tensor:
    for name in ('in', 'middle', 'out'):
      if at + name in self.weights:
        x = x @ self.weights[at + name] + self.weights.get(f'{at}{name}_bias', 0)
        x = x if name == 'out' else x.relu()
    return x

  @torch.no_grad()
  def ask(self, *names: str) -> str:
    """The answer to a subject and its relations, all by name; with chain of thought, the last token emitted."""
    tokens = [self.about['tokens'].index(name) for name in names]
    thoughts = self.about['hops'] - 1 if self.about['thoughts'] is None else self.about['thoughts']
    for _ in range(1 + (thoughts if self.about['chain_of_thought'] else 0)):
      tokens.append(int(self(torch.tensor([tokens]))[0, -1].argmax()))
    return self.about['answers'][tokens[-1]]


if __name__ == '__main__':
  print(Model(sys.argv[1]).ask(*sys.argv[2:]))
