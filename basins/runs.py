"""A run folder: what was run, its numbers and its pictures, written as a whole or not at all.

run.json         every setting, versions, model fingerprint, seed, command, date, the input's hash, counts
scores.parquet   one row for every (layer, sequence, position), with the text it came from
scores/          the complete BasinScores, for BasinScores.load
layers.png .pdf  medians and quartiles across layers
tokens.html      tokens coloured by relative score; opens without a network
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basins import __version__, named_texts, plots, tokens_view
from basins.errors import BasinsError, MissingExtra
from basins.folders import check_new, new_folder
from basins.scores import BasinScores

if TYPE_CHECKING:
    import pandas as pd

MANIFEST = "run.json"
PICTURE_PACKAGES = ("matplotlib", "circuitsvis")


@dataclass(frozen=True)
class Run:
    """A run folder that was read: `manifest` is its run.json."""

    folder: Path
    manifest: dict[str, Any]
    scores: BasinScores

    def __repr__(self) -> str:
        return f"Run({self.folder}, {self.manifest['date']})\n{self.scores}"


def check_run_folder(folder: str | Path, pictures: bool = True) -> Path:
    """Before a long computation: raise BasinsError if `write_run` could not write there afterwards."""
    folder = check_new(folder)
    if pictures:
        check_pictures()
    return folder


def check_pictures() -> None:
    """Raise MissingExtra where what draws is not installed."""
    for package in PICTURE_PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "view")


def describe_input(source: str | Path) -> dict[str, Any]:
    """What texts were read from: a file with its size and SHA-256, or the name of a dataset, with its licence where
    basins knows it."""
    name, copy = named_texts.parse(str(source)) or ("", None)
    path = copy or Path(source).expanduser()
    if name:
        known = {"name": name, "licence": named_texts.NAMED[name].licence}
        local = named_texts.local_copy(name, copy) if copy else None
        return known | (describe_input(local) if local and local.is_file() else {})
    if not path.is_file():
        return {"name": str(source)}
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return {"file": str(path.absolute()), "bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def write_run(
    folder: str | Path,
    scores: BasinScores,
    *,
    source: dict[str, Any] | None = None,
    command: str | None = None,
    seconds: float | None = None,
    tables: dict[str, pd.DataFrame] | None = None,
    names: dict[int, str] | None = None,
    pictures: bool = True,
) -> Path:
    """Write a new run folder. On any failure (a full disk, Ctrl-C) nothing is left under its name.

    `source`: what `describe_input` says; `command`: the command line; `seconds`: how long scoring took; `tables`: more
    tables, each written as NAME.csv; `names`: what the token page calls a sequence. `pictures=False` needs no extra.
    """
    folder = check_run_folder(folder, pictures)
    with new_folder(folder) as temporary:
        scores.save(temporary / "scores")
        frame = _frame(scores)
        frame.to_parquet(temporary / "scores.parquet", index=False)
        for name, table in (tables or {}).items():
            table.to_csv(temporary / f"{name}.csv", index=False)
        if pictures:
            plots.save(plots.plot_layers(scores, wide=True), temporary / "layers.png")
            plots.save(plots.plot_layers(scores), temporary / "layers.pdf")
            tokens_view.save_html(scores, temporary / "tokens.html", names=names)
        manifest = _manifest(scores) | {"input": source, "command": command, "seconds": seconds}
        manifest["files"] = sorted(str(path.relative_to(temporary)) for path in temporary.rglob("*") if path.is_file())
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
    return folder


def read_run(folder: str | Path) -> Run:
    """Read what `write_run` wrote."""
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise BasinsError(f"{folder} has no {MANIFEST}: it is not a run folder. basins score --out FOLDER writes one.")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BasinsError(f"{folder / MANIFEST} is damaged ({error}).") from error
    return Run(folder, manifest, BasinScores.load(folder / "scores"))


def _frame(scores: BasinScores) -> pd.DataFrame:
    frame = scores.to_frame()
    text_ids = _text_ids(scores)
    if text_ids is not None:
        frame.insert(2, "text_id", [text_ids[sequence] for sequence in frame["sequence"]])
    return frame


def _text_ids(scores: BasinScores) -> list[int] | None:
    tokenization = scores.settings.get("tokenization")
    return tokenization.get("text_ids") if isinstance(tokenization, dict) else None


def _manifest(scores: BasinScores) -> dict[str, Any]:
    text_ids = _text_ids(scores)
    # What belongs to single sequences stands in the tables and in scores/, not here.
    settings = {name: value for name, value in scores.settings.items() if name != "real_positions"}
    if text_ids is not None:
        settings["tokenization"] = {k: v for k, v in settings["tokenization"].items() if k != "text_ids"}
    versions = {"basins": __version__} | settings.pop("versions", {})
    versions.pop("compression-basins", None)  # the same, where it is installed
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model": settings.get("model"),
        "model_fingerprint": settings.get("model_fingerprint"),
        "seed": settings.get("seed"),
        "versions": versions,
        "counts": {
            "texts": len(set(text_ids)) if text_ids is not None else None,
            "sequences": scores.values.shape[1],
            "tokens": int(scores.real_tokens().sum()),
            "scored_at_each_layer": {
                str(layer): int(values.isfinite().sum())
                for layer, values in zip(scores.layers, scores.values, strict=True)
            },
        },
        "settings": settings,
    }
