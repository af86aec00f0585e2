"""The self-check takes the fastest path that agrees with the model, and refuses blocks made wrong on purpose."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from test_rerun import PADDINGS, UNPACKABLE, padded, some_tokens
from tiny_models import ARCHITECTURES, tiny_model

from basins import BasinScorer
from basins.block_calls import record_calls
from basins.lens import as_found, n_layers
from basins.selfcheck import SlowReplay, check_paths, disagreement

# Blocks whose parts are known: see test_core.py.
CORES = ("gpt2", "llama", "gpt_neox", "gemma2", "gemma3", "qwen2", "qwen3", "mistral")


def checked(model, mask, row=1, seed=0):
    layers = range(n_layers(model))
    tokens, mask = some_tokens()[row : row + 1], mask[row : row + 1]
    with as_found(model):
        calls, states = record_calls(model, tokens, mask, layers, layers)
        return check_paths(model, calls, states, tokens, mask, seed)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_which_path_each_architecture_takes(name, padding):
    for layer, result in checked(tiny_model(name), padded(padding)).items():
        expected = "single_block" if (name, layer) in UNPACKABLE else "core" if name in CORES else "packed"
        assert result.path == expected, result
        assert result.error <= 1
        assert set(result.refused) == ({"packed"} if expected == "single_block" else set())


def _wrong_by_row_index(module, args, output):
    """Adds something that depends on the row's index in the call: right unpacked, wrong packed."""
    states = output[0] if isinstance(output, tuple) else output
    ramp = torch.arange(states.shape[1], dtype=states.dtype)[None, :, None]
    return (states + 0.1 * ramp, *output[1:]) if isinstance(output, tuple) else states + 0.1 * ramp


def _wrong_across_positions(module, args, output):
    """Adds the mean over the later positions: what no causal block does, and packed rows would leak through."""
    states = output[0] if isinstance(output, tuple) else output
    mixed = states + 0.1 * states.mean(1, keepdim=True)
    return (mixed, *output[1:]) if isinstance(output, tuple) else mixed


@pytest.mark.parametrize("wrong", [_wrong_by_row_index, _wrong_across_positions])
def test_a_block_made_wrong_on_purpose_is_not_packed(wrong):
    model = tiny_model("gpt2")
    handle = model.blocks[1].mlp.register_forward_hook(wrong)
    try:
        result = checked(model, padded("none"))
        assert [result[layer].path for layer in range(3)] == ["core", "single_block", "core"]
        assert "differs from the model's own forward pass" in result[1].refused["packed"]
        assert "hooks" in result[1].refused["core"]
    finally:
        handle.remove()


def test_a_block_that_needs_the_whole_model_takes_the_whole_model():
    """Block 1 reads what the embedding left behind in the same forward pass: no call of the block alone has it."""
    model = tiny_model("gpt2")
    left = {}
    first = model.embed.register_forward_hook(lambda module, args, output: left.update(fresh=True))

    def second(module, args, output):
        fresh = left.pop("fresh", False)
        states = output[0] if isinstance(output, tuple) else output
        changed = states + (1.0 if fresh else -1.0)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = model.blocks[1].mlp.register_forward_hook(second)
    try:
        result = checked(model, padded("none"))
        assert result[1].path == "full_model"
        assert set(result[1].refused) == {"core", "packed", "single_block"}
    finally:
        first.remove()
        handle.remove()


def test_refused_paths_are_recorded_and_the_scores_do_not_change():
    """Scores of a block that packs equal those of the same block forced onto each slower path."""
    model, tokens = tiny_model("llama"), some_tokens()
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    scorer = BasinScorer(model, k=4)
    fast = scorer.score(cache, tokens=tokens)
    assert fast.settings["replay"] == {"core": 3}
    for path in ("packed", "single_block", "full_model"):
        slow = BasinScorer(model, k=4)
        slow.score(cache, layers=[0])
        for key, paths in scorer._self_check.known.items():
            slow._self_check.known[key] = {
                layer: type(p)(path, 0.0, {"packed": "forced"}) for layer, p in paths.items()
            }
        result = slow.score(cache, tokens=tokens)
        assert result.settings["replay"] == {path: 3}
        assert result.settings["replay_refused"]["0"] == {"packed": "forced"}
        assert torch.allclose(result.values, fast.values, rtol=1e-4, atol=1e-4)
        assert torch.allclose(result.relative, fast.relative, rtol=1e-4, atol=1e-4)


