"""What the layers experiment's tables say: a grade for every hypothesis, and a paragraph."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from basins.experiments.frames import where
from basins.experiments.loaded import layers_in_words
from basins.experiments.null_verdicts import NOT_RUN, answer
from basins.experiments.primary import (
    BY_DENSITY,
    GRADES,
    IN_NULL,
    MODERATE_P,
    MODERATE_R,
    NOISY,
    NOT_REPLICATED,
    NOTHING,
    PRIMARY,
    STRONG_P,
    STRONG_R,
    WIDE,
)
from basins.experiments.under_nulls import RANDOM

if TYPE_CHECKING:
    import pandas as pd

HYPOTHESES = ("relative score changes with depth", "relative score follows density", "re-run differs from lookup")
DESCRIPTION = "raw score repeats density"
AGREES, DIFFERS = "agrees", "differs"
THRESHOLDS = (
    f"strong: |r| > {STRONG_R} with corrected p < {STRONG_P} on both models, in the same direction; moderate: |r| > "
    f"{MODERATE_R} with corrected p < {MODERATE_P}, and not the opposite on the second model; exploratory: corrected p "
    f"< {MODERATE_P} but smaller, too noisy, not the same on the second model, explained by density, or shown as well "
    "(in the same direction, at least half as large, at any layer) by the architecture with random weights; none: "
    "nothing survives correction. p holds over all layers and the three hypotheses. r is, of depth, the mean over "
    "tokens of the rank correlation of layer and score, with the larger of two p (signs of whole sequences turned; "
    "layers in another order, for all tokens share the same few layers); of density, the rank correlation that is left "
    "when position and frequency are removed; of re-run against lookup, the rank-biserial correlation of matched pairs "
    f'(against random weights: their mean difference). "{DESCRIPTION}" is a property of the raw score that is '
    "described, not a finding, and has no grade."
)


def verdicts(found: dict[str, Any], models: list[str], null: str) -> pd.DataFrame:
    """One row a hypothesis, the best grade first; the description last."""
    import pandas as pd

    rows = [_judge(name, found, models, null) for name in HYPOTHESES]
    order = sorted(rows, key=lambda row: (GRADES.index(row["grade"]), -abs(row["r"]) if row["r"] == row["r"] else 0))
    return pd.DataFrame([*order, _describe(found, models, null)])


def _candidates(name: str, found: dict[str, Any], model: str) -> Any:
    """A hypothesis's rows of one model, with columns layer, r, low, high, p_corrected (not yet over hypotheses)."""
    import pandas as pd

    if name == HYPOTHESES[0]:
        rows: Any = where(found["trends"], model=model, quantity=PRIMARY)
        return rows.assign(layer=math.nan, p_corrected=rows["p"])
    if name == HYPOTHESES[1]:
        if not len(found["correlations"]):
            return pd.DataFrame()
        rows = where(found["correlations"], model=model, score=PRIMARY)
        return where(rows, **{"with": "density"}).assign(r=lambda table: table["partial"])
    return where(found["differences"], model=model)


def _judge(name: str, found: dict[str, Any], models: list[str], null: str) -> dict[str, Any]:
    rows = [row for row in _candidates(name, found, models[0]).to_dict("records") if row["r"] == row["r"]]
    if not rows:
        empty: dict[str, Any] = {"name": name, "grade": "none"} | dict.fromkeys(("layer", "r", "low", "high"), math.nan)
        return empty | {"p_corrected": math.nan, "second_model": NOT_RUN, "flags": NOISY} | _nulls([], False)
    best = max(rows, key=lambda row: abs(row["r"]))
    verdict: dict[str, Any] = {"name": name, "grade": "none"}
    verdict |= {column: best[column] for column in ("layer", "r", "low", "high")}
    verdict["p_corrected"] = min(1.0, len(HYPOTHESES) * best["p_corrected"])
    depth = _deepest(found, models[0])
    second = _nearest(name, found, models[1], best["layer"], depth) if len(models) > 1 else None
    verdict["second_model"] = NOT_RUN if second is None else (AGREES if _same(best, second) else DIFFERS)
    flags = []
    if not best["high"] - best["low"] <= WIDE:
        flags.append(NOISY)
    if not verdict["p_corrected"] < MODERATE_P:
        flags.append(NOTHING)
    if verdict["second_model"] == DIFFERS:
        flags.append(NOT_REPLICATED)
    if name == HYPOTHESES[0] and _by_density(best, found, models[0]):
        flags.append(BY_DENSITY)
    # Of pairs r says only how often the difference is above 0; how large it is tells models apart.
    size = "mean" if name == HYPOTHESES[2] else "r"
    untrained = [row[size] for row in _candidates(name, found, null).to_dict("records")]
    shows = any(value * best[size] > 0 and abs(value) >= abs(best[size]) / 2 for value in untrained)
    flags += [IN_NULL] if shows else []
    return verdict | {"grade": _grade(verdict, flags, second), "flags": "; ".join(flags)} | _nulls(untrained, shows)


