"""Exact neighbours from float16 products: what the matrix units of a GPU multiply fastest, with a proof.

States are centred (distances do not change), scaled by one power of two and rounded to float16; the rounding error of
every row is measured, not assumed. The bank is shuffled into groups, and of a query's squared distances to a group only
the smallest few are kept. So for every query there is a `cut` that everything not returned reaches or exceeds, as
computed. What was computed may be wrong by `_error`, so all else is truly at least at cut - error: the bound that
`neighbors.py` compares with. Queries that it does not settle are searched again there, in float32.

On a GPU with Triton the three steps are kernels (`half_kernels.py`); the functions here are their reference, and what
runs elsewhere.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins import kernel_trial
from basins.memory import fitted

# A depth that the kernel's tiles divide.
DEPTH = 64
ROWS_AT_ONCE = 2**14
KEYS_AT_ONCE = 2**28
PAIRS_AT_ONCE = 2**24
# A key is four bytes; a pair has its distance in float64 and float32, and its key, thrice.
KEY_BYTES, PAIR_BYTES = 4, 24
# One row of keys is sorted out in registers.
SLOTS = 2**15
# More candidates than are asked for, so that the cut is usually above the last of those.
SPARE = 16
# (states in a group, kept of them): the first is taken where a group rarely holds more of the nearest than it keeps.
GROUPS = ((128, 3), (64, 3), (32, 3), (32, 4), (16, 4))
RARE = 0.01
# Largest norm after scaling: every component fits a float16.
LARGEST = 2.0**15
# No key is zero or denormal.
SMALLEST = 2.0**-90
INFINITY = 0x7F800000
NO_KEY = 0x7FFFFFFF


@dataclass(frozen=True)
class Halves:
    """Scaled, centred states in float16, with the norm of each before rounding and of what rounding took."""

    states: Float[Tensor, "token depth"]
    norms: Float[Tensor, "token"]
    errors: Float[Tensor, "token"]

    def rows(self, rows: Int[Tensor, "r"]) -> Halves:
        return Halves(self.states[rows], self.norms[rows], self.errors[rows])


def halves(
    states: Float[Tensor, "token d"], centre: Float[Tensor, "d"], scale: float, rows: Int[Tensor, "r"] | None = None
) -> Halves:
    """`scale`: of the centred states, to norms of at most 1."""
    n, d = len(states) if rows is None else len(rows), states.shape[1]
    found = torch.zeros(n, -(-d // DEPTH) * DEPTH, dtype=torch.float16, device=states.device)
    norms, errors = (torch.empty(n, dtype=torch.float64, device=states.device) for _ in range(2))
    for start in range(0, n, ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        far = ((states[some] if rows is None else states[rows[some]]).double() - centre) * (scale * LARGEST)
        found[some, :d] = far
        norms[some] = far.norm(dim=1)
        errors[some] = (far - found[some, :d]).norm(dim=1)
    # The subtraction and the norms were rounded too, in float64.
    return Halves(found, norms, errors + norms * 2.0**-48)


class HalfFlat:
    """Candidates from float16 products among some members of the bank, and a bound on the rest."""

    exact = True

    def __init__(
        self,
        query: Halves,
        bank: Halves,
        members: Int[Tensor, "m"],
        scale: float,
        labels: tuple[int, Tensor, Tensor],
        wanted: int,
    ) -> None:
        """`members`: rows of the bank. `scale`: as in `halves`.

        `labels`: (0, ..) forbids nothing, (1, of queries, of bank) pairs of one label, (2, ..) all other pairs.
        `wanted`: how many candidates are needed at least.
        """
        # Shuffled, so that neighbours in the text, which are often neighbours in space, do not share a group.
        generator = torch.Generator(members.device).manual_seed(0)
        self.members = members[torch.randperm(len(members), generator=generator, device=members.device)]
        self.query, self.bank, self.unit = query, bank.rows(self.members), (scale * LARGEST) ** 2
        self.labels = labels[0], labels[1].int(), labels[2][self.members].int()
        self.least, self.most = wanted + SPARE, 2 ** math.ceil(math.log2(wanted + 2 * SPARE))
        self.group, self.keep = groups_of(wanted, len(members))
        self.report: dict[str, Any] = {"index": "half", "exact": True}
        # Each member's error is at most rate * its norm + floor: floor is what denormals can lose.
        self.floor = math.sqrt(bank.states.shape[1]) * 2.0**-25
        rates = (self.bank.errors - self.floor).clamp_min(0) / self.bank.norms.clamp_min(1e-300)
        self.rate, self.largest = float(rates.amax()), float(self.bank.norms.amax())
        self.query_norms = query.norms.square().float()
        self.bank_norms = self.bank.norms.square().float()
        self.tile = SLOTS // self.keep * self.group
        per_query = min(self.tile, len(members))
        if has_kernels(members.device):
            self.per_call = max(1, fitted(KEYS_AT_ONCE, KEY_BYTES) // (self.keep * -(-per_query // self.group)))
        else:
            self.per_call = max(1, fitted(PAIRS_AT_ONCE, PAIR_BYTES) // per_query)

    def search(self, queries: Int[Tensor, "q"]) -> tuple[Int[Tensor, "q c"], Float[Tensor, "q"]]:
        """Candidate ids (-1: none) and the squared distance that every other allowed member reaches or exceeds."""
        found, cuts = [], []
        query, norms = self.query.states[queries], self.query_norms[queries]
        labels, steps = self.labels[1][queries], _steps(query.device)
        for start in range(0, len(self.members), self.tile):
            some = slice(start, start + self.tile)
            rule = self.labels[0], labels, self.labels[2][some]
            operands = query, self.bank.states[some], norms, self.bank_norms[some], rule, self.group, self.keep
            keys = steps.group_minima(*operands, SMALLEST)
            place, cut = steps.smallest_keys(keys, self.least, self.most, self.group, self.keep)
            ids = self.members[(start + place.long()).clamp_min(0)]
            found.append(ids.masked_fill(place < 0, -1))
            cuts.append(cut)
        cut = torch.stack(cuts).amin(0).double()
        return torch.cat(found, 1), (cut - self._error(queries, cut)) / self.unit

    def squared_distances(
        self,
        query: Float[Tensor, "query width"],
        bank: Float[Tensor, "bank width"],
        queries: Int[Tensor, "q"],
        members: Int[Tensor, "q c"],
    ) -> Float[Tensor, "q c"]:
        """Of query rows to bank rows in float64; infinite where the member is -1."""
        return _steps(query.device).squared_distances(query, bank, queries, members)

    def _error(self, queries: Int[Tensor, "q"], cut: Float[Tensor, "q"]) -> Float[Tensor, "q"]:
        """How far a computed squared distance can be above a true one below `cut`.

        With x a query, y a member, x', y' in float16 and p the computed product,

            |<x, y> - p| <= |x - x'| |y| + |x'| |y - y'| + g |x'| |y'|,   g = (d + 64) 2^-23:

        the matrix unit adds in float32 and drops at most 2^-23 of the largest summand with each (Fasi, Higham, Mikaitis
        and Pranesh, 2021, Numerical behavior of NVIDIA tensor cores). A member nearer than `cut` has
        |y| <= |x| + sqrt(cut), whatever the largest norm in the bank is.
        """
        norm, error = self.query.norms[queries], self.query.errors[queries]
        other = (norm + cut.sqrt()).clamp_max(self.largest)
        added = (self.query.states.shape[1] + 64) * 2.0**-23
        own, lost = norm + error, self.rate * other + self.floor
        product = error * other + own * lost + added * own * (other + lost)
        return (2 * product + 2.0**-21 * (norm.square() + other.square())) * (1 + 2.0**-20) + 2 * SMALLEST


def groups_of(wanted: int, n: int) -> tuple[int, int]:
    """With the nearest spread at random over n / group groups: expected groups with more of them than are kept."""
    for group, keep in GROUPS:
        if math.comb(wanted + SPARE // 2, keep) * (group / n) ** (keep - 1) < RARE:
            return group, keep
    return GROUPS[-1]


def group_minima(
    query: Float[Tensor, "q depth"],
    bank: Float[Tensor, "m depth"],
    query_norms: Float[Tensor, "q"],
    bank_norms: Float[Tensor, "m"],
    labels: tuple[int, Tensor, Tensor],
    group: int,
    keep: int,
    smallest: float,
) -> Int[Tensor, "q slots"]:
    """The `keep` smallest squared distances of every query to every group, slot by slot (all groups' first, then ..).

    As keys: the bits of the positive float32, the last of which hold the member's place in its group.
    """
    # In float64, so that no setting of float32 products matters.
    squared = query_norms[:, None] + bank_norms - 2 * (query.double() @ bank.double().T).float()
    place = torch.arange(len(bank), dtype=torch.int32, device=bank.device) % group
    keys = (squared.clamp_min(smallest).view(torch.int32) & -group) | place
    rule, query_labels, bank_labels = labels
    if rule:
        equal = query_labels[:, None] == bank_labels
        keys = torch.where(equal if rule == 1 else ~equal, INFINITY | place, keys)
    keys = torch.nn.functional.pad(keys, (0, -len(bank) % group), value=NO_KEY).unflatten(1, (-1, group))
    return keys.topk(keep, dim=2, largest=False).values.transpose(1, 2).flatten(1)


def smallest_keys(
    keys: Int[Tensor, "q slots"], least: int, most: int, group: int, keep: int
) -> tuple[Int[Tensor, "q most"], Float[Tensor, "q"]]:
    """Members (-1: none) of at least `least` and at most `most` smallest keys, and the least of everything else."""
    del least  # it is content with any number in between
    n_groups = keys.shape[1] // keep
    padded = torch.nn.functional.pad(keys, (0, max(0, most + 1 - keys.shape[1])), value=NO_KEY)
    best, slot = padded.topk(most + 1, dim=1, largest=False)
    members = slot % n_groups * group + (best & (group - 1))
    cut = torch.minimum(best[:, -1], keys[:, -n_groups:].amin(1)).clamp_max(INFINITY) & -group
    return members.masked_fill(best >= INFINITY, -1)[:, :-1].int(), cut.view(torch.float32)


def squared_distances(
    query: Float[Tensor, "query width"],
    bank: Float[Tensor, "bank width"],
    queries: Int[Tensor, "q"],
    members: Int[Tensor, "q c"],
) -> Float[Tensor, "q c"]:
    rows = max(1, fitted(2**24, PAIR_BYTES) // max(1, members.shape[1] * query.shape[1]))
    found = [
        (query[some].double()[:, None] - bank[other.clamp_min(0)].double()).square().sum(-1)
        for some, other in zip(queries.split(rows), members.split(rows), strict=True)
    ]
    return torch.cat(found).masked_fill(members < 0, float("inf"))


def _steps(device: torch.device) -> Any:
    """The module that holds the three steps for this device."""
    if has_kernels(device):
        from basins import half_kernels

        return half_kernels
    return sys.modules[__name__]


def has_kernels(device: torch.device) -> bool:
    return refusal(device) is None


@cache
def refusal(device: torch.device) -> str | None:
    """Why the kernels do not run on this device: tried once, against the functions above."""

    def agree() -> bool:
        from basins import half_kernels

        return all(_agree(half_kernels, device, *sizes) for sizes in ((300, 128, 3, 1), (200, 32, 4, 2)))

    return kernel_trial.refusal(device, (8, 0), agree)


def _agree(kernels: Any, device: torch.device, n: int, group: int, keep: int, rule: int) -> bool:
    """The same keys but for rounding, the same candidates from the same keys, the same distances."""
    states = torch.randn(n, 2 * DEPTH, generator=torch.Generator().manual_seed(0)).to(device, torch.float16)
    norms = states.float().square().sum(1)
    label = torch.arange(n, dtype=torch.int32, device=device) % 5
    labels = rule, label, label
    operands = states, states, norms, norms, labels, group, keep, SMALLEST
    expected, keys = (steps.group_minima(*operands).view(torch.float32) for steps in (sys.modules[__name__], kernels))
    close = torch.allclose(expected, keys, rtol=2.0**-10, atol=2.0**-6, equal_nan=True)
    wanted = expected.view(torch.int32), 9, 16, group, keep
    members, cut = smallest_keys(*wanted)
    found, at_least = kernels.smallest_keys(*wanted)
    nearest = (found[:, :, None] == members[:, None, :9]).any(1).all()
    queries, pairs = torch.arange(n, device=device), members.long()
    distances = [steps.squared_distances(states, states, queries, pairs) for steps in (sys.modules[__name__], kernels)]
    return bool(close & nearest & (at_least <= cut).all()) and torch.allclose(distances[0], distances[1], rtol=1e-9)
