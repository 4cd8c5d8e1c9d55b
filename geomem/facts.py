"""Facts: R maps from subjects to attributes, their composition, and the token sequences that ask for them.

Shapes: N subjects, R relations, K hops, B queries, A attributes.
Tokens: t < N is subject t, N + r is relation r.
"""

import csv
import dataclasses
import math
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np

from geomem.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Facts:
  """`answers_RxN[r, s]` is the attribute g_r(s), in [0, attributes). Names are optional.

  Facts are *closed* when attributes are subjects, number for number: only then can hops be chained.
  """

  answers_RxN: np.ndarray
  attributes: int
  closed: bool = True
  subject_names: tuple[str, ...] | None = None
  relation_names: tuple[str, ...] | None = None
  attribute_names: tuple[str, ...] | None = None

  def __post_init__(self):
    answers = self.answers_RxN
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
        f'facts: {self.attributes} attributes cannot be the {answers.shape[1]} subjects'
      )
    sizes = {'subject': self.subjects, 'relation': self.relations, 'attribute': self.attributes}
    for kind, size in sizes.items():
      if (names := getattr(self, f'{kind}_names')) is not None and len(names) != size:
        raise InputError(f'facts: {len(names)} {kind} names for {size} {kind}s')

  @property
  def subjects(self) -> int:
    return self.answers_RxN.shape[1]

  @property
  def relations(self) -> int:
    return self.answers_RxN.shape[0]

  @property
  def bijective(self) -> bool:
    """Whether every relation is a bijection of the subjects: what the lower bounds speak about."""
    return self.attributes == self.subjects and all(
      len(np.unique(answers_N)) == self.subjects for answers_N in self.answers_RxN
    )

  def subject_name(self, s: int) -> str:
    return self.subject_names[s] if self.subject_names else f's{s}'

  def relation_name(self, r: int) -> str:
    return self.relation_names[r] if self.relation_names else f'r{r}'

  def attribute_name(self, a: int) -> str:
    if self.attribute_names:
      return self.attribute_names[a]
    return self.subject_name(a) if self.closed else f'a{a}'

  def own_sets(self) -> tuple[np.ndarray, np.ndarray]:
    """For every attribute the one relation that it answers, and its number among that one's answers."""
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
        f"disjoint: {self.attribute_name(a)!r} is nobody's answer, so it has no relation"
      )
    return relation_A, index_A


def check_sizes(subjects: int, relations: int, hops: int = 1):
  """Refuse sizes that no table of facts can have, or whose queries could not be numbered."""
  if subjects < 2:
    raise InputError(f'subjects is {subjects}; it must be at least 2')
  if relations < 1:
    raise InputError(f'relations is {relations}; it must be at least 1')
  if hops < 1:
    raise InputError(f'hops is {hops}; it must be at least 1')
  if subjects * relations > 2**28:
    raise InputError(f'{subjects} subjects × {relations} relations are more than 2²⁸ facts')
  if hops * math.log2(max(relations, 2)) > 62 or subjects * relations**hops >= 2**62:
    raise InputError(f'{relations} relations over {hops} hops make more than 2⁶² queries')


def check_fit(facts: Facts, config):
  """Refuse facts of other sizes than the model that is to know them."""
  sizes = (facts.subjects, facts.relations)
  if sizes != (config.subjects, config.relations) or facts.attributes > config.answers:
    raise InputError(
      f'facts of {facts.subjects} subjects, {facts.relations} relations, {facts.attributes} answers do not '
      f'fit a model of {config.subjects}, {config.relations}, {config.answers}; give it its own'
    )


def check_closed(facts: Facts, hops: int):
  """Hops can be chained only where attributes are subjects."""
  if hops < 1:
    raise InputError(f'hops is {hops}; it must be at least 1')
  if not facts.closed:
    strange = set(facts.attribute_names or ()) - set(facts.subject_names or ())
    names = [name for name in facts.attribute_names or () if name in strange]
    which = f'{names[0]!r} is not a subject' if names else 'some attributes are not subjects'
    raise InputError(f'these facts cannot be chained: {which}')


def bijections(key, subjects: int, relations: int) -> Facts:
  """R independent uniform permutations of the subjects."""
  check_sizes(subjects, relations)
  return Facts(_permutations(key, subjects, relations), subjects)


def maps(key, subjects: int, relations: int, attributes: int | None = None) -> Facts:
  """R independent uniform maps into the subjects, or into `attributes` symbols of their own."""
  check_sizes(subjects, relations)
  size = subjects if attributes is None else attributes
  if size < 2:
    raise InputError(f'attributes is {size}; it must be at least 2')
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  answers_RxN = rng.integers(0, size, (relations, subjects), np.int32)
  return Facts(answers_RxN, size, closed=attributes is None)


