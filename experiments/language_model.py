"""A real pretrained language model: is there a superposition, and is it used? Claim 8.

  make language-model
  python -m experiments.language_model --model=FOLDER --table=MINE.csv

Expected, from a trial with one seed: attributes explain about 0.1 of the representations of held-out
countries (shuffled facts 0.00), less than the subject's own token (0.3 to 0.4); moving a representation
along one attribute's vector flips that answer in more than half of the cases, and keeps the others in
about as many; whole vectors stop carrying the fact after block 23 of 30. What was found stands in
docs/language_model.md; the bounds of its table were set when that was known. Controls: shuffled facts,
random directions, class means, whole donors, the token alone, linear relational embeddings.
The laptop preset takes 2.1 GB of memory; accelerator has more templates, seeds and layers.
"""

import dataclasses
import functools
import hashlib
import json
import time
import zlib
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from absl import flags

from experiments import claims
from experiments.figures import language_model as language_model_figure
from experiments.harness import cli, fitting, storage
from experiments.harness.findings import Finding
from experiments.language import linearized, probing, prompt_set, swapping
from geomem.errors import InputError
from geomem.pretrained import load
from geomem.pretrained.runner import Runner

FLAGS = flags.FLAGS
fitting.define('language_model', claims.minutes('language_model'), first=0)
cli.define(
  table='Your own CSV of subject,relation,attribute instead; several rows for several answers.'
)
_MODEL = flags.DEFINE_string(
  'model', None, 'Folder of safetensors, or GGUF file (default: the packaged SmolLM2-135M).'
)

DATA = Path(__file__).parent / 'data'
KEYS = ['table', 'measurement', 'features', 'control', 'layer']
COLUMNS = (*KEYS, 'records', 'value', 'least', 'most')


@dataclasses.dataclass(frozen=True)
class Setting:
  """`layers`: how many are probed. `swap_layers` and `jacobian_layers`: where swaps are tried and Jacobians
  taken, as shares of the depth. `alphas`: scales of the steering vectors that are reported;
  `alpha_choices`: chosen from. `donor_pairs` and `examples`: subjects of a relation.
  """

  max_subjects: int | None
  templates: int
  seeds: int
  layers: int
  swap_layers: tuple[float, ...]
  jacobian_layers: tuple[float, ...]
  alphas: tuple[float, ...]
  alpha_choices: tuple[float, ...]
  shuffles: int
  donor_pairs: int
  examples: int
  betas: tuple[float, ...] = (1.0, 1.5, 2.0, 2.5, 3.0)
  ranks: tuple[int, ...] = (10, 30, 100, 300)
  tables: tuple[str, ...] = ('countries', 'elements')
  model: str | None = None
  checksum: int | None = None
  table_path: str | None = None

  def at_depth(self, depth: int) -> 'Setting':
    """With the numbers of layers, for a model of so many blocks."""
    every = sorted({round(share) for share in np.linspace(0, depth, min(self.layers, depth + 1))})
    number = lambda shares: tuple(sorted({min(depth - 1, round(s * depth)) for s in shares}))
    swap_layers, jacobian_layers = number(self.swap_layers), number(self.jacobian_layers)
    return dataclasses.replace(
      self, layers=every, swap_layers=swap_layers, jacobian_layers=jacobian_layers
    )


PRESETS = {
  'smoke': Setting(20, 1, 1, 4, (0.6,), (0.95,), (2.0,), (2.0,), 1, 2, 1, (1.0,), (30,), ('countries',)),
  'laptop': Setting(None, 2, 2, 16, (0.2, 0.6), (0.5,), (0.5, 1.0, 2.0, 3.0, 4.0, 6.0), (1.0, 2.0, 4.0), 3, 12, 4),
  'accelerator': Setting(None, 3, 5, 99, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0), (0.5, 1.0, 2.0, 3.0, 4.0, 6.0), 20, 64, 8),
}  # fmt: skip


