"""What the target's gradient says about a token's state at each layer."""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float, Int
from torch import Tensor

from basins.passes import Passes
from basins.targets import Target


def gradient(passes: Passes, target: Target, times_input: bool) -> Float[Tensor, "layer batch pos"]:
    """|d target / d x| for each state x, or with `times_input` the dot product of that gradient with x.

    A norm layer is scale-free (but for its epsilon), so through it no gradient has a part along x: of a token that acts
    on the target only through attention, which reads behind a norm, the dot product is close to 0 whatever it causes.
    """
    values = passes.blank()
    for rows in passes.chunks():
        states, slopes = passes.gradients(rows, target, passes.layers)
        for i, layer in enumerate(passes.layers):
            slope = slopes[layer]
            values[i, rows] = ((slope * states[layer]).sum(-1) if times_input else slope.norm(dim=-1)).cpu()
    return values


def attribution_patching(
    passes: Passes, target: Target, corrupted: Int[Tensor, "batch pos"]
) -> Float[Tensor, "layer batch pos"]:
    """Gradient . (corrupted - clean): to first order, what the target gains when one state is patched in.

    The gradient is taken in the run on `passes.tokens`; one more forward pass gives the corrupted states.
    """
    values = passes.blank()
    other = replace(passes, tokens=corrupted)
    for rows in passes.chunks():
        states, slopes = passes.gradients(rows, target, passes.layers)
        patches = other.states(rows, passes.layers)
        for i, layer in enumerate(passes.layers):
            step = patches[layer].to(states[layer]) - states[layer]
            values[i, rows] = (slopes[layer] * step).sum(-1).cpu()
    return values
