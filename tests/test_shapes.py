"""Arrays whose shapes do not fit are refused where they enter: JAX would broadcast them, or read the last row."""

import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors

from geomem import head, model, queries
from geomem.config import Config
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.inside import intervene, linear_maps, new_facts
from geomem.pretrained import decoder
from geomem.pretrained.config import DecoderConfig
from geomem.training import optimization, sweeps
from geomem.training.recipe import Recipe

N, R, D = 6, 2, 4
CONFIG = Config.trained(N, R, D, 8)
DECODER = DecoderConfig(9, 8, D, 2, 1, 1, D, 8, rotary=2)
PARAMS = model.draw(CONFIG, 0)
FACTS = Facts.bijections(N, R)
E, U, G = PARAMS['embed']['subjects'], PARAMS['unembed']['answers'], FACTS.answers_RxN
MAPS = np.zeros((R, D, D), np.float32), np.zeros(D, np.float32)


def said(**changes):
  arrays = {'x_BxD': E, 'u_AxD': U, 'targets_B': G[0], 'weights_B': np.ones(N, np.float32)}
  return head.cross_entropy(**{**arrays, 'in_use_A': np.ones(N, bool), **changes})


def swapped(vectors=(R, N, D), wanted=(N, R)):
  arrays = np.zeros(vectors, np.float32), np.zeros(wanted, np.int32), np.ones(1, np.float32)
  return intervene.swap_effects(CONFIG, PARAMS, E, *map(jnp.asarray, arrays))


def loss(answers_RxN=G, valid=N, params=PARAMS):
  job = sweeps.job(sweeps.Task(CONFIG, FACTS), CONFIG).replace(answers_RxN=answers_RxN)
  return optimization.loss(CONFIG, Recipe(), params, job, None, np.ones(valid, bool))


def stream(x=(3, D), layer=1, add=(1, D), prefix=None):
  params = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), decoder.shapes(DECODER))
  at = np.zeros(1, np.int32)
  patch = decoder.Patch(np.zeros(layer, np.int32), at, np.ones(1), np.zeros(add))
  before = prefix and np.zeros(prefix, np.float32)
  prefix = prefix and decoder.Prefix(before, before, np.int32(0))
  return decoder.residuals(DECODER, params, jnp.zeros(x), patch, prefix=prefix)


def relations(count):
  return np.zeros((N, count), np.int32)


