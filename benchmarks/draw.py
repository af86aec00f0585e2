"""Pictures of rows of benchmarks/results.csv: seconds side by side, or against what was changed.

python benchmarks/draw.py "end to end" --device H100 --to docs/end_to_end.png
python benchmarks/draw.py "lookup" --device CPU --to docs/lookup.png
python benchmarks/draw.py "scaling over" --device H100 --to docs/scaling.png    # a panel for each quantity
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measured import CSV

Row = dict[str, str]


def bars(axes: Axes, rows: list[Row]) -> None:
    """Median seconds with a line from the 20th to the 80th percentile."""
    middle = [float(row["seconds_p50"]) for row in rows]
    low = [m - float(row["seconds_p20"]) for m, row in zip(middle, rows, strict=True)]
    high = [float(row["seconds_p80"]) - m for m, row in zip(middle, rows, strict=True)]
    names = [f"{row['implementation']}, {row['dtype']}, {int(row['tokens']):,} tokens" for row in rows]
    colors = ["tab:gray" if "floor" in name else "tab:blue" if "basins" in name else "tab:orange" for name in names]
    axes.barh(range(len(rows)), middle, xerr=[low, high], color=colors)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("seconds")
    axes.set_title(f"{rows[0]['name']}\n{rows[0]['device']}, {rows[0]['date']}", fontsize="medium")


def lines(axes: Axes, rows: list[Row]) -> None:
    """Median seconds against the quantity that `note` begins with."""
    by_name: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        quantity = float(row["note"].split(",")[0].split()[-1])
        by_name.setdefault(row["implementation"], []).append((quantity, float(row["seconds_p50"])))
    for name, points in by_name.items():
        axes.loglog(*zip(*sorted(points), strict=True), "o-", label=name)
    measured = sorted({quantity for points in by_name.values() for quantity, _ in points})
    # At what was measured: a logarithmic axis of less than a decade has labels that lie over each other.
    axes.set_xticks(measured, [short(quantity) for quantity in measured])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    ticks = [tick for tick in (0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10, 20) if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel(rows[0]["name"].removeprefix("scaling over "))
    axes.set_ylabel("seconds")
    axes.legend()


def short(quantity: float) -> str:
    """1048576 -> "1M", 65536 -> "64k"; others as they are."""
    for letter, size in (("M", 2**20), ("k", 2**10)):
        if quantity >= size and quantity % size == 0:
            return f"{quantity / size:.0f}{letter}"
    return f"{quantity:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="what the rows' names begin with")
    parser.add_argument("--device", default="", help="a part of the device's name")
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    with args.csv.open(newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if row["name"].startswith(args.name) and args.device in row["device"]
        ]
    if not rows:
        raise SystemExit(f"no row of {args.csv} is named {args.name}... on a device named ...{args.device}...")
    # Of every name the rows of its last run.
    names = list(dict.fromkeys(row["name"] for row in rows))
    last = {name: [row for row in rows if row["name"] == name] for name in names}
    last = {name: [row for row in some if row["commit"] == some[-1]["commit"]] for name, some in last.items()}
    scaling = args.name.startswith("scaling")
    size = (4 * len(names), 3.6) if scaling else (9, sum(0.4 * len(some) + 1.2 for some in last.values()))
    figure = Figure(figsize=size, layout="constrained")
    shape = (1, len(names)) if scaling else (len(names), 1)
    for axes, some in zip(figure.subplots(*shape, squeeze=False).flat, last.values(), strict=True):
        (lines if scaling else bars)(axes, some)
    figure.savefig(args.to, dpi=110)


if __name__ == "__main__":
    main()
