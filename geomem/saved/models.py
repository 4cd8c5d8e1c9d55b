"""A construction on disk: parameters and facts as an Orbax checkpoint, the rest in config.json beside it.

Written to one side and moved into place whole; read back to the same bits or refused in one line.
"""

import json
import os
from importlib import metadata
from pathlib import Path

from geomem.config import Config
from geomem.construction import Construction, readout_from_json
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.layout import Layout
from geomem.saved import atomic

FORMAT, VERSION = 'geomem model', 1
NAMES = ('subject_names', 'relation_names', 'attribute_names')


def check_free(path: str | os.PathLike) -> None:
  """Refuse a place where something other than a model would be overwritten."""
  path = Path(path)
  if not path.exists():
    return
  entries = {entry.name for entry in path.iterdir()} if path.is_dir() else {''}
  if entries and not is_model(path):
    raise InputError(f'{path} exists and is not a geomem model; choose another --workdir')
  if others := sorted(entries - {'arrays', 'config.json'}):
    raise InputError(
      f'{path} holds a model and {others[0]!r}, which would be lost; move that elsewhere'
    )


def save(path: str | os.PathLike, construction: Construction) -> None:
  """Write `construction` to the folder `path`, replacing a model that is there, and nothing else."""
  check_free(path)
  arrays = {'params': construction.params, 'answers': construction.facts.answers_RxN}
  atomic.write(path, _describe(construction), arrays)


def is_model(path: str | os.PathLike) -> bool:
  """Whether the folder holds something that `save` wrote."""
  try:
    return json.loads((atomic.found(path) / 'config.json').read_text())['format'] == FORMAT
  except (OSError, ValueError, KeyError, TypeError):
    return False


def names(folder: str | os.PathLike) -> list[str]:
  """The models in the folder."""
  return [name for name in atomic.names(folder) if is_model(Path(folder) / name)]


def load(path: str | os.PathLike) -> Construction:
  """The construction in the folder `path`, its parameters bit for bit."""
  path = atomic.found(path)
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
    return _assemble(fields, arrays)
  except MemoryError:
    raise
  except Exception as error:  # fields that are there, and make no sense
    raise InputError(f'{path}: damaged model: {atomic.reason(error)}') from error


def _describe(c: Construction) -> dict:
  return {
    'format': FORMAT,
    'version': VERSION,
    'name': c.name,
    'config': c.config.to_json(),
    'hops': c.hops,
    'margin': c.margin,
    'chain_of_thought': c.chain_of_thought,
    'layout': c.layout.to_json(),
    'hidden': [[units.to_json() for units in layers] for layers in c.hidden],
    'readout': c.readout and c.readout.to_json(),
    'facts': {
      'attributes': c.facts.attributes,
      'closed': c.facts.closed,
      **{name: getattr(c.facts, name) for name in NAMES},
    },
    'versions': {name: metadata.version(name) for name in ('jax', 'flax', 'orbax-checkpoint')},
  }


def _assemble(fields: dict, arrays: dict) -> Construction:
  names = {name: fields['facts'][name] and tuple(fields['facts'][name]) for name in NAMES}
  facts = Facts(
    arrays['answers'], fields['facts']['attributes'], fields['facts']['closed'], **names
  )
  layout = Layout.from_json(fields['layout'])
  return Construction(
    fields['name'],
    Config.from_json(fields['config']),
    arrays['params'],
    layout,
    facts,
    fields['hops'],
    hidden=tuple(tuple(map(Layout.from_json, layers)) for layers in fields['hidden']),
    margin=fields['margin'],
    readout=fields['readout'] and readout_from_json(fields['readout'], layout, facts),
    chain_of_thought=fields['chain_of_thought'],
  )
