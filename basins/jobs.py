"""A call of `score_tokens` in sizes: what runs at once, and where states are, for the arithmetic of `costs.py`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from basins.block_parts import KNOWN
from basins.core import FLOATS_PER_PIECE, PIECE_BYTES
from basins.memory import AHEAD_SHARE, Budget, fitted, within
from basins.rerun import PROJECTED_BYTES, PROJECTED_FLOATS
from basins.settings import ScorerSettings
from basins.shapes import ModelShape
from basins.sources import even, sequences_per_call
from basins.state_store import MEMORY_BUDGET, SHARE_OF_GPU
from basins.transition import patch_floats


@dataclass(frozen=True)
class Job:
    """A call: so many sequences of `length` tokens, scored at `n_scored` layers, the last of which is `last`."""

    shape: ModelShape
    n_sequences: int
    length: int
    settings: ScorerSettings
    device: torch.device
    budget: Budget | None = None
    first: int = 0
    last: int | None = None
    n_scored: int | None = None
    states_budget: int = MEMORY_BUDGET
    half: bool = False

    @property
    def n(self) -> int:
        """Tokens, all of them queries and bank."""
        return self.n_sequences * self.length

    @property
    def layers(self) -> int:
        return self.n_scored or self.shape.n_layers

    @property
    def end(self) -> int:
        """The last layer that is scored."""
        return self.shape.n_layers - 1 if self.last is None else self.last

    @property
    def span(self) -> int:
        """Layers that the sweep passes through."""
        return self.end - self.first + 1

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"

    @property
    def float_bytes(self) -> int:
        """Of distances and variances."""
        if self.settings.dtype is not None:
            return 8 if self.settings.dtype == "float64" else 4
        return max(4, self.shape.dtype_bytes)

    @property
    def states_bytes(self) -> float:
        """One layer's."""
        return self.n * self.shape.d_model * self.float_bytes

    @property
    def rerun(self) -> bool:
        return self.settings.method == "rerun"

    @property
    def core(self) -> bool:
        return self.shape.block in KNOWN

    @property
    def parallel(self) -> bool:
        """Whether attention and MLP read the same state, among the blocks that the core knows."""
        return self.shape.block == "GPTNeoXLayer"

    @property
    def states_on_gpu(self) -> bool:
        """By default the budget is half of what is free there."""
        free = 0 if self.on_cpu or self.budget is None else 2 * self.budget.n_bytes
        return 2 * self.states_bytes <= SHARE_OF_GPU * free

    @property
    def on_disk(self) -> bool:
        return 2 * self.states_bytes > self.states_budget and not self.states_on_gpu

    @property
    def sequences_at_once(self) -> int:
        with within(self.budget):
            most = sequences_per_call(self.shape.n_heads, self.shape.d_model, self.length, self.device.type)
        return min(self.n_sequences, self.settings.batch_size or even(self.n_sequences, most))

    @property
    def patched_at_once(self) -> int:
        """Patched rows of one group, over all sequences of a chunk."""
        c, k = self.sequences_at_once, self.settings.k
        with within(self.budget):
            per_call = max(1, patch_floats(self.device) // (c * k * self.shape.d_model))
        return min(per_call, self.length) * c * k

    @property
    def piece(self) -> int:
        """Rows of a group that go through the block together."""
        with within(self.budget):
            floats = fitted(FLOATS_PER_PIECE.get(self.device.type, 2**20), PIECE_BYTES)
        heads = -(-self.shape.d_model // self.shape.d_head)
        return min(self.patched_at_once, max(1, floats // max(heads * self.length, 8 * self.shape.d_model)))

    @property
    def projected_row(self) -> int:
        """Floats that are computed ahead for one state."""
        mlp = self.shape.d_model if self.parallel else 0
        return self.shape.d_head * (self.shape.n_heads + 2 * self.shape.n_kv_heads) + mlp

    @property
    def projects_ahead(self) -> bool:
        with within(self.budget):
            most = fitted(PROJECTED_FLOATS.get(self.device.type, 2**26), PROJECTED_BYTES, AHEAD_SHARE)
        fits = 4 * self.n * self.shape.d_model <= most
        return self.rerun and self.core and self.settings.shrink == 1 and fits
