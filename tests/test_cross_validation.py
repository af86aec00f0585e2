from __future__ import annotations

import numpy as np
import pytest

from basins import cross_validation
from basins.cross_validation import PENALTIES, areas, check_rows, grouped_folds, nested_scores
from basins.errors import BasinsError

metrics = pytest.importorskip("sklearn.metrics")
linear_model = pytest.importorskip("sklearn.linear_model")
pipeline = pytest.importorskip("sklearn.pipeline")
preprocessing = pytest.importorskip("sklearn.preprocessing")


def rows(seed: int = 0, n: int = 90) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.4
    return rng.normal(size=(n, 4)) + labels[:, None] * 0.5, labels, rng.integers(0, 30, n)


@pytest.mark.parametrize("seed", range(5))
def test_no_source_is_split(seed):
    _, labels, sources = rows(seed)
    folds = grouped_folds(labels, sources, 5, 3, seed)
    assert folds.n_folds == 5
    assert len(folds.partitions) == 3
    for tests in folds.partitions:
        assert sorted(np.concatenate(tests)) == list(range(len(labels)))
        for test in tests:
            train = np.setdiff1d(np.arange(len(labels)), test)
            assert not set(sources[test]) & set(sources[train])
            assert len(set(labels[train])) == 2


def test_the_whole_procedure_agrees_with_scikit_learn():
    """Scaling inside the fold, penalty by inner grouped folds, log-odds of the rows left out."""
    columns, labels, sources = rows()
    columns = columns * [1, 1000, 1e-3, 5] + [0, 50, 0, -1e4]
    folds = grouped_folds(labels, sources, seed=3, n_inner=3)
    found = nested_scores(columns, labels, folds)

    def model(penalty):
        regression = linear_model.LogisticRegression(C=penalty, class_weight="balanced", tol=1e-10, max_iter=5000)
        return pipeline.make_pipeline(preprocessing.StandardScaler(), regression)

    wanted = np.zeros(len(labels))
    for number, test in enumerate(folds.partitions[0]):
        train = np.setdiff1d(np.arange(len(labels)), test)
        losses = []
        for penalty in PENALTIES:
            odds = np.zeros(len(train))
            for inner in grouped_folds(labels[train], sources[train], 3, 1, 3).partitions[0]:
                rest = np.setdiff1d(np.arange(len(train)), inner)
                fitted = model(penalty).fit(columns[train][rest], labels[train][rest])
                odds[inner] = fitted.decision_function(columns[train][inner])
            balance = np.where(labels[train], 1 / labels[train].mean(), 1 / (~labels[train]).mean())
            p = 1 / (1 + np.exp(-odds))
            losses.append(metrics.log_loss(labels[train], p, sample_weight=balance))
        assert found.penalties[number] == PENALTIES[int(np.argmin(losses))]
        fitted = model(found.penalties[number]).fit(columns[train], labels[train])
        wanted[test] = fitted.decision_function(columns[test])
    assert found.scores.tolist() == pytest.approx(list(wanted), abs=1e-4)


def test_nothing_of_the_test_rows_reaches_the_scores_of_others():
    """A row moved very far changes its own score; the other rows of its fold, scored by a model that never saw it, keep
    theirs to the last bit. Scaling over all rows would change them."""
    columns, labels, sources = rows()
    folds = grouped_folds(labels, sources, n_inner=3)
    before = nested_scores(columns, labels, folds)
    test = folds.partitions[0][0]
    moved = columns.copy()
    moved[test[0]] = 1e6
    after = nested_scores(moved, labels, folds)
    assert (before.scores[test[1:]] == after.scores[test[1:]]).all()
    assert before.scores[test[0]] != after.scores[test[0]]


def test_resamples_of_one_are_the_fit_itself_and_a_source_twice_is_twice_its_rows():
    columns, labels, sources = rows()
    folds = grouped_folds(labels, sources, n_inner=3)
    weights = np.ones((2, len(labels)))
    weights[1, sources == 3] = 2
    found = nested_scores(columns, labels, folds, weights)
    assert found.resampled[0].tolist() == pytest.approx(found.scores.tolist())
    assert abs(found.resampled[1] - found.scores).max() > 1e-6
    test = next(fold for fold in folds.partitions[0] if 3 in sources[fold])
    assert found.resampled[1][test].tolist() == pytest.approx(found.scores[test].tolist())


def test_areas_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.random(40) < 0.5
    scores = np.round(rng.normal(size=(6, 40)) + labels, 1)
    weights = rng.integers(0, 3, (6, 40)).astype(float)
    weights[5] = labels
    found = areas(scores, labels, weights)
    for place in range(5):
        wanted = metrics.roc_auc_score(labels, scores[place], sample_weight=weights[place])
        assert found[place] == pytest.approx(wanted)
    assert np.isnan(found[5])


def test_small_work_gives_the_same_in_pieces(monkeypatch):
    columns, labels, sources = rows()
    folds, weights = (
        grouped_folds(labels, sources, n_inner=3),
        np.random.default_rng(0).integers(0, 3, (7, 90)).astype(float),
    )
    whole = nested_scores(columns, labels, folds, weights).resampled
    monkeypatch.setattr(cross_validation, "FLOATS", 1000)
    pieces = nested_scores(columns, labels, folds, weights).resampled
    assert np.abs(whole - pieces).max() < 1e-7


@pytest.mark.parametrize(
    ("labels", "sources", "reason"),
    [
        ([True] * 6, range(6), "unlabelled sequences come from 0 sources"),
        ([True, False, True, False], [1, 2, 1, 3], "labelled sequences come from 1 sources"),
        ([], [], "labelled sequences come from 0 sources"),
    ],
)
def test_no_folds_have_a_reason(labels, sources, reason):
    folds = grouped_folds(np.array(labels, dtype=bool), np.array(sources, dtype=int))
    assert reason in folds.reason
    assert folds.n_folds == 0


def test_few_sources_make_fewer_folds():
    folds = grouped_folds(np.arange(12) < 6, np.arange(12) // 2)
    assert folds.n_folds == 3


@pytest.mark.parametrize(
    ("labels", "sources", "message"),
    [([0, 1, 2], None, "0 and 1"), ([0.0, float("nan")], None, "0 and 1"), ([0, 1], ["a"], "1 sources were given")],
)
def test_bad_rows_are_refused(labels, sources, message):
    with pytest.raises(BasinsError, match=message):
        check_rows(labels, sources)
