"""Build constructions, check them on every query, save the models.

  python -m experiments.construct --construction=selector --subjects=1000 --relations=4
  python -m experiments.construct --construction=all --hops=2
  python -m experiments.construct --construction=selector --table=facts.csv

By default (all), every construction that these facts allow is built: one-hop constructions answer
one hop, the others --hops, by default two. Constructions that are named answer --hops, by default
one. `--list` shows the names. Each model is saved to WORKDIR/CONSTRUCTION, where experiments.ask
finds it. Expected: exact constructions answer every query right, by the margin proved. All presets
are the same, N = 32 and R = 4.
"""

import dataclasses
import functools
from typing import Annotated, Literal

import numpy as np

from constructions import registry
from experiments.harness import instances, render
from experiments.harness.findings import Claim, over_seeds
from experiments.harness.study import SCALES, Study
from geomem import facts as fact
from geomem.checks import verify
from geomem.construction import Construction
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.saved import models

OPTIONS = ('dim', 'width', 'bits', 'hops_per_layer', 'beta', 'noise', 'error', 'search', 'thoughts')
COLUMNS = [
  'construction', 'subjects', 'relations', 'hops', 'dim', 'width', 'heads', 'depth', 'check',
  'queries', 'accuracy', 'min_margin', 'parameters', 'build_seconds', 'check_seconds',
]  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """None: the construction's own default, or what its facts require."""

  construction: Annotated[tuple[str, ...], 'A name (--list shows them), or all, the default.'] = ()
  subjects: int = 32
  relations: int = 4
  hops: Annotated[int | None, 'k, the hops of a query (default: 2 for all, 1 if named).'] = None
  facts: Annotated[Literal['bijections', 'maps'], 'Kind of random facts.'] = 'bijections'
  table: str | None = None
  dim: Annotated[int | None, 'd, for constructions that leave it open (default: theirs).', 1] = None
  width: Annotated[int | None, 'F, for associative_mlp (default: as its facts require).', 1] = None
  bits: Annotated[int | None, 'b bits per coordinate, selector_multilevel (default: 4).', 1] = None
  hops_per_layer: Annotated[int | None, 'j, hops per layer of factored (default: 1).', 1] = None
  beta: Annotated[
    float | None, 'β, for partly_precomputed, a multiple of 1/R (default: ⌈R/2⌉/R).'
  ] = None
  thoughts: Annotated[int | None, 't, for few_thoughts, less than k (default: ⌊k/2⌋).', 0] = None
  noise: Annotated[float | None, 'σ, noise that selector_coded tolerates (default: 0.5).'] = None
  error: Annotated[
    float | None, 'ε, for selector_coded: its error rate under that noise (default: 0.01).'
  ] = None
  search: Annotated[bool | None, 'Search over seeds for the least d of superposition_coded.'] = None
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  check: Annotated[
    Literal['exhaustive', 'certificate', 'universal', 'auto'],
    'How to verify. exhaustive: every logit of every query; certificate: a bound on the margin of '
    'every query from its answer slot alone; universal: every possible content of an embedding, for '
    'all fact tables at once; auto: exhaustive up to 2³¹ logits, certificate beyond.',
  ] = 'auto'
  save: Annotated[bool, 'Save the models.'] = True


PRESETS = dict.fromkeys(SCALES, Preset())


