"""Training that updates only the rows that it reads, against dense AdamW, NumPy and the plain formula."""

import dataclasses
import functools

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geomem import Config, Facts, head
from geomem.errors import InputError
from geomem.saved import runs
from geomem.training import optimization, sharded, sparse_updates, sweeps
from geomem.training.recipe import Recipe
from geomem.training.sweeps import Task

N, R, D = 24, 2, 6
CONFIG, FACTS = Config.trained(N, R, dim=D), Facts.bijections(N, R)
TASK = Task(CONFIG, FACTS, seed=1)
DENSE = Recipe(steps=40, batch=N, passes=True, target=None, warmup=4)
BETAS = 0.9, 0.999, 1e-8
lazily = functools.partial(dataclasses.replace, DENSE, lazy=True)


def train(recipe, tasks=(TASK,), steps=1000, **options):
  sweep, states = sweeps.set_up(recipe, tasks, **options)
  for sweep, states in sweeps.fit(sweep, states, steps):  # noqa: B020
    pass
  return [sweep.state_of(states, i) for i in range(len(tasks))]


def test_taken_up_from_a_checkpoint_it_ends_in_the_same_bits(tmp_path):
  """The checkpoint holds the rows' clocks, moments and confusers; the step gives the position in the pass."""
  recipe = lazily(batch=8, negatives=6)
  sweep, states = sweeps.set_up(recipe, [TASK])
  half = sweeps.advance(sweep, states, 17)
  with runs.Run(tmp_path, {}) as run:
    run.save(1, {'states': flax.serialization.to_state_dict(jax.device_get(half))})
  with runs.Run(tmp_path, {}) as run:
    restored, arrays = run.restore()
  taken_up = flax.serialization.from_state_dict(half, arrays['states'])
  taken_up = jax.tree.map(lambda a, like: jax.device_put(a, like.sharding), taken_up, half)
  ends = [sweeps.advance(sweep, own, 100) for own in (states, half, taken_up)]
  assert restored == 1 and int(ends[0].step[0]) == recipe.steps
  for other in ends[1:]:
    jax.tree.map(np.testing.assert_array_equal, other, ends[0])


@pytest.mark.parametrize('count', [1, 2, 3, 24, 64, 1000, 65537])
def test_a_pass_takes_every_subject_once(count):
  keys = jax.random.bits(jax.random.key(count), (2, sparse_updates.ROUNDS))
  one, other = (
    np.asarray(sparse_updates.shuffled(k, jnp.int32(count), jnp.arange(count))) for k in keys
  )
  np.testing.assert_array_equal(np.sort(one), np.arange(count))
  if count > 24:
    assert np.mean(one == other) < 0.1
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 4 / np.sqrt(count)


def test_batches_of_a_pass_hold_everyone_and_of_two_passes_in_another_order():
  key, batch = jax.random.key(3), 7
  read = lambda step: sparse_updates.in_passes(key, jnp.int32(step), jnp.int32(N), batch)
  some = [np.asarray(own)[np.asarray(valid)] for own, valid in map(read, range(8))]
  one, other = np.concatenate(some[:4]), np.concatenate(some[4:])
  assert sorted(one) == sorted(other) == list(range(N))
  assert list(one) != list(other)


def test_where_every_step_reads_every_row_it_is_adamw():
  dense, *others = (train(r)[0] for r in (DENSE, lazily(), lazily(negatives=20 * N)))
  for other in others:  # 20·N random answers are all of them
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), dense.params, other.params
    )
    assert other.loss == pytest.approx(dense.loss, rel=1e-5)


def test_rows_that_are_read_rarely_learn_as_fast_as_by_dense_adamw():
  """Each row is read every sixteenth step; at the same rate without the longer steps, the loss is several times as large."""
  n, seeds = 256, (1, 2, 3)
  tasks = [
    Task(Config.trained(n, R, dim=6), Facts.bijections(n, R, s), weight_decay=0.03, seed=s)
    for s in seeds
  ]
  dense = Recipe(steps=960, batch=16, passes=True, target=None, warmup=20)
  loss = jax.jit(optimization.cross_entropy, static_argnums=(0, 1))
  losses = lambda recipe: [float(loss(t.config, recipe, sweeps.job(t, t.config), state.params)[0])
                           for t, state in zip(tasks, train(recipe, tasks), strict=True)]  # fmt: skip
  own, rarely = (np.mean(losses(dataclasses.replace(dense, lazy=lazy))) for lazy in (False, True))
  assert 0.6 < rarely / own < 1.6 and own < 0.5 * np.log(n)


