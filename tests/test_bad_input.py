"""Bad input ends in status 2 and one line that says what was given and what is allowed.

Nothing is written: no case here changes a single file in the folder in which all of them run.
"""

import contextlib
import importlib
import io
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from constructions import registry
from experiments.harness import cli
from geomem import construction
from geomem.facts import Facts
from geomem.saved import models

ROOT = Path(__file__).parents[1]
TABLES = {
  'ok.csv': 'a,to,b\nb,to,a\n',
  'own.csv': 'a,to,x\nb,to,y\n',
  'shared.csv': 'a,to,x\nb,to,y\na,from,y\nb,from,z\n',
  'malformed.csv': 'a,to,b\na;to;b\n',
  'quoted.csv': 'a,to,"b\nb,to,a\n',
  'duplicate.csv': 'a,to,b\nb,to,a\na,to,a\n',
  'hole.csv': 'a,to,b\nb,to,a\na,from,b\n',
  'nameless.csv': 'a,to,b\nb,,a\n',
  'lone.csv': 'a,to,b\n',
  'empty.csv': '',
  'header.csv': 'subject,relation,attribute\n',
}


def run(binary: str, *arguments: str, stdin: bytes = b'') -> tuple[int, str, str]:
  """Runs a binary as `python -m experiments.BINARY` does: its status, standard output and standard error."""
  module = importlib.import_module(f'experiments.{binary}')
  out, err, status = io.StringIO(), io.StringIO(), 0
  with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
    patch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(stdin), 'utf-8'))
    stack.enter_context(contextlib.redirect_stdout(out))
    stack.enter_context(contextlib.redirect_stderr(err))
    try:
      if hasattr(module, 'STUDY'):
        module.STUDY.main([binary, *arguments])
      else:
        cli.run(module.main, module.Options, [binary, *arguments])
    except SystemExit as leaving:
      status = leaving.code or 0
  return status, out.getvalue(), err.getvalue()


