"""A Triton kernel of the attention of patched rows: no score leaves the chip.

`patched_attention.py` has the same in plain torch (the reference that it is compared with). Nothing here is imported
unless there is a CUDA device and Triton. The softmax runs over the keys as they come, as in FlashAttention (Dao et al.
2022, algorithm 1), and starts from the row's own key and value.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Float, Int
from torch import Tensor

# By the compiler's report for compute capability 9.0: no spills up to a width of 64, two programs to a multiprocessor.
ROWS, COLUMNS = 64, 32


@triton.jit
def _attend(
    query_ptr,
    key_ptr,
    value_ptr,
    keys_ptr,
    values_ptr,
    mask_ptr,
    position_ptr,
    id_ptr,
    out_ptr,
    n_patches,
    n_heads,
    n_kv,
    pos,
    keys_batch,
    keys_head,
    keys_depth,
    values_batch,
    values_head,
    values_row,
    mask_batch,
    mask_head,
    mask_row,
    scaling,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    BY_ID: tl.constexpr,
):
    batch, head = (tl.program_id(1) // n_heads).to(tl.int64), (tl.program_id(1) % n_heads).to(tl.int64)
    kv = head // (n_heads // n_kv)
    row, along = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    here = row < n_patches
    place = batch * n_patches + row
    at = tl.load(position_ptr + place, here, 0)
    state = place
    if BY_ID:
        state = tl.load(id_ptr + place, here, 0).to(tl.int64)
    cell = (state[:, None] * n_heads + head) * WIDTH + along[None, :]
    own_cell = (state[:, None] * n_kv + kv) * WIDTH + along[None, :]
    query = tl.load(query_ptr + cell, here[:, None], 0.0)
    own_key = tl.load(key_ptr + own_cell, here[:, None], 0.0)
    mask_rows = mask_ptr + batch * mask_batch + head * mask_head + at.to(tl.int64) * mask_row

    top = tl.sum(query.to(tl.float32) * own_key.to(tl.float32), 1) * scaling + tl.load(mask_rows + at).to(tl.float32)
    total = tl.full((ROWS,), 1.0, tl.float32)
    mixed = tl.load(value_ptr + own_cell, here[:, None], 0.0).to(tl.float32)
    for start in range(0, pos, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = column < pos
        keys_at = keys_ptr + batch * keys_batch + kv * keys_head + along[:, None] * keys_depth + column[None, :]
        keys = tl.load(keys_at, inside[None, :], 0.0)
        scores = tl.dot(query, keys, input_precision=PRECISION)
        seen = inside[None, :] & (column[None, :] != at[:, None])
        bias = tl.load(mask_rows[:, None] + column[None, :], seen, float("-inf")).to(tl.float32)
        scores = tl.where(seen, scores + bias, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights, kept = tl.exp(scores - new_top[:, None]), tl.exp(top - new_top)
        total = total * kept + tl.sum(weights, 1)
        values_at = values_ptr + batch * values_batch + kv * values_head + column[:, None] * values_row + along[None, :]
        values = tl.load(values_at, inside[:, None], 0.0)
        mixed = mixed * kept[:, None] + tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
        top = new_top
    cell = (place[:, None] * n_heads + head) * WIDTH + along[None, :]
    tl.store(out_ptr + cell, (mixed / total[:, None]).to(out_ptr.dtype.element_ty), here[:, None])


def attend(
    query: Float[Tensor, "*row head d_head"],
    key: Float[Tensor, "*row kv_head d_head"],
    value: Float[Tensor, "*row kv_head d_head"],
    keys: Float[Tensor, "batch kv_head d_head pos"],
    values: Float[Tensor, "batch kv_head pos d_head"],
    mask: Float[Tensor, "batch mask_head all_pos pos"],
    positions: Int[Tensor, "batch patch"],
    scaling: float,
    tf32: bool,
    ids: Int[Tensor, "batch patch"] | None = None,
) -> Float[Tensor, "batch patch d_attention"]:
    """Float32 products in TF32, or in three TF32 products each, which keeps float32's accuracy.

    Rows of `query`, `key` and `value` are the patches' own, or taken by id where they are a bank's.
    """
    query, key, value, positions = (tensor.contiguous() for tensor in (query, key, value, positions))
    if keys.stride(3) != 1 or values.stride(3) != 1 or mask.stride(3) != 1:
        keys, values, mask = keys.contiguous(), values.contiguous(), mask.contiguous()
    batch, n_patches = positions.shape
    n_heads, width = query.shape[-2:]
    by_id = ids is not None
    ids = positions if ids is None else ids.contiguous()
    out = torch.empty(batch, n_patches, n_heads, width, dtype=query.dtype, device=query.device)
    kernel: Any = _attend
    # On the device of the states, which need not be the current one.
    with torch.cuda.device(query.device if query.is_cuda else -1):
        kernel[(triton.cdiv(n_patches, ROWS), batch * n_heads)](
            query,
            key,
            value,
            keys,
            values,
            mask,
            positions,
            ids,
            out,
            n_patches,
            n_heads,
            key.shape[-2],
            keys.shape[3],
            *keys.stride()[:3],
            *values.stride()[:3],
            mask.stride(0),
            mask.stride(1) if mask.shape[1] > 1 else 0,
            mask.stride(2),
            scaling,
            WIDTH=width,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            PRECISION="tf32" if tf32 else "tf32x3",
            BY_ID=by_id,
            num_warps=4,
            num_stages=1,
        )
    return out.flatten(2)
