"""One number a sequence: the scores of its tokens put together, beside what a neighbourhood shows without any block.

Sign convention of every table here: a *higher* value is what is expected of memorised text, so all areas under ROC
curves are read in one direction. Where a quantity is expected to be lower (distances, dimension), its negative stands
in the table. Of the state norm nothing is expected; it stands as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from basins.dimension import local_mle, log_ratios, pooled_two_nn
from basins.errors import BasinsError
from basins.scores import LEAST_DISTINCT, BasinScores

if TYPE_CHECKING:
    import pandas as pd

SCORES = ("raw", "relative", "update")
PARTS = ("mean", "lowest", "highest")
COLUMNS = ("sequence", "name", "measure", "layer", "value", "n_tokens", "left_out")


def count_of_share(n: Int[Tensor, "*batch"], share: float) -> Int[Tensor, "*batch"]:
    """How many of n tokens a share is: int(n * share), at least 1 (and 0 of 0). So 20% of 14 tokens are 2, not 3."""
    if not 0 < share <= 1:
        raise BasinsError(f"share={share} is out of range: it must lie in (0, 1]. The usual value is 0.2.")
    return (n.double() * share).long().clamp_min(1).minimum(n)


def mean_of(values: Float[Tensor, "*batch pos"], where: Bool[Tensor, "*batch pos"]) -> Float[Tensor, "*batch"]:
    """Mean over the positions in `where`, float64; NaN where there are none."""
    total = values.double().masked_fill(~where, 0).sum(-1)
    return total / where.sum(-1)


def mean_of_lowest(
    values: Float[Tensor, "*batch pos"], where: Bool[Tensor, "*batch pos"], share: float = 0.2
) -> Float[Tensor, "*batch"]:
    """Mean of the lowest `share` of the values in `where`, counted by `count_of_share`; NaN where there are none."""
    ordered = values.double().masked_fill(~where, float("inf")).sort(-1).values
    kept = count_of_share(where.sum(-1), share)
    return mean_of(ordered, torch.arange(values.shape[-1], device=values.device) < kept[..., None])


def mean_of_highest(
    values: Float[Tensor, "*batch pos"], where: Bool[Tensor, "*batch pos"], share: float = 0.2
) -> Float[Tensor, "*batch"]:
    """Mean of the highest `share` of the values in `where`."""
    return -mean_of_lowest(-values, where, share)


def score_aggregates(
    scores: BasinScores, where: Bool[Tensor, "batch pos"] | None = None, share: float = 0.2
) -> pd.DataFrame:
    """Every measure of compression, density and dimension, one row for (sequence, measure, layer).

    Over the positions in `where` (None: all real tokens). Measures are `relative_mean`, `relative_lowest` and
    `relative_highest` (the lowest and highest `share` of the tokens), likewise raw and update, with `lookup_` in front
    for neighbours looked up; `density_mean` and its parts (-ln V_in, which the raw score nearly equals);
    `neighbor_distance` (mean over tokens and neighbours, negative), `two_nn` (from the mean of ln mu over the tokens,
    negative) and `mle_dimension` (mean of the tokens' own, negative). All of them use the same tokens: those with a
    score and at least 3 distinct states around. `left_out` counts the others of `where`; `n_tokens` those used, NaN
    where there are none.
    """
    where = _where(where, scores.real_tokens())
    usable = where & (scores.n_distinct >= LEAST_DISTINCT) & scores.relative.isfinite()
    own = "lookup_" if scores.settings.get("method") == "lookup" else ""
    shown = {f"{own}{name}": getattr(scores, name) for name in SCORES}
    if scores.lookup is not None:
        shown |= {f"lookup_{name}": getattr(scores.lookup, name) for name in SCORES}
    shown["density"] = scores.density
    found: dict[str, Float[Tensor, "layer batch"]] = {}
    for name, values in shown.items():
        parts = (mean_of(values, usable), mean_of_lowest(values, usable, share), mean_of_highest(values, usable, share))
        found |= {f"{name}_{part}": value for part, value in zip(PARTS, parts)}
    distances = scores.neighbor_distances
    found["neighbor_distance"] = -mean_of(distances.double().mean(-1), usable)
    found |= _dimensions(_euclidean(distances, scores.settings), usable)
    n_tokens = usable.sum(-1)
    return table(found, scores.layers, n_tokens, where.sum(-1) - n_tokens)


def _dimensions(
    distances: Float[Tensor, "layer batch pos k"], usable: Bool[Tensor, "layer batch pos"]
) -> dict[str, Float[Tensor, "layer batch"]]:
    found: dict[str, Tensor] = {}
    if distances.shape[-1] >= 2:
        found["two_nn"] = -pooled_two_nn(log_ratios(distances).masked_fill(~usable, float("nan")))
    if distances.shape[-1] >= 3:
        local = local_mle(distances)
        found["mle_dimension"] = -mean_of(local, usable & local.isfinite())
    return found


def _euclidean(distances: Tensor, settings: dict[str, Any]) -> Tensor:
    """Chords on the unit sphere in place of cosine distances, which grow with their square."""
    return (2 * distances.double()).sqrt() if settings.get("metric") == "cosine" else distances


def norm_aggregates(
    norms: Float[Tensor, "layer batch pos"], layers: Iterable[int], where: Bool[Tensor, "batch pos"] | None = None
) -> pd.DataFrame:
    """Measure `state_norm`: the mean norm of each sequence's states at each layer; rows as in `score_aggregates`."""
    real = ~norms.isnan()
    asked = _where(where, real[0])
    usable = asked & real
    n_tokens = usable.sum(-1)
    return table({"state_norm": mean_of(norms, usable)}, layers, n_tokens, asked.sum(-1) - n_tokens)


def table(
    measures: dict[str, Tensor], layers: Iterable[int] | None, n_tokens: Tensor, left_out: Tensor
) -> pd.DataFrame:
    """Tidy rows of measures that are "layer batch" (or "batch" for `layers=None`, where the layer is <NA>).

    `name` is one name for measure and layer: `relative_mean.L3`, or `loss` where there is no layer. Group by it: a
    pandas group by `layer` drops rows without one.
    """
    import pandas as pd

    if layers is None:
        measures = {name: value[None] for name, value in measures.items()}
        n_tokens, left_out = n_tokens[None], left_out[None]
    places = [None] if layers is None else list(layers)
    frames = []
    for measure, values in measures.items():
        if len(values) != len(places):
            raise BasinsError(f"{len(places)} layers were named and {measure} holds {len(values)}.")
        for place, layer in enumerate(places):
            columns = {"sequence": range(values.shape[1]), "name": measure if layer is None else f"{measure}.L{layer}"}
            columns |= {"measure": measure, "layer": pd.NA if layer is None else int(layer)}
            columns |= {"value": values[place].double().cpu().numpy()}
            columns |= {"n_tokens": n_tokens[place].cpu().numpy(), "left_out": left_out[place].cpu().numpy()}
            frames.append(pd.DataFrame(columns).astype({"layer": "Int64"}))
    return pd.DataFrame(pd.concat(frames, ignore_index=True), columns=pd.Index(COLUMNS))


def wide(*frames: pd.DataFrame) -> pd.DataFrame:
    """Tables of one set of sequences as one matrix: a row a sequence, a column a `name`, in the tables' order."""
    import pandas as pd

    rows = pd.concat(frames, ignore_index=True)
    twice = rows.duplicated(["sequence", "name"])
    if twice.any():
        first = rows[twice].iloc[0]
        raise BasinsError(f"{first['name']} of sequence {first['sequence']} stands twice. Pass each table once.")
    order = list(dict.fromkeys(rows["name"]))
    matrix = rows.pivot_table(values="value", index="sequence", columns="name", dropna=False)
    return pd.DataFrame(matrix, columns=pd.Index(order, name="name"))


def _where(where: Tensor | None, real: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """The asked positions that are real tokens."""
    if where is None:
        return real
    if tuple(where.shape) != tuple(real.shape) or where.dtype != torch.bool:
        raise BasinsError(
            f"where is {where.dtype} of shape {list(where.shape)}; it must be torch.bool of shape {list(real.shape)} "
            "(sequence, position), True at the positions that count."
        )
    return where.to(real.device) & real
