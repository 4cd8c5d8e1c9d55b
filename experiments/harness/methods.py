"""Methods that look for units and subspaces in a model with one block and one hop, and scores for what they find.

A method is given a model and its facts, never the truth. It scores how much each unit serves each relation, RxF, or
returns for every relation the projector onto a subspace of the subject's embedding, RxDxD, of a rank that it chooses.

Shapes: N subjects, R relations, D residual width, F units of the last hidden layer, C components changed one at a
time, A answers.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from chex import Array

from geomem import linalg, model
from geomem.config import Config
from geomem.inside import intervene, linear_maps, projectors
from geomem.training import optimization

THRESHOLD = 0.1  # of a relation's largest effect, or singular value: anything smaller is ignored
ENOUGH = 0.95  # of the best interchange score: the smallest rank that reaches it is chosen
RANKS = 4
STEPS, BATCH = 200, 32
ATOMS, SPARSITY = 2, 0.03  # of a dictionary: atoms per dimension; weight of the sparsity penalty


# --- effects of interventions ----------------------------------------------------------------------


def _gaps(config: Config, params: dict, x_NxRxD: Array, answers_RxN: Array) -> tuple[Array, Array]:
  """The right answer's logit minus the largest other one; and minus that of the next subject's answer."""
  u_AxD = model.apply(config, params, method='unembedding').astype(jnp.float32)
  logits = jnp.einsum('nrd,ad->nra', x_NxRxD, u_AxD, precision='highest')
  own_NxR = jnp.asarray(answers_RxN).T
  logit_of = lambda which: jnp.take_along_axis(logits, which[..., None], axis=2)[..., 0]
  wrong = jnp.where(jax.nn.one_hot(own_NxR, logits.shape[2], dtype=bool), -jnp.inf, logits)
  own, next_own = logit_of(own_NxR), logit_of(jnp.roll(own_NxR, -1, axis=0))
  return own - wrong.max(axis=2), own - next_own


def _activations(config: Config, params: dict) -> tuple[Array, Array]:
  """For all queries, the units' activations NxRxF, and the residual after the block, NxRxD."""
  e_NxD, paths_Rx1 = params['embed']['subjects'], jnp.arange(config.relations)[:, None]
  _, sown = model.apply(
    config, params, e_NxD, paths_Rx1, method='from_embeddings', mutable=['trace']
  )
  block = sown['trace']['blocks_0']
  return block['mlp']['hidden'][-1], block['residual'][-1]


def _unit_effects(config: Config, params: dict, answers_RxN: Array, change: Callable) -> Array:
  """How much both gaps shrink, on average over subjects, when a unit's activation is changed: 2xFxR."""
  hidden_NxRxF, x_NxRxD = _activations(config, params)
  out_FxD = jnp.asarray(params['blocks_0']['mlp']['out'])

  def gaps(x_NxRxD):
    read_NxRxD = model.apply(config, params, x_NxRxD, method='_to_answers')
    return _gaps(config, params, read_NxRxD, answers_RxN)

  def one(f):
    change_NxR = change(hidden_NxRxF[..., f])
    return jnp.stack(gaps(x_NxRxD + change_NxR[..., None] * out_FxD[f][None, None])).mean(axis=1)

  after_Fx2xR = jax.lax.map(one, jnp.arange(len(out_FxD)))
  return (jnp.stack(gaps(x_NxRxD)).mean(axis=1)[None] - after_Fx2xR).swapaxes(0, 1)


def _embedding_effects(
  config: Config, params: dict, answers_RxN: Array, changed: Callable, count: int
) -> Array:
  """Effects, as those of units, of changing embeddings to `changed(c)`: 2xCxR."""
  residuals = functools.partial(intervene.final_residuals, config, params)
  gaps = lambda e_NxD: jnp.stack(_gaps(config, params, residuals(e_NxD), answers_RxN)).mean(axis=1)
  after_Cx2xR = jax.lax.map(lambda c: gaps(changed(c)), jnp.arange(count))
  return (gaps(params['embed']['subjects'])[None] - after_Cx2xR).swapaxes(0, 1)


