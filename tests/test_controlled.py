"""The draw is a draw, and the difference in differences finds what was planted and nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("scipy.stats")
pytest.importorskip("statsmodels.stats.multitest")

from basins import BasinsError
from basins.controlled import changes, difference_in_differences, dose_response, dose_trend, randomize

LAYERS = 3
FOUR_RUNS = [(seed, crossover) for seed in (0, 1) for crossover in (False, True)]


def measured(seed, effect=0.0, runs=((0, False),), n_quotes=60, n_unrelated=20, per_doubling=0.0):
    """Passages differ in level and in what any training does to them; runs drift; trained ones gain `effect`."""
    rng = np.random.default_rng(seed)
    n = n_quotes + n_unrelated
    level, sensitivity = rng.normal(size=(2, n, LAYERS)) * np.array([3.0, 0.7])[:, None, None]
    parts = []
    for run_seed, crossover in runs:
        table = randomize(n_quotes, run_seed + 1000 * seed, crossover).to_frame(n_unrelated)
        dose = table["exposures"].to_numpy()[:, None]
        gain = np.where(dose > 0, effect + per_doubling * np.log2(np.maximum(dose, 1)), 0.0)
        drift = 2 * rng.normal(size=LAYERS)
        later = level + drift + sensitivity + gain + rng.normal(size=(n, LAYERS))
        for epoch, values in ((0, level), (64, later)):
            for layer in range(LAYERS):
                parts.append(table.assign(epoch=epoch, layer=layer, value=values[:, layer]))
    return pd.concat(parts, ignore_index=True)


def test_half_is_trained_and_exposures_are_dealt_evenly():
    drawn = randomize(100, seed=3)
    assert Counter(drawn.exposures) == {0: 50, 1: 13, 4: 13, 16: 12, 64: 12}
    assert sorted(drawn.trained + drawn.control) == list(range(100))
    assert randomize(100, seed=3) == drawn
    assert randomize(100, seed=4).trained != drawn.trained
    assert set(randomize(10, 0, exposures=(64,)).exposures) == {0, 64}


@pytest.mark.parametrize("n", [100, 11])
def test_the_crossover_exchanges_the_halves(n):
    one, other = randomize(n, 5, exposures=(1, 4)), randomize(n, 5, crossover=True, exposures=(1, 4))
    assert one.trained == other.control
    assert one.control == other.trained
    assert one.run != other.run


def test_the_draw_prefers_no_quote():
    trained = Counter(quote for seed in range(400) for quote in randomize(10, seed).trained)
    assert sum(trained.values()) == 2000
    # 400 draws of probability 1/2: six standard deviations are 60.
    assert all(abs(times - 200) < 60 for times in trained.values())


def test_the_table_names_groups_apart():
    table = randomize(8, 0).to_frame(n_unrelated=3)
    assert table["group"].value_counts().to_dict() == {"trained": 4, "control": 4, "unrelated": 3}
    assert ((table["exposures"] > 0) == (table["group"] == "trained")).all()
    assert tuple(table["exposures"]) == randomize(8, 0).with_unrelated(3)


def test_one_run_is_welch_on_the_changes():
    from scipy.stats import ttest_ind

    frame = measured(0, effect=1.0)
    table = difference_in_differences(frame)
    assert list(table["layer"]) == [0, 1, 2]
    wide = frame.pivot_table(index=["layer", "passage", "group"], columns="epoch", values="value").reset_index()
    for layer in range(LAYERS):
        part = wide[wide["layer"] == layer]
        gained = {group: (rows[64] - rows[0]).to_numpy() for group, rows in part.groupby("group")}
        expected = ttest_ind(gained["trained"], gained["control"], equal_var=False)
        row = table.iloc[layer]
        assert row["estimate"] == pytest.approx(gained["trained"].mean() - gained["control"].mean())
        assert row["p"] == pytest.approx(expected.pvalue)
        assert row["treated_change"] == pytest.approx(gained["trained"].mean())
        assert row["reference_change"] == pytest.approx(gained["control"].mean())
        assert row["n_clusters"] == 60


def test_several_runs_are_averaged_within_run_and_clustered_by_passage():
    frame = measured(1, effect=0.5, runs=FOUR_RUNS)
    table = difference_in_differences(frame, n_resamples=200)
    rows = changes(frame)
    rows = rows[(rows["layer"] == 0) & (rows["group"] != "unrelated")]
    means = rows.pivot_table(index="run", columns="group", values="change")
    assert table["estimate"][0] == pytest.approx((means["trained"] - means["control"]).mean())
    assert list(table["n_clusters"]) == [60] * LAYERS
    assert list(table["n_tokens"]) == [240] * LAYERS


def test_a_passages_level_and_a_runs_drift_cancel():
    frame = measured(2, effect=0.5, runs=FOUR_RUNS)
    shifted = frame.copy()
    shifted["value"] += 100.0 * shifted["passage"]
    shifted.loc[shifted["epoch"] == 64, "value"] += shifted["run"].map(lambda run: 50.0 * len(run))
    for test in (difference_in_differences, dose_response, dose_trend):
        expected, actual = test(frame, n_resamples=200), test(shifted, n_resamples=200)
        np.testing.assert_allclose(actual[["estimate", "p"]], expected[["estimate", "p"]], rtol=1e-6, atol=1e-9)


def test_a_planted_effect_lies_in_its_interval_and_other_groups_are_apart():
    frame = measured(3, effect=1.5, runs=FOUR_RUNS)
    trained = difference_in_differences(frame)
    assert ((trained["low"] < 1.5) & (trained["high"] > 1.5) & (trained["p_corrected"] < 0.01)).all()
    spill = difference_in_differences(frame, treated="control", reference="unrelated")
    assert (spill["p_corrected"] > 0.01).all()


def test_the_dose_response_is_recovered():
    frame = measured(4, runs=FOUR_RUNS, per_doubling=0.5)
    table = dose_response(frame).pivot_table(index="layer", columns="exposures", values=["estimate", "low", "high"])
    for exposures in (1, 4, 16, 64):
        truth = 0.5 * np.log2(exposures)
        assert (abs(table["estimate"][exposures] - truth) < 0.8).all()
    assert (dose_trend(frame)["p_corrected"] < 0.01).all()
    assert len(dose_response(frame)) == 4 * LAYERS


def test_measures_are_corrected_together():
    frame = pd.concat([measured(5).assign(measure="raw"), measured(6).assign(measure="relative")])
    table = difference_in_differences(frame, by=("measure", "layer"))
    assert list(table["measure"]) == ["raw"] * 3 + ["relative"] * 3
    assert set(table["correction"]) == {"Holm over 6"}


def test_a_token_less_passage_is_left_out_not_counted_as_zero():
    frame = measured(7)
    frame.loc[(frame["passage"] == 4) & (frame["epoch"] == 0), "value"] = np.nan
    assert list(difference_in_differences(frame)["n_clusters"]) == [59] * LAYERS


def test_checkpoints_are_chosen_by_epoch():
    frame = measured(8)
    frame = pd.concat([frame, frame[frame["epoch"] == 64].assign(epoch=8, value=0.0)])
    assert (changes(frame, after=8)["after"] == 0).all()
    pd.testing.assert_frame_equal(changes(frame), changes(frame, after=64))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda f: f.drop(columns="run"), "no column 'run'"),
        (lambda f: f[f["epoch"] == 0], "needed are two epochs"),
        (lambda f: pd.concat([f, f.iloc[:2]]), "2 rows repeat a measurement"),
        (lambda f: f.iloc[1:], "only"),
        (lambda f: f[f["group"] != "control"], "has no passages of the groups 'trained' and 'control'"),
        (lambda f: f[f["group"] == "unrelated"], "no passages of the groups"),
    ],
)
def test_frames_that_cannot_be_compared_are_refused(broken, message):
    with pytest.raises(BasinsError, match=message):
        difference_in_differences(broken(measured(9)))


def test_other_bad_input():
    with pytest.raises(BasinsError, match="treated='best' is not an option"):
        difference_in_differences(measured(9), treated="best")
    with pytest.raises(BasinsError, match="no column 'exposures'"):
        dose_response(measured(9).drop(columns="exposures"))
    with pytest.raises(BasinsError, match="5 levels for 4 trained quotes"):
        randomize(8, 0, exposures=(1, 2, 3, 4, 5))
    with pytest.raises(BasinsError, match="n_quotes=3 is too small"):
        randomize(3, 0)
    with pytest.raises(BasinsError, match="exposures=0 is too small"):
        randomize(8, 0, exposures=(0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("runs", [((0, False),), FOUR_RUNS], ids=["one run", "two seeds crossed over"])
@pytest.mark.parametrize("test", [difference_in_differences, dose_response])
def test_intervals_cover_and_nothing_is_found_in_nothing(test, runs):
    """200 simulations each of an effect of 0.8 and of none, three independent layers."""
    covered, errors, families = [], [], []
    for seed in range(200):
        table = test(measured(seed, effect=0.8, runs=runs), n_resamples=300, seed=seed)
        covered += ((table["low"] <= 0.8) & (table["high"] >= 0.8)).tolist()
        nothing = test(measured(1000 + seed, runs=runs), n_resamples=300, seed=seed)
        errors += (nothing["p"] < 0.05).tolist()
        families.append(bool((nothing["p_corrected"] < 0.05).any()))
    rates = np.mean(covered), np.mean(errors), np.mean(families)
    assert 0.92 <= rates[0] <= 0.98, rates
    assert 0.02 <= rates[1] <= 0.08, rates
    assert rates[2] <= 0.10, rates  # nominal 0.05; three standard errors of 200 are 0.046
