"""The memorisation experiment's figures: strip plot, distributions, layer curves, dose-response, ROC, training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from basins.experiments.frames import where
from basins.experiments.memorization_tables import PRIMARY, split
from basins.null_plots import with_null_plot
from basins.plots import (
    DENSITY,
    FONT,
    LOOKUP,
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
    from matplotlib.figure import Figure

    from basins.experiments.memorization import Memorization

SCORE = "mean relative score of a passage (nats)"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
CURVES = (
    (PRIMARY, "relative, re-run", RERUN),
    ("lookup_relative_mean", "relative, lookup", LOOKUP),
    ("density_mean", "density before the block", DENSITY),
)


def figures(found: Memorization) -> dict[str, Figure]:
    """All figures that the result has numbers for, by the name of their file."""
    drawn = {
        "strip": plot_strip(found),
        "distributions": plot_distributions(found),
        "layer_curves": plot_layer_curves(found),
        "roc": plot_roc(found),
    }
    if len(found.dose_response):
        drawn["dose_response"] = plot_dose_response(found)
    if len(found.effect):
        drawn["difference_in_differences"] = plot_effect(found)
    if len(found.dynamics):
        drawn["dynamics"] = plot_dynamics(found)
    return with_null_plot(drawn, found.nulls)


def plot_strip(found: Memorization) -> Figure:
    """A dot a passage: the primary score at the layer of the first verdict, by dose or group, a panel a model."""
    figure, shown = panels(len(found.matrices), 3.0)
    for axes, (model, matrix) in zip(shown, found.matrices.items(), strict=True):
        labels, column = _labels(found, model), _column(found, model)
        by = "dose" if "dose" in labels and labels["dose"].notna().all() else "group"
        kinds = sorted(labels[by].unique()) if by == "dose" else list(dict.fromkeys(labels[by]))
        rng = np.random.default_rng(0)
        for place, kind in enumerate(kinds):
            rows = np.flatnonzero((labels[by] == kind).to_numpy())
            values = matrix[column].to_numpy()[rows]
            recited = labels["free"].fillna(False).to_numpy(dtype=bool)[rows]
            across = place + rng.uniform(-0.25, 0.25, len(rows))
            for mark, style in ((recited, RERUN), (~recited, LOOKUP)):
                axes.scatter(across[mark], values[mark], s=6, alpha=0.6, linewidths=0, color=style["color"])
            if np.isfinite(values).any():
                axes.plot([place - 0.3, place + 0.3], [np.nanmedian(values)] * 2, color="black", linewidth=1)
        axes.set_xticks(range(len(kinds)), [str(kind) for kind in kinds], fontsize=FONT - 1)
        label_axes(axes, f"{model}, {_layer_words(column)}", SCORE)
        axes.set_xlabel(by, fontsize=FONT)
    write_note(figure, f"Blue: recited (greedy continuation), orange: not; lines: medians. {_about(found)}")
    return figure


def plot_distributions(found: Memorization) -> Figure:
    """How the primary score and the loss are spread in each group of the first contrast."""
    figure, shown = panels(2, 2.8)
    model = next(iter(found.matrices))
    labels, column = _labels(found, model), _column(found, model)
    for axes, name, title in zip(shown, (column, "loss"), (SCORE, "-mean loss (nats)"), strict=True):
        values = found.matrices[model][name].to_numpy()
        if np.isfinite(values).sum() > 1:
            bins: Any = np.linspace(np.nanmin(values), np.nanmax(values), 30)
            for color, group in zip(COLORS, dict.fromkeys(labels["group"]), strict=False):
                rows = (labels["group"] == group).to_numpy() & np.isfinite(values)
                axes.hist(values[rows], bins, density=True, histtype="step", color=color, label=group)
        add_legend(axes)
        label_axes(axes, _layer_words(name), "density")
        axes.set_xlabel(title, fontsize=FONT)
    write_note(figure, f"{model}. {_about(found)}")
    return figure


def plot_layer_curves(found: Memorization) -> Figure:
    """Point-biserial r of the group with each score, by layer, a panel a contrast of the first model."""
    model = next(iter(found.matrices))
    tests = where(found.tests, model=model)
    contrasts = list(dict.fromkeys(tests["contrast"]))
    figure, shown = panels(len(contrasts), 2.8)
    for axes, contrast in zip(shown, contrasts, strict=True):
        for measure, name, style in CURVES:
            rows = where(tests, contrast=contrast, measure=measure).sort_values("layer")
            axes.plot(rows["layer"], rows["r"], label=name, linewidth=1.3, markersize=3, **style)
            axes.fill_between(rows["layer"], rows["r_low"], rows["r_high"], color=style["color"], alpha=0.15)
        axes.axhline(0, color=NOTE, linewidth=0.6)
        axes.set_ylim(-1, 1)
        label_axes(axes, contrast, "point-biserial r")
        layer_axis(axes)
    add_legend(shown[0])
    write_note(
        figure, f"{model}; bands: 95% intervals. Above 0: memorised passages are compressed more. {_about(found)}"
    )
    return figure


def plot_roc(found: Memorization) -> Figure:
    """ROC curves of the loss, the primary score and the density at the verdict's layer, a panel a contrast."""
    model, matrix = next(iter(found.matrices.items()))
    labels, column = _labels(found, model), _column(found, model)
    compared = {"-loss": "loss", "relative, re-run": column, "density": column.replace(PRIMARY, "density_mean")}
    contrasts = found.settings["compared"]
    figure, shown = panels(len(contrasts), 2.9)
    for axes, contrast in zip(shown, contrasts, strict=True):
        rows, positive = split(labels, contrast)
        for color, (name, key) in zip(COLORS, compared.items(), strict=False):
            values = matrix[key].to_numpy()[rows]
            kept = np.isfinite(values)
            if positive[kept].any() and (~positive[kept]).any():
                false, true = _roc(values[kept], positive[kept])
                axes.plot(false, true, label=name, color=color, linewidth=1.2)
        axes.plot([0, 1], [0, 1], color=NOTE, linewidth=0.6, linestyle=":")
        add_legend(axes)
        label_axes(axes, contrast.name, "true positives")
        axes.set_xlabel("false positives", fontsize=FONT)
    write_note(figure, f"{model}; areas with intervals are in the tables. {_about(found)}")
    return figure


