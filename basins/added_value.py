"""Does compression say anything about memorisation that the loss and the other baselines do not?

Nested cross-validated logistic regression with the baselines, with compression, and with both; each of them once more
beside controls (frequency, length, density). The answer is a difference of out-of-fold areas under the ROC curve on the
same rows and folds, with an interval from a bootstrap of whole sources in which every model is fitted anew: with the
fitted scores held fixed an area among noise is found different from 0.5 too often (numbers in
tests/test_added_value.py). Then the same after matching labelled to unlabelled sequences on the loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from basins.cross_validation import PENALTIES, areas, check_rows, grouped_folds, nested_scores
from basins.errors import BasinsError
from basins.matching import Matched, match
from basins.stats.resampling import cluster_weights, spread_interval
from basins.stats.result import NO_INTERVAL, Statistic
from basins.stats.sample import Sample, check_confidence, gather

if TYPE_CHECKING:
    import pandas as pd

MODELS = ("baselines", "compression", "both")


@dataclass(frozen=True)
class AddedValue:
    """Areas under the ROC curve of every model, and what compression adds.

    `aurocs`: "baselines", "compression", "both", and with controls "baselines + controls" and so on. `differences`:
    "compression adds" (both less baselines) and "compression adds, controlled". `scores`: out-of-fold log-odds of the
    used rows. Statistics count sequences as tokens and sources as clusters. `n_left_out`: rows without a finite value
    in every column. `matched`: the same on pairs matched on the loss, described by `matching`. `reason` says why there
    are no numbers.
    """

    aurocs: Mapping[str, Statistic]
    differences: Mapping[str, Statistic]
    scores: Mapping[str, ndarray] = field(repr=False)
    rows: ndarray = field(repr=False)
    n_left_out: int
    n_folds: int
    reason: str = ""
    matched: AddedValue | None = None
    matching: Matched | None = None

    def to_frame(self) -> pd.DataFrame:
        """One row for each area and difference, before and after matching (`sample`: "all", "matched")."""
        import pandas as pd

        rows = []
        for sample, result in (("all", self), ("matched", self.matched)):
            if result is None:
                continue
            for statistic in [*result.aurocs.values(), *result.differences.values()]:
                rows.append({"sample": sample} | statistic.to_dict() | {"n_left_out": result.n_left_out})
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        head = next(iter(self.differences.values()))
        if math.isnan(head.estimate):
            return f"What compression adds: nothing can be said, because {self.reason}"
        shown = ", ".join(f"{name} {self.aurocs[name].estimate:.3f}" for name in MODELS)
        parts = [f"AUROC {shown}", *(_short(name, found) for name, found in self.differences.items())]
        if self.matched is not None:
            parts.append(_short("matched", next(iter(self.matched.differences.values()))))
        return (
            f"{'; '.join(parts)} ({head.n_tokens} sequences of {head.n_clusters} sources, {self.n_left_out} left out)"
        )


def added_value(
    labels: Any,
    sources: Any,
    *,
    baselines: pd.DataFrame,
    compression: pd.DataFrame,
    controls: pd.DataFrame | None = None,
    match_on: Any = None,
    caliper: float = 0.2,
    n_folds: int = 5,
    n_repeats: int = 1,
    penalties: tuple[float, ...] = PENALTIES,
    confidence: float = 0.95,
    n_resamples: int = 200,
    seed: int = 0,
) -> AddedValue:
    """One row a sequence in everything; tables as `basins.aggregates.wide` makes them, in the order of `labels`.

    `sources`: what each sequence comes from (a book, a passage); folds and resamples take whole sources, None makes
    every sequence its own. `match_on`: one value a sequence, usually the mean loss; the analysis is then repeated on
    pairs within `caliper` standard deviations of it. Too few rows or one class give NaN with a reason. Same seed, same
    numbers.
    """
    check_confidence(confidence, n_resamples)
    is_labelled, source = check_rows(labels, sources)
    blocks = {"baselines": baselines, "compression": compression}
    blocks |= {} if controls is None else {"controls": controls}
    columns = {name: _matrix(name, block, len(is_labelled)) for name, block in blocks.items()}
    everything = np.concatenate(list(columns.values()), axis=1)
    extra = np.zeros(len(is_labelled)) if match_on is None else _matrix("match_on", match_on, len(is_labelled))[:, 0]
    rows = np.flatnonzero(np.isfinite(everything).all(1) & np.isfinite(extra))
    n_left_out = len(is_labelled) - len(rows)

    def analyse(rows: ndarray, n_left_out: int, **rest: Any) -> AddedValue:
        some = {name: block[rows] for name, block in columns.items()}
        options = (n_folds, n_repeats, penalties, confidence, n_resamples, seed)
        return _analyse(some, is_labelled[rows], source[rows], rows, n_left_out, *options, **rest)

    if match_on is None:
        return analyse(rows, n_left_out)
    matching = match(extra[rows], is_labelled[rows], caliper)
    paired = rows[np.sort(matching.pairs.ravel())]
    matched = analyse(paired, len(rows) - len(paired))
    return analyse(rows, n_left_out, matched=matched, matching=matching)


def _analyse(
    columns: dict[str, ndarray],
    labels: ndarray,
    source: ndarray,
    rows: ndarray,
    n_left_out: int,
    n_folds: int,
    n_repeats: int,
    penalties: tuple[float, ...],
    confidence: float,
    n_resamples: int,
    seed: int,
    **rest: Any,
) -> AddedValue:
    source = np.unique(source, return_inverse=True)[1] if len(source) else source
    sample = gather({"labels": labels.astype(np.float64)}, source, constant=("labels",))
    parts = {"baselines": ["baselines"], "compression": ["compression"], "both": ["baselines", "compression"]}
    if "controls" in columns:
        parts |= {f"{name} + controls": [*own, "controls"] for name, own in list(parts.items())}
    pairs = {"compression adds": ("both", "baselines")}
    if "controls" in columns:
        pairs["compression adds, controlled"] = ("both + controls", "baselines + controls")
    folds = grouped_folds(labels, source, n_folds, n_repeats, seed, n_inner=3) if not sample.reason else None
    reason = sample.reason.replace("tokens", "sequences") or (folds.reason if folds is not None else "")
    if reason or folds is None:
        nothing = {name: sample.nothing(name, "nested AUROC", confidence, reason) for name in [*parts, *pairs]}
        aurocs, differences = {name: nothing[name] for name in parts}, {name: nothing[name] for name in pairs}
        return AddedValue(aurocs, differences, {}, rows, n_left_out, 0, reason, **rest)
    drawn = np.concatenate(list(cluster_weights(sample.n_clusters, n_resamples, n_resamples, seed)))[:, source]
    once = np.ones((1, len(labels)))
    scores, estimate, resampled = {}, {}, {}
    for name, own in parts.items():
        found = nested_scores(np.hstack([columns[b] for b in own]), labels, folds, drawn, penalties)
        scores[name] = found.scores
        estimate[name] = float(areas(found.scores[None], labels, once)[0])
        resampled[name] = areas(found.resampled, labels, drawn)
    method = f"{folds.n_folds} grouped folds x {n_repeats}, nested logistic regression, refitted source bootstrap"
    aurocs = {
        name: _statistic(name, f"AUROC, {method}", estimate[name], resampled[name], sample, confidence, "logit", 0.5)
        for name in parts
    }
    differences = {}
    for name, (more, less) in pairs.items():
        gap, gaps = estimate[more] - estimate[less], resampled[more] - resampled[less]
        what = f"difference in AUROC, {method}"
        differences[name] = _statistic(name, what, gap, gaps, sample, confidence, "plain", 0.0)
    return AddedValue(aurocs, differences, scores, rows, n_left_out, folds.n_folds, **rest)


def _statistic(
    name: str,
    method: str,
    estimate: float,
    resamples: ndarray,
    sample: Sample,
    confidence: float,
    scale: str,
    null: float,
) -> Statistic:
    interval, p, reason = spread_interval(estimate, resamples, sample, confidence, scale, null)
    prevalence = float(sample.columns[0].mean())
    return Statistic(
        name,
        method,
        estimate,
        interval if not reason else NO_INTERVAL,
        sample.n_tokens,
        sample.n_clusters,
        p=p,
        confidence=confidence,
        prevalence=prevalence,
        reason=reason,
    )


def _matrix(name: str, block: Any, n_rows: int) -> ndarray:
    if hasattr(block, "detach"):
        block = block.detach().cpu().double().numpy()
    found = np.asarray(block, dtype=np.float64)
    found = found[:, None] if found.ndim == 1 else found
    if found.ndim != 2 or len(found) != n_rows or not found.shape[1]:
        raise BasinsError(
            f"{name} has shape {list(found.shape)} and there are {n_rows} labels; it must hold one row a sequence, in "
            "the order of the labels, and at least one column."
        )
    return found


def _short(name: str, found: Statistic) -> str:
    if math.isnan(found.estimate):
        return f"{name}: nothing ({found.reason})"
    return f"{name} {found.estimate:+.3f} [{found.interval[0]:+.3f}, {found.interval[1]:+.3f}], p = {found.p:.3g}"