def disjoint(key, subjects: int, relations: int, attributes_each: int) -> Facts:
  """Relation r answers in a set of its own, r·D … (r+1)·D − 1, by a random map onto it."""
  check_sizes(subjects, relations)
  if not 1 <= attributes_each <= subjects:
    raise InputError(f'{attributes_each} answers a relation; need 1 … {subjects}, the subjects')
  inner_RxN = _permutations(key, subjects, relations) % attributes_each
  offset_Rx1 = np.arange(relations, dtype=np.int32)[:, None] * attributes_each
  return Facts(inner_RxN + offset_Rx1, relations * attributes_each, closed=False)


def _permutations(key, subjects: int, relations: int) -> np.ndarray:
  """From NumPy's generator, seeded by the key: a tenth of a second for 10⁶ subjects, and no compilation."""
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  return np.stack([rng.permutation(subjects) for _ in range(relations)]).astype(np.int32)


def every_content(choices) -> np.ndarray:
  """All ways to pick one answer from each of the W arrays `choices`: W × (their number)."""
  picks = np.meshgrid(*choices, indexing='ij', copy=False)
  return np.stack([pick.ravel() for pick in picks]).astype(np.int32)


# --- a user's own facts ---------------------------------------------------------------------------

COLUMNS = ('subject', 'relation', 'attribute')


def read_table(path: str | os.PathLike) -> Facts:
  """Facts from a CSV or TSV file with the columns subject, relation, attribute (a header is optional).

  Symbols are numbered in order of appearance. If every attribute is also a subject, the facts are
  closed and can be chained.
  """
  rows = _rows(path)
  subjects, relations, attributes = (
    {name: i for i, name in enumerate(dict.fromkeys(column))} for column in zip(*rows, strict=True)
  )
  if min(len(subjects), len(attributes)) < 2:
    raise InputError(
      f'{path}: {len(subjects)} subject(s) and {len(attributes)} attribute(s); '
      'at least 2 of each are needed to tell one from another'
    )
  closed = attributes.keys() <= subjects.keys()
  if closed:
    attributes = subjects
  given = {}
  for subject, relation, attribute in rows:
    at = relations[relation], subjects[subject]
    if at in given:
      raise InputError(
        f'{path}: {subject!r} has more than one row for relation {relation!r}; give one'
      )
    given[at] = attributes[attribute]
  shape = len(relations), len(subjects)
  if len(given) < math.prod(
    shape
  ):  # found before the table is made: it can be the square of the file
    r, s = next(at for at in np.ndindex(shape) if at not in given)
    raise InputError(
      f'{path}: no row for subject {list(subjects)[s]!r} and relation {list(relations)[r]!r}; '
      'every subject needs one row for every relation'
    )
  answers = np.zeros(shape, np.int32)
  for at, answer in given.items():
    answers[at] = answer
  return Facts(answers, len(attributes), closed, *map(tuple, (subjects, relations, attributes)))


def read_many(path: str | os.PathLike) -> dict[str, dict[str, tuple[str, ...]]]:
  """Relation → subject → its attributes, of such a file in which a row may be missing, or one of several."""
  found: dict[str, dict[str, dict[str, None]]] = {}
  for subject, relation, attribute in _rows(path):
    values = found.setdefault(relation, {}).setdefault(subject, {})
    values[attribute] = None
  return {
    relation: {subject: tuple(values) for subject, values in subjects.items()}
    for relation, subjects in found.items()
  }


def _rows(path) -> list[tuple[str, str, str]]:
  """The file's non-empty rows, each three non-empty names, the header dropped."""
  delimiter = '\t' if str(path).lower().endswith('.tsv') else ','
  rows: list[tuple[str, str, str]] = []
  try:
    with open(path, newline='', encoding='utf-8-sig') as file:
      reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
      for cells in reader:
        row = tuple(cell.strip() for cell in cells)
        if any('\0' in cell for cell in row):
          raise csv.Error('a NUL character, which no name has')
        if not any(row) or (not rows and tuple(c.lower() for c in row) == COLUMNS):
          continue
        if len(row) != 3 or not all(row):
          raise InputError(
            f'{path}, line {reader.line_num}: {delimiter.join(row)!r} is not three names '
            f'(subject, relation, attribute) separated by {"tabs" if delimiter != "," else "commas"}'
          )
        rows.append(row)
  except OSError as error:
    raise InputError(f'{path}: cannot be read: {error.strerror}') from error
  except UnicodeDecodeError as error:
    raise InputError(f'{path}: not a text table in UTF-8: {error}') from error
  except csv.Error as error:
    raise InputError(f'{path}, line {reader.line_num}: not a text table: {error}') from error
  if not rows:
    raise InputError(f'{path}: no rows; expected lines of subject, relation, attribute')
  return rows


