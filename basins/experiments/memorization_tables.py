"""The tables of the memorisation experiment: who differs from whom in what, dose-response, what compression adds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from basins.added_value import AddedValue, added_value
from basins.blind import blind
from basins.experiments.memorization_measures import Measured, depths
from basins.experiments.memorization_passages import Contrast
from basins.experiments.token_columns import align
from basins.stats import Statistic, auroc, correct, correlation_grid, point_biserial, spearman, tpr_at_fpr, welch

if TYPE_CHECKING:
    import pandas as pd

PRIMARY = "relative_mean"
# The baselines that compression is added to. They are there for every model and text.
BASELINES = ("loss", "min_k", "min_k_plus_plus", "zlib")
ENOUGH_FOR_1_PERCENT = 1000  # negatives; fewer cannot show one false positive in a hundred with any certainty


def split(passages: pd.DataFrame, contrast: Contrast) -> tuple[np.ndarray, np.ndarray]:
    """(rows, labels): the passages that a contrast compares; excluded ones are never among them."""
    included = passages["excluded"].isna().to_numpy()
    positive = passages["group"].isin(contrast.positive).to_numpy() & included
    negative = passages["group"].isin(contrast.negative).to_numpy() & included
    if contrast.label is not None:
        positive &= passages[contrast.label].fillna(False).to_numpy(dtype=bool)
    if contrast.without is not None:
        positive &= ~passages[contrast.without].fillna(False).to_numpy(dtype=bool)
    rows = np.flatnonzero(positive | negative)
    return rows, positive[rows]


def tests(
    matrix: pd.DataFrame, passages: pd.DataFrame, contrasts: Iterable[Contrast], *, n_resamples: int, seed: int
) -> pd.DataFrame:
    """One row for every contrast and column of `matrix`: point-biserial r, Welch's t, Hedges' g, AUROC, TPR.

    Passages are independent of each other, so intervals and p of r and of the difference are the textbook ones; those
    of areas and rates resample passages. `p_corrected`: Holm over all contrasts, measures and layers of the model, of
    Welch's p; `q`: Benjamini-Hochberg over the same.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    compared: list[Statistic] = []
    for contrast in contrasts:
        chosen, labels = split(passages, contrast)
        for name in matrix.columns:
            values = matrix[name].to_numpy()[chosen]
            compared.append(welch(values, labels, clusters=None, name=name))
            rows.append(
                {"contrast": contrast.name} | _names(name) | _effects(values, labels, compared[-1], n_resamples, seed)
            )
    holm, q = correct(compared, "holm"), correct(compared, "benjamini-hochberg")
    for row, one, other in zip(rows, holm, q, strict=True):
        row |= {"p": one.p, "p_corrected": one.p_corrected, "q": other.p_corrected, "reason": one.reason}
    return pd.DataFrame(rows)


def _names(column: str) -> dict[str, Any]:
    measure, _, layer = column.partition(".L")
    return {"name": column, "measure": measure, "layer": float(layer) if layer else math.nan}


def _effects(
    values: np.ndarray, labels: np.ndarray, difference: Statistic, n_resamples: int, seed: int
) -> dict[str, Any]:
    kept = np.isfinite(values)
    n_positive, n_negative = int((labels & kept).sum()), int((~labels & kept).sum())
    r = point_biserial(values, labels, clusters=None)
    area = auroc(values, labels, clusters=None, n_resamples=n_resamples, seed=seed)
    found: dict[str, Any] = {"n_positive": n_positive, "n_negative": n_negative}
    found |= {"r": r.estimate, "r_low": r.interval[0], "r_high": r.interval[1], "difference": difference.estimate}
    small = 1 - 3 / (4 * (n_positive + n_negative) - 9) if n_positive + n_negative > 3 else math.nan
    found |= {"hedges_g": difference.effect_size * small, "auroc": area.estimate}
    found |= {"auroc_low": area.interval[0], "auroc_high": area.interval[1]}
    five = tpr_at_fpr(values, labels, clusters=None, fpr=0.05, n_resamples=n_resamples, seed=seed)
    found |= {"tpr_5": five.estimate, "tpr_5_low": five.interval[0], "tpr_5_high": five.interval[1]}
    one = math.nan
    if n_negative >= ENOUGH_FOR_1_PERCENT:
        one = tpr_at_fpr(values, labels, clusters=None, fpr=0.01, n_resamples=n_resamples, seed=seed).estimate
    return found | {"tpr_1": one, "prevalence": n_positive / max(1, n_positive + n_negative)}


def doses(passages: pd.DataFrame, matrix: pd.DataFrame, layers: tuple[int, ...]) -> pd.DataFrame:
    """One row a dose: labels of all kinds, loss, and the mean of each primary score over the layers but the first."""
    import pandas as pd

    later = [layer for layer in layers if layer > 0] or list(layers)
    table: Any = passages[["dose", "free_match", "free_edit", "forced_match", "loss"]].copy()
    for kind in ("free", "forced", "run", "exact"):
        table[kind] = passages[kind].astype("float64")
    table["longest_run"] = passages["forced_run"].astype("float64")
    for measure in (PRIMARY, "update_mean", "raw_mean", "lookup_relative_mean", "density_mean"):
        columns = [f"{measure}.L{layer}" for layer in later if f"{measure}.L{layer}" in matrix]
        if columns:
            table[measure] = matrix[columns].mean(axis=1).to_numpy()
    means = table.groupby("dose").mean()
    return pd.DataFrame(means).assign(passages=table.groupby("dose").size()).reset_index()


