"""How well a score finds labelled tokens: area under the ROC curve, true positives at a fixed false-positive rate."""

from __future__ import annotations

from typing import Any

import numpy as np

from basins.errors import BasinsError, MissingExtra
from basins.stats.ranking import auc_resamples, tpr_resamples
from basins.stats.resampling import shifted_percentiles, spread_interval
from basins.stats.result import NO_INTERVAL, Statistic
from basins.stats.sample import check_confidence
from basins.stats.two_groups import cohens_d, labelled


def _metrics() -> Any:
    try:
        from sklearn import metrics
    except ImportError:
        raise MissingExtra("scikit-learn", "experiments") from None
    return metrics


def auroc(
    scores: Any,
    labels: Any,
    *,
    clusters: Any,
    name: str = "auroc",
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Statistic:
    """Area under the ROC curve with a bootstrap interval over sequences (over tokens for `clusters=None`).

    p tests 0.5. Where every resample separates the classes perfectly there is no interval, and the reason says so.
    """
    check_confidence(confidence, n_resamples)
    sample, is_labelled = labelled(scores, labels, clusters)
    method = f"AUROC, cluster bootstrap, {sample.dependence}"
    if sample.reason:
        return sample.nothing(name, method, confidence)
    estimate = float(_metrics().roc_auc_score(is_labelled, sample.columns[0]))
    resamples = auc_resamples(sample, is_labelled, n_resamples, seed)
    interval, p, reason = spread_interval(estimate, resamples, sample, confidence, "logit", 0.5)
    return sample.found(
        name,
        method,
        estimate,
        interval,
        p=p,
        confidence=confidence,
        effect_size=cohens_d(sample.columns[0], is_labelled),
        prevalence=float(is_labelled.mean()),
        reason=reason,
    )


def tpr_at_fpr(
    scores: Any,
    labels: Any,
    *,
    clusters: Any,
    fpr: float = 0.01,
    name: str = "",
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Statistic:
    """The highest true-positive rate at a false-positive rate of at most `fpr`; thresholds are found in each resample.

    Fewer than 1 / fpr unlabelled tokens cannot show such a rate: NaN. No p is given, as there is no null value.
    """
    check_confidence(confidence, n_resamples)
    if not 0 < fpr < 1:
        raise BasinsError(f"fpr={fpr} is not between 0 and 1. Usual values are 0.01 and 0.05.")
    sample, is_labelled = labelled(scores, labels, clusters)
    name, method = name or f"TPR at FPR {fpr:g}", f"ROC curve, cluster bootstrap percentiles, {sample.dependence}"
    n_negative = int((~is_labelled).sum())
    if sample.reason:
        return sample.nothing(name, method, confidence)
    if n_negative * fpr < 1 - 1e-9:
        reason = f"{n_negative} tokens without the label cannot show a false-positive rate of {fpr:g}"
        return sample.nothing(name, method, confidence, reason)
    false, true, _ = _metrics().roc_curve(is_labelled, sample.columns[0], drop_intermediate=False)
    estimate = float(np.max(true[false <= fpr + 1e-12]))
    resamples = tpr_resamples(sample, is_labelled, fpr, n_resamples, seed)
    interval, reason = shifted_percentiles(estimate, resamples, sample, confidence)
    interval = interval if not reason else NO_INTERVAL
    return sample.found(
        name,
        method,
        estimate,
        interval,
        confidence=confidence,
        effect_size=cohens_d(sample.columns[0], is_labelled),
        prevalence=float(is_labelled.mean()),
        reason=reason,
    )
