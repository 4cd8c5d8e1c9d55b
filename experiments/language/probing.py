"""What a subject's representation consists of, layer by layer, judged on held-out subjects.

Shapes: S subjects, R relations, T layers, D width, A attributes of a relation, Q target coordinates.
"""

import numpy as np

from experiments.language import ridge
from experiments.language.prompt_set import PromptSet

FOLDS = 5
GAINS = {  # features, and the baseline that they are compared with
  'own token + attributes': 'own token',
  'attributes + products': 'attributes',
}
SHUFFLED = (
  ('R2', 'attributes'),
  ('R2', 'attribute embeddings'),
  ('gain', 'own token + attributes'),
)


def knowledge(prompts: PromptSet) -> list[dict]:
  """How many of a relation's facts the model gets right, and how many the most common answer alone would."""
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
  """R² of groups of features at every layer, the gain of one group over another, and both for shuffled facts."""
  rng = np.random.default_rng((seed, 2))
  subjects = len(prompts.table.subjects)
  fold_S = ridge.folds(rng, subjects, FOLDS)
  x_TxSxD = prompts.observed['subject'].swapaxes(0, 1)[layers].astype(np.float64)
  principal = np.linalg.svd(x_TxSxD - x_TxSxD.mean(axis=1, keepdims=True), full_matrices=False)
  y_TxSxQ = principal.U * principal.S[:, None]  # the same distances, in fewer coordinates
  residual = lambda kernels: y_TxSxQ - ridge.held_out(kernels, y_TxSxQ, fold_S)
  squared_error = lambda kernels: (residual(kernels) ** 2).sum(axis=2)
  total_TxS = squared_error([np.zeros((subjects, subjects))])
  error_reduction = lambda kernels: total_TxS - squared_error(kernels)

  true = {name: error_reduction(kernels) for name, kernels in _features(prompts).items()}
  compared_with = {('R2', name): np.zeros_like(total_TxS) for name in true}
  compared_with |= {('gain', name): true[base] for name, base in GAINS.items()}
  others = [_features(prompts, rng.permutation(subjects)) for _ in range(shuffles)]
  shuffled = {at: np.stack([error_reduction(other[at[1]]) for other in others]) for at in SHUFFLED}
  records = []
  for t, layer in enumerate(layers):
    about, total_S = {'seed': seed, 'layer': layer}, total_TxS[t]
    for (what, name), base_TxS in compared_with.items():
      gain_S = true[name][t] - base_TxS[t]
      records.append(prompts.record(what, gain_S, total_S, **about, features=name))
    for (what, name), draws_NxTxS in shuffled.items():
      gain_NxS = draws_NxTxS[:, t] - compared_with[what, name][t]
      value_N = gain_NxS.sum(axis=1) / total_S.sum()
      records.append(prompts.record(
        what, float(value_N.mean()), **about, features=name, control='shuffled facts',
        low=float(value_N.min()), high=float(value_N.max()),
      ))  # fmt: skip
  return records


def _features(prompts: PromptSet, order_S=slice(None)) -> dict[str, list[np.ndarray]]:
  """Groups of features, each as its kernels; with an order, attributes are taken from other subjects."""
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
    'attributes + products': [attributes, ridge.products(one_hot) if len(one_hot) > 1 else none],
  }


def probe(prompts: PromptSet, layers, seed: int) -> list[dict]:
  """How often a linear map from the representation is closest in direction to a correct attribute's embedding."""
  rng = np.random.default_rng((seed, 3))
  fold_S = ridge.folds(rng, len(prompts.table.subjects), FOLDS)
  every = np.arange(len(fold_S))
  kernels = {layer: ridge.kernel(prompts.observed['subject'][:, layer]) for layer in layers}
  kernels = {None: _features(prompts)['own token'][0], **kernels}
  records = []
  for r in prompts.table.superposed:
    relation, shuffled = prompts.relations[r], rng.permutation(every)
    for layer, kernel in kernels.items():
      own = {'own token': every} if layer is None else {None: every, 'shuffled facts': shuffled}
      for control, order_S in own.items():
        guess_SxD = ridge.held_out([kernel], prompts.mean_embedding(r)[order_S], fold_S)
        hit_S = relation.correct_SxA[order_S, nearest(prompts.embeddings[r], guess_SxD)]
        has_S = relation.correct_SxA[order_S].any(axis=1)
        about = {'seed': seed, 'relation': relation.name, 'control': control, 'layer': layer}
        records.append(prompts.record('probe', hit_S, has_S, **about))
  return records


def nearest(u_AxD, guess_SxD) -> np.ndarray:
  """The attribute closest in direction to the guess, both relative to the attributes' mean."""
  u_AxD = u_AxD.astype(np.float64)
  around_AxD = u_AxD - u_AxD.mean(axis=0)
  around_AxD /= np.maximum(np.linalg.norm(around_AxD, axis=1, keepdims=True), 1e-9)
  return np.argmax((guess_SxD - u_AxD.mean(axis=0)) @ around_AxD.T, axis=1)
