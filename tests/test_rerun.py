"""Packed replay against one forward pass per neighbour through the model's own hooks, on every architecture."""

from __future__ import annotations

import pytest
import torch
from tiny_models import ARCHITECTURES, tiny_model

from basins.block_calls import CannotRebuild, packed_mask, record_calls
from basins.lens import as_found, n_layers, resid_post, resid_pre
from basins.rerun import packed_replay, rerun

BATCH, POS = 3, 13  # longer than the sliding window of 5
PADDINGS = ("none", "right", "left")
# Blocks that cannot be packed: state-space models, and windows coded by row index.
UNPACKABLE = {("mamba", 0), ("mamba", 1), ("mamba", 2), ("gpt_neo", 1)}


def padded(padding: str) -> torch.Tensor:
    mask = torch.ones(BATCH, POS, dtype=torch.long)
    if padding == "right":
        mask[1, 9:], mask[2, 11:] = 0, 0
    if padding == "left":
        mask[1, :4], mask[2, :2] = 0, 0
    return mask


def some_tokens() -> torch.Tensor:
    return torch.randint(3, 60, (BATCH, POS), generator=torch.Generator().manual_seed(1))


def one_forward_per_neighbour(model, tokens, mask, layer, sequence, position, state):
    """The definition: run the model on the real tokens, put the state in place, read the block's output there."""
    result = {}

    def put(value, hook):
        value = value.clone()
        value[sequence, position] = state
        return value

    def read(value, hook):
        result["out"] = value[sequence, position].detach().clone()

    with torch.no_grad():
        model.run_with_hooks(
            tokens, attention_mask=mask, fwd_hooks=[(resid_pre(layer), put), (resid_post(layer), read)]
        )
    return result["out"]


def real_queries(mask):
    """A few (sequence, position) queries: first, middle and last real token of every sequence."""
    for sequence in range(len(mask)):
        places = mask[sequence].nonzero()[:, 0].tolist()
        yield from ((sequence, places[i]) for i in (0, len(places) // 2, len(places) - 1))


def patches_and_positions(mask, states):
    queries = list(real_queries(mask))
    donors = states[mask.bool()][torch.randperm(int(mask.sum()), generator=torch.Generator().manual_seed(2))]
    patches = torch.stack([1.1 * donors[i] for i in range(len(queries))])
    per_row = len(queries) // len(mask)
    positions = torch.tensor([position for _, position in queries]).view(len(mask), per_row)
    return queries, patches.view(len(mask), per_row, -1), positions


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_replay_is_one_forward_per_neighbour(name, padding):
    model, tokens, mask = tiny_model(name), some_tokens(), padded(padding)
    layers = range(n_layers(model))
    with as_found(model):
        calls, states = record_calls(model, tokens, mask, layers, layers)
        for layer in layers:
            queries, patches, positions = patches_and_positions(mask, states[layer])
            path = "single_block" if (name, layer) in UNPACKABLE else "packed"
            outputs, next_states = rerun(model, path, calls[layer], states[layer], mask, patches, positions)
            for i, (sequence, position) in enumerate(queries):
                j = i % patches.shape[1]
                expected = one_forward_per_neighbour(
                    model, tokens, mask, layer, sequence, position, patches[sequence, j]
                )
                error = (outputs[sequence, j] - expected).norm() / expected.norm()
                assert error < 1e-5, (layer, sequence, position)
            after = calls_output(model, tokens, mask, layer)
            real = mask.bool()
            assert torch.allclose(
                next_states[real], after[real], rtol=1e-5, atol=1e-5 * float(after[real].norm(dim=-1).mean())
            )


def calls_output(model, tokens, mask, layer):
    kept = {}
    model.run_with_hooks(
        tokens,
        attention_mask=mask,
        fwd_hooks=[(resid_post(layer), lambda value, hook: kept.update(out=value.detach()))],
    )
    return kept["out"]


@pytest.mark.parametrize(("name", "layer"), sorted(UNPACKABLE))
def test_what_cannot_be_packed_is_wrong_or_refused_when_packed(name, layer):
    """The list above is not an excuse: these blocks really come out wrong, or refuse."""
    model, tokens, mask = tiny_model(name), some_tokens(), padded("none")
    with as_found(model):
        calls, states = record_calls(model, tokens, mask, [layer], [layer])
        queries, patches, positions = patches_and_positions(mask, states[layer])
        try:
            outputs, _ = packed_replay(model, calls[layer], states[layer], patches, positions)
        except CannotRebuild:
            return
        sequence, position = queries[-1]
        expected = one_forward_per_neighbour(model, tokens, mask, layer, sequence, position, patches[sequence, -1])
        assert (outputs[sequence, -1] - expected).norm() / expected.norm() > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "bloom", "falcon"])
def test_rows_per_call_do_not_matter(name):
    model, tokens, mask = tiny_model(name), some_tokens(), padded("left")
    with as_found(model):
        calls, states = record_calls(model, tokens, mask, [1], [1])
        _, patches, positions = patches_and_positions(mask, states[1])
        whole, _ = packed_replay(model, calls[1], states[1], patches, positions)
        for rows in (1, 2, 1000):
            part, _ = packed_replay(model, calls[1], states[1], patches, positions, rows_per_call=rows)
            assert torch.allclose(part, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "qwen3"])
def test_packed_replay_in_float64(name):
    model, tokens, mask = tiny_model(name, dtype=torch.float64), some_tokens(), padded("right")
    with as_found(model):
        calls, states = record_calls(model, tokens, mask, [0], [0])
        queries, patches, positions = patches_and_positions(mask, states[0])
        outputs, _ = packed_replay(model, calls[0], states[0], patches, positions)
        sequence, position = queries[-1]
        expected = one_forward_per_neighbour(model, tokens, mask, 0, sequence, position, patches[sequence, -1])
        # Rotary tables and some norms are float32 in any dtype.
        assert (outputs[sequence, -1] - expected).norm() / expected.norm() < 1e-6


@pytest.mark.parametrize("additive", [False, True])
def test_packed_mask_lets_a_patch_see_its_past_and_itself(additive):
    pos, window = 6, 3
    allowed = torch.ones(pos, pos, dtype=torch.bool).tril() & ~torch.ones(pos, pos, dtype=torch.bool).tril(-window)
    mask = allowed[None, None]
    if additive:
        mask = torch.zeros(1, 1, pos, pos).masked_fill(~mask, torch.finfo(torch.float32).min)
    positions = torch.tensor([[4, 0, 4]])
    packed = packed_mask(mask, positions, pos)[0, 0]
    sees = packed if not additive else packed == 0
    assert sees[:pos, :pos].equal(allowed)
    assert not sees[:pos, pos:].any()
    expected = torch.zeros(3, pos + 3, dtype=torch.bool)
    expected[0, [2, 3, pos]] = True
    expected[1, [pos + 1]] = True
    expected[2, [2, 3, pos + 2]] = True
    assert sees[pos:].equal(expected)


def test_packed_mask_without_a_recorded_mask_is_causal():
    positions = torch.tensor([[2]])
    sees = packed_mask(None, positions, 4)[0, 0]
    assert sees[4].tolist() == [True, True, False, False, True]
    assert sees[:4, :4].equal(torch.ones(4, 4, dtype=torch.bool).tril())
