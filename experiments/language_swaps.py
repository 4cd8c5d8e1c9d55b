"""Is the superposition used? One attribute's component is swapped for another's, and everything is asked.

Three groups of subjects: maps are fitted to the first, place and doses chosen on the second, and what
is reported comes from the third. A swap flips if the answer to its relation becomes the one wanted,
and keeps if the answers to the other relations stay what they were; both among facts that are known.

Shapes: S subjects of a group, D width, A attributes, R relations, W swaps.
"""

import dataclasses
import functools

import numpy as np

from experiments import language_structure
from experiments.language_scene import COPIES, Scene
from geomem.pretrained import linear, relational

SPLIT = (0.6, 0.15)  # shares to fit to and to choose on; the rest is for the report
ARMS = ('superposition', 'embedding maps', 'class means', 'shuffled facts', 'random direction')


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


class Mover:
  """What carries a subject from its own attributes to a wanted one, at one place, by several methods."""

  def __init__(self, scene: Scene, seed: int, fit_T, place: int):
    self.scene, self.fit_T, self.place = scene, fit_T, place
    self.rng = np.random.default_rng((seed, place, 5))
    self.read_SxD = scene.seen['read'][:, place].astype(np.float64)
    relations = scene.table.superposed
    hot = [scene.relations[r].right_SxA[fit_T][:, scene.shared(r, fit_T)] for r in relations]
    self.hot = self._fitted(relations, [part.astype(float) for part in hot])
    order = self.rng.permutation(len(fit_T))
    self.shuffled = self._fitted(relations, [part[order].astype(float) for part in hot])
    self.maps = self._fitted(relations, [self._mean_vector(r)[fit_T] for r in relations])

  def _fitted(self, relations, parts) -> dict[int, np.ndarray]:
    """One ridge regression for all relations, cut into a matrix for each."""
    sizes = np.cumsum([part.shape[1] for part in parts])[:-1]
    w_PxD = linear.weights(np.concatenate(parts, axis=1), self.read_SxD[self.fit_T])
    return dict(zip(relations, np.split(w_PxD, sizes), strict=True))

  def _mean_vector(self, r: int) -> np.ndarray:
    right_SxA = self.scene.relations[r].right_SxA.astype(float)
    count_S = np.maximum(right_SxA.sum(axis=1, keepdims=True), 1)
    return right_SxA @ self.scene.vectors[r] / count_S

  def move(self, arm: str, swaps: Swaps) -> np.ndarray:
    """WxD; what is drawn at random, or fitted to shuffled facts, is as long as the superposition's."""
    relation, r = self.scene.relations[swaps.r], swaps.r
    own_WxA, wanted = relation.right_SxA[swaps.subject_W].astype(float), swaps.wanted_W
    change_WxA = np.eye(len(relation.attributes))[wanted] - own_WxA
    shared = self.scene.shared(r, self.fit_T)
    straight = change_WxA[:, shared] @ self.hot[r]
    if arm == 'superposition':
      return straight
    if arm == 'embedding maps':
      difference = self.scene.vectors[r][wanted] - self._mean_vector(r)[swaps.subject_W]
      return difference @ self.maps[r]
    if arm == 'class means':
      return self._class_means(r)[wanted] - self._own_mean(r, swaps.subject_W)
    other = change_WxA[:, shared] @ self.shuffled[r]
    if arm == 'random direction':
      other = self.rng.standard_normal(straight.shape)
    length = functools.partial(np.linalg.norm, axis=1, keepdims=True)
    return other * length(straight) / np.maximum(length(other), 1e-9)

  def _class_means(self, r: int) -> np.ndarray:
    """Of those who have an attribute, AxD; of all, where nobody has."""
    right_TxA = self.scene.relations[r].right_SxA[self.fit_T].astype(float)
    count_A, read_TxD = right_TxA.sum(axis=0), self.read_SxD[self.fit_T]
    mean_AxD = right_TxA.T @ read_TxD / np.maximum(count_A, 1)[:, None]
    return np.where(count_A[:, None] > 0, mean_AxD, read_TxD.mean(axis=0))

  def _own_mean(self, r: int, subject_W) -> np.ndarray:
    own_WxA = self.scene.relations[r].right_SxA[subject_W].astype(float)
    return own_WxA @ self._class_means(r) / np.maximum(own_WxA.sum(axis=1, keepdims=True), 1)


def draw(scene: Scene, seed: int, fit_T, group_S) -> list[Swaps]:
  """Of every known fact of the group one swap, to an attribute that enough others have."""
  rng, found = np.random.default_rng((seed, 6)), []
  for r in scene.table.superposed:
    relation = scene.relations[r]
    if scene.seen['known'][fit_T, r].mean() < 0.5:
      continue
    subjects, wanted = [], []
    for s in group_S[scene.seen['known'][group_S, r]]:
      own = relation.token_A[relation.right_SxA[s]]
      choice = np.flatnonzero(scene.shared(r, fit_T) & ~np.isin(relation.token_A, own))
      if len(choice):
        subjects.append(s)
        wanted.append(rng.choice(choice))
    if subjects:
      found.append(Swaps(r, np.array(subjects), np.array(wanted)))
  return found


