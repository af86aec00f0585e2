"""The robustness experiment's figures: every variation in one, the nulls across layers, single tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from basins.experiments.frames import where
from basins.experiments.primary import PRIMARY
from basins.experiments.under_nulls import RANDOM, TRAINED
from basins.plots import (
    DENSITY,
    FONT,
    LOOKUP,
    NOTE,
    PAGE,
    RERUN,
    RHO,
    add_legend,
    label_axes,
    layer_axis,
    new_figure,
    panels,
    plain_axes,
    write_note,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from basins.experiments.robustness import Robustness

SCORES = ((PRIMARY, RERUN), ("update", LOOKUP), ("raw", DENSITY))
LINES: tuple[dict[str, Any], ...] = (
    {"color": "#D55E00", "marker": "s"},
    {"color": "#009E73", "marker": "^"},
    {"color": "#CC79A7", "marker": "v"},
    {"color": "#E69F00", "marker": "D"},
    {"color": "#56B4E9", "marker": "P"},
)


def figures(found: Robustness) -> dict[str, Figure]:
    """All figures, by the name of their file."""
    drawn = {"variations": plot_variations(found), "nulls": plot_nulls(found)}
    return drawn | ({"token_tests": plot_token_tests(found)} if len(found.token_tests) else {})


def plot_variations(found: Robustness) -> Figure:
    """A row a variation: rank correlation of token scores with the default's, and the finding beside the default's."""
    name, layer = next(iter(found.settings["models"])), found.settings["layer"]
    rows = _rows(found, name, layer)
    figure = new_figure(PAGE, 0.2 * len(rows) + 1.6)
    left, right = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(rows))[::-1]
    ranks = where(found.agreement, model=name).groupby("variation")
    for offset, (score, style) in zip((0.2, 0, -0.2), SCORES, strict=True):
        some: list[Any] = [ranks.get_group(row)[score].dropna() for row in rows["variation"] if row in ranks.groups]
        there = [place + offset for place, row in zip(places, rows["variation"], strict=True) if row in ranks.groups]
        at = [place for place, part in zip(there, some, strict=True) if len(part)]
        values = [part for part in some if len(part)]
        left.hlines(at, [v.min() for v in values], [v.max() for v in values], color=style["color"], linewidth=0.8)
        left.plot([v.median() for v in values], at, style["marker"], color=style["color"], markersize=3, label=score)
    left.set_yticks(places, rows["variation"], fontsize=FONT - 1)
    left.set_xlabel(f"Spearman's {RHO} with the default", fontsize=FONT)
    label_axes(left, "Token scores: median and range over layers", "")
    left.legend(fontsize=FONT - 2, frameon=False, loc="lower left")
    default = rows.iloc[0]
    right.axvspan(default["low"], default["high"], color=RERUN["color"], alpha=0.15, linewidth=0)
    right.axvline(0, color=NOTE, linewidth=0.6)
    kinds = {"default": RERUN["color"], "null": LOOKUP["color"]}
    for place, row in zip(places, rows.to_dict("records"), strict=True):
        color = kinds.get(row["kind"], NOTE)
        right.hlines(place, row["low"], row["high"], color=color, linewidth=1)
        right.plot(row["effect"], place, "o", color=color, markersize=3.5)
    right.set_xlabel(f"partial rank correlation with {found.settings['measure']}", fontsize=FONT)
    label_axes(right, f"The finding at layer {layer}; band: the default's interval", "")
    for axes in (left, right):
        plain_axes(axes)
        axes.tick_params(axis="y", length=0)
    layers = ", ".join(map(str, found.settings["varied_layers"]))
    note = f"Layers {layers}. Orange: nulls (random weights: range over the draws). Rows without a point could not be "
    write_note(figure, f"{note}run or share no tokens with the default. {_about(found)}")
    return figure


def _rows(found: Robustness, name: str, layer: int) -> Any:
    """What the right panel shows, from the default down to the nulls and the second model."""
    import pandas as pd

    effects = where(found.effects, score=PRIMARY)
    first = where(effects, model=name, layer=layer)
    others = []
    for other, rows in effects[effects["model"] != name].groupby("model", sort=False):
        default = where(rows, kind="default").dropna(subset=["effect"])
        if len(default):
            best = default.loc[[default["effect"].abs().idxmax()]]
            others.append(best.assign(variation=f"{other}, layer {int(best['layer'].iloc[0])}", kind="model"))
    nulls: pd.DataFrame = found.nulls.assign(variation="null: " + found.nulls["null"], kind="null")
    columns = ["variation", "kind", "effect", "low", "high"]
    return pd.concat([part[columns] for part in (first, *others, nulls)], ignore_index=True)


def plot_nulls(found: Robustness) -> Figure:
    """Across layers: the finding under each null, how far relative scores spread, and raw against density."""
    figure, (effect, spread, raw) = panels(3, 3.0)
    name = next(iter(found.settings["models"]))
    curve = where(found.curve, model=name)
    lines = {"relative": RERUN} | dict(zip(_nulls(curve), LINES))
    for line, style in lines.items():
        here = where(curve, line=line).sort_values("layer")
        effect.plot(here["layer"], here["estimate"], **_thin(style))
        if line in ("relative", RANDOM):
            _band(effect, here, style)
        rows: Any = where(found.spreads, null=TRAINED if line == "relative" else line)
        middle = rows.groupby("layer")[["iqr", "rho_raw_density"]].median()
        spread.plot(middle.index, middle["iqr"], **_thin(style))
        name_shown = TRAINED if line == "relative" else line
        raw.plot(middle.index, middle["rho_raw_density"], label=name_shown, **_thin(style))
    effect.axhline(0, color=NOTE, linewidth=0.6)
    spread.set_yscale("log")
    label_axes(effect, "The finding", f"{RHO} with {found.settings['measure']}, partial")
    label_axes(spread, "Spread of relative scores", "interquartile range (nats)")
    label_axes(raw, "Raw score against density before the block", f"Spearman's {RHO}")
    for axes in (effect, spread, raw):
        layer_axis(axes)
    add_legend(raw, FONT - 2)
    note = "Bands: 95% interval of the default, and the range of the random weights. "
    write_note(figure, note + _about(found))
    return figure


def _nulls(curve: Any) -> list[str]:
    return [line for line in curve["line"].unique() if line != "relative"]


def _thin(style: dict[str, Any]) -> dict[str, Any]:
    return {"linewidth": 1.2, "markersize": 3} | style


def _band(axes: Axes, here: Any, style: dict[str, Any]) -> None:
    axes.fill_between(here["layer"], here["low"], here["high"], color=style["color"], alpha=0.18, linewidth=0)


def plot_token_tests(found: Robustness) -> Figure:
    """Each tested token's score with its jackknife error on the central 95% of its transplanted null."""
    tests: Any = found.token_tests
    layers = tests["layer"].unique()
    figure, drawn = panels(len(layers), 2.8)
    for axes, layer in zip(drawn, layers, strict=True):
        rows = where(tests, layer=layer).sort_values("relative").reset_index(drop=True)
        axes.vlines(rows.index, rows["null_low"], rows["null_high"], color="#BBBBBB", linewidth=4)
        axes.plot(rows.index, rows["null_median"], "_", color=NOTE, markersize=6)
        axes.errorbar(rows.index, rows["relative"], rows["se"], **_point(False))
        low = rows[rows["p_corrected"] < 0.05]
        axes.errorbar(low.index, low["relative"], low["se"], **_point(True))
        label_axes(axes, f"Layer {layer}: {len(low)} of {len(rows)} differ", "relative score (nats)")
        axes.set_xlabel("tested tokens, by score", fontsize=FONT)
        axes.set_xticks([])
    note = (
        "Grey: central 95% and median with other tokens' displacements at the same radius. Bars: jackknife error. "
        "Orange: corrected p < 0.05 (Benjamini-Hochberg in the layer). "
    )
    write_note(figure, note + _about(found))
    return figure


def _point(low: bool) -> dict[str, Any]:
    color = LOOKUP["color"] if low else RERUN["color"]
    return {"fmt": "o", "color": color, "markersize": 3, "linewidth": 1, "zorder": 3 + low}


def _about(found: Robustness) -> str:
    name, about = next(iter(found.settings["models"].items()))
    return (
        f"{name}: {about['tokens']:,} tokens in {about['clusters']} {about['cluster']}s; {found.settings['primary']}."
    )
