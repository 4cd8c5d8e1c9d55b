"""How many bits a model must hold to answer k-hop questions: lower bounds and exact counts.

Statements and letters as in docs/theory.md: N subjects, R relations, k hops, M root subjects whose questions are
considered. A tree of depth k-1 hangs below each root; over the M trees L counts the leaves and
E the inner vertices. B_int: bits of everything but the subjects' input embeddings;
B_emb: bits of one subject's input embedding. An answer table is a function of the bits that are read to answer
it, so log2(number of possible tables) bounds them from below.
"""

import bisect
import functools
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from geomem.errors import InputError

EXHAUSTION_LIMIT = 30_000_000  # 64-bit words of keys that exact_bits may have to sort
_CHUNK = 1 << 15  # tuples whose tables are in memory at a time


def tree_vertices(relations: int, hops: int) -> int:
  """T = (R^k - 1)/(R - 1), the vertices of an R-ary tree of depth k-1 (T = k for R = 1)."""
  _check_sizes(relations=relations, hops=hops)
  return sum(_tree(relations, hops))


def max_roots(subjects: int, relations: int, hops: int) -> int:
  """floor(N / T): how many vertex-disjoint trees fit."""
  _check_sizes(subjects=subjects)
  return subjects // tree_vertices(relations, hops)


def log2_factorial(n: int) -> float:
  """log2 n!, to a relative error of about 1e-15."""
  return math.lgamma(n + 1) / math.log(2)


def global_bits(subjects: int, relations: int, hops: int) -> float:
  """B_int + N B_emb >= R log2 N! for k = 1, (R-1) log2 N! for k >= 2.

  At most N! tuples share a k-hop table: it fixes (g_r) up to one common translation.
  """
  _check_sizes(subjects=subjects, relations=relations, hops=hops)
  return (relations if hops == 1 else relations - 1) * log2_factorial(subjects)


def sharp_global_bits(subjects: int, relations: int, hops: int) -> float:
  """B_int + N B_emb >= R log2 N! - log2(5N/2) for R, k >= 2: almost all that is stored.

  Write G_v for the composition along a word v. If g and g' share a k-hop table, then
  G'_v G_v^-1 = G'_u^-1 G_u for |v| = j, |u| = k-j, so it is the same P_j for all v, P_0 = P_k = 1.
  g'_r P_j = P_{j+1} g_r then says that every g_r conjugates t_i = P_i^-1 P_{i+1} into t_{i+1},
  indices mod k, and g'_r = t_0 g_r. If g_a x = x, then t_{i+1}(x) = g_a t_i(x), and if the g_r
  act transitively, the t_i at x give them everywhere: t_0(x) fixes g', so <= N tuples share
  the table. At most a fraction sum_{j<=N/2} 1/C(N,j) of all tuples is intransitive, and at most (3/8)^2
  has no fixed point (N >= 3): at least 2/5 are left. For N <= 2 global_bits is the larger.

  R = 1: with p <= N the largest integer coprime to k, the N!/(p (N-p)!) p-cycles have distinct
  k-th powers.
  """
  base = global_bits(subjects, relations, hops)
  if hops == 1:
    return base
  if relations > 1:
    whole = relations * log2_factorial(subjects)
    return max(base, whole - math.log2(2.5 * subjects))
  cycle = next(p for p in range(subjects, 0, -1) if math.gcd(p, hops) == 1)
  return max(0.0, _log2_injections(cycle, subjects) - math.log2(cycle)) if cycle > 1 else 0.0


def local_bits(subjects: int, relations: int, hops: int, roots: int) -> float:
  """B_int + M B_emb >= R log2[(N-E)! / (N-E-L)!] for M <= N/T.

  Fix the edges inside M disjoint R-ary trees; each relation's L leaf edges are still free.
  """
  _check_roots(roots, max_roots(subjects, relations, hops))
  inner, leaves = (roots * size for size in _tree(relations, hops))
  return relations * _log2_injections(leaves, subjects - inner)


