"""How a result becomes a folder, apart from what any one experiment found."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest

from basins.errors import BasinsError
from basins.experiment_runs import markdown, tables_of, write


@dataclass(frozen=True)
class Found:
    verdicts: pd.DataFrame
    empty: pd.DataFrame
    tokens: dict[str, pd.DataFrame]
    reading: str = "Nothing was found."
    grade: str = "none"
    settings: dict[str, Any] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        raise BasinsError("a figure that cannot be drawn")

    def token_page(self) -> None:
        return None


@pytest.fixture
def found() -> Found:
    verdicts = pd.DataFrame({"contrast": ["a against b"], "r": [float("nan")], "n": [3]})
    settings = {"experiment": "made", "question": "Is it?", "primary": "this", "thresholds": "those"}
    settings |= {"seed": np.int64(3), "share": float("nan"), "layers": (1, 2)}
    return Found(verdicts, pd.DataFrame(), {"org/model": pd.DataFrame({"layer": [0]})}, settings=settings)


def test_the_folder_is_plain_files_and_plain_json(found, tmp_path):
    folder = write(found, tmp_path / "run", pictures=False, command="basins", seconds=1.5)
    manifest = json.loads((folder / "run.json").read_text())
    assert (manifest["seed"], manifest["share"], manifest["layers"], manifest["seconds"]) == (3, None, [1, 2], 1.5)
    assert manifest["files"] == sorted(manifest["files"])
    assert (folder / "tokens" / "org_model.parquet").is_file()
    assert json.loads((folder / "statistics.json").read_text())["verdicts"][0]["r"] is None
    assert pd.read_csv(folder / "tables" / "verdicts.csv")["n"].tolist() == [3]


def test_empty_tables_are_not_written(found):
    assert list(tables_of(found)) == ["verdicts"]


def test_the_page_of_words_says_what_was_stated_before(found):
    page = markdown(found)
    assert (
        page.index("Stated before the run") < page.index("What was found") < page.index("**none.** Nothing was found.")
    )
    assert "| a against b | - | 3 |" in page


def test_a_failure_leaves_nothing(found, tmp_path):
    with pytest.raises(BasinsError, match="cannot be drawn"):
        write(found, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