# --- which units serve a relation ------------------------------------------------------------------


def probed_units(config: Config, params: dict, answers_RxN: Array, key: Array) -> Array:
  """Linear probe: coefficient norms of a ridge regression from activations to answer vectors, times the activations' spread."""
  hidden_NxRxF, _ = _activations(config, params)
  u_AxD = model.apply(config, params, method='unembedding')

  def one(r):
    x_NxF = hidden_NxRxF[:, r]
    w_FxD, _ = linear_maps.affine(x_NxF, u_AxD[answers_RxN[r]], 1e-2)
    return jnp.linalg.norm(w_FxD, axis=1) * jnp.std(x_NxF, axis=0)

  return jax.lax.map(one, jnp.arange(config.relations))


def patched_units(config: Config, params: dict, answers_RxN: Array, key: Array) -> Array:
  """Activation patching: a unit gets its activation for the next subject; how far do answers move towards that subject's?"""
  other = lambda h_NxR: jnp.roll(h_NxR, -1, axis=0) - h_NxR
  return _unit_effects(config, params, answers_RxN, other)[1].T


def ablated_units(config: Config, params: dict, answers_RxN: Array, key: Array) -> Array:
  """Ablation: a unit is switched off; how much of the margin is lost?"""
  return _unit_effects(config, params, answers_RxN, lambda h_NxR: -h_NxR)[0].T


# --- which subspace of an embedding belongs to a relation ------------------------------------------


@jax.default_matmul_precision('highest')
def projector(columns_DxC: Array, threshold: float = THRESHOLD) -> Array:
  """The projector onto the directions with a singular value of more than `threshold` of the largest."""
  u_DxK, size_K, _ = linalg.svd(columns_DxC)
  kept = u_DxK * (size_K > threshold * jnp.maximum(size_K[0], 1e-30)).astype(jnp.float32)[None]
  return kept @ kept.T


def assigned(effects_CxR: Array) -> Array:
  """Which components belong to a relation, RxC: they matter most for it, and more than THRESHOLD of what matters most."""
  best = effects_CxR.max(axis=0, keepdims=True)
  most = effects_CxR == effects_CxR.max(axis=1, keepdims=True)
  return (most & (effects_CxR > THRESHOLD * best)).T.astype(jnp.float32)


def probed_subspaces(config: Config, params: dict, answers_RxN: Array, key: Array) -> Array:
  """Linear probe: the subspace that a regression from embeddings to the answers' vectors reads."""
  e_NxD, u_AxD = params['embed']['subjects'], model.apply(config, params, method='unembedding')
  probe = lambda answers_N: projector(linear_maps.affine(e_NxD, u_AxD[answers_N], 1e-2)[0])
  return jax.lax.map(probe, jnp.asarray(answers_RxN))


@jax.default_matmul_precision('highest')
def mapped_subspaces(config: Config, params: dict, answers_RxN: Array, key: Array) -> Array:
  """Superposition: the subspace that a regression of embeddings on all answers' vectors writes for one relation's."""
  e_NxD, u_AxD = params['embed']['subjects'], model.apply(config, params, method='unembedding')
  maps_RxDxE, _ = linear_maps.fit_best_maps(e_NxD, u_AxD, answers_RxN)
  parts = lambda pair: projector(((u_AxD - u_AxD.mean(axis=0)[None])[pair[1]] @ pair[0]).T)
  return jax.lax.map(parts, (maps_RxDxE, jnp.asarray(answers_RxN)))


def patched_subspaces(config: Config, params: dict, answers_RxN: Array, key: Array) -> Array:
  """Activation patching: the coordinates that, set to the next subject's values, move answers towards that subject's."""
  e_NxD = params['embed']['subjects']
  other = lambda c: e_NxD.at[:, c].set(jnp.roll(e_NxD, -1, axis=0)[:, c])
  effects = _embedding_effects(config, params, answers_RxN, other, config.dim)[1]
  return jax.vmap(jnp.diag)(assigned(effects))


