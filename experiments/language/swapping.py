"""Is the superposition used? One attribute's component is swapped for another's, and every relation is asked.

Three groups of subjects: maps are fitted to the first, layer and alphas are chosen on the second, and results
are reported on the third. A swap flips if the answer to its relation becomes the wanted one, and keeps if the
answers to the other relations stay what they were; both are measured on known facts.

Swaps are a table with the columns relation, subject and attribute (the wanted one), sorted by relation.

Shapes: S subjects of a group, T subjects fitted to, D width, A attributes, R relations, W swaps, B prompts.
"""

import itertools

import numpy as np
import pandas as pd

from experiments.language import ridge
from experiments.language.prompt_set import PromptSet

SPLIT = (0.6, 0.75)  # ends of the groups to fit to and to choose on; the rest is for the report
MEANS = 'class means'
CONTROLS = ('shuffled facts', 'random direction')
METHODS = ('superposition', MEANS, *CONTROLS)
DONOR = "donor's whole vector"


def split(seed: int, subjects: int) -> list[np.ndarray]:
  order = np.random.default_rng((seed, 4)).permutation(subjects)
  return [
    np.sort(part) for part in np.split(order, [round(fraction * subjects) for fraction in SPLIT])
  ]


def draw(prompts: PromptSet, seed: int, fit_T, group_S) -> pd.DataFrame:
  """One swap for every known fact of the group, to an attribute that enough other subjects have."""
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


class SteeringVectors:
  """Vectors that move a subject from its own attributes to a wanted one, at one layer, by several methods.

  The attributes of all relations are concatenated (P of them), so that a swap is a row with +1 for the
  wanted attribute and −1 for the own ones, and a method is a table with a vector for every attribute.
  """

  def __init__(self, prompts: PromptSet, seed: int, fit_T, layer: int):
    self.rng = np.random.default_rng((seed, layer, 5))
    self.x_SxD = prompts.observed['subject'][:, layer].astype(np.float64)
    superposed, x_TxD = prompts.table.superposed, self.x_SxD[fit_T]
    correct = [prompts.relations[r].correct_SxA for r in superposed]
    self.correct_SxP = np.concatenate(correct, axis=1).astype(float)
    self.relation_P = np.repeat(superposed, [x.shape[1] for x in correct])
    self.attribute_P = np.concatenate([np.arange(x.shape[1]) for x in correct])
    correct_TxP = self.correct_SxP[fit_T]
    shared_TxP = correct_TxP * np.concatenate([prompts.shared(r, fit_T) for r in superposed])
    shuffled_TxP = shared_TxP[self.rng.permutation(len(fit_T))]
    count_Px1 = correct_TxP.sum(axis=0)[:, None]
    self.tables = {
      'superposition': ridge.weights(shared_TxP, x_TxD),
      'shuffled facts': ridge.weights(shuffled_TxP, x_TxD),
      # The mean over those who have the attribute; over all subjects if nobody has it.
      MEANS: np.where(
        count_Px1 > 0, correct_TxP.T @ x_TxD / np.maximum(count_Px1, 1), x_TxD.mean(axis=0)
      ),
    }

  def vectors(self, method: str, swaps: pd.DataFrame) -> np.ndarray:
    """Vectors WxD; those of the controls are as long as the superposition's."""
    subject_W, relation_W, attribute_W = swaps[['subject', 'relation', 'attribute']].to_numpy().T
    asked_WxP = relation_W[:, None] == self.relation_P
    own_WxP = asked_WxP * self.correct_SxP[subject_W]
    if method == MEANS:  # the mean of several own attributes is subtracted
      own_WxP /= np.maximum(own_WxP.sum(axis=1, keepdims=True), 1)
    change_WxP = (asked_WxP & (attribute_W[:, None] == self.attribute_P)) - own_WxP
    fitted_WxD = change_WxP @ self.tables['superposition']
    if method == 'random direction':
      vectors_WxD = self.rng.standard_normal(fitted_WxD.shape)
    else:
      vectors_WxD = change_WxP @ self.tables[method]
    if method in CONTROLS:
      norm = lambda x: np.linalg.norm(x, axis=1, keepdims=True)
      vectors_WxD *= norm(fitted_WxD) / np.maximum(norm(vectors_WxD), 1e-9)
    return vectors_WxD


def outcomes(
  prompts: PromptSet, layer: int, swaps: pd.DataFrame, vectors_WxD, scale=1.0
) -> pd.DataFrame:
  """Every swap with every relation `asked` after it: whether it is `counted`, and whether it is a `success`.

  In the swap's own relation the answer should become the wanted one. In the others it should stay what it
  was; they are counted if the fact was known.
  """
  relations = pd.DataFrame({'asked': range(len(prompts.relations))})
  found = swaps.assign(swap=range(len(swaps))).merge(relations, how='cross')
  swap_B, asked_B, subject_B = found[['swap', 'asked', 'subject']].to_numpy().T
  final_BxD = prompts.patched(asked_B, subject_B, layer, scale, vectors_WxD[swap_B])
  pairs = zip(found['relation'], found['attribute'], strict=True)
  found['own'] = found['relation'] == found['asked']
  found['counted'] = found['own'] | prompts.observed['known'][subject_B, asked_B]
  found['before'] = prompts.observed['predicted'][subject_B, asked_B]
  found['after'] = prompts.predict(asked_B, final_BxD)
  wanted = np.array([prompts.relations[r].token_A[a] for r, a in pairs])
  expected = found['before'].mask(found['own'], wanted)
  return found.assign(success=found['counted'] & (found['after'] == expected))


