"""A trace shows what the theory says: where heads look, what slots hold, which units fire."""

import itertools

import numpy as np
import oracle
import pytest

from constructions import registry
from geomem import codes
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.inside import trace
from geomem.layout import Slot

EXACT = [name for name, entry in registry.REGISTRY.items() if entry.exact]
GATED = ['selector', 'selector_constant_weight', 'selector_multilevel', 'selector_normed']
N, R = 8, 3


def build(name, n=N, r=R, k=2, seed=0):
  entry = registry.entry(name)
  facts = Facts.disjoint(n, r, n, seed) if entry.own_answers else Facts.bijections(n, r, seed)
  return registry.build(name, facts, k if entry.multi_hop else 1)


def ask(c, subject, path):
  """The trace of a query with its right chain of thought, and the steps by the table."""
  steps = oracle.answers(c.facts, subject, path)
  thoughts = steps[:-1] if c.chain_of_thought else []
  return trace.trace_prompt(c, [subject, *(c.facts.subjects + r for r in path), *thoughts]), steps


def queries(c):
  paths = itertools.product(range(c.facts.relations), repeat=c.hops)
  return itertools.product(range(c.facts.subjects), paths)


def decoded_slots(seen, values_D, laid_D=None):
  """The decoded entries of each slot, by its name."""
  found = trace.changes(seen, values_D, np.zeros_like(values_D), laid_D)
  return {slot.name: decoded for slot, _, decoded, _, _ in found if decoded}


@pytest.mark.parametrize('name', EXACT)
def test_agrees_with_the_model_written_out_in_numpy(name):
  c = build(name, 5, 3)
  seen, _ = ask(c, 3, (2, 1)[: c.hops])
  np.testing.assert_allclose(
    seen.logits_LxA, oracle.logits(c.config, c.params, seen.tokens_L), rtol=1e-4, atol=1e-4
  )
  for i, block in enumerate(seen.blocks):
    weights = block.attention_HxLxL
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)
    assert not np.triu(weights, 1).any()
    for p in range(len(seen.tokens_L)):
      read_D = seen.before(i)[p] + trace.head_outputs(seen, i, p).sum(axis=0)
      np.testing.assert_allclose(block.read_LxD[p], read_D, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', EXACT)
def test_the_answer_slot_decodes_to_the_answer(name):
  c = build(name)
  for subject, path in queries(c):
    seen, steps = ask(c, subject, path)
    for p, step in zip(seen.positions, steps if c.chain_of_thought else steps[-1:], strict=True):
      assert seen.top(p)[0][0] == c.facts.attribute_name(step)
      if c.readout and name != 'disjoint':
        slot_D = seen.blocks[-1].written_LxD[p][c.readout.at][-c.readout.code.width :]
        decoded = trace.decode(slot_D[None], c.readout.code, np.zeros((1, len(slot_D))))
        assert decoded.symbol_E == [step] and decoded.kind_E[0] != 'closed'


def heads(seen, p):
  """Where each head of each block looks from position p: a position, or None if its attention is spread."""
  return [
    [int(np.argmax(w)) if np.max(w) == 1 else None for w in block.attention_HxLxL[:, p]]
    for block in seen.blocks
  ]


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('keyvalue', [[1, 0], [2], [3]]),
    ('factored', [[1, 0], [2], [3]]),
    ('precomputed', [[1, 0], [2], [3]]),
    ('precomputed_depth1', [[0, 1, 2, 3]]),
  ],
)
def test_heads_look_where_the_theory_says(name, expected):
  c = build(name, k=3)
  for subject, path in [(0, (0, 0, 0)), (5, (1, 0, 1))]:
    assert heads(ask(c, subject, path)[0], 3) == expected