def sharp_local_bits(subjects: int, relations: int, hops: int, roots: int) -> float:
  """B_int + M B_emb >= the better of two counts, over all b <= R with M T_b <= N.

  Trees branch along only b relations, with T_b vertices each, so that R^k > N is no obstacle; leaves
  are still asked for all R. Never below local_bits: the count for b = R is at least that, term by term.
  """
  _check_sizes(subjects=subjects, relations=relations, hops=hops)
  _check_roots(roots, subjects // hops)
  best = 0.0
  for branching, inner, leaves in _trees(subjects, relations, hops):
    if roots * (inner + leaves) <= subjects:
      best = max(best, _mean_bits(subjects, relations, branching, inner, leaves, roots))
    if roots * (inner + 2 * leaves) <= subjects:
      best = max(best, _free_bits(subjects, relations, leaves, roots))
  return best


def closed_local_bits(subjects: int, relations: int, hops: int, roots: int) -> float:
  """B_int + M B_emb >= log2 of (M-1)! (N-M)!/(N-L)! [(N-P)!/(N-L)!]^b [N!/(N-L)!]^(R-b), for the best b.

  For k >= 2, M coprime to k, L = M b^(k-1) <= N leaves and P = L/b parents. Nothing is lost on inner
  vertices: relation 0 permutes the roots in one cycle, so they are leaves too, and so is every parent.
  """
  _check_sizes(subjects=subjects, relations=relations, hops=hops)
  _check_roots(roots, subjects)
  if hops == 1 or roots == 0 or math.gcd(roots, hops) > 1:
    raise InputError(
      f'bounds: {roots} roots, {hops} hops; give roots ≥ 1 and hops ≥ 2 without a common divisor'
    )
  sizes = subjects, relations, hops
  return max([0.0, *(_closed_bits(*sizes, b, roots) for b in _branchings(*sizes, roots))])


def internal_bits(
  subjects: int, relations: int, hops: int, subject_bits: float, *, tied: bool = False,
  chain_of_thought: bool = False,
) -> float:  # fmt: skip
  """Best bound here on B_int given B_emb: max of 0, sharp_global - N B_emb, the local ones - M B_emb.

  Only the global bound is left when the unembedding is `tied` to the subject embeddings (each
  answer then reads all N of them, not M) or with `chain_of_thought` (the embeddings of the
  intermediate subjects enter the context).
  """
  if not (math.isfinite(subject_bits) and subject_bits >= 0):
    raise InputError(f'bounds: subject_bits = {subject_bits}; give a finite number ≥ 0')
  # A chain of thought shows every g_r(s), so all tables are different, as for k = 1.
  whole = sharp_global_bits(subjects, relations, 1 if chain_of_thought else hops)
  best = max(0.0, whole - subjects * subject_bits)
  if tied or chain_of_thought:
    return best
  for branching, inner, leaves in _trees(subjects, relations, hops):
    mean = functools.partial(_mean_bits, subjects, relations, branching, inner, leaves)
    free = functools.partial(_free_bits, subjects, relations, leaves)
    best = max(best, _concave_max(mean, subject_bits, subjects // (inner + leaves)))
    best = max(best, _concave_max(free, subject_bits, subjects // (inner + 2 * leaves)))
  for branching in _branchings(subjects, relations, hops, 1) if hops > 1 else ():
    closed = functools.partial(_closed_bits, subjects, relations, hops, branching)
    most = subjects // branching ** (hops - 1)
    for first in range(1, min(hops, most + 1)):
      if math.gcd(first, hops) == 1:
        roots = range(first, most + 1, hops)  # those coprime to k, by residue
        best = max(best, _sigmoid_max(closed, subject_bits, roots))
  return best if best > 1e-9 * subjects * subject_bits else 0.0  # less is cancellation error


def exact_bits(subjects: int, relations: int, hops: int, roots: int) -> float:
  """log2 of the number of distinct k-hop answer tables of `roots` subjects, by exhaustion.

  Runs through all (N!)^R tuples of bijections; by symmetry the roots are subjects 0 .. M-1.
  """
  _check_sizes(subjects=subjects, relations=relations, hops=hops)
  _check_roots(roots, subjects)
  words = max(1, -(-roots * relations**hops // _digits(subjects)))
  cost = relations * log2_factorial(subjects) + math.log2(words)
  if cost > math.log2(EXHAUSTION_LIMIT):
    raise InputError(
      f'bounds: N = {subjects}, R = {relations}, k = {hops}, M = {roots} takes 2^{cost:.1f} words '
      f'to count; at most {EXHAUSTION_LIMIT} are allowed: use fewer subjects or relations'
    )
  count = math.factorial(subjects)
  flat = itertools.chain.from_iterable(itertools.permutations(range(subjects)))
  maps_PxN = np.fromiter(flat, np.uint8, count * subjects).reshape(count, subjects)
  total = count**relations
  found = []
  for start in range(0, total, _CHUNK):
    tuple_B = np.arange(start, min(start + _CHUNK, total))
    maps_RxBxN = [maps_PxN[tuple_B // count**r % count] for r in range(relations)]
    found.append(_distinct(_packed(_answers(maps_RxBxN, hops, roots), subjects)))
  return math.log2(len(_distinct(np.concatenate(found))))


def _check_sizes(**sizes: int) -> None:
  for name, size in sizes.items():
    if not _is_integer(size) or size < 1:
      raise InputError(f'bounds: {name} = {size!r}; give an integer ≥ 1')


def _is_integer(size) -> bool:
  return isinstance(size, int | np.integer) and not isinstance(size, bool)


def _check_roots(roots: int, limit: int) -> None:
  if not _is_integer(roots) or not 0 <= roots <= limit:
    raise InputError(f'bounds: {roots!r} roots; give an integer in 0 … {limit}')


def _tree(branching: int, hops: int) -> tuple[int, int]:
  """Inner vertices and leaves of a tree of depth k-1."""
  leaves = branching ** (hops - 1)
  return (hops - 1 if branching == 1 else (leaves - 1) // (branching - 1)), leaves


def _trees(subjects: int, relations: int, hops: int) -> Iterator[tuple[int, int, int]]:
  """(b, inner, leaves) of every tree of at most N vertices that branches along b <= R relations."""
  for branching in range(1, 2 if hops == 1 else relations + 1):
    inner, leaves = _tree(branching, hops)
    if inner + leaves > subjects:
      return
    yield branching, inner, leaves


def _log2_injections(source: int, target: int) -> float:
  """log2[target! / (target - source)!]."""
  return log2_factorial(target) - log2_factorial(target - source)


def _free_bits(subjects: int, relations: int, leaves: int, roots: int) -> float:
  """R log2[N! / (N-L)!] for N >= M T_b + L: then all injections h_r of the leaves occur.

  Given them, pick for r = 1 .. b in turn E vertices outside the roots, h_r's image and the
  earlier picks (M + L + (b-1)E at most), and let them be the r-children of the inner vertices.
  """
  return relations * _log2_injections(roots * leaves, subjects)


def _mean_bits(
  subjects: int, relations: int, branching: int, inner: int, leaves: int, roots: int
) -> float:
  """log2 of (N-M)!/(N-M T_b)! [(N-E)!/(N-L)!]^b [N!/(N-L)!]^(R-b), for N >= M T_b.

  Count the tuples whose M trees are vertex-disjoint, (N-M)!/(N-M T_b)! (N-E)!^b N!^(R-b), and
  divide by the most that can share a table, (N-L)!^R: off the leaves g_r is an injection that misses
  the known L images of the leaves, and it determines the place of the leaves too.
  """
  vertices, leaf_count = roots * (inner + leaves), roots * leaves
  return (
    _log2_injections(vertices - roots, subjects - roots)
    + branching * (log2_factorial(subjects - roots * inner) - log2_factorial(subjects - leaf_count))
    + (relations - branching) * _log2_injections(leaf_count, subjects)
  )


def _branchings(subjects: int, relations: int, hops: int, roots: int) -> Iterator[int]:
  """Every b <= R whose trees below the roots have at most N leaves."""
  for branching in range(1, relations + 1):
    if roots * branching ** (hops - 1) > subjects:
      return
    yield branching


def _closed_bits(subjects: int, relations: int, hops: int, branching: int, roots: int) -> float:
  """The count of closed_local_bits for one b.

  (M-1)! cycles of relation 0 on the roots, (N-M)!/(N-L)! ways to choose the other leaves, level by
  level, and (N-P)! or N! ways for each relation elsewhere; at most (N-L)!^R of these share a table.
  """
  leaves = roots * branching ** (hops - 1)
  others = subjects - leaves
  return (
    log2_factorial(roots - 1)
    + _log2_injections(leaves - roots, subjects - roots)
    + branching * (log2_factorial(subjects - leaves // branching) - log2_factorial(others))
    + (relations - branching) * _log2_injections(leaves, subjects)
  )


def _sigmoid_max(bits: Callable[[int], float], price: float, roots: range) -> float:
  """max over M in `roots` of bits(M) - M price, for bits first convex, then concave in M.

  Those of _closed_bits are of this form: with P = log2 Gamma the second derivative of P(M) decreases, and
  so does that of all other terms together. Two bisections find where the increments start to fall, and
  from there where they fall below the price.
  """
  rise = lambda i: bits(roots[i + 1]) - bits(roots[i])
  falls = lambda i: rise(i + 1) <= rise(i)
  start = bisect.bisect_left(range(max(0, len(roots) - 2)), True, key=falls)
  enough = lambda i: rise(i) <= price * roots.step
  best = bisect.bisect_left(range(len(roots) - 1), True, lo=start, key=enough)
  return max(bits(m) - m * price for m in (roots[0], roots[best]))


def _concave_max(bits: Callable[[int], float], price: float, limit: int) -> float:
  """max over M in 0..limit of bits(M) - M price, bits concave, by bisection on the increments.

  Both counts are concave in M: with P = log2 Gamma, P'' > 0 and decreasing, every convex term
  P(N - xM) has a partner -P(N - yM), y >= x (M and T_b; E and L for b > 1, and for b = 1 the
  terms of L and M cancel and E goes with T_b).
  """
  low, high = 0, limit
  while low < high:
    middle = (low + high) // 2
    if bits(middle + 1) - bits(middle) > price:
      low = middle + 1
    else:
      high = middle
  return bits(low) - low * price


def _answers(maps_RxBxN: list[np.ndarray], hops: int, roots: int) -> np.ndarray:
  """Answers of all M R^k questions for each of B tuples of maps."""
  state_BxQ = np.broadcast_to(np.arange(roots), (len(maps_RxBxN[0]), roots))
  for _ in range(hops):
    state_BxQ = np.concatenate(
      [np.take_along_axis(g_BxN, state_BxQ.astype(np.intp), axis=1) for g_BxN in maps_RxBxN], axis=1
    )
  return state_BxQ


def _digits(base: int) -> int:
  """How many base-N digits fit into 64 bits."""
  return max(d for d in range(1, 65) if max(base, 2) ** d <= 2**64)


def _packed(answers_BxQ: np.ndarray, base: int) -> np.ndarray:
  """Rows of base-N digits as rows of 64-bit words, losslessly."""
  digits = _digits(base)
  short = -answers_BxQ.shape[1] % digits or digits * (not answers_BxQ.size)
  answers_BxWxQ = np.pad(answers_BxQ, ((0, 0), (0, short))).reshape(len(answers_BxQ), -1, digits)
  return answers_BxWxQ.astype(np.uint64) @ np.uint64(base) ** np.arange(digits, dtype=np.uint64)


def _distinct(rows_BxW: np.ndarray) -> np.ndarray:
  """The distinct rows, sorted."""
  sorted_BxW = rows_BxW[np.lexsort(rows_BxW.T)]
  new_B = np.any(sorted_BxW[1:] != sorted_BxW[:-1], axis=1)
  return sorted_BxW[np.concatenate([[True], new_B])]
