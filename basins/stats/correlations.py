"""Pearson, Spearman, partial and semi-partial correlation of two columns of tokens.

`clusters` is asked for in every call: tokens of one sequence are not independent, and an interval that takes them so is
too narrow. `clusters=None` says that they are independent and gives the textbook interval (Fisher's z).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from basins.errors import BasinsError
from basins.stats.resampling import bootstrap_covariances, spread_interval
from basins.stats.result import NO_INTERVAL, Statistic
from basins.stats.sample import Sample, check_confidence, gather, scipy_stats, standardized


def pearson(
    x: Any,
    y: Any,
    *,
    clusters: Any,
    name: str = "pearson",
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Statistic:
    """Pearson's r with a cluster-bootstrap interval; p tests r = 0."""
    sample = gather({"x": x, "y": y}, clusters)
    return _correlation(sample, "pearson", False, False, name, confidence, n_resamples, seed)


def spearman(
    x: Any,
    y: Any,
    *,
    clusters: Any,
    name: str = "spearman",
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Statistic:
    """Spearman's rank correlation; ranks are taken anew in every resample."""
    sample = gather({"x": x, "y": y}, clusters)
    return _correlation(sample, "spearman", True, False, name, confidence, n_resamples, seed)


def partial(
    x: Any,
    y: Any,
    confounds: Mapping[str, Any],
    *,
    clusters: Any,
    rank: bool = False,
    name: str = "partial",
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Statistic:
    """Correlation of what is left of x and y after a linear fit on the confounds (ranks of all of them if `rank`).

    The fit is repeated in every resample, so its own uncertainty is in the interval.
    """
    sample = _with_confounds(x, y, confounds, clusters)
    method = "partial spearman" if rank else "partial pearson"
    return _correlation(sample, method, rank, False, name, confidence, n_resamples, seed)


def semipartial(
    x: Any,
    y: Any,
    confounds: Mapping[str, Any],
    *,
    clusters: Any,
    rank: bool = False,
    name: str = "semipartial",
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Statistic:
    """Correlation of y itself with what is left of x: its square is the share of y's variance only x explains.

    The interval is a bootstrap one also for independent tokens.
    """
    sample = _with_confounds(x, y, confounds, clusters)
    method = "semi-partial spearman" if rank else "semi-partial pearson"
    return _correlation(sample, method, rank, True, name, confidence, n_resamples, seed)


def _with_confounds(x: Any, y: Any, confounds: Mapping[str, Any], clusters: Any) -> Sample:
    if not confounds:
        raise BasinsError("confounds is empty. Pass a dict of columns, or use pearson or spearman.")
    if {"x", "y"} & confounds.keys():
        raise BasinsError("A confound is named x or y, which are the columns correlated. Give it another name.")
    columns = {"x": x, "y": y, **confounds}
    return gather(columns, clusters, minimum=len(columns) + 3, constant=tuple(confounds))


def left_over(covariance: ndarray, n_free: int) -> ndarray:
    """Covariance of what a linear fit on the other columns leaves of the first `n_free`, for each covariance matrix.

    In units of each column's own variance, so that the diagonal is the share not explained. Columns come with a spread
    near 1: one with less than 1e-7 is constant in this resample and explains nothing.
    """
    scale = np.sqrt(np.maximum(np.diagonal(covariance, axis1=-2, axis2=-1), 0))
    inverse = np.where(scale > 1e-7, 1 / np.maximum(scale, 1e-7), 0)
    unit = covariance * inverse[..., :, None] * inverse[..., None, :]
    across = unit[..., :n_free, n_free:]
    explaining = np.linalg.pinv(unit[..., n_free:, n_free:], rcond=1e-10, hermitian=True)
    return unit[..., :n_free, :n_free] - across @ explaining @ np.swapaxes(across, -1, -2)


# Below rounding nothing is left to correlate: NaN, not noise divided by noise.
NOTHING_LEFT = 1e-10


def correlations_from(covariance: ndarray, semi: bool) -> ndarray:
    """Partial (or semi-partial) correlation of columns 0 and 1 given the others, for each covariance matrix."""
    left = left_over(covariance, 2)
    constant = np.diagonal(covariance, axis1=-2, axis2=-1)[..., 1] <= 1e-14
    of_y = np.where(constant, 0.0, 1.0) if semi else left[..., 1, 1]
    explained = (left[..., 0, 0] < NOTHING_LEFT) | (of_y < NOTHING_LEFT)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = left[..., 0, 1] / np.sqrt(left[..., 0, 0] * of_y)
    return np.where(explained, np.nan, np.clip(found, -1, 1))


def _correlation(
    sample: Sample, method: str, rank: bool, semi: bool, name: str, confidence: float, n_resamples: int, seed: int
) -> Statistic:
    check_confidence(confidence, n_resamples)
    stats = scipy_stats()
    n_confounds = len(sample.names) - 2
    textbook = sample.independent and not semi
    method = f"{method}, {'Fisher z' if textbook else 'cluster bootstrap'}, {sample.dependence}"
    if sample.reason:
        return sample.nothing(name, method, confidence)
    columns = stats.rankdata(sample.columns, axis=1) if rank else sample.columns
    centered = standardized(columns)
    r = float(correlations_from(centered @ centered.T / sample.n_tokens, semi))
    if math.isnan(r):
        return sample.nothing(name, method, confidence, "the confounds explain x or y wholly")
    if textbook:
        interval, p, reason = _textbook(r, sample.n_tokens, n_confounds, rank, confidence)
    else:
        resamples = correlations_from(bootstrap_covariances(sample, rank, n_resamples, seed), semi)
        interval, p, reason = spread_interval(r, resamples, sample, confidence, "fisher", 0.0)
    return sample.found(name, method, r, interval, p=p, confidence=confidence, reason=reason)


def _textbook(
    r: float, n: int, n_confounds: int, rank: bool, confidence: float
) -> tuple[tuple[float, float], float, str]:
    """Fisher's interval and Student's p; for ranks the variance of Bonett and Wright (2000)."""
    if abs(r) >= 1 - 1e-12:
        return NO_INTERVAL, 0.0, "the correlation is exactly 1 or -1, where Fisher's interval has no width"
    stats = scipy_stats()
    degrees = n - 2 - n_confounds
    p = float(2 * stats.t.sf(abs(r) * math.sqrt(degrees / (1 - r * r)), degrees))
    error = math.sqrt((1 + r * r / 2 if rank else 1) / (n - 3 - n_confounds))
    half = float(stats.norm.ppf((1 + confidence) / 2)) * error
    return (math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)), p, ""
