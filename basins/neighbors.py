"""Who may be whose neighbour, and which k are nearest: exact, with a proof, or marked approximate.

Candidates come from a fast product (`indexes.py`, `half_search.py`); their distances are then taken directly in
float64. The product also gives a lower bound on the distance of everything that is no candidate: where the k-th
candidate is not strictly below it, that query is searched again among all states that the float32 bound does not
exclude. So duplicates, near ties and huge norms give the same sets as a float64 loop, whatever the index, the chunks
and the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from basins.equal_states import EqualStates
from basins.errors import BasinsError
from basins.half_search import HalfFlat, halves, refusal
from basins.indexes import HALF_FROM, Index, SearchSpace, make_index, search_space, uses_half
from basins.memory import fitted
from basins.precision import matmul_precision, no_autocast
from basins.settings import ScorerSettings

# More candidates than k, so that the bound can usually tell them from the rest.
MARGIN = 16
PAIRS_PER_CHUNK = 2**21
PAIRS_PER_CHUNK_GPU = 2**25
PAIRS_AT_ONCE = 2**15
CANDIDATE_FLOATS = 2**24
# For each pair a bound and what rules it out; for each float of a candidate two in float64.
PAIR_BYTES, CANDIDATE_BYTES = 16, 24


@dataclass(frozen=True)
class TokenTable:
    """What the neighbour rules look at, for a flat list of tokens (sequence after sequence)."""

    sequence: Int[Tensor, "token"]
    position: Int[Tensor, "token"]
    token: Int[Tensor, "token"] | None
    usable: Bool[Tensor, "token"]

    def to(self, device: torch.device) -> TokenTable:
        token = self.token.to(device) if self.token is not None else None
        return TokenTable(self.sequence.to(device), self.position.to(device), token, self.usable.to(device))


@dataclass(frozen=True)
class Neighbors:
    """Each query's k nearest bank states, nearest first; ids -1 and distances NaN where fewer than k were allowed."""

    ids: Int[Tensor, "query k"]
    distances: Float[Tensor, "query k"]
    report: dict[str, Any]


def table_of(
    attention_mask: Int[Tensor, "batch pos"], tokens: Int[Tensor, "batch pos"] | None, exclude_first: int
) -> TokenTable:
    """Flat rows of a batch. `usable`: a real token that is not among the first `exclude_first` of its sequence."""
    batch, pos = attention_mask.shape
    real = attention_mask.bool()
    place = real.long().cumsum(1) - 1
    return TokenTable(
        sequence=torch.arange(batch).repeat_interleave(pos).to(real.device),
        position=torch.arange(pos).repeat(batch).to(real.device),
        token=tokens.reshape(-1) if tokens is not None else None,
        usable=(real & (place >= exclude_first)).reshape(-1),
    )


def find_neighbors(
    query: Float[Tensor, "query d_model"],
    query_table: TokenTable,
    bank: Float[Tensor, "bank d_model"],
    bank_table: TokenTable,
    settings: ScorerSettings,
    same: bool,
) -> Neighbors:
    """Search for every usable query. `same`: query i is bank state i (the cache is its own bank), so it is left out.

    States that are not usable are neither queries nor neighbours. Ties go to the lower bank id.
    """
    k, device = settings.k, query.device
    query_table, bank_table = query_table.to(device), bank_table.to(device)
    ids = torch.full((len(query), k), -1, dtype=torch.long, device=device)
    distances = torch.full((len(query), k), float("nan"), dtype=torch.float64, device=device)
    report: dict[str, Any] = {"searched_again": 0}
    if not bank_table.usable.any() or not query_table.usable.any():
        return Neighbors(ids, distances.to(query.dtype), report)
    space = search_space(query, bank, bank_table.usable, settings, query_table.usable)
    half = uses_half(settings, len(bank), device)
    if settings.index == "auto" and not half and device.type == "cuda" and len(bank) >= HALF_FROM:
        report["half_refused"] = refusal(device)
    # Full float32 products, which the bounds count on.
    with no_autocast(), matmul_precision("float32", device, torch.float32):
        for queries, members in _groups(query_table, bank_table, settings, half):
            if not len(members):
                continue
            found = _Group(space, queries, members, query_table, bank_table, settings, same).run(ids, distances, half)
            report = _together(report, found)
    if settings.metric == "cosine":
        distances = distances.square() / 2
    return Neighbors(ids, distances.to(query.dtype), report)


