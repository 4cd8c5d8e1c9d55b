"""What every binary shares: flags of the same name, errors in one line, tables, progress."""

import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import app, flags, logging

from geomem import hosts
from geomem.config import DTYPES
from geomem.errors import InputError

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # so that --help lists a shared flag under the binary that asked for it

SCALES = ('smoke', 'laptop', 'accelerator')
LAST_SEED = 2**32 - 1  # JAX would draw from a larger one as from one of these


def scale(minutes: float | None = None) -> str:
  """What --scale means; `minutes`: that the laptop's preset takes, where that is known."""
  taken = f' and takes about {minutes:g} minutes there' if minutes else ''
  return (
    'Preset: smoke takes a minute or two, most of it compiling, and shows nothing; laptop suits two '
    f'cores{taken}; accelerator is the whole thing.'
  )


_SHARED = {
  'subjects': lambda: flags.DEFINE_multi_integer('subjects', None, 'N, the number of subjects.'),
  'relations': lambda: flags.DEFINE_multi_integer('relations', None, 'R, the number of relations.'),
  'hops': lambda: flags.DEFINE_integer('hops', None, 'k, the relations in a query.'),
  'dim': lambda: flags.DEFINE_integer('dim', None, 'd, the residual width.', lower_bound=1),
  'width': lambda: flags.DEFINE_integer(
    'width', None, 'F, the hidden width of the MLP.', lower_bound=1
  ),
  'seed': lambda: flags.DEFINE_integer(
    'seed', None, 'Seed of everything random (default: 0).', lower_bound=0, upper_bound=LAST_SEED
  ),
  'seeds': lambda: flags.DEFINE_integer(
    'seeds', None, 'How many seeds, from --seed on.', lower_bound=1
  ),
  'dtype': lambda: flags.DEFINE_enum('dtype', 'float32', DTYPES, 'Computation dtype of the model.'),
  'table': lambda: flags.DEFINE_string(
    'table', None, 'CSV or TSV file of subject, relation, attribute: your own facts instead.'
  ),
  'workdir': lambda: flags.DEFINE_string(
    'workdir',
    None,
    'Folder for results.json and all else that is written (default: runs/NAME), but for '
    'compiled programs of trainings, which are kept beside it.',
  ),
  'scale': lambda: flags.DEFINE_enum(
    'scale',
    'laptop',
    SCALES,
    scale(),
  ),
  'list': lambda: flags.DEFINE_bool('list', False, 'List what there is, one line each, and stop.'),
  'only': lambda: flags.DEFINE_list('only', None, 'These alone, by name, with commas between.'),
  'redraw': lambda: flags.DEFINE_bool(
    'redraw', False, 'Draw the figure again from the results.json in the workdir, and stop.'
  ),
  'learning_rate': lambda: flags.DEFINE_multi_float(
    'learning_rate', None, 'Peak learning rate (repeatable).', lower_bound=0
  ),
  'weight_decay': lambda: flags.DEFINE_multi_float(
    'weight_decay', None, 'Weight decay of AdamW (repeatable).', lower_bound=0
  ),
  'steps': lambda: flags.DEFINE_integer('steps', 2000, 'Steps at most.', lower_bound=1),
  'target': lambda: flags.DEFINE_float('target', 0.99, 'Accuracy at which a model stops.'),
  'save_seconds': lambda: flags.DEFINE_integer(
    'save_seconds', 30, 'Time between checkpoints.', lower_bound=0
  ),
  'profile': lambda: flags.DEFINE_bool(
    'profile', False, 'Write a JAX trace of one stretch of training to profile/ in the workdir.'
  ),
  'coordinator': lambda: flags.DEFINE_string(
    'coordinator', None, 'HOST:PORT where several processes meet; the first one listens there.'
  ),
  'processes': lambda: flags.DEFINE_integer('processes', None, 'How many meet.', lower_bound=1),
  'process': lambda: flags.DEFINE_integer(
    'process', None, "This one's number, from 0 on.", lower_bound=0
  ),
  'construction': lambda: flags.DEFINE_multi_string(
    'construction', None, 'Name of a construction (repeatable), or `all`.'
  ),
}


_GENERAL: dict[str, str] = {}  # what a shared flag says of itself where a binary says nothing else


def define(*names: str, **helps: str):
  """Define shared flags for the calling binary; a flag that exists already is only listed.

  `helps`: flags that mean something more special here, in the binary's own words.
  """
  for name in (*names, *helps):
    if name not in FLAGS:
      _SHARED[name]()
    general = _GENERAL.setdefault(name, FLAGS[name].help)
    FLAGS[name].help = helps.get(name, general)
    flags.declare_key_flag(name)


def run(main: Callable[[Sequence[str]], None]):
  """Run a binary: bad input ends in one line and exit status 2, without a traceback."""

  def parse(argv):
    try:
      return FLAGS(argv)
    except flags.Error as error:
      reason = str(error).replace('invalid literal for int() with base 10:', 'not an integer:')
      fail(f'{reason}; see --help')
    except SystemExit:  # --help
      sys.exit(0)

  def guarded(argv):
    if not FLAGS['verbosity'].present:
      logging.set_verbosity(
        logging.FATAL
      )  # Orbax reports every step; errors reach us as exceptions
    try:
      main(argv)
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

  app.run(guarded, flags_parser=parse)


