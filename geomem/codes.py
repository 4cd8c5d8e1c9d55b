"""Codes: how an attribute (or relation, or position) is written into a few coordinates.

A code is a frozen description; `words()` is its codebook, one row a symbol, made without a Python
loop over symbols.
"""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
from chex import Array

from geomem.errors import InputError


def log2_ceil(count: int) -> int:
  """⌈log₂ count⌉; 0 for a single symbol."""
  return (count - 1).bit_length()


@dataclasses.dataclass(frozen=True)
class Code:
  """`count` symbols in `width` coordinates. Answers can be read from a code that bounds their margin."""

  count: int
  has_levels = False  # whether a multiple of a word can be another word

  @property
  def width(self) -> int:
    raise NotImplementedError

  def words(self) -> np.ndarray:
    raise NotImplementedError

  def rows(self) -> np.ndarray:
    """Its unembedding."""
    return self.words()

  def margin_bound(self, u_BxM: Array, x_BxM: Array) -> Array:
    """A proof from the slot's contents alone that the right answer wins over all others."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Bits(Code):
  """The index in binary, entries 0 and 1, width ⌈log₂ count⌉."""

  has_levels = True

  @property
  def width(self) -> int:
    return log2_ceil(self.count)

  def words(self) -> np.ndarray:
    index = np.arange(self.count, dtype=np.int32)[:, None]
    return ((index >> np.arange(self.width)) & 1).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Sign(Bits):
  """The index in binary, entries ±1: equal norms, so ⟨c_a, λ c_b⟩ is largest at a = b."""

  has_levels = False

  def words(self) -> np.ndarray:
    return 2 * super().words() - 1

  def margin_bound(self, u_BxM: Array, x_BxM: Array) -> Array:
    """⟨c_a − c_b, x⟩ = 2 Σ over the h ≥ 1 differing i of c_a,i x_i ≥ 2 min_i c_a,i x_i, if that is ≥ 0."""
    return 2 * jnp.min(u_BxM * x_BxM, axis=-1)


@dataclasses.dataclass(frozen=True)
class OneHot(Code):
  """One coordinate a symbol."""

  @property
  def width(self) -> int:
    return self.count

  def words(self) -> np.ndarray:
    return np.eye(self.count, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class ConstantWeight(Code):
  """Entries 0 and 1, exactly ⌊m/2⌋ ones, m the smallest with C(m, ⌊m/2⌋) ≥ count: needs no bias."""

  @property
  def width(self) -> int:
    m = 1
    while math.comb(m, m // 2) < self.count:
      m += 1
    return m

  @property
  def weight(self) -> int:
    return self.width // 2

  def words(self) -> np.ndarray:
    """Unrank every index at once in the combinatorial number system, highest coordinate first."""
    m, ones = self.width, self.weight
    choose = np.array([[math.comb(i, j) for j in range(ones + 1)] for i in range(m)], np.int64)
    rank = np.arange(self.count, dtype=np.int64)
    left = np.full(self.count, ones)
    words = np.zeros((self.count, m), np.float32)
    for i in reversed(range(m)):
      below = choose[i, left]  # the words that leave coordinate i at 0
      take = (rank >= below) & (left > 0)
      words[take, i] = 1
      rank -= np.where(take, below, 0)
      left -= take
    return words

  def margin_bound(self, u_BxM: Array, x_BxM: Array) -> Array:
    """a and b swap h ≥ 1 ones: ⟨c_a − c_b, x⟩ ≥ h (the least x on a one − the largest on a zero)."""
    least_one = jnp.min(jnp.where(u_BxM > 0.5, x_BxM, jnp.inf), axis=-1)
    largest_zero = jnp.max(jnp.where(u_BxM > 0.5, -jnp.inf, x_BxM), axis=-1)
    return least_one - largest_zero


@dataclasses.dataclass(frozen=True)
class MultiLevel(Code):
  """The index in base 2^bits, one digit per coordinate: fewer coordinates, the same number of bits.

  Not of equal norm, so it is read by 2⟨v_a, x⟩ − |v_a|²; the first coordinate of its unembedding
  meets a constant 1 and carries −|v_a|².
  """

  bits: int
  has_levels = True

  def __post_init__(self) -> None:
    if not 1 <= self.bits <= 24:
      raise InputError(f'multi-level code: bits per coordinate is {self.bits}; it must be 1 … 24')

  @property
  def width(self) -> int:
    return -(-log2_ceil(self.count) // self.bits)

  @property
  def top(self) -> int:
    return 2**self.bits - 1

  def words(self) -> np.ndarray:
    index = np.arange(self.count, dtype=np.int64)[:, None]
    return ((index >> (self.bits * np.arange(self.width))) & self.top).astype(np.float32)

  def rows(self) -> np.ndarray:
    words = self.words()
    return np.concatenate([-np.sum(words**2, axis=1, keepdims=True), 2 * words], axis=1)

  def margin_bound(self, u_BxM: Array, x_BxM: Array) -> Array:
    """|x − v_b|² − |x − v_a|² ≥ Σ over differing i of δ_i² − 2|e_i||δ_i| ≥ 1 − 2 max|e|, e = x − v_a.

    A constant other than 1 would weigh |v|² wrongly; it certifies nothing.
    """
    error = jnp.max(jnp.abs(x_BxM[..., 1:] - u_BxM[..., 1:] / 2), axis=-1)
    return jnp.where(x_BxM[..., 0] == 1, 1 - 2 * error, -jnp.inf)


@dataclasses.dataclass(frozen=True)
class Linear(Code):
  """The index in binary, times a random generator matrix: `length` signs, words that differ in many of them."""

  length: int
  seed: int = 0

  @property
  def width(self) -> int:
    return self.length

  @functools.cached_property
  def _generator_KxM(self) -> np.ndarray:
    shape = log2_ceil(self.count), self.length
    return np.random.default_rng(self.seed).integers(0, 2, shape, np.uint8)

  def words(self) -> np.ndarray:
    return 1 - 2 * (Bits(self.count).words() @ self._generator_KxM.astype(np.float32) % 2)

  @functools.cached_property
  def weights(self) -> np.ndarray:
    """How many of all 2^k − 1 words differ from any one in 0, 1, … m signs, k = ⌈log₂ count⌉."""
    ones = np.arange(2**16)[:, None] >> np.arange(16) & 1  # of every 16-bit number
    ones = ones.sum(axis=1).astype(np.int32)
    weight_W = np.zeros(1, np.int32)
    for column in np.array_split(self._generator_KxM, -(-self.length // 16), axis=1):
      part_W = np.zeros(1, np.uint16)
      for row in column @ (1 << np.arange(column.shape[1])):
        part_W = np.concatenate([part_W, part_W ^ np.uint16(row)])
      weight_W = weight_W + ones[part_W]
    return np.bincount(weight_W[1:], minlength=self.length + 1)

  @property
  def distance(self) -> int:
    """The least number of signs in which two words differ; 0 where two are the same."""
    return int(np.argmax(self.weights > 0)) if self.count > 1 else self.length

  def margin_bound(self, u_BxM: Array, x_BxM: Array) -> Array:
    """⟨c_a − c_b, x⟩ = 2 Σ over at least `distance` differing i of c_a,i x_i: at least the smallest, and all below 0."""
    agree_BxM = jnp.sort(u_BxM * x_BxM, axis=-1)
    rest = jnp.minimum(agree_BxM[..., self.distance :], 0)
    return 2 * (jnp.sum(agree_BxM[..., : self.distance], axis=-1) + jnp.sum(rest, axis=-1))


def best_linear(count: int, length: int, tries: int = 64) -> Linear:
  """The largest distance among so many seeds, fewer where there are many words."""
  tries = max(1, min(tries, 2**20 >> log2_ceil(count)))
  return max((Linear(count, length, seed) for seed in range(tries)), key=lambda code: code.distance)
