"""The public API of `geomem` and `constructions`: models are asked, checked, traced and saved in one call each."""

import ast
import doctest
import importlib
import inspect
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import constructions
import geomem
from geomem import pretrained
from geomem.errors import InputError
from geomem.inside import intervene, linear_maps, truth
from geomem.saved import atomic
from geomem.training import sweeps

ROOT = Path(__file__).parents[1]
FACTS = geomem.Facts.bijections(subjects=8, relations=3, seed=0)
CONFIG = geomem.Config.trained(8, 3, dim=24, width=48)


@pytest.fixture(scope='module')
def trained():
  return geomem.train(CONFIG, FACTS, steps=300, seed=0)


@pytest.fixture(params=['built', 'trained'])
def either(request):
  if request.param == 'trained':
    return request.getfixturevalue('trained')
  return constructions.build('selector', FACTS)


def test_what_a_user_writes(tmp_path, trained):
  built = constructions.build('selector', FACTS)
  assert built.ask('s7 r2').correct and built.verify().holds(4)
  assert 's7' in str(built.trace('s7 r2'))
  built.save(tmp_path / 'mine')
  assert constructions.load(tmp_path / 'mine').verify('universal').queries == 3 * 8**3
  many = geomem.sweep([geomem.Task(CONFIG, FACTS, seed=s) for s in range(2)], steps=30)
  assert [type(one) for one in (*many, trained)] == [geomem.Trained] * 3
  assert [one.seed for one in many] == [0, 1] and trained.accuracy > 0.9


def test_both_kinds_are_used_alike(either, tmp_path):
  answers = [either.ask(f's{s} r{r}') for s in range(8) for r in range(3)]
  report = either.verify()
  assert report.check == 'exhaustive' and report.queries == either.queries == 24
  assert report.correct == sum(answer.correct for answer in answers)
  best, answer = str(either.trace('s1 r2')).splitlines()[-1].split(), either.ask('s1 r2')
  assert best[:2] == ['answer', f'{answer.answer},']
  book = either.ledger()
  assert book.total_parameters == sum(w.size for w in jax.tree.leaves(either.params))
  either.save(tmp_path / 'model')
  for load in (geomem.load, constructions.load):
    again = load(tmp_path / 'model')
    assert type(again) is type(either) and repr(again) == repr(either)
    jax.tree.map(np.testing.assert_array_equal, again.params, either.params)
    assert again.verify() == report and str(again.ask('s1 r2')) == str(answer)
  assert getattr(again, 'recipe', None) == getattr(either, 'recipe', None)


def test_reprs_are_one_line(either):
  for value in (either, either.ask('s0 r0'), either.trace('s0 r0')):
    assert '\n' not in repr(value) and len(repr(value)) < 200
  assert repr(constructions.build('selector', FACTS)) == (
    '<Construction selector: subjects=8, relations=3, hops=1, dim=9, depth=1, parameters=549, margin=4>'
  )


def test_a_chain_is_asked_traced_and_checked():
  model = constructions.build('chain_of_thought', FACTS, hops=3)
  answer = model.ask('s2 r0 r1 r2')
  assert len(answer.steps) == 3 and answer.correct and model.verify().correct == 8 * 27
  assert len(model.trace('s2 r0 r1 r2').positions) == 3


def test_a_large_model_is_certified_where_that_can_be(monkeypatch):
  monkeypatch.setattr('geomem.facade.AUTO_LOGITS', 8 * 3 * 8 - 1)
  done = []
  report = constructions.build('selector', FACTS).verify(on_progress=lambda *at: done.append(at))
  assert report.check == 'certificate' and done == [(1, 1)]
  assert constructions.build('associative_mlp', FACTS).verify().check == 'exhaustive'


def test_a_check_that_there_is_not_is_refused(either):
  with pytest.raises(geomem.InputError, match="check is 'all'; it must be one of auto, exhaustive"):
    either.verify('all')
  if isinstance(either, geomem.Trained):
    with pytest.raises(geomem.InputError, match='trained has no certificate'):
      either.verify('certificate')


# --- loading --------------------------------------------------------------------------------------


def damage(path, change):
  """Changes the saved parameters, as if the model had been saved with them."""
  fields, arrays = atomic.read(path)
  change(arrays['params'])
  atomic.write(path, {k: v for k, v in fields.items() if k not in ('arrays', 'files')}, arrays)


def flip(params):
  params['blocks_0']['mlp']['in'][2, 3] = 1e-30


@pytest.mark.parametrize(
  ('name', 'hops', 'options'),
  [
    ('selector_multilevel', 1, {'bits': 2}),
    ('factored', 2, {'hops_per_layer': 2}),
    ('superposition', 1, {'dim': np.int64(40), 'seed': 3}),
  ],
)
def test_a_construction_is_built_anew(name, hops, options, tmp_path):
  built = constructions.build(name, FACTS, hops, **options)
  built.save(tmp_path / name)
  again = constructions.load(tmp_path / name)
  assert again.options == options and again.config == built.config
  assert (again.encode is None) == (built.encode is None)
  jax.tree.map(np.testing.assert_array_equal, again.params, built.params)