def fail(error):
  """Say what is wrong in one line and leave with status 2."""
  print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
  sys.exit(2)


def no_arguments(argv: Sequence[str]):
  if len(argv) > 1:
    raise InputError(f'unexpected argument {argv[1]!r}; every option is a --flag, see --help')


def value(name: str, default):
  """The one value that was given, or this binary's default: shared flags have none of their own."""
  given = FLAGS[name].value
  if isinstance(given, list):
    if len(given) > 1:
      raise InputError(f'--{name} is given {len(given)} times; this binary takes one')
    (given,) = given
  return default if given is None else given


def values(name: str, default: Sequence) -> list:
  """All that was given, each once, or this binary's default."""
  given = FLAGS[name].value or default
  for one in given:
    if isinstance(one, float) and not math.isfinite(one):
      raise InputError(f'--{name}={one}: it must be a finite number')
  return list(dict.fromkeys(given))


def seeds(first: int, count: int) -> range:
  """So many as --seeds says, from --seed on, or else by these defaults."""
  first, count = value('seed', first), value('seeds', count)
  if first + count - 1 > LAST_SEED:
    raise InputError(f'--seeds={count} from {first} on: a seed is at most {LAST_SEED}; use fewer')
  return range(first, first + count)


def check_redraw(*others: str):
  """A figure is drawn again from what was saved: flags that would change the results contradict that."""
  for name in others:
    if FLAGS[name].present:
      raise InputError(f'--{name} and --redraw contradict each other: the saved results decide')


def workdir(default: str) -> Path:
  """The folder to write to, tried before any work is done, and made once there is something to write."""
  path = Path(FLAGS.workdir or default)
  try:
    with tempfile.TemporaryFile(dir=next(p for p in (path, *path.parents) if p.exists())):
      pass
  except OSError as error:
    raise InputError(
      f'--workdir={path}: cannot be written to: {error.strerror}; name a folder that can'
    ) from error
  return path


def join():
  """Join the other processes, if there are any, before JAX starts."""
  given = FLAGS.coordinator, FLAGS.processes, FLAGS.process
  if all(value is None for value in given):
    return
  if None in given:
    raise InputError('--coordinator, --processes and --process belong together; give all three')
  hosts.join(*given)


def warn(text: str):
  print(f'warning: {text}', file=sys.stderr)


def table(columns: Sequence[str], records: Sequence[dict]) -> str:
  """Records as aligned text, numbers to the right."""
  rows = [[_cell(record.get(column)) for column in columns] for record in records]
  heads = [column.replace('_', ' ') for column in columns]
  widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
  numeric = [
    all(isinstance(r.get(c), int | float | None) for r in records) and bool(records)
    for c in columns
  ]

  def line(cells):
    cells = (
      c.rjust(w) if n else c.ljust(w) for c, w, n in zip(cells, widths, numeric, strict=True)
    )
    return '  '.join(cells).rstrip()

  return '\n'.join([line(heads), line(['─' * w for w in widths]), *map(line, rows)])


def _cell(value) -> str:
  if value is None:
    return '–'
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, int):
    return f'{value:,}'
  if isinstance(value, float):
    if math.isinf(value):
      return '∞' if value > 0 else '−∞'
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'
  return str(value)


class Progress:
  """A line on a terminal that says what is running, how far it is and how long it will take."""

  def __init__(self, label: str, unit: str = 'blocks'):
    self.label, self.unit, self.start, self.shown = label, unit, time.monotonic(), 0.0
    self.on = sys.stderr.isatty() and hosts.first()

  def __call__(self, done: int, total: int):
    now = time.monotonic()
    if not self.on or (now - self.shown < 0.1 and done < total):
      return
    self.shown = now
    left = (now - self.start) / done * (total - done)
    text = f'{self.label}: {done:,}/{total:,} {self.unit}, {left:.0f} s left'
    print(f'\r\x1b[K{text}', end='', file=sys.stderr, flush=True)

  def clear(self):
    if self.on:
      print('\r\x1b[K', end='', file=sys.stderr, flush=True)


class Training(Progress):
  """The same for sweeps: steps, models under way, loss, share solved, time left for the one at work."""

  def __init__(self):
    super().__init__('training', 'steps')
    self.first = None

  def __call__(self, steps: int, record: dict):
    now, step = time.monotonic(), record['step']
    if self.first is None or self.first[2] != record['sweep']:  # compiling is over
      self.first = now, step, record['sweep']
    if not self.on:
      return
    rate = (step - self.first[1]) / max(now - self.first[0], 1e-9)
    left = f'{(steps - step) / rate:.0f} s left' if rate else 'compiled'
    loss = '–' if record['loss'] is None else f'{record["loss"]:.3g}'
    text = (
      f'sweep {record["sweep"]}: step {step:,}/{steps:,}, {rate:,.0f} steps/s, '
      f'{record["models"]:,} models, loss {loss}, {record["solved"]:.0%} solved'
    )
    print(f'\r\x1b[K{text}, {left}', end='', file=sys.stderr, flush=True)
