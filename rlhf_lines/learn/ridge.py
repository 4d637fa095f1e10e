"""Ridge regression with leave-one-out predictions in closed form, by which its penalty is chosen.

Letters: n rows, d features, M targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


Array = NDArray[np.float64]
PENALTIES = [*np.logspace(-3, 3, 13).tolist(), np.inf]  # in units of the mean squared feature of a row


@dataclass(frozen=True)
class Ridge:
    """A fit `y = bias + x . coefficients`.

    Attributes:
        bias: `[M]`.
        coefficients: `[d, M]`, of the features as they are given.
        penalty: that was chosen; infinity is the mean of the targets for all.
        left_out: `[n, M]`, what the fit to the other rows predicts for each.
    """

    bias: Array
    coefficients: Array
    penalty: float
    left_out: Array


def fit_ridge(features: Array, targets: Array) -> Ridge:
    """The ridge regression whose penalty makes the smallest squared error on rows that are left out, one at a time.

        Z = (x - mean) / std per feature, over all rows        G = Z Z^T / d = U S U^T
        y_hat = mean(y) + H (y - mean(y)),   H = U diag(s / (s + penalty m)) U^T,   m the mean of diag(G)
        left out:  y_i - (y_i - y_hat_i) / (1 - 1/n - H_ii)

    The intercept has no penalty. The formula is exact for a row that is left out of the fit, but not of mean and std.

    Args:
        features: `[n, d]`; one that is the same for all rows counts as 0.
        targets: `[n, M]`.
    """
    count, width = features.shape
    mean, std = features.mean(axis=0), features.std(axis=0)
    std = np.where(std > 1e-12 * np.abs(features).max(axis=0, initial=0.0), std, np.inf)
    Z = (features - mean) / std
    gram = Z @ Z.T / width
    values, vectors = np.linalg.eigh(gram)
    values, unit = np.maximum(values, 0.0), np.trace(gram) / count or 1.0
    centred = targets - targets.mean(axis=0)

    def left_out(penalty: float) -> Array:
        shares = values / (values + penalty * unit)
        fitted = (vectors * shares) @ (vectors.T @ centred)
        leverage = 1 / count + np.square(vectors) @ shares
        return targets - (centred - fitted) / (1 - leverage)[:, None]

    predicted = {penalty: left_out(penalty) for penalty in PENALTIES}
    best = min(PENALTIES, key=lambda penalty: np.square(predicted[penalty] - targets).sum())
    dual = (vectors / (values + best * unit)) @ (vectors.T @ centred)
    coefficients = Z.T @ dual / width / std[:, None]
    return Ridge(targets.mean(axis=0) - mean @ coefficients, coefficients, best, predicted[best])
