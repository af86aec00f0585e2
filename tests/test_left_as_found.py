"""Scoring leaves the model as it was: also under training mode, with gradients, and when it is cut short anywhere."""

from __future__ import annotations

import pytest
import torch
from test_scorer import PADDINGS, cached, tokens_and_mask
from tiny_models import D_MODEL, tiny_model

from basins import BasinScorer
from basins.lens import all_modules

POINT = "blocks.1.hook_attn_out"


class Stop(Exception):
    """Not one of the errors that a self-check expects of a block."""


def use_everything(model, padding="right", **settings):
    """Every public way through the scorer."""
    tokens, mask = tokens_and_mask(padding)
    scorer = BasinScorer(model, k=3, **settings)
    results = [scorer.score(cached(model, tokens, mask), tokens, mask), scorer.score_tokens(tokens, mask)]
    results.append(scorer.score_texts(["a cat sat on a mat", "a dog"]))
    scorer.fit(["a cat sat", "a dog sat on a mat"])
    results.append(scorer.score_texts(["a cat sat on a mat"]))
    return results


@pytest.mark.parametrize("method", ["rerun", "lookup"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "mamba", "bloom"])
def test_every_architecture(name, method, untouched):
    model = tiny_model.__wrapped__(name)
    with untouched(model):
        use_everything(model, method=method)


def test_modes_gradients_and_hooks_of_the_user(untouched):
    """Training mode in some modules, dropout, frozen weights, gradients, hooks: all as the user left them."""
    model = tiny_model.__wrapped__("gpt2")
    tokens, mask = tokens_and_mask("left")
    cache = cached(model, tokens, mask)
    expected = BasinScorer(model, k=3).score(cache, tokens, mask)
    model(tokens, return_type="logits").sum().backward()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    for module in model.original_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    model.blocks[1].eval()
    model.add_hook(POINT, lambda value, hook: value)
    model.blocks[0].register_forward_pre_hook(lambda module, args: None)
    with untouched(model):
        scores = BasinScorer(model, k=3).score(cache, tokens, mask)
        BasinScorer(model, k=3).score_tokens(tokens, mask)
    assert model.training
    assert not model.blocks[1].training
    torch.testing.assert_close(scores.values, expected.values, equal_nan=True)


@pytest.mark.parametrize("grad", [True, False])
def test_results_hold_no_graph_and_the_grad_mode_stays(tiny, grad):
    model = tiny("gpt2")
    with torch.set_grad_enabled(grad):
        _, cache = model.run_with_cache(tokens_and_mask()[0], names_filter=lambda name: "resid" in name)
        one = model.ln_final.weight.sum() / model.ln_final.weight.sum()
        cache = {name: value * one for name, value in cache.items()}
        assert cache["blocks.1.hook_resid_pre"].requires_grad == grad
        scores = BasinScorer(model, k=3).score(cache)
        assert torch.is_grad_enabled() == grad
    assert not scores.values.requires_grad
    assert not scores.lookup.values.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("padding", PADDINGS)
def test_the_cache_is_only_read(pocket_mini, padding):
    tokens, mask = tokens_and_mask(padding)
    cache = cached(pocket_mini, tokens, mask)
    before = {name: (value.clone(), value._version) for name, value in cache.items()}
    BasinScorer(pocket_mini, k=3).score(cache, tokens, mask)
    for name, (value, version) in before.items():
        assert torch.equal(cache[name], value)
        assert cache[name]._version == version


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, FloatingPointError])
@pytest.mark.parametrize("way", ["cache", "sweep", "fit"])
def test_cut_short_at_every_call_of_a_block(way, error, untouched):
    """An error, or Ctrl-C, in the first, second, ... call of a block: recording, self-check, packed re-run, sweep."""
    model = tiny_model.__wrapped__("gpt2")
    tokens, mask = tokens_and_mask("right")
    cache = cached(model, tokens, mask)
    calls, stop_at = 0, 0

    def stop(value, hook):
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise error

    def score():
        if way == "cache":
            BasinScorer(model, k=3).score(cache, tokens, mask)
        elif way == "sweep":
            BasinScorer(model, k=3).score_tokens(tokens, mask)
        else:
            BasinScorer(model, k=3, method="lookup").fit(["a cat sat on a mat"])

    model.train()
    with model.hooks(fwd_hooks=[(POINT, stop)]), untouched(model):
        score()
        total = calls
        assert total >= (1 if way == "fit" else 4)
        for stop_at in range(1, total + 1):
            calls = 0
            with pytest.raises(error):
                score()
            assert calls == stop_at
    assert model.training
    assert torch.is_grad_enabled()


