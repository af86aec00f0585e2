"""Where states are kept: on the GPU while they leave room there, then in memory, then in mapped files."""

from __future__ import annotations

import pytest
import torch

from basins import state_store
from basins.sources import one_device
from basins.state_store import SHARE_OF_GPU, StateStore

GPU, HOST = torch.device("cuda"), torch.device("cpu")
SHAPE, N_STORED = (3, 5, 8), 2
SIZE = N_STORED * 3 * 5 * 8 * 4


@pytest.mark.parametrize(
    ("device", "free", "budget", "where"),
    [
        (GPU, SIZE / SHARE_OF_GPU, 0, "gpu"),
        (GPU, SIZE / SHARE_OF_GPU - 1, SIZE, "memory"),
        (GPU, SIZE / SHARE_OF_GPU - 1, SIZE - 1, "disk"),
        (HOST, 0, SIZE, "memory"),
        (HOST, 0, SIZE - 1, "disk"),
    ],
)
def test_states_go_where_there_is_room(device, free, budget, where, monkeypatch):
    monkeypatch.setattr(state_store, "free_on_gpu", lambda asked: free if asked == GPU else 0)
    store = StateStore(*SHAPE, torch.float32, N_STORED, budget, device)
    assert store.size == SIZE
    assert store.device == (GPU if where == "gpu" else HOST)
    assert store.on_disk == (where == "disk")
    if where != "gpu":
        states = store.create(0)
        assert states.shape == SHAPE
        assert not bool(states.any())


def test_a_host_has_no_gpu_memory_and_a_model_on_one_device_has_that_one(tiny):
    assert state_store.free_on_gpu(HOST) == 0
    assert one_device(tiny("gpt2"), (0, 2)) == HOST
