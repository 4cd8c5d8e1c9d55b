"""Is the superposition used? One attribute's component is swapped for another's, and every relation is asked.

Three groups of subjects: maps are fitted to the first, layer and alphas chosen on the second, and what
is reported comes from the third. A swap flips if the answer to its relation becomes the wanted one,
and keeps if the answers to the other relations stay what they were; both among facts that are known.

Swaps are a table with the columns relation, subject and attribute (the wanted one), sorted by relation.

Shapes: S subjects of a group, T subjects fitted to, D width, A attributes, R relations, W swaps, B prompts.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from experiments.language import ridge
from experiments.language.prompt_set import PromptSet

SPLIT = (0.6, 0.15)  # shares to fit to and to choose on; the rest is for the report
CONTROLS = ('shuffled facts', 'random direction')
METHODS = ('superposition', 'embedding maps', 'class means', *CONTROLS)


def split(seed: int, subjects: int) -> list[np.ndarray]:
  order = np.random.default_rng((seed, 4)).permutation(subjects)
  cuts = [round(share * subjects) for share in (SPLIT[0], sum(SPLIT))]
  return [np.sort(part) for part in np.split(order, cuts)]


def draw(prompts: PromptSet, seed: int, fit_T, group_S) -> pd.DataFrame:
  """For every known fact of the group one swap, to an attribute that enough others have."""
  rng, rows, known_SxR = np.random.default_rng((seed, 6)), [], prompts.observed['known']
  for r in prompts.table.superposed:
    relation, shared_A = prompts.relations[r], prompts.shared(r, fit_T)
    if known_SxR[fit_T, r].mean() < 0.5:
      continue
    for s in group_S[known_SxR[group_S, r]]:
      own = relation.token_A[relation.correct_SxA[s]]
      choice = np.flatnonzero(shared_A & ~np.isin(relation.token_A, own))
      if len(choice):
        rows.append((r, s, rng.choice(choice)))
  return pd.DataFrame(rows, columns=['relation', 'subject', 'attribute'])


def by_relation(swaps: pd.DataFrame, function: Callable) -> np.ndarray:
  """The vectors WxD that `function(r, subject_W, attribute_W)` returns for the swaps of each relation."""
  return np.concatenate([
    function(r, rows['subject'].to_numpy(), rows['attribute'].to_numpy())
    for r, rows in swaps.groupby('relation')
  ])  # fmt: skip


class SteeringVectors:
  """Vectors that move a subject from its own attributes to a wanted one, at one layer, by several methods.

  `tables`: of each method and relation a vector for every attribute, AxD, that is added for the wanted
  attribute and subtracted for the own ones.
  """

  def __init__(self, prompts: PromptSet, seed: int, fit_T, layer: int):
    self.prompts, self.rng = prompts, np.random.default_rng((seed, layer, 5))
    self.x_SxD = prompts.observed['subject'][:, layer].astype(np.float64)
    superposed, x_TxD = prompts.table.superposed, self.x_SxD[fit_T]
    correct = {r: prompts.relations[r].correct_SxA.astype(float) for r in superposed}
    shared = {r: correct[r] * prompts.shared(r, fit_T) for r in superposed}
    embedded = {r: prompts.mean_embedding(r) for r in superposed}

    def fitted(features: dict, rows_T) -> dict[int, np.ndarray]:
      """One ridge regression on the features of all relations, cut into a matrix for each."""
      w_PxD = ridge.weights(np.concatenate([x[rows_T] for x in features.values()], axis=1), x_TxD)
      cuts = np.cumsum([x.shape[1] for x in features.values()])[:-1]
      return dict(zip(features, np.split(w_PxD, cuts), strict=True))

    def class_means(correct_TxA) -> np.ndarray:
      """The mean of those who have the attribute; of all, where nobody has."""
      count_A = correct_TxA.sum(axis=0)[:, None]
      mean_AxD = correct_TxA.T @ x_TxD / np.maximum(count_A, 1)
      return np.where(count_A > 0, mean_AxD, x_TxD.mean(axis=0))

    maps = fitted(embedded, fit_T)
    self.tables = {
      'superposition': fitted(shared, fit_T),
      'shuffled facts': fitted(shared, fit_T[self.rng.permutation(len(fit_T))]),
      'embedding maps': {r: prompts.embeddings[r] @ maps[r] for r in superposed},
      'class means': {r: class_means(correct[r][fit_T]) for r in superposed},
    }

  def vectors(self, method: str, swaps: pd.DataFrame) -> np.ndarray:
    """WxD; the controls are as long as the superposition's."""
    norm = lambda x: np.linalg.norm(x, axis=1, keepdims=True)

    def of_relation(r: int, subject_W, attribute_W) -> np.ndarray:
      own_WxA = self.prompts.relations[r].correct_SxA[subject_W].astype(float)
      if method in ('embedding maps', 'class means'):
        own_WxA /= np.maximum(own_WxA.sum(axis=1, keepdims=True), 1)
      change = lambda table_AxD: table_AxD[attribute_W] - own_WxA @ table_AxD
      if method not in CONTROLS:
        return change(self.tables[method][r])
      fitted_WxD = change(self.tables['superposition'][r])
      if method == 'random direction':
        other_WxD = self.rng.standard_normal(fitted_WxD.shape)
      else:
        other_WxD = change(self.tables[method][r])
      return other_WxD * norm(fitted_WxD) / np.maximum(norm(other_WxD), 1e-9)

    return by_relation(swaps, of_relation)

  def norm(self, vectors_WxD: np.ndarray) -> float:
    """Their mean norm, as a share of the mean distance of representations from their mean."""
    mean = lambda x: np.linalg.norm(x, axis=1).mean()
    return float(mean(vectors_WxD) / mean(self.x_SxD - self.x_SxD.mean(axis=0)))


