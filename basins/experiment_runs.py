"""The folder that an experiment leaves: everything it found, written as a whole or not at all.

run.json          question, thresholds, every setting, versions, model fingerprints, command, date
verdict.md        what was asked, what was stated before the run, the verdict, the reading
tables/           every table as parquet and as CSV
statistics.json   the same numbers for a program
tokens/           one parquet a model: all columns of every (layer, sequence, position)
figures/          png and pdf; tokens.html opens without a network
"""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import fields, is_dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basins import __version__, plots
from basins.folders import new_folder
from basins.runs import MANIFEST, check_run_folder

if TYPE_CHECKING:
    import pandas as pd


def ready(experiment: str, folder: str | Path, pictures: bool) -> Path:
    """Before a long run: the folder can be written, and what draws the figures is loaded and not missing or broken."""
    folder = check_run_folder(folder, pictures)
    for part in ("plots", "view") if pictures else ():
        importlib.import_module(f"basins.{experiment}_{part}")
    return folder


def tables_of(found: Any) -> dict[str, pd.DataFrame]:
    """The result's tables: its fields that are frames."""
    values = {field.name: getattr(found, field.name) for field in fields(found)}
    return {name: value for name, value in values.items() if hasattr(value, "to_parquet") and len(value)}


def write(
    found: Any, folder: str | Path, *, pictures: bool = True, command: str | None = None, seconds: float | None = None
) -> Path:
    """Write an experiment's result into a new folder. On any failure nothing is left under its name."""
    folder = check_run_folder(folder, pictures)
    tables = tables_of(found)
    with new_folder(folder) as temporary:
        for part in ("tables", "tokens", "figures") if pictures else ("tables", "tokens"):
            (temporary / part).mkdir()
        for name, table in tables.items():
            table.to_parquet(temporary / "tables" / f"{name}.parquet", index=False)
            table.to_csv(temporary / "tables" / f"{name}.csv", index=False)
        for model, frame in found.tokens.items():
            # A hub name has a slash in it.
            frame.to_parquet(temporary / "tokens" / f"{model.replace('/', '_')}.parquet", index=False)
        statistics = {name: _plain(table.to_dict("records")) for name, table in tables.items()}
        _json(temporary / "statistics.json", statistics | {"grade": found.grade, "reading": found.reading})
        if pictures:
            for name, figure in found.figures().items():
                plots.save(figure, temporary / "figures" / f"{name}.png")
                plots.save(figure, temporary / "figures" / f"{name}.pdf")
            page = found.token_page()
            if page is not None:
                (temporary / "figures" / "tokens.html").write_text(page, encoding="utf-8")
        (temporary / "verdict.md").write_text(markdown(found), encoding="utf-8")
        about = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "basins": __version__}
        about |= {"command": command, "seconds": seconds, "grade": found.grade, "reading": found.reading}
        files = sorted(str(path.relative_to(temporary)) for path in temporary.rglob("*") if path.is_file())
        _json(temporary / MANIFEST, about | _plain(found.settings) | {"files": files})
    return folder


def markdown(found: Any) -> str:
    """The verdict as a page of text."""
    settings = found.settings
    lines = [f"# {settings['experiment'].capitalize()}", "", settings["question"], "", "## Stated before the run", ""]
    lines += [f"- Primary analysis: {settings['primary']}.", f"- Grades: {settings['thresholds']}"]
    lines += ["", "## What was found", "", f"**{found.grade}.** {found.reading}", ""]
    lines += [markdown_table(found.verdicts), ""]
    return "\n".join(lines)


def markdown_table(frame: pd.DataFrame) -> str:
    """A frame as a table in Markdown."""
    rows = [list(frame.columns), ["---"] * len(frame.columns)]
    rows += [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3g}"
    return str(value)


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def _plain(value: Any) -> Any:
    """Without NaN, which is not JSON (null), NumPy scalars and tuples."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if is_dataclass(value):
        return _plain(vars(value))
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
