"""Slow, loop-based NumPy oracles, written from the definitions alone: neighbours, variances, scores of a look-up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

EPS = 1e-10


@dataclass(frozen=True)
class Tokens:
    """What the rules look at, for the flat tokens of a batch."""

    sequence: list[int]
    token: list[int | None]
    usable: list[bool]


def tokens_of(mask: Any, ids: Any = None, exclude_first: int = 0) -> Tokens:
    """`exclude_first` counts a sequence's real tokens, wherever its padding stands."""
    sequence, token, usable = [], [], []
    for b, row in enumerate(np.asarray(mask)):
        seen = 0
        for p, real in enumerate(row):
            sequence.append(b)
            token.append(None if ids is None else int(ids[b][p]))
            usable.append(bool(real) and seen >= exclude_first)
            seen += int(real)
    return Tokens(sequence, token, usable)


def unit(state: Any) -> Any:
    norm = np.sqrt(np.sum(state * state))
    return state if norm == 0 else state / norm


def distance(a: Any, b: Any, metric: str = "euclidean") -> float:
    """Euclidean, or one minus the cosine; the zero vector is at cosine distance 1 from everything."""
    a, b = np.asarray(a, np.longdouble), np.asarray(b, np.longdouble)
    if metric == "euclidean":
        return float(np.sqrt(np.sum((a - b) ** 2)))
    if not a.any() or not b.any():
        return 1.0
    return float(1 - np.sum(unit(a) * unit(b)))


def may_be_neighbor(
    i: int,
    j: int,
    query: Tokens,
    bank: Tokens,
    neighbors: str = "same_layer",
    include_self: bool = False,
    same: bool = True,
) -> bool:
    if not query.usable[i] or not bank.usable[j]:
        return False
    if same and i == j and not include_self:
        return False
    if neighbors == "cross_sequence" and same and query.sequence[i] == bank.sequence[j]:
        return False
    return not (neighbors == "same_token" and query.token[i] != bank.token[j])


def sorted_candidates(
    query: Any, query_tokens: Tokens, bank: Any, bank_tokens: Tokens, metric: str = "euclidean", **rules: Any
) -> list[list[tuple[float, int]]]:
    """For every query all allowed bank states as (distance, id), nearest first, ties to the lower id."""
    if metric == "cosine":
        query, bank = [[unit(np.asarray(state, np.longdouble)) for state in states] for states in (query, bank)]
    found = []
    for i in range(len(query)):
        allowed = [j for j in range(len(bank)) if may_be_neighbor(i, j, query_tokens, bank_tokens, **rules)]
        found.append(sorted((distance(query[i], bank[j], metric), j) for j in allowed))
    return found


def nearest(candidates: list[list[tuple[float, int]]], k: int) -> tuple[Any, Any]:
    """ids and distances, "query k"; -1 and NaN where fewer than k are allowed."""
    ids = np.full((len(candidates), k), -1)
    distances = np.full((len(candidates), k), np.nan)
    for i, row in enumerate(candidates):
        if len(row) >= k:
            ids[i] = [j for _, j in row[:k]]
            distances[i] = [d for d, _ in row[:k]]
    return ids, distances


def variance(states: Any) -> float:
    """Population variance of k states, summed over dimensions."""
    k = len(states)
    mean = sum(np.asarray(state, np.float64) for state in states) / k
    return float(sum(np.sum((state - mean) ** 2) for state in states) / k)


def n_distinct(states: Any) -> int:
    return len({tuple(float(x) for x in state) for state in states})


