"""The linguistic experiment's figures: means by tag across layers, effects before and after the confounds, spread.

They draw what the tables say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from basins.experiments.frames import where
from basins.experiments.linguistic_tables import HYPOTHESES, TAGS
from basins.experiments.primary import PRIMARY
from basins.null_plots import with_null_plot
from basins.plots import (
    DENSITY,
    FONT,
    LOOKUP,
    NOTE,
    PAGE,
    RERUN,
    add_legend,
    heat_map,
    label_axes,
    layer_axis,
    new_figure,
    panels,
    plain_axes,
    write_note,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from basins.experiments.linguistic import Linguistic

SCORE = r"relative score $\ln(V_{in}/V_{out})$ (nats)"
EXPLAINED: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("relative, re-run", PRIMARY, RERUN),
    ("relative, lookup", "relative, lookup", LOOKUP),
    ("update, re-run", "update", {"color": "#009E73", "marker": "v", "linestyle": "-"}),
    ("raw, re-run", "raw", {"color": "#CC79A7", "marker": "d", "linestyle": "-"}),
    ("density before the block", "density", DENSITY),
)


def figures(found: Linguistic) -> dict[str, Figure]:
    """All figures, by the name of their file."""
    drawn = {
        "means_by_tag": plot_means(found),
        "contrasts": plot_contrasts(found),
        "distribution": plot_distribution(found),
        "variance_explained": plot_explained(found),
    }
    return with_null_plot(drawn, found.nulls)


def plot_means(found: Linguistic) -> Figure:
    """A cell for each tag and layer: how far the tag's mean lies from the mean of all words, in standard deviations."""
    models = list(found.scores)
    figure = new_figure(PAGE, 3.6)
    grid: Any = figure.subplots(1, len(models), squeeze=False, width_ratios=[_n_layers(found, m) + 2 for m in models])
    for axes, model in zip(grid[0], models, strict=True):
        rows = where(found.means, model=model, score=PRIMARY)
        table = rows.pivot_table(index="tag", columns="layer", values="mean", sort=False)
        counts = rows.groupby("tag")["n_tokens"].max()
        frame = found.tokens[model]
        tested = frame[frame["tested"]].groupby("layer")[PRIMARY].agg(["mean", "std"]).loc[table.columns]
        table = ((table - tested["mean"]) / tested["std"]).loc[counts.sort_values(ascending=False).index]
        table.index = [f"{tag} ({counts[tag]:,})" for tag in table.index]
        heat_map(figure, axes, table, 1.5, "RdBu", 1)
        axes.set_title(f"{model}: mean relative score", fontsize=FONT, loc="left")
    note = (
        "Standard deviations from the mean of all words of the layer, confounds left in; blue: more compressed. "
        "Punctuation has its means but is not tested."
    )
    write_note(figure, f"{note} {_about(found)}")
    return figure


def plot_contrasts(found: Linguistic) -> Figure:
    """Each hypothesis across layers: confounds left in, density removed, all removed with the interval; by lookup; the
    second model at the same relative depth."""
    models = list(found.scores)
    figure, drawn = panels(len(HYPOTHESES), 3.0)
    for axes, name in zip(drawn, HYPOTHESES, strict=True):
        rows = where(found.effects, name=name)
        first = where(rows, model=models[0]).sort_values("layer")
        primary, lookup = where(first, score=PRIMARY), where(first, score="relative, lookup")
        style: dict[str, Any] = {"linewidth": 1.2, "markersize": 3}
        axes.plot(primary["layer"], primary["r_plain"], label="confounds left in", **style, **DENSITY)
        axes.plot(primary["layer"], primary["r_density"], label="density removed", color="#009E73", marker="v", **style)
        axes.plot(primary["layer"], primary["r"], label="all removed", **style, **RERUN)
        axes.fill_between(primary["layer"], primary["low"], primary["high"], color=RERUN["color"], alpha=0.18)
        axes.plot(lookup["layer"], lookup["r"], label="all removed, lookup", **style, **LOOKUP)
        for other in models[1:]:
            second = where(rows, model=other, score=PRIMARY).sort_values("layer")
            depth = second["layer"] * _depth(found, models[0]) / _depth(found, other)
            axes.plot(depth, second["r"], label=f"all removed, {other}", color="#999999", marker="x", **style)
        axes.axhline(0, color=NOTE, linewidth=0.6)
        unit = "root of partial eta squared" if name == TAGS else "correlation with the relative score"
        label_axes(axes, name, unit)
        axes.set_ylim(0 if name == TAGS else -1, 1)
        layer_axis(axes)
    add_legend(drawn[0], FONT - 3)
    note = "Above 0: function words (nouns) are more compressed. Band: 95%, sentences resampled."
    write_note(figure, f"{note} {_about(found)}")
    return figure


