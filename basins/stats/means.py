"""The mean of one column of tokens, with an interval that knows sequences."""

from __future__ import annotations

from typing import Any

import numpy as np

from basins.stats.resampling import cluster_weights, spread_interval
from basins.stats.result import Statistic
from basins.stats.sample import check_confidence, gather


def mean(
    values: Any,
    *,
    clusters: Any,
    name: str = "mean",
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Statistic:
    """Mean over tokens; the interval resamples sequences. `details`: median, standard deviation, quartile range.

    p tests mean = 0. NaN values are left out.
    """
    check_confidence(confidence, n_resamples)
    sample = gather({"values": values}, clusters, minimum=2, constant=("values",))
    method = f"mean, cluster bootstrap, {sample.dependence}"
    if sample.reason:
        return sample.nothing(name, method, confidence)
    column = sample.columns[0]
    # About the mean: of values far from 0 the sums of a resample would lose their last digits.
    centre = float(column.mean())
    sums = np.bincount(sample.cluster, weights=column - centre, minlength=sample.n_clusters)
    sizes = np.bincount(sample.cluster, minlength=sample.n_clusters)
    drawn = cluster_weights(sample.n_clusters, max(1, 2_000_000 // sample.n_clusters), n_resamples, seed)
    resamples = np.concatenate([(weights @ sums) / (weights @ sizes) for weights in drawn])
    interval, p, reason = spread_interval(0.0, resamples, sample, confidence, "plain", -centre)
    low, high, middle = np.quantile(column, [0.25, 0.75, 0.5])
    details = {"median": float(middle), "sd": float(column.std()), "iqr": float(high - low)}
    shifted = (interval[0] + centre, interval[1] + centre)
    return sample.found(name, method, centre, shifted, p=p, confidence=confidence, details=details, reason=reason)
