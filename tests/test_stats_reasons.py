"""Input from which nothing follows gives NaN and a reason; input that cannot be meant raises."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("scipy.stats")
pytest.importorskip("sklearn.metrics")

from basins.errors import BasinsError, MissingExtra
from basins.stats import (
    anova,
    auroc,
    correct,
    d_needed,
    icc,
    kruskal,
    mann_whitney,
    max_t,
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

TWO = {
    "pearson": pearson,
    "spearman": spearman,
    "permutation": permutation_test,
    "quartiles": quartile_contrast,
    "partial": lambda x, y, clusters: partial(x, y, {"z": np.arange(np.size(x)) % 7}, clusters=clusters),
    "semipartial": lambda x, y, clusters: semipartial(x, y, {"z": np.arange(np.size(x)) % 7}, clusters=clusters),
    "welch": lambda x, y, clusters: welch(x, labels(y), clusters=clusters),
    "mann_whitney": lambda x, y, clusters: mann_whitney(x, labels(y), clusters=clusters),
    "point_biserial": lambda x, y, clusters: point_biserial(x, labels(y), clusters=clusters),
    "auroc": lambda x, y, clusters: auroc(x, labels(y), clusters=clusters),
    "tpr": lambda x, y, clusters: tpr_at_fpr(x, labels(y), clusters=clusters, fpr=0.2),
    "anova": lambda x, y, clusters: anova(x, labels(y), clusters=clusters),
    "kruskal": lambda x, y, clusters: kruskal(x, labels(y), clusters=clusters),
}
RNG = np.random.default_rng(0)
X, Y, IDS = RNG.normal(size=60), RNG.normal(size=60), np.repeat(np.arange(10), 6)


def labels(y: np.ndarray) -> np.ndarray:
    y = np.asarray(y, dtype=float)
    return np.where(np.isnan(y), np.nan, y > 0)


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize("clusters", [True, False], ids=["clusters", "independent"])
@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([], [], "0 tokens"),
        (X[:1], Y[:1], "1 tokens"),
        (X[:3], Y[:3], "3 tokens"),
        (np.full(60, np.nan), Y, "0 tokens"),
        (np.full(60, 0.1), Y, "is constant"),
        (X, np.full(60, 0.7), "is constant"),
        (np.where(np.arange(60) == 3, np.inf, X), Y, "infinite"),
    ],
    ids=["empty", "one", "three", "nan", "constant x", "constant y", "infinite"],
)
@pytest.mark.filterwarnings("error")
def test_nothing_follows(name, clusters, x, y, reason):
    found = TWO[name](x, y, clusters=IDS[: len(x)] if clusters else None)
    assert reason in found.reason
    assert math.isnan(found.estimate)
    assert math.isnan(found.p)
    assert np.isnan(found.interval).all()
    assert "nan" in str(found)
    assert "because" in str(found)


@pytest.mark.parametrize("name", TWO)
@pytest.mark.filterwarnings("error")
def test_too_few_sequences_give_no_interval(name):
    found = TWO[name](X, Y, clusters=np.repeat([0, 1], 30))
    assert np.isnan(found.interval).all()
    assert math.isfinite(found.estimate)
    if name != "permutation":
        assert "2 clusters are too few for an interval (5)" in found.reason


@pytest.mark.filterwarnings("error")
def test_reasons_of_single_statistics():
    few = np.arange(60) == 4
    assert "a group has fewer than 2 tokens" in welch(X, few, clusters=IDS).reason
    assert "fewer than 2 tokens" in anova(X, few, clusters=IDS).reason
    assert "constant in both groups" in welch(Y > 0, Y > 0, clusters=None).reason
    assert "constant within every group" in anova(Y > 0, Y > 0, clusters=IDS).reason
    assert "p has no test" in anova(X, IDS, clusters=IDS).reason
    assert math.isnan(anova(X, IDS, clusters=IDS).p)
    assert "cannot show" in tpr_at_fpr(X, Y > 0, clusters=IDS, fpr=0.001).reason
    assert "wholly" in partial(X, Y, {"copy": 2 * X + 1}, clusters=IDS).reason
    assert "wholly" in permutation_test(X, Y, confounds={"copy": 2 * X + 1}, clusters=IDS).reason
    assert "exactly 1" in pearson(X, 3 * X, clusters=None).reason
    assert pearson(X, 3 * X, clusters=None).estimate == pytest.approx(1)
    assert "same value" in pearson(X, 3 * X, clusters=IDS).reason
    assert "same value" in auroc(Y, Y > 0, clusters=IDS).reason
    assert "ties in x" in quartile_contrast(np.arange(60) < 40, Y, clusters=IDS).reason
    assert "one sequence" in icc(X, clusters=np.zeros(60)).reason
    assert "no sequence has two" in icc(X, clusters=np.arange(60)).reason
    assert "constant within" in icc(IDS * 0.1, clusters=IDS).reason
    assert "values is constant" in icc(np.ones(60), clusters=IDS).reason
    assert "varies within" in permutation_test(IDS, Y, clusters=IDS).reason
    halves = np.stack([np.where(np.arange(60) < 30, X, np.nan), np.where(np.arange(60) < 30, np.nan, X)])
    assert ["at every layer" in found.reason for found in max_t(halves, Y, clusters=IDS)] == [True, True]


def test_what_cannot_be_meant_raises():
    with pytest.raises(BasinsError, match=r"x \[60\], y \[59\].*Join them"):
        pearson(X, Y[:59], clusters=None)
    with pytest.raises(BasinsError, match=r"clusters \[10\]"):
        pearson(X, Y, clusters=np.arange(10))
    with pytest.raises(BasinsError, match="clusters holds NaN"):
        pearson(X, Y, clusters=np.full(60, np.nan))
    with pytest.raises(BasinsError, match="x holds text"):
        pearson(["a"] * 60, Y, clusters=None)
    with pytest.raises(BasinsError, match="x holds complex128"):
        pearson(X * 1j, Y, clusters=None)
    with pytest.raises(BasinsError, match="labels must be booleans"):
        auroc(X, np.arange(60), clusters=None)
    with pytest.raises(BasinsError, match="confidence=95"):
        pearson(X, Y, clusters=None, confidence=95.0)
    with pytest.raises(BasinsError, match="at least 100"):
        spearman(X, Y, clusters=IDS, n_resamples=10)
    with pytest.raises(BasinsError, match="fpr=1"):
        tpr_at_fpr(X, Y > 0, clusters=None, fpr=1.0)
    with pytest.raises(BasinsError, match="confounds is empty"):
        partial(X, Y, {}, clusters=None)
    with pytest.raises(BasinsError, match="named x or y"):
        partial(X, Y, {"x": X}, clusters=None)
    with pytest.raises(BasinsError, match=r"y has shape \[59\]; possible: \[1, 60\]"):
        max_t(X[None], Y[:59], clusters=None)
    with pytest.raises(BasinsError, match="layers first"):
        max_t(X, Y, clusters=None)
    with pytest.raises(BasinsError, match="2 names were given for 1 layers"):
        max_t(X[None], Y, clusters=None, names=["a", "b"])
    with pytest.raises(BasinsError, match="prevalence=0"):
        d_needed(0.4, 0.0)


def test_tensors_of_any_kind():
    expected = pearson(X.astype(np.float32), Y, clusters=IDS)
    found = pearson(torch.tensor(X, dtype=torch.float32, requires_grad=True), Y.tolist(), clusters=torch.tensor(IDS))
    assert found == expected
    assert pearson(torch.tensor(X).bfloat16(), Y, clusters=IDS).estimate == pytest.approx(expected.estimate, abs=0.01)
    names = np.array([f"text {number}" for number in IDS], dtype=object)
    assert pearson(X.astype(np.float32), Y, clusters=names) == expected


@pytest.mark.parametrize(
    ("package", "module", "call"),
    [
        ("scipy", "scipy", lambda: pearson(X, Y, clusters=IDS)),
        ("scikit-learn", "sklearn", lambda: auroc(X, Y > 0, clusters=IDS)),
        ("statsmodels", "statsmodels.stats.multitest", lambda: correct([pearson(X, Y, clusters=None)])),
    ],
)
def test_missing_extras_name_the_install_command(monkeypatch, package, module, call):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"{package}.*compression-basins\[experiments\]"):
        call()
