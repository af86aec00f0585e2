"""Where on the path from a baseline to the states gradients are taken, and how much each of them counts.

Even points serve a baseline that is itself an ordinary state. A zero state is none: a norm layer is linear below
|x| ~ sqrt(eps) and scale-free above, so its gradient is 1e3 times larger within a thousandth of the way than after it.
In models whose norms have no bias (Llama) the next norm does the same to what is left, and the m-th one turns at a
scale of about eps^(m/2): each a finite change of the target over a vanishing part of the path. In ln a all of them are
equally wide, so points are even in ln a there.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

# Scales of the states at which the target is looked at, to see how far down it still changes. Smaller ones would leave
# float32: gradients there are of the size of 1 / scale.
PROBES = 10.0 ** -np.arange(33)
# Below this share of the largest change the target counts as unchanged; the rest is extrapolated along a straight line.
UNCHANGED = 2e-4
# sigmoid(s + exp(s)) is 1 - 3e-8 here.
TOP = 2.7


def even_points(steps: int, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre places in (0, 1) and weights, as [step, row]."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return tuple(np.repeat(part[:, None], n_rows, 1) for part in ((nodes + 1) / 2, weights / 2))  # type: ignore


def lowest_scale(
    before: Float[Tensor, "row"], after: Float[Tensor, "row"], probed: Float[Tensor, "scale row"]
) -> Float[Tensor, "row"]:
    """The largest of `PROBES` at and below which the target is what it is at zero; the smallest where it never is."""
    moved = (probed - before).abs().double()
    largest = moved.amax(0).maximum((after - before).abs().double())
    still = moved <= UNCHANGED * largest
    # From below: how many probes in a row see no change.
    n_still = still.flip(0).long().cumprod(0).sum(0)
    first = (len(PROBES) - n_still).clamp(1, len(PROBES) - 1)
    return torch.as_tensor(PROBES)[first]


def points_from_zero(steps: int, lowest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places and weights for a path that starts at zero, as [step, row]: the midpoint rule in s for a(s) below.

    a = sigmoid(s + exp(s)) is exp(s) for small a, and reaches 1 double-exponentially (after Takahasi and Mori 1974), so
    that the rule converges exponentially in `steps`. s starts at ln `lowest`; below, the gradient is taken as constant,
    where the rule's own sum continues as a geometric series.
    """
    start = np.log(lowest)
    width = (TOP - start) / steps
    s = start + (np.arange(steps)[:, None] + 0.5) * width
    places = 1 / (1 + np.exp(-s - np.exp(s)))
    weights = width * places * (1 / (1 + np.exp(s + np.exp(s)))) * (1 + np.exp(s))
    weights[0] /= 1 - np.exp(-width)
    return places, weights
