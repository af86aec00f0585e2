from __future__ import annotations

import numpy as np
import pytest

from basins.logistic import fit_logistic, log_odds

linear_model = pytest.importorskip("sklearn.linear_model")


@pytest.mark.parametrize("penalty", [0.001, 1.0, 100.0])
def test_agrees_with_scikit_learn_in_every_weighting(penalty):
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(83, 6))
    labels = columns[:, 0] + rng.normal(size=83) > 0.8
    weights = rng.integers(0, 3, (4, 83)).astype(float)
    weights[0] = 1
    found = fit_logistic(columns, labels, weights, penalty)
    for place, weight in enumerate(weights):
        rows = np.repeat(np.arange(83), weight.astype(int))
        model = linear_model.LogisticRegression(C=penalty, class_weight="balanced", tol=1e-10, max_iter=5000)
        model.fit(columns[rows], labels[rows])
        assert found[place].tolist() == pytest.approx([*model.coef_[0], *model.intercept_], abs=1e-5)
        assert log_odds(columns, found)[place].tolist() == pytest.approx(
            list(model.decision_function(columns)), abs=1e-4
        )


def test_separable_and_constant_columns_stay_finite():
    rng = np.random.default_rng(0)
    columns = np.c_[rng.normal(size=(40, 2)), np.zeros(40)]
    found = fit_logistic(columns, columns[:, 0] > 0, np.ones((1, 40)), 1e6)
    assert np.isfinite(found).all()
    assert ((log_odds(columns, found)[0] > 0) == (columns[:, 0] > 0)).all()
    assert found[0, 2] == 0


def test_a_resample_without_a_class_is_nan():
    labels = np.arange(20) < 10
    weights = np.stack([np.ones(20), labels.astype(float)])
    found = fit_logistic(np.random.default_rng(0).normal(size=(20, 2)), labels, weights, 1.0)
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()
