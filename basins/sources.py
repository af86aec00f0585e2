"""Where the states of the scored sequences come from: a cache, or a sweep that computes them as it goes.

In a sweep no cache of all layers is needed: the first rows of every packed re-run are the next layer, so two layers of
states are enough, whatever the depth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.activations import CacheStates
from basins.block_calls import BlockCall, CannotRebuild
from basins.lens import block_device, block_dtype, enter_layer, has_hooks
from basins.memory import fitted
from basins.progress import progress
from basins.rerun import LEAST_ROWS, ROWS_PER_POS, run_context
from basins.selfcheck import CheckedPath
from basins.shared_calls import CallRecorder
from basins.state_store import StateStore

FLOATS_PER_CALL = {"cpu": 2**24, "cuda": 2**29}
# For each: attention scores and their softmax, or what a layer reads and what it writes.
CALL_BYTES = 8


@dataclass(frozen=True)
class Chunk:
    """Sequences that are re-run together: their rows, their longest real length, and the blocks' arguments."""

    rows: slice
    length: int
    attention_mask: Int[Tensor, "batch pos"]
    calls: dict[int, BlockCall]

    def halves(self) -> list[Chunk]:
        """Two chunks of half as many sequences; itself where it is a single one or its calls cannot be taken apart."""
        n = len(self.attention_mask)
        middle = n // 2
        found = []
        try:
            for rows in (slice(0, middle), slice(middle, n)) if middle else ():
                calls = {layer: call.of_rows(rows) for layer, call in self.calls.items()}
                place = slice(self.rows.start + rows.start, self.rows.start + rows.stop)
                found.append(Chunk(place, self.length, self.attention_mask[rows], calls))
        except CannotRebuild:
            return [self]
        return found or [self]


