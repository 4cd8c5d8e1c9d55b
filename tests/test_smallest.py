"""The fewest hidden units that select, by mixed-integer programs over all contents of one bit per relation: R−1.

The residual of content e ∈ {±1}^R under relation r gives the logit difference
⟨u, e⟩ + β_r + Σ_j o_j·ReLU(⟨α_j, e⟩ + γ_rj), o_j = ±1, which must have the sign of e_r.
"""

import itertools

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

WEIGHT = 8.0  # the largest |u| and |α| at margin 1: the programs cover only such models


def selects(relations, units, signs):
  """Whether such a model exists: True, False, or None if the solver did not finish."""
  contents_CxR = np.array(list(itertools.product((-1, 1), repeat=relations)))
  cases = len(contents_CxR) * relations
  largest = WEIGHT * (2 * relations + 1)
  names = {'u': relations, 'beta': relations, 'alpha': units * relations, 'gamma': units * relations,
           'out': units * cases, 'on': units * cases}  # fmt: skip
  starts = dict(zip(names, np.cumsum([0, *names.values()]), strict=False))
  at = lambda name, i: starts[name] + i
  total, rows = sum(names.values()), []

  def require(terms, low, high):
    row = np.zeros(total)
    for i, value in terms:
      row[i] += value
    rows.append((row, low, high))

  for case, (r, e) in enumerate(itertools.product(range(relations), contents_CxR)):
    logit = [(at('u', i), e[r] * e[i]) for i in range(relations)] + [(at('beta', r), e[r])]
    for j in range(units):
      out, on = at('out', j * cases + case), at('on', j * cases + case)
      logit.append((out, e[r] * signs[j]))
      less = [(at('alpha', j * relations + i), -e[i]) for i in range(relations)]
      less += [(at('gamma', j * relations + r), -1), (out, 1)]  # out − the unit's input
      require(less, 0, np.inf)
      require([*less, (on, largest)], -np.inf, largest)
      require([(out, 1), (on, -largest)], -np.inf, 0)
    require(logit, 1, np.inf)
  high = np.concatenate([
    np.full(size, {'u': WEIGHT, 'alpha': WEIGHT, 'on': 1}.get(name, largest)) for name, size in names.items()
  ])  # fmt: skip
  low = np.where(np.arange(total) < starts['out'], -high, 0)
  matrix, least, most = (np.array(column) for column in zip(*rows, strict=True))
  found = milp(
    np.zeros(total), constraints=LinearConstraint(matrix, least, most), bounds=Bounds(low, high),
    integrality=np.arange(total) >= starts['on'], options={'time_limit': 60},
  )  # fmt: skip
  return {0: True, 2: False}.get(found.status)


@pytest.mark.parametrize(
  'relations,units,enough', [(1, 0, True), (2, 0, False), (2, 1, True), (3, 1, False), (3, 2, True)]
)
def test_a_unit_less_than_relations_is_the_least(relations, units, enough):
  some = itertools.combinations_with_replacement((1, -1), units)
  found = [selects(relations, units, signs) for signs in some]
  assert any(found) if enough else found == [False] * len(found)


def test_one_unit_ranks_the_relations_in_one_order():
  """As the proof needs, ReLU(a + γ) − ReLU(−a + γ) is monotone in γ, up or down by the sign of a."""
  rng = np.random.default_rng(0)
  a, gamma = rng.normal(size=(1000, 1)), np.linspace(-5, 5, 200)
  odd = np.maximum(a + gamma, 0) - np.maximum(-a + gamma, 0)
  assert np.all(np.diff(odd, axis=1) * np.sign(a) >= -1e-12)
