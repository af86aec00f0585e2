"""The lower bound is one, the second search runs where it must and only there, and IVF says that it is approximate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import assert_same_neighbors, sorted_candidates, tokens_of
from state_clouds import two_far_piles

from basins.equal_states import EqualStates
from basins.indexes import FaissFlat, FaissIVF, TorchFlat, make_index, search_space
from basins.memory import Budget, within
from basins.neighbors import MARGIN, find_neighbors, table_of
from basins.precision import matmul_precision
from basins.settings import ScorerSettings

PRECISIONS = ("highest", "high", "medium")


@pytest.fixture
def precision():
    """The user's setting, put back afterwards."""
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


def space_of(query, bank, **options):
    return search_space(query, bank, torch.ones(len(bank), dtype=torch.bool), ScorerSettings(k=3, **options))


def assert_lower_bounds(query, bank, metric: str = "euclidean") -> None:
    """The bound, and the one that each exact index's products give, stay at or below the distance in float64."""
    queries, members = torch.arange(len(query)), torch.arange(len(bank))
    with matmul_precision("float32", torch.device("cpu"), torch.float32):  # as `find_neighbors` has it
        _assert_lower_bounds(query, bank, metric, queries, members)


def _assert_lower_bounds(query, bank, metric, queries, members) -> None:
    for kind in (TorchFlat, FaissFlat):
        space = space_of(query, bank, metric=metric, index="exact" if kind is TorchFlat else "faiss")
        squared = (space.query[:, None].double() - space.bank[None].double()).square().sum(-1)
        bounds = space.lower_bounds(queries, members)
        assert bool((bounds <= squared).all()), float((bounds - squared).max())
        ids, products = kind(space, members).search(queries, len(bank))
        assert bool((ids.sort(dim=1).values == members).all())
        assert bool((space.lower_bound(queries, products) <= squared.gather(1, ids)).all())
        assert bool((products.diff(dim=1) <= 0).all()), "best first"


