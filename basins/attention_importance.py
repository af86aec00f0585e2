"""How much attention a token receives, plainly, against uniform attention, by value norms, and rolled out."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from basins.passes import Passes

HEADS = ("summed", "apart")
# Vectors that heads write from one key are as large as the stream times the heads: only so many are held.
FLOATS_AT_ONCE = 2**24


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
    names = {layer: [pattern_name(layer)] for layer in passes.layers}
    if relative:
        for layer, wanted in names.items():
            wanted += [name for name in [scores_name(layer)] if name in passes.model.hook_dict]

    def take(rows: Tensor, layer: int, found: dict[str, Tensor]) -> None:
        pattern = found[pattern_name(layer)].to(passes.dtype)
        pairs = counted_pairs(passes.usable[rows], queries[rows], include_self).to(pattern.device)
        total = received(pattern, pairs)
        if relative:
            seen = seen_keys(pattern, found.get(scores_name(layer)))
            total = total / received(uniform(seen, passes.dtype), pairs)
        values[passes.layers.index(layer), rows] = total.cpu()

    passes.visit(names, take)
    return values


def attention_value(
    passes: Passes, queries: Bool[Tensor, "batch pos"], include_self: bool, heads: str
) -> Float[Tensor, "layer batch pos"]:
    """Sum over queries of the norm of what the block's attention moves from the key to them (Kobayashi et al. 2020).

    From key k to query q that is the vector sum_h pattern[h, q, k] * v[h, k] W_O[h], without the output bias and before
    any norm that follows. `heads`: "summed" takes the norm of this sum; "apart" sums the norms of the heads, so that
    heads which cancel still count.
    """
    values = passes.blank()

    def take(rows: Tensor, layer: int, found: dict[str, Tensor]) -> None:
        pairs = counted_pairs(passes.usable[rows], queries[rows], include_self)
        of_block = found[pattern_name(layer)], found[value_name(layer)]
        for row, own, pattern, value in zip(rows, pairs, *of_block, strict=True):
            # In float64, a sequence at a time: heads that cancel leave the root of the rounding error.
            pattern = pattern.double()
            products = head_products(passes.model, layer, value, len(pattern))
            if heads == "apart":
                norms = products.diagonal(0, 1, 2).clamp_min(0).sqrt()
                moved = torch.einsum("hqk,kh->qk", pattern, norms)
            else:
                squared = (torch.einsum("hqk,khg->gqk", pattern, products) * pattern).sum(0)
                moved = squared.clamp_min(0).sqrt()
            total = moved.masked_fill(~own.to(moved.device), 0).sum(0)
            values[passes.layers.index(layer), row] = total.to(values)

    passes.visit({layer: [pattern_name(layer), value_name(layer)] for layer in passes.layers}, take)
    return values


def value_name(layer: int) -> str:
    return f"blocks.{layer}.attn.hook_v"


def head_products(
    model: Any, layer: int, value: Float[Tensor, "key *kv_head_and_d_head"], n_heads: int
) -> Float[Tensor, "key head head"]:
    """Dot products between what the heads write from each key to the stream, v[h] W_O[h] . v[g] W_O[g].

    Each query head counts; those of a group share their value vector.
    """
    w_o: Float[Tensor, "head d_head d_model"] = model.blocks[layer].attn.W_O.detach().to(value.device).double()
    value = value.double().reshape(len(value), -1, w_o.shape[1])
    value = value.repeat_interleave(n_heads // value.shape[1], 1)
    products = []
    for some in value.split(max(1, FLOATS_AT_ONCE // w_o[:, 0].numel())):
        written = torch.einsum("khd,hdm->khm", some, w_o)
        products.append(written @ written.transpose(1, 2))
    return torch.cat(products)


def rollout(passes: Passes, queries: Bool[Tensor, "batch pos"]) -> Float[Tensor, "layer batch pos"]:
    """Attention rollout (Abnar and Zuidema 2020): column sums of R_L = A_L ... A_0.

    A_l is half the identity (the skip connection) plus half the mean pattern of block l's heads, rows summing to 1.
    """
    values = passes.blank()
    own = torch.eye(passes.tokens.shape[1], dtype=passes.dtype)
    rolled = own[None]

    def take(rows: Tensor, layer: int, found: dict[str, Tensor]) -> None:
        nonlocal rolled
        if layer == 0:
            rolled = own.expand(len(rows), -1, -1)
        real = passes.mask[rows].bool()
        mean = found[pattern_name(layer)].to("cpu", passes.dtype).mean(1).masked_fill(~real[:, :, None], 0)
        mixed = mean + own
        rolled = (mixed / mixed.sum(-1, keepdim=True)) @ rolled
        if layer in passes.layers:
            kept = rolled.masked_fill(~queries[rows][:, :, None], 0).sum(1)
            values[passes.layers.index(layer), rows] = kept

    passes.visit({layer: [pattern_name(layer)] for layer in range(passes.layers[-1] + 1)}, take)
    return values
