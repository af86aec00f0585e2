"""What is asked of a model besides running it: which one it is, what hooks it has, how it is left."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_model

from basins.errors import BasinsError
from basins.lens import as_found, check_layers, check_model, fingerprint, hook_fingerprint, run, weight_processing


def test_fingerprint_is_of_the_weights():
    assert fingerprint(tiny_model("gpt2", seed=0)) == fingerprint(tiny_model("gpt2", seed=0))
    assert fingerprint(tiny_model("gpt2", seed=0)) != fingerprint(tiny_model("gpt2", seed=1))
    assert fingerprint(tiny_model("gpt2")) != fingerprint(tiny_model("gpt2", dtype=torch.float64))


def test_hook_fingerprint_changes_with_any_hook_and_comes_back():
    model = tiny_model("llama")
    model(torch.randint(3, 60, (1, 5)))  # a bridge hooks itself in its first forward pass
    before = hook_fingerprint(model)
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", lambda value, hook: value)]):
        inside = hook_fingerprint(model)
    handle = model.blocks[0].mlp.register_forward_hook(lambda *args: None)
    assert len({before, inside, hook_fingerprint(model)}) == 3
    handle.remove()
    assert hook_fingerprint(model) == before
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", lambda value, hook: value)]):
        assert hook_fingerprint(model) != inside  # another hook at the same place


def test_modes_of_all_modules_come_back_also_after_an_exception():
    model = tiny_model("gpt2")
    model.train()
    model.blocks[1].eval()
    before = {name: module.training for name, module in model.named_modules()}
    assert len(set(before.values())) == 2
    with pytest.raises(KeyboardInterrupt), as_found(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        raise KeyboardInterrupt
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.is_grad_enabled()
    model.eval()


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom"])
def test_a_pass_ends_where_it_is_told_to_and_leaves_no_hook(name):
    model, ids = tiny_model(name), torch.randint(3, 60, (2, 5))
    model(ids)  # a bridge hooks itself in its first forward pass
    before, seen, heads = hook_fingerprint(model), [], []
    early, last = "blocks.1.hook_resid_pre", "blocks.2.hook_resid_post"
    hooks = [(point, lambda value, hook, point=point: seen.append(point)) for point in (last, early)]
    handle = model.unembed.register_forward_hook(lambda *args: heads.append(1))
    run(model, ids, torch.ones_like(ids), hooks, until="blocks.2.hook_resid_pre")
    assert (seen, heads) == ([early], [])
    run(model, ids, torch.ones_like(ids), hooks, until=last)
    assert (seen, heads) == ([early, early, last], [])
    run(model, ids, torch.ones_like(ids), hooks)
    assert (seen, heads) == ([early, early, last, early, last], [1])
    handle.remove()
    assert hook_fingerprint(model) == before


def test_layers_count_from_either_end_once_each():
    model = tiny_model("gpt2")
    assert check_layers(model, None) == (0, 1, 2)
    assert check_layers(model, -1) == (2,)
    assert check_layers(model, [2, 0, -3]) == (0, 2)
    for wrong in (3, -4, 1.0, True, [], "1"):
        with pytest.raises(BasinsError, match=r"numbered 0 to 2|layers is empty|whole number"):
            check_layers(model, wrong)


def test_what_was_done_to_the_weights_is_said():
    assert weight_processing(tiny_model("gpt2")) == "TransformerBridge: raw weights"


@pytest.mark.parametrize("thing", [torch.nn.Linear(2, 2), "gpt2", None])
def test_what_is_no_transformer_lens_model(thing):
    with pytest.raises(BasinsError, match=r"is not a TransformerLens model .* basins.load_model\(model"):
        check_model(thing)
