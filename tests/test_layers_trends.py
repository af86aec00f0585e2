"""Trends along depth, signs of sequences, matched pairs, means: against SciPy, loops and made-up nulls."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy.stats")

from scipy.stats import rankdata, spearmanr, wilcoxon

from basins.errors import BasinsError
from basins.experiments.layers_trends import depth_trend, sign_flips, signed_ranks, without_density
from basins.stats import mean

OPTIONS: dict[str, Any] = {"n_resamples": 200, "n_permutations": 999, "seed": 0}


def columns(n_layers: int, slope: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """20 sequences of 10 tokens whose noise is shared within a sequence."""
    rng = np.random.default_rng(seed)
    cluster = np.repeat(np.arange(20), 10)
    noise = rng.normal(size=(n_layers, 20))[:, cluster] + rng.normal(size=(n_layers, 200))
    return slope * np.arange(n_layers)[:, None] + noise, cluster


def test_the_trend_is_the_mean_of_the_tokens_own_rank_correlations():
    values, cluster = columns(6, 0.3)
    found = depth_trend(values, cluster, **OPTIONS)
    each: list[Any] = [spearmanr(np.arange(6), values[:, token]) for token in range(200)]
    assert found["r"] == pytest.approx(np.mean([one.statistic for one in each]))
    assert found["low"] < found["r"] < found["high"]
    profile = np.mean([rankdata(values[:, token]) for token in range(200)], 0)
    centred = profile - profile.mean()
    steps = np.arange(6) - 2.5
    orders = [abs(centred[list(order)] @ steps) for order in itertools.permutations(range(6))]
    assert found["p_order"] == pytest.approx(np.mean(np.array(orders) >= abs(centred @ steps) - 1e-9))
    assert found["p"] == max(found["p_sequences"], found["p_order"])


def test_layers_that_merely_differ_are_no_trend():
    """Every token agrees that layer 2 is high, so the signs of sequences are sure of r; the order of layers is not."""
    values, cluster = columns(5, 0.0)
    values[3] += 20
    found = depth_trend(values, cluster, **OPTIONS)
    assert found["p_sequences"] < 0.01
    assert found["p"] > 0.2
    rising = depth_trend(columns(9, 3.0)[0], cluster, **OPTIONS)
    assert rising["r"] > 0.9
    assert rising["p"] < 0.01
    assert math.isnan(depth_trend(values[:2], cluster, **OPTIONS)["r"])


def test_a_trend_of_density_alone_goes_with_density():
    density, cluster = columns(6, 1.0)
    values = -0.5 * density + 0.01 * columns(6, 0.0, seed=1)[0]
    assert abs(depth_trend(values, cluster, **OPTIONS)["r"]) > 0.5
    assert abs(depth_trend(without_density(values, density), cluster, **OPTIONS)["r"]) < 0.1
    # A slope along layers that density within layers knows nothing of stays.
    apart = columns(6, 0.0, seed=2)[0]
    assert depth_trend(without_density(density, apart), cluster, **OPTIONS)["r"] > 0.5
    assert np.isfinite(without_density(values, np.ones_like(values))).all()


def test_sign_flips_agree_with_all_flips_and_are_honest_under_the_null():
    rng = np.random.default_rng(3)
    values, cluster = rng.normal(size=(2, 40)) + 0.4, np.repeat(np.arange(8), 5)
    sums = np.stack([np.bincount(cluster, weights=row) for row in values])
    flips = np.array(list(itertools.product([-1, 1], repeat=8)))
    exact = [(np.abs(flips @ row) >= abs(row.sum()) - 1e-12).mean() for row in sums]
    p, corrected = sign_flips(values, cluster, 4000, 0)
    assert p == pytest.approx(exact, abs=0.02)
    assert (corrected >= p).all()
    found = [float(sign_flips(columns(1, 0.0, seed)[0], cluster_of_20(), 199, seed)[0][0]) for seed in range(200)]
    assert np.mean(np.array(found) <= 0.05) < 0.1


def cluster_of_20() -> np.ndarray:
    return columns(1, 0.0)[1]


def test_signed_ranks_agree_with_wilcoxon():
    rng = np.random.default_rng(0)
    values, cluster = rng.normal(size=100) + 0.3, np.repeat(np.arange(20), 5)
    found = signed_ranks(values, cluster, n_resamples=300, seed=0)
    smaller: Any = wilcoxon(values)
    total = 100 * 101 / 2
    assert found["r"] == pytest.approx(1 - 2 * smaller.statistic / total)
    assert found["low"] < found["r"] < found["high"]
    same = signed_ranks(np.abs(values), cluster, n_resamples=300, seed=0)
    assert (same["r"], same["low"], same["high"]) == (1.0, 1.0, 1.0)
    assert math.isnan(signed_ranks(np.full(10, np.nan), np.arange(10), n_resamples=300, seed=0)["r"])


@pytest.mark.parametrize("shift", [0.0, 1e7])
def test_means_have_intervals_by_sequence_that_cover(shift):
    """Tokens of a sequence share most of their noise: an interval that takes them as independent would be far short."""
    rng = np.random.default_rng(1)
    cluster, hit = np.repeat(np.arange(25), 8), 0
    for seed in range(120):
        values = shift + rng.normal(size=25)[cluster] + 0.3 * rng.normal(size=200)
        found = mean(values, clusters=cluster, n_resamples=200, seed=seed)
        hit += found.interval[0] <= shift <= found.interval[1]
        assert found.estimate == pytest.approx(values.mean())
    assert 0.88 <= hit / 120 <= 1


def test_means_say_why_there_is_no_interval():
    found = mean([1.0, 2.0, np.nan, 4.0], clusters=[0, 0, 1, 1], n_resamples=100)
    assert found.estimate == pytest.approx(7 / 3)
    assert found.n_tokens == 3
    assert math.isnan(found.interval[0])
    assert "2 clusters are too few" in found.reason
    assert found.details == pytest.approx({"median": 2.0, "sd": np.std([1, 2, 4]), "iqr": 1.5})
    assert "all resamples give the same value" in mean(np.ones(20), clusters=np.arange(20)).reason
    assert math.isnan(mean([np.nan, np.nan], clusters=[0, 1]).estimate)
    with pytest.raises(BasinsError, match="resamples are too few"):
        mean([1.0, 2.0], clusters=[0, 1], n_resamples=5)
