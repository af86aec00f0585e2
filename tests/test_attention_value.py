"""Attention weighted by what is moved, against a loop over queries, keys and heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_attribution import cached, made_tokens, right_padded
from tiny_models import D_MODEL, N_HEADS, tiny_hf_model, tiny_tokenizer

from basins import BasinScorer


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "falcon", "qwen3"])
@pytest.mark.parametrize("heads", ["summed", "apart"])
def test_attention_value_is_the_norm_of_what_moves_from_key_to_query(tiny, untouched, monkeypatch, name, heads):
    monkeypatch.setattr("basins.attention_importance.FLOATS_AT_ONCE", 5 * N_HEADS * D_MODEL)  # five keys at a time
    model, tokens = tiny(name), made_tokens()
    mask = right_padded(tokens, (9, 6, 4))
    with untouched(model):
        found = BasinScorer(model).attribute(tokens, mask, method="attention_value", layers=1, heads=heads)
    assert found.settings["heads"] == heads
    pattern, value = (cached(model, tokens, mask, 1, what) for what in ("attn.hook_pattern", "attn.hook_v"))
    z = cached(model, tokens, mask, 1, "attn.hook_z").reshape(3, 9, N_HEADS, 8)
    w_o = model.blocks[1].attn.W_O.detach().double().numpy()
    value = value.reshape(3, 9, -1, 8)
    shared = N_HEADS // value.shape[2]
    for row, length in enumerate((9, 6, 4)):
        for h in range(N_HEADS):
            mixed = pattern[row, h, :length] @ value[row, :, h // shared]
            np.testing.assert_allclose(mixed, z[row, :length, h], atol=1e-5)
        for key in range(length):
            written = [value[row, key, h // shared] @ w_o[h] for h in range(N_HEADS)]
            expected = 0.0
            for q in range(length):
                moved = [pattern[row, h, q, key] * written[h] for h in range(N_HEADS)]
                norms = [np.linalg.norm(vector) for vector in moved]
                expected += np.linalg.norm(sum(moved)) if heads == "summed" else sum(norms)
            assert float(found.values[0, row, key]) == pytest.approx(expected, rel=1e-4)


def test_heads_that_cancel_move_nothing(tiny):
    """All heads attend and read alike, and two write the opposite of the other two."""
    from transformer_lens.model_bridge import TransformerBridge

    hf_model = tiny_hf_model("gpt2")
    with torch.no_grad():
        for block in hf_model.transformer.h:
            attention = block.attn
            for weight in (attention.c_attn.weight, attention.c_attn.bias):
                heads = weight.view(*weight.shape[:-1], 3, N_HEADS, -1)
                heads.copy_(heads[..., :1, :].clone().expand_as(heads))
            heads = attention.c_proj.weight.view(N_HEADS, -1, D_MODEL)
            heads.copy_(heads[:1].clone() * torch.tensor([1.0, -1, 1, -1])[:, None, None])
    model = TransformerBridge.boot_transformers(
        "tiny/gpt2", hf_model=hf_model, dtype=torch.float32, device="cpu", tokenizer=tiny_tokenizer()
    )
    summed, apart = (
        BasinScorer(model).attribute(made_tokens(), method="attention_value", heads=heads).values
        for heads in ("summed", "apart")
    )
    assert apart.mean() > 1
    assert (summed <= 1e-6 * apart).all()
