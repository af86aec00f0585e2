"""The layers experiment's figures: profiles, what goes with density, dimension and overlap, shares, radius, sinks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from basins.experiments.frames import where
from basins.plots import (
    DENSITY,
    FONT,
    LOOKUP,
    MINUS,
    NOTE,
    RERUN,
    RHO,
    add_legend,
    label_axes,
    layer_axis,
    panels,
    write_note,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from basins.experiments.layers import Layers

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKS = ("o", "s", "^", "D", "v", "x")
UNTRAINED: dict[str, Any] = {"color": "#999999", "marker": "x", "linestyle": "-."}
PROFILES = (
    ("relative", r"relative: what the block does", r"$\ln(V_{in}/V_{out})$ (nats)"),
    ("update", "update: what the block writes", r"$-\ln V_{upd}$ (nats)"),
    ("raw", "raw, beside density", r"$-\ln V$ (nats)"),
)
SCORES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("relative", "relative, re-run", RERUN),
    ("relative, lookup", "relative, lookup", LOOKUP),
    ("update", "update, re-run", {"color": COLORS[2], "marker": "D", "linestyle": "-"}),
    ("raw", "raw, re-run", DENSITY),
)
PARTS = ("state", "context", "interaction")


def figures(found: Layers) -> dict[str, Figure]:
    """All figures, by the name of their file."""
    drawn = {
        "profiles": plot_profiles(found),
        "density": plot_density(found),
        "geometry": plot_geometry(found),
        "shares": plot_shares(found),
        "local_limit": plot_local_limit(found),
        "sinks": plot_sinks(found),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def plot_profiles(found: Layers) -> Figure:
    """Mean of each score at every layer with its interval; the quartile range over tokens as a thin bar."""
    models = list(found.scores)
    figure, drawn = panels(3 * len(models), 2.3)
    for number, model in enumerate(models):
        for axes, (score, title, unit) in zip(drawn[3 * number :], PROFILES):
            lines = [(f"{score}", "re-run", RERUN), (f"{score}, lookup", "lookup", LOOKUP)]
            if score == "raw":
                lines.append(("density", "density before the block", DENSITY))
            shown = [(where(found.profile, model=model, quantity=name), label, style) for name, label, style in lines]
            if number == 0:
                null = where(found.profile, model="random weights", quantity=score)
                shown += [(null, "untrained (re-run)", UNTRAINED)] if len(null) else []
            _profile(axes, shown)
            label_axes(axes, f"{model}: {title}", unit)
            layer_axis(axes)
            add_legend(axes, FONT - 3)
    note = "Lines and bands: means and 95% intervals, sequences resampled. Thin bars: quartile range over tokens around"
    write_note(figure, f"{note} the median. {_about(found)}")
    return figure


def _profile(axes: Axes, shown: list[tuple[pd.DataFrame, str, dict[str, Any]]]) -> None:
    off = _far([rows for rows, _, _ in shown])
    words = []
    for place, (rows, label, style) in enumerate(shown):
        rows = rows.sort_values("layer")
        if off and len(rows):
            words.append(f"{label.partition(' ')[0]} {rows['mean'].iloc[0]:.1f}".replace("-", MINUS))
            rows = rows.iloc[1:]
        axes.plot(rows["layer"], rows["mean"], label=label, linewidth=1.2, markersize=3, **style)
        axes.fill_between(rows["layer"], rows["low"], rows["high"], color=style["color"], alpha=0.2, linewidth=0)
        at = rows["layer"] + 0.07 * place
        half = rows["iqr"] / 2
        axes.vlines(at, rows["median"] - half, rows["median"] + half, color=style["color"], alpha=0.5, linewidth=0.7)
    if off:
        said = f"off scale, layer 0: {', '.join(words)}".replace(f"re{MINUS}", "re-")
        axes.text(0, 1.01, said, fontsize=FONT - 3, color=NOTE, transform=axes.transAxes)


def _far(curves: list[pd.DataFrame]) -> bool:
    """Whether layer 0, the embedding's own, would press all others flat."""
    kept = [rows.sort_values("layer") for rows in curves if len(rows) > 2]
    if not kept or any(rows["layer"].iloc[0] != 0 for rows in kept):
        return False
    first = np.array([rows["mean"].iloc[0] for rows in kept])
    rest = np.concatenate([rows["mean"].iloc[1:] for rows in kept])
    room = np.nanmax(rest) - np.nanmin(rest)
    return bool(((first < np.nanmin(rest) - room) | (first > np.nanmax(rest) + room)).any())


