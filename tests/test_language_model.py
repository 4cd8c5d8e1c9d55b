"""The language-model experiment: linear structure is found, nothing leaks, and the binary survives.

Most tests run on tiny random models; those that need the packaged weights are skipped without them.
"""

import contextlib
import csv
import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pretrained_models as models
import pytest

from experiments import language_model
from experiments.harness import records, statistics
from experiments.language import prompt_set, ridge, swapping
from geomem import tables
from geomem.errors import InputError
from geomem.pretrained import decoder, load, runner

pytest.importorskip('gguf', reason='the extra lm is not installed')
pytest.importorskip('tokenizers', reason='the extra lm is not installed')
DATA = Path(__file__).parents[1] / 'experiments' / 'data'
WEIGHTS = pytest.mark.skipif(load.missing() is not None, reason=str(load.missing()))


# --- regressions ----------------------------------------------------------------------------------


def planted(seed=0, subjects=90, noise=0.0):
  """Features of two groups, and vectors that are linear in them."""
  rng = np.random.default_rng(seed)
  groups = [np.eye(4)[rng.integers(4, size=subjects)] for _ in range(2)]
  maps = [rng.standard_normal((4, 40)) for _ in range(2)]
  y = sum(x @ m for x, m in zip(groups, maps, strict=True)) + 5
  y += noise * rng.standard_normal(y.shape)
  return groups, y, ridge.folds(rng, subjects, 5)


def r2(kernel, y, fold):
  left = [((y - ridge.held_out(some, y, fold)) ** 2).sum() for some in (kernel, 0 * kernel)]
  return 1 - left[0] / left[1]


def test_a_planted_superposition_is_found_and_shuffled_ones_are_not():
  groups, y, fold = planted()
  assert r2(sum(map(ridge.kernel, groups)), y, fold) > 0.98
  order = np.random.default_rng(1).permutation(len(y))
  assert r2(sum(ridge.kernel(x[order]) for x in groups), y, fold) < 0.02


def test_noise_is_not_explained():
  groups, y, fold = planted(noise=3.0)
  clean = planted()[1]
  share = np.var(clean, axis=0).sum() / np.var(y, axis=0).sum()
  assert r2(sum(map(ridge.kernel, groups)), y, fold) < share + 0.03


def test_more_features_than_subjects_explain_nothing_that_is_held_out():
  rng = np.random.default_rng(0)
  y, fold = rng.standard_normal((60, 30)), ridge.folds(rng, 60, 5)
  assert r2(ridge.kernel(rng.standard_normal((60, 500))), y, fold) < 0.05


def test_the_dual_form_is_ridge_regression(monkeypatch):
  monkeypatch.setattr(ridge, 'STRENGTHS', (0.3,))
  rng = np.random.default_rng(0)
  x, y = rng.standard_normal((50, 6)), rng.standard_normal((50, 3))
  fit, held, k = np.arange(40), np.arange(40, 50), ridge.kernel(x)
  size = np.trace((x - x.mean(0)) @ (x - x.mean(0)).T) / 50
  c = x[fit] - x[fit].mean(0)
  w = np.linalg.solve(c.T @ c + 0.3 * size * np.eye(6), c.T @ (y[fit] - y[fit].mean(0)))
  expected = (x[held] - x[fit].mean(0)) @ w + y[fit].mean(0)
  np.testing.assert_allclose(ridge.predict(k, y, fit, held), expected, atol=1e-9)
  found = ridge.weights(x[fit], y[fit])
  size = np.trace(c @ c.T) / 40
  w = np.linalg.solve(c.T @ c + 0.3 * size * np.eye(6), c.T @ (y[fit] - y[fit].mean(0)))
  np.testing.assert_allclose(found, w, atol=1e-9)


def test_every_target_chooses_for_itself():
  """Two targets fitted together, one that the features explain and one of noise, score as each does alone."""
  rng = np.random.default_rng(0)
  x, fold = rng.standard_normal((50, 6)), ridge.folds(rng, 50, 5)
  y = np.stack([x @ rng.standard_normal((6, 3)), rng.standard_normal((50, 3))])
  alone = [ridge.held_out(ridge.kernel(x), some, fold) for some in y]
  np.testing.assert_allclose(ridge.held_out(ridge.kernel(x), y, fold), alone, atol=1e-12)


