"""How much attention a token receives, plainly, against uniform attention, by value norms, and rolled out."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from basins.passes import Passes


def pattern_name(layer: int) -> str:
    return f"blocks.{layer}.attn.hook_pattern"


def scores_name(layer: int) -> str:
    return f"blocks.{layer}.attn.hook_attn_scores"


def counted_pairs(
    usable: Bool[Tensor, "row pos"], queries: Bool[Tensor, "row pos"], include_self: bool
) -> Bool[Tensor, "row query key"]:
    """Which entries of a pattern are summed."""
    pairs = queries[:, :, None] & usable[:, None, :]
    own = torch.eye(usable.shape[1], dtype=torch.bool)
    return pairs if include_self else pairs & ~own


def received(
    pattern: Float[Tensor, "row head query key"], pairs: Bool[Tensor, "row query key"]
) -> Float[Tensor, "row key"]:
    """Sum over heads and queries of the pattern's column."""
    return pattern.masked_fill(~pairs[:, None], 0).sum((1, 2))


def seen_keys(
    pattern: Float[Tensor, "row head query key"], scores: Float[Tensor, "row head query key"] | None
) -> Bool[Tensor, "row head query key"]:
    """Which keys each query may attend to, by the model's own mask.

    Read from the masked scores. Some architectures show their scores before the mask; there a key counts as seen when
    any head gives it a weight that is not 0.
    """
    if scores is not None:
        seen = scores > torch.finfo(scores.dtype).min / 2
        if not bool(seen.triu(1).any()):
            return seen
    return (pattern > 0).any(1, keepdim=True).expand_as(pattern)


def uniform(seen: Bool[Tensor, "row head query key"], dtype: torch.dtype) -> Float[Tensor, "row head query key"]:
    """The pattern of a model that attends evenly: 1 / (number of keys that the query sees)."""
    return seen.to(dtype) / seen.sum(-1, keepdim=True).clamp_min(1)


def attention(
    passes: Passes, queries: Bool[Tensor, "batch pos"], relative: bool, include_self: bool
) -> Float[Tensor, "layer batch pos"]:
    """Attention received; `relative`: divided by what the same queries would give if they attended evenly."""
    values = passes.blank()
    names = [pattern_name(layer) for layer in passes.layers]
    if relative:
        names += [name for name in map(scores_name, passes.layers) if name in passes.model.hook_dict]
    for rows in passes.chunks():
        found = passes.read(rows, names, passes.layers[-1])
        for i, layer in enumerate(passes.layers):
            pattern = found[pattern_name(layer)].to(passes.dtype)
            pairs = counted_pairs(passes.usable[rows], queries[rows], include_self).to(pattern.device)
            total = received(pattern, pairs)
            if relative:
                seen = seen_keys(pattern, found.get(scores_name(layer)))
                total = total / received(uniform(seen, passes.dtype), pairs)
            values[i, rows] = total.cpu()
    return values


def attention_value(
    passes: Passes, queries: Bool[Tensor, "batch pos"], include_self: bool
) -> Float[Tensor, "layer batch pos"]:
    """Sum over heads h and queries q of pattern[h, q, key] * |v[h, key] W_O[h]| (Kobayashi et al. 2020, one head).

    The norm is taken head by head, so that heads which cancel still count.
    """
    values = passes.blank()
    names = [name for layer in passes.layers for name in (pattern_name(layer), value_name(layer))]
    for rows in passes.chunks():
        found = passes.read(rows, names, passes.layers[-1])
        for i, layer in enumerate(passes.layers):
            pattern = found[pattern_name(layer)].to(passes.dtype)
            norms = value_norms(passes.model, layer, found[value_name(layer)].to(passes.dtype), pattern.shape[1])
            pairs = counted_pairs(passes.usable[rows], queries[rows], include_self).to(pattern.device)
            values[i, rows] = received(pattern * norms.transpose(1, 2)[:, :, None], pairs).cpu()
    return values


def value_name(layer: int) -> str:
    return f"blocks.{layer}.attn.hook_v"


def value_norms(
    model: Any, layer: int, value: Float[Tensor, "row key kv_head d_head"], n_heads: int
) -> Float[Tensor, "row key head"]:
    """L2 norm of each head's value vector as it is written to the stream; grouped value heads are shared out."""
    w_o: Float[Tensor, "head d_head d_model"] = model.blocks[layer].attn.W_O.detach().to(value)
    value = value.reshape(*value.shape[:2], -1, w_o.shape[1])
    value = value.repeat_interleave(n_heads // value.shape[2], 2)
    # |v W|^2 = v (W W^T) v^T keeps d_model out of memory.
    gram = w_o @ w_o.transpose(1, 2)
    return torch.einsum("rkhd,hde,rkhe->rkh", value, gram, value).clamp_min(0).sqrt()


def rollout(passes: Passes, queries: Bool[Tensor, "batch pos"]) -> Float[Tensor, "layer batch pos"]:
    """Attention rollout (Abnar and Zuidema 2020): column sums of R_L = A_L ... A_0.

    A_l is half the identity (the skip connection) plus half the mean pattern of block l's heads, rows summing to 1.
    """
    values = passes.blank()
    upto = range(passes.layers[-1] + 1)
    for rows in passes.chunks():
        found = passes.read(rows, map(pattern_name, upto), passes.layers[-1])
        rolled = torch.eye(passes.tokens.shape[1], dtype=passes.dtype).expand(len(rows), -1, -1)
        real = passes.mask[rows].bool()
        for layer in upto:
            mean = found[pattern_name(layer)].to("cpu", passes.dtype).mean(1).masked_fill(~real[:, :, None], 0)
            mixed = mean + torch.eye(mean.shape[-1], dtype=mean.dtype)
            rolled = (mixed / mixed.sum(-1, keepdim=True)) @ rolled
            if layer in passes.layers:
                kept = rolled.masked_fill(~queries[rows][:, :, None], 0).sum(1)
                values[passes.layers.index(layer), rows] = kept
    return values
