"""Which members of a bank equal a state bit by bit, found by sorting a code of each instead of by distances.

A corpus with n equal states (BOS in every sequence, or one token at layer 0 of a rotary model) would otherwise take n^2
distances in float64 only to tell which of them have the lowest ids.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.memory import fitted

FLOATS_AT_ONCE = 2**20
# For each: a copy, its bits as whole numbers, and those multiplied.
CODE_BYTES = 28


class EqualStates:
    """`members` are rows of `bank`, in rising order."""

    def __init__(self, bank: Float[Tensor, "bank d"], members: Int[Tensor, "m"]) -> None:
        rows = max(1, fitted(FLOATS_AT_ONCE, CODE_BYTES) // max(1, bank.shape[1]))
        codes = torch.cat([row_codes(bank[some]) for some in members.split(rows)])
        order = codes.argsort(stable=True)
        self.codes, self.members = codes[order], members[order]

    def lowest(self, states: Float[Tensor, "query d"], n: int) -> Int[Tensor, "query n"]:
        """The `n` members with the lowest ids among those with each state's code; -1 where there are fewer."""
        own = row_codes(states)[:, None]
        place = torch.searchsorted(self.codes, own) + torch.arange(n, device=own.device)
        there = place.clamp_max(len(self.codes) - 1)
        return self.members[there].masked_fill((place != there) | (self.codes[there] != own), -1)


def row_codes(states: Float[Tensor, "token d"]) -> Int[Tensor, "token"]:
    """A number for each row: the same for equal rows, and hardly ever for others, which only distances can tell."""
    bits = {4: torch.int32, 8: torch.int64}[states.element_size()]
    odd = torch.randint(2**62, (states.shape[1],), generator=torch.Generator().manual_seed(0)) * 2 + 1
    # Sums of whole numbers, which are the same in any order; 0 + -0.0 is 0.
    return ((states + 0.0).view(bits).long() * odd.to(states.device)).sum(1)