def test_the_interval_of_a_ratio():
  rng = np.random.default_rng(0)
  bottom = rng.integers(0, 3, 400)
  top = rng.random(400) * bottom
  found = prompt_set.ratio(top, bottom)
  assert found['value'] == pytest.approx(top.sum() / bottom.sum())
  assert found['low'] < 0.5 < found['high'] and found['high'] - found['low'] < 0.1
  assert np.isnan(prompt_set.ratio([0, 0], [0, 0])['value'])


# --- tables ---------------------------------------------------------------------------------------


def test_the_table_is_normalized():
  table = prompt_set.read('countries', DATA / 'countries.csv')
  assert (len(table.subjects), len(table.rows)) == (153, 4)
  assert all(set(rows) == set(table.subjects) for rows in table.rows.values())
  assert all(set(template.after) == set(table.rows) for template in table.templates)
  values = [v for rows in table.rows.values() for all_ in rows.values() for v in all_]
  assert all(v == v.strip() and v.isprintable() for v in values)
  old = {'Bangla', 'Burma', 'Swaziland', 'Nur-Sultan', 'Bujumbura', 'Americas'}
  assert not old & {*values, *table.subjects}
  table = tables.read_many(DATA / 'countries.csv')
  assert table['language']['Switzerland'] == ('German', 'French', 'Italian')
  assert table['continent']['Turkey'] == ('Asia', 'Europe')


def test_several_rows_are_several_answers(tmp_path):
  (tmp_path / 'x.csv').write_text('subject,relation,attribute\na,r,x\na,r,y\na,r,x\nb,q,z\n')
  assert tables.read_many(tmp_path / 'x.csv') == {'r': {'a': ('x', 'y')}, 'q': {'b': ('z',)}}


def test_a_relation_of_which_no_subject_is_drawn_is_left_out(tmp_path):
  rows = [f'{i},r,{"xy"[i % 2]}\n' for i in range(40)]
  (tmp_path / 'x.csv').write_text(''.join([*rows, *(f'{i},q,z\n' for i in range(40))]))
  drawn = prompt_set.read('own', tmp_path / 'x.csv', 20).subjects
  other = next(str(i) for i in range(40) if str(i) not in drawn)
  for subject, relations in ((other, ('r',)), (drawn[0], ('r', 'q'))):
    (tmp_path / 'x.csv').write_text(''.join([*rows, f'{subject},q,z\n']))
    table = prompt_set.read('own', tmp_path / 'x.csv', 20)
    assert table.subjects == drawn and tuple(table.rows) == relations


# --- a tiny model ---------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A random model, and a table of made-up facts with missing and multiple values."""
  folder = tmp_path_factory.mktemp('language')
  models.write(folder / 'tiny', 'gpt_neox')
  about = {**models.config('gpt_neox'), 'max_position_embeddings': 128}
  (folder / 'tiny' / 'config.json').write_text(json.dumps(about))
  rng = np.random.default_rng(0)
  rows = [('subject', 'relation', 'attribute')]
  for i in range(24):
    name = ''.join(rng.choice(list('aeioubdk'), 4))
    rows.append((f'{name} {i}', 'colour', ['amber', 'green', 'blue'][i % 3]))
    if i % 5:
      rows.append((f'{name} {i}', 'shape', ['angular', 'flat'][i % 2]))
    if i % 7 == 0:
      rows.append((f'{name} {i}', 'shape', 'odd'))
  with open(folder / 'facts.csv', 'w', newline='') as file:
    csv.writer(file).writerows(rows)
  return folder


@pytest.fixture(scope='module')
def prompts(folder):
  model = load.load(folder / 'tiny')
  table = prompt_set.read('own', folder / 'facts.csv')
  prompts = prompt_set.PromptSet(runner.Runner(model), table, 0, (1, 2))
  prompts.observed = prompts.observe()
  return prompts


def whole(prompts, s, r):
  """Residuals of the whole prompt in one pass, and the position of its subject's last token."""
  words = prompts.table.templates[0]
  subject = prompts.table.subjects[s]
  text = words.before + subject + words.after[prompts.relations[r].name]
  model = prompts.runner.model
  x_LxD = decoder.embed(model.config, model.params, jnp.array(model.tokenizer.encode(text).ids))
  position = len(model.tokenizer.encode(words.before + subject)) - 1
  return np.asarray(
    jax.jit(lambda p, x: decoder.residuals(model.config, p, x))(model.params, x_LxD)
  ), position


