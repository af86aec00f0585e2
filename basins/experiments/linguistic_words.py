"""What the linguistic experiment's tables say: a grade for every hypothesis, and a paragraph."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from basins.experiments.frames import where
from basins.experiments.linguistic_tables import FUNCTION, HYPOTHESES, NOUN, TAGS
from basins.experiments.loaded import layers_in_words
from basins.experiments.null_verdicts import SAMPLE_RULE
from basins.experiments.primary import (
    BY_DENSITY,
    BY_PLACE,
    GRADES,
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

if TYPE_CHECKING:
    import pandas as pd

THRESHOLDS = (
    f"strong: |r| > {STRONG_R} with corrected p < {STRONG_P} on both models, in the same direction at the same "
    f"relative depth; moderate: |r| > {MODERATE_R} with corrected p < {MODERATE_P} on the first model; exploratory: "
    f"corrected p < {MODERATE_P} but smaller; none: nothing survives correction. r is the correlation of the relative "
    "re-run score with the kind of word that is left when density before the block, token frequency, position, word "
    "length and number of pieces are removed (for tags at all: the root of partial epsilon squared, which "
    "has no direction); p: errors clustered by sentence, Holm over layers and hypotheses. "
    f"{SAMPLE_RULE}"
)
COLUMNS = (
    *("name", "grade", "layer", "r", "low", "high", "p_corrected", "second_model", "flags"),
    *("r_plain", "r_density", "n_tokens", "direction"),
)
DIRECTIONS = {FUNCTION: ("function words", "content words"), NOUN: ("nouns", "verbs")}
SAME_TOKEN = 0.05  # a difference in the share of neighbours that are the same token that the reading mentions


def effects(tags: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Both tables in units of correlation: a row for each model, layer, score and hypothesis."""
    import pandas as pd

    columns = [
        "model",
        "layer",
        "score",
        "primary",
        "name",
        "n_tokens",
        "r_plain",
        "r_density",
        "r",
        "low",
        "high",
        "p",
    ]
    # The interval of eta squared, brought to epsilon squared as its estimate is.
    unexplained = (1 - tags["partial_epsilon_squared"]) / (1 - tags["partial_eta_squared"])
    root = tags.assign(
        name=TAGS,
        r_plain=tags["epsilon_squared"].clip(lower=0) ** 0.5,
        r_density=tags["density_epsilon_squared"].clip(lower=0) ** 0.5,
        r=tags["partial_epsilon_squared"].clip(lower=0) ** 0.5,
        low=(1 - (1 - tags["partial_low"]) * unexplained).clip(lower=0) ** 0.5,
        high=(1 - (1 - tags["partial_high"]) * unexplained).clip(lower=0) ** 0.5,
    )
    columns.append("p_corrected")
    both = [pairs.reindex(columns=pd.Index(columns)), root.reindex(columns=pd.Index(columns))]
    return pd.concat([part for part in both if len(part)], ignore_index=True)


def verdicts(effect: pd.DataFrame, depths: dict[str, int]) -> pd.DataFrame:
    """One row a hypothesis, the best grade first. `depths`: each model's number of blocks.

    The layer named is the one with the best grade, then the largest |r|.
    """
    import pandas as pd

    frame: Any = pd.DataFrame([_judge(effect, name, depths) for name in HYPOTHESES], columns=pd.Index(COLUMNS))
    return frame.sort_values("grade", key=lambda grades: grades.map(GRADES.index), kind="stable").reset_index(drop=True)


def _judge(effect: pd.DataFrame, name: str, depths: dict[str, int]) -> dict[str, Any]:
    models = list(depths)
    first = where(effect, model=models[0], name=name, score=PRIMARY)
    first = first[first["r"].notna()]
    if first.empty:
        nothing = {"name": name, "grade": "none", "second_model": "not run", "flags": NOISY, "direction": ""}
        return dict.fromkeys(COLUMNS, math.nan) | nothing
    rows: list[dict[str, Any]] = first.to_dict("records")
    for row in rows:
        row["second"] = _same_depth(effect, row, depths)
        row["grade"] = _grade(row)
    best = min(rows, key=lambda row: (GRADES.index(row["grade"]), -abs(row["r"])))
    said = {column: best[column] for column in COLUMNS if column in best}
    said["second_model"] = _answer(best, len(models))
    said["flags"] = "; ".join(_flags(best, max(rows, key=lambda row: abs(row["r_plain"])), said["second_model"]))
    one, other = DIRECTIONS.get(name, ("", ""))
    said["direction"] = f"{one if best['r'] > 0 else other} more compressed" if one else ""
    return said


