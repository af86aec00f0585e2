"""The models of an experiment, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from basins.errors import BasinsError
from basins.lens import check_model, model_name
from basins.models import load_model


def load_models(model: Any, second: Any) -> dict[str, Any]:
    """Name -> model, the first first."""
    if isinstance(second, str) and second == "auto":
        second = "pocket-mini" if isinstance(model, str) and model == "pocket" else None
    loaded: dict[str, Any] = {}
    for one in (model, second):
        if one is None:
            continue
        named = isinstance(one, (str, Path))
        found = load_model(one) if named else one
        check_model(found)
        name = Path(one).name if named else model_name(found)
        if name in loaded:
            raise BasinsError(f"Both models are {name!r}. The second one shows whether a finding holds elsewhere.")
        loaded[name] = found
    return loaded
