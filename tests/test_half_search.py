"""The float16 search without a GPU: its bound is one, and what the bound does not settle is searched again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import assert_same_neighbors, sorted_candidates, tokens_of
from state_clouds import CLOUDS, EXACT_TIES, dominated, normal, sinks, two_far_piles

from basins import half_search, indexes
from basins.half_search import HalfFlat, group_minima, halves, has_kernels, refusal, smallest_keys
from basins.indexes import search_space
from basins.neighbors import find_neighbors, table_of
from basins.settings import ScorerSettings

RULES = ("same_layer", "cross_sequence", "same_token")
GROUPS = (128, 3), (32, 4), (16, 4)


def index_of(states, wanted=5, labels=None, **options):
    """The index over all states, and each pair's squared distance as it is compared, in float64."""
    n = len(states)
    everything = torch.arange(n)
    space = search_space(states, states, torch.ones(n, dtype=torch.bool), ScorerSettings(k=3, **options))
    half = halves(space.query, space.centre, space.scale)
    labels = labels or (0, everything, everything)
    same = space.query if space.query is space.bank else None
    bank = half if same is not None else halves(space.bank, space.centre, space.scale)
    squared = (space.query.double()[:, None] - space.bank.double()).square().sum(-1)
    return HalfFlat(half, bank, everything, space.scale, labels, wanted), squared


def assert_bound(index, squared, allowed=None):
    """Everything allowed that was not returned is at least as far as the bound says."""
    found, bound = index.search(torch.arange(len(squared)))
    returned = torch.zeros_like(squared, dtype=torch.bool)
    row = torch.arange(len(squared))[:, None].expand_as(found)[found >= 0]
    returned[row, found[found >= 0]] = True
    if allowed is not None:
        assert not bool((returned & ~allowed).any())
    rest = ~returned if allowed is None else allowed & ~returned
    assert bool((squared >= bound[:, None])[rest].all())
    return found, bound


