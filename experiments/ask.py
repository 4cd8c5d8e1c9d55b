"""Ask a saved model, and see how it finds the answer.

  python -m experiments.ask --workdir=runs/demo --construction=selector "s3 r1"
  python -m experiments.ask --workdir=runs/demo --construction=selector --trace "s3 r1"
  python -m experiments.ask --workdir=runs/demo --construction=selector --figure=s3.svg "s3 r1"

A query is a subject and one relation a hop, by name; names that contain spaces are separated by |
or commas, as in "Marie Curie | born in". Without a query in the arguments, queries are read from
standard input, one a line. Models are looked for where experiments.construct has saved them:
WORKDIR/CONSTRUCTION, by default in runs/construct; a WORKDIR that is a model itself is asked. The
answers go to ask/results.json beside the model's folder, with all up to a query that is refused.
Bad input ends in one line and exit status 2.
"""

import dataclasses
import functools
import json
import re
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments.figures import trace as trace_figure
from experiments.harness import cli, storage
from geomem import model
from geomem import queries as query
from geomem.config import Config
from geomem.construction import Construction, check_representable
from geomem.errors import InputError
from geomem.facts import Facts
from geomem.inside import trace
from geomem.saved import models
from geomem.tables import plain

FLAGS = flags.FLAGS
cli.define(
  'dtype',
  construction='Which model to ask; can be left out where the workdir holds only one.',
  workdir='Folder of the models; answers go to its ask/results.json (default: runs/construct).',
)
flags.DEFINE_bool(
  'trace',
  False,
  'Print what every token holds, what every head attends to, which hidden units fire, and what each '
  'slot decodes to at each layer.',
)
flags.DEFINE_string(
  'figure',
  None,
  'Draw what --trace prints to this .png, .pdf or .svg file, its numbers beside it as .trace.json.',
)

DEFAULT_WORKDIR = 'runs/construct'
PICTURES = ('.png', '.pdf', '.svg')
COLUMNS = ('query', 'answer', 'truth', 'correct', 'margin', 'runner_up')
CHAIN_COLUMNS = (*COLUMNS, 'step', 'wrong_step')


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
  """`steps`: the answer, with chain of thought after what leads to it. `margin` and `runner_up` are
  those of the least sure step, the `step`th; `tokens_L` is all that was read.
  """

  steps: tuple[int, ...]
  margin: float
  runner_up: int
  step: int
  tokens_L: np.ndarray


def answer(construction: Construction, subject: int, path, dtype: str = 'float32') -> Answer:
  """What the model says; with chain of thought it reads its own words, one more a step."""
  c = construction
  config = c.config.replace(dtype=dtype)
  tokens = [subject, *(c.facts.subjects + r for r in path)]
  steps, seconds = [], []
  for _ in range(c.hops if c.chain_of_thought else 1):
    tokens += steps[-1:]
    logits_A = np.array(_logits(config, c.params, np.array(tokens, np.int32)), np.float32)
    steps.append(int(np.argmax(logits_A)))
    best, logits_A[steps[-1]] = logits_A[steps[-1]], -np.inf
    seconds.append((float(best - logits_A.max()), int(np.argmax(logits_A)), len(steps)))
  least = min(reversed(seconds), key=lambda second: second[0])
  return Answer(tuple(steps), *least, np.array(tokens, np.int32))


@functools.partial(jax.jit, static_argnames='config')
def _logits(config: Config, params, tokens_L):
  """At the last position."""
  return model.apply(config, params, tokens_L[None], last=1)[0, -1]


def ask(construction: Construction, text: str, dtype: str = 'float32') -> dict:
  """The record of one question."""
  return _ask(construction, text, dtype)[0]


def _ask(c: Construction, text: str, dtype: str) -> tuple[dict, Answer]:
  subject, path = parse_query(c.facts, text, c.hops)
  check_representable(c, dtype)
  got = answer(c, subject, path, dtype)
  names = [c.facts.subject_name(subject), *map(c.facts.relation_name, path)]
  truths = query.walk(c.facts.answers_RxN, subject, path)
  pairs = enumerate(zip(got.steps, truths[-len(got.steps) :], strict=True), 1)
  record = {
    'construction': c.name,
    'query': trace.join_names(names),
    'answer': c.facts.attribute_name(got.steps[-1]),
    'truth': c.facts.attribute_name(truths[-1]),
    'correct': got.steps[-1] == truths[-1],
    'margin': got.margin,
    'runner_up': c.facts.attribute_name(got.runner_up),
    'step': got.step,
    'wrong_step': next((i for i, (step, true) in pairs if step != true), None),
    'dtype': dtype,
  }
  return record, got


