"""Variances of neighbours by id, in pieces: against NumPy in float64, one token at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from basins import neighbor_variances as module
from basins.neighbor_variances import has_kernel, neighbor_variances

N_STATES, N_TOKENS, D_MODEL = 30, 11, 24


def by_numpy(before: Tensor, after: Tensor) -> np.ndarray:
    """For each token's k states: sums over d_model of NumPy's own variances."""
    x, y = before.double().numpy(), after.double().numpy()
    return np.stack([np.array([part.var(axis=0).sum() for part in some]) for some in (x, y, y - x)])


def made(k: int, offset: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(k)
    before = (offset + torch.randn(N_STATES, D_MODEL, generator=rng, dtype=torch.float64)).to(dtype)
    after = (before.double() + torch.randn(N_STATES, D_MODEL, generator=rng, dtype=torch.float64)).to(dtype)
    return before, after, torch.randint(N_STATES, (N_TOKENS, k), generator=rng)


@pytest.mark.parametrize("floats", [1, 3 * 5 * D_MODEL, 2**20])
@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("k", [2, 5, 17])
def test_by_id_and_in_order_they_are_numpy_s(k, offset, floats, monkeypatch):
    monkeypatch.setattr(module, "FLOATS_AT_ONCE", {"cpu": floats})
    before, after, ids = made(k, offset, torch.float32)
    expected = by_numpy(before[ids], after[ids])
    flat = before[ids].flatten(0, 1), after[ids].flatten(0, 1)
    for given in (
        (before, after, k, ids, ids),
        (before, flat[1], k, ids, None),
        (flat[0], after, k, None, ids),
        (*flat, k),
    ):
        kept = [some.clone() for some in given if isinstance(some, Tensor)]
        found = torch.stack(neighbor_variances(*given))
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found, expected, rtol=2e-6 * (1 + offset))
        for some, before_it in zip((some for some in given if isinstance(some, Tensor)), kept, strict=True):
            assert torch.equal(some, before_it), "an argument was changed"


def test_in_float64_and_from_half_precision():
    before, after, ids = made(5, 300.0, torch.float64)
    found = torch.stack(neighbor_variances(before, after, 5, ids, ids, dtype=torch.float64))
    np.testing.assert_allclose(found, by_numpy(before[ids], after[ids]), rtol=1e-11)
    half, after_half = before.bfloat16(), after.bfloat16()
    found = torch.stack(neighbor_variances(half, after_half, 5, ids, ids))
    np.testing.assert_allclose(found, by_numpy(half[ids], after_half[ids]), rtol=1e-4)


def test_normalized_states_have_length_one():
    before, after, ids = made(5, 3.0, torch.float64)
    unit = [states / states.norm(dim=1, keepdim=True) for states in (before, after)]
    found = torch.stack(neighbor_variances(before, after, 5, ids, ids, normalize=True, dtype=torch.float64))
    np.testing.assert_allclose(found, by_numpy(unit[0][ids], unit[1][ids]), rtol=1e-11)


@pytest.mark.parametrize("norm", [1.0, 22_000.0])
def test_equal_states_have_exactly_no_variance_and_what_a_block_leaves_alone_no_update(norm):
    before, after, ids = made(7, norm, torch.float32)
    ids[:] = ids[:, :1]
    assert bool((torch.stack(neighbor_variances(before, after, 7, ids, ids)) == 0).all())
    _, _, ids = made(7, norm, torch.float32)
    var_in, var_out, var_update = neighbor_variances(before, before.clone(), 7, ids, ids)
    assert torch.equal(var_in, var_out)
    assert bool((var_update == 0).all())


def test_a_small_update_of_a_large_stream_is_not_lost():
    """Differences of the deviations, not deviations of the differences: the stream's own size does not matter."""
    rng = torch.Generator().manual_seed(0)
    before = 20_000 + torch.randn(N_STATES, D_MODEL, generator=rng)
    after = before * 1.0
    after[:, 0] += 0.25 * torch.arange(N_STATES)  # exact in float32
    ids = torch.stack([torch.arange(i, i + 5) for i in range(20)])
    *_, var_update = neighbor_variances(before, after, 5, ids, ids)
    assert torch.allclose(var_update, torch.full((20,), 0.125), rtol=1e-5)


def test_nothing_asked_nothing_given():
    before, after, ids = made(5, 0.0, torch.float32)
    assert torch.stack(neighbor_variances(before, after, 5, ids[:0], ids[:0])).shape == (3, 0)
    assert not has_kernel(before.device)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("k", "width"), [(2, 16), (15, 768), (15, 100), (16, 4096), (100, 64), (128, 33)])
def test_the_kernel_is_the_pieces_in_float64(k, width, dtype):
    from basins import variance_kernels

    device = torch.device("cuda")
    assert module.kernel_refusal(torch.cuda.current_device()) is None
    rng = torch.Generator().manual_seed(0)
    before = (30 + torch.randn(200, width, generator=rng)).to(device, dtype)
    after = (before.cpu().float() + torch.randn(200, width, generator=rng)).to(device, dtype)
    ids = torch.randint(200, (37, k), generator=rng).to(device)
    ids[0] = ids[0, 0]
    right = torch.stack(module.in_pieces(before.double(), after.double(), k, ids, ids, False, torch.float64))
    flat = before[ids].flatten(0, 1), after[ids].flatten(0, 1)
    for found in (
        torch.stack(neighbor_variances(before, after, k, ids, ids)),
        torch.stack(neighbor_variances(before, flat[1], k, ids)),
        variance_kernels.variances(*flat, k, None, None),
    ):
        assert found.dtype == torch.float32
        assert bool((found[:, 0] == 0).all())
        torch.testing.assert_close(found.double(), right, rtol=2e-5, atol=0)
