"""A table of facts in one frame of words: its prompts, and what the model was seen to do with them.

Shapes: S subjects, R relations, T places, L length, D width, A attributes of a relation, B prompts.
"""

import dataclasses
import functools

import numpy as np

from experiments.harness import statistics
from geomem import tables
from geomem.errors import InputError
from geomem.pretrained import asking, decoder
from geomem.pretrained.asking import Frame

FRAMES = {
  'countries': (
    Frame('Here are some facts about ', {
      'continent': '. The country lies on the continent of', 'capital': '. The capital city is',
      'language': '. The official language is', 'demonym': '. The people there are called'}),
    Frame('A question about ', {
      'continent': ', a country on the continent of', 'capital': ', whose capital is',
      'language': ', where people speak', 'demonym': ', the country of the'}),
    Frame('The following is about ', {
      'continent': '. This country is located in', 'capital': '. The name of its capital city is',
      'language': '. The main language of the country is', 'demonym': '. A person from there is'}),
  ),
  'elements': (
    Frame('Here are some facts about ', {
      'symbol': '. Its chemical symbol is', 'kind': '. This chemical element is a',
      'state': '. At room temperature it is a'}),
    Frame('I would like to tell you about the element ', {
      'symbol': ', whose symbol is', 'kind': '. In the periodic table it is classified as a',
      'state': '. At room temperature, this element is a'}),
  ),
}  # fmt: skip
COPIES = ('demonym', 'symbol')  # spelled much like the subject: its token would pass for structure
SHARED = 3  # subjects that an attribute needs to have a vector of its own


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """`rows`: relation → subject → attributes. `frames`: at least one."""

  name: str
  rows: dict
  subjects: tuple[str, ...]
  frames: tuple[Frame, ...]

  @property
  def relations(self) -> tuple[str, ...]:
    return tuple(self.rows)

  @property
  def superposed(self) -> tuple[int, ...]:
    """Relations whose attributes may make up the representation."""
    return tuple(r for r, name in enumerate(self.rows) if name not in COPIES)


def read(name: str, path, most: int | None = None) -> Table:
  """The table in that file, or `most` of its subjects, drawn alike from all of it, and their relations."""
  rows = tables.read_many(path)
  subjects = sorted({subject for column in rows.values() for subject in column})
  if len(subjects) < 16:
    raise InputError(f'{path}: {len(subjects)} subjects; at least 16 are needed to hold some out')
  if most and most < len(subjects):
    chosen = np.random.default_rng(0).permutation(len(subjects))[:most]
    subjects = [subjects[i] for i in sorted(chosen)]
    rows = {r: column for r, column in rows.items() if not column.keys().isdisjoint(subjects)}
  plain = Frame('Here are some facts about ', {r: f'. The {r} is' for r in rows})
  frames = FRAMES.get(name, (plain,))
  return Table(
    name, rows, tuple(subjects), frames if set(rows) <= set(frames[0].after) else (plain,)
  )


