"""The float16 search on a GPU: its kernels against the torch reference, and its neighbours against the exact index."""

from __future__ import annotations

import pytest
import torch
from state_clouds import CLOUDS

from basins import half_search
from basins.half_search import HalfFlat, group_minima, halves, has_kernels, squared_distances
from basins.indexes import search_space
from basins.neighbors import find_neighbors, table_of
from basins.settings import ScorerSettings

pytestmark = pytest.mark.gpu
RULES = ("same_layer", "cross_sequence", "same_token")


@pytest.fixture(autouse=True)
def kernels():
    """The device and its kernels; skipped where only the float32 search runs."""
    device = torch.device("cuda", torch.cuda.current_device())
    if not has_kernels(device):
        pytest.skip("no Triton kernels on this device")
    from basins import half_kernels

    return half_kernels


def states_of(n: int, d_model: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d_model, generator=torch.Generator().manual_seed(seed)).cuda()


def found_in(states, index, k=16, seq=50, **options):
    ids = torch.arange(len(states)).view(-1, seq) % 23
    table = table_of(torch.ones_like(ids), ids, 1)
    return find_neighbors(states, table, states, table, ScorerSettings(k=k, index=index, **options), True)


def assert_same(states, **options):
    """The very ids of the float32 search: both end in the same float64 distances, with ties to the lower id."""
    half, exact = found_in(states, "half", **options), found_in(states, "exact", **options)
    assert half.report["index"] == "half"
    assert torch.equal(half.ids, exact.ids)
    torch.testing.assert_close(half.distances, exact.distances, rtol=1e-6, atol=1e-12, equal_nan=True)
    return half.report


@pytest.mark.parametrize("described", [False, True])
@pytest.mark.parametrize("rule", [0, 1, 2])
@pytest.mark.parametrize(("group", "keep"), half_search.GROUPS)
def test_the_product_kernel_keeps_what_the_reference_keeps(group, keep, rule, described, kernels):
    if described and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("this GPU has no copy engine for tiles")
    query, bank = states_of(333, 192).half(), states_of(1234, 192, 1).half()
    norms = [states.float().square().sum(1) for states in (query, bank)]
    labels = rule, torch.arange(333, device="cuda").int() % 7, torch.arange(1234, device="cuda").int() % 7
    operands = query, bank, *norms, labels, group, keep, half_search.SMALLEST
    expected = group_minima(*operands)
    found = kernels.group_minima(*operands, described=described)
    assert found.shape == expected.shape
    forbidden = expected >= half_search.INFINITY
    assert torch.equal(found >= half_search.INFINITY, forbidden)
    found, expected = (keys.view(torch.float32)[~forbidden] for keys in (found, expected))
    torch.testing.assert_close(found, expected, rtol=2.0**-12, atol=0)


