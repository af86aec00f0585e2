"""What is recorded of a block's call, and how it is rebuilt for other rows and positions."""

from __future__ import annotations

import pytest
import torch
from test_rerun import padded, some_tokens
from tiny_models import ARCHITECTURES, N_LAYERS, tiny_model
from torch import Tensor

from basins.block_calls import CannotRebuild, _take_positions, _take_rows, record_calls
from basins.lens import as_found
from basins.patching import call_block


def tensors(value):
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_recorded_call_reproduces_the_block_and_keeps_no_states_and_no_cache(name):
    model, tokens, mask = tiny_model(name), some_tokens(), padded("right")
    layers = range(N_LAYERS)
    with as_found(model):
        calls, states = record_calls(model, tokens, mask, layers, layers)
        for layer in layers:
            call = calls[layer]
            kept = [*tensors(call.args), *tensors(call.kwargs)]
            assert not any(t.is_floating_point() and t.shape == states[layer].shape for t in kept)
            assert not any(hasattr(value, "get_seq_length") for value in [*call.args, *call.kwargs.values()])
            args, kwargs = call.with_states(states[layer], lambda name, leaf: leaf)
            again = call_block(model, layer, args, kwargs, states[layer])
            if layer + 1 < N_LAYERS:
                assert torch.allclose(again[mask.bool()], states[layer + 1][mask.bool()], rtol=1e-5, atol=1e-5)


def test_nothing_depends_on_the_tokens():
    model, mask = tiny_model("gemma3"), padded("left")
    with as_found(model):
        first, _ = record_calls(model, some_tokens(), mask, [0, 1])
        second, _ = record_calls(model, torch.zeros_like(mask), mask, [0, 1])
    for layer in (0, 1):
        for a, b in zip(tensors(first[layer].kwargs), tensors(second[layer].kwargs)):
            assert torch.equal(a, b)


def test_a_mask_that_all_sequences_share_is_kept_once_and_blocks_go_on_sharing_it():
    model, tokens = tiny_model("llama"), some_tokens()
    with as_found(model):
        same, _ = record_calls(model, tokens, padded("none"), [0, 1])
        different, _ = record_calls(model, tokens, padded("left"), [0, 1])
    assert same[0].kwargs["attention_mask"].shape[0] == 1
    assert same[0].kwargs["attention_mask"] is same[1].kwargs["attention_mask"]
    assert different[0].kwargs["attention_mask"].shape[0] == len(tokens)


def test_hooks_are_gone_after_an_exception_in_the_middle():
    model, tokens = tiny_model("gpt2"), some_tokens()

    def stop(value, hook):
        raise KeyboardInterrupt

    with as_found(model), model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", stop)]), pytest.raises(KeyboardInterrupt):
        record_calls(model, tokens, padded("none"), [0, 1, 2], [0, 1, 2])
    for layer in range(N_LAYERS):
        assert not model.blocks[layer]._forward_pre_hooks
        assert not model.hook_dict[f"blocks.{layer}.hook_resid_pre"]._forward_hooks


BATCH, POS, HEADS = 2, 5, 3
POSITIONS = torch.tensor([[0, 4, 4], [1, 2, 3]])


@pytest.mark.parametrize(
    ("name", "shape", "axis"),
    [
        ("position_ids", (1, POS), 1),
        ("position_ids", (BATCH, POS), 1),
        ("position_embeddings", (1, POS, 8), 1),
        ("position_embeddings", (BATCH, POS, POS), 1),  # a rotary table as wide as the sequence is long
        ("alibi", (BATCH * HEADS, 1, POS), 2),
        ("alibi", (BATCH, HEADS, 1, POS), 3),
        ("something_new", (BATCH, POS, 7), 1),
    ],
)
def test_arguments_are_gathered_along_their_position_axis(name, shape, axis):
    value = torch.randn(shape)
    result = _take_positions(name, value, POSITIONS, BATCH, POS)
    per_sequence = value.expand(BATCH, *shape[1:]) if shape[0] == 1 else value
    lead = per_sequence.shape[0] // BATCH
    for row in range(per_sequence.shape[0]):
        expected = per_sequence[row].index_select(axis - 1, POSITIONS[row // lead])
        assert torch.equal(result[row], expected)


@pytest.mark.parametrize(("name", "shape"), [("something_new", (BATCH, POS, POS)), ("something_new", (BATCH, 7, 8))])
def test_an_argument_of_unknown_role_is_refused(name, shape):
    with pytest.raises(CannotRebuild, match="something_new of shape"):
        _take_positions(name, torch.randn(shape), POSITIONS, BATCH, POS)


def test_rows_are_copies_of_their_sequences():
    rows = torch.tensor([1, 0, 1])
    alibi = torch.arange(BATCH * HEADS).float().view(BATCH * HEADS, 1, 1)
    assert _take_rows("alibi", alibi, rows, BATCH).flatten().tolist() == [3, 4, 5, 0, 1, 2, 3, 4, 5]
    assert _take_rows("attention_mask", torch.tensor([[7], [8]]), rows, BATCH).flatten().tolist() == [8, 7, 8]
    shared = torch.zeros(1, 4)
    assert _take_rows("position_ids", shared, rows, BATCH) is shared
    with pytest.raises(CannotRebuild):
        _take_rows("something_new", torch.zeros(7, 2), rows, BATCH)


def test_a_sequence_as_long_as_the_model_is_wide_is_packed(monkeypatch):
    """Nothing is told apart by size alone: here pos == d_model."""
    from basins import BasinScorer

    model = tiny_model("gpt2")
    tokens = torch.randint(3, 60, (2, model.cfg.d_model))
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    assert BasinScorer(model, k=3).score(cache).settings["replay"] == {"core": N_LAYERS}
    monkeypatch.setattr("basins.selfcheck.has_known_parts", lambda model, layer: False)
    assert BasinScorer(model, k=3).score(cache).settings["replay"] == {"packed": N_LAYERS}
