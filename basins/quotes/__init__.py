"""Short passages for controlled fine-tuning: 100 quotes from Shakespeare's plays and 50 pieces of an unrelated novel.

All are whole sentences of 32 to 44 words, in the public domain, cut by benchmarks/quotes_data.py from books in that
folder; no two share a run of 8 words. The plays are in the training text of the pocket models and of nearly every other
model. So being familiar says nothing here; only what the draw decided (`basins.controlled.randomize`) does. The novel
(Chesterton, The Man Who Was Thursday) is the one book that the pocket models were not trained on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).parent / "files" / "passages.jsonl"


@dataclass(frozen=True)
class Quote:
    """`work`: play or book. `speaker`: who says it; "" in the novel. `char_start`: its place in the source's file."""

    text: str
    author: str
    work: str
    speaker: str
    char_start: int
    licence: str


def quotes() -> list[Quote]:
    """100 quotes, each from another speech of nine of Shakespeare's plays."""
    return _read("William Shakespeare")


def unrelated() -> list[Quote]:
    """50 pieces of prose, each from another paragraph of one novel."""
    return _read("G. K. Chesterton")


def _read(author: str) -> list[Quote]:
    with open(FILE, encoding="utf-8") as lines:
        return [quote for line in lines if (quote := Quote(**json.loads(line))).author == author]
