"""One table of everything that was tested: a row a hypothesis, its size, its grade, and what speaks against it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from basins.experiments.frames import where
from basins.experiments.layers_words import DESCRIPTION, HYPOTHESES
from basins.experiments.null_verdicts import BY_SPREAD, NOT_RUN, SHOWN, capped
from basins.experiments.primary import (
    BY_DENSITY,
    BY_PLACE,
    GRADES,
    IN_NULL,
    MODERATE_P,
    MODERATE_R,
    NOISY,
    NOT_REPLICATED,
    NOTHING,
    PRIMARY,
    WIDE,
)

if TYPE_CHECKING:
    import pandas as pd

    from basins.studies.parts import PartResult

COLUMNS = (
    *("part", "name", "grade", "layer", "r", "low", "high", "p_corrected", "second_model"),
    *("null", "nulls_that_show_it", "flags"),
)
CONFOUNDED = "explained by the confounds"
NOTHING_ADDED, UNFAIR = "adds nothing to the loss", "words alone tell the texts apart"
# What a row says of nulls beside what `null_verdicts` says: a property of the scores themselves, which no grade counts.
ABOUT = "about the scores"
DESCRIBED = (*HYPOTHESES[1:], DESCRIPTION)
FLAGS = {
    NOISY: f"the 95% interval of r is wider than {WIDE:g}; in robustness: the error of a token's score over its "
    "neighbours is more than half of the scores' variance",
    NOTHING: f"corrected p is not below {MODERATE_P:g}",
    NOT_REPLICATED: "the second model, or one of two disjoint halves of the text, does not show the same",
    CONFOUNDED: f"|r| is above {MODERATE_R:g} before frequency, position, density, loss and norm are removed and less "
    "than half of that afterwards",
    BY_PLACE: "removing token frequency and position takes more than half of it",
    BY_DENSITY: "removing the density before the block takes more than half of it",
    IN_NULL: "the same effect appears where there is nothing to find: with random weights, or with neighbours or "
    f"displacements that are not the token's own; where a null is named with{BY_SPREAD}: not the effect, but relative "
    "scores spread at least half as far there",
    NOTHING_ADDED: "the loss baselines tell the passages apart as well without compression",
    UNFAIR: "a classifier that never sees the model does, so the groups differ in more than memory",
}
OF_MEASURE = " and compression"
ANSWERS = {"yes": "agrees", "no": "differs", "-": "not run"}


def hypotheses(parts: list[PartResult]) -> pd.DataFrame:
    """All rows, part by part in the order of their grades. `flags` are separated by "; "."""
    import pandas as pd

    rows = [row for part in parts for row in _rows(part)]
    for part in parts:
        if part.part.name == "robustness":
            _carry_null(rows, part.manifest["measure"])
    return pd.DataFrame(rows, columns=pd.Index(COLUMNS))


def _rows(part: PartResult) -> list[dict[str, Any]]:
    judged = part.table("verdicts")
    if part.part.name == "importance":
        correlations = where(part.table("correlations"), part="all", score=PRIMARY)
        found = [_importance(row, correlations, part) for row in judged.to_dict("records")]
    elif part.part.name == "memorization":
        found = [_memorization(row) for row in judged.to_dict("records")]
    else:
        found = [_given(row) for row in judged.to_dict("records")]
    rows = [{"part": part.part.name} | row for row in found]
    return sorted(rows, key=lambda row: GRADES.index(row["grade"]))


def _carry_null(rows: list[dict[str, Any]], measure: str) -> None:
    """What robustness found a null to show of one importance measure holds for the importance experiment's row too."""
    [tested] = [row for row in rows if row["part"] == "robustness"]
    for row in rows:
        if row["part"] == "importance" and row["name"] == _of_measure(measure) and tested["null"] == SHOWN:
            names = [*row["nulls_that_show_it"].split("; "), *tested["nulls_that_show_it"].split("; ")]
            # One that shows it by the effect is not named again for its spread.
            names = [
                name for name in names if not name.endswith(BY_SPREAD) or name.removesuffix(BY_SPREAD) not in names
            ]
            row |= {"null": SHOWN, "nulls_that_show_it": "; ".join(dict.fromkeys(filter(None, names)))}
            row["grade"] = capped(row["grade"], True)
            row["flags"] = _joined([*row["flags"].split("; "), IN_NULL])


