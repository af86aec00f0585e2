"""A Triton kernel of the neighbours' variances before and after the block and of what it writes, in one reading.

`neighbor_variances.py` has the same in plain torch (the reference that it is compared with). Nothing here is imported
unless there is a CUDA device and Triton.

Each program takes one token and goes through its width in parts; the k states of a part stay in registers, so the mean
and the centred squares need no second reading.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Float, Int
from torch import Tensor

# Numbers of one part: two of them in the registers of four warps.
PART = 4096


@triton.jit
def _variances(
    before_ptr,
    after_ptr,
    before_id_ptr,
    after_id_ptr,
    found_ptr,
    n_tokens,
    width,
    k,
    BEFORE_BY_ID: tl.constexpr,
    AFTER_BY_ID: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    place, along = tl.arange(0, K), tl.arange(0, WIDTH)
    there = place < k
    own = token * k + place
    before_row, before_first = own, token * k
    if BEFORE_BY_ID:
        before_row, before_first = tl.load(before_id_ptr + own, there, 0), tl.load(before_id_ptr + token * k)
    after_row, after_first = own, token * k
    if AFTER_BY_ID:
        after_row, after_first = tl.load(after_id_ptr + own, there, 0), tl.load(after_id_ptr + token * k)
    var_in, var_out = tl.zeros((WIDTH,), tl.float32), tl.zeros((WIDTH,), tl.float32)
    var_update = tl.zeros((WIDTH,), tl.float32)
    for start in range(0, width, WIDTH):
        column = start + along
        inside = there[:, None] & (column < width)[None, :]
        first_inside = column < width
        # Less the first of them, and then less the mean: equal states give exactly 0 in a stream of any norm.
        first = tl.load(before_ptr + before_first * width + column, first_inside, 0.0).to(tl.float32)
        state = tl.load(before_ptr + before_row[:, None] * width + column[None, :], inside, 0.0).to(tl.float32)
        state = tl.where(inside, state - first[None, :], 0.0)
        state = tl.where(inside, state - (tl.sum(state, 0) / k)[None, :], 0.0)
        first = tl.load(after_ptr + after_first * width + column, first_inside, 0.0).to(tl.float32)
        other = tl.load(after_ptr + after_row[:, None] * width + column[None, :], inside, 0.0).to(tl.float32)
        other = tl.where(inside, other - first[None, :], 0.0)
        other = tl.where(inside, other - (tl.sum(other, 0) / k)[None, :], 0.0)
        var_in += tl.sum(state * state, 0)
        var_out += tl.sum(other * other, 0)
        var_update += tl.sum((other - state) * (other - state), 0)
    tl.store(found_ptr + token, tl.sum(var_in, 0) / k)
    tl.store(found_ptr + n_tokens + token, tl.sum(var_out, 0) / k)
    tl.store(found_ptr + 2 * n_tokens + token, tl.sum(var_update, 0) / k)


def variances(
    before: Float[Tensor, "state d_model"],
    after: Float[Tensor, "output d_model"],
    k: int,
    before_ids: Int[Tensor, "token k"] | None,
    after_ids: Int[Tensor, "token k"] | None,
) -> Float[Tensor, "3 token"]:
    """Rows of `before` and `after` by id; without ids, k rows after the other for each token. Sums in float32."""
    before, after = before.contiguous(), after.contiguous()
    ids = [None if some is None else some.contiguous() for some in (before_ids, after_ids)]
    n_tokens = next((len(some) for some in ids if some is not None), len(before) // k)
    found = torch.empty(3, n_tokens, dtype=torch.float32, device=before.device)
    if not n_tokens:
        return found
    width, rows = before.shape[1], triton.next_power_of_2(k)
    kernel: Any = _variances
    # On the device of the states, which need not be the current one.
    with torch.cuda.device(before.device if before.is_cuda else -1):
        kernel[(n_tokens,)](
            before,
            after,
            # A pointer that is not read where there are no ids.
            *(found if some is None else some for some in ids),
            found,
            n_tokens,
            width,
            k,
            BEFORE_BY_ID=before_ids is not None,
            AFTER_BY_ID=after_ids is not None,
            K=rows,
            WIDTH=max(16, min(PART // rows, triton.next_power_of_2(width))),
            num_warps=4,
        )
    return found