def test_an_exact_construction_that_was_changed_is_refused(tmp_path):
  built = constructions.build('selector', FACTS)
  built.save(tmp_path / 'model')
  damage(tmp_path / 'model', flip)
  with pytest.raises(geomem.InputError, match='not the weights that selector has') as error:
    constructions.load(tmp_path / 'model')
  assert '\n' not in str(error.value)
  assert geomem.load(tmp_path / 'model').params['blocks_0']['mlp']['in'][2, 3] != 0
  built.replace(config=built.config.replace(norm_eps=1e-3)).save(tmp_path / 'model')
  with pytest.raises(geomem.InputError, match='not the weights that selector has'):
    constructions.load(tmp_path / 'model')


def test_one_that_a_solver_made_is_as_it_was_saved(tmp_path):
  built = constructions.build('superposition', FACTS)
  built.save(tmp_path / 'model')
  assert constructions.load(tmp_path / 'model').encode is not None
  damage(tmp_path / 'model', flip)
  again = constructions.load(tmp_path / 'model')
  assert again.encode is None and again.params['blocks_0']['mlp']['in'][2, 3] != 0


def test_a_construction_of_ones_own_is_as_it_was_saved(tmp_path):
  constructions.build('selector', FACTS).replace(name='mine').save(tmp_path / 'model')
  again = constructions.load(tmp_path / 'model')
  assert again.name == 'mine' and again.verify('certificate').holds(4) and again.encode is None
  with pytest.raises(geomem.InputError, match='or the model was loaded'):
    again.verify('universal')


def test_the_first_format_is_refused(tmp_path):
  constructions.build('selector', FACTS).save(tmp_path / 'model')
  config = tmp_path / 'model/config.json'
  config.write_text(json.dumps({**json.loads(config.read_text()), 'version': 1}))
  with pytest.raises(geomem.InputError, match='version 1 of the format; this code reads 2'):
    constructions.load(tmp_path / 'model')


# --- training -------------------------------------------------------------------------------------


def test_a_sweep_of_two_is_two_trained():
  told, options = [], {'steps': 20, 'target': None}  # only a few, because rounding errors grow
  tasks = [geomem.Task(CONFIG, FACTS, seed=seed) for seed in (0, 1)]
  both = geomem.sweep(tasks, on_progress=lambda *at: told.append(at), **options)
  assert told[-1] == (20, 20) and geomem.sweep([]) == []
  for seed, one in enumerate(both):
    alone = geomem.train(CONFIG, FACTS, seed=seed, **options)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, one.params, alone.params)
    assert one.steps == alone.steps == 20 and one.recipe == alone.recipe and one.seed == seed
    assert one.accuracy == pytest.approx(one.verify().accuracy) == alone.accuracy


def test_a_sweep_does_not_use_up_the_parameters_given():
  params = jax.tree.map(jax.numpy.asarray, geomem.train(CONFIG, FACTS, steps=1).params)
  task = geomem.Task(CONFIG, FACTS, params=params)
  first, second = (geomem.sweep([task], steps=20)[0].params for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, first, second)
  sweep, states = sweeps.set_up(geomem.Recipe(steps=20), [task])
  ends = [list(sweeps.fit(sweep, states, 20))[-1][1].loss for _ in range(2)]
  np.testing.assert_array_equal(*ends)


def test_hops_and_chains_are_trained_from_options():
  chain = {'hops': 2, 'chain_of_thought': True, 'loss': 'chain'}
  config = geomem.Config.trained(8, 2, dim=16, length=4)
  model = geomem.train(config, geomem.Facts.bijections(8, 2), steps=5, target=None, **chain)
  assert model.recipe.warmup == 0 and model.recipe.loss == 'chain' and model.steps == 5
  assert len(model.ask('s1 r0 r1').steps) == 2 and model.verify().queries == 32


def test_what_is_not_among_the_attributes_can_be_said_too():
  config = geomem.Config.trained(8, 3, dim=16, answers=11)
  model = geomem.train(config, FACTS, steps=1, loss='every')
  rows = np.array(model.params['unembed']['answers'])
  rows[:8], rows[9] = 0, -rows[8]  # one of these two logits is positive
  model = model.replace(params={**model.params, 'unembed': {'answers': rows}})
  assert model.ask('s1 r0').answer in ('no attribute 8', 'no attribute 9', 'no attribute 10')


# --- notebooks ------------------------------------------------------------------------------------


def test_tables_for_a_notebook_escape_names():
  names = tuple(f'<b>{i}&' for i in range(8))
  facts = geomem.Facts(FACTS.answers_RxN, 8, True, names, ('<r0>', '<r1>', '<r2>'), names)
  built = constructions.build('selector', facts).replace(name='<i>')
  seen = built.trace('<b>1& <r2>')._repr_html_()
  assert '&lt;b&gt;1&amp;' in seen and '&lt;r2&gt;' in seen
  for text in (seen, built._repr_html_(), built.ledger()._repr_html_()):
    assert set(re.findall(r'<(/?\w+)', text)) == {'table', 'tr', 'td', '/table', '/tr', '/td'}
    assert re.fullmatch(r'<table>(<tr>(<td>[^<>]*</td>)+</tr>)+</table>', text)


