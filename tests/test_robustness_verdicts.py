"""When a null shows a finding, and which grade and flags follow, on made-up effects."""

from __future__ import annotations

import pandas as pd
import pytest

from basins.experiments.null_verdicts import judge_nulls, shown
from basins.experiments.primary import PRIMARY
from basins.experiments.robustness_words import verdict
from basins.experiments.under_nulls import RANDOM, TRAINED


def made_effect(effect, low, high, p=0.001, **more):
    return {"effect": effect, "low": low, "high": high, "p": p, "p_corrected": p, "layer": 1, **more}


def test_a_null_shows_a_finding_by_sign_half_its_size_and_interval():
    for effect, low, high, wanted in (
        (0.2, 0.1, 0.3, True),
        (0.15, 0.1, 0.2, True),
        (0.14, 0.1, 0.2, False),
        (0.4, -0.1, 0.9, False),
        (-0.4, -0.5, -0.3, False),
        (float("nan"), float("nan"), float("nan"), False),
    ):
        assert shown(made_effect(effect, low, high), 0.3) is wanted
        assert shown(made_effect(-effect, -high, -low), -0.3) is wanted
    assert not shown(made_effect(0.0, -0.1, 0.1), 0.0)


@pytest.mark.parametrize(
    ("effects", "iqr", "shows"),
    [((0.3, 0.3, 0.01), 0.01, True), ((0.3, 0.01, 0.01), 0.01, False), ((0.01, 0.01, 0.01), 0.06, True)],
)
def test_random_weights_show_it_in_most_draws_or_by_their_spread(effects, iqr, shows):
    rows = [made_effect(e, e - 0.1, e + 0.1, null=RANDOM, draw=i, score=PRIMARY) for i, e in enumerate(effects)]
    spreads = [{"null": RANDOM, "draw": i, "layer": 1, "iqr": iqr, "rho_raw_density": 1.0} for i in range(3)]
    spreads.append({"null": TRAINED, "draw": 0, "layer": 1, "iqr": 0.1, "rho_raw_density": 0.9})
    (judged,) = judge_nulls(pd.DataFrame(rows), pd.DataFrame(spreads), 0.4, 1).to_dict("records")
    assert judged["shows"] is shows
    assert judged["by_spread"] is (iqr > 0.05)


NO_NULLS = pd.DataFrame({"null": [RANDOM], "shows": [False]})
A_NULL = pd.DataFrame({"null": [RANDOM], "shows": [True], "by_spread": [False]})


@pytest.mark.parametrize(
    ("effect", "p", "halves", "second", "nulls", "grade", "flags"),
    [
        (0.5, 0.001, (0.5, 0.4), (0.5, True), NO_NULLS, "strong", ""),
        (0.5, 0.001, (0.5, 0.4), (0.5, True), A_NULL, "exploratory", "a null shows it too"),
        (0.5, 0.001, (0.5, 0.4), (0.3, True), NO_NULLS, "moderate", ""),
        (0.5, 0.001, (0.5, 0.4), (-0.5, True), NO_NULLS, "moderate", "does not replicate"),
        (0.5, 0.001, (0.5, 0.4), (0.5, False), NO_NULLS, "moderate", "does not replicate"),
        (0.5, 0.001, (0.5, 0.4), None, NO_NULLS, "moderate", ""),
        (0.5, 0.001, (0.5, -0.4), None, NO_NULLS, "exploratory", "does not replicate"),
        (0.1, 0.001, (0.1, 0.1), None, A_NULL, "exploratory", "a null shows it too"),
        (0.5, 0.2, (0.5, 0.4), None, A_NULL, "none", "nothing survives correction; a null shows it too"),
    ],
)
def test_grades_and_flags_follow_what_was_stated(effect, p, halves, second, nulls, grade, flags):
    varied = [
        made_effect(value, value - 0.1, value + 0.1, variation=f"half {i} of the text", kind="text")
        for i, value in enumerate(halves, 1)
    ]
    left_in = {name: made_effect(effect, effect - 0.1, effect + 0.1) for name in ("density", "frequency and position")}
    other = None if second is None else pd.DataFrame([made_effect(second[0], 0, 0, halves=second[1])])
    row = made_effect(effect, effect - 0.1, effect + 0.1, p)
    (said,) = verdict("made", row, pd.DataFrame(varied), nulls, left_in, 0.1, other).to_dict("records")
    assert (said["grade"], said["flags"]) == (grade, flags)


def test_noise_and_explained_flags():
    row = made_effect(0.1, 0.05, 0.15)
    varied = pd.DataFrame([made_effect(0.1, 0, 1, variation="k = 5", kind="setting")])
    for density, place, flags in (
        (0.5, 0.15, "too noisy; does not replicate; explained by density"),
        (0.15, -0.5, "too noisy; does not replicate; explained by frequency or position"),
    ):
        left_in = {
            "density": made_effect(density, density - 0.02, density + 0.02),
            "frequency and position": made_effect(place, place - 0.02, place + 0.02),
        }
        assert verdict("made", row, varied, NO_NULLS, left_in, 0.6, None)["flags"].item() == flags
