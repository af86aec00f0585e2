"""What the model says about every token of a text, given the tokens before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from basins.activations import check_mask, check_tokens
from basins.corpus import check_room
from basins.errors import BasinsError
from basins.lens import as_found, input_device
from basins.settings import whole
from basins.sources import FLOATS_PER_CALL, plan_batch

POSITIONS_AT_ONCE = 2**22  # logits, whose distributions are summed up at once: bounds what float32 copies take


@dataclass(frozen=True)
class NextToken:
    """The model's next-token distribution p, from the tokens before, at each token.

    `loss`: -ln p(token), nats. `hit`: whether the token is the model's first choice (of equal logits: the lowest id).
    `mean_log_prob`: E_{z~p}[ln p(z)], the negative entropy, and `std_log_prob`: the standard deviation of ln p(z) under
    p, nats; Min-K%++ (Zhang et al. 2024) standardises ln p(token) by these two.

    Value p of a row is about token p. The first real token of a row and padding have none: NaN, and False.
    """

    loss: Float[Tensor, "batch pos"]
    hit: Bool[Tensor, "batch pos"]
    mean_log_prob: Float[Tensor, "batch pos"]
    std_log_prob: Float[Tensor, "batch pos"]

    def __repr__(self) -> str:
        known = ~self.loss.isnan()
        n = int(known.sum())
        return f"NextToken({n} tokens, mean loss {float(self.loss[known].mean()):.3f}, {int(self.hit.sum())} hits)"


def token_losses(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    batch_size: int | None = None,
) -> Float[Tensor, "batch pos"]:
    """-ln p(token | the tokens before it), nats; NaN at padding and at the first real position of each row."""
    return next_tokens(model, tokens, attention_mask, batch_size).loss


def next_tokens(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    batch_size: int | None = None,
) -> NextToken:
    """`NextToken` of every row in one pass, `batch_size` rows at a time (None: as many as memory is planned for).

    In float32, or in float64 for a float64 model. How rows are batched changes values by rounding only, so `hit` may
    differ where two logits are equal within rounding. Raises BasinsError for tokens that the model has no room for, and
    where its logits are NaN.
    """
    ids = check_tokens(tokens, None)
    if ids is None:
        raise BasinsError("tokens is None. Pass token ids, one row a sequence.")
    check_room(model, ids)
    mask = check_mask(attention_mask, (ids.shape[0], ids.shape[1]))
    if batch_size is not None:
        whole("batch_size", batch_size, 1, "it counts sequences; None plans it from memory.")
    predicted = torch.zeros_like(mask, dtype=torch.bool)
    predicted[:, 1:] = (mask[:, 1:] * mask[:, :-1]).bool()
    found: dict[str, Tensor] = {}
    with as_found(model), torch.no_grad():
        for rows, columns in _parts(model, mask, batch_size):
            here = mask[rows, columns]
            if here.shape[1] < 2:
                continue
            some, wanted = ids[rows, columns].to(input_device(model)), predicted[rows, columns][:, 1:]
            logits = model(some, attention_mask=here.to(some.device), return_type="logits")[:, :-1]
            values = _distributions(logits[wanted.to(logits.device)], some[:, 1:][wanted.to(some.device)])
            at = torch.zeros_like(predicted)
            at[rows, columns] = predicted[rows, columns]
            for name, value in values.items():
                kept = found.setdefault(name, torch.full(ids.shape, float("nan"), dtype=value.dtype))
                kept[at] = value.cpu()
    nothing = torch.full(ids.shape, float("nan"))
    loss = found.get("loss", nothing)
    if bool(loss[predicted].isnan().any()):
        raise BasinsError(
            "the model's logits hold NaN. Are its weights finite? In float16 sums may overflow: use float32."
        )
    return NextToken(
        loss,
        predicted & (found.get("hit", nothing) == 1),
        found.get("mean_log_prob", nothing),
        found.get("std_log_prob", nothing),
    )


def _parts(model: Any, mask: Int[Tensor, "batch pos"], batch_size: int | None) -> Iterator[tuple[slice, slice]]:
    """Rows that go together, and the columns in which any of them has a real token."""
    size = batch_size or min(plan_batch(model, mask.shape[1]), _rows_of_logits(model, mask.shape[1]))
    for start in range(0, len(mask), size):
        rows = slice(start, start + size)
        real = mask[rows].any(0).nonzero()[:, 0]
        yield rows, slice(int(real[0]), int(real[-1]) + 1)


def _rows_of_logits(model: Any, length: int) -> int:
    d_vocab = int(getattr(model.cfg, "d_vocab", None) or 1)
    return max(1, FLOATS_PER_CALL.get(input_device(model).type, 2**24) // (length * d_vocab))


def _distributions(
    logits: Float[Tensor, "token d_vocab"], ids: Int[Tensor, "token"]
) -> dict[str, Float[Tensor, "token"]]:
    """Each row's `NextToken`, some rows at a time, in float32 or better."""
    parts: dict[str, list[Tensor]] = {"loss": [], "hit": [], "mean_log_prob": [], "std_log_prob": []}
    dtype = torch.promote_types(logits.dtype, torch.float32)
    step = max(1, POSITIONS_AT_ONCE // logits.shape[-1])
    ids = ids.to(logits.device)
    for some, chosen in zip(logits.split(step), ids.split(step), strict=True):
        log_p = some.to(dtype).log_softmax(-1)
        p = log_p.exp()
        # A token that is masked out (logit -inf) has p = 0 and adds nothing, though its logarithm is infinite.
        log_p_or_0 = log_p.masked_fill(p == 0, 0)
        mean = (p * log_p_or_0).sum(-1)
        parts["loss"].append(-log_p.gather(-1, chosen[:, None])[:, 0])
        parts["hit"].append((some.argmax(-1) == chosen).to(dtype))
        parts["mean_log_prob"].append(mean)
        parts["std_log_prob"].append((p * (log_p_or_0 - mean[:, None]).square()).sum(-1).sqrt())
    return {name: torch.cat(values) for name, values in parts.items()}
