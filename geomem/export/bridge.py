"""Convert a model to TransformerLens, whose hooks and patching tools then work on it.

TransformerLens (4.3) has one head width and one hidden layer of one width for all blocks. Other models are brought into
that form: narrower or missing heads and hidden layers are padded with zeros; queries are doubled, since TransformerLens
is set to divide scores by 2; an unembedding with a projection is multiplied out to rows of the full width; and a block
with two hidden layers becomes two blocks. The first of these writes the inputs to the ReLU of the second hidden layer
into extra coordinates of the residual stream, which nothing else uses. The second, whose attention is zero, applies the
ReLU and writes what the original block writes. So all products are those of the model, in another order. Only a model
with norms and two hidden layers in a block has no such form: the norms would see the extra coordinates.

Shapes: D residual width, H heads, F hidden units, A answers.
"""

import os
from typing import Any

import numpy as np

from geomem.config import Config
from geomem.errors import InputError
from geomem.export import files
from geomem.facade import FactModel

NORMS = {'none': None, 'rms': 'RMS', 'layer': 'LN'}
SCALE = 2.0  # divides scores: a power of two, so that nothing is rounded; 1 is refused there


def to_transformer_lens(source: str | os.PathLike | FactModel) -> Any:
  """A `TransformerBridge` with the weights of a model, or of one exported to a folder, and the same logits.

  The first D coordinates of its residual stream are those of `model.layout`, and the first units of `mlp.hook_post`
  those of `model.hidden`; block i is still block i as long as no earlier block has two hidden layers.
  """
  try:
    import torch
    from transformer_lens import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources import boot_native
  except ImportError as error:
    raise InputError(
      "TransformerLens 4.3 or later is not installed: pip install 'geomem[interop]'"
    ) from error
  model = source if isinstance(source, FactModel) else files.load(source)
  sizes, arrays = converted(model.config, model.params)
  bridge = boot_native(TransformerBridgeConfig(init_weights=False, **sizes))
  weights = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
  bridge.load_state_dict(weights, strict=True)
  return bridge.eval()


def converted(config: Config, params: dict) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """The fields of a TransformerBridgeConfig, and the arrays for the model that `boot_native` makes from them."""
  extra = [block.hidden[1] if len(block.hidden) == 2 else 0 for block in config.blocks]
  if any(extra) and config.norm != 'none':
    raise InputError(
      f'TransformerLens has one hidden layer per block; two with norm {config.norm!r} cannot be converted'
    )
  blocks = config.blocks
  sizes = {
    'd_model': config.dim + sum(extra), 'n_layers': len(blocks) + sum(map(bool, extra)),
    'n_heads': max(block.heads for block in blocks),
    'd_head': max(max(block.key_dim, block.head_dim) for block in blocks),
    'd_mlp': max(width for block in blocks for width in (*block.hidden, 1)),
    'n_ctx': config.length, 'd_vocab': config.vocabulary, 'd_vocab_out': config.answers,
    'attn_only': not any(block.hidden for block in blocks), 'act_fn': 'relu', 'attn_scale': SCALE,
    'normalization_type': NORMS[config.norm], 'eps': config.norm_eps,
  }  # fmt: skip
  embed, D = params['embed'], config.dim
  arrays = _zeros(sizes)
  arrays['embed.weight'][:, :D] = np.concatenate([embed['subjects'], embed['relations']])
  arrays['pos_embed.weight'][:, :D] = embed['positions']
  arrays['unembed.weight'][:, :D] = _answer_rows(config, params)
  _write_norm(arrays, 'ln_final', params.get('norm_final'))
  layer, first = 0, D
  for i, block in enumerate(blocks):
    prefix, part = f'blocks.{layer}.', params[f'blocks_{i}']
    _write_norm(arrays, f'{prefix}ln1', part.get('norm_attention'))
    _write_norm(arrays, f'{prefix}ln2', part.get('norm_mlp'))
    _write_attention(arrays, f'{prefix}attn.', part['attention'], sizes)
    if len(block.hidden) == 2:
      mlp, middle = part['mlp'], slice(first, first + extra[i])
      one = {'in': mlp['in'], 'in_bias': mlp.get('in_bias', 0)}
      one |= {'out': mlp['middle'], 'out_bias': mlp.get('middle_bias', 0)}
      two = {'in': np.eye(extra[i]), 'out': mlp['out'], 'out_bias': mlp.get('out_bias', 0)}
      _write_mlp(arrays, f'{prefix}mlp.', one, slice(D), middle)
      _write_mlp(arrays, f'blocks.{layer + 1}.mlp.', two, middle, slice(D))
    elif block.hidden:
      _write_mlp(arrays, f'{prefix}mlp.', part['mlp'], slice(D), slice(D))
    layer, first = layer + max(1, len(block.hidden)), first + extra[i]
  return sizes, arrays


