"""A construction on disk: parameters and facts as an Orbax checkpoint, the rest in config.json beside it.

Written to one side and moved into place whole; read back to the same bits or refused in one line.
"""

import json
import os
import shutil
import tempfile
import zlib
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from geomem import codes
from geomem.construction import Construction, Readout
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.layout import Layout
from geomem.model import Config

FORMAT, VERSION = 'geomem model', 1
NAMES = ('subject_names', 'relation_names', 'attribute_names')


def save(path: str | os.PathLike, construction: Construction) -> None:
  """Write `construction` to the folder `path`, replacing a model that is there, and nothing else."""
  path = Path(path)
  if path.exists() and any(path.iterdir()) and not is_model(path):
    raise InputError(f'{path} exists and is not a geomem model; choose another --workdir')
  arrays = {'params': construction.params, 'answers': construction.facts.answers_RxN}
  path.parent.mkdir(parents=True, exist_ok=True)
  aside = Path(tempfile.mkdtemp(prefix=f'.{path.name}-', dir=path.parent))
  try:
    with ocp.CheckpointManager(aside / 'arrays') as manager:
      manager.save(0, args=ocp.args.StandardSave(arrays))
    (aside / 'config.json').write_text(json.dumps(_describe(construction, arrays), indent=1))
    if path.exists():
      shutil.rmtree(path)
    aside.rename(path)
  finally:
    shutil.rmtree(aside, ignore_errors=True)


def is_model(path: str | os.PathLike) -> bool:
  """Whether the folder holds something that `save` wrote."""
  try:
    return json.loads((Path(path) / 'config.json').read_text())['format'] == FORMAT
  except (OSError, ValueError, KeyError, TypeError):
    return False


def load(path: str | os.PathLike) -> Construction:
  """The construction in the folder `path`, its parameters bit for bit."""
  path = Path(path)
  if not path.is_dir():
    raise InputError(f'{path}: no model there; build one with python -m experiments.construct')
  if not is_model(path):
    raise InputError(f'{path}: not a geomem model (no config.json that says so)')
  fields = json.loads((path / 'config.json').read_text())
  if fields.get('version') != VERSION:
    raise InputError(f'{path}: version {fields.get("version")} of the format; this code reads {VERSION}')
  try:
    arrays = _restore(path / 'arrays', fields['arrays'])
    return _assemble(fields, arrays)
  except InputError as error:
    raise InputError(f'{path}: damaged model: {error}') from error
  except Exception as error:  # Orbax and TensorStore raise many kinds for a file that is not whole.
    reason = (str(error).splitlines() or [''])[0][:120]
    raise InputError(f'{path}: damaged model: {type(error).__name__}: {reason}') from error


def _restore(path: Path, described: dict):
  """The arrays as `described` (name → shape, dtype, crc32), as NumPy; refuses any other bits."""
  if not path.is_dir():
    raise InputError('its arrays are missing')
  tree = {}
  for name, (shape, dtype, _) in described.items():
    *parents, leaf = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = np.empty(shape, dtype)
  with ocp.CheckpointManager(path) as manager:
    arrays = manager.restore(0, args=ocp.args.StandardRestore(tree))
  for name, array in _named(arrays).items():
    if zlib.crc32(np.ascontiguousarray(array)) != described[name][2]:
      raise InputError(f'{name} is not what was saved')
  return arrays


def _named(arrays) -> dict[str, np.ndarray]:
  leaves = jax.tree_util.tree_leaves_with_path(arrays)
  return {'/'.join(key.key for key in path): np.asarray(array) for path, array in leaves}


def _describe(c: Construction, arrays) -> dict:
  readout = None
  if isinstance(c.readout, Readout):
    at = c.readout.at
    readout = {'at': [at.start, at.stop], 'code': codes.to_json(c.readout.code)}
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
    'readout': readout,
    'facts': {
      'attributes': c.facts.attributes,
      'closed': c.facts.closed,
      **{name: getattr(c.facts, name) for name in NAMES},
    },
    'arrays': {
      name: [array.shape, str(array.dtype), zlib.crc32(np.ascontiguousarray(array))]
      for name, array in _named(arrays).items()
    },
    'versions': {name: metadata.version(name) for name in ('jax', 'flax', 'orbax-checkpoint')},
  }


def _assemble(fields: dict, arrays: dict) -> Construction:
  names = {name: fields['facts'][name] and tuple(fields['facts'][name]) for name in NAMES}
  facts = Facts(
    arrays['answers'], fields['facts']['attributes'], fields['facts']['closed'], **names
  )
  readout = fields['readout']
  return Construction(
    fields['name'],
    Config.from_json(fields['config']),
    arrays['params'],
    Layout.from_json(fields['layout']),
    facts,
    fields['hops'],
    hidden=tuple(tuple(map(Layout.from_json, layers)) for layers in fields['hidden']),
    margin=fields['margin'],
    readout=readout and Readout(slice(*readout['at']), codes.from_json(readout['code'])),
    chain_of_thought=fields['chain_of_thought'],
  )
