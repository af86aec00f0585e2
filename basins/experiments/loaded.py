"""The models of an experiment, by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basins.errors import BasinsError
from basins.lens import check_model, model_name
from basins.models import load_model
from basins.scores import BasinScores


@dataclass(frozen=True)
class NamedModel:
    """A model that is loaded already, and what to call it: several experiments can share it."""

    name: str
    model: Any


def load_models(model: Any, second: Any) -> dict[str, Any]:
    """Name -> model, the first first."""
    if isinstance(second, str) and second == "auto":
        second = "pocket-mini" if isinstance(model, str) and model == "pocket" else None
    loaded: dict[str, Any] = {}
    for one in (model, second):
        if one is None:
            continue
        if isinstance(one, NamedModel):
            name, found = one.name, one.model
        elif isinstance(one, (str, Path)):
            name, found = Path(one).name, load_model(one)
        else:
            name, found = model_name(one) if hasattr(one, "cfg") else "", one
        check_model(found)
        if name in loaded:
            raise BasinsError(f"Both models are {name!r}. The second one shows whether a finding holds elsewhere.")
        loaded[name] = found
    return loaded


def about_model(scores: BasinScores) -> dict[str, Any]:
    """For the record of an experiment: which model gave these scores, and how its blocks were re-run."""
    kept = ("model_fingerprint", "model_dtype", "weight_processing", "n_layers", "d_model", "device", "replay")
    return {name: scores.settings[name] for name in kept}
