"""Neighbours against a loop in float64: every rule, metric and exact index, on clouds that are hard on a search."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from reference import assert_same_neighbors, sorted_candidates, tokens_of, unit
from state_clouds import CLOUDS, EXACT_TIES, normal

from basins import indexes, neighbors
from basins.neighbors import find_neighbors, table_of
from basins.settings import ScorerSettings

EXACT_INDEXES = ("auto", "exact", "half", "faiss")
RULES = ("same_layer", "cross_sequence", "same_token")
DTYPES = {"float32": torch.float32, "float64": torch.float64}
K = 3


@cache
def batch_of(name: str, padding: str, dtype: str):
    """States as the search gets them, mask and token ids (few, so that same_token has something to find)."""
    states = CLOUDS[name]().astype(dtype)
    n, pos = states.shape[:2]
    mask = np.ones((n, pos), int)
    if padding == "right":
        mask[0, -3:], mask[-1, -1:] = 0, 0
    if padding == "left":
        mask[0, :2], mask[-1, :4] = 0, 0
    states[mask == 0] = 1e6 * np.arange((mask == 0).sum())[:, None]
    return states, mask, np.random.default_rng(9).integers(0, 3, (n, pos))


def search(states, mask, ids, k=K, exclude_first=0, **options):
    flat = torch.from_numpy(states).flatten(0, 1)
    table = table_of(torch.from_numpy(mask), torch.from_numpy(ids), exclude_first)
    return find_neighbors(flat, table, flat, table, ScorerSettings(k=k, exclude_first=exclude_first, **options), True)


def expected(states, mask, ids, exclude_first=0, **rules):
    table, flat = tokens_of(mask, ids, exclude_first), states.reshape(-1, states.shape[-1])
    return sorted_candidates(flat, table, flat, table, **rules)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CLOUDS)
def test_every_rule_metric_and_exact_index(name, rule, metric, dtype):
    states, mask, ids = batch_of(name, "none", dtype)
    ties_exact = metric == "euclidean" and name in EXACT_TIES
    for include_self in (False, True):
        rules = {"neighbors": rule, "include_self": include_self, "metric": metric}
        candidates = expected(states, mask, ids, **rules)
        assert any(len(row) >= K for row in candidates)
        for index in EXACT_INDEXES:
            found = search(states, mask, ids, index=index, **rules)
            assert found.report["exact"]
            assert found.distances.dtype == DTYPES[dtype]
            assert_same_neighbors(found.ids, found.distances, candidates, K, ties_exact)


@pytest.mark.parametrize("index", EXACT_INDEXES)
@pytest.mark.parametrize("exclude_first", [0, 1, 3])
@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("rule", RULES)
def test_padding_and_first_positions_are_left_out(rule, padding, exclude_first, index):
    states, mask, ids = batch_of("normal", padding, "float32")
    candidates = expected(states, mask, ids, exclude_first, neighbors=rule)
    found = search(states, mask, ids, exclude_first=exclude_first, neighbors=rule, index=index)
    assert_same_neighbors(found.ids, found.distances, candidates, K)
    unusable = ~np.array(tokens_of(mask, ids, exclude_first).usable)
    assert unusable.sum() >= (mask == 0).sum() + 4 * exclude_first - (4 if exclude_first > 2 else 0)
    assert not np.isin(found.ids.numpy(), unusable.nonzero()[0]).any()
    assert (found.ids.numpy()[unusable] == -1).all()


def test_first_positions_are_counted_over_real_tokens():
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    usable = table_of(torch.from_numpy(mask), None, 1).usable
    assert usable.view(2, 5).int().tolist() == [[0, 0, 0, 1, 1], [0, 1, 1, 0, 0]]


@pytest.mark.parametrize("index", EXACT_INDEXES)
@pytest.mark.parametrize("include_self", [False, True])
@pytest.mark.parametrize("name", ["normal", "duplicates", "integer_grid", "one_dimension"])
def test_k_may_be_everything_else(name, include_self, index):
    states, mask, ids = batch_of(name, "none", "float32")
    k = states.shape[0] * states.shape[1] - (not include_self)
    found = search(states, mask, ids, k=k, include_self=include_self, index=index)
    candidates = expected(states, mask, ids, include_self=include_self)
    assert_same_neighbors(found.ids, found.distances, candidates, k, name in EXACT_TIES)
    one_more = search(states, mask, ids, k=k + 1, include_self=include_self, index=index)
    assert bool((one_more.ids == -1).all())
    assert bool(one_more.distances.isnan().all())


@pytest.mark.parametrize("index", EXACT_INDEXES)
@pytest.mark.parametrize(("metric", "rule"), product(["euclidean", "cosine"], RULES))
@pytest.mark.parametrize("name", ["normal", "integer_grid", "with_zeros", "sinks"])
def test_a_bank_of_its_own_leaves_nothing_out(name, metric, rule, index):
    """Queries are not in a fitted bank: equal rows and equal sequence numbers mean nothing then."""
    states, _, ids = batch_of(name, "none", "float32")
    bank, bank_ids = states[::-1, :6].copy(), ids[::-1, :6].copy()
    bank_mask = np.ones(bank.shape[:2], int)
    bank_mask[1, 4:] = 0
    mask = np.ones(states.shape[:2], int)
    flat, bank_flat = torch.from_numpy(states).flatten(0, 1), torch.from_numpy(bank).flatten(0, 1)
    table = table_of(torch.from_numpy(mask), torch.from_numpy(ids), 1)
    bank_table = table_of(torch.from_numpy(bank_mask), torch.from_numpy(bank_ids), 1)
    settings = ScorerSettings(k=K, metric=metric, neighbors=rule, index=index, exclude_first=1)
    found = find_neighbors(flat, table, bank_flat, bank_table, settings, same=False)
    candidates = sorted_candidates(
        flat.numpy(),
        tokens_of(mask, ids, 1),
        bank_flat.numpy(),
        tokens_of(bank_mask, bank_ids, 1),
        metric,
        neighbors=rule,
        same=False,
    )
    ties_exact = metric == "euclidean" and name in EXACT_TIES
    assert_same_neighbors(found.ids, found.distances, candidates, K, ties_exact)


@pytest.mark.parametrize("index", EXACT_INDEXES)
def test_normalize_compares_directions(index):
    states, mask, ids = batch_of("sinks", "none", "float64")
    found = search(states, mask, ids, normalize=True, index=index)
    directions = np.array([[unit(state) for state in row] for row in states])
    assert_same_neighbors(found.ids, found.distances, expected(directions, mask, ids), K)


def test_normalize_keeps_zero_states_together():
    """The zero state has no direction and stays zero: at distance 1 from unit vectors, and 0 from its like."""
    states, mask, ids = batch_of("with_zeros", "none", "float64")
    found = search(states, mask, ids, normalize=True)
    directions = np.array([[unit(state) for state in row] for row in states])
    assert_same_neighbors(found.ids, found.distances, expected(directions, mask, ids), K)


def test_ties_go_to_the_lower_id_wherever_the_query_stands():
    states, mask, ids = batch_of("all_equal", "none", "float32")
    found = search(states, mask, ids)
    assert found.ids[[0, 1, 2, 3, 27]].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 2]]
    assert bool((found.distances == 0).all())


@pytest.mark.parametrize("index", ["exact", "faiss"])
@pytest.mark.parametrize(
    ("module", "constant", "value"),
    [
        (neighbors, "MARGIN", 0),
        (neighbors, "MARGIN", 1),
        (neighbors, "CANDIDATE_FLOATS", 1),
        (neighbors, "PAIRS_PER_CHUNK", 1),
        (neighbors, "PAIRS_AT_ONCE", 5),
        (indexes, "SCORES_PER_CHUNK", 1),
        (indexes, "MEMBERS_PER_CHUNK", 3),
        (indexes, "MEMBERS_PER_CHUNK", 1),
        (indexes, "FAISS_FROM", 1),
    ],
)
def test_chunks_and_margins_change_nothing(module, constant, value, index, monkeypatch):
    for name, rule in product(("two_far_piles", "integer_grid"), RULES):
        states, mask, ids = batch_of(name, "right", "float32")
        before = search(states, mask, ids, neighbors=rule, index=index)
        with monkeypatch.context() as patch:
            patch.setattr(module, constant, value)
            after = search(states, mask, ids, neighbors=rule, index=index)
        assert torch.equal(before.ids, after.ids)
        torch.testing.assert_close(before.distances, after.distances, rtol=1e-6, atol=0, equal_nan=True)


def test_a_query_without_any_bank_state_is_left_alone():
    ids = np.array([[0, 0, 0, 0, 7]])
    found = search(normal(3, 1, 5), np.ones((1, 5), int), ids, neighbors="same_token")
    assert bool((found.ids[4] == -1).all())
    assert bool((found.ids[:4] >= 0).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", EXACT_INDEXES)
def test_a_search_changes_no_state(index, dtype):
    states = normal(3, 4, 5).astype(dtype)
    before, ones = states.copy(), np.ones(states.shape[:2], int)
    search(states, ones, ones, index=index)
    assert np.array_equal(states, before)
