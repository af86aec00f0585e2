"""What the importance experiment's tables say: a grade for every method, and a paragraph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from basins.experiments.frames import where
from basins.experiments.loaded import layers_in_words
from basins.experiments.null_verdicts import SAMPLE_RULE, SHOWN
from basins.experiments.primary import (
    GRADES,
    MODERATE_P,
    MODERATE_R,
    PRIMARY,
    STRONG_P,
    STRONG_R,
)
from basins.experiments.primary import THRESHOLDS as BASE

if TYPE_CHECKING:
    import pandas as pd

THRESHOLDS = f"{BASE} {SAMPLE_RULE}"
COLUMNS = ("method", "grade", "layer", "partial", "low", "high", "p_corrected", "halves", "second_model", "direction")


def verdicts(correlations: pd.DataFrame, methods: list[str], models: list[str]) -> pd.DataFrame:
    """One row a method, the best grade first. The layer named is the one with the best grade, then the largest |r|."""
    import pandas as pd

    rows = [_judge(correlations, method, models) for method in methods]
    frame: Any = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
    order = frame["grade"].map(GRADES.index)
    return frame.assign(order=order, size=-frame["partial"].abs()).sort_values(["order", "size"], kind="stable")[
        list(COLUMNS)
    ].reset_index(drop=True)  # fmt: skip


def _judge(correlations: pd.DataFrame, method: str, models: list[str]) -> dict[str, Any]:
    first = _layers(correlations, method, models[0])
    if first.empty or first["partial"].isna().all():
        return dict.fromkeys(COLUMNS, float("nan")) | {
            "method": method,
            "grade": "none",
            "halves": False,
            "direction": "",
        }
    second = _layers(correlations, method, models[1]) if len(models) > 1 else None
    grades = [_grade(row, second) for row in first.to_dict("records")]
    first = first.assign(grade=grades)
    best = min(first.to_dict("records"), key=lambda row: (GRADES.index(row["grade"]), -abs(row["partial"])))
    found = {"method": method, "low": best["partial_low"], "high": best["partial_high"]}
    found |= {name: best[name] for name in ("grade", "layer", "partial", "p_corrected", "halves")}
    found["direction"] = "less compressed" if best["partial"] < 0 else "more compressed"
    found["second_model"] = _answer(best, second, MODERATE_R, MODERATE_P)
    return found


def _layers(correlations: pd.DataFrame, method: str, model: str) -> pd.DataFrame:
    """The primary rows of one method and model, with `halves`: the same direction and p < 0.05 in both halves."""
    rows = where(correlations, method=method, score=PRIMARY, model=model)
    whole = where(rows, part="all").set_index("layer")
    held = whole["partial"].notna()
    for part in ("half 1", "half 2"):
        half = where(rows, part=part).set_index("layer").reindex(whole.index)
        held &= (half["partial"] * whole["partial"] > 0) & (half["p"] < MODERATE_P)
    return whole.assign(halves=held).reset_index()


def _grade(row: dict[str, Any], second: pd.DataFrame | None) -> str:
    if not row["p_corrected"] < MODERATE_P:
        return "none"
    if not row["halves"] or not abs(row["partial"]) > MODERATE_R:
        return "exploratory"
    if abs(row["partial"]) > STRONG_R and row["p_corrected"] < STRONG_P:
        return "strong" if _answer(row, second, STRONG_R, STRONG_P) == "yes" else "moderate"
    return "moderate"


def _answer(row: dict[str, Any], second: pd.DataFrame | None, least: float, alpha: float) -> str:
    """Whether some layer of the second model shows the same, as large, in both halves."""
    if second is None:
        return "not run"
    same = second["partial"] * row["partial"] > 0
    shown = same & (second["partial"].abs() > least) & (second["p_corrected"] < alpha) & second["halves"]
    return "yes" if bool(shown.any()) else "no"


def read_out(
    correlations: pd.DataFrame, agreement: pd.DataFrame, judged: pd.DataFrame, settings: dict[str, Any]
) -> str:
    """The finding in a paragraph, also when there is none."""
    models = list(settings["models"])
    about = settings["models"][models[0]]
    parts = [
        f"{settings['question']} {about['tokens']:,} tokens of {about['clusters']} {about['cluster']}s, "
        f"{len(settings['methods'])} importance measures, {layers_in_words(settings['models'])}; relative "
        "re-run score, rank correlations with density, position, frequency, loss and state norm removed."
    ]
    counts: Any = judged["grade"].value_counts()
    best = judged.iloc[0]
    if counts.get("strong", 0) + counts.get("moderate", 0) == 0:
        n = int(counts.get("exploratory", 0))
        nothing = "No measure of importance is related to the relative score in a way that meets the thresholds. "
        if n:
            shown = "nulls" in judged and (judged["nulls"] == SHOWN).any()
            reasons = "are small or differ between the halves of the text"
            nothing += (
                f"{n} of {len(judged)} survive correction but {reasons}{', or a null shows them too' if shown else ''} "
                f"(largest: {best['method']}, {_number(best)})."
            )
        else:
            nothing += f"None of {len(judged)} survives correction for all layers, scores and measures."
        parts.append(nothing)
    else:
        for grade in ("strong", "moderate"):
            some = where(judged, grade=grade)
            if len(some):
                listed = "; ".join(f"{row['method']} {_number(row)}" for row in some.to_dict("records"))
                parts.append(f"{grade.capitalize()}: {listed}.")
        parts.append(_direction(judged))
    parts.append(_against_raw(correlations, models[0]))
    if len(agreement):
        parts.append(_truth(agreement, models[0]))
    if len(models) == 1:
        parts.append("There was no second model, so nothing can be called strong.")
    return " ".join(parts)


def _number(row: Any) -> str:
    """ "r = -0.31 [-0.35, -0.27] at layer 4, corrected p = 0.001"."""
    interval = f"[{row['low']:.2f}, {row['high']:.2f}]"
    return f"r = {row['partial']:.2f} {interval} at layer {int(row['layer'])}, corrected p = {row['p_corrected']:.2g}"


def _direction(judged: pd.DataFrame) -> str:
    held = judged[judged["grade"].isin(("strong", "moderate"))]
    less = int((held["partial"] < 0).sum())
    if less == len(held):
        return "All of them: tokens that matter are compressed less, as asked."
    if less == 0:
        return "All of them: tokens that matter are compressed more, the opposite of what was asked."
    return (
        f"They disagree in direction: {less} say that tokens that matter are compressed less, {len(held) - less} more."
    )


def _against_raw(correlations: pd.DataFrame, model: str) -> str:
    """How large the same correlations look for the raw score before the confounds are removed."""
    raw = where(correlations, model=model, part="all", score="raw")
    if raw.empty:
        return ""
    before, after = raw["rho"].abs().max(), raw["partial"].abs().max()
    return (
        f"The raw score, which mostly repeats the density before the block, reaches |rho| = {before:.2f} before and "
        f"{after:.2f} after density and the other confounds are removed."
    )


def _truth(agreement: pd.DataFrame, model: str) -> str:
    here: Any = where(agreement, model=model)
    rows = here.groupby("method")["rho"].mean().sort_values()
    if rows.dropna().empty:
        return ""
    rows = rows.dropna()
    return (
        f"Judged by ablation (mean rank correlation over layers), the best of the other measures is {rows.index[-1]} "
        f"({rows.iloc[-1]:.2f}) and the worst {rows.index[0]} ({rows.iloc[0]:.2f})."
    )
