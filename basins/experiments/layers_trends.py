"""Does a score change with depth, and do re-run and lookup differ? Tests that know that layers and tokens are few.

Tokens of a sequence are not independent, so intervals resample sequences and tests turn the signs of whole sequences.
All tokens see the same few layers, in the same order: however many tokens there are, a trend along 8 layers has no more
than 8 points. So the trend has to pass a second test, in which the layers change places.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from basins.stats import mean
from basins.stats.resampling import cluster_weights, spread_interval
from basins.stats.sample import gather, scipy_stats

ALL_ORDERS = 5040  # up to 7 layers all orders are tried; of more, as many as there are permutations


def depth_trend(
    values: Float[ndarray, "layer token"], cluster: ndarray, *, n_resamples: int, n_permutations: int, seed: int
) -> dict[str, Any]:
    """Mean over tokens of Spearman's correlation of layer and value, r.

    `p_sequences`: signs of whole sequences' means turned at random (is r the same way in all of the text?). `p_order`:
    layers in another order, the same for all tokens (is it a trend, or just different layers?). `p` is the larger.
    """
    n_layers = len(values)
    if n_layers < 3 or values.shape[1] < 2:
        nothing = dict.fromkeys(("r", "low", "high", "p", "p_sequences", "p_order"), math.nan)
        return nothing | {"n_layers": n_layers, "reason": f"{n_layers} layers make no trend"}
    ranks = _unit(scipy_stats().rankdata(values, axis=0))
    steps = _unit(np.arange(n_layers, dtype=np.float64)[:, None])[:, 0]
    found = mean(steps @ ranks, clusters=cluster, n_resamples=n_resamples, seed=seed)
    p_sequences = float(sign_flips((steps @ ranks)[None], cluster, n_permutations, seed)[0][0])
    along = ranks.mean(1)
    if math.factorial(n_layers) <= ALL_ORDERS:
        orders, first = np.array(list(itertools.permutations(range(n_layers)))), 0
    else:
        rng = np.random.default_rng(seed)
        orders, first = np.argsort(rng.random((n_permutations, n_layers)), axis=1), 1
    extreme = np.abs(along[orders] @ steps) >= abs(found.estimate) - 1e-12
    p_order = float((first + extreme.sum()) / (first + len(orders)))
    result: dict[str, Any] = {"r": found.estimate, "low": found.interval[0], "high": found.interval[1]}
    result |= {"p": max(p_sequences, p_order), "p_sequences": p_sequences, "p_order": p_order}
    return result | {"n_layers": n_layers, "reason": found.reason}


def _unit(columns: ndarray) -> ndarray:
    centred = columns - columns.mean(0)
    length = np.sqrt((centred**2).sum(0))
    return np.where(length > 0, centred / np.where(length > 0, length, 1), np.nan)


def without_density(
    values: Float[ndarray, "layer token"], density: Float[ndarray, "layer token"]
) -> Float[ndarray, "layer token"]:
    """Values less what the density before the block predicts, by one slope, fitted within layers.

    What is left of a trend is not just that deeper neighbourhoods are wider or denser.
    """
    centred = density - density.mean(1, keepdims=True)
    total = float((centred**2).sum())
    slope = float((centred * (values - values.mean(1, keepdims=True))).sum()) / total if total > 0 else 0.0
    return values - slope * (density - density.mean())


def sign_flips(
    values: Float[ndarray, "layer token"], cluster: ndarray, n_permutations: int, seed: int
) -> tuple[ndarray, ndarray]:
    """(p, p corrected over layers by max-T) of mean = 0, by turning the signs of whole sequences, two-sided."""
    _, number = np.unique(cluster, return_inverse=True)
    sums = np.stack([np.bincount(number, weights=row) for row in values])
    size = np.sqrt((sums**2).sum(1))
    observed = np.abs(sums.sum(1)) / np.maximum(size, 1e-300)
    signs = np.random.default_rng(seed).integers(0, 2, (n_permutations, sums.shape[1])) * 2.0 - 1
    flipped = np.abs(signs @ sums.T) / np.maximum(size, 1e-300) + 1e-12
    p = (1 + (flipped >= observed).sum(0)) / (1 + n_permutations)
    return p, (1 + (flipped.max(1)[:, None] >= observed).sum(0)) / (1 + n_permutations)


def signed_ranks(values: Any, cluster: Any, *, n_resamples: int, seed: int) -> dict[str, Any]:
    """Matched-pairs rank-biserial correlation (Kerby 2014) of differences with 0: ranks of |d|, those of positive d
    less those of negative d, over all. 1 where every difference is positive; the interval resamples sequences."""
    sample = gather({"difference": values}, cluster, constant=("difference",))
    if sample.reason:
        return {"r": math.nan, "low": math.nan, "high": math.nan, "reason": sample.reason}
    column = sample.columns[0]
    ranks = scipy_stats().rankdata(np.abs(column))
    up, all_of_it = (
        np.bincount(sample.cluster, weights=part, minlength=sample.n_clusters)
        for part in (ranks * np.sign(column), ranks)
    )
    r = float(up.sum() / all_of_it.sum())
    drawn = cluster_weights(sample.n_clusters, n_resamples, n_resamples, seed)
    resamples = np.concatenate([(weights @ up) / (weights @ all_of_it) for weights in drawn])
    if np.ptp(resamples) <= 1e-9:  # every difference has the same sign
        return {"r": r, "low": r, "high": r, "reason": ""}
    # Near 1, where contexts put it, Fisher's scale has no width.
    (low, high), _, reason = spread_interval(r, resamples, sample, 0.95, "plain", 0.0)
    return {"r": r, "low": max(low, -1.0), "high": min(high, 1.0), "reason": reason}
