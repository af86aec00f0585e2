"""What a study leaves in its folder beside the parts' own folders.

study.json       what was asked and every threshold, written before anything ran
analysis.md      what was asked, done and found, in words
tables/          hypotheses as parquet and CSV
statistics.json  the same for a program, with grade and reasons
figures/         the summary and the parts' main figures, png and pdf
scores/          scores that parts share; may be deleted
"""

from __future__ import annotations

import json
import math
import shutil
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from basins import plots
from basins.settings import versions
from basins.studies.analysis import analysis
from basins.studies.plan import write_text
from basins.studies.summary_plot import plot_summary

if TYPE_CHECKING:
    from pathlib import Path

    from basins.studies.whole import Study

SUFFIXES = (".png", ".pdf")


def write_study(found: Study, *, pictures: bool, command: str | None) -> None:
    """Write all of it. The parts' folders are whole already; what is here is made anew from them each time."""
    tables = found.folder / "tables"
    tables.mkdir(exist_ok=True)
    for suffix, save in ((".parquet", found.hypotheses.to_parquet), (".csv", found.hypotheses.to_csv)):
        temporary = tables / f".hypotheses{suffix}"
        save(temporary, index=False)
        temporary.replace(tables / f"hypotheses{suffix}")
    shown = _figures(found) if pictures else []
    records = [{name: _plain(value) for name, value in row.items()} for row in found.hypotheses.to_dict("records")]
    about = {"grade": found.grade, "why": found.why, "hypotheses": records}
    about |= {"command": command, "seconds_of_this_run": found.seconds, "versions": versions()}
    about |= {"seconds": {name: part.manifest.get("seconds") for name, part in found.parts.items()}}
    about |= {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "figures": shown}
    write_text(found.folder / "statistics.json", json.dumps(about, indent=1, ensure_ascii=False, allow_nan=False))
    write_text(found.folder / "analysis.md", analysis(found, shown, command))


def _figures(found: Study) -> list[str]:
    """Names of the figures, in order: the summary, then each part's first ones, copied from its folder."""
    folder = found.folder / "figures"
    folder.mkdir(exist_ok=True)
    summary = plot_summary(list(found.parts.values()))
    for suffix in SUFFIXES:
        plots.save(summary, folder / f"00_summary{suffix}")
    names = ["00_summary"]
    for part in found.parts.values():
        for figure in part.part.figures:
            name = f"{len(names):02d}_{part.part.name}_{figure}"
            if _copy(part.folder / "figures" / figure, folder / name):
                names.append(name)
    return names


def _copy(source: Path, target: Path) -> bool:
    for suffix in SUFFIXES:
        if not source.with_suffix(suffix).is_file():
            return False
        shutil.copyfile(source.with_suffix(suffix), target.with_suffix(suffix))
    return True


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
