"""The smallest models that learn: which model a case is at a size, and the search over all cases."""

import dataclasses
import functools
import math

import jax
import numpy as np

from geomem import model
from geomem.checks import lower_bounds, rounding
from geomem.config import Config
from geomem.facts import Facts
from geomem.training import batched, bisection, optimization
from geomem.training.bisection import Range
from geomem.training.optimization import Recipe

ROUNDS = 4  # that a search takes, about
FINDS = ('dim', 'dim_at_width', 'width', 'subjects')


@dataclasses.dataclass(frozen=True)
class Case:
  """One search: what is found, for which N (0 where N is found), R and seed."""

  find: str
  subjects: int
  relations: int
  seed: int


@dataclasses.dataclass(frozen=True)
class Setting:
  """What is the same for all cases; `rates`: learning rates with weight decays, of which the best counts.

  `length`: tokens that a model has positions for, if more than it is trained on. `guess`: where a search
  for d begins, if it is known better; sizes closer than `resolution`, a share of d, are not told apart.
  """

  recipe: Recipe
  dim: int
  width: int
  rates: tuple[tuple[float, float], ...]
  depth: int = 1
  length: int | None = None
  guess: int | None = None
  resolution: float = 0.0


def configured(case: Case, size: int, setting: Setting) -> Config:
  """The model of a case at a size."""
  n = size if case.find == 'subjects' else case.subjects
  d = size if case.find.startswith('dim') else setting.dim
  f = {'width': size, 'dim_at_width': setting.width}.get(case.find, 4 * d)
  length = setting.length or setting.recipe.length()
  return Config.trained(n, case.relations, d, f, setting.depth, length=length)


def looked_for(case: Case, setting: Setting) -> Range:
  """From where to where, and where first: near four and a half bits of facts per coordinate."""
  if case.find == 'subjects':
    guess = round(2 ** min(14.0, 3 * setting.dim / case.relations))
    return Range(2, 2**16, max(2, guess), larger_is_easier=False, resolution=0.02)
  if case.find == 'width':
    return Range(1, 4096, 2 * setting.dim)
  bits = case.relations * math.log2(case.subjects)
  first = setting.guess or math.ceil(bits / 4.5)
  return Range(1, 16 * math.ceil(bits), first, resolution=setting.resolution)


def attempts(cases: list[tuple[Case, int]], setting: Setting) -> list[batched.Task]:
  """A model a case, size and pair of rates."""
  tasks = []
  for case, size in cases:
    config = configured(case, size, setting)
    table = Facts.bijections(config.subjects, config.relations, case.seed)
    tasks += [batched.Task(config, table, *rates, case.seed) for rates in setting.rates]
  return tasks


def measure(cases: list[Case], setting: Setting, train_all) -> list[dict]:
  """A record a case, and one a probe; `train_all` trains tasks and says how they ended."""
  probes, rates = [], len(setting.rates)

  def attempt(asked):
    rivals = np.repeat(np.arange(len(asked)), rates)
    found = train_all(setting.recipe, attempts(asked, setting), rivals, rounds=ROUNDS)
    accuracies = found['accuracy'].reshape(len(asked), rates)
    passed = (found['status'].reshape(len(asked), rates) == optimization.SOLVED).any(axis=1)
    steps = found['step'].reshape(len(asked), rates)
    for (case, size), values, ok, step in zip(asked, accuracies, passed, steps, strict=True):
      best = int(np.argmax(values))
      probes.append({
        'kind': 'probe', **dataclasses.asdict(case), 'size': size, 'passed': bool(ok),
        'accuracy': float(values[best]), 'learning_rate': setting.rates[best][0],
        'weight_decay': setting.rates[best][1], 'step': int(step[best]),
      })  # fmt: skip
    return passed

  found = bisection.search({case: looked_for(case, setting) for case in cases}, attempt)
  return [record(case, found[case], setting) for case in cases] + probes


def rounded(found: dict[Case, int], setting: Setting, fitter) -> dict[Case, dict]:
  """Accuracy, and the bits per weight that it needs, of models of the sizes found, trained anew and to the end.

  Of the learning rates the one that leaves the fewest bits.
  """
  if not found:
    return {}
  tasks, rates = attempts(list(found.items()), setting), len(setting.rates)
  recipe = dataclasses.replace(setting.recipe, target=None)  # rounding wants more than just enough
  config = batched.common_config([task.config for task in tasks])
  scores = functools.partial(_scores, config, recipe, target=setting.recipe.target)
  seen = fitter.measured(recipe, tasks, scores)
  best = {
    case: i * rates + int(np.argmin(seen['bits'][i * rates : (i + 1) * rates]))
    for i, case in enumerate(found)
  }
  return {case: {name: v[i] for name, v in seen.items()} for case, i in best.items()}


def _scores(config: Config, recipe: Recipe, params, job, *, target: float):
  right = functools.partial(optimization.accuracy, config, recipe, job)
  return {'accuracy': right(params), 'bits': rounding.bits_needed(right, params, target)}


def record(case: Case, border: bisection.Bisection, setting: Setting) -> dict:
  """What was found, and what that size amounts to; `floor`: nothing harder failed, so it is no threshold."""
  about = {'kind': 'threshold', **dataclasses.asdict(case), 'value': border.found}
  if border.found is None:
    return about
  about['floor'] = border.failed is None
  config = configured(case, border.found, setting)
  return {**about, 'subjects': config.subjects, **amount(config)}


def amount(config: Config) -> dict:
  """Facts, in bits, for each parameter of the whole model."""
  parameters = sum(math.prod(a.shape) for a in jax.tree.leaves(model.shapes(config)))
  bits = config.relations * lower_bounds.log2_factorial(config.subjects)
  sizes = {'dim': config.dim, 'width': max(config.blocks[0].hidden, default=0)}
  return {**sizes, 'parameters': parameters, 'fact_bits': bits, 'bits': bits / parameters}