def ablated_subspaces(config: Config, params: dict, answers_RxN: Array, key: Array) -> Array:
  """Ablation: the coordinates whose replacement by their mean loses margin."""
  e_NxD = params['embed']['subjects']
  mean = lambda c: e_NxD.at[:, c].set(e_NxD[:, c].mean())
  effects = _embedding_effects(config, params, answers_RxN, mean, config.dim)[0]
  return jax.vmap(jnp.diag)(assigned(effects))


def dictionary_subspaces(config: Config, params: dict, answers_RxN: Array, key: Array) -> Array:
  """Sparse dictionary: the atoms of embeddings, learned without the facts, whose removal loses margin."""
  e_NxD = params['embed']['subjects']
  centred_NxD = e_NxD - e_NxD.mean(axis=0)[None]
  size = jnp.sqrt(jnp.mean(centred_NxD**2))
  codes_NxC, atoms_CxD = dictionary(centred_NxD / size, key)
  less = lambda c: e_NxD - size * codes_NxC[:, c, None] * atoms_CxD[c][None]
  effects = _embedding_effects(config, params, answers_RxN, less, len(atoms_CxD))[0]
  return jax.lax.map(lambda own_C: projector((atoms_CxD * own_C[:, None]).T), assigned(effects))


@jax.default_matmul_precision('highest')
def dictionary(x_NxD: Array, key: Array, steps: int = 1000) -> tuple[Array, Array]:
  """A sparse autoencoder: activations NxC of unit-length atoms, CxD."""
  dim = x_NxD.shape[1]
  atoms_CxD = jax.random.normal(key, (ATOMS * dim, dim))
  adam = optax.adam(1e-2)

  def coded(free):
    atoms_CxD = free['out'] / jnp.linalg.norm(free['out'], axis=1, keepdims=True)
    return jax.nn.relu(x_NxD @ free['in'] + free['bias'][None]), atoms_CxD

  def loss(free):
    codes_NxC, atoms_CxD = coded(free)
    error = jnp.mean(jnp.sum((x_NxD - codes_NxC @ atoms_CxD) ** 2, axis=1))
    return error + SPARSITY * jnp.mean(jnp.sum(codes_NxC, axis=1))

  def step(state, _):
    free, opt_state = state
    updates, opt_state = optimization.adam_update(adam, jax.grad(loss)(free), opt_state)
    return (optax.apply_updates(free, updates), opt_state), None

  free = {'in': atoms_CxD.T / dim, 'out': atoms_CxD, 'bias': jnp.zeros(ATOMS * dim)}
  (free, _), _ = jax.lax.scan(step, (free, adam.init(free)), length=steps)
  return coded(free)


def aligned_subspaces(config: Config, params: dict, answers_RxN: Array, key: Array) -> Array:
  """Distributed alignment search: orthogonal projectors learned by interchange, of the smallest rank that scores about as
  well as the best."""
  e_NxD = params['embed']['subjects']
  start_key, learn_key = jax.random.split(key)
  start = projectors.random_frames(start_key, config.relations, config.dim)
  most = start[0].shape[2]
  ranks_T = jnp.asarray(sorted({max(1, round(most * (i + 1) / RANKS)) for i in range(RANKS)}))

  def at(rank):
    first = projectors.truncate(start, rank)
    into, _ = projectors.learn(
      config, params, first, e_NxD, answers_RxN, learn_key, STEPS, BATCH, True
    )
    unit = into / jnp.maximum(jnp.linalg.norm(into, axis=1, keepdims=True), 1e-30)
    projector_RxDxD = jax.vmap(functools.partial(projector, threshold=1e-4))(unit)
    return projector_RxDxD, patch_effect(config, params, projector_RxDxD, answers_RxN)

  found_TxRxDxD, worth_T = jax.lax.map(at, ranks_T)
  return found_TxRxDxD[jnp.argmax(worth_T >= ENOUGH * worth_T.max())]


