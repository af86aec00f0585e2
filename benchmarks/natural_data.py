"""The passages for natural memorisation: famous ones, their controls, and plain text. Run once.

    python benchmarks/natural_data.py --data ../shared/data   # writes basins/natural/files/passages.jsonl

DATA holds memorised/passages.jsonl and wikitext-103/test.txt. Famous passages and controls are copied in pairs, where
the famous one's licence allows that. Plain passages are drawn with a seed, from as many articles as possible; none
shares a run of 8 words with another passage of the file.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from pocket_data import runs

from basins.named_texts import wikitext_joined as joined

OUT = Path(__file__).parents[1] / "basins" / "natural" / "files" / "passages.jsonl"
RUN = 8
Row = dict[str, str]

# Verbatim copies of the whole licence are allowed, changing it is not; an extract of its preamble is neither.
NOT_COPIED = {"famous-23": "GPL-3 preamble", "famous-25": "GPL-2 preamble"}
# The others are in the public domain.
LICENCES = {
    **dict.fromkeys(["famous-18", "famous-19"], "MIT (its own text)"),
    **dict.fromkeys(["famous-20", "famous-21"], "BSD-3-Clause (its own text)"),
    "famous-22": "Apache-2.0 (its notice, to be copied)",
    "famous-24": "GPL-3.0 (its notice, to be copied)",
    "famous-26": "CC0-1.0",
    "famous-44": "public domain (United States)",
}

WIKITEXT = {"kind": "wikitext", "group": "encyclopedia", "source": "WikiText-103 test (English Wikipedia)"}
WIKITEXT |= {"match": "", "licence": "CC BY-SA 3.0"}
N_WIKITEXT = 60
# Spaces that WikiText's tokens leave behind and `joined` cannot close.
SPACED = re.compile(r" ['\u2019%/\u2044] |[$£€#°\u2212] |\d \u2013 \d|\d: \d|\. \.| [-\xd7+=] |@")
WHOLE = re.compile(r"[.!?][\"')]*$")


def pairs(file: Path) -> list[Row]:
    """Famous passages, then their controls, without those that may not be copied."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    kept = []
    for row in rows:
        row = {"match": ""} | row
        # A number in somebody's index is no source.
        row["source"] = re.sub(r" \([^)]*file \d+\)$", "", row["source"])
        own = row["source"] in ("written for this project", "seeded shuffle") or row["group"] == "sequence"
        row["licence"] = "CC0-1.0" if own else LICENCES.get(row["id"], "public domain")
        if not {row["id"], row["match"]} & NOT_COPIED.keys():
            kept.append(row)
    return kept


def articles(file: Path) -> dict[str, list[str]]:
    """Title -> paragraphs of 70 to 100 words that have no unknown word and join into clean text."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8").split("\n")]
    found: dict[str, list[str]] = {}
    title = ""
    for before, line, after in zip(lines, lines[1:], lines[2:]):
        if re.fullmatch(r"= [^=].* =", line) and not before and not after:
            title = joined(line[2:-2])
        # Without the article's title there is no attribution.
        elif line and not line.startswith("=") and "<unk>" not in title + line:
            text = joined(line)
            clean = text.count('"') % 2 == 0 and WHOLE.search(text) and not SPACED.search(text)
            if clean and 70 <= len(text.split()) <= 100:
                found.setdefault(title, []).append(text)
    return found


def in_turn(by_title: dict[str, list[Row]], rng: random.Random) -> Iterator[Row]:
    """One passage of every title, then a second of every title that has one, and so on."""
    shuffled = [rng.sample(rows, len(rows)) for rows in by_title.values()]
    rng.shuffle(shuffled)
    for number in range(max(map(len, shuffled))):
        yield from (rows[number] for rows in shuffled if number < len(rows))


def wikitext(file: Path) -> dict[str, list[Row]]:
    return {
        title: [{"text": text, "title": title} | WIKITEXT for text in texts] for title, texts in articles(file).items()
    }


def take(candidates: Iterator[Row], n: int, seen: set[tuple[str, ...]]) -> list[Row]:
    """The first n that share no run of words with `seen` or each other, by title."""
    kept: list[Row] = []
    for row in candidates:
        own = runs(row["text"], RUN)
        if len(kept) < n and not own & seen:
            kept.append(row)
            seen |= own
    assert len(kept) == n, f"{len(kept)} of {n} passages"
    kept.sort(key=lambda row: (row["title"], row["text"]))
    return [{"id": f"{row['kind']}-{number:02}"} | row for number, row in enumerate(kept, 1)]


def main(folder: Path, out: Path, seed: int = 0) -> None:
    rng = random.Random(seed)
    rows = pairs(folder / "memorised" / "passages.jsonl")
    seen = {run for row in rows for run in runs(row["text"], RUN)}
    rows += take(in_turn(wikitext(folder / "wikitext-103" / "test.txt"), rng), N_WIKITEXT, seen)
    order = ("id", "kind", "group", "title", "source", "match", "licence", "text")
    lines = [json.dumps({key: row[key] for key in order}, ensure_ascii=False) + "\n" for row in rows]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes("".join(lines).encode("utf-8"))
    print(f"{len(rows)} passages, {out.stat().st_size} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds memorised/, wikitext-103/, ...")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    main(arguments.data, arguments.out)
