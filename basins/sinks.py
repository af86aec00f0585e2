"""Where attention goes that has nowhere to go, and single activations that dwarf all others.

Attention sink (Xiao et al. 2023): a position, nearly always the first, that draws attention without being read. A head
counts as a sink where the mean weight that later queries give the first position is above 0.3 (Gu et al. 2024).
Massive activation (Sun et al. 2024): |x| above 100 and above 1,000 times the median |x| of its sequence's states.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from basins.activations import check_mask, check_tokens
from basins.errors import BasinsError
from basins.lens import as_found, check_layers, resid_post, resid_pre, run
from basins.sources import plan_batch

if TYPE_CHECKING:
    import pandas as pd

SINK = 0.3
MASSIVE, MASSIVE_RATIO = 100.0, 1000.0


def massive(
    states: Float[Tensor, "batch pos d_model"], real: Bool[Tensor, "batch pos"]
) -> Bool[Tensor, "batch pos d_model"]:
    """Which activations are massive; the median is over all real tokens and dimensions of the sequence."""
    size = states.abs().masked_fill(~real[..., None], float("nan"))
    middle = size.flatten(1).nanmedian(1).values
    return (size > MASSIVE) & (size > MASSIVE_RATIO * middle[:, None, None])


def sinks(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    layers: int | Iterable[int] | None = None,
    batch_size: int | None = None,
) -> pd.DataFrame:
    """One row a layer, from one forward pass.

    `attention_first`: mean share of attention that queries behind the first real position give it, over heads
    (`attention_even`: what they would give if they attended evenly); `sink_heads`: share of heads that are sinks; both
    NaN where the model forms no attention pattern. `norm_ratio`: median norm of first states over the median norm of
    all others. `massive`: number of massive activations in the states entering the layer, `massive_tokens`,
    `massive_first` and `massive_dims` how many tokens, how many of these at first positions and which dimensions.
    `is_sink`: mean attention above 0.3, False where no pattern is formed; `is_massive`: any massive activation.
    """
    import pandas as pd

    ids = check_tokens(tokens, None)
    if ids is None:
        raise BasinsError("tokens is None. Pass token ids, one row a sequence.")
    mask = check_mask(attention_mask, (ids.shape[0], ids.shape[1]))
    wanted = check_layers(model, layers)
    found = {layer: _Layer() for layer in wanted}
    patterns = {layer: f"blocks.{layer}.attn.hook_pattern" for layer in wanted}
    even: list[Tensor] = []
    with as_found(model):
        for rows in torch.arange(len(ids)).split(batch_size or plan_batch(model, ids.shape[1])):
            real = mask[rows].bool()
            hooks = [(resid_pre(layer), found[layer].stream(real)) for layer in wanted]
            hooks += [(name, found[layer].pattern(real)) for layer, name in patterns.items() if name in model.hook_dict]
            run(model, ids[rows], mask[rows], hooks, until=resid_post(wanted[-1]))
            even.append(1 / real.cumsum(1)[_later(real)].double())
    share = torch.cat(even).mean() if even else torch.tensor(float("nan"))
    return pd.DataFrame([{"layer": layer} | found[layer].row(float(share)) for layer in wanted])


def _later(real: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Real tokens behind the first one."""
    return real & (real.long().cumsum(1) > 1)


class _Layer:
    """What one layer's hooks add up over the micro-batches."""

    def __init__(self) -> None:
        self.weights: Tensor | float = 0.0
        self.queries = 0
        self.first_norms: list[Tensor] = []
        self.other_norms: list[Tensor] = []
        self.massive, self.tokens, self.at_first = 0, 0, 0
        self.dims: set[int] = set()

    def stream(self, real: Bool[Tensor, "batch pos"]) -> Any:
        def look(value: Tensor, hook: Any) -> None:
            states = value.detach().cpu()
            states = states if states.dtype == torch.float64 else states.float()
            norms = states.norm(dim=-1)
            later = _later(real)
            self.first_norms.append(norms[real & ~later])
            self.other_norms.append(norms[later])
            large = massive(states, real)
            self.massive += int(large.sum())
            self.tokens += int(large.any(-1).sum())
            self.at_first += int((large.any(-1) & ~later).sum())
            self.dims |= set(large.flatten(0, 1).any(0).nonzero()[:, 0].tolist())

        return look

    def pattern(self, real: Bool[Tensor, "batch pos"]) -> Any:
        def look(value: Tensor, hook: Any) -> None:
            weights = value.detach().to("cpu").double()
            rows = torch.arange(len(real))
            to_first = weights[rows, :, :, real.long().argmax(1)]
            later = _later(real)
            self.weights = self.weights + to_first.masked_fill(~later[:, None], 0).sum((0, 2))
            self.queries += int(later.sum())

        return look

    def row(self, even: float) -> dict[str, Any]:
        attention, heads = float("nan"), float("nan")
        if torch.is_tensor(self.weights) and self.queries:
            by_head = self.weights / self.queries
            attention, heads = float(by_head.mean()), float((by_head > SINK).double().mean())
        first, other = torch.cat(self.first_norms).median(), torch.cat(self.other_norms).median()
        row: dict[str, Any] = {"attention_first": attention, "attention_even": even, "sink_heads": heads}
        row |= {"norm_first": float(first), "norm_other": float(other), "norm_ratio": float(first / other)}
        row |= {"massive": self.massive, "massive_tokens": self.tokens, "massive_first": self.at_first}
        row["massive_dims"] = ", ".join(map(str, sorted(self.dims)[:8]))
        return row | {"is_sink": attention > SINK, "is_massive": self.massive > 0}
