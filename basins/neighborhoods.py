"""Some tokens with their nearest neighbours, transition by transition, ready to be pushed through the block anyhow.

Scores push each neighbour once, into its query's place. What costs more (neighbours in each other's contexts, at
several radii) is done for a sample of the queries: the same tokens at every layer.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from basins.activations import check_mask, check_tokens
from basins.errors import BasinsError
from basins.lens import model_name, n_layers
from basins.neighbors import TokenTable, find_neighbors, table_of
from basins.pushing import Place, places, places_of_cache
from basins.settings import ScorerSettings, versions, whole


@dataclass(frozen=True)
class Neighborhood:
    """Sampled queries at one transition: flat ids `sequence * n_pos + position`, and their neighbours' flat ids.

    `scored` is False where a query has fewer neighbours than k under the rules.
    """

    place: Place
    queries: Int[Tensor, "query"]
    neighbors: Int[Tensor, "query k"]
    scored: Bool[Tensor, "query"]

    @property
    def layer(self) -> int:
        return self.place.layer

    def states(self) -> Float[Tensor, "bank d_model"]:
        return self.place.states.flatten(0, 1)


def sample_queries(
    usable: Bool[Tensor, "batch pos"], sample: int, seed: int, among: Bool[Tensor, "batch pos"] | None = None
) -> Int[Tensor, "query"]:
    """Flat ids of `sample` tokens drawn from those usable (and in `among`), in rising order; all where fewer."""
    whole("sample", sample, 2, "it counts the tokens that are looked at, drawn at random.")
    allowed = usable if among is None else usable & among
    ids = allowed.flatten().nonzero()[:, 0]
    if len(ids) < 2:
        raise BasinsError(
            f"{len(ids)} of {usable.numel()} positions can be queries (padding and the first positions are left out). "
            "Pass more tokens, or a smaller exclude_first."
        )
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    return ids[order[: int(sample)]].sort().values


def neighborhoods(
    model: Any,
    settings: ScorerSettings,
    source: Any,
    tokens: Int[Tensor, "batch pos"] | None = None,
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    layers: int | Iterable[int] | None = None,
    *,
    sample: int,
    among: Bool[Tensor, "batch pos"] | None = None,
    dtype: torch.dtype | None = None,
) -> Generator[Neighborhood]:
    """One Neighborhood a transition, in rising order, each good until the next is asked for.

    `source`: a cache, with `tokens` as `BasinScorer.score` takes them; or token ids, which are swept layer by layer.
    Neighbours follow `settings`; the bank is the scored tokens themselves. Close it (`contextlib.closing`).
    """
    options: dict[str, Any] = {"dtype": dtype, "precision": settings.precision, "batch_size": settings.batch_size}
    options["seed"] = settings.seed
    if torch.is_tensor(source):
        if tokens is not None:
            raise BasinsError("token ids were passed twice. Pass a cache and tokens=..., or token ids alone.")
        tokens = source
        transitions = places(model, tokens, attention_mask, layers, **options)
    else:
        transitions = places_of_cache(model, source, tokens, attention_mask, layers, **options)
    if settings.neighbors == "same_token" and tokens is None:
        raise BasinsError('neighbors="same_token" needs the token ids of the cache. Pass tokens=... with the cache.')
    queries = None
    with closing(transitions):
        for place in transitions:
            shape = (place.states.shape[0], place.states.shape[1])
            table = table_of(check_mask(attention_mask, shape), check_tokens(tokens, shape), settings.exclude_first)
            if queries is None:
                queries = sample_queries(table.usable.view(shape), sample, settings.seed, among)
            yield _search(place, queries, table, settings)


def _search(place: Place, queries: Tensor, table: TokenTable, settings: ScorerSettings) -> Neighborhood:
    asked = torch.zeros_like(table.usable)
    asked[queries] = True
    states = place.states.flatten(0, 1)
    found = find_neighbors(states, replace(table, usable=asked), states, table, settings, same=True)
    ids = found.ids[queries.to(found.ids.device)].cpu()
    return Neighborhood(place, queries, ids, ids[:, 0] >= 0)


def about(model: Any, settings: ScorerSettings, queries: int) -> dict[str, Any]:
    """What a result on sampled queries depends on, as plain values."""
    return settings.as_dict() | {
        "dtype": settings.dtype,
        "model": model_name(model),
        "n_layers": n_layers(model),
        "sampled_queries": queries,
        "versions": versions(),
    }
