"""The study of new subjects, and the files that say how relations are asked: on a tiny random model."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pretrained_models as models
import pytest

from experiments import new_subjects
from experiments.harness import records
from experiments.harness.statistics import groups, select, values
from experiments.language import natural
from geomem.errors import InputError
from geomem.pretrained import fact_encoder, load, prompts, wordings

pytest.importorskip('tokenizers')
TABLE = (
  """relation,part,text
,frame,the {} has
,frame,an {} of
,new frame,so {} at
,lead,to
,no relation,than
letter,wording,an
letter,wording,so
letter,new wording,at
digit,wording,as
digit,wording,in
digit,new wording,to
"""
  + ''.join(f'letter,answer,{a}\n' for a in 'xyzqw')
  + ''.join(f'digit,answer,{a}\n' for a in '17845')
)
ROOT = Path(__file__).parents[1]
PACKAGED = 'colours', 'customs', 'homes', 'names'


@pytest.fixture(scope='module')
def table(tmp_path_factory):
  path = tmp_path_factory.mktemp('tables') / 'tiny.csv'
  path.write_text(TABLE)
  return path


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp('models') / 'llama'
  models.write(folder, 'llama')
  return folder


@pytest.fixture(scope='module')
def run(table, model, tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs')
  found = new_subjects.STUDY.run('smoke', folder, model=str(model), table=str(table))
  return folder, found


@pytest.fixture
def case(table, model):
  preset = dataclasses.replace(new_subjects.PRESETS['smoke'], wordings=(2,), subjects=4)
  own = wordings.read(table)
  case = new_subjects.Case(load.load(model), own, tuple(own.answers), None, 2, preset, 0)
  case.encoder = fact_encoder.FactEncoder.fit(case.model, case.asked, case.training)
  return case


class Perfect:
  """A model that answers by the tuple behind the row: the first so many coordinates of a row are the answers."""

  def __init__(self, blind=False):
    self.blind = blind

  def __call__(self, asked, rows_NxD, answers_RxN, prompt_P=None, on_progress=None):
    prompt_P = np.arange(len(asked.relation_P)) if prompt_P is None else np.asarray(prompt_P)
    relation_P = np.zeros_like(prompt_P) if self.blind else asked.relation_P[prompt_P]
    chosen_NxP = np.round(np.asarray(rows_NxD)[:, relation_P]).astype(int)
    return chosen_NxP == np.asarray(answers_RxN)[asked.relation_P[prompt_P]].T, chosen_NxP


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', PACKAGED)
def test_the_packaged_tables_are_read(name):
  own = wordings.read(new_subjects.DATA / f'{name}.csv')
  counts = {len(answers) for answers in own.answers.values()}
  assert len(counts) == 1 and len(own.answers) >= 2
  shared = len(set(own.answers.values())) == 1
  assert shared == (name in ('colours', 'names'))
  texts = [
    text for some in (own.wordings, own.new_wordings) for texts in some.values() for text in texts
  ]
  assert len(set(texts)) == len(texts)  # no wording asks for two relations
  if name == 'homes':
    assert set(own.answers['country']) == set(natural.PLACES)


def test_wordings_begin_with_a_capital_or_a_lead(table):
  own = wordings.read(table)
  first = own.relations(wordings=3)[0]
  assert first.prompts[:3] == ('the {} has An', 'the {} has So', 'the {} has To an')
  assert own.relations(new_frames=True, new_wordings=True)[1].prompts == ('so {} at To',)
  assert [r.answers for r in own.relations(answers=2, names=('digit',))] == [('1', '7')]


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'the first line must be relation,part,text'),
    ('relation,part,text\n', 'needs a frame'),
    ('relation,part,text\nr,frame,the {}', 'the frame .* belongs to no relation'),
    ('relation,part,text\n,wording,is', 'the wording .* needs a relation'),
    ('relation,part,text\nr,colour,is', "'colour' is no part"),
    ('relation,part,text\nr,wording,is\nr,wording,is', 'is there twice'),
    ('relation,part,text\nr,answer,x', 'r has no wording'),
    ('relation,part,text\nr,wording', 'row 2 is not relation, part, text'),
    ('relation,part,text\n,frame,the {}\nr,wording,is\nr,answer,x', 'needs two answers or more'),
    ('relation,part,text\n,frame,the\nr,wording,is\nr,answer,x\nr,answer,y', 'needs {} once'),
  ],
)
def test_a_table_that_makes_no_sense_is_named(tmp_path, text, message):
  path = tmp_path / 'mine.csv'
  path.write_text(text)
  with pytest.raises(InputError, match=message):
    wordings.read(path)


def test_facts_are_read(tmp_path):
  path = tmp_path / 'facts.csv'
  path.write_text('subject,relation,answer\nZorbla,digit,7\nZorbla,letter,x\nQuax,digit,1\n')
  assert wordings.read_facts(path) == {
    'Zorbla': {'digit': '7', 'letter': 'x'},
    'Quax': {'digit': '1'},
  }
  path.write_text('subject,relation,answer\nZorbla,digit,7\nZorbla,digit,1\n')
  with pytest.raises(InputError, match='two answers'):
    wordings.read_facts(path)


# --- the study ------------------------------------------------------------------------------------


def test_it_records_what_it_measured_and_draws_that(run):
  folder, found = run
  table = records.read(folder).table
  pd.testing.assert_frame_equal(table, found.table)
  assert set(table['measurement']) == {'top-1', 'candidates', 'flipped', 'kept', 'pushed'}
  assert table['value'].between(0, 1).all()
  assert all(len(rows) for _, rows in groups(table, 'measurement'))
  assert list(new_subjects.STUDY.findings(table)) and new_subjects.STUDY.draw(table, folder)


def test_every_measurement_runs(case):
  real = 'hops', 'countries', 'adapters'  # of places that the tiny model has no tokens for
  for name, function in new_subjects.MEASURED.items():
    if name not in real:
      found = pd.DataFrame(function(case))
      assert len(found) and found['value'].between(0, 1).all(), name


def test_a_selector_scores_one_and_what_knows_no_relation_does_not(case, monkeypatch):
  vectors_RxAxD = np.zeros_like(case.encoder.vectors_RxAxD)
  for r, own_AxD in enumerate(vectors_RxAxD):
    own_AxD[:, r] = np.arange(len(own_AxD))
  case.encoder = dataclasses.replace(
    case.encoder, bias_D=np.zeros_like(case.encoder.bias_D), vectors_RxAxD=vectors_RxAxD
  )
  for blind in (False, True):
    monkeypatch.setattr(prompts, 'recall', Perfect(blind))
    found = pd.DataFrame(new_subjects.recall(case) + new_subjects.swaps(case))
    of = lambda found=found, **about: np.array(values(select(found, **about), control=None))
    assert np.all((of(measurement='top-1') == 1) != blind)
    assert np.all((of(measurement='flipped', alpha=1.0) == 1) != blind)
    kept = of(measurement='kept', alpha=1.0)
    assert np.all(kept < 1) if blind else np.all(kept == 1)


def test_the_best_that_is_blind_is_the_commonest_answer(case):
  answers_RxN = np.array([[0, 1, 2], [0, 1, 2]])
  assert values(pd.DataFrame(new_subjects.blind(case, answers_RxN)))[0] == 0.5  # of their own
  same = np.broadcast_to(case.asked.answers_RxAxK[:1], case.asked.answers_RxAxK.shape)
  case.asked = dataclasses.replace(case.asked, answers_RxAxK=same)
  assert (
    values(pd.DataFrame(new_subjects.blind(case, np.array([[0, 1, 2], [0, 2, 1]]))))[0] == 2 / 3
  )


def test_bits_of_answers():
  assert new_subjects._bits(3, 8, 1.0) == 9
  assert new_subjects._bits(3, 8, 1 / 8) == pytest.approx(0)
  assert 0 < new_subjects._bits(2, 4, 0.7) < 4


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'relations': (3,)}, '2 relations; 3 are asked for'),
    ({'table': 'nowhere.csv'}, 'nowhere.csv: not a CSV file'),
  ],
)
def test_what_cannot_be_measured_is_named(change, message, table, model):
  preset = dataclasses.replace(
    new_subjects.PRESETS['smoke'], model=str(model), tables=(str(table),)
  )
  with pytest.raises(InputError, match=message):
    new_subjects.prepare(dataclasses.replace(preset, **change))


def test_real_places_are_asked_before_and_after(case, monkeypatch):
  """Of three, put in for those that the tiny model has no tokens for."""
  places = {'a': ('x', '1'), 'b': ('y', '7'), 'c': ('z', '8')}
  relations = [
    prompts.Relation(name, tuple(own), ('the {} has',))
    for name, own in zip(('language', 'capital'), zip(*places.values(), strict=True), strict=True)
  ]
  rows_NxD = np.asarray(case.model.params['embed']['tokens'])[:3]
  real = prompts.tokenize(case.model, relations), rows_NxD, np.tile(np.arange(3), (2, 1))
  monkeypatch.setattr(natural, 'PLACES', places)
  monkeypatch.setattr(natural, 'known', lambda model, languages=(): real)
  found = pd.DataFrame(natural.countries(case))
  assert set(found['measurement']) == {'known', 'real flipped', 'real kept', 'nearest'}
  case.training = dataclasses.replace(case.training, steps=40, batch=8)
  monkeypatch.setattr(natural, 'RATE', 0.1)
  found = pd.DataFrame(natural.adapters(case))
  before, after = (
    values(found, control=c, measurement='candidates')[0]
    for c in ('before fine-tuning', 'fine-tuned')
  )
  assert after > before  # it learns something


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch, capsys):
  """With a tiny random model for the real one, in two steps."""
  monkeypatch.setattr(models, 'LENGTH', 256)
  models.write(tmp_path / 'llama', 'llama')
  tiny = load.load(tmp_path / 'llama')
  fit = fact_encoder.FactEncoder.fit
  few = fact_encoder.Training(steps=2)
  monkeypatch.setattr(load, 'load', lambda: tiny)
  monkeypatch.setattr(fact_encoder.FactEncoder, 'fit', lambda model, asked: fit(model, asked, few))
  text = (ROOT / 'README.md').read_text(encoding='utf-8')
  example = re.findall(r'```python\n(.*?)```', text, re.DOTALL)[1]
  monkeypatch.chdir(ROOT)
  exec(compile(example, 'README.md', 'exec'), {})
  assert capsys.readouterr().out
