"""The programs that studies run are recorded and compiled for devices that are not here; what cannot run is refused."""

import dataclasses
import importlib.util
import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from experiments import compile as compiling
from experiments import laws, pages, train
from experiments.harness import cli, machine, programs, records, studies, targets
from experiments.harness.programs import Program
from geomem.config import Config
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.training import step_time, sweeps
from geomem.training.device_memory import Refused
from geomem.training.recipe import Recipe
from geomem.training.sweeps import Task

ROOT = Path(__file__).parents[1]
jax.devices()  # JAX starts with two here, before a command that lowers for GPUs asks for as many as these may be
PRESET = laws.Preset(cells=((8, 2),), passes=(1,), steps=4, seeds=1, dims=(2, 3))
NAMES = 'start lazy', 'train_chunks lazy', 'map_models stored_bits._scores lazy'
libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed: make tpu'
)
plugin = pytest.mark.skipif(
  importlib.util.find_spec('jax_cuda12_plugin') is None,
  reason='the CUDA plug-in is not installed: make cuda',
)
TPU, GPU = pytest.param('v5e:1x1', marks=libtpu), pytest.param('t4', marks=plugin)


def of_laws(devices, platform):
  return programs.of_study(laws.STUDY, PRESET, devices, platform)


def shapes(tree):
  return [(np.shape(leaf), leaf.dtype) for leaf in jax.tree.leaves(tree) if hasattr(leaf, 'dtype')]


def test_what_is_recorded_is_what_runs(monkeypatch):
  """Recording finds the same functions and array shapes that the study calls when it really trains."""
  called = []
  for name in ('_start', '_train_chunks', '_map_models'):
    real = getattr(sweeps, name)
    spy = lambda *args, real=real: called.append((real, args)) or real(*args)
    monkeypatch.setattr(sweeps, name, spy)
  recorder = programs.Recorder(Path(), jax.devices(), 'cpu')
  laws.measure(recorder, PRESET, range(1))
  monkeypatch.undo()
  recorded = [one for one in of_laws(jax.devices(), 'cpu') if 'copy' not in one.name]
  assert [one.name for one in recorded] == list(NAMES)
  for one, (real, args) in zip(recorded, called, strict=True):
    assert one.function is real and shapes(one.args) == shapes(args)


def test_the_notebook_trains_on_a_tpu_what_was_compiled():
  """Its two trainings, by the sizes that it has on a TPU, are among the commands of the committed record."""
  lines = (ROOT / 'notebooks/tpu.ipynb').read_text(encoding='utf-8').splitlines()
  on_tpu = [
    re.findall(r'[\d*]+', following)
    for line, following in itertools.pairwise(lines)
    if 'if on_tpu' in line
  ]
  (models, subjects, relations, _), (many, more, dim, batch, _) = (
    [10**6 if size == '10**6' else int(size) for size in sizes] for sizes in on_tpu
  )
  own = train.Options
  expected = (
    {'subjects': subjects, 'relations': relations, 'dim': 16, 'batch': None, 'models': models},
    {'subjects': many, 'relations': more, 'dim': dim, 'batch': batch, 'models': None},
  )
  command = records.read(pages.RESULTS / 'compiled.json').about['command']
  compiled = [dict(re.findall(r'--(\w+)=(\d+)', one)) for one in command.split('; ')]
  fixed = {'relations': own.relations, 'dim': own.dim, 'batch': None, 'models': None}
  for sizes in expected:
    assert any(
      {**fixed, **{k: int(v) for k, v in one.items() if k != 'target'}} == sizes for one in compiled
    ), sizes


def test_every_study_was_compiled_for_one_device_and_for_eight():
  """In the committed records, and nothing was refused."""
  table = records.read(pages.RESULTS / 'compiled.json').table
  own = table[table['study'].isin(studies.NAMES)]
  expected = {*itertools.product(('v5e:1x1', 'v5e:2x4', 't4', 'h100:8', 'rocm'), studies.NAMES)}
  assert {*zip(own['target'], own['study'], strict=True)} == expected
  assert 'refused' not in table or not table['refused'].notna().any()
  assert (own['peak_bytes'].notna() == (own['target'] != 'rocm')).all()


