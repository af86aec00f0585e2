"""Which states are one and the same, up to rounding.

Equal states are common (position 0, shared prefixes, a token's embedding), and equal by construction is not equal in
its
bits: the same sequence in another batch, or another kernel, rounds differently. So states are told apart only beyond
what rounding explains, and counts do not depend on how sequences were batched.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from basins.memory import fitted

# States nearer than this many machine epsilons of their norms are one: activations gather rounding over the layers, and
# in half precision a single epsilon is already more than that.
SAME, SAME_IN_HALF = 16.0, 1.0
# Differences are compared along a few random directions instead of all of d_model. A difference of size s has a
# component of about s along each; two states that differ pass for one only if all their components happen to be tiny.
DIRECTIONS = 4
TAIL = 4.0
# Pairs of states compared at a time: on a CPU they stay in its cache.
PAIRS_AT_ONCE = {"cpu": 2**17, "cuda": 2**23}


# For each: the difference along a direction, what is allowed, and what comes of comparing them.
PAIR_BYTES = 26


def tokens_at_once(k: int, device_type: str) -> int:
    """Queries that are compared with their neighbours, and those with each other."""
    return max(1, fitted(PAIRS_AT_ONCE.get(device_type, 2**17), PAIR_BYTES) // (k + 1) ** 2)


def count_distinct(
    query: Float[Tensor, "token d_model"],
    bank: Float[Tensor, "bank d_model"],
    ids: Int[Tensor, "token k"],
    model_dtype: torch.dtype,
) -> tuple[Int[Tensor, "token"], Bool[Tensor, "token"]]:
    """Distinct states among each query and its neighbours, and whether its neighbours are all one state."""
    eps = torch.finfo(model_dtype).eps
    same = TAIL * eps * (SAME if eps < 1e-5 else SAME_IN_HALF)
    rng = torch.Generator().manual_seed(0)
    directions = torch.randn(query.shape[1], DIRECTIONS, dtype=torch.float64, generator=rng).to(query.device)
    along_query, along_bank = query.double() @ directions, bank.double() @ directions
    norm_query, norm_bank = query.double().norm(dim=1), bank.double().norm(dim=1)
    counts, ones = [], []
    at_once = tokens_at_once(ids.shape[1], query.device.type)
    for start in range(0, len(query), at_once):
        part = slice(start, start + at_once)
        found = ids[part].clamp_min(0)
        along = torch.cat([along_query[part, None], along_bank[found]], 1)
        norms = torch.cat([norm_query[part, None], norm_bank[found]], 1)
        equal = None
        for component in along.unbind(-1):
            near = (component[:, :, None] - component[:, None]).abs_() <= same * (norms[:, :, None] + norms[:, None])
            equal = near if equal is None else equal.logical_and_(near)
        assert equal is not None
        counts.append((~equal.tril(-1).any(2)).sum(1))
        ones.append(equal[:, 1, 1:].all(1))
    return torch.cat(counts), torch.cat(ones)
