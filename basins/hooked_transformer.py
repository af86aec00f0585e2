"""Packed replay of a HookedTransformer block (TransformerLens 2 and 3).

Its blocks take no 4-D mask and count rotary positions by row. So the mask goes into the scores through their own hook
point, and the patched rows' queries and keys are rotated to the positions that they stand at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.block_calls import BlockCall, causal_mask, packed_mask
from basins.patching import call_block


def call_hooked_block(
    model: Any,
    call: BlockCall,
    packed: Float[Tensor, "batch row d_model"],
    positions: Int[Tensor, "batch patch"],
) -> Float[Tensor, "batch row d_model"]:
    """One call of the block on context and patched rows; raises CannotRebuild where it is called without a key mask."""
    pos, layer = call.pos, call.layer
    key_masks: list[Tensor] = []

    def extend(keys: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch row"]:
        key_masks.append(keys)
        return torch.cat([keys, keys.new_ones(len(packed), packed.shape[1] - pos)], 1)

    own = torch.arange(pos, device=packed.device).expand(len(packed), -1)
    args, kwargs = call.for_positions(packed, torch.cat([own, positions], 1), key_mask=extend)
    blocked = ~packed_mask(causal_mask(pos, packed.device), positions, pos)
    points = model.hook_dict
    handles = [
        points[f"blocks.{layer}.attn.hook_attn_scores"].register_forward_hook(
            lambda point, inputs, scores: scores.masked_fill(blocked.to(scores.device), float("-inf"))
        )
    ]
    try:
        if getattr(model.cfg, "positional_embedding_type", "standard") == "rotary":
            # A token's place among the real ones, as HookedTransformer counts it.
            places = (key_masks[0].cumsum(1) - 1).clamp_min(0).gather(1, positions.to(key_masks[0].device))
            for which in "qk":
                handles += _rotate_patches(model, layer, which, places, pos)
        return call_block(model, layer, args, kwargs, packed)
    finally:
        for handle in handles:
            handle.remove()


def _rotate_patches(model: Any, layer: int, which: str, places: Int[Tensor, "batch patch"], pos: int) -> list[Any]:
    """Replace the rotation by row number with one by place, for the patched rows of the queries or the keys."""
    attention = model.blocks[layer].attn
    before: dict[str, Tensor] = {}

    def keep(point: Any, inputs: Any, value: Float[Tensor, "batch row head d_head"]) -> None:
        before["value"] = value[:, pos:]

    def rotate(point: Any, inputs: Any, value: Float[Tensor, "batch row head d_head"]) -> Tensor:
        rotated, rest = before["value"].split([model.cfg.rotary_dim, value.shape[-1] - model.cfg.rotary_dim], dim=-1)
        cos, sin = (
            table[places.to(table.device)][:, :, None] for table in (attention.rotary_cos, attention.rotary_sin)
        )
        rotated = rotated * cos + attention.rotate_every_two(rotated) * sin
        return torch.cat([value[:, :pos], torch.cat([rotated, rest], -1).to(value)], 1)

    hooks: list[tuple[str, Callable]] = [(f"hook_{which}", keep), (f"hook_rot_{which}", rotate)]
    return [model.hook_dict[f"blocks.{layer}.attn.{name}"].register_forward_hook(fn) for name, fn in hooks]
