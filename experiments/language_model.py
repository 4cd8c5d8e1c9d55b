"""A real pretrained language model: is there a superposition, and is it used? Claim 8.

  make language-model
  python -m experiments.language_model --model=FOLDER --table=MINE.csv

Expected, from a trial with one seed: attributes explain about 0.1 of the representations of held-out countries (R²;
shuffled facts 0.00), less than the subject's own token (0.3 to 0.4); moving a representation along one attribute's
vector flips that answer in more than half of the cases, and keeps the others in about as many; whole vectors stop
carrying the fact between blocks 22 and 24 of 30. The results are in docs/language_model.md; the bounds of its table
were set after the results were known. Controls: shuffled facts, random directions, class means, whole donor vectors, the
token alone, linear relational embeddings. It takes 2.1 GB of memory; the full preset, which takes eight minutes, has
more templates, seeds, layers and tables, and computes Jacobians.
"""

import dataclasses
import functools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd

from experiments.harness import plotting
from experiments.harness.findings import Claim, Finding
from experiments.harness.statistics import select
from experiments.harness.study import Study
from experiments.language import linearized, probing, prompt_set, swapping
from geomem.pretrained import load
from geomem.pretrained.runner import Runner

DATA = Path(__file__).parent / 'data'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """`layers`: number of layers probed. `swap_layers`, `jacobian_layers`: fractions of the depth at which swaps are tried
  and Jacobians are taken. `alphas`: the scales at which swaps by the superposition are reported; `alpha_choices`:
  those from which one is chosen. `shuffles`: number of shuffles of the facts. For each relation, `donor_pairs` is the
  number of pairs of subjects, and `examples` that of the subjects whose Jacobians are averaged.
  """

  max_subjects: int | None = None
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
  model: Annotated[
    str | None, 'Folder of safetensors, or GGUF file (default: the packaged SmolLM2-135M).'
  ] = None
  table: Annotated[
    str | None,
    'CSV of subject,relation,attribute, to use your own facts; several rows for several answers.',
  ] = None
  model_checksum: int | None = None
  table_checksum: int | None = None


PRESETS = {
  'smoke': Preset(
    max_subjects=20, templates=1, seeds=1, layers=4, swap_layers=(0.6,), jacobian_layers=(0.95,), alphas=(2.0,),
    alpha_choices=(2.0,), shuffles=1, donor_pairs=2, examples=1, betas=(1.0,), ranks=(30,), tables=('countries',),
  ),
  'laptop': Preset(
    templates=1, seeds=1, layers=8, swap_layers=(0.6,), jacobian_layers=(), alphas=(1.0, 2.0, 4.0),
    alpha_choices=(1.0, 2.0, 4.0), shuffles=3, donor_pairs=6, examples=0, tables=('countries',),
  ),
  'full': Preset(
    templates=2, seeds=2, layers=16, swap_layers=(0.2, 0.6), jacobian_layers=(0.5,),
    alphas=(0.5, 1.0, 2.0, 3.0, 4.0, 6.0), alpha_choices=(1.0, 2.0, 4.0), shuffles=3, donor_pairs=12, examples=4,
  ),
}  # fmt: skip
loaded = functools.lru_cache(maxsize=1)(load.load)


def prepare(preset: Preset) -> Preset:
  """Read the model and the table before anything is written; a run can only be resumed with the same two."""
  _tables(preset)
  return dataclasses.replace(
    preset,
    model_checksum=loaded(preset.model).checksum(),
    table_checksum=zlib.crc32(Path(preset.table).read_bytes()) if preset.table else None,
  )


