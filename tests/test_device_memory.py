"""What does not fit in a device's memory is refused before it starts, with the largest size that does.

CPUs do not say how much memory they have, so the limits here are planted.
"""

import logging
import math
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train
from experiments.harness import cli, machine, trainer
from geomem.config import Config
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.training import device_memory, sharded, sweeps
from geomem.training.device_memory import Refused
from geomem.training.recipe import Recipe

CONFIG, FACTS = Config.trained(4, 1, dim=2, width=2), Facts.bijections(4, 1)
TASKS = [sweeps.Task(CONFIG, FACTS, seed=seed) for seed in range(4)]
RECIPE = Recipe(steps=2, target=None)
MORE_THAN_ENOUGH = 2**40


def sweep(memory, batch=None, count=4, devices=None):
  recipe = Recipe(steps=2, target=None, batch=batch)
  return sweeps.set_up(recipe, TASKS[:count], devices, memory=memory)


def alone(memory, batch=2):
  return sweep(memory, batch, 1, jax.devices()[:1])


def over_all(memory, batch=4):
  return sharded.set_up(Recipe(steps=2, target=None, batch=batch), TASKS[0], memory=memory)


def needed(set_up, *sizes):
  """The bytes of a device that it needs; no program needs none."""
  with pytest.MonkeyPatch.context() as patch, pytest.raises(Refused) as told:
    patch.setattr(device_memory, 'with_largest', lambda error, *_: (_ for _ in ()).throw(error))
    set_up(0, *sizes)
  return told.value.needed


@pytest.mark.parametrize(
  ('set_up', 'unit'),
  [(sweep, 'models per device'), (alone, 'subjects per step'),
   (over_all, 'subjects per step and device')],
)  # fmt: skip
def test_the_largest_that_fits_is_named(set_up, unit):
  limit = needed(set_up) - 1
  with pytest.raises(InputError, match='training needs .* that a device has; the most') as told:
    set_up(limit)
  fits = int(re.search(f'the most {unit} that fit: ([0-9]+)$', str(told.value))[1])
  if set_up is sweep:
    assert fits == 1
    own, _ = sweep(limit, count=len(jax.devices()))
    assert own.row_count == own.mesh.size
  elif fits:
    own, _ = set_up(limit, fits * (len(jax.devices()) if set_up is over_all else 1))
    assert own.recipe.batch


@pytest.mark.parametrize('set_up', [sweep, over_all])
def test_nothing_is_compiled_twice(set_up, caplog):
  """The program that is compiled for the check is the one that trains."""
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    own, states = set_up(MORE_THAN_ENOUGH, 6)
    checked = [one for one in caplog.messages if re.match(r'Compiling \S*_train_chunk', one)]
    sweeps.advance(own, states, 1)
  trained = [one for one in caplog.messages if re.match(r'Compiling \S*_train_chunk', one)]
  assert len(checked) == len(trained) == 1


def many_numbers(params, job):
  """An evaluation that takes a megabyte for every model."""
  return jax.random.normal(jax.random.key(job.seed), (2**18,))


@pytest.mark.parametrize('evaluate', ['train_and_evaluate', 'evaluate_at'])
def test_an_evaluation_that_does_not_fit_is_refused_before_the_training(
  tmp_path, monkeypatch, evaluate
):
  monkeypatch.setattr(machine, 'memory', lambda: 2**19)
  monkeypatch.setattr(sweeps.Sweep, 'train', lambda *_: pytest.fail('it trains'))
  run = trainer.training('study', tmp_path, {}, 30, False)
  stops = [(2,)] if evaluate == 'evaluate_at' else []
  text = r'the evaluation after training needs .* that a device has; the most models per device that fit: 0'
  with pytest.raises(InputError, match=text), run as own:
    getattr(own, evaluate)(*stops, RECIPE, TASKS, many_numbers)


def test_an_evaluation_is_compiled_once(caplog):
  (own, states), evaluated = sweep(None), lambda params, job: many_numbers(params, job)
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    sweeps.check_evaluation(own, states, evaluated, memory=MORE_THAN_ENOUGH)
    sweeps.evaluate(own, states, evaluated)
  assert len([one for one in caplog.messages if re.match(r'Compiling \S*_map_models', one)]) == 1