class Scene:
  """Everything that is asked of one table in one frame. `seen`: what was observed, if it was."""

  def __init__(self, asker: asking.Asker, table: Table, frame: int, places, seen=None):
    self.asker, self.table, self.frame, self.places = asker, table, frame, places
    words = table.frames[frame]
    self.relations = asking.relations(asker.model, table.rows, table.subjects, words)
    self.prompts = asking.prompts(asker.model, table.subjects, table.relations, words)
    self.seen = seen

  @functools.cached_property
  def _older(self):
    return self.asker.older(self.prompts)

  def older(self, subjects_B) -> decoder.Older:
    return decoder.Older(self._older[subjects_B], self.prompts.count_S[subjects_B])

  @functools.cached_property
  def _streams(self):
    """Residuals of the subjects SxTxD, of the ends SxRxD, and the stream at the places, by relation."""
    p, everyone = self.prompts, np.arange(len(self.table.subjects))
    length_R, longest = p.last_SxR.max(axis=0) + 1, p.tokens_SxRxL.shape[-1]
    reads, ends, streams = [], [], []
    for r, length in enumerate(length_R):  # what comes later only costs
      read, end, stream = self.asker.stream(
        p.tokens_SxRxL[:, r, :length], self.older(everyone), p.last_SxR[:, r], (0, *self.places)
      )
      reads.append(read)
      ends.append(end)
      streams.append(np.pad(stream, ((0, 0), (0, 0), (0, longest - length), (0, 0))))
    return reads[0], np.stack(ends, axis=1), np.stack(streams)

  def observe(self) -> dict[str, np.ndarray]:
    """Residuals SxTxD of the subjects, ends SxRxD, answers SxR, known SxR, the names' tokens SxD."""
    read_SxTxD, end_SxRxD, _ = self._streams
    said_SxR = np.stack([self.says(r, end_SxRxD[:, r]) for r in range(len(self.relations))], axis=1)
    subjects_S = np.arange(len(said_SxR))
    known = [asking.is_right(x, subjects_S, said_SxR[:, r]) for r, x in enumerate(self.relations)]
    tokens_SxRxL = self.prompts.tokens_SxRxL
    return {
      'read': read_SxTxD,
      'end': end_SxRxD,
      'said': said_SxR,
      'known': np.stack(known, axis=1),
      'token': self.embedded(tokens_SxRxL[:, 0, :1]),
      'name': np.stack([self.embedded(self._ids(s)) for s in self.table.subjects]),
    }

  def _ids(self, text: str):
    return np.array(self.asker.model.tokenizer.encode(f' {text}'))

  def embedded(self, ids):
    """The mean of tokens' embeddings."""
    return np.asarray(self.asker.model.params['embed']['tokens'][np.asarray(ids)]).mean(axis=-2)

  @functools.cached_property
  def vectors(self) -> list[np.ndarray]:
    """For every relation its attributes' token embeddings, AxD."""
    return [np.stack([self.embedded(self._ids(a)) for a in x.attributes]) for x in self.relations]

  def says(self, r: int, end_BxD) -> np.ndarray:
    """The likeliest token among the relation's attributes."""
    relation = self.relations[r]
    return asking.answer(relation, self.asker.logits(end_BxD, relation.token_A))

  def changed(self, r_B, subjects_B, place, keep: float, add_BxD, first=None) -> np.ndarray:
    """Ends BxD of prompts, once the subjects' residuals at `place` (one, or one each) are changed."""
    first = place if first is None else first
    x_BxLxD = self._streams[2][r_B, subjects_B, (0, *self.places).index(first)]
    patch = asking.patch(place, keep, add_BxD)
    last_B = self.prompts.last_SxR[subjects_B, r_B]
    return self.asker.changed(x_BxLxD, first, patch, self.older(subjects_B), last_B)

  def jacobian(self, r: int, s: int, places) -> np.ndarray:
    """TxDxD at these places, the first of which is one of the scene's."""
    x_LxD = self._streams[2][r, s, (0, *self.places).index(places[0])]
    older = decoder.Older(self._older[s], self.prompts.count_S[s])
    last = self.prompts.last_SxR[s, r]
    x_LxD = x_LxD[: self.prompts.last_SxR[:, r].max() + 1]  # what comes later only costs
    return self.asker.jacobian(x_LxD, places, older, last)

  def shared(self, r: int, subjects=slice(None)) -> np.ndarray:
    """Which attributes enough of these subjects have."""
    return self.relations[r].right_SxA[subjects].sum(axis=0) >= SHARED

  def record(self, measurement: str, **fields) -> dict:
    """A record that says where it comes from; what does not apply is null."""
    names = (
      'relation',
      'other',
      'features',
      'control',
      'place',
      'dose',
      'rank',
      'length',
      'chosen',
      'low',
    )
    blank = dict.fromkeys((*names, 'high'))
    return {
      'claim': 8, 'measurement': measurement, 'model': self.asker.model.name,
      'table': self.table.name, 'frame': self.frame, 'seed': None,
      'subjects': len(self.table.subjects), **blank, **fields,
    }  # fmt: skip

  def ratio(self, measurement: str, top_S, bottom_S, **fields) -> dict:
    return self.record(measurement, **fields, **statistics.ratio(top_S, bottom_S))