def plot_density(found: Layers) -> Figure | None:
    """Rank correlation of each score with the neighbourhood's density, distance and dimension before the block."""
    if not len(found.correlations):
        return None
    names = list(dict.fromkeys(found.correlations["with"]))
    titles = {
        "density": r"density, $-\ln V_{in}$",
        "distance": "mean neighbour distance",
        "dimension": "intrinsic dimension",
    }
    models = list(found.scores)
    figure, drawn = panels(len(names) * len(models), 2.2)
    for axes, (model, name) in zip(drawn, [(model, name) for model in models for name in names], strict=True):
        rows = where(found.correlations, model=model, **{"with": name})
        for score, label, style in SCORES:
            curve = where(rows, score=score).sort_values("layer")
            axes.plot(curve["layer"], curve["rho"], label=label, linewidth=1.2, markersize=3, **style)
            axes.fill_between(curve["layer"], curve["rho_low"], curve["rho_high"], color=style["color"], alpha=0.15)
        axes.axhline(0, color=NOTE, linewidth=0.6)
        axes.set_ylim(-1.05, 1.05)
        label_axes(axes, f"{model}: {titles.get(name, name)}", f"Spearman's {RHO}")
        layer_axis(axes)
    add_legend(drawn[0], FONT - 3)
    note = (
        "Plain rank correlations over tokens, 95% intervals. Relative scores contain V_in, so part of theirs is built"
    )
    write_note(figure, f"{note} in. {_about(found)}")
    return figure


def plot_geometry(found: Layers) -> Figure:
    """Intrinsic dimension, what consecutive layers share, and how far re-run and lookup agree."""
    figure, drawn = panels(3, 2.4)
    dimension, shared, agree = drawn
    for number, model in enumerate(dict.fromkeys(found.dimension["model"])):
        style = _style(found, model, number)
        rows = where(found.dimension, model=model, estimator="two-NN").sort_values("layer")
        _line(dimension, rows, "dimension", model, style)
        rows = where(found.overlap, model=model, comparison="next layer").sort_values("layer")
        _line(shared, rows, "estimate", model, style)
        if len(rows):
            shared.axhline(float(rows["chance"].iloc[0]), color=style["color"], linewidth=0.7, linestyle=":")
    first = next(iter(found.scores))
    named = ("raw", "update", "relative", "nearest after the block", "order after the block")
    for number, comparison in enumerate(named):
        rows = where(found.overlap, model=first, comparison=comparison).sort_values("layer")
        style = {"color": COLORS[number], "marker": MARKS[number], "linestyle": "-"}
        label = f"{RHO} of {comparison} scores" if comparison in ("raw", "update", "relative") else comparison
        _line(agree, rows, "estimate", label, style)
    label_axes(dimension, "two-NN intrinsic dimension", "dimension")
    label_axes(shared, "neighbours kept at the next layer", "mean share of k")
    label_axes(agree, f"{first}: re-run with lookup", "agreement")
    shared.set_ylim(0, 1)
    for axes in drawn:
        layer_axis(axes)
        add_legend(axes, FONT - 3)
    write_note(
        figure, f"Dotted: chance. After the block: a third of the k neighbours, and their order. {_about(found)}"
    )
    return figure


def plot_shares(found: Layers) -> Figure:
    """Shares of state, context and interaction in the variance of k x k crossed outputs, stacked to 1."""
    models = list(found.scores)
    figure, drawn = panels(len(models), 2.6)
    for axes, model in zip(drawn, models, strict=True):
        rows = where(found.shares, model=model)
        bottom: Any = 0.0
        for number, part in enumerate(PARTS):
            some = where(rows, part=part).sort_values("layer")
            color = COLORS[number]
            axes.bar(some["layer"], some["share"], bottom=bottom, color=color, label=part, width=0.8, alpha=0.8)
            if part == "state":
                ends = np.abs(np.stack([some["share"] - some["low"], some["high"] - some["share"]]))
                axes.errorbar(some["layer"], some["share"], ends, fmt="none", ecolor="black", elinewidth=0.8)
            bottom = bottom + some["share"].to_numpy()
        axes.set_ylim(0, 1)
        label_axes(axes, f"{model}: map or context", "mean share of variance")
        layer_axis(axes)
        axes.legend(fontsize=FONT - 3, framealpha=0.9, loc="lower right")
    write_note(
        figure, f"{found.settings['sample']} sampled tokens; bars: interval of the state's share. {_about(found)}"
    )
    return figure


