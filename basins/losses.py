"""How well the model predicts every token of a text."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.activations import check_mask, check_tokens
from basins.corpus import check_room
from basins.errors import BasinsError
from basins.lens import as_found, input_device
from basins.sources import plan_batch


def token_losses(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    batch_size: int | None = None,
) -> Float[Tensor, "batch pos"]:
    """-ln p(token | the tokens before it), nats; NaN at padding and at the first real position of each row."""
    ids = check_tokens(tokens, None)
    if ids is None:
        raise BasinsError("tokens is None. Pass token ids, one row a sequence.")
    check_room(model, ids)
    mask = check_mask(attention_mask, (ids.shape[0], ids.shape[1]))
    losses = torch.full(ids.shape, float("nan"))
    with as_found(model), torch.no_grad():
        for rows in torch.arange(len(ids)).split(batch_size or plan_batch(model, ids.shape[1])):
            some = ids[rows].to(input_device(model))
            logits = model(some, attention_mask=mask[rows].to(some.device), return_type="logits").float()
            found = -logits[:, :-1].log_softmax(-1).gather(-1, some[:, 1:, None])[..., 0]
            losses[rows, 1:] = found.cpu()
    predicted = torch.zeros_like(mask, dtype=torch.bool)
    predicted[:, 1:] = (mask[:, 1:] * mask[:, :-1]).bool()
    return losses.masked_fill(~predicted, float("nan"))