loaded = functools.lru_cache(maxsize=1)(load.load)


def measure(fitter, setting: Setting, seeds) -> list[dict]:
  """Records: all of the first table, what is linear of the others; swaps take the templates in turn."""
  tables = _tables(setting)
  progress = cli.Progress('running', 'prompts')
  runner = Runner(loaded(setting.model), progress)
  here = setting.at_depth(runner.model.config.depth)

  def once(function, *arguments):
    """What the function returns, or returned before the run was interrupted. Records are kept as bytes."""

    def work():
      start = time.monotonic()
      found = function(*arguments)
      seconds, name = time.monotonic() - start, f'{function.__module__}.{function.__name__}'
      fitter.run.log({'stage': name, 'seconds': seconds})
      arrays = isinstance(found, dict)
      return found if arrays else np.frombuffer(json.dumps(found).encode(), np.uint8)

    found = fitter.once(work)
    return found if isinstance(found, dict) else json.loads(bytes(found))

  records = []
  for number, table in enumerate(tables):
    templates = 1 if number else min(setting.templates, len(table.templates))
    for template in range(templates):
      progress.label = f'{table.name}, template {template}'
      layers = sorted({*here.swap_layers, here.jacobian_layers[0]})
      prompts = prompt_set.PromptSet(runner, table, template, layers)
      prompts.observed = once(prompts.observe)
      records += once(probing.knowledge, prompts)
      for seed in seeds:
        records += once(probing.r2, prompts, here.layers, seed, setting.shuffles)
        records += once(probing.readout, prompts, here.layers, seed)
        if number == 0 and (seed - seeds[0]) % templates == template:
          records += once(swapping.measure, prompts, here, seed)
          records += once(swapping.depth, prompts, here, seed)
          if seed == seeds[0]:
            records += once(linearized.measure, prompts, here, seed)
  progress.clear()
  return records


def _tables(setting: Setting) -> list[prompt_set.Table]:
  if setting.table_path:
    return [prompt_set.read('own', setting.table_path, setting.max_subjects)]
  return [prompt_set.read(n, DATA / f'{n}.csv', setting.max_subjects) for n in setting.tables]


def summary(records: list[dict]) -> list[dict]:
  """Means and ranges over seeds, templates and relations; some of the layers, and of swaps the chosen ones."""
  data = pd.DataFrame(records, dtype=object)
  depth = data['layer'].fillna(0).max()
  swaps = data['measurement'].isin(['flipped', 'kept'])
  chosen = (data['chosen'] == True) & data['relation'].isna()  # noqa: E712 (it may be null)
  shown = data['layer'].isna() | data['layer'].isin([round(x * depth) for x in (0, 0.3, 0.6, 1)])
  others = ~data['measurement'].isin(['chosen', 'example', 'kept one']) & shown
  rows = data[chosen.where(swaps, others)].copy()
  rows['layer'] = rows['layer'].mask(swaps)
  rows['features'] = rows['features'].fillna(rows['relation'])
  values = rows.groupby(KEYS, dropna=False, sort=False)['value']
  of = lambda function: lambda group: function(group.to_numpy(float))  # NaN if one of the values is
  table = values.agg(records='size', value=of(np.mean), least=of(np.min), most=of(np.max))
  table = table.reset_index()
  table[KEYS] = table[KEYS].astype(object).where(table[KEYS].notna(), None)
  return table.to_dict('records')


