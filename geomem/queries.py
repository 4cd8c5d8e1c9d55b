"""Queries (a subject and a path of relations), their tokens, and iterators over blocks of all queries.

Shapes: N subjects, R relations, K hops, B queries, W paths.
Tokens: t < N is subject t, N + r is relation r.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from chex import Array
from numpy.typing import ArrayLike


def compose(answers_RxN: Array, subjects_B: Array, paths_BxK: Array) -> Array:
  """All subjects along the paths: s_1 = g_{r_1}(s), …, s_K, as an array of shape BxK."""
  chex.assert_shape(paths_BxK, (*jnp.shape(subjects_B), None))
  answers_RxN = jnp.asarray(answers_RxN)

  def hop(s_B, r_B):
    s_B = answers_RxN[r_B, s_B]
    return s_B, s_B

  return jnp.moveaxis(jax.lax.scan(hop, subjects_B, jnp.moveaxis(paths_BxK, -1, 0))[1], 0, -1)


def walk(answers_RxN: Array, subject: int, path: Iterable[int]) -> list[int]:
  """`compose` for one query, in Python integers."""
  steps = [subject]
  for r in path:
    steps.append(int(answers_RxN[r, steps[-1]]))
  return steps[1:]


def tree(answers_RxN: np.ndarray, hops: int) -> np.ndarray:
  """The answers to all R^k paths (in the order of `every_path`) for every subject, R^k × N."""
  n = answers_RxN.shape[1]
  tree_WxN = np.arange(n, dtype=np.int32)[None]
  for _ in range(hops):
    tree_WxN = answers_RxN[:, tree_WxN].swapaxes(0, 1).reshape(-1, n)
  return tree_WxN


def look_up(tree_WxN: Array, subjects_B: Array, paths_BxK: Array) -> Array:
  """The last step of `compose`, Bx1, looked up in a table of all answers like that of `tree`."""
  relations = round(tree_WxN.shape[0] ** (1 / paths_BxK.shape[-1]))
  powers = (relations ** np.arange(paths_BxK.shape[-1] - 1, -1, -1)).astype(np.int32)
  return tree_WxN[paths_BxK @ powers, subjects_B][..., None]


def stops(hops: int, thoughts: int) -> tuple[int, ...]:
  """The hops after which t + 1 segments end: segments as equal as possible, the longer ones first.

  >>> stops(5, 1)
  (3, 5)
  """
  short, longer = divmod(hops, thoughts + 1)
  return tuple((i + 1) * short + min(i + 1, longer) for i in range(thoughts + 1))


def prompts(subjects: int, subjects_B: Array, paths_BxK: Array) -> Array:
  """Tokens s r₁ … r_k."""
  return jnp.concatenate([subjects_B[..., None], subjects + paths_BxK], axis=-1)


def chains(answers_RxN: Array, subjects_B: Array, paths_BxK: Array) -> Array:
  """Tokens s r₁ … r_k s₁ … s_k: the prompt, and the chain of thought that ends in the answer."""
  tokens = prompts(answers_RxN.shape[1], subjects_B, paths_BxK)
  return jnp.concatenate([tokens, compose(answers_RxN, subjects_B, paths_BxK)], axis=-1)


def paths(relations: int, hops: int, index: ArrayLike) -> np.ndarray:
  """The index-th paths of relations in base R, first hop most significant, as an array of ...xK."""
  powers = relations ** np.arange(hops - 1, -1, -1, dtype=np.int64)
  return (np.asarray(index, np.int64)[..., None] // powers % relations).astype(np.int32)


def every_path(relations: int, hops: int) -> np.ndarray:
  return paths(relations, hops, np.arange(relations**hops))


class QueryBlock(NamedTuple):
  """The queries subjects_S × paths_PxK. All blocks have one size; `valid_SxP` marks real queries."""

  subjects_S: np.ndarray
  paths_PxK: np.ndarray
  valid_SxP: np.ndarray


def blocks(subjects: int, relations: int, hops: int, size: int) -> Iterator[QueryBlock]:
  """All N·R^k queries in blocks of equal size, at most `size` queries each, generated one at a time."""
  total = relations**hops
  p = min(total, size)
  s = max(1, min(subjects, size // p))
  for first_path in range(0, total, p):
    path = first_path + np.arange(p)
    path_block = paths(relations, hops, np.minimum(path, total - 1))
    for first in range(0, subjects, s):
      subject = first + np.arange(s)
      valid = (subject < subjects)[:, None] & (path < total)[None]
      yield QueryBlock(np.minimum(subject, subjects - 1).astype(np.int32), path_block, valid)


def count_blocks(subjects: int, relations: int, hops: int, size: int) -> int:
  total = relations**hops
  p = min(total, size)
  s = max(1, min(subjects, size // p))
  return -(-total // p) * -(-subjects // s)


def sampled_blocks(
  key: Array, subjects: int, relations: int, hops: int, count: int, size: int
) -> Iterator[QueryBlock]:
  """At least `count` uniform queries in equal blocks, each of random subjects × random paths."""
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  size = min(size, count)
  p = min(relations**hops, math.isqrt(size))
  s = size // p
  for _ in range(-(-count // (s * p))):
    subject_S = rng.integers(0, subjects, s, np.int32)
    yield QueryBlock(
      subject_S, rng.integers(0, relations, (p, hops), np.int32), np.ones((s, p), bool)
    )
