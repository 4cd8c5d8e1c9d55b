"""Words of a code with distance: superposed in random subspaces, or side by side against noise (ours).

Both are the matched filter of `superposition`, F = 2R·m and d = D + R + m, with words of a random linear
code of m signs, the one of 64 draws whose words differ most.

`superposition_coded`: e_s = Σ_r A_r c_{g_r(s)}, A_r independent with random orthonormal columns,
m = 4⌈log₂A⌉. With A_h words at distance h of any one, all N·R queries are right with probability
1 − ε or more if N·R·Σ_h A_h·exp(−hD/(2m(R−1))) ≤ ε, so if D ≥ (2(R−1)/κ)·ln(N·A·R/ε), κm the least distance.
Directions are drawn until every query is right, as far as there are few enough to check (in float32, by NumPy).

`selector_coded`: D = R·m, a block a relation, m = ⌈(⌈log₂A⌉ − 1 + log₂(1/ε))/R₀⌉ for R₀ = 1 − log₂(1 + exp(−1/2σ²)).
Exact, by a margin of twice the code's distance; and with Gaussian noise of σ times their root mean square
on all coordinates of the memory a query is wrong with probability ε at most: its gates are wide enough for the noise.
"""

import bisect
import functools
import math

import numpy as np

from constructions import superposition
from geomem import codes
from geomem.construction import Construction
from geomem.errors import InputError
from geomem.facts import Facts

# ε: the default size may fail with this probability, and then directions are drawn anew.
FAILURE = 0.25
MAX_LOGITS = 2**31  # that are checked when directions are drawn
MAX_SEARCHED = 2**24  # that are checked in each of the draws of a search
DRAWS = 16  # of directions at one size, before the next size is tried, or before it is given up


def superposition_coded(
  facts: Facts, dim: int | None = None, seed: int = 0, search: bool = False
) -> Construction:
  """Total residual width `dim`, by default what the theorem asks for, ε = ¼.

  `search`: the smallest one at which one of 16 draws of directions has every query right, by bisection
  from there. This is a search over seeds: a single draw needs more dimensions.
  """
  R, code = facts.relations, coded(facts)
  memory = memory_dim(code, facts.subjects, R)
  if search:
    if dim is not None or facts.answers_RxN.size * facts.attributes > MAX_SEARCHED:
      raise InputError(f'search takes no dim, and at most {MAX_SEARCHED:,} logits of all queries')
    memory = _smallest(facts, code, memory, seed)
  layout, hidden = superposition.layouts('superposition_coded', R, code, memory, dim)
  memory = layout['memory'].stop
  if memory < code.width:
    raise InputError(
      f'superposition_coded: dim is {dim}; it must be at least {R + 2 * code.width}: {R} for the relation, '
      f'{code.width} for the answer, as many for the memory'
    )

  def draw() -> np.ndarray:
    if dim is not None or facts.answers_RxN.size * facts.attributes > MAX_LOGITS:
      return random_subspaces(memory, R, code.width, seed)
    if (checked := _draw(facts, code, memory, seed)) is None:
      raise InputError(
        f'superposition_coded: {DRAWS} draws of directions have a query wrong; another seed may do'
      )
    return checked

  return superposition.build('superposition_coded', facts, code, layout, hidden, draw, None)


def selector_coded(facts: Facts, noise: float = 0.5, error: float = 0.01) -> Construction:
  """σ = `noise` and ε = `error`: how long the words are. Margin: twice their distance."""
  if not (0 < noise < math.inf and 0 < error < 0.5):
    raise InputError(f'noise is {noise}, error {error}; give noise > 0 and an error in 0 … ½')
  code = noise_code(facts.attributes, noise, error)
  R, m = facts.relations, code.width
  layout, hidden = superposition.layouts('selector_coded', R, code, R * m)
  blocks = functools.partial(np.eye, R * m, dtype=np.float32)
  gate = _noise_gate(code, R, noise, error)
  return superposition.build(
    'selector_coded', facts, code, layout, hidden, blocks, 2 * code.distance, gate
  )


def coded(facts: Facts) -> codes.Linear:
  """The code of the superposition."""
  return codes.best_linear(facts.attributes, 4 * max(1, codes.log2_ceil(facts.attributes)))


