"""Which models share a compiled program: padding costs arithmetic, another program costs compiling."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from geomem.config import BlockConfig, Config
from geomem.training import batched, optimization
from geomem.training.batched import Task
from geomem.training.recipe import Recipe

LEAST_ROWS = 8
CHUNK_EVALUATIONS = 4  # evaluations of all queries between two returns to the host, at most,
CHUNK_SECONDS = 10.0  # and about so long
OUTCOMES = ('accuracy', 'loss', 'step', 'status')


@dataclasses.dataclass(frozen=True)
class Costs:
  """What an estimate needs: seconds to compile, of a model's step that does next to nothing and of one
  of all models of a sweep, and multiplications a second.

  Orders of magnitude do: they decide how much padding a program is worth, not what comes out.
  """

  compiling: float = 3.0
  model: float = 8e-5
  sweep: float = 0.0
  products: float = 2e10


CPU, ACCELERATOR = Costs(), Costs(compiling=15.0, model=0.0, sweep=1e-3, products=1e13)


@dataclasses.dataclass(frozen=True)
class Program:
  """What is compiled: `rows` models at once, padded to `config`."""

  config: Config
  rows: int


def _costs() -> Costs:
  return CPU if jax.default_backend() == 'cpu' else ACCELERATOR


def chunk_steps(sweep: Any) -> int:
  """Steps between two returns to the host: some seconds of work, estimated from sizes alone."""
  models = -(-len(sweep.tasks) // jax.device_count())
  step = models * seconds(sweep.config, sweep.recipe, _costs())
  return max(1, min(CHUNK_EVALUATIONS * sweep.recipe.check, round(CHUNK_SECONDS / step)))


def run_to_end(fit: Callable, sweep: Any, states: Any) -> tuple[Any, Any]:
  """Train a sweep to the end."""
  ended = sweep, states
  for ended in fit(sweep, states, chunk_steps(sweep)):
    pass
  return ended


def fit(
  recipe: Recipe,
  program: Program,
  tasks: Sequence[Task],
  groups: np.ndarray | None,
  run_to_end: Callable = run_to_end,
) -> np.ndarray:
  """Train the tasks in the program: a row of `OUTCOMES` for each, how it ended."""
  sweep, states = batched.set_up(recipe, tasks, config=program.config, least_rows=program.rows)
  sweep, states = run_to_end(functools.partial(batched.fit, groups=groups), sweep, states)
  return np.stack([sweep.of_tasks(getattr(states, name)) for name in OUTCOMES], axis=1)


def train_tasks(
  recipe: Recipe, tasks: Sequence[Task], groups: np.ndarray | None = None,
  compiled: list[Program] | None = None, fit: Callable = fit, rounds: int = 1,
) -> dict[str, np.ndarray]:  # fmt: skip
  """Train all tasks in as few programs as is cheapest; `OUTCOMES` by name, a number a task.

  `groups`: a label a task; when one of a label is solved the others stop. `compiled`: programs compiled
  before, and after this call these too. `fit`: what trains a program's tasks. `rounds`: as in `assign`.
  """
  compiled = [] if compiled is None else compiled
  groups = np.arange(len(tasks)) if groups is None else np.asarray(groups)
  values = np.zeros((len(tasks), len(OUTCOMES)))
  for program, members in assign(tasks, recipe, compiled, jax.device_count(), _costs(), rounds):
    if program not in compiled:
      compiled.append(program)
    own = np.array(members)
    values[own] = fit(recipe, program, [tasks[i] for i in members], groups[own])
  return dict(zip(OUTCOMES, values.T, strict=True))


def multiplications(config: Config, recipe: Recipe) -> int:
  """Of a forward pass over a batch; a step has three times as many, and as many additions."""
  c, d = config, config.dim
  subjects, paths = recipe.batch or c.subjects, c.relations**recipe.hops
  prompts = subjects * paths
  # Keys and values are computed per subject and per path, not per prompt.
  once = len(c.blocks) == 1 and not recipe.chain_of_thought
  tokens = subjects + paths * recipe.hops if once else prompts * recipe.length()
  answers = optimization.softmax_size(c, recipe)
  total = prompts * (c.answer_dim * (d + answers) if c.answer_dim else d * answers)
  for b in c.blocks:
    widths = (d, *b.hidden, d) if b.hidden else ()
    total += (prompts if once else tokens) * sum(x * y for x, y in itertools.pairwise(widths))
    total += tokens * b.heads * d * (b.key_dim + 2 * b.head_dim)
  return total


def seconds(config: Config, recipe: Recipe, costs: Costs) -> float:
  """Estimated time of a model's step on one device: forward, and backward twice as much."""
  return costs.model + 3 * multiplications(config, recipe) / costs.products


