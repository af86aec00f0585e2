"""Users' own hooks, ablations and steering, apply to the re-run: against patching by hand under the same hooks."""

from __future__ import annotations

import by_hand
import pytest
import torch
from test_scorer import VARIANCES, cached, tokens_and_mask
from tiny_models import tiny_model

from basins import BasinScorer, BasinsError

PLACES = ((0, 0, 8), (1, 0, 5), (1, 2, 7), (2, 3, 3), (0, 1, 4), (2, 1, 2))  # layer, sequence, position


def scale(factor):
    return lambda value, hook: factor * value


def steer(width, strength=3.0):
    vector = strength * torch.randn(width, generator=torch.Generator().manual_seed(3))
    return lambda value, hook: value + vector


def ablate_position(position):
    def hook_fn(value, hook):
        value = value.clone()
        value[:, position] = 0
        return value

    return hook_fn


HOOKS = {
    "attention ablated": [("blocks.1.hook_attn_out", scale(0.0))],
    "one head ablated": [
        ("blocks.0.attn.hook_z", lambda value, hook: value * (torch.arange(value.shape[2]) != 1)[:, None])
    ],
    "mlp scaled": [("blocks.2.hook_mlp_out", scale(-2.0))],
    "steered before a block": [("blocks.1.hook_resid_pre", steer(32))],
    "scaled before a block": [("blocks.1.hook_resid_pre", scale(1.5))],
    "steered after a block": [("blocks.1.hook_resid_post", steer(32))],
    "steered at the start": [("blocks.0.hook_resid_pre", steer(32))],
}


def assert_by_hand(scores, model, tokens, mask, hooks):
    for layer, b, p in PLACES:
        if p >= int(mask[b].sum()):
            continue
        expected = by_hand.variances(scores, model, layer, b, p, tokens, mask, hooks)
        got = [float(getattr(scores, name)[layer, b, p]) for name in VARIANCES]
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-9), (layer, b, p)


@pytest.mark.parametrize("model_name", ["gpt2", "llama"])
@pytest.mark.parametrize("name", HOOKS)
def test_hooks_in_a_context(name, model_name, tiny, untouched):
    model, hooks = tiny(model_name), HOOKS[name]
    tokens, mask = tokens_and_mask("right")
    plain = BasinScorer(model, k=3).score(cached(model, tokens, mask), tokens, mask)
    with untouched(model), model.hooks(fwd_hooks=hooks):
        scores = BasinScorer(model, k=3).score(cached(model, tokens, mask), tokens, mask)
    assert scores.settings["replay"] == {"core": 2, "packed": 1}
    assert float((scores.var_out - plain.var_out).abs().nan_to_num(0).max()) > 1e-2
    assert_by_hand(scores, model, tokens, mask, hooks)


@pytest.mark.parametrize("name", HOOKS)
def test_added_hooks_in_a_sweep(name, untouched):
    """Without a cache the sweep itself runs under the hooks, whichever layer they stand at."""
    model, hooks = tiny_model.__wrapped__("gpt2"), HOOKS[name]
    tokens, mask = tokens_and_mask("right")
    for point, hook_fn in hooks:
        model.add_hook(point, hook_fn)
    scorer = BasinScorer(model, k=3)
    with untouched(model):
        cache = cached(model, tokens, mask)
        swept, scored = scorer.score_tokens(tokens, mask), scorer.score(cache, tokens, mask)
    assert torch.equal(swept.neighbor_ids, scored.neighbor_ids)
    for name in VARIANCES:
        torch.testing.assert_close(getattr(swept, name), getattr(scored, name), rtol=1e-3, atol=1e-5, equal_nan=True)
    lookup = BasinScorer(model, k=3, method="lookup").score_tokens(tokens, mask)
    torch.testing.assert_close(lookup.values, scored.lookup.values, rtol=1e-3, atol=1e-4, equal_nan=True)
    model.reset_hooks(including_permanent=True)
    assert_by_hand(swept, model, tokens, mask, hooks)