def lookup_scores(
    layer: Any,
    next_layer: Any,
    mask: Any,
    k: int,
    tokens: Any = None,
    exclude_first: int = 0,
    normalize: bool = False,
    ids: Any = None,
    **rules: Any,
) -> dict[str, Any]:
    """The look-up method from start to end, on "batch pos d_model" arrays; every result is "batch pos" (ids: "... k").

    `ids` given: these neighbours instead of its own, to score what another implementation found.
    """
    batch, pos, d_model = layer.shape
    before = np.asarray(layer, np.float64).reshape(-1, d_model)
    after = np.asarray(next_layer, np.float64).reshape(-1, d_model)
    table = tokens_of(mask, tokens, exclude_first)
    compared = [unit(state) for state in before] if normalize else before
    distances = None
    if ids is None:
        ids, distances = nearest(sorted_candidates(compared, table, compared, table, **rules), k)
    names = ("var_in", "var_out", "var_update", "raw", "relative", "update", "n_distinct", "same_token_share")
    result = {name: np.full(len(before), np.nan) for name in names}
    result["n_distinct"][:] = 0
    for i, row in enumerate(ids):
        if row[0] < 0:
            continue
        x, y = [before[j] for j in row], [after[j] for j in row]
        result["n_distinct"][i] = n_distinct([before[i], *x])
        result["same_token_share"][i] = sum(table.token[j] == table.token[i] for j in row) / k
        if normalize:
            x, y = [unit(state) for state in x], [unit(state) for state in y]
        v_in, v_out = variance(x), variance(y)
        v_update = variance([b - a for a, b in zip(x, y)])
        result["var_in"][i], result["var_out"][i], result["var_update"][i] = v_in, v_out, v_update
        result["raw"][i] = -np.log(v_out + EPS)
        result["update"][i] = -np.log(v_update + EPS)
        if result["n_distinct"][i] > 1 and n_distinct(x) > 1:
            result["relative"][i] = np.log((v_in + EPS) / (v_out + EPS))
    result = {name: value.reshape(batch, pos) for name, value in result.items()}
    shaped = {"ids": ids, "distances": distances}
    return result | {name: value.reshape(batch, pos, k) for name, value in shaped.items() if value is not None}


def assert_same_neighbors(
    ids: Any, distances: Any, candidates: list[list[tuple[float, int]]], k: int, ties_exact: bool = False
) -> None:
    """`ids` and `distances` ("query k") are the k nearest of `candidates` (see `sorted_candidates`).

    Sets may differ only among distances equal within float32 rounding, unless `ties_exact`.
    """
    ids, distances = np.asarray(ids), np.asarray(distances, np.float64)
    assert ids.shape == distances.shape == (len(candidates), k)
    for i, row in enumerate(candidates):
        if len(row) < k:
            assert (ids[i] == -1).all(), f"query {i} has only {len(row)} candidates but got {ids[i]}"
            assert np.isnan(distances[i]).all()
            continue
        expected = np.array([d for d, _ in row[:k]])
        by_id = {j: d for d, j in row}
        assert len(set(ids[i].tolist())) == k, f"query {i} has a neighbour twice: {ids[i]}"
        assert set(ids[i].tolist()) <= set(by_id), f"query {i} has a forbidden neighbour: {ids[i]}"
        wrong = np.abs(distances[i] - expected) > 1e-5 * expected + 1e-12
        assert not wrong.any(), f"query {i}: distances {distances[i]} instead of {expected}"
        own = np.array([by_id[j] for j in ids[i].tolist()])
        wrong = np.abs(own - expected) > 1e-6 * expected + 1e-12
        assert not wrong.any(), f"query {i}: ids {ids[i]} are at {own}, and the nearest at {expected}"
        wanted = np.array([j for _, j in row[:k]])
        if ties_exact:
            assert ids[i].tolist() == wanted.tolist(), f"query {i}: {ids[i]} instead of {wanted}, at {expected}"
            continue
        around = np.array([-1.0, *(d for d, _ in row[: k + 1]), *([np.inf] if len(row) == k else [])])
        gap = np.minimum(around[1:-1] - around[:-2], around[2:] - around[1:-1])
        clear = gap > 1e-6 * expected + 1e-12
        assert (ids[i][clear] == wanted[clear]).all(), f"query {i}: {ids[i]} instead of {wanted}, at {expected}"
