"""Scores -> figures: medians and quartiles across layers, and one layer's tokens. Nothing else is computed here.

Figures are made without pyplot: no global state, nothing to close. matplotlib loads at first use.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from basins.errors import BasinsError, MissingExtra
from basins.scores import LEAST_DISTINCT

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from basins.scores import BasinScores

NOTE = "#444444"
RHO, MINUS = "ρ", "−"  # noqa: RUF001
# Okabe and Ito's palette, told apart with any colour vision; line styles and markers do without colour.
RERUN: dict[str, Any] = {"color": "#0072B2", "marker": "o", "linestyle": "-"}
LOOKUP: dict[str, Any] = {"color": "#D55E00", "marker": "s", "linestyle": "--"}
DENSITY: dict[str, Any] = {"color": NOTE, "marker": "^", "linestyle": ":"}
COLUMN, PAGE = 3.4, 10.0  # inches: one column of a two-column paper, a whole page or screen
FONT = 8
# A first layer that lies this many times the other layers' range away from them is written down, not drawn to scale.
FAR = 1.0


def plot_layers(scores: BasinScores, layers: int | Iterable[int] | None = None, wide: bool = False) -> Figure:
    """Median (line) and quartiles (band) over tokens of each score, at every layer. Returns a matplotlib figure.

    Three panels: the relative and the update score, which show what the block does, and the raw score beside -ln V_in,
    the density before the block, which it follows. Re-running stands beside looking up where both are known. All in
    nats. Tokens with fewer than 3 distinct states are left out and counted in the note. The embedding's transition
    (layer 0) may be far off; it is then given in words, so that the others can be read.

    `layers`: those to show; None: all. `wide`: three panels in a row (10 inches) instead of a column (3.4 inches).
    """
    rows = _rows(scores, layers)
    at = [scores.layers[i] for i in rows]
    keep = _kept(scores)
    figure = new_figure(PAGE if wide else COLUMN, 3.1 if wide else 6.3)
    grid: Any = figure.subplots(*((1, 3) if wide else (3, 1)), sharex=True)
    does, writes, raw = grid
    rerun = "lookup" if scores.settings["method"] == "lookup" else "re-run"
    own = LOOKUP if rerun == "lookup" else RERUN
    for axes, name in ((does, "relative"), (writes, "update"), (raw, "raw")):
        curves = [(rerun, getattr(scores, name), own)]
        if scores.lookup is not None:
            curves.append(("lookup", getattr(scores.lookup, name), LOOKUP))
        if axes is raw:
            curves.append(("density before the block", scores.density, DENSITY))
        _curves(axes, at, [(label, _quartiles(value, keep)[:, rows], style) for label, value, style in curves])
    label_axes(does, "Relative: what the block does", r"$\ln(V_{in}/V_{out})$ (nats)")
    label_axes(writes, "Update: what the block writes", r"$-\ln V_{upd}$ (nats)")
    label_axes(raw, f"Raw, beside density{_rho(scores, rows)}", r"$-\ln V$ (nats)")
    for axes in grid if wide else [raw]:
        axes.set_xlabel("layer (transition L to L+1)", fontsize=FONT)
    write_note(figure, f"Median and quartiles of {_note(scores, keep[rows])}")
    return figure


def plot_scatter(scores: BasinScores, layer: int) -> Figure:
    """One layer, a dot a token: raw against the density before the block; relative by re-running against by looking up.

    The dashed line is y = x. The second panel needs `scores.lookup`. Spearman's rho from `scores.summary()`.
    """
    i = scores.layer_index(layer)
    keep = _kept(scores)[i]
    panels = [(scores.density, scores.raw, "density before the block, $-\\ln V_{in}$", "raw, $-\\ln V_{out}$")]
    rhos = ["rho(raw, density)"]
    if scores.lookup is not None:
        panels.append((scores.lookup.relative, scores.relative, "relative, lookup", "relative, re-run"))
        rhos.append("rho(relative, lookup)")
    figure = new_figure(COLUMN * len(panels), 3.2)
    summary = scores.summary().iloc[i]
    grid: Any = figure.subplots(1, len(panels), squeeze=False)
    for axes, (across, up, xlabel, ylabel), rho in zip(grid[0], panels, rhos, strict=True):
        x, y = across[i][keep].numpy(), up[i][keep].numpy()
        axes.scatter(x, y, s=5, alpha=0.4, linewidths=0, color=RERUN["color"], rasterized=True)
        axes.axline((0, 0), slope=1, color=DENSITY["color"], linestyle="--", linewidth=0.8, zorder=0)
        axes.set_xlim(*_span(x))
        axes.set_ylim(*_span(y))
        axes.set_xlabel(f"{xlabel} (nats)", fontsize=FONT)
        label_axes(axes, f"Spearman's {RHO} = {summary[rho]:.2f}", f"{ylabel} (nats)")
        plain_axes(axes)
    write_note(figure, f"Layer {scores.layers[i]}, {_note(scores, keep[None])}")
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure in the format of the path's suffix (png, pdf, svg); letters in PDFs stay letters."""
    import matplotlib

    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}):
        figure.savefig(path)
    return Path(path)


