"""A run that survives being killed: its folder is locked, its state saved now and then, and restored.

A workdir holds config.json (the run's description), checkpoints/NUMBER (the newest two) and
metrics.jsonl. If killed at any moment and started again, a run that is a function of its state ends in
the same bits (on a GPU, which may sum in a different order every time, in the same up to rounding).

If there are several processes, each makes the same calls, and only the first touches the folder.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TextIO

from flax.traverse_util import flatten_dict

from geomem import hosts
from geomem.errors import InputError
from geomem.saved import atomic

MAX_CHECKPOINTS = 2


def lock(folder: str | os.PathLike) -> TextIO:
  """Lock a run's folder until the returned file is closed; refused if another process has it locked."""
  file = open(Path(folder, '.lock'), 'w')  # noqa: SIM115 (held as long as the run)
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    file.close()
    raise InputError(
      f'{folder}: another process is at work there; wait, or choose another folder'
    ) from error
  return file


class Run:
  """A run that has `folder` to itself. `description` says what it is; another run's folder is refused."""

  def __init__(
    self, folder: str | os.PathLike, description: dict, warn: Callable[[str], None] = print
  ) -> None:
    self.folder, self.warn = Path(folder), warn
    self._lock: TextIO | None = None
    self._open(description)

  @hosts.on_first_process
  def _open(self, description: dict):
    self.folder.mkdir(parents=True, exist_ok=True)
    self._lock = lock(self.folder)
    try:
      self._check(json.loads(json.dumps(description)))
    except BaseException:
      self.close()
      raise

  def _check(self, description: dict):
    path = self.folder / 'config.json'
    if not path.exists():
      aside = path.with_suffix('.new')
      aside.write_text(json.dumps(description, indent=1) + '\n')
      aside.replace(path)
      return
    try:
      known = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
      raise InputError(f'{path}: damaged; remove the folder, or choose another') from error
    known, description = flatten_dict(known, sep='/'), flatten_dict(description, sep='/')
    for name in sorted(known.keys() | description.keys()):
      if known.get(name) != description.get(name):
        raise InputError(
          f'{self.folder} holds another run: its {name} is {known.get(name)!r}, not '
          f'{description.get(name)!r}; name another workdir, or remove this one'
        )

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def close(self) -> None:
    if self._lock:
      self._lock.close()

  @hosts.on_first_process
  def restore(self) -> tuple[int, dict] | None:
    """The newest intact checkpoint's number and arrays; damaged ones are reported and set aside.

    Refuses to start over if there are only damaged ones; what cannot be read just now stays as it is.
    """
    for path in reversed(self._checkpoints()):
      try:
        fields, arrays = atomic.read(path)
      except atomic.Damaged as error:
        aside = path
        while aside.exists():
          aside = aside.with_name(f'{aside.name}.damaged')
        path.rename(aside)
        self.warn(f'{path}: damaged checkpoint, set aside as {aside.name}: {error}')
        continue
      self._truncate_metrics(fields['metrics_bytes'])
      return int(path.name), arrays
    folder = self.folder / 'checkpoints'
    if any(folder.glob('*.damaged')):
      raise InputError(
        f'{folder}: every checkpoint is damaged; put back a whole one, or remove the folder to '
        'begin anew'
      )
    self._truncate_metrics(0)
    return None

  @hosts.on_first_process
  def save(self, number: int, arrays: dict) -> None:
    """Save the state, and remove all but the newest few checkpoints."""
    metrics, size = self.folder / 'metrics.jsonl', 0
    if metrics.exists():
      atomic.flush(metrics)
      size = metrics.stat().st_size
    atomic.write(self.folder / 'checkpoints' / f'{number:09d}', {'metrics_bytes': size}, arrays)
    for path in self._checkpoints()[:-MAX_CHECKPOINTS]:
      shutil.rmtree(path)

  @hosts.on_first_process
  def log(self, record: dict) -> None:
    """Append a line to metrics.jsonl. Lines after a restored checkpoint are cut and written again."""
    with open(self.folder / 'metrics.jsonl', 'a') as file:
      file.write(json.dumps(record, allow_nan=False) + '\n')

  def _checkpoints(self) -> list[Path]:
    folder = self.folder / 'checkpoints'
    if not folder.is_dir():
      return []
    for path in folder.glob('.*'):  # a write that was killed
      shutil.rmtree(path, ignore_errors=True)
    return sorted(path for path in folder.iterdir() if path.name.isdigit())

  def _truncate_metrics(self, size: int):
    """Truncate metrics.jsonl to what it held at the checkpoint.

    Missing bytes are reported, and the run goes on after the last whole line: a lost log is no reason
    to lose the training.
    """
    metrics = self.folder / 'metrics.jsonl'
    held = metrics.read_bytes()[:size] if metrics.exists() else b''
    kept = held.rfind(b'\n') + 1
    if kept < size:
      self.warn(
        f'{metrics}: {size - kept:,} bytes are lost; the run goes on after the last whole line'
      )
    if metrics.exists():
      os.truncate(metrics, kept)
