"""Exported models have the same logits in other people's tools: in TransformerLens and in plain PyTorch.

Needs the extra `interop`; `make interop` runs these tests in an environment of their own.
"""

import functools
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from constructions import registry
from geomem import export, model, queries
from geomem.config import Config
from geomem.facts import Facts
from geomem.training import trained

MISSING = [n for n in ('transformer_lens', 'safetensors') if importlib.util.find_spec(n) is None]
if MISSING:
  pytest.skip(f'{MISSING[0]} is not installed: make interop', allow_module_level=True)
# Both tools emit warnings of their own on import.
pytestmark = pytest.mark.filterwarnings('ignore')

ROOT = Path(__file__).parents[1]
TRAINED = {
  'plain': {}, 'layer norm, tied': {'norm': 'layer', 'tied': True},
  'no norm, no biases': {'norm': 'none', 'bias': False},
  'two blocks, projected': {'depth': 2, 'answer_dim': 6},
}  # fmt: skip


@functools.cache
def built(name, subjects=8):
  """A construction by name, with three hops if it takes several, or a model trained for a moment."""
  if name in TRAINED:
    config = Config.trained(subjects, 2, dim=8, **TRAINED[name])
    return trained.train(config, Facts.bijections(subjects, 2, seed=1), steps=300)
  known = registry.entry(name)
  facts = Facts.disjoint(subjects, 2, 3) if known.own_answers else Facts.bijections(subjects, 2)
  return registry.build(name, facts, 3 if known.multi_hop else 1)


def prompts(known):
  """The tokens of every query with its chain of thought, and the positions at which an answer is due."""
  facts, hops = known.facts, known.hops
  paths = queries.every_path(facts.relations, hops)
  asked = np.repeat(np.arange(facts.subjects), len(paths)), np.tile(paths, (facts.subjects, 1))
  if not known.chain_of_thought:
    return np.array(queries.prompts(facts.subjects, *asked)), [hops]
  due = np.array(known.said)
  tokens = np.array(queries.chains(facts.answers_RxN, *asked))
  return tokens[:, [*range(hops + 1), *(hops + due[:-1])]], [hops + i for i in range(len(due))]


def check_the_same(known, theirs):
  """Checks that all logits of all queries agree up to rounding, and the answers that are due exactly."""
  tokens, due = prompts(known)
  apply = jax.jit(model.apply, static_argnums=0)
  ours = np.array(apply(known.config, jax.tree.map(np.asarray, known.params), tokens))
  theirs = np.array(theirs(tokens))
  assert ours.shape == theirs.shape
  np.testing.assert_allclose(theirs, ours, atol=1e-4, rtol=0)
  np.testing.assert_array_equal(theirs[:, due].argmax(-1), ours[:, due].argmax(-1))


def in_torch(function):
  import torch

  def logits(tokens):
    with torch.no_grad():
      return function(torch.from_numpy(tokens).long()).numpy()

  return logits