FITTING = {
  'logits': lambda: model.apply(CONFIG, PARAMS, np.array([[0, N]])),
  'cross-entropy': said,
  'superposed': lambda: linear_maps.superpose(MAPS, U, G),
  'probe': lambda: linear_maps.probe_accuracy(E, U, G, np.arange(4), np.arange(4, 6)),
  'swapped': swapped,
  'loss': loss,
  'stream': lambda: stream(prefix=(2, 2, 1, D)),
  'composed': lambda: queries.compose(G, np.zeros(3, np.int32), np.zeros((3, 2), np.int32)),
}
MISFITS = {
  'a prompt that is no batch': lambda: model.apply(CONFIG, PARAMS, np.array([0, N])),
  'one subject, not a list': lambda: model.apply(
    CONFIG, PARAMS, np.int32(0), np.zeros((1, 1), np.int32), method='all_pairs'
  ),
  'embeddings of width 1': lambda: model.apply(
    CONFIG, PARAMS, E[:, :1], np.zeros((1, 1), np.int32), method='from_embeddings'
  ),
  'a path that is no list of paths': lambda: model.apply(
    CONFIG, PARAMS, E, np.zeros(1, np.int32), method='from_embeddings'
  ),
  'fewer targets than rows': lambda: said(targets_B=G[0, :3]),
  'one weight for all rows': lambda: said(weights_B=np.ones(1, np.float32)),
  'one switch for all answers': lambda: said(in_use_A=np.ones(1, bool)),
  'rows of another width': lambda: said(x_BxD=E[:, :2]),
  'targets that are no row of numbers': lambda: head.right(E, U, G[0][:, None]),
  'a table of fewer subjects': lambda: linear_maps.fit_maps(E, U, G[:, :4]),
  'a table of more subjects': lambda: linear_maps.probe_accuracy(
    E[:4], U, G, np.arange(3), np.arange(3)
  ),
  'indices past the end': lambda: linear_maps.superposition_r2(
    E[:4], U, G, np.arange(3), np.arange(3, 6)
  ),
  'maps of other relations': lambda: linear_maps.superpose(
    (MAPS[0].reshape(2 * R, D // 2, D), MAPS[1]), U, G
  ),
  'one guess for all': lambda: linear_maps.r2(E, E[:1], E[0]),
  'a table of fewer relations': lambda: new_facts.learn_embeddings(
    CONFIG, Recipe(), PARAMS, None, G[:1]
  ),
  'one column of targets': lambda: intervene.accuracy(CONFIG, PARAMS, E, relations(1)),
  'one column of targets, patched': lambda: intervene.patched_accuracy(
    CONFIG, PARAMS, E, relations(1), np.zeros((R, D), np.float32), 1
  ),
  'one column of targets, ablated': lambda: intervene.ablated_accuracy(
    CONFIG, PARAMS, E, relations(1), np.zeros(8, np.int32)
  ),
  'one addition for all relations': lambda: intervene.final_residuals(
    CONFIG, PARAMS, E, np.zeros((1, D), np.float32)
  ),
  'one switch for all units': lambda: intervene.ablate_units(PARAMS, np.ones(1, bool)),
  'vectors of fewer relations': lambda: swapped(vectors=(1, N, D)),
  'one column of wishes': lambda: swapped(wanted=(N, 1)),
  'wishes of other subjects': lambda: intervene.steering_vectors(MAPS[0], U, G.T, G.T[:1]),
  'units without relations': lambda: intervene.unit_selectivity(E),
  'rows of other subjects': lambda: intervene.map_blocks(
    jnp.add, jnp.asarray(E), jnp.asarray(E[:3])
  ),
  'facts of fewer subjects': lambda: loss(G[:, :4]),
  'facts of fewer relations': lambda: loss(G[:1]),
  'one mark for all subjects': lambda: loss(valid=1),
  'parameters of a smaller model': lambda: sweeps.parameters(
    sweeps.Task(CONFIG, FACTS, params=model.draw(Config.trained(N, R, 2, 8), 0)), CONFIG
  ),
  'a stream of width 1': lambda: stream(x=(3, 1)),
  'an addition of width 1': lambda: stream(add=(1, 1)),
  'layers without a position': lambda: stream(layer=2),
  'a prefix at fewer layers': lambda: stream(prefix=(1, 2, 1, D)),
  'tokens that are a batch': lambda: decoder.embed(
    DECODER, {'embed': {'tokens': np.zeros((9, D))}}, np.zeros((1, 3), np.int32)
  ),
  'one path for all subjects': lambda: queries.compose(
    G, np.zeros(3, np.int32), np.zeros((1, 2), np.int32)
  ),
}


@pytest.mark.parametrize('name', FITTING)
def test_what_fits_is_taken(name):
  jax.eval_shape(FITTING[name])


@pytest.mark.parametrize('name', MISFITS)
def test_what_does_not_fit_is_refused(name):
  with pytest.raises(AssertionError, match=r'\[Chex\]'):
    MISFITS[name]()


def test_a_refusal_names_the_shapes():
  with pytest.raises(AssertionError, match=r'\(6, 1\).*\(6, 2\)'):
    intervene.accuracy(CONFIG, PARAMS, E, relations(1))


@pytest.mark.parametrize(
  'changes,says',
  [
    ({'answers_RxN': G.astype(np.float32)}, 'whole numbers'),
    ({'subject_names': ('a', 'b')}, '2 subject names for 6 subjects'),
    ({'relation_names': ('a', 'b', 'c')}, '3 relation names for 2 relations'),
    ({'attribute_names': ()}, '0 attribute names for 6 attributes'),
  ],
)
def test_facts_that_do_not_fit_are_bad_input(changes, says):
  with pytest.raises(InputError, match=says):
    Facts(**{'answers_RxN': G, 'attributes': N, **changes})


def test_parameters_that_are_not_the_models_are_named():
  with pytest.raises(InputError, match=r'^unembed/answers is of shape \(5, 4\), .* \(6, 4\)'):
    model.apply(CONFIG, {**PARAMS, 'unembed': {'answers': U[:5]}}, [[0, N]])
  with pytest.raises(errors.ScopeParamNotFoundError, match='answers'):
    model.apply(CONFIG, {**PARAMS, 'unembed': {}}, [[0, N]])


def test_tests_run_under_the_strictest_settings():
  assert jax.device_count() > 1
  for other in (jnp.ones(3), jnp.ones((2, 3), int)):
    with pytest.raises(ValueError, match='promotion'):
      jnp.ones((2, 3)) + other
  with pytest.raises(UserWarning):
    warnings.warn('an error', stacklevel=1)


def test_so_do_the_processes_that_they_start():
  code = """
import jax.numpy as jnp
for other in (jnp.ones(3), jnp.ones((2, 3), int)):
  try:
    jnp.ones((2, 3)) + other
  except ValueError as error:
    print('promotion' in str(error))
"""
  ended = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
  assert ended.stdout == 'True\nTrue\n', ended.stderr
