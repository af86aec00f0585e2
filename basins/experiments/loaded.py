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
    paths = [Path(one) for one in (model, second) if isinstance(one, (str, Path))]
    # Checkpoints of two runs are often called alike: then their folders belong to the name.
    alike = len(paths) == 2 and paths[0].name == paths[1].name
    for one in (model, second):
        if one is None:
            continue
        if isinstance(one, NamedModel):
            name, found = one.name, one.model
        elif isinstance(one, (str, Path)):
            name, found = "/".join(Path(one).parts[-2:]) if alike else Path(one).name, load_model(one)
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
    return {name: scores.settings[name] for name in kept} | {"layers": list(scores.layers)}


def layers_in_words(models: dict[str, dict[str, Any]]) -> str:
    """ "all layers of pocket and layers 1, 2 of gpt2", from what `about_model` says of each."""
    kinds: dict[str, list[str]] = {}
    for name, about in models.items():
        whole = len(about["layers"]) == about["n_layers"]
        kinds.setdefault("all layers" if whole else f"layers {', '.join(map(str, about['layers']))}", []).append(name)
    return " and ".join(f"{layers} of {' and '.join(names)}" for layers, names in kinds.items())