def outcome(scene: Scene, place: int, all_swaps, moves, keep=1.0):
  """Per subject, summed over its swaps: flipped, tried, kept, others; and the answers WxR of each."""
  count = len(scene.table.subjects)
  sums, said = np.zeros((4, count)), []
  for swaps, move in zip(all_swaps, moves, strict=True):
    ends = [
      scene.changed(r, swaps.subject_W, place, keep, move) for r in range(len(scene.relations))
    ]
    said_WxR = np.stack([scene.says(r, end) for r, end in enumerate(ends)], axis=1)
    wanted = scene.relations[swaps.r].token_A[swaps.wanted_W]
    stays = said_WxR == scene.seen['said'][swaps.subject_W]
    others = scene.seen['known'][swaps.subject_W].copy()
    others[:, swaps.r] = False
    flips = said_WxR[:, swaps.r] == wanted
    for row, value in zip(sums, (flips, 1, (stays & others).sum(1), others.sum(1)), strict=True):
      np.add.at(row, swaps.subject_W, value)
    said.append(said_WxR)
  return sums, said


def score(sums) -> float:
  """Share flipped × share kept: what place, dose and rank are chosen by."""
  flipped, tried, kept, others = sums.sum(axis=1)
  return flipped / max(tried, 1) * kept / max(others, 1)


def measure(scene: Scene, setting, seed: int) -> list[dict]:
  """Records of all arms on the third group of subjects, and examples to be read."""
  fit_T, choose_S, report_S = split(seed, len(scene.table.subjects))
  dev, test = (draw(scene, seed, fit_T, group) for group in (choose_S, report_S))
  if not dev or not test:
    return []
  tried = {}
  for place in setting.edits:
    mover = Mover(scene, seed, fit_T, place)
    moves = [mover.move('superposition', swaps) for swaps in dev]
    for dose in setting.choices:
      sums, _ = outcome(scene, place, dev, [dose * move for move in moves])
      tried[place, dose] = score(sums)
  place, dose = max(tried, key=tried.get)
  about = {'seed': seed, 'subjects': len(report_S)}
  records = [
    scene.record('chosen', **about, place=at, dose=by, value=value, chosen=(at, by) == (place, dose))
    for (at, by), value in tried.items()
  ]
  mover = Mover(scene, seed, fit_T, place)
  best = {**dict.fromkeys(ARMS, dose), **_own_doses(scene, mover, dev, setting)}
  for arm in ARMS:
    moves = [mover.move(arm, swaps) for swaps in test]
    for by in setting.doses if arm == 'superposition' else setting.choices:
      sums, said = outcome(scene, place, test, [by * move for move in moves])
      fields = {**about, 'control': arm, 'place': place, 'dose': by, 'chosen': by == best[arm]}
      records += _records(scene, sums, fields)
      if arm == 'superposition' and by == dose:
        records += examples(scene, test, said, {**about, 'place': place, 'dose': dose})
  donors = [_donors(scene, seed, fit_T, place, swaps) for swaps in test]
  sums, _ = outcome(scene, place, test, donors, keep=0.0)
  fields = {**about, 'control': "donor's whole vector", 'place': place, 'chosen': True}
  return records + _records(scene, sums, fields)


def _own_doses(scene: Scene, mover: Mover, dev, setting) -> dict[str, float]:
  """The doses of the other methods that are no controls, chosen on the second group as well."""
  best = {}
  for arm in ('embedding maps', 'class means'):
    moves = [mover.move(arm, swaps) for swaps in dev]
    tried = {
      dose: score(outcome(scene, mover.place, dev, [dose * move for move in moves])[0])
      for dose in setting.choices
    }
    best[arm] = max(tried, key=tried.get)
  return best


def _records(scene: Scene, sums, fields) -> list[dict]:
  flipped, tried, kept, others = sums
  return [
    scene.ratio('flipped', flipped, tried, **fields, tried=int(tried.sum())),
    scene.ratio('kept', kept, others, **fields, tried=int(others.sum())),
  ]


def _donors(scene: Scene, seed: int, fit_T, place: int, swaps: Swaps) -> np.ndarray:
  """For every swap the residual of somebody who has the attribute that is wanted."""
  rng, right_SxA = np.random.default_rng((seed, 7)), scene.relations[swaps.r].right_SxA
  donors = [rng.choice(fit_T[right_SxA[fit_T, a]]) for a in swaps.wanted_W]
  return scene.seen['read'][donors, place]


