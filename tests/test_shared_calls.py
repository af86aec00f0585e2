"""Calls that batches share are those that the model makes for each of them."""

from __future__ import annotations

import pytest
import torch
from test_block_calls import tensors
from tiny_models import ARCHITECTURES, D_VOCAB, N_LAYERS, tiny_model
from torch import Tensor

from basins import BasinScorer
from basins.block_calls import BlockCall, record_calls
from basins.lens import as_found, resid_pre
from basins.shared_calls import CallRecorder, SharedCall
from basins.sources import record_chunks

BATCH, POS = 7, 11


def some_tokens(batch: int = BATCH) -> Tensor:
    return torch.randint(3, D_VOCAB, (batch, POS), generator=torch.Generator().manual_seed(1))


def mask_of(side: str, batch: int = BATCH) -> Tensor:
    mask = torch.ones(batch, POS, dtype=torch.long)
    if side == "left":
        mask[:, :3] = 0
    if side == "right":
        mask[:, -3:] = 0
    return mask


def all_equal(call: BlockCall, other: BlockCall) -> bool:
    """As the block sees them: a leaf that is one for all sequences may stand for as many equal ones."""
    pairs = list(zip(tensors((call.args, call.kwargs)), tensors((other.args, other.kwargs)), strict=True))
    shapes = all(a.ndim == b.ndim and a.shape[1:] == b.shape[1:] for a, b in pairs)
    return shapes and all(bool((a == b).all()) and a.dtype == b.dtype for a, b in pairs)


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shared_calls_are_the_model_s_own_for_the_whole_batch(name, side):
    model, tokens, mask = tiny_model(name), some_tokens(), mask_of(side)
    layers = range(N_LAYERS)
    with as_found(model):
        recorder = CallRecorder(model, layers)
        calls, states = recorder.record(tokens, mask, (1,))
        own, own_states = record_calls(model, tokens, mask, layers, (1,))
    assert list(recorder.known.values()) != [None]
    assert torch.allclose(states[1][mask.bool()], own_states[1][mask.bool()], atol=1e-6)
    for layer in layers:
        assert (calls[layer].batch, calls[layer].pos) == (BATCH, POS)
        assert calls[layer].arg_names == own[layer].arg_names
        assert calls[layer].kwargs.keys() == own[layer].kwargs.keys()
        assert all_equal(calls[layer], own[layer])


def passes_of(model, tokens, mask, size) -> tuple[int, list]:
    """Blocks run while chunks are recorded, in sequences."""
    seen = []
    handle = model.blocks[0].register_forward_pre_hook(lambda block, args, kwargs: seen.append(args), with_kwargs=True)
    try:
        with as_found(model):
            chunks = record_chunks(model, tokens, mask, range(N_LAYERS), size)
    finally:
        handle.remove()
    return len(seen), chunks


def test_batches_that_are_padded_alike_are_recorded_together():
    model = tiny_model("llama")
    passes, chunks = passes_of(model, some_tokens(12), mask_of("none", 12), 4)
    assert (passes, len(chunks)) == (2, 3)
    # Of three batches, two are padded like each other and one has rows of its own.
    mask = mask_of("left", 12)
    mask[9, :5] = 0
    passes, chunks = passes_of(model, some_tokens(12), mask, 4)
    assert (passes, len(chunks)) == (3, 3)
    assert chunks[2].calls[0].kwargs["attention_mask"].shape[0] == 4


def call(**leaves) -> BlockCall:
    batch = leaves.pop("batch")
    return BlockCall(0, (None,), leaves, ("hidden_states",), batch, POS)


def test_an_argument_that_depends_on_tokens_is_not_shared():
    """A made-up block whose argument is a sum over the batch's tokens, or one row of something for each sequence."""
    first, second = torch.randn(2, POS), torch.randn(3, POS)
    assert SharedCall.of_two(call(batch=2, bias=first), call(batch=3, bias=second)) is None
    assert SharedCall.of_two(call(batch=2, bias=first[:1]), call(batch=3, bias=second[:1])) is None
    assert SharedCall.of_two(call(batch=2, flag=True), call(batch=3, flag=False)) is None
    assert SharedCall.of_two(call(batch=2, one=object()), call(batch=3, one=object())) is None
    assert SharedCall.of_two(call(batch=2, one=None), call(batch=3, other=None)) is None


def test_an_argument_with_a_share_for_each_sequence_grows_with_them():
    rows, heads = torch.arange(POS), torch.randn(4, 1, POS)
    few = call(batch=2, position_ids=rows.expand(2, -1), alibi=heads.repeat(2, 1, 1), table=rows, scale=0.5)
    more = call(batch=3, position_ids=rows.expand(3, -1), alibi=heads.repeat(3, 1, 1), table=rows, scale=0.5)
    shared = SharedCall.of_two(few, more)
    assert shared is not None
    found = shared.of(5)
    assert found.batch == 5
    assert torch.equal(found.kwargs["position_ids"], rows.expand(5, -1))
    assert torch.equal(found.kwargs["alibi"], heads.repeat(5, 1, 1))
    assert found.kwargs["table"] is rows
    assert found.kwargs["scale"] == 0.5


def test_a_model_whose_calls_depend_on_tokens_is_recorded_batch_by_batch(monkeypatch):
    model, tokens = tiny_model("llama"), some_tokens(12)

    def record(model, tokens, mask, layers, keep_states=()):
        calls, states = record_calls(model, tokens, mask, layers, keep_states)
        for one in calls.values():
            one.kwargs["of_tokens"] = tokens.float().mean()
        return calls, states

    monkeypatch.setattr("basins.shared_calls.record_calls", record)
    with as_found(model):
        chunks = record_chunks(model, tokens, mask_of("none", 12), range(N_LAYERS), 4)
    found = [float(chunk.calls[0].kwargs["of_tokens"]) for chunk in chunks]
    assert found == [float(tokens[i : i + 4].float().mean()) for i in (0, 4, 8)]


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "bloom"])
def test_scores_do_not_depend_on_sharing(name, monkeypatch):
    model, tokens = tiny_model(name), some_tokens(9)
    shared = BasinScorer(model, k=3, batch_size=4).score_tokens(tokens)
    monkeypatch.setattr(CallRecorder, "_shared", lambda self, tokens, mask: None)
    alone = BasinScorer(model, k=3, batch_size=4).score_tokens(tokens)
    assert torch.equal(shared.neighbor_ids, alone.neighbor_ids)
    assert torch.allclose(shared.relative, alone.relative, atol=1e-4, equal_nan=True)


def test_a_pass_ends_where_the_last_thing_wanted_is_known():
    model, tokens = tiny_model("gpt2"), some_tokens()
    ran = []
    handles = [
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
        for layer, block in enumerate(model.blocks)
    ]
    try:
        with as_found(model):
            calls, states = record_calls(model, tokens, mask_of("none"), (), (1,))
            assert (list(calls), list(states), ran) == ([], [1], [0])
            ran.clear()
            calls, states = record_calls(model, tokens, mask_of("none"), (2, 0), (1, 0))
            assert (sorted(calls), sorted(states), ran) == ([0, 2], [0, 1], [0, 1])
            ran.clear()
            calls, states = record_calls(model, tokens, mask_of("none"), (0, 1), (0, 1))
            assert (sorted(calls), sorted(states), ran) == ([0, 1], [0, 1], [0])
    finally:
        for handle in handles:
            handle.remove()
    assert not any(model.hook_dict[resid_pre(layer)]._forward_hooks for layer in range(N_LAYERS))