def test_heads_of_a_chain_of_thought_follow_it():
  seen, _ = ask(build('chain_of_thought', k=3), 4, (1, 0, 1))
  assert list(seen.positions) == [3, 4, 5]
  assert [heads(seen, p) for p in seen.positions] == [[[0, 1]], [[4, 2]], [[5, 3]]]
  seen, _ = ask(build('chain_of_thought_compact', k=3), 4, (1, 0, 1))
  # After the first thought the subject is in place, and the first head rests on the relations.
  assert [heads(seen, p) for p in seen.positions] == [[[0, 1]], [[None, 2]], [[None, 3]]]


def test_heads_not_asked_for_rest_on_the_relation():
  c = build('attention_only', 6, 3)
  for r in range(3):
    seen, _ = ask(c, 2, (r,))
    assert heads(seen, 1) == [[0 if h == r else 1 for h in range(3)]]


@pytest.mark.parametrize('name', GATED)
def test_the_relation_closes_every_block_but_its_own(name):
  c = build(name)
  for subject, (r,) in queries(c):
    seen, _ = ask(c, subject, (r,))
    answers = c.facts.answers_RxN[:, subject]
    own = decoded_slots(seen, seen.embedded_LxD[0])['blocks']
    np.testing.assert_array_equal(own.symbol_E, answers)
    np.testing.assert_array_equal(own.error_E, 0)
    laid_D, read_D = trace.relation_outputs(seen, 0, 1), seen.blocks[0].read_LxD[1]
    gated = decoded_slots(seen, read_D, laid_D)['blocks']
    assert [kind == 'closed' for kind in gated.kind_E] == [q != r for q in range(3)]
    assert gated.symbol_E[r] == answers[r] and gated.error_E[r] < 1e-5


@pytest.mark.parametrize('name', ['precomputed_depth1', 'chain_of_thought_compact'])
def test_one_branch_is_left_open(name):
  """Only one branch decodes as open, even if a closed one reads like a word, or an open word has nothing positive."""
  c = build(name)
  slot = c.layout.slots[0].name
  for subject, path in queries(c):
    seen, steps = ask(c, subject, path)
    for p, (r, step) in zip(seen.positions, zip(path, steps, strict=True), strict=False):
      branch, held = (r, step) if c.chain_of_thought else (path[0] * 3 + path[1], steps[-1])
      block, laid_D = seen.blocks[0], trace.relation_outputs(seen, 0, p)
      decoded = decoded_slots(seen, block.read_LxD[p], laid_D)[slot]
      assert np.flatnonzero(decoded.kind_E != 'closed').tolist() == [branch]
      assert decoded.symbol_E[branch] == held


def test_one_memory_unit_fires_a_hop():
  c = build('keyvalue', 5, 3, 3)
  for subject, path in itertools.islice(queries(c), 0, None, 7):
    seen, steps = ask(c, subject, path)
    states = [subject, *steps]
    for hop, r in enumerate(path):
      fired = np.flatnonzero(seen.blocks[hop].hidden[0][-1])
      names = [trace.unit_name(seen.construction, hop, 0, unit) for unit in fired]
      assert names == [f'memory[s{states[hop]}, r{r}]']
      held = decoded_slots(seen, seen.blocks[hop].written_LxD[-1])
      assert held['state'].symbol_E == [states[hop + 1]] and held['fetched'].kind_E == ['empty']


def test_units_are_named_after_their_slots():
  c = build('factored', 5, 2, 2)
  seen, steps = ask(c, 4, (1, 0))
  fired = [np.flatnonzero(hidden_LxF[-1]) for hidden_LxF in seen.blocks[1].hidden]
  detectors, ands = (
    [trace.unit_name(seen.construction, 1, j, unit) for unit in units]
    for j, units in enumerate(fired)
  )
  assert detectors == [f'detector = s{steps[0]}', 'relations = r0']
  bits = [f'path[r0] bit {i}' for i in range(3) if steps[1] >> i & 1]
  assert [name for name in ands if name.startswith('path')] == bits


def test_hops_are_counted_by_block():
  c = registry.build('factored', Facts.bijections(5, 2), 3, hops_per_layer=2)
  first, second = '\n'.join(trace.lines(ask(c, 4, (1, 0, 1))[0])).split('block 2')
  assert "fetched[block's hop 2] = r0" in first and "fetched[block's hop 1] = r1" in second