def new_figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "view") from error
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")

    def png() -> bytes:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return buffer.getvalue()

    # Notebooks ask this of a figure that pyplot does not know.
    figure._repr_png_ = png  # type: ignore[attr-defined]
    return figure


def _rows(scores: BasinScores, layers: int | Iterable[int] | None) -> list[int]:
    if layers is None:
        return list(range(len(scores.layers)))
    wanted = [layers] if isinstance(layers, int) else list(layers)
    if not wanted:
        raise BasinsError(f"layers is empty. Scored: {', '.join(map(str, scores.layers))}; None shows all of them.")
    return sorted({scores.layer_index(layer) for layer in wanted})


def _kept(scores: BasinScores) -> Bool[Tensor, "layer batch pos"]:
    return (scores.n_distinct >= LEAST_DISTINCT) & scores.relative.isfinite()


def _quartiles(
    value: Float[Tensor, "layer batch pos"], keep: Bool[Tensor, "layer batch pos"]
) -> Float[Tensor, "3 layer"]:
    kept = value.double().masked_fill(~keep, float("nan")).flatten(1)
    return kept.nanquantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=1)


def _curves(axes: Axes, at: list[int], curves: list[tuple[str, Float[Tensor, "3 layer"], dict[str, Any]]]) -> None:
    """Draw the curves; a first layer far from all others goes into words at the edge."""
    from matplotlib.ticker import MaxNLocator

    drawn = slice(1, None) if _first_is_far(torch.stack([values for _, values, _ in curves])) else slice(None)
    for label, values, style in curves:
        low, middle, high = values[:, drawn].numpy()
        x = at[drawn]
        axes.plot(x, middle, label=label, linewidth=1.4, markersize=3.5, **style)
        axes.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
    axes.set_xlim(at[0] - 0.4, at[-1] + 0.4)
    axes.margins(y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if drawn.start:
        words = ", ".join(f"{label.partition(' ')[0]} {float(values[1, 0]):.1f}" for label, values, _ in curves)
        words = f"off scale, layer {at[0]}: {words}".replace("-", MINUS).replace(f"re{MINUS}", "re-")
        axes.text(0, 1.02, words, fontsize=FONT - 2, color=NOTE, transform=axes.transAxes)
    axes.legend(fontsize=FONT - 2, frameon=False)
    plain_axes(axes)


def label_axes(axes: Axes, title: str, ylabel: str) -> None:
    axes.set_title(title, fontsize=FONT, loc="left", pad=FONT + 4)
    axes.set_ylabel(ylabel, fontsize=FONT)


def panels(n: int, height: float, wide: int = 3) -> tuple[Figure, list[Axes]]:
    """A page of `n` panels, `wide` in a row, each `height` inches high."""
    columns = min(n, wide)
    n_rows = -(-n // columns)
    figure = new_figure(PAGE, height * n_rows + 0.5)
    grid: Any = figure.subplots(n_rows, columns, squeeze=False)
    for axes in grid.flat[n:]:
        axes.remove()
    for axes in grid.flat[:n]:
        plain_axes(axes)
    return figure, list(grid.flat[:n])


def layer_axis(axes: Axes, label: str = "layer") -> None:
    """Whole numbers along the bottom."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(label, fontsize=FONT)


def heat_map(figure: Figure, axes: Axes, table: pd.DataFrame, full: float, colours: str, digits: int) -> None:
    """A cell with its number for each row and layer of `table`; colours are full at -`full` and `full`."""
    image = axes.imshow(table.to_numpy(), vmin=-full, vmax=full, cmap=colours, aspect="auto")
    axes.set_yticks(range(len(table)), list(table.index), fontsize=FONT - 1)
    axes.set_xticks(range(table.shape[1]), list(table.columns), fontsize=FONT - 1)
    for i, row in enumerate(table.to_numpy()):
        for j, value in enumerate(row):
            if not math.isnan(value):
                ink = "white" if abs(value) > 0.6 * full else "black"
                axes.text(j, i, f"{value:.{digits}f}", ha="center", va="center", fontsize=FONT - 2, color=ink)
    axes.set_xlabel("layer", fontsize=FONT)
    figure.colorbar(image, ax=axes).ax.tick_params(labelsize=FONT - 1)


def add_legend(axes: Axes, size: int = FONT - 2) -> None:
    """A legend where something is drawn; matplotlib warns of an empty one."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=size, frameon=False)


def plain_axes(axes: Axes) -> None:
    axes.tick_params(labelsize=FONT - 1)
    axes.spines[["top", "right"]].set_visible(False)


def _first_is_far(values: Float[Tensor, "curve 3 layer"]) -> bool:
    if values.shape[2] < 3:
        return False
    first, rest = values[:, :, 0], values[:, :, 1:]
    rest = rest[rest.isfinite()]
    if not len(rest) or not bool(first.isfinite().any()):
        return False
    room = FAR * float(rest.max() - rest.min())
    first = first[first.isfinite()]
    return bool((first < rest.min() - room).any() or (first > rest.max() + room).any())


def _rho(scores: BasinScores, rows: list[int]) -> str:
    rho = scores.summary()["rho(raw, density)"].iloc[rows].dropna()
    if rho.empty:
        return ""
    low, high = f"{rho.min():.2f}", f"{rho.max():.2f}"
    return f": Spearman's {RHO} {low}" + (f" to {high}" if high != low else "")


def _note(scores: BasinScores, keep: Bool[Tensor, "layer batch pos"]) -> str:
    """Which tokens a figure shows, and which it leaves out."""
    settings = scores.settings
    counts = keep.flatten(1).sum(1)
    low, high = int(counts.min()), int(counts.max())
    shown = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    few = int(scores.values.isfinite().flatten(1).sum(1).max()) - low
    first = settings.get("left_out_first", 0)
    left_out = [f"{first:,} first positions"] if first else []
    left_out.append(f"{'up to ' if low != high else ''}{few:,} with fewer than {LEAST_DISTINCT} distinct states")
    return (
        f"{shown} tokens{' a layer' if len(counts) > 1 else ''}; left out: {', '.join(left_out)}. "
        f"{settings.get('model', 'model')}, k = {settings['k']}, {settings['neighbors']} neighbours."
    )


def write_note(figure: Figure, note: str) -> None:
    """Below everything, as wide as the figure."""
    lines = textwrap.wrap(note, int(22 * figure.get_figwidth()))
    figure.supxlabel("\n".join(lines), fontsize=FONT - 2, color=NOTE, x=0.02, ha="left")


def _span(values: Any) -> tuple[float, float]:
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room
