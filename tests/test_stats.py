"""Statistics against scipy, statsmodels and scikit-learn where they overlap, and against plain loops where not."""

from __future__ import annotations

import math

import numpy as np
import pytest

stats = pytest.importorskip("scipy.stats")
metrics = pytest.importorskip("sklearn.metrics")
multitest = pytest.importorskip("statsmodels.stats.multitest")
linear = pytest.importorskip("statsmodels.regression.linear_model")

from made_columns import SEQUENCE, N, made  # noqa: E402

from basins.errors import BasinsError  # noqa: E402  (after the skip on machines without the extra)
from basins.stats import (  # noqa: E402
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
    semipartial,
    spearman,
    welch,
)
from basins.stats.correlations import correlations_from  # noqa: E402
from basins.stats.ranking import auc_resamples, tpr_resamples  # noqa: E402
from basins.stats.resampling import bootstrap_covariances, permutations, token_weights, weighted_ranks  # noqa: E402
from basins.stats.sample import gather  # noqa: E402

T = made()


@pytest.mark.parametrize(("ours", "theirs"), [(pearson, stats.pearsonr), (spearman, stats.spearmanr)])
@pytest.mark.parametrize("column", ["x", "tied", "label"])
def test_correlations_agree_with_scipy(ours, theirs, column):
    found, expected = ours(T[column], T["y"], clusters=None), theirs(T[column].astype(float), T["y"])
    assert found.estimate == pytest.approx(expected.statistic, rel=1e-10)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert ours(T[column], T["y"], clusters=SEQUENCE).estimate == found.estimate


def test_pearsons_interval_agrees_with_scipy():
    expected = stats.pearsonr(T["x"], T["y"]).confidence_interval(0.9)
    assert pearson(T["x"], T["y"], clusters=None, confidence=0.9).interval == pytest.approx(tuple(expected), rel=1e-10)


def test_partial_and_semipartial_agree_with_least_squares():
    confounds = {"z": T["z"], "tied": T["tied"]}
    design = np.column_stack([np.ones(N), T["z"], T["tied"]])
    left_x = linear.OLS(T["x"], design).fit().resid
    left_y = linear.OLS(T["y"], design).fit().resid
    assert partial(T["x"], T["y"], confounds, clusters=SEQUENCE).estimate == pytest.approx(
        np.corrcoef(left_x, left_y)[0, 1], rel=1e-9
    )
    assert semipartial(T["x"], T["y"], confounds, clusters=SEQUENCE).estimate == pytest.approx(
        np.corrcoef(left_x, T["y"])[0, 1], rel=1e-9
    )
    both = linear.OLS(T["y"], np.column_stack([design, T["x"]])).fit()
    found = partial(T["x"], T["y"], confounds, clusters=None)
    assert found.p == pytest.approx(both.pvalues[-1], rel=1e-8)
    added = both.rsquared - linear.OLS(T["y"], design).fit().rsquared
    assert semipartial(T["x"], T["y"], confounds, clusters=None).estimate ** 2 == pytest.approx(added, rel=1e-9)


def test_a_confound_that_says_nothing_changes_nothing():
    alone = pearson(T["x"], T["y"], clusters=SEQUENCE)
    beside = partial(T["x"], T["y"], {"same": np.full(N, 0.1)}, clusters=SEQUENCE)
    assert (beside.estimate, *beside.interval) == pytest.approx((alone.estimate, *alone.interval), rel=1e-9)
    twice = {"z": T["z"], "z again": 3 * T["z"] + 1}
    once = partial(T["x"], T["y"], {"z": T["z"]}, clusters=SEQUENCE)
    found = partial(T["x"], T["y"], twice, clusters=SEQUENCE)
    assert (found.estimate, *found.interval) == pytest.approx((once.estimate, *once.interval), rel=1e-6)


def test_welch_agrees_with_scipy():
    found = welch(T["y"], T["label"], clusters=None)
    expected = stats.ttest_ind(T["y"][T["label"]], T["y"][~T["label"]], equal_var=False)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-10)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-10)
    assert found.prevalence == T["label"].mean()
    equal = stats.ttest_ind(T["y"][T["label"]], T["y"][~T["label"]])
    n_1, n_0 = T["label"].sum(), (~T["label"]).sum()
    assert found.effect_size == pytest.approx(equal.statistic * math.sqrt(1 / n_1 + 1 / n_0), rel=1e-10)