def test_a_study_that_goes_on_with_what_it_trained_is_recorded_to_its_end():
  study = studies.load('leaderboard')
  found = programs.of_study(study, study.presets['smoke'], jax.devices()[:1], 'tpu')
  names = {one.name.split()[0] for one in found}
  assert {'train_chunks', 'probed_units', 'aligned_subspaces'} <= names, names


def test_nothing_is_left_of_recording():
  before = sweeps._train_chunks, jax.jit
  of_laws(jax.devices(), 'tpu')
  assert (sweeps._train_chunks, jax.jit) == before


def test_of_each_kind_the_largest_is_chosen():
  small, large = (
    Program(sweeps._start, (), {'a': jax.ShapeDtypeStruct((size,), np.float32)}) for size in (2, 3)
  )
  assert programs.largest([(large, 'R8'), (small, 'R2')]) == [(large, 'R8')]
  assert large.bytes == 12


def test_programs_that_differ_in_more_than_sizes_are_all_kept():
  """Two optimizers and two ways to solve for the embeddings, which have the same functions and arrays."""
  study = studies.load('optimizers')
  found = programs.of_study(study, study.presets['smoke'], jax.devices()[:1], 'tpu')
  names = [one.name for one, _ in programs.largest([(one, '') for one in found])]
  assert names.count('map_models stored_bits._scores alternating.learn') == 2
  assert {'train_chunks', 'train_chunks muon'} <= {*names}
  assert len({one.digest for one in found}) == len(found)


def test_the_platform_is_an_argument():
  """When planned for a TPU, all models of a device advance together; the library never asks the process for a platform."""
  config, facts = Config.trained(512, 4, dim=16), Facts.bijections(512, 4)
  tasks = [Task(config, facts, seed=seed) for seed in range(12)]
  here, there = (sweeps.set_up(Recipe(), tasks, platform=name)[0] for name in ('cpu', 'tpu'))
  assert here.vmap_size < there.vmap_size == 6
  large = lambda sweep: dataclasses.replace(sweep, config=Config.trained(2**14, 4, dim=64))
  assert step_time.chunk_steps(large(here)) < step_time.chunk_steps(large(there))
  root = Path(sweeps.__file__).parents[1]
  for path in root.rglob('*.py'):
    text = path.read_text(encoding='utf-8')
    assert 'default_backend' not in text and 'device_count(' not in text, path


# --- what is refused ------------------------------------------------------------------------------


def asks_the_host(x):
  """Calls back to the host in a branch in a loop, where it is easily missed."""
  told = lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
  return jax.lax.fori_loop(0, 3, lambda _, x: jax.lax.cond(x[0] > 0, told, jnp.cos, x), x)


def on(target, function, *shape):
  place = SingleDeviceSharding(target.devices[0])
  return Program(jax.jit(function), (jax.ShapeDtypeStruct(shape, np.float32, sharding=place),), {})


@pytest.mark.parametrize('name', ['cuda', TPU, GPU])
def test_host_callbacks_are_refused(name):
  target = targets.find(name)
  with pytest.raises(
    Refused, match='asks_the_host: it calls back to the host.*pure_callback'
  ) as told:
    targets.build(on(target, asks_the_host, 4), target)
  assert '\n' not in str(told.value)
  shown = lambda x: jax.debug.print('{}', x)  # before JAX 0.10 it is a debug_callback
  assert [*targets.callbacks(jax.make_jaxpr(shown)(1.0).jaxpr)] in (
    ['debug_print'],
    ['debug_callback'],
  )
  assert not [*targets.callbacks(jax.make_jaxpr(jnp.cos)(1.0).jaxpr)]


