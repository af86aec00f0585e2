"""What the model really loses when a token's state is replaced: the measure that the others are judged by."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.lens import resid_pre
from basins.passes import Passes
from basins.targets import Target


def ablation(
    passes: Passes, means: dict[int, Float[Tensor, "d_model"]], sample: int | None, seed: int
) -> Float[Tensor, "layer batch pos"]:
    """Rise of the sequence's summed next-token loss (nats) when one state at layer L becomes `means[L]`.

    One forward pass for each token and layer, `passes.size` at a time. `sample`: only so many tokens, the same ones at
    every layer; the others are NaN.
    """
    values = passes.blank()
    gained = Target("next_token", None, passes.tokens, passes.mask)
    intact = torch.cat([passes.outcome(rows, gained) for rows in passes.chunks()])
    places = _sampled(passes.usable.nonzero(), sample, seed)
    for i, layer in enumerate(passes.layers):
        for some in places.split(passes.size):
            rows, positions = some.unbind(1)
            hooks = [(resid_pre(layer), _replacer(positions, means[layer]))]
            with torch.no_grad():
                after = gained(passes.logits(rows, hooks), rows).to("cpu", passes.dtype)
            values[i, rows, positions] = intact[rows] - after
    return values


def _replacer(positions: Int[Tensor, "row"], mean: Float[Tensor, "d_model"]) -> Callable:
    def put(value: Float[Tensor, "row pos d_model"], hook: object) -> Tensor:
        value = value.clone()
        value[torch.arange(len(positions)), positions] = mean.to(value)
        return value

    return put


def _sampled(places: Int[Tensor, "token 2"], sample: int | None, seed: int) -> Int[Tensor, "token 2"]:
    if sample is None or sample >= len(places):
        return places
    chosen = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:sample]
    return places[chosen.sort().values]


def state_means(passes: Passes) -> dict[int, Float[Tensor, "d_model"]]:
    """Mean state of the usable tokens at each layer."""
    sums = {layer: torch.zeros(int(passes.model.cfg.d_model), dtype=torch.float64) for layer in passes.layers}
    for rows in passes.chunks():
        for layer, states in passes.states(rows, passes.layers).items():
            sums[layer] += states.cpu().double()[passes.usable[rows]].sum(0)
    return {layer: total / int(passes.usable.sum()) for layer, total in sums.items()}
