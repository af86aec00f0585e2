"""More than two groups: one-way ANOVA, Kruskal-Wallis, and the intraclass correlation of sequences."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from basins.stats.resampling import bootstrap, permutations, shifted_percentiles, weighted_ranks
from basins.stats.result import Statistic
from basins.stats.sample import Sample, array, check_confidence, gather, scipy_stats


def anova(
    values: Any,
    groups: Any,
    *,
    clusters: Any,
    name: str = "anova",
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Statistic:
    """One-way ANOVA: eta squared, the share of the variance that lies between groups.

    For independent tokens p is the F test's. With sequences, p permutes groups within sequences. The interval holds
    bootstrap percentiles less their bias; eta squared cannot be negative, so the test against 0 is p, not the interval.
    """
    return _between_groups(values, groups, clusters, False, name, confidence, n_resamples, seed)


def kruskal(
    values: Any,
    groups: Any,
    *,
    clusters: Any,
    name: str = "kruskal",
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Statistic:
    """Kruskal-Wallis: eta squared of the ranks, which is H / (n - 1); p as in `anova`."""
    return _between_groups(values, groups, clusters, True, name, confidence, n_resamples, seed)


def icc(values: Any, *, clusters: Any, name: str = "icc", confidence: float = 0.95) -> Statistic:
    """Intraclass correlation ICC(1) of tokens within sequences (one-way random effects), with the F interval.

    Exact for sequences of equal length; otherwise n_0 = (n - sum n_i^2 / n) / (g - 1) stands for the length. It may be
    negative. p tests ICC = 0.
    """
    check_confidence(confidence, 100)
    sample = gather({"values": values}, clusters)
    n, n_groups = sample.n_tokens, sample.n_clusters
    method = "ICC(1), F interval"
    if sample.reason:
        return sample.nothing(name, method, confidence)
    if n_groups < 2 or n - n_groups < 1:
        reason = "there is one sequence only" if n_groups < 2 else "no sequence has two tokens"
        return sample.nothing(name, method, confidence, reason)
    sizes = np.bincount(sample.cluster)
    length = float((n - (sizes**2).sum() / n) / (n_groups - 1))
    between, total = _sums_of_squares(np.ones((1, n)), sample.columns[0], sample.cluster, n_groups)
    if float(total[0] - between[0]) <= 1e-13 * float(total[0]):
        return sample.nothing(name, method, confidence, "values are constant within every sequence")
    ratio = float(between[0] / (n_groups - 1) / ((total[0] - between[0]) / (n - n_groups)))
    f = scipy_stats().f
    tail = (1 - confidence) / 2
    low = ratio / float(f.ppf(1 - tail, n_groups - 1, n - n_groups))
    high = ratio * float(f.ppf(1 - tail, n - n_groups, n_groups - 1))
    estimate, *interval = ((value - 1) / (value + length - 1) for value in (ratio, low, high))
    p = float(f.sf(ratio, n_groups - 1, n - n_groups))
    return Statistic(name, method, estimate, (interval[0], interval[1]), n, n_groups, p=p, confidence=confidence)


def _between_groups(
    values: Any, groups: Any, clusters: Any, rank: bool, name: str, confidence: float, n_resamples: int, seed: int
) -> Statistic:
    check_confidence(confidence, n_resamples)
    sample, group, n_groups = _grouped(values, groups, clusters)
    test = "Kruskal-Wallis, eta squared of ranks" if rank else "one-way ANOVA, eta squared"
    method = f"{test}, {sample.dependence if sample.independent else 'groups permuted within sequences'}"
    if sample.reason:
        return sample.nothing(name, method, confidence)
    stats = scipy_stats()
    column = sample.columns[0]
    tested = stats.rankdata(column) if rank else column
    between, total = _sums_of_squares(np.ones((1, sample.n_tokens)), tested, group, n_groups)
    estimate = float(between[0] / total[0])
    if 1 - estimate < 1e-13:
        return sample.nothing(name, method, confidence, "values are constant within every group")

    def eta_squared(weights: Float64[ndarray, "resample token"]) -> Float64[ndarray, "resample"]:
        resampled = weighted_ranks(column, weights) if rank else column
        between, total = _sums_of_squares(weights, resampled, group, n_groups)
        with np.errstate(invalid="ignore", divide="ignore"):
            return between / total

    interval, reason = shifted_percentiles(
        estimate, bootstrap(sample, eta_squared, n_resamples, seed), sample, confidence
    )
    if sample.independent:
        parts = [column[group == number] for number in range(n_groups)]
        p = float((stats.kruskal(*parts) if rank else stats.f_oneway(*parts)).pvalue)
    else:
        p = _permuted_p(sample, tested, group, n_groups, n_resamples, seed)
        if np.isnan(p):
            reason = "; ".join(
                filter(None, [reason, "no group or no value varies within a sequence, so p has no test"])
            )
    return sample.found(
        name,
        method,
        estimate,
        interval,
        p=p,
        confidence=confidence,
        details={"groups": float(n_groups)},
        reason=reason,
    )


def _grouped(values: Any, groups: Any, clusters: Any) -> tuple[Sample, Int64[ndarray, "token"], int]:
    """The sample, each token's group (0 ..) and their number; groups may be numbers or names, NaN leaves out."""
    found = array("groups", groups)
    names, codes = np.unique(found.ravel(), return_inverse=True)
    numbers = codes.reshape(found.shape).astype(np.float64)
    if found.dtype.kind == "f":
        numbers = np.where(np.isnan(found), np.nan, numbers)
    sample = gather({"values": values, "groups": numbers}, clusters)
    _, group = np.unique(sample.columns[1], return_inverse=True)
    sizes = np.bincount(group) if len(group) else np.zeros(1)
    if not sample.reason and sizes.min() < 2:
        reason = f"group {names[int(sample.columns[1][group == sizes.argmin()][0])]} has fewer than 2 tokens"
        sample = dataclasses.replace(sample, reason=reason)
    return sample, group.astype(np.int64), len(sizes)


def _sums_of_squares(weights: ndarray, column: ndarray, group: ndarray, n_groups: int) -> tuple[ndarray, ndarray]:
    """(between groups, total) sum of squares in every resample; a column may differ between resamples."""
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(n_groups))
    centered = column - column.mean(-1, keepdims=True)
    weighted = weights * centered
    sums, sizes = (np.add.reduceat(part[:, order], starts, axis=1) for part in (weighted, weights))
    overall = sums.sum(1) ** 2 / sizes.sum(1)
    between = (sums**2 / np.maximum(sizes, 1e-300)).sum(1) - overall
    return between, (weighted * centered).sum(1) - overall


def _permuted_p(sample: Sample, column: ndarray, group: ndarray, n_groups: int, n_resamples: int, seed: int) -> float:
    """How often groups permuted within sequences lie at least as far apart; NaN where permuting changes nothing."""
    ones = np.ones((1, sample.n_tokens))
    observed = _sums_of_squares(ones, column, group, n_groups)[0][0]
    beaten, changed = 0, False
    for order in permutations(sample, n_resamples, seed):
        between = _sums_of_squares(np.ones(order.shape), column[order], group, n_groups)[0]
        beaten += int((between >= observed * (1 - 1e-12)).sum())
        changed = changed or bool((np.abs(between - observed) > 1e-12 * observed).any())
    return (1 + beaten) / (1 + n_resamples) if changed else float("nan")
