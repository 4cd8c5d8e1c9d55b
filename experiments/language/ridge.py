"""What explains a vector: ridge regressions on groups of features, each fit held out by subject.

In the dual form, so that a group of features is a kernel, a weighted sum of groups a sum of kernels,
and all products of two groups' features their kernels' product. Plain NumPy: there are few subjects.

Shapes: S subjects, Q target coordinates, P features, K folds, G groups.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

STRENGTHS = (0.01, 0.05, 0.2, 1.0, 5.0, 50.0)  # ridge, as a fraction of the kernel's mean diagonal
WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0)  # of every group after the first


def folds(rng: np.random.Generator, subjects: int, count: int) -> np.ndarray:
  """Of every subject the fold in which it is held out."""
  return rng.permutation(np.arange(subjects) % count)


def kernel(features_SxP: np.ndarray) -> np.ndarray:
  """Centred, of mean diagonal one; zero if the features tell no two subjects apart."""
  x = np.asarray(features_SxP, np.float64)
  x = x - x.mean(axis=0)
  gram = x @ x.T
  return gram / max(np.trace(gram) / len(gram), 1e-12)


def products(kernels: Sequence[np.ndarray]) -> np.ndarray:
  """The kernel of all products of a feature of one group and a feature of another."""
  total = sum(a * b for a, b in itertools.combinations(kernels, 2))
  centred = total - total.mean(0) - total.mean(1)[:, None] + total.mean()
  return centred / max(np.trace(centred) / len(centred), 1e-12)


def mixtures(kernels: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
  """The kernels' weighted sums that are tried: the first has weight one."""
  for weights in itertools.product(WEIGHTS, repeat=len(kernels) - 1):
    terms = (w * k for w, k in zip((1.0, *weights), kernels, strict=True))
    mixed = sum(terms, np.zeros(()))
    yield mixed / max(np.trace(mixed) / len(mixed), 1e-12)


def _smoother(k_SxS, fit_T, held_H, strength):
  """The matrix that makes predictions for the held out of what is to be fitted, HxT."""
  gram = k_SxS[np.ix_(fit_T, fit_T)]
  middle = np.eye(len(fit_T)) - 1 / len(fit_T)  # an intercept of its own
  cross = k_SxS[np.ix_(held_H, fit_T)] - gram.mean(axis=0)
  solved = np.linalg.solve(middle @ gram @ middle + strength * np.eye(len(fit_T)), middle)
  return (cross @ middle @ solved + 1 / len(fit_T)).astype(np.float32)


def predict(
  kernels: Sequence[np.ndarray],
  y_SxQ: np.ndarray,
  fit_T: np.ndarray,
  held_H: np.ndarray,
  blocks: Sequence[int] | None = None,
) -> np.ndarray:
  """Predictions HxQ; mixture and ridge are the ones that predict held-out parts of what is fitted best.

  `blocks`: where Q is to be cut, each block choosing for itself (default: no cut).
  """
  mixed, inner = list(mixtures(kernels)), np.arange(len(fit_T)) % 4
  y_SxQ = y_SxQ.astype(np.float32)  # most of the time goes into products with it
  blocks = [0, y_SxQ.shape[1]] if blocks is None else blocks
  pieces = list(itertools.pairwise(blocks))
  options = list(itertools.product(range(len(mixed)), STRENGTHS))
  error = np.zeros((len(options), len(pieces)))
  for o, (m, strength) in enumerate(options):
    for i in range(4):
      fit, held = fit_T[inner != i], fit_T[inner == i]
      miss = (_smoother(mixed[m], fit, held, strength) @ y_SxQ[fit] - y_SxQ[held]) ** 2
      error[o] += [miss[:, a:b].sum() for a, b in pieces]
  out = np.empty((len(held_H), y_SxQ.shape[1]))
  for p, (a, b) in enumerate(pieces):
    m, strength = options[int(error[:, p].argmin())]
    out[:, a:b] = _smoother(mixed[m], fit_T, held_H, strength) @ y_SxQ[fit_T, a:b]
  return out


def held_out(
  kernels: Sequence[np.ndarray],
  y_SxQ: np.ndarray,
  fold_S: np.ndarray,
  blocks: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Predictions of every subject by those of the other folds; and the other folds' mean."""
  guess, mean = np.empty(y_SxQ.shape), np.empty(y_SxQ.shape)
  for fold in np.unique(fold_S):
    fit_T, held_H = np.flatnonzero(fold_S != fold), np.flatnonzero(fold_S == fold)
    guess[held_H] = predict(kernels, y_SxQ, fit_T, held_H, blocks)
    mean[held_H] = y_SxQ[fit_T].mean(axis=0)
  return guess, mean


def weights(
  features_TxP: np.ndarray, y_TxQ: np.ndarray, strengths: Sequence[float] = STRENGTHS
) -> np.ndarray:
  """Ridge coefficients PxQ, with the ridge that predicts held-out quarters best."""
  x = features_TxP - features_TxP.mean(axis=0)
  size = max(np.trace(x @ x.T) / len(x), 1e-12)
  inner, errors = np.arange(len(x)) % 4, []
  for strength in strengths:
    miss = 0.0
    for i in range(4):
      fit, held = np.flatnonzero(inner != i), np.flatnonzero(inner == i)
      miss += (
        (_smoother(x @ x.T / size, fit, held, strength) @ y_TxQ[fit] - y_TxQ[held]) ** 2
      ).sum()
    errors.append(miss)
  gram = x @ x.T + size * strengths[int(np.argmin(errors))] * np.eye(len(x))
  return x.T @ np.linalg.solve(gram, y_TxQ - y_TxQ.mean(axis=0))
