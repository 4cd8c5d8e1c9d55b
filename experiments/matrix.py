"""Run the tests with the oldest and the newest JAX that setup.cfg allows, each in its own environment.

  python -m experiments.matrix
  python -m experiments.matrix tests/test_model.py tests/test_train.py
  python -m experiments.matrix --newest=python3.13

Arguments are the tests to run (default: all). The oldest JAX is the first version that setup.cfg names, the newest is
the latest that the given Python can install; all other packages are the newest that go with it. Environments are kept in
build/matrix. How many tests passed, with which versions, goes to docs/results/matrix.json and from there into the
README's table. Fails if a test does.
"""

import configparser
import dataclasses
import json
import shlex
import shutil
import subprocess
import time
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Annotated

import pandas as pd

from experiments import pages
from experiments.harness import cli, machine, records
from experiments.harness.records import Records
from geomem.errors import InputError

LIBRARIES = 'jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy'
ASK = f"""
import importlib.metadata, json, platform
versions = {{name: importlib.metadata.version(name) for name in {LIBRARIES}}}
print(json.dumps({{'python': platform.python_version(), **versions}}))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  oldest: Annotated[str, 'The Python for the oldest JAX.'] = 'python3'
  newest: Annotated[str, 'The Python for the newest JAX.'] = 'python3'
  arguments: tuple[str, ...] = ()


def first_allowed(package: str, setup: Path = pages.ROOT / 'setup.cfg') -> str:
  """The requirement that allows only the oldest version in setup.cfg."""
  parser = configparser.ConfigParser()
  parser.read(setup, encoding='utf-8')
  for line in parser['options']['install_requires'].split():
    name, _, version = line.partition('>=')
    if name == package and version:
      return f'{package}=={version}'
  raise InputError(f'{setup}: it names no oldest version of {package}')


def environment(folder: Path, python: str, *requirements: str) -> str:
  """Make a new environment with this checkout and its test requirements; returns its Python."""
  if shutil.which(python) is None:
    raise InputError(f'{python}: no such Python on this machine')
  own, needed = str(folder / 'bin/python'), ['-e', f'{pages.ROOT}[test]', *requirements]
  if uv := shutil.which('uv'):
    subprocess.run([uv, 'venv', '--quiet', '--clear', '--python', python, folder], check=True)
    install = [uv, 'pip', 'install', '--quiet', '--python', own]
  else:
    subprocess.run([python, '-m', 'venv', '--clear', folder], check=True)
    install = [own, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
  if subprocess.run([*install, *needed]).returncode:
    raise InputError(
      f'{folder}: {" ".join(requirements)} cannot be installed, for the reason above'
    )
  return own


def tested(python: str, tests: tuple[str, ...], report: Path) -> dict:
  """Run the tests: how many passed, with which versions. pytest's own report is left at `report`."""
  report.unlink(missing_ok=True)
  begin = time.monotonic()
  command = [python, '-m', 'pytest', f'--junit-xml={report}', *tests]
  status = subprocess.run(command, cwd=pages.ROOT).returncode
  seconds = time.monotonic() - begin
  if status not in (0, 1):  # neither that all passed nor that some failed
    raise InputError(f'{" ".join(tests)}: pytest could not run them, for the reason above')
  (suite,) = xml.parse(report).getroot()
  count = {key: int(suite.attrib[key]) for key in ('tests', 'failures', 'errors', 'skipped')}
  failed = count['failures'] + count['errors']
  asked = subprocess.run([python, '-c', ASK], capture_output=True, text=True, check=True)
  return json.loads(asked.stdout) | {
    'ran': ' '.join(tests) or 'all tests',
    'passed': count['tests'] - failed - count['skipped'],
    'failed': failed,
    'skipped': count['skipped'],
    'seconds': seconds,
  }


def main(options: Options):
  folder, rows = cli.writable(pages.ROOT / 'build/matrix'), []
  for name, python, requirement in (
    ('oldest', options.oldest, first_allowed('jax')),
    ('newest', options.newest, 'jax'),
  ):
    own = environment(folder / name, python, requirement)
    rows.append({'name': name, **tested(own, options.arguments, folder / f'{name}.xml')})
  given = [f'--oldest={options.oldest}', f'--newest={Path(options.newest).name}']
  command = shlex.join(['python', '-m', 'experiments.matrix', *given, *options.arguments])
  about = {'command': command, 'device': machine.device(), 'versions': machine.versions()}
  records.write(pages.RESULTS / pages.MATRIX, Records(about, pd.DataFrame(rows)), digits=6)
  pages.splice(pages.README, 'tested', pages.tested())
  print(pages.tested())
  if failed := sum(row['failed'] for row in rows):
    raise SystemExit(f'FAILED: {failed} tests')


if __name__ == '__main__':
  cli.run(main, Options)
