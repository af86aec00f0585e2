"""How long the state of every token is, at every layer."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.activations import check_mask
from basins.lens import as_found
from basins.passes import Passes
from basins.sources import plan_batch


def state_norms(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None,
    layers: tuple[int, ...],
    batch_size: int | None = None,
) -> Float[Tensor, "layer batch pos"]:
    """L2 norm of the state entering each of `layers`; NaN at padding."""
    mask = check_mask(attention_mask, (tokens.shape[0], tokens.shape[1]))
    size = batch_size or plan_batch(model, tokens.shape[1])
    passes = Passes(model, tokens, mask, mask.bool(), layers, size, torch.float32)
    norms = passes.blank()
    with as_found(model):
        for rows in passes.chunks():
            for i, states in enumerate(passes.states(rows, layers).values()):
                norms[i, rows] = states.float().norm(dim=-1).cpu()
    return norms.masked_fill(mask == 0, float("nan"))
