"""Integrated gradients from a layer's states (Sundararajan et al. 2017), with the error of its own sum."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from basins.errors import BasinsError
from basins.passes import Passes
from basins.targets import Target

# Baseline -> power p: points stand at a = u^p for even u. Near a zero state every norm layer changes from flat to
# scale-free within a hair of a = 0, which evenly placed points step over; the mean has no such place.
BASELINES = {"mean": 1, "zero": 6}


def integrated_gradients(
    passes: Passes, target: Target, means: dict[int, Float[Tensor, "d_model"]], steps: int, baseline: str
) -> tuple[Float[Tensor, "layer batch pos"], Float[Tensor, "layer batch"]]:
    """(x - b) . integral over a in [0, 1] of d target / d state at b + a (x - b), for every token, and the gap.

    All real tokens of a sequence move together from the baseline b = `means[layer]` to their states x. The integral is
    a Gauss-Legendre sum of `steps` points, crowded towards a zero baseline. Completeness: a sequence's values sum to
    target(x) - target(b); the gap is that sum minus that difference, in units of the target.
    """
    grading = BASELINES[baseline]
    values = passes.blank()
    gaps = torch.zeros(len(passes.layers), len(passes.tokens), dtype=passes.dtype)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    along = (nodes + 1) / 2
    points = list(
        zip((along**grading).tolist(), (grading * along ** (grading - 1) * weights / 2).tolist(), strict=True)
    )
    for rows in passes.chunks():
        for i, (layer, states) in enumerate(passes.states(rows, passes.layers).items()):
            states = states.to(passes.dtype)
            real = passes.mask[rows].bool().to(states.device)[..., None]
            start = torch.where(real, means[layer].to(states), states)
            slope = torch.zeros_like(states)
            # As many points go through the model together as fit beside each other.
            for first in range(0, steps, together := max(1, passes.size // len(rows))):
                some = points[first : first + together]
                places, shares = (states.new_tensor(part)[:, None, None, None] for part in zip(*some, strict=True))
                path = torch.lerp(start, states, places)
                _, slopes = passes.gradients(rows.repeat(len(some)), target, (layer,), path.flatten(0, 1))
                slope += (shares * slopes[layer].view_as(path)).sum(0)
            if not bool(slope.isfinite().all()):
                raise BasinsError(
                    f"integrated gradients of layer {layer} overflow on the path from the baseline {baseline!r}: close "
                    'to a zero state each norm of the model multiplies the gradient. Pass baseline="mean", or a '
                    "float64 model."
                )
            values[i, rows] = ((states - start) * slope).sum(-1).cpu()
            gained = passes.outcome(rows, target) - passes.outcome(rows, target, {layer: start})
            gaps[i, rows] = values[i, rows].sum(-1) - gained
    return values, gaps
