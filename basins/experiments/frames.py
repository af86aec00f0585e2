"""Rows of a tidy table by what they are about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def where(frame: pd.DataFrame, **equal: Any) -> Any:
    """The rows whose columns have these values: where(table, model="pocket", layer=3).

    A DataFrame; annotated as anything, because pandas' own types say "or Series" of nearly every step.
    """
    kept: Any = frame
    for name, value in equal.items():
        kept = kept[kept[name] == value]
    return kept
