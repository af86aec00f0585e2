"""What the linguistic experiment says of tables whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("statsmodels.api")

from basins.experiments.linguistic_regression import LEAST_CLUSTERS, dummies, partial_eta_interval, regress, within
from basins.experiments.linguistic_tables import FUNCTION, HYPOTHESES, NOUN, TAGS, contrasts, corrected, tag_tests
from basins.experiments.linguistic_words import effects, verdicts
from basins.experiments.primary import PRIMARY

TAGGED = ("NOUN", "VERB", "DET", "ADP")


def made(own: float, by_density: float, by_frequency: float = 0.0, seed: int = 0, n: int = 1200) -> pd.DataFrame:
    """Density and frequency depend on the tag; the score depends on them and, by `own`, on the tag itself."""
    rng = np.random.default_rng(seed)
    tag = rng.choice(TAGGED, n)
    function = np.isin(tag, ("DET", "ADP")).astype(float)
    sentence = np.arange(n) // 12
    columns = {"tag": tag, "cluster": sentence, "layer": 0, "sequence": sentence, "position": np.arange(n) % 12 + 1}
    columns |= {"density": 2 * function + rng.normal(size=n), "log_frequency": 2 * function + rng.normal(size=n)}
    columns |= {"position_bend": rng.random(n), "word_length": rng.integers(1, 9, n), "n_pieces": rng.integers(1, 3, n)}
    columns |= {"token_id": rng.integers(0, 40, n), "same_token_share": rng.random(n), "tested": True, "used": True}
    frame = pd.DataFrame(columns)
    noise = rng.normal(size=n) + rng.normal(size=sentence.max() + 1)[sentence]
    score = own * function + by_density * frame["density"] + by_frequency * frame["log_frequency"] + noise
    return frame.assign(relative=score, described=True)


def judged(*frames: pd.DataFrame) -> pd.DataFrame:
    """The verdicts of a model with one block a frame; a second model has the same number, where there are two."""
    parts = []
    for model, frame in zip(("a", "b"), frames):
        tags, pairs = corrected(tag_tests(frame, [0], 100, 0), contrasts(frame, [0], 100, 0))
        parts.append(effects(tags.assign(model=model), pairs.assign(model=model)))
    return verdicts(pd.concat(parts, ignore_index=True), dict.fromkeys(("a", "b")[: len(frames)], 1)).set_index("name")


def test_a_difference_of_density_is_no_difference_of_tags():
    found = judged(made(0, 1)).loc[FUNCTION]
    assert found["r_plain"] > 0.4
    assert abs(found["r"]) < 0.1
    assert found["grade"] == "none"
    assert "explained by density" in found["flags"]
    assert "nothing survives correction" in found["flags"]


def test_nor_is_one_of_frequency():
    found = judged(made(0, 0, 1)).loc[FUNCTION]
    assert found["r_plain"] > 0.4
    assert found["grade"] in ("none", "exploratory")
    assert "explained by frequency or position" in found["flags"]


def test_a_real_difference_on_two_models_is_strong():
    found = judged(made(2.5, 1), made(2.5, 1, seed=1))
    assert found.loc[FUNCTION, "grade"] == "strong"
    assert found.loc[FUNCTION, "second_model"] == "agrees"
    assert found.loc[FUNCTION, "direction"] == "function words more compressed"
    assert found.loc[FUNCTION, "low"] < found.loc[FUNCTION, "r"] < found.loc[FUNCTION, "high"]
    assert found.loc[NOUN, "grade"] == "none", "tags differ by kind only"
    assert found.loc[TAGS, "grade"] == "strong"
    assert list(found.index)[-1] == NOUN, "the best grade first"


@pytest.mark.parametrize("other", [-2.5, 0.0])
def test_without_the_same_direction_it_is_not(other):
    found = judged(made(2.5, 1), made(other, 1, seed=1)).loc[FUNCTION]
    assert (found["grade"], found["second_model"]) == ("moderate", "differs")
    assert "does not replicate" in found["flags"]
    assert judged(made(2.5, 1)).loc[FUNCTION, "second_model"] == "not run"


def row(model: str, layer: int, r: float, p: float) -> dict:
    found = {"model": model, "layer": layer, "score": PRIMARY, "primary": True, "name": FUNCTION, "n_tokens": 100}
    found |= {"r_plain": r, "r_density": r, "r": r, "low": r - 0.05, "high": r + 0.05}
    return found | {"p": p, "p_corrected": p}


@pytest.mark.parametrize(
    ("r", "p", "grade"),
    [
        (0.41, 0.009, "strong"), (-0.41, 0.011, "moderate"), (0.39, 0.001, "moderate"), (0.21, 0.049, "moderate"),
        (0.19, 1e-9, "exploratory"), (0.9, 0.051, "none"), (0.9, float("nan"), "none"),
    ],
)  # fmt: skip
def test_thresholds(r, p, grade):
    table = pd.DataFrame([row("a", 7, r, p), row("b", 3, r, p)])
    found = verdicts(table, {"a": 8, "b": 4}).set_index("name")
    assert found.loc[FUNCTION, "grade"] == grade
    assert set(found.index) == set(HYPOTHESES)
    assert found.loc[NOUN, "grade"] == "none", "nothing was measured"


def test_the_second_model_is_asked_at_the_same_depth():
    first = [row("a", layer, r, 1e-4) for layer, r in ((0, 0.1), (7, 0.5))]
    end = pd.DataFrame([*first, row("b", 0, -0.5, 1e-4), row("b", 3, 0.5, 1e-4)])
    start = pd.DataFrame([*first, row("b", 0, 0.5, 1e-4), row("b", 3, -0.5, 1e-4)])
    for table, grade, answer in ((end, "strong", "agrees"), (start, "moderate", "differs")):
        found = verdicts(table, {"a": 8, "b": 4}).iloc[0]
        assert (found["grade"], found["layer"], found["second_model"]) == (grade, 7, answer)


def test_two_ways_to_the_same_partial_eta_squared():
    frame = made(1, 1)
    columns, given = dummies(frame["tag"].to_numpy()), {"density": frame["density"].to_numpy()}
    y, clusters = frame["relative"].to_numpy(), frame["cluster"].to_numpy()
    estimate, low, high = partial_eta_interval(y, columns, given, clusters, 200, 0)
    assert estimate == pytest.approx(regress(y, columns, given, clusters).partial, abs=1e-10)
    assert low < estimate < high
    assert regress(y, columns, {}, clusters).partial == pytest.approx(
        partial_eta_interval(y, columns, {}, clusters, 100, 0)[0]
    )


def test_what_cannot_be_fitted_has_a_reason():
    frame = made(1, 1)
    y, clusters, label = frame["relative"].to_numpy(), frame["cluster"].to_numpy(), (frame["tag"] == "DET").to_numpy()
    label = label[:, None].astype(float)
    assert "too few" in regress(y[:40], label[:40], {}, clusters[:40]).reason
    assert "explain the tags wholly" in regress(y, label, {"same": label[:, 0] * 3}, clusters).reason
    assert "explain the score wholly" in regress(y, label, {"same": y}, clusters).reason
    constant = regress(y, label, {"constant": np.ones(len(y))}, clusters)
    assert constant.p == pytest.approx(regress(y, label, {}, clusters).p)


def test_few_sentences_are_too_few_for_many_tags():
    frame = made(1, 1)
    y, tags, clusters = frame["relative"].to_numpy(), dummies(frame["tag"].to_numpy()), frame["cluster"].to_numpy()
    few = np.isin(clusters, np.unique(clusters)[: LEAST_CLUSTERS + 1])
    assert "too few" in regress(y[few], tags[few], {}, clusters[few]).reason
    assert regress(y[few], tags[few, :1], {}, clusters[few]).reason == ""


@pytest.mark.slow
@pytest.mark.parametrize("n_sentences", [20, 40])
def test_many_tags_in_few_sentences_hold_their_rate_and_explain_nothing(n_sentences):
    """200 texts with random tags: p below 0.05 in about one of twenty, Wald's own far more often; epsilon about 0."""
    rng, found = np.random.default_rng(0), []
    shares = [0.25, 0.2, 0.12, 0.1, 0.08, 0.07, 0.05, 0.04, 0.04, 0.03, 0.02]
    clusters = np.repeat(np.arange(n_sentences), 20)
    for _ in range(200):
        y = rng.normal(size=len(clusters)) + 0.5 * rng.normal(size=n_sentences)[clusters]
        tags = dummies(rng.choice([f"{i:02}" for i in range(11)], len(y), p=shares))
        fit = regress(y, tags, {f"c{i}": rng.normal(size=len(y)) for i in range(6)}, clusters)
        found.append((fit.p, fit.p_wald, fit.epsilon, fit.partial))
    p, p_wald, epsilon, partial = np.array(found).T
    assert (p < 0.05).mean() < 0.11
    assert (p_wald < 0.05).mean() > 0.15
    assert abs(epsilon.mean()) < 0.005 < partial.mean()


def test_within_a_group_nothing_is_left_of_the_group():
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=(60, 2)), rng.integers(0, 7, 60)
    expected = pd.DataFrame(values) - pd.DataFrame(values).groupby(groups).transform("mean")
    np.testing.assert_allclose(within(values, groups), expected, atol=1e-12)
    np.testing.assert_allclose(within(values[:, 0], groups), expected[0], atol=1e-12)


@pytest.mark.slow
def test_p_holds_its_rate_without_a_difference():
    """300 made texts in which only density and sentences matter: p below 0.05 in about one of twenty."""
    found = []
    for seed in range(300):
        frame = made(0, 1, seed=seed, n=600)
        label = np.isin(frame["tag"], ("DET", "ADP")).astype(float)[:, None]
        given = {name: frame[name].to_numpy(float) for name in ("density", "log_frequency", "position")}
        y, clusters = frame["relative"].to_numpy(), frame["cluster"].to_numpy()
        tags = dummies(frame["tag"].to_numpy())
        found.append([regress(y, label, given, clusters).p, regress(y, tags, given, clusters).p])
    low = (np.array(found) < 0.05).mean(0)
    assert (low > 0.02).all()
    assert (low < 0.09).all()
