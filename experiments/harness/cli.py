"""Command-line binaries: flags come from the fields of a dataclass, bad input ends in one line and status 2.

`run(main, Options)` defines an absl flag for every field of the frozen dataclass `Options`, parses the command
line and calls `main(Options(...))`. Importing a module defines no flags. The type of a field determines what its
flag takes: `int`, `float`, `str`, `bool`, a `Literal` of names, a tuple of these (repeatable), each also `| None`.
`Annotated[type, 'help', least]` adds the help text and the smallest value of a number; `COMMON` has both for common
names. A field `arguments` is not a flag: it takes the positional arguments.
"""

import inspect
import math
import os
import sys
import tempfile
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
from absl import flags, logging

from geomem.errors import InputError

LAST_SEED = 2**32 - 1  # JAX would draw the same numbers from a larger seed as from one of these
COMMON: dict[str, tuple] = {  # flag name → help text and smallest value
  'scale': (
    'Preset: smoke takes a minute or so and only shows that it runs; laptop suits two cores; full takes hours on them.',
  ),
  'subjects': ('N, the number of subjects.',),
  'relations': ('R, the number of relations.',),
  'hops': ('k, the number of relations in a query.',),
  'dim': ('d, the residual width.', 1),
  'width': ('F, the hidden width of the MLP.', 1),
  'seed': ('Seed of all random numbers.', 0),
  'seeds': ('Number of seeds, starting at --seed.', 1),
  'dtype': ('Computation dtype of the model.',),
  'table': ('CSV or TSV file of subject, relation, attribute, to use your own facts.',),
  'workdir': ('Folder for all output.',),
  'list': ('List what is available, one line each, and stop.',),
  'steps': ('Maximum number of training steps.', 1),
  'learning_rate': ('Peak learning rate.', 0),
  'weight_decay': ('Weight decay of AdamW.', 0),
  'target': ('Accuracy at which training stops.',),
  'save_seconds': ('Seconds between checkpoints.', 0),
  'profile': ('Write a JAX trace of one chunk of training to profile/ in the workdir.',),
}
Flags = Mapping[str, tuple[Any, Any]]  # flag name → type and default


def run(
  main: Callable, options: Callable, argv: Sequence[str] | None = None, doc: str | None = None,
  own_flags: Flags | None = None,
):  # fmt: skip
  """Run a binary: `main` gets `options`, built from the flags that were given.

  `own_flags`: the flags to define, if they are not the fields of `options`.
  """
  argv = list(sys.argv if argv is None else argv)
  logging.set_verbosity(logging.FATAL)  # Orbax reports every step; errors reach us as exceptions
  try:
    doc = doc or sys.modules[options.__module__].__doc__ or ''
    main(options(**parse(own_flags or flags_of(options), argv, doc)))
  except InputError as error:
    fail(error)
  except BrokenPipeError:  # the reader, such as `head`, has seen enough
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
  """Print the error in one line and exit with status 2."""
  print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
  sys.exit(2)


def warn(text: str):
  print(f'warning: {text}', file=sys.stderr)


def flags_of(function: Callable) -> dict[str, tuple[Any, Any]]:
  """A flag for every annotated parameter of a function, or of a dataclass's constructor."""
  hints = typing.get_type_hints(function, include_extras=True)
  parameters = inspect.signature(function).parameters.values()
  return {one.name: (hints[one.name], one.default) for one in parameters if one.name in hints}


def parse(own_flags: Flags, argv: Sequence[str], doc: str) -> dict[str, Any]:
  """The values given on the command line, repeated ones only once; --help prints the help and exits."""
  values = flags.FlagValues()
  values['help'] = flags.BooleanFlag('help', False, 'Show this help and stop.')
  names = [name for name in own_flags if name != 'arguments']
  for name in names:
    values[name] = _flag(name, *own_flags[name])
  try:
    rest = values(list(argv))[1:]
  except flags.Error as error:
    reason = str(error).replace('invalid literal for int() with base 10:', 'not an integer:')
    raise InputError(f'{reason}; see --help') from None
  if values['help'].value:
    print(f'{doc.strip()}\n\nFlags:\n{values.get_help("  ", include_special_flags=False)}')
    sys.exit()
  if rest and 'arguments' not in own_flags:
    raise InputError(f'unexpected argument {rest[0]!r}; every option is a --flag, see --help')
  given: dict[str, Any] = {'arguments': tuple(rest)} if rest else {}
  for name in names:
    if values[name].present:
      value = values[name].value
      given[name] = tuple(dict.fromkeys(value)) if isinstance(value, list) else value
  return given


class _Finite(flags.FloatParser):
  def convert(self, argument) -> float:
    number = super().convert(argument)
    if not math.isfinite(number):
      raise ValueError('it must be a finite number')
    return number


def _flag(name: str, kind: Any, default: Any) -> flags.Flag:
  """The absl flag for a type."""
  own, common = [], COMMON.get(name, ('',))
  if typing.get_origin(kind) is Annotated:
    kind, *own = typing.get_args(kind)
  about, least = (*own, *common[len(own) :], None)[:2]
  if type(None) in typing.get_args(kind):
    kind = typing.get_args(kind)[0]
  if many := typing.get_origin(kind) is tuple:
    kind, default = typing.get_args(kind)[0], default or None
  if kind is bool:
    return flags.BooleanFlag(name, default, about, allow_overwrite=False)
  parser: Any = flags.ArgumentParser()
  if typing.get_origin(kind) is Literal:
    parser = flags.EnumParser(typing.get_args(kind))
    about = f'<{"|".join(parser.enum_values)}>: {about}'
  elif kind is not str:
    parser = {int: flags.IntegerParser, float: _Finite}[kind](least)
  flag = flags.MultiFlag if many else flags.Flag
  return flag(parser, None, name, default, about, allow_overwrite=many)


def command(name: str, given: Mapping[str, Any]) -> list[str]:
  """The command of a binary with these flags; a flag without a value is left out, a tuple repeats its flag."""
  words = [
    f'--{flag}={one}'
    for flag, value in given.items() if value is not None
    for one in (value if isinstance(value, tuple) else (value,))
  ]  # fmt: skip
  return ['python', '-m', f'experiments.{name}', *words]


def seeds(first: int, count: int) -> range:
  """`count` seeds, starting at `first`."""
  if count < 1 or first + count - 1 > LAST_SEED:
    raise InputError(f'{count} seeds from {first} on: use at least one, and none above {LAST_SEED}')
  return range(first, first + count)


def writable(path: str | os.PathLike) -> Path:
  """Check that a folder can be written to, before any work is done; it is only made once there is something to write."""
  path = Path(path)
  try:
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    tempfile.TemporaryFile(dir=there).close()
  except OSError as error:
    reason = f'cannot be written to: {error.strerror}; name a folder that can'
    raise InputError(f'{path}: {reason}') from error
  return path
