"""The baseline that the paper argues against: associative memories (Nichani et al., 2025).

Subjects and answers (in `mlp` also relations) have fixed random unit-norm embeddings that carry no
information about the facts. The weights store each fact as an association between an input and an
output embedding. Neither memory is exact.

`attention`: head r stores g_r in its D×D matrix, R·D² numbers in all; by default D² = 5·N·ln A.
`mlp`: a ridge regression from F random ReLU features of the pair (s, r) to the answers' embeddings;
by default F·d = 6·N·R·ln A.

Accuracy against size is in docs/results/approximate.json, written by experiments.approximate. Both
memories are solved in closed form. Trained by gradient descent they are smaller: the dashed lines
that Nichani et al. draw through their results, for N associations held to 0.99, are d² = 1.3·N·ln N
for a matrix and F·d = 0.35·N·ln N for an MLP (the constants are in linear_AM.ipynb and
mlp_sweep_plots.ipynb of eshnich/factual-recall-iclr).
"""

import math

import numpy as np

from constructions import parts
from geomem import codes
from geomem.config import BlockConfig
from geomem.construction import Construction
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.layout import RELATION, Layout, Slot

RIDGE_DUAL = 1e-3  # relative to the mean eigenvalue: costs no accuracy, keeps weights small enough for bfloat16
RIDGE_FEATURES = 1e-4
WIDTH_PER_DIM = 8
GAIN = 128  # scale of the MLP's output, against the unit-norm embeddings that it is added to
MAX_WIDTH = 2**15  # the normal equations take 8·F² bytes
BLOCK = 4096  # facts whose features are held in memory at a time


def attention(facts: Facts, dim: int | None = None, seed: int = 0) -> Construction:
  """Head r holds W_r = Σ_s ẽ_s ũ_{g_r(s)}ᵀ, outer products of dual vectors: least squares on the logits.

  d = D + ⌈log₂R⌉ + 2. The head of the queried relation attends to the subject and writes e_s W_r; the
  others attend to the relation token, whose `embedding` slot is empty. On random bijections an
  accuracy of .99 takes D² = 3.6 to 4.0·N·ln N for N = 64 … 1024 and any R; the Hebbian sum
  Σ e_s u_{g_r(s)}ᵀ takes 5.4 to 9. The default has a mean accuracy of .997 or more for N = 2 … 1024.
  """
  R, A, rho = facts.relations, facts.attributes, codes.Sign(facts.relations)
  flags = Layout.of(Slot('relation', (), rho, RELATION), Slot('is_subject'), Slot('is_relation'))
  if dim is None:
    dim = flags.dim + _attention_size(facts)
  _check_dim('associative_attention', dim, flags.dim)
  D = dim - flags.dim
  layout = Layout.of(Slot('embedding', (('direction', D),)), *flags.slots)
  sized = BlockConfig(heads=R, head_dim=D)
  built = parts.draft('associative_attention', facts, layout, sized, bias=False)
  params, rng, own = built.params, np.random.default_rng(seed), layout['embedding']
  e_NxD, u_AxD = _unit_vectors(rng, facts.subjects, D), _unit_vectors(rng, A, D)
  params['embed']['subjects'][:, own] = e_NxD
  params['embed']['subjects'][:, layout['is_subject']] = 1
  params['embed']['relations'][:, layout['relation']] = rho.words()
  params['embed']['relations'][:, layout['is_relation']] = 1
  heads, beta = params['blocks_0']['attention'], parts.SHARPNESS
  heads['query'][:, layout['relation'], 0] = beta * rho.words()
  heads['query'][:, layout['is_relation'], 0] = -beta * (rho.width - 1)
  heads['key'][:, layout['is_subject'], 0] = 1
  keys_NxD, values_AxD = _dual(e_NxD), _dual(u_AxD)
  for r, answers_N in enumerate(facts.answers_RxN):
    parts.write_ov(heads, r, (own, own, keys_NxD.T @ values_AxD[answers_N]))
  params['unembed']['answers'][:, own] = u_AxD
  return built


def _attention_size(facts: Facts) -> int:
  """D = √(5·N·ln A), or more if a relation has few distinct answers: 5·N·ln A / their number, at most N."""
  need = 5 * facts.subjects * math.log(facts.attributes)
  fewest = min(len(np.unique(answers_N)) for answers_N in facts.answers_RxN)
  return math.ceil(max(math.sqrt(need), min(facts.subjects, need / fewest)))


