"""Integrated gradients from a layer's states (Sundararajan et al. 2017), with the error of its own sum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from basins.errors import BasinsError
from basins.passes import Passes
from basins.path_points import PROBES, even_points, lowest_scale, points_from_zero
from basins.targets import Target

BASELINES = ("mean", "zero")


@dataclass(frozen=True)
class Integrated:
    """`gap`: what a sequence's values sum to beyond `change`, the difference of the target between states and baseline.

    `lowest`: the scale of the states below which the path from a zero baseline is taken to be straight; else None.
    """

    values: Float[Tensor, "layer batch pos"]
    gap: Float[Tensor, "layer batch"]
    change: Float[Tensor, "layer batch"]
    lowest: Float[Tensor, "layer batch"] | None


def integrated_gradients(
    passes: Passes, target: Target, means: dict[int, Float[Tensor, "d_model"]] | None, steps: int
) -> Integrated:
    """(x - b) . integral over a in [0, 1] of d target / d state at b + a (x - b), for every token.

    All real tokens of a sequence move together from the baseline b = `means[layer]`, or zero when None, to their states
    x. The integral is a sum over `steps` points, see `basins.path_points`. Completeness: a sequence's values should sum
    to target(x) - target(b).
    """
    values = passes.blank()
    gap, change, lowest = (torch.zeros(len(passes.layers), len(passes.tokens), dtype=passes.dtype) for _ in range(3))
    for rows in passes.chunks():
        after = passes.outcome(rows, target)
        for i, (layer, states) in enumerate(passes.states(rows, passes.layers).items()):
            states = states.to(passes.dtype)
            real = passes.mask[rows].bool().to(states.device)[..., None]
            base = torch.zeros_like(states[0, 0]) if means is None else means[layer].to(states)
            start = torch.where(real, base, states)
            before = passes.outcome(rows, target, {layer: start})
            if means is None:
                low = lowest_scale(before, after, _probe(passes, rows, target, layer, start, states))
                lowest[i, rows] = low.to(lowest)
                points = points_from_zero(steps, low.numpy())
            else:
                points = even_points(steps, len(rows))
            slope = _mean_gradient(passes, rows, target, layer, start, states, points)
            if not bool(slope.isfinite().all()):
                raise BasinsError(
                    f"integrated gradients of layer {layer} overflow on the way from the baseline: close to a zero "
                    "state each norm of the model multiplies the gradient, and half precision overflows in some "
                    'models. Pass baseline="mean", or run the model in bfloat16, float32 or float64.'
                )
            values[i, rows] = ((states - start) * slope).sum(-1).cpu()
            change[i, rows] = after - before
            gap[i, rows] = values[i, rows].sum(-1) - change[i, rows]
    return Integrated(values, gap, change, lowest if means is None else None)


def _together(passes: Passes, rows: Int[Tensor, "row"]) -> int:
    """How many points of the path go through the model beside each other."""
    return max(1, passes.size // len(rows))


def _mean_gradient(
    passes: Passes,
    rows: Int[Tensor, "row"],
    target: Target,
    layer: int,
    start: Float[Tensor, "row pos d_model"],
    states: Float[Tensor, "row pos d_model"],
    points: tuple[np.ndarray, np.ndarray],
) -> Float[Tensor, "row pos d_model"]:
    slope = torch.zeros_like(states)
    places, shares = (torch.as_tensor(part).to(states)[..., None, None] for part in points)
    together = _together(passes, rows)
    for place, share in zip(places.split(together), shares.split(together), strict=True):
        path = torch.lerp(start, states, place)
        _, slopes = passes.gradients(rows.repeat(len(place)), target, (layer,), path.flatten(0, 1))
        slope += (share * slopes[layer].view_as(path)).sum(0)
    return slope


def _probe(
    passes: Passes,
    rows: Int[Tensor, "row"],
    target: Target,
    layer: int,
    start: Float[Tensor, "row pos d_model"],
    states: Float[Tensor, "row pos d_model"],
) -> Float[Tensor, "scale row"]:
    """The target at each scale of `PROBES`."""
    found = []
    for scales in torch.as_tensor(PROBES).to(states)[:, None, None, None].split(_together(passes, rows)):
        path = torch.lerp(start, states, scales).flatten(0, 1)
        found.append(passes.outcome(rows.repeat(len(scales)), target, {layer: path}).view(len(scales), len(rows)))
    return torch.cat(found)