@pytest.mark.parametrize("level", PRECISIONS)
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    d_model=st.integers(1, 300),
    scale=st.floats(-6, 6),
    spread=st.floats(-9, 0),
    float64=st.booleans(),
)
def test_the_lower_bound_is_one(metric, level, seed, d_model, scale, spread, float64):
    """Piles around a few centres of norm 10**scale, 10**spread of that apart: rounding is larger than distances."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, d_model, generator=rng, dtype=torch.float64)
    noise = torch.randn(24, d_model, generator=rng, dtype=torch.float64)
    states = 10**scale * (centres.repeat(8, 1) + 10**spread * noise)
    states = states if float64 else states.float()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(level)
        assert_lower_bounds(states[:10], states, metric)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("norm", [22_000.0, 3e4, 1e10, 1e15])
@pytest.mark.parametrize("level", PRECISIONS)
def test_the_lower_bound_holds_for_huge_norms(level, norm, precision):
    rng = torch.Generator().manual_seed(0)
    states = torch.randn(30, 64, generator=rng)
    states[::5] *= norm / 8
    precision(level)
    assert_lower_bounds(states, states)


def test_the_lower_bound_is_tight_enough_to_prove_something():
    states = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    space = space_of(states, states)
    bounds = space.lower_bounds(torch.arange(200), torch.arange(200))
    squared = torch.cdist(states.double(), states.double()).square()
    off = ~torch.eye(200, dtype=torch.bool)
    assert bool((bounds[off] > 0.99 * squared[off]).all())


def found_in(states, index="exact", k=3, **options):
    states = torch.as_tensor(states)
    table = table_of(torch.ones(1, len(states), dtype=torch.long), None, 0)
    return find_neighbors(states, table, states, table, ScorerSettings(k=k, index=index, **options), True)


def candidates_of(states):
    table = tokens_of([[1] * len(states)])
    return sorted_candidates(np.asarray(states), table, np.asarray(states), table)


@pytest.mark.parametrize("index", ["exact", "faiss"])
@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1.0, 1e18, 1e25])
def test_squares_that_leave_the_range_of_float32(scale, index):
    """Squared norms over- or underflow in float32 long before the states do; an exact index stays exact."""
    states = scale * torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    found = found_in(states, index)
    assert found.report["exact"]
    nearest = torch.cdist(states.double() / scale, states.double() / scale).fill_diagonal_(9e9).sort(dim=1)
    assert torch.equal(found.ids, nearest.indices[:, :3])


@pytest.mark.parametrize("index", ["exact", "faiss"])
def test_easy_states_are_searched_once(index):
    states = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    assert found_in(states, index).report == {"index": index, "exact": True, "searched_again": 0}


@pytest.mark.parametrize("index", ["exact", "faiss"])
def test_hard_states_are_searched_again_and_come_out_right(index):
    """The product alone has them wrong: members of a pile at norm 22,000 differ by less than its rounding."""
    states = np.tile(two_far_piles().astype(np.float32).reshape(-1, 8), (2, 1))
    states += 0.05 * np.random.default_rng(3).normal(size=states.shape).astype(np.float32)
    candidates = candidates_of(states)
    space = space_of(torch.from_numpy(states), torch.from_numpy(states), index=index)
    made = make_index(space, torch.arange(len(states)), ScorerSettings(k=3, index=index))
    by_product, _ = made.search(torch.arange(len(states)), 4)
    wrong = sum(row[0][1] not in got for row, got in zip(candidates, by_product.tolist()))
    assert wrong > 3
    found = found_in(states, index)
    assert 0 < found.report["searched_again"] <= len(states)
    assert_same_neighbors(found.ids, found.distances, candidates, 3)


@pytest.mark.parametrize("index", ["exact", "faiss"])
def test_of_more_duplicates_than_candidates_the_lowest_ids_are_taken(index, monkeypatch):
    """Fifty equal states: which of them an index returns is up to it. No distance has to tell them apart."""
    states = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    states[10:] = states[10]
    states[30, 0] += 1e-6  # near, not equal
    assert MARGIN + 3 < 49
    found = found_in(states, index)
    assert found.report["searched_again"] < 10  # what is near the one that is not equal
    assert found.ids[59].tolist() == [10, 11, 12]
    assert found.ids[10].tolist() == [11, 12, 13]
    # Where codes of different states agree by accident, distances tell.
    monkeypatch.setattr("basins.equal_states.row_codes", lambda rows: torch.zeros(len(rows), dtype=torch.long))
    again = found_in(states, index)
    assert torch.equal(again.ids, found.ids)
    assert again.report["searched_again"] >= 49


@pytest.mark.parametrize("level", PRECISIONS)
def test_neighbours_do_not_depend_on_the_matmul_precision(level, precision):
    states = torch.randn(90, 16, generator=torch.Generator().manual_seed(0))
    states[::7] *= 1000
    expected = found_in(states)
    precision(level)
    found = found_in(states)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.distances, expected.distances)
    assert found.report == expected.report  # none had to be searched again for it


@pytest.mark.parametrize("index", ["exact", "faiss"])
def test_neighbours_do_not_depend_on_autocast(index):
    states = torch.randn(90, 16, generator=torch.Generator().manual_seed(0))
    expected = found_in(states, index)
    with torch.autocast("cpu", torch.bfloat16):
        found = found_in(states, index)
    assert torch.equal(found.ids, expected.ids)
    assert found.report == expected.report


def test_codes_of_equal_rows_are_equal_whatever_the_pieces():
    states = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    states[1::3], states[4, 0], states[7, 0] = states[1], 0.0, -0.0
    states[4, 1:] = states[7, 1:]
    members = torch.arange(2, 40)
    whole = EqualStates(states, members)
    with within(Budget(1)):  # a row at a time
        apart = EqualStates(states, members)
    assert torch.equal(whole.codes, apart.codes)
    for query in range(40):
        equal = [m for m in members.tolist() if torch.equal(states[m], states[query])]
        assert [m for m in apart.lowest(states[query][None], 4)[0].tolist() if m >= 0] == equal[:4]


def test_auto_takes_faiss_for_large_banks_on_a_cpu(monkeypatch):
    states = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    assert found_in(states, "auto").report["index"] == "exact"
    monkeypatch.setattr("basins.indexes.FAISS_FROM", 64)
    assert found_in(states, "auto").report["index"] == "faiss"
    table = table_of(torch.ones(1, 64, dtype=torch.long), torch.zeros(1, 64, dtype=torch.long), 0)
    by_token = ScorerSettings(k=3, neighbors="same_token")
    assert find_neighbors(states, table, states, table, by_token, True).report["index"] == "exact"


class TestIVF:
    states = torch.randn(2000, 6, generator=torch.Generator().manual_seed(0))

    def test_says_that_it_is_approximate_and_how_much(self):
        found = found_in(self.states, "faiss-ivf", k=10)
        assert found.report["index"] == "faiss-ivf"
        assert found.report["exact"] is False
        exact = found_in(self.states, k=10)
        share = float((found.ids[:, :, None] == exact.ids[:, None]).any(2).double().mean())
        assert share < 1, "exact by luck: nothing is tested"
        assert found.report["recall_on_sample"] == pytest.approx(share, abs=0.1)

    def test_measures_the_share_of_true_candidates_that_it_found(self):
        space = space_of(self.states, self.states, index="faiss-ivf")
        index = FaissIVF(space, torch.arange(2000), ScorerSettings(k=10, index="faiss-ivf"))
        ids, _ = index.search(torch.arange(100), 12)
        true = torch.cdist(self.states[:100].double(), self.states.double()).topk(12, largest=False).indices
        share = np.mean([len({*a} & {*b}) / 12 for a, b in zip(ids.tolist(), true.tolist())])
        assert index.report["recall_on_sample"] == pytest.approx(share, abs=1e-4)

    def test_same_seed_same_neighbours(self):
        first, again = (found_in(self.states, "faiss-ivf", k=10, seed=3) for _ in range(2))
        assert torch.equal(first.ids, again.ids)
        other = found_in(self.states, "faiss-ivf", k=10, seed=4)
        assert not torch.equal(first.ids, other.ids), "the seed reaches the clustering"

    def test_distances_are_those_of_its_neighbours_and_rules_hold(self):
        found = found_in(self.states, "faiss-ivf", k=10)
        assert not bool((found.ids == torch.arange(2000)[:, None]).any())
        assert bool((found.distances.diff(dim=1) >= 0).all())
        taken = (self.states[found.ids].double() - self.states[:, None].double()).norm(dim=-1)
        torch.testing.assert_close(found.distances.double(), taken, rtol=1e-6, atol=0)

    def test_a_token_in_a_small_list_is_scored_too(self):
        """Only a token with fewer than k *allowed* states stays without neighbours (design, section 4)."""
        states = self.states[:300].clone()
        states[:3] += 1000
        found = found_in(states, "faiss-ivf", k=10)
        assert bool((found.ids >= 0).all())

    def test_recall_covers_every_group_of_same_token(self):
        """A rare token's few states are all found; that says nothing about a frequent token's many."""
        ids = (torch.arange(2000)[None] >= 1970).long()
        table = table_of(torch.ones(1, 2000, dtype=torch.long), ids, 0)
        options = ScorerSettings(k=10, index="faiss-ivf", neighbors="same_token")
        report = find_neighbors(self.states, table, self.states, table, options, True).report
        alone = found_in(self.states[:1970], "faiss-ivf", k=10).report["recall_on_sample"]
        assert alone < 0.98
        assert report["recall_on_sample"] < 0.99

    def test_says_nothing_on_the_terminal(self, capfd):
        found_in(self.states[:30], "faiss-ivf")
        assert capfd.readouterr() == ("", "")