@pytest.mark.parametrize(
  ('name', 'memory'),
  [pytest.param('v5e:1x1', '15.8', marks=libtpu), pytest.param('t4', '11.1', marks=plugin)],
)
def test_what_does_not_fit_is_refused_with_the_largest_that_does(
  name, memory, tmp_path, monkeypatch, capsys
):
  """The refusal is one line with status 2; the size that it names compiles, and 1.2 times that size is refused again."""
  target = targets.find(name)

  def of_size(rows):
    return on(target, lambda x: x @ x.T, rows, 2**10)

  def refused(rows):
    planted = compiling.CompileJob('planted', '', of_size(rows), rows, 'rows', of_size)
    monkeypatch.setattr(compiling, 'of_studies', lambda *_: [planted])
    with pytest.raises(SystemExit) as stop:
      cli.run(compiling.main, compiling.Options, ['', f'--target={name}', f'--workdir={tmp_path}'])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and re.search(
      rf'planted: refused: .*: needs .* of the {memory} GiB', line
    )
    return int(re.search(r'; the most rows that fit: ([\d,]+)', line)[1].replace(',', ''))

  fits = refused(10**6)
  targets.build(of_size(fits), target)
  with pytest.raises(Refused):
    targets.build(of_size(round(1.2 * fits)), target)


@pytest.mark.parametrize(
  'name', [pytest.param('v5e:2x4', marks=libtpu), pytest.param('h100:8', marks=plugin)]
)
def test_a_program_of_a_study_compiles_for_eight_chips(name):
  target = targets.find(name)
  (train,) = (one for one in of_laws(target.devices, target.platform) if one.name == NAMES[1])
  found = targets.build(train, target)
  assert 0 < found['argument_bytes'] < found['peak_bytes'] < found['available_bytes']
  assert 'f32' in found['products'] and not found['collectives']
  if target.platform == 'tpu':  # for GPUs the compiler does not count them
    assert found['flops'] > 0


@pytest.mark.parametrize('name', ['cuda', 'cuda:2', 'rocm'])
def test_programs_are_lowered_for_gpus(name):
  target = targets.find(name)
  (train,) = (one for one in of_laws(target.devices, target.platform) if one.name == NAMES[1])
  assert targets.build(train, target)['text_bytes'] > 10**4


@pytest.mark.parametrize('name', ['cuda', TPU, GPU])
def test_checks_that_no_preset_chooses_are_compiled(name):
  """By certificate and for all facts at once: the programs of construct have one kind more for each."""
  target = targets.find(name)
  options = compiling.Options(study=('construct',), part=tuple(compiling.CHECKS))
  found = [*compiling.of_studies(options, target)]
  names = [one.program.name for one in found]
  assert names == [
    'check_block verify._certified_margins queries.compose',
    'check_block verify.margins queries.look_up',
  ]
  for one in found:
    assert targets.build(one.program, target)['lower_seconds'] > 0


@pytest.mark.parametrize('sizes', [{'models': 6}, {'batch': 4}])
def test_a_model_of_the_train_binary_is_lowered_at_any_size(sizes):
  target = targets.find('cuda:2')
  one = compiling.of_train(compiling.Options(subjects=8, relations=2, dim=4, **sizes), target)
  smaller = one.of_size(2)
  assert one.size == (3 if 'models' in sizes else 8) and smaller.bytes < one.program.bytes
  assert smaller.models == (4 if 'models' in sizes else 0)
  assert targets.build(smaller, target)['text_bytes'] > 10**4


@pytest.mark.parametrize(
  ('flag', 'says'),
  [('', 'name what to compile for'), ('--target=v5e', 'name a TPU'), ('--target=cuda:9', r'1 to \d devices'),
   ('--target=cuda:x', r'1 to \d devices'), ('--target=h100:x', 'h100:8 is eight'), ('--target=h100:0', 'h100:8 is eight'), ('--target=cuda --study=none', 'is no study')],
)  # fmt: skip
def test_bad_input_is_one_line(flag, says, tmp_path):
  options = cli.parse(cli.flags_of(compiling.Options), ['compile', *flag.split()], '')
  with pytest.raises(InputError, match=says):
    compiling.main(compiling.Options(**options, workdir=str(tmp_path)))


# --- what is read from a compiled text ------------------------------------------------------------

