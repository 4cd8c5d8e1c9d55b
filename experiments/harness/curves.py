"""Accuracy curves: the size at which half of the facts are known, and whether more training would change it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.harness.findings import Finding, over_seeds
from experiments.harness.statistics import groups

SETTLED = 0.05  # largest relative change of a measured value when the training budget is doubled


def at_largest(rows: pd.DataFrame, budget: str, *by: str) -> pd.DataFrame:
  """In every group by these columns, the rows with the largest budget."""
  return rows[rows[budget] == rows.groupby(list(by))[budget].transform('max')]


def last_change(rows: pd.DataFrame, budget: str, read: Callable) -> list[float]:
  """The relative change of what `read` returns, for every seed, at the last doubling of a budget; negative if it falls.

  `budget` names a column; the list is empty if it has only one value.
  """
  budgets = sorted(rows[budget].unique())[-2:]
  if len(budgets) < 2:
    return []
  before, after = (read(rows[rows[budget] == one]) for one in budgets)
  return [ratio - 1 for ratio in ratios(after, before)]


def settled(changes: Sequence[float]) -> bool:
  """Whether these changes at the last doubling of a budget are small, on average over the seeds, and known for each."""
  return len(changes) > 0 and bool(np.mean(np.abs(changes)) <= SETTLED)


def expected_change(text: str, changes: Sequence[float]) -> Iterator[Finding]:
  """The change of what `text` names at the last doubling of a budget, and the check that it is small in every seed."""
  yield from over_seeds(f'{text}, relative change', changes)
  size = np.abs(changes).tolist()
  yield from over_seeds(f'{text}, size of the relative change', size, at_most=SETTLED, check=True)


def above_relation_blind(score: pd.Series, choices: pd.Series) -> pd.Series:
  """0 for a model that is right about one of so many choices, as one can be that ignores the relation, and 1 if all are right.

  Where there is one choice, there is none to ignore, and scores stay as they are.
  """
  return score.where(choices == 1, (score * choices - 1) / (choices - 1))


def half_sizes(rows: pd.DataFrame, score: str = 'accuracy', level: float = 0.5) -> dict[Any, float]:
  """d₅₀ of the curve of every seed, or the d at another level; NaN where its sizes do not reach it."""
  return {seed: half_size(own['dim'], own[score], level) for (seed,), own in groups(rows, 'seed')}


def ratios(over: Mapping[Any, float], under: Mapping[Any, float]) -> list[float]:
  """One for every seed that both have."""
  return [over[seed] / under[seed] for seed in over if seed in under]


def at_half_sizes(rows: pd.DataFrame, what: str) -> dict:
  """For every seed what another curve of the same models is at d₅₀."""
  found = {}
  for (seed,), own in groups(rows, 'seed'):
    mean = own.groupby('dim')[what].mean()
    half = half_size(own['dim'], own['accuracy'])
    found[seed] = float(np.interp(np.log(half), np.log(mean.index.to_numpy(float)), mean))
  return found


def half_size(dims, accuracy, level: float = 0.5) -> float:
  """The d at which a single curve crosses one half, or another level, log-linear between its points; nan if it does not."""
  mean = pd.Series(np.asarray(accuracy, float)).groupby(np.asarray(dims, float)).mean()
  x, y = np.log(mean.index.to_numpy()), mean.to_numpy()
  over = np.flatnonzero(y >= level)
  if not len(over) or not over[0]:
    return np.nan
  i = over[0]
  return float(np.exp(np.interp(level, y[i - 1 : i + 1], x[i - 1 : i + 1])))


def expected_half_sizes(text: str, halves: Mapping[Any, float], **controls) -> Iterator[Finding]:
  """d₅₀, which `text` names; it is NaN, and the text says so, if a seed's sizes do not reach it."""
  values = [*halves.values()]
  outside = ', outside the sizes tried with some seeds' * (not np.isfinite(values).all())
  yield from over_seeds(text + outside, values, **controls)
