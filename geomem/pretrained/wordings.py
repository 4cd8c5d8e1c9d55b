"""CSV files: how to ask a language model for relations, and a user's own facts.

A prompt is a frame with {} for the subject, followed by a wording of the relation: "Here are some
facts about {}." and "The color of its flag is". New frames and new wordings are not trained on,
only asked afterwards.
"""

import csv
import dataclasses
import os
from collections.abc import Sequence

from geomem.errors import InputError
from geomem.pretrained.prompts import Relation

COLUMNS = ['relation', 'part', 'text']
COMMON = 'frame', 'new frame', 'no relation'  # parts that belong to no relation
PARTS = *COMMON, 'wording', 'new wording', 'answer'
FACT = ['subject', 'relation', 'answer']


@dataclasses.dataclass(frozen=True)
class Wordings:
  """`frames`, `new_frames` and `no_relation` (wordings that ask for none) are shared by all relations; `wordings`,
  `new_wordings` and `answers` are per relation."""

  frames: tuple[str, ...]
  new_frames: tuple[str, ...]
  no_relation: tuple[str, ...]
  wordings: dict[str, tuple[str, ...]]
  new_wordings: dict[str, tuple[str, ...]]
  answers: dict[str, tuple[str, ...]]

  def relations(
    self, wordings: int | None = None, answers: int | None = None, names: Sequence[str] = (),
    new_frames: bool = False, new_wordings: bool = False,
  ) -> list[Relation]:  # fmt: skip
    """Every wording in every frame. `wordings`, `answers`: how many of each per relation, the first ones (default: all);
    `names`: only these relations. `new_frames`, `new_wordings`: use the new ones instead."""
    frames = self.new_frames if new_frames else self.frames
    own = self.new_wordings if new_wordings else self.wordings
    return [
      Relation(
        name, self.answers[name][:answers],
        tuple(f'{frame} {sentence(text)}' for frame in frames for text in own[name][:wordings]),
      )
      for name in names or self.answers
    ]  # fmt: skip


def sentence(text: str) -> str:
  return text[0].upper() + text[1:]


def read(path: str | os.PathLike) -> Wordings:
  """Read a CSV file with the columns relation, part and text. The parts `frame`, `new frame` and `no relation` have no
  relation; `wording`, `new wording` and `answer` have one, but an answer without a relation belongs to all relations."""
  rows = _rows(path, COLUMNS)
  found: dict[str, dict[str, list[str]]] = {part: {} for part in PARTS}
  for relation, part, text in rows:
    if part not in PARTS:
      raise InputError(f'{path}: {part!r} is no part; there are {", ".join(PARTS)}')
    if (part in COMMON) == bool(relation) and part != 'answer':
      needs = 'belongs to no relation' if relation else 'needs a relation'
      raise InputError(f'{path}: the {part} {text!r} {needs}')
    texts = found[part].setdefault(relation, [])
    if text in texts:
      raise InputError(f'{path}: the {part} {text!r} is there twice')
    texts.append(text)
  names = list(dict.fromkeys(relation for relation, _, _ in rows if relation))
  for name in names:
    if name not in found['wording']:
      raise InputError(f'{path}: {name} has no wording')
  common = lambda part: tuple(found[part].get('', ()))
  of_each = lambda part: {name: (*common(part), *found[part].get(name, ())) for name in names}
  frames, new_frames, of_none = map(common, COMMON)
  asked, new, answers = map(of_each, PARTS[len(COMMON) :])
  own = Wordings(frames, new_frames, of_none, asked, new, answers)
  if not own.frames or not names:
    raise InputError(f'{path}: needs a frame with {{}} for the subject, and relations')
  own.relations()  # raises if one is invalid
  return own


def read_facts(path: str | os.PathLike) -> dict[str, dict[str, str]]:
  """Read a CSV file with the columns subject, relation and answer: the facts that a fact encoder turns into rows."""
  found: dict[str, dict[str, str]] = {}
  for subject, relation, answer in _rows(path, FACT):
    own = found.setdefault(subject, {})
    if relation in own:
      raise InputError(f'{path}: {subject!r} has two answers to {relation!r}')
    own[relation] = answer
  return found


def _rows(path: str | os.PathLike, columns: list[str]) -> list[list[str]]:
  """The rows below the header, which is required."""
  found = []
  try:
    with open(path, newline='', encoding='utf-8-sig') as file:
      reader = csv.reader(file)
      for row in reader:
        if any(fields := [field.strip() for field in row]):
          found.append((reader.line_num, fields))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise InputError(f'{path}: not a CSV file that can be read: {error}') from error
  if not found or found[0][1] != columns:
    raise InputError(f'{path}: the first line must be {",".join(columns)}')
  for number, row in found[1:]:
    if len(row) != len(columns) or not all(
      row[columns == COLUMNS :]
    ):  # a part may have no relation
      raise InputError(f'{path}: line {number} is not {", ".join(columns)}: {",".join(row)[:60]!r}')
  return [row for _, row in found[1:]]
