"""The built package holds what an installation needs, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_wheel_holds_the_package_and_the_pocket_models(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("compression_basins-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(name for name in archive.namelist() if name.endswith("METADATA"))
        assert "Name: compression-basins" in archive.read(metadata).decode()
    assert all(name.startswith("basins/") for name in names)
    source = {path.relative_to(ROOT).as_posix() for path in (ROOT / "basins").rglob("*.py")}
    assert source == {name for name in names if name.endswith(".py")}
    files = {"pocket.safetensors", "pocket-mini.safetensors", "tokenizer.json", "passages.jsonl"}
    assert {f"basins/pocket/files/{name}" for name in files} <= names
    assert "basins/quotes/files/passages.jsonl" in names
    assert {"basins/natural/files/passages.jsonl", "basins/natural/LICENCES.md"} <= names
    assert "basins/pocket/MODEL_CARD.md" in names or "basins/pocket/files/MODEL_CARD.md" in names