@pytest.mark.parametrize(
  ('value', 'gap', 'told'),
  [
    (0, 0, '0'),
    (-0.0294, 0, '-0.029'),
    (921, 0, '921'),
    (230_400, 0, '230400'),
    (2.5e7, 0, '2.5e+07'),
    (1e-9, 0, '1e-09'),
    (100, 1, '100'),
    (99.52, 0.43, '99.52'),
    (-0.001, 1, '0'),
    (float('inf'), 0, 'inf'),
    (1, float('nan'), '1'),
  ],
)
def test_numbers(value, gap, told):
  assert trace.number(value, gap=gap) == told


def test_logits_are_told_apart():
  facts = Facts.bijections(1000, 2)
  seen, _ = ask(registry.build('selector_multilevel', facts, bits=10), 900, (1,))
  told = next(line for line in trace.lines(seen) if line.startswith('logits')).split(';')
  assert len({float(item.split()[-1]) for item in told[:2]}) == 2 and 'e+' not in ''.join(told)


def test_an_answer_that_the_bias_writes():
  c = build('selector')
  r, s = np.argwhere(c.facts.answers_RxN == 0)[0]
  assert '0 of 9; none: the bias alone writes' in '\n'.join(trace.lines(ask(c, s, (r,))[0]))


def test_decode():
  words = codes.Sign(8).words()
  values = np.stack(
    [words[5], 4 * words[5], 4 * words[5] + [1, 0, 0], 0 * words[5], [-2, 0, 0], words[0]]
  )
  decoded = trace.decode(values, codes.Sign(8))
  assert decoded.kind_E.tolist() == ['exact', 'exact', 'near', 'empty', 'closed', 'exact']
  assert decoded.symbol_E[[0, 1, 2, 5]].tolist() == [5, 5, 5, 0]
  np.testing.assert_allclose(decoded.scale_E[:3], [1, 4, 13 / 3], rtol=1e-6)
  np.testing.assert_allclose(decoded.error_E[:3], [0, 0, 2 / 3], rtol=1e-6)
  # What the relation added to it tells a closed word from an open one that looks the same.
  laid = np.array([[0, 0, 0], [-2, -2, -2]])
  assert trace.decode(words[[0, 0]], codes.Sign(8), laid).kind_E.tolist() == ['exact', 'closed']


@pytest.mark.parametrize(
  'code',
  [
    codes.Sign(5),
    codes.OneHot(5),
    codes.ConstantWeight(7),
    codes.MultiLevel(200, 4),
    codes.Bits(9),
  ],
)
def test_every_word_decodes_to_itself(code):
  decoded = trace.decode(code.words(), code)
  np.testing.assert_array_equal(decoded.symbol_E, np.arange(code.count))
  np.testing.assert_array_equal(decoded.error_E, 0)
  assert set(decoded.kind_E) <= {'exact', 'empty'}
  noisy = code.words() + 0.2 * np.sign(np.sin(np.arange(code.count * code.width))).reshape(
    -1, code.width
  )
  np.testing.assert_array_equal(trace.decode(noisy, code).symbol_E, np.arange(code.count))


def test_a_pattern_that_is_no_word_decodes_to_a_near_one():
  decoded = trace.decode(np.ones((1, 3)), codes.Sign(5))  # word 7, beyond 0 … 4
  assert decoded.kind_E[0] == 'near' and decoded.symbol_E[0] == 3


def test_names():
  facts = Facts(
    np.array([[0, 1], [1, 0]]), 2, True, ('Ann', 'Bo'), ('likes', 'knows'), ('Ann', 'Bo')
  )
  assert (
    trace.entry_label(facts, Slot('blocks', (('relation', 2),), codes.Sign(2)), 1)
    == 'blocks[knows]'
  )
  assert (
    trace.entry_label(facts, Slot('tree', (('branch', 4),), codes.Sign(2)), 1)
    == 'tree[likes knows]'
  )
  assert (
    trace.entry_label(facts, Slot('memory', (('subject', 2), ('relation', 2))), 2)
    == 'memory[Bo, likes]'
  )
  assert trace.entry_label(facts, Slot('level', (('branch', 1),), codes.Sign(2)), 0) == 'level'
  assert trace.symbol_name(facts, 'hop', 0) == 'hop 1'
  assert trace.symbol_name(facts, 'position', 3) == 'position 3'


