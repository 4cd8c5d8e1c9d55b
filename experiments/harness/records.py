"""Records on disk: tidy tables as readable JSON, a row a line, whole files or none.

What was not found or does not apply is null; an infinite number is Infinity, as Python writes and reads it.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from geomem.errors import InputError

FILE, FINDINGS = 'results.json', 'findings.json'


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
  """A table of measured values, and what they were measured with: command, device, versions, setting."""

  about: dict
  table: pd.DataFrame


def write_text(path: Path, text: str):
  """Write a whole file or none of it."""
  path = Path(path)
  aside = path.with_name(f'.{path.name}.{os.getpid()}')
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    aside.write_text(text, encoding='utf-8')
    aside.replace(path)
  finally:
    aside.unlink(missing_ok=True)


def write(path: Path, records: Records, digits: int | None = None):
  """Write the table with what it is about; numbers to so many digits, where that is said."""
  rows = _with_nulls(records.table).values.tolist()
  if digits:
    rows = json.loads(_json(rows), parse_float=lambda text: float(f'{float(text):.{digits}g}'))
  about, columns = _json(records.about), _json(list(records.table.columns))
  write_text(path, f'{{"about": {about},\n"columns": {columns},\n"data": {_lines(rows)}}}\n')


def write_findings(path: Path, findings: Sequence) -> None:
  """What a study found and expected, one finding a line."""
  fields = [{**dataclasses.asdict(finding), 'holds': finding.holds} for finding in findings]
  rows = _with_nulls(pd.DataFrame(fields, dtype=object)).to_dict('records')
  write_text(path, _lines(rows) + '\n')


def read(path: Path) -> Records:
  """The records of a file, or of the results.json in a folder."""
  path = Path(path) / FILE if Path(path).is_dir() else Path(path)
  try:
    fields = json.loads(path.read_text(encoding='utf-8'))
    table = pd.DataFrame(fields['data'], columns=fields['columns'])
    return Records(dict(fields['about']), table)
  except FileNotFoundError as error:
    raise InputError(f'{path}: no results there') from error
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise InputError(f'{path}: not readable as results: {error}') from error


def _with_nulls(table: pd.DataFrame) -> pd.DataFrame:
  """Python's own values, None where one is missing."""
  return table.astype(object).where(table.notna(), None)


def _json(value: Any) -> str:
  return json.dumps(value, ensure_ascii=False, default=lambda array: array.tolist())


def _lines(values: Sequence) -> str:
  """A list, each of its values on a line of its own."""
  return '[' + ','.join(f'\n{_json(value)}' for value in values) + '\n]'
