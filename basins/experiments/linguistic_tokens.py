"""The linguistic experiment's tokens: words, tags and confounds beside every score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from basins.alignment import KINDS, Alignment, align
from basins.experiments.sequences import Sequences, sequences
from basins.words import PUNCTUATION, Tagged

if TYPE_CHECKING:
    import pandas as pd

# What a tag must explain beyond: the density before the block, ln of the token's frequency in the texts, its position
# in the row (a trend, and its distance from the middle), the word's length in characters and in tokens.
CONFOUNDS = ("density", "log_frequency", "position", "position_bend", "word_length", "n_pieces")
LEAST = 10  # tokens of a tag
LEAST_SHARE = 0.5  # of the tokens of the fullest layer: a layer with fewer is left out, and named


def tagged_rows(model: Any, tagged: Tagged, max_length: int, pieces: str) -> tuple[Sequences, Alignment]:
    """The texts as rows of tokens, and the word of each token."""
    rows = sequences(model, [text.text for text in tagged.texts], max_length, None)
    return rows, align(rows.batch, tagged.texts, pieces)


def word_frame(rows: Sequences, alignment: Alignment, tagged: Tagged) -> pd.DataFrame:
    """One row a real token. `sentence` is its number over all texts, -1 for a token that has no word."""
    import pandas as pd

    sequence, position = (axis.numpy() for axis in rows.mask.bool().nonzero(as_tuple=True))
    word = alignment.word.numpy()[sequence, position]
    text = np.array(rows.batch.text_ids)[sequence]
    firsts = np.cumsum([0, *(max(found.sentences, default=-1) + 1 for found in tagged.texts)])
    has = word >= 0
    tags, words = np.full(len(word), "", dtype=object), np.full(len(word), "", dtype=object)
    sentence, length = np.full(len(word), -1), np.full(len(word), np.nan)
    for i in np.flatnonzero(has):
        found = tagged.texts[text[i]]
        tags[i], words[i] = found.tags[word[i]], found.word(word[i])
        sentence[i], length[i] = firsts[text[i]] + found.sentences[word[i]], len(words[i])
    columns = {"sequence": sequence, "position": position, "tag": tags, "word": words, "cluster": sentence}
    columns |= {"word_length": length, "text": text, "word_number": word}
    columns |= {name: getattr(alignment, name).numpy()[sequence, position] for name in ("piece", "n_pieces", "chosen")}
    kinds = alignment.kind.numpy()[sequence, position]
    return pd.DataFrame(columns | {"alignment": np.array(KINDS, dtype=object)[kinds]})


def with_words(frame: pd.DataFrame, words: pd.DataFrame) -> pd.DataFrame:
    """Scores or facts with the words of their tokens; a sentence takes the place of the text as the cluster."""
    keys = ["sequence", "position"]
    return frame.drop(columns="cluster").merge(words, on=keys, how="left", validate="many_to_one")


def mark(frame: Any) -> tuple[Any, dict[str, int]]:
    """The scores with `tested`, the tokens that take part, and `described`; and the tags that have too few tokens.

    Takes part: a token that is used, stands for its word, is not punctuation, and has a tag with at least 10 tokens.
    """
    good = frame["used"] & frame["chosen"].eq(True) & frame[list(CONFOUNDS)].notna().all(axis=1)
    tokens: Any = frame[good]
    counts = tokens.drop_duplicates(["sequence", "position"])["tag"].value_counts()
    few = {str(tag): int(n) for tag, n in counts.items() if n < LEAST}
    tested = good & ~frame["tag"].isin([*few, *PUNCTUATION])
    return frame.assign(tested=tested, described=good & ~frame["tag"].isin(list(few))), few


def full_layers(frame: pd.DataFrame) -> tuple[list[int], list[int]]:
    """(layers kept, layers left out): a rotary model's layer 0 has one state a token id, and few tokens to compare."""
    counts: Any = frame.groupby("layer")["tested"].sum()
    kept = [int(layer) for layer, n in counts.items() if n >= LEAST_SHARE * counts.max() and n > 0]
    return kept, [int(layer) for layer in counts.index if layer not in kept]
