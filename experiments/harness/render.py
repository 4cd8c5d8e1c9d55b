"""Tables as Markdown, as HTML and for a terminal: one way to write a number, a finding, a verdict."""

import html
import math
from collections.abc import Sequence

import pandas as pd
import rich.box
import rich.console
import rich.table

from experiments.harness.findings import Finding

UNSURE = '~: the bound lies within the interval'
COLUMNS = ('what', 'mean', '95% interval', 'seeds', 'controls', 'expected', 'holds')


def cell(value) -> str:
  """A value in four digits, in words where it is none."""
  value = value.item() if hasattr(value, 'item') else value
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
    return '–'
  if isinstance(value, float) and math.isinf(value):
    return '∞' if value > 0 else '−∞'
  if isinstance(value, float) and not (value.is_integer() and abs(value) >= 1000):
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'
  return f'{int(value):,}' if isinstance(value, int | float) else str(value)


def interval(finding: Finding) -> str:
  return '' if math.isnan(finding.low) else f'[{finding.low:.3g}, {finding.high:.3g}]'


def number(finding: Finding) -> str:
  """Mean and interval."""
  return f'{finding.value:.3g} {interval(finding)}'.strip()


def expected(finding: Finding) -> str:
  bounds = (('≥', finding.at_least), ('≤', finding.at_most))
  return ' and '.join(f'{sign} {bound:.4g}' for sign, bound in bounds if bound is not None)


def controls(finding: Finding) -> str:
  return ', '.join(f'{name} {value:.3g}' for name, value in finding.controls.items())


def beside(finding: Finding) -> str:
  """What was expected, and the controls, in brackets."""
  parts = [f'expected {text}' for text in [expected(finding)] if text] + [controls(finding)]
  inside = '; '.join(filter(None, parts))
  return f' ({inside})' if inside else ''


def row(finding: Finding) -> tuple[str, ...]:
  """A finding in `COLUMNS`."""
  holds = {None: '', True: 'yes', False: 'no'}[finding.holds] + ' ~' * finding.unsure
  holds += (
    ' (check)' * bool(finding.holds is not None and finding.check) + ' (primary)' * finding.primary
  )
  spread = interval(finding)[1:-1].replace(', ', ' to ')
  return (finding.what, f'{finding.value:.3g}', spread, f'{finding.seeds}', controls(finding),
          expected(finding), holds)  # fmt: skip


def findings(found: Sequence[Finding], form: str) -> str:
  """A table of findings: 'markdown', 'html' or 'terminal'."""
  return _FORMS[form](COLUMNS, [row(finding) for finding in found])


def table(
  rows: pd.DataFrame | Sequence[dict], form: str = 'terminal', columns: Sequence[str] | None = None
) -> str:
  """Any table, its values as `cell` writes them."""
  rows = pd.DataFrame(rows) if columns is None else pd.DataFrame(rows, columns=list(columns))
  heads = [str(name).replace('_', ' ') for name in rows.columns]
  return _FORMS[form](
    heads,
    [[cell(value) for value in values] for values in rows.astype(object).itertuples(index=False)],
  )


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  bold = lambda text: f'**no**{text[2:]}' if text == 'no' or text.startswith('no ') else text
  lines = [heads, ['---'] * len(heads), *([bold(text) for text in some] for some in rows)]
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def _html(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """The last cell has its text as its class, for its colour."""
  e = html.escape
  body = ''.join(
    '<tr>'
    + ''.join(f'<td>{e(text)}</td>' for text in some[:-1])
    + f'<td class="{e(some[-1])}">{e(some[-1])}</td></tr>'
    for some in rows
  )
  head = ''.join(f'<th>{e(text)}</th>' for text in heads)
  return f'<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _terminal(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """As wide as the terminal, or as it must be where there is none."""
  drawn = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
  for i, head in enumerate(heads):
    numeric = all(some[i][:1] in '0123456789-−.–∞' for some in rows if some[i])
    drawn.add_column(head, justify='right' if numeric and rows else 'left', overflow='fold')
  for some in rows:
    drawn.add_row(*map(rich.markup.escape, some))
  console = rich.console.Console(width=None if _is_terminal() else 10_000, highlight=False)
  with console.capture() as capture:
    console.print(drawn)
  return '\n'.join(line.rstrip() for line in capture.get().splitlines()).strip('\n')


def _is_terminal() -> bool:
  return rich.console.Console().is_terminal


_FORMS = {'markdown': _markdown, 'html': _html, 'terminal': _terminal}
