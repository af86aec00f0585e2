"""The grade of a whole study, by rules that are written down before it runs."""

from __future__ import annotations

from typing import Any

from basins.experiments.primary import MODERATE_P, MODERATE_R, STRONG_P, STRONG_R
from basins.studies.hypotheses import NULL

STUDY_GRADES = ("strong", "moderate", "exploratory", "weak")
SEVERAL = 2
RULES = (
    f"strong: some hypothesis has |r| > {STRONG_R} with corrected p < {STRONG_P} on two model sizes after the "
    f"confounds are removed, and no null shows it too; moderate: at least {SEVERAL} hypotheses have |r| > {MODERATE_R} "
    f"with corrected p < {MODERATE_P} by their part's rules, and no null shows them too; exploratory: something "
    "survives correction; weak: nothing does, or all that does is shown by a null too."
)


def overall(table: Any) -> tuple[str, str]:
    """(grade, why) from the table of `hypotheses`."""
    artefact = table["flags"].str.contains(NULL, regex=False)
    strong = table[(table["grade"] == "strong") & ~artefact]
    moderate = table[table["grade"].isin(("strong", "moderate")) & ~artefact]
    survivors = table[table["grade"] != "none"]
    real = survivors[~artefact.loc[survivors.index]]
    taken = f" {int(artefact.sum())} that a null shows too do not count." if artefact.any() else ""
    if len(strong):
        return "strong", f"{_listed(strong)} meets the rules for strong, on two model sizes.{taken}"
    if len(moderate) >= SEVERAL:
        return "moderate", f"{len(moderate)} hypotheses are moderate or better: {_listed(moderate)}.{taken}"
    if len(real):
        few = f" One is moderate ({_listed(moderate)}); the rules ask for {SEVERAL}." if len(moderate) else ""
        return (
            "exploratory",
            f"{len(real)} of {len(table)} hypotheses survive correction, none of them strong.{few}{taken}",
        )
    if len(survivors):
        return "weak", f"what survives correction ({_listed(survivors)}) is shown by a null too."
    return "weak", f"none of {len(table)} hypotheses survives correction."


def _listed(rows: Any) -> str:
    return ", ".join(rows["name"])