@pytest.mark.parametrize("name", ["attention ablated", "scaled before a block"])
def test_a_bank_is_embedded_under_the_hooks(name, tiny):
    model, texts = tiny("gpt2"), ["a cat sat on a mat", "a dog sat"]
    with model.hooks(fwd_hooks=HOOKS[name]):
        bank = model.to_tokens(texts)
        mask = torch.ones_like(bank)
        mask[1, len(model.to_tokens(texts[1])[0]) :] = 0
        from_texts = BasinScorer(model, k=3).fit(texts).score_texts(["a cat"])
        from_cache = BasinScorer(model, k=3).fit(cached(model, bank, mask), bank, mask).score_texts(["a cat"])
    assert torch.equal(from_texts.neighbor_ids, from_cache.neighbor_ids)
    torch.testing.assert_close(from_texts.values, from_cache.values, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(from_texts.lookup.values, from_cache.lookup.values, rtol=1e-3, atol=1e-4)


def test_a_hook_on_one_position_is_not_packed(tiny):
    """A patched row does not stand where its position is counted, so the self-check falls back, and numbers hold."""
    model, hooks = tiny("gpt2"), [("blocks.1.hook_attn_out", ablate_position(3))]
    tokens, mask = tokens_and_mask("right")
    with model.hooks(fwd_hooks=hooks):
        scores = BasinScorer(model, k=3).score(cached(model, tokens, mask), tokens, mask)
    assert scores.settings["replay"] == {"core": 2, "single_block": 1}
    assert "differs from the model's own forward pass" in scores.settings["replay_refused"]["1"]["packed"]
    for b in range(4):
        expected = by_hand.variances(scores, model, 1, b, 3, tokens, mask, hooks)
        got = [float(getattr(scores, name)[1, b, 3]) for name in VARIANCES]
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_another_hook_at_the_same_place_is_checked_anew(tiny):
    """A scorer that has met one hook must not trust the packed path under another one."""
    model, hooks = tiny("gpt2"), [("blocks.1.hook_attn_out", ablate_position(3))]
    tokens, mask = tokens_and_mask("right")
    scorer = BasinScorer(model, k=3)
    with model.hooks(fwd_hooks=[("blocks.1.hook_attn_out", scale(0.5))]):
        assert scorer.score(cached(model, tokens, mask), tokens, mask).settings["replay"] == {"core": 2, "packed": 1}
    with model.hooks(fwd_hooks=hooks):
        scores = scorer.score(cached(model, tokens, mask), tokens, mask)
    expected = by_hand.variances(scores, model, 1, 2, 3, tokens, mask, hooks)
    assert float(scores.var_out[1, 2, 3]) == pytest.approx(expected[1], rel=1e-4)
    assert scores.settings["replay"] == {"core": 2, "single_block": 1}


def test_a_plain_torch_hook_is_checked_too():
    """Users also register hooks on modules that are no hook points."""
    model = tiny_model.__wrapped__("gpt2")
    tokens, mask = tokens_and_mask("right")
    scorer = BasinScorer(model, k=3)
    assert scorer.score(cached(model, tokens, mask), tokens, mask).settings["replay"] == {"core": 3}
    zero = ablate_position(3)
    handle = model.blocks[1].mlp.register_forward_hook(lambda module, args, output: zero(output, None))
    scores = scorer.score(cached(model, tokens, mask), tokens, mask)
    assert scores.settings["replay"] == {"core": 2, "single_block": 1}
    expected = by_hand.variances(scores, model, 1, 2, 3, tokens, mask)
    assert float(scores.var_out[1, 2, 3]) == pytest.approx(expected[1], rel=1e-4)
    handle.remove()


@pytest.mark.parametrize("when", ["only in the cache", "only while scoring"])
def test_a_cache_made_under_other_hooks_is_refused(tiny, when):
    model, hooks = tiny("gpt2"), HOOKS["attention ablated"]
    tokens, mask = tokens_and_mask()
    with model.hooks(fwd_hooks=hooks if when == "only in the cache" else []):
        cache = cached(model, tokens, mask)
    with (
        model.hooks(fwd_hooks=hooks if when == "only while scoring" else []),
        pytest.raises(BasinsError, match=r"re-running block 1 .* does not give the cached layer 2 .*hooks were active"),
    ):
        BasinScorer(model, k=3).score(cache)
