"""The tables of the layers experiment: profiles, what goes with density, dimension, overlap, and the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from basins.dimension import global_mle, local_two_nn, log_ratios, pooled_two_nn, slope_two_nn
from basins.experiments.primary import SCORES
from basins.experiments.token_columns import KEY, align, column_frame, join
from basins.overlap import overlap
from basins.scores import BasinScores
from basins.stats import correlation_grid, mean, spearman
from basins.stats.resampling import cluster_weights, spread_interval
from basins.stats.sample import gather

if TYPE_CHECKING:
    import pandas as pd

# What a neighbourhood is like before the block runs.
BEFORE = {"density": "density", "distance": "neighbor_distance", "dimension": "two_nn"}
# Removed in the partial correlations; density is what the scores are compared with.
PLACE = ("position", "position_bend", "log_frequency")
VARIANCES = {"V_in": "var_in", "V_out": "var_out", "V_upd": "var_update"}
PAIRS = ("relative", "update", "raw")
CONTEXTS = "own contexts add"


def with_dimension(frame: pd.DataFrame, scores: BasinScores) -> Any:
    """`frame` with each token's two-NN intrinsic dimension, pooled over its neighbourhood, and what contexts add.

    The latter is D = ln V_own - ln V_rerun = R_rerun - R_lookup, nats.
    """
    shape = scores.values.shape
    local = torch.full(shape, float("nan"), dtype=torch.float64)
    if scores.neighbor_distances.shape[-1] >= 2:
        for i in range(len(scores.layers)):
            distances, ids = scores.neighbor_distances[i].flatten(0, 1), scores.neighbor_ids[i].flatten(0, 1)
            local[i] = local_two_nn(distances, ids).view(shape[1:])
    frame = join(frame, column_frame(local, "two_nn", scores.layers))
    frame[CONTEXTS] = frame["relative"] - frame["relative, lookup"]
    return frame


def profile(frame: pd.DataFrame, n_resamples: int, seed: int) -> pd.DataFrame:
    """One row a (layer, quantity): mean with its interval (sequences resampled), median, standard deviation, IQR."""
    import pandas as pd

    columns = {score: score for score in SCORES} | {"density": "density", CONTEXTS: CONTEXTS} | VARIANCES
    rows = []
    for layer, here in _used(frame):
        shown = {name: here[column].to_numpy() for name, column in columns.items()}
        shown |= {f"{name}, lookup": np.exp(-here[f"{score}, lookup"]).to_numpy() for name, score in _LOOKUP.items()}
        for quantity, values in shown.items():
            found = mean(values, clusters=here["cluster"].to_numpy(), n_resamples=n_resamples, seed=seed)
            row: dict[str, Any] = {"layer": layer, "quantity": quantity, "mean": found.estimate}
            row |= {"low": found.interval[0], "high": found.interval[1]} | dict(found.details)
            rows.append(row | {"n_tokens": found.n_tokens, "n_clusters": found.n_clusters, "reason": found.reason})
    return pd.DataFrame(rows)


_LOOKUP = {"V_out": "raw", "V_upd": "update"}


def correlations(frame: pd.DataFrame, statistics: dict[str, Any]) -> pd.DataFrame:
    """One row a (layer, score, property of the neighbourhood before the block).

    `rho`: Spearman's; `partial`: with position and token frequency removed, with p by rotating sequences and
    `p_corrected` by max-T over the whole table.
    """
    import pandas as pd

    columns = [*SCORES, *BEFORE.values(), *PLACE]
    aligned = align(frame, columns)
    if not aligned.layers:
        return pd.DataFrame()
    cells = correlation_grid(
        {name: aligned.columns[column] for name, column in BEFORE.items()},
        aligned[list(SCORES)],
        aligned[PLACE],
        clusters=aligned.cluster,
        **statistics,
    )
    rows = []
    for cell in cells:
        raw, part = cell.raw, cell.partial
        row: dict[str, Any] = {"layer": aligned.layers[cell.layer], "score": cell.y, "with": cell.x}
        row |= {"rho": raw.estimate, "rho_low": raw.interval[0], "rho_high": raw.interval[1]}
        row |= {"partial": part.estimate, "low": part.interval[0], "high": part.interval[1], "p": part.p}
        rows.append(row | {"p_corrected": part.p_corrected, "n_tokens": raw.n_tokens, "reason": part.reason})
    return pd.DataFrame(rows)


def dimensions(scores: BasinScores, frame: pd.DataFrame, n_resamples: int, seed: int) -> pd.DataFrame:
    """One row a (layer, estimator) of the layer's intrinsic dimension, over the tokens that are used.

    From the distances to the scores' own neighbours, so to other sequences where the analysis says so. Intervals
    resample sequences with each token's ratio as it is.
    """
    import pandas as pd

    rows = []
    for layer, here in _used(frame):
        distances = scores.neighbor_distances[scores.layer_index(layer)]
        distances = distances[torch.tensor(here["sequence"].to_numpy()), torch.tensor(here["position"].to_numpy())]
        ratios = log_ratios(distances)
        shown = {"two-NN": slope_two_nn, "two-NN, likelihood": lambda values: float(pooled_two_nn(values))}
        sample = gather({"ln mu": ratios}, here["cluster"].to_numpy())
        members = [np.flatnonzero(sample.cluster == unit) for unit in range(sample.n_clusters)]
        kept = torch.tensor(sample.columns[0])
        drawn = np.concatenate(list(cluster_weights(sample.n_clusters, n_resamples, n_resamples, seed)))
        for name, estimate in shown.items():
            found, interval, reason = estimate(ratios), (float("nan"),) * 2, sample.reason
            if not reason:
                resampled = [
                    estimate(kept[np.concatenate([np.tile(members[u], int(n)) for u, n in enumerate(row) if n])])
                    for row in drawn
                ]
                interval, _, reason = spread_interval(found, np.array(resampled), sample, 0.95, "plain", 0.0)
            row = {"layer": layer, "estimator": name, "dimension": found, "low": interval[0], "high": interval[1]}
            rows.append(row | {"n_tokens": sample.n_tokens, "reason": reason})
        nothing = {"low": float("nan"), "high": float("nan"), "n_tokens": len(distances), "reason": "no interval"}
        if distances.shape[-1] >= 3:
            rows.append({"layer": layer, "estimator": "MLE", "dimension": global_mle(distances)} | nothing)
    return pd.DataFrame(rows)


def overlaps(scores: BasinScores, frame: pd.DataFrame, n_resamples: int, seed: int) -> pd.DataFrame:
    """One row a (layer, comparison).

    "next layer": mean share of a token's k neighbours at L that are among its k at L+1 (Valeriani et al. 2023), with
    `chance`, k over the number of states that may be neighbours. "relative", "update", "raw": rank correlation of the
    re-run with the lookup score over tokens.
    """
    import pandas as pd

    rows = []
    sizes = frame[frame["layer"] == scores.layers[0]].groupby("sequence").size()
    chance = scores.settings["k"] / float((sizes.sum() - sizes).mean())
    for layer, here in _used(frame):
        cluster = here["cluster"].to_numpy()
        options: dict[str, Any] = {"clusters": cluster, "n_resamples": n_resamples, "seed": seed}
        if layer + 1 in scores.layers:
            at, after = scores.layer_index(layer), scores.layer_index(layer + 1)
            place = torch.tensor(here["sequence"].to_numpy()), torch.tensor(here["position"].to_numpy())
            shared = overlap(scores.neighbor_ids[at][place], scores.neighbor_ids[after][place])
            rows.append(_row(layer, "next layer", mean(shared, **options)) | {"chance": chance})
        for score in PAIRS:
            # Ranks are taken anew in every resample, which costs; these intervals are only drawn.
            few: dict[str, Any] = options | {"n_resamples": min(n_resamples, 100)}
            found = spearman(here[score].to_numpy(), here[f"{score}, lookup"].to_numpy(), **few)
            rows.append(_row(layer, score, found) | {"chance": 0.0})
    return pd.DataFrame(rows)


def sampled_overlaps(
    found: dict[int, tuple[Any, Any]], cluster: Any, k: int, n_resamples: int, seed: int
) -> pd.DataFrame:
    """Rows of `overlaps` from `basins.overlap.nearest_after` on the sampled queries."""
    import pandas as pd

    rows = []
    for layer, (share, rho) in found.items():
        options: dict[str, Any] = {"clusters": cluster, "n_resamples": n_resamples, "seed": seed}
        nearest = max(1, k // 3)
        rows.append(_row(layer, "nearest after the block", mean(share, **options)) | {"chance": nearest / k})
        rows.append(_row(layer, "order after the block", mean(rho, **options)) | {"chance": 0.0})
    return pd.DataFrame(rows)


def _row(layer: int, comparison: str, found: Any) -> dict[str, Any]:
    row = {"layer": layer, "comparison": comparison, "estimate": found.estimate, "low": found.interval[0]}
    return row | {"high": found.interval[1], "n_tokens": found.n_tokens, "reason": found.reason}


def _used(frame: Any) -> Any:
    """(layer, rows of the tokens that count) for every layer that has some."""
    kept = frame[frame["used"]].sort_values(KEY)
    for layer, here in kept.groupby("layer"):
        yield int(layer), here
