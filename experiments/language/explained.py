"""What a subject's representation is made of, place by place, judged on subjects that were held out.

Shapes: S subjects, R relations, T places, D width, A attributes of a relation, Q target coordinates.
"""

import itertools

import numpy as np

from experiments.language.scenes import Scene
from geomem.inside import ridge

FOLDS = 5


def knowledge(scene: Scene) -> list[dict]:
  """How many of a relation's facts the model gets right, and what the commonest answer alone would."""
  records, known_SxR = [], scene.seen['known']
  for r, relation in enumerate(scene.relations):
    has_S = relation.right_SxA.any(axis=1)
    begins = relation.token_A[None] == np.unique(relation.token_A)[:, None]
    common = (relation.right_SxA @ begins.T > 0).sum(axis=0).max()
    about = {'relation': relation.name, 'candidates': len(begins)}
    records += [
      scene.ratio('known', known_SxR[:, r], has_S, **about),
      scene.record('known', control='commonest answer', **about, value=float(common / has_S.sum())),
    ]
  return records


def kernels(scene: Scene, order_S=None) -> dict[str, np.ndarray]:
  """The groups of features; with an order, those of attributes are other subjects'."""
  order = np.arange(len(scene.table.subjects)) if order_S is None else order_S
  hot, mapped = [], []
  for r in scene.table.superposed:
    right_SxA = scene.relations[r].right_SxA[order].astype(float)
    if (shared := scene.shared(r)).any():
      hot.append(ridge.kernel(right_SxA[:, shared]))
      count = np.maximum(right_SxA.sum(axis=1, keepdims=True), 1)
      mapped.append(ridge.kernel(right_SxA @ scene.vectors[r] / count))
  none = np.zeros((len(order), len(order)))
  return {
    'attributes': sum(hot, none),
    'attribute embeddings': sum(mapped, none),
    'products': ridge.products(hot) if len(hot) > 1 else none,
  }


def superposition(scene: Scene, places, seed: int, shuffles: int) -> list[dict]:
  """R² of each group of features and of some together, at every place."""
  rng = np.random.default_rng((seed, 2))
  subjects = len(scene.table.subjects)
  fold_S = ridge.folds(rng, subjects, FOLDS)
  y_SxQ, cuts = _compressed(scene.seen['read'][:, list(places)])
  own = ridge.kernel(scene.seen['token']) + ridge.kernel(scene.seen['name'])
  true = kernels(scene)
  arms = {
    'attributes': [true['attributes']],
    'attribute embeddings': [true['attribute embeddings']],
    'own token': [own],
    'own token + attributes': [own, true['attributes']],
    'own token + attribute embeddings': [own, true['attribute embeddings']],
    'attributes + products': [true['attributes'], true['products']],
  }
  error = {name: _errors(some, y_SxQ, fold_S, cuts) for name, some in arms.items()}
  shuffled = {name: [] for name in ('attributes', 'attribute embeddings', 'own token + attributes')}
  for _ in range(shuffles):
    other = kernels(scene, rng.permutation(subjects))
    for name, group in (('attributes', None), ('attribute embeddings', None),
                        ('own token + attributes', own)):  # fmt: skip
      some = [other[name.removeprefix('own token + ')]]
      some = some if group is None else [group, *some]
      shuffled[name].append(_errors(some, y_SxQ, fold_S, cuts))
  return _explained(scene, places, seed, error, shuffled)


