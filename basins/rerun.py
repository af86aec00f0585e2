"""Packed replay: one call of a block re-runs it for many neighbours, each in its query's place and context.

The block's input is the sequence's context states followed by patched states. A patched row stands at its query's
position and may attend to what the model lets that position attend to, with its own state in the place of the query's,
and to no other patched row. So each patched row comes out as if it had been run alone (`patching.py`), at the cost of
one row instead of one sequence. The first `pos` output rows are the model's own next layer.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.block_calls import BlockCall, CannotRebuild, packed_mask
from basins.hooked_transformer import call_hooked_block
from basins.patching import call_block, patch_block, patch_model, restart_layers

# Patched rows per call, in sequence lengths. Fewer rows repeat the context more often; more rows form more attention
# scores between patched rows, which the mask then throws away.
ROWS_PER_POS = 2
LEAST_ROWS = 64


def rerun(
    model: Any,
    path: str,
    call: BlockCall,
    states: Float[Tensor, "batch pos d_model"],
    attention_mask: Int[Tensor, "batch pos"],
    patches: Float[Tensor, "batch patch d_model"],
    positions: Int[Tensor, "batch patch"],
) -> tuple[Float[Tensor, "batch patch d_model"], Float[Tensor, "batch pos d_model"]]:
    """Outputs for every patch and the next layer, by the path that the self-check chose."""
    if path == "packed":
        return packed_replay(model, call, states, patches, positions)
    batch, n_patches, d_model = patches.shape
    flat, at = patches.reshape(-1, d_model), positions.reshape(-1)
    rows = torch.arange(batch, device=states.device).repeat_interleave(n_patches)
    if path == "single_block":
        outputs = patch_block(model, call, states, flat, rows, at)
    else:
        outputs = patch_model(model, call.layer, states, attention_mask, flat, rows, at)
    return outputs.view_as(patches), run_context(model, path, call, states, attention_mask)


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
