"""Build constructions, check them on every query, print the table, save the models.

  python -m experiments.construct --construction=selector --subjects=1000 --relations=4
  python -m experiments.construct --construction=all --hops=2
  python -m experiments.construct --construction=selector --table=facts.csv

With --construction=all every construction is built that can be for these facts; those of one hop
answer one hop, the others --hops. `--list` shows their names. Each model is saved to
WORKDIR/CONSTRUCTION, where experiments.ask finds it.
"""

import time
from collections.abc import Callable

import jax
from absl import flags

from constructions import registry
from experiments import cli
from geomem import checkpoint, verify
from geomem import facts as fact
from geomem.construction import Construction, check_representable
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.ledger import ledger

FLAGS = flags.FLAGS
cli.define('construction', 'subjects', 'relations', 'hops', 'dim', 'width')
cli.define('seed', 'dtype', 'workdir')
flags.DEFINE_enum(
  'check',
  'auto',
  (*verify.CHECKS, 'auto'),
  'How to verify: every logit of every query; a bound on the margin of every query from its answer '
  'slot alone; every possible content of an embedding, for all fact tables at once; or exhaustive '
  'where that is at most 2³¹ logits and certificate beyond.',
)
flags.DEFINE_enum('facts', 'bijections', ('bijections', 'maps'), 'Kind of random facts.')
flags.DEFINE_string(
  'table', None, 'CSV or TSV file of subject, relation, attribute: your own facts instead.'
)
flags.DEFINE_integer('bits', None, 'b, the bits a coordinate of selector_multilevel (default 4).')
flags.DEFINE_integer(
  'hops_per_layer', None, 'j, the hops that a layer of factored takes (default 1).'
)
flags.DEFINE_bool('save', True, 'Save the models.')
flags.DEFINE_bool('list', False, 'List the constructions, one line each, and stop.')

AUTO_LOGITS = 2**31
OPTIONS = ('dim', 'width', 'bits', 'hops_per_layer', 'seed')
COLUMNS = (
  'construction', 'subjects', 'relations', 'hops', 'dim', 'width', 'heads', 'depth', 'check',
  'queries', 'accuracy', 'min_margin', 'parameters', 'build_seconds', 'check_seconds',
)  # fmt: skip


def random_facts(kind: str, subjects: int, relations: int, seed: int, own_answers: bool) -> Facts:
  """Facts as a construction wants them: all relations into the subjects, or each into its own set."""
  key = jax.random.key(seed)
  if own_answers:
    return fact.disjoint(key, subjects, relations, subjects)
  return {'bijections': fact.bijections, 'maps': fact.maps}[kind](key, subjects, relations)


def choose_check(construction: Construction, check: str) -> str:
  if check != 'auto':
    return check
  logits = construction.queries * construction.facts.attributes
  return 'exhaustive' if construction.readout is None or logits <= AUTO_LOGITS else 'certificate'


def build_and_check(
  name: str, facts: Facts, hops: int, *, dtype: str, check: str, progress=None, **options
) -> tuple[Construction, dict]:
  """One construction, built and verified, and its record."""
  start = time.perf_counter()
  built = registry.build(name, facts, hops, **options)
  if registry.entry(name).exact and name != 'selector_normed':
    check_representable(built.params, dtype)
  built_at = time.perf_counter()
  check = choose_check(built, check)
  report = getattr(verify, check)(built, dtype, progress=progress)
  checked_at = time.perf_counter()
  book = ledger(
    built.config, built.params, facts, hops, chain_of_thought=built.chain_of_thought
  )
  return built, {
    'construction': name,
    'subjects': facts.subjects,
    'relations': facts.relations,
    'hops': hops,
    'dim': built.config.dim,
    'width': max((max(hidden, default=0) for hidden in book.hidden), default=0),
    'heads': max(book.heads),
    'depth': book.depth,
    'dtype': dtype,
    'check': check,
    'queries': report.queries,
    'accuracy': report.accuracy,
    'min_margin': report.min_margin,
    'promised_margin': built.margin,
    'parameters': book.total_parameters,
    'subject_bits': book.subject_bits,
    'internal_bits': book.internal_bits,
    'build_seconds': built_at - start,
    'check_seconds': checked_at - built_at,
  }


def failed(record: dict) -> bool:
  """Whether an exact construction broke its promise."""
  promised = record['promised_margin']
  return promised is not None and (record['accuracy'] < 1 or record['min_margin'] < promised)


def _names() -> tuple[list[str], bool]:
  """The constructions asked for, and whether that was all of them."""
  names = FLAGS.construction or ['all']
  if 'all' in names:
    if len(names) > 1:
      raise InputError(f'--construction=all already has {names[1 if names[0] == "all" else 0]}; give one or the other')
    return list(registry.REGISTRY), True
  return [name for name in dict.fromkeys(names) if registry.entry(name)], False


def _source() -> Callable[[bool], Facts]:
  """Where facts come from: the user's table or random ones."""
  if FLAGS.table is not None:
    for name in ('subjects', 'relations', 'facts'):
      if FLAGS[name].present:
        raise InputError(f'--{name} and --table contradict each other: the table decides')
    table = fact.read_table(FLAGS.table)
    return lambda own_answers: table
  subjects = 32 if FLAGS.subjects is None else FLAGS.subjects
  relations = 4 if FLAGS.relations is None else FLAGS.relations
  fact.check_sizes(subjects, relations, _hops())
  return lambda own: random_facts(FLAGS.facts, subjects, relations, FLAGS.seed, own)


def _hops() -> int:
  return 1 if FLAGS.hops is None else FLAGS.hops


def _options(names: list[str], every: bool) -> dict:
  """Options that were given; each must mean something to what is built."""
  given = {name: FLAGS[name].value for name in OPTIONS if FLAGS[name].value is not None}
  for option in given.keys() - {'seed'}:
    deaf = [name for name in names if option not in registry.entry(name).options]
    if deaf == names or (deaf and not every):
      takers = [name for name, known in registry.REGISTRY.items() if option in known.options]
      raise InputError(f'--{option} means nothing to {deaf[0]}, whose size follows from the facts; it is for {", ".join(takers)}')
    if given[option] < 1:
      raise InputError(f'--{option} is {given[option]}; it must be at least 1')
  return given


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
  records, skipped = [], []
  for name in names:
    known, progress = registry.entry(name), cli.Progress(name)
    own = {option: value for option, value in options.items() if option in known.options}
    hops = _hops() if known.multi_hop or not every else 1
    try:
      built, record = build_and_check(
        name, source(known.own_answers), hops, dtype=FLAGS.dtype, check=FLAGS.check,
        progress=progress, **own,
      )  # fmt: skip
    except InputError as error:
      if not every:
        raise
      skipped.append(error)
      continue
    finally:
      progress.clear()
    if FLAGS.save:
      checkpoint.save(folder / name, built)
    records.append(record)
  if not records:
    raise skipped[0]
  cli.write_results(folder, records)
  print(cli.table(COLUMNS, records))
  for error in skipped:
    print(f'skipped: {error}')
  print(f'records: {folder / "results.json"}' + (f'; models: {folder}/NAME' if FLAGS.save else ''))
  broken = [record['construction'] for record in records if failed(record)]
  if broken:
    raise SystemExit(f'FAILED: {", ".join(broken)} did not keep the promised accuracy and margin')


if __name__ == '__main__':
  cli.run(main)