@functools.cache
def plain_module():
  spec = importlib.util.spec_from_file_location('torch_model', ROOT / 'docs/torch_model.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize('name', [*registry.REGISTRY, *TRAINED])
def test_all_logits_are_the_same(name, tmp_path):
  known = built(name)
  known.export(tmp_path / 'out')
  bridge = export.to_transformer_lens(tmp_path / 'out')
  check_the_same(known, in_torch(bridge))
  check_the_same(known, in_torch(plain_module().Model(tmp_path / 'out')))


def test_trained_models_had_learned():
  assert all(built(name).accuracy == 1 for name in TRAINED)


@pytest.mark.parametrize('name', ['selector', 'partly_precomputed'])
def test_the_residual_stream_and_the_hidden_units_are_where_the_layout_says(name):
  import torch

  known = built(name)
  trace = known.trace('s3 ' + ' '.join(['r1'] * known.hops))
  _, cache = export.to_transformer_lens(known).run_with_cache(
    torch.tensor(trace.tokens_L[None]).long()
  )
  layer = 0
  for block, seen in zip(known.config.blocks, trace.blocks, strict=True):
    for width, units in zip(block.hidden, seen.hidden, strict=True):
      theirs = cache[f'blocks.{layer}.mlp.hook_post'][0].numpy()
      np.testing.assert_array_equal(theirs[-len(units) :, :width], units)
      assert not theirs[:, width:].any() and units.any()
      layer += 1
    stream = cache[f'blocks.{layer - 1}.hook_resid_post'][0].numpy()
    theirs = stream[-len(seen.written_LxD) :, : known.config.dim]
    np.testing.assert_array_equal(theirs, seen.written_LxD)


def test_a_fault_in_the_folding_is_seen():
  """check_the_same rejects a weight that is off by a little, and scores that are half as large."""
  import torch

  known = built('attention_only')
  bridge = export.to_transformer_lens(known)
  with torch.no_grad():
    bridge.blocks[0].attn.o.weight[0, 0] += 0.01
  with pytest.raises(AssertionError):
    check_the_same(known, in_torch(bridge))
  bridge = export.to_transformer_lens(known := built('plain'))
  with torch.no_grad():
    bridge.blocks[0].attn.q.weight.mul_(0.5)  # as if queries did not compensate for the scale
  with pytest.raises(AssertionError):
    check_the_same(known, in_torch(bridge))


@pytest.mark.parametrize('name', ['selector', 'chain_of_thought', 'few_thoughts'])
def test_the_plain_module_is_asked_by_name(name, tmp_path):
  known = built(name)
  known.export(tmp_path / 'out')
  names = ['s5', 'r1', 'r0', 'r1'][: 1 + known.hops]
  truth = known.ask(' '.join(names)).truth
  assert plain_module().Model(tmp_path / 'out').ask(*names) == truth
  if name == 'few_thoughts':  # as a program, once: loading PyTorch is slow
    command = [sys.executable, ROOT / 'docs/torch_model.py', tmp_path / 'out', *names]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == truth


def test_the_package_safetensors_reads_what_is_written(tmp_path):
  from safetensors.numpy import load_file

  known = built('selector_normed')
  known.export(tmp_path / 'out')
  arrays = load_file(tmp_path / 'out' / 'model.safetensors')
  np.testing.assert_array_equal(arrays['embed.subjects'], known.params['embed']['subjects'])
  assert len(arrays) == len(jax.tree.leaves(known.params))


def test_the_notebook_finds_the_selector(monkeypatch):
  import matplotlib.pyplot as plt

  notebook = json.loads((ROOT / 'notebooks/interop.ipynb').read_text(encoding='utf-8'))
  cells = {c['id']: ''.join(c['source']) for c in notebook['cells'] if c['cell_type'] == 'code'}
  written = [line for line in (cells['patch'] + '\n' + cells['truth']).splitlines() if line.strip()]
  assert len(written) < 30
  monkeypatch.setattr(plt, 'show', lambda: None)
  space = {'__name__': 'notebook'}
  for name, source in cells.items():
    exec(compile(source, name, 'exec'), space)
  plt.close('all')
  assert space['off'] == 0
  np.testing.assert_array_equal(space['found_RxF'], space['truth_RxF'])
  assert space['truth_RxF'].sum(axis=1).tolist() == [6] * 4


def test_the_readme_runs(tmp_path, monkeypatch, capsys):
  blocks = re.findall(
    r'```python\n(.*?)```', (ROOT / 'README.md').read_text(encoding='utf-8'), re.DOTALL
  )
  (example,) = (block for block in blocks if 'to_transformer_lens' in block)
  monkeypatch.chdir(tmp_path)
  exec(compile(example, 'README.md', 'exec'), {})
  said, truth = capsys.readouterr().out.split()[-2:]
  assert said == truth
