"""Any states through any block, each in the place and context of a token that one chooses.

What a score does with a token's nearest neighbours, experiments do with other states: neighbours in each other's
contexts, random states, displacements from elsewhere. The paths are those of the scores, self-check included.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.activations import CacheStates, check_finite, check_mask, check_tokens
from basins.block_calls import dummy_tokens
from basins.corpus import check_room
from basins.errors import BasinsError
from basins.lens import as_found, block_device, block_dtype, check_layers, measuring_dtype
from basins.rerun import Replay, run_context
from basins.selfcheck import SelfCheck
from basins.sources import CacheSource, Source, SweepSource, record_chunks
from basins.state_store import MEMORY_BUDGET
from basins.transition import check_next_layer, patch_floats


@dataclass(frozen=True)
class Place:
    """One transition of the texts: layer L (`states`), layer L+1 (`outputs`), and block L for any other states."""

    model: Any
    layer: int
    states: Float[Tensor, "batch pos d_model"]
    outputs: Float[Tensor, "batch pos d_model"]
    source: Source
    precision: str

    def push(
        self, states: Float[Tensor, "patch d_model"], tokens: Int[Tensor, "patch"]
    ) -> Float[Tensor, "patch d_model"]:
        """The block's output for every state, standing where token `sequence * n_pos + position` stands."""
        n_pos = self.states.shape[1]
        if states.ndim != 2 or len(states) != len(tokens):
            raise BasinsError(f"states {list(states.shape)} and tokens {list(tokens.shape)} must have one row a patch.")
        results = torch.empty_like(states)
        row, position = tokens.cpu() // n_pos, tokens.cpu() % n_pos
        for chunk in self.source.chunks:
            mine = ((row >= chunk.rows.start) & (row < chunk.rows.stop)).nonzero()[:, 0]
            if not len(mine):
                continue
            mine = mine[row[mine].argsort(stable=True)]
            real = chunk.attention_mask.cpu()
            inside = row[mine] - chunk.rows.start
            if bool((real[inside, position[mine].clamp_max(chunk.length - 1)] == 0).any()):
                raise BasinsError("tokens names padding: no state can stand there. Pass flat ids of real tokens.")
            counts = inside.bincount(minlength=len(real))
            column = torch.arange(len(mine)) - (counts.cumsum(0) - counts)[inside]
            # Rows with fewer patches than the fullest are filled up with some patch at a real position, and dropped.
            taken = mine[:1].repeat(len(real), int(counts.max()))
            at = real.argmax(1, keepdim=True).repeat(1, taken.shape[1])
            wanted = torch.zeros_like(taken, dtype=torch.bool)
            taken[inside, column], at[inside, column], wanted[inside, column] = mine, position[mine], True
            self._push_chunk(chunk, states, taken, at, wanted, results)
        return results

    def _push_chunk(self, chunk: Any, states: Tensor, taken: Tensor, at: Tensor, wanted: Tensor, out: Tensor) -> None:
        device, dtype = block_device(self.model, self.layer), block_dtype(self.model, self.layer)
        context = self.states[chunk.rows, : chunk.length].to(device, dtype)
        path, call = self.source.paths[self.layer].path, chunk.calls[self.layer]
        replay = Replay(self.model, path, call, context, chunk.attention_mask, self.precision)
        step = max(1, patch_floats(device) // (len(taken) * states.shape[1]))
        for some in torch.arange(taken.shape[1]).split(step):
            part, kept = taken[:, some], wanted[:, some]
            pushed = replay.outputs(states[part.to(states.device)].to(device, dtype), at[:, some].to(device))
            out[part[kept].to(out.device)] = pushed[kept.to(device)].to(out)


def places(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    layers: int | Iterable[int] | None = None,
    *,
    dtype: torch.dtype | None = None,
    precision: str = "float32",
    batch_size: int | None = None,
    memory_budget: int = MEMORY_BUDGET,
    seed: int = 0,
) -> Generator[Place]:
    """The transitions of `layers` one after the other (None: all), in rising order: two layers of states in memory.

    `states` and what is pushed are in `dtype` (None: float64 for float64 models, else float32), blocks run in the
    model's own. A Place is good until the next is asked for. Gradients are off until the last Place is done with, or
    until the generator is closed (`contextlib.closing`).
    """
    wanted = check_layers(model, layers)
    ids = check_tokens(tokens, None)
    if ids is None:
        raise BasinsError("tokens is None. Pass token ids, one row a sequence.")
    check_room(model, ids)
    mask = check_mask(attention_mask, (ids.shape[0], ids.shape[1]))
    dtype = dtype or measuring_dtype(model)
    with as_found(model):
        source = SweepSource(model, ids, mask, wanted, dtype, batch_size, memory_budget, rerun=False)
        source.paths = SelfCheck(model, seed).paths(ids, mask, tuple(range(wanted[0], wanted[-1] + 1)))
        for layer in wanted:
            states, outputs = source.states(layer), source.outputs(layer)
            assert outputs is not None
            check_finite(states, mask.bool(), layer)
            yield Place(model, layer, states, outputs.to(states), source, precision)


def places_of_cache(
    model: Any,
    cache: Any,
    tokens: Int[Tensor, "batch pos"] | None = None,
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    layers: int | Iterable[int] | None = None,
    *,
    dtype: torch.dtype | None = None,
    precision: str = "float32",
    batch_size: int | None = None,
    seed: int = 0,
) -> Generator[Place]:
    """`places` of the states in a cache, as `BasinScorer.score` takes it.

    Raises BasinsError when a block on the cached states does not give the cached next layer.
    """
    wanted = check_layers(model, layers)
    cached = CacheStates(cache, model)
    given = check_tokens(tokens, cached.shape)
    mask = check_mask(attention_mask, cached.shape)
    dtype = dtype or measuring_dtype(model)
    for layer in wanted:
        check_finite(cached.layer(layer), mask.bool(), layer)
    with as_found(model):
        source = CacheSource(cached, mask, model, dtype)
        ids = given if given is not None else dummy_tokens(model, *cached.shape).cpu()
        source.paths = SelfCheck(model, seed).paths(ids, mask, wanted, lambda layer, row: cached.layer(layer)[row])
        source.chunks = record_chunks(model, ids, mask, wanted, batch_size)
        for layer in wanted:
            states, known = source.states(layer), source.outputs(layer)
            device, own = block_device(model, layer), block_dtype(model, layer)
            outputs = source.room_for_next(layer)
            for chunk in source.chunks:
                context = states[chunk.rows, : chunk.length]
                call, path = chunk.calls[layer], source.paths[layer].path
                after = run_context(model, path, call, context.to(device, own), chunk.attention_mask)
                outputs[chunk.rows, : chunk.length] = after.to(outputs)
                if known is not None:
                    check_next_layer(chunk, layer, context, outputs, known, own)
            yield Place(model, layer, states, outputs if known is None else known.to(states), source, precision)
