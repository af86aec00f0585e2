"""The importance experiment's figures: layer curves, scatter, quartiles, joint density, agreement with ablation.

They draw what the tables say. Importance is shown as percentiles, because its measures differ in unit and are skewed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from basins.experiments.frames import where
from basins.experiments.importance_measures import SIGNED, size_of
from basins.experiments.primary import PRIMARY
from basins.null_plots import with_null_plot
from basins.plots import (
    DENSITY,
    FONT,
    LOOKUP,
    NOTE,
    PAGE,
    RERUN,
    RHO,
    add_legend,
    heat_map,
    label_axes,
    layer_axis,
    new_figure,
    panels,
    write_note,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from basins.experiments.importance import Importance

SCORE = r"relative score $\ln(V_{in}/V_{out})$ (nats)"


def figures(found: Importance) -> dict[str, Figure]:
    """All figures, by the name of their file."""
    drawn = {
        "layer_curves": plot_layer_curves(found),
        "scatter": plot_scatter(found),
        "quartiles": plot_quartiles(found),
        "joint_density": plot_joint_density(found),
    }
    drawn |= {"agreement": plot_agreement(found)} if len(found.agreement) else {}
    return with_null_plot(drawn, found.nulls)


def plot_layer_curves(found: Importance) -> Figure:
    """Rank correlation with the confounds removed at every layer, with its interval, a panel a measure.

    Re-run and lookup relative scores of the first model; the raw score's plain correlation, which is mostly density,
    dotted; the second model's relative score at the same relative depth, grey.
    """
    models = list(found.scores)
    table = where(found.correlations, part="all")
    figure, drawn = panels(len(found.settings["methods"]), 2.0)
    for axes, method in zip(drawn, found.settings["methods"], strict=True):
        rows = where(table, method=method)
        first = where(rows, model=models[0])
        for score, label, style in ((PRIMARY, "relative, re-run", RERUN), ("relative, lookup", "lookup", LOOKUP)):
            curve = where(first, score=score).sort_values("layer")
            axes.plot(curve["layer"], curve["partial"], label=label, linewidth=1.3, markersize=3, **style)
            color = style["color"]
            axes.fill_between(curve["layer"], curve["partial_low"], curve["partial_high"], color=color, alpha=0.18)
        raw = where(first, score="raw").sort_values("layer")
        axes.plot(raw["layer"], raw["rho"], label="raw, confounds left in", linewidth=1, markersize=2.5, **DENSITY)
        for other in models[1:]:
            curve = where(rows, model=other, score=PRIMARY).sort_values("layer")
            if len(curve) and len(first):
                depth = curve["layer"] * first["layer"].max() / max(1, curve["layer"].max())
                axes.plot(depth, curve["partial"], label=f"relative, {other}", linewidth=1, color="#999999", marker="x")
        axes.axhline(0, color=NOTE, linewidth=0.6)
        axes.set_ylim(-1, 1)
        label_axes(axes, method, f"{RHO}, partial")
        layer_axis(axes)
    add_legend(drawn[0], FONT - 3)
    write_note(figure, f"Bands: 95% intervals, sequences resampled. {_about(found)}")
    return figure


def plot_scatter(found: Importance) -> Figure:
    """A dot a token: relative score over the percentile of importance, with the least-squares line and its band."""
    figure, drawn = panels(len(found.settings["methods"]), 2.1)
    for axes, method in zip(drawn, found.settings["methods"], strict=True):
        layer, x, y = _tokens(found, method)
        axes.scatter(x, y, s=3, alpha=0.3, linewidths=0, color=RERUN["color"], rasterized=True)
        if len(x) > 3 and np.ptp(x) > 0:
            at, middle, half = _line(x, y)
            axes.plot(at, middle, color=LOOKUP["color"], linewidth=1.4)
            axes.fill_between(at, middle - half, middle + half, color=LOOKUP["color"], alpha=0.25, linewidth=0)
        _span(axes, y)
        label_axes(axes, _title(found, method, layer), SCORE)
        axes.set_xlabel(_importance(method), fontsize=FONT - 1)
    note = (
        "The layer of each measure's verdict, confounds left in (the partial correlation removes them). Line: least "
        "squares, band: its standard error times 1.96 as if tokens were independent; the intervals that know sequences "
        f"are in the tables. {_about(found)}"
    )
    write_note(figure, note)
    return figure


def plot_quartiles(found: Importance) -> Figure:
    """Mean relative score in each quarter of importance, at each measure's layer."""
    figure, drawn = panels(len(found.settings["methods"]), 1.9)
    table = where(found.quartiles, model=next(iter(found.scores)))
    for axes, method in zip(drawn, found.settings["methods"], strict=True):
        layer = _layer(found, method)
        rows = where(table, method=method, layer=layer)
        if len(rows):
            row = rows.iloc[0]
            means = [row[f"q{i}"] for i in range(1, 5)]
            axes.bar(range(1, 5), means, color=RERUN["color"], width=0.7)
            room = max(1e-9, np.nanmax(means) - np.nanmin(means))
            axes.set_ylim(np.nanmin(means) - room, np.nanmax(means) + room)
            said = f"top less bottom {row['contrast']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
            axes.text(0.02, 0.95, said, fontsize=FONT - 3, color=NOTE, transform=axes.transAxes, va="top")
        axes.set_xticks(range(1, 5), ["lowest", "2nd", "3rd", "highest"])
        label_axes(axes, _title(found, method, layer), SCORE)
    write_note(figure, f"Quarters of importance; axes do not start at 0. {_about(found)}")
    return figure


