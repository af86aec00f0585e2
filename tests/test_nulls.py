"""Nulls against plain forward passes, against the neighbour rules, and where their distribution is known."""

from __future__ import annotations

import pytest
import reference
import torch
from block_models import model_of
from test_fixed_points import cloud
from test_rerun import one_forward_per_neighbour, padded, some_tokens
from tiny_models import tiny_model

from basins import BasinScorer, nulls
from basins.errors import BasinsError
from basins.neighbors import find_neighbors, table_of
from basins.nulls import (
    ISOTROPIC,
    NULLS,
    RANDOM_NEIGHBORS,
    TRANSPLANTED,
    donors_of,
    generator,
    isotropic,
    null_scores,
    other_token,
    random_neighbors,
    shuffled_order,
    transplanted,
)
from basins.scores import variance
from basins.settings import ScorerSettings

SETTINGS = {"k": 4, "neighbors": "cross_sequence", "exclude_first": 1}


def scored(name: str, padding: str, **settings):
    model, tokens, mask = tiny_model(name), some_tokens(), padded(padding)
    return model, tokens, mask, BasinScorer(model, **(SETTINGS | settings)).score_tokens(tokens, mask)


def by_the_rule(tokens, mask, **rules) -> torch.Tensor:
    """Who may be whose neighbour, pair by pair, as the reference has it; the first position is left out."""
    flat = reference.tokens_of(mask, tokens, exclude_first=1)
    n = mask.numel()
    return torch.tensor([[reference.may_be_neighbor(i, j, flat, flat, **rules) for j in range(n)] for i in range(n)])


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("rule", ["same_layer", "cross_sequence", "same_token"])
@pytest.mark.parametrize("include_self", [False, True])
def test_asked_for_all_that_the_rule_allows_random_neighbours_are_all_neighbours(padding, rule, include_self):
    mask = padded(padding)
    tokens = torch.randint(3, 6, mask.shape, generator=torch.Generator().manual_seed(0))
    table = table_of(mask, tokens, exclude_first=1)
    states = torch.randn(mask.numel(), 5)
    allowed = by_the_rule(tokens, mask, neighbors=rule, include_self=include_self)
    for k in range(2, 30):
        settings = ScorerSettings(k=k, neighbors=rule, include_self=include_self, exclude_first=1)
        nearest = find_neighbors(states, table, states, table, settings, same=True).ids
        drawn = random_neighbors(table, settings, torch.Generator().manual_seed(k))
        assert torch.equal(nearest[:, 0] >= 0, drawn[:, 0] >= 0)  # the same tokens have k
        for row in (drawn[:, 0] >= 0).nonzero()[:, 0].tolist():
            assert len(set(drawn[row].tolist())) == k
            assert bool(allowed[row, drawn[row]].all())
            assert bool(allowed[row, nearest[row]].all())
            if int(allowed[row].sum()) == k:
                assert set(drawn[row].tolist()) == set(nearest[row].tolist())


def test_every_allowed_state_is_drawn_as_often():
    mask = torch.ones(4, 6, dtype=torch.long)
    table = table_of(mask, None, exclude_first=1)
    settings = ScorerSettings(k=5, neighbors="cross_sequence", exclude_first=1)
    rng, n = torch.Generator().manual_seed(0), 600
    counts = torch.zeros(24, 24)
    for _ in range(n):
        drawn = random_neighbors(table, settings, rng)
        counts[torch.arange(24)[:, None].expand(-1, 5)[drawn >= 0], drawn[drawn >= 0]] += 1
    share = 5 / 15
    allowed = by_the_rule(torch.zeros_like(mask), mask, neighbors="cross_sequence")
    assert bool((counts[~allowed] == 0).all())
    deviation = (counts[allowed] - n * share) / (n * share * (1 - share)) ** 0.5
    assert float(deviation.abs().max()) < 4.5
    assert 0.8 < float(deviation.std()) < 1.2


