"""A page of tokens, an early layer beside a late one: is it the same tokens that blocks compress?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from basins.experiments.frames import where
from basins.experiments.primary import PRIMARY
from basins.pairs_view import page, ranks_as_colour, side_by_side

if TYPE_CHECKING:
    from basins.experiments.layers import Layers

SEQUENCES = 8
CAPTION = (
    "Relative scores; blue is more compressed than the median token of the layer, red less. Colour is the token's "
    "rank, so it says nothing of a layer's mean. Grey and struck through: not used. First an early layer beside the "
    "last, then each layer: the re-run block beside the looked-up outputs."
)


def token_page(found: Layers) -> str:
    """One section across layers, and one a layer: the first sequences of the first model."""
    name, frame = next(iter(found.tokens.items()))
    frame = frame.copy()
    columns = [PRIMARY, f"{PRIMARY}, lookup"]
    frame.loc[~frame["used"], columns] = np.nan
    layers = sorted(int(layer) for layer in frame["layer"].unique())
    early, late = layers[min(1, len(layers) - 1)], layers[-1]
    sections = []
    if early != late:
        left, right = (where(frame, layer=layer).set_index(["sequence", "position"]) for layer in (early, late))
        both = left.assign(left=ranks_as_colour(left[PRIMARY]), right=ranks_as_colour(right[PRIMARY])).reset_index()
        sections.append(_section(f"layer {early} beside layer {late}", (f"layer {early}", f"layer {late}"), both, True))
    for layer in layers:
        here = where(frame, layer=layer).copy()
        here["left"], here["right"] = (ranks_as_colour(here[column]) for column in columns)
        sections.append(_section(f"layer {layer}", ("re-run", "lookup"), here, not sections))
    return page(f"{name}: relative scores across layers", CAPTION, sections)


def _section(head: str, titles: tuple[str, str], here: object, opened: bool) -> str:
    groups = [part for _, part in here.groupby("sequence")]  # type: ignore[attr-defined]
    return side_by_side(head, titles, groups[:SEQUENCES], opened)
