"""Freeze the model, swap the facts: does the decoder answer for superpositions it was never trained on? Claim 5.

  python -m experiments.transfer

A model learns R random bijections; all but the subjects' embeddings is frozen; new bijections are
drawn. (a) zero-shot: new embeddings are put together by the maps that explain the old ones. (b)
zero-shot: by maps fitted through the frozen model to attributes at random. (c) new embeddings are
trained, nothing else. Expected where the embeddings were learned fast and under noise: (a) and (b)
at least 0.95, (c) 1. Each thing that may decide it is changed alone. Beside them stand a
constructed selector, which must score 1, an untrained model, and an associative memory (fixed
random embeddings, the facts in the MLP), which were said not to transfer. Every case has several
seeds. The full preset has the parts R2, R4 and R8, by the number of relations.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from experiments.harness import instances, plotting
from experiments.harness.findings import Claim, over_seeds
from experiments.harness.model_kinds import FOR_TRANSFER, Kind
from experiments.harness.statistics import groups, select, values
from experiments.harness.study import Study
from geomem import model
from geomem.config import Config
from geomem.inside import intervene, linear_maps, new_facts

BATCH = 256  # subjects by which (b) fits its maps
RELEARNED = 128  # subjects whose embeddings (c) trains
CONTROLS = ('untrained', 'associative')
ARMS = {
  'old_maps': '(a) maps of the old facts', 'fitted_maps': '(b) maps fitted through',
  'learned_embeddings': '(c) embeddings trained',
}  # fmt: skip


WORDS = {  # for what tells cases apart
  'model': '{}', 'subjects': 'N = {:,}', 'relations': 'R = {}', 'dim': 'd = {}',
  'width': 'F = {:,}', 'weight_decay': 'decay = {:g}', 'noise': 'noise = {:g}',
  'embedding_lr_multiplier': 'lr multiplier = {:g}', 'unembedding': 'unembedding {}',
  'attention': 'attention {}',
}  # fmt: skip
NAMES = tuple(WORDS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """`first`: the sizes of the first case. Every other differs from it in one of the `changes` alone, and beside them
  stands an associative memory of `memory_width`. `map_steps`: by which (b) fits its maps; `embedding_steps`: by
  which (c) trains new embeddings.
  """

  first: dict[str, int]
  changes: dict[str, tuple]
  memory_width: int
  steps: int
  map_steps: int
  embedding_steps: int
  seeds: int

  def cases(self):
    """The kind of model of every case."""
    how: dict[str, Any] = FOR_TRANSFER | {'unembedding': 'fixed', 'steps': self.steps}
    changed = functools.partial(dataclasses.replace, Kind(model='trained', **self.first | how))
    yield changed()
    for name, others in self.changes.items():
      yield from (changed(**{name: other}) for other in others)
    yield changed(
      model='associative', width=self.memory_width, weight_decay=0.01, noise=0.0,
      embedding_lr_multiplier=1.0, embeddings='fixed',
    )  # fmt: skip


TINY = {'subjects': 24, 'relations': 2, 'dim': 8, 'width': 12, 'batch': 8}
PAIR = {'subjects': 512, 'relations': 2, 'dim': 64, 'width': 64, 'batch': 128}
QUADRUPLE = {'subjects': 1024, 'relations': 4, 'dim': 160, 'width': 128, 'batch': 256}
OCTUPLE = {'subjects': 1024, 'relations': 8, 'dim': 384, 'width': 256, 'batch': 256}
BESIDE = ('untrained', 'constructed')
PRESETS = {
  'smoke': Preset(
    first=TINY, changes={'model': BESIDE}, memory_width=32,
    steps=60, map_steps=10, embedding_steps=200, seeds=1,
  ),
  'laptop': Preset(
    first=PAIR, changes={
      'unembedding': ('trained',), 'dim': (32, 96), 'width': (16,), 'weight_decay': (0.1,), 'noise': (0.0,),
      'embedding_lr_multiplier': (1.0,), 'attention': ('trained',), 'subjects': (128,), 'model': BESIDE,
    },
    memory_width=512, steps=800, map_steps=200, embedding_steps=300, seeds=5,
  ),
  'full': {
    f'R{first["relations"]}': Preset(
      first=first, changes={'unembedding': ('trained',), 'model': BESIDE}, memory_width=8 * first['width'],
      steps=1000, map_steps=500, embedding_steps=300, seeds=5,
    )
    for first in (PAIR, QUADRUPLE, OCTUPLE)
  },
}  # fmt: skip


def scores(map_steps: int, embedding_steps: int, config: Config, params, job, other_RxN):
  """All that is measured of one model, by name."""
  answers_RxN = job.answers_RxN
  keys = instances.eval_keys(job.seed, 3)
  fit_T, held_S = linear_maps.hold_out(keys[0], config.subjects)
  e_NxD, u_AxD = params['embed']['subjects'], model.apply(config, params, method='unembedding')
  frozen = config, params
  right = lambda e_NxD, table: intervene.accuracy(*frozen, e_NxD, table.T)
  superposed = lambda maps, table: right(linear_maps.superpose(maps, u_AxD, table), table)

  def fit(e_TxD, table):
    known = e_TxD, u_AxD, table
    return linear_maps.fit_maps(*known, linear_maps.best_ridge(*known))

  maps = fit(e_NxD, answers_RxN)
  fitted, _ = new_facts.fit_maps_through_model(*frozen, maps, keys[1], map_steps, BATCH)
  some_RxB = other_RxN[:, :RELEARNED]  # each embedding is trained by itself: some speak for all
  learned_BxD = new_facts.learn_embeddings(*frozen, some_RxB, keys[2], embedding_steps)
  return {
    'accuracy': right(e_NxD, answers_RxN),
    'superposition_r2': linear_maps.superposition_r2(e_NxD, u_AxD, answers_RxN, fit_T, held_S),
    'shared_cosine': new_facts.shared_cosine(u_AxD, answers_RxN),
    'old_facts': superposed(fit(e_NxD[fit_T], answers_RxN[:, fit_T]), answers_RxN[:, held_S]),
    'old_maps': superposed(maps, other_RxN),
    'fitted_maps': superposed(fitted, other_RxN),
    'learned_embeddings': right(learned_BxD, some_RxB),
  }  # fmt: skip


def measure(trainer, preset: Preset, seeds) -> list[dict]:
  """Records of all cases."""
  records = []
  for kind in preset.cases():
    own_scores = functools.partial(scores, preset.map_steps, preset.embedding_steps)
    about, found = kind.evaluate(trainer, seeds, own_scores)
    control = kind.model if kind.model in CONTROLS else None
    fields = {name: getattr(kind, name) for name in (*NAMES, 'learning_rate', 'batch')} | about
    records += [
      {'measurement': name, 'control': control, **fields, 'seed': seed, 'value': float(some[i])}
      for i, seed in enumerate(seeds)
      for name, some in found.items()
    ]
  return records


def cases(table):
  """Every case as (its fields, in which it differs from the first with so many relations, it in words, its rows)."""
  firsts: dict[int, dict] = {}
  for keys, rows in groups(table, *NAMES):
    case = dict(zip(NAMES, keys, strict=True))
    first = firsts.setdefault(case['relations'], case)
    differs = [name for name in NAMES if case[name] != first[name]]
    words = {name: WORDS[name].format(value) for name, value in case.items()}
    if case is first:
      text = ', '.join(words[name] for name in ('subjects', 'relations', 'dim', 'width'))
    elif case['model'] in ('associative', 'constructed'):
      text = f'{words["relations"]}, {words["model"]}, {words["width"]}'
    else:
      text = f'{words["relations"]}, but ' + ', '.join(words[name] for name in differs)
    yield case, differs, text, rows


def expect(table):
  """Zero-shot transfer in every case; where it is expected, with the controls beside it."""
  for case, differs, text, rows in cases(table):
    hoped, built = differs in ([], ['unembedding']), case['model'] == 'constructed'
    right = values(rows, measurement='accuracy')
    at_least = 0.99 if hoped else None
    yield from over_seeds(f'{text}: right on the facts learned', right, at_least, check=True)
    for name, arm in ARMS.items():
      least = 0.99 if name == 'learned_embeddings' else 1.0 if built else 0.95
      beside = select(table, measurement=name, relations=case['relations'])
      controls: Any = {} if differs else {kind: values(beside, model=kind) for kind in CONTROLS}
      yield from over_seeds(
        f'{text}: {arm}', values(rows, measurement=name), least if hoped or built else None,
        0.5 if case['model'] in CONTROLS else None, check=built, **controls,
      )  # fmt: skip


EXPLANATIONS = {
  'shared_cosine': 'cosine of attributes that share a subject',
  'superposition_r2': '$R^2$ of the superposition, held out',
  'accuracy': 'right answers on the facts learned',
}


def plot(table):
  """A row a case; and of the trained ones zero-shot transfer against what may explain it."""
  count = table[list(NAMES)].drop_duplicates().shape[0]
  size = 12, max(3.6, 0.8 + 0.26 * count)
  figure, (left, *right) = plotting.new(*size, 1, 4, width_ratios=(1.5, 1, 1, 1))
  _plot_cases(left, table)
  trained = select(table, model='trained')
  found = trained.pivot(index=[*NAMES, 'seed'], columns='measurement', values='value')
  for ax, (name, label) in zip(right, EXPLANATIONS.items(), strict=True):
    for i, ((kind,), rows) in enumerate(groups(found.reset_index(), 'unembedding')):
      color, marker = plotting.cycle(i)
      ax.plot(name, 'old_maps', marker, data=rows, color=color, alpha=0.6, markersize=3.5,
              markeredgewidth=0, label=f'unembedding {kind}')  # fmt: skip
    ax.set(xlabel=label, ylabel='zero-shot (a)')
    ax.xaxis.set_major_locator(MaxNLocator(3))
    plotting.legend(ax)
  return figure


def _plot_cases(ax, table):
  """(a), (b) and (c) of every case, each seed a faint mark, the mean a full one."""
  texts = []
  for row, (_, _, text, rows) in enumerate(cases(table)):
    texts.append(text)
    for i, (name, arm) in enumerate(ARMS.items()):
      color, marker = plotting.cycle(i)
      own, y = values(rows, measurement=name), row + 0.24 * (i - 1)
      ax.plot(own, [y] * len(own), marker, color=color, alpha=0.3, markersize=3, markeredgewidth=0)
      ax.plot(np.mean(own), y, marker, color=color, markersize=4, label=None if row else arm)
  ax.set_yticks(range(len(texts)), texts, fontsize=6)
  ax.set_ylim(len(texts) - 0.4, -0.6)
  ax.axvline(0.95, color=plotting.GREY, linestyle='--', linewidth=1)
  ax.set(xlabel='right answers on new bijections', xlim=(-0.03, 1.03), title='freeze and swap')
  plotting.legend(ax, loc='upper center', bbox_to_anchor=(0.2, -0.14), ncol=3)


STUDY = Study(
  name='transfer', title='frozen models given facts that they were never trained on',
  claims=(
    Claim('Claim 5', 'Frozen, the model answers for new bijections once embeddings are put together for them; an '
          'associative memory does not.'),
  ),
  terms='New bijections, all but the subjects’ embeddings frozen. The new embeddings are (a) sums of maps of '
  'attributes that were fitted to the old embeddings, (b) sums of maps that were trained through the frozen '
  'model, on attributes at random, or (c) trained one by one. Lr multiplier: the embeddings’ learning rate and '
  'weight decay, as a multiple of those of the rest. Query and key are fixed where nothing else is said, and so is the '
  'unembedding. Untrained: the same model as it was drawn. Associative: fixed random embeddings, the facts in '
  'the MLP.',
  presets=PRESETS, measure=measure, expect=expect, plot=plot, by=(*NAMES, 'measurement'), minutes=5,
)  # fmt: skip

if __name__ == '__main__':
  STUDY.main()
