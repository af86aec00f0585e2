"""The pocket models' text, tokenizer and planted passages. Run once, before `pocket_train.py`.

    python benchmarks/pocket_data.py          # writes basins/pocket/files/{tokenizer.json,passages.jsonl,demo.txt}

One book is held out of the training text. Passages of 64 tokens are cut from it at sentence starts; a seeded shuffle
deals them to doses (1, 2, 4, ..., 256 exposures, 24 each) and to 192 controls, so dose is randomised. A candidate that
shares a run of 8 or more words with the training text or with another passage is thrown away, so that the planted
exposures are the only ones. What is left of the book is validation text.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT_DIR = Path(__file__).parent / "pocket_text"
FILES = Path(__file__).parents[1] / "basins" / "pocket" / "files"
HELD_OUT = "chesterton-thursday"
VERSE = ("blake", "milton", "shakespeare", "whitman")
SEPARATOR = "<|endoftext|>"
VOCABULARY, PASSAGE_TOKENS, PER_DOSE, CONTROLS = 4096, 64, 24, 192
DOSES = [2**i for i in range(9)]
LONGEST_SHARED_RUN = 7


def read_book(path: Path) -> str:
    """The book's text; in prose, the line breaks inside a paragraph become spaces."""
    text = gzip.decompress(path.read_bytes()).decode("utf-8", "replace").replace("\r\n", "\n")
    paragraphs = [p.strip() for p in re.split(r"\n\s*\n", text) if p.strip()]
    if not path.name.startswith(VERSE):
        paragraphs = [re.sub(r"\s+", " ", p) for p in paragraphs]
    return "\n".join(paragraphs)


def books() -> dict[str, str]:
    return {p.name.removesuffix(".txt.gz"): read_book(p) for p in sorted(TEXT_DIR.glob("*.txt.gz"))}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def runs(text: str, n: int) -> set[tuple[str, ...]]:
    w = words(text)
    return set(zip(*(w[i:] for i in range(n)), strict=False))


def longest_shared_run(passage: str, grams: dict[int, set[tuple[str, ...]]]) -> int:
    """Longest run of words (at most max(grams)) that the passage shares with the text behind `grams`."""
    return max((n for n in grams if runs(passage, n) & grams[n]), default=0)


def train_tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def cut_passages(book: str, tokenizer: Tokenizer) -> list[dict]:
    """Non-overlapping 64-token passages that start a sentence, end a word and survive decode-encode."""
    found, end = [], 0
    for match in re.finditer(r"(?:(?<=[.!?]\s)|(?<=[.!?]\"\s)|(?<=\n))(?=[A-Z\"'])", book):
        start = match.start()
        if start < end:
            continue
        encoding = tokenizer.encode(book[start : start + 600])
        if len(encoding.ids) <= PASSAGE_TOKENS or not encoding.tokens[PASSAGE_TOKENS].startswith("Ġ"):
            continue
        text = book[start : start + encoding.offsets[PASSAGE_TOKENS - 1][1]]
        if tokenizer.encode(text).ids != encoding.ids[:PASSAGE_TOKENS]:
            continue
        found.append({"text": text, "char_start": start})
        end = start + len(text)
    return found


def main(seed: int = 0) -> None:
    library = books()
    held_out = library.pop(HELD_OUT)
    training = "\n".join(library.values())
    tokenizer = train_tokenizer(list(library.values()))
    FILES.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(FILES / "tokenizer.json"))

    grams = {n: runs(training, n) for n in range(4, LONGEST_SHARED_RUN + 2)}
    kept, seen = [], set()
    for passage in cut_passages(held_out, tokenizer):
        shared = longest_shared_run(passage["text"], grams)
        own = runs(passage["text"], LONGEST_SHARED_RUN + 1)
        if shared <= LONGEST_SHARED_RUN and not own & seen:
            kept.append(passage | {"longest_shared_run": shared})
            seen |= own
    needed = len(DOSES) * PER_DOSE + CONTROLS
    assert len(kept) >= needed, f"{len(kept)} passages for {needed}"
    rng = random.Random(seed)
    chosen = rng.sample(kept, needed)
    doses = [dose for dose in DOSES for _ in range(PER_DOSE)] + [0] * CONTROLS
    rows = [
        {"id": i, "dose": dose, "split": "planted" if dose else "control", "book": HELD_OUT} | passage
        for i, (dose, passage) in enumerate(zip(doses, chosen, strict=True))
    ]
    with open(FILES / "passages.jsonl", "w") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    rest = validation_text(held_out, rows)
    demo = rest.split("\n")
    (FILES / "demo.txt").write_text("\n".join([p for p in demo if 300 < len(p) < 1500][:40]) + "\n")
    print(f"candidates {len(kept)}, chosen {needed}, validation characters {len(rest)}")


def validation_text(held_out: str, rows: list[dict]) -> str:
    """The held-out book with every chosen passage cut out."""
    parts, at = [], 0
    for row in sorted(rows, key=lambda r: r["char_start"]):
        parts.append(held_out[at : row["char_start"]])
        at = row["char_start"] + len(row["text"])
    return "\n".join([*parts, held_out[at:]])


if __name__ == "__main__":
    main()
