"""A model on disk: parameters and facts as an Orbax checkpoint, the rest in a config.json.

It is written to a temporary folder and moved into place as a whole; it is read back to the same bits
or refused in one line.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Collection
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from geomem import codes, config, construction, facade, facts, layout
from geomem.errors import InputError
from geomem.facade import FactModel
from geomem.saved import atomic
from geomem.training import optimization, trained

FORMAT, VERSION = 'geomem model', 2
MODULES = (codes, config, construction, facade, facts, layout, optimization, trained)
KINDS: dict[str, Any] = {
  name: kind
  for module in MODULES
  for name, kind in vars(module).items()
  if dataclasses.is_dataclass(kind)
}
KINDS['slice'] = lambda at: slice(*at)
# Not in config.json: arrays, saved as such or recomputed, and what only a model's builder provides.
EXCLUDED = ('params', 'answers_RxN', 'relation_A', 'index_A', 'encode', 'choices')


def check_free(
  path: str | os.PathLike,
  is_ours: Callable[[Path], bool] | None = None,
  files: Collection[str] = ('arrays', 'config.json'),
  what: str = 'a geomem model',
) -> None:
  """Refuse a path where anything but a model (or `what`, with these `files`) would be overwritten."""
  path = Path(path)
  if not path.exists():
    return
  entries = {entry.name for entry in path.iterdir()} if path.is_dir() else {''}
  if entries and not (is_ours or is_model)(path):
    raise InputError(f'{path} exists and is not {what}; choose another --workdir')
  if others := sorted(entries - set(files)):
    raise InputError(
      f'{path} holds {what} and {others[0]!r}, which would be lost; move that elsewhere'
    )


def save(path: str | os.PathLike, model: FactModel) -> None:
  """Write `model` to the folder `path`; an existing model is replaced, anything else is refused."""
  check_free(path)
  versions = {name: metadata.version(name) for name in ('jax', 'flax', 'orbax-checkpoint')}
  fields = {'format': FORMAT, 'version': VERSION, 'model': to_plain(model), 'versions': versions}
  atomic.write(path, fields, {'params': model.params, 'answers': model.facts.answers_RxN})


def is_model(path: str | os.PathLike) -> bool:
  """Whether the folder holds a model written by `save`."""
  try:
    return json.loads((atomic.locate(path) / 'config.json').read_text())['format'] == FORMAT
  except (OSError, ValueError, KeyError, TypeError):
    return False


def names(folder: str | os.PathLike) -> list[str]:
  """The models in the folder."""
  return [name for name in atomic.names(folder) if is_model(Path(folder) / name)]


def load(path: str | os.PathLike) -> FactModel:
  """The model in the folder `path`: bit-exact parameters, without what only its builder provides."""
  path = atomic.locate(path)
  if not path.is_dir():
    raise InputError(f'{path}: no model there; build one with python -m experiments.construct')
  if not is_model(path):
    raise InputError(f'{path}: not a geomem model (no config.json that says so)')
  version = json.loads((path / 'config.json').read_text()).get('version')
  if version != VERSION:
    raise InputError(f'{path}: version {version} of the format; this code reads {VERSION}')
  try:
    fields, arrays = atomic.read(path)
  except atomic.Damaged as error:
    raise InputError(f'{path}: damaged model: {error}') from error
  try:
    return assemble(fields['model'], **arrays)
  except MemoryError:
    raise
  except Exception as error:  # fields that are present but make no sense
    raise InputError(f'{path}: damaged model: {atomic.reason(error)}') from error


def assemble(model: dict[str, Any], params: dict, answers: np.ndarray) -> FactModel:
  model['facts'] = known = from_plain({**model['facts'], 'answers_RxN': answers})
  if model['readout'] and model['readout']['kind'] == 'OwnReadout':
    model['readout'] |= dict(zip(('relation_A', 'index_A'), known.own_sets(), strict=True))
  return from_plain({**model, 'params': params})


def to_plain(value: Any) -> Any:
  """The value as JSON types: dataclasses are dicts that name their class, tuples are lists."""
  if dataclasses.is_dataclass(value):
    names = [field.name for field in dataclasses.fields(value) if field.name not in EXCLUDED]
    return {
      'kind': type(value).__name__,
      **{name: to_plain(getattr(value, name)) for name in names},
    }
  if isinstance(value, dict):
    return {name: to_plain(part) for name, part in value.items()}
  if isinstance(value, slice):
    return {'kind': 'slice', 'at': to_plain([value.start, value.stop])}
  if isinstance(value, tuple | list):
    return [to_plain(part) for part in value]
  return value.item() if isinstance(value, np.generic) else value


def from_plain(value: Any) -> Any:
  """The inverse of `to_plain`."""
  if isinstance(value, list):
    return tuple(map(from_plain, value))
  if not isinstance(value, dict):
    return value
  parts = {name: from_plain(part) for name, part in value.items() if name != 'kind'}
  return KINDS[value['kind']](**parts) if 'kind' in value else parts
