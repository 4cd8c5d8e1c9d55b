"""Real countries in a pretrained language model: is there a superposition, and is it used? Claim 8.

  make language-model
  python -m experiments.language_model --model=FOLDER --table=MINE.csv

How much of a country's residual do vectors for its continent and its language explain (R² on held-out countries; controls:
shuffled facts, and the tokens of the country's own name)? Does moving the residual from one such vector to another change
that answer, and which others (controls: shuffled facts, random directions, differences of class means, another country's
whole residual)? At which depth does the fact leave the country's token? Nothing is expected of these numbers: the facts of
a country are correlated, and its tokens already carry them, so that they cannot decide the claim; experiments.new_subjects
asks the question of subjects whose facts are drawn independently. The results are in docs/countries.md. It takes 2.1
GB of memory; the full preset has more templates, seeds and layers.
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
from experiments.language import prompt_set, ridge, swapping
from experiments.language.case import DATA, ModelFile, loaded
from geomem.pretrained import load
from geomem.pretrained.runner import Runner

FOLDS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """`layers`: number of layers measured. `swap_layers`: fractions of the depth at which swaps are tried. `alphas`: the
  scales at which swaps by the superposition are reported; `alpha_choices`: those from which one is chosen. `shuffles`:
  number of shuffles of the facts. `donor_pairs`: number of pairs of subjects of each relation.
  """

  max_subjects: int | None = None
  templates: int
  seeds: int
  layers: int
  swap_layers: tuple[float, ...]
  alphas: tuple[float, ...]
  alpha_choices: tuple[float, ...]
  shuffles: int
  donor_pairs: int
  model: ModelFile = None
  table: Annotated[
    str | None,
    'CSV of subject,relation,attribute, to use your own facts; several rows for several answers.',
  ] = None
  model_checksum: int | None = None
  table_checksum: int | None = None


PRESETS = {
  'smoke': Preset(
    max_subjects=20, templates=1, seeds=1, layers=4, swap_layers=(0.6,), alphas=(2.0,), alpha_choices=(2.0,), shuffles=1,
    donor_pairs=2,
  ),
  'laptop': Preset(
    templates=1, seeds=1, layers=8, swap_layers=(0.6,), alphas=(1.0, 2.0, 4.0), alpha_choices=(1.0, 2.0, 4.0), shuffles=3,
    donor_pairs=6,
  ),
  'full': Preset(
    templates=2, seeds=2, layers=16, swap_layers=(0.2, 0.6), alphas=(0.5, 1.0, 2.0, 3.0, 4.0, 6.0),
    alpha_choices=(1.0, 2.0, 4.0), shuffles=3, donor_pairs=12,
  ),
}  # fmt: skip


def prepare(preset: Preset) -> Preset:
  """Read the model and the table before anything is written; a run can only be resumed with the same two."""
  _table(preset)
  return dataclasses.replace(
    preset,
    model_checksum=loaded(preset.model).checksum(),
    table_checksum=zlib.crc32(Path(preset.table).read_bytes()) if preset.table else None,
  )


def _table(preset: Preset) -> prompt_set.Table:
  name, path = ('own', preset.table) if preset.table else ('countries', DATA / 'countries.csv')
  return prompt_set.read(name, path, preset.max_subjects)


def measure(trainer, preset: Preset, seeds) -> list[dict]:
  """R² in every template with every seed; swaps in one template per seed, in turn."""
  runner, table = Runner(loaded(preset.model)), _table(preset)
  depth = runner.model.config.depth
  layers = np.linspace(0, depth, min(preset.layers, depth + 1)).round().astype(int).tolist()
  swapped = sorted({min(depth - 1, round(x * depth)) for x in preset.swap_layers})
  records: list[dict] = []
  templates = min(preset.templates, len(table.templates))
  for template in range(templates):
    label = f'{table.name}, template {template}'
    runner.on_progress = functools.partial(trainer.on_progress, label=label)
    prompts = prompt_set.PromptSet(runner, table, template, swapped)
    prompts.observed = trainer.cached(functools.partial(trainer.timed, prompts.observe))
    records += trainer.recorded(knowledge, prompts)
    for seed in seeds:
      records += trainer.recorded(r2, prompts, layers, seed, preset.shuffles)
      if (seed - seeds[0]) % templates == template:
        records += trainer.recorded(swapping.measure, prompts, preset, swapped, seed)
        records += trainer.recorded(swapping.depth, prompts, layers, preset.donor_pairs, seed)
  return records


def knowledge(prompts: prompt_set.PromptSet) -> list[dict]:
  """How many of a relation's facts the model gets right, and how many the most common answer alone would."""
  records = []
  for r, relation in enumerate(prompts.relations):
    has_S = relation.correct_SxA.any(axis=1)
    same_AxC = relation.token_A[:, None] == np.unique(relation.token_A)[None]
    common = (relation.correct_SxA @ same_AxC > 0).sum(axis=0).max() / has_S.sum()
    about = {'relation': relation.name, 'candidates': same_AxC.shape[1]}
    records += [
      prompts.record('known', prompts.observed['known'][:, r], has_S, **about),
      prompts.record('known', float(common), **about, control='commonest answer'),
    ]
  return records