def _roc(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(labels, values)
    return false, true


def plot_dose_response(found: Memorization) -> Figure:
    """Left: loss and labels over dose. Right: rank correlation of dose with each score at each layer."""
    models = list(found.matrices)
    figure, shown = panels(2 * len(models), 2.7, wide=2)
    for number, model in enumerate(models):
        doses, curves = shown[2 * number], shown[2 * number + 1]
        table = where(found.doses, model=model)
        for name, color in (("free", COLORS[0]), ("forced_match", COLORS[1]), ("run", COLORS[2])):
            doses.plot(range(len(table)), table[name], label=name, color=color, marker="o", markersize=3)
        doses.set_xticks(range(len(table)), table["dose"].astype(int), fontsize=FONT - 1)
        add_legend(doses)
        label_axes(doses, f"{model}: labels", "share")
        doses.set_xlabel("dose", fontsize=FONT)
        response = where(found.dose_response, model=model)
        for measure, name, style in CURVES:
            rows = where(response, measure=measure).sort_values("layer")
            curves.plot(rows["layer"], rows["rho"], label=name, linewidth=1.3, markersize=3, **style)
            curves.fill_between(rows["layer"], rows["low"], rows["high"], color=style["color"], alpha=0.15)
        curves.axhline(0, color=NOTE, linewidth=0.6)
        add_legend(curves)
        label_axes(curves, f"{model}: dose and score", f"Spearman's {RHO} with dose")
        layer_axis(curves)
    write_note(figure, f"Bands: 95% intervals. {_about(found)}")
    return figure


def plot_effect(found: Memorization) -> Figure:
    """Difference in differences by layer: what training on passages changes beyond what it changes everywhere."""
    plans = list(dict.fromkeys(found.effect["plan"]))
    figure, shown = panels(2 * len(plans), 2.7, wide=2)
    for number, plan in enumerate(plans):
        pairs = ((PRIMARY, "lookup_relative_mean"), ("raw_mean", "density_mean"))
        for axes, names in zip(shown[2 * number : 2 * number + 2], pairs, strict=True):
            for name, style in zip(names, (RERUN, LOOKUP), strict=True):
                rows = where(found.effect, plan=plan, measure=name).sort_values("layer")
                if rows.empty:
                    continue
                at = rows["layer"].astype(float)
                axes.plot(at, rows["estimate"], label=name, linewidth=1.3, markersize=3, **style)
                axes.fill_between(at, rows["low"], rows["high"], color=style["color"], alpha=0.15)
            axes.axhline(0, color=NOTE, linewidth=0.6)
            add_legend(axes)
            label_axes(axes, f"{plan} exposures", "trained less control (nats)")
            layer_axis(axes)
    runs = len(found.settings["finetuning"]["runs"])
    note = f"(After - before) of trained quotes less that of controls; {runs} runs, halves exchanged."
    write_note(figure, f"{note} Bands: 95% intervals over passages.")
    return figure


def plot_dynamics(found: Memorization) -> Figure:
    """Loss, match and relative score over the epochs of one run, a line a group."""
    figure, shown = panels(3, 2.7)
    table = found.dynamics
    for axes, name, title in zip(shown, ("loss", "match", "relative"), ("loss (nats)", "match", SCORE), strict=True):
        for color, group in zip(COLORS, dict.fromkeys(table["group"]), strict=False):
            rows: Any = where(table, group=group)
            means = rows.groupby("epoch")[name].mean()
            axes.plot(range(len(means)), means, label=group, color=color, marker="o", markersize=3)
            axes.set_xticks(range(len(means)), means.index, fontsize=FONT - 1)
        label_axes(axes, name, title)
        axes.set_xlabel("epoch (times each trained passage was seen)", fontsize=FONT)
    add_legend(shown[0])
    write_note(figure, "One run, 16 exposures. The relative score is the mean over layers.")
    return figure


def _labels(found: Memorization, model: str) -> pd.DataFrame:
    return where(found.labels, model=model).reset_index(drop=True)


def _column(found: Memorization, model: str) -> str:
    """The primary measure at the layer of the first verdict; of another model at the same relative depth."""
    layer = found.verdicts["layer"].dropna()
    mine = [int(name.partition(".L")[2]) for name in found.matrices[model].columns if name.startswith(f"{PRIMARY}.L")]
    first = [
        int(name.partition(".L")[2])
        for name in next(iter(found.matrices.values())).columns
        if name.startswith(f"{PRIMARY}.L")
    ]
    depth = (float(layer.iloc[0]) if len(layer) else first[-1]) / max(1, max(first))
    return f"{PRIMARY}.L{min(mine, key=lambda one: abs(one - depth * max(mine)))}"


def _layer_words(column: str) -> str:
    name, _, layer = column.partition(".L")
    return f"{name.replace('_', ' ')}, layer {layer}" if layer else name


def _about(found: Memorization) -> str:
    return f"{found.settings['passages']}; {found.settings['primary']}."
