"""The study of new subjects and the files of its wordings, on a tiny random model."""

import dataclasses
import functools
import re
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pretrained_models as models
import pytest
from test_bad_input import contents
from test_bad_input import run as run_binary

from experiments import new_subjects
from experiments.harness import programs, records, targets
from experiments.harness.findings import decisions
from experiments.harness.statistics import select, values
from experiments.language import case as cases
from experiments.language import localization, real_countries, recalled
from geomem.errors import InputError
from geomem.pretrained import fact_encoder, load, prompts, wordings

pytest.importorskip('tokenizers')
TABLE = (
  """relation,part,text
,frame,the {} has
,frame,an {} of
,new frame,so {} at
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
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(models, 'LETTERS', 'xyzqw17845')  # answers of one token
    patch.setattr(models, 'LENGTH', 64)
    models.write(folder, 'llama')
  return folder


@pytest.fixture(scope='module')
def run(table, model, tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs')
  found = new_subjects.STUDY.run('smoke', folder, model=str(model), table=str(table))
  return folder, found


@pytest.fixture
def case(table, model):
  preset = dataclasses.replace(new_subjects.PRESETS['smoke'], wordings=(2,), asked=4)
  case = cases.Case(load.load(model), str(table), (0, 0), 2, preset, 0)
  case.encoder = fact_encoder.FactEncoder.fit(case.model, case.asked, case.training)
  return case


def perfect(blind, asked, rows_NxD, answers_RxN, prompt_P=None):
  """The recall of a model that reads relation r's answer at coordinate r of a row; a blind one always at coordinate 0."""
  prompt_P = np.arange(len(asked.relation_P)) if prompt_P is None else np.asarray(prompt_P)
  relation_P = np.zeros_like(prompt_P) if blind else asked.relation_P[prompt_P]
  chosen_NxP = np.round(np.asarray(rows_NxD)[:, relation_P]).astype(int)
  right_NxP = chosen_NxP == np.asarray(answers_RxN)[asked.relation_P[prompt_P]].T
  chosen_NxP = np.clip(chosen_NxP, 0, asked.counts_R.min() - 1)
  return prompts.Recall(right_NxP, chosen_NxP, np.where(right_NxP, 0.0, -20.0))


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', PACKAGED)
def test_the_packaged_tables_are_read(name):
  own = wordings.read(cases.DATA / f'{name}.csv')
  counts = {len(answers) for answers in own.answers.values()}
  assert len(counts) == 1 and len(own.answers) >= 2
  shared = len(set(own.answers.values())) == 1
  assert shared == (name != 'customs')
  for name_, others in own.wordings.items():
    assert not set(others) & set(own.new_wordings[name_])  # new wordings are new
  every = [text for texts in own.wordings.values() for text in texts]
  assert len(set(every)) == len(every)  # no wording asks for two relations
  if name == 'homes':
    assert set(own.answers['country']) == set(real_countries.COUNTRIES)


@pytest.mark.skipif(load.missing() is not None, reason='needs the packaged model')
@pytest.mark.parametrize('name', ['colours', 'names'])
def test_relations_that_share_answers_are_asked_in_as_many_tokens(name):
  """The position at which a prompt ends then does not reveal the relation."""
  own, tokenizer = wordings.read(cases.DATA / f'{name}.csv'), load.load().tokenizer
  lengths = [[len(tokenizer.encode(text).ids) for text in texts] for texts in own.wordings.values()]
  assert all(some == lengths[0] for some in lengths)


def test_wordings_begin_with_a_capital(table):
  own = wordings.read(table)
  first = own.relations()[0]
  assert first.prompts == ('the {} has An', 'the {} has So', 'an {} of An', 'an {} of So')
  assert own.relations(wordings=1)[0].prompts == ('the {} has An', 'an {} of An')
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
    ('relation,part,text\nr,wording', 'line 2 is not relation, part, text'),
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
  for text, message in (
    ('Zorbla,digit,7\nZorbla,digit,1', 'two answers'),
    ('\n\n,digit,7', 'line 4 is not subject'),
  ):
    path.write_text(f'subject,relation,answer\n{text}\n')
    with pytest.raises(InputError, match=message):
      wordings.read_facts(path)


@pytest.mark.parametrize(
  ('lines', 'message'),
  [
    ('letter,wording,an\n', 'digit has no wording'),
    ('letter,wording,an\ndigit,wording,as\ndigit,answer,x\ndigit,answer,x\n', 'is there twice'),
    ('letter,wording,an\ndigit,wording,as\n,frame,an\n', 'needs {} once'),
    ('letter,wording,an\ndigit,wording,as\n,frame,the x{} has\n', 'no word of its own'),
    (None, 'No such file'),
  ],
)
def test_the_command_refuses_a_table_in_one_line(tmp_path, model, monkeypatch, lines, message):
  monkeypatch.chdir(tmp_path)
  if lines is not None:
    rows = ''.join(line for line in TABLE.splitlines(True) if 'wording' not in line)
    Path('mine.csv').write_text(rows + lines)
  before = contents(tmp_path)
  status, _, err = run_binary(
    'new_subjects', '--scale=smoke', f'--model={model}', '--table=mine.csv', '--workdir=new'
  )
  assert status == 2 and err.startswith('error: ') and err.count('\n') == 1
  assert message in err
  assert contents(tmp_path) == before


# --- the study ------------------------------------------------------------------------------------


def test_it_records_what_it_measured_and_draws_that(run):
  folder, found = run
  table = records.read(folder).table
  pd.testing.assert_frame_equal(table, found.table)
  what = {
    'top-1',
    'candidates',
    'another own',
    'bits',
    'flipped',
    'kept',
    'pushed',
    'bound',
    'size',
    "the neighbour's",
  }
  assert set(table['measurement']) | {'kept'} == what  # where nothing was right, nothing is kept
  rates = table[~table['measurement'].isin(['bits', 'bound', 'size'])]['value']
  assert rates.between(0, 1).all() and np.isfinite(table['value']).all()
  assert len(set(f.what for f in new_subjects.STUDY.findings(table))) == len(
    new_subjects.STUDY.findings(table)
  )
  assert new_subjects.STUDY.draw(table, folder)


def test_the_gradient_in_a_row_is_found_and_lowered_for_a_gpu(table, model):
  smoke = dataclasses.replace(new_subjects.PRESETS['smoke'], model=str(model), table=str(table))
  target, study = targets.find('cuda'), new_subjects.STUDY
  found = programs.of_study(study, smoke, target.devices, target.platform)
  (step,) = (one for one in found if one.name.startswith('step '))
  assert step.name == 'step fact_encoder.sum_rows fact_encoder.unchanged'
  assert targets.build(step, target)['text_bytes'] > 10**4


def test_every_other_measurement_runs(case):
  real = 'hops', 'countries', 'adapters'  # these need places that the tiny model has no tokens for
  for name, function in new_subjects.MEASURED.items():
    if name not in (*real, *new_subjects.PRESETS['smoke'].what):
      found = pd.DataFrame(function(case))
      rates = found[found['measurement'] != 'bits']['value']
      assert len(found) and rates.between(0, 1).all() and np.isfinite(found['value']).all(), name


def test_subjects_are_asked_in_few_of_many_frames_and_wordings(case, monkeypatch):
  monkeypatch.setattr(cases, 'FRAMES', 1)
  monkeypatch.setattr(cases, 'WORDINGS', 2)
  two_frames, three_wordings = 2, 3
  asked = dataclasses.replace(case.asked, relation_P=np.repeat([0, 1], two_frames * three_wordings))
  assert cases.few_prompts(asked, two_frames).tolist() == [
    0,
    2,
    6,
    8,
  ]  # the first wording and the last


def test_ablations_are_held_against_the_intact_model_on_the_same_prompts(case):
  rows = pd.DataFrame(localization.blocks(case) + localization.heads(case))
  of_recall = pd.DataFrame(recalled.recall(case)).query(
    "measurement == 'candidates' and tuples == 'held out'"
  )
  # As if the model were better at other prompts, so that every head looked as if it were needed.
  of_recall = of_recall.assign(value=1.0)
  about = {'domain': 'x', 'relations': 2, 'answers': 5, 'wordings': 2, 'seed': 0}
  table = (
    pd.concat([rows, of_recall])
    .assign(**about)
    .reindex(columns=[*about, 'measurement', 'value', *new_subjects.BLANK])
  )
  intact = select(table, measurement='without a head', place=localization.INTACT, control=None)[
    'value'
  ].item()
  heads = (table['measurement'] == 'without a head') & table['control'].isna()
  table.loc[heads & (table['place'] != localization.INTACT), 'value'] = intact
  found = {f.what: f for f in new_subjects.STUDY.findings(table)}
  name = 'x, R = 2, A = 5, wordings: 2'
  assert found[f'{name}, heads without any one of which accuracy falls by more than 0.1'].value == 0
  assert found[f'{name}, lowest accuracy with one head ablated'].controls == {
    'none ablated': intact
  }
  assert {
    f'{name}, accuracy with {part} ablated' for part in ('all attention', 'all MLP', 'nothing')
  } <= found.keys()


def test_a_selector_scores_one_and_what_knows_no_relation_does_not(case, monkeypatch):
  vectors_RxAxD = np.zeros_like(case.encoder.vectors_RxAxD)
  for r, own_AxD in enumerate(vectors_RxAxD):
    own_AxD[:, r] = np.arange(len(own_AxD))
  case.encoder = dataclasses.replace(
    case.encoder, bias_D=np.zeros_like(case.encoder.bias_D), vectors_RxAxD=vectors_RxAxD
  )
  for blind in (False, True):
    monkeypatch.setattr(prompts, 'recall', functools.partial(perfect, blind))
    found = pd.DataFrame(recalled.recall(case) + recalled.swaps(case))
    of = lambda found=found, **about: np.array(values(select(found, **about), control=None))
    assert np.all((of(measurement='top-1') == 1) != blind)
    assert np.all((of(measurement='flipped', alpha=1.0) == 1) != blind)
    assert np.all(of(measurement='kept', alpha=1.0) == 1) != blind
    full = 2 * np.log2(5)
    assert np.all(
      of(measurement='bits') < 0 if blind else of(measurement='bits') == pytest.approx(full)
    )


def test_what_a_map_that_knows_no_relation_can_reach(case):
  """It can reach the commonest of the answers that relations share, and every answer among their own."""
  of = lambda own: {r['measurement']: r['value'] for r in recalled.blind(case.asked, np.array(own))}
  assert of([[0, 1, 2], [0, 1, 2]]) == {'top-1': 0.5, 'candidates': 1}
  same = np.broadcast_to(case.asked.answers_RxAxK[:1], case.asked.answers_RxAxK.shape)
  case.asked = dataclasses.replace(case.asked, answers_RxAxK=same)
  both = of([[0, 1, 2], [0, 2, 1]])
  assert both == {'top-1': pytest.approx(2 / 3), 'candidates': pytest.approx(2 / 3)}


def test_the_nearest_trained_tuple_is_found(case):
  answers_RxN = case.tuples()
  (found,) = recalled.nearest(case, answers_RxN)
  assert found['value'] == 0.5  # one of two answers: the tuple itself is held out


def test_swaps_lead_to_tuples_that_are_held_out_too(case):
  case.training = dataclasses.replace(case.training, held_out=0.6)
  answers_RxN = fact_encoder.draw_subjects(case.asked, case.training, 40, case.rng(0), True)
  wanted_RxN = recalled.other_answers(case, answers_RxN, 1)
  assert (wanted_RxN != answers_RxN).all()
  for r in range(2):
    moved_RxN = np.where(np.arange(2)[:, None] == r, wanted_RxN, answers_RxN)
    assert fact_encoder.is_held_out(moved_RxN, case.training).mean() > 0.9


def test_dealt_out_every_relation_has_prompts_of_all(case):
  mixed = cases.reassigned(case.asked)
  for r in range(2):
    assert set(case.asked.relation_P[mixed.relation_P == r]) == {0, 1}
  assert sorted(mixed.relation_P) == sorted(case.asked.relation_P)


def test_random_weights_have_the_same_entries_and_their_own_biases(case, monkeypatch):
  seen = []
  monkeypatch.setattr(
    recalled, 'scores', lambda asked, *_, **about: [seen.append(asked.model.params['blocks'])]
  )
  recalled.random_weights(case)
  for own, other in zip(
    *map(jax.tree_util.tree_leaves_with_path, (case.model.params['blocks'], seen[0])), strict=True
  ):
    kernel = own[0][-1].key == 'kernel'
    assert np.array_equal(own[1], other[1]) != kernel
    np.testing.assert_array_equal(np.sort(own[1], axis=None), np.sort(other[1], axis=None))


def table_of(right, on=(None, new_subjects.ROW_KINDS[1]), unflipped=0.0):
  """Records of the decisive case, all with values of about `right`, but that some answers are not flipped."""
  about = {'domain': 'colours', 'relations': 3, 'answers': 12, 'wordings': 2, **new_subjects.BLANK}
  rows = [
    about | {'measurement': 'top-1', 'tuples': 'held out', 'prompts': asked}
    for asked in ('trained', 'new frames')
  ]
  rows += [
    about | {'measurement': m, 'alpha': 1.0, 'place': place}
    for m in ('flipped', 'kept')
    for place in on
  ]
  return pd.DataFrame(
    [
      row | {'seed': seed, 'value': right + 0.001 * seed - (row['measurement'] == 'flipped') * unflipped}
      for row in rows for seed in range(5)
    ]
  )  # fmt: skip


@pytest.mark.parametrize(
  ('table', 'verdicts'),
  [
    (table_of(0.99), ['stands', 'stands']),
    (table_of(0.5), ['falls short', 'falls short']),
    (table_of(0.99, on=(None,)), ['stands', 'open']),
    (table_of(0.99, unflipped=0.2), ['stands', 'falls short']),
  ],
)
def test_the_claims_are_decided(table, verdicts):
  study = new_subjects.STUDY
  found = decisions(study.claims, study.findings(table))
  assert [own['verdict'] for own in found] == verdicts


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'sizes': ((3, 0),)}, '2 relations; 3 are asked for'),
    ({'table': 'nowhere.csv'}, 'nowhere.csv: not a CSV file'),
    ({'asked': 0}, 'must be at least 2'),
  ],
)
def test_what_cannot_be_measured_is_named(change, message, table, model):
  preset = dataclasses.replace(
    new_subjects.PRESETS['smoke'], model=str(model), tables=(str(table),)
  )
  with pytest.raises(InputError, match=message):
    new_subjects.prepare(dataclasses.replace(preset, **change))


