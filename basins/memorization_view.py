"""A page of passages with the score beside the model's surprise: are memorised spans visible?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from basins.experiments.frames import where
from basins.experiments.primary import PRIMARY
from basins.pairs_view import page, ranks_as_colour, side_by_side

if TYPE_CHECKING:
    from basins.experiments.memorization import Memorization

A_GROUP = 6  # passages of each group that are shown
CAPTION = (
    "Left: the relative score of the re-run block at the layer of the first verdict; blue is more compressed than the "
    "median token, red less. Right: how well the model predicts the token; blue is better than the median, red worse. "
    "Colour is the token's rank. Grey and struck through: the prompt, or no score."
)


def token_page(found: Memorization) -> str:
    """The passages of each group that the model reproduces best, and the first of its other groups."""
    name, frame = next(iter(found.tokens.items()))
    layers = found.verdicts["layer"].dropna()
    layer = int(layers.iloc[0]) if len(layers) else int(frame["layer"].max())
    here: Any = where(frame, layer=layer).copy()
    here["gain"] = -here["loss"]
    here.loc[~here["used"], [PRIMARY, "gain"]] = np.nan
    here["left"], here["right"] = ranks_as_colour(here[PRIMARY]), ranks_as_colour(here["gain"])
    labels: Any = where(found.labels, model=name)
    sections = []
    for group, rows in labels.groupby("group", sort=False):
        best = rows.sort_values("forced_match", ascending=False)["sequence"].head(A_GROUP)
        parts = [where(here, sequence=sequence) for sequence in best]
        head = f"{group}: the {len(parts)} passages with the most first choices"
        sections.append(side_by_side(head, ("relative score", "log probability"), parts, opened=not sections))
    return page(f"{name}: memorised passages, layer {layer}", CAPTION, sections)
