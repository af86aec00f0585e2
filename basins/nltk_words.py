"""Words and tags from NLTK: its sample of the Penn Treebank, and its tagger for any text.

Both give the universal tagset (Petrov, Das and McDonald, 2012). NLTK's data is looked for where NLTK looks (NLTK_DATA),
and downloaded when it is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from basins.errors import BasinsError, MissingExtra
from basins.words import Tagged, TaggedText, joined, place

UNIVERSAL = "universal (Petrov et al. 2012)"
TREEBANK_LICENCE = "(C) Linguistic Data Consortium 1995, made available by NLTK for non-commercial use"
FOLDERS = {
    "treebank": "corpora/treebank",
    "universal_tagset": "taggers/universal_tagset",
    "punkt_tab": "tokenizers/punkt_tab/english",
    "averaged_perceptron_tagger_eng": "taggers/averaged_perceptron_tagger_eng",
}
BRACKETS = {"-LRB-": "(", "-RRB-": ")", "-LCB-": "{", "-RCB-": "}", "-LSB-": "[", "-RSB-": "]"}
OPENING, CLOSING = ("(", "[", "{", "$", "#", "US$", "C$"), (")", "]", "}", ",", ".", ":", ";", "?", "!", "%", "...")
CLITICS = ("POS", "n't", "N'T", "'s", "'S", "'re", "'ve", "'ll", "'d", "'m")


def treebank(limit: int | None = None, folder: str | Path | None = None) -> Tagged:
    """The Wall Street Journal sample of the Penn Treebank that NLTK has, a text a file, with its gold tags.

    Made text again by this rule: traces (-NONE-) are left out and counted; -LRB- and the like become brackets; `` and
    '' become "; a backslash before / or * is dropped; no space before closing punctuation and clitics (n't, 's), none
    after opening punctuation, opening quotes, $ and #. Every other word has a space in front.

    `folder`: where NLTK's data lies, as in NLTK_DATA; None: where NLTK looks.
    """
    with _looking_in(folder):
        require("treebank")
        require("universal_tagset")
        return _treebank(limit)


def _treebank(limit: int | None) -> Tagged:
    from nltk.corpus import treebank as corpus
    from nltk.tag import map_tag

    counts = {"traces": 0}
    texts = []
    for file in corpus.fileids()[:limit]:
        sentences = []
        for words in corpus.tagged_sents(file):
            real = [(str(word), str(tag)) for word, tag in words if tag != "-NONE-"]
            counts["traces"] += len(words) - len(real)
            if real:
                tags = [map_tag("en-ptb", "universal", tag) for _, tag in real]
                sentences.append(_sentence(real, tags))
        texts.append(joined(sentences, [" "] * (len(sentences) - 1), str(file)))
    name = "NLTK's Penn Treebank sample"
    return Tagged(tuple(texts), name, UNIVERSAL, True, TREEBANK_LICENCE, counts)


def _sentence(words: Sequence[tuple[str, str]], tags: Sequence[str]) -> TaggedText:
    """Text and spans of one sentence of the treebank, by the rule in `treebank`."""
    text, spans, tight = "", [], True
    for word, tag in words:
        closes = tag == "''" or word in CLOSING or tag in CLITICS or word in CLITICS or tag == "-RRB-"
        opens = tag in ("``", "-LRB-") or word in OPENING
        shown = '"' if word in ("``", "''") else "'" if word == "`" else BRACKETS.get(word, word)
        shown = shown.replace("\\/", "/").replace("\\*", "*")
        text += "" if tight or closes else " "
        spans.append((len(text), len(text) + len(shown)))
        text += shown
        tight = opens
    return TaggedText(text, tuple(spans), tuple(tags), (0,) * len(spans))


def tag_texts(texts: Iterable[str], name: str, licence: str) -> Tagged:
    """Texts tagged by NLTK: Punkt's sentences, NLTK's words with their characters, averaged perceptron tags.

    The tags are automatic: the tagger was trained on the Wall Street Journal.
    """
    for package in ("punkt_tab", "averaged_perceptron_tagger_eng", "universal_tagset"):
        require(package)
    from nltk.tag import pos_tag_sents
    from nltk.tokenize import NLTKWordTokenizer, PunktTokenizer

    texts = list(texts)
    splitter: Any = PunktTokenizer("english")
    tokenizer = NLTKWordTokenizer()
    sentences = [list(splitter.span_tokenize(text)) for text in texts]
    words: list[list[list[str]]] = []
    spans: list[list[list[tuple[int, int]]]] = []
    for number, (text, parts) in enumerate(zip(texts, sentences, strict=True)):
        pairs = [_words(tokenizer, text[start:stop], start, f"text {number}: ") for start, stop in parts]
        words.append([found for found, _ in pairs])
        spans.append([found for _, found in pairs])
    # One call for all: each loads the tagger's 6 MB anew.
    tagged = iter(pos_tag_sents([*chain.from_iterable(words)], tagset="universal"))
    found = []
    for text, own in zip(texts, spans, strict=True):
        tags = [[tag for _, tag in next(tagged)] for _ in own]
        numbers = [number for number, part in enumerate(own) for _ in part]
        flat = tuple(chain.from_iterable(own)), tuple(chain.from_iterable(tags))
        found.append(TaggedText(text, *flat, tuple(numbers)))
    return Tagged(tuple(found), name, UNIVERSAL, False, licence)


def _words(tokenizer: Any, sentence: str, start: int, where: str) -> tuple[list[str], list[tuple[int, int]]]:
    """NLTK's words, which turn " into `` and '', as the tagger knows them; and the characters they stand for."""
    words = tokenizer.tokenize(sentence)
    shown: list[str] = []
    spans: list[tuple[int, int]] = []
    cursor = 0
    for word in words:
        while cursor < len(sentence) and sentence[cursor].isspace():
            cursor += 1
        written = '"' if word in ("``", "''") and not sentence.startswith(word, cursor) else word
        [(begin, cursor)] = place(sentence, [written], cursor, where)
        shown.append(word)
        spans.append((start + begin, start + cursor))
    return shown, spans