def measure(prompts: PromptSet, preset, layers, seed: int) -> list[dict]:
  """Records of all methods on the third group of subjects."""
  fit_T, *others = split(seed, len(prompts.table.subjects))
  dev, test = (draw(prompts, seed, fit_T, group) for group in others)
  if dev.empty or test.empty:
    return []
  steering = {layer: SteeringVectors(prompts, seed, fit_T, layer) for layer in layers}

  def best(method: str, layers) -> tuple:
    """The (layer, alpha) with the largest product of the fractions flipped and kept."""

    def score(at) -> float:
      found = outcomes(prompts, at[0], dev, at[1] * steering[at[0]].vectors(method, dev))
      fractions = found[found['counted']].groupby('own')['success'].mean()
      return float(fractions.reindex([False, True], fill_value=0).prod())

    return max(itertools.product(layers, preset.alpha_choices), key=score)

  layer, alpha = best('superposition', layers)
  chosen = {MEANS: best(MEANS, [layer])[1]}  # the others use the superposition's alpha
  records, about = [], {'seed': seed, 'subjects': len(others[1]), 'layer': layer}
  for method in METHODS:
    vectors_WxD = steering[layer].vectors(method, test)
    for scale in preset.alphas if method == METHODS[0] else preset.alpha_choices:
      found = outcomes(prompts, layer, test, scale * vectors_WxD)
      fields = {'control': method, 'alpha': scale, 'chosen': scale == chosen.get(method, alpha)}
      records += records_of(prompts, found, about | fields)
  found = outcomes(prompts, layer, test, _donors(prompts, seed, fit_T, layer, test), scale=0.0)
  return records + records_of(prompts, found, about | {'control': DONOR, 'chosen': True})


def records_of(prompts: PromptSet, found: pd.DataFrame, fields: dict) -> list[dict]:
  """Records of all swaps together, and of those of each relation."""
  records, everyone = [], range(len(prompts.table.subjects))
  for r, swaps in [(None, found), *found.groupby('relation')]:
    about = fields | {'relation': None if r is None else prompts.relations[r].name}
    for name, rows in (('flipped', swaps[swaps['own']]), ('kept', swaps[~swaps['own']])):
      sums = rows.groupby('subject')[['success', 'counted']].sum().reindex(everyone, fill_value=0)
      ratio = sums['success'], sums['counted']
      records.append(prompts.record(name, *ratio, **about, tried=int(rows['counted'].sum())))
  return records


def _donors(prompts: PromptSet, seed: int, fit_T, layer: int, swaps: pd.DataFrame) -> np.ndarray:
  """For every swap, the residual of a subject for which the model predicts the wanted attribute, if there is one."""
  donors = []
  for r, rows in swaps.groupby('relation'):
    rng, relation = np.random.default_rng((seed, 7)), prompts.relations[r]
    for a in rows['attribute']:
      have_T = fit_T[relation.correct_SxA[fit_T, a]]
      same_T = have_T[prompts.observed['predicted'][have_T, r] == relation.token_A[a]]
      donors.append(rng.choice(same_T if len(same_T) else have_T))
  return prompts.observed['subject'][donors, layer]


def depth(prompts: PromptSet, layers, donor_pairs: int, seed: int) -> list[dict]:
  """At which depth the fact leaves the subject: how often a donor's residual brings the donor's answer."""
  rng, records = np.random.default_rng((seed, 8)), []
  known_SxR, predicted_SxR = prompts.observed['known'], prompts.observed['predicted']
  for r, relation in enumerate(prompts.relations):
    pairs = []
    for s in rng.permutation(np.flatnonzero(known_SxR[:, r]))[:donor_pairs]:
      others = np.flatnonzero(known_SxR[:, r] & (predicted_SxR[:, r] != predicted_SxR[s, r]))
      if len(others):
        pairs.append((s, rng.choice(others)))
    if not pairs:
      continue
    subject_B, donor_B = np.array(pairs).T
    layer_N, repeat = np.repeat(layers, len(pairs)), len(layers)
    donated_NxD = prompts.observed['subject'][np.tile(donor_B, repeat), layer_N]
    final_NxD = prompts.patched(r, np.tile(subject_B, repeat), layer_N, 0.0, donated_NxD, first=0)
    after_TxB = prompts.predict(r, final_NxD).reshape(-1, len(pairs))
    about = {'seed': seed, 'relation': relation.name, 'subjects': len(pairs)}
    records += [
      prompts.record('donor answer', after_B == predicted_SxR[donor_B, r], **about, layer=layer)
      for layer, after_B in zip(layers, after_TxB, strict=True)
    ]
  return records
