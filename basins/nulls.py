"""What a score would be if the neighbours were not the nearest: other states, directions, order.

Three nulls keep the token's place and context and replace its k neighbours; each says what the nearest neighbours add:

random neighbours: k states drawn among those that the neighbour rule allows. Is it about being near?
transplanted displacements: another token's x_j' - x', all scaled by one number so that the mean squared distance to the
token is that of its own neighbours. Is it about this token's own directions?
isotropic displacements: Gaussian in all directions, scaled so that V_in is that of the token's own neighbours. Is it
about the directions in which text varies at all?
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.activations import check_mask
from basins.errors import BasinsError, choose
from basins.neighbors import TokenTable, forbidden, table_of
from basins.pushing import Place, places
from basins.scores import LEAST_DISTINCT, BasinScores, variance
from basins.settings import SETTING_NAMES, ScorerSettings

RANDOM_NEIGHBORS, TRANSPLANTED, ISOTROPIC = NULLS = (
    "random neighbours",
    "transplanted displacements",
    "isotropic displacements",
)
FLOATS_AT_ONCE = 2**24
PAIRS_AT_ONCE = 2**23


def null_scores(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None,
    scores: BasinScores,
    nulls: Iterable[str] = NULLS,
    *,
    seed: int = 0,
) -> dict[str, BasinScores]:
    """Null -> scores of the same tokens at the same layers, in the same settings as `scores`, which were of `tokens`.

    `neighbor_ids` are those drawn (transplanted: the donor's; isotropic: -1), distances those of
    the displaced states, `n_distinct` that of the observed neighbours. A token and layer without an observed score has
    none here either. The draws of a layer depend on `seed` and the layer alone.
    """
    wanted = [choose("null", null, NULLS) for null in nulls]
    check_own(scores, tokens)
    mask = check_mask(attention_mask, (tokens.shape[0], tokens.shape[1]))
    table = table_of(mask, tokens, scores.settings["exclude_first"])
    measured: dict[str, list[dict[str, Tensor]]] = {null: [] for null in wanted}
    settings = ScorerSettings(**{name: scores.settings[name] for name in SETTING_NAMES})
    dtype = getattr(torch, scores.settings["dtype"])
    precision = scores.settings["precision"]
    for place in places(model, tokens, mask, scores.layers, dtype=dtype, precision=precision, seed=seed):
        i = scores.layer_index(place.layer)
        ids = scores.neighbor_ids[i].flatten(0, 1)
        eligible = donors_of(scores, i)
        for null in wanted:
            draws = generator(seed, place.layer, NULLS.index(null))
            measured[null].append(_measure(null, place, ids, eligible, table, settings, draws))
    return {null: _assemble(null, parts, scores, seed) for null, parts in measured.items()}


def check_own(scores: BasinScores, tokens: Int[Tensor, "batch pos"]) -> None:
    """Nulls are drawn from the scored tokens themselves, as they are."""
    if scores.tokens is None or not scores.tokens.equal(tokens.cpu()):
        raise BasinsError("scores are not of these tokens. Pass the tokens that were scored, and their mask.")
    if isinstance(scores.settings["bank"], dict):
        raise BasinsError("scores come from a fitted bank. Score without fit(): nulls are drawn from the same tokens.")
    for name, plain in (("method", "rerun"), ("normalize", False), ("shrink", 1.0)):
        if scores.settings[name] != plain:
            raise BasinsError(f"{name}={scores.settings[name]!r} has no null here. Score with {name}={plain!r}.")


def generator(seed: int, layer: int, purpose: int) -> torch.Generator:
    """Draws of one layer and purpose do not depend on which others are made."""
    return torch.Generator().manual_seed((seed * 4096 + layer) * 16 + purpose)


def donors_of(scores: BasinScores, i: int) -> Int[Tensor, "donor"]:
    """Flat ids of the tokens whose neighbours are a cloud: at least 3 distinct states among them and the token."""
    cloud = scores.relative[i].isfinite() & (scores.n_distinct[i] >= LEAST_DISTINCT)
    return cloud.flatten().nonzero()[:, 0]


def _measure(
    null: str,
    place: Place,
    ids: Int[Tensor, "token k"],
    eligible: Int[Tensor, "donor"],
    table: TokenTable,
    settings: ScorerSettings,
    draws: torch.Generator,
) -> dict[str, Tensor]:
    """Variances, ids and distances of one null at one layer, a row a token."""
    states = place.states.flatten(0, 1)
    queries = (ids[:, 0] >= 0).nonzero()[:, 0]
    drawn, donor = torch.full_like(ids, -1), queries
    if null == RANDOM_NEIGHBORS:
        drawn = random_neighbors(table, settings, draws)
        drawn = drawn.masked_fill((ids[:, :1] < 0), -1)
    elif null == TRANSPLANTED:
        donor = other_token(queries, eligible, draws)
        drawn[queries] = ids[donor]
    rows = states.shape[0]
    found = {name: states.new_full((rows,), float("nan")) for name in ("var_in", "var_out", "var_update")}
    distances = states.new_full(ids.shape, float("nan"))
    step = max(1, FLOATS_AT_ONCE // (ids.shape[1] * states.shape[1]))
    for start in range(0, len(queries), step):
        some = queries[start : start + step]
        if null == RANDOM_NEIGHBORS:
            cloud = states[drawn[some]]
        elif null == TRANSPLANTED:
            cloud = transplanted(states, ids, some, donor[start : start + step])
        else:
            cloud = isotropic(states[some], states[ids[some]], draws)
        outputs = push_clouds(place, cloud, some)
        distances[some] = (cloud - states[some, None]).norm(dim=-1)
        for name, value in zip(found, (cloud, outputs, outputs - cloud), strict=True):
            found[name][some] = variance(value)
    return found | {"neighbor_ids": drawn, "neighbor_distances": distances}


def push_clouds(
    place: Place, clouds: Float[Tensor, "query k d_model"], queries: Int[Tensor, "query"]
) -> Float[Tensor, "query k d_model"]:
    """Every state of a cloud pushed through the block in its query's place."""
    k = clouds.shape[1]
    return place.push(clouds.flatten(0, 1), queries.repeat_interleave(k)).view(clouds.shape)


def random_neighbors(table: TokenTable, settings: ScorerSettings, draws: torch.Generator) -> Int[Tensor, "token k"]:
    """k different states for every usable token, each subset of those the rules allow equally likely; -1: too few."""
    n, k = len(table.usable), settings.k
    found = torch.full((n, k), -1, dtype=torch.long)
    queries, members = table.usable.nonzero()[:, 0], torch.arange(n)
    for some in queries.split(max(1, PAIRS_AT_ONCE // n)):
        out = forbidden(table, table, settings, True, some[:, None], members[None, :]) | ~table.usable
        keys = torch.rand(len(some), n, generator=draws).masked_fill(out, 2)
        if k > n:
            continue
        smallest = keys.topk(k, largest=False, sorted=True)
        enough = smallest.values[:, -1] < 2
        found[some[enough]] = smallest.indices[enough]
    return found


def other_token(
    queries: Int[Tensor, "query"], eligible: Int[Tensor, "donor"], draws: torch.Generator
) -> Int[Tensor, "query"]:
    """For every query an eligible token that is not itself, all equally likely."""
    if len(eligible) < 2:
        raise BasinsError(f"{len(eligible)} tokens have neighbours to give away; a transplanted null needs at least 2.")
    own = torch.searchsorted(eligible, queries)
    is_eligible = eligible[own.clamp_max(len(eligible) - 1)] == queries
    room = len(eligible) - is_eligible.long()
    drawn = (torch.rand(len(queries), generator=draws, dtype=torch.float64) * room).long().minimum(room - 1)
    return eligible[drawn + (is_eligible & (drawn >= own)).long()]


def transplanted(
    states: Float[Tensor, "token d_model"],
    ids: Int[Tensor, "token k"],
    queries: Int[Tensor, "query"],
    donors: Int[Tensor, "query"],
) -> Float[Tensor, "query k d_model"]:
    """x + s (x_j' - x') for the donor's state x' and neighbours x_j'; s equates the mean squared distances."""
    own = (states[ids[queries]] - states[queries, None]).square().sum(-1).mean(-1)
    displacements = states[ids[donors]] - states[donors, None]
    theirs = displacements.square().sum(-1).mean(-1)
    return states[queries, None] + displacements * (own / theirs).sqrt()[:, None, None]


def isotropic(
    query: Float[Tensor, "query d_model"], cloud: Float[Tensor, "query k d_model"], draws: torch.Generator
) -> Float[Tensor, "query k d_model"]:
    """x + s g_j, g_j standard normal in every dimension; s equates V_in with that of the observed cloud."""
    noise = torch.randn(cloud.shape, generator=draws, dtype=torch.float64)
    scale = (variance(cloud.double()).cpu() / variance(noise.clone())).sqrt()
    return query[:, None] + (noise * scale[:, None, None]).to(cloud)


def shuffled_order(attention_mask: Int[Tensor, "batch pos"], seed: int) -> Int[Tensor, "batch pos"]:
    """Where each position's token comes from when the tokens of every row are shuffled; its first and padding stay."""
    order = torch.arange(attention_mask.shape[1]).repeat(len(attention_mask), 1)
    draws = torch.Generator().manual_seed(seed)
    for row, real in enumerate(attention_mask.bool()):
        inner = real.nonzero()[1:, 0]
        order[row, inner] = inner[torch.randperm(len(inner), generator=draws)]
    return order


def _assemble(null: str, parts: list[dict[str, Tensor]], scores: BasinScores, seed: int) -> BasinScores:
    shape = scores.var_in.shape
    stacked = {
        name: torch.stack([part[name].cpu().view(*shape[1:], *part[name].shape[1:]) for part in parts])
        for name in parts[0]
    }
    eps, variances = scores.settings["eps"], ("var_in", "var_out", "var_update")
    new = BasinScores.from_variances(
        *(stacked[name] for name in variances),
        eps=eps,
        neighbor_ids=stacked["neighbor_ids"],
        neighbor_distances=stacked["neighbor_distances"],
        n_distinct=scores.n_distinct,
        same_token_share=None,
        layers=scores.layers,
        tokens=scores.tokens,
        token_strings=scores.token_strings,
        settings=scores.settings | {"null": null, "null_seed": seed},
    )
    return replace(new, relative=new.relative.masked_fill(scores.relative.isnan(), float("nan")))
