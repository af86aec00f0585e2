"""A page of tokens: the relative score beside the kind of word. Plain HTML that opens anywhere and loads nothing."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import numpy as np

from basins.experiments.frames import where
from basins.experiments.linguistic_tables import FUNCTION, NOUN, TAGS, label_of
from basins.experiments.primary import PRIMARY
from basins.pairs_view import SEQUENCES, page, ranks_as_colour, side_by_side
from basins.tokens_view import FULL_COLOR

if TYPE_CHECKING:
    import pandas as pd

    from basins.experiments.linguistic import Linguistic

CAPTION = (
    "Left: the relative score of the re-run block; blue is more compressed than the median word of the layer, red "
    "less. Right: blue: function words (nouns), red: content words (verbs). Grey and struck through: takes no part (a "
    "later piece of a word, punctuation, neither kind). The layer is the one that the verdict names."
)


def token_page(found: Linguistic) -> str:
    """One section a contrast: the first sequences of the first model, score and kind of word side by side."""
    name, frame = next(iter(found.tokens.items()))
    rows = [row for row in found.verdicts.to_dict("records") if row["name"] != TAGS]
    sections = [_section(frame, row, opened=number == 0) for number, row in enumerate(rows)]
    return page(f"{name}: compression beside parts of speech", CAPTION, sections)


def _section(frame: pd.DataFrame, row: dict, opened: bool) -> str:
    if row["layer"] != row["layer"]:
        return f"<details><summary>{html.escape(row['name'])}: not measured</summary></details>"
    here = where(frame, layer=int(row["layer"])).copy()
    label = label_of(row["name"], here["tag"].fillna("").to_numpy())
    here["right"] = np.where(here["tested"], (2 * label - 1) * FULL_COLOR / 2, np.nan)
    here["left"] = ranks_as_colour(here[PRIMARY].where(here["tested"]))
    shown = [part for _, part in here.groupby("sequence") if part["right"].notna().any()][:SEQUENCES]
    kinds = {FUNCTION: "function (blue), content (red)", NOUN: "noun (blue), verb (red)"}[row["name"]]
    head = f"{row['name']}, layer {int(row['layer'])}: r = {row['r']:.2f}, {row['grade']}"
    return side_by_side(head, ("relative score", kinds), shown, opened)