def mlp(
  facts: Facts, dim: int | None = None, width: int | None = None, seed: int = 0
) -> Construction:
  """Attention leaves x = (e_r − e_s) / 2; the MLP adds V ReLU(Wᵀx), W random, V a ridge regression.

  The whole residual stream is one space of random vectors. On random bijections, with F = 8d, an
  accuracy of .99 takes F·d = 2.4 to 5.0·N·R·ln N for N = 64 … 1024, R = 1 … 8, growing with both. The
  default has .996 or more at these and smaller sizes, and .96 at N = 256, R = 32.
  """
  dim, width = _mlp_sizes(facts, dim, width)
  layout = Layout.of(Slot('embedding', (('direction', dim),)))
  hidden = Layout.of(Slot('features', (('feature', width),)))
  sized = BlockConfig(head_dim=dim)
  built = parts.draft('associative_mlp', facts, layout, sized, hidden=((hidden,),), bias=False)
  params, rng, own = built.params, np.random.default_rng(seed), layout['embedding']
  e_NxD, e_RxD, u_AxD = (
    _unit_vectors(rng, count, dim) for count in (facts.subjects, facts.relations, facts.attributes)
  )
  params['embed']['subjects'][:] = e_NxD
  params['embed']['relations'][:] = e_RxD
  # Attention averages both tokens; e_r minus that mean is (e_r − e_s) / 2, both with equal weight.
  parts.write_ov(params['blocks_0']['attention'], 0, parts.copy_ov(own, own, scale=-1))
  w_DxF = math.sqrt(2) * rng.standard_normal((dim, width), np.float32)
  params['blocks_0']['mlp']['in'][:] = w_DxF
  params['blocks_0']['mlp']['out'][:] = _solve(facts, e_NxD, e_RxD, u_AxD, w_DxF)
  params['unembed']['answers'][:] = u_AxD
  return built


def _mlp_sizes(facts: Facts, dim: int | None, width: int | None) -> tuple[int, int]:
  """d and F. If not given, F has F·min(d, A) ≥ 6·N·R·ln A and d has F·d ≥ 6·N·R·ln A; with neither, F ≈ 8d."""
  A = facts.attributes
  need = 6 * facts.subjects * facts.relations * math.log(A)
  if width is not None and width < 1:
    raise InputError(f'associative_mlp: width is {width}; it must be at least 1')
  if dim is None:
    dim = max(4, math.ceil(need / width if width else math.sqrt(need / WIDTH_PER_DIM)))
  _check_dim('associative_mlp', dim, 0)
  width = width or max(32, math.ceil(need / min(dim, A)))
  if width > MAX_WIDTH:
    raise InputError(f'associative_mlp: width is {width}; the solver takes {MAX_WIDTH} at most')
  return dim, width


def _check_dim(name: str, dim: int, flags: int):
  if dim < flags + 2:
    raise InputError(
      f'{name}: dim is {dim}; it must be at least {flags + 2}, for random vectors in 2 dimensions or more'
    )


def _unit_vectors(rng, count: int, dim: int) -> np.ndarray:
  rows = rng.standard_normal((count, dim), np.float32)
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _dual(rows_NxD: np.ndarray) -> np.ndarray:
  """Dual vectors x̃ = (Σ x xᵀ + λ)⁻¹ x: ⟨x̃_i, x_j⟩ is as close to [i = j] as D dimensions allow."""
  x = rows_NxD.astype(np.float64)
  ridge = RIDGE_DUAL * x.shape[0] / x.shape[1] * np.eye(x.shape[1])
  return np.linalg.solve(x.T @ x + ridge, x.T).T


def _solve(facts: Facts, e_NxD, e_RxD, u_AxD, w_DxF) -> np.ndarray:
  """V = gain · (ΦᵀΦ + λ)⁻¹ Φᵀ U over the N·R facts; the gain undoes the shrinkage, about F / (N·R)."""
  (dim, width), facts_count = w_DxF.shape, facts.answers_RxN.size
  e_NxD, e_RxD, u_AxD, w_DxF = (a.astype(np.float64) for a in (e_NxD, e_RxD, u_AxD, w_DxF))
  gram, target = np.zeros((width, width)), np.zeros((width, dim))
  for start in range(0, facts_count, BLOCK):
    fact = np.arange(start, min(start + BLOCK, facts_count))
    relation, subject = np.divmod(fact, facts.subjects)
    features = np.maximum((e_RxD[relation] - e_NxD[subject]) / 2 @ w_DxF, 0)
    gram += features.T @ features
    target += features.T @ u_AxD[facts.answers_RxN[relation, subject]]
  ridge = RIDGE_FEATURES * np.trace(gram) / width + np.finfo(np.float32).tiny
  gain = GAIN * max(1, facts_count / width)
  return gain * np.linalg.solve(gram + ridge * np.eye(width), target)
