"""Estimates of a step's duration, from sizes alone, and of the steps between two returns to the host."""

import dataclasses
import itertools
from typing import Any

from geomem.config import Config
from geomem.training import optimization
from geomem.training.recipe import Recipe

CHUNK_EVALUATIONS = 4  # maximum evaluations of all queries between two returns to the host
CHUNK_SECONDS = 10.0  # approximate time between two returns to the host


@dataclasses.dataclass(frozen=True)
class Costs:
  """What an estimate needs; orders of magnitude suffice.

  `model`: overhead in seconds of one model's step; `products`: multiplications per second.
  """

  model: float = 8e-5
  products: float = 2e10


CPU = Costs()
# A TPU v5e's compiler expects 16 thousand cycles, 10 µs, for one of the small models in docs/accelerators.md. `products` is
# a tenth of that chip's peak.
ACCELERATOR = Costs(model=1e-5, products=1e13)


def chunk_steps(sweep: Any) -> int:
  """Steps between two returns to the host: some seconds of work, estimated from sizes alone."""
  models = -(-len(sweep.tasks) // sweep.mesh.size)
  costs = CPU if sweep.platform == 'cpu' else ACCELERATOR
  step = models * seconds(sweep.config, sweep.recipe, costs)
  return max(1, min(CHUNK_EVALUATIONS * sweep.recipe.check, round(CHUNK_SECONDS / step)))


def multiplications(config: Config, recipe: Recipe) -> int:
  """Multiplications of a forward pass over a batch.

  A step has three times as many, and as many additions.
  """
  c, d = config, config.dim
  subjects, paths = recipe.batch or c.subjects, c.relations**recipe.hops
  prompts = subjects * paths
  # Keys and values are computed per subject and per path, not per prompt.
  shared = len(c.blocks) == 1 and not recipe.chain_of_thought
  tokens = subjects + paths * recipe.hops if shared else prompts * recipe.length()
  answers = optimization.softmax_size(c, recipe)
  total = prompts * (c.answer_dim * (d + answers) if c.answer_dim else d * answers)
  for b in c.blocks:
    widths = (d, *b.hidden, d) if b.hidden else ()
    total += (prompts if shared else tokens) * sum(x * y for x, y in itertools.pairwise(widths))
    total += tokens * b.heads * d * (b.key_dim + 2 * b.head_dim)
  return total


def seconds(config: Config, recipe: Recipe, costs: Costs) -> float:
  """Estimated time of one model's step on one device: a forward pass, and twice that for backward."""
  return costs.model + 3 * multiplications(config, recipe) / costs.products
