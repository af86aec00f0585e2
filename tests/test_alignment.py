"""Tokens -> words by characters, against an oracle that looks at one character after the other."""

from __future__ import annotations

import re
import unicodedata

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from real_texts import nltk_with_data, real
from text_tokenizers import unigram, with_tokenizer
from transformers import AutoTokenizer

from basins import pocket as shipped
from basins.alignment import KINDS, PIECES, align
from basins.corpus import TokenBatch, tokenize
from basins.errors import BasinsError
from basins.words import TaggedText

KIND = {name: number for number, name in enumerate(KINDS)}
ODD = [
    *["don't", "o'clock", "it\u2019s", "can not", "I'd've", '"quoted"', "“curly”", "``old''", "...", "--", "a.b@c.de"],
    *["naïve", "e\u0301cole", "\u0928\u093f", "x²", "ﬁne", "½", "東京", "\u200b"],
    *["🙂", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "👍🏽"],
]
GAPS = [" ", "  ", "\t", " \t ", "\u00a0", "\n", "\u3000", ""]


@pytest.fixture(scope="module")
def models():
    return {"bytes": with_tokenizer(shipped.load_tokenizer()), "pieces": with_tokenizer(unigram(shipped.demo_text()))}


def by_hand(batch: TokenBatch, texts: list[TaggedText]):
    """For each row and position: (kind, word), from sets of characters."""
    found = {}
    for row, number in enumerate(batch.text_ids):
        text = texts[number]
        owner = {c: w for w, (start, stop) in enumerate(text.spans) for c in range(start, stop)}
        for position in range(int(batch.attention_mask[row].sum())):
            start, stop = batch.offsets[row, position].tolist()
            characters = list(range(start, stop))
            while characters and text.text[characters[0]].isspace():
                characters.pop(0)
            while characters and text.text[characters[-1]].isspace():
                characters.pop()
            touched = {owner.get(c) for c in characters}
            # White space between two words is no word's, and is not what makes a token touch something else.
            words = touched - {None}
            if start < 0:
                kind = "no_offsets"
            elif start == stop:
                kind = "special"
            elif not characters:
                kind = "white_space"
            elif not words:
                kind = "outside"
            elif len(words) > 1:
                kind = "spans_words"
            else:
                kind = "aligned" if len(touched) == 1 else "partly_outside"
            found[row, position] = (kind, words.pop() if kind == "aligned" else -1, characters)
    return found


def check(batch: TokenBatch, texts: list[TaggedText], pieces: str = "first"):
    found = align(batch, texts, pieces)
    oracle = by_hand(batch, texts)
    for (row, position), (kind, word, characters) in oracle.items():
        assert (KINDS[found.kind[row, position]], int(found.word[row, position])) == (kind, word)
        if kind == "aligned":
            start, stop = texts[batch.text_ids[row]].spans[word]
            assert all(start <= c < stop for c in characters)
    assert sum(found.counts[name] for name in KINDS) == len(oracle) == int(batch.attention_mask.sum())
    assert (found.kind[batch.attention_mask == 0] == -1).all()
    assert found.counts["chosen"] == int(found.chosen.sum())
    return found


def tagged(text: str, pattern: str = r"\w+|[^\w\s]+") -> TaggedText:
    spans = tuple(match.span() for match in re.finditer(pattern, text))
    return TaggedText(text, spans, ("X",) * len(spans), (0,) * len(spans))


def batch_of(spans: list[tuple[int, int]]) -> TokenBatch:
    offsets = torch.tensor([spans], dtype=torch.int32)
    ones = torch.ones(1, len(spans), dtype=torch.int64)
    return TokenBatch(ones, ones, offsets, (0,), {})


def test_every_rule():
    text = TaggedText("do n't ,  go? zz", ((0, 2), (3, 6), (7, 8), (10, 12), (12, 13)), ("A",) * 5, (0,) * 5)
    spans = [(0, 0), (0, 1), (1, 4), (4, 6), (6, 8), (8, 9), (9, 12), (12, 14), (13, 16), (-1, -1)]
    batch = batch_of(spans)
    found = check(batch, [text])
    kinds = [KINDS[kind] for kind in found.kind[0].tolist()]
    assert kinds == [
        *("special", "aligned", "spans_words", "aligned", "aligned", "white_space", "aligned", "aligned", "outside"),
        "no_offsets",
    ]
    assert found.word[0].tolist() == [-1, 0, -1, 1, 2, -1, 3, 4, -1, -1]
    # "do" came as "d" and the token that spans; "n't" as that token and "'t".
    assert found.n_pieces[0].tolist() == [0, 2, 0, 2, 1, 0, 1, 1, 0, 0]
    assert found.piece[0].tolist() == [-1, 0, -1, 1, 0, -1, 0, 0, -1, -1]
    chosen = {pieces: align(batch, [text], pieces).chosen[0].nonzero()[:, 0].tolist() for pieces in PIECES}
    assert chosen == {"first": [1, 4, 6, 7], "last": [3, 4, 6, 7], "every": [1, 3, 4, 6, 7]}
    assert found.counts["represented_words"] == 4
    partly = check(batch_of([(12, 15)]), [text])
    assert KINDS[partly.kind[0, 0]] == "partly_outside"
    assert partly.counts["without_token"] == 4


