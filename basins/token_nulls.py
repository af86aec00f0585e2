"""One token's score against 999 transplanted ones, and how much it would move with other neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.activations import check_mask
from basins.nulls import check_own, donors_of, generator, push_clouds, transplanted
from basins.pushing import Place, places
from basins.scores import BasinScores, relative_score, variance

CLOUDS_AT_ONCE = 2**24  # floats


@dataclass(frozen=True)
class TokenTests:
    """A row a tested token. `relative` and its jackknife error `se` in nats; `null` sorted, NaN beyond `n_draws`."""

    layer: Int[Tensor, "test"]
    token: Int[Tensor, "test"]
    relative: Float[Tensor, "test"]
    se: Float[Tensor, "test"]
    null: Float[Tensor, "test draw"]
    n_draws: Int[Tensor, "test"]
    p: Float[Tensor, "test"]


def token_tests(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None,
    scores: BasinScores,
    *,
    layers: tuple[int, ...],
    n_tokens: int = 20,
    n_draws: int = 999,
    seed: int = 0,
) -> TokenTests:
    """At each of `layers` (all were scored) `n_tokens` tokens, drawn at random, each against its transplanted null.

    A draw is the relative score that the token would have, in its place and context, with the displacements of another
    token's neighbours at its own mean squared radius (`basins.nulls`). Donors are drawn without replacement; where
    fewer than `n_draws` other tokens have neighbours all of them are taken, once. p is `two_sided`.
    """
    check_own(scores, tokens)
    mask = check_mask(attention_mask, (tokens.shape[0], tokens.shape[1]))
    dtype = getattr(torch, scores.settings["dtype"])
    precision, eps = scores.settings["precision"], scores.settings["eps"]
    rows: list[dict[str, Tensor]] = []
    # All states of a test stand in one row: rows beside it would be run for nothing.
    options: dict[str, Any] = {"dtype": dtype, "precision": precision, "batch_size": 1, "seed": seed}
    for place in places(model, tokens, mask, layers, **options):
        i = scores.layer_index(place.layer)
        ids, donors = scores.neighbor_ids[i].flatten(0, 1), donors_of(scores, i)
        draws = generator(seed, place.layer, 8)
        tested = donors[torch.randperm(len(donors), generator=draws)[:n_tokens]].sort().values
        states = place.states.flatten(0, 1)
        cloud = states[ids[tested]]
        after = push_clouds(place, cloud, tested)
        observed = relative_score(variance(cloud.double()), variance(after.double()), eps)
        errors = jackknife(cloud, after, eps)
        for token, value, error in zip(tested, observed, errors, strict=True):
            others = donors[donors != token]
            chosen = others[torch.randperm(len(others), generator=draws)[:n_draws]]
            null = _null(place, states, ids, token, chosen, eps).cpu()
            row = {"layer": torch.tensor(place.layer), "token": token, "relative": value.cpu(), "se": error.cpu()}
            null = null[null.isfinite()]
            row |= {"n_draws": torch.tensor(len(null)), "p": two_sided(value.cpu(), null)}
            room = torch.full((n_draws,), float("nan"), dtype=null.dtype)
            room[: len(null)] = null.sort().values
            rows.append(row | {"null": room})
    names = ("layer", "token", "relative", "se", "null", "n_draws", "p")
    return TokenTests(**{name: torch.stack([row[name] for row in rows]) for name in names})


def _null(
    place: Place,
    states: Float[Tensor, "token d_model"],
    ids: Int[Tensor, "token k"],
    token: Int[Tensor, ""],
    donors: Int[Tensor, "donor"],
    eps: float,
) -> Float[Tensor, "donor"]:
    parts = []
    for some in donors.split(max(1, CLOUDS_AT_ONCE // (ids.shape[1] * states.shape[1]))):
        here = token.expand(len(some))
        cloud = transplanted(states, ids, here, some)
        after = push_clouds(place, cloud, here)
        parts.append(relative_score(variance(cloud.double()), variance(after.double()), eps))
    return torch.cat(parts)


def two_sided(observed: Float[Tensor, ""], null: Float[Tensor, "draw"]) -> Float[Tensor, ""]:
    """Twice the smaller of (1 + #{null >= observed}) / (1 + n) and (1 + #{null <= observed}) / (1 + n), at most 1."""
    above, below = (null >= observed).sum(), (null <= observed).sum()
    return (2 * (1 + torch.minimum(above, below)).double() / (1 + len(null))).clamp_max(1)


def jackknife(
    before: Float[Tensor, "token k d_model"], after: Float[Tensor, "token k d_model"], eps: float
) -> Float[Tensor, "token"]:
    """Standard error of the relative score over its k neighbours, leaving out one at a time (Tukey 1958).

    sqrt((k - 1) / k * sum_j (R_-j - mean)^2), R_-j the score of the k - 1 others. NaN for k = 2, where one is left.
    Without neighbour j the sum of squares about the mean falls by k / (k - 1) |x_j - mean|^2.
    """
    k = before.shape[1]
    if k < 3:
        return before.new_full((len(before),), math.nan, dtype=torch.float64)
    left = []
    for states in (before.double(), after.double()):
        centred = states - states.mean(1, keepdim=True)
        squared = centred.square().sum(-1)
        rest = squared.sum(1, keepdim=True) - k / (k - 1) * squared
        left.append(rest.clamp_min(0) / (k - 1))
    scores = relative_score(left[0], left[1], eps)
    return ((k - 1) / k * (scores - scores.mean(1, keepdim=True)).square().sum(1)).sqrt()
