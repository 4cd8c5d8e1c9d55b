"""Records on disk: tidy tables as readable JSON, a row a line, whole files or none.

What was not found or does not apply is null; infinity is 1e999, which every reader of JSON takes for it.
"""

import dataclasses
import json
import math
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
  columns = list(records.table.columns)
  rows = records.table.astype(object).itertuples(index=False)
  lines = ','.join(f'\n{_dump(row, digits)}' for row in rows)
  text = (
    f'{{"about": {_dump(records.about)},\n"columns": {_dump(columns)},\n"data": [{lines}\n]}}\n'
  )
  write_text(path, text)


def write_findings(path: Path, findings: Sequence) -> None:
  """What a study found and expected, one finding a line."""
  fields = [{**dataclasses.asdict(finding), 'holds': finding.holds} for finding in findings]
  write_text(path, '[' + ','.join(f'\n{_dump(some)}' for some in fields) + '\n]\n')


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


def merge(about: dict, parts: Sequence[Records]) -> Records:
  """The records of several runs in one table."""
  return Records(about, pd.concat([part.table for part in parts], ignore_index=True))


def _dump(value: Any, digits: int | None = None) -> str:
  """As JSON has it."""
  if isinstance(value, dict):
    return (
      '{'
      + ', '.join(f'{json.dumps(key)}: {_dump(some, digits)}' for key, some in value.items())
      + '}'
    )
  if isinstance(value, list | tuple):
    return '[' + ', '.join(_dump(some, digits) for some in value) + ']'
  value = value.item() if hasattr(value, 'item') else value
  if isinstance(value, float) and math.isinf(value):
    return '1e999' if value > 0 else '-1e999'
  if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
    return 'null'
  if isinstance(value, float) and digits:
    value = float(f'{value:.{digits}g}')
  return json.dumps(value, ensure_ascii=False)
