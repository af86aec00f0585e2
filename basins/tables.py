"""Scores -> small tables to read: which tokens a layer compresses most and least."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from basins.errors import BasinsError, choose
from basins.scores import LEAST_DISTINCT

if TYPE_CHECKING:
    import pandas as pd

    from basins.scores import BasinScores

RANKED_BY = ("relative", "update", "raw")
CONTEXT_BEFORE, CONTEXT_AFTER = 8, 4


def extreme_tokens(
    scores: BasinScores, n: int = 2, score: str = "relative", layers: int | Iterable[int] | None = None
) -> pd.DataFrame:
    """The n most and n least compressed tokens of each layer by one score, with their surroundings.

    Left out: tokens with fewer than 3 distinct states among themselves and their neighbours, and the first position of
    each sequence. A token id is listed once a layer and side, by its most extreme occurrence. Columns: layer, side
    ("most", "least"), sequence, position, before, token, after, and relative, update, raw, density in nats.
    """
    import pandas as pd

    choose("score", score, RANKED_BY)
    if n < 1:
        raise BasinsError(f"n={n} lists no token. Possible: 1 or more.")
    wanted = scores.layers if layers is None else [layers] if isinstance(layers, int) else list(layers)
    real = scores.real_tokens()
    first = torch.zeros_like(real).scatter(1, real.int().argmax(1, keepdim=True), True)
    shown = {name: getattr(scores, name) for name in ("relative", "update", "raw", "density")}
    rows = []
    for layer in wanted:
        i = scores.layer_index(layer)
        keep = real & ~first & (scores.n_distinct[i] >= LEAST_DISTINCT) & shown[score][i].isfinite()
        places = keep.nonzero()
        order = shown[score][i][keep].argsort(stable=True)
        for side, ranked in (("most", order.flip(0)), ("least", order)):
            for sequence, position in _once_each(scores, places[ranked].tolist(), n):
                before, token, after = in_context(scores, sequence, position)
                place = {"layer": scores.layers[i], "side": side, "sequence": sequence, "position": position}
                words = {"before": before, "token": token, "after": after}
                rows.append(place | words | {k: float(v[i, sequence, position]) for k, v in shown.items()})
    return pd.DataFrame(rows)


def _once_each(scores: BasinScores, places: list[list[int]], n: int) -> list[list[int]]:
    found: dict[int, list[int]] = {}
    for sequence, position in places:
        token = int(scores.tokens[sequence, position]) if scores.tokens is not None else len(found)
        found.setdefault(token, [sequence, position])
        if len(found) == n:
            break
    return list(found.values())


def in_context(scores: BasinScores, sequence: int, position: int) -> tuple[str, str, str]:
    """A token with what stands before and after it; ids or positions where no tokenizer is known."""
    real = scores.real_tokens()[sequence].nonzero()[:, 0]
    start, end = int(real[0]), int(real[-1]) + 1
    if scores.token_strings is not None:
        words = list(scores.token_strings[sequence])
    elif scores.tokens is not None:
        words = [f" {token}" for token in scores.tokens[sequence].tolist()]
    else:
        words = [f" {at}" for at in range(scores.values.shape[2])]
    before = words[max(start, position - CONTEXT_BEFORE) : position]
    return "".join(before), words[position], "".join(words[position + 1 : min(end, position + 1 + CONTEXT_AFTER)])
