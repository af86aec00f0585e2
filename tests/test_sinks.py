from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_rerun import padded, some_tokens
from test_scorer import cached
from tiny_models import tiny_model

from basins.errors import BasinsError
from basins.sinks import massive, sinks


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_agrees_with_a_loop_over_patterns_and_states(name, padding, untouched):
    model, tokens, mask = tiny_model(name), some_tokens(), padded(padding)
    with untouched(model):
        found = sinks(model, tokens, mask, batch_size=2).set_index("layer")
    _, cache = model.run_with_cache(tokens, attention_mask=mask)
    states = cached(model, tokens, mask)
    for layer in range(3):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"].detach().numpy()
        weights, even, first, other = [], [], [], []
        for row in range(len(tokens)):
            real = mask[row].nonzero()[:, 0].tolist()
            norms = states[f"blocks.{layer}.hook_resid_pre"][row].norm(dim=-1).tolist()
            first.append(norms[real[0]])
            other += [norms[p] for p in real[1:]]
            weights += [pattern[row, :, p, real[0]] for p in real[1:]]
            even += [1 / (i + 1) for i in range(1, len(real))]
        by_head = np.mean(weights, 0)
        row = found.loc[layer]
        assert row["attention_first"] == pytest.approx(by_head.mean(), rel=1e-5)
        assert row["attention_even"] == pytest.approx(np.mean(even))
        assert row["sink_heads"] == (by_head > 0.3).mean()
        assert row["norm_other"] in other
        assert row["norm_ratio"] == pytest.approx(row["norm_first"] / row["norm_other"])
        assert not row["is_massive"]


def test_massive_needs_both_a_size_and_a_ratio():
    states = torch.full((3, 4, 5), 0.1)
    states[0, 0, 2] = 150  # both
    states[1, 1, 3] = 90  # only the ratio
    states[2] = 1.0
    states[2, 2, 1] = 500  # only the size
    real = torch.ones(3, 4, dtype=torch.bool)
    assert massive(states, real).nonzero().tolist() == [[0, 0, 2]]
    real[0, 0] = False
    assert not massive(states, real).any()


def test_a_planted_massive_activation_is_found_where_it_stands():
    model, tokens = tiny_model("gpt2"), some_tokens()

    def plant(value, hook):
        value = value.clone()
        value[:, 0, 7] = 5e4
        return value

    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", plant)]):
        found = sinks(model, tokens, layers=[0, 1]).set_index("layer")
    assert found["is_massive"].tolist() == [False, True]
    row = found.loc[1]
    assert (row["massive"], row["massive_tokens"], row["massive_first"], row["massive_dims"]) == (3, 3, 3, "7")
    assert row["norm_ratio"] > 100


def test_blocks_without_attention_have_no_share_of_it():
    found = sinks(tiny_model("mamba"), some_tokens())
    assert found["attention_first"].map(math.isnan).all()
    assert not found["is_sink"].any()
    with pytest.raises(BasinsError, match="tokens is None"):
        sinks(tiny_model("gpt2"), None)  # type: ignore[arg-type]
