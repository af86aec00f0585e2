"""What the robustness experiment states before it runs, and what its tables say: flags, a grade, a paragraph."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from basins.experiments.frames import where
from basins.experiments.null_verdicts import RULE, SHARE, answer, capped, shown, that_show
from basins.experiments.primary import (
    BY_DENSITY,
    BY_PLACE,
    IN_NULL,
    MODERATE_P,
    MODERATE_R,
    NOISY,
    NOT_REPLICATED,
    NOTHING,
    PRIMARY,
    STRONG_P,
    STRONG_R,
)
from basins.experiments.primary import THRESHOLDS as BASE
from basins.experiments.robustness_variations import HALVES
from basins.experiments.under_nulls import MEANINGS, RANDOM, TRAINED

if TYPE_CHECKING:
    import pandas as pd

# Above this share of the scores' variance the neighbours' own sampling drowns them.
NOISE = 0.5
THRESHOLDS = (
    f"{BASE} {RULE} Flags: too noisy, if the mean squared jackknife error of the tested tokens exceeds half of the "
    "scores' variance at the layer; "
    "explained by density, or by frequency or position, if removing it takes more than half of an effect whose "
    "interval excludes 0."
)
FLAGS = {
    "noise": NOISY,
    "nothing": NOTHING,
    "replication": NOT_REPLICATED,
    "place": BY_PLACE,
    "density": BY_DENSITY,
    "null": IN_NULL,
}


def verdict(
    name: str,
    row: dict[str, Any],
    varied: pd.DataFrame,
    nulls: pd.DataFrame,
    removed: dict[str, dict[str, Any]],
    noise: float,
    second: pd.DataFrame | None,
) -> pd.DataFrame:
    """One row: the finding at its layer, with everything that speaks for and against it.

    `row`: the default's. `varied`: the variations' relative effects at the layer. `removed`: what is removed -> the
    effect with that left in. `second`: the default's relative effects of the second model, with its `halves`.
    """
    import pandas as pd

    effect = row["effect"]
    halves = _both_halves(varied, effect)
    settings = where(varied, kind="setting")
    settings = settings[settings["effect"].notna()]
    kept = sum(shown(other, effect) for other in settings.to_dict("records"))
    replicated = _answer(row, second, 0.0, MODERATE_P)
    same = that_show(nulls)
    grade = capped(_grade(row, halves, second), bool(same))
    found = {
        "noise": noise > NOISE,
        "nothing": not row["p_corrected"] < MODERATE_P,
        "replication": not halves or replicated == "differs",
        "place": _explained(effect, removed["frequency and position"]),
        "density": _explained(effect, removed["density"]),
        "null": bool(same),
    }
    said: dict[str, Any] = {"name": name, "grade": grade, "layer": row["layer"], "r": effect}
    said |= {key: row[key] for key in ("low", "high", "p_corrected")}
    said |= {"second_model": replicated, "halves": halves, "settings_that_keep_it": f"{kept} of {len(settings)}"}
    said |= {"nulls": answer(bool(same), True), "nulls_that_show_it": "; ".join(same)}
    said |= {"flags": "; ".join(FLAGS[key] for key in FLAGS if found[key])}
    return pd.DataFrame([said])


def _both_halves(varied: pd.DataFrame, effect: float) -> bool:
    rows = [where(varied, variation=half) for half in HALVES]
    return all(
        len(half) > 0 and half["effect"].iloc[0] * effect > 0 and half["p"].iloc[0] < MODERATE_P for half in rows
    )


def _grade(row: dict[str, Any], halves: bool, second: pd.DataFrame | None) -> str:
    size, p = abs(row["effect"]), row["p_corrected"]
    if not p < MODERATE_P:
        return "none"
    if not halves or not size > MODERATE_R:
        return "exploratory"
    strong = size > STRONG_R and p < STRONG_P and _answer(row, second, STRONG_R, STRONG_P) == "agrees"
    return "strong" if strong else "moderate"


def _answer(row: dict[str, Any], second: pd.DataFrame | None, least: float, alpha: float) -> str:
    """Whether some layer of the second model shows the same sign, large enough, corrected, in both halves there."""
    if second is None or second.empty:
        return "not run"
    same = (second["effect"] * row["effect"] > 0) & (second["effect"].abs() > least)
    return "agrees" if bool((same & (second["p_corrected"] < alpha) & second["halves"]).any()) else "differs"


def _explained(effect: float, left_in: dict[str, Any]) -> bool:
    """Whether removing a confound takes more than half of an effect whose interval excludes 0."""
    large = left_in["low"] > 0 or left_in["high"] < 0
    return bool(large and effect * left_in["effect"] < SHARE * left_in["effect"] ** 2)


def read_out(tables: dict[str, Any], judged: pd.DataFrame, settings: dict[str, Any], noise: float) -> str:
    """The finding in a paragraph, also when there is none."""
    row: dict[str, Any] = judged.iloc[0].to_dict()
    name = next(iter(settings["models"]))
    about = settings["models"][name]
    layer, measure = int(row["layer"]), settings["measure"]
    r = f"r = {row['r']:.2f} [{row['low']:.2f}, {row['high']:.2f}], corrected p = {row['p_corrected']:.2g}"
    parts = [
        f"{settings['question']} The finding: the relative re-run score and {measure} at layer {layer}"
        f"{' (the layer where it is largest)' if settings['layer_chosen'] else ''} of {name}, rank correlation with "
        f"the other confounds removed, {about['tokens']:,} tokens: {r}."
    ]
    nulls, varied = tables["nulls"], where(tables["effects"], model=name, layer=layer, score=PRIMARY)
    if row["grade"] == "none":
        parts.append("It does not survive correction, so there is no finding to defend.")
    same = nulls[nulls["shows"]] if len(nulls) else nulls
    if len(same):
        parts.append("It is an artefact in this sense: " + "; ".join(map(_null_words, same.to_dict("records"))) + ".")
    else:
        parts.append("None of the nulls shows it.")
    parts.append(_variation_words(varied, tables["agreement"], name, row))
    parts.append(_token_words(tables["token_tests"], tables["spreads"], layer, noise))
    if row["second_model"] == "not run":
        why = [about["not_run"] for about in settings["models"].values() if "not_run" in about]
        said = f"The second model could not be compared ({why[0]})" if why else "There was no second model"
        parts.append(f"{said}, so nothing can be called strong.")
    else:
        parts.append(f"The second model {row['second_model']}.")
    if row["flags"]:
        parts.append(f"Flags: {row['flags']}.")
    return " ".join(parts)


def _null_words(row: dict[str, Any]) -> str:
    why = f"{row['null']} give {row['effect']:.2f} ({MEANINGS[row['null']]})"
    if row["by_spread"]:
        why += f", and scores spread {row['spread_of_default']:.0%} as far"
    return why


def _variation_words(varied: Any, agreement: Any, model: str, row: dict[str, Any]) -> str:
    lost = [
        f"{other['variation']} ({other['effect']:.2f})"
        for other in varied[varied["kind"] != "default"].to_dict("records")
        if not math.isnan(other["effect"]) and not shown(other, row["r"])
    ]
    words = f"{row['settings_that_keep_it']} changed settings keep it"
    words += f"; lost or less than half under: {', '.join(lost)}." if lost else "."
    ranks = where(agreement, model=model, kind="setting").groupby("variation", sort=False)[PRIMARY].median().dropna()
    if len(ranks):
        words += (
            f" Token scores rank as by default least under {ranks.idxmin()} (median rho over layers "
            f"{ranks.min():.2f}); half of the settings give {ranks.median():.2f} or more."
        )
    return words


def _token_words(tests: Any, spreads: Any, layer: int, noise: float) -> str:
    words = ""
    here = where(tests, layer=layer)
    if len(here):
        found = int((here["p_corrected"] < MODERATE_P).sum())
        words = (
            f"{found} of {len(here)} tested tokens differ from their transplanted null (corrected p < {MODERATE_P}); "
            f"the jackknife error is {noise:.0%} of the scores' variance. "
        )
    own, untrained = where(spreads, null=TRAINED), where(spreads, null=RANDOM)
    if untrained.empty:
        return words.strip()
    return words + (
        f"Relative scores spread {own['iqr'].min():.3f} to {own['iqr'].max():.3f} (IQR over layers), under random "
        f"weights {untrained['iqr'].min():.3f} to {untrained['iqr'].max():.3f}; raw against density {_range(own)} and "
        f"{_range(untrained)}."
    )


def _range(spreads: Any) -> str:
    return f"{spreads['rho_raw_density'].min():.2f} to {spreads['rho_raw_density'].max():.2f}"
