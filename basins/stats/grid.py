"""Every x with every y at every layer, on one set of tokens: ranks, resamples and rotations are shared."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from basins.errors import BasinsError, choose
from basins.stats.correlations import NOTHING_LEFT, left_over
from basins.stats.permutation import residuals, within
from basins.stats.resampling import bootstrap_covariances, permutations, rotations, spread_interval
from basins.stats.result import Statistic
from basins.stats.sample import Sample, array, check_confidence, gather, scipy_stats, standardized

MOVES = {"rotate": rotations, "shuffle": permutations}


@dataclass(frozen=True)
class Cell:
    """One x with one y at one layer (its place in the columns). `partial` carries the tests, `raw` the plain rho."""

    layer: int
    x: str
    y: str
    raw: Statistic
    partial: Statistic


def correlation_grid(
    x: Mapping[str, Any],
    y: Mapping[str, Any],
    confounds: Mapping[str, Any],
    *,
    clusters: Any,
    moves: str = "rotate",
    confidence: float = 0.95,
    n_resamples: int = 500,
    n_permutations: int = 2000,
    seed: int = 0,
) -> list[Cell]:
    """Spearman's rho, raw and partial given the confounds, with cluster-bootstrap intervals and max-T p-values.

    Each column is "layer token", or "token" where it is the same at every layer. Tokens must have a value in every
    column at every layer; the others are left out. p is the share of moved tokens that do as well as the real ones:
    what the confounds leave of y is moved within its sequence, "rotate" by turning each sequence round (tokens near
    each other may depend on each other, and stay together), "shuffle" anywhere (they may not). One move serves all
    pairs and layers, so `p_corrected` is how often the best of *everything in the grid* does as well (max-T, Westfall
    and Young 1993). A column that is constant, or that the confounds explain, gives NaN with its reason.
    """
    check_confidence(confidence, n_resamples)
    check_confidence(confidence, n_permutations)
    moves = choose("moves", moves, MOVES)
    if not x or not y:
        raise BasinsError("x and y need at least one column each: a dict from a name to its values.")
    given = {f"x {k}": v for k, v in x.items()} | {f"y {k}": v for k, v in y.items()}
    given |= {f"given {k}": v for k, v in confounds.items()}
    columns, n_layers = _layered(given)
    flat = {f"{name} at {layer}": values[layer] for name, values in columns.items() for layer in range(n_layers)}
    sample = gather(flat, clusters, minimum=5 + len(confounds), constant=tuple(flat))
    names = [(layer, a, b) for layer in range(n_layers) for a in x for b in y]
    method = "spearman, cluster bootstrap, " + sample.dependence
    moved = f"{method}; p by {'rotating' if moves == 'rotate' else 'shuffling'} within sequences"
    if sample.reason:
        nothing = sample.nothing("", method, confidence)
        return [
            Cell(layer, a, b, *(_named(nothing, layer, a, b, k) for k in ("rho", "partial"))) for layer, a, b in names
        ]
    blocks = sample.columns.reshape(len(columns), n_layers, sample.n_tokens)
    pairs = [(i, len(x) + j) for i in range(len(x)) for j in range(len(y))]
    cells: list[Cell] = []
    p, corrected = _moved(sample, blocks, len(x), len(y), moves, n_permutations, seed)
    for layer in range(n_layers):
        both = _both(sample, blocks[:, layer], len(x) + len(y), n_resamples, seed)
        for place, (i, j) in enumerate(pairs):
            found = []
            for kind, (estimate, resamples) in both.items():
                value = float(estimate[i, j])
                said = moved if kind == "partial" else method
                if math.isnan(value):
                    why = "x or y is constant" if kind == "rho" else "x or y is constant, or the confounds explain it"
                    found.append(sample.nothing(kind, said, confidence, why))
                    continue
                spread = spread_interval(value, resamples[:, i, j], sample, confidence, "fisher", 0.0)
                interval, p_bootstrap, reason = spread
                found.append(
                    sample.found(kind, said, value, interval,
                        p=p_bootstrap, confidence=confidence, reason=reason,
                    )
                )  # fmt: skip
            raw, partial = found
            if not math.isnan(partial.estimate):
                note = f"max-T over {len(names)}"
                p_here, best = float(p[layer, place]), float(corrected[layer, place])
                partial = dataclasses.replace(partial, p=p_here, p_corrected=best, correction=note)
            a, b = list(x)[i], list(y)[j - len(x)]
            cells.append(Cell(layer, a, b, _named(raw, layer, a, b, "rho"), _named(partial, layer, a, b, "partial")))
    return cells


def _named(statistic: Statistic, layer: int, x: str, y: str, kind: str) -> Statistic:
    return dataclasses.replace(statistic, name=f"{kind} of {x} and {y}, layer {layer}")


def _layered(given: Mapping[str, Any]) -> tuple[dict[str, ndarray], int]:
    """Every column as "layer token"."""
    arrays = {name: array(name.split(" ", 1)[1], values) for name, values in given.items()}
    full = [values.shape for values in arrays.values() if values.ndim == 2]
    if not full:
        raise BasinsError("No column has a layer axis: pass x or y as [layer, token], or use spearman and partial.")
    for name, values in arrays.items():
        if values.shape not in (full[0], full[0][1:]):
            possible = f"{list(full[0])} (layer, token) or {list(full[0][1:])} (one for all layers)"
            raise BasinsError(f"{name.split(' ', 1)[1]} has shape {list(values.shape)}; possible: {possible}.")
    return {name: np.broadcast_to(values, full[0]) for name, values in arrays.items()}, full[0][0]


def _both(
    sample: Sample, columns: Float64[ndarray, "column token"], n_free: int, n_resamples: int, seed: int
) -> dict[str, tuple[ndarray, ndarray]]:
    """Plain and partial correlation of all free columns: estimates, and one matrix a resample."""
    here = dataclasses.replace(sample, columns=columns)
    ranks = standardized(scipy_stats().rankdata(columns, axis=1))
    covariance = ranks @ ranks.T / sample.n_tokens
    resampled = bootstrap_covariances(here, True, n_resamples, seed)
    return {
        "rho": (_unit(covariance[:n_free, :n_free]), _unit(resampled[:, :n_free, :n_free])),
        "partial": (_unit(left_over(covariance, n_free)), _unit(left_over(resampled, n_free))),
    }


def _unit(covariance: ndarray) -> ndarray:
    scale = np.diagonal(covariance, axis1=-2, axis2=-1)
    scale = np.sqrt(np.where(scale > NOTHING_LEFT, scale, np.nan))
    return np.clip(covariance / (scale[..., :, None] * scale[..., None, :]), -1, 1)


def _moved(
    sample: Sample, blocks: Float64[ndarray, "column layer token"], n_x: int, n_y: int, moves: str, n: int, seed: int
) -> tuple[ndarray, ndarray]:
    """(p, max-T p), each "layer pair"; the pairs of x and y in order, y fastest."""
    n_layers = blocks.shape[1]
    left: list[tuple[ndarray, ndarray]] = []
    for layer in range(n_layers):
        ranks = standardized(scipy_stats().rankdata(blocks[:, layer], axis=1))
        free = residuals(ranks[: n_x + n_y], ranks[n_x + n_y :])
        free = free if sample.independent else within(free, sample)
        length = np.sqrt((free**2).sum(1, keepdims=True))
        # Within sequences each column has length 1, so that columns which vary little there are not drowned in the max.
        free = np.where(length > 1e-9, free / np.maximum(length, 1e-300), 0)
        left.append((np.nan_to_num(free[:n_x]), np.nan_to_num(free[n_x:])))
    observed = np.abs(np.stack([(x @ y.T).ravel() for x, y in left]))
    beaten, beaten_by_best = np.zeros_like(observed), np.zeros_like(observed)
    for order in MOVES[moves](sample, n, seed):
        found = np.stack([np.abs(y[:, order].transpose(1, 0, 2) @ x.T) for x, y in left], axis=1)
        # "permutation layer pair", with the slack that keeps rounding from breaking ties against the null.
        found = found.transpose(0, 1, 3, 2).reshape(len(order), n_layers, -1) + 1e-12
        beaten += (found >= observed).sum(0)
        beaten_by_best += (found.max((1, 2))[:, None, None] >= observed).sum(0)
    return (1 + beaten) / (1 + n), (1 + beaten_by_best) / (1 + n)
