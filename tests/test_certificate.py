"""The certificate is not fooled by rounding, by weights that are not finite, or by lost relations."""

import numpy as np
import pytest

from constructions import registry
from geomem.checks import verify
from geomem.errors import InputError
from geomem.facts import Facts


def build(name, sizes=(5, 2, 1)):
  n, r, k = sizes
  own = registry.entry(name).own_answers
  facts = Facts.disjoint(n, r, n) if own else Facts.bijections(n, r)
  return registry.build(name, facts, k)


def test_other_facts_of_the_same_size_need_no_other_program():
  verify.certificate(build('disjoint'))
  programs = verify._check_block._cache_size()
  answers_RxN = Facts.disjoint(5, 2, 5).answers_RxN
  for change in (lambda a: a[:, ::-1], lambda a: 9 - a):  # the second moves the answers, too
    facts = Facts(change(answers_RxN), 10)
    assert verify.certificate(registry.build('disjoint', facts)).holds(2)
  assert verify._check_block._cache_size() == programs


@pytest.mark.parametrize('check', verify.CHECKS)
def test_a_dtype_that_rounds_a_weight_is_refused(check):
  """Every check refuses bfloat16 where it rounds |v|², with which the model answers some queries wrong."""
  c = build('selector_multilevel', (300, 2, 1))
  config = c.config.replace(dtype='bfloat16')
  assert verify.accuracy(config, c.params, c.facts).accuracy < 1
  with pytest.raises(InputError, match='bfloat16 cannot hold unembed/answers'):
    getattr(verify, check)(c, 'bfloat16')


@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize('name', ['selector', 'selector_literal', 'chain_of_thought'])
def test_what_is_not_finite_outside_the_answer_is_not_certified(name, value):
  c = build(name)
  bias_D = c.params[f'blocks_{c.config.depth - 1}']['mlp']['out_bias']
  outside = np.ones(c.config.dim, bool)
  outside[c.readout.at] = False
  bias_D[np.flatnonzero(outside)[-1]] = value
  assert verify.exhaustive(c).correct == verify.certificate(c).correct == 0


def test_a_margin_below_rounding_is_not_certified():
  c = build('attention_only', (8, 1, 1))
  c.params['blocks_0']['attention']['output'][0, 0, 0] = 1e-9
  assert verify.exhaustive(c).correct == verify.certificate(c).correct == 0


@pytest.mark.parametrize('seed', range(8))
def test_disjoint_is_not_certified_where_the_relation_is_lost(seed):
  c = build('disjoint', (16, 8, 1))
  rng = np.random.default_rng(seed)
  for name, width in (('subjects', 0.8), ('relations', 1.5)):
    w = c.params['embed'][name]
    w *= rng.uniform(1 - width, 1 + width, w.shape).astype(np.float32)
  certified, exhaustive = verify.certificate(c), verify.exhaustive(c)
  assert certified.correct <= exhaustive.correct < exhaustive.queries