def plot_joint_density(found: Importance) -> Figure:
    """Where tokens lie in the plane of importance and relative score."""
    figure, drawn = panels(len(found.settings["methods"]), 2.1)
    for axes, method in zip(drawn, found.settings["methods"], strict=True):
        layer, x, y = _tokens(found, method)
        if len(x):
            low, high = _span(axes, y)
            axes.hexbin(x, y, gridsize=24, extent=(0, 100, low, high), cmap="Blues", mincnt=1, linewidths=0)
        label_axes(axes, _title(found, method, layer), SCORE)
        axes.set_xlabel(_importance(method), fontsize=FONT - 1)
    write_note(figure, f"Darker: more tokens. {_about(found)}")
    return figure


def plot_agreement(found: Importance) -> Figure:
    """Rank correlation of every measure with ablation, at every layer of the first model."""
    rows = where(found.agreement, model=next(iter(found.scores)))
    table: Any = rows.pivot_table(index="method", columns="layer", values="rho", sort=False)
    figure = new_figure(0.6 * PAGE, 0.32 * len(table) + 1.3)
    axes: Any = figure.subplots()
    heat_map(figure, axes, table, 1.0, "RdBu_r", 2)
    axes.set_title(f"Spearman's {RHO} with ablation", fontsize=FONT, loc="left")
    write_note(figure, f"Ablation: rise of the loss when the state becomes the mean. {_about(found)}")
    return figure


def _layer(found: Importance, method: str) -> int | None:
    """The layer that the verdict on a measure names."""
    row = where(found.verdicts, method=method).iloc[0]
    return None if math.isnan(row["layer"]) else int(row["layer"])


def _tokens(found: Importance, method: str) -> tuple[int | None, np.ndarray, np.ndarray]:
    """The layer, the percentile of importance and the relative score of its tokens."""
    layer = _layer(found, method)
    frame = found.tokens[next(iter(found.tokens))]
    kept = where(frame, layer=layer, used=True).dropna(subset=[method])
    values = size_of(method, kept[method])
    return layer, 100 * values.rank(pct=True).to_numpy(), kept[PRIMARY].to_numpy()


def _line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    slope, intercept = np.polyfit(x, y, 1)
    left = y - (slope * x + intercept)
    at = np.linspace(0, 100, 50)
    error = left.std(ddof=2) * np.sqrt(1 / len(x) + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    return at, slope * at + intercept, 1.96 * error


def _span(axes: Axes, y: np.ndarray) -> tuple[float, float]:
    """Nearly all tokens: a handful far off would press the others flat."""
    if not len(y):
        return 0.0, 1.0
    low, high = np.quantile(y, [0.005, 0.995])
    room = 0.08 * (high - low) or 0.5
    axes.set_ylim(low - room, high + room)
    return float(low - room), float(high + room)


def _title(found: Importance, method: str, layer: int | None) -> str:
    if layer is None:
        return f"{method}: not measured"
    model = next(iter(found.scores))
    row = where(found.correlations, model=model, part="all", method=method, layer=layer, score=PRIMARY).iloc[0]
    return f"{method}, layer {layer}: {RHO} = {row['rho']:.2f}, partial {row['partial']:.2f}"


def _importance(method: str) -> str:
    return f"percentile of {'|importance|' if method in SIGNED else 'importance'}"


def _about(found: Importance) -> str:
    name, about = next(iter(found.settings["models"].items()))
    return (
        f"{name}: {about['tokens']:,} tokens in {about['clusters']} {about['cluster']}s; {found.settings['primary']}."
    )
