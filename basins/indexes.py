"""Candidate neighbours by one matrix product, and the bound that says what they may have missed.

With mu the bank's mean, q and b float32 after subtraction of mu, and u the unit roundoff of the product, the computed
|q|^2 + |b|^2 - 2 q.b is off by less than g (|q|^2 + |b|^2) with g = (4 d + 32) u: the dot product's gamma_d
(Higham, Accuracy and Stability of Numerical Algorithms, section 3.1) with room for the other roundings. So

    (1 - g) (|q|^2 + |b|^2) - 2 q.b  <=  |q - b|^2

is a lower bound, and for one query it is ordered by the inner product of (2 q, -1) with (b, (1 - g) |b|^2): torch and
FAISS both search that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from basins.half_search import has_kernels
from basins.memory import fitted
from basins.settings import ScorerSettings

SCORES_PER_CHUNK = 2**25
# For each: the product, and the best of them with their places.
SCORE_BYTES = 8
MEMBERS_PER_CHUNK = 2**17
# Below this many states a layer takes a fraction of a second either way, and FAISS need not be loaded.
FAISS_FROM = 4096
IVF_SAMPLE = 256
# Below this many, float32 products take little and no kernel need be compiled.
HALF_FROM = 4096
ROWS_AT_ONCE = 2**14
FLOATS_IN_CACHE = 2**16
# Below this, in units of the largest squared norm, float32 may have rounded a square to 0.
UNDERFLOW = 2.0**-120
# Of products; `find_neighbors` sees to it that float32 ones are computed in float32, whatever the user's switches say.
UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


def uses_faiss(settings: ScorerSettings, n_bank: int, device: torch.device) -> bool:
    """Whether exact candidates come from FAISS: on a CPU, for more than a few thousand states searched at once."""
    if settings.index == "auto":
        return device.type == "cpu" and n_bank >= FAISS_FROM and settings.neighbors != "same_token"
    return settings.index == "faiss"


def uses_half(settings: ScorerSettings, n_bank: int, device: torch.device) -> bool:
    """Whether exact candidates come from float16 products: on a GPU that has matrix units and Triton."""
    if settings.index == "auto":
        return n_bank >= HALF_FROM and has_kernels(device)
    return settings.index == "half"


@dataclass(frozen=True)
class SearchSpace:
    """Queries and bank as they are compared: unit vectors for cosine or `normalize`, else the states themselves.

    `centre` and `scale` take them to a mean of 0 and norms of at most 1, in `low` precision for the products.
    """

    query: Float[Tensor, "query d"]
    bank: Float[Tensor, "bank d"]
    centre: Float[Tensor, "d"]
    scale: float
    low: torch.dtype

    @property
    def width(self) -> int:
        return self.bank.shape[1]

    @cached_property
    def slack(self) -> float:
        return (4 * self.width + 32) * UNIT_ROUNDOFF[self.low]

    @cached_property
    def query_low(self) -> Float[Tensor, "query d_plus_1"]:
        """2 q and -1 in each row."""
        low = self._low(self.query)
        low[:, :-1] *= 2
        low[:, -1] = -1
        return low

    @cached_property
    def bank_low(self) -> Float[Tensor, "bank d_plus_1"]:
        """b and (1 - g) |b|^2 in each row."""
        low = self._low(self.bank)
        for some in low.split(ROWS_AT_ONCE):
            some[:, -1] = (1 - self.slack) * some[:, :-1].double().square().sum(1)
        return low

    def _low(self, states: Float[Tensor, "token d"]) -> Float[Tensor, "token d_plus_1"]:
        """Centred, scaled and rounded, with room for one more column; a few rows at a time in float64."""
        low = torch.empty(len(states), self.width + 1, dtype=self.low, device=states.device)
        rows = _rows_at_once(states)
        for some, room in zip(states.split(rows), low.split(rows), strict=True):
            room[:, :-1] = (some.double() - self.centre).mul_(self.scale)
        return low

    def squared_distances(
        self, queries: Int[Tensor, "*#pair"], members: Int[Tensor, "*pair"]
    ) -> Float[Tensor, "*pair"]:
        """Directly, in float64; on a CPU in pieces that stay in its cache, in memory that is used again."""
        if members.device.type != "cpu":
            return (self.query[queries].double() - self.bank[members].double()).square_().sum(-1)
        per_row = members[:1].numel()
        rows = max(1, FLOATS_IN_CACHE // max(1, per_row * self.width))
        squared = torch.empty(members.shape, dtype=torch.float64)
        states = torch.empty(min(rows, len(members)) * per_row, self.width, dtype=self.bank.dtype)
        apart = torch.empty(states.shape, dtype=torch.float64)
        for q, m, into in zip(queries.split(rows), members.split(rows), squared.split(rows), strict=True):
            room = apart[: m.numel()].copy_(torch.index_select(self.bank, 0, m.flatten(), out=states[: m.numel()]))
            room = room.view(*m.shape, self.width).sub_(self.query[q])
            into.copy_(torch.linalg.vector_norm(room, dim=-1).square_())
        return squared

    def lower_bound(self, queries: Int[Tensor, "q"], products: Float[Tensor, "q *m"]) -> Float[Tensor, "q *m"]:
        """(1 - g) |q|^2 minus the product, less what may have underflowed, in the units of `squared_distances`."""
        own = (1 - self.slack) * self.query_low[queries, :-1].double().square().sum(-1) / 4
        own = own.view(-1, *[1] * (products.ndim - 1))
        return (own - products.double() - UNDERFLOW * self.width) / self.scale**2

    def lower_bounds(self, queries: Int[Tensor, "q"], members: Int[Tensor, "m"]) -> Float[Tensor, "q m"]:
        return self.lower_bound(queries, self.query_low[queries] @ self.bank_low[members].T)


def search_space(
    query: Float[Tensor, "query d_model"],
    bank: Float[Tensor, "bank d_model"],
    usable: Bool[Tensor, "bank"],
    settings: ScorerSettings,
    searched: Bool[Tensor, "query"] | None = None,
) -> SearchSpace:
    """`searched`: the queries that will be looked up; all, if None."""
    approximate = settings.index == "faiss-ivf" or uses_faiss(settings, len(bank), bank.device)
    low = torch.float32 if approximate else bank.dtype
    if settings.metric == "cosine" or settings.normalize:
        own_axis = settings.metric == "cosine"
        query, bank = _unit(query, 0, own_axis), _unit(bank, 1, own_axis)
    centre = (bank if usable.all() else bank[usable]).mean(0, dtype=torch.float64)
    norms = _norms(bank, centre)[usable]
    if query is not bank:
        own = _norms(query, centre)
        norms = torch.cat([norms, own if searched is None else own[searched]])
    # Norms of at most 1, so that no square leaves the range of float32; a power of 2 rounds nothing.
    largest = float(norms[norms.isfinite()].amax())
    scale = 2.0 ** -math.ceil(math.log2(largest)) if largest > 0 else 1.0
    return SearchSpace(query, bank, centre, scale, low)


def _rows_at_once(states: Float[Tensor, "token d"]) -> int:
    """To be taken in float64: on a CPU they stay in its cache."""
    return ROWS_AT_ONCE if states.is_cuda else max(1, FLOATS_IN_CACHE // max(1, states.shape[1]))


def _norms(states: Float[Tensor, "token d"], centre: Float[Tensor, "d"]) -> Float[Tensor, "token"]:
    return torch.cat([(some.double() - centre).norm(dim=1) for some in states.split(_rows_at_once(states))])


def _unit(states: Float[Tensor, "token d_model"], which: int, own_axis: bool) -> Float[Tensor, "token d_plus_2"]:
    """Unit vectors in float64. A zero state has no direction: it stays zero, or with `own_axis` gets an axis of its
    own (of two: queries and bank), at cosine distance 1 from everything.
    """
    states = states.double()
    norms = states.norm(dim=1, keepdim=True)
    zero = norms == 0
    own = states.new_zeros(len(states), 2)
    own[:, which] = zero[:, 0].double() * own_axis
    return torch.cat([states / norms.masked_fill(zero, 1), own], 1)


@runtime_checkable
class Index(Protocol):
    """Finds candidates for some queries among the members it was made with."""

    report: dict[str, Any]
    exact: bool

    def search(self, queries: Int[Tensor, "q"], n: int) -> tuple[Int[Tensor, "q n"], Float[Tensor, "q n"]]:
        """Up to n member ids with the largest products, best first (-1: none), and the products."""
        ...


def make_index(space: SearchSpace, members: Int[Tensor, "m"], settings: ScorerSettings) -> Index:
    if settings.index == "faiss-ivf":
        return FaissIVF(space, members, settings)
    if uses_faiss(settings, len(space.bank), members.device):
        return FaissFlat(space, members)
    return TorchFlat(space, members)


class TorchFlat:
    """The product and topk, in chunks."""

    exact = True

    def __init__(self, space: SearchSpace, members: Int[Tensor, "m"]) -> None:
        self.space, self.members = space, members
        self.report: dict[str, Any] = {"index": "exact", "exact": True}

    def search(self, queries: Int[Tensor, "q"], n: int) -> tuple[Int[Tensor, "q n"], Float[Tensor, "q n"]]:
        row_bytes = self.space.bank_low.element_size() * (self.space.width + 1)
        block = min(len(self.members), fitted(MEMBERS_PER_CHUNK, row_bytes))
        scores = fitted(SCORES_PER_CHUNK, SCORE_BYTES)
        rows = [self._rows(some, n, block) for some in queries.split(max(1, scores // block))]
        return torch.cat([ids for ids, _ in rows]), torch.cat([best for _, best in rows])

    def _rows(self, queries: Int[Tensor, "q"], n: int, block: int) -> tuple[Tensor, Tensor]:
        best, best_ids = [], []
        for part in self.members.split(block):
            scores = self.space.query_low[queries] @ self.space.bank_low[part].T
            scores, place = scores.topk(min(n, len(part)), dim=1)
            best.append(scores)
            best_ids.append(part[place])
        scores, place = torch.cat(best, 1).topk(n, dim=1)
        return torch.cat(best_ids, 1).gather(1, place), scores


def _numpy(states: Tensor):
    return states.detach().to("cpu", torch.float32).contiguous().numpy()


class FaissFlat:
    """The same by FAISS, which keeps the best as it multiplies."""

    exact = True

    def __init__(self, space: SearchSpace, members: Int[Tensor, "m"]) -> None:
        import faiss

        self.space, self.members = space, members
        self.index = faiss.IndexFlatIP(space.bank_low.shape[1])
        self.index.add(_numpy(space.bank_low[members]))
        self.report: dict[str, Any] = {"index": "faiss", "exact": True}

    def search(self, queries: Int[Tensor, "q"], n: int) -> tuple[Int[Tensor, "q n"], Float[Tensor, "q n"]]:
        products, found = self.index.search(_numpy(self.space.query_low[queries]), n)
        return _member_ids(found, self.members), torch.from_numpy(products).to(self.members.device)


def _member_ids(found: Any, members: Int[Tensor, "m"]) -> Int[Tensor, "q n"]:
    places = torch.from_numpy(found).to(members.device)
    return torch.where(places >= 0, members[places.clamp_min(0)], -1)


class FaissIVF:
    """Approximate candidates from inverted lists; what share of the true ones it finds is measured on a sample."""

    exact = False

    def __init__(self, space: SearchSpace, members: Int[Tensor, "m"], settings: ScorerSettings) -> None:
        import faiss

        self.space, self.members = space, members
        lists = max(1, min(int(4 * len(members) ** 0.5), len(members) // 39))
        width = space.bank_low.shape[1] - 1
        self.quantizer = faiss.IndexFlatL2(width)  # the index keeps only a pointer to it
        self.index = faiss.IndexIVFFlat(self.quantizer, width, lists)
        self.index.cp.seed = settings.seed + 1
        self.index.cp.min_points_per_centroid = 1  # few points are no reason to write on the terminal
        bank = _numpy(space.bank_low[members, :-1])
        self.index.train(bank)
        self.index.add(bank)
        self.index.nprobe = max(1, lists // 8)
        self.report: dict[str, Any] = {
            "index": "faiss-ivf",
            "exact": False,
            "nlist": lists,
            "nprobe": self.index.nprobe,
        }

    def search(self, queries: Int[Tensor, "q"], n: int) -> tuple[Int[Tensor, "q n"], Float[Tensor, "q n"]]:
        squared, found = self.index.search(_numpy(self.space.query_low[queries, :-1] / 2), n)
        ids = _member_ids(found, self.members)
        if "recall_on_sample" not in self.report:
            some = queries[:IVF_SAMPLE]
            bounds = self.space.lower_bounds(some, self.members)
            true = self.members[bounds.topk(n, dim=1, largest=False).indices]
            hits = (true[:, :, None] == ids[: len(some), None, :]).any(2)
            self.report |= {"recall_on_sample": float(hits.double().mean()), "sample": hits.numel()}
        return ids, torch.from_numpy(-squared).to(queries.device)
