"""Rows of a tidy table by what they are about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def where(frame: pd.DataFrame, **equal: Any) -> pd.DataFrame:
    """The rows whose columns have these values: where(table, model="pocket", layer=3)."""
    kept: Any = frame
    for name, value in equal.items():
        kept = kept[kept[name] == value]
    return kept