def test_a_slow_path_is_announced():
    model, tokens = tiny_model("gpt_neo"), some_tokens()
    with pytest.warns(SlowReplay, match="1 of 3 blocks cannot be re-run packed .* Block 1: it differs"):
        scores = BasinScorer(model, k=3).score_tokens(tokens)
    assert scores.settings["replay"] == {"packed": 2, "single_block": 1}


def test_disagreement_is_measured_against_what_the_block_writes():
    """In a stream of norm 20,000 an error as large as the update must not hide behind the stream's own size."""
    before = torch.zeros(1, 8)
    before[0, 0] = 20_000.0
    update = torch.full((1, 8), 0.5)
    assert disagreement(before + update, before + update, before) == 0
    assert disagreement(before + 1.5 * update, before + update, before) > 1
    assert disagreement(torch.full((1, 8), float("nan")), before, before) == float("inf")


@pytest.mark.parametrize("way", ["cache", "tokens", "texts"])
def test_the_warning_of_a_slow_path_names_the_line_that_asked(way):
    model, tokens = tiny_model("mamba"), some_tokens()
    _, cache = model.run_with_cache(tokens)
    scorer = BasinScorer(model, k=3)
    asked = {
        "cache": lambda: scorer.score(cache),
        "tokens": lambda: scorer.score_tokens(tokens),
        "texts": lambda: scorer.score_texts(["a cat sat on a mat"]),
    }
    with pytest.warns(SlowReplay) as warned:
        asked[way]()
    assert {warning.filename for warning in warned if warning.category is SlowReplay} == {__file__}


def test_what_was_replaced_is_not_held():
    model, tokens = tiny_model.__wrapped__("gpt2"), some_tokens()
    scorer, mlp = BasinScorer(model, k=3), model.blocks[1].mlp
    inner = getattr(mlp, "original_component", None) or mlp
    forward = inner.forward
    held = []
    for factor in (0.5, 2.0):
        inner.forward = lambda *args, factor=factor, **kwargs: forward(*args, **kwargs) * factor
        held.append(weakref.ref(inner.forward))
        scorer.score_tokens(tokens)
    gc.collect()
    assert [ref() is None for ref in held] == [True, False]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_block_that_was_changed_without_a_hook_is_checked_again(name):
    model, tokens = tiny_model(name), some_tokens()
    scorer = BasinScorer(model, k=4)
    assert scorer.score_tokens(tokens).settings["replay"] == {"core": n_layers(model)}
    mlp = model.blocks[0].mlp
    inner = getattr(mlp, "original_component", None) or mlp
    forward = inner.forward
    try:
        for factor in (0.5, 2.0, 3.0, 0.0):  # each frees the one before, whose place in memory it may get
            inner.forward = lambda *args, factor=factor, **kwargs: forward(*args, **kwargs) * factor
            found = scorer.score_tokens(tokens)
            assert found.settings["replay"] == {"core": n_layers(model) - 1, "packed": 1}
            fresh = BasinScorer(model, k=4).score_tokens(tokens)
            torch.testing.assert_close(found.values, fresh.values, equal_nan=True)
    finally:
        del inner.forward
    assert scorer.score_tokens(tokens).settings["replay"] == {"core": n_layers(model)}


def test_the_check_is_repeated_when_hooks_change_and_not_otherwise(monkeypatch):
    import basins.selfcheck as module

    model, tokens = tiny_model("gpt2"), some_tokens()
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    ran = []
    real = module.check_paths
    monkeypatch.setattr(module, "check_paths", lambda *args: ran.append(1) or real(*args))
    scorer = BasinScorer(model, k=3)
    scorer.score(cache)
    scorer.score(cache, layers=[1])
    assert len(ran) == 1
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_out", lambda value, hook: value * 0.5)]):
        _, hooked = model.run_with_cache(tokens)
        scorer.score(hooked)
    assert len(ran) == 2
