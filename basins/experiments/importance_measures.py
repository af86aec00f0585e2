"""Every importance measure of the same tokens, costly ones on a sample, in one orientation."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.attribution import METHODS
from basins.errors import BasinsError, choose
from basins.experiments.sequences import Sequences
from basins.progress import progress
from basins.scorer import BasinScorer

# All gradients are of the summed log probability of the text's own next tokens: what ablation measures the loss of.
TARGET = {"target": "next_token"}
OPTIONS: dict[str, dict[str, Any]] = {
    "gradient": TARGET,
    "gradient_x_input": TARGET,
    "integrated_gradients": TARGET,
    "attribution_patching": TARGET,
}
# One pass for every layer and step or token: measured on a sample.
COSTLY = ("integrated_gradients", "ablation")
# Above 0 where the token supports the text's predictions; patching measures what its replacement *adds*.
SIGN = {"attribution_patching": -1.0}
# A token that holds predictions back matters too: of these the size is compared.
SIGNED = ("gradient_x_input", "integrated_gradients", "attribution_patching", "ablation")
# The layers of a deep model at which costly methods are measured, evenly spaced.
COSTLY_LAYERS = 8


def size_of(method: str, values: Any) -> Any:
    """What is compared with scores: the values, or of a signed measure their size."""
    return abs(values) if method in SIGNED else values


def check_methods(methods: list[str] | None) -> list[str]:
    """All methods, or those named, in the order of `METHODS`."""
    if methods is None:
        return list(METHODS)
    if not methods:
        raise BasinsError(f"methods is empty. Possible: {', '.join(METHODS)}; None takes all.")
    for method in methods:
        choose("method", method, METHODS)
    return [method for method in METHODS if method in methods]


def other_text(texts: Sequences) -> Int[Tensor, "batch pos"]:
    """For every row other text of the same length: all tokens in a line, turned by half of it. First tokens stay."""
    tokens, real = texts.tokens.clone(), texts.mask.bool()
    inner = real & (real.cumsum(1) > 1)
    line = tokens[inner]
    tokens[inner] = line.roll(len(line) // 2)
    return tokens


def costly_layers(layers: tuple[int, ...]) -> tuple[int, ...]:
    if len(layers) <= 12:
        return layers
    places = torch.linspace(0, len(layers) - 1, COSTLY_LAYERS).round().long().unique()
    return tuple(layers[place] for place in places.tolist())


def measure(
    scorer: BasinScorer,
    texts: Sequences,
    methods: list[str],
    layers: tuple[int, ...],
    *,
    rows: Int[Tensor, "row"],
    ablated: int,
    steps: int,
) -> tuple[dict[str, tuple[Float[Tensor, "layer row pos"], tuple[int, ...], Int[Tensor, "row"]]], dict[str, Any]]:
    """Method -> (values, layers, rows), oriented so that above 0 supports the predictions; and what is to be recorded.

    `rows`: the sample that costly methods are measured on; `ablated`: how many of its tokens are ablated.
    """
    found, said = {}, {}
    everything = torch.arange(len(texts.batch))
    with progress("importance", len(methods)) as advance:
        for method in methods:
            options = dict(OPTIONS.get(method, {}))
            on, at = (rows, costly_layers(layers)) if method in COSTLY else (everything, layers)
            if method == "attribution_patching":
                options["corrupted"] = other_text(texts)
            if method == "integrated_gradients":
                options["steps"] = steps
            if method == "ablation":
                options["sample"] = ablated
            result = scorer.attribute(texts.tokens[on], texts.mask[on], method=method, layers=at, **options)
            found[method] = (SIGN.get(method, 1.0) * result.values, at, on)
            gap = result.relative_gap
            if gap is not None:
                # The largest of any row, by layer: what integrated gradients leave unexplained of the target's change.
                worst = gap.abs().nan_to_num(0).amax(1).tolist()
                said["completeness_gap"] = {str(layer): worst[i] for i, layer in enumerate(at)}
            advance(1)
    return found, said
