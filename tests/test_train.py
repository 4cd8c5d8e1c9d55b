"""Training: the step against plain autodiff and optax, what is frozen, what stops it, and what it learns."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from geomem import model, queries
from geomem.checks import verify
from geomem.config import BlockConfig, Config
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.training import optimization, sweeps
from geomem.training.recipe import Recipe


def config(n=7, r=3, d=6, f=10, **changes):
  blocks = (BlockConfig(2, 3, 4, (f,)),)
  return Config(n, r, n, 2, d, blocks, norm='rms').replace(**changes)


def task(c, **options):
  facts = Facts.bijections(c.subjects, c.relations)
  return sweeps.Task(c, facts, **options)


def plain_step(c, facts, params, moments, rate, decay):
  """One step of full-batch AdamW through every logit, by optax alone."""
  subjects, relations = np.meshgrid(np.arange(c.subjects), np.arange(c.relations), indexing='ij')
  tokens = np.stack([subjects.ravel(), c.subjects + relations.ravel()], 1)
  answers = facts.answers_RxN[relations.ravel(), subjects.ravel()]

  def loss(params):
    logits = model.apply(c, params, tokens, last=1)[:, 0]
    return optax.softmax_cross_entropy_with_integer_labels(logits, answers).mean()

  value, slopes = jax.value_and_grad(loss)(params)
  with jax.numpy_dtype_promotion('standard'):
    updates, moments = adamw(rate, decay).update(slopes, moments, params)
  return optax.apply_updates(params, updates), moments, value


def adamw(rate, decay):
  matrices = lambda params: jax.tree.map(lambda w: w.ndim > 1, params)
  return optax.adamw(rate, weight_decay=decay, mask=matrices)


@pytest.mark.parametrize(
  'changes',
  [{}, {'norm': 'layer'}, {'norm': 'none', 'bias': False}, {'tied': True}, {'answer_dim': 3}],
)
def test_a_step_is_adamw_on_the_plain_loss(changes):
  c = config(**changes)
  t = task(c, learning_rate=0.02, weight_decay=0.3)
  recipe = Recipe(steps=10, warmup=3)
  job, state = sweeps.job(t, c), optimization.initial_state(recipe, model.draw(c, 0))
  params = jax.tree.map(jnp.asarray, model.draw(c, 0))
  moments = adamw(0.1, 0.3).init(params)
  step = jax.jit(functools.partial(optimization.step, c, recipe, job))
  plain = jax.jit(functools.partial(plain_step, c, t.facts))
  for count in range(4):
    rate = 0.02 * float(optimization.schedule(recipe, count))
    params, moments, value = plain(params, moments, rate, 0.3)
    state = step(state)
    np.testing.assert_allclose(state.loss, value, rtol=1e-5)
  for got, want in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_schedule_warms_up_and_ends_at_zero():
  recipe = Recipe(steps=100, warmup=10)
  rates = np.array([optimization.schedule(recipe, s) for s in range(101)])
  assert (
    rates[0] == pytest.approx(1 / 11)
    and rates[10] == 1
    and rates[100] == pytest.approx(0, abs=1e-6)
  )
  assert np.all(np.diff(rates[:11]) > 0) and np.all(np.diff(rates[10:]) < 0)


@pytest.mark.parametrize('frozen', [('unembed',), ('embed/subjects', 'blocks_0/mlp')])
def test_what_is_frozen_does_not_move(frozen):
  c, recipe = config(), Recipe(steps=5, warmup=0, target=None, frozen=frozen)
  before = model.draw(c, 0)
  after = optimization.train_chunk(
    c, recipe, 5, sweeps.job(task(c), c), optimization.initial_state(recipe, before)
  ).params
  for path, old in jax.tree_util.tree_leaves_with_path(before):
    new = after
    for key in path:
      new = new[key.key]
    name = '/'.join(key.key for key in path)
    assert np.array_equal(old, new) == any((name + '/').startswith(f + '/') for f in frozen), name


@pytest.mark.accelerator
def test_learning_solves_and_then_stops():
  c = config(n=16, r=2, d=8, f=32)
  recipe = Recipe(steps=2000, check=20)
  t = task(c, weight_decay=0.0)
  run = jax.jit(functools.partial(optimization.train_chunk, c, recipe, 2000, sweeps.job(t, c)))
  state = run(optimization.initial_state(recipe, model.draw(c, 1)))
  assert state.status == optimization.SOLVED and 20 <= state.step < 2000 and state.step % 20 == 0
  assert verify.accuracy(c, state.params, t.facts).accuracy == state.accuracy >= 0.99
  again = run(state)
  assert all(map(np.array_equal, jax.tree.leaves(state), jax.tree.leaves(again)))


def test_stretches_add_up_to_one():
  c = config()
  recipe = Recipe(steps=30, check=10, target=1.0, batch=4)
  job, first = sweeps.job(task(c), c), optimization.initial_state(recipe, model.draw(c, 0))
  run = jax.jit(functools.partial(optimization.train_chunk, c, recipe))
  go = lambda steps, state: run(np.int32(steps), job, state)
  whole, parts = go(30, first), go(16, go(11, go(3, first)))
  assert whole.step == parts.step == 30
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
    np.testing.assert_array_equal(a, b)


def test_without_evaluation_the_parameters_are_the_same_and_the_accuracy_is_not_known():
  c, recipe = config(), Recipe(steps=6, target=None, batch=4, passes=True, lazy=True)
  job, first = sweeps.job(task(c), c), optimization.initial_state(recipe, model.draw(c, 0))
  run = lambda recipe: optimization.train_chunk(c, recipe, 6, job, first)
  known, unknown = run(recipe), run(dataclasses.replace(recipe, evaluate=False))
  assert np.isnan(unknown.accuracy) and unknown.status == known.status == optimization.RUNNING
  jax.tree.map(np.testing.assert_array_equal, unknown.params, known.params)


def test_divergence_is_marked():
  c, recipe = config(norm='none'), Recipe(steps=50, warmup=0, target=None)
  job = sweeps.job(task(c, learning_rate=1e30), c)
  state = optimization.train_chunk(
    c, recipe, 50, job, optimization.initial_state(recipe, model.draw(c, 0))
  )
  assert state.status == optimization.DIVERGED and state.step < 10
  recipe = Recipe(steps=1, warmup=0, target=None)  # its loss is that before the step
  state = optimization.train_chunk(
    c, recipe, 1, job, optimization.initial_state(recipe, model.draw(c, 0))
  )
  assert state.status == optimization.DIVERGED and state.accuracy == 0


@pytest.mark.parametrize(
  ('hops', 'cot', 'loss'),
  [
    (2, False, 'answer'),
    (2, True, 'answer'),
    (2, True, 'chain'),
    (2, True, 'every'),
    (1, False, 'every'),
  ],
)
def test_every_loss_is_the_mean_over_the_tokens_it_asks_for(hops, cot, loss):
  n, r = 5, 2
  recipe = Recipe(hops=hops, chain_of_thought=cot, loss=loss)
  c = config(n=n, r=r, length=recipe.length(), answers=n + r if loss == 'every' else n)
  t = sweeps.Task(c, Facts.bijections(n, r))
  job, params, everyone = sweeps.job(t, c), model.draw(c, 0), jnp.arange(n)
  params['embed']['subjects'] *= 3  # or all answers are alike
  got = jax.jit(functools.partial(optimization.loss, c, recipe))(
    params, job, everyone, everyone < n
  )
  logits = jax.jit(functools.partial(model.apply, c))
  terms, last_right = [], []
  for s in range(n):
    for path in queries.every_path(r, hops):
      steps = queries.walk(t.facts.answers_RxN, s, path)
      prompt = [s, *(n + path).tolist()]
      whole = prompt + (steps if cot else steps[-1:])
      log = np.asarray(jax.nn.log_softmax(logits(params, np.array([whole[:-1]]))[0]))
      last = {'answer': 1, 'chain': hops, 'every': len(whole) - 1}[loss]
      terms += [-float(log[i - 1, whole[i]]) for i in range(len(whole) - last, len(whole))]
      last_right.append(log[-1].argmax() == whole[-1])
  assert float(got) == pytest.approx(np.mean(terms), rel=1e-5)
  right = verify.accuracy(c, params, t.facts, hops, chain_of_thought=cot).accuracy
  if cot and loss == 'answer':  # no other token is trained
    right = np.mean(last_right)
  assert optimization.accuracy(c, recipe, job, params) == pytest.approx(right) and right > 0


def test_accuracy_is_looked_at_block_by_block_however_many_paths_there_are():
  recipe, (n, r) = Recipe(hops=2), (40, 40)
  c = config(n=n, r=r, length=3, blocks=(BlockConfig(2, 3, 4, (64,)),) * 2)
  t = task(c)
  params = jax.tree.map(np.asarray, model.draw(c, 0))
  params['embed']['subjects'] *= 3  # or all answers are alike
  look = jax.jit(functools.partial(optimization.accuracy, c, recipe))
  job = sweeps.job(t, c)
  assert look.lower(job, params).compile().memory_analysis().temp_size_in_bytes < 10 * 2**20
  right = verify.accuracy(c, params, t.facts, 2).accuracy
  assert right > 0 and look(job, params) == pytest.approx(right)


def test_accuracy_among_more_queries_than_an_integer_counts():
  c, recipe = config(), Recipe()
  params, job = model.draw(c, 0), sweeps.job(task(c), c)
  more = job.replace(subjects=np.int32(2**30))  # times 3 relations
  right, among_more = (optimization.accuracy(c, recipe, j, params) for j in (job, more))
  assert among_more == pytest.approx(right * 7 / 2**30) and right > 0


def test_shorter_chains_are_trained_alike():
  c = config(length=6)
  recipe = Recipe(hops=3, chain_of_thought=True, loss='chain', warmup=0)
  job, params, everyone = sweeps.job(task(c), c), model.draw(c, 0), jnp.arange(7)
  all_of_them = dataclasses.replace(recipe, shorter=True)
  state = jax.jit(functools.partial(optimization.step, c, all_of_them, job))(
    optimization.initial_state(recipe, params)
  )
  of = lambda k: functools.partial(optimization.loss, c, dataclasses.replace(recipe, hops=k))
  each = [jax.jit(of(k))(params, job, everyone, everyone < 7) for k in (1, 2, 3)]
  assert float(state.loss) == pytest.approx(np.mean(each), rel=1e-5)


@pytest.mark.parametrize(
  ('options', 'told'),
  [
    ({'steps': 0}, 'steps is 0'), ({'batch': 0}, 'batch is 0'), ({'loss': 'none'}, 'must be one of'),
    ({'loss': 'chain'}, 'chain_of_thought'), ({'target': 0}, r'\(0, 1\]'), ({'hops': 0}, 'hops is 0'),
    ({'evaluate': False}, 'needs target=None'),
  ],
)  # fmt: skip
def test_recipes_that_make_no_sense_are_refused(options, told):
  with pytest.raises(InputError, match=told):
    Recipe(**options)


def test_what_is_not_there_cannot_be_frozen():
  with pytest.raises(InputError, match='frozen names'):
    sweeps.set_up(Recipe(frozen=('unembedding',)), [task(config())])


def test_the_lr_multiplier_applies_to_the_embeddings_of_subjects_alone():
  c = config()
  t = task(c, learning_rate=0.02, weight_decay=0.3)
  moved = {}
  for multiplier in (1.0, 4.0):
    recipe = Recipe(steps=10, warmup=0, embedding_lr_multiplier=multiplier)
    params = model.draw(c, 0)
    step = jax.jit(functools.partial(optimization.step, c, recipe))
    state = step(sweeps.job(t, c), optimization.initial_state(recipe, params))
    moved[multiplier] = jax.tree.map(lambda new, old: np.asarray(new - old), state.params, params)
  faster, slower = moved[4.0]['embed'].pop('subjects'), moved[1.0]['embed'].pop('subjects')
  np.testing.assert_allclose(faster, 4 * slower, atol=1e-6)
  for got, want in zip(jax.tree.leaves(moved[4.0]), jax.tree.leaves(moved[1.0]), strict=True):
    np.testing.assert_array_equal(got, want)


def test_the_decay_multiplier_applies_to_the_decay_of_the_embeddings_of_subjects_alone():
  c = config()
  t = task(c, learning_rate=0.02, weight_decay=0.3)
  params = model.draw(c, 0)

  def change(decay):
    recipe = Recipe(warmup=0, embedding_lr_multiplier=4.0, embedding_decay_multiplier=decay)
    run = jax.jit(functools.partial(optimization.step, c, recipe))
    new = run(sweeps.job(t, c), optimization.initial_state(recipe, params)).params
    return jax.tree.map(lambda new, old: np.asarray(new - old), new, params)

  plain, equal, none, thrice = map(change, (None, 4.0, 0.0, 3.0))
  chex.assert_trees_all_equal(plain, equal)  # to the last bit
  shrunk = 0.02 * 0.3 * params['embed']['subjects']
  got = [changes['embed'].pop('subjects') for changes in (plain, none, thrice)]
  np.testing.assert_allclose(got[1] - got[0], 4 * shrunk, atol=1e-6)
  np.testing.assert_allclose(got[1] - got[2], 3 * shrunk, atol=1e-6)
  chex.assert_trees_all_equal(plain, none, thrice)


def test_noise_is_as_large_as_asked_new_at_every_step_and_leaves_padding_alone():
  c = config(n=60, d=40)
  t = task(c)
  wide = c.replace(subjects=64, dim=48)
  job = sweeps.job(t, wide)
  e_NxD = jnp.asarray(sweeps.pad(model.draw(c, 0), wide)['embed']['subjects'])
  drawn = [
    np.asarray(optimization._noise(Recipe(noise=0.5), job, e_NxD, jax.random.key(s)))
    for s in (0, 1)
  ]
  spread = np.sqrt(np.mean(np.asarray(e_NxD)[:60, :40] ** 2))
  for noise_NxD in drawn:
    assert not noise_NxD[60:].any() and not noise_NxD[:, 40:].any()
    assert np.std(noise_NxD[:60, :40]) == pytest.approx(0.5 * spread, rel=0.05)
  assert abs(np.corrcoef(drawn[0][:60, :40].ravel(), drawn[1][:60, :40].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize('name', ['noise', 'embedding_lr_multiplier', 'embedding_decay_multiplier'])
def test_noise_and_multipliers_below_zero_are_refused(name):
  with pytest.raises(InputError, match=f'{name} is -1'):
    Recipe(**{name: -1})


@pytest.mark.parametrize('smoothing', [-0.1, 1.0, float('nan')])
def test_labels_that_say_nothing_are_refused(smoothing):
  with pytest.raises(InputError, match='label_smoothing is'):
    Recipe(label_smoothing=smoothing)