def findings(records: list[dict]) -> list[Finding]:
  """Of the first table: what explains a subject six tenths up, and what the chosen swaps do, over all runs."""
  data = pd.DataFrame(records, dtype=object)
  data = data[data['table'] == data['table'].iloc[0]]
  middle = round(0.6 * data['layer'].fillna(0).max())

  def where(**about) -> pd.DataFrame:
    same = lambda name, value: data[name].isna() if value is None else data[name] == value
    return data[np.logical_and.reduce([same(*item) for item in about.items()])]

  def finding(what: str, least: float, controls: dict, **about) -> list[Finding]:
    """The interval is over subjects, averaged over the runs, which share them."""
    mean = lambda rows, name: float(np.mean(rows[name].to_numpy(float)))
    if (rows := where(**about)).empty:
      return []
    beside = {name: where(**about | other) for name, other in controls.items()}
    text = ', '.join(f'{n} {mean(x, "value"):.3g}' for n, x in beside.items() if len(x))
    ends = (mean(rows, name) for name in ('value', 'low', 'high'))
    return [Finding(what, *ends, len(rows), least, None, text)]

  at, text = {'layer': middle, 'control': None}, f'after block {middle}: R² of attributes'
  shuffled, own = {'control': 'shuffled facts'}, {'features': 'own token'}
  r2 = at | {'measurement': 'R2', 'features': 'attributes'}
  gain = at | {'measurement': 'gain', 'features': 'own token + attributes'}
  swaps = {'chosen': True, 'relation': None, 'control': 'superposition'}
  beside = ('shuffled facts', 'random direction', "donor's whole vector")
  others = {name: {'control': name} for name in beside}
  return [
    *finding(text, 0.05, {'shuffled facts': shuffled, 'own token': own}, **r2),
    *finding(f'{text} beyond the own token', 0.01, {}, **gain),
    *finding('swaps that flip the answer', 0.5, others, measurement='flipped', **swaps),
    *finding('other answers kept', 0.9, others, measurement='kept', **swaps),
  ]


def examples(records: list[dict]) -> str:
  """The examples of the first run, a line each: Japan, continent Asia → Africa: now says Africa; others …"""
  found, lines = [r for r in records if r['measurement'] == 'example'], []
  for r in found:
    if (r['seed'], r['template']) != (found[0]['seed'], found[0]['template']):
      continue
    own, before, after = r['relation'], r['before'], r['after']
    others = ', '.join(
      f'{name} {answer}' + (f' (was {before[name]})' if answer != before[name] else '')
      for name, answer in after.items() if name != own
    )  # fmt: skip
    wanted = f'{r["subject"]}, {own} {before[own]} → {r["wanted"]}'
    lines.append(f'{wanted}: now says {after[own]}; {others}')
  return '\n'.join(lines)


def main(argv):
  cli.no_arguments(argv)
  folder = cli.workdir('runs/language_model')
  presets = PRESETS
  if FLAGS.redraw:
    cli.check_redraw('model', 'table')
  elif FLAGS.scale in PRESETS:
    presets = {FLAGS.scale: _chosen(PRESETS[FLAGS.scale])}
  draw = language_model_figure.draw
  fitting.main(argv, 'language_model', presets, measure, draw, COLUMNS, summary, first=0)
  text = examples(storage.read_results(folder))
  storage.write_text(folder / 'examples.txt', text + '\n')
  print(f'examples: {folder / "examples.txt"}\n{text}')


def _chosen(setting: Setting) -> Setting:
  """The preset with the model and table of the flags, which are read once before anything is written."""
  if FLAGS.table is not None:
    prompt_set.read('own', FLAGS.table, setting.max_subjects)
    digest = hashlib.sha256(Path(FLAGS.table).read_bytes()).hexdigest()[:12]
    setting = dataclasses.replace(setting, tables=(digest,), table_path=FLAGS.table)
  if _MODEL.value is None and (reason := load.missing()):
    raise InputError(f'{reason}; or name another with --model')
  params = loaded(_MODEL.value).params  # the checksum refuses to go on with another model
  return dataclasses.replace(setting, model=_MODEL.value, checksum=checksum(params))


def checksum(params: dict) -> int:
  """CRC-32 of all parameters."""
  crc = lambda known, weights: zlib.crc32(np.ascontiguousarray(weights), known)
  return functools.reduce(crc, jax.tree.leaves(params), 0)


if __name__ == '__main__':
  cli.run(main)
