"""Pages on which tokens stand twice, side by side: plain HTML that opens anywhere and loads nothing."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from basins.tokens_view import STYLE, token_span

if TYPE_CHECKING:
    import pandas as pd

SEQUENCES = 12  # that a section shows
TABLE = """<style>
.basins-tokens table { border-collapse: collapse; table-layout: fixed; width: 100%; }
.basins-tokens td, .basins-tokens th { width: 50%; vertical-align: top; padding: 4px 10px; text-align: left; }
.basins-tokens tr + tr { border-top: 1px solid #ddd; }
</style>"""


def page(title: str, caption: str, sections: list[str]) -> str:
    """A whole page; title and caption are text, sections are HTML (`side_by_side`)."""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title>{STYLE}{TABLE}'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head><body class="basins-tokens"><h1>{html.escape(title)}</h1>'
        f'<p class="about">{html.escape(caption)}</p>{"".join(sections)}</body></html>\n'
    )


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


def _tokens(part: pd.DataFrame, side: str) -> str:
    part = part.sort_values("position")
    names = part["token"] if "token" in part else part["token_id"].map(lambda token: f" {token}")
    return "".join(token_span(str(token), value) for token, value in zip(names, part[side], strict=True))