def _zeros(sizes: dict[str, Any]) -> dict[str, np.ndarray]:
  """All arrays, set to zero except for the scales of norms, which are one."""
  d, f, heads = sizes['d_model'], sizes['d_mlp'], sizes['n_heads'] * sizes['d_head']
  shapes: dict[str, tuple[int, ...]] = {
    'embed.weight': (sizes['d_vocab'], d), 'pos_embed.weight': (sizes['n_ctx'], d),
    'unembed.weight': (sizes['d_vocab_out'], d), 'unembed.bias': (sizes['d_vocab_out'],),
  }  # fmt: skip
  linear = {f'attn.{name}': (heads, d) for name in 'qkv'} | {'attn.o': (d, heads)}
  if not sizes['attn_only']:
    linear |= {'mlp.in': (f, d), 'mlp.out': (d, f)}
  for i in range(sizes['n_layers']):
    for name, shape in linear.items():
      shapes |= {f'blocks.{i}.{name}.weight': shape, f'blocks.{i}.{name}.bias': shape[:1]}
  arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
  norms = ['ln1'] if sizes['attn_only'] else ['ln1', 'ln2']
  for name in ['ln_final', *(f'blocks.{i}.{n}' for i in range(sizes['n_layers']) for n in norms)]:
    if sizes['normalization_type']:
      arrays[f'{name}.weight'] = np.ones(d, np.float32)
    if sizes['normalization_type'] == 'LN':
      arrays[f'{name}.bias'] = np.zeros(d, np.float32)
  return arrays


def _answer_rows(config: Config, params: dict) -> np.ndarray:
  """The matrix that multiplies the final residual, AxD."""
  if config.tied:
    return np.asarray(params['embed']['subjects'])[: config.answers]
  rows_AxE = np.asarray(params['unembed']['answers'])
  if config.answer_dim is None:
    return rows_AxE
  square_Ax1 = np.sum(rows_AxE**2, axis=1, keepdims=True)
  return (
    rows_AxE / np.sqrt(np.maximum(square_Ax1, 1e-30)) @ np.asarray(params['unembed']['project']).T
  )


def _write_norm(arrays: dict, prefix: str, norm: dict | None) -> None:
  for name, own in {'weight': 'scale', 'bias': 'shift'}.items():
    if norm and own in norm:
      arrays[f'{prefix}.{name}'][:] = norm[own]


def _write_attention(arrays: dict, prefix: str, attention: dict, sizes: dict[str, Any]) -> None:
  """Write attention weights, a head's rows one after another; the query undoes the division of scores."""
  d, width = sizes['d_model'], sizes['d_head']
  for name, own in {'q': 'query', 'k': 'key', 'v': 'value'}.items():
    heads_HxDxK = np.asarray(attention[own])
    H, D, K = heads_HxDxK.shape
    rows = arrays[f'{prefix}{name}.weight'].reshape(-1, width, d)
    rows[:H, :K, :D] = heads_HxDxK.swapaxes(1, 2) * (SCALE if name == 'q' else 1)
  out_HxKxD = np.asarray(attention['output'])
  H, K, D = out_HxKxD.shape
  arrays[f'{prefix}o.weight'].reshape(d, -1, width)[:D, :H, :K] = np.moveaxis(out_HxKxD, 2, 0)


def _write_mlp(arrays: dict, prefix: str, mlp: dict, read: slice, write: slice) -> None:
  """Write a hidden layer that reads coordinates `read` of the residual stream and writes into `write`."""
  F = len(mlp['out'])
  arrays[f'{prefix}in.weight'][:F, read] = np.asarray(mlp['in']).T
  arrays[f'{prefix}in.bias'][:F] = mlp.get('in_bias', 0)
  arrays[f'{prefix}out.weight'][write, :F] = np.asarray(mlp['out']).T
  arrays[f'{prefix}out.bias'][write] = mlp.get('out_bias', 0)
