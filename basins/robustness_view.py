"""A page of tokens with the score beside the measure of the finding: plain HTML that opens anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from basins.experiments.frames import where
from basins.experiments.primary import PRIMARY
from basins.pairs_view import SEQUENCES, page, ranks_as_colour, side_by_side

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
    body = side_by_side(head, ("relative score", measure), parts, opened=True)
    return page(f"{name}: compression beside {measure}", CAPTION, [body])
