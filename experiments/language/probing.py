"""What a subject's representation is made of, layer by layer, judged on held-out subjects.

Shapes: S subjects, R relations, T layers, D width, A attributes of a relation, Q target coordinates.
"""

import itertools

import numpy as np

from experiments.language import ridge
from experiments.language.prompt_set import PromptSet

FOLDS = 5
GAINS = {  # features, and those that they are compared with
  'own token + attributes': 'own token',
  'own token + attribute embeddings': 'own token',
  'attributes + products': 'attributes',
}
SHUFFLED = ('attributes', 'attribute embeddings', 'own token + attributes')


def knowledge(prompts: PromptSet) -> list[dict]:
  """How many of a relation's facts the model gets right, and what the commonest answer alone would."""
  records = []
  for r, relation in enumerate(prompts.relations):
    has_S = relation.correct_SxA.any(axis=1)
    same_AxC = relation.token_A[:, None] == np.unique(relation.token_A)[None]
    common = (relation.correct_SxA @ same_AxC > 0).sum(axis=0).max() / has_S.sum()
    about = {'relation': relation.name, 'candidates': same_AxC.shape[1]}
    records += [
      prompts.record('known', prompts.observed['known'][:, r], has_S, **about),
      prompts.record('known', float(common), **about, control='commonest answer'),
    ]
  return records


def r2(prompts: PromptSet, layers, seed: int, shuffles: int) -> list[dict]:
  """R² of groups of features at every layer, what one group adds to another, and both of shuffled facts."""
  rng = np.random.default_rng((seed, 2))
  subjects = len(prompts.table.subjects)
  fold_S = ridge.folds(rng, subjects, FOLDS)
  y_SxQ, cuts = _rotated(prompts.observed['subject'][:, list(layers)])
  mean_SxQ = np.stack([y_SxQ[fold_S != fold].mean(axis=0) for fold in range(FOLDS)])[fold_S]
  by_layer = lambda d: np.stack([(d[:, a:b] ** 2).sum(axis=1) for a, b in itertools.pairwise(cuts)])
  total_TxS = by_layer(y_SxQ - mean_SxQ)

  def explained(kernels) -> np.ndarray:
    return total_TxS - by_layer(y_SxQ - ridge.held_out(kernels, y_SxQ, fold_S, cuts)[0])

  true = {name: explained(kernels) for name, kernels in _features(prompts).items()}
  orders = [rng.permutation(subjects) for _ in range(shuffles)]
  others = [_features(prompts, order_S) for order_S in orders]
  shuffled = {name: [explained(other[name]) for other in others] for name in SHUFFLED}
  records = []
  for t, layer in enumerate(layers):
    about, total_S = {'seed': seed, 'layer': layer}, total_TxS[t]
    for name, explained_TxS in true.items():
      records.append(prompts.record('R2', explained_TxS[t], total_S, **about, features=name))
    for name, base in GAINS.items():
      gain_S = true[name][t] - true[base][t]
      records.append(prompts.record('gain', gain_S, total_S, **about, features=name))
    for name, draws in shuffled.items():
      below = true[GAINS[name]][t].sum() if name in GAINS else 0.0
      values = [(explained_TxS[t].sum() - below) / total_S.sum() for explained_TxS in draws]
      records.append(prompts.record(
        'gain' if name in GAINS else 'R2', float(np.mean(values)), **about, features=name,
        control='shuffled facts', low=float(min(values)), high=float(max(values)),
      ))  # fmt: skip
  return records


def _features(prompts: PromptSet, order_S=slice(None)) -> dict[str, list[np.ndarray]]:
  """Groups of features, each as its kernels; with an order, the attributes are other subjects'."""
  none = np.zeros((len(prompts.table.subjects),) * 2)
  own = ridge.kernel(prompts.observed['last_token']) + ridge.kernel(prompts.observed['name'])
  one_hot, embedded = [], []
  for r in prompts.table.superposed:
    if (shared := prompts.shared(r)).any():
      one_hot.append(ridge.kernel(prompts.relations[r].correct_SxA[order_S][:, shared]))
      embedded.append(ridge.kernel(prompts.mean_embedding(r)[order_S]))
  attributes, embeddings = sum(one_hot, none), sum(embedded, none)
  return {
    'attributes': [attributes],
    'attribute embeddings': [embeddings],
    'own token': [own],
    'own token + attributes': [own, attributes],
    'own token + attribute embeddings': [own, embeddings],
    'attributes + products': [attributes, ridge.products(one_hot) if len(one_hot) > 1 else none],
  }


def _rotated(y_SxTxD) -> tuple[np.ndarray, list[int]]:
  """All layers in their principal coordinates, which are fewer and as far apart, and where layers begin."""
  parts = []
  for y_SxD in np.moveaxis(y_SxTxD, 1, 0).astype(np.float64):
    u, size, _ = np.linalg.svd(y_SxD - y_SxD.mean(axis=0), full_matrices=False)
    parts.append(u * size)
  sizes = (part.shape[1] for part in parts)
  return np.concatenate(parts, axis=1), list(itertools.accumulate(sizes, initial=0))


def readout(prompts: PromptSet, layers, seed: int) -> list[dict]:
  """How often a linear map from the representation points most like a correct attribute's embedding."""
  rng = np.random.default_rng((seed, 3))
  fold_S = ridge.folds(rng, len(prompts.table.subjects), FOLDS)
  records, (own,) = [], _features(prompts)['own token']
  for r in prompts.table.superposed:
    order_S = rng.permutation(len(fold_S))
    cases: list[tuple] = [(own, slice(None), 'own token', None)]
    for layer in layers:
      k_SxS = ridge.kernel(prompts.observed['subject'][:, layer])
      cases += [(k_SxS, slice(None), None, layer), (k_SxS, order_S, 'shuffled facts', layer)]
    for k_SxS, order, control, layer in cases:
      correct_SxA = prompts.relations[r].correct_SxA[order]
      guess_SxD, _ = ridge.held_out([k_SxS], prompts.mean_embedding(r)[order], fold_S)
      near_S = nearest(prompts.embeddings[r], guess_SxD)
      hit_S, has_S = correct_SxA[np.arange(len(near_S)), near_S], correct_SxA.any(axis=1)
      about = {'seed': seed, 'relation': prompts.relations[r].name}
      records.append(prompts.record('readout', hit_S, has_S, **about, control=control, layer=layer))
  return records


def nearest(u_AxD, guess_SxD) -> np.ndarray:
  """The attribute that points most like the guess, both seen from the attributes' mean."""
  u_AxD = u_AxD.astype(np.float64)
  around_AxD = u_AxD - u_AxD.mean(axis=0)
  around_AxD /= np.maximum(np.linalg.norm(around_AxD, axis=1, keepdims=True), 1e-9)
  return np.argmax((guess_SxD - u_AxD.mean(axis=0)) @ around_AxD.T, axis=1)
