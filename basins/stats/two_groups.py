"""Tokens with a label against tokens without: Welch's t, Mann-Whitney, point-biserial, quartiles, effect sizes.

The label is a column of booleans (or 0 and 1); NaN leaves a token out. Each result carries Cohen's d and the label's
prevalence, because a correlation says little without it: |r| = 0.4 needs d = 0.87 at balance and d = 3.1 at 2%.
With sequences, p and interval come from resampling them; with `clusters=None` from the textbook test.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray

from basins.errors import BasinsError
from basins.stats.correlations import pearson
from basins.stats.ranking import auc_resamples
from basins.stats.resampling import bootstrap, spread_interval, weighted_ranks
from basins.stats.result import Statistic
from basins.stats.sample import Sample, check_confidence, gather, scipy_stats


def cohens_d(values: Float64[ndarray, "token"], labels: Bool[ndarray, "token"]) -> float:
    """Difference of means over the pooled standard deviation (n - 1 in each group); NaN where there is none."""
    with_label, without = values[labels], values[~labels]
    if min(len(with_label), len(without)) < 2:
        return math.nan
    squares = ((with_label - with_label.mean()) ** 2).sum() + ((without - without.mean()) ** 2).sum()
    pooled = math.sqrt(squares / (len(values) - 2))
    return float((with_label.mean() - without.mean()) / pooled) if pooled > 0 else math.nan


def d_needed(r: float, prevalence: float) -> float:
    """The Cohen's d at which a label of this prevalence has point-biserial correlation r: r / sqrt(pq (1 - r^2))."""
    if not (0 < prevalence < 1 and -1 < r < 1):
        raise BasinsError(f"r={r} must lie between -1 and 1 and prevalence={prevalence} between 0 and 1.")
    return r / math.sqrt(prevalence * (1 - prevalence) * (1 - r * r))


def labelled(values: Any, labels: Any, clusters: Any) -> tuple[Sample, Bool[ndarray, "token"]]:
    """The sample of (values, labels) and the labels of its tokens; labels other than 0 and 1 raise."""
    sample = gather({"values": values, "labels": labels}, clusters)
    found = sample.columns[1]
    if not np.isin(found, (0, 1)).all():
        raise BasinsError("labels must be booleans or 0 and 1. For more than two groups use anova or kruskal.")
    is_labelled = found == 1
    if not sample.reason and min(is_labelled.sum(), (~is_labelled).sum()) < 2:
        sample = dataclasses.replace(sample, reason="a group has fewer than 2 tokens")
    return sample, is_labelled


