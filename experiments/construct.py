"""Build constructions, check them on every query, print the table, save the models.

  python -m experiments.construct --construction=selector --subjects=1000 --relations=4
  python -m experiments.construct --construction=all --hops=2
  python -m experiments.construct --construction=selector --table=facts.csv

With --construction=all every construction is built that can be for these facts; those of one hop
answer one hop, the others --hops. `--list` shows their names. Each model is saved to
WORKDIR/CONSTRUCTION, where experiments.ask finds it. Bad input ends in one line and exit status 2.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from absl import flags

from constructions import registry
from experiments.harness import building, cli, storage
from experiments.harness.findings import Finding, found
from geomem import facts as fact
from geomem.checks import verify
from geomem.construction import Construction
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.saved import models

FLAGS = flags.FLAGS
cli.define(
  'table',
  'seed',
  'dtype',
  construction='What to build: a name (--list shows them; repeatable), or `all`, the default.',
  subjects='N, the number of subjects (default: 32).',
  relations='R, the number of relations (default: 4).',
  hops='k, the relations in a query (default: 1).',
  dim='d, the residual width of constructions that leave it open (default: theirs).',
  width='F, the hidden width of associative_mlp (default: what its facts take).',
  list='List the constructions, one line each, and stop.',
  workdir='Folder for the models and results.json; made if needed (default: runs/construct).',
)
flags.DEFINE_enum(
  'check',
  'auto',
  (*verify.CHECKS, 'auto'),
  'How to verify. exhaustive: every logit of every query; certificate: a bound on the margin of '
  'every query from its answer slot alone; universal: every possible content of an embedding, for '
  'all fact tables at once; auto: exhaustive up to 2³¹ logits, certificate beyond.',
)
flags.DEFINE_enum('facts', 'bijections', ('bijections', 'maps'), 'Kind of random facts.')
flags.DEFINE_integer(
  'bits', None, 'b, the bits per coordinate of selector_multilevel (default: 4).', lower_bound=1
)
flags.DEFINE_integer(
  'hops_per_layer', None, 'j, the hops per layer of factored takes (default: 1).', lower_bound=1
)
flags.DEFINE_bool('save', True, 'Save the models.')

OPTIONS = ('dim', 'width', 'bits', 'hops_per_layer', 'seed')
COLUMNS = (
  'construction', 'subjects', 'relations', 'hops', 'dim', 'width', 'heads', 'depth', 'check',
  'queries', 'accuracy', 'min_margin', 'parameters', 'build_seconds', 'check_seconds',
)  # fmt: skip


def _names() -> tuple[list[str], bool]:
  """The constructions asked for, and whether that was all of them."""
  names = FLAGS.construction or ['all']
  if 'all' in names:
    if len(names) > 1:
      raise InputError(
        f'--construction=all already has {names[1 if names[0] == "all" else 0]}; give one or the other'
      )
    return list(registry.REGISTRY), True
  return [name for name in dict.fromkeys(names) if registry.entry(name)], False


def _source() -> Callable[[bool], Facts]:
  """Where facts come from: the user's table or random ones."""
  if FLAGS.table is not None:
    for name in ('subjects', 'relations', 'facts'):
      if FLAGS[name].present:
        raise InputError(f'--{name} and --table contradict each other: the table decides')
    table = Facts.from_csv(FLAGS.table)
    return lambda own_answers: table
  subjects, relations = cli.value('subjects', 32), cli.value('relations', 4)
  fact.check_sizes(subjects, relations, _hops())
  return lambda own: building.random_facts(
    FLAGS.facts, subjects, relations, cli.value('seed', 0), own
  )


def _hops() -> int:
  return cli.value('hops', 1)


def _options(names: list[str], every: bool) -> dict:
  """Options that were given; each must mean something to what is built."""
  given = {name: FLAGS[name].value for name in OPTIONS if FLAGS[name].value is not None}
  for option in given.keys() - {'seed'}:
    deaf = [name for name in names if option not in registry.entry(name).options]
    if deaf == names or (deaf and not every):
      takers = [name for name, known in registry.REGISTRY.items() if option in known.options]
      raise InputError(
        f'--{option} means nothing to {deaf[0]}, whose size follows from the facts; it is for {", ".join(takers)}'
      )
  return given


def _of_others(built: Construction, record: dict) -> float | None:
  """The control: how often these weights give every subject the answers of the next one."""
  if record['check'] != 'exhaustive':
    return None
  next_RxN = np.roll(built.facts.answers_RxN, 1, axis=1)
  asked = built.replace(facts=dataclasses.replace(built.facts, answers_RxN=next_RxN))
  return verify.exhaustive(asked, record['dtype']).accuracy


def findings(records: list[dict]) -> list[Finding]:
  """A theorem's constructions: all queries right, by the margin proved; the control is others' facts."""
  found_all = []
  for record in records:
    known, name = registry.entry(record['construction']), record['construction'].replace('_', ' ')
    sizes = f'N = {record["subjects"]}, R = {record["relations"]}, k = {record["hops"]}'
    about = f'{name}, {sizes}: '
    others = [value for value in (record['others_facts'],) if value is not None]
    found_all += found(
      about + f'share of {record["queries"]:,} queries right', [record['accuracy']],
      1.0 if known.exact else None, claim=known.theorem, facts_of_others=others,
    )  # fmt: skip
    if record['promised_margin']:
      share = record['min_margin'] / record['promised_margin']
      found_all += found(about + 'least margin / margin proved', [share], 1.0, claim=known.theorem)
  return found_all


def main(argv):
  cli.no_arguments(argv)
  if FLAGS.list:
    records = [
      {'construction': name, 'proves': known.theorem, 'size': known.size, 'how': known.summary}
      for name, known in registry.REGISTRY.items()
    ]
    print(cli.table(('construction', 'proves', 'how', 'size'), records))
    return
  names, every = _names()
  options, source = _options(names, every), _source()
  folder = cli.workdir('runs/construct')
  for name in names if FLAGS.save else ():
    models.check_free(folder / name)
  records, skipped, waiting = [], {}, []
  for name in names:
    known, progress = registry.entry(name), cli.Progress(name)
    own = {option: value for option, value in options.items() if option in known.options}
    hops = _hops() if known.multi_hop or not every else 1
    try:
      built, record = building.build_and_check(
        name, source(known.own_answers), hops, dtype=FLAGS.dtype, check=FLAGS.check,
        progress=progress, **own,
      )  # fmt: skip
    except InputError as error:
      if not every:
        raise
      skipped.setdefault(str(error), []).append(name)
      continue
    finally:
      progress.clear()
    records.append(record | {'others_facts': _of_others(built, record)})
    waiting += [built] * FLAGS.save
    # Of those named, all are written or none; with all a refusal is no reason to keep any waiting.
    while waiting and (every or name == names[-1]):
      model = waiting.pop(0)
      models.save(folder / model.name, model)
  if not records:
    raise InputError(next(iter(skipped)))
  storage.write_results(folder, records)
  print(cli.table(COLUMNS, records))
  for reason, without in skipped.items():
    print(f'skipped {", ".join(without)}: {reason}')
  saved = f'; models: {folder}/CONSTRUCTION, ask them with experiments.ask' if FLAGS.save else ''
  print(f'records: {folder / "results.json"}{saved}')
  broken = [record['construction'] for record in records if building.failed(record)]
  if broken:
    raise SystemExit(f'FAILED: {", ".join(broken)} did not keep the promised accuracy and margin')


if __name__ == '__main__':
  cli.run(main)