def counted_before(table: pd.DataFrame) -> pd.Series:
    """Rows of robustness whose hypothesis is an importance row of the same table."""
    named = {f"relative score and {name.removesuffix(OF_MEASURE)}" for name in where(table, part="importance")["name"]}
    return (table["part"] == "robustness") & table["name"].isin(named)


def _of_measure(method: str) -> str:
    return method + OF_MEASURE


def _importance(row: dict[str, Any], correlations: Any, part: PartResult) -> dict[str, Any]:
    found = _numbers(row, "partial") | {"name": _of_measure(row["method"]), "grade": row["grade"]}
    found |= _nulls(row) | {"second_model": ANSWERS.get(row["second_model"], "not run")}
    model = next(iter(part.manifest["models"]))
    same = where(correlations, model=model, method=row["method"], layer=row["layer"])
    before = float(same["rho"].iloc[0]) if len(same) else math.nan
    flags = flags_of(found)
    if row["halves"] is False and NOT_REPLICATED not in flags and NOTHING not in flags:
        flags.append(NOT_REPLICATED)
    if abs(before) > MODERATE_R and abs(found["r"]) < abs(before) / 2:
        flags.append(CONFOUNDED)
    return found | {"flags": _joined([*flags, *_null_flag(found)])}


def _memorization(row: dict[str, Any]) -> dict[str, Any]:
    found = _numbers(row, "r") | {"name": row["contrast"], "grade": row["grade"]}
    found |= _nulls(row) | {"second_model": ANSWERS.get(row["second_model"], "not run")}
    flags = flags_of(found)
    if row["grade"] != "none" and not row["adds_p"] < MODERATE_P:
        flags.append(NOTHING_ADDED)
    if row["fair"] == "no":
        flags.append(UNFAIR)
    return found | {"flags": _joined([*flags, *_null_flag(found)])}


def _given(row: dict[str, Any]) -> dict[str, Any]:
    found = _numbers(row, "r") | {name: row[name] for name in ("name", "grade", "second_model")} | _nulls(row)
    own = [flag for flag in str(row.get("flags") or "").split("; ") if flag]
    if row["name"] in DESCRIBED:
        found |= {"null": ABOUT, "nulls_that_show_it": ""}
    if row["name"] == DESCRIPTION:  # it has no test
        return found | {"flags": ""}
    return found | {"flags": _joined([*own, *flags_of(found)])}


def _nulls(row: dict[str, Any]) -> dict[str, Any]:
    """What an experiment's own nulls said of a row."""
    return {"null": row.get("nulls", NOT_RUN), "nulls_that_show_it": row.get("nulls_that_show_it", "")}


def _null_flag(found: dict[str, Any]) -> list[str]:
    return [IN_NULL] if found["null"] == SHOWN else []


def _joined(flags: list[str]) -> str:
    return "; ".join(dict.fromkeys(filter(None, flags)))


def _numbers(row: dict[str, Any], r: str) -> dict[str, Any]:
    return {"r": row[r]} | {name: row[name] for name in ("layer", "low", "high", "p_corrected")}


def flags_of(row: dict[str, Any]) -> list[str]:
    """The red flags that its numbers alone raise."""
    found = []
    if row["high"] - row["low"] > WIDE:
        found.append(NOISY)
    if not row["p_corrected"] < MODERATE_P:
        found.append(NOTHING)
    elif row["second_model"] == "differs":
        found.append(NOT_REPLICATED)
    return found
