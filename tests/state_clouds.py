"""Clouds of states that are hard on a neighbour search, as float64 "batch pos d_model" arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

BATCH, POS = 4, 7


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(d_model: int = 7, batch: int = BATCH, pos: int = POS) -> Any:
    return _rng().normal(size=(batch, pos, d_model))


def duplicates() -> Any:
    """Every state occurs about five times."""
    distinct = _rng().normal(size=(6, 5))
    return distinct[_rng(1).integers(0, 6, (BATCH, POS))]


def integer_grid() -> Any:
    """Small integers: most distances are shared by several states, exactly."""
    return _rng().integers(0, 3, (BATCH, POS, 3)).astype(float)


def sinks() -> Any:
    """Norm 22,000 at position 0 and 150 elsewhere, with positions 0 nearly equal: a Llama's attention sinks."""
    states = _rng().normal(size=(BATCH, POS, 16))
    states *= 150 / np.linalg.norm(states, axis=-1, keepdims=True)
    states[:, 0] = 22_000 * np.eye(16)[3] + 0.01 * _rng(1).normal(size=(BATCH, 16))
    return states


def dominated() -> Any:
    """One dimension is a thousand times the others, at the same value for all but a little."""
    states = _rng().normal(size=(BATCH, POS, 9))
    states[..., 4] = 1000 + states[..., 4]
    return states


def all_equal() -> Any:
    return np.ones((BATCH, POS, 4)) * np.array([3.0, -1.0, 0.5, 100.0])


def near_ties() -> Any:
    """Around few centres of norm 100, differences of one part in a million."""
    centres = 100 * np.eye(6)[:3]
    return centres[_rng().integers(0, 3, (BATCH, POS))] + 1e-4 * _rng(1).normal(size=(BATCH, POS, 6))


def two_far_piles() -> Any:
    """Two opposite piles at 22,000, of radius 0.05: no float32 product can order their members."""
    sign = np.where(_rng().random((BATCH, POS)) < 0.5, 1.0, -1.0)
    return sign[..., None] * 22_000 * np.ones(8) / 8**0.5 + 0.05 * _rng(1).normal(size=(BATCH, POS, 8))


def with_zeros() -> Any:
    states = normal(5)
    states[_rng(2).random((BATCH, POS)) < 0.3] = 0
    return states


def collinear() -> Any:
    """A few directions in several lengths: cosine distances of 0, 1 and 2 between states that are far apart."""
    directions = np.eye(4)[_rng().integers(0, 3, (BATCH, POS))] * np.where(_rng(1).random((BATCH, POS, 1)) < 0.2, -1, 1)
    return directions * 2.0 ** _rng(2).integers(-3, 8, (BATCH, POS, 1))


def one_dimension() -> Any:
    return normal(1, 3, 11)


def wide() -> Any:
    return normal(257, 2, 9)


CLOUDS: dict[str, Callable[[], Any]] = {
    cloud.__name__: cloud
    for cloud in (
        normal,
        duplicates,
        integer_grid,
        sinks,
        dominated,
        all_equal,
        near_ties,
        two_far_piles,
        with_zeros,
        collinear,
        one_dimension,
        wide,
    )
}
# Euclidean distances of these are exact in floating point, so ties are ties and go to the lower id.
EXACT_TIES = ("duplicates", "integer_grid", "all_equal", "collinear")
