"""Symmetries keep every logit, against plain NumPy; the truth is carried along, and a wrong truth is caught."""

import dataclasses
import itertools

import numpy as np
import oracle
import pytest
from test_model import CONFIGS, HIDDEN, N, make_config, make_params

import constructions
from experiments.harness import instances
from geomem import queries
from geomem.errors import InputError
from geomem.inside import symmetry, truth
from geomem.inside.truth import Truth


def same_scale(config, params):
  """Makes a final norm's scale constant if the unembedding is tied, which then cannot absorb it."""
  if config.tied and config.norm != 'none':
    params['norm_final']['scale'] = np.full(config.dim, 0.7, np.float32)
  return params


@pytest.mark.parametrize('config', CONFIGS, ids=str)
def test_no_logit_changes(config):
  params = same_scale(config, make_params(config, 1))
  rotated, by = symmetry.rotate(config, params, seed=2)
  tokens = np.array(list(itertools.product(range(N), [N, N + 1], [N + 2, 1])))
  want, got = (oracle.logits(config, p, tokens) for p in (params, rotated))
  assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()
  rotation = by.rotation_DxD
  np.testing.assert_allclose(rotation @ rotation.T, np.eye(config.dim), atol=1e-9)
  embed = rotated['embed']['subjects']
  assert np.abs(embed - params['embed']['subjects']).max() > 0.1
  np.testing.assert_allclose(embed, params['embed']['subjects'] @ rotation, atol=1e-5)
  assert [len(order) for order in by.heads] == [block.heads for block in config.blocks]


@pytest.mark.parametrize('part', ['units', 'heads', 'rotation'])
def test_a_part_left_out_changes_logits(part):
  """The test above would notice one part's symmetry undone on one side: logits then differ."""
  config = make_config('rms', HIDDEN[1], tied=False)
  params = make_params(config, 1)
  rotated, by = symmetry.rotate(config, params, seed=2)
  block = rotated['blocks_0']
  if part == 'units':
    block['mlp']['out'] = block['mlp']['out'][np.argsort(by.units[0][0])]
  elif part == 'heads':
    block['attention']['output'] = block['attention']['output'][::-1]
  else:
    rotated['unembed']['answers'] = params['unembed']['answers']
  tokens = np.array(list(itertools.product(range(N), [N, N + 1])))
  want, got = (oracle.logits(config, p, tokens) for p in (params, rotated))
  assert np.abs(got - want).max() > 1e-2 * np.abs(want).max()


def test_what_cannot_be_rotated_is_refused():
  tied = make_config('rms', (5,), tied=True)
  with pytest.raises(InputError, match="the final norm's scale must be the same"):
    symmetry.rotate(tied, make_params(tied, 0), seed=0)
  layer = make_config('layer', (5,), tied=False)
  params = make_params(layer, 0)
  params['blocks_0']['norm_mlp']['scale'][2] = 0
  with pytest.raises(InputError, match='scale of 0'):
    symmetry.rotate(layer, params, seed=0)


# --- what is known goes along ----------------------------------------------------------------------

SHAPES = {  # every kind: one and two hidden layers, norms, no units, many blocks, thoughts, more stored than asked
  'selector': 1, 'selector_residual': 1, 'selector_literal': 1, 'selector_normed': 1, 'superposition_coded': 1,
  'attention_only': 1, 'factored': 2, 'partly_precomputed': 2, 'chain_of_thought_compact': 2,
}  # fmt: skip
TESTS = truth.unit_specificity, truth.head_specificity, truth.interchange_accuracy


@pytest.fixture(scope='module', params=SHAPES)
def built(request):
  facts = instances.bijections(8, 3, seed=1)
  return constructions.build(request.param, facts, SHAPES[request.param])


def test_the_truth_of_a_construction_and_of_its_disguise(built):
  """Ablation and interchange confirm the truth of a construction and of its disguise, for units and directions."""
  known = truth.of(built)
  hidden, by = symmetry.disguise(built, seed=0)
  moved = known.transformed(by)
  assert truth.evaluate(built) == (1, pytest.approx(built.verify().min_margin, abs=1e-4))
  assert truth.evaluate(hidden) == (1, pytest.approx(truth.evaluate(built)[1], rel=1e-3))
  some = []
  for test in TESTS:
    found = test(built, known)
    assert found == (None if found is None else pytest.approx(1, abs=1e-4))
    assert test(hidden, moved) == (None if found is None else pytest.approx(1, abs=1e-3))
    some += [test] * (found is not None)
  assert some
  # The truth before the disguise no longer holds, and the truth about one relation is not that about another.
  wrong = dataclasses.replace(
    moved, serves_RxF=tuple(tuple(np.roll(s, 1, axis=0) for s in b) for b in moved.serves_RxF)
  )
  for test in set(some) - {truth.head_specificity}:
    planted = wrong if test is truth.unit_specificity else known
    assert test(hidden, planted) < 0.3


def test_the_truth_is_read_back_from_json(built):
  known = truth.of(built)
  again = Truth.from_plain(known.plain(), built.facts.relations)
  assert again.units == known.units and again.heads == known.heads
  for one, other in zip(known.subspaces, again.subspaces, strict=True):
    assert (one.name, one.paths) == (other.name, other.paths)
    np.testing.assert_allclose(one.frame_KxD, other.frame_KxD, atol=1e-6)
  for one, other in zip(sum(known.serves_RxF, ()), sum(again.serves_RxF, ()), strict=True):
    assert np.array_equal(one, other)


def test_subspaces_and_units_are_those_of_the_theorem():
  facts = instances.bijections(8, 3, seed=1)
  selector = truth.of(constructions.build('selector', facts))
  assert [s.paths for s in selector.subspaces] == [((0,),), ((1,),), ((2,),)]
  for r, subspace in enumerate(selector.subspaces):
    projector = subspace.frame_KxD.T @ subspace.frame_KxD
    np.testing.assert_allclose(projector, np.diag(np.arange(9) // 3 == r), atol=1e-6)
  assert np.array_equal(selector.serves_RxF[0][0], np.arange(9) // 3 == np.arange(3)[:, None])
  keyvalue = truth.of(constructions.build('keyvalue', facts, 2))
  assert keyvalue.subspaces[0].paths == () and keyvalue.units[1][0][4] == 'memory[s1, r1]'
  assert np.array_equal(keyvalue.serves_RxF[1][0], np.arange(24) % 3 == np.arange(3)[:, None])
  heads = truth.of(constructions.build('attention_only', facts)).heads[0]
  assert [head.relations for head in heads] == [(0,), (1,), (2,)]
  assert heads[1].key == ('is_subject',) and heads[1].value == ('blocks',)
  tree = truth.of(constructions.build('precomputed', facts, 2)).subspaces
  assert [s.paths for s in tree] == [(tuple(p),) for p in queries.every_path(3, 2).tolist()]