def test_rows_that_are_not_read_wait_and_then_decay_as_if_they_had_not():
  rng, rates = np.random.default_rng(0), 0.01 * (1 + np.cos(np.linspace(0, np.pi, 500)))
  start = rng.standard_normal((4, 3)).astype(np.float32)
  table, rows = jnp.asarray(start), sparse_updates.Rows.of(jnp.asarray(start))
  index, none = jnp.array([1, 4]), jnp.zeros((2, 3))  # 4: past the end

  @jax.jit
  def step(table, rows, decay):
    values = sparse_updates.read(table, rows, index)
    return sparse_updates.write(table, rows, index, values, none, jnp.float32(0), decay, BETAS)

  for decay in rates.astype(np.float32):
    table, rows = step(table, rows, decay)
  np.testing.assert_array_equal(np.delete(table, 1, axis=0), np.delete(start, 1, axis=0))
  settled, _ = sparse_updates.apply_decay(table, rows)
  np.testing.assert_allclose(settled, start * np.prod(1 - rates), rtol=1e-5)
  np.testing.assert_array_equal(np.asarray(rows.read_N), [0, 500, 0, 0])


def test_a_row_has_the_moments_of_the_steps_in_which_it_was_read():
  """A row is updated as by AdamW in NumPy with a clock of its own, while other rows are read in between."""
  rng = np.random.default_rng(1)
  table = jnp.asarray(rng.standard_normal((3, 2)), jnp.float32)
  rows, w, mu, nu = (
    sparse_updates.Rows.of(table),
    np.array(table[0], float),
    np.zeros(2),
    np.zeros(2),
  )
  count, rate, decay = 0, 0.05, 0.02
  for step in range(30):
    index = jnp.array([0 if step % 3 == 0 else 1])
    grads = rng.standard_normal((1, 2)).astype(np.float32)
    about = jnp.asarray(grads), jnp.float32(rate), jnp.float32(decay), BETAS
    table, rows = sparse_updates.write(
      table, rows, index, sparse_updates.read(table, rows, index), *about
    )
    if step % 3 == 0:
      count, mu, nu = count + 1, 0.9 * mu + 0.1 * grads[0], 0.999 * nu + 0.001 * grads[0] ** 2
      update = (mu / (1 - 0.9**count)) / (np.sqrt(nu / (1 - 0.999**count)) + 1e-8)
      w = w - rate * update - decay * w
    else:
      w = w * (1 - decay)
  np.testing.assert_allclose(sparse_updates.apply_decay(table, rows)[0][0], w, rtol=1e-4)


def test_candidates_are_each_once_with_every_target():
  targets, confusers = (
    jnp.array([5, 2, 5, 9]),
    jnp.array([sparse_updates.NONE, 7, 2, sparse_updates.NONE]),
  )
  found, at = sparse_updates.candidates(jax.random.key(0), targets, confusers, 3, jnp.int32(12), 20)
  real = np.asarray(found)[np.asarray(found) < 20]
  assert len(set(real)) == len(real) and {2, 5, 7, 9} <= set(real) and max(real) < 12
  np.testing.assert_array_equal(found[at], targets)
  assert np.all(np.diff(found) >= 0)


def test_the_rival_is_the_best_of_the_other_answers():
  rng = np.random.default_rng(2)
  x, u = (rng.standard_normal((n, 4)).astype(np.float32) for n in (70, 33))
  targets, in_use = rng.integers(0, 30, 70), np.arange(33) < 30
  ask = lambda x: head.cross_entropy(x, u, targets, None, jnp.asarray(in_use), 16, runner_ups=True)
  (loss, runner_ups), grads = jax.value_and_grad(ask, has_aux=True)(jnp.asarray(x))
  logits = np.where(in_use, x @ u.T, -np.inf)
  logits[np.arange(70), targets] = -np.inf
  np.testing.assert_array_equal(runner_ups, logits.argmax(axis=1))
  plain = lambda x: head.cross_entropy(x, u, targets, None, jnp.asarray(in_use), 16)[0]
  np.testing.assert_array_equal(grads, jax.grad(plain)(jnp.asarray(x)))
  assert loss == plain(jnp.asarray(x)) and np.array_equal(ask(jnp.asarray(x))[1], runner_ups)


