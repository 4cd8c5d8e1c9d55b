"""Memory-mapped files, checked before use."""

import mmap
import os
from collections.abc import Callable
from typing import Any

from geomem.errors import InputError


def opened(path: str | os.PathLike, kind: str, check: Callable) -> tuple[mmap.mmap, Any]:
  """The bytes of a file, which are read only when used, and the result of `check` on them."""
  try:
    with open(path, 'rb') as file:
      data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  except ValueError as error:
    raise InputError(f'{path}: not a {kind} file: it is empty') from error
  except OSError as error:
    raise InputError(f'{path}: cannot be read: {error.strerror}') from error
  try:
    return data, check(data)
  except InputError as error:
    raise InputError(f'{path}: not a valid {kind} file: {error}') from error
