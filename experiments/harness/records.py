"""Records on disk: tidy tables as readable JSON with one row per line, written whole or not at all.

Missing or inapplicable values are null; infinity is 1e999, which every JSON reader takes for it.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from geomem.errors import InputError

FILE, FINDINGS = 'results.json', 'findings.json'


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
  """A table of measured values, and what produced them: command, device, versions, setting."""

  about: dict
  table: pd.DataFrame


def merge(about: dict, parts: dict[str, Records]) -> Records:
  """The tables of all parts, one below another; `about` says of each what it was measured with and how many rows it has."""
  described = {name: {**part.about, 'rows': len(part.table)} for name, part in parts.items()}
  table = pd.concat([part.table for part in parts.values()], ignore_index=True)
  return Records({**about, 'parts': described}, table)


def split(records: Records) -> dict[str, Records]:
  """The parts that `merge` put together."""
  parts, first = {}, 0
  for name, about in records.about.get('parts', {}).items():
    if 'rows' not in about:
      raise InputError(f'part {name}: it does not say how many rows it has; run it again')
    own = records.table.iloc[first : (first := first + about['rows'])]
    parts[name] = Records({key: value for key, value in about.items() if key != 'rows'}, own)
  return parts


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
  """Write the table with its description, numbers rounded to `digits` digits, if given."""
  table = records.table.astype(object)
  about, columns = _dump(records.about), _dump(list(table.columns))
  data = _lines(table.itertuples(index=False), digits)
  write_text(path, f'{{"about": {about},\n"columns": {columns},\n"data": {data}}}\n')


def write_findings(path: Path, findings: Sequence) -> None:
  """Write what a study found and expected, one finding per line."""
  fields = ({**dataclasses.asdict(finding), 'holds': finding.holds} for finding in findings)
  write_text(path, _lines(fields) + '\n')


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


def _dump(value: Any, digits: int | None = None) -> str:
  """The value as JSON."""
  if isinstance(value, dict):
    pairs = (f'{json.dumps(key)}: {_dump(some, digits)}' for key, some in value.items())
    return f'{{{", ".join(pairs)}}}'
  if isinstance(value, list | tuple):
    return f'[{", ".join(_dump(some, digits) for some in value)}]'
  if pd.isna(value):
    return 'null'
  value = value.item() if hasattr(value, 'item') else value
  if isinstance(value, float) and math.isinf(value):
    return '1e999' if value > 0 else '-1e999'
  if isinstance(value, float) and digits:
    value = float(f'{value:.{digits}g}')
  return json.dumps(value, ensure_ascii=False)


def _lines(values: Iterable, digits: int | None = None) -> str:
  """A JSON list with one value per line."""
  return '[' + ','.join(f'\n{_dump(value, digits)}' for value in values) + '\n]'
