"""The definition of a re-run, by hand: one forward pass for every neighbour, patched in through the model's hooks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from basins import BasinScores
from basins.scores import variance


def layers_of(model: Any, tokens: Tensor, mask: Tensor | None = None, hooks: list | None = None) -> list[Tensor]:
    """Layers 0 .. n_layers, as a user caches them."""
    n = len(model.blocks)
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(n)] + [f"blocks.{n - 1}.hook_resid_post"]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks or []):
        _, cache = model.run_with_cache(tokens, attention_mask=mask, names_filter=lambda name: "resid" in name)
    return [cache[name] for name in names]


def output(
    model: Any,
    tokens: Tensor,
    mask: Tensor | None,
    layer: int,
    sequence: int,
    position: int,
    state: Tensor,
    hooks: list,
) -> Tensor:
    """What comes out of block `layer` at one position when `state` stands there; `hooks` are the user's."""
    kept = {}

    def put(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[sequence, position] = state
        return value

    def keep(value: Tensor, hook: Any) -> None:
        kept["output"] = value[sequence, position]

    mine = [(f"blocks.{layer}.hook_resid_pre", put), (f"blocks.{layer}.hook_resid_post", keep)]
    with torch.no_grad():
        model.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=[*hooks, *mine], return_type=None)
    return kept["output"]


def variances(
    scores: BasinScores,
    model: Any,
    layer: int,
    sequence: int,
    position: int,
    tokens: Tensor,
    mask: Tensor | None = None,
    hooks: list | None = None,
    bank: Tensor | None = None,
) -> tuple[float, float, float]:
    """V_in, V_out and V_update of one token from the neighbours in `scores`."""
    hooks = hooks or []
    states = layers_of(model, tokens, mask, hooks)[layer]
    shrink = scores.settings["shrink"]
    query = states[sequence, position]
    bank = states if bank is None else bank
    ids = scores.neighbor_ids[scores.layers.index(layer), sequence, position]
    before = torch.stack([query + shrink * (bank.flatten(0, 1)[i] - query) for i in ids])
    after = torch.stack([output(model, tokens, mask, layer, sequence, position, x, hooks) for x in before])
    before, after = before.double(), after.double()
    return float(variance(before)), float(variance(after)), float(variance(after - before))
