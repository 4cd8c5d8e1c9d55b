"""Halving: against exhaustive truth, for all ranges, both directions."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomem.errors import InputError
from geomem.training import bisection
from geomem.training.bisection import Range


@pytest.mark.parametrize('larger_is_easier', [True, False])
def test_finds_every_border(larger_is_easier):
  for least, most in [(1, 1), (1, 9), (3, 20), (5, 6)]:
    borders = range(least - 1, most + 2)
    firsts = range(least, most + 1)
    cases = {
      (b, f): Range(least, most, f, larger_is_easier) for b, f in itertools.product(borders, firsts)
    }

    def attempt(asked):
      return [size >= case[0] if larger_is_easier else size <= case[0] for case, size in asked]

    for (border, _), b in bisection.search(cases, attempt).items():
      if larger_is_easier:
        assert b.found == (max(border, least) if border <= most else None)
      else:
        assert b.found == (min(border, most) if border >= least else None)


@given(st.integers(1, 3000), st.integers(1, 3000), st.booleans())
def test_asks_little_and_never_twice(border, first, larger_is_easier):
  seen = []

  def attempt(asked):
    seen.extend(size for _, size in asked)
    return [(size >= border) == larger_is_easier for _, size in asked]

  bisection.search({'': Range(1, 3000, first, larger_is_easier)}, attempt)
  assert len(seen) == len(set(seen)) <= 26


def test_rounds_hold_all_cases_that_are_not_done():
  rounds = []

  def attempt(asked):
    rounds.append([case for case, _ in asked])
    return [size >= case for case, size in asked]

  bisection.search({border: Range(1, 64, 32) for border in (1, 31, 32, 33, 64)}, attempt)
  assert rounds[0] == [1, 31, 32, 33, 64]
  for before, after in itertools.pairwise(rounds):
    assert set(after) <= set(before)


def test_resolution_ends_the_search_early():
  attempt = lambda asked: [size <= 1234 for _, size in asked]
  fine = bisection.search({'': Range(1, 4000, 100, False)}, attempt)['']
  rough = bisection.search({'': Range(1, 4000, 100, False, resolution=0.05)}, attempt)['']
  assert fine.found == 1234 and rough.asked < fine.asked
  assert rough.found <= 1234 < rough.failed <= 1.05 * rough.found


def test_ranges_are_checked():
  with pytest.raises(InputError, match='in order'):
    Range(4, 3, 4)
