"""Tables as Markdown and terminal text, with one format for numbers, findings and verdicts."""

import math
from collections.abc import Sequence

import pandas as pd
import rich.box
import rich.console
import rich.table

from experiments.harness.findings import Finding

COLUMNS = ('what', 'mean', '95% interval', 'seeds', 'controls', 'expected', 'holds')


def cell(value) -> str:
  """A number in four digits, any other value in words."""
  value = value.item() if hasattr(value, 'item') else value
  if isinstance(value, list):
    return ', '.join(map(cell, value))
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if pd.api.types.is_scalar(value) and pd.isna(value):
    return '–'
  if isinstance(value, float):
    text = f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'
    return text.replace('inf', '∞')
  return f'{value:,}' if isinstance(value, int) else str(value)


def duration(seconds: float) -> str:
  return f'{seconds / 60:.1f} min' if seconds >= 60 else f'{seconds:.0f} s'


def row(finding: Finding) -> tuple[str, ...]:
  """A finding as a row of `COLUMNS`."""
  interval = '' if math.isnan(finding.low) else f'{finding.low:.3g} to {finding.high:.3g}'
  controls = ', '.join(f'{name} {value:.3g}' for name, value in finding.controls.items())
  bounds = (('≥', finding.at_least), ('≤', finding.at_most))
  expected = ' and '.join(f'{sign} {bound:.4g}' for sign, bound in bounds if bound is not None)
  holds = {None: '', True: 'yes', False: 'no'}[finding.holds] + ' ~' * finding.unsure
  holds += ' (check)' * (finding.check and finding.holds is not None)
  holds += ' (primary)' * finding.primary
  number = f'{finding.value:.3g}', interval, f'{finding.seeds}'
  return finding.what, *number, controls, expected, holds


def findings(found: Sequence[Finding], form: str) -> str:
  """A table of findings."""
  return table(pd.DataFrame([row(finding) for finding in found], columns=COLUMNS), form)


def measurements(every: pd.DataFrame) -> str:
  """A table for each measurement, of the columns that it has, for a terminal."""
  some = [rows.dropna(axis=1, how='all') for _, rows in every.groupby('measurement', sort=False)]
  return '\n\n'.join(map(table, some))


def table(
  rows: pd.DataFrame | Sequence[dict], form: str = 'terminal', columns: Sequence[str] | None = None
) -> str:
  """Any table as 'markdown' or for a 'terminal', with its values as `cell` writes them."""
  rows = pd.DataFrame(rows, columns=columns)
  heads = [str(name).replace('_', ' ') for name in rows.columns]
  lines = [list(map(cell, values)) for values in rows.astype(object).itertuples(index=False)]
  return {'markdown': _markdown, 'terminal': _terminal}[form](heads, lines)


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  bold = lambda text: f'**no**{text[2:]}' if text == 'no' or text.startswith('no ') else text
  lines = [heads, ['---'] * len(heads), *([bold(text) for text in some] for some in rows)]
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def _terminal(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """As wide as the terminal, or as wide as needed where there is none."""
  drawn = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
  for i, head in enumerate(heads):
    numeric = all(some[i][:1] in '0123456789-−.–∞' for some in rows if some[i])
    drawn.add_column(head, justify='right' if numeric and rows else 'left', overflow='fold')
  for some in rows:
    drawn.add_row(*map(rich.markup.escape, some))
  console = rich.console.Console(highlight=False)
  if not console.is_terminal:
    console.width = 10_000
  with console.capture() as capture:
    console.print(drawn)
  return '\n'.join(line.rstrip() for line in capture.get().splitlines()).strip('\n')
