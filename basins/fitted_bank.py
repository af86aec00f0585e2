"""The reference bank that a scorer was fitted with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from basins.activations import States, check_finite
from basins.neighbors import TokenTable


@dataclass(frozen=True)
class FittedBank:
    """A reference bank given to `fit`."""

    states: States
    table: TokenTable
    about: dict[str, Any]

    def means(self, layers: tuple[int, ...]) -> tuple[dict[int, Float[Tensor, "d_model"]], str]:
        """Mean usable state at each layer, and whose mean that is."""
        found = {}
        for layer in layers:
            states = self.states.layer(layer)
            usable = self.table.usable.view(states.shape[:2])
            check_finite(states, usable, layer)
            # A sequence at a time: the bank may be a mapped file larger than memory.
            sums = [rows[keep].double().sum(0) for rows, keep in zip(states, usable.to(states.device), strict=True)]
            found[layer] = torch.stack(sums).sum(0).cpu() / self.about["states"]
        return found, f"the {self.about['states']} usable tokens of the fitted bank"
