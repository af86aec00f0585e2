"""The finding in the second model, and in both halves of its text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from basins.experiments.frames import where
from basins.experiments.primary import MODERATE_P, PRIMARY
from basins.experiments.robustness_subject import Subject, subject
from basins.experiments.robustness_variations import DEFAULT, HALVES, samples
from basins.experiments.sequences import sequences
from basins.lens import check_layers, fingerprint

if TYPE_CHECKING:
    import pandas as pd


def replica(
    of: Subject, model: Any, texts: Any, max_length: int, limit: int | None, sample_rows: int | None
) -> Subject | str:
    """The same text under the second model; or why its finding cannot be compared."""
    rows = sequences(model, texts, max_length, limit)
    column = of.measure.column
    if column is not None and "layer" in column:
        return f"{of.measure.name} was given for layers of the first model"
    if column is not None and not rows.tokens.equal(of.rows.tokens):
        return f"{of.measure.name} was given for the first model's tokens, and the second model's differ"
    seed = of.statistics["seed"]
    pick = torch.arange(len(rows.batch)) if sample_rows is None else rows.sample(sample_rows, seed)
    layers = check_layers(model, None)
    return subject(model, rows, pick, layers, of.measure, of.analysis, of.statistics, of.store)


def replicated(of: Subject, frame: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(relative effects at every layer with `halves`, all effects): the default and both halves of the text."""
    import pandas as pd

    default = of.effects(frame)
    parts = [default.assign(variation=DEFAULT, kind="default")]
    held = where(default, score=PRIMARY).set_index("layer")
    both = held["effect"].notna()
    found = samples(of)
    for half in HALVES:
        if half not in found:
            both &= False
            continue
        effects = of.effects(of.frame(of.score(rows=found[half]), rows=found[half]))
        parts.append(effects.assign(variation=half, kind="text"))
        here = where(effects, score=PRIMARY).set_index("layer").reindex(held.index)
        both &= (here["effect"] * held["effect"] > 0) & (here["p"] < MODERATE_P)
    return held.assign(halves=both).reset_index(), pd.concat(parts, ignore_index=True)


def about(of: Subject) -> dict[str, Any]:
    mask = of.mask
    return {
        "model_fingerprint": fingerprint(of.model),
        "n_layers": len(of.model.blocks),
        "sequences": len(of.pick),
        "tokens": int(mask.sum()),
        "clusters": int(of.rows.cluster[of.pick].unique().numel()),
        "cluster": of.rows.unit,
        "layers": list(of.layers),
    }