def welch(
    values: Any,
    labels: Any,
    *,
    clusters: Any,
    name: str = "welch",
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Statistic:
    """Mean with the label less mean without it; p tests a difference of 0.

    With sequences the error of the difference is its spread over resampled sequences and p is Student's with
    n_clusters - 1 degrees; both groups' variances are free, as in Welch's test.
    """
    check_confidence(confidence, n_resamples)
    sample, labels = labelled(values, labels, clusters)
    method = f"difference of means, {'Welch t' if sample.independent else 'cluster bootstrap'}, {sample.dependence}"
    if sample.reason:
        return sample.nothing(name, method, confidence)
    column = sample.columns[0]
    estimate = float(column[labels].mean() - column[~labels].mean())
    reason = ""
    if sample.independent:
        if np.ptp(column[labels]) == 0 and np.ptp(column[~labels]) == 0:
            return sample.nothing(name, method, confidence, "values are constant in both groups")
        found = scipy_stats().ttest_ind(column[labels], column[~labels], equal_var=False)
        low, high = found.confidence_interval(confidence)
        interval, p = (float(low), float(high)), float(found.pvalue)
    else:
        scale = column.std()
        unit = (column - column.mean()) / scale
        resamples = bootstrap(sample, lambda weights: _difference(weights, unit, labels, ~labels), n_resamples, seed)
        interval, p, reason = spread_interval(estimate / scale, resamples, sample, confidence, "plain", 0.0)
        interval = (interval[0] * scale, interval[1] * scale)
    return _two_group_result(sample, labels, name, method, estimate, interval, p, confidence, reason)


def mann_whitney(
    values: Any,
    labels: Any,
    *,
    clusters: Any,
    name: str = "mann-whitney",
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Statistic:
    """P(a labelled token's value is higher than an unlabelled one's), ties counting half: U / (n_1 n_0); p tests 0.5.

    The interval always comes from resampling; for independent tokens p is scipy's asymptotic one with ties corrected.
    """
    check_confidence(confidence, n_resamples)
    sample, labels = labelled(values, labels, clusters)
    method = f"Mann-Whitney U / (n1 n0), {sample.dependence}"
    if sample.reason:
        return sample.nothing(name, method, confidence)
    column = sample.columns[0]
    found = scipy_stats().mannwhitneyu(column[labels], column[~labels], method="asymptotic")
    estimate = float(found.statistic / (labels.sum() * (~labels).sum()))
    resamples = auc_resamples(sample, labels, n_resamples, seed)
    interval, p, reason = spread_interval(estimate, resamples, sample, confidence, "logit", 0.5)
    p = float(found.pvalue) if sample.independent else p
    return _two_group_result(sample, labels, name, method, estimate, interval, p, confidence, reason)


def point_biserial(
    values: Any,
    labels: Any,
    *,
    clusters: Any,
    name: str = "point-biserial",
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Statistic:
    """Pearson's r between values and a label, with d and prevalence beside it."""
    sample, is_labelled = labelled(values, labels, clusters)
    method = f"point-biserial, {sample.dependence}"
    if sample.reason:
        return sample.nothing(name, method, confidence)
    ids = None if sample.independent else sample.cluster
    r = pearson(
        sample.columns[0], sample.columns[1], clusters=ids, confidence=confidence, n_resamples=n_resamples, seed=seed
    )
    return _two_group_result(
        sample,
        is_labelled,
        name,
        r.method.replace("pearson", "point-biserial"),
        r.estimate,
        r.interval,
        r.p,
        confidence,
        r.reason,
    )


def quartile_contrast(
    x: Any,
    y: Any,
    *,
    clusters: Any,
    name: str = "quartiles",
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Statistic:
    """Mean of y in the highest quarter of x less its mean in the lowest; quarters are cut anew in every resample.

    Quarters go by mid-rank, so that equal values of x fall into the same one. `details` holds the four means (NaN for
    a quarter that ties leave empty); d compares the two outer quarters.
    """
    check_confidence(confidence, n_resamples)
    sample = gather({"x": x, "y": y}, clusters, minimum=8)
    method = f"top less bottom quartile, cluster bootstrap, {sample.dependence}"
    if sample.reason:
        return sample.nothing(name, method, confidence)
    x_column, y_column = sample.columns
    quarter = _quarters(x_column, np.ones((1, sample.n_tokens)))[0]
    means = [float(y_column[quarter == q].mean()) if (quarter == q).any() else math.nan for q in range(4)]
    estimate = means[3] - means[0]
    if math.isnan(estimate):
        return sample.nothing(name, method, confidence, "ties in x leave an outer quarter empty")
    unit = (y_column - y_column.mean()) / y_column.std()

    def contrast(weights: Float64[ndarray, "resample token"]) -> Float64[ndarray, "resample"]:
        quarters = _quarters(x_column, weights)
        return _difference(weights, unit, quarters == 3, quarters == 0)

    resamples = bootstrap(sample, contrast, n_resamples, seed)
    interval, p, reason = spread_interval(estimate / y_column.std(), resamples, sample, confidence, "plain", 0.0)
    interval = (interval[0] * float(y_column.std()), interval[1] * float(y_column.std()))
    outer = (quarter == 0) | (quarter == 3)
    d = cohens_d(y_column[outer], quarter[outer] == 3)
    details = {f"q{number + 1}": mean for number, mean in enumerate(means)}
    return sample.found(
        name,
        method,
        estimate,
        interval,
        p=p,
        confidence=confidence,
        effect_size=d,
        prevalence=float((quarter == 3).mean()),
        details=details,
        reason=reason,
    )


def _quarters(column: ndarray, weights: ndarray) -> ndarray:
    share = (weighted_ranks(column, weights) - 0.5) / weights.sum(1, keepdims=True)
    return np.clip(np.floor(4 * share), 0, 3).astype(np.int64)


def _difference(weights: ndarray, column: ndarray, above: ndarray, below: ndarray) -> ndarray:
    """Weighted mean of the tokens in `above` less that of those in `below`; NaN where a group is not drawn."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights * above) @ column / (weights * above).sum(1) - (weights * below) @ column / (
            weights * below
        ).sum(1)


def _two_group_result(
    sample: Sample,
    labels: ndarray,
    name: str,
    method: str,
    estimate: float,
    interval: tuple[float, float],
    p: float,
    confidence: float,
    reason: str,
) -> Statistic:
    d, prevalence = cohens_d(sample.columns[0], labels), float(labels.mean())
    interval = (float(interval[0]), float(interval[1]))
    return sample.found(
        name,
        method,
        estimate,
        interval,
        p=p,
        confidence=confidence,
        effect_size=d,
        prevalence=prevalence,
        reason=reason,
    )
