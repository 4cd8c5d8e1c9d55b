"""Records on disk: whole files or none, one record a line. `null` is what was not found or does not apply."""

import functools
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from geomem.errors import InputError

NOT_FINITE = {name: float(name) for name in ('nan', 'inf', '-inf')}  # numbers that JSON has not


def write_text(path: Path, text: str):
  """Write a whole file or none of it."""
  aside = path.with_name(f'.{path.name}.{os.getpid()}')
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    aside.write_text(text, encoding='utf-8')
    aside.replace(path)
  finally:
    aside.unlink(missing_ok=True)


def write_results(
  folder: Path, records: Sequence[dict], name: str = 'results.json', about: dict | None = None
):
  """Records, one a line; numbers that JSON has not become their names, 'nan', 'inf' and '-inf'.

  Or, to be kept, what they are about, the names of their fields, and a line of values for each, to six digits.
  """
  finite = lambda v: f'{v:g}' if isinstance(v, float) and not math.isfinite(v) else v
  records = [{key: finite(value) for key, value in record.items()} for record in records]
  dumped = functools.partial(json.dumps, allow_nan=False)
  fields = list(dict.fromkeys(key for record in records for key in record))
  short = lambda v: float(f'{v:.6g}') if isinstance(v, float) else v
  rows = [[short(record.get(key)) for key in fields] for record in records] if about else records
  text = '[' + ','.join(f'\n{dumped(row)}' for row in rows) + '\n]'
  if about:
    text = f'{{"about": {dumped(about)},\n"fields": {dumped(fields)},\n"records": {text}}}'
  write_text(Path(folder) / name, text + '\n')


def read_results(folder: Path, name: str = 'results.json') -> list[dict]:
  path = Path(folder) / name
  try:
    records = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError as error:
    raise InputError(f'{path}: no results there') from error
  except (OSError, ValueError) as error:
    raise InputError(f'{path}: not readable as results: {error}') from error
  if isinstance(records, dict):
    rows, fields = records.get('records'), records.get('fields')
    if not isinstance(fields, list) or not isinstance(rows, list):
      raise InputError(f'{path}: not a list of records')
    records = [dict(zip(fields, row, strict=True)) for row in rows]
  if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
    raise InputError(f'{path}: not a list of records')
  number = lambda v: NOT_FINITE.get(v, v) if isinstance(v, str) else v
  return [{key: number(value) for key, value in record.items()} for record in records]
