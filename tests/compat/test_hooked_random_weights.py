"""A HookedTransformer (TransformerLens 2.18 and 3.9) is built anew from its configuration."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_hooked

from basins import BasinScorer
from basins.lens import fingerprint
from basins.random_weights import random_weights

pytestmark = pytest.mark.compat


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_hooked_transformer_is_built_anew(name, capsys):
    model = tiny_hooked(name)
    before, state = fingerprint(model), torch.get_rng_state()
    made = [random_weights(model, seed) for seed in (1, 1, 2)]
    assert capsys.readouterr().out == ""
    assert torch.equal(torch.get_rng_state(), state)
    assert fingerprint(model) == before
    first, again, other = (fingerprint(one) for one in made)
    assert first == again
    assert len({before, first, other}) == 3
    assert {key: value.shape for key, value in made[0].state_dict().items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }
    tokens = torch.randint(3, 60, (3, 12), generator=torch.Generator().manual_seed(0))
    assert bool(BasinScorer(made[0], k=3).score_tokens(tokens).values.isfinite().all())
