"""A page of tokens with the score beside importance: plain HTML that opens anywhere and loads nothing."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import numpy as np

from basins.experiments.frames import where
from basins.experiments.importance_measures import SIGNED
from basins.experiments.primary import PRIMARY
from basins.tokens_view import FULL_COLOR, STYLE, token_span

if TYPE_CHECKING:
    import pandas as pd

    from basins.experiments.importance import Importance

SEQUENCES = 12
CAPTION = (
    "Left: the relative score of the re-run block; blue is more compressed than the median token of the layer, red "
    "less. Right: importance; blue is above the median token, red below. Colour is the token's rank, full at the "
    "outermost {share:.1%}. Grey and struck through: not used, or not measured on this token. The layer is the one "
    "that the verdict on the measure names."
)
TABLE = """<style>
.basins-tokens table { border-collapse: collapse; table-layout: fixed; width: 100%; }
.basins-tokens td, .basins-tokens th { width: 50%; vertical-align: top; padding: 4px 10px; text-align: left; }
.basins-tokens tr + tr { border-top: 1px solid #ddd; }
</style>"""


def token_page(found: Importance) -> str:
    """One section a measure: the first sequences of the first model, score and importance side by side."""
    name, frame = next(iter(found.tokens.items()))
    sections = [_section(found, frame, row) for row in found.verdicts.to_dict("records")]
    caption = html.escape(CAPTION.format(share=_tail()))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}: importance</title>'
        f'{STYLE}{TABLE}</head><body class="basins-tokens"><h1>{html.escape(name)}: compression beside importance</h1>'
        f'<p class="about">{caption}</p>{"".join(sections)}</body></html>\n'
    )


def _section(found: Importance, frame: pd.DataFrame, row: dict) -> str:
    method, layer = row["method"], row["layer"]
    if layer != layer:
        return f"<details><summary>{html.escape(method)}: not measured</summary></details>"
    here = where(frame, layer=int(layer)).copy()
    here["importance"] = here[method].abs() if method in SIGNED else here[method]
    here.loc[~here["used"], [PRIMARY, "importance"]] = np.nan
    here["left"], here["right"] = ranks_as_colour(here[PRIMARY]), ranks_as_colour(here["importance"])
    shown = [part for _, part in here.groupby("sequence") if part["right"].notna().any()][:SEQUENCES]
    head = f"{method}, layer {int(layer)}: partial rank correlation {row['partial']:.2f}, {row['grade']}"
    opened = method == found.verdicts["method"].iloc[0]
    return side_by_side(head, ("relative score", method), shown, opened)


def side_by_side(head: str, titles: tuple[str, str], parts: list[pd.DataFrame], opened: bool) -> str:
    """A section that folds: a row a sequence, its tokens coloured by the columns `left` and `right`."""
    body = "".join(f"<tr><td>{_tokens(part, 'left')}</td><td>{_tokens(part, 'right')}</td></tr>" for part in parts)
    left, right = map(html.escape, titles)
    return (
        f"<details{' open' if opened else ''}><summary>{html.escape(head)}</summary><table><tr><th>{left}</th>"
        f"<th>{right}</th></tr>{body}</table></details>"
    )


def ranks_as_colour(values: pd.Series) -> pd.Series:
    """Ranks spread as a normal distribution's values, so that about the outermost in 400 of each side is full."""
    from statistics import NormalDist

    share = (values.rank() - 0.5) / values.notna().sum()
    return share.map(lambda p: NormalDist().inv_cdf(p) if p == p else p)


def _tail() -> float:
    from statistics import NormalDist

    return 2 * (1 - NormalDist().cdf(FULL_COLOR))


def _tokens(part: pd.DataFrame, side: str) -> str:
    part = part.sort_values("position")
    names = part["token"] if "token" in part else part["token_id"].map(lambda token: f" {token}")
    return "".join(token_span(str(token), value) for token, value in zip(names, part[side], strict=True))
