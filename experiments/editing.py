"""Editing facts in a trained model, head to head: in the subject's row, in the MLP, or by fine-tuning.

  python -m experiments.editing

In a model that knows its facts, some are changed, all at once or one after another: in the
subject's row of the embedding matrix, by the maps that are fitted to the model's own embeddings
(closed form, no gradient) or by gradient descent on all facts of the subject; in the MLP's last
matrix, by a rank-one edit (ROME's formula) or by least squares (MEMIT's); or by fine-tuning all
weights, on the new facts alone or with other facts replayed in every step. A method with a
hyperparameter is tried with several values and reported at its best. The scores are on the changed
facts, the other facts of the same subjects, and those of all other subjects. In a constructed
selector, edits of rows must score 1 on all of them. Expected: in a geometric memory, trained by the
recipe, closed-form edits of rows change a tenth of all facts and keep the rest; a memory in the
MLP, whose embeddings are fixed, cannot be edited this way. The control for rows is the same edit by
maps fitted to shuffled facts.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from experiments.harness import instances, plotting, timing
from experiments.harness.findings import Claim, over_seeds
from experiments.harness.model_kinds import ASSOCIATIVE, Kind, Sizes, sizes
from experiments.harness.statistics import groups, select
from experiments.harness.study import FIRST_SEED, Study
from geomem import model
from geomem.config import Config
from geomem.inside import edits, intervene, linear_maps
from geomem.inside.edits import Edits
from geomem.training import optimization

ROWS, SHUFFLED, LEARNED = 'row, closed form', 'row, shuffled maps', 'row, learned'
TUNED, REPLAY = 'fine-tuning', 'fine-tuning, replay'
ROME, MEMIT = 'MLP, rank one', 'MLP, least squares'
# The cross-entropy at which the search for the MLP's new output stops.
STOP_LOSSES = 3.0, 2.0, 1.5, 1.0, 0.1, 0.01
OPTIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {  # values, and stops if they are not the model's own
  ROWS: ((0.0,), ()), SHUFFLED: ((0.0,), ()),
  LEARNED: ((0.003, 0.03, 0.3), ()),  # learning rates
  ROME: ((0.0,), STOP_LOSSES),
  MEMIT: ((3.0, 1.0, 0.3, 0.1, 0.03, 0.01), STOP_LOSSES),  # weight of a fact to be kept, relative to one that is changed
  TUNED: ((1e-5, 1e-4, 1e-3, 1e-2), ()), REPLAY: ((1e-4, 1e-3, 1e-2), ()),  # learning rates
}  # fmt: skip
KINDS = 'trained', 'plain AdamW', 'associative', 'constructed'
SCORES = 'changed', 'kept, of the same subjects', 'kept, of others'
REPLAYED = 32  # subjects in every step
REPEATS = 5  # how often a single edit is timed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset(Sizes):
  """`fractions`: of all facts, changed at once. `in_turn`: number of facts changed one after
  another. `tried`: if it is not 0, the option of a method in turn is chosen by the scores after this
  many of them, and only that is tried on all. `edit_steps`: maximum number of gradient
  steps. `models`: those of the kinds that are edited.
  """

  models: tuple[str, ...] = KINDS
  fractions: tuple[float, ...]
  in_turn: int
  tried: int = 0
  edit_steps: int = 100
  seeds: int

  def kinds(self):
    """A geometric memory, a plain AdamW model, a memory in the MLP, and a constructed selector."""
    first = self.geometric()
    memory = dataclasses.replace(first, **ASSOCIATIVE)
    every = first, self.plain(), memory, dataclasses.replace(first, model='constructed')
    return [kind for kind in every if kind.model in self.models]


PRESETS = {
  'smoke': Preset(
    **sizes(subjects=32, relations=2, batch=8, steps=300), models=('trained', 'constructed'),
    fractions=(0.1,), in_turn=4, tried=2, edit_steps=10, seeds=1,
  ),
  'laptop': Preset(
    **(sizes(subjects=256, relations=2, batch=64, steps=1000) | {'width': 256}), fractions=(0.1,), in_turn=25, seeds=3,
  ),
  'full': {
    kind.replace(' ', '_'): Preset(
      **(sizes(subjects=1024, relations=4, batch=128, steps=2000) | {'width': 512}), models=(kind,),
      fractions=(0.02, 0.05, 0.1), in_turn=1000, tried=100, seeds=3,
    )
    for kind in KINDS
  },
}  # fmt: skip


def measure(trainer, preset: Preset, seeds) -> list[dict]:
  """Scores after editing, for every kind of model, method, option and number of edits."""
  records = []
  for kind in preset.kinds():
    about, found = kind.evaluate(trainer, seeds, trained)
    for i, seed in enumerate(seeds):
      own = jax.tree.map(lambda a: a[i], found)  # noqa: B023
      records += [
        {'control': None, **about, 'seed': seed, **row}
        for row in trainer.recorded(edited, preset, kind, seed, own)
      ]
  return records


def trained(config: Config, recipe, params, job, *_) -> dict:
  """A model that knows its facts, and what the editing methods start from."""
  e_NxD, u_AxD = params['embed']['subjects'], model.apply(config, params, method='unembedding')
  nats, right = optimization.cross_entropy(config, recipe, job, params)
  maps, offset = linear_maps.fit_best_maps(e_NxD, u_AxD, job.answers_RxN)
  shuffled, _ = linear_maps.fit_best_maps(e_NxD, u_AxD, jnp.roll(job.answers_RxN, 1, axis=1))
  return {
    'params': params, 'answers_RxN': job.answers_RxN, 'accuracy': right, 'nats': nats,
    'maps': maps, 'offset': offset, 'shuffled': shuffled, 'moments': edits.second_moments(config, params),
  }  # fmt: skip


def edited(preset: Preset, kind: Kind, seed: int, own: dict) -> list[dict]:
  """Records of one model."""
  config = kind.task(instances.bijections(kind.subjects, kind.relations, seed), seed).config
  facts = kind.subjects * kind.relations
  counts = [(max(1, round(part * facts)), False) for part in preset.fractions]
  counts += [(min(preset.in_turn, facts), True)]
  keys = instances.eval_keys(seed, len(counts))
  records = [{'measurement': 'accuracy', 'value': float(own['accuracy'])}]
  for (key, (count, in_turn)), method in itertools.product(zip(keys, counts, strict=True), OPTIONS):
    some = edits.draw(key, own['answers_RxN'], config.answers, count)
    known = own | {'maps': own['shuffled' if method == SHUFFLED else 'maps']}
    edit = functools.partial(
      apply, config, ROWS if method == SHUFFLED else method, preset.edit_steps, known
    )
    scored = functools.partial(_scored, config, own, functools.partial(edit, in_turn))
    values, stops = OPTIONS[method]
    options = [*itertools.product(values, stops or (float(own['nats']),))]
    if in_turn and preset.tried and len(options) > 1:
      few = jax.tree.map(lambda a: a[: preset.tried], some)
      options = [max(options, key=lambda option: min(scored(option, few)))]
    for value, stop in options:
      about = {'method': method, 'option': value, 'stop': stop if stops else None, 'edits': count, 'in_turn': in_turn}  # fmt: skip
      found = zip(SCORES, scored((value, stop), some), strict=True)
      records += [{'measurement': what, **about, 'value': score} for what, score in found]
      if in_turn:
        one = functools.partial(edit, False, (value, stop), jax.tree.map(lambda a: a[:1], some))
        records.append({'measurement': 'seconds', **about, 'edits': 1, 'value': seconds(one)})
  return records


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 4))
def apply(config: Config, method: str, steps: int, known, in_turn: bool, option, some: Edits):
  """The parameters after these edits."""
  edit: Callable[[dict, jax.Array, Edits], dict]
  value, stop = option
  if method in (LEARNED, TUNED, REPLAY):
    edit = functools.partial(
      edits.fine_tune, config, value, steps, stop,
      rows_only=method == LEARNED, replayed=REPLAYED if method == REPLAY else 0,
    )  # fmt: skip
  elif method in (ROME, MEMIT):
    edit = functools.partial(edits.edit_mlp, config, known['moments'], value, stop)
  else:
    edit = functools.partial(edits.edit_rows, config, (known['maps'], known['offset']))
  run = functools.partial(edits.sequential, edit) if in_turn or method == ROME else edit
  return run(known['params'], known['answers_RxN'], some)


def _scored(config: Config, own: dict, edit: Callable, option: tuple, some: Edits) -> list[float]:
  return [float(value) for value in scores(config, own, edit(option, some), some)]


@functools.partial(jax.jit, static_argnums=0)
def scores(config: Config, known: dict, after: dict, some: Edits) -> tuple:
  """The fractions of changed facts that get the new answer, and of other answers that are kept:
  those of the same subjects, and those of other subjects."""
  answers = lambda own: intervene.answers(config, own, own['embed']['subjects'])
  before_SxR, now_SxR = answers(known['params']), answers(after)
  marks = some.replace(attribute_E=jnp.ones_like(some.attribute_E))
  changed_SxR = edits.edit_table(jnp.zeros_like(known['answers_RxN']), marks).T > 0
  same_SxR = jnp.any(changed_SxR, axis=1, keepdims=True) & ~changed_SxR
  wanted_SxR = edits.edit_table(known['answers_RxN'], some).T
  fraction = lambda of, what: jnp.sum(of & what) / jnp.maximum(jnp.sum(of), 1)
  return (
    fraction(changed_SxR, now_SxR == wanted_SxR),
    fraction(same_SxR, now_SxR == before_SxR),
    fraction(~changed_SxR & ~same_SxR, now_SxR == before_SxR),
  )


def seconds(function) -> float:
  """The median time of a compiled call."""
  run = lambda: jax.block_until_ready(function())
  run()
  return float(np.median([timing.seconds(run) for _ in range(REPEATS)]))


def best(rows) -> pd.DataFrame:
  """The scores with the best option, a row per seed, and the lowest of them, by whose mean over seeds it is chosen; of
  edits in turn also the seconds that one takes. If every seed has one option alone, it was chosen before."""
  rows = rows.assign(stop=rows['stop'].fillna(0.0))
  if not rows.duplicated(['seed', 'measurement']).any():
    rows = rows.assign(option=0.0, stop=0.0)
  each = [
    own.pivot_table(index='seed', columns='measurement', values='value')
    for _, own in groups(rows, 'option', 'stop')
  ]
  found = max(each, key=lambda wide: wide[[*SCORES]].min(axis=1).mean())
  kept, lowest = found[[*SCORES[1:]]].min(axis=1), found[[*SCORES]].min(axis=1)
  return found.assign(kept=kept, lowest=lowest)


def cases(table):
  """Yields (model, description, whether edits are made in turn, rows)."""
  scored = table[table['measurement'].isin((*SCORES, 'seconds'))]
  for (name, in_turn), some in groups(scored, 'model', 'in_turn'):
    if in_turn:
      yield name, f'{name}, {some["edits"].max():.0f} facts one by one', True, some
      continue
    for (count,), rows in groups(some, 'edits'):
      yield name, f'{name}, {count:.0f} facts at once', False, rows


def expect(table):
  """Every method at its best option: what is changed and what is kept; in a geometric memory and in a
  constructed one, edits of rows should suffice, and with fixed embeddings they should do nothing."""
  for name, text, in_turn, rows in cases(table):
    found = {method: best(own) for (method,), own in groups(rows, 'method')}
    least, most = {'trained': (0.95, None), 'constructed': (1.0, None), 'associative': (None, 0.1)}.get(name, (None, None))  # fmt: skip
    if least or most:
      yield from over_seeds(
        f'{text}: {ROWS}, lowest of changed and kept', found[ROWS]['lowest'], least, most, check=name != 'trained',
        **{method: found[method]['lowest'] for method in (SHUFFLED, LEARNED, REPLAY, TUNED, MEMIT)},
      )  # fmt: skip
    for method, scored in found.items():
      yield from over_seeds(f'{text}: {method}, changed', scored['changed'])
      yield from over_seeds(f'{text}: {method}, kept', scored['kept'])
      if in_turn:
        yield from over_seeds(f'{text}: {method}, milliseconds', 1000 * scored['seconds'])


def plot(table):
  """A panel per kind of model and a line per method: the lowest of changed and kept."""
  every = list(cases(table))
  names = list(dict.fromkeys(name for name, *_ in every))
  figure, panels = plotting.new(11, 2.9, 1, len(names), sharex=True, sharey=True, squeeze=False)
  for ax, name in zip(panels[0], names, strict=True):
    own = [(text, rows) for one, text, _, rows in every if one == name]
    for i, (text, rows) in enumerate(own):
      color, marker = plotting.cycle(i)
      lowest = [best(select(rows, method=method))['lowest'].mean() for method in OPTIONS]
      height = np.arange(len(OPTIONS)) + 0.16 * (i - (len(own) - 1) / 2)
      label = text.removeprefix(f'{name}, ')
      ax.plot(lowest, height, marker, color=color, markersize=5, label=label)
    ax.set(title=name, xlabel='lowest of changed and kept', xlim=(-0.03, 1.03))
  panels[0][0].set(yticks=range(len(OPTIONS)), yticklabels=list(OPTIONS))
  panels[0][0].invert_yaxis()
  figure.legend(*panels[0][0].get_legend_handles_labels(), loc='outside lower center', ncols=4)
  return figure


STUDY = Study(
  name='editing', title='editing facts in a trained model, methods head to head', page='editing.md',
  claims=(
    Claim('Editing', 'In a geometric memory a closed-form edit of the subject’s row changes one fact and no other.'),
  ),
  terms='Changed: the fraction of changed facts that are answered anew. Kept: the fraction of other answers that stay, '
  'the lower one of those of the same subjects and those of others. Row, closed form: M_r (u_new − u_old) is added, '
  'with the maps of the model’s own embeddings, or with maps fitted to shuffled facts; learned: gradient descent on the '
  'row alone, with all facts of its subject. MLP, rank one: one edit of its last matrix after another, by ROME’s formula; '
  'least squares: by MEMIT’s, all at once. Fine-tuning: of all weights, on the changed facts, or on these and a replay of '
  'others. Methods with options (learning rate; weight of the facts to be kept; where the search for the MLP’s new output '
  'stops) are reported at their best, by the scores on these very facts; the closed form has none. After edits one by one '
  'at full size, options are the best ones after the first hundred. The times are those of a '
  'single edit, without what is computed once for all edits (maps, second moments).',
  presets=PRESETS, measure=measure, expect=expect, plot=plot,
  by=('model', 'method', 'edits', 'in_turn', 'measurement'), minutes=2.9, first_seed=FIRST_SEED + 700,
)  # fmt: skip

if __name__ == '__main__':
  STUDY.main()
