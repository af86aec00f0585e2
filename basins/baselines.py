"""What a model's losses alone say about memorisation: the baselines that a score of compression must add to.

Columns are "batch pos" tensors aligned with the *predicted* token, NaN where there is none (`basins.losses`); `where`
marks the positions that count, such as the continuation only, and positions without a loss never count. Functions give
the quantity as its paper defines it; `loss_baselines` turns every sign so that higher means more memorised.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from basins.aggregates import mean_of, mean_of_highest, mean_of_lowest, table
from basins.errors import BasinsError

if TYPE_CHECKING:
    import pandas as pd


def mean_loss(loss: Float[Tensor, "batch pos"], where: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch"]:
    """Mean loss of each sequence, nats a token (float64). Its exponential is the perplexity."""
    return mean_of(loss, _counted(loss, where))


def total_loss(loss: Float[Tensor, "batch pos"], where: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch"]:
    """Summed loss of each sequence, nats; NaN without a token. Between tokenizers only totals of one text compare."""
    counted = _counted(loss, where)
    total = loss.double().masked_fill(~counted, 0).sum(-1)
    return total.masked_fill(~counted.any(-1), float("nan"))


def min_k(
    loss: Float[Tensor, "batch pos"], where: Bool[Tensor, "batch pos"], share: float = 0.2
) -> Float[Tensor, "batch"]:
    """Min-K%: mean log-probability of the least likely `share` of the tokens (Shi et al. 2024). Higher: memorised.

    The share of n tokens is int(n * share) as in the paper's code, here at least 1.
    """
    return -mean_of_highest(loss, _counted(loss, where), share)


def min_k_plus_plus(
    loss: Float[Tensor, "batch pos"],
    mean_log_prob: Float[Tensor, "batch pos"],
    std_log_prob: Float[Tensor, "batch pos"],
    where: Bool[Tensor, "batch pos"],
    share: float = 0.2,
) -> Float[Tensor, "batch"]:
    """Min-K%++: the lowest `share` of (log p(x) - mu) / sigma, averaged (Zhang et al. 2024). Higher: memorised.

    mu and sigma are mean and standard deviation of log p(v) under v ~ p, the model's distribution at that position.
    Where sigma is 0 every possible token is as likely as every other, and the standardised value is 0.
    """
    for name, column in (("mean_log_prob", mean_log_prob), ("std_log_prob", std_log_prob)):
        if column.shape != loss.shape:
            raise BasinsError(f"{name} has shape {list(column.shape)} and loss {list(loss.shape)}; they must be equal.")
    counted = _counted(loss, where) & ~mean_log_prob.isnan() & ~std_log_prob.isnan()
    above = -loss.double() - mean_log_prob.double()
    standard = torch.where(std_log_prob > 0, above / std_log_prob.double(), 0.0)
    return mean_of_lowest(standard, counted, share)


def zlib_bytes(texts: Sequence[str], level: int = -1) -> Int[Tensor, "batch"]:
    """Length of each text's UTF-8 bytes compressed by zlib, header and checksum (together 6 bytes) included.

    `level` -1 is zlib's default (6), as in Carlini et al. 2021. Pass the text of the positions whose loss is taken.
    """
    return torch.tensor([len(zlib.compress(text.encode("utf-8"), level)) for text in texts], dtype=torch.long)


def zlib_ratio(
    loss: Float[Tensor, "batch pos"],
    where: Bool[Tensor, "batch pos"],
    texts: Sequence[str],
    level: int = -1,
    total: bool = True,
) -> Float[Tensor, "batch"]:
    """Loss over the text's zlib bytes (Carlini et al. 2021). Lower: memorised, and not merely repetitive.

    `total=True`: summed loss, nats a compressed byte, which does not depend on how long a text is. `total=False`: mean
    loss, the logarithm of the paper's perplexity; it falls with length, so compare texts of one length only.
    """
    size = _per_text(texts, loss, zlib_bytes(texts, level))
    return (total_loss(loss, where) if total else mean_loss(loss, where)) / size


def per_byte(total: Float[Tensor, "batch"], texts: Sequence[str]) -> Float[Tensor, "batch"]:
    """Summed loss over the text's UTF-8 bytes, nats a byte: what models with different tokenizers have in common."""
    size = torch.tensor([len(text.encode("utf-8")) for text in texts], dtype=torch.long)
    return total.double() / _per_text(texts, total, size)