def test_the_binary_refuses_in_one_line_before_it_starts(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(machine, 'memory', lambda: 2048)
  flags = '--subjects=4', '--relations=1', '--dim=2', '--width=2', '--steps=2', '--seeds=4'
  with pytest.raises(SystemExit) as stop:
    cli.run(train.main, train.Options, ['train', *flags, f'--workdir={tmp_path / "run"}'])
  (line,) = capsys.readouterr().err.splitlines()
  assert stop.value.code == 2 and not (tmp_path / 'run').exists()
  assert re.fullmatch(
    r'error: training needs .* of the 2 KiB that a device has; the most models per device that fit: [01]',
    line,
  )


def test_a_study_is_refused_too(tmp_path, monkeypatch):
  monkeypatch.setattr(machine, 'memory', lambda: 2048)
  run = trainer.training('study', tmp_path, {}, 30, False)
  with pytest.raises(InputError, match='that a device has'), run as own:
    own.train_and_evaluate(RECIPE, TASKS, lambda params, job: jnp.zeros(()))


def test_the_memory_of_devices_is_what_the_smallest_of_them_has(monkeypatch):
  assert machine.memory() is None  # CPUs do not tell
  of = lambda *limits: [SimpleNamespace(memory_stats=lambda a=a: a) for a in limits]
  devices = of({'bytes_limit': 3}, {'bytes_limit': 2})
  monkeypatch.setattr(jax, 'local_devices', lambda: devices)
  assert machine.memory() == 2
  devices += of(None)
  assert machine.memory() is None


@pytest.mark.accelerator
@pytest.mark.skipif(
  jax.default_backend() == 'cpu', reason='a CPU does not say how much memory it has'
)
def test_a_device_tells_its_memory_and_what_exceeds_it_is_refused():
  most = machine.memory()
  assert most > 2**30
  n = most // 2**8  # whose embeddings alone, of 64 numbers each, take as much
  task = sweeps.Task(Config.trained(n, 1, dim=64), Facts(np.broadcast_to(np.int32(0), (1, n)), n))
  with pytest.raises(InputError, match='that a device has'):
    sweeps.set_up(Recipe(steps=2, target=None, batch=4), [task], memory=most)


@pytest.mark.parametrize('fixed', [0, 300, 1001])
@pytest.mark.parametrize('each', [0.1, 7, 800])
def test_the_search_ends_within_a_tenth(fixed, each):
  """Of programs that need a fixed number of bytes and some more for each unit of size."""
  tried = []

  def attempt(size):
    tried.append(size)
    if (bytes_ := fixed + each * size) > 1000:
      raise Refused('too large', bytes_, 1000)

  size = 10**5
  with pytest.raises(Refused) as told:
    attempt(size)
  fits = device_memory.fitting(attempt, size, told.value)
  most = max(0, math.floor((1000 - fixed) / each))
  assert fits <= most <= 1.1 * fits + 1 and len(tried) < 20


def test_sizes_are_read_of_what_the_compiler_says():
  for text in (
    'Ran out of memory on HBM, the total memory required for HLO temporaries (8.00T) exceeds available HBM (15.75G).',
    'Ran out of memory in memory space hbm. Used 8.00T of 15.75G hbm. Exceeded hbm capacity by 7.98T.',
  ):
    assert device_memory.sizes(text) == (2**43, 15.75 * 2**30)
  assert device_memory.in_words(15.75 * 2**30) == '15.8 GiB'


def test_a_sweep_of_several_sizes_is_planned_at_the_largest(monkeypatch):
  """Fewer models are not planned at the sizes of the first few."""
  large = sweeps.Task(Config.trained(4, 1, dim=16, width=16), FACTS)
  limits = []
  for tasks in ([*TASKS, large], [large, *TASKS]):
    asked = {}
    monkeypatch.setattr(
      device_memory, 'check',
      lambda plan, smaller, size, unit, memory, own=asked: own.update(config=smaller(1).config, rows=smaller(2).row_count),
    )  # fmt: skip
    sweeps.set_up(RECIPE, tasks, memory=MORE_THAN_ENOUGH)
    limits.append((asked['config'].dim, asked['rows']))
  assert limits == [(16, 2 * len(jax.devices()))] * 2


def test_an_error_that_names_no_sizes_stays_what_it_is():
  class Lowered:
    def compile(self):
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: trying to allocate 17179869184 bytes')

  with pytest.raises(jax.errors.JaxRuntimeError, match='17179869184'):
    device_memory.compiled(Lowered(), 100)
  assert device_memory.sizes('needs 24.00GiB of 16.00GiB') == (24 * 2**30, 16 * 2**30)
