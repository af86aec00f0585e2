from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn.feature_extraction.text")

from basins.blind import blind
from basins.cross_validation import grouped_folds
from basins.errors import BasinsError

text = pytest.importorskip("sklearn.feature_extraction.text")
linear_model = pytest.importorskip("sklearn.linear_model")
metrics = pytest.importorskip("sklearn.metrics")
WORDS = [f"word{number}" for number in range(40)]


def texts(n: int = 60, seed: int = 0) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 12)) for _ in range(n)], rng.permutation(np.arange(n) % 2 == 0)


def test_groups_with_words_of_their_own_are_unfair():
    lines, labels = texts()
    marked = [f"{line} {'thee' if label else 'you'}" for line, label in zip(lines, labels)]
    found = blind(marked, labels)
    assert found.auroc.estimate > 0.95
    assert found.unfair is True
    assert "UNFAIR" in str(found)


def test_scores_agree_with_scikit_learn_fold_by_fold():
    lines, labels = texts(50, seed=2)
    found = blind(lines, labels)
    wanted = np.zeros(50)
    for test in grouped_folds(labels, np.arange(50)).partitions[0]:
        train = np.setdiff1d(np.arange(50), test)
        words = text.TfidfVectorizer(sublinear_tf=True)  # every word here has two letters or more
        model = linear_model.LogisticRegression(class_weight="balanced", tol=1e-10, max_iter=5000)
        model.fit(words.fit_transform([lines[i] for i in train]), labels[train])
        wanted[test] = model.decision_function(words.transform([lines[i] for i in test]))
    assert found.scores.tolist() == pytest.approx(list(wanted), abs=1e-5)
    assert found.auroc.estimate == pytest.approx(metrics.roc_auc_score(labels, wanted))


def test_groups_of_one_kind_are_fair():
    lines, labels = texts()
    found = blind(lines, labels)
    assert found.unfair is False
    assert found.auroc.interval[0] < 0.5 < found.auroc.interval[1]
    assert "Fair as far as words show" in found.verdict
    assert str(blind(lines, labels)) == str(found)


def test_a_topic_of_its_source_is_not_learned_across_folds():
    """Each source repeats words of its own and has one label: known sources give the label away, new ones do not."""
    rng = np.random.default_rng(0)
    sources = np.repeat(np.arange(20), 4)
    labels = rng.permutation(np.arange(20) % 2 == 0)[sources]
    lines = [" ".join([f"name{source}"] * 3 + list(rng.choice(WORDS, 4))) for source in sources]
    split = blind(lines, labels)
    grouped = blind(lines, labels, sources)
    assert split.auroc.estimate > 0.9
    assert grouped.auroc.estimate < 0.75
    assert grouped.auroc.n_clusters == 20


@pytest.mark.parametrize(
    ("lines", "labels", "reason"),
    [
        (["!?", "..."] * 6, [True, False] * 6, "no word"),
        (["a b"] * 6, [True] * 6, "unlabelled sequences come from 0 sources"),
        (["a b"] * 2, [True, False], "2 texts have a value"),
    ],
)
def test_nothing_can_be_said_without_words_or_classes(lines, labels, reason):
    found = blind(lines, labels)
    assert found.unfair is None
    assert reason in found.verdict
    assert np.isnan(found.scores).all()


def test_equal_texts_say_nothing():
    found = blind(["the same words"] * 20, [True, False] * 10)
    assert found.auroc.estimate == pytest.approx(0.5, abs=0.25)


def test_a_text_for_every_label():
    with pytest.raises(BasinsError, match="3 texts were given for 2 labels"):
        blind(["a", "b", "c"], [True, False])
