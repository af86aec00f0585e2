"""Seeded columns of dependent tokens, shared by the tests of statistics."""

from __future__ import annotations

import numpy as np

SEQUENCE = np.repeat(np.arange(20), 15)
N = len(SEQUENCE)


def made(seed: int = 0) -> dict[str, np.ndarray]:
    """Tokens of 20 sequences: x and y related and both drifting with z, `tied` with few values, a label, a group."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=N)
    x = z + rng.normal(size=20)[SEQUENCE] + rng.normal(size=N)
    y = 0.5 * x + z + rng.normal(size=20)[SEQUENCE] + rng.normal(size=N)
    tied = np.round(x)
    return {"x": x, "y": y, "z": z, "tied": tied, "label": x + rng.normal(size=N) > 1, "group": np.digitize(z, [-1, 1])}
