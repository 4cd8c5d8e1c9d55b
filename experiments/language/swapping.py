"""Is the superposition used? One attribute's component is swapped for another's, and everything is asked.

Three groups of subjects: maps are fitted to the first, place and doses chosen on the second, and what
is reported comes from the third. A swap flips if the answer to its relation becomes the one wanted,
and keeps if the answers to the other relations stay what they were; both among facts that are known.

Shapes: S subjects of a group, D width, A attributes, R relations, W swaps.
"""

import dataclasses
import functools

import numpy as np

from experiments.language.scenes import Scene
from geomem.inside import ridge

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
    w_PxD = ridge.weights(np.concatenate(parts, axis=1), self.read_SxD[self.fit_T])
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

  def length(self, moves) -> float:
    """Of moves, on average, as a share of how far representations are from their mean."""
    far = self.read_SxD - self.read_SxD.mean(axis=0)
    mean = lambda x: np.linalg.norm(x, axis=1).mean()
    return float(mean(np.concatenate(moves)) / mean(far))

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


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
  """What the model says after swaps of one relation; -1 where it was not asked, as it did not know before."""

  swaps: Swaps
  said_WxR: np.ndarray
  flips_W: np.ndarray
  stays_WxR: np.ndarray
  others_WxR: np.ndarray


def outcomes(
  scene: Scene, place: int, all_swaps, moves, keep=1.0, everything=False
) -> list[Outcome]:
  """Every swap asked for its own relation and for the others that were known, or for `everything`."""
  relations = np.arange(len(scene.relations))
  asked = [everything | scene.seen['known'][x.subject_W] | (relations == x.r) for x in all_swaps]
  w_B, r_B = np.nonzero(np.concatenate(asked))
  subject_W, move_WxD = (np.concatenate(a) for a in ([x.subject_W for x in all_swaps], moves))
  end_BxD = scene.changed(r_B, subject_W[w_B], place, keep, move_WxD[w_B])
  said_WxR = np.full((len(subject_W), len(relations)), -1)
  for r in np.unique(r_B):
    said_WxR[w_B[r_B == r], r] = scene.says(r, end_BxD[r_B == r])
  found = []
  for swaps in all_swaps:
    said, said_WxR = np.split(said_WxR, [len(swaps.subject_W)])
    others_WxR = scene.seen['known'][swaps.subject_W] & (relations != swaps.r)
    stays_WxR = (said == scene.seen['said'][swaps.subject_W]) & others_WxR
    flips_W = said[:, swaps.r] == scene.relations[swaps.r].token_A[swaps.wanted_W]
    found.append(Outcome(swaps, said, flips_W, stays_WxR, others_WxR))
  return found


def score(found: list[Outcome]) -> float:
  """Share flipped × share kept: what place, dose and rank are chosen by."""
  total = lambda of: sum(of(o).sum() for o in found)
  flipped = total(lambda o: o.flips_W) / max(1, total(lambda o: np.ones(len(o.flips_W))))
  return float(flipped * total(lambda o: o.stays_WxR) / max(1, total(lambda o: o.others_WxR)))


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
      tried[place, dose] = score(outcomes(scene, place, dev, [dose * move for move in moves]))
  place, dose = max(tried, key=tried.get)
  about = {'seed': seed, 'subjects': len(report_S)}
  records = [
    scene.record(
      'chosen', **about, place=at, dose=by, value=value, chosen=(at, by) == (place, dose)
    )
    for (at, by), value in tried.items()
  ]
  mover = Mover(scene, seed, fit_T, place)
  best = {**dict.fromkeys(ARMS, dose), **_own_doses(scene, mover, dev, setting)}
  for arm in ARMS:
    moves = [mover.move(arm, swaps) for swaps in test]
    for by in setting.doses if arm == 'superposition' else setting.choices:
      told = arm == 'superposition' and by == dose
      found = outcomes(scene, place, test, [by * move for move in moves], everything=told)
      fields = {**about, 'control': arm, 'place': place, 'dose': by, 'chosen': by == best[arm]}
      fields['length'] = by * mover.length(moves)
      records += records_of(scene, found, fields)
      if told:
        records += examples(scene, found, {**about, 'place': place, 'dose': dose})
  donors = [_donors(scene, seed, fit_T, place, swaps) for swaps in test]
  found = outcomes(scene, place, test, donors, keep=0.0)
  fields = {**about, 'control': "donor's whole vector", 'place': place, 'chosen': True}
  return records + records_of(scene, found, fields)


