"""The contrasts of the memorisation experiment under nulls, on a sample of each side's passages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from basins.aggregates import score_aggregates, wide
from basins.experiments.memorization_measures import Measured
from basins.experiments.memorization_passages import Contrast, Passages, rows
from basins.experiments.memorization_tables import PRIMARY, split
from basins.experiments.score_store import ScoreStore
from basins.experiments.sequences import Sequences
from basins.experiments.text_sample import TextSample
from basins.experiments.under_nulls import TRAINED, scores_under_nulls, spread
from basins.scores import LEAST_DISTINCT, BasinScores
from basins.stats import point_biserial

if TYPE_CHECKING:
    import pandas as pd


def under_nulls(
    model: Any,
    passages: Passages,
    measured: Measured,
    judged: pd.DataFrame,
    *,
    window: int,
    analysis: dict[str, Any],
    n: int,
    draws: int,
    seed: int,
    store: ScoreStore | None,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """(as they are, under nulls, spreads): r of every contrast at the layers of `judged`.

    At most `n` passages a side are drawn, and scored with each other as the only bank. Where tokens are shuffled within
    a passage, those of its continuation stay those of its continuation.
    """
    import pandas as pd

    layers = tuple(int(layer) for layer in sorted(judged["layer"].dropna().unique()))
    sides = {contrast.name: _sides(measured.passages, contrast, n, seed) for contrast in passages.contrasts}
    pick = torch.tensor(sorted({int(row) for chosen, _ in sides.values() for row in chosen}))
    if not layers or len(pick) < 4:
        return pd.DataFrame(), pd.DataFrame(), pd.DataFrame()
    batch, _ = rows(model, passages.text, window)
    repeated = torch.zeros_like(batch.tokens, dtype=torch.bool)
    texts = Sequences(batch, torch.arange(len(batch)), "passage", repeated)
    of = TextSample(model=model, rows=texts, pick=pick, layers=layers, facts=pd.DataFrame(), analysis=analysis,
        seed=seed, store=store or ScoreStore())  # fmt: skip
    where = measured.labels.continuation[pick]
    default = of.score()
    own = _effects(default, where, pick, sides)
    found, spreads = [], [_spread(default, where).assign(null=TRAINED, draw=0)]
    for drawn in scores_under_nulls(of, default, draws):
        there = where if drawn.order is None else where.gather(1, drawn.order)
        found.append(_effects(drawn.scores, there, pick, sides).assign(null=drawn.null, draw=drawn.draw))
        spreads.append(_spread(drawn.scores, there).assign(null=drawn.null, draw=drawn.draw))
    return own, pd.concat(found, ignore_index=True), pd.concat(spreads, ignore_index=True)


def _sides(passages: pd.DataFrame, contrast: Contrast, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, labels) of the contrast, at most `n` of each label."""
    chosen, labels = split(passages, contrast)
    draws = np.random.default_rng(seed)
    kept = [
        np.sort(draws.permutation(np.flatnonzero(labels == side))[:n])  # drawn without regard to their order
        for side in (True, False)
    ]
    at = np.concatenate(kept)
    return chosen[at], labels[at]


def _effects(
    scores: BasinScores, where: Bool[Tensor, "row pos"], pick: Int[Tensor, "row"], sides: dict[str, tuple[Any, Any]]
) -> pd.DataFrame:
    import pandas as pd

    matrix = wide(score_aggregates(scores, where))
    place = {int(row): i for i, row in enumerate(pick)}
    found = []
    for name, (chosen, labels) in sides.items():
        at = [place[int(row)] for row in chosen]
        for layer in scores.layers:
            column = f"{PRIMARY}.L{layer}"
            values = matrix[column].to_numpy()[at] if column in matrix else np.full(len(at), np.nan)
            r = point_biserial(values, labels, clusters=None)
            row = {"name": name, "layer": layer, "effect": r.estimate, "low": r.interval[0], "high": r.interval[1]}
            found.append(row | {"n_passages": len(at)})
    return pd.DataFrame(found)


def _spread(scores: BasinScores, where: Bool[Tensor, "row pos"]) -> pd.DataFrame:
    frame = scores.to_frame()
    inside = where.numpy()[frame["sequence"], frame["position"]]
    used = inside & (frame["n_distinct"] >= LEAST_DISTINCT) & frame["relative"].notna()
    return spread(frame.assign(used=used))
