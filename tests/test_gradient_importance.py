"""Gradients against finite differences, attribution patching and ablation by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import D_MODEL, N_LAYERS, tiny_hf_model, tiny_tokenizer
from torch.overrides import TorchFunctionMode

from basins import BasinScorer
from basins.lens import resid_pre
from basins.passes import Passes
from basins.targets import make_target

# Central differences of fourth order.
STENCIL = {1: 2 / 3, 2: -1 / 12}
STEP = 0.002


class InDouble(TorchFunctionMode):
    """Norms and softmax of a float64 Llama cast to float32, which drowns differences: here they stay in float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        double = bool(args) and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64
        if double and (func is torch.Tensor.float or (func is torch.Tensor.to and torch.float32 in args[1:])):
            return args[0]
        if double and kwargs.get("dtype") == torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


TARGETS = {
    "next_token": lambda logits, tokens: logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None]).sum((1, 2)),
    7: lambda logits, tokens: logits[:, -1, 7],
}


def made_tokens(batch: int = 2, pos: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, 64, (batch, pos), generator=torch.Generator().manual_seed(seed))


def passes_of(model, tokens, dtype=torch.float64) -> Passes:
    mask = torch.ones_like(tokens)
    return Passes(model, tokens, mask, mask.bool(), tuple(range(N_LAYERS)), 8, dtype)


def patched_logits(model, tokens, layer, put) -> torch.Tensor:
    """The forward pass with `put(state)` in the place of the state at `layer`."""
    with torch.no_grad():
        return model.run_with_hooks(
            tokens,
            fwd_hooks=[(resid_pre(layer), lambda value, hook: put(value.clone()))],
            return_type="logits",
            attention_mask=torch.ones_like(tokens),
        )


def finite_differences(model, tokens, layer, target) -> torch.Tensor:
    """d target / d state of one sequence, coordinate by coordinate."""
    found = torch.zeros(tokens.shape[1], D_MODEL, dtype=torch.float64)
    steps = [(sign * n, sign * weight) for n, weight in STENCIL.items() for sign in (1, -1)]
    many = tokens.expand(D_MODEL * len(steps), -1)
    for position in range(tokens.shape[1]):

        def put(states: torch.Tensor, position: int = position) -> torch.Tensor:
            for i, (n, _) in enumerate(steps):
                rows = slice(i * D_MODEL, (i + 1) * D_MODEL)
                states[rows, position] += n * STEP * torch.eye(D_MODEL, dtype=states.dtype)
            return states

        outcomes = target(patched_logits(model, many, layer, put), many).view(len(steps), D_MODEL)
        weights = torch.tensor([weight for _, weight in steps], dtype=torch.float64)
        found[position] = weights @ outcomes / STEP
    return found


@pytest.mark.parametrize(
    ("name", "target"), [("gpt2", "next_token"), ("llama", "next_token"), ("gpt_neox", "next_token"), ("gpt2", 7)]
)
def test_gradients_agree_with_finite_differences_at_every_layer(tiny, untouched, name, target):
    model, tokens = tiny(name, torch.float64), made_tokens(1, 4)
    with untouched(model), InDouble():
        scorer = BasinScorer(model)
        norms = scorer.attribute(tokens, method="gradient", target=target).values
        dots = scorer.attribute(tokens, method="gradient_x_input", target=target).values
        passes = passes_of(model, tokens)
        aim = make_target(target, None, tokens, passes.mask, 64)
        states, slopes = passes.gradients(torch.tensor([0]), aim, passes.layers)
        for layer in range(N_LAYERS):
            expected = finite_differences(model, tokens, layer, TARGETS[target])
            error = (slopes[layer][0] - expected).norm() / expected.norm()
            assert error < 1e-5, f"layer {layer}: {error}"
            torch.testing.assert_close(norms[layer, 0], expected.norm(dim=-1), rtol=1e-5, atol=1e-5)
            dot = (expected * states[layer][0]).sum(-1)
            torch.testing.assert_close(dots[layer, 0], dot, rtol=1e-5, atol=1e-4)