def plot_local_limit(found: Layers) -> Figure:
    """How the score changes as neighbours move towards their token: ranks and sizes against the smallest radius."""
    models = list(found.scores)
    figure, drawn = panels(2 * len(models), 2.4, wide=2)
    for axes, (model, column) in zip(drawn, [(m, c) for m in models for c in ("rho", "change")], strict=True):
        rows = where(found.local, model=model)
        layers = sorted(rows["layer"].unique())
        for layer in layers:
            curve = where(rows, layer=layer).sort_values("shrink")
            axes.plot(curve["shrink"], curve[column], linewidth=1, color=_depth(layer, layers), marker=".", label=layer)
        axes.set_xscale("log")
        axes.set_xlabel("shrink t of the displacements", fontsize=FONT)
        smallest = rows["smallest"].min()
        title = (
            f"{RHO} with the scores at t = {smallest:g}" if column == "rho" else f"median change from t = {smallest:g}"
        )
        label_axes(axes, f"{model}: {title}", f"Spearman's {RHO}" if column == "rho" else "nats")
        axes.axhline(0.99 if column == "rho" else 0.01, color=NOTE, linewidth=0.7, linestyle=":")
    drawn[0].legend(fontsize=FONT - 3, frameon=False, title="layer", title_fontsize=FONT - 3, ncols=2)
    write_note(
        figure, f"Dotted: where a score counts as local. {found.settings['sample']} sampled tokens. {_about(found)}"
    )
    return figure


def plot_sinks(found: Layers) -> Figure:
    """How much attention the first position draws, and how long its state is."""
    figure, drawn = panels(2, 2.4)
    for number, model in enumerate(dict.fromkeys(found.sinks["model"])):
        rows = where(found.sinks, model=model).sort_values("layer")
        style = _style(found, model, number)
        for axes, column in zip(drawn, ("attention_first", "norm_ratio"), strict=True):
            axes.plot(rows["layer"], rows[column], label=model, linewidth=1.2, markersize=3, **style)
        even = float(rows["attention_even"].iloc[0])
        drawn[0].axhline(even, color=style["color"], linewidth=0.7, linestyle=":")
    label_axes(drawn[0], "attention to the first position", "mean share")
    label_axes(drawn[1], "norm of the first state over the others'", "ratio of medians")
    drawn[0].set_ylim(bottom=0)
    for axes in drawn:
        layer_axis(axes)
        add_legend(axes, FONT - 3)
    write_note(figure, f"Dotted: attention spread evenly. {_about(found)}")
    return figure


def _line(axes: Axes, rows: pd.DataFrame, column: str, label: str, style: dict[str, Any]) -> None:
    if not len(rows):
        return
    axes.plot(rows["layer"], rows[column], label=label, linewidth=1.2, markersize=3, **style)
    axes.fill_between(rows["layer"], rows["low"], rows["high"], color=style["color"], alpha=0.15, linewidth=0)


def _style(found: Layers, model: str, number: int) -> dict[str, Any]:
    if model not in found.scores:
        return UNTRAINED
    return {"color": COLORS[number % len(COLORS)], "marker": MARKS[number % len(MARKS)], "linestyle": "-"}


def _depth(layer: int, layers: list[int]) -> Any:
    import matplotlib

    return matplotlib.colormaps["viridis"](0.9 * layers.index(layer) / max(1, len(layers) - 1))


def _about(found: Layers) -> str:
    name, about = next(iter(found.settings["models"].items()))
    return (
        f"{name}: {about['tokens']:,} tokens in {about['clusters']} {about['cluster']}s; {found.settings['primary']}."
    )
