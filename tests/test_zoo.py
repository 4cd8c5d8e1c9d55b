"""The zoo is written, listed, read back, and refused if a file has changed; its models answer in plain NumPy."""

import json
import re
from pathlib import Path

import numpy as np
import oracle
import pytest

from constructions import registry
from experiments import zoo
from experiments.harness import cli, stages
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.inside import truth
from geomem.saved import atomic

FACTS = Facts.bijections(8, 3)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('zoo')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(zoo, 'SIZES', ((8, 2),))
    patch.setattr(zoo, 'NOISES', (0.03,))
    patch.setattr(zoo, 'STEPS', 100)
    zoo.main(zoo.Options(construction=('selector',), seeds=1, workdir=str(folder)))
  return folder


def test_every_stage_is_there_with_its_truth(folder):
  entries = {entry['stage']: entry for entry in zoo.manifest(folder)['models']}
  assert entries.keys() >= set(stages.STAGES[:3])
  for stage, entry in entries.items():
    model, known = zoo.load(folder, entry['id'])
    assert (known is None) == (stage == 'scratch') and entry['accuracy'] == 1
    tokens = np.array([[s, 8 + r] for s in range(8) for r in range(2)])
    logits = oracle.logits(model.config, model.params, tokens)[:, -1]
    assert np.array_equal(logits.argmax(axis=1), model.facts.answers_RxN.T.ravel())
    others = np.sort(logits, axis=1)
    assert (others[:, -1] - others[:, -2]).min() == pytest.approx(entry['min_margin'], abs=1e-3)
    tests = {'units': truth.unit_specificity, 'subspaces': truth.interchange_accuracy}
    for name, test in tests.items() if known else ():
      assert test(model, known) == pytest.approx(entry['found'][name], abs=1e-4)


def test_the_files_are_those_of_the_manifest_and_readable_without_us(folder):
  for entry in zoo.manifest(folder)['models']:
    for path, digest in entry['files'].items():
      assert atomic.digest(folder / path) == digest
    plain = json.loads((folder / 'truth' / f'{entry["id"]}.json').read_text())
    assert np.shape(plain['facts']) == (2, 8)
    if plain['known']:
      assert plain['known']['subspaces'][1]['paths'] == [[1]]
      assert {r for unit in plain['known']['units'][0][0] for r in unit['relations']} == {0, 1}


def test_the_examples_of_the_page_run(folder, capsys):
  page = (Path(__file__).parents[1] / 'docs/zoo.md').read_text(encoding='utf-8')
  load, score = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
  for example in (load, score):
    smaller = example.replace('runs/zoo', str(folder)).replace('N16', 'N8')
    exec(compile(smaller, 'zoo.md', 'exec'), {})
  told = capsys.readouterr().out.splitlines()[-3:]
  assert told[:2] == [f'{stage}: subspaces 1.00, units 1.00' for stage in stages.STAGES[:2]]
  assert told[2].startswith('retrained: subspaces ')
  assert [s.paths for s in truth.of(registry.build('selector', FACTS)).subspaces] == [
    ((r,),) for r in range(FACTS.relations)
  ]


@pytest.mark.parametrize('part', ['truth/{}.json', 'models/{}/model.safetensors'])
def test_a_changed_file_is_refused(part, folder):
  name = zoo.manifest(folder)['models'][1]['id']
  path = folder / part.format(name)
  whole = path.read_bytes()
  path.write_bytes(whole[:-1] + b' ')
  with pytest.raises(InputError, match='not the file that manifest.json describes'):
    zoo.load(folder, name)
  path.write_bytes(whole)
  zoo.load(folder, name)


def test_what_is_not_there_is_refused(folder, tmp_path):
  with pytest.raises(InputError, match="no model 'lion'"):
    zoo.load(folder, 'lion')
  with pytest.raises(InputError, match='no zoo there'):
    zoo.load(tmp_path, 'lion')
  (tmp_path / zoo.MANIFEST).write_text('{"format": "geomem model"}')
  with pytest.raises(InputError, match='not of a zoo'):
    zoo.manifest(tmp_path)


def test_a_truth_that_is_not_so_is_not_written(tmp_path, monkeypatch):
  """A planted truth that assigns every construction's units to the next relation is refused."""
  of = truth.of

  def wrong(built):
    known = of(built)
    rolled = tuple(tuple(np.roll(s, 1, axis=0) for s in block) for block in known.serves_RxF)
    return truth.dataclasses.replace(known, serves_RxF=rolled)

  monkeypatch.setattr(zoo, 'SIZES', ((8, 2),))
  monkeypatch.setattr(zoo, 'STEPS', 100)
  monkeypatch.setattr(zoo, 'NOISES', (0.03,))
  monkeypatch.setattr(truth, 'of', wrong)
  with pytest.raises(AssertionError, match='not borne out'):
    zoo.main(zoo.Options(construction=('selector',), seeds=1, workdir=str(tmp_path)))
  assert not (tmp_path / zoo.MANIFEST).exists()


def test_the_list_has_every_construction_at_every_stage(capsys):
  cli.run(zoo.main, zoo.Options, ['zoo', '--list'])
  told = capsys.readouterr().out
  count = len(zoo.variants()) * len(zoo.SIZES) * zoo.Options.seeds * len(stages.STAGES)
  assert count >= 150 and told.count('-N16-R2-s0-built') == len(zoo.variants())
  assert all(f'{name}-N16-R2-s1-scratch' in told for name in registry.names())


@pytest.mark.parametrize('flag', ['--construction=lion', '--seeds=0', '--workdir=/dev/null/zoo'])
def test_bad_flags_end_in_one_line(flag, capsys):
  with pytest.raises(SystemExit) as end:
    cli.run(zoo.main, zoo.Options, ['zoo', flag])
  assert end.value.code == 2 and capsys.readouterr().err.count('\n') == 1
