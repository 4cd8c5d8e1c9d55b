"""Is the superposition used? One attribute's component is swapped for another's, and every relation is asked.

Three groups of subjects: maps are fitted to the first, layer and alphas are chosen on the second, and results
are reported on the third. A swap flips if the answer to its relation becomes the wanted one, and keeps if the
answers to the other relations stay what they were; both are measured on known facts.

Swaps are a table with the columns relation, subject and attribute (the wanted one), sorted by relation.

Shapes: S subjects of a group, T subjects fitted to, D width, A attributes, R relations, W swaps, B prompts.
"""

import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
import scipy.linalg

from experiments.language import ridge
from experiments.language.prompt_set import PromptSet

SPLIT = (0.6, 0.75)  # ends of the groups to fit to and to choose on; the rest is for the report
AVERAGED = ('embedding maps', 'class means')  # the mean of several own attributes is subtracted
CONTROLS = ('shuffled facts', 'random direction')
METHODS = ('superposition', *AVERAGED, *CONTROLS)
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


def groups_and_swaps(prompts: PromptSet, seed: int) -> tuple:
  """The three groups of subjects, and swaps for the second and the third."""
  fit_T, *others = groups = split(seed, len(prompts.table.subjects))
  return groups, *(draw(prompts, seed, fit_T, group) for group in others)


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
    mean_TxE = np.concatenate([prompts.mean_embedding(r)[fit_T] for r in superposed], axis=1)
    embeddings_PxE = scipy.linalg.block_diag(*(prompts.embeddings[r] for r in superposed))
    count_Px1 = correct_TxP.sum(axis=0)[:, None]
    self.tables = {
      'superposition': ridge.weights(shared_TxP, x_TxD),
      'shuffled facts': ridge.weights(shuffled_TxP, x_TxD),
      'embedding maps': embeddings_PxE @ ridge.weights(mean_TxE, x_TxD),
      # The mean over those who have the attribute; over all subjects if nobody has it.
      'class means': np.where(
        count_Px1 > 0, correct_TxP.T @ x_TxD / np.maximum(count_Px1, 1), x_TxD.mean(axis=0)
      ),
    }

  def vectors(self, method: str, swaps: pd.DataFrame) -> np.ndarray:
    """Vectors WxD; those of the controls are as long as the superposition's."""
    subject_W, relation_W, attribute_W = swaps[['subject', 'relation', 'attribute']].to_numpy().T
    asked_WxP = relation_W[:, None] == self.relation_P
    own_WxP = asked_WxP * self.correct_SxP[subject_W]
    if method in AVERAGED:
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

  def norm(self, vectors_WxD: np.ndarray) -> float:
    """Their mean norm, as a fraction of the mean distance of representations from their mean."""
    mean = lambda x: np.linalg.norm(x, axis=1).mean()
    return float(mean(vectors_WxD) / mean(self.x_SxD - self.x_SxD.mean(axis=0)))


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


def best(prompts: PromptSet, swaps: pd.DataFrame, layers, strengths, vectors: Callable) -> tuple:
  """The (layer, strength) whose `vectors` have the largest product of the fractions flipped and kept."""

  def score(at) -> float:
    found = outcomes(prompts, at[0], swaps, vectors(*at))
    fractions = found[found['counted']].groupby('own')['success'].mean()
    return float(fractions.reindex([False, True], fill_value=0).prod())

  return max(itertools.product(layers, strengths), key=score)


def measure(prompts: PromptSet, preset, layers, seed: int) -> list[dict]:
  """Records of all methods on the third group of subjects, and examples to read."""
  (fit_T, _, report_S), dev, test = groups_and_swaps(prompts, seed)
  if dev.empty or test.empty:
    return []
  steering = {layer: SteeringVectors(prompts, seed, fit_T, layer) for layer in layers}

  def choose(method: str, layers) -> tuple:
    vectors = lambda layer, alpha: alpha * steering[layer].vectors(method, dev)
    return best(prompts, dev, layers, preset.alpha_choices, vectors)

  layer, alpha = choose('superposition', layers)
  alphas = {method: choose(method, [layer])[1] for method in AVERAGED}  # the others use its alpha
  records, about = [], {'seed': seed, 'subjects': len(report_S), 'layer': layer}
  for method in METHODS:
    own, vectors_WxD = method == 'superposition', steering[layer].vectors(method, test)
    for scale in preset.alphas if own else preset.alpha_choices:
      found = outcomes(prompts, layer, test, scale * vectors_WxD)
      fields = about | {'control': method, 'alpha': scale}
      fields['norm'] = scale * steering[layer].norm(vectors_WxD)
      fields['chosen'] = scale == alphas.get(method, alpha)
      records += records_of(prompts, found, fields)
      if own and scale == alpha:
        records += examples(prompts, found, about | {'alpha': alpha})
  found = outcomes(prompts, layer, test, _donors(prompts, seed, fit_T, layer, test), scale=0.0)
  fields = about | {'control': DONOR, 'chosen': True}
  return records + records_of(prompts, found, fields)


def records_of(prompts: PromptSet, found: pd.DataFrame, fields: dict) -> list[dict]:
  """Records of all swaps together, of those of each relation, and of their effect on each other relation."""
  records, everyone = [], range(len(prompts.table.subjects))
  names = [relation.name for relation in prompts.relations]
  for r, swaps in [(None, found), *found.groupby('relation')]:
    about = fields | {'relation': None if r is None else names[r]}
    others = swaps[~swaps['own']]
    for name, rows in (('flipped', swaps[swaps['own']]), ('kept', others)):
      sums = rows.groupby('subject')[['success', 'counted']].sum().reindex(everyone, fill_value=0)
      ratio = sums['success'], sums['counted']
      records.append(prompts.record(name, *ratio, **about, tried=int(rows['counted'].sum())))
    for other, rows in [] if r is None else others.groupby('asked'):
      if rows['counted'].any():
        ratio = rows['success'], rows['counted']
        records.append(prompts.record('kept one', *ratio, **about, other=names[other]))
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


def examples(prompts: PromptSet, found: pd.DataFrame, fields: dict) -> list[dict]:
  """The first swaps of each relation: Japan, continent Asia → Africa: now says Africa; capital Tokyo, …"""

  def word(swap, token: int) -> str:  # if several attributes begin with it, the first
    relation = prompts.relations[swap.asked]
    return relation.attributes[int(np.argmax(relation.token_A == token))]

  records = []
  for r, swaps in found.groupby('relation'):
    relation = prompts.relations[r]
    for _, rows in list(swaps.groupby('swap'))[:8]:
      (own,), others = rows[rows['own']].itertuples(), []
      for other in rows[~rows['own']].itertuples():
        was = f' (was {word(other, other.before)})' if other.after != other.before else ''
        others.append(f'{prompts.relations[other.asked].name} {word(other, other.after)}{was}')
      subject, wanted = prompts.table.subjects[own.subject], relation.attributes[own.attribute]
      change = f'{subject}, {relation.name} {word(own, own.before)} → {wanted}'
      text = f'{change}: now says {word(own, own.after)}; {", ".join(others)}'
      about = fields | {'relation': relation.name, 'text': text}
      records.append(prompts.record('example', float(own.success), **about))
  return records


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
    for layer, after_B in zip(layers, after_TxB, strict=True):
      for name, like_B in (('donor answer', donor_B), ('own answer', subject_B)):
        same_B = after_B == predicted_SxR[like_B, r]
        records.append(prompts.record(name, same_B, **about, layer=layer))
  return records