def _nulls(untrained: list[float], shows: bool) -> dict[str, str]:
    """What the only null here, random weights, said."""
    return {"nulls": answer(shows, True) if untrained else NOT_RUN, "nulls_that_show_it": RANDOM if shows else ""}


def _deepest(found: dict[str, Any], model: str) -> int:
    return int(where(found["profile"], model=model)["layer"].max())


def _nearest(name: str, found: dict[str, Any], model: str, layer: float, depth: int) -> dict[str, Any] | None:
    """The other model's row at the same relative depth."""
    rows = [row for row in _candidates(name, found, model).to_dict("records") if row["r"] == row["r"]]
    if not rows or math.isnan(layer):
        return rows[0] if rows else None
    other = max(1, _deepest(found, model))
    return min(rows, key=lambda row: abs(row["layer"] / other - layer / max(1, depth)))


def _same(best: dict[str, Any], second: dict[str, Any]) -> bool:
    """The same direction, not negligible, and an interval on one side of 0."""
    return second["r"] * best["r"] > 0 and abs(second["r"]) > MODERATE_R and second["low"] * second["high"] > 0


def _by_density(best: dict[str, Any], found: dict[str, Any], model: str) -> bool:
    """Half of the trend or more is gone once what density predicts is taken out of the score."""
    left = where(found["trends"], model=model, quantity=f"{PRIMARY}, density out")["r"]
    return bool(len(left)) and not float(left.iloc[0]) / best["r"] > 0.5


def _grade(verdict: dict[str, Any], flags: list[str], second: dict[str, Any] | None) -> str:
    if NOTHING in flags:
        return "none"
    if flags or not abs(verdict["r"]) > MODERATE_R:
        return "exploratory"
    shown = second is not None and abs(second["r"]) > STRONG_R
    shown = shown and second is not None and len(HYPOTHESES) * second["p_corrected"] < STRONG_P
    large = abs(verdict["r"]) > STRONG_R and verdict["p_corrected"] < STRONG_P
    return "strong" if large and shown else "moderate"


def _raw(found: dict[str, Any], model: str) -> Any:
    rows = found["correlations"]
    return where(rows, model=model, score="raw", **{"with": "density"}) if len(rows) else rows


