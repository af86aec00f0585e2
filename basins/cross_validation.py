"""Out-of-fold scores of a classifier whose folds never split a source, with every choice made inside the fold.

Whatever a classifier learns (a vocabulary, a column's mean and scale, its penalty) it learns from the training rows of
its fold. Classes are weighted to balance, so that folds with few positives do not shift the scores against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from basins.errors import BasinsError, MissingExtra
from basins.logistic import fit_logistic, log_odds
from basins.stats.resampling import weighted_ranks

Fold = Int64[ndarray, "row"]
# Inverse penalties of the logistic regression, strongest first.
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
FLOATS = 4_000_000  # numbers in one array of (resample, row, column)


@dataclass(frozen=True)
class Folds:
    """Rows of each test fold, in `n_repeats` partitions of all rows; `reason` says why there are none.

    `inner`: the folds within each fold's training rows (numbered from 0 there), in the order of the test folds.
    """

    partitions: tuple[tuple[Fold, ...], ...]
    n_sources: int
    reason: str = ""
    inner: tuple[Folds, ...] = ()

    @property
    def n_folds(self) -> int:
        return len(self.partitions[0]) if self.partitions else 0


def sklearn_module(name: str) -> Any:
    """A module of scikit-learn, loaded at first use; MissingExtra where it is not installed."""
    from importlib import import_module

    try:
        return import_module(f"sklearn.{name}")
    except ImportError:
        raise MissingExtra("scikit-learn", "experiments") from None


def check_rows(labels: Any, sources: Any) -> tuple[Bool[ndarray, "row"], Int64[ndarray, "row"]]:
    """Labels as booleans and sources as numbers 0, 1, ...; `sources=None` makes every row its own source."""
    found = np.asarray(labels)
    if found.ndim != 1 or found.dtype.kind not in "biuf" or not np.isin(found, (0, 1)).all():
        raise BasinsError("labels must be one boolean (or 0 and 1) a sequence. Leave sequences without a label out.")
    if sources is None:
        return found.astype(bool), np.arange(len(found))
    names = np.asarray([str(source) for source in sources])
    if len(names) != len(found):
        raise BasinsError(f"{len(names)} sources were given for {len(found)} labels; pass one source a sequence.")
    return found.astype(bool), np.unique(names, return_inverse=True)[1].astype(np.int64)


def grouped_folds(
    labels: Bool[ndarray, "row"],
    sources: Int64[ndarray, "row"],
    n_folds: int = 5,
    n_repeats: int = 1,
    seed: int = 0,
    n_inner: int = 0,
) -> Folds:
    """Folds that hold whole sources and, as far as these allow, both classes in equal shares.

    Fewer folds where a class has fewer sources than `n_folds`. Every training set holds both classes; where that cannot
    be (one class only, a class from a single source) there are no folds, and the reason says so. `n_inner` folds within
    each training set are made beside them, for `nested_scores`.
    """
    if n_folds < 2 or n_repeats < 1:
        raise BasinsError(f"n_folds={n_folds} must be at least 2 and n_repeats={n_repeats} at least 1.")
    n_sources = len(np.unique(sources))
    per_class = {name: len(np.unique(sources[labels == name])) for name in (True, False)}
    for name, n in per_class.items():
        if n < 2:
            kind = "labelled" if name else "unlabelled"
            return Folds((), n_sources, f"{kind} sequences come from {n} sources and at least 2 are needed")
    splitter = sklearn_module("model_selection").StratifiedGroupKFold
    n_folds = min(n_folds, *per_class.values(), int(labels.sum()), int((~labels).sum()))
    partitions, inner = [], []
    for repeat in range(n_repeats):
        split = splitter(n_folds, shuffle=True, random_state=seed + repeat).split(labels, labels, sources)
        tests = [test for _, test in split if len(test)]
        for test in tests:
            train = np.setdiff1d(np.arange(len(labels)), test)
            if len(np.unique(labels[train])) < 2:
                return Folds((), n_sources, "the sources are so uneven that a training set would lack a class")
            if n_inner:
                inner.append(grouped_folds(labels[train], sources[train], n_inner, 1, seed))
        partitions.append(tuple(tests))
    return Folds(tuple(partitions), n_sources, "", tuple(inner))


def out_of_fold(
    folds: Folds, n_rows: int, score: Callable[[Fold, Fold], Float64[ndarray, "resample test"]], n_resamples: int = 1
) -> Float64[ndarray, "resample row"]:
    """`score(train rows, test rows)` of every fold put together, averaged over the partitions."""
    total = np.zeros((n_resamples, n_rows))
    for tests in folds.partitions:
        for test in tests:
            total[:, test] += score(np.setdiff1d(np.arange(n_rows), test), test)
    return total / len(folds.partitions)


@dataclass(frozen=True)
class Nested:
    """Out-of-fold log-odds of each row (mean over partitions) and of each resample, fitted anew; penalties chosen."""

    scores: Float64[ndarray, "row"]
    resampled: Float64[ndarray, "resample row"]
    penalties: tuple[float, ...]


def nested_scores(
    columns: Float64[ndarray, "row column"],
    labels: Bool[ndarray, "row"],
    folds: Folds,
    weights: Float64[ndarray, "resample row"] | None = None,
    penalties: Sequence[float] = PENALTIES,
) -> Nested:
    """Out-of-fold log-odds of a logistic regression; its penalty is chosen by inner folds of the training rows alone.

    The inner choice has the least balanced log-loss over `folds.inner`, which hold whole sources too (the strongest
    penalty where they cannot be made). Columns are scaled to mean 0 and standard deviation 1 of the rows trained on.
    `weights` are resamples of whole sources: every fold is fitted again in each, with the penalty chosen before, so
    that the resamples vary by what is learned and not only by what is tested. A source drawn twice stays in one fold.
    """
    if not folds.inner:
        raise BasinsError("these folds have no inner folds to choose a penalty by: make them with n_inner=3.")
    weights = np.zeros((0, len(labels))) if weights is None else weights
    everything = np.concatenate([np.ones((1, len(labels))), weights])
    chosen: list[float] = []
    inner = iter(folds.inner)

    def score(train: Fold, test: Fold) -> Float64[ndarray, "resample test"]:
        best = _best_penalty(columns[train], labels[train], next(inner), sorted(penalties))
        chosen.append(best)
        return _fit_and_score(columns, labels, train, test, everything[:, train], best)

    found = out_of_fold(folds, len(labels), score, len(everything))
    return Nested(found[0], found[1:], tuple(chosen))


def _fit_and_score(
    columns: ndarray, labels: ndarray, train: Fold, test: Fold, weights: ndarray, penalty: float
) -> Float64[ndarray, "resample test"]:
    mean, spread = columns[train].mean(0), columns[train].std(0)
    # Constant up to rounding among the training rows: the column says nothing here.
    spread = np.where(spread > 1e-12 * np.abs(columns[train]).max(0, initial=1e-300), spread, np.inf)
    scaled = (columns - mean) / spread
    rows = max(1, FLOATS // (len(train) * (columns.shape[1] + 1)))
    parts = [
        log_odds(scaled[test], fit_logistic(scaled[train], labels[train], weights[start : start + rows], penalty))
        for start in range(0, len(weights), rows)
    ]
    return np.concatenate(parts)


def _best_penalty(columns: ndarray, labels: ndarray, folds: Folds, penalties: list[float]) -> float:
    if folds.reason or len(penalties) == 1:
        return penalties[0]
    losses = []
    once = np.ones((1, len(labels)))
    for penalty in penalties:

        def score(train: Fold, test: Fold, penalty: float = penalty) -> ndarray:
            return _fit_and_score(columns, labels, train, test, once[:, train], penalty)

        odds = out_of_fold(folds, len(labels), score)[0]
        loss = np.logaddexp(0, np.where(labels, -odds, odds))
        losses.append(loss[labels].mean() + loss[~labels].mean())
    return penalties[int(np.argmin(losses))]


def areas(
    scores: Float64[ndarray, "resample row"], labels: Bool[ndarray, "row"], weights: Float64[ndarray, "resample row"]
) -> Float64[ndarray, "resample"]:
    """Area under the ROC curve of every resample's own scores, ties half; NaN where a class or a score is missing."""
    found = np.full(len(scores), np.nan)
    for place, (row, weight) in enumerate(zip(scores, weights)):
        kept = weight > 0
        positive, negative = float(weight @ labels), float(weight @ ~labels)
        if positive and negative and np.isfinite(row[kept]).all():
            ranks = weighted_ranks(row[kept], weight[None, kept])[0]
            u = float((weight * labels)[kept] @ ranks) - positive * (positive + 1) / 2
            found[place] = u / (positive * negative)
    return found