def measure(trainer, preset: Preset, seeds) -> list[dict]:
  """Regressions on all tables; on the first also swaps, which use one template per seed, in turn."""
  runner = Runner(loaded(preset.model))
  depth = runner.model.config.depth
  probed = np.linspace(0, depth, min(preset.layers, depth + 1)).round().astype(int).tolist()
  blocks = lambda fractions: sorted({min(depth - 1, round(x * depth)) for x in fractions})
  swapped, linearized_at = blocks(preset.swap_layers), blocks(preset.jacobian_layers)

  records: list[dict] = []
  recorded = trainer.recorded
  for number, table in enumerate(_tables(preset)):
    templates = 1 if number else min(preset.templates, len(table.templates))
    for template in range(templates):
      label = f'{table.name}, template {template}'
      runner.on_progress = functools.partial(trainer.on_progress, label=label)
      prompts = prompt_set.PromptSet(runner, table, template, sorted({*swapped, *linearized_at}))
      prompts.observed = trainer.cached(functools.partial(trainer.timed, prompts.observe))
      records += recorded(probing.knowledge, prompts)
      for seed in seeds:
        records += recorded(probing.r2, prompts, probed, seed, preset.shuffles)
        records += recorded(probing.probe, prompts, probed, seed)
        if number == 0 and (seed - seeds[0]) % templates == template:
          records += recorded(swapping.measure, prompts, preset, swapped, seed)
          records += recorded(swapping.depth, prompts, probed, preset.donor_pairs, seed)
          if seed == seeds[0] and linearized_at:
            records += recorded(linearized.measure, prompts, preset, linearized_at, seed)
  return records


def _tables(preset: Preset) -> list[prompt_set.Table]:
  packaged = {name: DATA / f'{name}.csv' for name in preset.tables}
  paths = {'own': preset.table} if preset.table else packaged
  return [prompt_set.read(name, path, preset.max_subjects) for name, path in paths.items()]


def _first(table: pd.DataFrame) -> pd.DataFrame:
  """The records of the first table of facts."""
  return table[table['table'] == table['table'].iloc[0]]


def expect(table: pd.DataFrame) -> Iterator[Finding]:
  """What explains a subject of the first table after six tenths of the blocks, and the effect of the chosen swaps."""
  own = _first(table)
  probed = np.sort(select(own, measurement='R2')['layer'].unique()).astype(int)
  middle = probed[np.argmin(np.abs(probed - 0.6 * probed[-1]))] if len(probed) else 0

  def finding(what: str, at_least: float, *controls: tuple[str, str], **about) -> Iterator[Finding]:
    """The mean over the runs, and of their intervals over subjects. A control differs from it in one column."""
    mean = lambda rows: rows[['value', 'low', 'high']].mean(skipna=False).tolist()
    if len(rows := select(own, **about)):
      control_rows = {name: select(own, **about | {column: name}) for column, name in controls}
      means = {name: mean(some)[0] for name, some in control_rows.items() if len(some)}
      value, low, high = mean(rows)
      yield Finding(what, value, low, high, len(rows), at_least, controls=means)

  text, at = f'after block {middle}: R² of attributes', {'layer': middle, 'control': None}
  controls = ('control', 'shuffled facts'), ('features', 'own token')
  yield from finding(text, 0.05, *controls, measurement='R2', features='attributes', **at)
  gain = {'measurement': 'gain', 'features': 'own token + attributes'}
  yield from finding(f'{text}, gain over the own token', 0.01, **gain, **at)
  swaps = {'chosen': True, 'relation': None, 'control': 'superposition'}
  others = [('control', name) for name in (*swapping.CONTROLS, swapping.DONOR)]
  yield from finding('answers flipped by swaps', 0.5, *others, measurement='flipped', **swaps)
  yield from finding('other answers kept by swaps', 0.9, *others, measurement='kept', **swaps)


def examples(table: pd.DataFrame) -> str:
  """The sentences about the swaps of the first run, one per line."""
  found = select(table, measurement='example')
  return '\n'.join(['examples:', *found.merge(found[['seed', 'template']].head(1)).get('text', ())])


FEATURES = ('own token + attributes', 'own token', 'attribute embeddings', 'attributes')


def plot(table: pd.DataFrame):
  """Panels of the first table; bands and bars are means of the runs' bootstrap intervals over subjects."""
  data = _first(table)
  of = lambda *names: data[data['measurement'].isin(names)]
  drawn = {
    _r2: ('R2',),
    _swaps: ('flipped', 'kept'),
    _depth: ('donor answer',),
    _faithful: ('faithful',),
  }
  found = {draw: rows for draw, names in drawn.items() if len(rows := of(*names))}
  figure, panels = plotting.new(3.1 * len(found), 3.1, 1, len(found), squeeze=False)
  for ax, (draw, rows) in zip(panels[0], found.items(), strict=True):
    draw(ax, rows)
  return figure


