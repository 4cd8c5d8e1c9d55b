"""Words of an error-correcting code: superposed in random subspaces, or in separate blocks against noise (ours).

Both use the layout and the matched filter of `superposition`, F = 2R·m and d = D + R + m, but write
attributes as words of a random linear code of m signs.

`superposition_coded`: e_s = Σ_r A_r c_{g_r(s)}, A_r independent with random orthonormal columns,
m = 4⌈log₂A⌉; the code is the one of up to 64 draws with the largest minimum distance. Let A_h be the
number of words at distance h from any given word. All N·R queries are right with probability 1 − ε or
more if N·R·Σ_h A_h·exp(−hD/(2m(R−1))) ≤ ε, hence if D ≥ (2(R−1)/κ)·ln(N·A·R/ε), where κm is the
minimum distance. Directions are redrawn until every query is right (checked in float32, by NumPy),
unless there are too many logits to check or `dim` is given.

`selector_coded`: D = R·m, one block per relation, m = ⌈(⌈log₂A⌉ − 1 + log₂(1/ε))/R₀⌉ for
R₀ = 1 − log₂(1 + exp(−1/2σ²)). Without noise it is exact, with a margin of twice the code's minimum
distance. With Gaussian noise of σ times the coordinates' root mean square on every coordinate of the
memory, a query is wrong with probability at most ε: the gates are wide enough for the noise.
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

# ε: at the default size a draw of directions fails with at most this probability; it is then redrawn.
EPSILON = 0.25
MAX_LOGITS = 2**31  # with more logits than this, directions are drawn once and not checked
MAX_SEARCHED = 2**24  # most logits for `search`, as each of its draws is checked
DRAWS = 16  # of directions at one size, before another size is tried or the build fails


def superposition_coded(
  facts: Facts, dim: int | None = None, seed: int = 0, search: bool = False
) -> Construction:
  """`dim`: the total residual width, by default the one that the theorem requires at ε = ¼.

  `search`: bisect from there for the smallest width at which one of 16 draws of directions answers
  every query correctly. This is a search over seeds: a single draw needs more dimensions.
  """
  R, code = facts.relations, linear_code(facts)
  memory = memory_dim(code, facts.subjects, R)
  if search:
    if dim is not None or facts.answers_RxN.size * facts.attributes > MAX_SEARCHED:
      raise InputError(f'search takes no dim, and at most {MAX_SEARCHED:,} logits in all')
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
        f'superposition_coded: each of {DRAWS} draws of directions gets a query wrong; try another seed'
      )
    return checked

  return superposition.build('superposition_coded', facts, code, layout, hidden, draw, None)


def selector_coded(facts: Facts, noise: float = 0.5, error: float = 0.01) -> Construction:
  """σ = `noise` and ε = `error` determine the word length m. Margin: twice the minimum distance."""
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


def linear_code(facts: Facts) -> codes.Linear:
  """The code of `superposition_coded`."""
  return codes.best_linear(facts.attributes, 4 * max(1, codes.log2_ceil(facts.attributes)))


def memory_dim(code: codes.Linear, subjects: int, relations: int, failure: float = EPSILON) -> int:
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
  """The first of 10⁴ random codes of the theorem's length with Σ_h A_h·Q(√h/σ) ≤ ε."""
  rate = 1 - math.log2(1 + math.exp(-1 / (2 * noise**2)))
  length = math.ceil((codes.log2_ceil(count) - 1 - math.log2(error)) / rate)
  for seed in range(10**4):
    code = codes.Linear(count, max(1, length), seed)
    if _error_bound(code, noise) <= error:
      return code
  raise InputError(f'no code found for {count:,} words at noise {noise} and error {error}')


def _error_bound(code: codes.Linear, noise: float) -> float:
  """Σ_h A_h·Q(√h/σ), a union bound on the probability that noise brings another word nearer."""
  return float(code.weights @ [_tail(math.sqrt(h), noise) for h in range(code.length + 1)])


def _noise_gate(code: codes.Linear, relations: int, noise: float, error: float) -> float:
  """The least G = 2^j at which any closed gate opens with probability at most ε − Σ_h A_h·Q(√h/σ)."""
  gate, left, units = 2.0, error - _error_bound(code, noise), 2 * (relations - 1) * code.width
  while units * _tail(gate - 1, noise) > left:
    gate *= 2
  return gate


def _tail(distance: float, noise: float) -> float:
  """Q(distance/σ)."""
  return math.erfc(distance / (math.sqrt(2) * noise)) / 2


def random_subspaces(dim: int, relations: int, width: int, seed: int) -> np.ndarray:
  """A_1 … A_R side by side: independent, each with orthonormal columns that span a uniform subspace."""
  rng = np.random.default_rng(seed)
  drawn = [np.linalg.qr(rng.standard_normal((dim, width))) for _ in range(relations)]
  # The signs make it uniform, whatever signs the QR solver prefers.
  uniform = [q * np.sign(np.diag(r)) for q, r in drawn]
  return np.concatenate(uniform, axis=1).astype(np.float32)


def all_right(facts: Facts, code: codes.Code, directions_DxRM: np.ndarray) -> bool:
  """Whether the matched filter answers every query correctly, with a margin above rounding errors."""
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
  """The first of 16 draws of directions, from `seed` on, that answers every query correctly; or None."""
  for draw in range(DRAWS):
    directions = random_subspaces(memory, facts.relations, code.width, seed + draw)
    if all_right(facts, code, directions):
      return directions
  return None


def _smallest(facts: Facts, code: codes.Linear, most: int, seed: int) -> int:
  found = lambda dim: _draw(facts, code, dim, seed) is not None
  return bisect.bisect_left(range(most), True, lo=code.width, key=found)
