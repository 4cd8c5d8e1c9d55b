"""Estimates of a step's duration, from sizes alone, and of the steps between two returns to the host."""

import itertools
from typing import Any

from geomem.config import Config
from geomem.training import optimization
from geomem.training.recipe import Recipe

CHUNK_EVALUATIONS = 4  # maximum evaluations of all queries between two returns to the host
CHUNK_SECONDS = 10.0  # approximate time between two returns to the host


# The overhead of one model's step in seconds, and multiplications per second: orders of magnitude suffice. A TPU v5e's
# compiler expects 16 thousand cycles, 10 µs, for one of the small models in docs/accelerators.md; 10¹³ is a tenth of that
# chip's peak.
CPU, ACCELERATOR = (8e-5, 2e10), (1e-5, 1e13)


def chunk_steps(sweep: Any) -> int:
  """Steps between two returns to the host: some seconds of work, estimated from sizes alone."""
  models = -(-len(sweep.tasks) // sweep.mesh.size)
  overhead, speed = CPU if sweep.platform == 'cpu' else ACCELERATOR
  # A forward pass, and twice that for backward.
  step = models * (overhead + 3 * multiplications(sweep.config, sweep.recipe) / speed)
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
