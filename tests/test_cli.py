"""Flags come from the fields of a dataclass; bad input ends in one line and status 2."""

import dataclasses
from typing import Annotated, Literal

import pytest

from experiments.harness import cli
from geomem.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  subjects: int = 8
  relations: tuple[int, ...] = (2, 4)
  dim: int | None = None
  kind: Annotated[Literal['hot', 'cold'], 'What kind.'] = 'hot'
  rates: Annotated[tuple[float, ...], 'Rates.', 0.5] = ()
  table: str | None = None
  list: bool = False


def parse(*arguments):
  return Options(**cli.parse(cli.flags_of(Options), ['x', *arguments], 'What it does.'))


def test_defaults_are_those_of_the_fields():
  assert parse() == Options()


def test_what_is_given_has_the_type_of_its_field():
  got = parse('--subjects=3', '--relations=1', '--relations=5', '--relations=1', '--dim=2', '--list',
              '--kind=cold', '--rates=1e0', '--table=a b')  # fmt: skip
  assert got == Options(
    subjects=3, relations=(1, 5), dim=2, kind='cold', rates=(1.0,), table='a b', list=True
  )
  assert isinstance(got.rates[0], float)


@pytest.mark.parametrize(
  ('argument', 'told'),
  [
    ('--subjects=x', 'not an integer'),
    ('--dim=0', 'must be a positive integer|is not a positive'),
    ('--kind=warm', 'hot|cold'),
    ('--rates=0.1', '0.5'),
    ('--rates=nan', 'finite'),
    ('--frobnicate', "Unknown command line flag 'frobnicate'"),
    ('--subjects=1 --subjects=2', 'already defined as 1'),
    ('now', "unexpected argument 'now'"),
  ],
)
def test_what_is_wrong_is_said(argument, told):
  with pytest.raises(InputError, match=told):
    parse(*argument.split())


def test_the_help_shows_what_it_does_every_flag_and_its_default(capsys):
  with pytest.raises(SystemExit) as end:
    parse('--help')
  assert not end.value.code
  told = ' '.join(capsys.readouterr().out.split())
  assert told.startswith('What it does.')
  for words in (
    "--subjects: N, the number of subjects. (default: '8')",
    '--relations',
    '2, 4',
    '<hot|cold>: What kind.',
  ):
    assert words in told
  assert 'repeat this option' in told


def test_a_default_of_zero_is_shown(capsys):
  with pytest.raises(SystemExit):
    cli.parse({'seed': (int, 0)}, ['x', '--help'], '')
  assert "(default: '0')" in capsys.readouterr().out


def test_two_binaries_do_not_share_a_flag():
  """Flags are not global to the process: another binary can give the same name another meaning."""
  other = {'subjects': (str, 'none')}
  assert cli.parse(other, ['x', '--subjects=many'], '') == {'subjects': 'many'}
  assert parse('--subjects=5').subjects == 5


@pytest.mark.parametrize(
  ('error', 'status', 'told'),
  [
    (InputError('two\nlines'), 2, 'error: two lines\n'),
    (OSError(28, 'No space left', 'disk'), 2, 'error: disk: No space left\n'),
    (MemoryError('1 TiB'), 2, 'error: out of memory: 1 TiB; choose smaller sizes\n'),
    (KeyboardInterrupt(), 130, 'interrupted\n'),
  ],
)
def test_an_error_ends_in_one_line(error, status, told, capsys):
  def work(options):
    raise error

  with pytest.raises(SystemExit) as end:
    cli.run(work, Options, ['x'], 'doc')
  assert end.value.code == status and capsys.readouterr().err == told


@pytest.mark.parametrize(('first', 'count'), [(0, 0), (2**32 - 1, 2), (2**32, 1)])
def test_seeds_that_there_are_not(first, count):
  with pytest.raises(InputError, match='seed'):
    cli.seeds(first, count)
  assert list(cli.seeds(2**32 - 2, 2)) == [2**32 - 2, 2**32 - 1]
