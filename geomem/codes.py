"""Codes: how an attribute (or relation, or position) is written into a few coordinates.

A code is a frozen dataclass; `words()` returns its codebook, one row per symbol, computed without a
Python loop over symbols.
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
  """`count` symbols in `width` coordinates. Answers can be read from a code with a `margin_bound`."""

  count: int
  has_levels = False  # whether a multiple of a word can be another word

  @property
  def width(self) -> int:
    raise NotImplementedError

  def words(self) -> np.ndarray:
    raise NotImplementedError

  def rows(self) -> np.ndarray:
    """The unembedding that reads this code, one row per symbol."""
    return self.words()

  def margin_bound(self, u_BxM: Array, x_BxM: Array) -> Array:
    """A lower bound on the margin from the slot's contents alone; positive: the right answer wins."""
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
    """⟨c_a − c_b, x⟩ = 2 Σ c_a,i x_i over the h ≥ 1 differing i; ≥ 2 min_i c_a,i x_i if that is ≥ 0."""
    return 2 * jnp.min(u_BxM * x_BxM, axis=-1)


@dataclasses.dataclass(frozen=True)
class OneHot(Code):
  """One coordinate per symbol."""

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
    """Unrank all indices at once in the combinatorial number system, highest coordinate first."""
    m, ones = self.width, self.weight
    choose = np.array([[math.comb(i, j) for j in range(ones + 1)] for i in range(m)], np.int64)
    rank = np.arange(self.count, dtype=np.int64)
    left = np.full(self.count, ones)
    words = np.zeros((self.count, m), np.float32)
    for i in reversed(range(m)):
      below = choose[i, left]  # the number of words with a 0 in coordinate i
      take = (rank >= below) & (left > 0)
      words[take, i] = 1
      rank -= np.where(take, below, 0)
      left -= take
    return words

  def margin_bound(self, u_BxM: Array, x_BxM: Array) -> Array:
    """c_b moves h ≥ 1 ones of c_a: ⟨c_a − c_b, x⟩ ≥ h (the least x on a one − the largest on a zero)."""
    least_one = jnp.min(jnp.where(u_BxM > 0.5, x_BxM, jnp.inf), axis=-1)
    largest_zero = jnp.max(jnp.where(u_BxM > 0.5, -jnp.inf, x_BxM), axis=-1)
    return least_one - largest_zero


@dataclasses.dataclass(frozen=True)
class MultiLevel(Code):
  """The index in base 2^bits, one digit per coordinate: fewer coordinates, the same number of bits.

  Words differ in norm, so the code is read by 2⟨v_a, x⟩ − |v_a|²: the first coordinate of the
  unembedding is −|v_a|², which multiplies a constant 1 in the slot.
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

    With a constant other than 1, |v|² would be weighted wrongly: the bound is then −∞.
    """
    error = jnp.max(jnp.abs(x_BxM[..., 1:] - u_BxM[..., 1:] / 2), axis=-1)
    return jnp.where(x_BxM[..., 0] == 1, 1 - 2 * error, -jnp.inf)


@dataclasses.dataclass(frozen=True)
class Linear(Code):
  """A random linear code: the index in binary times a random generator matrix, as `length` signs.

  Words differ in many signs.
  """

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
    """How many of the other 2^k − 1 words differ from any one in 0, 1, … m signs, k = ⌈log₂ count⌉."""
    ones = np.arange(2**16)[:, None] >> np.arange(16) & 1  # the bits of every 16-bit number
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
    """The least number of signs in which two of the 2^k words differ; 0 if two are equal."""
    return int(np.argmax(self.weights > 0)) if self.count > 1 else self.length

  def margin_bound(self, u_BxM: Array, x_BxM: Array) -> Array:
    """⟨c_a − c_b, x⟩ = 2 Σ c_a,i x_i over at least `distance` differing i.

    This is at least twice the sum of the `distance` smallest terms and of all other negative ones.
    """
    agree_BxM = jnp.sort(u_BxM * x_BxM, axis=-1)
    rest = jnp.minimum(agree_BxM[..., self.distance :], 0)
    return 2 * (jnp.sum(agree_BxM[..., : self.distance], axis=-1) + jnp.sum(rest, axis=-1))


def best_linear(count: int, length: int, tries: int = 64) -> Linear:
  """The code of the largest distance among `tries` seeds (fewer seeds if there are many words)."""
  tries = max(1, min(tries, 2**20 >> log2_ceil(count)))
  return max((Linear(count, length, seed) for seed in range(tries)), key=lambda code: code.distance)
