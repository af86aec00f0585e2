"""The method's own choices, one changed at a time."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from basins.errors import BasinsError
from basins.experiments.robustness_subject import COMPARED, EFFECTS, Subject, other_rows
from basins.experiments.token_columns import KEY
from basins.progress import progress
from basins.scores import BasinScores, raw_score, relative_score, update_score

if TYPE_CHECKING:
    import pandas as pd

DEFAULT = "default"
HALVES = ("half 1 of the text", "half 2 of the text")
# Too few rows make no neighbourhood: a text sample smaller than this is not scored.
LEAST_ROWS = 3


def settings_of(analysis: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> what is changed of the default. Settings that the default has already are left out."""
    changes: dict[str, dict[str, Any]] = {f"k = {k}": {"k": k} for k in (5, 10, 15, 30, 50)}
    changes["cosine distance"] = {"metric": "cosine"}
    changes["states normalised"] = {"normalize": True}
    changes |= {f"neighbours: {rule}": {"neighbors": rule} for rule in ("same_layer", "cross_sequence", "same_token")}
    # Where neighbours come from other sequences the token itself is never one of them.
    changes["neighbours: same_layer, itself included"] = {"neighbors": "same_layer", "include_self": True}
    changes |= {f"first {n} left out": {"exclude_first": n} for n in (0, 1, 4)}
    changes["approximate index"] = {"index": "faiss-ivf"}
    changes["distances in float64"] = {"dtype": "float64"}
    changes["re-run in bfloat16"] = {"precision": "bfloat16"}
    return {name: change for name, change in changes.items() if (analysis | change) != analysis}


def vary(of: Subject, default: BasinScores, layers: tuple[int, ...]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(agreement, effects) of every variation at `layers`.

    `agreement`: Spearman's rho of each score with the default's over the tokens that both score, a row a layer.
    `effects`: the finding under every variation. What cannot be run (k = 50 of a token that occurs 40 times) stays as a
    row with its reason.
    """
    import pandas as pd

    base = of.frame(default)
    base = base[base["layer"].isin(layers)]
    agreements, effects = [], []
    runs = _runs(of, default, layers)
    with progress("variations", len(runs)) as advance:
        for name, (kind, run) in runs.items():
            try:
                frame = run()
                agreement, effect = _agreement(base, frame), of.effects(frame, layers)
            except BasinsError as error:
                agreement = pd.DataFrame([{"layer": layer, "n_tokens": 0} for layer in layers])
                effect = pd.DataFrame([_nothing(layer, str(error)) for layer in layers])
            agreements.append(agreement.assign(variation=name, kind=kind))
            effects.append(effect.assign(variation=name, kind=kind))
            advance(1)
    return _stacked(agreements), _stacked(effects)


def _stacked(parts: list[Any]) -> Any:
    import pandas as pd

    frame: Any = pd.concat(parts, ignore_index=True)
    first = ["variation", "kind"]
    return frame[[*first, *[name for name in frame if name not in first]]]


def _nothing(layer: int, reason: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(EFFECTS, math.nan)
    return row | {"layer": layer, "score": COMPARED[0], "n_tokens": 0, "n_clusters": 0, "reason": reason}


def _runs(of: Subject, default: BasinScores, layers: tuple[int, ...]) -> dict[str, tuple[str, Any]]:
    """Name -> (kind, what gives its frame)."""

    def setting(change: dict[str, Any]) -> Any:
        return lambda: of.frame(of.score(layers, **change))

    def sample(rows: Int[Tensor, "row"]) -> Any:
        return lambda: of.frame(of.score(layers, rows=rows), rows=rows)

    changes = settings_of(default_analysis(default))
    runs: dict[str, tuple[str, Any]] = {name: ("setting", setting(change)) for name, change in changes.items()}
    for eps in (1e-12, 1e-10, 1e-6):
        if eps != default.settings["eps"]:
            runs[f"eps = {eps:g}"] = ("setting", lambda eps=eps: of.frame(with_eps(default, eps)))
    if default.lookup is not None:
        lookup = default.lookup
        runs["looked up, not re-run"] = ("setting", lambda: of.frame(lookup))
    return runs | {name: ("text", sample(rows)) for name, rows in samples(of).items()}


def default_analysis(default: BasinScores) -> dict[str, Any]:
    """The settings that variations change, as the default has them."""
    names = ("k", "metric", "normalize", "neighbors", "include_self", "exclude_first", "index", "dtype", "precision")
    return {name: default.settings[name] for name in names}


def samples(of: Subject) -> dict[str, Int[Tensor, "row"]]:
    """Two disjoint halves of the scored rows, a quarter, and other text of the same size where there is some."""
    seed = of.statistics["seed"]
    units = of.rows.cluster[of.pick].unique()
    drawn = units[torch.randperm(len(units), generator=torch.Generator().manual_seed(seed))]
    inside = torch.isin(of.rows.cluster[of.pick], drawn[: (len(units) + 1) // 2])
    quarter = torch.isin(of.rows.cluster[of.pick], drawn[: (len(units) + 3) // 4])
    found = {HALVES[0]: of.pick[inside], HALVES[1]: of.pick[~inside]}
    found |= {"a quarter of the text": of.pick[quarter], "other text": other_rows(of)}
    return {name: rows for name, rows in found.items() if len(rows) >= LEAST_ROWS}


def with_eps(scores: BasinScores, eps: float) -> BasinScores:
    """The same variances with another eps: nothing else depends on it."""
    return dataclasses.replace(
        scores,
        values=raw_score(scores.var_out, eps),
        relative=relative_score(scores.var_in, scores.var_out, eps),
        update=update_score(scores.var_update, eps),
        settings=scores.settings | {"eps": eps},
    )


def _agreement(base: Any, frame: Any) -> Any:
    """Rank correlation of token scores with the default's, over tokens that are used in both."""
    import pandas as pd

    columns = [*KEY, *COMPARED]
    both = base.loc[base["used"], columns].merge(frame.loc[frame["used"], columns], on=KEY, suffixes=("", "_varied"))
    rows = []
    for layer in base["layer"].unique():
        here = both[both["layer"] == layer]
        row: dict[str, Any] = {"layer": int(layer), "n_tokens": len(here)}
        for score in COMPARED:
            enough = len(here) > 2
            row[score] = here[score].corr(here[f"{score}_varied"], method="spearman") if enough else math.nan
        rows.append(row)
    return pd.DataFrame(rows)
