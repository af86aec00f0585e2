from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from made_scores import made_scores

from basins.dimension import (
    global_mle,
    global_two_nn,
    local_mle,
    local_two_nn,
    log_ratios,
    neighbor_distances,
    pooled_two_nn,
)
from basins.errors import BasinsError

N = 600


def linear(dimension: int, rng: np.random.Generator, d_model: int = 12) -> np.ndarray:
    basis = np.linalg.qr(rng.normal(size=(d_model, dimension)))[0]
    return rng.normal(size=(N, dimension)) @ basis.T + 3


def sphere(rng: np.random.Generator) -> np.ndarray:
    points = rng.normal(size=(N, 4))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def swiss_roll(rng: np.random.Generator) -> np.ndarray:
    turn = 1.5 * np.pi * (1 + 2 * rng.random(N))
    return np.stack([turn * np.cos(turn), 21 * rng.random(N), turn * np.sin(turn)], 1)


def torus(rng: np.random.Generator) -> np.ndarray:
    a, b = rng.random((2, N)) * 2 * np.pi
    return np.stack([(2 + np.cos(a)) * np.cos(b), (2 + np.cos(a)) * np.sin(b), np.sin(a)], 1)


def wide_noise(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(N, 40))


MANIFOLDS = {
    "line": (lambda rng: linear(1, rng), 1),
    "plane": (lambda rng: linear(2, rng), 2),
    "five": (lambda rng: linear(5, rng), 5),
    "sphere": (sphere, 3),
    "swiss roll": (swiss_roll, 2),
    "torus": (torus, 2),
    "noise": (wide_noise, None),  # 600 points are far too few to fill 40 dimensions
}