@pytest.mark.parametrize("column", ["y", "tied"])
def test_mann_whitney_and_auroc_agree_with_scipy_and_sklearn(column):
    expected = stats.mannwhitneyu(T[column][T["label"]], T[column][~T["label"]], method="asymptotic")
    found = mann_whitney(T[column], T["label"], clusters=None)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-10)
    assert found.estimate == pytest.approx(metrics.roc_auc_score(T["label"], T[column]), rel=1e-12)
    area = auroc(T[column], T["label"], clusters=SEQUENCE)
    assert area.estimate == pytest.approx(found.estimate, rel=1e-12)
    other = mann_whitney(T[column], T["label"], clusters=SEQUENCE)
    assert (area.p, *area.interval) == pytest.approx((other.p, *other.interval), rel=1e-9)


def test_point_biserial_agrees_with_scipy():
    expected = stats.pointbiserialr(T["label"], T["y"])
    found = point_biserial(T["y"], T["label"], clusters=None)
    assert (found.estimate, found.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-8)


def test_anova_and_kruskal_agree_with_scipy():
    parts = [T["tied"][T["group"] == group] for group in range(3)]
    f, h = stats.f_oneway(*parts), stats.kruskal(*parts)
    found = anova(T["tied"], T["group"], clusters=None)
    assert found.p == f.pvalue
    assert found.estimate / (1 - found.estimate) * (N - 3) / 2 == pytest.approx(f.statistic, rel=1e-10)
    ranks = kruskal(T["tied"], np.array(["noun", "verb", "other"])[T["group"]], clusters=None)
    assert ranks.p == h.pvalue
    assert ranks.estimate == pytest.approx(h.statistic / (N - 1), rel=1e-10)


def test_icc_agrees_with_the_f_test_and_with_the_variances_it_was_made_from():
    found = icc(T["y"], clusters=SEQUENCE)
    f = stats.f_oneway(*[T["y"][sequence == SEQUENCE] for sequence in range(20)])
    assert found.p == pytest.approx(f.pvalue, rel=1e-10)
    assert found.estimate == pytest.approx((f.statistic - 1) / (f.statistic + 14), rel=1e-10)
    rng = np.random.default_rng(1)
    many = np.repeat(np.arange(4000), rng.integers(2, 12, 4000))
    values = math.sqrt(0.3) * rng.normal(size=4000)[many] + math.sqrt(0.7) * rng.normal(size=len(many))
    low, high = icc(values, clusters=many).interval
    assert low < 0.3 < high
    assert icc(values, clusters=many).estimate == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("method", ["holm", "benjamini-hochberg"])
def test_corrections_agree_with_statsmodels_and_pass_over_nan(method):
    results = [
        pearson(T["x"], made(seed)["y"] * (seed > 2) + T["x"] * 0.01 * made(seed)["z"], clusters=None)
        for seed in range(6)
    ]
    nothing = pearson(np.ones(N), T["y"], clusters=None, name="nothing")
    found = correct([*results[:2], nothing, *results[2:]], method)
    names = {"holm": "holm", "benjamini-hochberg": "fdr_bh"}
    expected = multitest.multipletests([result.p for result in results], method=names[method])[1]
    assert [result.p_corrected for result in found if result.name != "nothing"] == pytest.approx(list(expected))
    assert found[2].name == "nothing"
    assert math.isnan(found[2].p_corrected)
    assert "over 6" in str(found[0])
    with pytest.raises(BasinsError, match="corrected already"):
        correct(found, method)
    with pytest.raises(BasinsError, match="'holm', 'benjamini-hochberg'"):
        correct(results, "bonferroni")
    assert correct([]) == []


def test_effect_sizes_beside_prevalence():
    assert d_needed(0.4, 0.5) == pytest.approx(0.873, abs=1e-3)
    assert d_needed(0.4, 0.02) == pytest.approx(3.117, abs=1e-3)
    found = point_biserial(T["y"], T["label"], clusters=None)  # exact but for n - 2 in place of n
    assert found.effect_size * math.sqrt(N / (N - 2)) == pytest.approx(d_needed(found.estimate, found.prevalence))


# Resamples against loops that really repeat the tokens.


