"""Datasets that have a name here: what each is, its licence, and how it is read from the hub or from a local copy.

"sst2" is the dataset, "sst2:FILE" (or a folder that holds the file) a local copy of it. A local copy is meant where
what follows the colon has a slash or a suffix, or exists; otherwise ("wikitext:wikitext-2-raw-v1:test") it is a Hugging
Face dataset as anywhere. Nothing here is shipped but `planted`, `pocket-demo` and the quotes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basins import pocket, quotes
from basins.conllu import read_conllu
from basins.errors import BasinsError
from basins.hub_rows import hub_rows
from basins.nltk_words import TREEBANK_LICENCE, treebank

Row = tuple[str, dict[str, Any]]
SENTIMENT = {0: "negative", 1: "positive"}


@dataclass(frozen=True)
class Named:
    """`files`: what a local copy is called in its folder. `read`: a local copy's texts with what is known of each.
    `hub`: (dataset, config, split) and `of_hub`: its rows -> texts. `bundled`: the texts that ship with basins."""

    about: str
    licence: str
    files: tuple[str, ...] = ()
    read: Callable[[Path], Iterator[Row]] | None = None
    hub: tuple[str, str, str] | None = None
    of_hub: Callable[[Iterable[dict[str, Any]]], Iterator[Row]] | None = None
    bundled: Callable[[], Iterator[Row]] | None = None
    get: str = ""


def parse(source: str) -> tuple[str, Path | None] | None:
    """(name, local copy or None); None where the source is not one of `NAMED`."""
    name, colon, rest = source.partition(":")
    if name not in NAMED or (colon and not rest):
        return None
    if not colon:
        return name, None
    path = Path(rest).expanduser()
    is_path = path.exists() or "/" in rest or "\\" in rest or rest.startswith((".", "~")) or bool(path.suffix)
    return (name, path) if is_path else None


def rows(name: str, path: Path | None, streaming: bool) -> Iterator[Row]:
    """Texts of a named dataset with what is known of each (label, title, speaker, ...)."""
    named = NAMED[name]
    if path is not None and named.read is None:
        raise BasinsError(f"{name!r} ships with basins and has no other copy. Pass {name!r} alone, or a file as such.")
    if path is None and named.bundled is not None:
        return named.bundled()
    if path is None and named.hub is not None and named.of_hub is not None:
        return named.of_hub(hub_rows(*named.hub, streaming, how_to_get(name)))
    assert named.read is not None
    return named.read(local_copy(name, path))


def how_to_get(name: str) -> str:
    """The licence of a named dataset and the way to a local copy; the other names."""
    named = NAMED[name]
    local = (
        f' Local copy: "{name}:FILE" ({" or ".join(named.files)}, or the folder that holds it).' if named.files else ""
    )
    return f"{named.about}; licence: {named.licence}.{local}{named.get and f' {named.get}'} Names: {', '.join(NAMED)}."


def local_copy(name: str, path: Path | None) -> Path:
    """The file that `path` is or holds; BasinsError, with the way to get one, where there is none."""
    if path is None:
        raise BasinsError(f"{name!r} does not ship with basins. {how_to_get(name)}")
    if path.is_file() or name == "ptb":
        return path
    for file in NAMED[name].files if path.is_dir() else ():
        if (path / file).is_file():
            return path / file
    what = "is a folder without such a file" if path.is_dir() else "does not exist"
    raise BasinsError(f"{name}:{path}: {path} {what} (looked from {Path.cwd()}). {how_to_get(name)}")


def _lines(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8-sig", newline="\n") as lines:
        for line in lines:
            yield line.rstrip("\r\n")


def wikitext_joined(tokens: str) -> str:
    """WikiText's tokens as text: joints ("@-@") undone, spaces before punctuation and inside brackets closed."""
    text = tokens.replace(" @-@ ", "-").replace(" @,@ ", ",").replace(" @.@ ", ".")
    text = re.sub(r" ([,.;:!?)\]])", r"\1", text)
    text = re.sub(r"([(\[]) ", r"\1", text)
    text = re.sub(r'" (.*?) "', r'"\1"', text)
    return re.sub(r" '(s|t|re|ve|ll|d|m)\b", r"'\1", text).strip()


def _wikitext(lines: Iterable[str]) -> Iterator[Row]:
    """A text a paragraph, with the title of its article; headings are left out."""
    title = ""
    for line in lines:
        line = line.strip()
        heading = re.fullmatch(r"= ([^=].*?) =", line)
        if heading:
            title = wikitext_joined(heading[1])
        elif line and not re.fullmatch(r"(= ){2,}.*( =){2,}", line):
            yield wikitext_joined(line), {"title": title}


