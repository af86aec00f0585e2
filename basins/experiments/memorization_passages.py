"""The passages of the memorisation experiment: what they are, and which groups are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from basins.conllu import read_conllu
from basins.corpus import TokenBatch, read_texts, tokenize
from basins.errors import BasinsError

# Tokens of text a passage is cut to, so that the prompt (its first third) has the same length in all of them.
WINDOW = {"planted": 64, "natural": 96}
WORDS = (60, 100)  # of a piece of plain text, about as many as a famous passage has


@dataclass(frozen=True)
class Contrast:
    """Passages expected to be memorised against passages that are not. `label`: only those with that label count as
    memorised (and, in `without`, only those without it)."""

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    label: str | None = None
    without: str | None = None


@dataclass(frozen=True)
class Passages:
    """`group`: one word a passage. `dose`: times it was seen in training, where that is known, else None. `source`:
    what it comes from; folds of the cross-validation keep a source together."""

    kind: str
    text: tuple[str, ...]
    group: tuple[str, ...]
    source: tuple[str, ...]
    dose: tuple[int, ...] | None
    contrasts: tuple[Contrast, ...]
    about: str

    def __len__(self) -> int:
        return len(self.text)


def planted() -> Passages:
    """The 408 passages of the pocket models, whose doses are known."""
    from basins import pocket

    found = pocket.passages()
    group = tuple("control" if passage.dose == 0 else "planted" for passage in found)
    contrasts = (
        Contrast("recited against controls", ("planted",), ("control",), label="free"),
        Contrast("planted, not recited, against controls", ("planted",), ("control",), without="free"),
    )
    about = "64-token passages of a book held out of training, planted in known doses; controls are passages of dose 0"
    text = tuple(passage.text for passage in found)
    # A passage is a source of its own: all come from one book.
    source = tuple(str(passage.id) for passage in found)
    return Passages("planted", text, group, source, tuple(passage.dose for passage in found), contrasts, about)


def natural() -> Passages:
    """Famous passages, their matched novel controls, and plain text of two kinds."""
    from basins import natural as bundled

    found = bundled.passages()
    group = tuple(passage.kind for passage in found)
    contrasts = (
        Contrast("famous against matched novel", ("famous",), ("novel",)),
        Contrast("famous against WikiText-103", ("famous",), ("wikitext",)),
        Contrast("famous with a long run against all others", ("famous",), ("novel", "wikitext"), label="run"),
    )
    about = (
        "famous public-domain passages; novel passages written to match them in style and length, odd prose and so "
        "harder than plain text; WikiText-103 test as plain text"
    )
    # A novel passage stays in the fold of the famous one that it was written to match.
    source = tuple(passage.match or passage.id for passage in found)
    return Passages("natural", tuple(passage.text for passage in found), group, source, None, contrasts, about)


def with_plain(passages: Passages, path: str | Path, n: int = 60, seed: int = 0) -> Passages:
    """`passages` and, as one more group, up to `n` pieces of plain text from a file, against the first group.

    A CoNLL-U file gives runs of consecutive sentences of one document, any other file its texts; pieces of 60 to 100
    words, at most one a document or text, drawn by `seed`.
    """
    path = Path(path).expanduser()
    name = path.stem
    if name in passages.group:
        raise BasinsError(f"{path} would make a group {name!r}, which there is already. Rename the file.")
    documents = (
        [text.sentence_texts() for text in read_conllu(path).texts]
        if path.suffix == ".conllu"
        else [[text] for text in read_texts(path)]
    )
    pieces = [piece for document in documents if (piece := _piece(document))]
    if len(pieces) < 2:
        raise BasinsError(f"{path} has {len(pieces)} pieces of {WORDS[0]} to {WORDS[1]} words; at least 2 are needed.")
    drawn = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed))[:n].sort().values.tolist()
    first = passages.contrasts[0].positive
    return replace(
        passages,
        text=(*passages.text, *(pieces[i] for i in drawn)),
        group=(*passages.group, *[name] * len(drawn)),
        source=(*passages.source, *(f"{name} {i}" for i in drawn)),
        dose=None if passages.dose is None else (*passages.dose, *[0] * len(drawn)),
        contrasts=(*passages.contrasts, Contrast(f"{first[0]} against {name}", first, (name,))),
        about=f"{passages.about}; {len(drawn)} pieces of {path.name}",
    )


def _piece(sentences: list[str]) -> str | None:
    """The first run of whole sentences with the right number of words."""
    for start in range(len(sentences)):
        for end in range(start + 1, len(sentences) + 1):
            text = " ".join(sentences[start:end])
            n_words = len(text.split())
            if n_words > WORDS[1]:
                break
            if n_words >= WORDS[0]:
                return text
    return None


def from_file(path: str | Path) -> Passages:
    """A .jsonl, .csv or .parquet file with `text`, `group` and, if wanted, `dose` and `source`.

    The first group named in the file is compared with each other one.
    """
    frame = _read(Path(path).expanduser())
    missing = [column for column in ("text", "group") if column not in frame]
    if missing:
        raise BasinsError(
            f"{path} has no column {missing[0]!r}. Needed: text and group (such as famous and novel); possible: dose, "
            f"source. It has {', '.join(map(str, frame.columns))}."
        )
    for column in ("text", "group"):
        if not all(isinstance(value, str) and value.strip() for value in frame[column]):
            raise BasinsError(f"{path} has a row whose {column} is no text. Leave such rows out.")
    groups = list(dict.fromkeys(frame["group"]))
    if len(groups) < 2:
        raise BasinsError(f"{path} has one group, {groups[0]!r}. A comparison needs two: memorised, and not.")
    contrasts = tuple(Contrast(f"{groups[0]} against {other}", (groups[0],), (other,)) for other in groups[1:])
    source = frame["source"].astype(str) if "source" in frame else map(str, range(len(frame)))
    dose = tuple(int(value) for value in frame["dose"]) if "dose" in frame else None
    return Passages("file", tuple(frame["text"]), tuple(frame["group"]), tuple(source), dose, contrasts, str(path))


def _read(path: Path) -> Any:
    import pandas as pd

    readers: dict[str, Any] = {".jsonl": lambda p: pd.read_json(p, lines=True), ".csv": pd.read_csv}
    readers[".parquet"] = pd.read_parquet
    if path.suffix not in readers:
        raise BasinsError(f"{path} is not a passage file. Possible: {', '.join(readers)}.")
    if not path.is_file():
        raise BasinsError(f"{path} does not exist.")
    try:
        return readers[path.suffix](path)
    except (ValueError, OSError) as error:
        raise BasinsError(f"{path} could not be read ({error}).") from error


def rows(model: Any, texts: Sequence[str], window: int) -> tuple[TokenBatch, int]:
    """Passages cut to `window` tokens of text (a BOS token comes on top), and the prompt's length, a third of it.

    What is labelled, scored and trained on are these rows.
    """
    batch = tokenize(model, list(texts), max_length=_room(model, window + 1), long_texts="truncate")
    if not batch.tokenization["bos_token"]:
        batch = tokenize(model, list(texts), max_length=_room(model, window), long_texts="truncate")
    return batch, window // 3


def _room(model: Any, length: int) -> int:
    return min(length, getattr(model.cfg, "n_ctx", None) or length)


def continuations(batch: TokenBatch, texts: Sequence[str], continuation: Int[Tensor, "batch pos"]) -> list[str]:
    """The text of each row's positions in `continuation`; empty where it has none."""
    found = []
    for text, spans, inside in zip(texts, batch.offsets, continuation.bool(), strict=True):
        places = inside.nonzero()[:, 0]
        found.append(text[int(spans[places[0], 0]) : int(spans[places[-1], 1])] if len(places) else "")
    return found


def reference_totals(reference: Any, texts: Sequence[str], starts: Sequence[int], ends: Sequence[int]) -> torch.Tensor:
    """Summed loss of another model on characters `starts` to `ends` of each text, nats; NaN where it sees none."""
    from basins.losses import token_losses

    batch = tokenize(reference, list(texts), long_texts="truncate")
    losses = token_losses(reference, batch.tokens, batch.attention_mask).double()
    begin = batch.offsets[..., 0]
    inside = (begin >= torch.tensor(starts)[:, None]) & (batch.offsets[..., 1] <= torch.tensor(ends)[:, None])
    inside &= ~losses.isnan() & (batch.offsets[..., 1] > 0)
    total = losses.masked_fill(~inside, 0).sum(1)
    return total.masked_fill(~inside.any(1), float("nan"))
