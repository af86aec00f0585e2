"""The re-run core against packed replay and against one forward pass per neighbour, on every block that it knows."""

from __future__ import annotations

import pytest
import torch
from test_rerun import (
    PADDINGS,
    calls_output,
    one_forward_per_neighbour,
    padded,
    patches_and_positions,
    some_tokens,
)
from test_selfcheck import CORES, checked
from tiny_models import ARCHITECTURES, N_LAYERS, tiny_hf_model, tiny_model

import basins
from basins import BasinScorer, core
from basins.block_calls import CannotRebuild, record_calls
from basins.block_parts import block_parts, has_known_parts
from basins.core import Ahead, context_of, project, push
from basins.lens import as_found, n_layers
from basins.rerun import Replay, packed_replay, project_ahead


def relative_error(got, expected):
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", CORES)
def test_core_is_packed_replay_is_one_forward_per_neighbour(name, padding):
    model, tokens, mask = tiny_model(name), some_tokens(), padded(padding)
    layers = range(n_layers(model))
    with as_found(model):
        calls, states = record_calls(model, tokens, mask, layers, layers)
        for layer in layers:
            queries, patches, positions = patches_and_positions(mask, states[layer])
            replay = Replay(model, "core", calls[layer], states[layer], mask)
            outputs = replay.outputs(patches, positions)
            packed, _ = packed_replay(model, calls[layer], states[layer], patches, positions)
            for i, (sequence, position) in enumerate(queries):
                j = i % patches.shape[1]
                expected = one_forward_per_neighbour(
                    model, tokens, mask, layer, sequence, position, patches[sequence, j]
                )
                assert relative_error(outputs[sequence, j], expected) < 1e-5, (layer, sequence, position)
                assert relative_error(outputs[sequence, j], packed[sequence, j]) < 1e-5
            real = mask.bool()
            assert torch.equal(replay.next_states()[real], calls_output(model, tokens, mask, layer)[real])


@pytest.mark.parametrize("name", CORES)
def test_what_is_projected_ahead_is_what_the_patches_project(name):
    model, tokens, mask = tiny_model(name), some_tokens(), padded("left")
    with as_found(model):
        calls, states = record_calls(model, tokens, mask, [1], [1])
        bank = states[1].flatten(0, 1)
        ids = torch.randint(len(bank), (3, 20), generator=torch.Generator().manual_seed(0))
        positions = torch.randint(4, 13, (3, 20), generator=torch.Generator().manual_seed(1))
        ahead = project_ahead(model, 1, "core", bank, len(bank), "float32")
        assert ahead is not None
        replay = Replay(model, "core", calls[1], states[1], mask)
        own = replay.outputs(bank[ids], positions)
        assert relative_error(replay.outputs(bank[ids], positions, Ahead(ahead, ids)), own) < 1e-6
        assert project_ahead(model, 1, "packed", bank, len(bank), "float32") is None
        assert project_ahead(model, 1, "core", bank, len(bank) - 1, "float32") is None


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gemma2"])
def test_pieces_do_not_matter(name, monkeypatch):
    model, tokens, mask = tiny_model(name), some_tokens(), padded("right")
    with as_found(model):
        calls, states = record_calls(model, tokens, mask, [1], [1])
        _, patches, positions = patches_and_positions(mask, states[1])
        parts = block_parts(model, 1)
        context = context_of(parts, calls[1], states[1])
        projected = project(parts, patches.flatten(0, 1))
        ids = torch.arange(patches.shape[:2].numel()).view(patches.shape[:2])
        whole = push(parts, context, patches, positions, Ahead(projected, ids))
        for floats in (1, 2 * 8 * 32, 3 * 8 * 32, 10 * 8 * 32):
            monkeypatch.setattr(core, "FLOATS_PER_PIECE", {"cpu": floats})
            assert relative_error(push(parts, context, patches, positions), whole) < 1e-6
            assert relative_error(push(parts, context, patches, positions, Ahead(projected, ids)), whole) < 1e-6
        nothing = push(parts, context, patches[:, :0], positions[:, :0])
        assert nothing.shape == patches[:, :0].shape