def _same_depth(effect: pd.DataFrame, row: dict[str, Any], depths: dict[str, int]) -> dict[str, Any] | None:
    """The second model's row at the layer that lies nearest to the same relative depth."""
    if len(depths) < 2:
        return None
    (_, blocks), (model, others) = list(depths.items())[:2]
    rows: list[dict[str, Any]] = where(effect, model=model, name=row["name"], score=PRIMARY).to_dict("records")
    at = row["layer"] / max(1, blocks - 1) * (others - 1)
    return min(rows, key=lambda other: abs(other["layer"] - at)) if rows else None


def _shows(row: dict[str, Any], other: dict[str, Any] | None, least: float, alpha: float) -> bool:
    return bool(other and other["r"] * row["r"] > 0 and abs(other["r"]) > least and other["p_corrected"] < alpha)


def _grade(row: dict[str, Any]) -> str:
    if not row["p_corrected"] < MODERATE_P:
        return "none"
    if abs(row["r"]) > STRONG_R and row["p_corrected"] < STRONG_P:
        return "strong" if _shows(row, row["second"], STRONG_R, STRONG_P) else "moderate"
    return "moderate" if abs(row["r"]) > MODERATE_R else "exploratory"


def _answer(row: dict[str, Any], n_models: int) -> str:
    """Agrees: same direction, corrected p < 0.05, and large enough for the same words (strong, moderate)."""
    if n_models < 2:
        return "not run"
    least = {"strong": STRONG_R, "moderate": MODERATE_R}.get(row["grade"], 0.0)
    return "agrees" if _shows(row, row["second"], least, MODERATE_P) else "differs"


def _flags(best: dict[str, Any], plain: dict[str, Any], second: str) -> list[str]:
    """Red flags. `plain`: the layer that one would report without confounds; what explains it away is a flag unless
    the layer reported instead is at least moderate without the confounds."""
    flags = []
    if not best["high"] - best["low"] <= WIDE:
        flags.append(NOISY)
    if not best["p_corrected"] < MODERATE_P:
        flags.append(NOTHING)
    if second == "differs":
        flags.append(NOT_REPLICATED)
    if best["grade"] in ("strong", "moderate"):
        return flags
    sign, size = math.copysign(1, plain["r_plain"]), abs(plain["r_plain"])
    if size > MODERATE_R / 2:
        if plain["r_density"] * sign < size / 2:
            flags.append(BY_DENSITY)
        elif plain["r"] * sign < size / 2:
            flags.append(BY_PLACE)
    return flags


def read_out(found: dict[str, Any], settings: dict[str, Any]) -> str:
    """The findings in a paragraph, also when there are none. `found`: the tables by name."""
    models, text = list(settings["models"]), settings["text"]
    first, about = models[0], settings["models"][models[0]]
    kind = "gold" if text["gold"] else "automatic"
    parts = [
        f"{settings['question']} {about['tested_tokens']:,} words ({kind} tags, {text['name']}) in "
        f"{about['tested_sentences']:,} sentences, {_pieces(settings['pieces'])}; "
        f"{layers_in_words(settings['models'])}."
    ]
    parts += [
        _sentence(row, where(found["effects"], model=first, score=PRIMARY))
        for row in found["verdicts"].to_dict("records")
    ]
    parts += [_raw(found, first), _lookup(found, first), _same_token(found, first), _within(found, first)]
    left_out = about["tags_left_out"]
    if left_out:
        listed = ", ".join(f"{tag} ({n})" for tag, n in left_out.items())
        parts.append(f"Left out for too few tokens: {listed}.")
    if not text["gold"]:
        parts.append("The tags are a tagger's, not people's: its mistakes blur every difference.")
    if len(models) == 1:
        parts.append("There was no second model, so nothing can be called strong.")
    return " ".join(filter(None, parts))