def _line(ax, data: pd.DataFrame, label: str, color: str, **options):
  """The mean over templates and seeds at each layer, with a band from the mean of their intervals."""
  mean = data.groupby('layer')[['value', 'low', 'high']].mean()
  ax.plot(mean.index, mean['value'], color=color, label=label, **options)
  ax.fill_between(mean.index, mean['low'], mean['high'], color=color, alpha=0.15, linewidth=0)


def _r2(ax, data: pd.DataFrame):
  for i, name in enumerate(FEATURES):
    _line(ax, select(data, features=name, control=None), name, plotting.cycle(i)[0])
  shuffled = select(data, features='attributes', control='shuffled facts')
  _line(ax, shuffled, 'attributes, shuffled', plotting.GREY, linestyle=':')
  ax.set(xlabel='after block', ylabel='$R^2$ on held-out subjects', title='what explains a subject')
  plotting.legend(ax)


def _swaps(ax, data: pd.DataFrame):
  """A curve for every method over its alphas or ranks; the one chosen beforehand is filled."""
  data = select(data, relation=None).fillna({'alpha': 0, 'rank': 0})
  for i, (method, own) in enumerate(data.groupby('control', sort=False)):
    color, marker = plotting.cycle(i)
    curve = own.groupby(['alpha', 'rank', 'measurement'])['value'].mean().unstack()
    chosen = select(own, chosen=True).groupby('measurement')['value'].mean()
    ax.plot(curve['flipped'], curve['kept'], marker, linestyle='-', color=color, markersize=4,
            markerfacecolor='white', linewidth=0.8)  # fmt: skip
    ax.plot(chosen['flipped'], chosen['kept'], marker, color=color, label=method)
  ax.set(xlabel='answers flipped', ylabel='other answers kept', ylim=(-0.03, 1.03))
  ax.set(title='swapping one attribute', xlim=(-0.03, 1.8), xticks=(0, 0.5, 1))  # for the legend
  plotting.legend(ax, loc='upper right')


def _depth(ax, data: pd.DataFrame):
  for i, (relation, rows) in enumerate(data.groupby('relation', sort=False)):
    color, marker = plotting.cycle(i)
    _line(ax, rows, relation, color, marker=marker, markersize=3)
  ax.set(xlabel="donor's vector patched in after block", ylabel="fraction with the donor's answer")
  ax.set(title='where the fact leaves the subject', ylim=(-0.03, 1.03))
  plotting.legend(ax)


def _faithful(ax, data: pd.DataFrame):
  """How often each linear prediction agrees with the model, one bar per relation, at the deepest layer tried."""
  relations = data['relation'].unique()
  for i, (method, rows) in enumerate(data.groupby('control', sort=False)):
    own = rows.sort_values('layer').groupby('relation').last().reindex(relations)
    x = np.arange(len(own)) + (i - 1) * 0.25
    ax.bar(x, own['value'], 0.22, color=plotting.cycle(i)[0], label=method)
    ax.vlines(x, own['low'], own['high'], color=plotting.BLACK, linewidth=0.8)
  ax.set_xticks(range(len(relations)), relations)
  ax.set(ylabel='agreement with the model', ylim=(0, 1.03), title='linear predictions')
  plotting.legend(ax)


STUDY = Study(
  name='language_model',
  title='a pretrained language model: is there a superposition in it?',
  claims=(
    Claim(
      'Claim 8',
      'In a pretrained language model a subject’s representation is in part such a superposition, and the model uses it as one.',
    ),
  ),
  presets=PRESETS,
  measure=measure,
  expect=expect,
  plot=plot,
  terms='R² is measured on the residuals of held-out subjects, explained by their attributes or by the tokens of their own '
  'name. A swap moves the residual from the own attribute’s fitted vector to another’s, at the block and with the α (the '
  'multiple of that difference) that were best on subjects set aside for it; flipped and kept are measured on the facts '
  'that the model knows.',
  minutes=2.5,
  first_seed=0,
  missing=load.missing,
  prepare=prepare,
  more=examples,
)

if __name__ == '__main__':
  STUDY.main()
