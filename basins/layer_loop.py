"""Layer after layer: one transition measured at a time, within the memory there is."""

from __future__ import annotations

from functools import partial
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from basins.activations import check_finite
from basins.fitted_bank import FittedBank
from basins.memory import Memory, give_back
from basins.neighbors import TokenTable
from basins.progress import progress
from basins.settings import ScorerSettings
from basins.sources import Source, start_over
from basins.transition import Bank, Measured, measure_transition


def measure_layers(
    model: Any,
    source: Source,
    attention_mask: Int[Tensor, "batch pos"],
    table: TokenTable,
    fitted: FittedBank | None,
    settings: ScorerSettings,
    layers: tuple[int, ...],
    memory: Memory,
) -> dict[int, Measured]:
    """Every transition of `layers`. A layer at which memory runs out is measured once more, in smaller pieces."""

    def measure(layer: int) -> Measured:
        states = source.states(layer)
        check_finite(states, attention_mask.bool(), layer)
        give_back()
        bank = bank_at(fitted, layer, states, table)
        return measure_transition(model, layer, source, table, bank, settings)

    measured = {}
    with progress("scoring", len(layers)) as advance:
        for layer in layers:
            measured[layer] = memory.attempt(layer, partial(measure, layer), partial(start_over, source))
            advance(1)
    return measured


def bank_at(
    fitted: FittedBank | None, layer: int, states: Float[Tensor, "batch pos d_model"], table: TokenTable
) -> Bank:
    """Where neighbours are looked for: the fitted bank, or the states themselves."""
    if fitted is None:
        return Bank(states.flatten(0, 1), None, table, same=True)
    reference = fitted.states.layer(layer).to(states)
    check_finite(reference, fitted.table.usable.view(reference.shape[:2]), layer)
    outputs = fitted.states.outputs(layer)
    return Bank(reference.flatten(0, 1), outputs, fitted.table, same=False)
