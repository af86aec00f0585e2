"""The passages that controlled fine-tuning trains on or keeps back. Run once.

    python benchmarks/quotes_data.py          # writes basins/quotes/files/passages.jsonl

100 quotes from Shakespeare's plays, each from another speech, and 50 pieces of the one book that the pocket models were
not trained on (Chesterton, The Man Who Was Thursday). All are whole sentences of 32 to 44 words. No two share a run of
8 words, and no piece of the book shares one with the planted passages or the demo text of the pocket models. The plays
are part of the pocket models' training text, as they are of nearly every model's: which quotes are trained on is
therefore drawn at random (`basins.controlled.randomize`).
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pocket_data import FILES as POCKET_FILES
from pocket_data import HELD_OUT, TEXT_DIR, read_book, runs, words

OUT = Path(__file__).parents[1] / "basins" / "quotes" / "files" / "passages.jsonl"
N_QUOTES, N_UNRELATED, RUN = 100, 50, 8
SHORTEST, LONGEST = 32, 44  # words
LICENCE = "public domain"

# The collection names no plays. Each begins with the first speech that holds these words.
PLAYS = {
    "Before we proceed any further, hear me speak": "Coriolanus",
    "Now is the winter of our discontent": "Richard III",
    "Old John of Gaunt, time-honour'd Lancaster": "Richard II",
    "Gregory, o' my word, we'll not carry coals": "Romeo and Juliet",
    "I wonder how the king escaped our hands": "Henry VI, Part 3",
    "If you shall chance, Camillo, to visit Bohemia": "The Winter's Tale",
    "Escalus.\n\nESCALUS": "Measure for Measure",
    "I'll pheeze you, in faith": "The Taming of the Shrew",
    "Boatswain!": "The Tempest",
}

# Speeches that readers know come first; the rest is drawn at random.
WELL_KNOWN = (
    "But, soft! what light through yonder window",
    "wherefore art thou Romeo",
    "that which we call a rose",
    "Gallop apace, you fiery-footed steeds",
    "she doth teach the torches to burn bright",
    "I see Queen Mab hath been with you",
    "These violent delights have violent ends",
    "My bounty is as boundless as the sea",
    "Now is the winter of our discontent",
    "I shall despair. There is no creature loves me",
    "I have pass'd a miserable night",
    "let us sit upon the ground",
    "This royal throne of kings",
    "Not all the water in the rough rude sea",
    "The purest treasure mortal times afford",
    "Full fathom five thy father lies",
    "You taught me language",
    "Be absolute for death",
    "To have a giant's strength",
    "I come to wive it wealthily in Padua",
    "My tongue will tell the anger of my heart",
    "Like a dull actor now",
    "I can smile, and murder whiles I smile",
    "heart wrapt in a woman's hide",
    "Our revels now are ended",
)


def speeches(text: str) -> Iterator[tuple[str, int]]:
    """(speaker, where the words begin) of every speech."""
    for match in re.finditer(r"(?:^|(?<=\n\n))([A-Z][^\n:]*):\n", text):
        yield match.group(1), match.end()


def passages_in(text: str) -> list[tuple[int, int]]:
    """(start, end) of runs of whole sentences with 32 to 44 words: the shortest from every start of a sentence."""
    # Verse ends lines with capitals, so a sentence ends only where a stop does.
    ends = [match.end() for match in re.finditer(r"[.!?][\"']*(?=\s|$)", text)]
    starts = [0, *(len(text) - len(text[end:].lstrip()) for end in ends)]
    found = []
    for start in starts:
        fitting = [end for end in ends if end > start and SHORTEST <= len(words(text[start:end])) <= LONGEST]
        if fitting and re.match(r"[\"']?[A-Z]", text[start:]):
            found.append((start, fitting[0]))
    return found


def quotes(text: str, rng: random.Random) -> list[dict[str, Any]]:
    """One candidate a speech, the well-known speeches first, the others shuffled."""
    beginnings = sorted((speech_with(text, opening), play) for opening, play in PLAYS.items())
    marks = [*speeches(text), ("", len(text))]
    candidates = []
    for (speaker, start), (_, following) in itertools.pairwise(marks):
        speech = text[start:following].split("\n\n")[0]
        play = [name for beginning, name in beginnings if beginning <= start][-1]
        spans = passages_in(speech)
        known = [span for span in spans for line in WELL_KNOWN if line in " ".join(speech[slice(*span)].split())]
        if spans:
            a, b = known[0] if known else rng.choice(spans)
            row = {"text": speech[a:b], "author": "William Shakespeare", "work": play, "speaker": speaker}
            candidates.append((not known, rng.random(), row | {"char_start": start + a}))
    return [row for _, _, row in sorted(candidates, key=lambda item: item[:2])]


def speech_with(text: str, words_of_it: str) -> int:
    at = text.index(words_of_it)
    return max(start for _, start in speeches(text) if start <= at)


def unrelated(book: str, rng: random.Random) -> list[dict[str, Any]]:
    """One candidate a paragraph of the held-out book, shuffled."""
    found, at = [], 0
    for paragraph in book.split("\n"):
        spans = passages_in(paragraph)
        if spans:
            a, b = rng.choice(spans)
            row = {"text": paragraph[a:b], "author": "G. K. Chesterton", "work": "The Man Who Was Thursday"}
            found.append(row | {"speaker": "", "char_start": at + a})
        at += len(paragraph) + 1
    rng.shuffle(found)
    return found


def take(candidates: list[dict[str, Any]], n: int, seen: set[tuple[str, ...]]) -> list[dict[str, Any]]:
    """The first n that share no run of words with `seen` or with each other, in their books' order."""
    kept: list[dict[str, Any]] = []
    for row in candidates:
        own = runs(row["text"], RUN)
        if len(kept) < n and not own & seen:
            kept.append(row | {"licence": LICENCE})
            seen |= own
    assert len(kept) == n, f"{len(kept)} of {n} passages"
    return sorted(kept, key=lambda row: row["char_start"])


def main(seed: int = 0) -> None:
    rng = random.Random(seed)
    plays = read_book_as_it_is("shakespeare-tiny.txt.gz")
    book = read_book(TEXT_DIR / f"{HELD_OUT}.txt.gz")
    planted = [json.loads(line)["text"] for line in (POCKET_FILES / "passages.jsonl").read_text().splitlines()]
    seen = {run for text in [*planted, (POCKET_FILES / "demo.txt").read_text()] for run in runs(text, RUN)}
    rows = take(quotes(plays, rng), N_QUOTES, seen) + take(unrelated(book, rng), N_UNRELATED, seen)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} passages, {OUT.stat().st_size} bytes")


def read_book_as_it_is(name: str) -> str:
    return gzip.decompress((TEXT_DIR / name).read_bytes()).decode("utf-8")


if __name__ == "__main__":
    main()
