"""A model with random weights: new, as its architecture starts, and nothing of the old one."""

from __future__ import annotations

import pytest
import torch
from block_models import model_of
from test_fixed_points import cloud
from test_rerun import some_tokens
from tiny_models import tiny_model

from basins import BasinScorer
from basins.errors import BasinsError
from basins.lens import fingerprint
from basins.random_weights import random_weights


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox", "mixtral", "mamba"])
def test_it_is_new_and_the_model_is_left_alone(name, untouched):
    model = tiny_model(name)
    state = torch.get_rng_state()
    with untouched(model):
        made = random_weights(model, 1)
    assert torch.equal(torch.get_rng_state(), state)
    ours = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert not ours & {parameter.untyped_storage().data_ptr() for parameter in made.parameters()}
    shapes = [{key: value.shape for key, value in one.state_dict().items()} for one in (model, made)]
    assert shapes[0] == shapes[1]
    assert fingerprint(made) == fingerprint(random_weights(model, 1))
    assert len({fingerprint(one) for one in (model, made, random_weights(model, 2))}) == 3
    matrices = [w for w in made.parameters() if w.ndim == 2]
    assert all(bool(w.std() > 0) for w in matrices)
    assert not made.training
    scores = BasinScorer(made, k=3).score_tokens(some_tokens())
    assert bool(scores.values.isfinite().all())


def test_weights_are_as_gpt2_starts(pocket):
    model = random_weights(pocket)
    found = dict(model.original_model.named_parameters())
    for name, weight in found.items():
        if ".ln_" in name:
            assert bool((weight == (1 if name.endswith("weight") else 0)).all()), name
        elif name.endswith("bias"):
            assert bool((weight == 0).all()), name
        else:
            residual = any(part in name for part in ("attn.o.", "c_proj", "mlp.out."))
            expected = 0.02 / (16**0.5 if residual else 1)
            assert float(weight.detach().std()) == pytest.approx(expected, rel=0.03), name


def test_dtype_and_tokenizer_are_the_models():
    model = tiny_model("llama", torch.float64)
    made = random_weights(model)
    assert {parameter.dtype for parameter in made.parameters()} == {torch.float64}
    assert made.tokenizer is not None
    assert made.to_tokens("ab").equal(model.to_tokens("ab"))


def test_what_cannot_be_built_anew_is_refused():
    with pytest.raises(BasinsError, match="cannot be built anew"):
        random_weights(model_of(cloud(), lambda x: x))