def _own_doses(scene: Scene, mover: Mover, dev, setting) -> dict[str, float]:
  """The doses of the other methods that are no controls, chosen on the second group as well."""
  best = {}
  for arm in ('embedding maps', 'class means'):
    moves = [mover.move(arm, swaps) for swaps in dev]
    tried = {
      dose: score(outcomes(scene, mover.place, dev, [dose * move for move in moves]))
      for dose in setting.choices
    }
    best[arm] = max(tried, key=tried.get)
  return best


def records_of(scene: Scene, found: list[Outcome], fields) -> list[dict]:
  """Of all swaps, of each relation's, and of what they do to each other relation."""
  subjects, records = len(scene.table.subjects), []

  def per_subject(of):
    total = np.zeros(subjects)
    for o in found:
      np.add.at(total, o.swaps.subject_W, of(o))
    return total

  def both(relation, mine):
    one = lambda o: np.ones(len(o.flips_W)) * mine(o)
    pairs = {
      'flipped': (per_subject(lambda o: o.flips_W * mine(o)), per_subject(one)),
      'kept': (
        per_subject(lambda o: o.stays_WxR.sum(1) * mine(o)),
        per_subject(lambda o: o.others_WxR.sum(1) * mine(o)),
      ),
    }
    for name, (top, bottom) in pairs.items():
      tried = int(bottom.sum())
      records.append(
        scene.ratio(name, top, bottom, **{**fields, 'relation': relation, 'tried': tried})
      )

  both(None, lambda o: 1)
  for o in found:
    r = o.swaps.r
    both(scene.relations[r].name, lambda other, r=r: other.swaps.r == r)
    for other in np.flatnonzero(o.others_WxR.any(axis=0)):
      top, bottom = o.stays_WxR[:, other], o.others_WxR[:, other]
      about = {'relation': scene.relations[r].name, 'other': scene.relations[other].name}
      records.append(scene.ratio('kept one', top, bottom, **fields, **about))
  return records


def _donors(scene: Scene, seed: int, fit_T, place: int, swaps: Swaps) -> np.ndarray:
  """For every swap the residual of somebody of whom the model says what is wanted, if there is one."""
  rng, relation = np.random.default_rng((seed, 7)), scene.relations[swaps.r]
  donors = []
  for a in swaps.wanted_W:
    have_T = fit_T[relation.right_SxA[fit_T, a]]
    say_T = have_T[scene.seen['said'][have_T, swaps.r] == relation.token_A[a]]
    donors.append(rng.choice(say_T if len(say_T) else have_T))
  return scene.seen['read'][donors, place]


def examples(scene: Scene, found: list[Outcome], fields) -> list[dict]:
  """A few swaps of each relation, in words: what was wanted, and what it says now to every relation."""
  words = lambda tokens: {
    x.name: x.attributes[int(np.argmax(x.token_A == token))]
    for x, token in zip(scene.relations, tokens, strict=True)
  }
  records = []
  for o in found:
    relation = scene.relations[o.swaps.r]
    for s, wanted, said_R, flips in list(
      zip(o.swaps.subject_W, o.swaps.wanted_W, o.said_WxR, o.flips_W, strict=True)
    )[:8]:
      about = {
        'relation': relation.name, 'subject': scene.table.subjects[s],
        'wanted': relation.attributes[wanted], 'before': words(scene.seen['said'][s]),
        'after': words(said_R),
      }  # fmt: skip
      records.append(scene.record('example', **fields, **about, value=float(flips)))
  return records


# --- where in depth the fact leaves the subject ----------------------------------------------------


def depth(scene: Scene, setting, seed: int) -> list[dict]:
  """How often a donor's whole vector, put in after each block, brings the donor's answer, or leaves one's own."""
  rng, records = np.random.default_rng((seed, 8)), []
  known_SxR, said_SxR = scene.seen['known'], scene.seen['said']
  for r, relation in enumerate(scene.relations):
    subjects = rng.permutation(np.flatnonzero(known_SxR[:, r]))[: setting.pairs]
    donors = [
      rng.choice(others)
      if len(others := np.flatnonzero(known_SxR[:, r] & (said_SxR[:, r] != own)))
      else -1
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
