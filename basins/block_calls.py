"""How a model called its blocks: recorded from a real forward pass, and rebuilt for other rows and positions.

Masks, rotary tables, position ids and ALiBi slopes reach a block in different arguments in every architecture. None of
them depends on the tokens, so a forward pass over any tokens of the same shape and padding records them all. Each
tensor argument gets a role by its name and shape, and can then be gathered for other rows (copies of sequences) and
other positions (packed replay). What has no known role is refused with `CannotRebuild`, never guessed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from basins.lens import Enough, input_device, resid_pre, run

CACHE_NAMES = (
    "past_key_values",
    "past_key_value",
    "layer_past",
    "cache",
    "cache_params",
    "cache_position",
    "past_kv_cache_entry",
)
# Names whose position axis is known, counted from the end; any other tensor must have exactly one axis of that length.
POSITION_AXIS = {"position_ids": -1, "alibi": -1, "position_embeddings": -2, "shortformer_pos_embed": -2}


class CannotRebuild(Exception):
    """This block's arguments cannot be rebuilt for other positions; plain patching is the way out."""


@dataclass(frozen=True)
class BlockCall:
    """The arguments of one block in one forward pass over `batch` sequences of `pos` tokens.

    Without the hidden states, which every call brings, and without key-value caches.
    """

    layer: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    arg_names: tuple[str, ...]
    batch: int
    pos: int

    def with_states(
        self, states: Float[Tensor, "batch pos d_model"] | None, fn: Callable[[str, Any], Any]
    ) -> tuple[tuple, dict]:
        """The call with other hidden states (None: none) and each other argument leaf replaced by `fn(name, leaf)`."""
        args = [_map(name, value, fn) for name, value in zip(self.arg_names, self.args, strict=True)]
        kwargs = {name: _map(name, value, fn) for name, value in self.kwargs.items()}
        if args:
            args[0] = states
        else:
            kwargs["hidden_states"] = states
        return tuple(args), kwargs

    def for_rows(self, states: Float[Tensor, "row pos d_model"], rows: Int[Tensor, "row"]) -> tuple[tuple, dict]:
        """The call for copies of sequences: row i is sequence `rows[i]`, with the states given."""
        return self.with_states(states, lambda name, leaf: _take_rows(name, leaf, rows, self.batch))

    def of_rows(self, rows: slice) -> BlockCall:
        """The call of some of its sequences. Raises CannotRebuild where a leading axis is not that of sequences."""
        index = torch.arange(self.batch)[rows]
        args, kwargs = self.with_states(None, lambda name, leaf: _take_rows(name, leaf, index, self.batch))
        return BlockCall(self.layer, args, kwargs, self.arg_names, len(index), self.pos)

    def for_positions(
        self,
        states: Float[Tensor, "batch row d_model"],
        positions: Int[Tensor, "batch row"],
        mask: Callable[[Tensor | None], Tensor] | None = None,
        key_mask: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[tuple, dict]:
        """The call for rows that stand at the given positions of their sequence.

        `mask` turns the recorded 4-D attention mask (None: causal) into the new one, `key_mask` a recorded 2-D one.
        Raises CannotRebuild for an argument of unknown role, and unless exactly one mask was found.
        """
        masks_seen = 0

        def rebuild(name: str, leaf: Any) -> Any:
            nonlocal masks_seen
            if name == "attention_mask" and (leaf is None or isinstance(leaf, Tensor)):
                masks_seen += 1
                if leaf is not None and leaf.ndim == 2 and key_mask is not None:
                    return key_mask(leaf)
                square = leaf is None or (leaf.ndim == 4 and tuple(leaf.shape[-2:]) == (self.pos, self.pos))
                if mask is None or not square:
                    raise CannotRebuild(f"attention_mask of shape {None if leaf is None else tuple(leaf.shape)}")
                return mask(leaf)
            if not isinstance(leaf, Tensor) or leaf.ndim == 0:
                return leaf
            return _take_positions(name, leaf, positions, self.batch, self.pos)

        call = self.with_states(states, rebuild)
        if masks_seen != 1:
            raise CannotRebuild("the block is called without an attention mask")
        return call


def _map(name: str, value: Any, fn: Callable[[str, Any], Any]) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_map(name, item, fn) for item in value)
    if isinstance(value, dict):
        return {key: _map(name, item, fn) for key, item in value.items()}
    return fn(name, value)


def _take_rows(name: str, leaf: Any, rows: Int[Tensor, "row"], batch: int) -> Any:
    """Select sequences along the leading axis, which is 1, or `batch`, or `batch * n_heads` (BLOOM's ALiBi)."""
    if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] == 1:
        return leaf
    if leaf.shape[0] != batch and (name != "alibi" or leaf.shape[0] % batch):
        raise CannotRebuild(f"{name} of shape {tuple(leaf.shape)} for {batch} sequences")
    return leaf.reshape(batch, -1, *leaf.shape[1:])[rows.to(leaf.device)].flatten(0, 1)


