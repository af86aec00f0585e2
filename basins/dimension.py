"""Intrinsic dimension of the states around a token, from the distances to its nearest neighbours alone.

Two estimators: maximum likelihood over k neighbours (Levina and Bickel 2004; averaged as MacKay and Ghahramani 2005
have it) and two-NN, from the ratio mu = r2 / r1 of the two nearest (Facco, d'Errico, Rodriguez and Laio 2017).

Equal states are one state. A distance of 0 is a duplicate of the token itself and is left out, and equal distances
count once: in floating point they are copies of one state far more often than two states equally far. So repeating the
bank changes nothing, as long as k reaches the same distinct states. Where too few distinct distances are left the
dimension is NaN, never 0 or infinite. Distances must be Euclidean: `1 - cosine` grows with the square of the chord.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.errors import BasinsError, choose
from basins.neighbors import find_neighbors, table_of
from basins.settings import ScorerSettings

# One ratio of two distances has an estimate of infinite variance; MLE asks for two ratios.
LEAST_DISTANCES = 3
MEANS = ("harmonic", "arithmetic")


def neighbor_distances(states: Float[Tensor, "token d_model"], k: int = 15) -> Float[Tensor, "token k"]:
    """Euclidean distances of every state to its k nearest others, nearest first, float64: exact, duplicates kept."""
    if states.ndim != 2:
        raise BasinsError(f"states has shape {list(states.shape)}; it must be one row a token: flatten batch and pos.")
    if len(states) <= k:
        raise BasinsError(f"{len(states)} states have no {k} nearest others each. Pass more states or a smaller k.")
    table = table_of(torch.ones(1, len(states), dtype=torch.long), None, 0)
    states = states.detach() if states.dtype == torch.float64 else states.detach().float()
    return find_neighbors(states, table, states, table, ScorerSettings(k=k), same=True).distances.double()


def local_mle(distances: Float[Tensor, "*token k"], unbiased: bool = False) -> Float[Tensor, "*token"]:
    """m(x) = (k - 1) / sum_j ln(T_k / T_j), over a token's own k distinct distances T_1 < ... < T_k.

    `unbiased` has k - 2 in place of k - 1. NaN with fewer than 3 distinct positive distances.
    """
    ordered, fresh = _distinct(distances, least_k=LEAST_DISTANCES)
    count = fresh.sum(-1)
    farthest = ordered[..., -1:]
    logs = torch.where(fresh, farthest.log() - ordered.log(), 0.0).sum(-1)
    return ((count - 1 - int(unbiased)) / logs).masked_fill(count < LEAST_DISTANCES, float("nan"))


def global_mle(distances: Float[Tensor, "*token k"], unbiased: bool = False, mean: str = "harmonic") -> float:
    """One dimension for all tokens. "harmonic" is the likelihood's maximum (MacKay and Ghahramani 2005), "arithmetic"
    what Levina and Bickel propose, which is larger. NaN where no token has a local one."""
    choose("mean", mean, MEANS)
    local = local_mle(distances, unbiased)
    local = local[local.isfinite()]
    if not len(local):
        return float("nan")
    return float(local.mean() if mean == "arithmetic" else 1 / (1 / local).mean())


def log_ratios(distances: Float[Tensor, "*token k"]) -> Float[Tensor, "*token"]:
    """ln mu = ln(r2 / r1), r1 < r2 a token's two smallest distinct positive distances; NaN where there are fewer."""
    ordered, fresh = _distinct(distances, least_k=2)
    place = torch.where(fresh, fresh.cumsum(-1), 0)
    first, second = (torch.where(place == number, ordered, 0.0).sum(-1) for number in (1, 2))
    return (second.log() - first.log()).masked_fill(place.amax(-1) < 2, float("nan"))


def pooled_two_nn(ratios: Float[Tensor, "*token n"]) -> Float[Tensor, "*token"]:
    """Two-NN by maximum likelihood over n tokens: (n - 1) / sum ln mu, without bias; NaN entries are left out.

    ln mu is exponential with rate d, which gives the estimate. NaN with fewer than 2 values.
    """
    count = ratios.isfinite().sum(-1)
    found = (count - 1) / ratios.double().masked_fill(~ratios.isfinite(), 0).sum(-1)
    return found.masked_fill(count < 2, float("nan"))


def local_two_nn(distances: Float[Tensor, "token k"], neighbor_ids: Int[Tensor, "token k"]) -> Float[Tensor, "token"]:
    """Two-NN around every token: `pooled_two_nn` over its own ratio and those of its k neighbours.

    Ids count rows of `distances` (the bank is the tokens themselves), -1 where there is no neighbour. Each ratio is
    taken among all states, unlike in scikit-dimension, which looks for the nearest within the neighbourhood only.
    """
    if neighbor_ids.numel() and int(neighbor_ids.max()) >= len(distances):
        raise BasinsError(
            f"neighbor_ids reach {int(neighbor_ids.max())} and there are {len(distances)} tokens: these neighbours "
            "come from another bank (fit). A local two-NN needs the bank's own distances; use local_mle or log_ratios."
        )
    ratios = log_ratios(distances)
    around = ratios[neighbor_ids.clamp_min(0)].masked_fill(neighbor_ids < 0, float("nan"))
    found = pooled_two_nn(torch.cat([ratios[:, None], around], -1))
    return found.masked_fill(ratios.isnan(), float("nan"))


def global_two_nn(distances: Float[Tensor, "*token k"], discard: float = 0.1) -> float:
    """Slope of -ln(1 - F(mu)) on ln mu through the origin, without the `discard` share of largest ratios (Facco).

    F is the share of tokens with a ratio of at most mu. NaN with fewer than 2 ratios left.
    """
    if not 0 <= discard < 1:
        raise BasinsError(f"discard={discard} is out of range: a share of at least 0 and below 1; the paper has 0.1.")
    return slope_two_nn(log_ratios(distances), discard)


def slope_two_nn(ratios: Float[Tensor, "*token"], discard: float = 0.1) -> float:
    """`global_two_nn` from the tokens' ln mu; NaN entries are left out."""
    ratios = ratios[ratios.isfinite()].sort().values
    # The largest has F = 1, whose logarithm is infinite.
    kept = min(int(len(ratios) * (1 - discard)), len(ratios) - 1)
    if kept < 2:
        return float("nan")
    x = ratios[:kept]
    y = -torch.log1p(-torch.arange(1, kept + 1, dtype=torch.float64) / len(ratios)).to(x.device)
    return float((x * y).sum() / x.square().sum())


def _distinct(distances: Tensor, least_k: int) -> tuple[Tensor, Tensor]:
    """(distances in order, float64; True at each that is positive and larger than the one before)."""
    if distances.ndim < 1 or distances.shape[-1] < least_k:
        raise BasinsError(
            f"distances has shape {list(distances.shape)}; the last axis holds a token's nearest distances and needs "
            f"at least {least_k} of them."
        )
    ordered = distances.detach().double().sort(-1).values
    if bool((ordered < 0).any()):
        raise BasinsError("distances holds negative values. Squared distances or similarities? Pass distances.")
    before = torch.cat([torch.zeros_like(ordered[..., :1]), ordered[..., :-1]], -1)
    return ordered, (ordered > before) & ordered.isfinite()
