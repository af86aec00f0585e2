"""A page of tokens with the score beside the measure of the finding: plain HTML that opens anywhere."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import numpy as np

from basins.experiments.frames import where
from basins.experiments.primary import PRIMARY
from basins.importance_view import SEQUENCES, TABLE, ranks_as_colour, side_by_side
from basins.tokens_view import STYLE

if TYPE_CHECKING:
    from basins.experiments.robustness import Robustness

CAPTION = (
    "Left: the relative score of the re-run block; blue is more compressed than the median token of the layer, red "
    "less. Right: the measure; blue is above the median token, red below. Colour is the token's rank. Grey and struck "
    "through: not used, or without a value."
)


def token_page(found: Robustness) -> str:
    """The first sequences of the first model at the finding's layer."""
    name, frame = next(iter(found.tokens.items()))
    layer, measure = found.settings["layer"], found.settings["measure"]
    here = where(frame, layer=layer).copy()
    here["measured"] = here[measure]
    here.loc[~here["used"], [PRIMARY, "measured"]] = np.nan
    here["left"], here["right"] = ranks_as_colour(here[PRIMARY]), ranks_as_colour(here["measured"])
    parts = [part for _, part in here.groupby("sequence") if part["right"].notna().any()][:SEQUENCES]
    row = found.verdicts.iloc[0]
    head = f"{measure}, layer {layer}: partial rank correlation {row['r']:.2f}, {row['grade']}"
    title = f"{html.escape(name)}: compression beside {html.escape(measure)}"
    body = side_by_side(head, ("relative score", measure), parts, opened=True)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>{STYLE}{TABLE}</head>'
        f'<body class="basins-tokens"><h1>{title}</h1><p class="about">{html.escape(CAPTION)}</p>{body}</body></html>\n'
    )
