"""Permutation tests that move tokens only within their sequence, for one column or the best of many layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from basins.errors import BasinsError
from basins.stats.resampling import permutations
from basins.stats.result import NO_INTERVAL, Statistic
from basins.stats.sample import Sample, array, check_confidence, gather, scipy_stats, standardized


def permutation_test(
    x: Any,
    y: Any,
    *,
    clusters: Any,
    confounds: Mapping[str, Any] | None = None,
    rank: bool = False,
    name: str = "permutation",
    n_permutations: int = 2000,
    seed: int = 0,
) -> Statistic:
    """Is x related to y *within* sequences? Two-sided, p = (1 + number as extreme) / (1 + n_permutations).

    The estimate is the correlation of all tokens (with confounds: of what linear fits on them leave). Permuting within
    sequences keeps every sequence's mean, so the correlation of permuted tokens is centred on what the means alone
    give; the test looks at the distance from there, which is the covariance within sequences. It takes tokens of one
    sequence as exchangeable under the null: pass position among the confounds where both columns drift along it.
    """
    return max_t(
        array("x", x)[None],
        y,
        clusters=clusters,
        confounds=confounds,
        rank=rank,
        names=[name],
        n_permutations=n_permutations,
        seed=seed,
    )[0]


def max_t(
    x: Any,
    y: Any,
    *,
    clusters: Any,
    confounds: Mapping[str, Any] | None = None,
    rank: bool = False,
    names: list[str] | None = None,
    n_permutations: int = 2000,
    seed: int = 0,
) -> list[Statistic]:
    """One result a layer, corrected for having looked at all layers (max-T; Westfall and Young 1993).

    x: layer first, then tokens. y and each confound: the same shape, or without the layer (one column for all layers).
    One permutation of tokens serves every layer, so that the correlation between layers is kept; a layer's corrected p
    is how often the *best* layer of a permutation does as well as it did. Tokens must have a value at every layer that
    has any variation; a constant or empty layer is NaN and leaves the others alone.
    """
    check_confidence(0.95, n_permutations)
    layers = array("x", x)
    if layers.ndim < 2:
        raise BasinsError(f"x has shape {list(layers.shape)}; it must have layers first, then tokens.")
    names = names if names is not None else [f"layer {number}" for number in range(len(layers))]
    if len(names) != len(layers):
        raise BasinsError(f"{len(names)} names were given for {len(layers)} layers.")
    given = {name: _per_layer(name, column, layers) for name, column in {"y": y, **(confounds or {})}.items()}
    constant, minimum = tuple(confounds or ()), 4 + len(confounds or ())
    method = f"{'spearman' if rank else 'pearson'}{', partial' if constant else ''}, permuted "
    method += "over all tokens" if clusters is None else "within sequences"

    def at(layer: int) -> dict[str, ndarray]:
        return {"x": layers[layer], **{name: column[layer] for name, column in given.items()}}

    alone = [gather(at(layer), clusters, minimum=minimum, constant=constant) for layer in range(len(layers))]
    usable = [layer for layer, sample in enumerate(alone) if not sample.reason]
    results = [sample.nothing(name, method, 0.95) for sample, name in zip(alone, names)]
    if not usable:
        return results
    together = {f"{name} at {names[layer]}": column for layer in usable for name, column in at(layer).items()}
    free = tuple(name for name in together if name.split(" at ")[0] in constant)
    sample = gather(together, clusters, minimum=minimum, constant=free)
    if sample.reason:
        reason = f"of the tokens with a value at every layer: {sample.reason}"
        return [sample.nothing(name, method, 0.95, one.reason or reason) for one, name in zip(alone, names)]
    estimates, p, corrected = _permute(sample, len(usable), rank, n_permutations, seed)
    many = len(names) > 1
    for place, layer in enumerate(usable):
        nothing = math.isnan(p[place])
        results[layer] = sample.found(
            names[layer],
            method,
            float(estimates[place]),
            NO_INTERVAL,
            p=float(p[place]),
            p_corrected=float(corrected[place]) if many else math.nan,
            correction=f"max-T over {len(usable)}" if many and not nothing else "",
            reason="nothing varies within sequences or the confounds explain it wholly" if nothing else "",
        )
    return results


def _per_layer(name: str, column: Any, layers: ndarray) -> ndarray:
    found = array(name, column)
    if found.shape not in (layers.shape, layers.shape[1:]):
        possible = f"{list(layers.shape)} (as x) or {list(layers.shape[1:])} (one for all layers)"
        raise BasinsError(f"{name} has shape {list(found.shape)}; possible: {possible}.")
    return np.broadcast_to(found, layers.shape)


def _permute(
    sample: Sample, n_layers: int, rank: bool, n_permutations: int, seed: int
) -> tuple[ndarray, ndarray, ndarray]:
    """(estimate, p, max-T p) of each layer."""
    columns = scipy_stats().rankdata(sample.columns, axis=1) if rank else sample.columns
    blocks = standardized(columns).reshape(n_layers, -1, sample.n_tokens)
    pairs = np.stack([residuals(block[:2], block[2:]) for block in blocks])
    estimates = (pairs[:, 0] * pairs[:, 1]).sum(1)
    if not sample.independent:
        pairs = np.stack([within(pair, sample) for pair in pairs])
    flat = np.isnan(pairs).any((1, 2)) | (np.abs(pairs).max(2) < 1e-9).any(1)
    pairs[flat] = 0
    observed = np.abs((pairs[:, 0] * pairs[:, 1]).sum(1))
    beaten, beaten_by_best = np.zeros(n_layers), np.zeros(n_layers)
    for order in permutations(sample, n_permutations, seed):
        # The slack keeps rounding from breaking ties against the null.
        found = np.stack([np.abs(y[order] @ x) for x, y in pairs], axis=1) + 1e-12
        beaten += (found >= observed).sum(0)
        beaten_by_best += (found.max(1)[:, None] >= observed).sum(0)
    p, corrected = (1 + beaten) / (1 + n_permutations), (1 + beaten_by_best) / (1 + n_permutations)
    return estimates, np.where(flat, np.nan, p), np.where(flat, np.nan, corrected)


def residuals(pair: ndarray, confounds: ndarray) -> ndarray:
    """Columns of length 1 with the confounds' linear fit taken out; NaN where nothing is left."""
    if len(confounds):
        pair = pair - np.linalg.lstsq(confounds.T, pair.T, rcond=1e-10)[0].T @ confounds
    length = np.sqrt((pair**2).sum(1, keepdims=True))
    return np.where(length > 1e-5 * np.sqrt(pair.shape[1]), pair / np.maximum(length, 1e-300), np.nan)


def within(columns: ndarray, sample: Sample) -> ndarray:
    """Columns less their sequence's mean."""
    counts = np.bincount(sample.cluster)
    means = [np.bincount(sample.cluster, weights=column) / counts for column in columns]
    return columns - np.array(means)[:, sample.cluster]
