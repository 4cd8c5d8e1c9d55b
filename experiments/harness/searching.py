"""The smallest models that learn: which model a case is at a size, and the search over all cases.

`measure(cases, setting, trainer.train, **about)` gives the finished record of every `Case`, and one of kind 'probe' for
every size tried; `rounded(found, setting, trainer)` adds the bits that the weights need. And the largest MLP memory,
which is no transformer.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from geomem import model
from geomem.checks import accounting, lower_bounds, rounding
from geomem.config import Config
from geomem.facts import Facts
from geomem.training import batched, bisection, mlp_memory, optimization
from geomem.training.recipe import Recipe

ROUNDS = 4  # that a search takes, about


@dataclasses.dataclass(frozen=True)
class Case:
  """One search: what is found (dim, dim_at_width, width or subjects), for which N (0 where N is found), R and seed."""

  find: str
  subjects: int
  relations: int
  seed: int


@dataclasses.dataclass(frozen=True)
class Setting:
  """What is the same for all cases; `dim` and `width` where they are not looked for; `rates`: learning rates with
  weight decays, of which the best counts.

  `guess`: where a search for d begins, if it is known better; sizes closer than `resolution`, a fraction of d,
  are not told apart.
  """

  recipe: Recipe
  rates: tuple[tuple[float, float], ...]
  dim: int = 0
  width: int = 0
  depth: int = 1
  guess: int | None = None
  resolution: float = 0.0


def configured(case: Case, size: int, setting: Setting) -> Config:
  """The model of a case at a size."""
  n = size if case.find == 'subjects' else case.subjects
  d = size if case.find.startswith('dim') else setting.dim
  f = {'width': size, 'dim_at_width': setting.width}.get(case.find, 4 * d)
  return Config.trained(n, case.relations, d, f, setting.depth, length=setting.recipe.length())


def looked_for(case: Case, setting: Setting) -> bisection.Range:
  """From where to where, and where first: near four and a half bits of facts per coordinate."""
  if case.find == 'subjects':
    guess = round(2 ** min(14.0, 3 * setting.dim / case.relations))
    return bisection.Range(2, 2**16, max(2, guess), larger_is_easier=False, resolution=0.02)
  if case.find == 'width':
    return bisection.Range(1, 4096, 2 * setting.dim)
  bits = case.relations * math.log2(case.subjects)
  first = setting.guess or math.ceil(bits / 4.5)
  return bisection.Range(1, 16 * math.ceil(bits), first, resolution=setting.resolution)


def attempts(cases: list[tuple[Case, int]], setting: Setting) -> list[batched.Task]:
  """A model a case, size and pair of rates."""
  tasks = []
  for case, size in cases:
    config = configured(case, size, setting)
    facts = Facts.bijections(config.subjects, config.relations, case.seed)
    tasks += [batched.Task(config, facts, *rates, case.seed) for rates in setting.rates]
  return tasks


def measure(
  cases: list[Case], setting: Setting, train: Callable, **about: Any
) -> tuple[dict[Case, dict], list[dict]]:
  """The record of every case, which says what it is `about` too, and those of the probes; `train` trains tasks as
  `scheduling.train_tasks` does."""
  probes, accuracy = [], {}

  def attempt(asked):
    groups = np.repeat(np.arange(len(asked)), len(setting.rates))
    found = train(setting.recipe, attempts(asked, setting), groups, rounds=ROUNDS)
    found = {name: values.reshape(len(asked), -1) for name, values in found.items()}
    passed = (found['status'] == optimization.SOLVED).any(axis=1)
    for i, best in enumerate(np.argmax(found['accuracy'], axis=1)):
      accuracy[asked[i]] = float(found['accuracy'][i, best])
      probes.append({
        'kind': 'probe', **dataclasses.asdict(asked[i][0]), 'size': asked[i][1], 'passed': bool(passed[i]),
        'accuracy': accuracy[asked[i]], 'learning_rate': setting.rates[best][0],
        'weight_decay': setting.rates[best][1], 'step': int(found['step'][i, best]),
      })  # fmt: skip
    return passed

  found = bisection.search({case: looked_for(case, setting) for case in cases}, attempt)
  reached = lambda case: accuracy.get((case, found[case].found))
  return {
    case: {**record(case, found[case], setting, reached(case)), **about} for case in cases
  }, probes


def rounded(found: dict[Case, dict], setting: Setting, trainer) -> dict[Case, dict]:
  """The records with the `bits` per weight that the target needs, and the accuracy, of models of the sizes found,
  if any, trained anew and to the end, at the learning rate that leaves the fewest bits."""
  found = {case: own | {'bits': None} for case, own in found.items()}
  sizes = [(case, own['value']) for case, own in found.items() if own['value'] is not None]
  if not sizes:
    return found
  tasks = attempts(sizes, setting)
  recipe = dataclasses.replace(setting.recipe, target=None)  # rounding wants more than just enough
  config = batched.common_config([task.config for task in tasks])

  def scores(params, job):
    right = functools.partial(optimization.accuracy, config, recipe, job)
    bits = rounding.bits_needed(right, params, setting.recipe.target or 1.0)
    return {'accuracy': right(params), 'bits': bits}

  seen = trainer.train_and_evaluate(recipe, tasks, scores)
  seen = {name: values.reshape(len(sizes), -1) for name, values in seen.items()}
  best = np.argmin(seen['bits'], axis=1)
  return found | {
    case: found[case] | {name: float(values[i, best[i]]) for name, values in seen.items()}
    for i, (case, _) in enumerate(sizes)
  }


def record(case: Case, border: bisection.Bisection, setting: Setting, accuracy) -> dict:
  """What was found, how many parameters it trains, and the bits of facts that a model of this accuracy holds for each.

  `floor`: nothing harder failed, so it is no threshold.
  """
  about = {**dataclasses.asdict(case), 'value': border.found, 'floor': None}
  if border.found is None:
    return about | dict.fromkeys(('accuracy', 'dim', 'width', 'parameters', 'bits_per_parameter'))
  config = configured(case, border.found, setting)
  n, r = config.subjects, config.relations
  bits = accounting.recovered_bits(r * lower_bounds.log2_factorial(n), accuracy, n * r, n)
  trained, _ = optimization.split(setting.recipe, model.shapes(config))
  parameters = sum(math.prod(weight.shape) for weight in trained.values())
  return about | {
    'subjects': n, 'floor': border.failed is None, 'accuracy': accuracy, 'dim': config.dim,
    'width': config.blocks[0].hidden[0], 'parameters': parameters, 'bits_per_parameter': bits / parameters,
  }  # fmt: skip


def largest_memory(
  recipe: mlp_memory.Recipe, seeds: Iterable[int], best: Callable
) -> dict[Any, bisection.Bisection]:
  """The largest N of each seed's MLP memory; `best(recipe, sizes, seeds)`: the best accuracy of those of a round.

  From d to F·d facts, the middle first, to one part in a hundred, which is where its authors searched.
  """
  least, most = recipe.dim, recipe.dim * recipe.width
  span = bisection.Range(least, most, (least + most) // 2, False, resolution=0.01)

  def attempt(asked):
    seeds, sizes = zip(*asked, strict=True)
    return [accuracy >= recipe.target for accuracy in best(recipe, sizes, seeds)]

  return bisection.search({seed: span for seed in seeds}, attempt)
