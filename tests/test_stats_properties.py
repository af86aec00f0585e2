"""What every statistic keeps: the seed, the layout of tokens, scale, and what clusters mean."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

pytest.importorskip("scipy.stats")
pytest.importorskip("sklearn.metrics")

from made_columns import SEQUENCE, made

from basins.stats import (
    anova,
    auroc,
    kruskal,
    mann_whitney,
    partial,
    pearson,
    permutation_test,
    point_biserial,
    quartile_contrast,
    semipartial,
    spearman,
    tpr_at_fpr,
    welch,
)

T = made()

CALLS = {
    "pearson": lambda t, c: pearson(t["x"], t["y"], clusters=c),
    "spearman": lambda t, c: spearman(t["x"], t["y"], clusters=c),
    "partial": lambda t, c: partial(t["x"], t["y"], {"z": t["z"]}, clusters=c, rank=True),
    "semipartial": lambda t, c: semipartial(t["x"], t["y"], {"z": t["z"]}, clusters=c),
    "permutation": lambda t, c: permutation_test(t["x"], t["y"], clusters=c),
    "welch": lambda t, c: welch(t["y"], t["label"], clusters=c),
    "mann_whitney": lambda t, c: mann_whitney(t["y"], t["label"], clusters=c),
    "point_biserial": lambda t, c: point_biserial(t["y"], t["label"], clusters=c),
    "quartiles": lambda t, c: quartile_contrast(t["x"], t["y"], clusters=c),
    "anova": lambda t, c: anova(t["y"], t["group"], clusters=c),
    "kruskal": lambda t, c: kruskal(t["y"], t["group"], clusters=c),
    "auroc": lambda t, c: auroc(t["y"], t["label"], clusters=c),
    "tpr": lambda t, c: tpr_at_fpr(t["y"], t["label"], clusters=c, fpr=0.05),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("clusters", [SEQUENCE, None], ids=["clusters", "independent"])
def test_same_seed_same_numbers_and_one_line(name, clusters):
    first, second = CALLS[name](T, clusters), CALLS[name](T, clusters)
    np.testing.assert_equal(first.to_dict(), second.to_dict())
    assert "\n" not in str(first)
    assert f"300 tokens in {20 if clusters is not None else 300} clusters" in str(first)
    assert not first.reason
    if name != "permutation":
        assert first.interval[0] <= first.estimate <= first.interval[1]
    if name != "tpr":
        assert 0 < first.p <= 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.p = 0.0


@pytest.mark.parametrize("name", CALLS)
def test_layout_and_names_of_sequences_do_not_matter(name):
    """Tensors of shape (batch, pos), NaN in padding, sequences called by other names of the same order."""
    expected = CALLS[name](T, SEQUENCE)
    t = {}
    for key, column in T.items():
        padded = np.full((20, 17), np.nan)
        padded[:, :15] = column.reshape(20, 15)
        t[key] = torch.tensor(padded, requires_grad=True)
    rows = torch.arange(20)[:, None].expand(20, 17) * 7 + 3
    found = CALLS[name](t, rows)
    assert found.n_tokens == 300
    assert found.estimate == pytest.approx(expected.estimate, rel=1e-10)
    if "perm" not in name:
        assert found.interval == pytest.approx(expected.interval, rel=1e-6)


@pytest.mark.parametrize("name", ["pearson", "spearman", "partial", "welch", "auroc", "quartiles", "anova"])
def test_scale_and_shift_of_the_values(name):
    moved = T | {"y": T["y"] * 1e6 + 1e8, "x": T["x"] * 1e-6 + 5}
    expected, found = CALLS[name](T, SEQUENCE), CALLS[name](moved, SEQUENCE)
    unit = 1e6 if name in ("welch", "quartiles") else 1
    assert found.estimate == pytest.approx(unit * expected.estimate, rel=1e-6)
    assert found.interval == pytest.approx(tuple(unit * np.array(expected.interval)), rel=1e-5)
    assert found.p == pytest.approx(expected.p, rel=1e-4)


def test_doubling_every_token_says_nothing_new_to_clusters():
    """Twice the tokens, the same sequences: the cluster interval stays, the naive one narrows."""
    x, y, ids = (np.tile(column, 2) for column in (T["x"], T["y"], SEQUENCE))
    once, twice = pearson(T["x"], T["y"], clusters=SEQUENCE), pearson(x, y, clusters=ids)
    assert twice.interval == pytest.approx(once.interval, rel=1e-9)
    once, twice = pearson(T["x"], T["y"], clusters=None), pearson(x, y, clusters=None)
    assert np.ptp(twice.interval) < 0.75 * np.ptp(once.interval)


def test_quartile_means():
    found = quartile_contrast(np.arange(100), np.arange(100) ** 2, clusters=None)
    expected = [float((np.arange(25 * q, 25 * q + 25) ** 2).mean()) for q in range(4)]
    assert list(found.details.values()) == expected
    assert found.estimate == expected[3] - expected[0]
    assert found.to_dict()["q4"] == expected[3]
