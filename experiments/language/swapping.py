"""Is the superposition used? One attribute's component is swapped for another's, and every relation is asked.

Three groups of subjects: maps are fitted to the first, layer and alphas chosen on the second, and what
is reported comes from the third. A swap flips if the answer to its relation becomes the wanted one,
and keeps if the answers to the other relations stay what they were; both among facts that are known.

Shapes: S subjects of a group, T subjects fitted to, D width, A attributes, R relations, W swaps.
"""

import dataclasses

import numpy as np
import pandas as pd

from experiments.language.prompt_set import PromptSet
from geomem.inside import ridge

SPLIT = (0.6, 0.15)  # shares to fit to and to choose on; the rest is for the report
METHODS = ('superposition', 'embedding maps', 'class means', 'shuffled facts', 'random direction')


@dataclasses.dataclass(frozen=True, eq=False)
class Swaps:
  """Swaps W of relation `r`, each of a subject to a wanted attribute."""

  r: int
  subject_W: np.ndarray
  wanted_W: np.ndarray


def split(seed: int, subjects: int) -> list[np.ndarray]:
  order = np.random.default_rng((seed, 4)).permutation(subjects)
  first, second = round(SPLIT[0] * subjects), round(sum(SPLIT) * subjects)
  return [np.sort(part) for part in np.split(order, (first, second))]


def draw(prompts: PromptSet, seed: int, fit_T, group_S) -> list[Swaps]:
  """For every known fact of the group one swap, to an attribute that enough others have."""
  rng, found = np.random.default_rng((seed, 6)), []
  known_SxR = prompts.observed['known']
  for r in prompts.table.superposed:
    relation, shared_A = prompts.relations[r], prompts.shared(r, fit_T)
    if known_SxR[fit_T, r].mean() < 0.5:
      continue
    pairs = []
    for s in group_S[known_SxR[group_S, r]]:
      own = relation.token_A[relation.correct_SxA[s]]
      choice = np.flatnonzero(shared_A & ~np.isin(relation.token_A, own))
      if len(choice):
        pairs.append((s, rng.choice(choice)))
    if pairs:
      found.append(Swaps(r, *np.array(pairs).T))
  return found


class SteeringVectors:
  """Vectors that move a subject from its own attributes to a wanted one, at one layer, by several methods."""

  def __init__(self, prompts: PromptSet, seed: int, fit_T, layer: int):
    self.prompts, self.fit_T, self.layer = prompts, fit_T, layer
    self.rng = np.random.default_rng((seed, layer, 5))
    self.x_SxD = prompts.observed['subject'][:, layer].astype(np.float64)
    self.one_hot = {
      r: prompts.relations[r].correct_SxA[:, prompts.shared(r, fit_T)].astype(float)
      for r in prompts.table.superposed
    }
    embedded = {r: prompts.mean_embedding(r) for r in self.one_hot}
    self.maps = {
      'superposition': self._fitted(self.one_hot, fit_T),
      'shuffled facts': self._fitted(self.one_hot, fit_T[self.rng.permutation(len(fit_T))]),
      'embedding maps': self._fitted(embedded, fit_T),
    }

  def _fitted(self, features: dict, whose_T) -> dict[int, np.ndarray]:
    """One ridge regression on the features of all relations, cut into a matrix for each."""
    parts = [features_SxP[whose_T] for features_SxP in features.values()]
    w_PxD = ridge.weights(np.concatenate(parts, axis=1), self.x_SxD[self.fit_T])
    cuts = np.cumsum([part.shape[1] for part in parts])[:-1]
    return dict(zip(features, np.split(w_PxD, cuts), strict=True))

  def vectors(self, method: str, swaps: Swaps) -> np.ndarray:
    """WxD; the two controls are as long as the superposition's."""
    r, relation = swaps.r, self.prompts.relations[swaps.r]
    own_WxA = relation.correct_SxA[swaps.subject_W].astype(float)
    if method == 'embedding maps':
      wanted, own = self.prompts.embeddings[r][swaps.wanted_W], self.prompts.mean_embedding(r)
      return (wanted - own[swaps.subject_W]) @ self.maps[method][r]
    if method == 'class means':
      mean_AxD = self._class_means(r)
      count_W = np.maximum(own_WxA.sum(axis=1, keepdims=True), 1)
      return mean_AxD[swaps.wanted_W] - own_WxA @ mean_AxD / count_W
    change_WxA = np.eye(len(relation.attributes))[swaps.wanted_W] - own_WxA
    change_WxP = change_WxA[:, self.prompts.shared(r, self.fit_T)]
    straight_WxD = change_WxP @ self.maps['superposition'][r]
    if method == 'superposition':
      return straight_WxD
    random = method == 'random direction'
    other_WxD = self.rng.standard_normal(straight_WxD.shape) if random else change_WxP @ self.maps[method][r]  # fmt: skip
    norm = lambda x: np.linalg.norm(x, axis=1, keepdims=True)
    return other_WxD * norm(straight_WxD) / np.maximum(norm(other_WxD), 1e-9)

  def norm(self, vectors) -> float:
    """Their mean norm, as a share of the mean distance of representations from their mean."""
    mean = lambda x: np.linalg.norm(x, axis=1).mean()
    return float(mean(np.concatenate(vectors)) / mean(self.x_SxD - self.x_SxD.mean(axis=0)))

  def _class_means(self, r: int) -> np.ndarray:
    """For every attribute the mean of those who have it, AxD; of all, where nobody has."""
    correct_TxA = self.prompts.relations[r].correct_SxA[self.fit_T].astype(float)
    count_A, x_TxD = correct_TxA.sum(axis=0), self.x_SxD[self.fit_T]
    mean_AxD = correct_TxA.T @ x_TxD / np.maximum(count_A, 1)[:, None]
    return np.where(count_A[:, None] > 0, mean_AxD, x_TxD.mean(axis=0))


