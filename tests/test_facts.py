"""Facts: how they are drawn, how hops compose, how queries are enumerated, and which files are accepted."""

import csv
import itertools

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geomem import facts as fact
from geomem import queries, tables
from geomem.errors import InputError
from geomem.facts import Facts

quick = settings(
  deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
sizes = st.integers(2, 40), st.integers(1, 6), st.integers(1, 4)


# --- drawing --------------------------------------------------------------------------------------


@pytest.mark.parametrize('n,r', [(2, 1), (7, 3), (1000, 4)])
def test_bijections_are_permutations(n, r):
  facts = Facts.bijections(n, r)
  assert (facts.subjects, facts.relations, facts.attributes, facts.closed) == (n, r, n, True)
  np.testing.assert_array_equal(np.sort(facts.answers_RxN, axis=1), np.tile(np.arange(n), (r, 1)))
  assert facts.answers_RxN.dtype == np.int32


def test_permutations_are_uniform():
  drawn = Facts.bijections(3, 1), *(Facts.bijections(3, 1, s) for s in range(1, 600))
  counts = np.unique([f.answers_RxN[0] for f in drawn], axis=0, return_counts=True)[1]
  assert len(counts) == 6 and 60 < counts.min() and counts.max() < 140


@pytest.mark.parametrize(
  'make',
  [
    lambda seed: Facts.bijections(50, 2, seed),
    lambda seed: Facts.random_maps(50, 2, seed=seed),
    lambda seed: Facts.random_maps(50, 2, 9, seed),
    lambda seed: Facts.disjoint(50, 2, 5, seed),
  ],
)
def test_the_seed_decides(make):
  one, same, other = make(3), make(3), make(4)
  np.testing.assert_array_equal(one.answers_RxN, same.answers_RxN)
  for r in range(2):
    assert np.any(one.answers_RxN[r] != other.answers_RxN[r])
  assert np.any(one.answers_RxN[0] != one.answers_RxN[1] - 5 * (one.attributes == 10))


@pytest.mark.parametrize('seed', [0, 1, 12345, 2**31, 2**32 - 1])
def test_a_seed_stands_for_the_key_of_that_seed(seed):
  rng = np.random.default_rng(np.asarray(jax.random.key_data(jax.random.key(seed))))
  want_RxN = [rng.permutation(20) for _ in range(3)]
  np.testing.assert_array_equal(Facts.bijections(20, 3, seed).answers_RxN, want_RxN)


@pytest.mark.parametrize('attributes', [None, 2, 7, 300])
def test_maps_reach_all_attributes(attributes):
  facts = Facts.random_maps(5000 if attributes else 40, 2, attributes)
  assert facts.closed == (attributes is None)
  assert facts.attributes == (attributes or 40)
  if attributes:
    assert all(len(np.unique(row)) == attributes for row in facts.answers_RxN)
  else:
    assert len(np.unique(facts.answers_RxN[0])) < 40  # a map, not a bijection


@pytest.mark.parametrize('n,r,each', [(2, 1, 2), (7, 3, 7), (10, 4, 3), (6, 2, 1)])
def test_disjoint_relations_have_sets_of_their_own(n, r, each):
  facts = Facts.disjoint(n, r, each)
  assert facts.attributes == r * each and not facts.closed
  for i, row in enumerate(facts.answers_RxN):
    assert set(row.tolist()) == set(range(i * each, (i + 1) * each))
    counts = np.bincount(row - i * each)
    assert counts.max() - counts.min() <= 1
  relation_A, index_A = facts.own_sets()
  np.testing.assert_array_equal(relation_A, np.repeat(np.arange(r), each))
  np.testing.assert_array_equal(index_A, np.tile(np.arange(each), r))


@pytest.mark.parametrize(
  'make',
  [
    lambda: Facts.bijections(9, 2, -1),
    lambda: Facts.random_maps(9, 2, seed=2**32),
    lambda: Facts.bijections(1, 2),
    lambda: Facts.bijections(2, 0),
    lambda: Facts.bijections(2**20, 2**12),
    lambda: Facts.random_maps(9, 2, 0),
    lambda: Facts.random_maps(9, 2, 1),
    lambda: Facts.random_maps(9, 2, -4),
    lambda: Facts.disjoint(9, 2, 0),
    lambda: Facts.disjoint(9, 2, 10),
    lambda: Facts.disjoint(9, 1, 1),
    lambda: fact.check_sizes(10, 2, 0),
    lambda: fact.check_sizes(10, 2, 10**9),
    lambda: fact.check_sizes(2**20, 2**6, 8),
    lambda: Facts(np.array([0, 1]), 2),
    lambda: Facts(np.array([[0, 2]]), 2),
    lambda: Facts(np.array([[0, -1]]), 2),
    lambda: Facts(np.array([[0, 1]]), 3, closed=True),
    lambda: Facts.random_maps(9, 2).own_sets(),
    lambda: Facts(np.array([[0, 1]]), 3, closed=False).own_sets(),
  ],
)
def test_impossible_facts_are_refused(make):
  with pytest.raises(InputError) as error:
    make()
  assert '\n' not in str(error.value)


def test_facts_are_closed_only_where_that_is_said():
  """Attributes that are as many as the subjects need not be the subjects: attribute 0 may be a colour."""
  answers_RxN = np.array([[1, 0], [0, 1]])
  colours = Facts(answers_RxN, 2)
  assert not colours.closed and colours.attribute_name(0) == 'a0'
  with pytest.raises(InputError, match=r'if attribute i is .* use Facts\(\.\.\., closed=True\)'):
    fact.check_closed(colours, 2)
  fact.check_closed(Facts(answers_RxN, 2, closed=True), 2)
  with pytest.raises(InputError, match=r'chained: some attributes are not subjects$'):
    fact.check_closed(Facts(answers_RxN, 3), 2)


# --- hops and tokens ------------------------------------------------------------------------------


def test_hops_against_a_plain_loop():
  n, r = 9, 3
  answers = Facts.random_maps(n, r).answers_RxN
  for hops in (1, 2, 3):
    paths = queries.every_path(r, hops)
    assert [tuple(path) for path in paths] == list(itertools.product(range(r), repeat=hops))
    s, p = (i.ravel() for i in np.meshgrid(np.arange(n), np.arange(r**hops), indexing='ij'))
    steps = np.asarray(queries.compose(answers, s, paths[p]))
    for subject, path, got in zip(s, paths[p], steps, strict=True):
      assert queries.walk(answers, subject, path) == list(got)
      for relation, step in zip(path, got, strict=True):
        subject = answers[relation][subject]
        assert step == subject
    tree = queries.tree(answers, hops)
    np.testing.assert_array_equal(tree[p, s], steps[:, -1])
    np.testing.assert_array_equal(queries.look_up(tree, s, paths[p]), steps[:, -1:])


def test_tokens_by_hand():
  """0 → 1 → 2 → 0 along relation 0; relation 1 swaps 0 and 1. Relations are the tokens 3 and 4."""
  answers = np.array([[1, 2, 0], [1, 0, 2]], np.int32)
  subjects, paths = np.array([0, 2], np.int32), np.array([[0, 1], [1, 0]], np.int32)
  assert queries.prompts(3, subjects, paths).tolist() == [[0, 3, 4], [2, 4, 3]]
  assert queries.chains(answers, subjects, paths).tolist() == [[0, 3, 4, 1, 0], [2, 4, 3, 2, 0]]
  facts = Facts(answers, 3, closed=True)
  assert (facts.subject_name(2), facts.relation_name(1), facts.attribute_name(0)) == (
    's2',
    'r1',
    's0',
  )


def test_every_content_is_every_choice():
  choices = np.array([4, 5]), np.array([7]), np.arange(3)
  assert {tuple(c) for c in fact.every_content(choices).T} == set(itertools.product(*choices))
  assert fact.every_content(choices).shape == (3, 6)


# --- queries, block by block ----------------------------------------------------------------------


@quick
@given(*sizes, st.integers(1, 5000))
def test_blocks_cover_every_query_once(n, r, k, size):
  seen = np.zeros((n, r**k), int)
  index = {path: i for i, path in enumerate(itertools.product(range(r), repeat=k))}
  blocks = list(queries.blocks(n, r, k, size))
  assert len(blocks) == queries.count_blocks(n, r, k, size)
  assert len({block.valid_SxP.shape for block in blocks}) == 1
  for block in blocks:
    s, p = np.nonzero(block.valid_SxP)
    path_P = np.array([index[tuple(path)] for path in block.paths_PxK.tolist()])
    np.add.at(seen, (block.subjects_S[s], path_P[p]), 1)
    assert block.subjects_S.max() < n and block.valid_SxP.size <= size
    assert block.subjects_S.dtype == block.paths_PxK.dtype == np.int32
  assert np.all(seen == 1)
  assert len(blocks) <= 4 * -(-n * r**k // size) + 2 or r**k > size // 2  # few are half empty


def test_a_quarter_of_a_trillion_queries_are_made_lazily():
  n, r, k, size = 10**6, 8, 6, 4096
  first, second = itertools.islice(queries.blocks(n, r, k, size), 2)
  assert first.valid_SxP.all() and first.valid_SxP.shape == (1, size)
  assert first.subjects_S.tolist() == [0] and second.subjects_S.tolist() == [1]
  np.testing.assert_array_equal(first.paths_PxK, list(itertools.product(range(8), repeat=6))[:size])
  assert queries.count_blocks(n, r, k, size) * size == n * r**k
  assert queries.paths(8, 20, 8**20 - 1).tolist() == [7] * 20


@pytest.mark.parametrize(
  ('n', 'r', 'k', 'count', 'size'),
  [(7, 3, 2, 6000, 512), (5, 1, 1, 40, 4096), (10**6, 8, 6, 999, 64)],
)
def test_sampled_blocks_are_uniform_and_the_key_decides(n, r, k, count, size):
  one, same, other = (
    list(queries.sampled_blocks(jax.random.key(s), n, r, k, count, size)) for s in (0, 0, 1)
  )
  assert count <= sum(block.valid_SxP.size for block in one) < count + size
  assert all(block.valid_SxP.all() and block.valid_SxP.size <= size for block in one)
  subjects = np.concatenate([block.subjects_S for block in one])
  paths = np.concatenate([block.paths_PxK for block in one])
  assert 0 <= subjects.min() and subjects.max() < n and 0 <= paths.min() and paths.max() < r
  assert abs(subjects.mean() / (n - 1) - 0.5) < 3 / len(subjects) ** 0.5
  assert r == 1 or abs(paths.mean() / (r - 1) - 0.5) < 3 / paths.size**0.5
  flat = lambda blocks: np.concatenate([block.subjects_S for block in blocks])
  assert np.array_equal(flat(one), flat(same)) and not np.array_equal(flat(one), flat(other))


# --- a user's own facts ---------------------------------------------------------------------------

CYCLE = 'a,next,b\nb,next,c\nc,next,a\n'


@pytest.fixture
def table(tmp_path):
  def write(content, name='facts.csv'):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path

  return write


@pytest.mark.parametrize(
  'content',
  [
    CYCLE,
    '\ufeff' + CYCLE,
    'Subject, RELATION ,attribute\n' + CYCLE,
    '\n\nsubject,relation,attribute\n' + CYCLE.replace('\n', '\n\n') + ',,\n',
    CYCLE.replace('\n', '\r\n'),
    CYCLE.replace(',', '  ,'),
    CYCLE.replace(',', ',  ').replace('b', '"b"'),
    CYCLE.rstrip('\n'),
  ],
)
def test_table_in_many_guises(table, content):
  for name, text in (('f.csv', content), ('f.tsv', content.replace(',', '\t'))):
    facts = Facts.from_csv(table(text, name))
    assert facts.closed and facts.attributes == 3
    assert facts.subject_names == facts.attribute_names == ('a', 'b', 'c')
    assert facts.relation_names == ('next',) and facts.answers_RxN.tolist() == [[1, 2, 0]]


def test_names_that_look_the_same_are_the_same(table):
  text = 'Zoë  Ann,is,x\nB,is,y\nB,has,x\nZoe\u0308 Ann,has,y\n'
  facts = Facts.from_csv(table(text))
  assert facts.subject_names == ('Zoë Ann', 'B') and facts.answers_RxN.tolist() == [[0, 1], [1, 0]]
  with pytest.raises(InputError, match="'Zoë Ann' has more than one row"):
    Facts.from_csv(table(text + 'Zoe\u0308  Ann,is,y\n'))
  assert tables.read_many(table(text))['has'] == {'B': ('x',), 'Zoë Ann': ('y',)}


def test_open_table_in_order_of_appearance(table):
  text = (
    'Überlingen,Staat,"Reich, Deutsches"\n日本,大陸,アジア\n'
    'Überlingen,大陸,Euro  pa\n日本,Staat,"a ""b"""'
  )
  facts = Facts.from_csv(table(text))
  assert facts.subject_names == ('Überlingen', '日本') and facts.relation_names == ('Staat', '大陸')
  assert facts.attribute_names == ('Reich, Deutsches', 'アジア', 'Euro pa', 'a "b"')
  assert not facts.closed and facts.answers_RxN.tolist() == [[0, 3], [2, 1]]
  assert facts.attribute_name(1) == 'アジア' and facts.subject_name(1) == '日本'


names = st.text(
  st.characters(exclude_categories=['Cs'], exclude_characters='\0'), min_size=1, max_size=6
)


@quick
@given(
  st.lists(names.map(tables.plain).filter(bool), min_size=2, max_size=5, unique=True), st.data()
)
def test_any_names_survive(tmp_path_factory, symbols, data):
  answers = [data.draw(st.sampled_from(symbols)) for _ in symbols]
  if len(set(answers)) < 2:
    answers[:2] = symbols[:2]
  path = tmp_path_factory.mktemp('names') / 'f.csv'
  with open(path, 'w', newline='', encoding='utf-8') as file:
    csv.writer(file, quoting=csv.QUOTE_ALL).writerows(
      (s, 'r', a) for s, a in zip(symbols, answers, strict=True)
    )
  facts = Facts.from_csv(path)
  assert facts.closed and facts.subject_names == tuple(symbols)
  assert [symbols[a] for a in facts.answers_RxN[0]] == answers


@pytest.mark.parametrize(
  'content,says',
  [
    ('', ['no rows']),
    ('subject,relation,attribute\n\n', ['no rows']),
    (CYCLE + 'd,next\n', ['line 4', 'd,next']),
    (CYCLE + '\nd,next,a,b\n', ['line 5', 'd,next,a,b']),
    ('a,next, \n', ['line 1']),
    (CYCLE.replace(',', '\t'), ['line 1', 'commas']),
    (CYCLE + 'a,next,b\n', ["'a'", "'next'", 'more than one']),
    (CYCLE + 'a,next,c\n', ["'a'", "'next'", 'more than one']),
    (CYCLE + 'a,before,c\n', ["'b'", "'before'", 'no row']),
    ('a,r,x\n', ['1 subject', '1 attribute']),
    ('a,r,x\na,q,y\n', ['1 subject']),
    ('a,r,x\nb,r,x\n', ['1 attribute']),
    (CYCLE + '"d,next,a\n', ['line 4']),
    (CYCLE + '"d"e,next,a\n', ['line 4']),
    (CYCLE + f'{"d" * 200_000},next,a\n', ['line 4', 'limit']),
    (CYCLE + 'd\0,next,a\n', ['line 4', 'NUL']),
    (bytes(5000), ['line 1', 'NUL']),
    (bytes(range(256)), ['UTF-8']),
    (CYCLE.encode('utf-16'), ['UTF-8']),
    (''.join(f's{i},r{i},a{i}\n' for i in range(30_000)), ["'s1'", "'r0'", 'no row']),
  ],
  ids=range(20),
)
def test_malformed_table_is_refused(table, content, says):
  path = table(content)
  with pytest.raises(InputError) as error:
    Facts.from_csv(path)
  for part in [str(path), *says]:
    assert part in str(error.value)
  assert '\n' not in str(error.value) and '\0' not in str(error.value)
  assert len(str(error.value)) < 400


def test_what_is_no_file_is_refused(tmp_path):
  with pytest.raises(InputError, match='cannot be read: Is a directory'):
    Facts.from_csv(tmp_path)
  with pytest.raises(InputError, match='nowhere.csv: cannot be read: No such file'):
    Facts.from_csv(tmp_path / 'nowhere.csv')


@quick
@given(st.one_of(st.binary(max_size=60), st.text('ab,"\n\t\r\0ä ', max_size=40).map(str.encode)))
def test_any_bytes_are_a_table_or_refused(tmp_path_factory, content):
  path = tmp_path_factory.mktemp('bytes') / 'f.csv'
  path.write_bytes(content)
  try:
    facts = Facts.from_csv(path)
  except InputError as error:
    assert str(error).startswith(str(path))
  else:
    assert min(facts.answers_RxN.shape) >= 1