# --- the examples ---------------------------------------------------------------------------------


def exported():
  packages = (geomem, constructions)
  return [(package, name) for package in packages for name in package.__all__ if name[0] != '_']


def run_example(name, text, space):
  """Run the example in a docstring; returns how many lines it has."""
  example = doctest.DocTestParser().get_doctest(text, space, name, None, None)
  told = io.StringIO()
  assert not doctest.DocTestRunner().run(example, out=told.write).failed, told.getvalue()
  return len(example.examples)


@pytest.mark.parametrize('name', ['export', 'inside.truth', 'inside.symmetry', 'inside.edits'])
def test_so_has_every_module_of_the_reference(name, tmp_path, monkeypatch):
  """Its example uses every public function, and those of its functions run as well."""
  monkeypatch.chdir(tmp_path)
  module = importlib.import_module(f'geomem.{name}')
  space = {
    **vars(module),
    'geomem': geomem,
    'constructions': constructions,
    'Facts': geomem.Facts,
    'intervene': intervene,
    'linear_maps': linear_maps,
    'truth': truth,
    'Path': Path,
  }
  assert run_example(name, module.__doc__, dict(space))
  own = {
    key: value for key, value in vars(module).items()
    if key[0] != '_' and (inspect.isroutine(value) or inspect.isclass(value)) and value.__module__.startswith(module.__name__)
  }  # fmt: skip
  for key, value in own.items():
    used = re.search(rf'>>>.*\b{key}\b', module.__doc__)
    assert used or run_example(key, inspect.getdoc(value), dict(space)), (
      f'{name}.{key} has no example'
    )


def test_so_has_every_name_of_the_pretrained_models():
  """FactEncoder's needs a pretrained model, and is not run."""
  for name in pretrained.__all__:
    text = inspect.getdoc(getattr(pretrained, name))
    assert '>>>' in text, name
    assert name == 'FactEncoder' or run_example(name, text, dict(vars(pretrained)))


@pytest.mark.parametrize(
  ('package', 'name'), exported(), ids=lambda value: getattr(value, '__name__', value)
)
def test_every_name_has_an_example_that_is_so(package, name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  value = getattr(package, name)
  space = {**vars(sys.modules[value.__module__]), 'geomem': geomem, 'constructions': constructions}
  assert run_example(name, inspect.getdoc(value), space)


def public(body):
  """The public functions of a module, and the public methods of its public classes."""
  for node in body:
    if isinstance(node, ast.FunctionDef) and (node.name == '__call__' or node.name[0] != '_'):
      yield node
    elif isinstance(node, ast.ClassDef) and node.name[0] != '_':
      yield from public(node.body)


def test_every_public_function_is_annotated():
  for path in [*(ROOT / 'geomem').rglob('*.py'), *(ROOT / 'constructions').glob('*.py')]:
    tree = ast.parse(path.read_text(encoding='utf-8'))
    for node in public(tree.body):
      a = node.args
      arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
      known = [x for x in arguments if x and x.arg not in ('self', 'cls')]
      assert node.returns and all(x.annotation for x in known), f'{path}: {node.name}'


# --- the names ------------------------------------------------------------------------------------


def test_importing_takes_only_what_is_needed():
  code = (
    'import sys, geomem, constructions\n'
    'print(*sorted({name.split(".")[0] for name in sys.modules}), *sys.modules)'
  )
  run = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  loaded = set(run.stdout.split())
  assert {'geomem', 'constructions.registry'} <= loaded, run.stderr
  assert not loaded & {'pandas', 'orbax', 'matplotlib', 'scipy', 'experiments'}
  assert not any(name.startswith('geomem.pretrained') for name in loaded)


def test_the_version_is_that_of_the_package():
  (version,) = re.findall(r'^version = (\S+)$', (ROOT / 'setup.cfg').read_text(), re.MULTILINE)
  assert geomem.__version__ == version


def test_all_constructions_are_there_by_name():
  assert constructions.names() == list(constructions.registry.REGISTRY)
  assert constructions.entry('selector').theorem == 'Theorem 4.1'
  assert constructions.__all__ == ['build', 'entry', 'load', 'names']


def test_what_a_user_gets_wrong_is_named():
  facts = geomem.Facts([[0, 1], [1, 0]], attributes=2)  # a list is accepted too
  config = geomem.Config.trained(2, 2, dim=4)
  with pytest.raises(InputError, match="unknown training option 'lr'; the options are steps, "):
    geomem.train(config, facts, lr=0.1)
  with pytest.raises(KeyError, match="no slot 'x' among"):
    constructions.build('selector', geomem.Facts.bijections(4, 2)).layout.slot('x')
