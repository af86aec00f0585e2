"""Every hypothesis of an experiment beside what nulls give it. Draws what the table says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from basins.experiments.frames import where
from basins.experiments.under_nulls import ALL_NULLS
from basins.plots import FONT, NOTE, PAGE, RERUN, add_legend, new_figure, write_note

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MARKS = dict(zip(ALL_NULLS, ("x", "v", "^", "s", "D"), strict=True))
COLORS = dict(zip(ALL_NULLS, ("#000000", "#E69F00", "#009E73", "#D55E00", "#CC79A7"), strict=True))


def with_null_plot(drawn: dict[str, Figure], nulls: pd.DataFrame) -> dict[str, Figure]:
    """The figures and, where nulls were run, one of them."""
    return drawn | ({"nulls": plot_null_effects(nulls)} if len(nulls) else {})


def plot_null_effects(nulls: pd.DataFrame) -> Figure:
    """A row a hypothesis: the sample's own effect (bar), and each null's with its interval; filled where it shows."""
    names = list(dict.fromkeys(nulls["name"]))
    figure = new_figure(PAGE, 0.55 * len(names) + 1.8)
    axes = figure.subplots()
    places = dict(zip(names, range(len(names))[::-1], strict=True))
    own = nulls.drop_duplicates("name")
    own_at = np.array([places[name] for name in own["name"]])
    axes.barh(own_at, own["of_sample"], height=0.75, color=RERUN["color"], alpha=0.25, label="as it is, this sample")
    for number, null in enumerate(ALL_NULLS):
        rows = where(nulls, null=null)
        at = np.array([places[name] + 0.28 - 0.14 * number for name in rows["name"]])
        axes.hlines(at, rows["low"], rows["high"], color=COLORS[null], linewidth=0.8)
        axes.plot(rows["effect"], at, MARKS[null], color=COLORS[null], markersize=4, label=null, fillstyle="none")
        shows = rows["shows"].to_numpy(bool)
        axes.plot(rows["effect"][shows], at[shows], MARKS[null], color=COLORS[null], markersize=4)
    axes.axvline(0, color=NOTE, linewidth=0.6)
    layers = own.set_index("name")["layer"].astype(int)
    axes.set_yticks(list(places.values()), [f"{name}, layer {layers[name]}" for name in places], fontsize=FONT)
    axes.tick_params(axis="x", labelsize=FONT)
    axes.set_xlabel("correlation with the relative score", fontsize=FONT)
    add_legend(axes, FONT - 2)
    note = "Lines: 95% intervals (random weights: the range of the draws). Filled: the null shows it too."
    write_note(figure, f"{note} Each hypothesis at the layer of its grade; the sample is scored on its own.")
    return figure