@pytest.mark.parametrize(("n", "group", "keep"), [(700, 128, 3), (5000, 16, 4), (100_000, 16, 4)])
def test_the_selection_kernel_takes_the_smallest(n, group, keep, kernels):
    n_groups = -(-n // group)
    keys = torch.randint(0, half_search.INFINITY, (40, keep, n_groups), dtype=torch.int32, device="cuda")
    keys = (keys & -group | torch.randint(0, group, keys.shape, dtype=torch.int32, device="cuda")).sort(dim=1).values
    keys[0, 1:] = half_search.INFINITY
    keys[1] = half_search.INFINITY
    keys[2] = keys[2, :, :1].clone()
    keys = keys.flatten(1)
    found, cut = kernels.smallest_keys(keys, 20, 64, group, keep)
    for row, members, least in zip(keys, found, cut.view(torch.int32), strict=True):
        members = members[members >= 0]
        slot = torch.arange(len(row), device="cuda")
        of_slot = slot % n_groups * group + (row & (group - 1))
        taken = torch.isin(of_slot, members) & (row < half_search.INFINITY)
        assert len(members) >= min(20, int((row < half_search.INFINITY).sum()))
        assert bool((row[~taken] >= least).all())
        assert bool((row[-n_groups:] >= least).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("d_model", "candidates"), [(5, 3), (768, 64), (8192, 512)])
def test_the_distance_kernel_is_that_of_float64(d_model, candidates, dtype, kernels):
    states = states_of(200, d_model).to(dtype)
    members = torch.randint(-1, 200, (30, candidates), device="cuda")
    queries = torch.arange(30, device="cuda") * 2
    expected = squared_distances(states, states, queries, members)
    torch.testing.assert_close(
        kernels.squared_distances(states, states, queries, members), expected, rtol=1e-13, atol=0
    )


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("d_model", [128, 768, 1000])
def test_every_rule_and_metric(d_model, rule, metric):
    for include_self in (False, True):
        report = assert_same(states_of(6000, d_model), neighbors=rule, metric=metric, include_self=include_self)
        assert report["searched_again"] < 300


@pytest.mark.parametrize(("d_model", "k"), [(128, 256), (768, 256), (4096, 15), (8192, 64)])
def test_many_neighbours_and_wide_models(d_model, k):
    assert_same(states_of(8000, d_model), k=k)


@pytest.mark.parametrize("name", CLOUDS)
def test_hard_clouds(name):
    states = torch.as_tensor(CLOUDS[name]()).flatten(0, 1)
    noise = torch.randn(50, *states.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spread = 0 if name in ("all_equal", "duplicates", "integer_grid") else 1e-3
    many = (states + spread * states.std() * noise).flatten(0, 1)
    for dtype in (torch.float32, torch.float64):
        assert_same(many[: len(many) // 50 * 50].to("cuda", dtype))


def test_a_bank_of_several_tiles(monkeypatch):
    states = states_of(20_000, 128)
    whole = found_in(states, "half")
    monkeypatch.setattr(half_search, "SLOTS", 128)
    monkeypatch.setattr(half_search, "KEYS_AT_ONCE", 2**19)
    assert torch.equal(found_in(states, "half").ids, whole.ids)


def test_auto_takes_it_for_large_banks():
    assert found_in(states_of(5000, 64), "auto").report["index"] == "half"
    assert found_in(states_of(500, 64), "auto").report["index"] == "exact"


@pytest.mark.parametrize("d_model", [128, 768, 4096, 8192])
@pytest.mark.parametrize("kind", ["normal", "positive", "spread"])
def test_products_are_off_by_less_than_the_bound_says(kind, d_model, kernels):
    """All-positive states add up in one direction, where rounding towards 0 would show; "spread" has many exponents."""
    states = states_of(2000, d_model)
    if kind == "positive":
        states = states.abs() + 1
        states[::2] *= -1  # or the mean would take it away
    if kind == "spread":
        states *= 10 ** (4 * torch.rand(d_model, generator=torch.Generator().manual_seed(2)).cuda() - 3)
    everything = torch.arange(2000, device="cuda")
    space = search_space(states, states, torch.ones(2000, dtype=torch.bool, device="cuda"), ScorerSettings(k=15))
    half = halves(states, space.centre, space.scale)
    index = HalfFlat(half, half, everything, space.scale, (0, everything, everything), 15)
    labels = 0, *index.labels[1:]
    operands = half.states, index.bank.states, index.query_norms, index.bank_norms, labels, 16, 16
    keys = kernels.group_minima(*operands, half_search.SMALLEST).view(2000, 16, -1)
    place = torch.arange(keys.shape[2], device="cuda") * 16 + (keys & 15)
    computed = (keys & -16).view(torch.float32).double() / index.unit
    true = squared_distances(states, states, everything, index.members[place.flatten(1)]).view_as(computed)
    bound = index._error(everything, torch.full((2000,), torch.inf, dtype=torch.float64, device="cuda")) / index.unit
    assert bool((computed - true <= bound[:, None, None]).all())
    assert float(((computed - true).abs() / bound[:, None, None]).max()) > 1e-3, "a bound that says something"
