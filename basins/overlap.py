"""How much two neighbourhoods have in common: from one layer to the next, and by two ways through one block."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.errors import BasinsError
from basins.neighborhoods import Neighborhood


def overlap(first: Int[Tensor, "*token k"], second: Int[Tensor, "*token k"]) -> Float[Tensor, "*token"]:
    """Share of each token's k neighbours in `first` that are among its k in `second`, in any order.

    Its mean over tokens is the neighbourhood overlap chi of Valeriani et al. (2023, "The geometry of hidden
    representations of large transformer models"): 1 where every neighbourhood stays, about k / number of candidates
    where they are unrelated. NaN where either has too few neighbours (id -1).
    """
    if first.shape != second.shape or first.ndim < 2:
        raise BasinsError(
            f"neighbour ids of shapes {list(first.shape)} and {list(second.shape)}: both must be [token, k] for the "
            "same tokens and the same k."
        )
    shared = (first[..., :, None] == second[..., None, :]).any(-1).double().mean(-1)
    return shared.masked_fill((first < 0).any(-1) | (second < 0).any(-1), float("nan"))


def nearest_after(hood: Neighborhood) -> tuple[Float[Tensor, "query"], Float[Tensor, "query"]]:
    """Whether the re-run and the looked-up block leave the same of a query's k neighbours nearest to it.

    Distances go to the query's own output: from B_L(x_j; the query's context), and from X_{L+1}[j], which was made in
    j's own context. Returns, for each query, the share of the k // 3 nearest by re-running that are among the k // 3
    nearest by looking up (1/3 by chance), and Spearman's correlation of the two orders of the k. NaN where a query has
    too few neighbours.
    """
    share, rho = (torch.full((len(hood.queries),), float("nan"), dtype=torch.float64) for _ in range(2))
    at, ids = hood.queries[hood.scored], hood.neighbors[hood.scored]
    if not len(at):
        return share, rho
    states, outputs = hood.states(), hood.place.outputs.flatten(0, 1).double()
    rerun = hood.place.push(states[ids].flatten(0, 1), at.repeat_interleave(ids.shape[1])).view(*ids.shape, -1)
    own = outputs[at][:, None]
    by_rerun, by_lookup = ((found - own).norm(dim=-1).cpu() for found in (rerun.double(), outputs[ids]))
    k = ids.shape[1]
    nearest = max(1, k // 3)
    places = [distances.argsort(dim=1, stable=True)[:, :nearest] for distances in (by_rerun, by_lookup)]
    share[hood.scored] = overlap(*places)
    ranks = [distances.argsort(dim=1, stable=True).argsort(1).double() for distances in (by_rerun, by_lookup)]
    # Without ties Spearman's correlation is 1 - 6 sum d^2 / (k (k^2 - 1)).
    rho[hood.scored] = 1 - 6 * (ranks[0] - ranks[1]).square().sum(1) / (k * (k * k - 1))
    return share, rho
