"""Any state in any token's place: against one forward pass a state, through the model's own hooks."""

from __future__ import annotations

import pytest
import torch
from test_rerun import one_forward_per_neighbour, padded, some_tokens
from tiny_models import tiny_model

from basins import transition
from basins.errors import BasinsError
from basins.pushing import places


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "mamba"])
def test_pushed_states_come_out_as_from_one_forward_pass_each(name, padding, monkeypatch):
    monkeypatch.setitem(transition.PATCH_FLOATS, "cpu", 256)  # several calls
    model, tokens, mask = tiny_model(name), some_tokens(), padded(padding)
    rng = torch.Generator().manual_seed(3)
    real = mask.flatten().nonzero()[:, 0]
    # Uneven: most of the patches stand in one row, one row has none, and some token is named three times.
    of_last = real[real >= 2 * mask.shape[1]]
    at = torch.cat([of_last, of_last[:2], of_last[:1], real[:2]])[torch.randperm(len(of_last) + 5, generator=rng)]
    for here in places(model, tokens, mask, batch_size=2):
        flat = here.states.flatten(0, 1)
        patches = flat[real[torch.randint(len(real), (len(at),), generator=rng)]] * 1.1
        got = here.push(patches, at)
        for patch, place, output in zip(patches, at.tolist(), got, strict=True):
            sequence, position = divmod(place, mask.shape[1])
            right = one_forward_per_neighbour(model, tokens, mask, here.layer, sequence, position, patch)
            assert torch.allclose(output, right, rtol=1e-4, atol=1e-5), (here.layer, place)


def test_own_states_give_the_next_layer():
    model, tokens, mask = tiny_model("llama"), some_tokens(), padded("right")
    real = mask.flatten().nonzero()[:, 0]
    seen = []
    for here in places(model, tokens, mask, layers=[1, 2]):
        got = here.push(here.states.flatten(0, 1)[real], real)
        assert torch.allclose(got, here.outputs.flatten(0, 1)[real], rtol=1e-4, atol=1e-5)
        seen.append(here.layer)
    assert seen == [1, 2]


def test_what_cannot_be_meant_is_refused_and_the_model_is_left_as_found(untouched):
    model, tokens, mask = tiny_model("gpt2"), some_tokens(), padded("right")
    with untouched(model):
        here = next(iter(places(model, tokens, mask, layers=0)))
        flat = here.states.flatten(0, 1)
        with pytest.raises(BasinsError, match="padding"):
            here.push(flat[:1], torch.tensor([mask.shape[1] + 10]))
        with pytest.raises(BasinsError, match="one row a patch"):
            here.push(flat[:2], torch.tensor([0]))
        del here
        with pytest.raises(BasinsError, match="tokens is None"):
            next(iter(places(model, None)))  # type: ignore[arg-type]
