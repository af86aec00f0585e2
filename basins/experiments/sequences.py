"""The texts of an experiment as rows of tokens: which rows belong together, and two disjoint halves of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from basins.corpus import TokenBatch, read_texts, tokenize
from basins.errors import BasinsError
from basins.settings import whole

# Fewer texts than this make no interval: then each window counts as a sequence of its own, and the result says so.
ENOUGH_TEXTS = 20


@dataclass(frozen=True)
class Sequences:
    """`cluster`: the unit that tokens are dependent within, a number for each row. `repeated`: tokens whose whole
    prefix, themselves included, stood at the start of an earlier row too; they are the same observation twice."""

    batch: TokenBatch
    cluster: Int[Tensor, "batch"]
    unit: str
    repeated: Bool[Tensor, "batch pos"]

    @property
    def tokens(self) -> Int[Tensor, "batch pos"]:
        return self.batch.tokens

    @property
    def mask(self) -> Int[Tensor, "batch pos"]:
        return self.batch.attention_mask

    def only(self, rows: Int[Tensor, "row"]) -> Sequences:
        """Some of the rows as texts of their own."""
        batch = replace(
            self.batch,
            tokens=self.tokens[rows],
            attention_mask=self.mask[rows],
            offsets=self.batch.offsets[rows],
            text_ids=tuple(self.batch.text_ids[row] for row in rows.tolist()),
        )
        return Sequences(batch, self.cluster[rows], self.unit, self.repeated[rows])

    def halves(self, seed: int) -> tuple[Int[Tensor, "row"], Int[Tensor, "row"]]:
        """Rows of two disjoint halves of the units, drawn at random."""
        units = self.cluster.unique()
        drawn = units[torch.randperm(len(units), generator=torch.Generator().manual_seed(seed))]
        first = torch.isin(self.cluster, drawn[: (len(units) + 1) // 2])
        return first.nonzero()[:, 0], (~first).nonzero()[:, 0]

    def sample(self, n: int, seed: int) -> Int[Tensor, "row"]:
        """At most `n` rows, spread over the units: no unit gives a second row before all gave one."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.cluster), generator=generator)
        turn = torch.zeros(len(order), dtype=torch.long)
        seen: dict[int, int] = {}
        for place, row in enumerate(order.tolist()):
            unit = int(self.cluster[row])
            turn[place] = seen.get(unit, 0)
            seen[unit] = int(turn[place]) + 1
        chosen = order[turn.argsort(stable=True)][:n]
        return chosen.sort().values


def sequences(model: Any, texts: list[str] | str | None, max_length: int, limit: int | None) -> Sequences:
    """Windows of at most `max_length` tokens. `texts`: a list, a file or dataset, or None for the shipped book."""
    if limit is not None:
        whole("limit", limit, 1, "it counts texts, from the first one.")
    found = texts if isinstance(texts, list) else read_texts("pocket-demo" if texts is None else texts)
    found = found[:limit]
    context = getattr(model.cfg, "n_ctx", None) or max_length
    batch = tokenize(model, found, max_length=min(max_length, context), long_texts="split")
    n_texts = len(set(batch.text_ids))
    by_text = n_texts >= ENOUGH_TEXTS or n_texts == len(batch)
    cluster = torch.tensor(batch.text_ids) if by_text else torch.arange(len(batch))
    if len(batch) < 4:
        raise BasinsError(
            f"{len(batch)} sequences are too few for an experiment: neighbours come from other sequences, and tokens "
            "of one sequence are not independent. Give more texts, or a smaller max_length."
        )
    return Sequences(batch, cluster, "text" if by_text else "window", _repeated(batch))


def _repeated(batch: TokenBatch) -> Bool[Tensor, "batch pos"]:
    """Walks every row down one tree of prefixes: a step that exists already was taken by an earlier row."""
    steps: dict[tuple[int, int], int] = {}
    repeated = torch.zeros_like(batch.tokens, dtype=torch.bool)
    for row, (ids, real) in enumerate(zip(batch.tokens.tolist(), batch.attention_mask.sum(1).tolist(), strict=True)):
        node = 0
        for position, token in enumerate(ids[:real]):
            known = steps.get((node, token))
            repeated[row, position] = known is not None
            node = steps.setdefault((node, token), len(steps) + 1)
    return repeated
