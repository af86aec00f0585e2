"""Where the linguistic experiment's words come from, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from basins import named_texts, pocket
from basins.conllu import read_conllu
from basins.errors import BasinsError
from basins.nltk_words import UNIVERSAL, tag_texts, treebank
from basins.texts import read_texts
from basins.words import Tagged, TaggedText

POSSIBLE = (
    '"pocket-demo" (the shipped book with the tags shipped beside it), a .conllu file or "ud-ewt:FILE" (gold tags), '
    '"ptb" (NLTK\'s Penn Treebank sample, gold tags), any texts that read_texts takes (tagged by NLTK), or TaggedTexts'
)


def read_tagged(
    source: Tagged | Sequence[TaggedText] | Sequence[str] | str | Path = "pocket-demo", limit: int | None = None
) -> Tagged:
    """Texts whose words have tags; at most the first `limit` texts.

    `source`: "pocket-demo": the shipped book with automatic tags shipped beside it (no network, no NLTK); a .conllu
    file, or "ud-ewt:FILE": gold tags; "ptb" or "ptb:FOLDER" (as in NLTK_DATA): NLTK's Penn Treebank sample, gold tags;
    anything else that `basins.corpus.read_texts` takes: tagged by NLTK; a `Tagged`, or a list of `TaggedText` of your
    own.
    """
    if limit is not None and limit < 1:
        raise BasinsError(f"limit={limit} leaves no text. Possible: 1 or more, or None for all texts.")
    if isinstance(source, Tagged):
        return source.first(limit)
    if isinstance(source, Sequence) and not isinstance(source, str) and source:
        texts = [text for text in source if isinstance(text, TaggedText)]
        if len(texts) == len(source):
            return Tagged(tuple(texts), "texts with tags of the caller", "the caller's", False, "not stated").first(
                limit
            )
    name, place = (named_texts.parse(source) if isinstance(source, str) else None) or ("", None)
    if name == "pocket-demo":
        return shipped().first(limit)
    if name == "ud-ewt":
        return read_conllu(named_texts.local_copy(name, place)).first(limit)
    if name == "ptb":
        return treebank(limit, place)
    if isinstance(source, (str, Path)):
        if str(source).endswith(".conllu"):
            return read_conllu(source).first(limit)
        licence = named_texts.NAMED[name].licence if name else "that of the texts"
        return tag_texts(read_texts(source, limit=limit), f"{source}, tagged by NLTK", licence)
    return tag_texts(read_texts(list(map(str, source)), limit=limit), "texts tagged by NLTK", "that of the texts")


def shipped() -> Tagged:
    """The shipped book and the tags that ship with it: automatic ones, by NLTK's averaged perceptron tagger."""
    texts = [
        TaggedText(text, tags.spans, tags.tags, tags.sentences)
        for text, tags in zip(pocket.demo_text(), pocket.demo_tags(), strict=True)
    ]
    return Tagged(tuple(texts), "the shipped book, tagged by NLTK", UNIVERSAL, False, "public domain; tags CC0-1.0")
