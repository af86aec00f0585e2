"""Words with tags, each with the characters it takes in its text.

Whatever words come from (treebank, tagger), this is how they meet a model's tokens: by characters, never by counting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from basins.errors import BasinsError

# Open classes of the Universal Dependencies (https://universaldependencies.org/u/pos), without interjections; and
# closed classes, without numerals. Both tagsets are covered: the universal tagset of Petrov, Das and McDonald (2012)
# says CONJ and PRT and has no AUX, PROPN, SCONJ, PART (auxiliaries are VERB there, proper nouns NOUN).
CONTENT = ("NOUN", "PROPN", "VERB", "ADJ", "ADV")
FUNCTION = ("ADP", "AUX", "CCONJ", "CONJ", "DET", "PART", "PRON", "PRT", "SCONJ")
NOUNS, VERBS = ("NOUN", "PROPN"), ("VERB",)
# "." is the universal tagset's punctuation. SYM (UD) holds currency signs and smileys.
PUNCTUATION = ("PUNCT", ".", "SYM")


@dataclass(frozen=True)
class TaggedText:
    """A text and its words. `spans`: where each word starts and ends, in characters; in order, without overlap.

    `sentences`: the number of each word's sentence within the text, rising. `name`: the document, where it has one.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    tags: tuple[str, ...]
    sentences: tuple[int, ...]
    name: str = ""

    def __post_init__(self) -> None:
        if not len(self.spans) == len(self.tags) == len(self.sentences):
            raise BasinsError(
                f"{len(self.spans)} spans, {len(self.tags)} tags and {len(self.sentences)} sentence numbers: every "
                "word needs one of each."
            )
        end = 0
        for number, (start, stop) in enumerate(self.spans):
            if not end <= start < stop <= len(self.text):
                raise BasinsError(
                    f"word {number} has characters {start} to {stop}: words come in order, do not overlap, are not "
                    f"empty and lie within the text's {len(self.text)} characters."
                )
            end = stop
        if list(self.sentences) != sorted(self.sentences):
            raise BasinsError("sentence numbers fall: words come in the order of the text.")

    def word(self, number: int) -> str:
        start, stop = self.spans[number]
        return self.text[start:stop]

    def sentence_texts(self) -> list[str]:
        """The characters of each sentence, from its first word to its last."""
        ends = {number: stop for number, (_, stop) in zip(self.sentences, self.spans, strict=True)}
        starts: dict[int, int] = {}
        for number, (start, _) in zip(self.sentences, self.spans, strict=True):
            starts.setdefault(number, start)
        return [self.text[starts[number] : ends[number]] for number in starts]

    def __len__(self) -> int:
        return len(self.spans)


@dataclass(frozen=True)
class Tagged:
    """Texts with tagged words. `gold`: whether people checked the tags. `counts`: what the rules of the source left
    out or joined, by name. `licence`: of the text and its annotation."""

    texts: tuple[TaggedText, ...]
    name: str
    tagset: str
    gold: bool
    licence: str
    counts: Mapping[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        kind = "gold" if self.gold else "automatic"
        words, sentences = self.n_words, self.n_sentences
        return (
            f"Tagged({self.name}: {words:,} words with {kind} tags in {sentences:,} sentences, {len(self.texts)} texts)"
        )

    @property
    def n_words(self) -> int:
        return sum(map(len, self.texts))

    @property
    def n_sentences(self) -> int:
        return sum(len(set(text.sentences)) for text in self.texts)

    def first(self, limit: int | None) -> Tagged:
        """Only the first texts."""
        return replace(self, texts=self.texts[:limit])


def is_function(tag: str) -> bool | None:
    """True for function words, False for content words, None for what is neither (numerals, punctuation, other).

    A word that fuses several ("ADP+DET", German "zum") is of a class if all its parts are.
    """
    kinds = {True if part in FUNCTION else False if part in CONTENT else None for part in tag.split("+")}
    return kinds.pop() if len(kinds) == 1 else None


def place(text: str, words: Iterable[str], start: int = 0, where: str = "") -> Iterator[tuple[int, int]]:
    """Where each word stands in the text: the next characters after white space, exactly.

    A word that does not stand there raises BasinsError, which says `where`.
    """
    cursor = start
    for word in words:
        while cursor < len(text) and text[cursor].isspace() and not text.startswith(word, cursor):
            cursor += 1
        if not word or not text.startswith(word, cursor):
            raise BasinsError(
                f"{where}the word {word!r} does not stand in the text where it should: there is "
                f"{text[cursor : cursor + len(word) + 10]!r}."
            )
        yield cursor, cursor + len(word)
        cursor += len(word)


def joined(pieces: Sequence[TaggedText], between: Sequence[str], name: str = "") -> TaggedText:
    """One text of several with `between` them (one shorter); sentences are numbered on."""
    text = ""
    spans: list[tuple[int, int]] = []
    tags: list[str] = []
    sentences: list[int] = []
    for piece, before in zip(pieces, ("", *between), strict=True):
        text += before
        first = sentences[-1] + 1 if sentences else 0
        spans += [(start + len(text), stop + len(text)) for start, stop in piece.spans]
        tags += piece.tags
        sentences += [first + number for number in piece.sentences]
        text += piece.text
    return TaggedText(text, tuple(spans), tuple(tags), tuple(sentences), name)


def describe(tagged: Tagged) -> dict[str, Any]:
    """For the record of a run."""
    return {
        "name": tagged.name,
        "tagset": tagged.tagset,
        "gold": tagged.gold,
        "licence": tagged.licence,
        "texts": len(tagged.texts),
        "sentences": tagged.n_sentences,
        "words": tagged.n_words,
        **tagged.counts,
    }