def test_nothing_is_printed_where_nobody_watches(pocket_mini, capfd, monkeypatch):
    monkeypatch.setattr("basins.progress.QUIET_SECONDS", -1.0)
    use_everything(pocket_mini)
    assert capfd.readouterr() == ("", "")


def test_works_again_after_an_interrupt(untouched):
    model = tiny_model.__wrapped__("llama")
    tokens, mask = tokens_and_mask("right")
    scorer = BasinScorer(model, k=3)
    expected = BasinScorer(model, k=3).score_tokens(tokens, mask)

    def interrupt(value, hook):
        if value.shape[1] > tokens.shape[1]:  # only in a packed call
            raise KeyboardInterrupt

    with untouched(model):
        with model.hooks(fwd_hooks=[(POINT, interrupt)]), pytest.raises(KeyboardInterrupt):
            scorer.score_tokens(tokens, mask)
        scores = scorer.score_tokens(tokens, mask)
    assert torch.equal(scores.neighbor_ids, expected.neighbor_ids)
    torch.testing.assert_close(scores.values, expected.values, equal_nan=True)


def test_no_files_are_left_after_an_interrupt(pocket_mini, tmp_path, monkeypatch):
    import gc
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tokens, mask = tokens_and_mask("right")
    seen = []

    def interrupt(value, hook):
        if value.shape[1] > 2 * tokens.shape[1]:
            seen.append(len(list(tmp_path.iterdir())))
            raise KeyboardInterrupt

    with pocket_mini.hooks(fwd_hooks=[("blocks.3.hook_attn_out", interrupt)]), pytest.raises(KeyboardInterrupt):
        BasinScorer(pocket_mini, k=3).score_tokens(tokens, mask, memory_budget=0)
    gc.collect()
    assert seen == [1]
    assert list(tmp_path.iterdir()) == []


def kept_by_modules(model) -> dict[tuple[int, str], int]:
    """How many numbers are in tensors that modules hold as plain attributes, such as the pattern of their last pass."""
    found = {}
    for place, module in enumerate(all_modules(model)):
        for name, value in module.__dict__.items():
            if isinstance(value, torch.Tensor):
                found[place, name] = value.numel()
    return found


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "phi3", "bloom"])
def test_no_pattern_of_a_rerun_is_kept(name):
    """Bridges of fused query, key and value hold their last pattern, and packed replay's is of all rows with all."""
    model = tiny_model.__wrapped__(name)
    model(tokens_and_mask("none")[0])
    before = kept_by_modules(model)
    use_everything(model)
    assert kept_by_modules(model) == before


@pytest.mark.parametrize("method", ["rerun", "lookup"])
@pytest.mark.parametrize("name", ["gpt2", "phi3"])
def test_a_sweep_holds_two_layers_whatever_the_depth(name, method, monkeypatch):
    import gc

    from basins import layer_loop

    tokens, mask = tokens_and_mask("none")
    tokens, mask = tokens.repeat(3, 1), mask.repeat(3, 1)
    original, held = layer_loop.measure_transition, []

    def counted(*args):
        measured = original(*args)
        gc.collect()
        tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor]
        storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
        held.append(sum(n_bytes for n_bytes in storages.values() if n_bytes >= tokens.numel() * D_MODEL * 4))
        return measured

    monkeypatch.setattr(layer_loop, "measure_transition", counted)
    BasinScorer(tiny_model(name), k=3, method=method).score_tokens(tokens, mask)
    assert len(held) == 3
    assert held[2] <= held[1]
