"""All studies, imported when they are asked for."""

import importlib

import experiments
from experiments.harness.study import Study
from geomem.errors import InputError


def load(name: str) -> Study:
  """The study of this name."""
  if name not in experiments.STUDIES:
    raise InputError(f'{name!r} is no study; there are {", ".join(experiments.STUDIES)}')
  return importlib.import_module(f'experiments.{name}').STUDY


def load_all() -> dict[str, Study]:
  """Every study by its name, in the order of the report."""
  return {name: load(name) for name in experiments.STUDIES}
