"""Write the tables and figures of the pages from the committed records.

  python -m experiments.results
  python -m experiments.results --take=transfer --workdir=runs/transfer

Run it from the root of the repository. For every experiment of which docs/results holds the records,
docs/results/NAME.json, or NAME_accelerator.json, it draws docs/results/NAME.png and puts the table of its
findings into docs/results.md or docs/language_model.md, after the line that marks its place; what all claims
come to stands in docs/results.md and the README. --take first copies a run's records there.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from absl import flags

from experiments import claims, readme
from experiments.harness import cli, findings, statistics, storage
from geomem.errors import InputError

FLAGS = flags.FLAGS
NAMES = [name for name in claims.EXPERIMENTS if name not in ('construct', 'bounds')]
cli.define(workdir='Where the run to take has written its results.json.')
flags.DEFINE_enum('take', None, NAMES, 'Take the records of a run of this experiment.')

PAGE, RESULTS = Path('docs/results.md'), Path('docs/results')
OWN_PAGES = {'language_model': Path('docs/language_model.md')}
OVERVIEWS = {PAGE: '', readme.README: 'docs/'}
SHORT = 12  # rows of a table; of longer ones what was expected stands first
LARGE = '_accelerator'
SIZES = {
  'subjects': 'N = {}', 'relations': 'R = {}', 'hops': 'k = {}', 'dim': 'd = {}', 'width': 'F = {}',
  'steps': '{} steps', 'batch': 'batch {}', 'memory_steps': '{} steps of the MLP memory',
  'maps': '{} steps of (b)', 'embeddings': '{} steps of (c)',
}  # fmt: skip
MARK = '{}: written by python -m experiments.results'


def taken() -> list[str]:
  """What there are records of: NAME of the laptop's preset, NAME_accelerator of the other."""
  stems = [f'{name}{suffix}' for name in NAMES for suffix in ('', LARGE)]
  return [stem for stem in stems if (RESULTS / f'{stem}.json').exists()]


def section(name: str) -> str:
  """What an experiment is to show, what it found, and with what this was measured."""
  experiment, about = _experiment(name), read_about(name)
  device, jax = about['device'], about['versions']['jax']
  where = f'`{about["command"]}`, {device}, jax {jax}. {sizes(name)}'.strip() + '\n\n'
  found = experiment.module.findings(storage.read_results(RESULTS, f'{name}.json'))
  claimed = [f'> **{c.name}.** {c.says}\n>\n' for c in claims.CLAIMS if c.experiment == name]
  said = (
    ''.join(claimed) + f'> {experiment.terms}\n\n' if claimed else ''
  )  # once, not of each preset
  text = f'<a id="{name}"></a>\n\n{said}{where}' + f'![{name}](results/{name}.png)\n\n'
  expected = [f for f in found if f.holds is not None]
  if len(found) <= SHORT or not expected:
    return text + findings.table(found)
  others = [f for f in found if f.holds is None]
  rest = f'<details><summary>{len(others)} more findings</summary>\n\n{findings.table(others)}\n</details>\n'
  return text + findings.table(expected) + '\n' + rest


def sizes(name: str) -> str:
  """Of what models and runs the records are, as far as their setting says it."""
  setting = read_about(name).get('setting') or {}
  each = [*setting.get('kinds', ()), *setting.get('cases', ())]
  steps = {'steps': max(setting.get('looks', (0,)))} | setting.get('recipe', {})
  asked = [{key: setting[key] for key in SIZES if key not in ('dim', 'width') and key in setting}]
  asked += [*each, {'steps': steps['steps']}]
  asked += [{'subjects': n, 'relations': r} for n, r in setting.get('sizes', ())]
  if not any('subjects' in some for some in asked):  # in the cases of the search
    asked += statistics.where(storage.read_results(RESULTS, f'{name}.json'), kind='threshold')
    asked = [{key: some[key] for key in some if key not in ('dim', 'width')} for some in asked]
  told = []
  for key, words in SIZES.items():
    values = [value for some in asked for value in np.ravel(some.get(key) or [])]
    told += [words.format(', '.join(f'{value:,}' for value in sorted(set(values))))] * bool(values)
  return f'{"; ".join(told)}.' if told else ''


def overview(folder: str = '') -> str:
  """What every claim comes to, for a page from which `folder` leads to the others."""
  rows = ['| claim | what it says | verdict |', '|---|---|---|']
  for claim in claims.CLAIMS:
    if (name := claim.experiment) in taken():
      records = storage.read_results(RESULTS, f'{name}.json')
      word = findings.verdict(claim.own(_experiment(name).module.findings(records)))[1]
      link = f'{folder}{page(name).name}#{name}'
      rows.append(f'| {claim.name} | {claim.says} | [{word}]({link}) |')
  return '\n'.join(rows) + '\n'


def page(name: str) -> Path:
  """Where its table stands."""
  return OWN_PAGES.get(name, PAGE)


def _experiment(name: str) -> claims.Experiment:
  return claims.EXPERIMENTS[name.removesuffix(LARGE)]


def draw(name: str):
  """The figure that the page shows."""
  with tempfile.TemporaryDirectory() as folder:
    drawn = _experiment(name).figure.draw(
      storage.read_results(RESULTS, f'{name}.json'), Path(folder)
    )
    shutil.copyfile(next(path for path in drawn if path.suffix == '.png'), RESULTS / f'{name}.png')


def read_about(name: str) -> dict:
  """What the committed records were measured with."""
  return json.loads((RESULTS / f'{name}.json').read_text(encoding='utf-8'))['about']


def take(name: str, folder: Path):
  """A run's records into docs/results, with the device and the versions."""
  records = storage.read_results(folder)
  about = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
  if about['scale'] == 'smoke':
    raise InputError(
      f'{folder}: a run of --scale=smoke, whose numbers are no evidence; take a larger one'
    )
  stem = name + LARGE * (about['scale'] == 'accelerator')
  about = {key: about[key] for key in ('command', 'device', 'versions', 'setting')}
  storage.write_results(RESULTS, records, f'{stem}.json', about)


def main(argv):
  cli.no_arguments(argv)
  if not PAGE.exists():
    raise InputError(f'no {PAGE} here; run this from the root of the repository')
  if FLAGS.workdir and not FLAGS.take:
    raise InputError('--workdir means nothing without --take')
  if FLAGS.take:
    take(FLAGS.take, Path(FLAGS.workdir or f'runs/{FLAGS.take}'))
  for name in taken():
    draw(name)
    text = page(name).read_text(encoding='utf-8')
    storage.write_text(page(name), readme.splice(text, MARK.format(name), section(name)))
  for path, folder in OVERVIEWS.items():
    text = path.read_text(encoding='utf-8')
    storage.write_text(path, readme.splice(text, MARK.format('overview'), overview(folder)))
  print(', '.join(str(path) for path in (*OVERVIEWS, *OWN_PAGES.values())))


if __name__ == '__main__':
  cli.run(main)
