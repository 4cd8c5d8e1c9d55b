"""Precision is requested, not inherited: what holds where products round their operands, as on a TPU or a GPU."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from low_precision import GPU, TPU, rounded
from test_constructions import EXACT, MULTI_HOP, asked_of_numpy, build

import constructions
import geomem
from experiments import dimensions
from experiments.harness import fresh_subjects, methods, programs, studies
from experiments.harness.model_kinds import GEOMETRIC_OPTIONS, Kind, sizes
from geomem import model
from geomem.checks import verify
from geomem.config import Config
from geomem.facts import Facts
from geomem.inside import edits, intervene, linear_maps, new_facts, projectors
from geomem.training import alternating, mlp_memory, optimization, sweeps
from geomem.training.recipe import Recipe

RNG = np.random.default_rng(0)
A_4x6, B_6x3, W_4x3 = (
  np.asarray(RNG.standard_normal(shape), np.float32) for shape in ((4, 6), (6, 3), (4, 3))
)


def to_bits(a, bits):
  """Rounds to `bits` bits after the leading one, ties to even, by integer arithmetic in NumPy."""
  dropped = 23 - bits
  whole = np.asarray(a, np.float32).view(np.uint32)
  half = (1 << (dropped - 1)) - 1 + ((whole >> dropped) & 1)
  return ((whole + half.astype(np.uint32)) >> dropped << dropped).view(np.float32)


def with_cotangent(product):
  @jax.custom_vjp
  def call(a, b):
    return product(a, b)

  call.defvjp(
    lambda a, b: (product(a, b), (a, b)),
    lambda kept, c: (product(c, kept[1].T), product(kept[0].T, c)),
  )
  return call


def with_own_tangent(product):
  call = jax.custom_jvp(product)
  call.defjvp(lambda ab, t: (product(*ab), product(t[0], ab[1]) + product(ab[0], t[1])))
  return call


def by_rows(product, a, b):
  return jax.lax.scan(lambda none, row: (none, product(row[None], b)[0]), None, a)[1]


def on_two_devices(product, a, b):
  mesh = jax.make_mesh((2,), ('rows',), axis_types=(jax.sharding.AxisType.Auto,))
  split = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
  return jax.jit(split(product, in_specs=(P('rows'), P()), out_specs=P('rows')))(a, b)


def once(product, a, b):
  zeros = jnp.zeros((len(a), b.shape[1]))
  return jax.lax.while_loop(lambda s: s[0] < 1, lambda s: (s[0] + 1, product(a, b)), (0, zeros))[1]


INSIDE = {
  'nothing': lambda product, a, b: product(a, b),
  'jit': lambda product, a, b: jax.jit(product)(a, b),
  'scan': by_rows,
  'while': once,
  'cond': lambda product, a, b: jax.lax.cond(a[0, 0] < 9, product, lambda a, b: a @ b * 0, a, b),
  'vmap': lambda product, a, b: jax.vmap(lambda row: product(row[None], b)[0])(a),
  'checkpoint': lambda product, a, b: jax.checkpoint(product)(a, b),
  'custom_jvp': lambda product, a, b: with_own_tangent(product)(a, b),
  'custom_vjp': lambda product, a, b: with_cotangent(product)(a, b),
  'platform_dependent': lambda product, a, b: jax.lax.platform_dependent(a, b, default=product),
  'shard_map': on_two_devices,
}  # fmt: skip


@pytest.mark.parametrize('where', INSIDE)
@pytest.mark.parametrize('to, bits', [(TPU, 7), (GPU, 10)], ids=['TPU', 'GPU'])
def test_a_planted_product_is_rounded_and_added_up_in_float32(where, to, bits):
  plain = functools.partial(INSIDE[where], lambda a, b: jnp.matmul(a, b))
  exact = functools.partial(INSIDE[where], lambda a, b: jnp.matmul(a, b, precision='highest'))
  weighed = lambda function: lambda a, b: jnp.sum(W_4x3 * function(a, b))
  slope = lambda function: jax.jit(jax.grad(weighed(function)))(A_4x6, B_6x3)
  before = [np.asarray(function(A_4x6, B_6x3)) for function in (plain, exact)]
  few = functools.partial(to_bits, bits=bits)
  with rounded(to) as found:
    np.testing.assert_allclose(plain(A_4x6, B_6x3), few(A_4x6) @ few(B_6x3), rtol=1e-5)
    if where != 'while':  # which has no reverse-mode gradient
      np.testing.assert_allclose(slope(plain), few(W_4x3) @ few(B_6x3).T, rtol=1e-5)
    assert found and not any(product.asked for product in found)
    assert all('test_precision.py' in product.calls for product in found)
    found.clear()
    left_alone = np.asarray(exact(A_4x6, B_6x3))
    if where == 'cond':
      assert len(found) == 1  # the other branch's
    else:
      assert not found
  assert np.array_equal(left_alone, before[1])
  assert np.abs(before[0] - few(A_4x6) @ few(B_6x3)).max() > 2.0**-bits / 10
  assert np.array_equal(plain(A_4x6, B_6x3), before[0])  # unchanged outside


def test_other_types_are_left_alone_and_a_convolution_is_not():
  whole = jnp.arange(12).reshape(3, 4) + 1000
  half = jnp.asarray(A_4x6, jnp.bfloat16)
  line, kernel = jnp.asarray(A_4x6[0]), jnp.asarray(B_6x3[:2, 0])
  with rounded(TPU) as found:
    assert np.array_equal(whole @ whole.T, np.asarray(whole) @ np.asarray(whole).T)
    jax.block_until_ready(half @ half.T)
    assert not found
    got = jnp.convolve(line, kernel)
    assert len(found) == 1
  few = functools.partial(to_bits, bits=7)
  np.testing.assert_allclose(got, np.convolve(few(line), few(kernel)), rtol=1e-5)


def test_a_precision_whose_rounding_is_not_known_is_refused():
  with rounded(TPU), pytest.raises(NotImplementedError, match='HIGH'):
    jnp.matmul(A_4x6, B_6x3, precision='high')


@pytest.mark.parametrize('name', EXACT)
def test_constructions_are_exact_where_products_are_not(name):
  """With rounded operands the least margin is NumPy's in float64, exactly unless a norm takes a root.

  Only the TPU's rounding is tried; TF32 only has more bits.
  """
  built = build(name, *((7, 3, 2) if name in MULTI_HOP else (7, 3, 1)))
  right, least = asked_of_numpy(built, np.float64)
  with rounded(TPU):
    report, certificate = verify.exhaustive(built), verify.certificate(built)
  assert right == report.correct == certificate.correct == built.queries
  assert report.min_margin == (
    pytest.approx(least, rel=1e-5) if built.config.norm == 'rms' else least
  )
  assert built.margin <= certificate.min_margin <= report.min_margin * (1 + 1e-6)


@pytest.mark.parametrize('name', ['superposition', 'associative_mlp'])
def test_constructions_that_are_not_exact_answer_as_well(name):
  built = constructions.build(name, Facts.bijections(24, 2))
  before = verify.exhaustive(built)
  with rounded(TPU):
    report = verify.exhaustive(built)
  assert report.correct == before.correct
  assert report.min_margin == pytest.approx(before.min_margin, rel=0.05)


KIND = Kind(**sizes(24, 2, 12, 10), **GEOMETRIC_OPTIONS)


@pytest.fixture(scope='module')
def drawn():
  """An untrained model: its config, recipe, parameters and job, and other facts."""
  own, other = Facts.bijections(24, 2), Facts.bijections(24, 2, seed=1)
  task = KIND.task(own, 0)
  params = model.draw(task.config, 0)
  return task.config, KIND.recipe(), params, sweeps.job(task, task.config), other.answers_RxN


def asking(function, *arguments):
  """The products of default precision in a program: those that request it, and those that inherit it."""
  with rounded(TPU) as found:
    jax.jit(function).lower(*arguments)
  return [p.calls for p in found if p.asked], [p.calls for p in found if not p.asked]


@pytest.mark.parametrize('study', ['structure', 'transfer', 'dimensions', 'dynamics'])
def test_no_product_of_a_measurement_inherits_its_precision(study, drawn):
  """Only those that learn embeddings while measuring have default precision; being training, they request it."""
  config, recipe, params, job, other_RxN = drawn
  scores = importlib.import_module(f'experiments.{study}').scores
  first = {'structure': (2,), 'transfer': (2,), 'dimensions': (dimensions.PRESETS['smoke'],)}
  measure = functools.partial(scores, *first.get(study, ()), config, recipe)
  written = () if study == 'dynamics' else (np.zeros((0, config.dim), np.float32),)
  learned, inherited = asking(measure, params, job, other_RxN, *written)
  assert learned and not inherited


@pytest.mark.parametrize('name', ['units', 'subspaces', 'edits', 'solves'])
def test_nor_does_one_of_methods_edits_and_solves(name, drawn):
  config, _, params, job, _ = drawn
  known, key = (params, job.answers_RxN), jax.random.key(0)
  some = edits.draw(key, job.answers_RxN, config.answers, 3)
  maps = np.zeros((2, config.answer_dim or config.dim, config.dim), np.float32)
  moments = np.eye(config.blocks[0].hidden[0], dtype=np.float32)

  def edited(params, answers_RxN):
    nats = jnp.float32(0.1)
    return (
      edits.edit_rows(config, (maps, maps[0, 0]), params, answers_RxN, some),
      edits.edit_mlp(config, moments, 0.1, nats, params, answers_RxN, some),
      edits.fine_tune(config, 1e-3, 2, nats, params, answers_RxN, some, replayed=2),
      edits.second_moments(config, params),
    )

  if name == 'edits':
    _, inherited = asking(edited, *known)
  elif name == 'solves':
    _, inherited = asking(lambda p, j: alternating.solve(config, p, j, 2), params, job)
  else:
    measured = {
      'units': (methods.UNITS, methods.ablation_effect),
      'subspaces': (methods.SUBSPACES, methods.patch_effect),
    }
    own, effect = measured[name]
    config = config.replace(precision='highest')  # as the leaderboard does
    every = lambda p, a: [
      effect(config, p, method(config, p, a, key), a) for method in own.values()
    ]
    _, inherited = asking(every, *known)
  assert not inherited


RECIPES = {
  'default': Recipe(), 'highest': Recipe(precision='highest'),
  'lazy': Recipe(batch=8, passes=True, lazy=True, negatives=4),
}  # fmt: skip


@pytest.mark.parametrize('name', RECIPES)
def test_training_says_what_it_wants(name):
  recipe, config = RECIPES[name], Config.trained(16, 2, dim=8)
  job = sweeps.job(sweeps.Task(config, Facts.bijections(16, 2)), config)
  state = optimization.initial_state(recipe, model.draw(config, 0))
  train = functools.partial(optimization.train_chunk, config, recipe, 1)
  asked, inherited = asking(train, job, state)
  assert not inherited and bool(asked) == (recipe.precision == 'default')
  assert not any('accuracy in ' in calls for calls in asked)


def test_so_does_the_training_of_an_mlp_alone():
  recipe = mlp_memory.MemoryRecipe(dim=4, width=4)
  learn = functools.partial(mlp_memory.learn, recipe)
  asked, inherited = asking(learn, mlp_memory.draw(recipe, 6, 0, 8))
  assert asked and not inherited


def test_a_model_trained_with_rounded_products_knows_its_facts():
  config, facts = Config.trained(16, 2, dim=8), Facts.bijections(16, 2)
  with rounded(TPU):
    trained = geomem.train(config, facts, steps=400)
    assert trained.accuracy >= 0.99
    as_it_runs = trained.verify().accuracy
  assert abs(as_it_runs - trained.accuracy) <= 0.05
  assert abs(trained.verify().accuracy - trained.accuracy) <= 0.05


def scores(config, params, job):
  """The scores and arrays that analyses compute from a model, by name."""
  e_NxD, u_AxD = params['embed']['subjects'], model.apply(config, params, method='unembedding')
  known = e_NxD, u_AxD, job.answers_RxN
  judged = *known, jnp.arange(18), jnp.arange(18, 24)
  maps, targets_NxR = linear_maps.fit_best_maps(*known), job.answers_RxN.T
  frames = projectors.from_maps(maps, *known)
  return {
    'r2': linear_maps.superposition_r2(*judged), 'shared map': linear_maps.shared_map_r2(*judged),
    'others': linear_maps.other_attributes_scores(*judged), 'maps': maps,
    'probe': linear_maps.probe_accuracy(*judged), 'calibrated': linear_maps.calibrate(maps, *known),
    'projected': projectors.project(frames, e_NxD),
    'steered': intervene.steering_vectors(maps[0], u_AxD, targets_NxR, jnp.roll(targets_NxR, 1, 0)),
    'interchanged': projectors.interchange(config, params, frames, e_NxD, job.answers_RxN),
    'residuals': intervene.final_residuals(config, params, e_NxD),
    'new facts': fresh_subjects.zero_shot(config, params, maps, job.answers_RxN),
    'cross-entropy': optimization.cross_entropy(config, KIND.recipe(), job, params),
    'through': new_facts.fit_maps_through_model(config, params, maps, jax.random.key(0), 2, 8),
  }  # fmt: skip


def test_scores_are_to_the_last_bit_what_they_are_on_a_cpu(drawn):
  config, _, params, job, _ = drawn
  measure = jax.jit(functools.partial(scores, config))
  before = jax.device_get(measure(params, job))
  with rounded(TPU):
    after = jax.device_get(measure(params, job))
  jax.tree.map(np.testing.assert_array_equal, after, before)


def test_a_ridge_that_asks_for_nothing_would_be_another():
  x, y = (np.asarray(RNG.standard_normal((40, 6)), np.float32) for _ in range(2))
  unasked = linear_maps.affine.__wrapped__
  with rounded(TPU):
    there, asked = unasked(x, y)[0], linear_maps.affine(x, y)[0]
  assert np.array_equal(asked, linear_maps.affine(x, y)[0])
  assert np.array_equal(asked, unasked(x, y)[0]) and np.abs(there - asked).max() > 1e-4


# The checks of constructions are exact at any precision, training is asked above, and the others compute no product.
ELSEWHERE = {'check_block', 'train_chunks', 'start', 'copy'}


# What these measure is asked above too, or is as in laws, or is a check.
COVERED = {
  'structure',
  'transfer',
  'dimensions',
  'phases',
  'dynamics',
  'optimizers',
  'construct',
  'bounds',
}


@pytest.mark.parametrize('name', [name for name in studies.NAMES if name not in COVERED])
def test_no_measurement_of_a_study_inherits_its_precision(name):
  study = studies.load(name)
  if reason := study.missing():
    pytest.skip(reason)
  with rounded(
    TPU
  ) as products:  # which forgets what has been traced, so that everything is traced once, in here
    found = programs.of_study(study, study.presets['smoke'], jax.devices()[:1], 'tpu')
    products.clear()
    for program, _ in programs.largest([(one, '') for one in found]):
      if not ELSEWHERE & {*program.name.split()}:
        program.function.trace(*program.args, **program.options).lower()
        inherited = {product.calls for product in products if not product.asked}
        assert not inherited, (program.name, inherited)