def _describe(found: dict[str, Any], models: list[str], null: str) -> dict[str, Any]:
    """The layer in the middle of those ranked by how closely raw follows density; no test."""
    row: dict[str, Any] = {"name": DESCRIPTION, "grade": "none"} | dict.fromkeys(
        ("layer", "r", "low", "high", "p_corrected"), math.nan
    )
    row |= {"second_model": NOT_RUN, "flags": ""} | _nulls([], False)
    here = _raw(found, models[0])
    if not len(here):
        return row
    middle = here.sort_values("rho").iloc[(len(here) - 1) // 2]
    row |= {"layer": middle["layer"], "r": middle["rho"], "low": middle["rho_low"], "high": middle["rho_high"]}
    flags = [BY_DENSITY] if abs(middle["rho"]) > MODERATE_R else []
    if len(models) > 1:
        other = _raw(found, models[1])["rho"].median()
        row["second_model"] = AGREES if other * middle["rho"] > 0 and abs(other) > MODERATE_R else DIFFERS
    untrained = _raw(found, null)
    shows = bool(len(untrained)) and bool(abs(untrained["rho"].median()) >= abs(middle["rho"]) / 2)
    flags += [IN_NULL] if shows else []
    return row | {"flags": "; ".join(flags)} | _nulls(list(untrained["rho"]) if len(untrained) else [], shows)


def curves(profile: pd.DataFrame) -> pd.DataFrame:
    """Mean relative score at every layer: what a summary of several experiments draws of this one."""
    rows: Any = profile[profile["quantity"].isin((PRIMARY, f"{PRIMARY}, lookup"))]
    line = rows["quantity"].map({PRIMARY: "re-run", f"{PRIMARY}, lookup": "lookup"})
    return rows.assign(line=line, estimate=rows["mean"])[["model", "layer", "line", "estimate", "low", "high"]]


def read_out(found: dict[str, Any], judged: pd.DataFrame, settings: dict[str, Any]) -> str:
    """The finding in a paragraph, density and the block's own effect apart; also when there is none."""
    models = list(settings["models"])
    first, about = models[0], settings["models"][models[0]]
    parts = [
        f"{settings['question']} {about['tokens']:,} tokens of {about['clusters']} {about['cluster']}s, "
        f"{layers_in_words(settings['models'])}."
    ]
    parts.append(_density(found, first))
    parts.append(_block(found, first))
    parts += [_verdict(row) for row in judged.to_dict("records") if row["name"] in HYPOTHESES]
    parts += [_geometry(found, first), _contexts(found, first), _radius(found, first), _sinks(found, first)]
    if len(models) == 1:
        parts.append("There was no second model, so nothing can be called strong.")
    return " ".join(part for part in parts if part)


def _density(found: dict[str, Any], model: str) -> str:
    raw = _raw(found, model)
    if not len(raw):
        return ""
    said = (
        f"Density: the raw score repeats how dense a neighbourhood was before the block (rank correlation with "
        f"-ln V_in {_range(raw['rho'])}"
    )
    relative = where(found["correlations"], model=model, score=PRIMARY, **{"with": "density"})
    return (
        f"{said}); its profile says little of blocks. The relative score's is "
        f"{_range(relative['rho'])}; it contains V_in, so part of that is built in."
    )


def _block(found: dict[str, Any], model: str) -> str:
    rows: Any = where(found["profile"], model=model, quantity=PRIMARY).dropna(subset=["mean"])
    if not len(rows):
        return ""
    high, low = rows.loc[rows["mean"].idxmax()], rows.loc[rows["mean"].idxmin()]
    narrow = int((rows["mean"] > 0).sum())
    return (
        f"The block: the mean relative score is highest at layer {int(high['layer'])} ({high['mean']:.2f} nats, spread "
        f"over tokens {high['sd']:.2f}) and lowest at layer {int(low['layer'])} ({low['mean']:.2f}); blocks contract "
        f"neighbourhoods on average at {narrow} of {len(rows)} layers."
    )


def _verdict(row: dict[str, Any]) -> str:
    if row["r"] != row["r"]:
        return f"{row['name'].capitalize()}: could not be tested."
    layer = "" if row["layer"] != row["layer"] else f" at layer {int(row['layer'])}"
    flags = f" ({row['flags']})" if row["flags"] else ""
    return (
        f"{row['name'].capitalize()}: {row['grade']}, r = {row['r']:.2f} [{row['low']:.2f}, {row['high']:.2f}]{layer}, "
        f"corrected p = {row['p_corrected']:.2g}{flags}."
    )


def _geometry(found: dict[str, Any], model: str) -> str:
    two_nn: Any = where(found["dimension"], model=model, estimator="two-NN").dropna(subset=["dimension"])
    shared = where(found["overlap"], model=model, comparison="next layer")
    parts = []
    if len(two_nn):
        peak = two_nn.loc[two_nn["dimension"].idxmax()]
        parts.append(
            f"two-NN intrinsic dimension is {_range(two_nn['dimension'], 1)}, largest at layer {int(peak['layer'])}"
        )
    if len(shared):
        parts.append(
            f"consecutive layers share {_range(shared['estimate'])} of a token's neighbours (chance "
            f"{shared['chance'].iloc[0]:.3f})"
        )
    return f"Geometry: {'; '.join(parts)}." if parts else ""


def _contexts(found: dict[str, Any], model: str) -> str:
    rows: Any = where(found["shares"], model=model).dropna(subset=["share"])
    if not len(rows):
        return ""
    wide = rows.pivot_table(index="layer", columns="part", values="share")
    said = [
        f"layer {int(layer)}: {wide.loc[layer, 'state']:.2f} state, {wide.loc[layer, 'context']:.2f} context, "
        f"{wide.loc[layer, 'interaction']:.2f} interaction"
        for layer in dict.fromkeys((wide.index[min(1, len(wide) - 1)], wide.index[-1]))
    ]
    added: Any = where(found["differences"], model=model)
    sizes = f" Own contexts add {_range(added['mean'])} nats to ln V_out (re-run less lookup)." if len(added) else ""
    return (
        f"Map or context, shares of the variance of neighbours' outputs in each other's contexts: {'; '.join(said)}."
        f"{sizes}"
    )


def _radius(found: dict[str, Any], model: str) -> str:
    rows: Any = where(found["local"], model=model)
    largest = rows["shrink"].max()
    whole = rows[(rows["shrink"] == largest) & rows["local"]]["layer"].tolist()
    tenth = rows[rows["local"]].groupby("layer")["shrink"].max()
    n = rows["layer"].nunique()
    smallest = rows["smallest"].dropna().unique()
    if len(smallest) == 0:
        return "Radius: no neighbours could be moved nearer (they coincide, or the dtype has too few digits for it)."
    at = f"{smallest[0]:g}" if len(smallest) == 1 else f"{smallest.min():g} to {smallest.max():g}"
    return (
        f"Radius: the score is local (equal to that at shrink {at}) with neighbours where they are "
        f"at {len(whole)} of {n} layers, with neighbours moved nearer at {len(tenth) - len(whole)} more."
    )


def _sinks(found: dict[str, Any], model: str) -> str:
    rows: Any = where(found["sinks"], model=model)
    large = rows[rows["is_massive"]]["layer"].tolist()
    seen = rows[rows["attention_first"].notna()]
    sink = f"Attention sinks at {_listed(seen[seen['is_sink']]['layer'].tolist())}"
    sink = sink if len(seen) else "No attention pattern to look for sinks in"
    return (
        f"{sink}; massive activations at {_listed(large)}; the first position, whose norm "
        f"is {_range(rows['norm_ratio'], 1)} times the others', is left out of all scores."
    )


def _listed(layers: list[int]) -> str:
    return f"layers {', '.join(map(str, layers))}" if layers else "no layer"


def _range(values: pd.Series, digits: int = 2) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.{digits}f} to {high:.{digits}f}"
