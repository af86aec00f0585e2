"""The tables of the importance experiment: correlations, quartiles, agreement with ablation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from basins.experiments.importance_measures import COSTLY, size_of
from basins.experiments.primary import PRIMARY, SCORES
from basins.experiments.token_columns import CONFOUNDS, Aligned, align
from basins.stats import Cell, corrected_p, correlation_grid, quartile_contrast, spearman

if TYPE_CHECKING:
    import pandas as pd


def _groups(methods: list[str]) -> list[list[str]]:
    """Methods that were measured on the same tokens."""
    cheap = [method for method in methods if method not in COSTLY]
    return [group for group in (cheap, *([m] for m in methods if m in COSTLY)) if group]


def correlations(
    frame: pd.DataFrame, methods: list[str], statistics: dict[str, Any], scores: tuple[str, ...] = tuple(SCORES)
) -> tuple[pd.DataFrame, dict[str, list[int]]]:
    """One row a (layer, score, method); and the layers that each group of methods had to leave out.

    Costly methods have fewer tokens, so each group is a grid of its own; corrected p are multiplied by the number of
    groups (Bonferroni), which makes them hold over everything.
    """
    import pandas as pd

    groups = _groups(methods)
    found: list[tuple[int, Cell]] = []
    left_out: dict[str, list[int]] = {}
    named = [score for score in scores if score in frame]
    for group in groups:
        aligned = align(frame, [*named, *group, *CONFOUNDS])
        if aligned.left_out:
            left_out[", ".join(group)] = list(aligned.left_out)
        if not aligned.layers:
            continue
        cells = correlation_grid(
            {method: size_of(method, aligned.columns[method]) for method in group},
            aligned[named],
            aligned[CONFOUNDS],
            clusters=aligned.cluster,
            **statistics,
        )
        found += [(aligned.layers[cell.layer], cell) for cell in cells]
    q = corrected_p((cell.partial.p for _, cell in found), "benjamini-hochberg")
    rows = []
    for (layer, cell), over_all in zip(found, q, strict=True):
        raw, partial = cell.raw, cell.partial
        row: dict[str, Any] = {"layer": layer, "score": cell.y, "method": cell.x, "primary": cell.y == PRIMARY}
        row |= {"n_tokens": raw.n_tokens, "n_clusters": raw.n_clusters, "rho": raw.estimate}
        row |= {"rho_low": raw.interval[0], "rho_high": raw.interval[1], "partial": partial.estimate}
        row |= {"partial_low": partial.interval[0], "partial_high": partial.interval[1], "p": partial.p}
        row |= {"p_corrected": min(1.0, len(groups) * partial.p_corrected), "q": float(over_all)}
        rows.append(row | {"reason": partial.reason or raw.reason})
    return pd.DataFrame(rows), left_out


def quartiles(frame: pd.DataFrame, methods: list[str], seed: int) -> pd.DataFrame:
    """Mean relative score in each quarter of importance, and the highest less the lowest with its interval."""
    import pandas as pd

    rows = []
    for group in _groups(methods):
        aligned: Aligned = align(frame, [PRIMARY, *group])
        for method in group:
            for place, layer in enumerate(aligned.layers):
                found = quartile_contrast(
                    size_of(method, aligned.columns[method][place]),
                    aligned.columns[PRIMARY][place],
                    clusters=aligned.cluster,
                    n_resamples=300,
                    seed=seed,
                )
                row: dict[str, Any] = {"layer": layer, "method": method}
                row |= {f"q{i}": found.details.get(f"q{i}", math.nan) for i in range(1, 5)}
                row |= {"contrast": found.estimate, "low": found.interval[0], "high": found.interval[1]}
                rows.append(row | {"d": found.effect_size, "n_tokens": found.n_tokens, "reason": found.reason})
    return pd.DataFrame(rows)


def agreement(frame: pd.DataFrame, methods: list[str], seed: int) -> pd.DataFrame:
    """Spearman's rho of every method with ablation over the tokens that were ablated, at each layer.

    `rho`: of importance as the experiment compares it (sizes, where a method has a sign). `rho_signed`: with the signs.
    """
    import pandas as pd

    columns = ["layer", "method", "n_tokens", "rho", "low", "high", "p", "rho_signed", "reason"]
    rows = []
    for method in methods if "ablation" in methods else ():
        if method == "ablation":
            continue
        aligned = align(frame, ["ablation", method])
        for place, layer in enumerate(aligned.layers):
            values, truth = aligned.columns[method][place], aligned.columns["ablation"][place]
            found = spearman(
                size_of(method, values),
                size_of("ablation", truth),
                clusters=aligned.cluster,
                n_resamples=300,
                seed=seed,
            )
            signed = spearman(values, truth, clusters=aligned.cluster, n_resamples=100, seed=seed)
            row = [
                layer,
                method,
                found.n_tokens,
                found.estimate,
                *found.interval,
                found.p,
                signed.estimate,
                found.reason,
            ]
            rows.append(dict(zip(columns, row, strict=True)))
    return pd.DataFrame(rows, columns=pd.Index(columns))