def test_disjoint_answers_are_named_as_attributes():
  c = build('disjoint', 4, 3)
  seen, _ = ask(c, 2, (0,))
  text = '\n'.join(trace.lines(seen))
  for r in range(3):
    assert f'blocks[r{r}] = a{c.facts.answers_RxN[r, 2]}' in text


def test_a_word_beyond_a_relations_own_answers_has_no_name():
  facts = Facts(np.array([[0, 3, 3], [4, 1, 2]]), 5, False)
  slot = registry.build('disjoint', facts).layout.slot('blocks')
  values = slot.code.words()[[2, 2]]
  decoded = trace.decode(values, slot.code)
  told = [trace.describe(facts, slot, values, decoded, r) for r in range(2)]
  assert told == ['own answer 2', 'a4']


@pytest.mark.parametrize('name', EXACT)
def test_lines_fit_a_terminal(name):
  seen, steps = ask(build(name), 3, (2, 1)[: 1 + registry.entry(name).multi_hop])
  lines = trace.lines(seen)
  assert all(len(line) <= 100 for line in lines)
  answer = seen.construction.facts.attribute_name(steps[-1])
  assert lines[-1].split() == ['answer', f'{answer},', *lines[-1].split()[2:]]


def test_lines_of_a_huge_layout_are_few():
  seen, steps = ask(build('precomputed_depth1', 8, 6, 3), 3, (2, 1, 5))
  lines = trace.lines(seen)
  text = '\n'.join(lines)
  assert len(lines) < 30 and '… 208 more' in text and '… 207 more' in text
  assert f'tree[r2 r1 r5] = s{steps[-1]}' in text


@pytest.mark.parametrize(
  ('name', 'tokens', 'told'),
  [
    ('selector', [-1, 9], 'token 0 is -1; a subject belongs there, 0 … 7'),
    ('selector', [8, 9], 'token 0 is 8; a subject'),
    ('selector', [3, 11], 'token 1 is 11; a relation belongs there, 8 … 10'),
    ('selector', [3, 2**40], 'token 1 is 1099511627776'),
    ('selector', [3, 4], 'token 1 is 4; a relation'),
    ('selector', [3], '1 tokens; the model reads a subject and 1 relation'),
    ('selector', [3, 9, 9], '3 tokens'),
    ('selector', [[3, 9]], 'give a row of integers'),
    ('selector', [3.0, 9.5], 'give a row of integers'),
    ('keyvalue', [3, 9, 9, 1], 'then up to 0 thought'),
    ('chain_of_thought', [3, 9, 9, 9], 'token 3 is 9; a subject'),
    ('chain_of_thought', [3, 9, 9, 1, 1], 'then up to 1 thought'),
  ],
)
def test_a_prompt_that_does_not_exist_is_refused(name, tokens, told):
  with pytest.raises(InputError, match=told):
    trace.trace_prompt(build(name), tokens)


def test_a_chain_is_traced_as_far_as_it_goes():
  c = build('chain_of_thought')
  assert [len(trace.trace_prompt(c, tokens).positions) for tokens in ([3, 9, 9], [3, 9, 9, 1])] == [
    1,
    2,
  ]


def test_bfloat16_traces_the_same():
  c = build('selector')
  rough, fine = (trace.trace_prompt(c, [3, 9], dtype) for dtype in ('bfloat16', 'float32'))
  np.testing.assert_array_equal(rough.blocks[0].written_LxD, fine.blocks[0].written_LxD)
  assert trace.lines(rough)[1:] == trace.lines(fine)[1:]
