"""What the memorisation experiment's tables say: a grade for every contrast, and a paragraph."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from basins.experiments.frames import where
from basins.experiments.memorization_tables import PRIMARY
from basins.experiments.null_verdicts import SAMPLE_RULE
from basins.experiments.primary import GRADES, MODERATE_P, MODERATE_R, STRONG_P, STRONG_R

if TYPE_CHECKING:
    import pandas as pd

THRESHOLDS = (
    f"strong: point-biserial |r| > {STRONG_R} of the mean relative re-run score at some layer with corrected p < "
    f"{STRONG_P} on both models, in the same direction, and compression adds to the loss baselines on both (difference "
    f"in cross-validated AUROC above 0, corrected p < {MODERATE_P}); moderate: |r| > {MODERATE_R} with corrected p < "
    f"{MODERATE_P}, and compression adds on the first model; exploratory: corrected p < {MODERATE_P} but small, or it "
    "adds nothing that the loss does not say; none: nothing survives correction. "
    f"{SAMPLE_RULE}"
)
COLUMNS = (
    *("contrast", "grade", "n_positive", "n_negative", "layer", "r", "low", "high", "hedges_g", "p_corrected"),
    *("auroc", "auroc_loss", "adds", "adds_low", "adds_high", "adds_p", "second_model", "fair"),
)


def verdicts(tests: pd.DataFrame, added: pd.DataFrame, blind: pd.DataFrame, models: list[str]) -> pd.DataFrame:
    """One row a contrast, the best grade first."""
    import pandas as pd

    contrasts = list(dict.fromkeys(where(tests, model=models[0])["contrast"]))
    rows = [_judge(tests, added, blind, contrast, models) for contrast in contrasts]
    frame: Any = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
    return frame.sort_values("grade", key=lambda grades: grades.map(GRADES.index), kind="stable").reset_index(drop=True)


def _judge(tests: Any, added: Any, blind: Any, contrast: str, models: list[str]) -> dict[str, Any]:
    layers, adds = _of(tests, added, contrast, models[0])
    fair = where(blind, model=models[0], contrast=contrast)["unfair"].tolist()
    said = {"contrast": contrast, "fair": "-" if not fair or fair[0] is None else "no" if fair[0] else "yes"}
    if layers.empty or layers["r"].isna().all():
        counts = layers.iloc[0][["n_positive", "n_negative"]].to_dict() if len(layers) else {}
        return dict.fromkeys(COLUMNS, math.nan) | said | counts | {"grade": "none", "second_model": "-"}
    best = layers.loc[layers["r"].abs().idxmax()].to_dict()
    loss = where(tests, model=models[0], contrast=contrast, name="loss")["auroc"].item()
    found = {
        name: best[name] for name in ("n_positive", "n_negative", "layer", "r", "hedges_g", "p_corrected", "auroc")
    }
    found |= {"low": best["r_low"], "high": best["r_high"], "auroc_loss": loss}
    found |= {
        "adds": adds["estimate"],
        "adds_low": adds["low"],
        "adds_high": adds["high"],
        "adds_p": adds["p_corrected"],
    }
    second = _second(tests, added, contrast, models, best["r"])
    return said | found | {"grade": _grade(found, second), "second_model": second}


def _of(tests: Any, added: Any, contrast: str, model: str) -> tuple[Any, dict[str, float]]:
    """The primary rows of a contrast, and what compression adds to the baselines in it."""
    layers = where(tests, model=model, contrast=contrast, measure=PRIMARY)
    rows = where(added, model=model, contrast=contrast, sample="all", name="compression adds")
    nothing: dict[str, float] = dict.fromkeys(("estimate", "low", "high", "p_corrected"), math.nan)
    return layers, rows.iloc[0].to_dict() if len(rows) else nothing


def _adds(found: dict[str, float], estimate: str = "adds", p: str = "adds_p") -> bool:
    return found[estimate] > 0 and found[p] < MODERATE_P


def _second(tests: Any, added: Any, contrast: str, models: list[str], r: float) -> str:
    """Whether the second model shows the same, as strong: "yes", "no", "not run"."""
    if len(models) < 2:
        return "not run"
    layers, adds = _of(tests, added, contrast, models[1])
    same = (layers["r"] * r > 0) & (layers["r"].abs() > STRONG_R) & (layers["p_corrected"] < STRONG_P)
    return "yes" if bool(same.any()) and _adds(adds, "estimate", "p_corrected") else "no"


def _grade(found: dict[str, float], second: str) -> str:
    if not found["p_corrected"] < MODERATE_P:
        return "none"
    if abs(found["r"]) > STRONG_R and found["p_corrected"] < STRONG_P and _adds(found) and second == "yes":
        return "strong"
    return "moderate" if abs(found["r"]) > MODERATE_R and _adds(found) else "exploratory"


def read_out(found: dict[str, Any], settings: dict[str, Any]) -> str:
    """The findings in a paragraph, also when there are none."""
    models = list(settings["models"])
    judged = found["verdicts"]
    parts = [f"{settings['question']} {settings['passages']}: {settings['about']}. Models: {', '.join(models)}."]
    for row in judged.to_dict("records"):
        parts.append(_sentence(row))
    best = _best_measures(where(found["tests"], model=models[0]))
    if best:
        parts.append(best)
    spans = where(found["spans"], model=models[0], score="relative")
    if len(spans) and spans["partial"].notna().any():
        top = spans.loc[spans["partial"].abs().idxmax()]
        seen = "visible" if top["p_corrected"] < MODERATE_P else "not visible beyond chance"
        parts.append(
            f"Within passages, memorised spans are {seen} in the relative score (largest partial rank correlation "
            f"{top['partial']:.2f} at layer {int(top['layer'])}, corrected p = {top['p_corrected']:.2g})."
        )
    if len(models) == 1:
        parts.append("There was no second model, so nothing can be called strong.")
    return " ".join(parts)


def _sentence(row: dict[str, Any]) -> str:
    name = row["contrast"][0].upper() + row["contrast"][1:]
    if row["r"] != row["r"]:
        n = row["n_positive"]
        few = f" ({int(n)} passages count as memorised)" if n == n else ""
        return f"{name}: nothing can be said{few}."
    counts = f"{name} ({int(row['n_positive'])} against {int(row['n_negative'])}): {row['grade']}."
    size = (
        f"r = {row['r']:.2f} [{row['low']:.2f}, {row['high']:.2f}] at layer {int(row['layer'])}, corrected p = "
        f"{row['p_corrected']:.2g}; AUROC {row['auroc']:.2f}, that of the loss {row['auroc_loss']:.2f}"
    )
    if row["grade"] == "none":
        said = f"{counts} No difference in compression is shown (largest {size})."
    else:
        said = f"{counts} They are compressed {'more' if row['r'] > 0 else 'less'} ({size})."
        if row["second_model"] == "no":
            said += " The second model does not show the same."
    if row["auroc_loss"] == 1:
        said += " The loss alone separates them perfectly, so nothing could add to it."
    elif row["adds"] == row["adds"]:
        adds = "Compression adds to the loss baselines" if _adds(row) else "Compression adds nothing shown to the loss"
        said += f" {adds}: {row['adds']:+.3f} AUROC [{row['adds_low']:+.3f}, {row['adds_high']:+.3f}]."
    if row["fair"] == "no":
        said += " The comparison is unfair: words alone tell these texts apart."
    return said


def _best_measures(tests: Any) -> str:
    """The density alone beside the raw score, which nearly equals it."""
    rows = tests[tests["measure"].isin(("raw_mean", "density_mean"))]
    if rows.empty:
        return ""
    first = rows["contrast"].iloc[0]
    areas = where(rows, contrast=first).dropna(subset=["auroc"]).groupby("measure")["auroc"]
    areas = areas.agg(lambda values: values.loc[(values - 0.5).abs().idxmax()])
    if len(areas) < 2:
        return ""
    raw, density = f"{areas['raw_mean']:.2f}", f"{areas['density_mean']:.2f}"
    return (
        f"The raw score's AUROC furthest from 0.5 ({first}) is {raw}, that of the density before the block alone "
        f"{density}: a raw difference is mostly one of density."
    )
