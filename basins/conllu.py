"""Universal Dependencies treebanks: CoNLL-U files -> documents with tagged words (https://universaldependencies.org).

A sentence's text is its `# text =` line and every surface token must stand in it, in order and exactly; without that
line it is the forms, with a space after each but those with SpaceAfter=No. Sentences of one document (`# newdoc`) make
one text, with a space between them (none after SpaceAfter=No, a line break before a paragraph). A file without
`# newdoc` is one document.

| CoNLL-U | rule |
|---|---|
| empty node (id 8.1) | has no characters: skipped, counted |
| multiword token (id 8-9) whose words spell it ("do" + "n't") | each word has its own characters |
| multiword token whose words do not spell it ("zum" = "zu" + "dem") | one word that has both tags: "ADP+DET"; counted |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from basins.errors import BasinsError
from basins.words import Tagged, TaggedText, joined, place

LICENCE = "see the treebank's LICENSE.txt (CC BY-SA 4.0 for UD English EWT)"
FIELDS = 10


@dataclass(frozen=True)
class _Sentence:
    """`before`: what stands between it and the sentence before it, in the same document."""

    text: TaggedText
    space_after: bool
    new_document: str | None
    new_paragraph: bool


def read_conllu(path: str | Path) -> Tagged:
    """The documents of a CoNLL-U file with their words' universal tags (UPOS).

    Raises BasinsError, with the line, for a file that is missing, is not CoNLL-U, or whose words do not stand in its
    text.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise BasinsError(f"There is no file {path} (looked from {Path.cwd()}). Is the path spelt right?")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise BasinsError(f"{path} is not UTF-8 text ({error}). CoNLL-U files are.") from error
    counts = Counter(empty_nodes=0, fused_words=0)
    documents: list[list[_Sentence]] = []
    for number, block in _blocks(lines):
        sentence = _sentence(block, f"{path}, line {number}: ", counts)
        if not documents or sentence.new_document is not None:
            documents.append([])
        documents[-1].append(sentence)
    if not documents:
        raise BasinsError(f"{path} holds no sentence. A CoNLL-U file has a line of ten fields for every word.")
    texts = tuple(_document(sentences) for sentences in documents)
    return Tagged(texts, path.name, "Universal Dependencies (UPOS)", True, LICENCE, dict(counts))


def _document(sentences: list[_Sentence]) -> TaggedText:
    between = []
    for before, here in pairwise(sentences):
        between.append("\n" if here.new_paragraph else " " if before.space_after else "")
    return joined([sentence.text for sentence in sentences], between, sentences[0].new_document or "")


def _blocks(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """(number of the first line, lines) of each sentence; comments before the first word are part of it."""
    block: list[str] = []
    for number, line in enumerate([*lines, ""], 1):
        if line.strip():
            block.append(line.rstrip("\r"))
        elif any(not text.startswith("#") for text in block):
            yield number - len(block), block
            block = []


def _sentence(block: list[str], where: str, counts: Counter[str]) -> _Sentence:
    comments = dict(_comment(line) for line in block if line.startswith("#"))
    rows = [line.split("\t") for line in block if not line.startswith("#")]
    for row in rows:
        if len(row) != FIELDS:
            raise BasinsError(
                f"{where}{' '.join(row)!r:.60} has {len(row)} fields; CoNLL-U has {FIELDS}, with tabs between."
            )
    surface = [*_surface(rows, counts, where)]
    if not surface:
        raise BasinsError(f"{where}a sentence has no word with characters, only empty nodes (ids such as 8.1).")
    spelt = "".join(form + (" " if space else "") for form, _, _, space in surface).rstrip()
    text = comments.get("text", spelt)
    spans: list[tuple[int, int]] = []
    tags: list[str] = []
    outer = place(text, [form for form, *_ in surface], where=where)
    for (_, words, upos, _), (start, stop) in zip(surface, outer, strict=True):
        ends = [start + sum(map(len, words[: i + 1])) for i in range(len(words))]
        spans += zip([start, *ends[:-1]], ends, strict=True) if len(words) > 1 else [(start, stop)]
        tags += upos
    new_document = comments.get("newdoc id", comments.get("newdoc"))
    paragraph = "newpar" in comments or "newpar id" in comments
    tagged = TaggedText(text, tuple(spans), tuple(tags), (0,) * len(spans))
    return _Sentence(tagged, surface[-1][3], new_document, paragraph)


def _comment(line: str) -> tuple[str, str]:
    name, _, value = line.removeprefix("#").partition("=")
    return name.strip(), value.strip()


def _id(number: str, where: str) -> int:
    if not number.isdecimal():
        raise BasinsError(f"{where}a word has the id {number!r}. CoNLL-U has 8, or 8-9 for several words, or 8.1.")
    return int(number)


def _surface(
    rows: list[list[str]], counts: Counter[str], where: str
) -> Iterator[tuple[str, list[str], list[str], bool]]:
    """(form, its words, their tags, space after) of each token that has characters."""
    inside = 0
    for place_, row in enumerate(rows):
        number, form, upos, misc = row[0], row[1], row[3], row[9]
        space = "SpaceAfter=No" not in misc.split("|")
        if "." in number:
            counts["empty_nodes"] += 1
        elif "-" in number:
            inside = _id(number.partition("-")[2], where)
            words = [other for other in rows[place_ + 1 :] if other[0].isdigit() and int(other[0]) <= inside]
            forms, tags = [word[1] for word in words], [word[3] for word in words]
            if "".join(forms) == form:
                yield form, forms, tags, space
            else:
                counts["fused_words"] += 1
                yield form, [form], ["+".join(dict.fromkeys(tags))], space
        elif _id(number, where) > inside:
            yield form, [form], [upos], space
