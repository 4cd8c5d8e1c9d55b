"""Facts: R maps from subjects to attributes.

Shapes: N subjects, R relations, A attributes.
"""

import dataclasses
import math
import os
from collections.abc import Sequence

import numpy as np

from geomem import tables
from geomem.config import Config
from geomem.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Facts:
  """`answers_RxN[r, s]` is the attribute g_r(s), in [0, attributes). Names are optional.

  Facts are *closed* when attribute i is subject i for every i: only then can hops be chained. Equal
  numbers of attributes and subjects do not imply this; `closed=True` says so.

  >>> Facts.bijections(subjects=4, relations=2, seed=0).answers_RxN.shape
  (2, 4)
  """

  answers_RxN: np.ndarray
  attributes: int
  closed: bool = False
  subject_names: tuple[str, ...] | None = None
  relation_names: tuple[str, ...] | None = None
  attribute_names: tuple[str, ...] | None = None

  def __post_init__(self) -> None:
    answers = np.asarray(self.answers_RxN)
    object.__setattr__(self, 'answers_RxN', answers)
    if answers.ndim != 2 or answers.shape[0] < 1 or answers.shape[1] < 2:
      raise InputError(
        f'facts: answers have shape {answers.shape}; need R ≥ 1 rows of N ≥ 2 answers'
      )
    if not np.issubdtype(answers.dtype, np.integer):
      raise InputError(f'facts: answers are {answers.dtype}; they must be whole numbers')
    if self.attributes < 2:
      raise InputError(
        f'facts: {self.attributes} attribute(s); at least 2 are needed to tell one from another'
      )
    if answers.min() < 0 or answers.max() >= self.attributes:
      raise InputError(f'facts: an answer lies outside 0 … {self.attributes - 1}')
    if self.closed and self.attributes != answers.shape[1]:
      raise InputError(
        'facts: closed=True needs as many attributes as subjects, got '
        f'{self.attributes} and {answers.shape[1]}'
      )
    sizes = {'subject': self.subjects, 'relation': self.relations, 'attribute': self.attributes}
    for kind, size in sizes.items():
      if (names := getattr(self, f'{kind}_names')) is not None and len(names) != size:
        raise InputError(f'facts: {len(names)} {kind} names for {size} {kind}s')

  @classmethod
  def bijections(cls, subjects: int, relations: int, seed: int = 0) -> 'Facts':
    """R independent uniform permutations of the subjects."""
    check_sizes(subjects, relations)
    return cls(_permutations(_generator(seed), subjects, relations), subjects, closed=True)

  @classmethod
  def random_maps(
    cls, subjects: int, relations: int, attributes: int | None = None, seed: int = 0
  ) -> 'Facts':
    """R independent uniform maps into the subjects, or into `attributes` symbols of their own."""
    check_sizes(subjects, relations)
    size = subjects if attributes is None else attributes
    if size < 2:
      raise InputError(f'attributes is {size}; it must be at least 2')
    answers_RxN = _generator(seed).integers(0, size, (relations, subjects), np.int32)
    return cls(answers_RxN, size, closed=attributes is None)

  @classmethod
  def disjoint(cls, subjects: int, relations: int, attributes_each: int, seed: int = 0) -> 'Facts':
    """Relation r maps at random onto answers of its own, r·D … (r+1)·D − 1, D = `attributes_each`."""
    check_sizes(subjects, relations)
    if not 1 <= attributes_each <= subjects:
      raise InputError(f'{attributes_each} answers per relation; need 1 … {subjects}, the subjects')
    inner_RxN = _permutations(_generator(seed), subjects, relations) % attributes_each
    offset_Rx1 = np.arange(relations, dtype=np.int32)[:, None] * attributes_each
    return cls(inner_RxN + offset_Rx1, relations * attributes_each)

  @classmethod
  def from_csv(cls, path: str | os.PathLike) -> 'Facts':
    """A CSV or TSV file with the columns subject, relation, attribute; see `tables.read_table`."""
    return cls(**tables.read_table(path))

  @property
  def subjects(self) -> int:
    return self.answers_RxN.shape[1]

  @property
  def relations(self) -> int:
    return self.answers_RxN.shape[0]

  @property
  def bijective(self) -> bool:
    """Whether every relation is a bijection of the subjects, as the lower bounds assume."""
    return self.attributes == self.subjects and all(
      len(np.unique(answers_N)) == self.subjects for answers_N in self.answers_RxN
    )

  def subject_name(self, s: int) -> str:
    return self.subject_names[s] if self.subject_names else f's{s}'

  def relation_name(self, r: int) -> str:
    return self.relation_names[r] if self.relation_names else f'r{r}'

  def attribute_name(self, a: int) -> str:
    if a >= self.attributes:  # some models can output other tokens too
      return f'no attribute {a}'
    if self.attribute_names:
      return self.attribute_names[a]
    return self.subject_name(a) if self.closed else f'a{a}'

  def own_sets(self) -> tuple[np.ndarray, np.ndarray]:
    """For every attribute, the one relation that it answers and its index among that one's answers."""
    relation_A, index_A = np.full((2, self.attributes), -1)
    for r, answers_N in enumerate(self.answers_RxN):
      own = np.unique(answers_N)
      for a in own[relation_A[own] >= 0][:1]:
        raise InputError(
          f'disjoint: {self.attribute_name(a)!r} is an answer of {self.relation_name(relation_A[a])!r} '
          f'and of {self.relation_name(r)!r}; every relation needs answers of its own'
        )
      relation_A[own], index_A[own] = r, np.arange(len(own))
    for a in np.flatnonzero(relation_A < 0)[:1]:
      raise InputError(
        f'disjoint: {self.attribute_name(a)!r} is not an answer for any subject, so it has no relation'
      )
    return relation_A, index_A


