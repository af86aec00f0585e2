"""The cheapest check of all: re-running a token's own state must reproduce layer L+1, at every layer of every model."""

from __future__ import annotations

import pytest
import torch
from block_models import model_of
from test_rerun import UNPACKABLE
from tiny_models import ARCHITECTURES, N_LAYERS, tiny_hf_model

from basins import BasinScorer
from basins.block_calls import record_calls
from basins.lens import as_found
from basins.rerun import packed_replay, rerun
from basins.selfcheck import check_paths, disagreement

TOKENS = torch.arange(24).reshape(2, 12).mul(11).remainder(60) + 4
MASKS = {"none": [(0, 12), (0, 12)], "right": [(0, 12), (0, 8)], "left": [(0, 12), (5, 12)]}


def mask_of(padding: str) -> torch.Tensor:
    place = torch.arange(12)
    return torch.stack([(place >= start) & (place < end) for start, end in MASKS[padding]]).long()


def layers_of(model, mask):
    """Recorded calls, and layers 0 .. n_layers as a cache holds them."""
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(N_LAYERS)] + [f"blocks.{N_LAYERS - 1}.hook_resid_post"]
    calls, _ = record_calls(model, TOKENS, mask, range(N_LAYERS))
    _, cache = model.run_with_cache(TOKENS, attention_mask=mask, names_filter=lambda name: "resid" in name)
    return calls, [cache[name] for name in names]


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_own_state_reproduces_the_next_layer(name, padding, tiny):
    model, mask = tiny(name), mask_of(padding)
    real = mask.bool()
    positions = torch.arange(12).expand(2, -1)
    with as_found(model):
        calls, states = layers_of(model, mask)
        for layer, call in calls.items():
            before, after = states[layer], states[layer + 1]
            if (name, layer) in UNPACKABLE:
                one = {layer: before[:1]}
                only, _ = record_calls(model, TOKENS[:1], mask[:1], [layer])
                path = check_paths(model, only, one, TOKENS[:1], mask[:1], 0)[layer].path
                outputs, context = rerun(model, path, call, before, mask, before, positions)
            else:
                outputs, context = packed_replay(model, call, before, before, positions)
            assert disagreement(context[real], after[real], before[real]) <= 1
            assert disagreement(outputs[real], after[real], before[real]) <= 1
            torch.testing.assert_close(outputs[real], after[real], rtol=1e-4, atol=1e-4)


def test_the_check_notices_a_block_that_is_silently_not_causal(tiny):
    """An eager `transformers` GPT-2 block called without a mask lets every position see the later ones."""
    with as_found(tiny("gpt2")):
        _, states = layers_of(tiny("gpt2"), mask_of("none"))
        bare = tiny_hf_model("gpt2").transformer.h[0](states[0])
    bare = bare[0] if isinstance(bare, tuple) else bare
    torch.testing.assert_close(bare[:, -1], states[1][:, -1], rtol=1e-4, atol=1e-4)
    assert disagreement(bare[:, 0], states[1][:, 0], states[0][:, 0]) > 100


def test_a_block_without_a_hook_on_its_scores_falls_back():
    """It takes a key mask as a HookedTransformer does, and has nowhere to cut the patched rows' scores."""
    states = torch.randn(12, 4)
    scores = BasinScorer(model_of(states, lambda x: 2 * x, route="key_mask"), k=3).score_tokens(torch.arange(12)[None])
    assert scores.settings["replay"] == {"single_block": 1}
    torch.testing.assert_close(scores.var_out, 4 * scores.var_in)
