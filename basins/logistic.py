"""Logistic regression for many weightings of the same rows at once: what a bootstrap that fits anew in every resample
needs. For one weighting it is scikit-learn's `LogisticRegression(C=penalty, class_weight="balanced")`, to rounding.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray

STEPS = 50


def fit_logistic(
    columns: Float64[ndarray, "row column"],
    labels: Bool[ndarray, "row"],
    weights: Float64[ndarray, "resample row"],
    penalty: float,
) -> Float64[ndarray, "resample coefficient"]:
    """Coefficients, the intercept last, that minimise |w|^2 / 2 + penalty * sum_i s_i ln(1 + exp(-y_i (x_i w + b))).

    s_i is the row's weight, rescaled so that both classes weigh the same in every resample. Newton's method with
    halved steps. NaN for a resample without one of the classes.
    """
    scale = penalty * _balanced(weights, labels)
    x = np.c_[columns, np.ones(len(columns))]
    ridge = np.r_[np.ones(columns.shape[1]), 0.0]
    found = np.zeros((len(weights), x.shape[1]))

    def loss(at: ndarray) -> ndarray:
        odds = at @ x.T
        return (scale * np.logaddexp(0, np.where(labels, -odds, odds))).sum(1) + (ridge * at**2).sum(1) / 2

    now = loss(found)
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-np.clip(found @ x.T, -500, 500)))
        slope = (scale * (p - labels)) @ x + ridge * found
        curve = np.matmul(x.T, (scale * p * (1 - p))[:, :, None] * x)
        curve += np.diag(ridge) + 1e-12 * np.eye(len(ridge))
        step = np.linalg.solve(curve, slope[:, :, None])[:, :, 0]
        size = np.ones(len(weights))
        new = loss(found - step)
        for _ in range(20):
            worse = new > now + 1e-12 * np.abs(now)
            if not worse.any():
                break
            size[worse] /= 2
            new = loss(found - size[:, None] * step)
        found, now = found - size[:, None] * step, new
        if np.abs(step).max() < 1e-9:
            break
    lacking = ((weights * labels).sum(1) == 0) | ((weights * ~labels).sum(1) == 0)
    found[lacking] = np.nan
    return found


def log_odds(
    columns: Float64[ndarray, "row column"], fitted: Float64[ndarray, "resample coefficient"]
) -> Float64[ndarray, "resample row"]:
    return fitted[:, :-1] @ columns.T + fitted[:, -1:]


def _balanced(weights: ndarray, labels: ndarray) -> ndarray:
    """scikit-learn's "balanced": total / (2 * total of the class)."""
    total = weights.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = [total / (2 * (weights * of).sum(1, keepdims=True)) for of in (labels, ~labels)]
    return weights * np.where(labels, *(np.nan_to_num(part, posinf=0.0) for part in scale))
