"""Queries by name, and the model's answers to them.

A query is a subject and one relation per hop. Names that contain spaces are separated by | or commas, as in
"Marie Curie | born in".
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches

import jax
import numpy as np

from geomem import model, queries
from geomem.config import Config
from geomem.construction import check_representable
from geomem.errors import InputError
from geomem.facade import FactModel
from geomem.facts import Facts
from geomem.inside.trace import join_names, number
from geomem.tables import plain


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Answer:
  """A model's answer to a query, printed as one line.

  `steps`: the answer, preceded with chain of thought by the intermediate subjects. `margin` and `runner_up` belong to
  the step with the smallest margin, whose number is `step`. `wrong_step`: the first wrong step. `tokens_L`: all tokens
  that the model read.

  >>> constructions.build('selector', Facts.bijections(8, 2)).ask('s1 r0')
  s1 r0 → s4   (correct, margin 10, runner-up s0)
  """

  query: str
  answer: str
  truth: str
  correct: bool
  margin: float
  runner_up: str
  steps: tuple[str, ...]
  step: int
  wrong_step: int | None
  tokens_L: np.ndarray

  def __repr__(self) -> str:
    verdict = 'correct' if self.correct else f'wrong, it is {self.truth}'
    margin = f'margin {number(self.margin, 4)}'
    aside = f'{margin}, runner-up {self.runner_up}'
    if len(self.steps) > 1:
      said = self.steps[self.step - 1]
      aside = f'least {margin} at step {self.step} ({said} over {self.runner_up})'
      if self.wrong_step not in (None, len(self.steps)):
        verdict += f', step {self.wrong_step} wrong'
    return f'{self.query} → {" → ".join(self.steps)}   ({verdict}, {aside})'


def answer(c: FactModel, subject: int, path: Sequence[int], dtype: str = 'float32') -> Answer:
  """The model's answer; with chain of thought, every step appends the model's last output to the tokens it reads."""
  check_representable(c, dtype)
  config, facts, name = c.config.replace(dtype=dtype), c.facts, c.facts.attribute_name
  tokens = [subject, *(facts.subjects + r for r in path)]
  steps: list[int] = []
  runner_ups = []
  for step in range(1, 1 + len(c.said)):
    tokens += steps[-1:]
    logits_A = np.array(_logits(config, c.params, np.array(tokens, np.int32)), np.float32)
    steps.append(int(np.argmax(logits_A)))
    best, logits_A[steps[-1]] = logits_A[steps[-1]], -np.inf
    runner_ups.append((float(best - logits_A.max()), name(int(np.argmax(logits_A))), step))
  margin, runner_up, least = min(reversed(runner_ups), key=lambda one: one[0])
  walked = queries.walk(facts.answers_RxN, subject, path)
  truths = [walked[hop - 1] for hop in c.said]
  pairs = enumerate(zip(steps, truths, strict=True), 1)
  return Answer(
    query=_query(facts, subject, path),
    answer=name(steps[-1]),
    truth=name(truths[-1]),
    correct=steps[-1] == truths[-1],
    margin=margin,
    runner_up=runner_up,
    steps=tuple(map(name, steps)),
    step=least,
    wrong_step=next((i for i, (said, true) in pairs if said != true), None),
    tokens_L=np.array(tokens, np.int32),
  )


@functools.partial(jax.jit, static_argnames='config')
def _logits(config: Config, params, tokens_L):
  """Logits at the last position."""
  return model.apply(config, params, tokens_L[None], last=1)[0, -1]


def parse_query(facts: Facts, text: str, hops: int) -> tuple[int, tuple[int, ...]]:
  """The indices of the subject and the relations that `text` names.

  Names are separated by | or commas, or, where this leaves only one reading, by spaces or a mixture.
  """
  subjects, relations, longest = _numbers(facts)
  text = plain(text)
  if not text:
    raise InputError(f'empty query; {query_form(facts, hops)}')
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
  """Indices of subjects and relations by name, and the number of words in the longest name."""
  subjects = {plain(facts.subject_name(s)): s for s in range(facts.subjects)}
  relations = {plain(facts.relation_name(r)): r for r in range(facts.relations)}
  longest = max(name.count(' ') + 1 for table in (subjects, relations) for name in table)
  return subjects, relations, longest


def _readings(
  fields: list[str], join: Callable[[list[str]], str], tables: list[dict[str, int]], longest: int
) -> list[tuple[int, ...]]:
  """At most two ways to read all fields as one name from each table, in the order of the tables."""
  found: dict[int, list[tuple[int, ...]]] = {0: [()]}
  for table in tables:
    longer: dict[int, list[tuple[int, ...]]] = {}
    for start, readings in found.items():
      for stop in range(start + 1, min(start + longest, len(fields)) + 1):
        number = table.get(join(fields[start:stop]))
        if number is not None:
          longer.setdefault(stop, []).extend((*reading, number) for reading in readings)
    found = {stop: readings[:2] for stop, readings in longer.items()}
  return found.get(len(fields), [])


def _complaint(facts: Facts, text: str, hops: int) -> InputError:
  """The error for a query that has no reading: its first unknown name, or a wrong number of hops."""
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
    return InputError(f'{text!r} has {known - 1} relation(s); {query_form(facts, hops)}')
  # Where spaces separate names and also occur inside them, surplus words count as part of the unknown name.
  spare = len(fields) - at - (hops + 1 - known) if separator == ' ' else 0
  given = separator.join(fields[at : at + 1 + max(0, min(spare, longest - 1))])
  kind, names = ('relation', list(relations)) if known else ('subject', list(subjects))
  some = ', '.join(names) if len(names) <= 5 else f'{names[0]}, {names[1]} … {names[-1]}'
  if len(names) > 20_000:  # difflib is slow
    names = [name for name in names if name[:1].casefold() == given[:1].casefold()]
  close = get_close_matches(given, names, 3) if getattr(facts, f'{kind}_names') else []
  hint = f'did you mean {" or ".join(map(repr, close))}?' if close else f'the {kind}s are {some}'
  return InputError(f'unknown {kind} {given!r}; {hint}')


def _query(facts: Facts, subject: int, path: Sequence[int]) -> str:
  """The query by name, separated by | if any subject or relation has a name with a space."""
  names = [facts.subject_name(subject), *map(facts.relation_name, path)]
  return join_names(names, separate=_numbers(facts)[2] > 1)


def query_form(facts: Facts, hops: int) -> str:
  """The form of a valid query, with an example."""
  example = _query(facts, 0, [0] * hops)
  return f'the model answers a subject and {hops} relation(s), like "{example}"'