def _explained(scene: Scene, places, seed, error, shuffled) -> list[dict]:
  """Records of R², of what attributes add to the token and products to attributes, and of shuffles."""
  records = []
  for i, place in enumerate(places):
    about = {'seed': seed, 'place': place}
    for name, (miss_TxS, all_TxS) in error.items():
      records.append(
        scene.ratio('R2', all_TxS[i] - miss_TxS[i], all_TxS[i], features=name, **about)
      )
    for name, base in (('own token + attributes', 'own token'),
                       ('own token + attribute embeddings', 'own token'),
                       ('attributes + products', 'attributes')):  # fmt: skip
      gain_S = error[base][0][i] - error[name][0][i]
      records.append(scene.ratio('gain', gain_S, error[base][1][i], features=name, **about))
    for name, draws in shuffled.items():
      values = [1 - miss[i].sum() / all_[i].sum() for miss, all_ in draws]
      if name.startswith('own token'):
        miss, all_ = error['own token']
        values = [value - (1 - miss[i].sum() / all_[i].sum()) for value in values]
      measurement = 'gain' if name.startswith('own token') else 'R2'
      spread = {'value': np.mean(values), 'low': np.min(values), 'high': np.max(values)}
      spread = {key: float(value) for key, value in spread.items()}
      about_all = {**about, 'features': name, 'control': 'shuffled facts', **spread}
      records.append(scene.record(measurement, **about_all))
  return records


def _compressed(y_SxTxD):
  """The same distances in fewer coordinates, place after place, and where places begin."""
  parts = []
  for y_SxD in np.moveaxis(y_SxTxD, 1, 0).astype(np.float64):
    u, size, _ = np.linalg.svd(y_SxD - y_SxD.mean(axis=0), full_matrices=False)
    parts.append(u * size)
  return np.concatenate(parts, axis=1), np.cumsum([0, *(part.shape[1] for part in parts)])


def _errors(some, y_SxQ, fold_S, cuts):
  """Squared errors, and squared distances from the mean, TxS."""
  guess, mean = ridge.held_out(some, y_SxQ, fold_S, cuts)
  by_place = lambda d: np.stack([(d[:, a:b] ** 2).sum(axis=1) for a, b in itertools.pairwise(cuts)])
  return by_place(y_SxQ - guess), by_place(y_SxQ - mean)


def readout(scene: Scene, places, seed: int) -> list[dict]:
  """How often a linear map from the representation points most like a right attribute's embedding."""
  rng = np.random.default_rng((seed, 3))
  fold_S = ridge.folds(rng, len(scene.table.subjects), FOLDS)
  own = ridge.kernel(scene.seen['token']) + ridge.kernel(scene.seen['name'])
  records = []
  for r in scene.table.superposed:
    relation = scene.relations[r]
    order = rng.permutation(len(fold_S))
    about = {'seed': seed, 'relation': relation.name}
    arms = [(own, None, 'own token', None)]
    for place in places:
      k_SxS = ridge.kernel(scene.seen['read'][:, place])
      arms += [(k_SxS, None, None, place), (k_SxS, order, 'shuffled facts', place)]
    for k_SxS, order_S, control, place in arms:
      right_S, has_S = _read(scene, r, k_SxS, fold_S, order_S)
      records.append(scene.ratio('readout', right_S, has_S, control=control, place=place, **about))
  return records


def _read(scene: Scene, r: int, k_SxS, fold_S, order_S=None):
  """Whether the nearest attribute is right, for the subjects that have one."""
  right_SxA = scene.relations[r].right_SxA
  right_SxA = right_SxA if order_S is None else right_SxA[order_S]
  u_AxD = scene.vectors[r].astype(np.float64)
  y_SxD = right_SxA @ u_AxD / np.maximum(right_SxA.sum(axis=1, keepdims=True), 1)
  guess_SxD, _ = ridge.held_out([k_SxS], y_SxD, fold_S)
  near_S = nearest(u_AxD, guess_SxD)
  return right_SxA[np.arange(len(near_S)), near_S], right_SxA.any(axis=1)


def nearest(u_AxD, guess_SxD) -> np.ndarray:
  """The attribute that points most like the guess, both seen from the attributes' mean."""
  around_AxD = u_AxD - u_AxD.mean(axis=0)
  around_AxD /= np.maximum(np.linalg.norm(around_AxD, axis=1, keepdims=True), 1e-9)
  return np.argmax((guess_SxD - u_AxD.mean(axis=0)) @ around_AxD.T, axis=1)
