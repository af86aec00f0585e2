"""One table of everything that was tested: a row a hypothesis, its size, its grade, and what speaks against it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from basins.experiments.frames import where
from basins.experiments.primary import GRADES, MODERATE_P, MODERATE_R, PRIMARY

if TYPE_CHECKING:
    import pandas as pd

    from basins.studies.parts import PartResult

COLUMNS = ("part", "name", "grade", "layer", "r", "low", "high", "p_corrected", "second_model", "null", "flags")
# An interval this wide cannot tell a moderate effect from none, nor from a strong one.
WIDE = 2 * MODERATE_R
NOISY, NOTHING = "too noisy", "nothing survives correction"
NOT_REPLICATED, CONFOUNDED = "does not replicate", "explained by frequency or position"
NULL = "a null shows it too"
BY_DENSITY = "explained by density"
# What a row says of nulls; ABOUT: a property of the scores themselves, which no grade counts.
NOT_RUN, SHOWN, NOT_SHOWN, ABOUT = "not run", "shows it too", "does not show it", "about the scores"
DESCRIBED = ("relative score follows density", "re-run differs from lookup", "raw score repeats density")
FLAGS = {
    NOISY: f"the 95% interval of r is wider than {WIDE:g}",
    NOTHING: f"corrected p is not below {MODERATE_P:g}",
    NOT_REPLICATED: "the second model, or one of two disjoint halves of the text, does not show the same",
    CONFOUNDED: f"|r| is above {MODERATE_R:g} before the confounds (frequency, position, density, loss, norm) are "
    "removed and less than half of that afterwards",
    BY_DENSITY: "the density before the block accounts for more than half of it",
    NULL: "the same effect appears where there is nothing to find: with random weights, or with neighbours or "
    "displacements that are not the token's own",
}
WITH_NULLS = ("layers", "robustness")
ANSWERS = {"yes": "agrees", "no": "differs", "-": "not run"}


def hypotheses(parts: list[PartResult]) -> pd.DataFrame:
    """All rows, part by part in the order of their grades. `flags` are separated by "; "."""
    import pandas as pd

    rows = [row for part in parts for row in _rows(part)]
    _carry_null(rows)
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
        if part.part.name not in WITH_NULLS:
            found = [row | {"null": NOT_RUN} for row in found]
    rows = [{"part": part.part.name, "null": NOT_RUN} | row for row in found]
    return sorted(rows, key=lambda row: GRADES.index(row["grade"]))


def _carry_null(rows: list[dict[str, Any]]) -> None:
    """What robustness found of one measure holds for the importance experiment's row of it too."""
    for tested in [row for row in rows if row["part"] == "robustness"]:
        method = tested["name"].removeprefix("relative score and ")
        for row in rows:
            if row["part"] == "importance" and row["name"] == f"{method} and compression":
                row["null"] = tested["null"]
                if tested["null"] == SHOWN:
                    row["flags"] = "; ".join(flag for flag in (row["flags"], NULL) if flag)


def _importance(row: dict[str, Any], correlations: Any, part: PartResult) -> dict[str, Any]:
    found = _numbers(row, "partial") | {"name": f"{row['method']} and compression", "grade": row["grade"]}
    found["second_model"] = ANSWERS.get(row["second_model"], "not run")
    model = next(iter(part.manifest["models"]))
    same = where(correlations, model=model, method=row["method"], layer=row["layer"])
    before = float(same["rho"].iloc[0]) if len(same) else math.nan
    flags = flags_of(found)
    if row["halves"] is False and NOT_REPLICATED not in flags and NOTHING not in flags:
        flags.append(NOT_REPLICATED)
    if abs(before) > MODERATE_R and abs(found["r"]) < abs(before) / 2:
        flags.append(CONFOUNDED)
    return found | {"flags": "; ".join(flags)}


def _memorization(row: dict[str, Any]) -> dict[str, Any]:
    found = _numbers(row, "r") | {"name": row["contrast"], "grade": row["grade"]}
    found["second_model"] = ANSWERS.get(row["second_model"], "not run")
    flags = flags_of(found)
    if row["grade"] != "none" and not row["adds_p"] < MODERATE_P:
        flags.append("adds nothing to the loss")
    if row["fair"] == "no":
        flags.append("words alone tell the texts apart")
    return found | {"flags": "; ".join(flags)}


def _given(row: dict[str, Any]) -> dict[str, Any]:
    found = _numbers(row, "r") | {name: row[name] for name in ("name", "grade", "second_model")}
    own = [flag for flag in str(row.get("flags") or "").split("; ") if flag]
    null = ABOUT if row["name"] in DESCRIBED else SHOWN if NULL in own else NOT_SHOWN
    if row["name"] in DESCRIBED[-1:]:
        return found | {"null": null, "flags": ""}
    return found | {"null": null, "flags": "; ".join(dict.fromkeys([*own, *flags_of(found)]))}


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