def _take_positions(name: str, leaf: Tensor, positions: Int[Tensor, "batch row"], batch: int, pos: int) -> Tensor:
    """Gather an argument along its position axis, for every sequence its own positions."""
    axis = POSITION_AXIS.get(name, 0)
    if axis == 0 or leaf.ndim < -axis or leaf.shape[axis] != pos:
        fitting = [i for i in range(1, leaf.ndim) if leaf.shape[i] == pos]
        if len(fitting) != 1:
            raise CannotRebuild(f"{name} of shape {tuple(leaf.shape)} for {pos} positions")
        axis = fitting[0] - leaf.ndim
    lead = leaf.shape[0]
    if lead == 1:
        leaf, lead = leaf.expand(batch, *leaf.shape[1:]), batch
    if lead % batch or (lead != batch and name != "alibi"):
        raise CannotRebuild(f"{name} of shape {tuple(leaf.shape)} for {batch} sequences")
    index = positions.to(leaf.device).repeat_interleave(lead // batch, 0)
    shape, full = [1] * leaf.ndim, list(leaf.shape)
    shape[0], shape[axis], full[axis] = lead, positions.shape[1], positions.shape[1]
    return leaf.gather(axis, index.view(shape).expand(full))


def record_calls(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"],
    layers: Iterable[int],
    keep_states: Iterable[int] = (),
) -> tuple[dict[int, BlockCall], dict[int, Float[Tensor, "batch pos d_model"]]]:
    """Run the model once; return how it called the blocks of `layers`, and the states entering those of `keep_states`.

    The states are taken after the user's own hooks on `resid_pre` (steering), as a cache has them. The pass ends where
    the last of them is known.
    """
    layers, keep_states = list(layers), list(keep_states)
    last_call, last_state = max(layers, default=-1), max(keep_states, default=-1)
    calls: dict[int, BlockCall] = {}
    states: dict[int, Tensor] = {}
    shared: dict[int, tuple[Tensor, Tensor]] = {}
    handles = []

    def recorder(layer: int) -> Callable:
        def record(block: Any, args: tuple, kwargs: dict) -> None:
            inner = getattr(block, "original_component", None) or block
            named = [
                p.name for p in inspect.signature(inner.forward).parameters.values() if p.kind is not p.VAR_POSITIONAL
            ]
            names = [named[i] if i < len(named) else f"argument {i}" for i in range(len(args))]
            batch, pos = (args[0] if args else kwargs["hidden_states"]).shape[:2]
            # The hidden states themselves are left out: kept for every layer they would be a whole cache.
            args, kwargs = (None, *args[1:]) if args else args, kwargs | ({} if args else {"hidden_states": None})

            def kept(name: str, value: Any) -> Any:
                return _map(name, _no_cache(name, value), lambda name, leaf: _one_row(leaf, batch, shared))

            clean_args = tuple(kept(name, value) for name, value in zip(names, args, strict=True))
            clean_kwargs = {name: kept(name, value) for name, value in kwargs.items()}
            calls[layer] = BlockCall(layer, clean_args, clean_kwargs, tuple(names), batch, pos)
            if layer == last_call > last_state:
                raise Enough

        return record

    def keeper(layer: int) -> Callable:
        def keep(point: Any, inputs: Any, output: Tensor) -> None:
            states[layer] = output.detach()
            if layer == last_state >= last_call:
                raise Enough

        return keep

    try:
        for layer in layers:
            handles.append(model.blocks[layer].register_forward_pre_hook(recorder(layer), with_kwargs=True))
        for layer in keep_states:
            handles.append(model.hook_dict[resid_pre(layer)].register_forward_hook(keeper(layer)))
        run(model, tokens, attention_mask, [])
    finally:
        for handle in handles:
            handle.remove()
    return calls, states


def _no_cache(name: str, value: Any) -> Any:
    """Key-value caches and requests for them are left out: a re-run neither reads nor grows one."""
    if name == "use_cache":
        return False
    if (
        name in CACHE_NAMES
        or hasattr(value, "get_seq_length")
        or type(value).__name__.endswith(("Cache", "CacheEntry"))
    ):
        return None
    return value


def _one_row(leaf: Any, batch: int, shared: dict[int, tuple[Tensor, Tensor]]) -> Any:
    """A mask that is the same for all sequences is kept once; blocks that share a mask go on sharing it."""
    if not isinstance(leaf, Tensor) or leaf.ndim != 4 or leaf.shape[0] != batch or batch == 1:
        return leaf
    if id(leaf) not in shared:
        same = bool((leaf == leaf[:1]).all())
        # The original is held too, so that its id stays its own.
        shared[id(leaf)] = (leaf, leaf[:1].clone() if same else leaf)
    return shared[id(leaf)][1]


def dummy_tokens(model: Any, batch: int, pos: int) -> Int[Tensor, "batch pos"]:
    """Tokens for a recording pass whose content does not matter."""
    return torch.zeros(batch, pos, dtype=torch.long, device=input_device(model))


def causal_mask(pos: int, device: torch.device) -> Bool[Tensor, "1 1 pos pos"]:
    return torch.ones(pos, pos, dtype=torch.bool, device=device).tril()[None, None]


def packed_mask(mask: Tensor | None, positions: Int[Tensor, "batch patch"], pos: int) -> Tensor:
    """The model's mask ("batch head pos pos", bool or additive; None: causal) for context and patched rows.

    A patched row copies the row of its position, moves that position's own column to its own, and sees no other patch.
    """
    if mask is None:
        mask = causal_mask(pos, positions.device)
    batch, n_patches = positions.shape
    positions = positions.to(mask.device)
    blocked: bool | float = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    mask = mask.expand(batch, -1, -1, -1)
    heads = mask.shape[1]
    index = positions[:, None, :, None].expand(-1, heads, -1, -1)
    rows = mask.gather(2, index.expand(-1, -1, -1, pos))
    own = rows.gather(3, index)
    rows.scatter_(3, index, blocked)
    packed = mask.new_full((batch, heads, pos + n_patches, pos + n_patches), blocked)
    packed[:, :, :pos, :pos] = mask
    packed[:, :, pos:, :pos] = rows
    packed[:, :, pos:, pos:].diagonal(dim1=2, dim2=3).copy_(own[..., 0])
    return packed
