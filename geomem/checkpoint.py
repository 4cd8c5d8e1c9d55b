"""A construction on disk: parameters and facts as an Orbax checkpoint, the rest in config.json beside it.

Written to one side and moved into place whole; read back to the same bits or refused in one line.
"""

import errno
import hashlib
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

from geomem.config import Config
from geomem.construction import Construction, readout_from_json
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.layout import Layout

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
  path = Path(path)
  check_free(path)
  arrays = {'params': construction.params, 'answers': construction.facts.answers_RxN}
  path.parent.mkdir(parents=True, exist_ok=True)
  need = sum(array.nbytes for array in jax.tree.leaves(arrays))
  if need > (free := shutil.disk_usage(path.parent).free):
    raise InputError(f'{path}: {need:,} bytes do not fit on a disk with {free:,} free')
  place = {'dir': path.parent.absolute(), 'prefix': f'.{path.name}-'}
  with tempfile.TemporaryDirectory(**place, ignore_cleanup_errors=True) as aside:
    new, old = Path(aside, 'new'), Path(aside, 'old')
    try:
      with ocp.CheckpointManager(new / 'arrays') as manager:
        manager.save(0, args=ocp.args.StandardSave(arrays))
    except Exception as error:  # TensorStore raises a ValueError when it cannot write
      raise OSError(errno.EIO, f'cannot be saved: {_reason(error)}', str(path)) from error
    files = sorted(file for file in (new / 'arrays').rglob('*') if file.is_file())
    fields = {
      **_describe(construction),
      'arrays': {name: [array.shape, str(array.dtype)] for name, array in _named(arrays).items()},
      'files': {str(file.relative_to(new)): _digest(file) for file in files},
    }
    (new / 'config.json').write_text(json.dumps({**fields, 'crc32': _checksum(fields)}, indent=1))
    if path.exists():
      path.rename(old)
    try:
      new.rename(path)
    except BaseException:
      if old.exists():
        old.rename(path)
      raise


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
    raise InputError(
      f'{path}: version {fields.get("version")} of the format; this code reads {VERSION}'
    )
  try:
    if fields.pop('crc32') != _checksum(fields):
      raise InputError('config.json is not what was saved')
    for name, digest in fields['files'].items():  # before Orbax, which is not brief about damage
      if not (path / name).is_file() or _digest(path / name) != digest:
        raise InputError(f'{name} is missing, or not what was saved')
    arrays = _restore(path / 'arrays', fields['arrays'])
    return _assemble(fields, arrays)
  except InputError as error:
    raise InputError(f'{path}: damaged model: {error}') from error
  except Exception as error:  # Orbax and TensorStore raise many kinds for a file that is not whole.
    raise InputError(f'{path}: damaged model: {_reason(error)}') from error


def _reason(error: Exception) -> str:
  """The end of the first line, which says most."""
  return f'{type(error).__name__}: {(str(error).splitlines() or [""])[0][-120:]}'


def _restore(path: Path, described: dict):
  """The arrays as `described` (name → shape, dtype), as NumPy."""
  tree = {}
  for name, (shape, dtype) in described.items():
    *parents, leaf = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = np.empty(shape, dtype)
  with ocp.CheckpointManager(path.absolute()) as manager:
    return manager.restore(0, args=ocp.args.StandardRestore(tree))


def _digest(path: Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _checksum(fields: dict) -> int:
  return zlib.crc32(json.dumps(fields, sort_keys=True).encode())


def _named(arrays) -> dict[str, np.ndarray]:
  leaves = jax.tree_util.tree_leaves_with_path(arrays)
  return {'/'.join(key.key for key in path): np.asarray(array) for path, array in leaves}


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