def cloud(name: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(MANIFOLDS[name][0](np.random.default_rng(5)), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MANIFOLDS)
def test_agrees_with_scikit_dimension(name, dtype):
    skdim = pytest.importorskip("skdim", reason="needs: pip install scikit-dimension")
    states = cloud(name, dtype)
    distances = neighbor_distances(states, 15)
    tolerance = 1e-6 if dtype == torch.float64 else 1e-3  # scikit-learn computes float32 distances in float32
    points = states.numpy()
    for unbiased in (False, True):
        theirs = skdim.id.MLE(unbiased=unbiased).fit(points, n_neighbors=15)
        assert local_mle(distances, unbiased).tolist() == pytest.approx(list(theirs.dimension_pw_), rel=tolerance)
        assert global_mle(distances, unbiased) == pytest.approx(theirs.dimension_, rel=tolerance)
        mean = skdim.id.MLE(unbiased=unbiased).fit(points, n_neighbors=15, comb="mean").dimension_
        assert global_mle(distances, unbiased, mean="arithmetic") == pytest.approx(mean, rel=tolerance)
    for discard in (0.1, 0.25):
        theirs = skdim.id.TwoNN(discard_fraction=discard).fit(points).dimension_
        assert global_two_nn(distances, discard) == pytest.approx(theirs, rel=tolerance)


@pytest.mark.parametrize("name", [name for name, (_, truth) in MANIFOLDS.items() if truth])
def test_finds_the_dimension(name):
    """600 points; curvature, edges and the finite sample leave some error, which grows with the dimension."""
    truth = MANIFOLDS[name][1]
    distances = neighbor_distances(cloud(name))
    for found in (global_mle(distances, unbiased=True), global_two_nn(distances)):
        assert found == pytest.approx(truth, rel=0.15)
    noise = neighbor_distances(cloud("noise"))
    assert min(global_mle(noise), global_two_nn(noise)) > 12


def mle_by_hand(row: list[float]) -> float:
    row = sorted({value for value in row if value > 0})
    if len(row) < 3:
        return math.nan
    return 1 / (sum(math.log(row[-1] / value) for value in row[:-1]) / (len(row) - 1))


def ratio_by_hand(row: list[float]) -> float:
    row = sorted({value for value in row if value > 0})
    return math.log(row[1] / row[0]) if len(row) > 1 else math.nan


@pytest.mark.parametrize("k", [3, 4, 15])
def test_local_ones_agree_with_loops_also_with_duplicates_and_ties(k):
    rng = np.random.default_rng(k)
    distances = torch.tensor(np.sort(rng.integers(0, 6, (40, k)) / 4.0))
    distances[0], distances[1] = 0, 1  # only duplicates; all equally far
    rows = distances.tolist()
    np.testing.assert_allclose(local_mle(distances), [mle_by_hand(row) for row in rows], rtol=1e-12)
    ratios = [ratio_by_hand(row) for row in rows]
    np.testing.assert_allclose(log_ratios(distances), ratios, rtol=1e-12)
    assert local_mle(distances)[:2].isnan().all()
    assert log_ratios(distances)[:2].isnan().all()
    ids = torch.tensor(rng.integers(-1, 40, (40, k)))
    for token, found in enumerate(local_two_nn(distances, ids).tolist()):
        near = [ratios[token]] + [ratios[i] for i in ids[token].tolist() if i >= 0]
        near = [value for value in near if not math.isnan(value)]
        wanted = (len(near) - 1) / sum(near) if len(near) > 1 and not math.isnan(ratios[token]) else math.nan
        assert found == pytest.approx(wanted, nan_ok=True)


def test_repeating_the_states_changes_nothing():
    states = cloud("plane")[:100]
    once, thrice = neighbor_distances(states, 5), neighbor_distances(states.repeat(3, 1), 17)
    assert torch.allclose(local_mle(once), local_mle(thrice)[:100], rtol=1e-9)
    assert torch.allclose(log_ratios(once), log_ratios(thrice)[:100], rtol=1e-9)
    # Three times as many ratios, so that F takes other values between the same ones.
    assert global_two_nn(thrice) == pytest.approx(global_two_nn(once), rel=0.02)


def test_scale_and_order_change_nothing():
    distances = neighbor_distances(cloud("torus")[:200], 9)
    shuffled = distances[:, torch.randperm(9)]
    for estimate in (local_mle, log_ratios):
        assert torch.allclose(estimate(distances), estimate(shuffled), rtol=1e-12)
        assert torch.allclose(estimate(distances), estimate(1e6 * distances), rtol=1e-6)


def test_local_two_nn_finds_the_dimension_of_each_part():
    """A line and a far-away three-dimensional cloud in one bank."""
    rng = np.random.default_rng(0)
    states = np.zeros((400, 3))
    states[:200, 0] = rng.random(200)
    states[200:] = 100 + rng.normal(size=(200, 3))
    gaps = np.linalg.norm(states[:, None] - states[None], axis=-1) + np.diag(np.full(400, np.inf))
    ids = torch.tensor(np.argsort(gaps, 1)[:, :30])
    found = local_two_nn(torch.tensor(np.sort(gaps, 1)[:, :30]), ids)
    assert float(found[:200].median()) == pytest.approx(1, rel=0.2)
    assert float(found[200:].median()) == pytest.approx(3, rel=0.2)


def test_pooled_two_nn_is_without_bias():
    """E[(n - 1) / sum ln mu] = d: 4,000 samples of 6 exponential values with rate 3 (standard error 0.024)."""
    ratios = torch.tensor(np.random.default_rng(0).exponential(1 / 3, (4000, 6)))
    assert float(pooled_two_nn(ratios).mean()) == pytest.approx(3, abs=0.1)
    ratios[:, 2] = float("nan")
    assert float(pooled_two_nn(ratios).mean()) == pytest.approx(3, abs=0.1)
    assert pooled_two_nn(torch.tensor([[1.0, float("nan")]])).isnan().all()


def test_scores_feed_it_directly_and_unscored_tokens_stay_nan():
    scores = made_scores()
    distances = scores.neighbor_distances.masked_fill(scores.values.isnan()[..., None], float("nan"))
    for estimate in (local_mle, log_ratios):
        found = estimate(distances)
        assert found.shape == scores.values.shape
        assert torch.equal(found.isnan(), scores.values.isnan())
    assert global_mle(distances) > 0
    assert global_two_nn(distances) > 0


def test_nothing_gives_nan():
    nothing = torch.full((5, 4), float("nan"))
    assert math.isnan(global_mle(nothing))
    assert math.isnan(global_two_nn(nothing))
    assert math.isnan(global_two_nn(torch.tensor([[1.0, 2.0], [1.0, 3.0]])))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: local_mle(torch.ones(4, 2)), r"shape \[4, 2\].*at least 3"),
        (lambda: log_ratios(-torch.ones(4, 3)), "negative"),
        (lambda: global_mle(torch.ones(4, 3), mean="median"), "Possible: 'harmonic', 'arithmetic'"),
        (lambda: global_two_nn(torch.ones(4, 3), discard=1.0), "discard=1.0 is out of range"),
        (lambda: neighbor_distances(torch.ones(4, 3)), "4 states have no 15 nearest others"),
        (lambda: neighbor_distances(torch.ones(4, 3, 2)), "one row a token"),
        (lambda: local_two_nn(torch.ones(4, 3), torch.full((4, 3), 9)), "come from another bank"),
    ],
)
def test_bad_input_says_what_is_possible(call, message):
    with pytest.raises(BasinsError, match=message):
        call()