def assign(
  tasks: Sequence[Task], recipe: Recipe, compiled: Sequence[Program] = (), devices: int = 1,
  costs: Costs = CPU, rounds: int = 1,
) -> list[tuple[Program, tuple[int, ...]]]:  # fmt: skip
  """Groups of tasks by number, each with its program: one of `compiled`, or a new one.

  `rounds`: how often as much as this is likely to be asked for; padding counts every time.
  """
  by_config: dict[Config, list[int]] = {}
  for i, task in enumerate(tasks):
    by_config.setdefault(task.config, []).append(i)
  steps = rounds * recipe.steps

  def time(config, count, rows=None):
    sweeps = math.ceil(count / (rows or count))
    return steps * (sweeps * costs.sweep + count * seconds(config, recipe, costs) / devices)

  groups: dict[Program, list[int]] = {}
  unassigned = []
  for config, members in by_config.items():
    fits = [p for p in compiled if _common_config(config, p.config, recipe) == p.config]
    cost = lambda p: time(p.config, len(members), p.rows)  # noqa: B023
    best = min(fits, key=cost, default=None)
    if best and cost(best) < time(config, len(members)) + costs.compiling:
      groups.setdefault(best, []).extend(members)
    else:
      unassigned.append((config, members))
  for config, members in _merge(unassigned, recipe, time, costs):
    config = _roomy(config, len(members), recipe, time, costs)
    rows = max(LEAST_ROWS, 2 ** math.ceil(math.log2(len(members))))
    program = Program(config, -(-rows // devices) * devices)
    groups.setdefault(program, []).extend(members)
  return [
    (program, tuple(members[at : at + program.rows]))
    for program, members in groups.items()
    for at in range(0, len(members), program.rows)
  ]


@functools.lru_cache(maxsize=2**16)
def _common_config(a: Config, b: Config, recipe: Recipe) -> Config | None:
  """The config that both can be padded to, if there is one."""
  if not batched.differ_only_in_size(a, b):
    return None
  both = batched.common_config([a, b])
  if recipe.loss == 'every' and {a.answers, b.answers} != {both.vocabulary}:
    return None  # what else is a token must be one in both
  return both


def _merge(groups, recipe, time, costs):
  """Join the two whose padding costs least, as long as it costs less than compiling one more program."""
  groups = list(groups)
  while len(groups) > 1:
    joined = []
    for (i, (a, m)), (j, (b, n)) in itertools.combinations(enumerate(groups), 2):
      if both := _common_config(a, b, recipe):
        padding = time(both, len(m) + len(n)) - time(a, len(m)) - time(b, len(n))
        joined.append((padding, i, j, both))
    padding, i, j, both = min(joined, key=lambda pair: pair[0], default=(math.inf, 0, 0, None))
    if padding >= costs.compiling:
      break
    members = groups[i][1] + groups[j][1]
    groups = [g for k, g in enumerate(groups) if k not in (i, j)] + [(both, members)]
  return groups


def _roomy(config: Config, count: int, recipe: Recipe, time, costs: Costs) -> Config:
  """Sizes rounded up, where that costs little, so that the program fits the next sizes asked for too."""
  block = lambda b: BlockConfig(
    b.heads, _round(b.key_dim), _round(b.head_dim), tuple(map(_round, b.hidden))
  )
  wider = config.replace(dim=_round(config.dim), blocks=tuple(map(block, config.blocks)))
  words = {'subjects': _round(config.subjects), 'answers': _round(config.answers)}
  for roomy in (wider.replace(**words), wider):
    padding = time(roomy, count) - time(config, count)
    if padding < costs.compiling and _common_config(config, roomy, recipe) == roomy:
      return roomy
  return config


def _round(size: int) -> int:
  """Up to the next of 1, 2, 3, 4, 6, 8, 12, 16, 24, 32 …"""
  step = max(1, 2 ** (size.bit_length() - 2))
  return -(-size // step) * step