def dose_response(passages: pd.DataFrame, matrix: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Spearman's rho of dose with every measure at every layer, over planted passages and controls; Holm over all."""
    import pandas as pd

    included = passages["excluded"].isna().to_numpy()
    found = [
        spearman(matrix[name].to_numpy()[included], passages["dose"].to_numpy()[included], clusters=None, name=name)
        for name in matrix.columns
    ]
    holm = correct(found, "holm")
    rows = [
        _names(one.name) | {"rho": one.estimate, "low": one.interval[0], "high": one.interval[1]}
        | {"p": one.p, "p_corrected": one.p_corrected, "n": one.n_tokens, "reason": one.reason}
        for one in holm
    ]  # fmt: skip
    return pd.DataFrame(rows)


def adds(
    measured: Measured, contrasts: Iterable[Contrast], layers: tuple[int, ...], *, n_resamples: int, seed: int
) -> dict[str, AddedValue]:
    """Contrast -> what the relative re-run score at four depths adds to the baselines, and after matching on loss."""
    matrix, found = measured.matrix, {}
    compression = [f"{PRIMARY}.L{layer}" for layer in depths(layers)]
    baselines = [name for name in (*BASELINES, "reference_difference") if name in matrix]
    for contrast in contrasts:
        rows, labels = split(measured.passages, contrast)
        found[contrast.name] = added_value(
            labels,
            measured.passages["source"].to_numpy()[rows],
            baselines=matrix[baselines].iloc[rows],
            compression=matrix[compression].iloc[rows],
            controls=measured.controls.iloc[rows],
            match_on=matrix["loss"].to_numpy()[rows],
            n_resamples=n_resamples,
            seed=seed,
        )
    return found


def blindly(measured: Measured, contrasts: Iterable[Contrast], *, n_resamples: int, seed: int) -> pd.DataFrame:
    """One row a contrast: how well words alone tell its groups apart, without any model."""
    import pandas as pd

    rows = []
    for contrast in contrasts:
        chosen, labels = split(measured.passages, contrast)
        texts = [measured.texts[row] for row in chosen]
        found = blind(texts, labels, measured.passages["source"].to_numpy()[chosen], n_resamples=n_resamples, seed=seed)
        area = found.auroc
        row = {"contrast": contrast.name, "auroc": area.estimate, "low": area.interval[0], "high": area.interval[1]}
        rows.append(row | {"unfair": found.unfair, "verdict": found.verdict})
    return pd.DataFrame(rows)


def spans(measured: Measured, *, n_resamples: int, n_permutations: int, seed: int) -> pd.DataFrame:
    """Within passages: are tokens inside memorised spans compressed differently? One row a (layer, score).

    Only passages that have tokens inside and outside of runs of at least 8 first choices; every column less its mean in
    the passage, so that nothing between passages counts. Rank correlation of being inside with each score; `partial`
    with density, position and the token's own frequency removed; p by rotating passages, max-T over everything.
    """
    import pandas as pd

    frame = measured.tokens
    counts = frame.groupby("token_id")["token_id"].transform("size")
    frame = frame.assign(log_frequency=np.log(counts), cluster=frame["sequence"], place=frame["position"])
    scores = [name for name in ("relative", "update", "raw", "lookup_relative") if name in frame]
    confounds = ["density", "place", "log_frequency"]
    inside: Any = frame.groupby("sequence")["span"].transform("mean")
    names = [*scores, "span", *confounds]
    frame = frame[(inside > 0) & (inside < 1)].astype(dict.fromkeys(names, "float64"))
    frame["used"] &= frame[names].notna().all(axis=1)
    frame["span_share"] = frame["span"]
    means = frame[frame["used"]].groupby(["layer", "sequence"])[names].transform("mean")
    frame.loc[frame["used"], names] -= means
    aligned = align(frame, [*names, "span_share"])
    if not aligned.layers:
        return pd.DataFrame({"layer": [], "score": [], "partial": [], "p_corrected": []})
    cells = correlation_grid(
        {"span": aligned.columns["span"]},
        aligned[scores],
        aligned[confounds],
        clusters=aligned.cluster,
        n_resamples=n_resamples,
        n_permutations=n_permutations,
        seed=seed,
    )
    rows = []
    for cell in cells:
        low, high = cell.partial.interval
        row = {"layer": aligned.layers[cell.layer], "score": cell.y, "rho": cell.raw.estimate}
        row |= {"partial": cell.partial.estimate, "low": low, "high": high, "p": cell.partial.p}
        row |= {"p_corrected": cell.partial.p_corrected, "n_tokens": cell.partial.n_tokens}
        rows.append(
            row | {"share_in_spans": float(aligned.columns["span_share"].mean()), "reason": cell.partial.reason}
        )
    return pd.DataFrame(rows)


def added_table(found: dict[str, AddedValue]) -> pd.DataFrame:
    """All areas and differences of all contrasts, before and after matching; p of the differences Holm over them."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for contrast, result in found.items():
        for sample, one in (("all", result), ("matched on loss", result.matched)):
            for statistic in [*one.aurocs.values(), *one.differences.values()] if one is not None else ():
                rows.append({"contrast": contrast, "sample": sample} | statistic.to_dict() | {"statistic": statistic})
    tested = [row for row in rows if row["name"].startswith("compression adds")]
    for row, one in zip(tested, correct([row["statistic"] for row in tested], "holm"), strict=True):
        row |= {"p_corrected": one.p_corrected, "correction": one.correction}
    kept = ["contrast", "sample", "name", "estimate", "low", "high", "p", "p_corrected", "n_tokens", "reason"]
    return pd.DataFrame(rows, columns=pd.Index(kept)).rename(columns={"n_tokens": "n_passages"})
