"""Ridge regressions that explain vectors by features, with each fit held out by subject.

They use the dual form: features are a kernel, and several groups of them a sum of kernels. Plain NumPy, since there are few
subjects. Several targets can be fitted, LxSxQ, each of which chooses its own ridge.

Shapes: S subjects, T those fitted to, H held out, L targets, Q coordinates of each, P features, K strengths.
"""

import numpy as np

STRENGTHS = (0.01, 0.05, 0.2, 1.0, 5.0, 50.0)  # ridge, as a fraction of the kernel's mean diagonal


def folds(rng: np.random.Generator, subjects: int, count: int) -> np.ndarray:
  """The fold in which each subject is held out."""
  return rng.permutation(np.arange(subjects) % count)


def kernel(features_SxP: np.ndarray) -> np.ndarray:
  """A centred kernel with mean diagonal one; zero if the features do not tell any two subjects apart."""
  x = np.asarray(features_SxP, np.float64)
  x = x - x.mean(axis=0)
  return _unit(x @ x.T)


def _unit(gram_SxS: np.ndarray) -> np.ndarray:
  return gram_SxS / max(np.trace(gram_SxS) / len(gram_SxS), 1e-12)


def _smoothers(kernel_SxS: np.ndarray, fit_T: np.ndarray, held_H: np.ndarray) -> np.ndarray:
  """For every strength, the matrix from fitted values to predictions, KxHxT."""
  k_SxT = kernel_SxS[:, fit_T]
  k_SxT = k_SxT - k_SxT[fit_T].mean(axis=0)
  k_SxT -= k_SxT.mean(axis=1, keepdims=True)
  ridges_KxTxT = np.multiply.outer(STRENGTHS, np.eye(len(fit_T)))
  return k_SxT[held_H] @ np.linalg.inv(k_SxT[fit_T] + ridges_KxTxT) + 1 / len(fit_T)  # intercept


def _best(kernel_SxS: np.ndarray, y_LxSxQ: np.ndarray, fit_T: np.ndarray) -> np.ndarray:
  """For each target, the strength that best predicts held-out quarters of the subjects fitted to."""
  inner, errors = np.arange(len(fit_T)) % 4, []
  for i in range(4):
    fit, held = fit_T[inner != i], fit_T[inner == i]
    found = (s @ y_LxSxQ[..., fit, :] for s in _smoothers(kernel_SxS, fit, held))
    errors.append([((y - y_LxSxQ[..., held, :]) ** 2).sum(axis=(-2, -1)) for y in found])
  return np.sum(errors, axis=0).argmin(axis=0)


def predict(
  kernel_SxS: np.ndarray, y_LxSxQ: np.ndarray, fit_T: np.ndarray, held_H: np.ndarray
) -> np.ndarray:
  """Predictions LxHxQ, or HxQ of one target; the ridge is chosen on the subjects fitted to."""
  kernel_SxS = _unit(kernel_SxS)
  best_L = _best(kernel_SxS, y_LxSxQ, fit_T)
  return _smoothers(kernel_SxS, fit_T, held_H)[best_L] @ y_LxSxQ[..., fit_T, :]


def held_out(kernel_SxS: np.ndarray, y_LxSxQ: np.ndarray, fold_S: np.ndarray) -> np.ndarray:
  """Predictions of every subject from those of the other folds; of a kernel of zeros, their mean."""
  guess_LxSxQ = np.empty(y_LxSxQ.shape)
  for fold in np.unique(fold_S):
    fit_T, held_H = np.flatnonzero(fold_S != fold), np.flatnonzero(fold_S == fold)
    guess_LxSxQ[..., held_H, :] = predict(kernel_SxS, y_LxSxQ, fit_T, held_H)
  return guess_LxSxQ


def weights(features_TxP: np.ndarray, y_TxQ: np.ndarray) -> np.ndarray:
  """Ridge coefficients PxQ: the smallest that reproduce the predictions for the subjects fitted to."""
  x_TxP, every_T = features_TxP - features_TxP.mean(axis=0), np.arange(len(features_TxP))
  fitted_TxQ = predict(kernel(x_TxP), y_TxQ, every_T, every_T)
  return np.linalg.lstsq(x_TxP, fitted_TxQ - y_TxQ.mean(axis=0), rcond=None)[0]