def test_targets_mean_what_they_say(tiny):
    model, tokens = tiny("gpt2", torch.float64), made_tokens(3, 7)
    mask = torch.ones_like(tokens)
    mask[1, 4:] = 0
    scorer = BasinScorer(model)

    def of(**options) -> torch.Tensor:
        return scorer.attribute(tokens, mask, method="gradient", **options).values

    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=[], return_type="logits", attention_mask=mask)
    best = logits[0, -1].argmax().item()
    same = {"atol": 1e-9, "rtol": 1e-9, "equal_nan": True}
    torch.testing.assert_close(of()[:, 0], of(target=best)[:, 0], **same)
    torch.testing.assert_close(of(), of(target="max_logit", position=-1), **same)
    torch.testing.assert_close(of(), of(position=[6, 3, 6]), **same)
    at_two = of(target="next_token", position=2)
    assert (at_two[:, :, 3] == 0).all()
    by_hand = of(target=lambda logits: logits[:, 2].log_softmax(-1)[torch.arange(len(logits)), tokens[:, 3]])
    torch.testing.assert_close(at_two, by_hand, **same)
    torch.testing.assert_close(of(target=5, position=1), of(target=lambda logits: logits[:, 1, 5]), **same)


def test_gradients_of_a_frozen_model_and_in_inference_mode(untouched):
    from transformer_lens.model_bridge import TransformerBridge

    hf_model = tiny_hf_model("llama")
    model = TransformerBridge.boot_transformers(
        "tiny/llama", hf_model=hf_model, dtype=torch.float32, device="cpu", tokenizer=tiny_tokenizer()
    )
    tokens = made_tokens()
    expected = BasinScorer(model).attribute(tokens, method="gradient").values
    with untouched(model), torch.inference_mode():
        inside = BasinScorer(model).attribute(tokens.clone(), method="gradient").values
    hf_model.train()
    for parameter in hf_model.parameters():
        parameter.requires_grad_(False)
    with untouched(model):
        frozen = BasinScorer(model).attribute(tokens, method="gradient").values
    torch.testing.assert_close(frozen, expected)
    torch.testing.assert_close(inside.clone(), expected)


def test_one_forward_and_one_backward_pass_whatever_the_layers(tiny):
    model, tokens = tiny("gpt2"), made_tokens(4)
    calls = []
    handle = model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    try:
        for method in ("gradient", "gradient_x_input", "attention", "attention_relative", "attention_value", "rollout"):
            calls.clear()
            BasinScorer(model, batch_size=2).attribute(tokens, method=method)
            assert len(calls) == 2, method
    finally:
        handle.remove()


def test_attribution_patching_is_the_first_order_of_patching(tiny, untouched):
    """Small steps: a corrupted state a thousandth of the way off changes the target as the gradient says."""
    model, tokens = tiny("gpt2", torch.float64), made_tokens(1)
    corrupted = made_tokens(1, seed=1)
    with untouched(model):
        found = BasinScorer(model).attribute(tokens, method="attribution_patching", target=7, corrupted=corrupted)
    for layer in range(N_LAYERS):
        other = passes_of(model, corrupted).states(torch.tensor([0]), [layer])[layer]
        for position in range(tokens.shape[1]):

            def moved(size: float, other=other, position=position, layer=layer) -> float:
                def put(states: torch.Tensor) -> torch.Tensor:
                    states[:, position] += size * (other - states)[:, position]
                    return states

                return float(patched_logits(model, tokens, layer, put)[0, -1, 7])

            slope = (moved(1e-4) - moved(-1e-4)) / 2e-4
            assert float(found.values[layer, 0, position]) == pytest.approx(slope, abs=1e-5, rel=1e-5)


def test_ablation_is_the_rise_of_the_loss(tiny, untouched):
    model, tokens = tiny("llama", torch.float64), made_tokens(2, 6)
    with untouched(model):
        scorer = BasinScorer(model, batch_size=4)
        found = scorer.attribute(tokens, method="ablation").values
        sampled = scorer.attribute(tokens, method="ablation", sample=5).values
    states = passes_of(model, tokens).states(torch.arange(2), range(N_LAYERS))

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return -logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None]).sum((1, 2))

    before = loss(patched_logits(model, tokens, 0, lambda states: states))
    for layer in range(N_LAYERS):
        mean = states[layer].flatten(0, 1).mean(0)
        for position in range(6):

            def put(states: torch.Tensor, mean=mean, position=position) -> torch.Tensor:
                states[:, position] = mean
                return states

            rise = loss(patched_logits(model, tokens, layer, put)) - before
            torch.testing.assert_close(found[layer, :, position], rise, atol=1e-6, rtol=1e-6)
    kept = sampled.isfinite()
    assert kept.sum((1, 2)).tolist() == [5] * N_LAYERS
    assert torch.equal(kept, kept[:1].expand_as(kept))
    torch.testing.assert_close(sampled[kept], found[kept])
    assert torch.equal(kept, scorer.attribute(tokens, method="ablation", sample=5).values.isfinite())
