"""Binaries in processes of their own, to be killed."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start(binary, folder, *arguments):
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'error'}
  command = [sys.executable, '-m', f'experiments.{binary}', *arguments, f'--workdir={folder}']
  pipe = subprocess.PIPE
  return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
