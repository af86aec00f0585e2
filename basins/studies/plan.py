"""What a study is about, written down before it runs, and compared when it is taken up again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from basins import __version__
from basins.errors import BasinsError
from basins.experiments.loaded import NamedModel
from basins.experiments.primary import in_words
from basins.lens import block_device, fingerprint, n_layers
from basins.runs import describe_input
from basins.studies.grades import RULES
from basins.studies.hypotheses import FLAGS
from basins.studies.parts import Part, Shared

PLAN = "study.json"
# These may differ between the runs that a study is made in.
FREE = ("date", "command", "device")


def make_plan(shared: Shared, parts: tuple[Part, ...], options: dict[str, Any], scorer: dict[str, Any]) -> dict:
    """Everything that the numbers will depend on, as JSON has it."""
    models = [one for one in (shared.first, shared.second) if one is not None]
    about = {
        "basins": __version__,
        "models": {one.name: {"fingerprint": fingerprint(one.model), "layers": n_layers(one.model)} for one in models},
        "texts": _texts(shared.texts),
        "limit": shared.limit,
        "max_length": shared.max_length,
        "k": shared.k,
        "layers": "all" if shared.layers is None else shared.layers,
        "parts": {part.name: part.title for part in parts},
        "options": {part: {name: _named(one) for name, one in some.items()} for part, some in options.items()},
        "primary": in_words(scorer),
        "thresholds": {part.name: part.thresholds for part in parts},
        "grades": RULES,
        "flags": FLAGS,
        "seed": shared.seed,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": str(block_device(shared.first.model, 0)),
    }
    return json.loads(json.dumps(about, default=_digest))


def _texts(texts: list[str] | str | None) -> Any:
    if texts is None or isinstance(texts, str | os.PathLike):
        return "the shipped book" if texts is None else _named(texts)
    return {"texts": len(texts)} | _digest("\0".join(texts))


def _named(value: Any) -> Any:
    """A name with the digest of the file that it stands for, which may be another one when the study goes on."""
    if not isinstance(value, str | os.PathLike):
        return value
    about = describe_input(os.fspath(value))
    return {"file": os.fspath(value), "sha256": about["sha256"]} if "sha256" in about else os.fspath(value)


def _digest(value: Any) -> Any:
    """What JSON has no form for: its class, and a digest of what is in it (of kinds not named here, of its text)."""
    import pandas as pd

    if isinstance(value, pd.DataFrame | pd.Series):
        content = value.to_csv(index=False).encode()
    elif isinstance(value, Tensor | np.ndarray):
        content = repr(value.tolist()).encode()
    elif isinstance(value, NamedModel) or hasattr(value, "cfg"):
        content = fingerprint(getattr(value, "model", value)).encode()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    else:
        content = str(value).encode()
    return {"kind": type(value).__name__, "sha256": hashlib.sha256(content).hexdigest()}


def start_or_resume(folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Write the plan into a new folder, or find the same plan in it; the plan as it lies there, with its date."""
    place = folder / PLAN
    if place.is_file():
        found = _read(place)
        differ = [name for name in plan if name not in FREE and plan[name] != found.get(name)]
        if differ:
            said = "; ".join(f"{name} was {found.get(name)!r:.120} and is {plan[name]!r:.120}" for name in differ)
            raise BasinsError(
                f"{folder} holds another study: {said}. Nothing was written. Choose another folder, or give the same "
                "settings again to go on with it."
            )
        return found
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BasinsError(f"{folder} exists and holds no {PLAN}: it is not a study. Choose another folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(place, json.dumps(plan, indent=1, ensure_ascii=False))
    except OSError as error:
        raise BasinsError(f"{folder} cannot be written ({error}). Choose another folder.") from error
    return plan


def _read(place: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(place.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BasinsError(
            f"{place} is no plan of a study ({error}): it is damaged, or another program's. Choose another folder, or "
            "remove this one to begin anew."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Written as a whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
