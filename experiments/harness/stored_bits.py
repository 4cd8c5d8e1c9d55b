"""Models of several sizes trained on all facts: their accuracy, and how many bits of the facts each comes to hold.

There is no search for the smallest model: every model counts, with as much as it knows.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from experiments.harness.trainer import Trainer
from geomem import model
from geomem.checks import rounding
from geomem.config import Config
from geomem.training import optimization, sweeps
from geomem.training.recipe import Recipe
from geomem.training.sweeps import Task

# Sizes as multiples of d₅₀, the d at which half of the facts are known, which a trial estimated.
FACTORS = 0.4, 0.6, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0
MAX_SUBJECTS_ROUNDED = 2**14
STABLE_DIM = 8
PRESERVED = 0.99  # of what a model holds, when its weights are rounded


def dims(middle: float, count: int) -> list[int]:
  """`count` sizes around `middle`, all different."""
  factors = np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(FACTORS)), FACTORS)
  found: list[int] = []
  for d in np.round(middle * factors).astype(int):
    found.append(max(int(d), found[-1] + 1 if found else 1))
  return found


def guess(subjects: int, relations: int) -> float:
  """An estimate of d₅₀ at F = 4d: it was 3.9, 5.7 and 9.3 where R·log₂N is 24, 48 and 96."""
  return 2 + relations * math.log2(subjects) / 13


def learning_rate(rate: float, dim: int) -> float:
  """The given rate up to d = 8, and beyond in proportion to 1/d.

  In trials (seeds below 100) the same rate at every d left wide models untrained: at d = 34 (N = 256, R = 12), with .06
  they learned .16 and .08 of the facts, with .03 all of them.
  """
  return rate * min(1.0, STABLE_DIM / dim)


def measure(
  trainer: Trainer, recipe: Recipe, tasks: Sequence[Task], about: dict, learn: Callable | None = None
) -> list[dict]:  # fmt: skip
  """One record per model, with what all are `about`. Rounding weights takes a dozen evaluations, so large models skip it.

  `learn(config, recipe, params, job)`: the parameters found in another way than by the steps of the recipe alone.
  """
  config = sweeps.common_config([task.config for task in tasks])
  whole = config.subjects <= MAX_SUBJECTS_ROUNDED
  scores = functools.partial(_scores, config, recipe, whole, learn)
  found = trainer.train_and_evaluate(recipe, tasks, scores, trained=learn is None)
  return [
    {
      'seed': task.seed, 'dim': task.config.dim, 'width': task.config.blocks[0].hidden[0], 'steps': recipe.steps,
      'measurement': 'bits of facts per parameter', 'control': None, 'subjects': task.config.subjects,
      'relations': task.config.relations, **about,
      **_capacity(recipe, task.config, {name: float(of_model[i]) for name, of_model in found.items()}),
    } for i, task in enumerate(tasks)
  ]  # fmt: skip


def _scores(config: Config, recipe: Recipe, rounds: bool, learn: Callable | None, params: dict, job) -> dict:  # fmt: skip
  """Cross-entropy of the last answer; accuracy, also of every step by itself; and the fewest bits per weight that keep them."""
  if learn:
    params = learn(config, recipe, params, job)
  nats, last = optimization.cross_entropy(config, recipe, job, params)
  chained = recipe.chain_of_thought and recipe.loss != 'answer'
  score = functools.partial(optimization.accuracy, config, recipe, job)
  whole = score(params) if chained else last
  step = score(params, per_step=True) if chained else last

  def kept(own):
    if chained:
      return score(own) / jnp.maximum(whole, 1e-9)
    nothing = jnp.log(job.attributes.astype(jnp.float32))
    own_nats, _ = optimization.cross_entropy(config, recipe, job, own)
    return (nothing - own_nats) / jnp.maximum(nothing - nats, 1e-9)

  bits = rounding.bits_needed(kept, params, PRESERVED) if rounds else jnp.float32(jnp.nan)
  return {'nats': nats, 'accuracy': whole, 'each_step': step, 'bits_per_weight': bits}


def _capacity(recipe: Recipe, config: Config, found: dict[str, float]) -> dict[str, float]:
  """Accuracy, and the bits of the facts: in total, per trained parameter, and per bit of those parameters."""
  parameters = trained_parameters(recipe, config)
  queries = config.subjects * config.relations**recipe.hops
  bits = max(0.0, queries * (math.log2(config.answers) - found['nats'] / math.log(2)))
  return {
    'accuracy': found['accuracy'], 'each_step': found['each_step'], 'bits': bits, 'parameters': parameters,
    'value': bits / parameters, 'bits_per_weight': found['bits_per_weight'],
    'bits_per_weight_bit': bits / parameters / found['bits_per_weight'],
  }  # fmt: skip


def trained_parameters(recipe: Recipe, config: Config) -> int:
  trained, _ = optimization.split(recipe, model.shapes(config))
  return sum(math.prod(weight.shape) for weight in trained.values())
