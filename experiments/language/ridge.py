"""Ridge regressions that explain vectors by groups of features, with each fit held out by subject.

They use the dual form: a group of features is a kernel, a weighted sum of groups is a sum of kernels, and all products
of two groups' features are the product of their kernels. Plain NumPy, since there are few subjects. Several targets can
be fitted, LxSxQ, each of which chooses its own mixture and ridge.

Shapes: S subjects, T those fitted to, H held out, L targets, Q coordinates of each, P features,
M mixtures of kernels, K strengths, O = M·K options.
"""

import itertools
from collections.abc import Sequence

import numpy as np

STRENGTHS = (0.01, 0.05, 0.2, 1.0, 5.0, 50.0)  # ridge, as a fraction of the kernel's mean diagonal
WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0)  # for every group after the first


def folds(rng: np.random.Generator, subjects: int, count: int) -> np.ndarray:
  """The fold in which each subject is held out."""
  return rng.permutation(np.arange(subjects) % count)


def kernel(features_SxP: np.ndarray) -> np.ndarray:
  """A centred kernel with mean diagonal one; zero if the features do not tell any two subjects apart."""
  x = np.asarray(features_SxP, np.float64)
  x = x - x.mean(axis=0)
  return _unit(x @ x.T)


def products(kernels: Sequence[np.ndarray]) -> np.ndarray:
  """The kernel of all products of a feature of one group and a feature of another."""
  total = sum(a * b for a, b in itertools.combinations(kernels, 2))
  centred = total - total.mean(axis=0)
  return _unit(centred - centred.mean(axis=1, keepdims=True))


def _unit(gram_SxS: np.ndarray) -> np.ndarray:
  return gram_SxS / max(np.trace(gram_SxS) / len(gram_SxS), 1e-12)


def _mixtures(kernels: Sequence[np.ndarray]) -> np.ndarray:
  """The weighted sums of kernels to try, MxSxS: the first kernel has weight one."""
  weights = itertools.product((1.0,), *[WEIGHTS] * (len(kernels) - 1))
  return np.stack([_unit(np.tensordot(some, kernels, 1)) for some in weights])


def _smoothers(mixed_MxSxS: np.ndarray, fit_T: np.ndarray, held_H: np.ndarray) -> np.ndarray:
  """For every mixture and strength, the matrix from fitted values to predictions, OxHxT."""
  k_MxSxT = mixed_MxSxS[:, :, fit_T]
  k_MxSxT = k_MxSxT - k_MxSxT[:, fit_T].mean(axis=1, keepdims=True)
  k_MxSxT -= k_MxSxT.mean(axis=2, keepdims=True)
  ridges_KxTxT = np.multiply.outer(STRENGTHS, np.eye(len(fit_T)))
  found = k_MxSxT[:, None, held_H] @ np.linalg.inv(k_MxSxT[:, None, fit_T] + ridges_KxTxT)
  return found.reshape(-1, len(held_H), len(fit_T)) + 1 / len(fit_T)  # plus an intercept


def _best(mixed_MxSxS: np.ndarray, y_LxSxQ: np.ndarray, fit_T: np.ndarray) -> np.ndarray:
  """For each target, the option that best predicts held-out quarters of the subjects fitted to."""
  inner, errors = np.arange(len(fit_T)) % 4, []
  for i in range(4):
    fit, held = fit_T[inner != i], fit_T[inner == i]
    miss = (
      s @ y_LxSxQ[..., fit, :] - y_LxSxQ[..., held, :] for s in _smoothers(mixed_MxSxS, fit, held)
    )
    errors.append([(some**2).sum(axis=(-2, -1)) for some in miss])
  return np.sum(errors, axis=0).argmin(axis=0)


def predict(
  kernels: Sequence[np.ndarray], y_LxSxQ: np.ndarray, fit_T: np.ndarray, held_H: np.ndarray
) -> np.ndarray:
  """Predictions LxHxQ, or HxQ of one target; mixture and ridge are chosen on the subjects fitted to."""
  mixed_MxSxS = _mixtures(kernels)
  best_L = _best(mixed_MxSxS, y_LxSxQ, fit_T)
  return _smoothers(mixed_MxSxS, fit_T, held_H)[best_L] @ y_LxSxQ[..., fit_T, :]


def held_out(kernels: Sequence[np.ndarray], y_LxSxQ: np.ndarray, fold_S: np.ndarray) -> np.ndarray:
  """Predictions of every subject from those of the other folds; of a kernel of zeros, their mean."""
  guess_LxSxQ = np.empty(y_LxSxQ.shape)
  for fold in np.unique(fold_S):
    fit_T, held_H = np.flatnonzero(fold_S != fold), np.flatnonzero(fold_S == fold)
    guess_LxSxQ[..., held_H, :] = predict(kernels, y_LxSxQ, fit_T, held_H)
  return guess_LxSxQ


def weights(features_TxP: np.ndarray, y_TxQ: np.ndarray) -> np.ndarray:
  """Ridge coefficients PxQ: the smallest that reproduce the predictions for the subjects fitted to."""
  x_TxP, every_T = features_TxP - features_TxP.mean(axis=0), np.arange(len(features_TxP))
  fitted_TxQ = predict([kernel(x_TxP)], y_TxQ, every_T, every_T)
  return np.linalg.lstsq(x_TxP, fitted_TxQ - y_TxQ.mean(axis=0), rcond=None)[0]
