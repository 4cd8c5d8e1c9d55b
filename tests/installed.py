"""Checks an installed geomem away from its checkout, whose folder is the argument: `make wheel` runs this.

All three packages must be imported from where they are installed, the data of the studies must be there, and a binary
must run. A first construction must be built, verified and asked in less than 20 seconds of CPU time, which a busy
machine does not stretch.
"""

import subprocess
import sys
import time
from pathlib import Path


def first_construction() -> str:
  """Does what a first-time user does, imports and their compilation included, and says how long it took."""
  begin = time.monotonic()
  import constructions
  import geomem

  built = constructions.build('selector', geomem.Facts.bijections(subjects=1000, relations=4))
  report, answer = built.verify(), built.ask('s17 r2')
  seconds, at_work = time.monotonic() - begin, time.process_time()
  assert report.holds(built.margin) and report.queries == 4000 and answer.correct, report
  assert at_work < 20, f'the first verified construction took {at_work:.1f} s of the processor'
  return f'geomem {geomem.__version__}: first verified construction in {seconds:.1f} s, of which {at_work:.1f} at work'


def check_files(checkout: Path) -> None:
  """Checks that files other than Python are installed too, and that nothing comes from the checkout."""
  import constructions
  import experiments
  import geomem

  folders = [Path(package.__file__).parent for package in (geomem, constructions, experiments)]
  for folder in folders:
    assert checkout not in folder.parents or 'site-packages' in folder.parts, (
      f'{folder}: not installed'
    )
  assert all((folder / 'py.typed').exists() for folder in folders[:2])
  for path in [*checkout.glob('experiments/data/*.csv'), *checkout.glob('experiments/web/*.*')]:
    there = folders[2].parent / path.relative_to(checkout)
    assert there.exists(), f'{path} is not in the wheel'


if __name__ == '__main__':
  print(first_construction())
  check_files(Path(sys.argv[1]))
  command = [sys.executable, '-I', '-m', 'experiments.construct', '--list']
  assert 'selector' in subprocess.run(command, capture_output=True, text=True, check=True).stdout
  print('1 passed, 0 failed')
