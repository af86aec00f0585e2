from __future__ import annotations

import pytest
import torch

from basins.aggregates import norm_aggregates, wide
from basins.errors import BasinsError
from basins.lens import resid_pre
from basins.state_norms import state_norms


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_norms_are_those_of_the_states(tiny, untouched, name, side):
    model = tiny(name)
    tokens = torch.randint(0, 50, (5, 9))
    mask = torch.ones(5, 9, dtype=torch.long)
    mask[1, slice(0, 4) if side == "left" else slice(5, 9)] = 0
    with untouched(model):
        norms = state_norms(model, tokens, mask, batch_size=2)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, attention_mask=mask)
    for layer in range(len(model.blocks)):
        wanted = cache[resid_pre(layer)].norm(dim=-1).masked_fill(mask == 0, float("nan"))
        assert torch.allclose(norms[layer], wanted, rtol=1e-4, equal_nan=True)
    some = state_norms(model, tokens, mask, layers=[1], batch_size=5)
    assert torch.allclose(some[0], norms[1], rtol=1e-5, equal_nan=True)
    where = torch.ones(5, 9, dtype=torch.bool)
    where[:, :3] = False
    frame = norm_aggregates(norms, range(len(norms)), where)
    matrix = wide(frame)
    assert matrix.loc[0, "state_norm.L1"] == pytest.approx(float(norms[1, 0, 3:].mean()), rel=1e-5)
    kept = [p for p in range(3, 9) if mask[1, p]]
    assert matrix.loc[1, "state_norm.L1"] == pytest.approx(float(norms[1, 1, kept].mean()), rel=1e-5)
    assert frame["layer"].tolist()[:5] == [0] * 5


def test_an_exception_inside_leaves_the_model_as_found(tiny, untouched):
    model = tiny("gpt2")
    with untouched(model), pytest.raises(BasinsError):
        state_norms(model, torch.full((1, 4), 10**6))