def test_prompts_that_are_cut_say_what_whole_ones_say(prompts):
  for s, r in ((0, 0), (7, 1)):
    x_TxLxD, position = whole(prompts, s, r)
    assert position > 0
    np.testing.assert_allclose(prompts.observed['subject'][s], x_TxLxD[:, position], atol=2e-5)
    np.testing.assert_allclose(prompts.observed['final'][s, r], x_TxLxD[-1, -1], atol=2e-5)


def test_no_change_changes_nothing_and_a_donor_brings_all(prompts):
  subjects = np.arange(24)
  zero = np.zeros((24, prompts.observed['subject'].shape[-1]), np.float32)
  # Not to the last bit: on some CPUs XLA adds up products in an order that depends on the batch.
  nothing = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6)
  nothing(prompts.patched(1, subjects, 2, 1.0, zero), prompts.observed['final'][:, 1])
  same = prompts.patched(1, subjects, 1, 0.0, prompts.observed['subject'][:, 1])
  nothing(same, prompts.observed['final'][:, 1])
  spread = prompts.patched(1, subjects, np.arange(24) % 4, 0.0,
                         prompts.observed['subject'][subjects, np.arange(24) % 4], first=0)  # fmt: skip
  nothing(spread, prompts.observed['final'][:, 1])
  other = prompts.patched(0, subjects, 2, 0.0, prompts.observed['subject'][::-1, 2])
  assert (np.abs(other - prompts.observed['final'][:, 0]).max(axis=1) > 1e-4).all()


def test_the_subject_is_never_first_and_must_end_in_a_token(prompts):
  assert (prompts.tokenized.prefix_length_S > 0).all()
  first = runner.Template('', {'colour': ' is', 'shape': ' is'})
  with pytest.raises(InputError, match='after the first'):
    runner.tokenize(prompts.runner.model, ('colour', 'shape'), ('a', 'b'), first)
  long = runner.Template('x' * 500, {'colour': ' is', 'shape': ' is'})
  with pytest.raises(InputError, match='the model reads'):
    runner.tokenize(prompts.runner.model, ('colour',), ('abc',), long)


@pytest.mark.parametrize('prompt, value, error', [
  ('at', 'he', 'tokenized differently'), ('to', '', 'no token'), ('to', 'the', None),
])  # fmt: skip
def test_an_attribute_begins_where_the_prompt_ends(prompt, value, error, prompts):
  """A tokenizer that ignores spaces reads 'at he' as a, the, so the attribute 'he' is refused."""

  inner = prompts.runner.model.tokenizer

  class Spaceless:
    def encode(self, text):
      return inner.encode(text.replace(' ', ''))

  model = dataclasses.replace(prompts.runner.model, tokenizer=Spaceless())
  rows = {'shape': {'x': (value,)}}
  with pytest.raises(InputError, match=error) if error else contextlib.nullcontext():
    (relation,) = runner.relations(model, rows, ('x',), runner.Template(prompt, {'shape': prompt}))
    assert relation.token_A == inner.encode(value).ids[:1]


def test_the_three_groups_are_apart_and_swaps_change_the_answer(prompts, monkeypatch):
  groups = swapping.split(3, 24)
  assert sorted(np.concatenate(groups)) == list(range(24))
  known = {**prompts.observed, 'known': np.ones_like(prompts.observed['known'])}
  monkeypatch.setattr(prompts, 'observed', known)
  drawn = swapping.draw(prompts, 0, groups[0], groups[2])
  assert set(drawn['relation']) == {0, 1} and set(drawn['subject']) <= set(groups[2])
  for r, swaps in drawn.groupby('relation'):
    relation = prompts.relations[r]
    token = relation.token_A[swaps['attribute']]
    same = relation.token_A[None] == token[:, None]
    assert not (same & relation.correct_SxA[swaps['subject']]).any()
    assert prompts.shared(r, groups[0])[swaps['attribute']].all()
  steering = swapping.SteeringVectors(prompts, 0, groups[0], 2)
  norms = [np.linalg.norm(steering.vectors(method, drawn), axis=1) for method in
           ('superposition', 'shuffled facts', 'random direction')]  # fmt: skip
  np.testing.assert_allclose(norms[1:], [norms[0]] * 2, rtol=1e-6)


