"""How local a score is: neighbours moved towards their query, until the radius no longer matters.

At shrink t every neighbour x_j stands at x + t (x_j - x) when the block is re-run in the query's place, so V_in is t^2
times the neighbourhood's own, and for t -> 0

    R(t) = ln(V_in / V_out)  ->  ln(tr S / tr J S J^T),

with S the neighbours' population covariance and J the block's Jacobian at the query, in its context. Where R(1) is far
from that limit, the score tells of the distance between neighbours as much as of the block at the token.

Rule: R at radius t is *local* where, over the sampled queries, its rank correlation with R at the smallest t is at
least 0.99 and the median of |R(t) - R(smallest)| is at most 0.01 nats (1% of the ratio of variances), and both also
hold at every smaller t. Stated before any number was seen; both are in the table.

A block computes in its own dtype, and where neighbours are moved so near that rounding them to it makes up a part of
their variance, R is of the rounding. There it is NaN, at that layer for all queries (`RESOLVED`), and the smallest t
is the smallest that is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.errors import BasinsError
from basins.lens import block_dtype
from basins.neighborhoods import Neighborhood, about, neighborhoods
from basins.scores import relative_score, variance
from basins.settings import ScorerSettings

if TYPE_CHECKING:
    import pandas as pd

SHRINKS = (1.0, 0.3, 0.1, 0.01)
LEAST_RHO, MOST_CHANGE = 0.99, 0.01
# A shrunk neighbourhood has a variance of t^2 times its own: the score's eps would drown it.
EPS = 1e-30
# V_in must be so many times the variance of rounding a state, at most (eps |x|)^2 / 12, for half of the queries whose
# neighbours do not coincide.
RESOLVED = 100
LOOKED_AT = ("median", "iqr", "rho", "change")


@dataclass(frozen=True)
class LocalLimit:
    """Relative scores (nats) of the sampled queries at every radius; NaN where a query has too few neighbours, and for
    all of a layer where the radius is too small for the digits of the model's dtype.

    `queries` are flat ids `sequence * n_pos + position`; `shrinks` fall.
    """

    relative: Float[Tensor, "layer shrink query"]
    shrinks: tuple[float, ...]
    layers: tuple[int, ...]
    queries: Int[Tensor, "query"]
    n_pos: int
    settings: dict[str, Any] = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """One row a (layer, query), a column a radius."""
        import pandas as pd

        n = len(self.queries)
        columns: dict[str, Any] = {"layer": torch.tensor(self.layers).repeat_interleave(n).numpy()}
        columns["sequence"] = (self.queries // self.n_pos).repeat(len(self.layers)).numpy()
        columns["position"] = (self.queries % self.n_pos).repeat(len(self.layers)).numpy()
        for place, shrink in enumerate(self.shrinks):
            columns[f"relative at {shrink:g}"] = self.relative[:, place].flatten().numpy()
        return pd.DataFrame(columns)

    def summary(self) -> pd.DataFrame:
        """One row a (layer, shrink): median score and quartile range, and what the rule of the module looks at.

        `smallest`: the radius that the others are compared with, the smallest that the dtype resolves at that layer.
        """
        import pandas as pd

        rows = []
        for place, layer in enumerate(self.layers):
            columns = pd.DataFrame(self.relative[place].T.numpy(), columns=pd.Index(self.shrinks))
            columns = columns.dropna(axis=1, how="all").dropna()
            smallest = columns.columns[-1] if len(columns.columns) else math.nan
            rho: Any = columns.corr("spearman")
            found = []
            for shrink in columns:
                change: Any = (columns[shrink] - columns[smallest]).abs()
                spread: Any = columns[shrink].quantile([0.25, 0.75])
                row: dict[str, Any] = {"layer": layer, "shrink": shrink, "smallest": smallest, "queries": len(columns)}
                row |= {"median": columns[shrink].median(), "iqr": spread.iloc[1] - spread.iloc[0]}
                found.append(row | {"rho": rho.loc[shrink, smallest], "change": change.median()})
            # The smallest is compared with itself and proves nothing alone.
            meets = [row["rho"] >= LEAST_RHO and row["change"] <= MOST_CHANGE for row in found]
            rows += [row | {"local": all(meets[i:]) and i < len(meets) - 1} for i, row in enumerate(found)]
            unresolved = [shrink for shrink in self.shrinks if shrink not in columns]
            nothing = {"layer": layer, "smallest": smallest, "queries": 0, "local": False}
            nothing |= dict.fromkeys(LOOKED_AT, math.nan)
            rows += [nothing | {"shrink": shrink} for shrink in unresolved]
        return pd.DataFrame(rows)

    def radius(self) -> dict[int, float]:
        """Layer -> the largest shrink at which the score is local; NaN where none of those tried is."""
        table: Any = self.summary()
        local = table[table["local"]].groupby("layer")["shrink"].max().to_dict()
        return {layer: float(local.get(layer, math.nan)) for layer in self.layers}

    def __str__(self) -> str:
        return f"LocalLimit: {len(self.queries)} queries\n{self.summary().round(3).to_string(index=False)}"

    __repr__ = __str__


def check_shrinks(shrinks: Sequence[float]) -> tuple[float, ...]:
    """Radii from the largest to the smallest."""
    wanted = tuple(sorted({float(shrink) for shrink in shrinks}, reverse=True))
    if len(wanted) < 2 or not all(0 < shrink <= 1 for shrink in wanted):
        raise BasinsError(
            f"shrinks={tuple(shrinks)!r} must hold two radii or more, each in (0, 1]: {SHRINKS} is usual."
        )
    return wanted


def relative_at(
    hood: Neighborhood, shrinks: tuple[float, ...], normalize: bool = False
) -> Float[Tensor, "shrink query"]:
    """R at every radius for the sampled queries of one transition; NaN at radii that its dtype does not resolve."""
    found = torch.full((len(shrinks), len(hood.queries)), float("nan"), dtype=torch.float64)
    states, scored = hood.states(), hood.scored
    at = hood.queries[scored]
    if not len(at):
        return found
    query, neighbors = states[at][:, None], states[hood.neighbors[scored]]
    moved = torch.stack([query + shrink * (neighbors - query) for shrink in shrinks], 1)
    outputs = hood.place.push(moved.flatten(0, 2), at.repeat_interleave(len(shrinks) * neighbors.shape[1]))
    dtype = block_dtype(hood.place.model, hood.layer)
    # As the block gets them.
    before, after = moved.to(dtype).double(), outputs.view_as(moved).double()
    rounding = (torch.finfo(dtype).eps * query.double().norm(dim=-1)) ** 2 / 12
    enough, apart = variance(before) >= RESOLVED * rounding, variance(neighbors.double()) > 0
    resolved = (2 * (enough & apart[:, None]).sum(0) >= apart.sum()).cpu()
    if normalize:
        before, after = (x / x.norm(dim=-1, keepdim=True).clamp_min(EPS) for x in (before, after))
    relative = relative_score(variance(before), variance(after), EPS).T.cpu()
    found[:, scored] = relative.masked_fill(~resolved[:, None], float("nan"))
    return found


def local_limit(
    model: Any,
    settings: ScorerSettings,
    source: Any,
    tokens: Int[Tensor, "batch pos"] | None = None,
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    layers: int | Iterable[int] | None = None,
    *,
    shrinks: Sequence[float] = SHRINKS,
    sample: int = 64,
    dtype: torch.dtype | None = None,
) -> LocalLimit:
    """Relative re-run scores of `sample` queries at every radius of `shrinks`; neighbours follow `settings`.

    `source`: a cache with `tokens` as in `BasinScorer.score`, or token ids. The smaller the radius, the more digits
    the model needs: in bfloat16 0.01 is mostly too small (NaN, see above); below 0.01 take a float64 model.
    """
    wanted = check_shrinks(shrinks)
    found, queries, n_pos = {}, torch.empty(0, dtype=torch.long), 0
    hoods = neighborhoods(model, settings, source, tokens, attention_mask, layers, sample=sample, dtype=dtype)
    with closing(hoods):
        for hood in hoods:
            found[hood.layer] = relative_at(hood, wanted, settings.normalize)
            queries, n_pos = hood.queries, hood.place.states.shape[1]
    made = about(model, settings, len(queries)) | {"shrink": list(wanted)}
    return LocalLimit(torch.stack(list(found.values())), wanted, tuple(found), queries, n_pos, made)