@runtime_checkable
class Source(Protocol):
    """States by layer, on the device and in the dtype of computation, and how their blocks are re-run."""

    chunks: list[Chunk]
    paths: dict[int, CheckedPath]

    def states(self, layer: int) -> Float[Tensor, "batch pos d_model"]: ...

    def outputs(self, layer: int) -> Float[Tensor, "batch pos d_model"] | None:
        """Layer L+1 where it is known beforehand."""
        ...

    def room_for_next(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """Where the re-run of block `layer` writes layer L+1."""
        ...


def compute_device(model: Any, layer: int) -> torch.device:
    """Where distances and variances are computed: with the block, but never on MPS, which has no float64."""
    device = block_device(model, layer)
    return torch.device("cpu") if device.type == "mps" else device


def one_device(model: Any, layers: tuple[int, ...]) -> torch.device:
    """Where all these layers' states are computed; the host, where a model is spread over several devices."""
    devices = {compute_device(model, layer) for layer in range(layers[0], layers[-1] + 1)}
    return devices.pop() if len(devices) == 1 else torch.device("cpu")


@dataclass
class CacheSource:
    """States from a cache."""

    cache: CacheStates
    attention_mask: Int[Tensor, "batch pos"]
    model: Any
    dtype: torch.dtype
    chunks: list[Chunk] = field(default_factory=list)
    paths: dict[int, CheckedPath] = field(default_factory=dict)

    def states(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        return self._clean(self.cache.layer(layer)).to(compute_device(self.model, layer), self.dtype)

    def outputs(self, layer: int) -> Float[Tensor, "batch pos d_model"] | None:
        outputs = self.cache.outputs(layer)
        return self._clean(outputs) if outputs is not None else None

    def _clean(self, states: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """Whatever stands at padding must not reach a sum, not even times 0."""
        padding = (self.attention_mask == 0).to(states.device)
        if not padding.any():
            return states
        return states.masked_fill((padding & ~states.isfinite().all(-1))[..., None], 0)

    def room_for_next(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        return torch.zeros_like(self.states(layer))


class SweepSource:
    """States computed layer by layer, from the embedding of the tokens on."""

    def __init__(
        self,
        model: Any,
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"],
        layers: tuple[int, ...],
        dtype: torch.dtype,
        batch_size: int | None,
        budget: int,
        rerun: bool,
    ) -> None:
        self.model, self.layers, self.dtype, self.rerun = model, layers, dtype, rerun
        batch, pos = tokens.shape
        self.store = StateStore(batch, pos, int(model.cfg.d_model), dtype, 2, budget, one_device(model, layers))
        self.paths: dict[int, CheckedPath] = {}
        self.at = layers[0]
        first = self.store.create(self.at)

        def embedded(rows: slice, states: dict[int, Tensor]) -> None:
            value = states[self.at]
            first[rows, : value.shape[1]] = value.to(first)

        span = range(layers[0], layers[-1] + 1)
        self.chunks = record_chunks(model, tokens, attention_mask, span, batch_size, (self.at,), embedded)

    def states(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        while self.at < layer:
            if self.at + 1 not in self.store.tensors:
                self._run_context(self.at)
            # Before the layer counts as reached: `start_over` computes it anew.
            self._enter(self.at + 1)
            self.store.drop(self.at)
            self.at += 1
        return self.store.layer(layer).to(compute_device(self.model, layer))

    def outputs(self, layer: int) -> Float[Tensor, "batch pos d_model"] | None:
        """Only a look-up needs them before the block is re-run."""
        if self.rerun:
            return None
        if layer + 1 not in self.store.tensors:
            self._run_context(layer)
        return self.store.layer(layer + 1)

    def room_for_next(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        return self.store.create(layer + 1)

    def _enter(self, layer: int) -> None:
        """The user's hooks on the way into the layer, as in a forward pass."""
        if not has_hooks(self.model, layer):
            return
        states = self.store.layer(layer)
        device, dtype = block_device(self.model, layer), block_dtype(self.model, layer)
        for chunk in self.chunks:
            context = states[chunk.rows, : chunk.length].to(device, dtype)
            states[chunk.rows, : chunk.length] = enter_layer(self.model, layer, context).to(states)

    def _run_context(self, layer: int) -> None:
        states, after = self.store.layer(layer), self.store.create(layer + 1)
        device, dtype = block_device(self.model, layer), block_dtype(self.model, layer)
        path = self.paths[layer].path if layer in self.paths else "full_model"
        for chunk in self.chunks:
            context = states[chunk.rows, : chunk.length].to(device, dtype)
            result = run_context(self.model, path, chunk.calls[layer], context, chunk.attention_mask)
            after[chunk.rows, : chunk.length] = result.to(after)


def start_over(source: Source) -> None:
    """After a failure: forget what there is of the next layer, and re-run half as many sequences together."""
    if isinstance(source, SweepSource):
        source.store.drop(source.at + 1)
    source.chunks = [half for chunk in source.chunks for half in chunk.halves()]


def plan_batch(model: Any, length: int) -> int:
    """Sequences that are re-run together, so that attention scores and activations of one call fit."""
    n_heads = getattr(model.cfg, "n_heads", None) or 8
    return sequences_per_call(n_heads, int(model.cfg.d_model), length, block_device(model, 0).type)


def sequences_per_call(n_heads: int, d_model: int, length: int, device_type: str) -> int:
    rows = length + max(LEAST_ROWS, ROWS_PER_POS * length)
    floats = n_heads * rows * rows + 16 * d_model * rows
    return max(1, fitted(FLOATS_PER_CALL.get(device_type, 2**24), CALL_BYTES) // floats)


def even(total: int, most: int) -> int:
    """The size of as few parts as `most` allows, none of them a small rest."""
    return -(-total // -(-total // most)) if total else most


def record_chunks(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"],
    layers: range | tuple[int, ...],
    batch_size: int | None,
    keep_states: tuple[int, ...] = (),
    on_states: Callable[[slice, dict[int, Tensor]], None] | None = None,
) -> list[Chunk]:
    """Split the sequences into chunks and find out how the model calls its blocks for each."""
    place = torch.arange(1, attention_mask.shape[1] + 1)
    ends = (attention_mask * place).amax(1)
    size = batch_size or even(len(tokens), plan_batch(model, int(ends.max())))
    chunks, recorder = [], CallRecorder(model, layers)
    with progress("recording block calls", len(tokens)) as advance:
        for start in range(0, len(tokens), size):
            rows = slice(start, min(start + size, len(tokens)))
            length = int(ends[rows].max())
            mask = attention_mask[rows, :length]
            calls, states = recorder.record(tokens[rows, :length], mask, keep_states)
            if on_states is not None:
                on_states(rows, states)
            chunks.append(Chunk(rows, length, mask, calls))
            advance(rows.stop - rows.start)
    return chunks