@contextmanager
def _looking_in(folder: str | Path | None) -> Iterator[None]:
    """NLTK looks in `folder` first, for now."""
    if folder is None:
        yield
        return
    folder = Path(folder).expanduser().absolute()
    # "corpora" itself, or what lies in it, is meant too.
    folder = next((place for place in (folder, *folder.parents[:2]) if (place / "corpora").is_dir()), folder)
    if not (folder / "corpora").is_dir():
        raise BasinsError(f"{folder} is no folder of NLTK's data: it has no corpora. NLTK_DATA names such a folder.")
    try:
        from nltk.data import path
    except ImportError as error:
        raise MissingExtra("nltk", "experiments") from error
    path.insert(0, str(folder))
    try:
        yield
    finally:
        path.remove(str(folder))


def require(package: str) -> None:
    """NLTK's data package, found or downloaded; BasinsError otherwise."""
    try:
        import nltk
    except ImportError as error:
        raise MissingExtra("nltk", "experiments") from error
    if _there(nltk, package):
        return
    try:
        nltk.download(package, quiet=True, raise_on_error=True)
        why = "it was downloaded but cannot be found"
    except Exception as error:  # whatever the network raises
        why = f"it could not be downloaded: {type(error).__name__}: {error}"
    if not _there(nltk, package):
        raise BasinsError(
            f"NLTK's data package {package!r} is missing, and {why}. With a network: python -m nltk.downloader "
            f"{package}. Without: put a copy at {FOLDERS[package]} in a folder that NLTK_DATA names."
        )


def _there(nltk: Any, package: str) -> bool:
    for place_ in (FOLDERS[package], f"{FOLDERS[package]}.zip"):
        try:
            nltk.data.find(place_)
        except LookupError:
            continue
        return True
    return False