def sentence(facts: Facts, record: dict, got: Answer) -> str:
  """`s3 r1 → s5   (correct, margin 4, runner-up s2)`; of a chain the least sure step and its error."""
  chain = ' → '.join(map(facts.attribute_name, got.steps))
  verdict = 'correct' if record['correct'] else f'wrong, it is {record["truth"]}'
  margin, second = f'margin {trace.number(record["margin"], 4)}', record['runner_up']
  aside = f'{margin}, runner-up {second}'
  if len(got.steps) > 1:
    said = facts.attribute_name(got.steps[got.step - 1])
    aside = f'least {margin} at step {got.step} ({said} over {second})'
    if record['wrong_step'] not in (None, len(got.steps)):
      verdict += f', step {record["wrong_step"]} wrong'
  return f'{record["query"]} → {chain}   ({verdict}, {aside})'


def parse_query(facts: Facts, text: str, hops: int) -> tuple[int, tuple[int, ...]]:
  """The numbers of the subject and the relations that `text` names.

  Names are separated by | or commas, or by spaces or a mixture where that leaves one reading.
  """
  subjects, relations, longest = _numbers(facts)
  text = plain(text)
  if not text:
    raise InputError(f'empty query; {_wanted(facts, hops)}')
  for separator, glue in (r'\|', ' | '), (',', ', '), (' ', ' '), (r' ?[|,] ?| ', ' '):
    fields = [field.strip() for field in re.split(separator, text)]
    readings = _readings(fields, glue.join, [subjects] + [relations] * hops, longest)
    if len(readings) > 1:
      raise InputError(f'{text!r} can be read in more than one way; separate the names by |')
    if readings:
      return readings[0][0], readings[0][1:]
  raise _complaint(facts, text, hops)


@functools.lru_cache(maxsize=2)
def _numbers(facts: Facts) -> tuple[dict[str, int], dict[str, int], int]:
  """Subjects and relations by name, and the most words that a name has."""
  subjects = {plain(facts.subject_name(s)): s for s in range(facts.subjects)}
  relations = {plain(facts.relation_name(r)): r for r in range(facts.relations)}
  longest = max(name.count(' ') + 1 for table in (subjects, relations) for name in table)
  return subjects, relations, longest


def _readings(fields, join, tables, longest: int) -> list[tuple[int, ...]]:
  """At most two ways to read all fields as one name from each table, in this order."""
  found = {0: [()]}
  for table in tables:
    longer = {}
    for start, readings in found.items():
      for stop in range(start + 1, min(start + longest, len(fields)) + 1):
        number = table.get(join(fields[start:stop]))
        if number is not None:
          longer.setdefault(stop, []).extend((*reading, number) for reading in readings)
    found = {stop: readings[:2] for stop, readings in longer.items()}
  return found.get(len(fields), [])


def _complaint(facts: Facts, text: str, hops: int) -> InputError:
  """What is wrong with a query that has no reading: the first unknown name, or the number of hops."""
  subjects, relations, longest = _numbers(facts)
  separator = next((s for s in '|,' if s in text), ' ')
  fields, known, at = [field.strip() for field in text.split(separator)], 0, 0
  while at < len(fields):
    table = relations if known else subjects
    stops = range(min(at + longest, len(fields)), at, -1)
    stop = next((j for j in stops if separator.join(fields[at:j]) in table), None)
    if stop is None:
      break
    known, at = known + 1, stop
  if at == len(fields):
    return InputError(f'{text!r} has {known - 1} relation(s); {_wanted(facts, hops)}')
  # With spaces between names and inside them, what is too many words is taken to be one name.
  spare = len(fields) - at - (hops + 1 - known) if separator == ' ' else 0
  given = separator.join(fields[at : at + 1 + max(0, min(spare, longest - 1))])
  kind = 'relation' if known else 'subject'
  return InputError(f'unknown {kind} {given!r}; {_suggestion(facts, kind, given)}')


def _suggestion(facts: Facts, kind: str, given: str) -> str:
  subjects, relations, _ = _numbers(facts)
  names = list(subjects if kind == 'subject' else relations)
  some = ', '.join(names) if len(names) <= 5 else f'{names[0]}, {names[1]} … {names[-1]}'
  if not getattr(facts, f'{kind}_names'):
    return f'the {kind}s are {some}'
  if len(names) > 20_000:  # difflib takes its time
    names = [name for name in names if name[:1].casefold() == given[:1].casefold()]
  close = get_close_matches(given, names, 3)
  return f'did you mean {" or ".join(map(repr, close))}?' if close else f'the {kind}s are {some}'


def _wanted(facts: Facts, hops: int) -> str:
  names = [facts.subject_name(0)] + [facts.relation_name(0)] * hops
  example = trace.join_names(names)
  return f'the model answers a subject and {hops} relation(s), like "{example}"'