def test_donors_are_others_and_all_as_likely():
    eligible = torch.tensor([1, 4, 5, 9])
    queries = torch.tensor([0, 1, 4, 5, 9, 12]).repeat(4000)
    drawn = other_token(queries, eligible, torch.Generator().manual_seed(0))
    assert not bool((drawn == queries).any())
    for query in (0, 4, 9):
        counts = drawn[queries == query].bincount(minlength=10)[eligible]
        possible = counts[eligible != query]
        share = 1 / len(possible)
        assert float(((possible - 4000 * share) / (4000 * share * (1 - share)) ** 0.5).abs().max()) < 4.5
    with pytest.raises(BasinsError, match="needs at least 2"):
        other_token(queries, eligible[:1], torch.Generator())


def test_transplanted_displacements_keep_the_donors_shape_at_the_querys_radius():
    states = cloud(30, 7)
    ids = torch.stack([torch.randperm(30, generator=torch.Generator().manual_seed(i))[:5] for i in range(30)])
    queries, donors = torch.tensor([3, 8]), torch.tensor([20, 1])
    moved = transplanted(states, ids, queries, donors) - states[queries, None]
    theirs = states[ids[donors]] - states[donors, None]
    own = states[ids[queries]] - states[queries, None]
    torch.testing.assert_close(moved.square().sum(-1).mean(-1), own.square().sum(-1).mean(-1))
    ratio = moved / theirs
    torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio))
    assert bool((ratio > 0).all())
    torch.testing.assert_close(transplanted(states, ids, queries, queries), states[ids[queries]])


