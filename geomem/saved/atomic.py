"""Folders that are written completely or not at all, and read back to the same bits or refused.

Such a folder holds an Orbax checkpoint of a nested dict of arrays, and a config.json with fields of
any kind, the arrays' shapes, a SHA-256 of every file and a checksum of config.json itself. The digests are ours: by them a
damaged checkpoint is recognised before it is used, and `runs` falls back to the one before.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from geomem.errors import InputError

GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
REPLACED = '.replaced'


class Damaged(InputError):
  """The content is not what was written. Errors of the machine that reads it are not damage."""


def write(path: str | os.PathLike, fields: dict, arrays: dict) -> None:
  """Replace the folder `path`, as a whole, by one that holds these fields and arrays."""
  path = Path(path)
  with replacing(path, sum(array.nbytes for array in jax.tree.leaves(arrays))) as new:
    try:
      (new / 'arrays').mkdir()
      with _manager(new / 'arrays') as manager:
        manager.save(0, args=ocp.args.StandardSave(arrays))
    except Exception as error:  # TensorStore raises a ValueError when it cannot write
      raise OSError(errno.EIO, f'cannot be saved: {reason(error)}', str(path)) from error
    files = sorted(file for file in (new / 'arrays').rglob('*') if file.is_file())
    named = flatten_dict(arrays, sep='/')
    fields = {
      **fields,
      'arrays': {name: [array.shape, str(array.dtype)] for name, array in named.items()},
      'files': {str(file.relative_to(new)): digest(file) for file in files},
    }
    (new / 'config.json').write_text(json.dumps({**fields, 'crc32': _checksum(fields)}, indent=1))


@contextlib.contextmanager
def replacing(path: Path, size: int) -> Iterator[Path]:
  """A new folder, for `size` bytes, that replaces `path` once it is filled.

  If killed at any moment, this leaves the old folder or the new one where `locate` looks.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  if size > (free := shutil.disk_usage(path.parent).free):
    raise InputError(f'{path}: {size:,} bytes do not fit on a disk with {free:,} free')
  with tempfile.TemporaryDirectory(
    dir=path.parent.absolute(), prefix=f'.{path.name}-', ignore_cleanup_errors=True
  ) as aside:
    new, old = Path(aside, 'new'), _replaced(path)
    new.mkdir()
    yield new
    flush(new, *new.rglob('*'))
    if path.exists():
      if old.exists():
        old.rename(Path(aside, 'older'))
      path.rename(old)
    try:
      new.rename(path)
    except BaseException:
      if old.exists():
        old.rename(path)
      raise
    flush(path.parent)
    if old.exists():
      old.rename(Path(aside, 'old'))


def locate(path: str | os.PathLike) -> Path:
  """Where to read the folder `path`: next to it, if a `write` was killed while replacing it."""
  path = Path(path)
  return old if not path.exists() and (old := _replaced(path)).exists() else path


def names(folder: str | os.PathLike) -> list[str]:
  """The names in the folder, including those that only `locate` can find."""
  entries = {entry.name for entry in Path(folder).iterdir()}
  old = {name[1:].removesuffix(REPLACED) for name in entries if _is_replaced(name)}
  return sorted(old | {name for name in entries if not _is_replaced(name)})


def read(path: str | os.PathLike) -> tuple[dict, dict]:
  """The fields, and the arrays as NumPy; raises `Damaged` if any bit differs from what was written."""
  path = locate(path)
  try:
    fields = json.loads((path / 'config.json').read_text())
    crc32, digests, described = fields.pop('crc32'), fields['files'], fields['arrays']
  except (*GONE, ValueError, LookupError, TypeError, AttributeError) as error:
    raise Damaged(reason(error)) from error
  if crc32 != _checksum(fields):
    raise Damaged('config.json is not what was saved')
  for name, written in digests.items():  # before Orbax, whose errors about damage are long
    if digest(path / name) != written:
      raise Damaged(f'{name} is missing, or not what was saved')
  return fields, _restore(path / 'arrays', described)


def reason(error: Exception) -> str:
  """The error's type and the end of its first line, which says most."""
  return f'{type(error).__name__}: {(str(error).splitlines() or [""])[0][-120:]}'


def _restore(path: Path, described: dict):
  """The arrays as `described` (name → shape, dtype)."""
  empty = {name: np.empty(shape, dtype) for name, (shape, dtype) in described.items()}
  tree = unflatten_dict(empty, sep='/')
  with _manager(path.absolute()) as manager:
    return manager.restore(0, args=ocp.args.StandardRestore(tree))


def _manager(path: Path) -> ocp.CheckpointManager:
  """An Orbax manager for this process alone; by default Orbax would wait for all processes."""
  us = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(us, {us}, f'process_{us}')
  options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=alone)
  return ocp.CheckpointManager(path, options=options)


def _replaced(path: Path) -> Path:
  path = path.absolute()
  return path.parent / f'.{path.name}{REPLACED}'


def _is_replaced(name: str) -> bool:
  return name.startswith('.') and name.endswith(REPLACED)


def flush(*paths: Path) -> None:
  """Sync these files or folders to disk before anything written later."""
  for path in paths:
    descriptor = os.open(path, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def digest(path: Path) -> str | None:
  try:
    with open(path, 'rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()
  except GONE:
    return None


def _checksum(fields: dict) -> int:
  return zlib.crc32(json.dumps(fields, sort_keys=True).encode())
