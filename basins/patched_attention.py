"""Attention of patched rows: over the context before their position, and over themselves.

A row of position p has scores q . k_t with the context's keys t < p and q . k_own with its own key, which take the
model's mask of row p (columns t and p). One softmax runs over all of them, and mixes the context's values and the row's
own. On a GPU with Triton this is one kernel (`patched_kernels.py`); here is its reference, and what runs elsewhere.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins import kernel_trial
from basins.precision import tf32_is_on

# Wider heads do not fit the registers in float32.
KERNEL_WIDTHS = (16, 32, 64)
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def attend(
    query: Float[Tensor, "*row head d_head"],
    key: Float[Tensor, "*row kv_head d_head"],
    value: Float[Tensor, "*row kv_head d_head"],
    keys: Float[Tensor, "batch kv_head d_head pos"],
    values: Float[Tensor, "batch kv_head pos d_head"],
    mask: Float[Tensor, "batch mask_head all_pos pos"],
    positions: Int[Tensor, "batch patch"],
    scaling: float,
    softcap: float | None = None,
    softmax: torch.dtype | None = None,
    ids: Int[Tensor, "batch patch"] | None = None,
) -> Float[Tensor, "batch patch d_attention"]:
    """Heads' mixtures of values, side by side. `keys` are scaled already, `key` is not; both are rotated.

    `query`, `key` and `value` are the patches', "batch patch head d_head", or, with `ids`, those of a bank whose rows
    the patches are, "bank head d_head".
    """
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    if softcap is None and query.shape[-1] in KERNEL_WIDTHS and dtype in KERNEL_DTYPES and has_kernel(query.device):
        from basins import patched_kernels

        query, key, value, keys, values = (tensor.to(dtype) for tensor in (query, key, value, keys, values))
        return patched_kernels.attend(
            query, key, value, keys, values, mask, positions, scaling, tf32=tf32_is_on(), ids=ids
        )
    if ids is not None:
        query, key, value = query[ids], key[ids], value[ids]
    return attend_in_steps(query, key, value, keys, values, mask, positions, scaling, softcap, softmax)


def attend_in_steps(
    query: Float[Tensor, "batch patch head d_head"],
    key: Float[Tensor, "batch patch kv_head d_head"],
    value: Float[Tensor, "batch patch kv_head d_head"],
    keys: Float[Tensor, "batch kv_head d_head pos"],
    values: Float[Tensor, "batch kv_head pos d_head"],
    mask: Float[Tensor, "batch mask_head all_pos pos"],
    positions: Int[Tensor, "batch patch"],
    scaling: float,
    softcap: float | None,
    softmax: torch.dtype | None,
) -> Float[Tensor, "batch patch d_attention"]:
    batch, n_patches, n_heads, d_head = query.shape
    n_kv, pos = key.shape[2], keys.shape[3]
    # "batch patch kv_head group d_head": the query heads that share a key head are one matrix product.
    query = query.view(batch, n_patches, n_kv, -1, d_head)
    scores = (query.permute(0, 2, 3, 1, 4).flatten(2, 3) @ keys).view(batch, n_heads, n_patches, pos)
    own = (query * key[:, :, :, None]).sum(-1).view(batch, n_patches, n_heads) * scaling
    # Column p is the row's own: its state stands there instead of the context's.
    column = positions[:, None, :, None].expand(-1, n_heads, -1, -1)
    scores.scatter_(-1, column, own.transpose(1, 2)[..., None].to(scores.dtype))
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    rows = positions[:, None, :, None].expand(-1, mask.shape[1], -1, pos)
    scores += mask.gather(2, rows)
    weights = scores.softmax(-1, dtype=softmax)
    own = weights.gather(-1, column).view(batch, n_kv, -1, n_patches, 1).permute(0, 3, 1, 2, 4).to(value.dtype)
    weights = weights.scatter_(-1, column, 0).to(values.dtype).view(batch, n_kv, -1, pos)
    mixed = (weights @ values).view(batch, n_kv, -1, n_patches, d_head).permute(0, 3, 1, 2, 4)
    room = torch.empty(query.shape, dtype=mixed.dtype, device=mixed.device)
    return torch.addcmul(mixed, own, value[:, :, :, None], out=room).flatten(2)


def has_kernel(device: torch.device) -> bool:
    return device.type == "cuda" and kernel_refusal(device.index) is None


@cache
def kernel_refusal(index: int | None) -> str | None:
    """Why a CUDA device takes the steps, found out once; None: it does not."""
    device = torch.device("cuda" if index is None else f"cuda:{index}")
    return kernel_trial.refusal(device, (8, 0), lambda: kernel_agrees(device))


def kernel_agrees(device: torch.device) -> bool:
    """On random rows in float32, two query heads to a key head."""
    from basins import patched_kernels

    operands = random_operands(device, n_heads=4, n_kv=2, d_head=32, n_patches=70, pos=37)
    with torch.autocast(device.type, enabled=False):
        found = patched_kernels.attend(*operands, scaling=0.2, tf32=False)
        shape = operands[0].shape[:2]
        ids = torch.arange(shape.numel(), device=device).flip(0).view(shape)
        bank = [tensor.flatten(0, 1).flip(0) for tensor in operands[:3]]
        by_id = patched_kernels.attend(*bank, *operands[3:], scaling=0.2, tf32=False, ids=ids)
        exact = [x.double() if x.is_floating_point() else x for x in operands]
        right = attend_in_steps(*exact, scaling=0.2, softcap=None, softmax=None)
    return all(float((some - right).norm() / right.norm()) < 1e-5 for some in (found, by_id))


def random_operands(device: torch.device, n_heads: int, n_kv: int, d_head: int, n_patches: int, pos: int) -> Any:
    rng = torch.Generator().manual_seed(0)
    shapes = [(2, n_patches, n_heads, d_head), *[(2, n_patches, n_kv, d_head)] * 2]
    shapes += [(2, n_kv, d_head, pos), (2, n_kv, pos, d_head)]
    tensors = [torch.randn(shape, generator=rng).to(device) for shape in shapes]
    least = torch.finfo(torch.float32).min
    mask = torch.full((pos, pos), least).triu(1).expand(2, 1, -1, -1).to(device)
    positions = torch.randint(pos, (2, n_patches), generator=rng).to(device)
    return *tensors, mask, positions