def r2(prompts: prompt_set.PromptSet, layers, seed: int, shuffles: int) -> list[dict]:
  """R² of every group of features on held-out subjects at every layer, and of the attributes for shuffled facts."""
  rng, subjects = np.random.default_rng((seed, 2)), len(prompts.table.subjects)
  fold_S = ridge.folds(rng, subjects, FOLDS)
  x_TxSxD = prompts.observed['subject'].swapaxes(0, 1)[layers].astype(np.float64)
  principal = np.linalg.svd(x_TxSxD - x_TxSxD.mean(axis=1, keepdims=True), full_matrices=False)
  y_TxSxQ = principal.U * principal.S[:, None]  # the same distances, in fewer coordinates
  residual = lambda kernel: y_TxSxQ - ridge.held_out(kernel, y_TxSxQ, fold_S)
  squared_error = lambda kernel: (residual(kernel) ** 2).sum(axis=2)
  total_TxS = squared_error(np.zeros((subjects, subjects)))
  reduction = lambda kernels: {
    name: total_TxS - squared_error(own) for name, own in kernels.items()
  }

  own = ridge.kernel(prompts.observed['last_token']) + ridge.kernel(prompts.observed['name'])
  true = reduction({**_attributes(prompts), 'own token': own})
  others = [reduction(_attributes(prompts, rng.permutation(subjects))) for _ in range(shuffles)]
  records = []
  for t, layer in enumerate(layers):
    about, total_S = {'seed': seed, 'layer': layer}, total_TxS[t]
    records += [
      prompts.record('R2', own_TxS[t], total_S, **about, features=name)
      for name, own_TxS in true.items()
    ]
    for name in others[0] if others else ():
      value_N = np.array([other[name][t].sum() for other in others]) / total_S.sum()
      records.append(prompts.record(
        'R2', float(value_N.mean()), **about, features=name, control='shuffled facts',
        low=float(value_N.min()), high=float(value_N.max()),
      ))  # fmt: skip
  return records


def _attributes(prompts: prompt_set.PromptSet, order_S=slice(None)) -> dict[str, np.ndarray]:
  """Kernels of the attributes, each with its own vector, and of the embeddings of their tokens; with an order, they are
  taken from other subjects."""
  none = np.zeros((len(prompts.table.subjects),) * 2)
  found = {'attributes': none, 'attribute embeddings': none}
  for r in prompts.table.superposed:
    if (shared := prompts.shared(r)).any():
      one_hot = prompts.relations[r].correct_SxA[order_S][:, shared]
      found['attributes'] = found['attributes'] + ridge.kernel(one_hot)
      embedded = ridge.kernel(prompts.mean_embedding(r)[order_S])
      found['attribute embeddings'] = found['attribute embeddings'] + embedded
  return found


def expect(table: pd.DataFrame) -> Iterator[Finding]:
  """What explains a subject after six tenths of the blocks, and the effect of the chosen swaps. There is no bound: those
  that there were had been set after the first run."""
  layers = np.sort(select(table, measurement='R2')['layer'].unique()).astype(int)
  middle = layers[np.argmin(np.abs(layers - 0.6 * layers[-1]))] if len(layers) else 0

  def finding(what: str, *controls: tuple[str, str], **about) -> Iterator[Finding]:
    """The mean over the runs, and of their intervals over subjects. A control differs from it in one column."""
    mean = lambda rows: rows[['value', 'low', 'high']].mean(skipna=False).tolist()
    if len(rows := select(table, **about)):
      control_rows = {name: select(table, **about | {column: name}) for column, name in controls}
      means = {name: mean(some)[0] for name, some in control_rows.items() if len(some)}
      value, low, high = mean(rows)
      yield Finding(what, value, low, high, len(rows), controls=means)

  controls = ('control', 'shuffled facts'), ('features', 'own token')
  at = {'measurement': 'R2', 'features': 'attributes', 'layer': middle, 'control': None}
  yield from finding(f'after block {middle}: R² of attributes', *controls, **at)
  swaps = {'chosen': True, 'relation': None, 'control': 'superposition'}
  others = [('control', name) for name in (*swapping.CONTROLS, swapping.DONOR)]
  yield from finding('answers flipped by swaps', *others, measurement='flipped', **swaps)
  yield from finding('other answers kept by swaps', *others, measurement='kept', **swaps)