def repeated(column: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.repeat(column, weights.astype(int))


def test_resamples_are_what_repeating_the_tokens_gives():
    sample = gather({"x": T["tied"], "y": T["y"], "z": T["z"]}, SEQUENCE)
    label = T["label"]
    weights = np.concatenate(list(token_weights(sample, 100, seed=3)))
    assert (weights.sum(1) == N).all()  # 20 draws of sequences of 15
    ranks = weighted_ranks(T["tied"], weights)
    areas, rates = auc_resamples(sample, label, 100, 3), tpr_resamples(sample, label, 0.1, 100, 3)
    plain, ranked = (bootstrap_covariances(sample, rank, 100, 3) for rank in (False, True))
    for number in range(0, 100, 9):
        row = weights[number]
        x, y, labels = (repeated(column, row) for column in (T["tied"], T["y"], label))
        np.testing.assert_allclose(repeated(ranks[number], row), stats.rankdata(x), rtol=1e-12)
        assert areas[number] == pytest.approx(metrics.roc_auc_score(labels, x), rel=1e-10)
        false, true, _ = metrics.roc_curve(labels, x, drop_intermediate=False)
        assert rates[number] == pytest.approx(true[false <= 0.1].max(), rel=1e-10)
        r = correlations_from(plain[number, :2, :2], False)
        assert r == pytest.approx(stats.pearsonr(x, y).statistic, rel=1e-9)
        r = correlations_from(ranked[number, :2, :2], False)
        assert r == pytest.approx(stats.spearmanr(x, y).statistic, rel=1e-9)


def test_permutations_stay_within_their_sequence():
    shuffled = np.random.default_rng(0).permutation(SEQUENCE)  # sequences need not lie together
    sample = gather({"x": T["x"]}, shuffled)
    orders = np.concatenate(list(permutations(sample, 50, seed=1)))
    assert (np.sort(orders, axis=1) == np.arange(N)).all()
    assert (shuffled[orders] == shuffled).all()
    assert len({order.tobytes() for order in orders}) == 50


def test_the_permutation_test_agrees_with_scipy():
    x, y = T["x"][:40], T["z"][:40] - 0.9 * T["x"][:40] + made(1)["z"][:40]
    found = permutation_test(x, y, clusters=None, n_permutations=4000)
    expected = stats.permutation_test(
        (x,),
        lambda x: stats.pearsonr(x, y).statistic,
        permutation_type="pairings",
        n_resamples=4000,
        rng=np.random.default_rng(0),
    )
    assert found.estimate == pytest.approx(stats.pearsonr(x, y).statistic)
    assert found.p == pytest.approx(expected.pvalue, abs=0.02)


def test_permuting_within_sequences_does_not_see_what_lies_between_them():
    rng = np.random.default_rng(0)
    between = 5 * rng.normal(size=20)[SEQUENCE]
    x, y = between + rng.normal(size=N), between + rng.normal(size=N)
    assert permutation_test(x, y, clusters=None).p < 0.01
    assert permutation_test(x, y, clusters=SEQUENCE).p > 0.05
    assert permutation_test(x, y + x, clusters=SEQUENCE).p < 0.01


def test_max_t_layers():
    rng = np.random.default_rng(5)
    layers = np.stack([T["x"], rng.normal(size=N), np.ones(N), rng.normal(size=N), np.full(N, np.nan)])
    found = max_t(layers, T["y"], clusters=SEQUENCE, confounds={"z": T["z"]}, rank=True)
    assert [result.name for result in found] == [f"layer {number}" for number in range(5)]
    assert found[0].p_corrected < 0.01
    assert found[1].p <= found[1].p_corrected
    assert [bool(result.reason) for result in found] == [False, False, True, False, True]
    assert "max-T over 3" in str(found[1])
    # y and confounds of their own at every layer
    same = max_t(layers[:2], np.stack([T["y"]] * 2), clusters=SEQUENCE, confounds={"z": np.stack([T["z"]] * 2)})
    assert same == max_t(layers[:2], T["y"], clusters=SEQUENCE, confounds={"z": T["z"]})
    # The same layer twice is looked at once.
    one, two = max_t(np.stack([layers[1]] * 2), T["y"], clusters=SEQUENCE)
    assert one.p == one.p_corrected == two.p_corrected


def test_max_t_is_bounded_by_bonferroni_and_near_it_for_independent_layers():
    rng = np.random.default_rng(2)
    found = max_t(rng.normal(size=(8, N)), T["y"], clusters=SEQUENCE, n_permutations=4000)
    for result in found:
        assert result.p_corrected == pytest.approx(1 - (1 - result.p) ** 8, abs=0.04)
