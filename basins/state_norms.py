"""How long the state of every token is, at every layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.activations import check_mask, check_tokens
from basins.corpus import check_room
from basins.errors import BasinsError
from basins.lens import as_found, check_layers, resid_pre, run
from basins.sources import plan_batch


def state_norms(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    layers: int | Iterable[int] | None = None,
    batch_size: int | None = None,
) -> Float[Tensor, "layer batch pos"]:
    """Euclidean norm of the state entering each layer (`layers`: transitions, None for all); NaN at padding.

    One forward pass in micro-batches; of each layer only the norms are kept, in float32 or better.
    """
    ids = check_tokens(tokens, None)
    if ids is None:
        raise BasinsError("tokens is None. Pass token ids, one row a sequence.")
    check_room(model, ids)
    mask = check_mask(attention_mask, (ids.shape[0], ids.shape[1]))
    wanted = check_layers(model, layers)
    norms = torch.full((len(wanted), *ids.shape), float("nan"), dtype=torch.float32)

    def keeper(place: int, rows: Tensor) -> Any:
        def keep(value: Tensor, hook: Any) -> None:
            wide = value.detach() if value.dtype == torch.float64 else value.detach().float()
            norms[place, rows] = wide.norm(dim=-1).to("cpu", norms.dtype)

        return keep

    with as_found(model):
        for rows in torch.arange(len(ids)).split(batch_size or plan_batch(model, ids.shape[1])):
            hooks = [(resid_pre(layer), keeper(place, rows)) for place, layer in enumerate(wanted)]
            run(model, ids[rows], mask[rows], hooks, until=resid_pre(wanted[-1]))
    return norms.masked_fill(mask == 0, float("nan"))