def plot_distribution(found: Linguistic) -> Figure:
    """The relative score of each tag's tokens at the layer where tags explain most beyond the confounds."""
    model = next(iter(found.scores))
    rows = where(found.tests_of_tags, model=model, score=PRIMARY).dropna(subset=["partial_eta_squared"])
    figure = new_figure(PAGE, 3.2)
    axes: Any = figure.subplots()
    plain_axes(axes)
    if len(rows):
        best = rows.loc[rows["partial_eta_squared"].idxmax()]
        here = where(found.tokens[model], layer=int(best["layer"]), tested=True)
        groups = {str(tag): part[PRIMARY].to_numpy() for tag, part in here.groupby("tag")}
        order = sorted(groups, key=lambda tag: float(np.median(groups[tag])))
        drawn = axes.violinplot([groups[tag] for tag in order], showmedians=True, showextrema=False, widths=0.85)
        for body in drawn["bodies"]:
            body.set_facecolor(RERUN["color"])
        drawn["cmedians"].set_color("black")
        axes.set_xticks(range(1, len(order) + 1), [f"{tag}\n{len(groups[tag]):,}" for tag in order], fontsize=FONT - 1)
        low, high = np.quantile(here[PRIMARY], [0.002, 0.998])
        axes.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
        said = f"eta squared {best['eta_squared']:.3f}, beyond the confounds {best['partial_eta_squared']:.3f}"
        label_axes(axes, f"{model}, layer {int(best['layer'])}: {said}", SCORE)
    write_note(
        figure, f"Confounds left in; lines: medians; the outermost 0.2% of either side are not shown. {_about(found)}"
    )
    return figure


def plot_explained(found: Linguistic) -> Figure:
    """How much of each score's variance tags explain: the raw score follows the density before the block."""
    models = list(found.scores)
    figure, drawn = panels(len(models), 2.8, wide=2)
    for axes, model in zip(drawn, models, strict=True):
        rows = where(found.tests_of_tags, model=model)
        for label, score, style in EXPLAINED:
            curve = where(rows, score=score).sort_values("layer")
            axes.plot(curve["layer"], curve["eta_squared"], label=label, linewidth=1.2, markersize=3, **style)
        beyond = where(rows, score=PRIMARY).sort_values("layer")
        axes.plot(beyond["layer"], beyond["partial_eta_squared"], label="relative, confounds removed", color="black")
        label_axes(axes, model, "share of variance explained by tags")
        axes.set_ylim(bottom=0)
        layer_axis(axes)
    handles, labels = drawn[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=FONT - 2, frameon=False, ncols=len(labels), loc="outside upper center")
    write_note(figure, f"Eta squared; black: partial eta squared of the relative score, re-run. {_about(found)}")
    return figure


def _n_layers(found: Linguistic, model: str) -> int:
    return where(found.means, model=model)["layer"].nunique()


def _depth(found: Linguistic, model: str) -> int:
    """The number of the model's last block."""
    return max(1, int(found.settings["models"][model]["n_layers"]) - 1)


def _about(found: Linguistic) -> str:
    model = next(iter(found.scores))
    about, text = found.settings["models"][model], found.settings["text"]
    kind = "gold" if text["gold"] else "automatic"
    words, sentences = about["tested_tokens"], about["tested_sentences"]
    return f"{model}: {words:,} words in {sentences:,} sentences, {kind} tags. {text['name']}."
