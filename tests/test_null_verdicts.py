"""What is called an artefact, and when nulls cannot tell; on tables made by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from basins.experiments.null_verdicts import (
    BY_SPREAD,
    NOT_RUN,
    NOT_SHOWN,
    SHOWN,
    UNSURE,
    capped,
    flagged,
    in_words,
    judge_all,
    shown,
)
from basins.experiments.primary import IN_NULL
from basins.experiments.under_nulls import ALL_NULLS, RANDOM, SHUFFLED, TRAINED
from basins.nulls import ISOTROPIC

FAR = {TRAINED: 0.10, RANDOM: 0.01} | dict.fromkeys(ALL_NULLS[1:], 0.10)


def verdicts(*rows: tuple[str, str, float]) -> pd.DataFrame:
    return pd.DataFrame([{"name": name, "grade": grade, "layer": 2, "r": r, "flags": ""} for name, grade, r in rows])


def effect(name: str, value: float, half: float = 0.05, **more) -> dict:
    return {"name": name, "layer": 2, "effect": value, "low": value - half, "high": value + half} | more


def under(name: str, value: float = 0.0, null: str = "", draws: int = 3) -> list[dict]:
    """Nothing under every null, but for `null`, which gives `value`."""
    rows = []
    for one in ALL_NULLS:
        for draw in range(draws if one == RANDOM else 1):
            rows.append(effect(name, value if one == null else 0.0, null=one, draw=draw))
    return rows


def spreads(iqr: dict[str, float] = FAR) -> pd.DataFrame:
    rows = [{"null": null, "draw": 0, "layer": 2, "iqr": value} for null, value in iqr.items()]
    return pd.DataFrame(rows).assign(rho_raw_density=0.9)


@pytest.mark.parametrize(
    ("null", "value", "answer", "grade"),
    [
        ("", 0.0, NOT_SHOWN, "moderate"),
        (SHUFFLED, 0.2, SHOWN, "exploratory"),  # half of 0.3 and more, without 0
        (SHUFFLED, 0.14, NOT_SHOWN, "moderate"),  # less than half of it
        (ISOTROPIC, -0.3, NOT_SHOWN, "moderate"),  # the other sign
        (RANDOM, 0.3, SHOWN, "exploratory"),
    ],
)
def test_a_null_that_gives_the_same_caps_the_grade_and_is_named(null, value, answer, grade):
    own = pd.DataFrame([effect("a", 0.3), effect("b", 0.3)])
    effects = pd.DataFrame([*under("a", value, null), *under("b")])
    judged, nulls = judge_all(verdicts(("a", "moderate", 0.3), ("b", "strong", 0.3)), "r", own, effects, spreads())
    row = judged[judged["name"] == "a"].iloc[0]
    assert (row["nulls"], row["grade"]) == (answer, grade)
    assert row["nulls_that_show_it"] == (null if answer == SHOWN else "")
    other = judged[judged["name"] == "b"].iloc[0]
    assert (other["nulls"], other["grade"]) == (NOT_SHOWN, "strong")
    assert judged["name"].tolist() == ["b", "a"]  # the best grade first
    assert len(nulls) == 2 * len(ALL_NULLS)
    assert flagged(judged) == ["", IN_NULL if answer == SHOWN else ""]
    assert (null in in_words(judged)) == (answer == SHOWN) or not null


def test_random_weights_need_most_draws_or_the_spread():
    rows = under("a")
    rows[0]["effect"], rows[0]["low"], rows[0]["high"] = 0.3, 0.25, 0.35  # one draw of three
    own, table = pd.DataFrame([effect("a", 0.3)]), verdicts(("a", "moderate", 0.3))
    assert judge_all(table, "r", own, pd.DataFrame(rows), spreads())[0]["nulls"].item() == NOT_SHOWN
    far = spreads(FAR | {RANDOM: 0.06})
    judged, nulls = judge_all(table, "r", own, pd.DataFrame(rows), far)
    assert judged["nulls_that_show_it"].item() == RANDOM + BY_SPREAD
    assert nulls.set_index("null")["by_spread"][RANDOM]


@pytest.mark.parametrize("value", [0.1, -0.3])  # too small, or the other way
def test_a_sample_that_does_not_show_the_finding_cannot_clear_it(value):
    own, table = pd.DataFrame([effect("a", value)]), verdicts(("a", "moderate", 0.3))
    judged, _ = judge_all(table, "r", own, pd.DataFrame(under("a")), spreads())
    assert judged["nulls"].item() == UNSURE
    assert judged["grade"].item() == "moderate"
    assert UNSURE in in_words(judged)
    judged, _ = judge_all(table, "r", own, pd.DataFrame(under("a", 0.25, SHUFFLED)), spreads())
    assert judged["nulls"].item() == SHOWN


def test_an_effect_that_was_not_measured_under_nulls_says_so():
    own, table = pd.DataFrame([effect("b", 0.3)]), verdicts(("a", "moderate", 0.3), ("c", "none", float("nan")))
    judged, nulls = judge_all(table, "r", own, pd.DataFrame(under("b")), spreads())
    assert set(judged["nulls"]) == {NOT_RUN}
    assert nulls.empty
    assert set(judge_all(table, "r", pd.DataFrame(), pd.DataFrame(), pd.DataFrame())[0]["nulls"]) == {NOT_RUN}
    assert in_words(table) == ""


def test_shown_and_capped():
    assert shown({"effect": -0.3, "low": -0.4, "high": -0.2}, -0.5)
    assert not shown({"effect": -0.3, "low": -0.7, "high": 0.1}, -0.5)
    assert not shown({"effect": 0.0, "low": 0.1, "high": 0.2}, 0.0)
    assert [capped(grade, True) for grade in ("strong", "exploratory")] == ["exploratory", "exploratory"]
    assert capped("none", True) == "none"
    assert capped("strong", False) == "strong"
