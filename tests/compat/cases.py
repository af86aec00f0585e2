"""What is scored in every environment: the same weights, tokens and settings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TINY = ["gpt2", "llama"]
MODELS = [*TINY, "pocket-mini"]
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {"k": 5},
    "cross_sequence": {"k": 4, "neighbors": "cross_sequence", "exclude_first": 1},
    "cosine": {"k": 6, "metric": "cosine", "normalize": True, "include_self": True},
    "lookup": {"k": 5, "method": "lookup"},
}
ATTRIBUTIONS: dict[str, dict[str, Any]] = {
    "attention": {},
    "attention_relative": {"include_self": False},
    "attention_value": {},
    "rollout": {},
    "gradient": {"target": "next_token"},
    "gradient_x_input": {"target": 7},
    "integrated_gradients": {"steps": 20, "target": "next_token"},
    "attribution_patching": {"corrupted": True},
    "ablation": {"sample": 12},
}
SCORES = ["values", "relative", "update", "var_in", "var_out", "var_update", "neighbor_distances"]


def batch() -> tuple[Tensor, Tensor]:
    """Four sequences of different lengths with right padding, tokens 4 to 63."""
    tokens = torch.arange(48).reshape(4, 12).mul(29).remainder(60) + 4
    attention_mask = torch.ones_like(tokens)
    for row, length in enumerate([12, 12, 9, 7]):
        tokens[row, length:] = 0
        attention_mask[row, length:] = 0
    return tokens, attention_mask


def score(model: Any, settings: dict[str, Any]) -> Any:
    """BasinScores of `batch()`, through a cache made by hand: the way that all three versions have."""
    from basins import BasinScorer

    tokens, attention_mask = batch()
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, attention_mask=attention_mask)
    return BasinScorer(model, **settings).score(cache, tokens=tokens, attention_mask=attention_mask)


def attribute(model: Any, method: str) -> Any:
    """Attribution of `batch()` by one method."""
    from basins import BasinScorer

    tokens, attention_mask = batch()
    options = dict(ATTRIBUTIONS[method])
    if options.get("corrupted"):
        options["corrupted"] = tokens.mul(7).remainder(60) + 4
    return BasinScorer(model, exclude_first=1).attribute(tokens, attention_mask, method=method, **options)
