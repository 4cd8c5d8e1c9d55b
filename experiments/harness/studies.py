"""All studies by name, imported on demand."""

import importlib

from experiments.harness.study import Study
from geomem.errors import InputError

NAMES = (  # in the order of the report; each is the `STUDY` of the module with this name
  'construct', 'bounds', 'approximate', 'laws', 'optimizers', 'structure', 'transfer', 'dimensions', 'phases', 'dynamics',
  'frozen_embeddings', 'multihop', 'from_constructed', 'editing', 'leaderboard', 'language_model', 'new_subjects',
)  # fmt: skip


def load(name: str) -> Study:
  """The study of this name."""
  if name not in NAMES:
    raise InputError(f'{name!r} is no study; there are {", ".join(NAMES)}')
  return importlib.import_module(f'experiments.{name}').STUDY


def load_all() -> dict[str, Study]:
  """Every study by its name, in the order of the report."""
  return {name: load(name) for name in NAMES}