def found_in(states, index="half", k=3, seq=None, tokens=None, **options):
    states = torch.as_tensor(states)
    ids = torch.zeros(len(states), dtype=torch.long) if tokens is None else torch.as_tensor(tokens)
    ids = ids.view(-1, seq or len(states))
    table = table_of(torch.ones_like(ids), ids, 0)
    return find_neighbors(states, table, states, table, ScorerSettings(k=k, index=index, **options), True)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    d_model=st.integers(1, 200),
    scale=st.floats(-20, 15),
    spread=st.floats(-9, 0),
    float64=st.booleans(),
    slots=st.sampled_from([2**15, 64]),
)
def test_the_bound_is_one(metric, seed, d_model, scale, spread, float64, slots):
    """Piles around a few centres of norm 10**scale, 10**spread of that apart; the bank in one tile or several."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, d_model, generator=rng, dtype=torch.float64)
    noise = torch.randn(150, d_model, generator=rng, dtype=torch.float64)
    states = 10**scale * (centres.repeat(50, 1) + 10**spread * noise)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(half_search, "SLOTS", slots)
        patch.setattr(half_search, "SPARE", 2)
        assert_bound(*index_of(states if float64 else states.float(), metric=metric))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("rule", [0, 1, 2])
def test_the_bound_covers_what_groups_did_not_keep(rule, group, monkeypatch):
    """Forty near copies of a state, more than the groups keep: those not returned are below no bound."""
    monkeypatch.setattr(half_search, "GROUPS", (group,))
    states = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    states[100:140] = states[100] + 1e-3 * states[100:140]
    label = torch.arange(300) % 3
    equal = label[:, None] == label
    allowed = {0: torch.ones_like(equal), 1: ~equal, 2: equal}[rule]
    index, squared = index_of(states, labels=(rule, label, label))
    assert_bound(index, squared, allowed)


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize("rule", RULES)
def test_many_states_of_every_cloud(name, rule):
    """More states than a group has, around those of the cloud."""
    states = np.concatenate([CLOUDS[name]()] * 3, axis=1)
    if name not in EXACT_TIES:
        states = states + 1e-3 * states.std() * np.random.default_rng(5).normal(size=states.shape)
    states = states.astype(np.float32)
    ids = np.random.default_rng(9).integers(0, 2, states.shape[:2])
    flat, table = states.reshape(-1, states.shape[-1]), tokens_of(np.ones_like(ids), ids)
    found = found_in(flat, seq=states.shape[1], tokens=ids, neighbors=rule)
    assert found.report["index"] == "half"
    candidates = sorted_candidates(flat, table, flat, table, neighbors=rule)
    assert_same_neighbors(found.ids, found.distances, candidates, 3, name in EXACT_TIES)


@pytest.mark.parametrize("k", [2, 16])
def test_easy_states_are_searched_once(k):
    states = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    found, exact = found_in(states, k=k), found_in(states, "exact", k=k)
    assert torch.equal(found.ids, exact.ids)
    assert torch.equal(found.distances, exact.distances)
    assert found.report["searched_again"] < 50
    assert found.report["exact"] is True


def test_many_neighbours():
    states = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found_in(states, k=256).ids, found_in(states, "exact", k=256).ids)


def test_a_few_huge_norms_leave_the_others_proven():
    """Attention sinks: the bound of a query does not depend on the largest norm in the bank."""
    states = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    states[::100] *= 1000
    found = found_in(states)
    assert torch.equal(found.ids, found_in(states, "exact").ids)
    assert found.report["searched_again"] < 60


@pytest.mark.parametrize("cloud", [sinks, dominated, two_far_piles])
def test_hard_states_are_searched_again_and_come_out_right(cloud):
    states = np.concatenate([cloud()] * 40, axis=1).astype(np.float64)
    states += 1e-2 * np.random.default_rng(3).normal(size=states.shape)
    states = torch.from_numpy(states.reshape(-1, states.shape[-1]))
    found = found_in(states)
    squared = torch.cdist(states, states, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    assert torch.equal(found.ids, squared.sort(dim=1, stable=True).indices[:, :3])
    assert found.report["searched_again"] > 0 or cloud is dominated


def test_products_that_round_towards_zero_change_nothing(monkeypatch):
    """A matrix unit adds blocks of products in float32 and cuts bits off; here after every single product."""
    states = torch.randn(150, 48, generator=torch.Generator().manual_seed(0)).abs()
    expected = found_in(states)
    largest = []

    def cut(x):
        return (x.view(torch.int32) & ~1).view(torch.float32)  # one bit more than a float32 loses

    def rounded(query, bank, query_norms, bank_norms, labels, group, keep, smallest):
        product = torch.zeros(len(query), len(bank))
        for a, b in zip(query.float().T, bank.float().T, strict=True):
            product = cut(product + cut(a[:, None] * b))
        exact = query.double() @ bank.double().T
        largest.append(float((product - exact).abs().max() / exact.abs().max()))
        squared = (query_norms[:, None] + bank_norms - 2 * product).clamp_min(smallest)
        place = torch.arange(len(bank), dtype=torch.int32) % group
        keys = torch.nn.functional.pad(
            (squared.view(torch.int32) & -group) | place, (0, -len(bank) % group), value=2**31 - 1
        )
        return keys.unflatten(1, (-1, group)).topk(keep, 2, largest=False).values.transpose(1, 2).flatten(1)

    monkeypatch.setattr(half_search, "group_minima", rounded)
    found = found_in(states)
    assert largest[0] > 1e-6, "the rounding is felt"
    assert torch.equal(found.ids, expected.ids)
    index, squared = index_of(states)
    assert_bound(index, squared)


@pytest.mark.parametrize(("group", "keep"), half_search.GROUPS)
@pytest.mark.parametrize("rule", [0, 1, 2])
def test_keys_are_the_smallest_of_each_group(rule, group, keep):
    rng = np.random.default_rng(1)
    query, bank = (torch.from_numpy(rng.normal(size=(n, 64))).half() for n in (5, 300))
    labels = rule, torch.from_numpy(rng.integers(0, 3, 5)), torch.from_numpy(rng.integers(0, 3, 300))
    norms = [states.float().square().sum(1) for states in (query, bank)]
    keys = group_minima(query, bank, *norms, labels, group, keep, half_search.SMALLEST)
    n_groups = -(-300 // group)
    assert keys.shape == (5, keep * n_groups)
    for i in range(5):
        for g in range(n_groups):
            members = range(g * group, min((g + 1) * group, 300))
            same = [int(labels[1][i]) == int(labels[2][j]) for j in members]
            allowed = [j for j, equal in zip(members, same) if not rule or equal == (rule == 2)]
            far = sorted((float((query[i].double() - bank[j].double()).square().sum()), j) for j in allowed)[:keep]
            kept = [int(keys[i, place * n_groups + g]) for place in range(keep)]
            assert [key < half_search.INFINITY for key in kept] == [place < len(far) for place in range(keep)]
            kept = kept[: len(far)]
            assert {g * group + (key & (group - 1)) for key in kept} == {j for _, j in far}
            values = torch.tensor(kept, dtype=torch.int32).view(torch.float32).tolist()
            np.testing.assert_allclose(values, [square for square, _ in far], rtol=2.0**-15)


def test_the_cut_is_the_least_of_what_was_not_taken():
    keys = torch.tensor([[8, 16, 24, 32, 40, 48], [8, 16, 64, 32, 40, 72]], dtype=torch.int32) * 1000 // 8 * 8
    # Two places of three groups of 8: the second place of a group bounds what the group did not keep.
    members, cut = smallest_keys(keys, 1, 2, 8, 2)
    assert members.tolist() == [[0, 8], [0, 8]]
    assert cut.view(torch.int32).tolist() == [24000, 32000]


@pytest.mark.parametrize(
    ("constant", "value"),
    [("SLOTS", 16), ("PAIRS_AT_ONCE", 1), ("ROWS_AT_ONCE", 7), ("SPARE", 0), ("SPARE", 40), ("GROUPS", ((16, 1),))],
)
def test_tiles_chunks_and_spares_change_nothing(constant, value, monkeypatch):
    states = normal(20, 10, 15).reshape(150, 20).astype(np.float32)
    tokens = np.arange(150) % 4
    for rule in RULES:
        before = found_in(states, seq=15, tokens=tokens, neighbors=rule)
        with monkeypatch.context() as patch:
            patch.setattr(half_search, constant, value)
            after = found_in(states, seq=15, tokens=tokens, neighbors=rule)
        assert torch.equal(before.ids, after.ids)
        assert torch.equal(before.distances, after.distances)


def test_auto_takes_it_where_there_are_kernels(monkeypatch):
    states = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    assert refusal(torch.device("cpu"))
    assert not has_kernels(torch.device("cpu"))
    assert found_in(states, "auto").report["index"] == "exact"
    monkeypatch.setattr(indexes, "has_kernels", lambda device: True)
    assert found_in(states, "auto").report["index"] == "exact"
    monkeypatch.setattr(indexes, "HALF_FROM", 64)
    assert found_in(states, "auto").report["index"] == "half"
