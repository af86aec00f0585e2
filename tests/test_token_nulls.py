"""p-values of single tokens and their jackknife error, where both are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from block_models import model_of
from scipy.stats import kstest
from test_fixed_points import cloud
from test_rerun import padded, some_tokens
from tiny_models import tiny_model

from basins import BasinScorer
from basins.scores import relative_score, variance
from basins.token_nulls import jackknife, token_tests, two_sided


@pytest.mark.parametrize("k", [2, 3, 15])
def test_jackknife_against_a_loop(k):
    before, after = cloud(6 * k, 5, seed=1).view(6, k, 5) + 100, cloud(6 * k, 5, seed=2).view(6, k, 5)
    found = jackknife(before, after, 1e-10)
    for token in range(6):
        left = []
        for out in range(k):
            kept = [j for j in range(k) if j != out]
            spread = [np.var(states[token][kept].numpy(), axis=0).sum() for states in (before, after)]
            left.append(np.log((spread[0] + 1e-10) / (spread[1] + 1e-10)))
        wanted = np.sqrt((k - 1) / k * ((left - np.mean(left)) ** 2).sum())
        assert np.isnan(found[token]) if k == 2 else float(found[token]) == pytest.approx(wanted, rel=1e-9)


def test_the_jackknife_error_is_that_of_samples_drawn_again():
    rng = torch.Generator().manual_seed(0)
    before = torch.randn(4000, 15, 8, generator=rng, dtype=torch.float64)
    after = torch.tanh(before @ torch.randn(8, 8, generator=rng, dtype=torch.float64))
    drawn = relative_score(variance(before.clone()), variance(after.clone()), 1e-10).std()
    assert float(jackknife(before, after, 1e-10).mean()) == pytest.approx(float(drawn), rel=0.1)


def test_two_sided_by_hand():
    null = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for observed, wanted in ((5.0, 0.4), (0.0, 0.4), (4.0, 0.8), (2.5, 1.0), (3.0, 1.0)):
        assert float(two_sided(torch.tensor(observed), null)) == pytest.approx(wanted)
    assert float(two_sided(torch.tensor(1.0), torch.ones(9))) == 1  # all tied: nothing said


def test_through_a_linear_block_p_is_the_rank_among_all_tokens():
    """The block treats every place alike, so a token's null is the other tokens' scores: p is uniform, exactly."""
    n = 60
    matrix = cloud(6, 6, seed=5)
    tokens = torch.arange(n).view(4, -1)
    model = model_of(cloud(n), lambda x: x @ matrix)
    scores = BasinScorer(model, k=5, eps=1e-30).score_tokens(tokens)
    found = token_tests(model, tokens, None, scores, layers=(0,), n_tokens=n, n_draws=999)
    own = scores.relative[0].flatten()
    assert found.n_draws.tolist() == [n - 1] * n
    torch.testing.assert_close(found.relative, own[found.token])
    for row, token in enumerate(found.token.tolist()):
        others = torch.cat([own[:token], own[token + 1 :]]).sort().values
        torch.testing.assert_close(found.null[row, : n - 1], others)
    rank = own.argsort().argsort()[found.token]
    wanted = (2 * (1 + torch.minimum(rank, n - 1 - rank)).double() / n).clamp_max(1)
    torch.testing.assert_close(found.p, wanted)


def test_p_is_uniform_where_every_place_has_the_same_kind_of_neighbours():
    """Clusters far apart, drawn alike: the block contracts each place differently, and displacements say nothing."""
    n, size = 60, 5
    rng = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(n, 1, 8, generator=rng, dtype=torch.float64)
    states = (centres + 0.02 * torch.randn(n, size, 8, generator=rng, dtype=torch.float64)).flatten(0, 1)
    weights = cloud(8, 8, seed=3)
    model = model_of(states, lambda x: x + torch.tanh(x @ weights))
    tokens = torch.arange(n * size).view(6, -1)
    scores = BasinScorer(model, k=size - 1, eps=1e-30).score_tokens(tokens)
    found = token_tests(model, tokens, None, scores, layers=(0,), n_tokens=n * size, n_draws=49, seed=1)
    one_each = found.p[::size]  # those of one cluster have the same neighbours
    assert torch.equal(found.token, torch.arange(n * size))
    assert kstest(one_each.numpy(), "uniform").pvalue > 0.01
    assert float((one_each <= 0.1).double().mean()) < 0.1 + 4 * 0.039


def test_a_token_whose_directions_matter_differs_from_its_null():
    """One token's neighbours lie along the only axis that the block keeps; everyone else's along the others."""
    n = 40
    states = cloud(n, 6) * torch.tensor([1e-3, 1, 1, 1, 1, 1])
    odd = states[:1] + 100 + torch.eye(6, dtype=torch.float64)[0] * torch.arange(6)[:, None]
    keep = torch.diag(torch.tensor([1.0, 0.1, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64))
    tokens = torch.arange(n + 6).view(2, -1)
    model = model_of(torch.cat([states, odd]), lambda x: x @ keep)
    scores = BasinScorer(model, k=4, eps=1e-30).score_tokens(tokens)
    found = token_tests(model, tokens, None, scores, layers=(0,), n_tokens=n + 6)
    p = dict(zip(found.token.tolist(), found.p.tolist(), strict=True))
    assert max(p[n + i] for i in range(6)) <= 2 * 6 / (n + 6) + 1e-12
    assert np.median([p[i] for i in range(n)]) > 0.3


@pytest.mark.parametrize("padding", ["right", "left"])
def test_padding_is_never_tested_and_the_same_seed_gives_the_same(padding, untouched):
    model, tokens, mask = tiny_model("llama"), some_tokens(), padded(padding)
    scores = BasinScorer(model, k=4, exclude_first=1).score_tokens(tokens, mask)
    with untouched(model):
        found = token_tests(model, tokens, mask, scores, layers=(0, 2), n_tokens=5, n_draws=39)
    assert found.layer.tolist() == [0] * 5 + [2] * 5
    assert bool(mask.flatten()[found.token].bool().all())
    at = scores.relative[[0, 2]].flatten(1)
    for row, (layer, token) in enumerate(zip(found.layer.tolist(), found.token.tolist(), strict=True)):
        assert float(found.relative[row]) == pytest.approx(float(at[layer // 2, token]), abs=1e-3)
    again = token_tests(model, tokens, mask, scores, layers=(2,), n_tokens=5, n_draws=39)
    assert torch.equal(again.token, found.token[5:])
    assert torch.equal(again.p, found.p[5:])
