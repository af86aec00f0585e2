"""The re-run core: patched rows attend to their sequence's context and to themselves, and to nothing else is asked.

Packed replay forms the attention scores of every patched row with every other and masks them away. Here a patched row
of position p multiplies the keys of its sequence alone; the score with itself is put into column p, where its own state
stands instead of the context's. So the scores are "row x pos" and the mask is row p of the model's own.

What depends on a state alone is computed once per state, however many queries it is patched into: its query, key and
value before rotation, and in a parallel block its whole MLP.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.block_calls import BlockCall, CannotRebuild, causal_mask
from basins.block_parts import BlockParts
from basins.memory import fitted
from basins.patched_attention import attend

# Floats of the largest intermediate of one piece: attention scores or the MLP's inner layer.
FLOATS_PER_PIECE = {"cpu": 2**20, "cuda": 2**28}
# For each: the scores, the mask gathered for them, and the weights.
PIECE_BYTES = 12


@dataclass(frozen=True)
class Projected:
    """What a block computes from states alone. Queries and keys are not rotated yet."""

    query: Float[Tensor, "*row head d_head"]
    key: Float[Tensor, "*row kv_head d_head"]
    value: Float[Tensor, "*row kv_head d_head"]
    mlp: Float[Tensor, "*row d_model"] | None

    def __getitem__(self, index: Any) -> Projected:
        mlp = None if self.mlp is None else self.mlp[index]
        return Projected(self.query[index], self.key[index], self.value[index], mlp)

    def unflatten(self, batch: int) -> Projected:
        """Rows of one axis as those of `batch` sequences."""
        parts = (None if part is None else part.unflatten(0, (batch, -1)) for part in vars(self).values())
        return Projected(*parts)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Ahead:
    """What is known of every state of a bank, and which of them the patches are."""

    bank: Projected
    ids: Int[Tensor, "batch patch"]


@dataclass(frozen=True)
class Context:
    """The sequences around the patches: keys (rotated, scaled), values, the additive mask and the rotary tables."""

    keys: Float[Tensor, "batch kv_head d_head pos"]
    values: Float[Tensor, "batch kv_head pos d_head"]
    mask: Float[Tensor, "batch mask_head pos pos"]
    rotary: tuple[Float[Tensor, "batch pos d_rotary"], Float[Tensor, "batch pos d_rotary"]] | None

    def __getitem__(self, rows: slice) -> Context:
        rotary = None if self.rotary is None else (self.rotary[0][rows], self.rotary[1][rows])
        return Context(self.keys[rows], self.values[rows], self.mask[rows], rotary)


def project(parts: BlockParts, states: Float[Tensor, "*row d_model"]) -> Projected:
    """In the block's dtype and on its device."""
    normed = parts.before_attention(states)
    query, key, value = (
        part(normed).unflatten(-1, (-1, parts.d_head)) for part in (parts.query, parts.key, parts.value)
    )
    if parts.query_norm is not None:
        query = parts.query_norm(query)
    if parts.key_norm is not None:
        key = parts.key_norm(key)
    return Projected(query, key, value, parts.mlp(parts.before_mlp(states)) if parts.parallel else None)


def context_of(
    parts: BlockParts,
    call: BlockCall,
    states: Float[Tensor, "batch pos d_model"],
    projected: Projected | None = None,
) -> Context:
    """Keys and values of the sequences as they are, from what `project` gives for them where that is known.

    Raises CannotRebuild where the call's arguments are not known.
    """
    masks: list[Tensor | None] = []
    tables: list[Tensor] = []

    def keep(name: str, leaf: Any) -> Any:
        if name == "attention_mask" and (leaf is None or isinstance(leaf, Tensor)):
            masks.append(leaf)
        elif name == "position_embeddings" and isinstance(leaf, Tensor):
            tables.append(leaf)
        return leaf

    call.with_states(states, keep)
    batch, pos = states.shape[:2]
    if len(masks) != 1 or len(tables) not in (0, 2):
        raise CannotRebuild(f"{len(masks)} attention masks and {len(tables)} rotary tables in the block's call")
    rotary = None
    if tables:
        if any(table.ndim != 3 or table.shape[1] != pos for table in tables):
            raise CannotRebuild(f"rotary tables of shape {tuple(tables[0].shape)} for {pos} positions")
        cos, sin = (table.expand(batch, -1, -1) for table in tables)
        rotary = (cos, sin)
    if projected is None:
        projected = project(parts, states)
    key = projected.key if rotary is None else _rotate(projected.key, *rotary)
    return Context(
        (key * parts.scaling).permute(0, 2, 3, 1).contiguous(),
        projected.value.transpose(1, 2).contiguous(),
        _additive(masks[0], pos, states).expand(batch, -1, -1, -1),
        rotary,
    )


def check_causal(context: Context) -> None:
    """Raises CannotRebuild where a position may attend to later ones: `push` leaves those keys out."""
    pos = context.mask.shape[-1]
    later = torch.ones(pos, pos, dtype=torch.bool, device=context.mask.device).triu(1)
    if bool((context.mask[..., later] > torch.finfo(context.mask.dtype).min / 2).any()):
        raise CannotRebuild("the attention mask is not causal")