def outcomes(
  prompts: PromptSet, layer: int, swaps: pd.DataFrame, vectors_WxD, scale=1.0, everything=False
) -> pd.DataFrame:
  """The swaps, once for every relation that may be `asked`: is this `counted`, and if so a `success`?

  The relation of the swap is counted, where the answer should become the wanted one, and the other
  relations that were known, where it should stay. The others are asked only for `everything`, and their
  answer `after` is -1 if not.
  """
  relations = pd.DataFrame({'asked': range(len(prompts.relations))})
  found = swaps.assign(swap=range(len(swaps))).merge(relations, how='cross')
  at = tuple(found[['subject', 'asked']].to_numpy().T)
  found['own'] = found['relation'] == found['asked']
  found['counted'] = found['own'] | prompts.observed['known'][at]
  found['before'], found['after'] = prompts.observed['predicted'][at], -1
  run = found[found['counted'] | everything]
  swap_B, r_B, subject_B = run[['swap', 'asked', 'subject']].to_numpy().T
  final_BxD = prompts.patched(r_B, subject_B, layer, scale, vectors_WxD[swap_B])
  for r in np.unique(r_B):
    found.loc[run.index[r_B == r], 'after'] = prompts.predict(r, final_BxD[r_B == r])
  pairs = zip(found['relation'], found['attribute'], strict=True)
  wanted = np.array([prompts.relations[r].token_A[a] for r, a in pairs])
  expected = found['before'].mask(found['own'], wanted)
  return found.assign(success=found['counted'] & (found['after'] == expected))


def best(prompts: PromptSet, swaps: pd.DataFrame, vectors: dict) -> tuple:
  """Of (layer, alpha or rank) → vectors the key with the largest share flipped × share kept, and all of these."""
  scores = {}
  for (layer, other), vectors_WxD in vectors.items():
    found = outcomes(prompts, layer, swaps, vectors_WxD)
    sums = found.groupby('own')[['success', 'counted']].sum().reindex([False, True], fill_value=0)
    scores[layer, other] = float((sums['success'] / sums['counted'].clip(lower=1)).prod())
  return max(scores, key=lambda at: scores[at]), scores