def test_a_step_over_some_answers_is_one_of_the_plain_formula_over_these():
  """In a step only the rows that it reads move, and the loss is the plain formula over the candidates."""
  recipe = lazily(batch=5, negatives=3, steps=2, warmup=0)
  sweep, states = sweeps.set_up(recipe, [TASK])
  before = sweep.state_of(states, 0)
  job, step = (
    sweeps.job(TASK, CONFIG),
    jax.jit(functools.partial(optimization.step, CONFIG, recipe)),
  )
  after = jax.device_get(step(job, before))
  key = jax.random.fold_in(jax.random.key(TASK.seed), 2**31)
  subjects = np.asarray(sparse_updates.in_passes(key, jnp.int32(0), jnp.int32(N), 5)[0])
  targets = FACTS.answers_RxN[:, subjects].T.reshape(-1)
  drawn = jax.random.randint(jax.random.fold_in(jax.random.key(TASK.seed), 0), (3,), 0, N)
  asked = sorted({*targets.tolist(), *np.asarray(drawn).tolist()})
  old, new = (s.params['unembed']['answers'] for s in (before, after))
  assert sorted(np.flatnonzero(np.any(old != new, axis=1))) == asked
  old, new = (s.params['embed']['subjects'] for s in (before, after))
  assert sorted(np.flatnonzero(np.any(old != new, axis=1))) == sorted(subjects)
  tokens = np.array([(s, N + r) for s in subjects for r in range(R)])
  logits = np.asarray(optimization.model.apply(CONFIG, before.params, tokens))[:, -1][:, asked]
  own = logits[np.arange(len(targets)), [asked.index(t) for t in targets]]
  expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - own)
  assert after.loss == pytest.approx(expected, rel=1e-5)
  logits[np.arange(len(targets)), [asked.index(t) for t in targets]] = -np.inf
  runner_ups = np.array(asked)[logits.argmax(axis=1)].reshape(-1, R)
  np.testing.assert_array_equal(after.opt_state.confusers_CxN[:, subjects].T, runner_ups)
  others = np.delete(after.opt_state.confusers_CxN, subjects, axis=1)
  assert (others == sparse_updates.NONE).all()


RECIPE = lazily(batch=7, negatives=5, steps=30)
SMALLER = Task(Config.trained(17, R, dim=4), Facts.bijections(17, R), seed=2)


def test_chunks_padding_and_devices_change_nothing():
  tasks = TASK, SMALLER, dataclasses.replace(TASK, seed=5)
  whole = train(RECIPE, tasks)
  cut = train(RECIPE, tasks, steps=7)
  jax.tree.map(np.testing.assert_array_equal, whole, cut)
  [alone] = train(RECIPE, [SMALLER], devices=jax.devices()[:1])
  for a, b in zip(jax.tree.leaves(whole[1].params), jax.tree.leaves(alone.params), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_it_learns_and_is_evaluated_over_all_answers():
  recipe = lazily(batch=8, negatives=4, steps=1500, warmup=50)
  state = train(recipe, [dataclasses.replace(TASK, weight_decay=0.01)])[0]
  assert state.accuracy == 1
  job = sweeps.job(TASK, CONFIG)
  nats, accuracy = optimization.cross_entropy(CONFIG, recipe, job, state.params)
  assert accuracy == 1
  tokens = np.array([(s, N + r) for r in range(R) for s in range(N)])
  logits = np.asarray(optimization.model.apply(CONFIG, state.params, tokens))[:, -1].astype(float)
  own = logits[np.arange(N * R), FACTS.answers_RxN.reshape(-1)]
  assert nats == pytest.approx(np.mean(np.log(np.exp(logits).sum(axis=1)) - own), rel=1e-4)


@pytest.mark.parametrize(
  ('changes', 'why'),
  [
    ({'batch': None}, 'set batch'),
    ({'passes': False}, 'passes=True'),
    ({'loss': 'every'}, "loss='answer'"),
    ({'noise': 0.1}, 'neither noise'),
    ({'lazy': False, 'negatives': 3}, 'negatives need lazy'),
    ({'negatives': -1}, 'at least 0'),
  ],
)
def test_what_cannot_be_is_refused(changes, why):
  with pytest.raises(InputError, match=why):
    dataclasses.replace(lazily(), **changes)


def test_models_that_cannot_be_trained_lazily_are_refused():
  tied = dataclasses.replace(TASK, config=CONFIG.replace(tied=True))
  fixed = dataclasses.replace(RECIPE, frozen=('embed',))
  for recipe, task in ((RECIPE, tied), (fixed, TASK)):
    with pytest.raises(InputError, match='lazy training needs'):
      sweeps.set_up(recipe, [task])
  with pytest.raises(InputError, match='whole on a device'):
    sharded.set_up(RECIPE, TASK)