def _sst2(path: Path) -> Iterator[Row]:
    """Lines of text, tab, label; a header is skipped."""
    for number, line in enumerate(_lines(path), 1):
        text, tab, label = line.rpartition("\t")
        if number == 1 and label == "label":
            continue
        if not tab or label not in ("0", "1"):
            raise BasinsError(f"{path}, line {number} is not text, tab, 0 or 1 ({line!r:.50}). {how_to_get('sst2')}")
        yield text, _sentiment(int(label))


def _sentiment(label: int) -> dict[str, Any]:
    return {"label": label, "sentiment": SENTIMENT.get(label, "unknown")}  # the hub's test split has -1


def _shakespeare(path: Path) -> Iterator[Row]:
    """quotes.json: its quotes; any other file: speeches, a speaker's name and colon in the line above each."""
    if path.suffix == ".json":
        for quote in json.loads(path.read_text(encoding="utf-8")):
            yield quote["text"], {"speaker": quote["speaker"], "play": quote["play"]}
        return
    for speech in re.split(r"\n\s*\n", path.read_text(encoding="utf-8").strip()):
        speaker, newline, text = speech.partition("\n")
        if newline and speaker.endswith(":") and text.strip():
            yield text, {"speaker": speaker[:-1]}


def _ud(path: Path) -> Iterator[Row]:
    for document in read_conllu(path).texts:
        yield document.text, {"document": document.name, "sentences": len(set(document.sentences))}


def _ptb(folder: Path | None) -> Iterator[Row]:
    for text in treebank(folder=folder).texts:
        yield text.text, {"file": text.name, "sentences": len(set(text.sentences))}


def _planted() -> Iterator[Row]:
    for passage in pocket.passages():
        known = {"id": passage.id, "dose": passage.dose, "split": passage.split, "book": passage.book}
        yield passage.text, known


def _quotes() -> Iterator[Row]:
    for quote in quotes.quotes():
        yield quote.text, {"speaker": quote.speaker, "play": quote.work}


def _wikitext_named(version: str, size: str) -> Named:
    return Named(
        about=f"WikiText-{version}, paragraphs of Wikipedia articles, {size}",
        licence="CC BY-SA 3.0",
        files=("test.txt", "wiki.test.tokens", "wiki.test.raw"),
        read=lambda path: _wikitext(_lines(path)),
        hub=("Salesforce/wikitext", f"wikitext-{version}-raw-v1", "test"),
        of_hub=lambda found: _wikitext(row["text"] for row in found),
    )


NAMED: dict[str, Named] = {
    "pocket-demo": Named(
        "Paragraphs of a held-out book, shipped", "public domain",
        bundled=lambda: ((text, {}) for text in pocket.demo_text()),
    ),
    "planted": Named("Passages planted in the pocket models, shipped", "public domain", bundled=_planted),
    "shakespeare": Named(
        "100 quotes from the plays, shipped; a local copy of tiny-shakespeare gives all speeches", "public domain",
        files=("input.txt", "quotes.json"), read=_shakespeare, bundled=_quotes,
        get="Source: github.com/karpathy/char-rnn, data/tinyshakespeare/input.txt.",
    ),
    "wikitext": _wikitext_named("103", "test split"),
    "wikitext-103": _wikitext_named("103", "test split"),
    "wikitext-2": _wikitext_named("2", "test split (rarer words are <unk>)"),
    "sst2": Named(
        "Stanford Sentiment Treebank, sentences with a label (Socher et al. 2013), development set",
        "none stated; research data, not to be passed on",
        files=("dev.tsv",), read=_sst2, hub=("stanfordnlp/sst2", "", "validation"),
        of_hub=lambda found: ((row["sentence"].strip(), _sentiment(row["label"])) for row in found),
    ),
    "ud-ewt": Named(
        "Universal Dependencies, English Web Treebank, documents with gold parts of speech", "CC BY-SA 4.0",
        files=("en_ewt-ud-test.conllu", "en_ewt-ud-dev.conllu", "en_ewt-ud-train.conllu"), read=_ud,
        get="Source: github.com/UniversalDependencies/UD_English-EWT.",
    ),
    "ptb": Named(
        "NLTK's sample of the Penn Treebank, newspaper texts with gold parts of speech", TREEBANK_LICENCE,
        files=("corpora/treebank.zip",), read=_ptb, bundled=lambda: _ptb(None),
        get="With a network: python -m nltk.downloader treebank universal_tagset. The folder is what NLTK_DATA names.",
    ),
}  # fmt: skip
