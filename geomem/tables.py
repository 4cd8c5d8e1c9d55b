"""User-supplied facts: tables of subject, relation, attribute."""

import csv
import math
import os
import unicodedata
from typing import Any

import numpy as np

from geomem.errors import InputError

COLUMNS = ('subject', 'relation', 'attribute')


def read_table(path: str | os.PathLike) -> dict[str, Any]:
  """The fields of `Facts` in a CSV or TSV file with columns subject, relation, attribute.

  A header is optional. Symbols are numbered in order of appearance. If every attribute is also a
  subject, the facts are closed and can be chained.
  """
  rows = _rows(path)
  subjects, relations, attributes = (
    {name: i for i, name in enumerate(dict.fromkeys(column))} for column in zip(*rows, strict=True)
  )
  if min(len(subjects), len(attributes)) < 2:
    raise InputError(
      f'{path}: {len(subjects)} subject(s) and {len(attributes)} attribute(s); '
      'at least 2 of each are needed to tell one from another'
    )
  closed = attributes.keys() <= subjects.keys()
  if closed:
    attributes = subjects
  given = {}
  for subject, relation, attribute in rows:
    at = relations[relation], subjects[subject]
    if at in given:
      raise InputError(
        f'{path}: {subject!r} has more than one row for relation {relation!r}; give one'
      )
    given[at] = attributes[attribute]
  shape = len(relations), len(subjects)
  if len(given) < math.prod(
    shape
  ):  # checked before allocating the table, which can be the square of the file
    r, s = next(at for at in np.ndindex(shape) if at not in given)
    raise InputError(
      f'{path}: no row for subject {list(subjects)[s]!r} and relation {list(relations)[r]!r}; '
      'every subject needs one row for every relation'
    )
  answers = np.zeros(shape, np.int32)
  for at, answer in given.items():
    answers[at] = answer
  return {
    'answers_RxN': answers,
    'attributes': len(attributes),
    'closed': closed,
    'subject_names': tuple(subjects),
    'relation_names': tuple(relations),
    'attribute_names': tuple(attributes),
  }


def read_many(path: str | os.PathLike) -> dict[str, dict[str, tuple[str, ...]]]:
  """Relation → subject → its attributes, from such a file.

  A pair of a subject and a relation may have no row in it, or several.
  """
  found: dict[str, dict[str, dict[str, None]]] = {}
  for subject, relation, attribute in _rows(path):
    values = found.setdefault(relation, {}).setdefault(subject, {})
    values[attribute] = None
  return {
    relation: {subject: tuple(values) for subject, values in subjects.items()}
    for relation, subjects in found.items()
  }


def plain(name: str) -> str:
  """One spelling for names that look the same."""
  return ' '.join(unicodedata.normalize('NFC', name).split())


def _rows(path) -> list[tuple[str, str, str]]:
  """The file's non-empty rows without the header, each three non-empty names spelled by `plain`."""
  delimiter = '\t' if str(path).lower().endswith('.tsv') else ','
  rows: list[tuple[str, str, str]] = []
  try:
    with open(path, newline='', encoding='utf-8-sig') as file:
      reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
      for cells in reader:
        row = tuple(map(plain, cells))
        if any('\0' in cell for cell in row):
          raise csv.Error('a NUL character, which no name has')
        if not any(row) or (not rows and tuple(c.lower() for c in row) == COLUMNS):
          continue
        if len(row) != 3 or not all(row):
          raise InputError(
            f'{path}, line {reader.line_num}: {delimiter.join(row)!r} is not three names '
            f'(subject, relation, attribute) separated by {"tabs" if delimiter != "," else "commas"}'
          )
        rows.append(row)
  except OSError as error:
    raise InputError(f'{path}: cannot be read: {error.strerror}') from error
  except UnicodeDecodeError as error:
    raise InputError(f'{path}: not a text table in UTF-8: {error}') from error
  except csv.Error as error:
    raise InputError(f'{path}, line {reader.line_num}: not a text table: {error}') from error
  if not rows:
    raise InputError(f'{path}: no rows; expected lines of subject, relation, attribute')
  return rows