def examples(scene: Scene, all_swaps, said, fields) -> list[dict]:
  """A few swaps of each relation, in words: what was wanted, and what it says now to every relation."""
  records = []
  for swaps, said_WxR in zip(all_swaps, said, strict=True):
    for i in range(min(8, len(swaps.subject_W))):
      s, wanted = swaps.subject_W[i], swaps.wanted_W[i]
      relation = scene.relations[swaps.r]
      words = lambda tokens: {
        x.name: x.attributes[int(np.argmax(x.token_A == token))]
        for x, token in zip(scene.relations, tokens, strict=True)
      }
      records.append(scene.record(
        'example', **fields, relation=relation.name, subject=scene.table.subjects[s],
        wanted=relation.attributes[wanted], before=words(scene.seen['said'][s]),
        after=words(said_WxR[i]),
        value=float(said_WxR[i, swaps.r] == relation.token_A[wanted]),
      ))  # fmt: skip
  return records


# --- where in depth the fact leaves the subject ----------------------------------------------------


def depth(scene: Scene, setting, seed: int) -> list[dict]:
  """How often a donor's whole vector, put in after each block, brings the donor's answer, or leaves one's own."""
  rng, records = np.random.default_rng((seed, 8)), []
  known_SxR, said_SxR = scene.seen['known'], scene.seen['said']
  for r, relation in enumerate(scene.relations):
    subjects = rng.permutation(np.flatnonzero(known_SxR[:, r]))[: setting.pairs]
    donors = [
      rng.choice(others) if len(others := np.flatnonzero(known_SxR[:, r] & (said_SxR[:, r] != own))) else -1
      for own in said_SxR[subjects, r]
    ]
    subjects, donors = (np.array(a)[np.array(donors) >= 0] for a in (subjects, donors))
    if not len(subjects):
      continue
    places = np.repeat(setting.places, len(subjects))
    who, whose = (np.tile(a, len(setting.places)) for a in (subjects, donors))
    end = scene.changed(r, who, places, 0.0, scene.seen['read'][whose, places], first=0)
    said = scene.says(r, end)
    for place in setting.places:
      at = places == place
      for name, like in (('donor answer', whose), ('own answer', who)):
        same = said[at] == said_SxR[like[at], r]
        records.append(scene.ratio(
          name, same, np.ones(at.sum()), seed=seed, relation=relation.name, place=place,
          subjects=int(at.sum()),
        ))  # fmt: skip
  return records


# --- beside linear relational embeddings -----------------------------------------------------------


def relational_embeddings(scene: Scene, setting, seed: int) -> list[dict]:
  """Faithfulness and edits of the model's own linearization, on the subjects of `measure`."""
  fit_T, choose_S, report_S = split(seed, len(scene.table.subjects))
  dev, test = (draw(scene, seed, fit_T, group) for group in (choose_S, report_S))
  rng, records, edits = np.random.default_rng((seed, 9)), [], {}
  for r, relation in enumerate(scene.relations):
    known_T = rng.permutation(fit_T[scene.seen['known'][fit_T, r]])[: setting.examples]
    if relation.name in COPIES or len(known_T) < setting.examples:
      continue
    found = {}
    jacobian_ExTxDxD = np.stack([scene.jacobian(r, s, setting.linearized) for s in known_T])
    for i, place in enumerate(setting.linearized):
      s_ExD, o_ExD = scene.seen['read'][known_T, place], scene.seen['end'][known_T, r]
      found[place] = relational.embedding(jacobian_ExTxDxD[:, i], s_ExD, o_ExD)
    records += _faithfulness(scene, setting, seed, r, found, (fit_T, choose_S, report_S))
    edits[r] = found
  swapped = [[swaps for swaps in group if swaps.r in edits] for group in (dev, test)]
  return records + (_edits(scene, setting, seed, fit_T, edits, *swapped) if all(swapped) else [])


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
    guess_SxD = linear.predict([linear.kernel(x_SxD)], y_SxD, fit_T, known)
    near = relation.token_A[language_structure.nearest(scene.vectors[r], guess_SxD)]
    place_, arm = (None, 'own token') if at == 'own token' else (at, 'fitted readout')
    same = near == scene.seen['said'][known, r]
    records.append(scene.ratio('faithful', same, one, **about, place=place_, control=arm))
  return records


def _edits(scene: Scene, setting, seed, fit_T, edits, dev, test) -> list[dict]:
  """Flipped and kept of the pseudo-inverse's edits, place and rank chosen on the second group."""

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
    (place, rank): score(outcome(scene, place, dev, moves(dev, place, rank))[0])
    for place in setting.linearized for rank in setting.ranks
  }  # fmt: skip
  place, rank = max(tried, key=tried.get)
  records = []
  for at in setting.ranks:
    sums, _ = outcome(scene, place, test, moves(test, place, at))
    fields = {'seed': seed, 'subjects': int((sums[1] > 0).sum()), 'place': place, 'rank': at}
    fields |= {'control': 'relational embedding', 'chosen': at == rank}
    records += _records(scene, sums, fields)
  return records
