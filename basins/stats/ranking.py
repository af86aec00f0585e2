"""Areas under ROC curves in resamples: the arithmetic that Mann-Whitney and AUROC share."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray

from basins.stats.resampling import bootstrap, weighted_ranks
from basins.stats.sample import Sample


def auc_resamples(
    sample: Sample, labels: Bool[ndarray, "token"], n_resamples: int, seed: int
) -> Float64[ndarray, "resample"]:
    """Area under the ROC curve of column 0 in every resample, from its ranks; NaN where a class is not drawn."""

    def area(weights: Float64[ndarray, "resample token"]) -> Float64[ndarray, "resample"]:
        ranks = weighted_ranks(sample.columns[0], weights)
        positive, negative = weights @ labels, weights @ ~labels
        with np.errstate(invalid="ignore", divide="ignore"):
            u = (weights * ranks) @ labels - positive * (positive + 1) / 2
            return u / (positive * negative)

    return bootstrap(sample, area, n_resamples, seed)


def tpr_resamples(
    sample: Sample, labels: Bool[ndarray, "token"], fpr: float, n_resamples: int, seed: int
) -> Float64[ndarray, "resample"]:
    """The highest true-positive rate whose false-positive rate is at most `fpr`, in every resample."""
    order = np.argsort(-sample.columns[0], kind="stable")
    scores, ordered = sample.columns[0][order], labels[order]
    ends = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True])  # a threshold takes all tokens of one score

    def rate(weights: Float64[ndarray, "resample token"]) -> Float64[ndarray, "resample"]:
        weights = weights[:, order]
        positive = np.cumsum(weights * ordered, axis=1)[:, ends]
        negative = np.cumsum(weights * ~ordered, axis=1)[:, ends]
        with np.errstate(invalid="ignore", divide="ignore"):
            reached = np.where(negative / negative[:, -1:] <= fpr + 1e-12, positive, 0).max(1)
            found = reached / positive[:, -1]
        return np.where(negative[:, -1] > 0, found, np.nan)

    return bootstrap(sample, rate, n_resamples, seed)
