"""The finding where it should not be: under random weights, shuffled text, and neighbours that are not the nearest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from basins.experiments.robustness_subject import Subject
from basins.nulls import ISOTROPIC, NULLS, RANDOM_NEIGHBORS, TRANSPLANTED, null_scores, shuffled_order
from basins.progress import progress
from basins.random_weights import random_weights
from basins.scores import BasinScores

if TYPE_CHECKING:
    import pandas as pd

TRAINED, RANDOM, SHUFFLED = "as it is", "random weights", "shuffled tokens"
ALL_NULLS = (RANDOM, SHUFFLED, *NULLS)
# What it says about a finding when this null has it too.
MEANINGS = {
    RANDOM: "the architecture alone gives it, whatever was learnt",
    SHUFFLED: "it is about which tokens stand in the text, not about their order",
    RANDOM_NEIGHBORS: "any states in the token's place give it: it is about the place, not about what is near",
    TRANSPLANTED: "other tokens' directions give it: the block contracts there whatever the displacement",
    ISOTROPIC: "directions that text never takes give it: the block contracts there in every direction",
}


def nulls(of: Subject, default: BasinScores, seeds: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(effects, spreads): the finding at every layer under each null, and how far relative scores spread there.

    Random weights are drawn with seeds 0 to `seeds` - 1 added to the experiment's seed; the others once.
    """
    import pandas as pd

    effects, spreads = [], [_spread(of.frame(default)).assign(null=TRAINED, draw=0)]
    seed = of.statistics["seed"]

    def take(null: str, draw: int, frame: Any) -> None:
        effects.append(of.effects(frame).assign(null=null, draw=draw))
        spreads.append(_spread(frame).assign(null=null, draw=draw))

    tokens, mask = of.rows.tokens[of.pick], of.rows.mask[of.pick]
    with progress("nulls", seeds + 2) as advance:
        for draw in range(seeds):
            untrained = random_weights(of.model, seed + draw)
            facts = of.norms_of(untrained, tokens, of.facts)
            take(RANDOM, draw, of.frame(of.score(model=untrained), facts=facts))
            advance(1)
        order = shuffled_order(mask, seed)
        moved = tokens.gather(1, order)
        facts = of.norms_of(of.model, moved, of.moved(order))
        take(SHUFFLED, 0, of.frame(of.score(tokens=moved), facts=facts))
        advance(1)
        for null, scores in null_scores(of.model, tokens, mask, default, seed=seed).items():
            take(null, 0, of.frame(scores))
        advance(1)
    first = ["null", "draw"]
    tables: list[Any] = [pd.concat(parts, ignore_index=True) for parts in (effects, spreads)]
    return tuple(table[[*first, *[name for name in table if name not in first]]] for table in tables)  # type: ignore


def _spread(frame: Any) -> pd.DataFrame:
    """How far relative scores spread, and how much of the raw score is the density before the block; a row a layer."""
    import pandas as pd

    rows = []
    for layer, here in frame[frame["used"]].groupby("layer"):
        quarters = here["relative"].quantile([0.25, 0.75])
        row = {"layer": int(layer), "n_tokens": len(here), "median": here["relative"].median()}
        row |= {"iqr": quarters[0.75] - quarters[0.25], "sd": here["relative"].std(ddof=0)}
        rows.append(row | {"rho_raw_density": here["raw"].corr(here["density"], method="spearman")})
    return pd.DataFrame(rows)
