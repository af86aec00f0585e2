"""Tables and messages on a terminal, and plain text where there is none."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

    from basins.scores import BasinScores
    from basins.selfcheck import CheckedPath

PIPED_WIDTH = 120
# Between what the block does and what raw repeats.
BAR = "│"
RHO = "ρ"  # noqa: RUF001
RAW = "Raw is not what the block does: it mostly repeats the density before the block"


def open_console(stderr: bool = False) -> Console:
    """As wide as the terminal; 120 columns of plain text (or COLUMNS) in a pipe or a file."""
    stream: Any = sys.stderr if stderr else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")  # a terminal that cannot write ρ shows a question mark
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in console._environ:
        console = Console(stderr=stderr, highlight=False, width=PIPED_WIDTH)
    return console


def layer_table(scores: BasinScores) -> RenderableType:
    """`BasinScores.summary()`, what the blocks do apart from raw and density."""
    frame = scores.summary()
    columns = {
        "layer": "layer",
        "tokens": "tokens",
        "duplicates": "dupli-\ncates",
        "relative": "relative",
        "lookup_relative": "relative\nlookup",
        "rho(relative, lookup)": f"{RHO} with\nlookup",
        "update": "update",
        "rho(relative, density)": f"{RHO} rel.\ndensity",
        "rho(update, density)": f"{RHO} upd.\ndensity",
        BAR: BAR,
        "raw": "raw",
        "density": "density\n-ln V_in",
        "rho(raw, density)": f"{RHO} raw\ndensity",
    }
    shown = {name: title for name, title in columns.items() if name in frame or name == BAR}
    table = _table(f"Each layer: medians over tokens in nats, and Spearman's {RHO}")
    for title in shown.values():
        table.add_column(title, justify="right")
    for row in frame.to_dict("records"):
        table.add_row(*_cells(row, shown, whole=("layer", "tokens", "duplicates"), digits=2))
    caption = (
        f"{RAW} (last column). Relative and update show the block; duplicates (fewer than 3 distinct states) are left "
        "out."
    )
    return _with_caption(table, caption)


def token_table(frame: pd.DataFrame, score: str) -> RenderableType:
    """What `extreme_tokens` found."""
    table = _table(f"Most and least compressed tokens of each layer, by {score} score (nats)")
    numbers = ("relative", "update", BAR, "raw", "density")
    for title in ("layer", "", *numbers):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    table.add_column("token in its context")
    layer = side = None
    for row in frame.to_dict("records"):
        if row["layer"] != layer:
            if layer is not None:
                table.add_section()
            layer, side, head = row["layer"], None, str(row["layer"])
        else:
            head = ""
        ends = "" if row["side"] == side else row["side"]
        side = row["side"]
        words = _in_context(row["before"], row["token"], row["after"])
        table.add_row(head, ends, *_cells(row, numbers, whole=(), digits=2), words)
    return _with_caption(
        table,
        "Left out: first positions, and tokens with fewer than 3 distinct states. A token is listed once a side. "
        f"{RAW}.",
    )


def dose_tables(doses: pd.DataFrame, by_layer: pd.DataFrame) -> list[RenderableType]:
    """Dose against loss and scores, and the relative score of each dose at each layer."""
    table = _table("Dose (times a passage was seen in training) against score")
    names = ["dose", "passages", "loss", "relative", "update", BAR, "raw", "density"]
    for name in names:
        table.add_column(name, justify="right")
    for row in doses.to_dict("records"):
        table.add_row(*_cells(row, names, whole=("dose", "passages"), digits=3))
    caption = (
        "Loss: mean nats a token. Scores: difference from the controls (dose 0), nats, mean over layers but the first. "
        f"{RAW}. So few passages a dose give a look, not a test."
    )
    layers = _table("Dose against the median relative score at each layer (nats)")
    for name in by_layer.columns:
        layers.add_column(str(name), justify="right")
    for row in by_layer.to_dict("records"):
        layers.add_row(*_cells(row, by_layer.columns, whole=("dose",), digits=3))
    return [_with_caption(table, caption), _with_caption(layers, "")]


def replay_table(model: str, paths: dict[int, CheckedPath]) -> RenderableType:
    """The self-check, block by block."""
    table = _table(f"Re-running the blocks of {model}")
    for title, justify in (("layer", "right"), ("path", "left"), ("error", "right"), ("faster paths refused", "left")):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    for layer, checked in paths.items():
        reasons = "; ".join(f"{path}: {reason}" for path, reason in checked.refused.items())
        table.add_row(str(layer), checked.path, f"{checked.error:.2g}", Text(reasons or "-"))
    return _with_caption(
        table,
        "Error: largest difference from the model's own forward pass, in units of what rounding allows (at most 1). "
        "core and packed are fast; single_block and full_model give the same numbers slowly.",
    )


def frame_table(title: str, frame: pd.DataFrame, digits: int = 3) -> RenderableType:
    """A frame as it is: words to the left, numbers to the right."""
    table = _table(title)
    for name in frame.columns:
        table.add_column(str(name), justify="right" if frame[name].dtype.kind in "fiu" else "left")
    for row in frame.itertuples(index=False):
        table.add_row(*(_value(value, digits) for value in row))
    return table


def _value(value: Any, digits: int) -> str:
    if isinstance(value, float):
        return (
            "-"
            if value != value
            else f"{value:,.0f}"
            if value.is_integer() and abs(value) > 1
            else f"{value:.{digits}f}"
        )
    return str(value)


def pair_table(title: str, pairs: Iterable[tuple[str, str]]) -> RenderableType:
    table = _table(title)
    table.show_header = False
    for name, value in pairs:
        table.add_row(Text(name), Text(value))
    return table


def number_table(title: str, rows: Iterable[tuple[str, ...]]) -> RenderableType:
    """A name in front, and numbers to the right of it."""
    rows = list(rows)
    table = _table(title)
    table.show_header = False
    for column in range(max(map(len, rows), default=1)):
        table.add_column(justify="right" if column else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def replay_sentence(settings: dict[str, Any]) -> str:
    """The self-check's result in words."""
    counts: dict[str, int] = settings.get("replay", {})
    if settings["method"] == "lookup" or not counts:
        return "No neighbour was re-run: their outputs were looked up."
    how = {
        "core": "by the re-run core",
        "packed": "by packed replay",
        "single_block": "one call a neighbour",
        "full_model": "one model run a neighbour",
    }
    parts = ", ".join(f"{count} blocks {how.get(path, path)}" for path, count in counts.items())
    sentence = f"Self-check: {parts}; each agrees with the model's own forward pass."
    for layer, refused in settings.get("replay_refused", {}).items():
        sentence += f" Layer {layer}: " + "; ".join(f"{path} was refused, {why}" for path, why in refused.items()) + "."
    return sentence


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _with_caption(table: Table, caption: str) -> RenderableType:
    """A table's own caption would be wrapped to the table's width."""
    return Group(table, Text(f"{caption}\n", style="dim")) if caption else table


def _cells(row: dict[Any, Any], names: Iterable[Any], whole: tuple[str, ...], digits: int) -> list[str]:
    return [BAR if name == BAR else _number(row[name], 0 if name in whole else digits) for name in names]


def _number(value: Any, digits: int) -> str:
    if value != value:
        return "-"
    return f"{value:,.{digits}f}" if digits else f"{int(value):,}"


def _in_context(before: str, token: str, after: str) -> Text:
    one_line = [part.replace("\n", "↵") for part in (before, token, after)]
    return Text.assemble(one_line[0], ("«" + one_line[1] + "»", "bold"), one_line[2])
