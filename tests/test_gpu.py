"""On a GPU: the same neighbours and scores as on the CPU, in float32 and with the model in bfloat16."""

from __future__ import annotations

import pytest
import torch
from tiny_models import ARCHITECTURES, N_LAYERS, tiny_hf_model, tiny_model
from torch import Tensor

import basins
from basins import BasinScorer
from basins.neighbors import find_neighbors, table_of
from basins.settings import ScorerSettings
from basins.state_store import StateStore

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [passage.text for passage in basins.pocket.passages()[:6]]


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    keep = a.isfinite() & b.isfinite()
    assert keep.float().mean() > 0.9
    assert (a[keep] - b[keep]).abs().max() < tolerance


@pytest.mark.parametrize("method", ["rerun", "lookup"])
def test_scores_on_the_gpu_are_those_of_the_cpu(texts, method):
    options = {"method": method, "neighbors": "cross_sequence", "exclude_first": 1}
    cpu = BasinScorer(basins.load_model("pocket", device="cpu"), **options).score_texts(texts)
    gpu = BasinScorer(basins.load_model("pocket", device="cuda"), **options).score_texts(texts)
    assert gpu.settings["device"].startswith("cuda")
    assert gpu.settings["replay"] == cpu.settings["replay"]
    assert (gpu.neighbor_ids == cpu.neighbor_ids).float().mean() > 0.999
    for name in ("raw", "relative", "update"):
        close(getattr(gpu, name), getattr(cpu, name), 1e-3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_takes_the_same_path_as_on_the_cpu(name):
    tokens = torch.randint(3, 60, (3, 13), generator=torch.Generator().manual_seed(0))
    results = []
    for device in ("cpu", "cuda"):
        model = tiny_model(name) if device == "cpu" else basins.load_model(tiny_hf_model(name), device="cuda")
        results.append(BasinScorer(model, k=4).score_tokens(tokens))
    cpu, gpu = results
    assert gpu.settings["replay"] == cpu.settings["replay"], gpu.settings["replay_refused"]
    close(gpu.relative, cpu.relative, 1e-3)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "mixtral"])
def test_bfloat16_models_pass_the_self_check(name):
    model = basins.load_model(tiny_hf_model(name), device="cuda", dtype="bfloat16")
    tokens = torch.randint(3, 60, (3, 13), generator=torch.Generator().manual_seed(0))
    scores = BasinScorer(model, k=4).score_tokens(tokens)
    assert scores.settings["replay"] == {"packed" if name == "mixtral" else "core": N_LAYERS}
    assert scores.values.dtype == torch.float32
    assert scores.settings["model_dtype"] == "bfloat16"


@pytest.mark.parametrize("tf32", [False, True])
def test_neighbours_on_the_gpu_are_exact_whatever_the_matmul_precision(tf32):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3000, 96, generator=generator)
    states[::128] *= 3000  # massive activations
    states[100:200] = states[100]  # duplicates
    table = table_of(torch.ones(30, 100, dtype=torch.long), None, 0)
    settings = ScorerSettings(k=15)
    expected = find_neighbors(states, table, states, table, settings, same=True)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        on_gpu = states.cuda()
        found = find_neighbors(on_gpu, table, on_gpu, table, settings, same=True)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert torch.equal(found.ids.cpu(), expected.ids)


def test_states_stay_on_the_gpu_while_they_fit_and_scores_do_not_depend_on_it(texts, monkeypatch):
    model, kept = basins.load_model("pocket", device="cuda"), []
    create = StateStore.create

    def seen(store, layer):
        states = create(store, layer)
        kept.append(states.device.type)
        return states

    monkeypatch.setattr(StateStore, "create", seen)
    there = BasinScorer(model).score_texts(texts)
    assert set(kept) == {"cuda"}
    kept.clear()
    monkeypatch.setattr("basins.state_store.free_on_gpu", lambda device: 0)
    away = BasinScorer(model).score_texts(texts)
    assert set(kept) == {"cpu"}
    assert torch.equal(there.neighbor_ids, away.neighbor_ids)
    for name in ("raw", "relative", "update"):
        close(getattr(there, name), getattr(away, name), 1e-5)