def test_real_places_are_asked_before_and_after(case, monkeypatch):
  """Three stand-ins replace the places that the tiny model has no tokens for."""
  places = {'a': ('x', '1'), 'b': ('y', '7'), 'c': ('z', '8')}
  relations = [
    prompts.Relation(name, tuple(own), ('the {} has',))
    for name, own in zip(('language', 'capital'), zip(*places.values(), strict=True), strict=True)
  ]
  rows_NxD = np.asarray(case.model.params['embed']['tokens'])[:3]
  real = lambda model, languages=(): (prompts.tokenize(model, relations), rows_NxD)
  monkeypatch.setattr(real_countries, 'COUNTRIES', places)
  monkeypatch.setattr(real_countries, 'known', real)
  found = pd.DataFrame(real_countries.countries(case))
  assert set(found['measurement']) == {'known', 'real flipped', 'real kept', 'nearest', 'cosine'}
  case.training = dataclasses.replace(case.training, steps=40, batch=8)
  monkeypatch.setattr(real_countries, 'RATES', (0.03, 0.1))
  found = pd.DataFrame(real_countries.adapters(case))
  before, after = (
    values(found, control=c, measurement='candidates')[0]
    for c in ('before fine-tuning', 'fine-tuned')
  )
  assert after > before  # it learns something


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch, capsys):
  """It runs with a tiny random model in place of the real one, for two steps."""
  monkeypatch.setattr(models, 'LENGTH', 256)
  models.write(tmp_path / 'llama', 'llama')
  tiny = load.load(tmp_path / 'llama')
  fit = fact_encoder.FactEncoder.fit
  few = fact_encoder.Training(steps=2)
  monkeypatch.setattr(load, 'load', lambda: tiny)
  monkeypatch.setattr(
    fact_encoder.FactEncoder, 'fit', lambda model, asked, _: fit(model, asked, few)
  )
  text = (ROOT / 'README.md').read_text(encoding='utf-8')
  example = re.findall(r'```python\n(.*?)```', text, re.DOTALL)[1]
  monkeypatch.chdir(ROOT)
  exec(compile(example, 'README.md', 'exec'), {})
  assert capsys.readouterr().out.endswith('\n')