def measure(prompts: PromptSet, setting, seed: int) -> list[dict]:
  """Records of all methods on the third group of subjects, and examples to be read."""
  fit_T, choose_S, report_S = split(seed, len(prompts.table.subjects))
  dev, test = (draw(prompts, seed, fit_T, group) for group in (choose_S, report_S))
  if dev.empty or test.empty:
    return []
  steering = {layer: SteeringVectors(prompts, seed, fit_T, layer) for layer in setting.swap_layers}
  choices = lambda method, layers: {
    (layer, alpha): alpha * steering[layer].vectors(method, dev)
    for layer in layers for alpha in setting.alpha_choices
  }  # fmt: skip
  chosen, scores = best(prompts, dev, choices('superposition', setting.swap_layers))
  layer, alpha = chosen
  about = {'seed': seed, 'subjects': len(report_S)}
  records = [
    prompts.record('chosen', value, **about, layer=at[0], alpha=at[1], chosen=at == chosen)
    for at, value in scores.items()
  ]
  about['layer'], alphas = layer, dict.fromkeys(METHODS, alpha)
  for method in ('embedding maps', 'class means'):
    (_, alphas[method]), _ = best(prompts, dev, choices(method, [layer]))
  for method in METHODS:
    vectors_WxD = steering[layer].vectors(method, test)
    own = method == 'superposition'
    for by in setting.alphas if own else setting.alpha_choices:
      shown = own and by == alpha
      found = outcomes(prompts, layer, test, by * vectors_WxD, everything=shown)
      fields = {**about, 'control': method, 'alpha': by, 'chosen': by == alphas[method]}
      fields['norm'] = by * steering[layer].norm(vectors_WxD)
      records += records_of(prompts, found, fields)
      records += examples(prompts, found, {**about, 'alpha': alpha}) if shown else []
  donors_WxD = by_relation(test, lambda *rows: _donors(prompts, seed, fit_T, layer, *rows))
  fields = {**about, 'control': "donor's whole vector", 'chosen': True}
  return records + records_of(prompts, outcomes(prompts, layer, test, donors_WxD, 0.0), fields)


def records_of(prompts: PromptSet, found: pd.DataFrame, fields: dict) -> list[dict]:
  """Of all swaps, of each relation's, and of what they do to each other relation."""
  records, everyone = [], range(len(prompts.table.subjects))
  names = [relation.name for relation in prompts.relations]
  for r, swaps in [(None, found), *found.groupby('relation')]:
    about = fields | {'relation': None if r is None else names[r]}
    for name, rows in (('flipped', swaps[swaps['own']]), ('kept', swaps[~swaps['own']])):
      sums = rows.groupby('subject')[['success', 'counted']].sum().reindex(everyone, fill_value=0)
      ratio = sums['success'], sums['counted']
      records.append(prompts.record(name, *ratio, **about, tried=int(ratio[1].sum())))
    for other, rows in [] if r is None else swaps[~swaps['own']].groupby('asked'):
      if rows['counted'].any():
        ratio = rows['success'], rows['counted']
        records.append(prompts.record('kept one', *ratio, **about, other=names[other]))
  return records


def _donors(prompts: PromptSet, seed, fit_T, layer: int, r: int, _, attribute_W) -> np.ndarray:
  """For every swap the residual of a subject for which the model predicts what is wanted, if there is one."""
  rng, relation = np.random.default_rng((seed, 7)), prompts.relations[r]
  donors = []
  for a in attribute_W:
    have_T = fit_T[relation.correct_SxA[fit_T, a]]
    same_T = have_T[prompts.observed['predicted'][have_T, r] == relation.token_A[a]]
    donors.append(rng.choice(same_T if len(same_T) else have_T))
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
      own, relation = rows[rows['own']].iloc[0], prompts.relations[r]
      records.append(prompts.record(
        'example', float(own['success']), **fields, relation=relation.name,
        subject=prompts.table.subjects[own['subject']], wanted=relation.attributes[own['attribute']],
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
    cases = [(layer, *pair) for layer in setting.layers for pair in pairs]
    if not cases:
      continue
    layer_B, subject_B, donor_B = np.array(cases).T
    donated_BxD = prompts.observed['subject'][donor_B, layer_B]
    final_BxD = prompts.patched(r, subject_B, layer_B, 0.0, donated_BxD, first=0)
    after_B, about = prompts.predict(r, final_BxD), {'seed': seed, 'relation': relation.name}
    for layer in setting.layers:
      for name, like_B in (('donor answer', donor_B), ('own answer', subject_B)):
        same_B = (after_B == predicted_SxR[like_B, r])[layer_B == layer]
        ratio, about['subjects'] = (same_B, np.ones(len(same_B))), len(same_B)
        records.append(prompts.record(name, *ratio, **about, layer=layer))
  return records
