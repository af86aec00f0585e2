"""Real text that is too big, or not free enough, to be in the repository: found where it is, or the test is skipped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

# Beside the repository; BASINS_SHARED_DATA names another place.
FOLDER = Path(os.environ.get("BASINS_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


def real(name: str) -> Path:
    """A file or folder of real text; skips the test where there is none."""
    if (FOLDER / name).exists():
        return FOLDER / name
    return pytest.skip(f"needs {name} (not in the repository; BASINS_SHARED_DATA names the folder that has it)")


def nltk_with_data() -> Any:
    """NLTK, which finds its data; skips the test otherwise."""
    nltk = pytest.importorskip("nltk")
    folder = str(real("nltk_data").resolve())
    if folder not in nltk.data.path:
        nltk.data.path.insert(0, folder)
    return nltk