def test_isotropic_displacements_have_the_trace_and_no_direction():
    query, near = cloud(50, 12, seed=1), cloud(50 * 30, 12, seed=2).view(50, 30, 12)
    near = query[:, None] + near * torch.tensor([10.0] + [0.1] * 11, dtype=torch.float64)
    found = isotropic(query, near, torch.Generator().manual_seed(0))
    torch.testing.assert_close(variance(found), variance(near))
    share = found.var((0, 1), correction=0)
    assert float((found - query[:, None]).square().mean((0, 1)).max()) < 1.5 * float(share.median())
    same = query[:, None].expand(-1, 30, -1)
    assert torch.equal(isotropic(query, same, torch.Generator()), same)  # V_in = 0 stays 0


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "mamba"])
def test_random_neighbours_come_out_as_from_one_forward_pass_each(name, padding):
    model, tokens, mask, scores = scored(name, padding)
    found = null_scores(model, tokens, mask, scores, [RANDOM_NEIGHBORS])[RANDOM_NEIGHBORS]
    assert torch.equal(found.relative.isnan(), scores.relative.isnan())
    _, cache = model.run_with_cache(tokens, attention_mask=mask)
    n_pos = tokens.shape[1]
    for layer in range(3):
        states = cache[f"blocks.{layer}.hook_resid_pre"].flatten(0, 1)
        for flat in scores.relative[layer].flatten().isfinite().nonzero()[::9, 0].tolist():
            sequence, position = divmod(flat, n_pos)
            ids = found.neighbor_ids[layer, sequence, position]
            assert set((ids // n_pos).tolist()) & {sequence} == set()
            outputs = [
                one_forward_per_neighbour(model, tokens, mask, layer, *divmod(flat, n_pos), states[i]) for i in ids
            ]
            wanted = variance(torch.stack(outputs)[None])[0]
            assert found.var_out[layer, sequence, position] == pytest.approx(float(wanted), rel=1e-3)
            assert found.var_in[layer, sequence, position] == pytest.approx(float(variance(states[ids])), rel=1e-4)


@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_what_each_null_keeps_of_the_observed_neighbours(padding, untouched):
    model, tokens, mask, scores = scored("gpt2", padding)
    with untouched(model):
        found = null_scores(model, tokens, mask, scores)
    assert list(found) == list(NULLS)
    there = scores.relative.isfinite()
    for null, other in found.items():
        assert torch.equal(other.relative.isfinite(), there)
        assert other.settings["null"] == null
        assert not torch.allclose(other.var_out[there], scores.var_out[there], rtol=1e-3)
    torch.testing.assert_close(found[ISOTROPIC].var_in[there], scores.var_in[there], rtol=1e-5, atol=0)
    squared = [other.neighbor_distances[there].square().mean(-1) for other in (found[TRANSPLANTED], scores)]
    torch.testing.assert_close(*squared, rtol=1e-4, atol=0)
    assert bool((found[ISOTROPIC].neighbor_ids == -1).all())


def test_the_same_seed_gives_the_same_draws_whatever_else_is_drawn(monkeypatch):
    model, tokens, mask, scores = scored("llama", "right")
    found = null_scores(model, tokens, mask, scores, seed=3)
    monkeypatch.setattr(nulls, "FLOATS_AT_ONCE", 1000)
    monkeypatch.setattr(nulls, "PAIRS_AT_ONCE", 100)
    some = BasinScorer(model, **SETTINGS).score_tokens(tokens, mask, layers=[2])
    for null in NULLS:
        alone = null_scores(model, tokens, mask, some, [null], seed=3)[null]
        if null != ISOTROPIC:
            assert torch.equal(alone.neighbor_ids[0], found[null].neighbor_ids[2])
        there = alone.relative.isfinite()
        torch.testing.assert_close(alone.relative[there], found[null].relative[2:][there], rtol=1e-4, atol=1e-4)
        other = null_scores(model, tokens, mask, some, [null], seed=4)[null]
        assert not torch.allclose(other.relative[there], alone.relative[there])
    assert generator(0, 1, 2).initial_seed() != generator(0, 2, 1).initial_seed()


def test_through_a_linear_block_a_transplanted_score_is_the_donors_own():
    states = cloud(40)
    matrix = cloud(6, 6, seed=5)
    tokens = torch.arange(40).view(4, 10)
    model = model_of(states, lambda x: x @ matrix + 1)
    scores = BasinScorer(model, k=5, eps=1e-30).score_tokens(tokens)
    found = null_scores(model, tokens, None, scores)[TRANSPLANTED]
    donor_of = {tuple(ids): i for i, ids in enumerate(scores.neighbor_ids[0].flatten(0, 1).tolist())}
    own, null = scores.relative[0].flatten(), found.relative[0].flatten()
    for i, ids in enumerate(found.neighbor_ids[0].flatten(0, 1).tolist()):
        assert float(null[i]) == pytest.approx(float(own[donor_of[tuple(ids)]]), abs=1e-9)


def test_tokens_are_shuffled_within_their_row_and_the_first_and_padding_stay():
    for padding in ("none", "right", "left"):
        mask = padded(padding)
        order = shuffled_order(mask, 0)
        assert torch.equal(order, shuffled_order(mask, 0))
        assert not torch.equal(order, shuffled_order(mask, 1))
        for row, real in zip(order, mask.bool(), strict=True):
            assert sorted(row.tolist()) == list(range(len(row)))
            stay = [*(~real).nonzero()[:, 0].tolist(), int(real.long().argmax())]
            assert row[stay].tolist() == stay
            assert row.tolist() != list(range(len(row)))


def test_what_has_no_null_is_refused():
    model, tokens, mask, scores = scored("gpt2", "right")
    with pytest.raises(BasinsError, match="not of these tokens"):
        null_scores(model, tokens + 1, mask, scores)
    with pytest.raises(BasinsError, match="null='near' is not"):
        null_scores(model, tokens, mask, scores, ["near"])
    for settings in ({"normalize": True}, {"shrink": 0.5}, {"method": "lookup"}):
        _, _, _, other = scored("gpt2", "right", **settings)
        with pytest.raises(BasinsError, match="has no null here"):
            null_scores(model, tokens, mask, other)
    assert len(donors_of(scores, 0)) == int(scores.relative[0].isfinite().sum())
