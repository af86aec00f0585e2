"""The test models are what other tests take them for, and `untouched` notices what it should."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from tiny_models import ARCHITECTURES, D_VOCAB, N_LAYERS, SLIDING, SLIDING_WINDOW, tiny_hf_model, tiny_model

TOKENS = torch.arange(24).reshape(2, 12).mul(7).remainder(D_VOCAB - 4) + 4


def _states(model, tokens):
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(N_LAYERS)] + [f"blocks.{N_LAYERS - 1}.hook_resid_post"]
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=lambda name: "resid" in name)
    return [cache[name] for name in names]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_blocks_change_their_input_and_match_transformers(name, tiny):
    states = _states(tiny(name), TOKENS)
    for before, after in pairwise(states):
        assert (after - before).norm() > 0.2 * before.norm()
    with torch.no_grad():
        expected = tiny_hf_model(name)(TOKENS, output_hidden_states=True).hidden_states
    first = 1 if name == "mamba" else 0  # transformers leaves a Mamba's embedding out
    for layer in range(first, N_LAYERS):
        torch.testing.assert_close(states[layer], expected[layer - first], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_are_causal_and_see_the_past(name, tiny):
    other = TOKENS.clone()
    other[:, 6] = TOKENS[:, 6] % (D_VOCAB - 5) + 5
    states, changed = _states(tiny(name), TOKENS)[-1], _states(tiny(name), other)[-1]
    torch.testing.assert_close(states[:, :6], changed[:, :6], rtol=1e-5, atol=1e-5)
    assert (states[:, 7:] - changed[:, 7:]).norm() > 0.01 * states[:, 7:].norm()


@pytest.mark.parametrize("name", SLIDING)
def test_windows_end_before_the_sequences_do(name, tiny):
    """No position of a windowed block sees further back. GPT-Neo's windowed block is its second."""
    layer = 1 if name == "gpt_neo" else 0
    model = tiny(name)
    key = f"blocks.{layer}.attn.hook_pattern"
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS, names_filter=lambda hook: hook.endswith("hook_pattern"))
    distance = torch.arange(12)[:, None] - torch.arange(12)[None]
    assert cache[key][..., distance >= SLIDING_WINDOW].abs().max() == 0
    assert (cache[key][..., (distance >= 0) & (distance < SLIDING_WINDOW)] > 0).all()


def test_same_seed_same_weights_and_other_seed_others():
    first, again, other = (tiny_hf_model("llama", seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_tiny_tokenizer_says_where_its_tokens_are(tiny):
    model = tiny("gpt2")
    encoded = model.tokenizer("A cat.", return_offsets_mapping=True)
    assert encoded["offset_mapping"] == [(0, 0), (0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6)]
    assert model.tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == "A cat."
    assert model.to_tokens("A cat.").tolist() == [encoded["input_ids"]]


def _leave_a_hook(model):
    model.blocks[1].hook_out.add_hook(lambda tensor, hook: tensor)


def _leave_a_torch_hook(model):
    model.original_model.transformer.h[1].register_forward_pre_hook(lambda module, args: None)


def _leave_a_gradient(model):
    next(model.parameters()).sum().backward()


def _leave_training_mode(model):
    model.blocks[2].train()


def _leave_gradients_off(model):
    next(model.parameters()).requires_grad_(False)


def _change_a_weight(model):
    with torch.no_grad():
        next(model.parameters()).add_(1.0)


def _change_the_config(model):
    model.cfg.n_ctx += 1


def _change_the_original_config(model):
    model.original_model.config.use_cache = False


def _change_dtype(model):
    model.blocks[0].to(torch.float64)


@pytest.mark.parametrize(
    "change",
    [
        _leave_a_hook,
        _leave_a_torch_hook,
        _leave_a_gradient,
        _leave_training_mode,
        _leave_gradients_off,
        _change_a_weight,
        _change_the_config,
        _change_the_original_config,
        _change_dtype,
    ],
)
def test_untouched_notices(change, untouched):
    model = tiny_model.__wrapped__("gpt2")  # not the shared one: it is about to be spoilt
    with pytest.raises(AssertionError, match="the model was changed"), untouched(model):
        change(model)


def test_untouched_allows_reading(tiny, untouched):
    with untouched(tiny("gpt2")):
        _states(tiny("gpt2"), TOKENS)


def test_untouched_allows_a_first_forward_pass(untouched):
    model = tiny_model.__wrapped__("gpt2")
    with untouched(model):
        _states(model, TOKENS)