def test_what_is_put_in_from_the_same_prompt_changes_nothing_and_from_another_one_does(case):
  rows_NxD = case.encoder.rows(case.tuples())
  own, other = (localization.Stream(case.asked, p, rows_NxD) for p in case.first_P)
  blank = {name: np.zeros((len(rows_NxD), 0), np.float32) for name in ('query', 'gate')}

  def run(stream, given, *put):
    about = stream.embedded, stream.prefix, stream.last_N, given
    return stream.runner.map(localization._intercepted, (put,), *about)

  plain, seen = run(own, blank)
  np.testing.assert_allclose(plain, own.last[:, -1], rtol=1e-4, atol=1e-4)
  for put in ('query', 'gate'):
    np.testing.assert_allclose(run(own, seen, put)[0], plain, rtol=1e-4, atol=1e-4)
    assert np.abs(run(own, run(other, blank)[1], put)[0] - plain).max() > 1e-3


def test_a_donor_decides_at_the_first_layer_of_the_subject_and_at_the_end_of_the_last_token(case):
  """Patched in at these places, its residual gives the answers of its whole prompt."""
  answers_RxN = case.tuples()
  rows_NxD, p = case.encoder.rows(answers_RxN), case.first_P[0]
  donors_NxD = np.roll(rows_NxD, 1, axis=0)
  stream = localization.Stream(case.asked, p, donors_NxD)
  token_A = case.asked.answers_RxAxK[0, :, 0]
  says_N = np.argmax(stream.runner.logits(stream.last[:, -1], token_A), axis=1)
  depth = case.model.config.depth
  found = localization.flips(case.asked, p, rows_NxD, donors_NxD, says_N, [0, depth])
  assert found['subject'][0] == 1 and found['last token'][1] == 1