def memory_dim(code: codes.Linear, subjects: int, relations: int, failure: float = FAILURE) -> int:
  """The least D ≥ m with N·R·Σ_h A_h·exp(−hD/(2m(R−1))) ≤ ε."""
  if code.weights[0]:
    raise InputError('two words of the code are the same: no D tells them apart')
  distances, rest = np.arange(code.length + 1), max(1, relations - 1)

  def enough(dim: int) -> bool:
    each = np.exp(-distances * dim / (2 * code.length * rest)) @ code.weights
    return relations == 1 or subjects * relations * each <= failure

  most = code.length
  while not enough(most):
    most *= 2
  return bisect.bisect_left(range(most), True, lo=code.length, key=enough)


def noise_code(count: int, noise: float, error: float) -> codes.Linear:
  """Words of the length of the theorem, of the first seed with Σ_h A_h·Q(√h/σ) ≤ ε, if 10⁴ have one."""
  rate = 1 - math.log2(1 + math.exp(-1 / (2 * noise**2)))
  length = math.ceil((codes.log2_ceil(count) - 1 - math.log2(error)) / rate)
  for seed in range(10**4):
    code = codes.Linear(count, max(1, length), seed)
    if _confused(code, noise) <= error:
      return code
  raise InputError(f'no code found for {count:,} words at noise {noise} and error {error}')


def _confused(code: codes.Linear, noise: float) -> float:
  """Σ_h A_h·Q(√h/σ): at least how likely another word is nearer."""
  return float(code.weights @ [_tail(math.sqrt(h), noise) for h in range(code.length + 1)])


def _noise_gate(code: codes.Linear, relations: int, noise: float, error: float) -> float:
  """The least G = 2^j at which closed gates open with probability ε − Σ_h A_h·Q(√h/σ) at most."""
  gate, left, units = 2.0, error - _confused(code, noise), 2 * (relations - 1) * code.width
  while units * _tail(gate - 1, noise) > left:
    gate *= 2
  return gate


def _tail(distance: float, noise: float) -> float:
  """Q(distance/σ)."""
  return math.erfc(distance / (math.sqrt(2) * noise)) / 2


def random_subspaces(dim: int, relations: int, width: int, seed: int) -> np.ndarray:
  """A_1 … A_R side by side: independent, the columns of each orthonormal, its subspace uniform."""
  rng = np.random.default_rng(seed)
  drawn = [np.linalg.qr(rng.standard_normal((dim, width))) for _ in range(relations)]
  # Uniform, whatever signs the solver prefers.
  uniform = [q * np.sign(np.diag(r)) for q, r in drawn]
  return np.concatenate(uniform, axis=1).astype(np.float32)


def all_right(facts: Facts, code: codes.Code, directions_DxRM: np.ndarray) -> bool:
  """Whether the matched filter answers every query, by more than rounding can take."""
  words_AxM, (R, N) = code.words(), facts.answers_RxN.shape
  own_RxDxM = directions_DxRM.reshape(len(directions_DxRM), R, -1).swapaxes(0, 1)
  e_NxD = sum(words_AxM[a_N] @ own.T for a_N, own in zip(facts.answers_RxN, own_RxDxM, strict=True))
  size = max(1, 2**24 // facts.attributes)
  for start in range(0, N, size):
    rows = np.arange(start, min(start + size, N))
    for answers_N, own_DxM in zip(facts.answers_RxN, own_RxDxM, strict=True):
      logits = e_NxD[rows] @ own_DxM @ words_AxM.T
      at = np.arange(len(rows)), answers_N[rows]
      right = logits[at].copy()
      logits[at] = -np.inf
      if np.any(right - logits.max(axis=1) < 1e-3):
        return False
  return True


def _draw(facts: Facts, code: codes.Linear, memory: int, seed: int) -> np.ndarray | None:
  """Directions by which every query is right, of the first seed after `seed` that has them, if one of 16 does."""
  for draw in range(DRAWS):
    directions = random_subspaces(memory, facts.relations, code.width, seed + draw)
    if all_right(facts, code, directions):
      return directions
  return None


def _smallest(facts: Facts, code: codes.Linear, most: int, seed: int) -> int:
  found = lambda dim: _draw(facts, code, dim, seed) is not None
  return bisect.bisect_left(range(most), True, lo=code.width, key=found)