def test_a_word_that_lost_its_end_stands_for_nothing():
    text = TaggedText("big elephants", ((0, 3), (4, 13)), ("A", "B"), (0, 0))
    found = align(batch_of([(0, 3), (3, 7)]), [text], "every")
    assert found.chosen[0].tolist() == [True, False]
    assert found.counts["cut_off"] == 1


def test_a_mark_that_the_tokenizer_leaves_out_cuts_nothing_off():
    text = TaggedText("cafe\u0301", ((0, 5),), ("A",), (0,))
    assert align(batch_of([(0, 2), (2, 4)]), [text]).counts["cut_off"] == 0


def test_pieces_are_counted_across_windows(models):
    words = [tagged(text) for text in shipped.demo_text()[:4]]
    texts = [word.text for word in words]
    whole = tokenize(models["bytes"], texts)
    cut = tokenize(models["bytes"], texts, max_length=17, long_texts="split")
    for pieces in PIECES:
        one, many = check(whole, words, pieces), check(cut, words, pieces)
        for name in ("words", "in_one_token", "in_many_tokens", "chosen", "represented_words", "aligned"):
            assert one.counts[name] == many.counts[name], name


def test_other_texts_are_noticed(models):
    batch = tokenize(models["bytes"], ["a longer text", "b"])
    with pytest.raises(BasinsError, match="ends at character 13, but the text has 1"):
        align(batch, [tagged("b"), tagged("a longer text")])
    with pytest.raises(BasinsError, match="has text 1, and 1 tagged texts"):
        align(batch, [tagged("a longer text")])
    with pytest.raises(BasinsError, match="pieces='middle' is not an option"):
        align(batch, [tagged("a longer text"), tagged("b")], "middle")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(ODD), st.sampled_from(GAPS)), min_size=1, max_size=12),
    st.sampled_from(["bytes", "pieces"]),
    st.sampled_from(PIECES),
)
def test_odd_text(models, parts, tokenizer, pieces):
    text = "".join(word + gap for word, gap in parts)
    if not text.strip():
        return
    words = [tagged(text), tagged(text, r"\S+"), tagged(text, r"\S")]
    batch = tokenize(models[tokenizer], [text] * 3)
    found = check(batch, words, pieces)
    # Round trip: the characters of a word's pieces are the word, where no piece is shared with another word.
    for row, number in enumerate(batch.text_ids):
        for w, (start, stop) in enumerate(words[number].spans):
            own = (found.word[row] == w).nonzero()[:, 0].tolist()
            if own and len(own) == int(found.n_pieces[row, own[0]]):
                covered = {c for p in own for c in range(*batch.offsets[row, p].tolist())}
                # A tokenizer that normalises may leave a combining mark's character out.
                missing = [text[c] for c in range(start, stop) if c not in covered and not text[c].isspace()]
                assert all(unicodedata.category(c)[0] in "MC" for c in missing)


def gold(which: str):
    if which == "treebank":
        nltk_with_data()
        from basins.nltk_words import treebank

        return treebank(limit=110)
    from basins.conllu import read_conllu

    return read_conllu(real("ud-english-ewt/en_ewt-ud-test.conllu"))


@pytest.mark.slow
@pytest.mark.parametrize("which", ["ud", "treebank"])
def test_two_thousand_gold_sentences(models, which):
    """Every token that has a word lies inside it; with three tokenizers."""
    found = gold(which)
    assert found.n_sentences > 2_000
    texts = [text.text for text in found.texts]
    tokenizers = dict(models)
    tokenizers["gpt2"] = with_tokenizer(AutoTokenizer.from_pretrained(real("gpt2-tokenizer")))
    for name, model in tokenizers.items():
        batch = tokenize(model, texts, max_length=128, long_texts="split")
        aligned = check(batch, list(found.texts))
        assert aligned.counts["partly_outside"] == aligned.counts["outside"] == 0, name
        assert aligned.counts["without_token"] == aligned.counts["cut_off"] == 0, name
        assert aligned.counts["represented_words"] > 0.95 * found.n_words, name