def measure(progress, preset, seeds):
  """One record per construction; the models are saved: those named all or none, otherwise every one
  that can be built."""
  named = [name for name in preset.construction if name != 'all']
  if named and len(named) < len(preset.construction):
    raise InputError(f'--construction=all already has {named[0]}; give one or the other')
  names = named or registry.names()
  given = {name: value for name in OPTIONS if (value := getattr(preset, name)) is not None}
  most_hops = preset.hops if preset.hops is not None else 1 if named else 2
  table, sizes = _table(preset), (preset.subjects, preset.relations)
  if table is None:
    fact.check_sizes(*sizes, most_hops)
  for name in named:
    registry.check_options(name, given)
  for name in names if preset.save else ():
    models.check_free(progress.folder / name)
  waiting: list[Construction] = []

  def build(name):
    known = registry.entry(name)
    hops = most_hops if known.multi_hop or named else 1
    # Named constructions must take every option; otherwise an option is for those that take it.
    options = {o: value for o, value in given.items() if named or o in known.options}
    if 'seed' in known.options:
      options['seed'] = seeds[0]
    facts = table or instances.random_facts(preset.facts, *sizes, seeds[0], known.own_answers)
    built, record = instances.build_and_check(
      name, facts, hops, dtype=preset.dtype, check=preset.check, timed=True,
      progress=functools.partial(progress, label=name), **options,
    )  # fmt: skip
    waiting.extend([built] * preset.save)
    while waiting and (not named or name == names[-1]):
      model = waiting.pop(0)
      models.save(progress.folder / model.name, model)
    return record | {'others_facts': _of_others(built, record)}

  records = [build(name) for name in names] if named else instances.build_each(names, build)
  if preset.save:
    saved = progress.folder / (names[0] if len(names) == 1 else '…')
    print(f'models: {saved}; python -m experiments.ask --workdir={progress.folder} asks them')
  return records


def _table(preset: Preset) -> Facts | None:
  """The user's own facts, if there are any."""
  if preset.table is None:
    return None
  for name in ('subjects', 'relations', 'facts'):
    if getattr(preset, name) != getattr(Preset, name):
      raise InputError(f'--{name} and --table contradict each other: the table decides')
  return Facts.from_csv(preset.table)


def _of_others(built: Construction, record: dict) -> float | None:
  """The control: how often these weights give a subject the answers of the next one; None if the
  check was not exhaustive."""
  if record['check'] != 'exhaustive':
    return None
  next_RxN = np.roll(built.facts.answers_RxN, 1, axis=1)
  asked = built.replace(facts=dataclasses.replace(built.facts, answers_RxN=next_RxN))
  return verify.exhaustive(asked, record['dtype']).accuracy


def expect(table):
  """For every theorem's constructions: all queries right, by the margin proved; the control is the
  facts of other subjects."""
  for r in table.to_dict('records'):
    known, name = registry.entry(r['construction']), r['construction'].replace('_', ' ')
    name += f', N = {r["subjects"]}, R = {r["relations"]}, k = {r["hops"]}'
    yield from over_seeds(
      f'{name}: accuracy on {r["queries"]:,} queries', [r['accuracy']],
      1.0 if known.exact else None, claim=known.theorem,
      facts_of_others=[] if r['check'] != 'exhaustive' else [r['others_facts']],
    )  # fmt: skip
    if r['exact']:
      ratio = r['min_margin'] / r['promised_margin']
      yield from over_seeds(
        f'{name}: smallest margin / proved margin', [ratio], 1.0, claim=known.theorem
      )


STUDY = Study(
  name='construct', title='every construction, built and verified on every query',
  claims=(
    Claim('Theorem 4.1', 'One layer answers all N·R facts with an embedding of width O(R log N): attributes are superposed, and an '
          'MLP of width O(R log N) or R attention heads select. Every query is right, by the margin proved.'),
    Claim('Theorem F.1', 'Where every relation has attributes of its own, no MLP is needed: sign codes of the relations suffice.'),
    Claim('Theorem 4.3', 'Answering k hops directly takes an MLP of width N·R or an embedding of width R^k·log N. Ours: width N + R, and '
          'depth 1.'),
    Claim('Theorem 4.4', 'With chain of thought, one layer and an embedding of width O(R log N) answer any number of hops.'),
  ),
  terms='Margin: the logit of the right answer less the highest other logit. Facts of others: the accuracy on facts that '
  'the model was not built for.',
  presets=PRESETS, measure=measure, expect=expect, minutes=0.3, first_seed=0, resumes=False, strict=True,
  more=lambda table: render.table(table[COLUMNS]),
  listed=lambda: render.table([
    {'construction': name, 'proves': known.theorem, 'how': known.summary, 'size': known.size}
    for name, known in registry.REGISTRY.items()
  ]),
)  # fmt: skip


if __name__ == '__main__':
  STUDY.main()