def loss_baselines(
    loss: Float[Tensor, "batch pos"],
    where: Bool[Tensor, "batch pos"],
    *,
    mean_log_prob: Float[Tensor, "batch pos"] | None = None,
    std_log_prob: Float[Tensor, "batch pos"] | None = None,
    texts: Sequence[str] | None = None,
    reference_loss: Float[Tensor, "batch pos"] | None = None,
    reference_total: Float[Tensor, "batch"] | None = None,
    share: float = 0.2,
) -> pd.DataFrame:
    """All baselines whose columns are given, one row for (sequence, measure); layer <NA>; higher: memorised.

    Measures: `loss` (-mean loss), `perplexity` (-exp of the mean loss), `min_k`, `min_k_plus_plus` (with
    `mean_log_prob` and `std_log_prob`), `zlib` (-summed loss over zlib bytes) and `zlib_mean` (-mean loss over zlib
    bytes, the paper's), with `texts`, the text of each sequence's positions in `where`. Against a reference model:
    `reference_difference` (its mean loss less the model's) and `reference_ratio` (-the model's over its), per token
    from `reference_loss` (same tokens), or per UTF-8 byte from `reference_total` (summed loss on the same `texts`,
    where tokenizers differ). `n_tokens` counts the tokens used, `left_out` those of `where` without a loss.
    """
    counted = _counted(loss, where)
    mean = mean_loss(loss, where)
    found = {"loss": -mean, "perplexity": -mean.exp(), "min_k": min_k(loss, where, share)}
    if (mean_log_prob is None) != (std_log_prob is None):
        raise BasinsError("Min-K%++ needs both mean_log_prob and std_log_prob; one of them is missing.")
    if mean_log_prob is not None and std_log_prob is not None:
        found["min_k_plus_plus"] = min_k_plus_plus(loss, mean_log_prob, std_log_prob, where, share)
    if texts is not None:
        found |= {
            f"zlib{'' if total else '_mean'}": -zlib_ratio(loss, where, texts, total=total) for total in (True, False)
        }
    if reference_loss is not None and reference_total is not None:
        raise BasinsError("Pass reference_loss (same tokens) or reference_total (another tokenizer), not both.")
    if reference_loss is not None:
        if not torch.equal(counted, _counted(reference_loss, where)):
            raise BasinsError(
                "reference_loss is missing at positions where loss is not, or the other way round. Were the same "
                "tokens and mask given to both models? For another tokenizer pass reference_total and texts."
            )
        other = mean_loss(reference_loss, where)
        found |= {"reference_difference": other - mean, "reference_ratio": -mean / other}
    if reference_total is not None:
        if texts is None:
            raise BasinsError("reference_total needs texts: totals of different tokenizers are compared per byte.")
        own, other = per_byte(total_loss(loss, where), texts), per_byte(reference_total, texts)
        found |= {"reference_difference": other - own, "reference_ratio": -own / other}
    n_tokens = counted.sum(-1)
    return table(found, None, n_tokens, where.sum(-1) - n_tokens)


def _counted(loss: Tensor, where: Tensor) -> Bool[Tensor, "batch pos"]:
    if loss.ndim != 2 or where.shape != loss.shape or where.dtype != torch.bool:
        raise BasinsError(
            f"loss has shape {list(loss.shape)} and where is {where.dtype} of shape {list(where.shape)}; both must be "
            "(sequence, position), and where torch.bool."
        )
    return where & ~loss.isnan()


def _per_text(texts: Sequence[str], column: Tensor, size: Int[Tensor, "batch"]) -> Int[Tensor, "batch"]:
    if isinstance(texts, str) or len(texts) != len(column):
        raise BasinsError(f"{len(texts)} texts were given for {len(column)} sequences; pass one text a sequence.")
    return size.to(column.device)