@pytest.mark.parametrize("name", CORES)
def test_other_dtypes(name):
    """float64 to what the block itself has; bfloat16 passes the self-check."""
    for dtype, least in ((torch.float64, ("core", "packed")), (torch.bfloat16, ("core",))):
        model = tiny_model(name, dtype=dtype)
        assert all(result.path in least for result in checked(model, padded("right")).values())


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_by_the_core_are_those_by_packed_replay(name, padding, monkeypatch):
    if name not in CORES:
        assert not any(has_known_parts(tiny_model(name), layer) for layer in range(N_LAYERS))
        return
    model, tokens, mask = tiny_model(name), some_tokens(), padded(padding)
    by_core = BasinScorer(model, k=4).score_tokens(tokens, mask)
    assert by_core.settings["replay"] == {"core": N_LAYERS}
    assert by_core.settings["replay_refused"] == {}
    monkeypatch.setattr("basins.selfcheck.has_known_parts", lambda model, layer: False)
    by_packed = BasinScorer(model, k=4).score_tokens(tokens, mask)
    assert by_packed.settings["replay"] == {"packed": N_LAYERS}
    assert torch.equal(by_core.neighbor_ids, by_packed.neighbor_ids)
    for kind in ("var_in", "var_out", "var_update"):
        value, expected = getattr(by_core, kind), getattr(by_packed, kind)
        assert torch.equal(value.isnan(), expected.isnan())
        keep = expected > 1e-6 * expected.nan_to_num().max()
        assert torch.allclose(value[keep], expected[keep], rtol=1e-4), kind


def test_neighbours_that_are_moved_are_projected_where_they_stand():
    model, tokens = tiny_model("llama"), some_tokens()
    moved = BasinScorer(model, k=4, shrink=0.5).score_tokens(tokens)
    assert moved.settings["replay"] == {"core": N_LAYERS}
    slow = BasinScorer(model, k=4, shrink=0.5)
    with model.hooks(fwd_hooks=[("blocks.2.hook_resid_post", lambda value, hook: value)]):
        by_packed = slow.score_tokens(tokens, layers=[2])
    assert by_packed.settings["replay"] == {"packed": 1}
    assert torch.allclose(moved.var_out[2], by_packed.var_out[0], rtol=1e-4, equal_nan=True)


def test_a_hooked_block_is_not_taken_apart():
    model, tokens = tiny_model("gpt2"), some_tokens()
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda value, hook: value)]):
        scores = BasinScorer(model, k=4).score_tokens(tokens)
    assert scores.settings["replay"] == {"core": 2, "packed": 1}
    assert "hooks" in scores.settings["replay_refused"]["1"]["core"]
    handle = model.blocks[1].mlp.original_component.act.register_forward_pre_hook(lambda module, args: None)
    try:
        with pytest.raises(CannotRebuild, match="hooks"):
            block_parts(model, 1)
    finally:
        handle.remove()
    block_parts(model, 1)


def _wrong_norm(model):
    """The block's own norm and the bridge's no longer agree."""
    norm = model.blocks[1].original_component.input_layernorm
    norm.original_component.forward = lambda states: states
    norm._hf_autograd_forward_with_hooks = lambda states: 2 * states


def _wrong_forward(model):
    """A block that also adds a constant, which none of its parts knows of."""
    block = model.blocks[1].original_component
    right = block.forward
    block.forward = lambda *args, **kwargs: right(*args, **kwargs) + 0.1


@pytest.mark.parametrize("wrong", [_wrong_norm, _wrong_forward])
def test_a_block_that_is_not_the_sum_of_its_parts_is_refused(wrong):
    model = basins.load_model(tiny_hf_model("llama"))
    wrong(model)
    result = checked(model, padded("none"))
    assert [result[layer].path for layer in range(3)] == ["core", "packed", "core"]
    assert "differs from the model's own forward pass" in result[1].refused["core"]


@pytest.mark.parametrize("name", CORES)
def test_core_leaves_the_model_as_found(name, untouched):
    model, tokens = tiny_model(name), some_tokens()
    BasinScorer(model, k=4).score_tokens(tokens)
    with untouched(model):
        scores = BasinScorer(model, k=4, precision="bfloat16").score_tokens(tokens)
    assert scores.settings["replay"] == {"core": N_LAYERS}


def test_chunks_are_of_one_size_without_a_small_rest():
    from basins.sources import even

    assert [even(256, 82), even(10, 3), even(6, 3), even(1, 5), even(0, 5)] == [64, 3, 3, 1, 5]