def test_what_was_not_known_is_not_counted(prompts, monkeypatch):
  rng = np.random.default_rng(0)
  known = rng.random(prompts.observed['known'].shape) < 0.5
  monkeypatch.setattr(prompts, 'observed', {**prompts.observed, 'known': known})
  swaps = pd.DataFrame(
    {'relation': [0] * 4 + [1] * 4, 'subject': [4, 9, 2, 17] * 2, 'attribute': 0}
  )
  vectors = rng.standard_normal((8, prompts.observed['subject'].shape[-1]))
  found = swapping.outcomes(prompts, 2, swaps, vectors)
  others = ~found['own']
  assert len(found) == 16 and (found['own'] == (found['relation'] == found['asked'])).all()
  assert found['counted'][~others].all() and not found['success'][~found['counted']].any()
  np.testing.assert_array_equal(
    found['counted'][others], known[found['subject'], found['asked']][others]
  )
  assert (found['success'] == found['after'].eq(found['before']))[others & found['counted']].all()


def test_prompts_asked_together_say_what_they_say_alone(prompts):
  """Prompts of different lengths run in different batches and come back in the order asked."""
  r_B, subjects = np.tile([1, 0], 15), np.arange(30) % 24
  add = np.random.default_rng(0).standard_normal((30, prompts.observed['subject'].shape[-1]))
  together = prompts.patched(r_B, subjects, 2, 1.0, add)
  for i in (0, 1, 17, 29):
    one = slice(i, i + 1)
    alone = prompts.patched(r_B[one], subjects[one], 2, 1.0, add[one])
    np.testing.assert_allclose(together[one], alone, atol=1e-5)


def test_fits_do_not_see_the_subjects_they_are_judged_on(prompts, monkeypatch):
  """Other residuals of the subjects outside the fit leave every steering vector as it was."""
  fit_T = swapping.split(3, 24)[0]
  swaps = pd.DataFrame({'relation': 0, 'subject': fit_T[:3], 'attribute': [0, 1, 2]})
  before = swapping.SteeringVectors(prompts, 0, fit_T, 2).vectors('superposition', swaps)
  others = np.setdiff1d(np.arange(24), fit_T)
  subject_SxTxD = prompts.observed['subject'].copy()
  subject_SxTxD[others] += 100
  monkeypatch.setitem(prompts.observed, 'subject', subject_SxTxD)
  after = swapping.SteeringVectors(prompts, 0, fit_T, 2).vectors('superposition', swaps)
  np.testing.assert_array_equal(before, after)


# --- the binary -----------------------------------------------------------------------------------


def run(folder, *arguments):
  language_model.STUDY.main(
    ['language_model', f'--workdir={folder}', '--save_seconds=0', *arguments]
  )
  return records.read(folder).table


def own(folder):
  return f'--model={folder / "tiny"}', f'--table={folder / "facts.csv"}', '--scale=smoke'


@pytest.fixture(scope='module')
def whole_run(folder):
  """An uninterrupted run of the tiny model."""
  return run(folder / 'run', *own(folder))


def test_any_model_and_table_are_measured_drawn_and_answered_again(folder, whole_run, capsys):
  fields = {'measurement', 'model', 'control', 'seed', 'subjects', 'value'}
  assert fields <= set(whole_run)
  assert set(zip(whole_run['model'], whole_run['table'], strict=True)) == {('tiny', 'own')}
  drawn = (folder / 'run' / 'language_model.png').read_bytes()
  before = (folder / 'run' / 'results.json').read_bytes()
  run(folder / 'run', *own(folder))
  assert (folder / 'run' / 'results.json').read_bytes() == before
  (folder / 'run' / 'language_model.png').unlink()
  language_model.STUDY.main(['language_model', f'--workdir={folder / "run"}', '--redraw'])
  assert (folder / 'run' / 'language_model.png').read_bytes() == drawn
  assert 'figure: ' in capsys.readouterr().out


def test_every_stage_of_a_run_is_a_line_of_its_log(folder, whole_run):
  lines = (folder / 'run' / 'metrics.jsonl').read_text().splitlines()
  stages = [json.loads(line) for line in lines]
  assert len({stage['stage'] for stage in stages}) == len(stages) == 5
  assert all(stage['seconds'] > 0 for stage in stages)


