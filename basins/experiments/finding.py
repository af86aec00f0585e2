"""What the result of every experiment can do: print, draw, save."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basins.scores import BasinScores

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False, kw_only=True)
class Finding:
    """The part that experiments have in common. What draws them is known by name only: it stays downstream.

    `verdicts`: a row a hypothesis, the best grade first. `tokens`: for each model all columns of every (layer,
    sequence, position). `reading` says what was found in a paragraph, also when it is nothing.
    """

    verdicts: pd.DataFrame
    tokens: Mapping[str, pd.DataFrame] = field(repr=False)
    scores: Mapping[str, BasinScores] = field(repr=False)
    reading: str
    grade: str
    settings: dict[str, Any] = field(repr=False)

    def __str__(self) -> str:
        table = self.verdicts.round(3).to_string(index=False)
        return f"{type(self).__name__}: {self.grade}\n{table}\n\n{self.reading}"

    __repr__ = __str__

    def figures(self) -> dict[str, Any]:
        """Name of a file -> matplotlib figure."""
        return importlib.import_module(f"basins.{self.settings['experiment']}_plots").figures(self)

    def token_page(self) -> str | None:
        """An HTML page of tokens, the score beside what it is compared with."""
        return importlib.import_module(f"basins.{self.settings['experiment']}_view").token_page(self)

    def save(self, folder: str | Path, *, pictures: bool = True, command: str | None = None) -> Path:
        """Write tables, statistics, figures, the token page, verdict and reading into a new folder, all or nothing."""
        return importlib.import_module("basins.experiment_runs").write(self, folder, pictures=pictures, command=command)