def find_model(folder: Path, name: str | None) -> Path:
  """The model called `name`, or the only one in the folder, or the folder if it is the model."""
  if models.is_model(folder) and name in (None, folder.absolute().name):
    return folder
  if not folder.is_dir():
    raise InputError(f'--workdir={folder}: no such folder; experiments.construct saves models')
  names = models.names(folder)
  if name is None and len(names) == 1:
    return folder / names[0]
  if not names:
    raise InputError(f'--workdir={folder} holds no model; experiments.construct saves models')
  if name is None:
    raise InputError(f'choose one with --construction=NAME: {folder} holds {", ".join(names)}')
  if name not in names and not (folder / name).exists():
    close = [f'; did you mean {model!r}?' for model in get_close_matches(name, names, 1)]
    holds = ', '.join(names) + ''.join(close)
    raise InputError(f'--construction={name}: not in {folder}, which holds {holds}')
  return folder / name


def queries(arguments: list[str]) -> Iterator[str]:
  """Those given, else the lines of standard input that are not empty."""
  if not arguments and sys.stdin.isatty():
    print('one query a line, end with Ctrl-D', file=sys.stderr)
  try:
    yield from arguments or filter(str.strip, sys.stdin)
  except UnicodeDecodeError as error:
    raise InputError(f'standard input is not text in UTF-8: {error}') from error


def _unquoted(c: Construction, arguments: list[str]) -> str:
  """A hint where the arguments are the words of one query."""
  text = ' '.join(arguments)
  try:
    parse_query(c.facts, text, c.hops)
  except InputError:
    return ''
  return f'; a query goes in quotes: "{text}"' if len(arguments) > 1 else ''


def numbers(seen: trace.Trace) -> dict:
  """All that a figure shows, to be kept beside it."""
  return {
    'construction': seen.construction.name,
    'dtype': seen.dtype,
    'tokens': [seen.token(p) for p in range(len(seen.tokens_L))],
    'embedded': seen.embedded_LxD.tolist(),
    'blocks': [
      {
        'attention': block.attention_HxLxL.tolist(),
        'after_attention': block.read_LxD.tolist(),
        'hidden': [hidden_LxF.tolist() for hidden_LxF in block.hidden],
        'after_mlp': block.written_LxD.tolist(),
      }
      for block in seen.blocks
    ],
    'logits': {p: dict(seen.top(p)) for p in seen.positions},
  }


def show(seen: trace.Trace, in_words: bool, figure: Path | None):
  if in_words:
    print('\n'.join(['', *trace.lines(seen), '']), flush=True)
  if figure:
    trace_figure.draw(seen, figure)
    # NAME.json may be a run's records, as of runs/construct/results.svg.
    storage.write_text(figure.with_suffix('.trace.json'), json.dumps(numbers(seen)) + '\n')


def main(argv):
  names, figure = FLAGS.construction or [None], FLAGS.figure and Path(FLAGS.figure)
  if len(names) > 1 or names == ['all']:
    raise InputError('--construction: one model can be asked at a time; name one')
  if figure and figure.suffix.lower() not in PICTURES:
    raise InputError(f'--figure={figure}: cannot draw such a file; use {", ".join(PICTURES)}')
  if figure and not figure.parent.is_dir():
    raise InputError(f'--figure={figure}: there is no folder {figure.parent}; name one that exists')
  if figure and len(argv) != 2:
    raise InputError(f'--figure draws one query, in quotes; there are {len(argv) - 1}')
  path = find_model(Path(FLAGS.workdir or DEFAULT_WORKDIR), names[0])
  cli.workdir(DEFAULT_WORKDIR)
  c, records = models.load(path), []
  try:
    for text in queries(argv[1:]):
      try:
        record, got = _ask(c, text, FLAGS.dtype)
      except InputError as error:
        if argv[1:] or not sys.stdin.isatty():
          raise InputError(f'{error}{_unquoted(c, argv[1:])}') from error
        print(f'error: {error}', file=sys.stderr)
        continue
      records.append(record)
      print(sentence(c.facts, record, got), flush=True)
      if FLAGS.trace or figure:
        show(trace.trace_prompt(c, got.tokens_L, FLAGS.dtype), FLAGS.trace, figure)
  finally:
    if records:
      storage.write_results(path.absolute().parent / 'ask', records)
      print(cli.table(CHAIN_COLUMNS if c.chain_of_thought else COLUMNS, records), flush=True)
  if not records:
    raise InputError(f'no query; {_wanted(c.facts, c.hops)}')


if __name__ == '__main__':
  cli.run(main)
