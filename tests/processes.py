"""Starts binaries in processes of their own, which tests can kill."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start(binary, folder, *arguments):
  """Runs in neighbouring folders share all programs that they compile."""
  environment = {
    **os.environ,
    'PYTHONPATH': str(ROOT),
    'PYTHONWARNINGS': 'error',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  command = [sys.executable, '-m', f'experiments.{binary}', *arguments, f'--workdir={folder}']
  pipe = subprocess.PIPE
  return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def at_work(folder) -> list[str]:
  """The command lines of all processes that mention `folder`."""
  lines = []
  for path in Path('/proc').glob('[0-9]*/cmdline'):
    with contextlib.suppress(OSError):  # it has ended
      lines.append(path.read_bytes().replace(b'\0', b' ').decode(errors='replace'))
  return [line for line in lines if str(folder) in line]
