"""Every command and Python block of the README runs as printed, and its numbers are those of committed commands."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def numbers_and_words(text: str) -> list[str | float]:
    parts = text.split()
    return [float(part) if re.fullmatch(r"-?\d+(\.\d+)?", part) else part for part in parts]


@pytest.mark.slow
def test_python_blocks_print_what_the_readme_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    shown = 0
    for i, (language, code) in enumerate(BLOCKS):
        if language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"README block {i}", "exec"), namespace)
        follows = BLOCKS[i + 1] if i + 1 < len(BLOCKS) else ("", "")
        if follows[0] == "text":
            got, expected = numbers_and_words(printed.getvalue()), numbers_and_words(follows[1])
            assert len(got) == len(expected), printed.getvalue()
            for a, b in zip(got, expected):
                assert a == (b if isinstance(b, str) else pytest.approx(b, abs=0.02)), printed.getvalue()
            shown += 1
    assert shown >= 2


@pytest.mark.slow
def test_commands_run_as_printed(tmp_path):
    """In a folder of their own. What make does is run by CI itself, from a fresh clone."""
    ran = 0
    by_ci = (ROOT / ".ci" / "run").read_text()
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for language, code in BLOCKS:
        if language != "bash":
            continue
        for line in code.splitlines():
            if line.startswith("make "):
                assert line in by_ci
                continue
            result = subprocess.run(
                shlex.split(line), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
            )
            assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
            ran += 1
    assert ran >= 2
    assert (tmp_path / "runs" / "planted" / "run.json").is_file()


def test_the_table_is_that_of_the_benchmark():
    """Each row of the README's table stands, rounded, in the CSV that the named command wrote."""
    measured = pd.read_csv(ROOT / "benchmarks" / "rerun_against_lookup.csv")
    columns = ["raw, density", "raw, lookup raw", "relative, lookup relative", "update, lookup update", "mean D"]
    rows = re.findall(r"^\| (pocket|SmolLM2-135M) \| (\d+) \| (.*) \|$", README, flags=re.MULTILINE)
    assert len(rows) >= 8
    for model, layer, cells in rows:
        found = measured[measured.model.str.startswith(model) & (measured.layer == int(layer))].iloc[-1]
        assert [float(cell) for cell in cells.split("|")] == pytest.approx([found[c] for c in columns], abs=0.0051)


def test_links_and_pictures_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).is_file(), target


def test_the_tables_of_the_experiments_are_those_of_their_commands():
    """What `python docs/tables.py` prints from the tables that the named commands wrote stands in the README."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    for table in tables.TABLES:
        assert table() in README, table.__name__
