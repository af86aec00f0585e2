"""What nulls say of a finding: which of them show it too, and whether they could have told at all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from basins.experiments.frames import where
from basins.experiments.primary import GRADES, IN_NULL
from basins.experiments.under_nulls import ALL_NULLS, RANDOM, TRAINED

if TYPE_CHECKING:
    import pandas as pd

# A null that gives this share of the effect, or of the spread, shows it too.
SHARE = 0.5
BY_SPREAD = " (spread of scores)"
NOT_RUN, SHOWN, NOT_SHOWN, UNSURE = "not run", "shows it too", "does not show it", "too few tokens to tell"
RULE = (
    f"Nulls ({', '.join(ALL_NULLS)}) are run on a sample. A null shows the finding too if its effect has the same "
    "sign, is at least half as large as the sample's own, and its interval excludes 0 (random weights: in more than "
    "half of the draws, or if relative scores spread at least half as far, IQR, under random weights as they do). "
    "Then the finding is an artefact and at most exploratory."
)
# Of the experiments that look for their findings in more text than the nulls'.
SAMPLE_RULE = (
    f"{RULE} Where the sample itself does not show the finding (same sign, half its size, interval without 0), nulls "
    "that do not show it cannot tell."
)


def shown(effect: Any, default: float) -> bool:
    """Whether one effect with its interval repeats the default's: sign, half its size, interval without 0."""
    same = effect["effect"] * default >= SHARE * default**2 > 0
    return bool(same and (effect["low"] > 0 or effect["high"] < 0))


def judge_nulls(effects: pd.DataFrame, spreads: pd.DataFrame, default: float, layer: int) -> pd.DataFrame:
    """A row a null at the finding's layer: its effect and spread beside those of the trained model, and `shows`.

    `effects`: a row a (null, draw, layer) with effect, low, high.
    """
    import pandas as pd

    own = float(where(spreads, null=TRAINED, layer=layer)["iqr"].sum())
    rows = []
    for null in ALL_NULLS:
        draws = where(effects, null=null, layer=layer)
        there = where(spreads, null=null, layer=layer)
        if draws.empty:
            continue
        hits = [shown(row, default) for row in draws.to_dict("records")]
        share = float(there["iqr"].median()) / own if own > 0 else math.nan
        by_spread = null == RANDOM and share >= SHARE
        row: dict[str, Any] = {"null": null, "layer": layer, "draws": len(draws), "effect": draws["effect"].median()}
        single = len(draws) == 1
        row |= {"low": draws["low"].item() if single else draws["effect"].min()}
        row |= {"high": draws["high"].item() if single else draws["effect"].max()}
        row |= {"of_default": row["effect"] / default if default else math.nan, "draws_that_show": sum(hits)}
        row |= {"spread_of_default": share, "rho_raw_density": there["rho_raw_density"].median()}
        rows.append(row | {"shows": bool(sum(hits) > len(draws) / 2 or by_spread), "by_spread": bool(by_spread)})
    return pd.DataFrame(rows)


def that_show(judged: pd.DataFrame) -> list[str]:
    """Names of the nulls that show a finding; of one that does by the spread of scores alone, with `BY_SPREAD`."""
    rows = where(judged, shows=True).to_dict("records") if len(judged) else []
    alone = [row["by_spread"] and 2 * row["draws_that_show"] <= row["draws"] for row in rows]
    return [row["null"] + (BY_SPREAD if spread else "") for row, spread in zip(rows, alone, strict=True)]


def judge_all(
    verdicts: pd.DataFrame, r: str, own: pd.DataFrame, effects: pd.DataFrame, spreads: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(verdicts, nulls) of an experiment with several hypotheses.

    `verdicts`: a row a hypothesis, its name in the first column, with grade, layer and the effect `r`; comes back with
    `nulls`, `nulls_that_show_it`, and grades that a null caps. `own`, `effects`: the sample's effects as they are and
    under nulls, with `name`. `nulls`: a row a hypothesis and null.
    """
    import pandas as pd

    first = verdicts.columns[0]
    said, tables = [], []
    for row in verdicts.to_dict("records"):
        at = {"name": row[first], "layer": row["layer"]}
        sample = where(own, **at).to_dict("records") if len(own) else []
        under = where(effects, **at) if sample else effects
        if not sample or under.empty or math.isnan(row[r]):
            said.append((row["grade"], NOT_RUN, ""))
            continue
        found = shown(sample[0], row[r])
        judged = judge_nulls(under, spreads, sample[0]["effect"] if found else row[r], int(row["layer"]))
        tables.append(judged.assign(name=row[first], of_sample=sample[0]["effect"]))
        same = that_show(judged)
        said.append((capped(row["grade"], bool(same)), answer(bool(same), found), "; ".join(same)))
    grades, answers, names = (list(column) for column in zip(*said, strict=True)) if said else ([], [], [])
    judged_all: Any = verdicts.assign(grade=grades, nulls=answers, nulls_that_show_it=names)
    order = judged_all["grade"].map(GRADES.index)
    judged_all = judged_all.assign(order=order).sort_values("order", kind="stable").drop(columns="order")
    nulls: Any = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    front = ["name", "null", "layer", "of_sample"]
    nulls = nulls[[*front, *[name for name in nulls if name not in front]]] if tables else nulls
    return judged_all.reset_index(drop=True), nulls


def answer(shows: bool, told: bool) -> str:
    return SHOWN if shows else NOT_SHOWN if told else UNSURE


def capped(grade: str, shows: bool) -> str:
    """What a null shows too is at most exploratory."""
    return "exploratory" if shows and GRADES.index(grade) < GRADES.index("exploratory") else grade


def flagged(judged: pd.DataFrame) -> list[str]:
    """The flags of every row, with the null's where one shows it too."""
    own = ([flag for flag in str(flags).split("; ") if flag] for flags in judged["flags"])
    shows = (judged["nulls"] == SHOWN).tolist()
    return ["; ".join([*flags, IN_NULL] if said else flags) for flags, said in zip(own, shows, strict=True)]


def in_words(judged: pd.DataFrame) -> str:
    """A sentence about all hypotheses of an experiment that survive correction."""
    if "nulls" not in judged:
        return ""
    first = judged.columns[0]
    parts = []
    for said, words in ((SHOWN, "shown by a null too"), (NOT_SHOWN, "shown by none"), (UNSURE, UNSURE)):
        rows = where(judged, nulls=said)
        names = [
            f"{row[first]} ({row['nulls_that_show_it']})" if said == SHOWN else str(row[first])
            for row in rows[rows["grade"] != "none"].to_dict("records")
        ]
        if names:
            parts.append(f"{words}: {', '.join(names)}")
    return f"Of what survives correction, under nulls: {'; '.join(parts)}." if parts else ""
