"""The figure of a study: one panel a question, across the layers."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from basins.experiments.frames import where
from basins.experiments.primary import PRIMARY
from basins.plots import FONT, NOTE, RHO, add_legend, label_axes, layer_axis, panels, write_note

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from basins.studies.parts import PartResult

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
COLUMNS = ["layer", "line", "estimate", "low", "high"]
MOST_LINES = 4
# Letters in a line over a panel, and beside one.
TITLE, SIDE = 36, 34


def plot_summary(parts: list[PartResult]) -> Figure:
    """Each part's main curves of the first model with their intervals: at most four verdicts, the best."""
    drawn: list[Any] = [(part, *curves(part)) for part in parts]
    figure, shown = panels(len(drawn), 2.6)
    for axes, (part, table, what) in zip(shown, drawn, strict=True):
        for color, (line, rows) in zip(COLORS, table.groupby("line", sort=False), strict=False):
            rows = rows.sort_values("layer")
            axes.plot(rows["layer"], rows["estimate"], color=color, marker="o", markersize=3, linewidth=1.3, label=line)
            axes.fill_between(rows["layer"], rows["low"], rows["high"], color=color, alpha=0.18, linewidth=0)
        axes.axhline(0, color=NOTE, linewidth=0.6)
        title = f"{textwrap.fill(part.part.title, TITLE)}\n{part.manifest['grade']}"
        label_axes(axes, title, textwrap.fill(what, SIDE))
        if len(table):
            layer_axis(axes)
            add_legend(axes, FONT - 3)
    models = ", ".join(parts[0].manifest["models"])
    write_note(figure, f"Bands: 95% intervals that know sequences. First of {models}.")
    return figure


def curves(part: PartResult) -> tuple[Any, str]:
    """(a row for each line and layer of the first model, what is drawn)."""
    import pandas as pd

    model = next(iter(part.manifest["models"]))
    if part.part.name == "importance":
        table = where(part.table("correlations"), model=model, part="all", score=PRIMARY)
        best = list(part.table("verdicts")["method"])[:MOST_LINES]
        table = table.rename(columns={"partial": "estimate", "partial_low": "low", "partial_high": "high"})
        table = pd.concat([where(table, method=method).assign(line=method) for method in best])
        return table[COLUMNS], f"{RHO} with relative score, partial"
    if part.part.name == "memorization":
        table = where(part.table("tests"), model=model, measure=f"{PRIMARY}_mean")
        table = table.rename(columns={"r": "estimate", "r_low": "low", "r_high": "high", "contrast": "line"})
        return table[COLUMNS].iloc[: MOST_LINES * max(1, table["layer"].nunique())], "r with relative score"
    table = where(part.table("curve"), model=model) if len(part.table("curve")) else pd.DataFrame(columns=COLUMNS)
    return table[COLUMNS], str(part.manifest.get("curve", ""))