def _together(report: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """One report of two groups: counts added up, recalls averaged by the size of their samples."""
    both = report | found | {"searched_again": report["searched_again"] + found["searched_again"]}
    if "sample" in report and "sample" in found:
        both["sample"] = report["sample"] + found["sample"]
        hits = sum(part["recall_on_sample"] * part["sample"] for part in (report, found))
        both["recall_on_sample"] = hits / both["sample"]
    return both


def _groups(
    query_table: TokenTable, bank_table: TokenTable, settings: ScorerSettings, together: bool
) -> Iterator[tuple[Int[Tensor, "q"], Int[Tensor, "m"]]]:
    """(queries, bank members) that are searched together: everything, or one group for each token id.

    `together`: everything, also where tokens matter.
    """
    queries = query_table.usable.nonzero()[:, 0]
    members = bank_table.usable.nonzero()[:, 0]
    query_token, bank_token = query_table.token, bank_table.token
    if settings.neighbors == "same_token" and (query_token is None or bank_token is None):
        raise BasinsError('neighbors="same_token" needs the token ids of the scored states and of the bank.')
    if settings.neighbors != "same_token" or together or query_token is None or bank_token is None:
        yield queries, members
        return
    query_tokens, bank_tokens = query_token[queries], bank_token[members]
    query_order, bank_order = query_tokens.argsort(stable=True), bank_tokens.argsort(stable=True)
    query_sorted, bank_sorted = query_tokens[query_order], bank_tokens[bank_order]
    for token in query_sorted.unique():
        of_queries = slice(*_range(query_sorted, token))
        of_bank = slice(*_range(bank_sorted, token))
        yield queries[query_order[of_queries]], members[bank_order[of_bank]]


def _range(ordered: Int[Tensor, "token"], value: Tensor) -> tuple[int, int]:
    return int(torch.searchsorted(ordered, value)), int(torch.searchsorted(ordered, value, right=True))


def forbidden(
    query_table: TokenTable,
    bank_table: TokenTable,
    settings: ScorerSettings,
    same: bool,
    queries: Int[Tensor, "*q"],
    members: Int[Tensor, "*m"],
) -> Bool[Tensor, "*pair"]:
    """Pairs of a query and a bank state that may not be neighbours; `same`: the queries are the bank's own states."""
    if same and settings.neighbors == "cross_sequence":
        return query_table.sequence[queries] == bank_table.sequence[members]
    out = (queries == members) & (same and not settings.include_self)
    if settings.neighbors == "same_token" and query_table.token is not None and bank_table.token is not None:
        out = out | (query_table.token[queries] != bank_table.token[members])
    return out


class _Group:
    """One search: queries (rows of the query table) among members (rows of the bank table)."""

    def __init__(
        self,
        space: SearchSpace,
        queries: Int[Tensor, "q"],
        members: Int[Tensor, "m"],
        query_table: TokenTable,
        bank_table: TokenTable,
        settings: ScorerSettings,
        same: bool,
    ) -> None:
        self.space, self.queries, self.members, self.settings = space, queries, members, settings
        self.query_table, self.bank_table, self.same = query_table, bank_table, same
        self.leave_self_out = same and not settings.include_self
        self.other_sequence = same and settings.neighbors == "cross_sequence"
        # How many states the rules can forbid one query: an index is asked for that many more.
        self.may_forbid = int(self.leave_self_out)
        if self.other_sequence:
            self.may_forbid = int(bank_table.sequence[members].bincount().max())

    def forbidden(self, queries: Int[Tensor, "*q"], members: Int[Tensor, "*m"]) -> Bool[Tensor, "*pair"]:
        """Pairs that the rules exclude."""
        return forbidden(self.query_table, self.bank_table, self.settings, self.same, queries, members)

    def run(self, ids: Tensor, distances: Tensor, half: bool) -> dict[str, Any]:
        """Fill the rows of the group's queries; say what was used."""
        k, again = self.settings.k, 0
        index = self._half_index() if half else make_index(self.space, self.members, self.settings)
        at_once = max(1, fitted(CANDIDATE_FLOATS, CANDIDATE_BYTES) // ((k + MARGIN) * self.space.width))
        for queries in self.queries.split(index.per_call if isinstance(index, HalfFlat) else at_once):
            if isinstance(index, HalfFlat):
                found, bound = index.search(queries)
                found = found.masked_fill(self.forbidden(queries[:, None], found), -1)
                exact = index.squared_distances(self.space.query, self.space.bank, queries, found)
            else:
                found, bound = self._candidates(index, queries)
                exact = self.space.squared_distances(queries[:, None], found.clamp_min(0))
            chosen, chosen_distances = _nearest(found, exact.masked_fill(found < 0, float("inf")), k)
            # An approximate index proves nothing, but it must not leave a token without neighbours that it has.
            complete = chosen_distances[:, -1].isfinite()
            proven = (chosen_distances[:, -1] < bound) | bound.isinf() if index.exact else complete
            # Nothing can be nearer than 0; only which of the equal members have the lowest ids is open.
            for equal in (~proven & (chosen_distances[:, -1] == 0)).nonzero()[:, 0].split(at_once):
                nearest, apart = self._equal(queries[equal])
                sure = (apart == 0).all(1)
                chosen[equal[sure]], proven[equal[sure]] = nearest[sure], True
            unproven = (~proven).nonzero()[:, 0]
            if len(unproven):
                again += len(unproven)
                nearest = self._search_again(queries[unproven], chosen_distances[unproven, -1])
                chosen[unproven], chosen_distances[unproven] = nearest
            complete = chosen_distances[:, -1].isfinite()
            ids[queries[complete]] = chosen[complete]
            distances[queries[complete]] = chosen_distances[complete].sqrt()
        return index.report | {"searched_again": again}

    def _half_index(self) -> HalfFlat:
        space = self.space
        query = halves(space.query, space.centre, space.scale)
        bank = query if space.query is space.bank else halves(space.bank, space.centre, space.scale)
        tokens = self.query_table.token, self.bank_table.token
        labels = int(self.other_sequence), self.query_table.sequence, self.bank_table.sequence
        if self.settings.neighbors == "same_token" and tokens[0] is not None and tokens[1] is not None:
            labels = 2, tokens[0], tokens[1]
        return HalfFlat(query, bank, self.members, space.scale, labels, self.settings.k + self.leave_self_out)

    def _candidates(self, index: Index, queries: Int[Tensor, "q"]) -> tuple[Int[Tensor, "q c"], Float[Tensor, "q"]]:
        """Allowed candidates (-1: none), and a squared distance that every other allowed member reaches or exceeds."""
        n = min(self.settings.k + MARGIN + self.may_forbid, len(self.members))
        ids, products = index.search(queries, n)
        out = (ids < 0) | self.forbidden(queries[:, None], ids)
        order = out.byte().argsort(dim=1, stable=True)[:, : self.settings.k + MARGIN]
        ids = ids.gather(1, order).masked_fill(out.gather(1, order), -1)
        kept = products.gather(1, order)
        last = torch.where(ids[:, -1] >= 0, kept[:, -1], products[:, -1])
        bound = self.space.lower_bound(queries, last)
        # Asked for every member, an index has left nothing out.
        complete = (n == len(self.members)) & (ids[:, -1] < 0)
        return ids, bound.masked_fill(complete, float("inf"))

    def _equal(self, queries: Int[Tensor, "q"]) -> tuple[Int[Tensor, "q k"], Float[Tensor, "q k"]]:
        """The first allowed members that have a query's code, and how far they are."""
        found = self._equal_states.lowest(self.space.query[queries], self.settings.k + self.may_forbid)
        out = (found < 0) | self.forbidden(queries[:, None], found)
        first = out.byte().argsort(dim=1, stable=True)[:, : self.settings.k]
        found = found.masked_fill(out, -1).gather(1, first)
        apart = self.space.squared_distances(queries[:, None], found.clamp_min(0))
        return found, apart.masked_fill(found < 0, float("inf"))

    @cached_property
    def _equal_states(self) -> EqualStates:
        return EqualStates(self.space.bank, self.members)

    def _search_again(self, queries: Int[Tensor, "q"], reach: Float[Tensor, "q"]) -> tuple[Tensor, Tensor]:
        """Search all members that the bound does not put beyond `reach`, the k-th candidate's squared distance."""
        results = []
        at_once = PAIRS_PER_CHUNK if queries.device.type == "cpu" else PAIRS_PER_CHUNK_GPU
        step = max(1, fitted(at_once, PAIR_BYTES) // len(self.members))
        for some, limit in zip(queries.split(step), reach.split(step), strict=True):
            within = self.space.lower_bounds(some, self.members) <= limit[:, None]
            within &= ~self.forbidden(some[:, None], self.members[None, :])
            row, column = within.nonzero(as_tuple=True)
            pairs = [
                self.space.squared_distances(some[r], self.members[c])
                for r, c in zip(row.split(PAIRS_AT_ONCE), column.split(PAIRS_AT_ONCE), strict=True)
            ]
            per_row = within.sum(1)
            place = torch.arange(len(row), device=row.device) - (per_row.cumsum(0) - per_row)[row]
            shape = (len(some), max(int(per_row.max()), 1))
            table = torch.full(shape, -1, dtype=torch.long, device=row.device)
            values = torch.full(shape, float("inf"), dtype=torch.float64, device=row.device)
            table[row, place] = self.members[column]
            values[row, place] = torch.cat(pairs)
            results.append(_nearest(table, values, self.settings.k))
        return torch.cat([ids for ids, _ in results]), torch.cat([values for _, values in results])


def _nearest(
    ids: Int[Tensor, "query m"], distances: Float[Tensor, "query m"], k: int
) -> tuple[Int[Tensor, "query k"], Float[Tensor, "query k"]]:
    """The k smallest, ties to the lower id; infinite distances pad rows that have fewer."""
    by_id = ids.argsort(dim=1, stable=True)
    ids, distances = ids.gather(1, by_id), distances.gather(1, by_id)
    order = distances.argsort(dim=1, stable=True)[:, :k]
    ids, distances = ids.gather(1, order), distances.gather(1, order)
    if (short := k - ids.shape[1]) > 0:
        ids = torch.nn.functional.pad(ids, (0, short), value=-1)
        distances = torch.nn.functional.pad(distances, (0, short), value=float("inf"))
    return ids, distances