def plot(table: pd.DataFrame):
  """A panel for each kind of records; bands are means of the runs' bootstrap intervals over subjects."""
  drawn = {_r2: ('R2',), _swaps: ('flipped', 'kept'), _depth: ('donor answer',)}
  of = lambda names: table[table['measurement'].isin(names)]
  found = {draw: rows for draw, names in drawn.items() if len(rows := of(names))}
  figure, panels = plotting.new(3.1 * len(found), 3.1, 1, len(found), squeeze=False)
  for ax, (draw, rows) in zip(panels[0], found.items(), strict=True):
    draw(ax, rows)
    plotting.legend(ax)
  return figure


def _line(ax, data: pd.DataFrame, label: str, color: str, **options):
  """The mean over templates and seeds at each layer, with a band from the mean of their intervals."""
  mean = data.groupby('layer')[['value', 'low', 'high']].mean()
  ax.plot(mean.index, mean['value'], color=color, label=label, **options)
  ax.fill_between(mean.index, mean['low'], mean['high'], color=color, alpha=0.15, linewidth=0)


def _r2(ax, data: pd.DataFrame):
  for i, name in enumerate(('own token', 'attribute embeddings', 'attributes')):
    _line(ax, select(data, features=name, control=None), name, plotting.cycle(i)[0])
  shuffled = select(data, features='attributes', control='shuffled facts')
  _line(ax, shuffled, 'attributes, shuffled', plotting.GREY, linestyle=':')
  ax.set(xlabel='after block', ylabel='$R^2$ on held-out subjects', title='what explains a subject')


def _swaps(ax, data: pd.DataFrame):
  """A curve for every method over its alphas; the one chosen beforehand is filled."""
  data = select(data, relation=None).fillna({'alpha': 0})
  for i, (method, own) in enumerate(data.groupby('control', sort=False)):
    color, marker = plotting.cycle(i)
    curve = own.groupby(['alpha', 'measurement'])['value'].mean().unstack()
    chosen = select(own, chosen=True).groupby('measurement')['value'].mean()
    ax.plot(curve['flipped'], curve['kept'], marker, linestyle='-', color=color, markersize=4,
            markerfacecolor='white', linewidth=0.8)  # fmt: skip
    ax.plot(chosen['flipped'], chosen['kept'], marker, color=color, label=method)
  ax.set(xlabel='answers flipped', ylabel='other answers kept', title='swapping one attribute')
  ax.set(xlim=(-0.03, 1.8), ylim=(-0.03, 1.03), xticks=(0, 0.5, 1))  # leaves room for the legend


def _depth(ax, data: pd.DataFrame):
  for i, (relation, rows) in enumerate(data.groupby('relation', sort=False)):
    color, marker = plotting.cycle(i)
    _line(ax, rows, relation, color, marker=marker, markersize=3)
  ax.set(xlabel="donor's vector patched in after block", ylabel="fraction with the donor's answer")
  ax.set(title='where the fact leaves the subject', ylim=(-0.03, 1.03))


STUDY = Study(
  name='language_model', title='real countries in a pretrained language model: is there a superposition?', page='countries.md',
  claims=(
    Claim('Claim 8', 'In a pretrained language model a subject’s representation is in part such a superposition, and the model uses it as one.'),
  ),
  terms='R² is measured on the residuals of held-out subjects, explained by their attributes or by the tokens of their own '
  'name. A swap moves the residual from the own attribute’s fitted vector to another’s, at the block and with the α (the '
  'multiple of that difference) that were best on subjects set aside for it; flipped and kept are measured on the facts '
  'that the model knows.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot, minutes=1.3, compile_quickly=False, first_seed=0, missing=load.missing,
  prepare=prepare,
)  # fmt: skip

if __name__ == '__main__':
  STUDY.main()
