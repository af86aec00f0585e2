"""A page of tokens with the score beside importance: plain HTML that opens anywhere and loads nothing."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import numpy as np

from basins.experiments.frames import where
from basins.experiments.importance_measures import size_of
from basins.experiments.primary import PRIMARY
from basins.pairs_view import SEQUENCES, page, ranks_as_colour, side_by_side
from basins.tokens_view import FULL_COLOR

if TYPE_CHECKING:
    import pandas as pd

    from basins.experiments.importance import Importance

CAPTION = (
    "Left: the relative score of the re-run block; blue is more compressed than the median token of the layer, red "
    "less. Right: importance; blue is above the median token, red below. Colour is the token's rank, full at the "
    "outermost {share:.1%}. Grey and struck through: not used, or not measured on this token. The layer is the one "
    "that the verdict on the measure names."
)


def token_page(found: Importance) -> str:
    """One section a measure: the first sequences of the first model, score and importance side by side."""
    name, frame = next(iter(found.tokens.items()))
    sections = [_section(found, frame, row) for row in found.verdicts.to_dict("records")]
    return page(f"{name}: compression beside importance", CAPTION.format(share=_tail()), sections)


def _section(found: Importance, frame: pd.DataFrame, row: dict) -> str:
    method, layer = row["method"], row["layer"]
    if layer != layer:
        return f"<details><summary>{html.escape(method)}: not measured</summary></details>"
    here = where(frame, layer=int(layer)).copy()
    here["importance"] = size_of(method, here[method])
    here.loc[~here["used"], [PRIMARY, "importance"]] = np.nan
    here["left"], here["right"] = ranks_as_colour(here[PRIMARY]), ranks_as_colour(here["importance"])
    shown = [part for _, part in here.groupby("sequence") if part["right"].notna().any()][:SEQUENCES]
    head = f"{method}, layer {int(layer)}: partial rank correlation {row['partial']:.2f}, {row['grade']}"
    opened = method == found.verdicts["method"].iloc[0]
    return side_by_side(head, ("relative score", method), shown, opened)


def _tail() -> float:
    from statistics import NormalDist

    return 2 * (1 - NormalDist().cdf(FULL_COLOR))
