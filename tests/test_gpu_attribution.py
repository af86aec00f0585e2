"""On a GPU: the same attributions as on the CPU, in float32 and with the model in bfloat16."""

from __future__ import annotations

import pytest
import torch
from tiny_models import D_VOCAB, tiny_hf_model, tiny_model

import basins
from basins import BasinScorer
from basins.attribution import METHODS

pytestmark = pytest.mark.gpu

TOKENS = torch.randint(4, D_VOCAB, (5, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 12, [1] * 9 + [0] * 3, [1] * 7 + [0] * 5, [1] * 12, [1] * 10 + [0] * 2])


# Methods that take mean states, which is all that a fitted bank gives them.
WITH_MEANS = [method for method in METHODS if "baseline" in METHODS[method] or method == "ablation"]


def options_of(method: str) -> dict:
    return {
        "attribution_patching": {"corrupted": TOKENS.flip(1)},
        "integrated_gradients": {"steps": 16},
    }.get(method, {})


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "mistral"])
@pytest.mark.parametrize(("method", "fitted"), [*((m, False) for m in METHODS), *((m, True) for m in WITH_MEANS)])
def test_attributions_on_the_gpu_are_those_of_the_cpu(name, method, fitted):
    found = []
    for device in ("cpu", "cuda"):
        model = tiny_model(name) if device == "cpu" else basins.load_model(tiny_hf_model(name), device="cuda")
        scorer = BasinScorer(model, k=3, exclude_first=1, batch_size=3)
        if fitted:
            with torch.no_grad():
                _, cache = model.run_with_cache(TOKENS.flip(0).to(device), attention_mask=MASK.flip(0).to(device))
            scorer.fit(cache, attention_mask=MASK.flip(0))
        found.append(scorer.attribute(TOKENS, MASK, method=method, **options_of(method)))
    cpu, gpu = found
    assert gpu.settings["device"].startswith("cuda")
    assert gpu.values.device.type == "cpu"
    assert gpu.settings.get("mean_of") == cpu.settings.get("mean_of")
    size = cpu.values.abs().nan_to_num(0).amax((1, 2), keepdim=True)
    torch.testing.assert_close(gpu.values / size, cpu.values / size, rtol=0, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("method", METHODS)
def test_paths_from_zero_and_bfloat16_models_on_the_gpu(method):
    model = basins.load_model(tiny_hf_model("llama"), device="cuda", dtype="bfloat16")
    options = options_of(method) | ({"baseline": "zero"} if method == "integrated_gradients" else {})
    found = BasinScorer(model).attribute(TOKENS, MASK, method=method, **options)
    assert found.values.dtype == torch.float32
    assert torch.equal(found.values.isnan(), (MASK == 0).expand_as(found.values))
    assert all(parameter.grad is None for parameter in model.parameters())
