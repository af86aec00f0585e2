"""States that differ by rounding are one; states that differ by more are not."""

from __future__ import annotations

import pytest
import torch

from basins.distinct import count_distinct

D_MODEL = 64


def counted(states: torch.Tensor, ids: list[int], dtype=torch.float32) -> tuple[int, bool]:
    """For query 0 and the neighbours given."""
    counts, coincide = count_distinct(states[:1], states, torch.tensor([ids]), dtype)
    return int(counts[0]), bool(coincide[0])


@pytest.mark.parametrize("norm", [1e-3, 1.0, 22_000.0])
def test_rounding_is_no_difference_and_more_is(norm):
    state = torch.randn(D_MODEL)
    state *= norm / state.norm()
    rounded = torch.nextafter(state, torch.full_like(state, torch.inf))
    other = state + 1e-3 * norm * torch.randn(D_MODEL) / D_MODEL**0.5
    states = torch.stack([state, rounded, state, other])
    assert counted(states, [1, 2, 1]) == (1, True)
    assert counted(states, [1, 2, 3]) == (2, False)
    assert counted(states, [3, 3]) == (2, True)


def test_all_different_states_are_counted_at_any_norm():
    states = torch.randn(40, D_MODEL, dtype=torch.float64)
    states[::5] *= 1e4
    assert counted(states, list(range(1, 40)), torch.float64) == (40, False)


def test_half_precision_rounds_more():
    state = torch.randn(D_MODEL)
    states = torch.stack([state, state.bfloat16().float()])
    assert counted(states, [1, 1], torch.bfloat16) == (1, True)
    assert counted(states, [1, 1], torch.float32) == (2, True)


def test_zero_and_negative_zero_are_one_state():
    states = torch.zeros(3, D_MODEL)
    states[1] *= -1.0
    states[2, 0] = 1e-30
    assert counted(states, [1, 1]) == (1, True)
    assert counted(states, [1, 2]) == (2, False)