def push(
    parts: BlockParts,
    context: Context,
    patches: Float[Tensor, "batch patch d_model"],
    positions: Int[Tensor, "batch patch"],
    projected: Ahead | None = None,
    last: int | None = None,
) -> Float[Tensor, "batch patch d_model"]:
    """Outputs of the block for every patch, at its position of its sequence.

    `projected` is what `project` gives for the bank that the patches come from, where it is known already; `last` the
    largest position, where it is known without asking the device.
    """
    pieces = list(_pieces(parts, context, patches))
    if len(pieces) == 1:
        return _push(parts, context, patches, positions, projected, last)
    outputs = torch.empty_like(patches)
    for rows, some in pieces:
        index = rows, some
        known = None if projected is None else Ahead(projected.bank, projected.ids[index])
        outputs[index] = _push(parts, context[rows], patches[index], positions[index], known, last)
    return outputs


def _pieces(parts: BlockParts, context: Context, patches: Tensor) -> Iterator[tuple[slice, slice]]:
    """Whole sequences where several fit, else parts of one."""
    batch, n_patches, d_model = patches.shape
    if not patches.numel():
        return
    heads, pos = -(-d_model // parts.d_head), context.values.shape[2]
    floats = fitted(FLOATS_PER_PIECE.get(patches.device.type, 2**20), PIECE_BYTES)
    rows = max(1, floats // max(heads * pos, 8 * d_model))
    if n_patches > rows:
        for row in range(batch):
            for start in range(0, n_patches, rows):
                yield slice(row, row + 1), slice(start, start + rows)
    else:
        step = rows // n_patches
        for start in range(0, batch, step):
            yield slice(start, start + step), slice(None)


def _push(
    parts: BlockParts,
    context: Context,
    patches: Tensor,
    positions: Tensor,
    ahead: Ahead | None,
    last: int | None,
) -> Float[Tensor, "batch patch d_model"]:
    projected, ids = (project(parts, patches), None) if ahead is None else (ahead.bank, ahead.ids)
    attended = parts.out(_attend(parts, context, projected, ids, positions, last))
    if parts.after_attention is not None:
        attended = parts.after_attention(attended)
    after = patches + attended
    if parts.parallel:
        assert projected.mlp is not None
        mlp = projected.mlp if ids is None else projected.mlp[ids]
    else:
        mlp = parts.mlp(parts.before_mlp(after))
    return after + (mlp if parts.after_mlp is None else parts.after_mlp(mlp))


def _attend(
    parts: BlockParts,
    context: Context,
    projected: Projected,
    ids: Int[Tensor, "batch patch"] | None,
    positions: Int[Tensor, "batch patch"],
    last: int | None,
) -> Float[Tensor, "batch patch d_attention"]:
    """The heads' mixtures of values, side by side. `ids`: the patches' rows of `projected`, if it is a bank's."""
    query, key, value = projected.query, projected.key, projected.value
    if context.rotary is not None:
        # Turned by where a patch stands, so each patch needs its own.
        if ids is not None:
            query, key, value, ids = query[ids], key[ids], value[ids], None
        index = positions[..., None].expand(-1, -1, context.rotary[0].shape[-1])
        cos, sin = (table.gather(1, index) for table in context.rotary)
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    if last is None and positions.device.type == "cpu":
        last = int(positions.max())
    # No patch attends to what comes after the last of them.
    pos = context.values.shape[2] if last is None else last + 1
    keys, values, mask = context.keys[..., :pos], context.values[:, :, :pos], context.mask[..., :pos]
    operands = query, key, value, keys, values, mask, positions
    return attend(*operands, parts.scaling, parts.softcap, parts.softmax, ids)


def _rotate(
    states: Float[Tensor, "batch row head d_head"],
    cos: Float[Tensor, "batch row d_rotary"],
    sin: Float[Tensor, "batch row d_rotary"],
) -> Float[Tensor, "batch row head d_head"]:
    """Rotary embedding of the first d_rotary dimensions, the halves (i, i + d_rotary / 2) as pairs."""
    turned, rest = states[..., : cos.shape[-1]], states[..., cos.shape[-1] :]
    first, second = turned.chunk(2, -1)
    turned = turned * cos[:, :, None] + torch.cat([-second, first], -1) * sin[:, :, None]
    return torch.cat([turned, rest], -1) if rest.shape[-1] else turned


def _additive(mask: Tensor | None, pos: int, states: Tensor) -> Float[Tensor, "batch mask_head pos pos"]:
    """The model's mask as what is added to scores: 0 or the dtype's least number, or a bias (ALiBi)."""
    if mask is None:
        mask = causal_mask(pos, states.device)
    if mask.ndim != 4 or tuple(mask.shape[-2:]) != (pos, pos):
        raise CannotRebuild(f"attention_mask of shape {tuple(mask.shape)}")
    mask = mask.to(states.device)
    if mask.dtype != torch.bool:
        return mask.to(states.dtype)
    least = torch.finfo(states.dtype).min
    return torch.zeros(mask.shape, dtype=states.dtype, device=states.device).masked_fill(~mask, least)
