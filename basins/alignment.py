"""A model's tokens -> words, by the characters that the tokenizer says each token takes. Nothing is counted off.

| token | rule | counted as |
|---|---|---|
| its characters, without white space at either end, lie inside one word | belongs to that word | `aligned` |
| they touch two words or more | belongs to none | `spans_words` |
| they touch one word and characters that are no word's | belongs to none | `partly_outside` |
| they touch no word | belongs to none | `outside` |
| it is white space only | belongs to none | `white_space` |
| it stands for no characters (BOS, other tokens that the tokenizer adds) | belongs to none | `special` |
| its tokenizer gives no offsets | belongs to none | `no_offsets` |

Punctuation is a word where the source of the words says so, with a tag of its own. The tokens of an emoji that is
split into bytes all have the emoji's characters, and so its word.

A word split into many tokens is represented by its first, its last or every piece (`pieces`). Pieces are all tokens
that touch the word, in order, across the windows that a long text was cut into. Where the first (last) piece is a token
that spans two words, the word is not represented: its second piece is no first piece. A word whose end was cut off with
its text is not represented either, as nobody knows into how many pieces it would have come.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy import ndarray
from torch import Tensor

from basins.corpus import TokenBatch
from basins.errors import BasinsError, choose
from basins.words import TaggedText

PIECES = ("first", "last", "every")
KINDS = ("aligned", "spans_words", "partly_outside", "outside", "white_space", "special", "no_offsets")
NO_WORD = -1


@dataclass(frozen=True)
class Alignment:
    """`word`: the number of the token's word in its text, -1 for none. `kind`: which of `KINDS` the token is, -1 for
    padding. `piece`: which piece of its word it is, from 0. `n_pieces`: how many its word has; 0 for no word.
    `chosen`: the tokens that represent words. `counts`: tokens of each kind, and what became of the words."""

    word: Int[Tensor, "batch pos"]
    kind: Int[Tensor, "batch pos"]
    piece: Int[Tensor, "batch pos"]
    n_pieces: Int[Tensor, "batch pos"]
    chosen: Bool[Tensor, "batch pos"]
    counts: dict[str, int]


def align(batch: TokenBatch, texts: Sequence[TaggedText], pieces: str = "first") -> Alignment:
    """The word of every token of `batch`, which holds the tokens of `texts` (`batch.text_ids` are places in it).

    `pieces`: which tokens stand for a word that has several: "first", "last" or "every".
    Raises BasinsError where a token has characters beyond its text: then the batch is of other texts.
    """
    pieces = choose("pieces", pieces, PIECES)
    shape = batch.tokens.shape
    word, kind, piece = (np.full(shape, -1, dtype=np.int64) for _ in range(3))
    n_pieces, chosen = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    counts = dict.fromkeys([*KINDS, "words", "in_one_token", "in_many_tokens", "without_token", "cut_off"], 0)
    counts |= {"represented_words": 0, "chosen": 0}
    real = batch.attention_mask.bool().numpy()
    rows_of: dict[int, list[int]] = {}
    for row, number in enumerate(batch.text_ids):
        rows_of.setdefault(number, []).append(row)
    for number, rows in rows_of.items():
        if number >= len(texts):
            raise BasinsError(
                f"The batch has text {number}, and {len(texts)} tagged texts were given. They must be the same."
            )
        # Windows are consecutive, so the tokens of all rows in turn are the text from its start.
        at = np.concatenate([np.stack([np.full(int(real[r].sum()), r), np.flatnonzero(real[r])]) for r in rows], axis=1)
        spans = batch.offsets.numpy()[at[0], at[1]].astype(np.int64)
        found = _align_text(spans, texts[number], pieces, number, counts)
        for target, values in zip((word, kind, piece, n_pieces, chosen), found, strict=True):
            target[at[0], at[1]] = values
    for place, name in enumerate(KINDS):
        counts[name] = int((kind == place).sum())
    counts["chosen"] = int(chosen.sum())
    tensors = {"word": word, "kind": kind, "piece": piece, "n_pieces": n_pieces, "chosen": chosen}
    return Alignment(**{name: torch.from_numpy(values) for name, values in tensors.items()}, counts=counts)


def _align_text(
    spans: Int[ndarray, "token 2"], text: TaggedText, pieces: str, number: int, counts: dict[str, int]
) -> tuple[ndarray, ndarray, ndarray, ndarray, ndarray]:
    """(word, kind, piece, n_pieces, chosen) of the tokens of one text; adds to the counts of words."""
    n, n_words = len(spans), len(text)
    if n and spans[:, 1].max() > len(text.text):
        raise BasinsError(
            f"A token of text {number} ends at character {spans[:, 1].max()}, but the text has {len(text.text)}. Was "
            "the batch made of other texts, or of these in another order?"
        )
    start, end = _without_space(spans, text.text)
    starts, ends = np.array(text.spans, dtype=np.int64).reshape(-1, 2).T
    # Words come in order without overlap: those that a token touches are first .. last.
    first = np.searchsorted(ends, start, side="right")
    last = np.searchsorted(starts, end, side="left") - 1
    touched = np.where(end > start, last - first + 1, 0)
    one = touched == 1
    own = np.where(one, first, 0)
    inside = one & (n_words > 0)
    if n_words:
        inside &= (starts[own] <= start) & (end <= ends[own])
    kind = np.full(n, KINDS.index("outside"))
    kind[touched > 1] = KINDS.index("spans_words")
    kind[one & ~inside] = KINDS.index("partly_outside")
    kind[inside] = KINDS.index("aligned")
    kind[end <= start] = KINDS.index("white_space")
    kind[spans[:, 0] == spans[:, 1]] = KINDS.index("special")
    kind[spans[:, 0] < 0] = KINDS.index("no_offsets")
    word = np.where(inside, first, NO_WORD)

    # Pieces: (token, word) for every touch, the tokens of each word in order.
    touching = np.flatnonzero(touched > 0)
    token = np.repeat(touching, touched[touching])
    offset = np.arange(len(token)) - np.repeat(np.cumsum(touched[touching]) - touched[touching], touched[touching])
    of_word = first[token] + offset
    n_of = np.bincount(of_word, minlength=n_words)
    order = np.lexsort((token, of_word))
    rank = np.empty(len(token), dtype=np.int64)
    rank[order] = np.arange(len(token)) - np.repeat(np.cumsum(n_of) - n_of, n_of)
    reached = np.zeros(n_words, dtype=np.int64)
    np.maximum.at(reached, of_word, end[token])
    whole = (n_of > 0) & (reached >= ends)
    for lost in np.flatnonzero((n_of > 0) & ~whole):
        # Normalising tokenizers give "é" written as two characters the first one's place only.
        rest = text.text[reached[lost] : ends[lost]]
        whole[lost] = all(unicodedata.category(character)[0] in "MC" for character in rest)
    alone = kind[token] == KINDS.index("aligned")
    piece, n_pieces, chosen = np.full(n, -1), np.zeros(n, dtype=np.int64), np.zeros(n, dtype=bool)
    piece[token[alone]], n_pieces[token[alone]] = rank[alone], n_of[of_word[alone]]
    stands = {"first": rank == 0, "last": rank == n_of[of_word] - 1, "every": np.ones(len(token), dtype=bool)}[pieces]
    stands &= alone & whole[of_word]
    chosen[token[stands]] = True
    counts["words"] += n_words
    counts["in_one_token"] += int((n_of == 1).sum())
    counts["in_many_tokens"] += int((n_of > 1).sum())
    counts["without_token"] += int((n_of == 0).sum())
    counts["cut_off"] += int(((n_of > 0) & ~whole).sum())
    counts["represented_words"] += len(np.unique(of_word[stands]))
    return word, kind, piece, n_pieces, chosen


def _without_space(spans: Int[ndarray, "token 2"], text: str) -> tuple[Int[ndarray, "token"], Int[ndarray, "token"]]:
    """The tokens' characters without white space at either end; start = end where nothing else is there."""
    solid = np.array([not character.isspace() for character in text] + [True])
    at = np.flatnonzero(solid)
    before, after = np.maximum(spans[:, 0], 0), np.maximum(spans[:, 1], 0)
    start = at[np.searchsorted(at, before)]
    # The last solid character before `after`, and one more; 0 where there is none.
    place = np.searchsorted(at, after) - 1
    end = np.where(place >= 0, at[np.maximum(place, 0)] + 1, 0)
    return np.minimum(start, after), np.maximum(end, np.minimum(start, after))