UNITS = {'linear probe': probed_units, 'activation patching': patched_units, 'ablation': ablated_units}  # fmt: skip
SUBSPACES = {
  'linear probe': probed_subspaces, 'superposition': mapped_subspaces, 'activation patching': patched_subspaces,
  'ablation': ablated_subspaces, 'sparse dictionary': dictionary_subspaces, 'alignment search': aligned_subspaces,
}  # fmt: skip


# --- scores that need no truth ---------------------------------------------------------------------


@jax.default_matmul_precision('highest')
def patch_effect(config: Config, params: dict, projector_RxDxD: Array, answers_RxN: Array) -> Array:
  """Patch the next subject's part into every subject: the lower of two fractions, answers that become that subject's and
  other answers that stay."""
  e_NxD = params['embed']['subjects']
  vectors_RxNxD = jnp.einsum('rde,ne->rnd', projector_RxDxD, jnp.roll(e_NxD, -1, axis=0) - e_NxD)
  wanted_NxR = jnp.roll(jnp.asarray(answers_RxN).T, -1, axis=0)
  swapped = intervene.swap_effects(config, params, e_NxD, vectors_RxNxD, wanted_NxR, jnp.ones(1))
  return jnp.minimum(swapped[0].mean(), swapped[1].mean())


def ablation_effect(config: Config, params: dict, scores_RxF: Array, answers_RxN: Array) -> Array:
  """Assign each unit to the relation that it scores highest for and ablate a relation's units: accuracy on other
  relations minus accuracy on this one."""
  e_NxD, most_F = params['embed']['subjects'], scores_RxF.max(axis=0)
  own_F = jnp.where(most_F > scores_RxF.min(axis=0), jnp.argmax(scores_RxF, axis=0), -1)
  right_RxR = intervene.ablated_accuracy(config, params, e_NxD, answers_RxN.T, own_F)
  relations = config.relations
  lost = jnp.trace(right_RxR) / relations
  return (right_RxR.sum() - jnp.trace(right_RxR)) / (relations * (relations - 1)) - lost


# --- scores against the truth ----------------------------------------------------------------------


def unit_score(scores_RxF: np.ndarray, serves_RxF: np.ndarray, seed: int = 0) -> float:
  """Average precision over the relations that have units, scaled to 0 for a random order on average, 1 for a right one."""
  rng, found = np.random.default_rng(seed), []
  for scores_F, serves_F in zip(scores_RxF, serves_RxF, strict=True):
    if (count := serves_F.sum()) and count < len(serves_F):
      ranked_F = serves_F[np.lexsort((rng.random(len(scores_F)), -scores_F))]  # ties at random
      precision = (np.cumsum(ranked_F) / np.arange(1, len(ranked_F) + 1))[ranked_F].mean()
      chance = _chance(count, len(serves_F))
      found.append((precision - chance) / (1 - chance))
  return float(np.mean(found)) if found else float('nan')


def _chance(count: int, size: int) -> float:
  """The mean average precision over all orders."""
  harmonic = np.sum(1 / np.arange(1, size + 1))
  return float((harmonic + (count - 1) / (size - 1) * (size - harmonic)) / size)


def subspace_score(projector_RxDxD: np.ndarray, frames: list[np.ndarray]) -> float:
  """tr(PQ) over the larger rank, averaged over relations, scaled to 0 for random subspaces of these ranks, 1 for equal ones."""
  found = []
  for p_DxD, frame_KxD in zip(projector_RxDxD, frames, strict=True):
    rank, dim = float(np.trace(p_DxD)), len(p_DxD)
    most = max(rank, len(frame_KxD))
    overlap = np.einsum('ki,ij,kj->', frame_KxD, p_DxD, frame_KxD) / most
    chance = rank * len(frame_KxD) / dim / most
    found.append((overlap - chance) / (1 - chance) if chance < 1 else 0.0)
  return float(np.mean(found))