TEXT = """
  %a = (f32[8,128]{1,0:T(8,128)}, bf16[4]{0}) all-reduce(%x, %y), replica_groups={}
  %b = f32[2,3]{1,0} all-gather-start(%z), dimensions={0}
  %e = f32[64]{0} all-reduce(%x), replica_groups={{0},{1}}, to_apply=%add
  %g = f32[64]{0} all-reduce(%x), replica_groups=[2,1]<=[2], to_apply=%add
  %c = f32[8,16]{1,0:T(8,128)} convolution(%p, %q), dim_labels=bf_io->bf, operand_precision={highest,highest}
  %d = bf16[8,16]{1,0} dot(%p, %q), lhs_contracting_dims={1}
  %h = (f32[8,16]{1,0}, s8[99]{0}) custom-call(%p, %q), custom_call_target="__cublas$lt$matmul", backend_config={"precision_config":{"operand_precision":["HIGHEST","HIGHEST"]}}
  %i = (f32[8,16]{1,0}, s8[99]{0}) custom-call(%p), custom_call_target="cu_solver"
"""


def test_collectives_and_precisions_are_read():
  assert targets.collectives(TEXT) == {
    'all-reduce': (1, 4 * 8 * 128 + 2 * 4),
    'all-gather': (1, 24),
  }
  assert targets.precisions(TEXT) == {'f32 highest': 2, 'bf16 default': 1}


def test_padding_is_read():
  """In tiles of 8 by 128, rows of 16 fill an eighth; transposed, with 512 values side by side, they fill all."""
  line = '  %f = f32[512,16]{{{}:T(8,128)S(1)}} fusion(%x), kind=kLoop\n'
  assert targets.padding(line.format('1,0')) == 8
  assert targets.padding(line.format('0,1')) == 1
  assert targets.padding(line.format('1,0') + line.format('0,1')) == 4.5
  assert targets.padding('  %f = f32[] fusion(%x)') is None


def test_cycles_are_those_that_the_compiler_expects():
  """Of all operations, and of those that are products or call a computation that has one."""
  said = 'backend_config={"estimated_cycles":"%d"}\n'
  text = (
    '%fused.1 (p: f32[8]) -> f32[8] {\n  %c = f32[8] convolution(%p, %q), dim_labels=bf_io->bf\n}\n'
    '%fused.2 (p: f32[8]) -> f32[8] {\n  ROOT %m = f32[8] multiply(%p, %p)\n}\n'
    '%fused.3 (p: f32[8]) -> f32[8] {\n  ROOT %n = f32[8] fusion(%p), calls=%fused.1\n}\n'
    'ENTRY %main (p: f32[8]) -> f32[8] {\n'
    '  %a = f32[8] fusion(%p), calls=%fused.1, ' + said % 100
    + '  %b = f32[8] fusion(%p), calls=%fused.2, ' + said % 20
    + '  %e = f32[8] fusion(%p), calls=%fused.3, ' + said % 4000
    + '  ROOT %d = f32[8] dot(%a, %b), ' + said % 3 + '}\n'
  )  # fmt: skip
  assert targets.cycles(text) == {'cycles': 4123, 'product_cycles': 4103}
  assert targets.cycles('') == {'cycles': None, 'product_cycles': None}


def test_what_this_code_has_compiled_is_not_compiled_again(tmp_path, monkeypatch, capsys):
  """Two programs that differ in a static argument alone are two; other code starts anew; commands add up."""
  built = []
  found = lambda *rates: [
    compiling.CompileJob('laws', '', Program(jax.jit(asks_the_host), (rate,), {}), 1, 'models', lambda size: None)
    for rate in rates
  ]  # fmt: skip
  monkeypatch.setattr(
    targets, 'build', lambda one, _: built.append(one.args) or {'lower_seconds': 0.0}
  )

  monkeypatch.setattr(targets, 'find', lambda name: targets.Target(name, 'tpu', ()))

  def run(rates, study):
    built.clear()
    monkeypatch.setattr(compiling, 'of_studies', lambda *_: iter(found(*rates)))
    compiling.main(compiling.Options(target=('v5e:1x1',), study=(study,), workdir=str(tmp_path)))
    return len(built), records.read(tmp_path).about['command'].count('experiments.compile')

  assert run((1.0, 2.0), 'laws') == (2, 1)
  assert run((1.0, 2.0), 'laws') == (0, 1)
  assert run((1.0, 3.0), 'phases') == (1, 2)
  assert len(records.read(tmp_path).table) == 3
  monkeypatch.setattr(machine, 'code_hash', lambda: 'other')
  assert run((1.0,), 'laws') == (1, 1)