def contents(folder: Path) -> dict[str, bytes | None]:
  paths = sorted(folder.rglob('*'))
  return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with good and bad tables and models."""
  place = tmp_path_factory.mktemp('place')
  for name, text in TABLES.items():
    (place / name).write_text(text)
  (place / 'binary.csv').write_bytes(bytes(range(256)))
  plain = Facts.bijections(8, 3)
  models.save(place / 'models' / 'selector', registry.build('selector', plain))
  models.save(place / 'models' / 'keyvalue', registry.build('keyvalue', plain, 2))
  multilevel = Facts.bijections(1000, 1)
  models.save(place / 'fine' / 'model', registry.build('selector_multilevel', multilevel, bits=10))
  names = ('a', 'a b'), ('b c', 'c'), ('a', 'a b')
  models.save(
    place / 'named' / 'model',
    registry.build('selector', Facts(np.array([[0, 1], [1, 0]]), 2, True, *names)),
  )
  for damage in ('cut', 'bare', 'later'):
    models.save(place / damage / 'model', registry.build('selector', plain))
  data = next((place / 'cut').rglob('ocdbt.process_0/d/*'))
  data.write_bytes(data.read_bytes()[:-7])
  next((place / 'bare').rglob('_METADATA')).unlink()
  config = place / 'later' / 'model' / 'config.json'
  config.write_text(config.read_text().replace('"version": 2', '"version": 9'))
  (place / 'none').mkdir()
  (place / 'foreign' / 'selector').mkdir(parents=True)
  (place / 'other').mkdir()
  about = '{"command": "python -m experiments.other"}'
  (place / 'other' / 'results.json').write_text(f'{{"about": {about}, "columns": [], "data": []}}')
  (place / 'foreign' / 'selector' / 'thesis.tex').touch()
  return place


CONSTRUCT = [
  # sizes
  ('--subjects=1', 'subjects is 1; it must be at least 2'),
  ('--subjects=0', 'subjects is 0; it must be at least 2'),
  ('--subjects=-3', 'subjects is -3; it must be at least 2'),
  ('--subjects=99999999999999999999', '99999999999999999999 subjects × 4 relations are more than 2²⁸'),
  ('--subjects=200000000', '200000000 subjects × 4 relations are more than 2²⁸ facts'),
  ('--relations=0', 'relations is 0; it must be at least 1'),
  ('--hops=0', 'hops is 0; it must be at least 1'),
  ('--hops=-1', 'hops is -1; it must be at least 1'),
  ('--hops=99', '4 relations over 99 hops make more than 2⁶² queries'),
  ('--hops=3 --construction=selector', 'selector answers one hop, not 3; multi-hop constructions are keyvalue'),
  ('--construction=precomputed --construction=selector --hops=2 --subjects=3', 'selector answers one hop'),
  ('--subjects=2 --relations=64 --hops=5 --construction=precomputed_depth1', '(limit 2,147,483,648)'),
  # numbers and names of flags
  ('--subjects=many', "--subjects=many: not an integer: 'many'"),
  ('--relations=2.5', "--relations=2.5: not an integer: '2.5'"),
  ('--hops=', "--hops=: not an integer: ''"),
  ('--seed=-1', '--seed=-1: -1 is not a non-negative integer'),
  ('--seed=4294967296', '1 seeds from 4294967296 on: use at least one, and none above 4294967295'),
  ('--subject=5', "Unknown command line flag 'subject'. Did you mean: subjects"),
  ('--table', 'Missing value for flag --table'),
  ('--dtype=float64', '--dtype=float64: value should be one of <float32|bfloat16>'),
  ('--check=eyesight', 'value should be one of <exhaustive|certificate|universal|auto>'),
  ('--facts=alternative', 'value should be one of <bijections|maps>'),
  ('selector', "unexpected argument 'selector'; every option is a --flag, see --help"),
  # constructions and their options
  ('--construction=selektor', "no construction 'selektor'; there are selector, selector_residual"),
  ('--construction=', "no construction ''; there are selector"),
  ('--construction=all --construction=disjoint', '--construction=all already has disjoint; give one'),
  ('--dim=9 --construction=superposition', 'dim is 9; it must be at least 10: 4 for the relation, 5 for'),
  ('--dim=5 --construction=associative_attention', 'dim is 5; it must be at least 6'),
  ('--dim=8 --construction=selector', "selector has no option 'dim'; its sizes follow from the facts; dim is for superposition"),
  ('--dim=0 --construction=associative_mlp', '--dim=0: 0 is not a positive integer'),
  ('--width=0 --construction=associative_mlp', '--width=0: 0 is not a positive integer'),
  ('--width=99999 --construction=associative_mlp', 'width is 99999; the solver takes 32768 at most'),
  ('--width=8 --construction=keyvalue', "keyvalue has no option 'width'; its sizes"),
  ('--bits=0 --construction=selector_multilevel', '--bits=0: 0 is not a positive integer'),
  ('--bits=100 --construction=selector_multilevel', 'bits per coordinate is 100; it must be 1 … 24'),
  ('--bits=20 --construction=selector_multilevel', 'more than float32 adds exactly (2²⁴); use fewer bits'),
  ('--hops_per_layer=0 --construction=factored', '--hops_per_layer=0: 0 is not a positive integer'),
  ('--hops_per_layer=3 --hops=2 --construction=factored', 'hops_per_layer is 3; it must be 1 … 2, the hops'),
  (
    '--dtype=bfloat16 --bits=10 --subjects=1000 --construction=selector_multilevel',
    'bfloat16 cannot hold embed/relations = -511.5 exactly; use float32 or smaller sizes',
  ),
  # checks
  ('--check=universal --construction=keyvalue', 'keyvalue has no universal check'),
  ('--check=universal --subjects=99 --construction=selector', '99^4 contents of 28 coordinates are more than'),
  ('--check=certificate --construction=associative_mlp', 'no certificate; use --check=exhaustive'),
  # tables
  ('--table=ok.csv --subjects=5', '--subjects and --table contradict each other: the table decides'),
  ('--table=ok.csv --facts=maps', '--facts and --table contradict each other'),
  ('--table=nowhere.csv', 'nowhere.csv: cannot be read: No such file or directory'),
  ('--table=none', 'none: cannot be read: Is a directory'),
  ('--table=malformed.csv', "malformed.csv, line 2: 'a;to;b' is not three names (subject, relation, attribute)"),
  ('--table=nameless.csv', "nameless.csv, line 2: 'b,,a' is not three names"),
  ('--table=quoted.csv', 'quoted.csv, line 2: not a text table: unexpected end of data'),
  ('--table=duplicate.csv', "duplicate.csv: 'a' has more than one row for relation 'to'; give one"),
  ('--table=hole.csv', "no row for subject 'b' and relation 'from'; every subject needs one row"),
  ('--table=lone.csv', '1 subject(s) and 1 attribute(s); at least 2 of each are needed'),
  ('--table=empty.csv', 'empty.csv: no rows; expected lines of subject, relation, attribute'),
  ('--table=header.csv', 'header.csv: no rows; expected'),
  ('--table=binary.csv', 'binary.csv: not a text table in UTF-8'),
  ('--table=ok.csv --hops=99 --construction=chain_of_thought_compact', 'more than 2⁶² queries'),
  ('--subjects=2 --relations=4 --hops=29 --construction=chain_of_thought', 'queries to check'),
  ('--table=own.csv --hops=2 --construction=keyvalue', "cannot be chained: 'x' is not a subject"),
  (
    '--table=shared.csv --construction=disjoint',
    "'y' is an answer of 'to' and of 'from'; every relation needs answers of its own",
  ),
  # folders
  ('--workdir=ok.csv', 'error: ok.csv: cannot be written to: Not a directory'),
  ('--workdir=ok.csv/runs', 'error: ok.csv/runs: cannot be written to: Not a directory'),
  ('--workdir=foreign', 'foreign/selector exists and is not a geomem model; choose another --workdir'),
]  # fmt: skip

MODELS = '--workdir=models --construction=selector'
ASK = [
  # models
  ('"s0 r0"', '--workdir=runs/construct: no models there; python -m experiments.construct --construction=selector saves one'),
  ('--workdir=nowhere "s0 r0"', '--workdir=nowhere: no models there'),
  ('--workdir=none "s0 r0"', '--workdir=none: no models there'),
  ('--workdir=foreign "s0 r0"', '--workdir=foreign: no models there'),
  ('--workdir=ok.csv "s0 r0"', '--workdir=ok.csv: no models there'),
  ('--workdir=foreign --construction=selector "s0 r0"', '--workdir=foreign: no models there'),
  ('--workdir=models "s0 r0"', 'choose one with --construction=NAME: models holds keyvalue, selector'),
  ('--workdir=models --construction=disjoint "s0 r0"', 'choose one with --construction=NAME: models holds keyvalue, selector'),
  ('--workdir=models --construction=all "s0 r0"', 'models holds keyvalue, selector'),
  (f'{MODELS} --construction=keyvalue "s0 r0"', '--construction=keyvalue: already defined as selector'),
  ('--workdir=cut "s0 r0"', 'damaged model: arrays/0/default/ocdbt.process_0/d/'),
  ('--workdir=bare "s0 r0"', '_METADATA is missing, or not what was saved'),
  ('--workdir=later "s0 r0"', 'version 9 of the format; this code reads 2'),
  ('--workdir=fine --dtype=bfloat16 "s0 r0"', 'bfloat16 cannot hold embed/'),
  (f'{MODELS} --dtype=int8 "s0 r0"', 'value should be one of <float32|bfloat16>'),
  # queries
  (f'{MODELS}', 'no query; the model answers a subject and 1 relation(s), like "s0 r0"'),
  (f'{MODELS} ""', 'empty query; the model answers a subject and 1 relation(s)'),
  (f'{MODELS} "s8 r0"', "unknown subject 's8'; the subjects are s0, s1 … s7"),
  (f'{MODELS} "s0 r3"', "unknown relation 'r3'; the relations are r0, r1, r2"),
  (f'{MODELS} "s0 r0 r1"', "'s0 r0 r1' has 2 relation(s); the model answers a subject and 1"),
  (f'{MODELS} s0 r0', "'s0' has 0 relation(s); the model answers a subject and 1"),
  ('--workdir=models --construction=keyvalue "s0 r0"', 'answers a subject and 2 relation(s)'),
  ('--workdir=named "a b c"', "'a b c' can be read in more than one way; separate the names by |"),
  # figures
  (f'{MODELS} --figure=a.gif "s0 r0"', '--figure=a.gif: cannot draw such a file; use .png, .pdf, .svg'),
  (f'{MODELS} --figure=a.png', '--figure draws one query, in quotes; there are 0'),
  (f'{MODELS} --figure=a.png "s0 r0" "s1 r1"', 'draws one query, in quotes; there are 2'),
  (f'{MODELS} --figure=nowhere/a.png "s0 r0"', 'there is no folder nowhere; name one that exists'),
]  # fmt: skip
OTHERS = [
  ('bounds', '--subjects=1', 'subjects is 1; it must be at least 2'),
  ('bounds', '--redraw --hops=2', '--hops and --redraw contradict each other'),
  ('bounds', '--redraw --workdir=new', 'new: no results there'),
  ('bounds', '--redraw --workdir=other', 'other: not results of experiments.bounds'),
  ('bounds', '--workdir=ok.csv', 'cannot be written to'),
  ('bounds', '--seeds=2', "Unknown command line flag 'seeds'"),
  ('approximate', '--relations=0', 'relations is 0; it must be at least 1'),
  ('approximate', '--redraw --seeds=2', '--seeds and --redraw contradict each other'),
  ('approximate', '--seeds=0', '0 is not a positive integer'),
  ('approximate', '--redraw --workdir=other', 'other: not results of experiments.approximate'),
  ('benchmark', '--only=nothing', 'exhaustive'),
  ('benchmark', '--scale=huge', 'smoke|laptop|full'),
  ('train', '--subjects=1', 'subjects is 1; it must be at least 2'),
  ('train', '--learning_rate=-1', 'learning_rate=-1'),
  ('train', '--target=1.5', 'an accuracy lies in (0, 1]'),
  ('train', '--loss=chain', 'needs chain_of_thought'),
  ('multihop', '--subjects=1', 'subjects'),
  ('laws', '--learning_rate=-1', 'non-negative'),
  ('laws', '--redraw --seeds=3', 'contradict'),
  ('laws', '--redraw --steps=50', 'contradict'),
  ('laws', '--learning_rate=nan', '--learning_rate=nan: it must be a finite'),
  ('train', '--seed=4294967296', 'seed'),
  ('bounds', '--seed=99999999999999999999999', 'none above 4294967295'),
  (
    'train',
    '--seed=4294967295 --seeds=2',
    '2 seeds from 4294967295 on: use at least one, and none above',
  ),
  (
    'approximate',
    '--seed=4294967295 --seeds=2',
    '2 seeds from 4294967295 on: use at least one, and none above',
  ),
  (
    'laws',
    '--seed=4294967295',
    '2 seeds from 4294967295 on: use at least one, and none above',
  ),
  ('laws', '--scale=full --seeds=9', '--seeds: the parts of --scale=full differ in it'),
  ('laws', '--weight_decay=-1', 'non-negative'),
  ('structure', '--scale=smoke --seed=4294967290 --seeds=9', 'none above 4294967295'),
  ('train', '--weight_decay=inf', '--weight_decay=inf: it must be a finite'),
  ('benchmark', '--redraw --scale=smoke', 'contradict'),
  ('transfer', '--redraw --part=units', '--part and --redraw contradict each other'),
  (
    'transfer',
    '--scale=full --part=R3',
    '--part=R3: --scale=full has recipe, units, R2, R4, simpler, subjects',
  ),
  ('train', '--subjects=4 --subjects=5', '--subjects=5: already defined as 4'),
  ('train', '--seeds=0', '0 is not a positive integer'),
  ('train', '--shard --seeds=2', '--shard trains one model, not a grid of 2'),
  ('train', '--shard --batch=3', 'batch is 3; 2 devices need a multiple of 2'),
  ('train', '--process=1', 'belong together'),
  ('train', '--coordinator=here --processes=2 --process=0', 'it must be HOST:PORT'),
  ('train', '--coordinator=here:1 --processes=2 --process=2', 'numbered from 0'),
  ('train', '--workdir=ok.csv', 'cannot be written to'),
  ('benchmark', 'now', "unexpected argument 'now'"),
]
CASES = OTHERS + [('construct', *case) for case in CONSTRUCT] + [('ask', *case) for case in ASK]


@pytest.mark.parametrize(('binary', 'arguments', 'told'), CASES)
def test_one_line_and_status_2(binary, arguments, told, place, monkeypatch):
  monkeypatch.chdir(place)
  before = contents(place)
  status, _, err = run(binary, *shlex.split(arguments))
  assert status == 2
  assert err.startswith('error: ') and err.endswith('\n') and err.count('\n') == 1
  assert told in err
  assert contents(place) == before


def test_queries_that_are_not_text(place, monkeypatch):
  monkeypatch.chdir(place)
  status, _, err = run('ask', *shlex.split(MODELS), stdin=b's0 r\xff\n')
  assert status == 2 and err.startswith('error: standard input is not text in UTF-8')


def test_memory_that_is_not_there(place, monkeypatch):
  def exhaust(*_, **__):
    raise MemoryError('Unable to allocate 8. TiB')

  monkeypatch.chdir(place)
  monkeypatch.setattr(registry, 'build', exhaust)
  status, _, err = run('construct', '--construction=selector')
  assert (status, err) == (
    2,
    'error: out of memory: Unable to allocate 8. TiB; choose smaller sizes\n',
  )


def test_all_skips_what_cannot_be_built(tmp_path, monkeypatch):
  monkeypatch.setattr(construction, 'MAX_PARAMETERS', 900)
  some = {name: registry.entry(name) for name in ('selector', 'precomputed')}
  monkeypatch.setattr(registry, 'REGISTRY', some)
  workdir = tmp_path / 'new' / 'runs'
  sizes = '--subjects=4', '--relations=2', '--hops=3', '--construction=all'
  status, out, err = run('construct', *sizes, f'--workdir={workdir}')
  assert status == 0 and 'selector, N = 4, R = 2, k = 1' in out and err.count('\n') == 1
  assert (
    'warning: skipped precomputed: this construction would have' in err and '(limit 900)' in err
  )
  names = ['findings.json', 'results.json', 'selector']
  assert sorted(path.name for path in workdir.iterdir()) == names


def test_bounds_say_what_cannot_be_built(tmp_path, monkeypatch):
  some = {name: registry.entry(name) for name in ('keyvalue', 'precomputed')}
  monkeypatch.setattr(registry, 'REGISTRY', some)
  sizes = '--subjects=4', '--relations=2', '--hops=3', f'--workdir={tmp_path / "new"}'
  monkeypatch.setattr(construction, 'MAX_PARAMETERS', 900)
  status, out, err = run('bounds', *sizes)
  assert status == 0 and 'keyvalue  ' in out and err.count('\n') == 1
  assert 'warning: skipped precomputed: this construction would have' in err
  monkeypatch.setattr(construction, 'MAX_PARAMETERS', 1)
  status, _, err = run('bounds', *sizes)
  assert status == 2 and err.count('\n') == 1
  assert err.startswith('error: no construction can be built at these sizes: this construction')


@pytest.mark.parametrize(
  ('command', 'told'),
  [
    ('construct --subjects=1', 'error: subjects is 1; it must be at least 2\n'),
    ('ask --workdir=cut "s0 r0"', 'is missing, or not what was saved\n'),
  ],
)
def test_in_a_process_of_its_own(command, told, place):
  binary, *arguments = shlex.split(command)
  done = subprocess.run(
    [sys.executable, '-m', f'experiments.{binary}', *arguments],
    cwd=place,
    env={'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
    check=False,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert done.stderr.endswith(told) and done.stderr.startswith('error: ')
  assert done.stderr.count('\n') == 1


@pytest.mark.parametrize(
  ('binary', 'told', 'flags'),
  [
    ('ask', 'Which model to ask (default: the only one there).', ''),
    (
      'construct',
      '--list shows them), or all, the default.; repeat this option',
      'subjects relations hops dim width seed',
    ),
  ],
)
def test_a_binary_says_what_it_takes(binary, told, flags):
  status, out, err = run(binary, '--help')
  assert status == 0 and not err and told in ' '.join(out.split())
  names = ['construction', 'dtype', 'workdir', *flags.split()]
  assert all(f'  --{name}: ' in out for name in names)
