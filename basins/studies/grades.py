"""The grade of a whole study, by rules that are written down before it runs."""

from __future__ import annotations

from typing import Any

from basins.experiments.null_verdicts import NOT_SHOWN, SHOWN
from basins.experiments.primary import IN_NULL, MODERATE_P, MODERATE_R, STRONG_P, STRONG_R
from basins.studies.hypotheses import ABOUT, counted_before

STUDY_GRADES = ("strong", "moderate", "exploratory", "weak")
SEVERAL = 2
RULES = (
    f"strong: some hypothesis has |r| > {STRONG_R} with corrected p < {STRONG_P} on two model sizes after the "
    f"confounds are removed, and nulls were run for it and none shows it; moderate: at least {SEVERAL} hypotheses have "
    f"|r| > {MODERATE_R} with corrected p < {MODERATE_P} by their part's rules, and nulls were run for them and none "
    "shows them; exploratory: something survives correction that no null is known to show; weak: nothing does. What "
    "robustness tests of importance counts once; properties of the scores themselves do not count"
)


def overall(table: Any) -> tuple[str, str]:
    """(grade, why) from the table of `hypotheses`."""
    counted = table[~counted_before(table) & (table["null"] != ABOUT)]
    artefact = (counted["null"] == SHOWN) | counted["flags"].str.contains(IN_NULL, regex=False)
    tested = (counted["null"] == NOT_SHOWN) & ~artefact
    strong = counted[(counted["grade"] == "strong") & tested]
    moderate = counted[counted["grade"].isin(("strong", "moderate")) & tested]
    unproven = counted[counted["grade"].isin(("strong", "moderate")) & ~tested & ~artefact]
    survivors = counted[counted["grade"] != "none"]
    real = survivors[~artefact.loc[survivors.index]]
    taken = f" {int(artefact.sum())} that a null shows too ({_nulls(counted[artefact])}) do not count."
    taken = taken if artefact.any() else ""
    if len(strong):
        return "strong", f"{_listed(strong)}: strong on two model sizes, and no null shows it.{taken}"
    if len(moderate) >= SEVERAL:
        return "moderate", f"{len(moderate)} hypotheses are moderate or better: {_listed(moderate)}.{taken}"
    if len(real):
        few = f" Moderate or better, and no null shows it: {_listed(moderate)}; the rules ask for {SEVERAL}."
        untested = f" Moderate or better, but without a null of its own: {_listed(unproven)}."
        said = f"{len(real)} of {len(counted)} hypotheses survive correction and no null is known to show them."
        return "exploratory", said + (few if len(moderate) else "") + (untested if len(unproven) else "") + taken
    if len(survivors):
        return "weak", (
            f"what survives correction ({_listed(survivors)}) is shown by a null too ({_nulls(survivors)})."
        )
    return "weak", f"none of {len(counted)} hypotheses survives correction.{taken}"


def _nulls(rows: Any) -> str:
    """The nulls that show some of the rows, each once."""
    names = (name for names in rows["nulls_that_show_it"] for name in str(names).split("; "))
    return ", ".join(dict.fromkeys(filter(None, names))) or "not named"


def _listed(rows: Any) -> str:
    return ", ".join(rows["name"])
