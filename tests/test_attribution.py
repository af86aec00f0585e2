"""Attention measures, what all methods share, and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import ARCHITECTURES, D_VOCAB, N_HEADS, N_LAYERS, tiny_hf_model, tiny_tokenizer

from basins import BasinScorer, BasinsError

ATTENTION = ("attention", "attention_relative", "attention_value", "rollout")
GRADIENT = ("gradient", "gradient_x_input", "integrated_gradients", "attribution_patching")
WITH_ATTENTION = [name for name in ARCHITECTURES if name != "mamba"]


def made_tokens(batch: int = 3, pos: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, D_VOCAB, (batch, pos), generator=torch.Generator().manual_seed(seed))


def right_padded(tokens: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    mask = torch.zeros_like(tokens)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    return mask


def options_of(method: str, tokens: torch.Tensor) -> dict:
    return {
        "attribution_patching": {"corrupted": tokens.flip(0)},
        "integrated_gradients": {"steps": 4},
    }.get(method, {})


def cached(model, tokens, mask, layer, what="attn.hook_pattern"):
    name = f"blocks.{layer}.{what}"
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, attention_mask=mask, names_filter=[name])
    return cache[name].double().numpy()


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_attention_is_the_sum_over_heads_and_queries(tiny, untouched, name):
    model, tokens = tiny(name), made_tokens()
    mask = right_padded(tokens, (9, 6, 4))
    with untouched(model):
        found = BasinScorer(model).attribute(tokens, mask, method="attention")
    for layer in range(N_LAYERS):
        pattern = cached(model, tokens, mask, layer)
        for row, length in enumerate((9, 6, 4)):
            for key in range(9):
                value = float(found.values[layer, row, key])
                if key >= length:
                    assert np.isnan(value)
                    continue
                expected = sum(pattern[row, h, q, key] for h in range(N_HEADS) for q in range(length))
                assert value == pytest.approx(expected, abs=1e-5)
    assert torch.equal(found.total().isnan(), mask == 0)
    torch.testing.assert_close(found.total()[0], found.values[:, 0].sum(0))


def uniform_model(name: str):
    """A model whose queries are all zero: it attends evenly over what its mask lets it see."""
    from transformer_lens.model_bridge import TransformerBridge

    hf_model = tiny_hf_model(name)
    with torch.no_grad():
        for key, weight in hf_model.named_parameters():
            if "q_proj" in key:
                weight.zero_()
            elif "c_attn" in key:
                weight[..., : weight.shape[-1] // 3] = 0
    return TransformerBridge.boot_transformers(
        f"tiny/{name}", hf_model=hf_model, dtype=torch.float32, device="cpu", tokenizer=tiny_tokenizer()
    )


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "opt", "gptj", "gpt_neo"])
@pytest.mark.parametrize("options", [{}, {"include_self": False}, {"position": -1}])
def test_uniform_attention_is_one_everywhere(name, options):
    tokens = made_tokens()
    for mask in (right_padded(tokens, (9, 6, 4)), right_padded(tokens, (9, 6, 4)).flip(1)):
        for exclude_first in (0, 2):
            scorer = BasinScorer(uniform_model(name), exclude_first=exclude_first)
            values = scorer.attribute(tokens, mask, method="attention_relative", **options).values
            seen = values[values.isfinite()]
            assert len(seen) > 10
            torch.testing.assert_close(seen, torch.ones_like(seen), atol=1e-6, rtol=0)
            left_out = (mask == 0) | (mask.cumsum(1) <= exclude_first)
            assert values[:, left_out].isnan().all()
            if not options:
                assert values[:, ~left_out].isfinite().all()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_plain_attention_falls_with_the_position_by_itself(name, padding):
    """Even attention gives a key the sum of 1 / (q + 1) over the queries from its own position on, in each head."""
    length, width = 40, 40 if padding == "none" else 45
    tokens, mask = made_tokens(2, width), torch.ones(2, width, dtype=torch.long)
    start = width - length if padding == "left" else 0
    mask[:, :start], mask[:, start + length :] = 0, 0
    scorer = BasinScorer(uniform_model(name))
    plain = scorer.attribute(tokens, mask, method="attention").values[:, :, start : start + length]
    relative = scorer.attribute(tokens, mask, method="attention_relative").values[:, :, start : start + length]
    expected = torch.tensor([N_HEADS * sum(1 / (q + 1) for q in range(k, length)) for k in range(length)])
    torch.testing.assert_close(plain, expected.expand_as(plain), atol=1e-5, rtol=1e-5)
    assert (plain.diff(dim=-1) < 0).all()
    assert (plain[..., 0] > 100 * plain[..., -1]).all()
    torch.testing.assert_close(relative, torch.ones_like(relative), atol=1e-6, rtol=0)


def test_self_attention_and_first_positions_are_left_out(tiny):
    model, tokens = tiny("gpt2"), made_tokens()
    scorer = BasinScorer(model, exclude_first=2)
    values = scorer.attribute(tokens, method="attention", include_self=False, layers=1).values[0]
    pattern = cached(model, tokens, torch.ones_like(tokens), 1)
    assert values[:, :2].isnan().all()
    for key in range(2, 9):
        expected = sum(pattern[0, h, q, key] for h in range(N_HEADS) for q in range(2, 9) if q != key)
        assert float(values[0, key]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral"])
@pytest.mark.parametrize("position", [None, -2])
def test_rollout_agrees_with_numpy(tiny, untouched, name, position):
    model, tokens = tiny(name), made_tokens()
    lengths = (9, 6, 4)
    mask = right_padded(tokens, lengths)
    with untouched(model):
        found = BasinScorer(model).attribute(tokens, mask, method="rollout", layers=(0, 2), position=position)
    for row, length in enumerate(lengths):
        rolled = np.eye(length)
        for layer in range(N_LAYERS):
            mean = cached(model, tokens, mask, layer)[row, :, :length, :length].mean(0)
            rolled = (0.5 * mean + 0.5 * np.eye(length)) @ rolled
            if layer in (0, 2):
                expected = rolled.sum(0) if position is None else rolled[position]
                values = found.values[found.layers.index(layer), row]
                np.testing.assert_allclose(values[:length], expected, atol=1e-5)
                assert values[length:].isnan().all()


@pytest.mark.parametrize("method", [*ATTENTION, *GRADIENT, "ablation"])
def test_micro_batches_and_padding_change_nothing(tiny, untouched, method):
    model, tokens = tiny("llama", torch.float64), made_tokens(5)
    lengths = (9, 6, 4, 8, 7)
    mask = right_padded(tokens, lengths)
    options = options_of(method, tokens)
    with untouched(model):
        whole = BasinScorer(model, batch_size=8).attribute(tokens, mask, method=method, **options)
        parts = BasinScorer(model, batch_size=2).attribute(tokens, mask, method=method, **options)
    assert whole.values.dtype == torch.float64
    torch.testing.assert_close(whole.values, parts.values, equal_nan=True, atol=1e-10, rtol=1e-8)
    assert torch.equal(whole.values.isnan(), (mask == 0).expand_as(whole.values))
    if method not in ("ablation", "integrated_gradients"):  # their mean is over all sequences
        # In float32: attention in a float64 Llama is NaN at padding on the left, whoever calls it.
        model, short = tiny("llama"), tokens[1:2, :6]
        options = {"corrupted": tokens.flip(0)[1:2, :6]} if "corrupted" in options else options
        alone = BasinScorer(model).attribute(short, method=method, **options)
        expected = whole.values[:, 1, :6].float()
        torch.testing.assert_close(alone.values[:, 0], expected, atol=1e-4, rtol=1e-4)
        left = torch.cat([tokens[1:2, 6:], short], 1)
        if "corrupted" in options:
            options = {"corrupted": torch.cat([tokens[1:2, 6:], options["corrupted"]], 1)}
        shifted = BasinScorer(model).attribute(left, mask[1:2].flip(1), method=method, **options)
        assert shifted.values[..., :3].isnan().all()
        torch.testing.assert_close(shifted.values[:, 0, 3:], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", [*ATTENTION, *GRADIENT, "ablation"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_layers_align_and_half_precision_works(tiny, untouched, method, dtype):
    model, tokens = tiny("gpt2", dtype), made_tokens(2, 6)
    options = options_of(method, tokens)
    with untouched(model):
        every = BasinScorer(model).attribute(tokens, method=method, **options)
        some = BasinScorer(model).attribute(tokens, method=method, layers=[2, -2], **options)
    assert every.values.dtype == torch.float32
    assert every.values.isfinite().all()
    assert some.layers == (1, 2)
    torch.testing.assert_close(some.values, every.values[1:], atol=1e-4, rtol=1e-3)
    assert str(some).startswith(f"Attribution: {method}, 12 of 12 tokens in 2 sequences, 2 of 3 layers")


@pytest.mark.parametrize("method", [*ATTENTION, *GRADIENT, "ablation"])
@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_bfloat16_gives_nearly_the_same_and_leaves_gradients_alone(tiny, untouched, name, method):
    """Gradients that the user has already are neither filled up nor dropped."""
    model, tokens = tiny(name, torch.bfloat16), made_tokens(3, 6)
    mask = right_padded(tokens, (6, 4, 5))
    options = options_of(method, tokens) | ({"target": 7} if method in GRADIENT else {})
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert parameters
    for parameter in parameters[::2]:
        parameter.grad = torch.ones_like(parameter)
    try:
        with untouched(model):
            found = BasinScorer(model, batch_size=2).attribute(tokens, mask, method=method, **options).values
        assert all((parameter.grad == 1).all() for parameter in parameters[::2])
        assert all(parameter.grad is None for parameter in parameters[1::2])
    finally:
        for parameter in parameters:
            parameter.grad = None
    expected = BasinScorer(tiny(name)).attribute(tokens, mask, method=method, **options).values
    real = mask.bool()
    assert found.dtype == torch.float32
    assert torch.equal(found.isnan(), expected.isnan())
    for one, other in zip(found[:, real], expected[:, real], strict=True):
        assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "saliency"}, "method='saliency' is not an option. Possible: 'attention', 'attention_relative', "),
        (
            {"method": "gradient", "target": "loss"},
            "target='loss' is not an option. Possible: 'max_logit', 'next_token', a token id, or a callable",
        ),
        ({"method": "gradient", "target": 64}, "target=64 is no token id: this model has 64 tokens, 0 to 63."),
        ({"method": "gradient", "position": 9}, "position=9 is outside sequence 0, whose real tokens stand at 0 to 8."),
        ({"method": "gradient", "position": 1.5}, "position=1.5 must be a whole number, or one for each sequence."),
        ({"method": "gradient", "position": [1, 2]}, "position has 2 numbers for 3 sequences."),
        ({"method": "gradient", "target": "next_token", "position": -1}, "in sequence 0 no token follows"),
        ({"method": "gradient", "target": lambda logits: logits.sum()}, "it must return one number a row, shape (3,)"),
        ({"method": "gradient", "target": lambda logits: logits.argmax(-1).sum(1)}, "does not depend on the logits"),
        ({"method": "attention", "target": 3}, "target means nothing to method='attention', which takes position, "),
        ({"method": "attention", "include_self": 1}, "include_self=1 is not an option. Possible: True, False."),
        ({"method": "attribution_patching"}, "needs corrupted=...: token ids of the same shape as tokens"),
        ({"method": "integrated_gradients", "baseline": "max"}, "baseline='max' is not an option. Possible: 'mean', "),
        ({"method": "integrated_gradients", "steps": 0}, "steps=0 is too small: it must be at least 1"),
        ({"method": "ablation", "sample": 0}, "sample=0 is too small: it must be at least 1"),
        ({"method": "attention", "heads": "apart"}, "heads means nothing to method='attention', which takes position,"),
        ({"method": "attention_value", "heads": "all"}, "heads='all' is not an option. Possible: 'summed', 'apart'."),
        ({"method": "attention", "exclude_first": 9}, "exclude_first=9 leaves no token: the longest sequence has 9."),
        ({"method": "attention", "exclude_first": -1}, "exclude_first=-1 is too small: it must be at least 0"),
        ({"method": "attention", "batch_size": 0}, "batch_size=0 is too small: it must be at least 1"),
        ({"method": "gradient", "layers": 3}, "layer=3 is out of range: this model has 3 blocks, numbered 0 to 2."),
    ],
)
def test_errors_say_what_is_possible(tiny, untouched, options, message):
    model = tiny("gpt2")
    with untouched(model), pytest.raises(BasinsError) as error:
        BasinScorer(model).attribute(made_tokens(), **options)
    assert message in str(error.value)


def test_a_model_without_attention_says_what_works(tiny):
    model = tiny("mamba")
    with pytest.raises(BasinsError, match=r"gives nothing at blocks\.0\.attn\.hook_pattern.*\"gradient\""):
        BasinScorer(model).attribute(made_tokens(), method="attention")
