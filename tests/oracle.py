"""A second implementation of the model in plain NumPy, position by position and head by head: slow and obvious."""

import math

import numpy as np


def softmax(x):
  e = np.exp(x - x.max(axis=0))
  return e / e.sum(axis=0)


def normalize(config, part, x):
  if config.norm == 'none':
    return x
  if config.norm == 'layer':
    x = x - x.mean(axis=-1, keepdims=True)
  x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + config.norm_eps) * part['scale']
  return x + part['shift'] if config.norm == 'layer' else x


def mlp(part, x):
  names = [name for name in ('in', 'middle', 'out') if name in part]
  for name in names:
    x = x @ part[name] + part.get(f'{name}_bias', 0)
    if name != 'out':
      x = np.maximum(x, 0)
  return x


def logits(config, params, tokens, kind=np.float64):
  """Logits at every position of one sequence (LxA) or of a batch of equal length (BxLxA)."""
  params = cast(params, kind)
  embed, n = params['embed'], config.subjects
  words = np.concatenate([embed['subjects'][:n], embed['relations']])
  xs = [words[t] + embed['positions'][p] for p, t in enumerate(np.moveaxis(tokens, -1, 0))]
  for i, block in enumerate(config.blocks):
    part = params[f'blocks_{i}']
    attention = part['attention']
    normed = [normalize(config, part.get('norm_attention'), x) for x in xs]
    out = []
    for p in range(len(xs)):
      x = xs[p]
      for h in range(block.heads):
        q = normed[p] @ attention['query'][h]
        keys = [normed[j] @ attention['key'][h] for j in range(p + 1)]
        weights = softmax(np.stack([(q * key).sum(axis=-1, keepdims=True) for key in keys]))
        value = sum(w * (normed[j] @ attention['value'][h]) for j, w in enumerate(weights))
        x = x + value @ attention['output'][h]
      if block.hidden:
        x = x + mlp(part['mlp'], normalize(config, part.get('norm_mlp'), x))
      out.append(x)
    xs = out
  rows = embed['subjects'][: config.answers] if config.tied else params['unembed']['answers']
  last = [normalize(config, params.get('norm_final'), x) for x in xs]
  if config.answer_dim:
    rows = np.stack([row / math.sqrt(row @ row) for row in rows])
    last = [x @ params['unembed']['project'] for x in last]
  return np.stack([x @ rows.T for x in last], axis=-2)


def cast(tree, kind):
  return {k: cast(v, kind) if isinstance(v, dict) else np.asarray(v, kind) for k, v in tree.items()}


def answers(facts, subject, path):
  """The answer of every hop, looked up in the table of facts."""
  steps = []
  for r in path:
    subject = int(facts.answers_RxN[r, subject])
    steps.append(subject)
  return steps
