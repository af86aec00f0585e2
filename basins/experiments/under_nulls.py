"""Scores where a finding should not be: under random weights, shuffled text, and states not the nearest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Int
from torch import Tensor

from basins.errors import BasinsError
from basins.experiments.text_sample import TextSample
from basins.nulls import ISOTROPIC, NULLS, RANDOM_NEIGHBORS, TRANSPLANTED, shuffled_order
from basins.progress import progress
from basins.random_weights import random_weights
from basins.scores import BasinScores
from basins.settings import whole

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


def check_null_sizes(n: int, weight_draws: int, name: str = "null_rows") -> None:
    whole(name, n, 0, "it says how much is scored under nulls; 0 runs none.")
    whole("weight_draws", weight_draws, 1, "it counts the models with random weights.")
    if 0 < n < 4:
        raise BasinsError(f"{name}={n} is too small: neighbours come from other sequences. Pass 0, or at least 4.")


@dataclass(frozen=True)
class NullScores:
    """One draw of a null. `model`: the untrained one; `order`: where each position's token came from."""

    null: str
    draw: int
    scores: BasinScores
    model: Any = None
    order: Int[Tensor, "row pos"] | None = None


def scores_under_nulls(of: TextSample, default: BasinScores, draws: int) -> Iterator[NullScores]:
    """Every null of the sample's rows. `default`: their scores as they are.

    Random weights are drawn with seeds 0 to `draws` - 1 added to the sample's seed; the others once.
    """
    with progress("nulls", draws + 2) as advance:
        for draw in range(draws):
            untrained = random_weights(of.model, of.seed + draw)
            yield NullScores(RANDOM, draw, of.score(model=untrained), model=untrained)
            advance(1)
        order = shuffled_order(of.mask, of.seed)
        yield NullScores(SHUFFLED, 0, of.score(tokens=of.tokens.gather(1, order)), order=order)
        advance(1)
        for null, scores in of.store.null_scores(of.scorer(), of.tokens, of.mask, default, of.seed).items():
            yield NullScores(null, 0, scores)
        advance(1)


def facts_under(of: TextSample, drawn: NullScores) -> Any:
    """What is known of the tokens there: untrained states have norms of their own, moved tokens take theirs along."""
    if drawn.model is not None:
        return of.norms_of(drawn.model, of.tokens, of.facts)
    if drawn.order is not None:
        return of.norms_of(of.model, of.tokens.gather(1, drawn.order), of.moved(drawn.order))
    return of.facts


def effects_under_nulls(
    of: TextSample, default: BasinScores, draws: int, effects: Callable[[Any], Any]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(effects, spreads): what `effects` makes of the sample's frame under each null, and how far relative scores
    spread there and as they are. Both have `null` and `draw` in front."""
    import pandas as pd

    found, spreads = [], [spread(of.frame(default)).assign(null=TRAINED, draw=0)]
    for drawn in scores_under_nulls(of, default, draws):
        frame = of.frame(drawn.scores, facts=facts_under(of, drawn))
        found.append(effects(frame).assign(null=drawn.null, draw=drawn.draw))
        spreads.append(spread(frame).assign(null=drawn.null, draw=drawn.draw))
    first = ["null", "draw"]
    tables: list[Any] = [pd.concat(parts, ignore_index=True) for parts in (found, spreads)]
    return tuple(table[[*first, *[name for name in table if name not in first]]] for table in tables)  # type: ignore


def spread(frame: Any) -> pd.DataFrame:
    """How far relative scores spread, and how much of the raw score is the density before the block; a row a layer."""
    import pandas as pd

    rows = []
    for layer, here in frame[frame["used"]].groupby("layer"):
        quarters = here["relative"].quantile([0.25, 0.75])
        row = {"layer": int(layer), "n_tokens": len(here), "median": here["relative"].median()}
        row |= {"iqr": quarters[0.75] - quarters[0.25], "sd": here["relative"].std(ddof=0)}
        rows.append(row | {"rho_raw_density": here["raw"].corr(here["density"], method="spearman")})
    return pd.DataFrame(rows)