def outcomes(
  prompts: PromptSet, layer: int, swaps: list[Swaps], vectors, scale=1.0, everything=False
) -> pd.DataFrame:
  """A row for every swap and relation: is it `counted`, and a `success` if so?

  The relation of the swap is counted, where the answer should become the wanted one, and the other
  relations that were known, where it should stay. Others are run only if `everything` is asked for; where
  nothing was run, `after` is -1.
  """
  observed, relations = prompts.observed, np.arange(len(prompts.relations))
  subject_W = np.concatenate([s.subject_W for s in swaps])
  r_W = np.concatenate([np.full(len(s.subject_W), s.r) for s in swaps])
  attribute_W = np.concatenate([s.wanted_W for s in swaps])
  wanted_W = np.array(
    [prompts.relations[r].token_A[a] for r, a in zip(r_W, attribute_W, strict=True)]
  )
  own_WxR = r_W[:, None] == relations
  counted_WxR = own_WxR | observed['known'][subject_W]
  w_B, r_B = np.nonzero(counted_WxR | everything)
  added_BxD = np.concatenate(vectors)[w_B]
  final_BxD = prompts.patched(r_B, subject_W[w_B], layer, scale, added_BxD)
  after_WxR = np.full(own_WxR.shape, -1)
  for r in np.unique(r_B):
    after_WxR[w_B[r_B == r], r] = prompts.predict(r, final_BxD[r_B == r])
  before_WxR = observed['predicted'][subject_W]
  expected_WxR = np.where(own_WxR, wanted_W[:, None], before_WxR)
  each = lambda a_W: np.repeat(a_W, len(relations))
  return pd.DataFrame({
    'swap': each(np.arange(len(r_W))), 'relation': each(r_W), 'subject': each(subject_W),
    'attribute': each(attribute_W), 'asked': np.tile(relations, len(r_W)), 'own': own_WxR.ravel(),
    'before': before_WxR.ravel(), 'after': after_WxR.ravel(), 'counted': counted_WxR.ravel(),
    'success': (counted_WxR & (after_WxR == expected_WxR)).ravel(),
  })  # fmt: skip


def best(prompts: PromptSet, swaps: list[Swaps], vectors: dict) -> tuple:
  """Of (layer, alpha or rank) → vectors the key with the largest share flipped × share kept, and all of these."""
  scores = {}
  for (layer, other), some in vectors.items():
    found = outcomes(prompts, layer, swaps, some)
    sums = found.groupby('own')[['success', 'counted']].sum().reindex([False, True], fill_value=0)
    scores[layer, other] = float((sums['success'] / sums['counted'].clip(lower=1)).prod())
  return max(scores, key=scores.get), scores


def measure(prompts: PromptSet, setting, seed: int) -> list[dict]:
  """Records of all methods on the third group of subjects, and examples to be read."""
  fit_T, choose_S, report_S = split(seed, len(prompts.table.subjects))
  dev, test = (draw(prompts, seed, fit_T, group) for group in (choose_S, report_S))
  if not dev or not test:
    return []
  scaled = lambda vectors, alpha: [alpha * vector_WxD for vector_WxD in vectors]

  def candidates(steering, method):
    vectors = [steering.vectors(method, swaps) for swaps in dev]
    return {(steering.layer, alpha): scaled(vectors, alpha) for alpha in setting.alpha_choices}

  at = {layer: SteeringVectors(prompts, seed, fit_T, layer) for layer in setting.swap_layers}
  tried = {
    key: v for steering in at.values() for key, v in candidates(steering, 'superposition').items()
  }
  (layer, alpha), scores = best(prompts, dev, tried)
  about = {'seed': seed, 'subjects': len(report_S)}
  records = [
    prompts.record('chosen', value, **about, layer=k[0], alpha=k[1], chosen=k == (layer, alpha))
    for k, value in scores.items()
  ]
  steering, chosen = at[layer], dict.fromkeys(METHODS, alpha)
  for method in ('embedding maps', 'class means'):
    (_, chosen[method]), _ = best(prompts, dev, candidates(steering, method))
  about['layer'] = layer
  for method in METHODS:
    vectors = [steering.vectors(method, swaps) for swaps in test]
    own = method == 'superposition'
    for by in setting.alphas if own else setting.alpha_choices:
      shown = own and by == alpha
      found = outcomes(prompts, layer, test, scaled(vectors, by), everything=shown)
      fields = {**about, 'control': method, 'alpha': by, 'chosen': by == chosen[method]}
      records += records_of(prompts, found, fields | {'norm': by * steering.norm(vectors)})
      records += examples(prompts, found, about | {'alpha': alpha}) if shown else []
  donors = [_donors(prompts, seed, fit_T, layer, swaps) for swaps in test]
  fields = {**about, 'control': "donor's whole vector", 'chosen': True}
  return records + records_of(prompts, outcomes(prompts, layer, test, donors, scale=0.0), fields)


