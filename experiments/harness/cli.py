"""Binaries: flags come from the fields of a dataclass, bad input ends in one line and status 2.

`run(main, Options)` defines an absl flag for every field of the frozen dataclass `Options`, parses the command
line and calls `main(Options(...))`. Nothing is defined when a module is imported. A field's type says what the
flag takes: `int`, `float`, `str`, `bool`, `Literal` of names, a tuple of these (repeatable), each also `| None`;
`Annotated[type, 'help', least]` says what it means and how small a number may be, and common names have both here. A
field that `__init__` does not take is no flag.
"""

import dataclasses
import math
import os
import sys
import tempfile
import textwrap
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
from absl import flags, logging

from geomem.errors import InputError

LAST_SEED = 2**32 - 1  # JAX would draw from a larger one as from one of these
HELP = {
  'subjects': 'N, the number of subjects.',
  'relations': 'R, the number of relations.',
  'hops': 'k, the relations in a query.',
  'dim': 'd, the residual width.',
  'width': 'F, the hidden width of the MLP.',
  'seed': 'Seed of everything random.',
  'seeds': 'How many seeds, from --seed on.',
  'dtype': 'Computation dtype of the model.',
  'table': 'CSV or TSV file of subject, relation, attribute: your own facts instead.',
  'workdir': 'Folder for everything that is written.',
  'list': 'List what there is, one line each, and stop.',
  'steps': 'Steps of training at most.',
  'learning_rate': 'Peak learning rate.',
  'weight_decay': 'Weight decay of AdamW.',
  'target': 'Accuracy at which training stops.',
  'save_seconds': 'Seconds between checkpoints.',
  'profile': 'Write a JAX trace of one chunk of training to profile/ in the workdir.',
}
LEAST = {name: 1 for name in ('seeds', 'dim', 'width', 'steps')} | {
  name: 0 for name in ('seed', 'save_seconds', 'learning_rate', 'weight_decay')
}
_DEFINE: dict[type, tuple[Callable, Callable]] = {
  int: (flags.DEFINE_integer, flags.DEFINE_multi_integer),
  float: (flags.DEFINE_float, flags.DEFINE_multi_float),
  str: (flags.DEFINE_string, flags.DEFINE_multi_string),
}


def run(main: Callable, options: type, argv: Sequence[str] | None = None, doc: str | None = None):
  """Run a binary; `main` gets the options, and the other arguments too if `options.arguments` says what they are."""
  argv = list(sys.argv if argv is None else argv)
  logging.set_verbosity(logging.FATAL)  # Orbax reports every step; errors reach us as exceptions
  try:
    parsed, rest = parse(options, argv, doc or sys.modules[options.__module__].__doc__ or '')
    if parsed is not None:
      main(parsed, rest) if hasattr(options, 'arguments') else main(parsed)
  except InputError as error:
    fail(error)
  except BrokenPipeError:  # the reader, a `head` say, has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(141)
  except OSError as error:
    fail(f'{error.filename or "disk"}: {error.strerror or error}')
  except (MemoryError, jax.errors.JaxRuntimeError) as error:
    if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
      fail(f'out of memory: {error}; choose smaller sizes')
    raise
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    sys.exit(130)


def fail(error):
  """Say what is wrong in one line and leave with status 2."""
  print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
  sys.exit(2)


def warn(text: str):
  print(f'warning: {text}', file=sys.stderr)


def parse(options: type, argv: Sequence[str], doc: str) -> tuple[Any, list[str]]:
  """The options that the command line asks for and its other arguments; None after --help, which is printed."""
  values, hints = flags.FlagValues(), typing.get_type_hints(options, include_extras=True)
  flags.DEFINE_bool('help', False, 'Show this help and stop.', flag_values=values)
  own = [field for field in dataclasses.fields(options) if field.init]
  for field in own:
    _define(values, field.name, hints[field.name], field.default)
  try:
    rest = values(list(argv))[1:]
  except flags.Error as error:
    reason = str(error).replace('invalid literal for int() with base 10:', 'not an integer:')
    raise InputError(f'{reason}; see --help') from None
  if values['help'].value:
    print(usage(doc, values))
    return None, rest
  if rest and not hasattr(options, 'arguments'):
    raise InputError(f'unexpected argument {rest[0]!r}; every option is a --flag, see --help')
  for f in own:
    if values[f.name].present > 1 and not isinstance(values[f.name].value, list):
      raise InputError(f'--{f.name} is given {values[f.name].present} times; this binary takes one')
  given = {f.name: values[f.name].value for f in own if values[f.name].value is not None}
  return options(**{name: _value(name, value) for name, value in given.items()}), rest


def _define(values: flags.FlagValues, name: str, hint, default):
  """One flag for a field of this type."""
  about, least = HELP.get(name, ''), LEAST.get(name)
  if hasattr(hint, '__metadata__'):
    about, *bound = hint.__metadata__
    hint, least = hint.__origin__, next(iter(bound), least)
  if type(None) in typing.get_args(hint):
    (hint,) = set(typing.get_args(hint)) - {type(None)}
  if many := typing.get_origin(hint) is tuple:
    hint, default = typing.get_args(hint)[0], list(default) if default else None
  options: dict[str, Any] = {'flag_values': values}
  if typing.get_origin(hint) is Literal:
    define = flags.DEFINE_multi_enum if many else flags.DEFINE_enum
    define(name, default, list(typing.get_args(hint)), about, **options)
  elif hint is bool:
    flags.DEFINE_bool(name, default, about, **options)
  else:
    if least is not None:
      options['lower_bound'] = least
    _DEFINE[hint][many](name, default, about, **options)


def _value(name: str, value):
  """What was given, each once; numbers must be finite."""
  for number in value if isinstance(value, list) else [value]:
    if isinstance(number, float) and not math.isfinite(number):
      raise InputError(f'--{name}={number}: it must be a finite number')
  return tuple(dict.fromkeys(value)) if isinstance(value, list) else value


def usage(doc: str, values: flags.FlagValues) -> str:
  """What a binary does, and its flags."""
  lines = [doc.strip(), '', 'Flags:']
  for name in values:
    flag = values[name]
    shown = ', '.join(map(str, flag.default)) if isinstance(flag.default, list) else flag.default
    default = '' if flag.default is None or flag.default is False else f' (default: {shown})'
    about = flag.help.replace(
      ';\n    repeat this option to specify a list of values', ' Repeatable.'
    )
    lines.append(f'  --{name}')
    lines += textwrap.wrap(about + default, 96, initial_indent=' ' * 6, subsequent_indent=' ' * 6)
  return '\n'.join(lines)


def seeds(first: int, count: int) -> range:
  """So many seeds from the first on."""
  if count < 1 or first + count - 1 > LAST_SEED:
    raise InputError(f'{count} seeds from {first} on: use at least one, and none above {LAST_SEED}')
  return range(first, first + count)


def writable(path: str | os.PathLike) -> Path:
  """The folder to write to, tried before any work is done, and made once there is something to write."""
  path = Path(path)
  try:
    with tempfile.TemporaryFile(
      dir=next(p for p in (path, *path.absolute().parents) if p.exists())
    ):
      pass
  except OSError as error:
    raise InputError(
      f'{path}: cannot be written to: {error.strerror}; name a folder that can'
    ) from error
  return path
