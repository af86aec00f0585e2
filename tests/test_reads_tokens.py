"""Blocks that read the tokens themselves (Gemma 4's per-layer embeddings): re-run with the real ones, or refused."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from tiny_models import D_MODEL, D_VOCAB, N_HEADS

import basins
from basins.errors import BasinsError
from basins.lens import resid_post, resid_pre
from basins.planning import plan

N_LAYERS, K = 2, 4


@pytest.fixture(scope="module")
def model():
    config = transformers.Gemma4TextConfig(
        vocab_size=D_VOCAB, hidden_size=D_MODEL, intermediate_size=48, num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS, num_key_value_heads=2, head_dim=8, global_head_dim=16, sliding_window=4,
        layer_types=["sliding_attention", "full_attention"], num_kv_shared_layers=0, max_position_embeddings=64,
        vocab_size_per_layer_input=D_VOCAB, hidden_size_per_layer_input=8, pad_token_id=0,
    )  # fmt: skip
    config.architectures = ["Gemma4ForCausalLM"]
    torch.manual_seed(0)
    made = transformers.Gemma4ForCausalLM._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.3) if parameter.ndim > 1 else parameter.uniform_(0.5, 1.5)
    return basins.load_model(made)


TOKENS = torch.randint(3, D_VOCAB, (5, 12), generator=torch.Generator().manual_seed(1))


def by_hand(model, scores, layer: int, sequence: int, position: int) -> float:
    """-ln of the variance of a forward pass for each neighbour, with the real tokens."""
    _, cache = model.run_with_cache(TOKENS)
    flat = cache[resid_pre(layer)].flatten(0, 1)
    outputs = []
    for neighbor in scores.neighbor_ids[layer, sequence, position].tolist():
        kept = {}

        def put(value, hook, neighbor=neighbor):
            value = value.clone()
            value[0, position] = flat[neighbor]
            return value

        def keep(value, hook, kept=kept):
            kept["out"] = value[0, position].double()

        hooks = [(resid_pre(layer), put), (resid_post(layer), keep)]
        with torch.no_grad():
            model.run_with_hooks(TOKENS[sequence : sequence + 1], fwd_hooks=hooks)
        outputs.append(kept["out"])
    return -math.log(float(torch.stack(outputs).var(0, correction=0).sum()) + 1e-10)


def test_scores_are_those_of_forward_passes_with_the_real_tokens(model):
    scores = basins.BasinScorer(model, k=K, neighbors="cross_sequence").score_tokens(TOKENS)
    _, cache = model.run_with_cache(TOKENS)
    cached = basins.BasinScorer(model, k=K, neighbors="cross_sequence").score(cache, tokens=TOKENS)
    torch.testing.assert_close(scores.values, cached.values, atol=1e-4, rtol=0)
    for layer in range(N_LAYERS):
        for place in ((0, 5), (3, 11)):
            assert float(scores.values[layer][place]) == pytest.approx(by_hand(model, scores, layer, *place), abs=1e-4)
    with pytest.raises(BasinsError, match="tokens were not passed to score"):
        basins.BasinScorer(model, k=K).score(cache)


def test_what_runs_only_in_the_whole_model_is_refused_where_tokens_matter(model, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("not today")

    monkeypatch.setattr("basins.rerun.packed_replay", refuse)
    monkeypatch.setattr("basins.selfcheck.patch_block", refuse)
    with pytest.raises(BasinsError, match=r"block 0 of .* cannot be re-run: .*not today.*depends on the tokens"):
        basins.BasinScorer(model, k=K).score_tokens(TOKENS)


def test_sizes_that_differ_from_layer_to_layer_are_planned_with_the_largest(model):
    assert basins.shapes.shape_of(model).d_head == 16
    loaded, config = (
        plan(one, 60, length=12, k=K, rate=1e9, memory_budget=10**9)
        for one in (model, basins.shapes.shape_of_config(model.original_model.config, "gemma4"))
    )
    assert config.device_bytes == pytest.approx(loaded.device_bytes, rel=0.05)
    assert len(basins.BasinScorer(model, k=K, memory_budget=10**9).score_tokens(TOKENS).layers) == N_LAYERS
