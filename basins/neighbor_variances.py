"""Variances of k states before and after the block, and of what the block writes: all three in one go.

About the mean, in two passes: every state less the first of the k, then less the mean of that. So k equal states give
exactly 0 in a stream of any norm. What a block writes is y - x, and its deviation from its mean is the difference of
the other two's: where x and y are near each other that loses less than y - x itself would.

On a GPU with Triton this is one kernel (`variance_kernels.py`), which reads each state once; here is its reference, and
what runs elsewhere.
"""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.kernel_trial import refusal

# Floats of the neighbours of one piece: on a CPU they stay in its cache.
FLOATS_AT_ONCE = {"cpu": 2**17, "cuda": 2**25}
# The k states of a part are held in registers.
MOST_IN_KERNEL = 128
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Three = tuple[Float[Tensor, "token"], Float[Tensor, "token"], Float[Tensor, "token"]]


def neighbor_variances(
    before: Float[Tensor, "state d_model"],
    after: Float[Tensor, "output d_model"],
    k: int,
    before_ids: Int[Tensor, "token k"] | None = None,
    after_ids: Int[Tensor, "token k"] | None = None,
    normalize: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Three:
    """V_in, V_out and V_upd in squared units of the residual stream, computed in `dtype`.

    Rows of `before` and `after` are taken by id; without ids there are k rows after the other for each token.
    `normalize` divides every state by its L2 norm first.
    """
    kernel = not normalize and k <= MOST_IN_KERNEL and dtype == torch.float32
    if kernel and before.dtype in KERNEL_DTYPES and after.dtype in KERNEL_DTYPES and has_kernel(before.device):
        from basins import variance_kernels

        var_in, var_out, var_update = variance_kernels.variances(before, after, k, before_ids, after_ids)
        return var_in, var_out, var_update
    return in_pieces(before, after, k, before_ids, after_ids, normalize, dtype)


def in_pieces(
    before: Float[Tensor, "state d_model"],
    after: Float[Tensor, "output d_model"],
    k: int,
    before_ids: Int[Tensor, "token k"] | None,
    after_ids: Int[Tensor, "token k"] | None,
    normalize: bool,
    dtype: torch.dtype,
) -> Three:
    """In memory that is used again for piece after piece."""
    n_tokens = next((len(ids) for ids in (before_ids, after_ids) if ids is not None), len(before) // k)
    width = before.shape[1]
    found = before.new_empty((3, n_tokens), dtype=dtype)
    step = max(1, FLOATS_AT_ONCE.get(before.device.type, 2**17) // (k * width))
    rooms = [
        torch.empty(min(step, n_tokens) * k, width, dtype=some.dtype, device=some.device) for some in (before, after)
    ]
    for start in range(0, n_tokens, step):
        some = slice(start, min(start + step, n_tokens))
        centred = []
        for states, ids, room in ((before, before_ids, rooms[0]), (after, after_ids, rooms[1])):
            room = room[: (some.stop - start) * k]
            if ids is None:
                room.copy_(states[start * k : some.stop * k])
            else:
                torch.index_select(states, 0, ids[some].flatten(), out=room)
            centred.append(_centred(room.to(dtype).view(-1, k, width), normalize))
        found[0, some], found[1, some] = (_mean_square(part) for part in centred)
        found[2, some] = _mean_square(centred[1].sub_(centred[0]))
    return found[0], found[1], found[2]


def _centred(states: Float[Tensor, "token k d_model"], normalize: bool) -> Float[Tensor, "token k d_model"]:
    """In place."""
    if normalize:
        states /= states.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(states.dtype).tiny)
    states -= states[:, :1].clone()
    states -= states.mean(1, keepdim=True)
    return states


def _mean_square(centred: Float[Tensor, "token k d_model"]) -> Float[Tensor, "token"]:
    return torch.linalg.vector_norm(centred, dim=(1, 2)).square_() / centred.shape[1]


def has_kernel(device: torch.device) -> bool:
    return device.type == "cuda" and kernel_refusal(device.index) is None


@cache
def kernel_refusal(index: int | None) -> str | None:
    """Why a CUDA device takes the pieces, found out once; None: it does not."""
    device = torch.device("cuda" if index is None else f"cuda:{index}")
    return refusal(device, (7, 0), lambda: kernel_agrees(device))


def kernel_agrees(device: torch.device) -> bool:
    """On random states far from 0, by id and in order, some of them equal."""
    from basins import variance_kernels

    rng = torch.Generator().manual_seed(0)
    before = 1000 + torch.randn(40, 130, generator=rng)
    ids = torch.randint(40, (9, 5), generator=rng)
    ids[0] = 7
    after = before[ids.flatten()] + torch.randn(45, 130, generator=rng)
    after[:5] = after[0]
    right = in_pieces(before.double(), after.double(), 5, ids, None, False, torch.float64)
    found = variance_kernels.variances(before.to(device), after.to(device), 5, ids.to(device), None).cpu()
    return torch.allclose(found.double(), torch.stack(right), rtol=1e-5) and bool((found[:, 0] == 0).all())
