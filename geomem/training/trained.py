"""Training in one call: one model, or many at once."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from geomem.config import Config
from geomem.errors import InputError
from geomem.facade import FactModel
from geomem.facts import Facts
from geomem.layout import Layout
from geomem.training import step_time, sweeps
from geomem.training.optimization import State
from geomem.training.recipe import Recipe
from geomem.training.sweeps import Task

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Trained(FactModel):
  """A model trained by gradient descent, with this `recipe` and `seed`.

  `accuracy`: over all queries, at the last evaluation; `loss`: of the last batch; `steps`: those taken.

  >>> model = train(Config.trained(4, 2, dim=8), Facts.bijections(4, 2), steps=200)
  >>> model.accuracy, model.ask('s1 r0').correct
  (1.0, True)
  """

  recipe: Recipe
  seed: int
  accuracy: float
  loss: float
  steps: int

  def _about(self) -> dict[str, float]:
    return super()._about() | {'accuracy': self.accuracy, 'loss': self.loss, 'steps': self.steps}


def train(
  config: Config, facts: Facts, *, steps: int = 2000, learning_rate: float = 1e-2,
  weight_decay: float = 0.1, seed: int = 0, on_progress: Progress | None = None,
  **recipe_options: Any,
) -> Trained:  # fmt: skip
  """Train one model; options as in `sweep`.

  >>> train(Config.trained(4, 2, dim=8), Facts.bijections(4, 2), steps=200).steps
  100
  """
  task = Task(config, facts, learning_rate, weight_decay, seed)
  return sweep([task], steps=steps, on_progress=on_progress, **recipe_options)[0]


def sweep(
  tasks: Iterable[Task],
  *,
  steps: int = 2000,
  on_progress: Progress | None = None,
  **recipe_options: Any,
) -> list[Trained]:
  """Train models together in one program, each up to the target accuracy or for `steps` steps.

  `recipe_options`: fields of a `Recipe`, the same for all. `on_progress` is called now and then with
  the number of steps taken and their total number.

  >>> tasks = [Task(Config.trained(4, 2, dim=8), Facts.bijections(4, 2), seed=s) for s in range(3)]
  >>> [model.accuracy for model in sweep(tasks, steps=200)]
  [1.0, 1.0, 1.0]
  """
  known = [field.name for field in dataclasses.fields(Recipe)]
  for name in recipe_options:
    if name not in known:
      raise InputError(f'unknown training option {name!r}; the options are {", ".join(known)}')
  recipe = Recipe(**{'warmup': min(100, steps // 10), **recipe_options}, steps=steps)
  if not (some := list(tasks)):
    return []
  first = sweeps.set_up(recipe, some)
  for batch, states in sweeps.fit(*first, step_time.chunk_steps(first[0])):
    if on_progress:
      on_progress(int(batch.of_tasks(states.step).max()), steps)
  return [_trained(recipe, task, batch.state_of(states, i)) for i, task in enumerate(batch.tasks)]


def _trained(recipe: Recipe, task: Task, state: State) -> Trained:
  layout = Layout.unnamed(task.config.dim)
  return Trained(
    'trained', task.config, state.params, layout, task.facts, recipe.hops,
    chain_of_thought=recipe.chain_of_thought, recipe=recipe, seed=task.seed,
    accuracy=float(state.accuracy), loss=float(state.loss), steps=int(state.step),
  )  # fmt: skip