def _generator(seed: int) -> np.random.Generator:
  """Seeded with the data of jax.random.key(seed), but without calling JAX, which would compile."""
  if not 0 <= seed < 2**32:
    raise InputError(f'seed is {seed}; it must be from 0 to 2^32 - 1')
  return np.random.default_rng(np.array([0, seed], np.uint32))


def _permutations(rng: np.random.Generator, subjects: int, relations: int) -> np.ndarray:
  return np.stack([rng.permutation(subjects) for _ in range(relations)]).astype(np.int32)


def check_sizes(subjects: int, relations: int, hops: int = 1) -> None:
  """Refuse sizes too small or too large for a table of facts, or with too many queries to number."""
  for name, size in {'subjects': subjects, 'relations': relations, 'hops': hops}.items():
    if size < (least := 1 + (name == 'subjects')):
      raise InputError(f'{name} is {size}; it must be at least {least}')
  if subjects * relations > 2**28:
    raise InputError(f'{subjects} subjects × {relations} relations are more than 2²⁸ facts')
  if hops * math.log2(max(relations, 2)) > 62 or subjects * relations**hops >= 2**62:
    raise InputError(f'{relations} relations over {hops} hops make more than 2⁶² queries')


def check_fit(facts: Facts, config: Config) -> None:
  """Refuse facts whose sizes do not fit the model that should store them."""
  sizes = (facts.subjects, facts.relations)
  if sizes != (config.subjects, config.relations) or facts.attributes > config.answers:
    raise InputError(
      f'facts of {facts.subjects} subjects, {facts.relations} relations, {facts.attributes} answers '
      f'do not fit a model of {config.subjects}, {config.relations}, {config.answers}; '
      'give it facts of its sizes'
    )


def check_closed(facts: Facts, hops: int) -> None:
  """Hops can be chained only where attributes are subjects."""
  if hops < 1:
    raise InputError(f'hops is {hops}; it must be at least 1')
  if not facts.closed:
    strange = set(facts.attribute_names or ()) - set(facts.subject_names or ())
    names = [name for name in facts.attribute_names or () if name in strange]
    which = f'{names[0]!r} is not a subject' if names else 'some attributes are not subjects'
    if facts.attributes == facts.subjects and not names:
      which = (
        'they are not marked as closed; if attribute i is subject i for every i, use '
        'Facts(..., closed=True)'
      )
    raise InputError(f'these facts cannot be chained: {which}')


def every_content(choices: Sequence[np.ndarray]) -> np.ndarray:
  """All ways to pick one answer from each of the W arrays `choices`: W × (their number)."""
  picks = np.meshgrid(*choices, indexing='ij', copy=False)
  return np.stack([pick.ravel() for pick in picks]).astype(np.int32)