def test_an_interrupted_run_is_taken_up_and_ends_in_the_same_records(
  folder, whole_run, monkeypatch, capsys
):

  def interrupt(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(swapping, 'measure', interrupt)
    with pytest.raises(SystemExit, match='130'):
      run(folder / 'cut', *own(folder))
  assert list((folder / 'cut').glob('checkpoints/*'))
  with monkeypatch.context() as patch:
    patch.setattr(language_model, 'r2', interrupt)  # already in the checkpoint
    pd.testing.assert_frame_equal(run(folder / 'cut', *own(folder)), whole_run)
  with pytest.raises(SystemExit, match='2'):
    run(folder / 'cut', '--seed=1', *own(folder))
  assert 'holds another run' in capsys.readouterr().err


def test_the_checksum_is_of_every_parameter(prompts):
  model = prompts.runner.model
  checksum = lambda params: dataclasses.replace(model, params=params).checksum()
  weights, form = jax.tree.flatten(model.params)
  checksums = {checksum(jax.tree.unflatten(form, weights))}
  for i, one in enumerate(weights):
    other = np.array(one)
    other.flat[-1] += 1
    checksums.add(checksum(jax.tree.unflatten(form, [*weights[:i], other, *weights[i + 1 :]])))
  assert len(checksums) == 1 + len(weights) > 5


def test_an_edited_table_and_another_model_are_told_apart(
  folder, whole_run, tmp_path, monkeypatch, capsys
):
  shutil.copytree(folder / 'run', tmp_path / 'run')
  facts = (folder / 'facts.csv').read_text()
  with monkeypatch.context() as patch:
    patch.setattr(load.Pretrained, 'checksum', lambda model: 1)
    with pytest.raises(SystemExit, match='2'):
      run(tmp_path / 'run', *own(folder))
  assert 'its setting/model_checksum is' in capsys.readouterr().err
  try:
    (folder / 'facts.csv').write_text(f'{facts}new 1,colour,amber\n')
    with pytest.raises(SystemExit, match='2'):
      run(tmp_path / 'run', *own(folder))
  finally:
    (folder / 'facts.csv').write_text(facts)
  assert 'its setting/table_checksum is' in capsys.readouterr().err


BAD = (
  ('--model=nowhere', 'nowhere: no such model'),
  ('--model=bare', 'no config.json'),
  ('--model=weights.bin', 'pickles are not read'),
  ('--table=nowhere.csv', 'nowhere.csv: cannot be read'),
  ('--table=few.csv', 'at least 16'),
  ('--table=broken.csv', 'is not three names'),
  ('--scale=huge', 'value should be one of'),
  ('--seed=-1', '-1 is not a non-negative integer'),
  ('--redraw --model=tiny', 'contradict'),
  ('now', 'unexpected argument'),
)


@pytest.mark.parametrize(('arguments', 'error'), BAD)
def test_bad_input_is_refused_in_one_line(arguments, error, folder, monkeypatch, capsys):
  monkeypatch.chdir(folder)
  (folder / 'bare').mkdir(exist_ok=True)
  (folder / 'weights.bin').write_bytes(b'\x80\x04')
  (folder / 'few.csv').write_text('a,r,x\nb,r,y\n')
  (folder / 'broken.csv').write_text('a;r;x\n')
  rest = {'--table': '--table=facts.csv', '--model': '--model=tiny'}
  rest = [
    whole
    for name, whole in rest.items()
    if not {name, '--redraw'} & set(arguments.replace('=', ' ').split())
  ]
  with pytest.raises(SystemExit) as leaving:
    run(Path('bad'), *rest, *arguments.split())
  err = capsys.readouterr().err
  assert leaving.value.code == 2 and error in err
  assert err.startswith('error: ') and err.count('\n') == 1 and not (folder / 'bad').exists()


@WEIGHTS
def test_the_packaged_model_knows_and_uses_what_it_should(tmp_path):
  jax.config.update('jax_disable_most_optimizations', False)  # much arithmetic in few programs
  try:
    table = run(tmp_path, '--scale=smoke')
  finally:
    jax.config.update('jax_disable_most_optimizations', True)
  of = lambda name, **about: statistics.select(table, measurement=name, **about)['value'].tolist()
  for relation in ('continent', 'capital', 'language', 'demonym'):
    assert of('known', relation=relation, control=None)[0] > 0.5
  last = table.loc[table['measurement'] == 'donor answer', 'layer'].max()
  assert np.mean(of('donor answer', layer=0)) > 0.6 and of('donor answer', layer=last) == [0] * 4
  assert max(of('R2', control='shuffled facts')) < 0.05
