"""Linear relational embeddings (Hernandez et al., 2023) beside what is fitted: faithfulness, and edits.

Subjects are split as for the swaps: examples come from the first group, place, β and rank are chosen
on the second, and what is reported comes from the third.
"""

import numpy as np

from experiments.language import explained, swapping
from experiments.language.scenes import COPIES, Scene
from geomem.inside import ridge
from geomem.pretrained import relational


def measure(scene: Scene, setting, seed: int) -> list[dict]:
  """Faithfulness and edits of the model's own linearization, on the subjects of `measure`.

  Of the relations of which it knows enough examples, and a fact in each of the other two groups.
  """
  fit_T, choose_S, report_S = swapping.split(seed, len(scene.table.subjects))
  dev, test = (swapping.draw(scene, seed, fit_T, group) for group in (choose_S, report_S))
  rng, records, edits = np.random.default_rng((seed, 9)), [], {}
  for r, relation in enumerate(scene.relations):
    known_S = scene.seen['known'][:, r]
    known_T = rng.permutation(fit_T[known_S[fit_T]])[: setting.examples]
    if relation.name in COPIES or len(known_T) < setting.examples:
      continue
    if not (known_S[choose_S].any() and known_S[report_S].any()):
      continue
    found = {}
    jacobian_ExTxDxD = np.stack([scene.jacobian(r, s, setting.linearized) for s in known_T])
    for i, place in enumerate(setting.linearized):
      s_ExD, o_ExD = scene.seen['read'][known_T, place], scene.seen['end'][known_T, r]
      found[place] = relational.embedding(jacobian_ExTxDxD[:, i], s_ExD, o_ExD)
    records += _faithfulness(scene, setting, seed, r, found, (fit_T, choose_S, report_S))
    edits[r] = found
  swapped = [[swaps for swaps in group if swaps.r in edits] for group in (dev, test)]
  return records + (
    _edits(scene, setting, seed, (fit_T, report_S), edits, *swapped) if all(swapped) else []
  )


def _faithfulness(scene: Scene, setting, seed, r, found, groups) -> list[dict]:
  """How often a linear map from the representation says what the model says: by Jacobian, and by ridge."""
  fit_T, choose_S, report_S = groups
  relation, read, end = scene.relations[r], scene.seen['read'], scene.seen['end'][:, r]

  def agrees(group, place, beta, everywhere=False):
    known = group[scene.seen['known'][group, r]]
    guess = relational.guess(found[place], read[known, place], beta)
    if everywhere:
      return scene.asker.says(guess) == scene.asker.says(end[known])
    return scene.says(r, guess) == scene.seen['said'][known, r]

  tried = {
    (place, beta): agrees(choose_S, place, beta).mean()
    for place in found for beta in setting.betas
  }  # fmt: skip
  place, beta = max(tried, key=tried.get)
  known = report_S[scene.seen['known'][report_S, r]]
  about = {'seed': seed, 'relation': relation.name, 'subjects': len(known)}
  one = np.ones(len(known))
  records = [
    scene.ratio('faithful', agrees(report_S, place, beta), one, **about, place=place, dose=beta,
                control='relational embedding'),
    scene.ratio('faithful, all tokens', agrees(report_S, place, beta, True), one, **about,
                place=place, dose=beta, control='relational embedding'),
  ]  # fmt: skip
  count_S = np.maximum(relation.right_SxA.sum(axis=1, keepdims=True), 1)
  y_SxD = relation.right_SxA @ scene.vectors[r].astype(np.float64) / count_S
  features = {at: scene.seen['read'][:, at] for at in found} | {'own token': scene.seen['token']}
  for at, x_SxD in features.items():
    guess_SxD = ridge.predict([ridge.kernel(x_SxD)], y_SxD, fit_T, known)
    near = relation.token_A[explained.nearest(scene.vectors[r], guess_SxD)]
    place_, arm = (None, 'own token') if at == 'own token' else (at, 'fitted readout')
    same = near == scene.seen['said'][known, r]
    records.append(scene.ratio('faithful', same, one, **about, place=place_, control=arm))
  return records


def _edits(scene: Scene, setting, seed, groups, edits, dev, test) -> list[dict]:
  """Flipped and kept of the pseudo-inverse's edits, place and rank chosen on the second group."""
  fit_T, report_S = groups

  def moves(group, place, rank):
    found = []
    for swaps in group:
      r, right_SxA = swaps.r, scene.relations[swaps.r].right_SxA
      known_T = fit_T[scene.seen['known'][fit_T, r]]
      have = lambda a, known_T=known_T, right=right_SxA: known_T[right[known_T, a]]
      end_SxD = scene.seen['end'][:, r]
      everyone = end_SxD[known_T].mean(axis=0)
      wanted = [end_SxD[have(a)].mean(axis=0) if len(have(a)) else everyone for a in swaps.wanted_W]
      inverse_DxD = relational.inverse(edits[r][place][0], rank)
      found.append((np.array(wanted) - end_SxD[swaps.subject_W]) @ inverse_DxD.T)
    return found

  tried = {
    (place, rank): swapping.score(swapping.outcomes(scene, place, dev, moves(dev, place, rank)))
    for place in setting.linearized for rank in setting.ranks
  }  # fmt: skip
  place, rank = max(tried, key=tried.get)
  records = []
  for at in setting.ranks:
    found = swapping.outcomes(scene, place, test, moves(test, place, at))
    fields = {'seed': seed, 'subjects': len(report_S), 'place': place, 'rank': at}
    fields |= {'control': 'relational embedding', 'chosen': at == rank}
    records += swapping.records_of(scene, found, fields)
  return records
