"""A classifier that never sees the model: if words alone tell the groups apart, comparing them is unfair.

Labelled and unlabelled texts that differ in topic, date or style are told apart by any score that follows these. On
such a comparison an area under the ROC curve says nothing about memorisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy import ndarray

from basins.cross_validation import Fold, areas, check_rows, grouped_folds, out_of_fold, sklearn_module
from basins.errors import BasinsError
from basins.logistic import fit_logistic, log_odds
from basins.stats.resampling import cluster_weights, spread_interval
from basins.stats.result import Statistic
from basins.stats.sample import check_confidence, gather

NAME, METHOD = "blind", "AUROC, TF-IDF and logistic regression, out of fold, refitted source bootstrap"


@dataclass(frozen=True)
class Blind:
    """`scores`: out-of-fold log-odds of each text (NaN where there are no folds); `auroc`: what they reach.

    `unfair` is True where the interval of the area excludes 0.5, None where there is no interval.
    """

    scores: ndarray = field(repr=False)
    auroc: Statistic

    @property
    def unfair(self) -> bool | None:
        low, high = self.auroc.interval
        return None if math.isnan(low) else not low <= 0.5 <= high

    @property
    def verdict(self) -> str:
        """One sentence for a report."""
        low, high = self.auroc.interval
        area = f"AUROC {self.auroc.estimate:.3f} [{low:.3f}, {high:.3f}]"
        if self.unfair is None:
            return f"Whether the comparison is fair cannot be said: {self.auroc.reason}."
        if self.unfair:
            return f"UNFAIR: words alone tell the groups apart ({area}), without any model."
        return f"Fair as far as words show: without the model they do not tell the groups apart ({area})."

    def __str__(self) -> str:
        return self.verdict


def blind(
    texts: Sequence[str],
    labels: Any,
    sources: Any = None,
    *,
    n_folds: int = 5,
    penalty: float = 1.0,
    confidence: float = 0.95,
    n_resamples: int = 100,
    seed: int = 0,
) -> Blind:
    """Bag of words (TF-IDF, lower case, logarithmic counts) and logistic regression, cross-validated over sources.

    The vocabulary and its weights come from the training texts of each fold. Words are what `\\w+` matches. The
    interval fits anew in resamples of whole sources, as in `basins.added_value`. NaN with a reason where there are too
    few texts, one class, or no word.
    """
    check_confidence(confidence, n_resamples)
    is_labelled, source = check_rows(labels, sources)
    if isinstance(texts, str) or len(texts) != len(is_labelled):
        raise BasinsError(f"{len(texts)} texts were given for {len(is_labelled)} labels; pass one text a label.")
    sample = gather({"labels": is_labelled.astype(np.float64)}, source, constant=("labels",))
    reason = sample.reason.replace("tokens", "texts")
    folds = grouped_folds(is_labelled, source, n_folds, 1, seed) if not reason else None
    reason = reason or (folds.reason if folds is not None else "")
    vectorizer = sklearn_module("feature_extraction.text").TfidfVectorizer
    if not reason and not any(vectorizer(token_pattern=r"(?u)\b\w+\b").build_analyzer()(text) for text in texts):
        reason = "the texts hold no word"
    if reason or folds is None:
        nothing = sample.nothing(NAME, METHOD, confidence, reason)
        return Blind(np.full(len(texts), np.nan), nothing)
    drawn = np.concatenate(list(cluster_weights(sample.n_clusters, n_resamples, n_resamples, seed)))[:, source]
    everything = np.concatenate([np.ones((1, len(texts))), drawn])

    def score(train: Fold, test: Fold) -> ndarray:
        words = vectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
        try:
            known, new = words.fit_transform([texts[i] for i in train]), words.transform([texts[i] for i in test])
        except ValueError:  # no word in any training text: nothing is known about the test texts
            return np.zeros((len(everything), len(test)))
        # A penalised regression on many words is the same on the few directions that the training texts span.
        left, size, right = np.linalg.svd(known.toarray(), full_matrices=False)
        fitted = fit_logistic(left * size, is_labelled[train], everything[:, train], penalty)
        return log_odds(new @ right.T, fitted)

    scores = out_of_fold(folds, len(texts), score, len(everything))
    estimate = float(areas(scores[:1], is_labelled, everything[:1])[0])
    resamples = areas(scores[1:], is_labelled, drawn)
    interval, p, reason = spread_interval(estimate, resamples, sample, confidence, "logit", 0.5)
    found = Statistic(
        NAME,
        METHOD,
        estimate,
        interval,
        sample.n_tokens,
        sample.n_clusters,
        p=p,
        confidence=confidence,
        prevalence=float(is_labelled.mean()),
        reason=reason,
    )
    return Blind(scores[0], found)
