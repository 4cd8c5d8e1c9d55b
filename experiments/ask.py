"""Ask a saved model, and see how it finds the answer.

  python -m experiments.construct --construction=selector
  python -m experiments.ask "s3 r1"
  python -m experiments.ask --trace "s3 r1"
  python -m experiments.ask --figure=s3.svg "s3 r1"

A query is a subject and one relation per hop, by name; names that contain spaces are separated by |
or commas, as in "Marie Curie | born in". Without a query in the arguments, queries are read from
standard input, one per line. Models are loaded from where experiments.construct has saved them,
WORKDIR/CONSTRUCTION; WORKDIR may also be a model itself. Exported models and those of a zoo are asked in the same way
(--workdir=runs/zoo/models --construction=ID). The answers go to ask/results.json beside the model's folder, including
those before a query that is refused. Bad input ends in one line and exit status 2.

In a trace, `blocks[r0] = s5` says that this entry of the residual stream is the codeword of s5; `≈ s5 ×4.4 ±2.4` that it
is within 2.4 of 4.4 times that codeword; `closed` that no unit passes it on; `s2@0 0.5` that a head gives the token s2 at
position 0 the weight 0.5.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd

import constructions
from experiments.harness import cli, records, render
from experiments.web import trace_figure
from geomem import export
from geomem.errors import InputError
from geomem.inside import asking
from geomem.saved import atomic, models

SHOWN = 30  # names of models in a message
PICTURES = ('.png', '.pdf', '.svg')
COLUMNS = ('query', 'answer', 'truth', 'correct', 'margin', 'runner_up')
CHAIN_COLUMNS = (*COLUMNS, 'step', 'wrong_step')


@dataclasses.dataclass(frozen=True)
class Options:
  """The flags; the queries are the positional arguments."""

  construction: Annotated[str | None, 'Which model to ask (default: the only one there).'] = None
  workdir: Annotated[str, 'Folder of the models; answers go to its ask/results.json.'] = (
    'runs/construct'
  )
  trace: Annotated[bool, 'Print what tokens hold, heads attend to, units say, slots decode to.'] = (
    False
  )
  figure: Annotated[str | None, 'Draw what --trace prints as .png, .pdf or .svg.'] = None
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  arguments: tuple[str, ...] = ()


def is_model(path: Path) -> bool:
  """Whether the folder holds a saved or an exported model."""
  return models.is_model(path) or export.is_export(path)


def find_model(folder: Path, name: str | None) -> Path:
  """The model called `name`, or the only one in the folder, or the folder itself if it is the model."""
  if is_model(folder) and name in (None, folder.absolute().name):
    return folder
  every = atomic.names(folder) if folder.is_dir() else []
  names = [one for one in every if is_model(folder / one)]
  if not names:
    raise InputError(
      f'--workdir={folder}: no models there; python -m experiments.construct --construction=selector saves one'
    )
  if name is None and len(names) == 1:
    return folder / names[0]
  # A damaged model is reported when it is loaded.
  if name is None or not (folder / name).exists():
    some = ', '.join(names[:SHOWN]) + f' … {len(names) - SHOWN} more' * (len(names) > SHOWN)
    raise InputError(f'choose one with --construction=NAME: {folder} holds {some}')
  return folder / name


def queries(arguments: Sequence[str]) -> Iterator[str]:
  """The queries given, else the non-empty lines of standard input."""
  if not arguments and sys.stdin.isatty():
    print('one query a line, end with Ctrl-D', file=sys.stderr)
  try:
    yield from arguments or filter(str.strip, sys.stdin)
  except UnicodeDecodeError as error:
    raise InputError(f'standard input is not text in UTF-8: {error}') from error


def main(options: Options) -> None:
  """Answer all queries."""
  asked, figure = options.arguments, Path(options.figure) if options.figure else None
  if figure and figure.suffix.lower() not in PICTURES:
    raise InputError(f'--figure={figure}: cannot draw such a file; use {", ".join(PICTURES)}')
  if figure and not figure.parent.is_dir():
    raise InputError(f'--figure={figure}: there is no folder {figure.parent}; name one that exists')
  if figure and len(asked) != 1:
    raise InputError(f'--figure draws one query, in quotes; there are {len(asked)}')
  path = find_model(Path(options.workdir), options.construction)
  folder = cli.writable(path.absolute().parent / 'ask')
  c, rows = constructions.load(path), []
  columns = CHAIN_COLUMNS if c.chain_of_thought else COLUMNS
  try:
    for text in queries(asked):
      try:
        answer = c.ask(text, options.dtype)
      except InputError as error:
        if asked or not sys.stdin.isatty():
          raise
        print(f'error: {error}', file=sys.stderr)
        continue
      rows.append({name: getattr(answer, name) for name in CHAIN_COLUMNS})
      print(answer, flush=True)
      seen = c.trace(text, options.dtype) if options.trace or figure else None
      if seen and options.trace:
        print(f'\n{seen}\n', flush=True)
      if seen and figure:
        trace_figure.draw(seen, figure)
  finally:
    if rows:
      about = {'construction': c.name, 'dtype': options.dtype}
      table = pd.DataFrame(rows, dtype=object)
      records.write(folder / records.FILE, records.Records(about, table))
      print(render.table(rows, columns=columns), flush=True)
  if not rows:
    raise InputError(f'no query; {asking.query_form(c.facts, c.hops)}')


if __name__ == '__main__':
  cli.run(main, Options)
