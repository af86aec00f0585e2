"""A block re-run for many neighbours, each in its query's place and context, by the path that the self-check chose.

The core (`core.py`) is the fastest. Packed replay, here, needs nothing but the block's own forward:
the block's input is the sequence's context states followed by patched states. A patched row stands at its query's
position and may attend to what the model lets that position attend to, with its own state in the place of the query's,
and to no other patched row. So each patched row comes out as if it had been run alone (`patching.py`), at the cost of
one row instead of one sequence. The first `pos` output rows are the model's own next layer.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.block_calls import BlockCall, CannotRebuild, packed_mask
from basins.block_parts import block_parts
from basins.core import Ahead, Projected, context_of, project, push
from basins.hooked_transformer import call_hooked_block
from basins.lens import block_device, block_dtype
from basins.memory import AHEAD_SHARE, fitted
from basins.patching import call_block, patch_block, patch_model, restart_layers
from basins.precision import matmul_precision, products_are_full

# Patched rows per call, in sequence lengths. Fewer rows repeat the context more often; more rows form more attention
# scores between patched rows, which the mask then throws away.
ROWS_PER_POS = 2
LEAST_ROWS = 64
# What the core keeps of a bank's states, at most (queries, keys and values; counted as four states each).
PROJECTED_FLOATS = {"cpu": 2**28, "cuda": 2**31}
# For each: the piece that it comes in, and its place in the whole.
PROJECTED_BYTES = 8
PROJECTED_AT_ONCE = 8192
PROJECTED_NAMES = [field.name for field in fields(Projected)]


class Replay:
    """One block, ready to be re-run in its sequences' context by the path that the self-check chose.

    `states` are in the block's dtype and on its device. `precision` is that of the patched rows' matrix products; the
    next layer is always the model's own. `projected`: what the core computes from the states alone, if that is known.
    """

    def __init__(
        self,
        model: Any,
        path: str,
        call: BlockCall,
        states: Float[Tensor, "batch pos d_model"],
        attention_mask: Int[Tensor, "batch pos"],
        precision: str = "float32",
        projected: Projected | None = None,
    ) -> None:
        self.model, self.path, self.call, self.states, self.attention_mask = model, path, call, states, attention_mask
        self.precision = precision
        # Whether patched rows are multiplied as the model's own are.
        self.same_products = precision == "float32" and products_are_full(states.device)
        self._next: Float[Tensor, "batch pos d_model"] | None = None
        if path == "core":
            self.parts = block_parts(model, call.layer)
            with self._precision():
                self.context = context_of(self.parts, call, states, projected)

    def outputs(
        self,
        patches: Float[Tensor, "batch patch d_model"],
        positions: Int[Tensor, "batch patch"],
        projected: Ahead | None = None,
        last: int | None = None,
    ) -> Float[Tensor, "batch patch d_model"]:
        """Outputs for every patch. What the core may be spared: `projected` and `last`, as in `core.push`."""
        batch, n_patches, d_model = patches.shape
        with self._precision():
            if self.path == "core":
                return push(self.parts, self.context, patches, positions, projected, last)
            if self.path == "packed":
                outputs, next_states = packed_replay(self.model, self.call, self.states, patches, positions)
                if self.same_products and self._next is None:
                    self._next = next_states
                return outputs
            flat, at = patches.reshape(-1, d_model), positions.reshape(-1)
            rows = torch.arange(batch, device=patches.device).repeat_interleave(n_patches)
            if self.path == "single_block":
                outputs = patch_block(self.model, self.call, self.states, flat, rows, at)
            else:
                layer = self.call.layer
                outputs = patch_model(self.model, layer, self.states, self.attention_mask, flat, rows, at)
            return outputs.view_as(patches)

    def next_states(self) -> Float[Tensor, "batch pos d_model"]:
        """The next layer. Packed replay has it already, in float32, once outputs were asked for."""
        if self._next is None:
            self._next = run_context(self.model, self.path, self.call, self.states, self.attention_mask)
        return self._next

    def _precision(self) -> AbstractContextManager[None]:
        return matmul_precision(self.precision, self.states.device, self.states.dtype)


def rerun(
    model: Any,
    path: str,
    call: BlockCall,
    states: Float[Tensor, "batch pos d_model"],
    attention_mask: Int[Tensor, "batch pos"],
    patches: Float[Tensor, "batch patch d_model"],
    positions: Int[Tensor, "batch patch"],
) -> tuple[Float[Tensor, "batch patch d_model"], Float[Tensor, "batch pos d_model"]]:
    """Outputs for every patch and the next layer."""
    replay = Replay(model, path, call, states, attention_mask)
    return replay.outputs(patches, positions), replay.next_states()


def project_ahead(
    model: Any, layer: int, path: str, bank: Float[Tensor, "bank d_model"], rows: int, precision: str
) -> Projected | None:
    """What the core computes from the bank's states alone, once for each of them.

    None where it does not pay: for another path, for fewer patched rows than states, beyond the budget.
    """
    device, dtype = block_device(model, layer), block_dtype(model, layer)
    most = fitted(PROJECTED_FLOATS.get(device.type, 2**26), PROJECTED_BYTES, AHEAD_SHARE)
    if path != "core" or rows < len(bank) or 4 * bank.numel() > most:
        return None
    parts = block_parts(model, layer)
    with matmul_precision(precision, device, dtype):
        pieces = [project(parts, some.to(device, dtype)) for some in bank.split(PROJECTED_AT_ONCE)]
    return Projected(*(_joined([getattr(piece, name) for piece in pieces]) for name in PROJECTED_NAMES))


def _joined(pieces: list[Any]) -> Any:
    return None if pieces[0] is None else torch.cat(pieces)


def run_context(
    model: Any,
    path: str,
    call: BlockCall,
    states: Float[Tensor, "batch pos d_model"],
    attention_mask: Int[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos d_model"]:
    """The next layer: the block on the sequences as they are."""
    if path == "full_model":
        return restart_layers(model, {call.layer: states}, attention_mask)[call.layer]
    args, kwargs = call.with_states(states, lambda name, leaf: leaf)
    return call_block(model, call.layer, args, kwargs, states)


def packed_replay(
    model: Any,
    call: BlockCall,
    states: Float[Tensor, "batch pos d_model"],
    patches: Float[Tensor, "batch patch d_model"],
    positions: Int[Tensor, "batch patch"],
    rows_per_call: int | None = None,
) -> tuple[Float[Tensor, "batch patch d_model"], Float[Tensor, "batch pos d_model"]]:
    """Outputs of one block for every patch, and for the context (the next layer).

    `states` and `patches` are in the block's dtype and on its device. Patch j of sequence b stands at `positions[b,
    j]`. The result does not depend on `rows_per_call` (None: planned) beyond float rounding. Raises CannotRebuild
    where the block's arguments are not understood; whether a block is right when packed is for `selfcheck.py` to say.
    """
    pos, n_patches = states.shape[1], patches.shape[1]
    step = min(rows_per_call or max(LEAST_ROWS, ROWS_PER_POS * pos), room(model, call))
    if step < 1:
        raise CannotRebuild(f"the block has a mask of its own with no room beyond {pos} positions")
    outputs = torch.empty_like(patches)
    next_states = None
    for start in range(0, max(n_patches, 1), step):
        part = slice(start, start + step)
        result = _one_call(model, call, torch.cat([states, patches[:, part]], 1), positions[:, part])
        outputs[:, part] = result[:, pos:]
        if next_states is None:
            next_states = result[:, :pos]
    assert next_states is not None
    return outputs, next_states


def room(model: Any, call: BlockCall) -> int:
    """Patched rows that fit beside the context where a block keeps a mask or rotary table of fixed size.

    GPT-Neo and HookedTransformer do; the latter would grow its table and so change the user's model.
    """
    sizes = [
        buffer.shape[0] if name.endswith(("rotary_sin", "rotary_cos")) else buffer.shape[-1]
        for name, buffer in model.blocks[call.layer].named_buffers()
        if name.endswith(("rotary_sin", "rotary_cos"))
        or (buffer.dtype == torch.bool and buffer.ndim >= 2 and buffer.shape[-1] == buffer.shape[-2] > 1)
    ]
    return min(sizes, default=2**31) - call.pos


def _one_call(
    model: Any,
    call: BlockCall,
    packed: Float[Tensor, "batch row d_model"],
    positions: Int[Tensor, "batch patch"],
) -> Float[Tensor, "batch row d_model"]:
    if not hasattr(model, "adapter"):
        return call_hooked_block(model, call, packed, positions)
    own = torch.arange(call.pos, device=packed.device).expand(len(packed), -1)
    args, kwargs = call.for_positions(
        packed, torch.cat([own, positions], 1), mask=lambda recorded: packed_mask(recorded, positions, call.pos)
    )
    return call_block(model, call.layer, args, kwargs, packed)