def records_of(prompts: PromptSet, found: pd.DataFrame, fields: dict) -> list[dict]:
  """Of all swaps, of each relation's, and of what they do to each other relation."""
  records, everyone = [], range(len(prompts.table.subjects))
  names = [relation.name for relation in prompts.relations]
  for r, swaps in [(None, found), *found.groupby('relation')]:
    about = fields | {'relation': None if r is None else names[r]}
    for measurement, own in (('flipped', True), ('kept', False)):
      counted = swaps[(swaps['own'] == own) & swaps['counted']]
      sums = (
        counted.groupby('subject')[['success', 'counted']].sum().reindex(everyone, fill_value=0)
      )
      records.append(prompts.record(
        measurement, sums['success'], sums['counted'], **about, tried=len(counted)
      ))  # fmt: skip
    for other, asked in [] if r is None else swaps[~swaps['own']].groupby('asked'):
      if asked['counted'].any():
        about['other'] = names[other]
        records.append(prompts.record('kept one', asked['success'], asked['counted'], **about))
  return records


def _donors(prompts: PromptSet, seed: int, fit_T, layer: int, swaps: Swaps) -> np.ndarray:
  """For every swap the residual of a subject for which the model predicts what is wanted, if there is one."""
  rng, relation = np.random.default_rng((seed, 7)), prompts.relations[swaps.r]
  donors = []
  for a in swaps.wanted_W:
    have_T = fit_T[relation.correct_SxA[fit_T, a]]
    say_T = have_T[prompts.observed['predicted'][have_T, swaps.r] == relation.token_A[a]]
    donors.append(rng.choice(say_T if len(say_T) else have_T))
  return prompts.observed['subject'][donors, layer]


def examples(prompts: PromptSet, found: pd.DataFrame, fields: dict) -> list[dict]:
  """The first swaps of each relation in words: what was wanted, and the answers to every relation."""
  words = lambda tokens: {
    x.name: x.attributes[int(np.argmax(x.token_A == token))]
    for x, token in zip(prompts.relations, tokens, strict=True)
  }
  records = []
  for r, swaps in found.groupby('relation'):
    for _, rows in list(swaps.groupby('swap'))[:8]:
      own = rows[rows['own']].iloc[0]
      records.append(prompts.record(
        'example', float(own['success']), **fields, relation=prompts.relations[r].name,
        subject=prompts.table.subjects[own['subject']],
        wanted=prompts.relations[r].attributes[own['attribute']],
        before=words(rows['before']), after=words(rows['after']),
      ))  # fmt: skip
  return records


def depth(prompts: PromptSet, setting, seed: int) -> list[dict]:
  """Where in depth the fact leaves the subject: how often a donor's residual brings the donor's answer."""
  rng, records = np.random.default_rng((seed, 8)), []
  known_SxR, predicted_SxR = prompts.observed['known'], prompts.observed['predicted']
  for r, relation in enumerate(prompts.relations):
    pairs = []
    for s in rng.permutation(np.flatnonzero(known_SxR[:, r]))[: setting.donor_pairs]:
      others = np.flatnonzero(known_SxR[:, r] & (predicted_SxR[:, r] != predicted_SxR[s, r]))
      if len(others):
        pairs.append((s, rng.choice(others)))
    if not pairs:
      continue
    cases = pd.DataFrame(
      [(layer, *pair) for layer in setting.layers for pair in pairs],
      columns=['layer', 'subject', 'donor'],
    )
    layer_B, subject_B, donor_B = cases.to_numpy().T
    donated_BxD = prompts.observed['subject'][donor_B, layer_B]
    final_BxD = prompts.patched(r, subject_B, layer_B, 0.0, donated_BxD, first=0)
    cases['after'] = prompts.predict(r, final_BxD)
    for layer, rows in cases.groupby('layer'):
      for whose in ('donor', 'subject'):
        same = rows['after'].to_numpy() == predicted_SxR[rows[whose], r]
        records.append(prompts.record(
          'donor answer' if whose == 'donor' else 'own answer', same, np.ones(len(rows)), seed=seed,
          relation=relation.name, layer=int(layer), subjects=len(rows),
        ))  # fmt: skip
  return records