# --- queries and their tokens ---------------------------------------------------------------------


def compose(answers_RxN, subjects_B, paths_BxK):
  """Every subject on the way: s_1 = g_{r_1}(s), …, s_K, as an array of shape BxK."""
  chex.assert_shape(paths_BxK, (*jnp.shape(subjects_B), None))
  answers_RxN = jnp.asarray(answers_RxN)

  def hop(s_B, r_B):
    s_B = answers_RxN[r_B, s_B]
    return s_B, s_B

  return jnp.moveaxis(jax.lax.scan(hop, subjects_B, jnp.moveaxis(paths_BxK, -1, 0))[1], 0, -1)


def tree(answers_RxN: np.ndarray, hops: int) -> np.ndarray:
  """The answers to all R^k paths (in the order of `every_path`) for every subject, R^k × N."""
  n = answers_RxN.shape[1]
  tree_WxN = np.arange(n, dtype=np.int32)[None]
  for _ in range(hops):
    tree_WxN = answers_RxN[:, tree_WxN].swapaxes(0, 1).reshape(-1, n)
  return tree_WxN


def look_up(tree_WxN, subjects_B, paths_BxK):
  """The last step of `compose`, Bx1, where all answers of a subject are given outright, as `tree` does."""
  relations = round(tree_WxN.shape[0] ** (1 / paths_BxK.shape[-1]))
  powers = (relations ** np.arange(paths_BxK.shape[-1] - 1, -1, -1)).astype(np.int32)
  return tree_WxN[paths_BxK @ powers, subjects_B][..., None]


def prompts(subjects: int, subjects_B, paths_BxK):
  """Tokens s r₁ … r_k."""
  return jnp.concatenate([subjects_B[..., None], subjects + paths_BxK], axis=-1)


def chains(answers_RxN, subjects_B, paths_BxK):
  """Tokens s r₁ … r_k s₁ … s_k: the prompt, and the chain of thought that ends in the answer."""
  tokens = prompts(answers_RxN.shape[1], subjects_B, paths_BxK)
  return jnp.concatenate([tokens, compose(answers_RxN, subjects_B, paths_BxK)], axis=-1)


def paths(relations: int, hops: int, index) -> np.ndarray:
  """The index-th paths of relations in base R, first hop most significant, as an array of ...xK."""
  powers = relations ** np.arange(hops - 1, -1, -1, dtype=np.int64)
  return (np.asarray(index, np.int64)[..., None] // powers % relations).astype(np.int32)


def every_path(relations: int, hops: int) -> np.ndarray:
  return paths(relations, hops, np.arange(relations**hops))


@dataclasses.dataclass(frozen=True)
class Block:
  """The queries subjects_S × paths_PxK. Blocks are all of one size; `valid_SxP` marks real queries."""

  subjects_S: np.ndarray
  paths_PxK: np.ndarray
  valid_SxP: np.ndarray


def blocks(subjects: int, relations: int, hops: int, size: int):
  """All N·R^k queries as equal blocks of at most about `size`, made one at a time."""
  total = relations**hops
  p = min(total, size)
  s = max(1, min(subjects, size // p))
  for first_path in range(0, total, p):
    path = first_path + np.arange(p)
    path_block = paths(relations, hops, np.minimum(path, total - 1))
    for first in range(0, subjects, s):
      subject = first + np.arange(s)
      valid = (subject < subjects)[:, None] & (path < total)[None]
      yield Block(np.minimum(subject, subjects - 1).astype(np.int32), path_block, valid)


def count_blocks(subjects: int, relations: int, hops: int, size: int) -> int:
  total = relations**hops
  p = min(total, size)
  s = max(1, min(subjects, size // p))
  return -(-total // p) * -(-subjects // s)


def sampled_blocks(key, subjects: int, relations: int, hops: int, count: int, size: int):
  """At least `count` uniform queries as equal blocks: random subjects, each with all of some random paths."""
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  size = min(size, count)
  p = min(relations**hops, math.isqrt(size))
  s = size // p
  for _ in range(-(-count // (s * p))):
    subject_S = rng.integers(0, subjects, s, np.int32)
    yield Block(subject_S, rng.integers(0, relations, (p, hops), np.int32), np.ones((s, p), bool))