def _pieces(pieces: str) -> str:
    return "every piece of a word" if pieces == "every" else f"the {pieces} piece of each"


def _sentence(row: dict[str, Any], effect: Any) -> str:
    name = row["name"][0].upper() + row["name"][1:]
    if row["r"] != row["r"]:
        return f"{name}: too few words to say anything."
    size = (
        f"r = {row['r']:.2f} [{row['low']:.2f}, {row['high']:.2f}] at layer {int(row['layer'])}, corrected p = "
        f"{row['p_corrected']:.2g}"
    )
    said = f"{name}: {row['grade']} ({size}"
    said += f"; {row['direction']})." if row["direction"] and row["grade"] != "none" else ")."
    rows = where(effect, name=row["name"])
    plain = rows.loc[rows["r_plain"].abs().idxmax()]
    said += (
        f" The largest with the confounds left in is {plain['r_plain']:.2f}, at layer {int(plain['layer'])}; with "
        f"density removed it is {plain['r_density']:.2f} there, with all of them removed {plain['r']:.2f}."
    )
    if row["second_model"] == "differs":
        said += " The second model does not show the same at that depth."
    return said


def _raw(found: dict[str, Any], model: str) -> str:
    """How much of the raw score is there before the block."""
    rows = where(found["tests_of_tags"], model=model)
    raw, density = (where(rows, score=score).set_index("layer")["eta_squared"] for score in ("raw", "density"))
    if raw.dropna().empty:
        return ""
    layer = raw.idxmax()
    return (
        f"Tags explain up to {raw[layer]:.0%} of the raw score's variance (layer {int(layer)}) and "
        f"{density[layer]:.0%} of that of the density before the block, which the raw score mostly repeats: that is "
        "where words lie, not what the block does to them. (With density removed, raw and relative are one number: "
        "relative = raw - density.)"
    )


def _lookup(found: dict[str, Any], model: str) -> str:
    named = where(found["verdicts"], name=FUNCTION).iloc[0]
    if named["layer"] != named["layer"]:
        return ""
    rows = where(found["effects"], model=model, name=FUNCTION, layer=named["layer"], score="relative, lookup")
    return f"By looking up, the first contrast is {rows['r'].iloc[0]:.2f} there." if len(rows) == 1 else ""


def _same_token(found: dict[str, Any], model: str) -> str:
    parts = []
    rows = where(found["contrasts"], model=model, score=PRIMARY)
    for name in (FUNCTION, NOUN):
        here = where(rows, name=name).dropna(subset=["same_token_one"])
        named = where(found["verdicts"], name=name).iloc[0]["layer"]
        here = where(here, layer=named)
        if len(here) != 1:
            continue
        row = here.iloc[0]
        if abs(row["same_token_one"] - row["same_token_other"]) > SAME_TOKEN:
            one, other = DIRECTIONS[name]
            parts.append(
                f"{row['same_token_one']:.0%} of the neighbours of {one} are the same token, "
                f"{row['same_token_other']:.0%} of those of {other} (with this share removed as well r = "
                f"{row['r_same_token']:.2f})"
            )
    return f"Parts of speech go with token identity: {'; '.join(parts)}." if parts else ""


def _within(found: dict[str, Any], model: str) -> str:
    rows = where(found["tests_of_tags"], model=model, score=PRIMARY).dropna(subset=["within_token"])
    if rows.empty:
        return ""
    best = rows.loc[rows["within_token"].idxmax()]
    return (
        f"Among {int(best['within_token_n']):,} occurrences of tokens that come with several tags, the tag explains at "
        f"most {max(0.0, best['within_token']):.1%} of what is left within a token (layer {int(best['layer'])}, p = "
        f"{best['within_token_p']:.2g}, not corrected)."
    )
