"""HookedTransformer (TransformerLens 2.18 and 3.9) gives the scores of the bridge (4.3) for the same weights.

`make test-compat` makes the reference and runs this file in each environment.
"""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

import pytest
import torch
from cases import ATTRIBUTIONS, MODELS, SCORES, SETTINGS, TINY, attribute, score
from safetensors.torch import load_file

import basins
from basins import Attribution, BasinScores

pytestmark = pytest.mark.compat


@pytest.fixture(scope="module")
def reference() -> Path:
    return Path(os.environ["BASINS_COMPAT"])


@pytest.fixture(scope="module")
def models(reference):
    """HookedTransformers with the reference's weights, and the shipped model as `load_model` wraps it here."""
    from tiny_models import tiny_hooked

    tiny = {name: tiny_hooked(name, state=load_file(reference / f"{name}.safetensors")) for name in TINY}
    return {name: tiny[name] if name in TINY else basins.load_model(name) for name in MODELS}


def test_this_is_another_transformer_lens(reference):
    expected = BasinScores.load(reference / "gpt2-defaults").settings["versions"]["transformer-lens"]
    assert expected.split(".")[0] == "4"
    assert metadata.version("transformer-lens").split(".")[0] in ("2", "3")


@pytest.mark.parametrize("name", TINY)
def test_models_have_the_same_states(name, models, reference):
    """The premise: without it, a difference of scores says nothing about scoring."""
    from cases import batch
    from tiny_models import tiny_hf_model

    hf_model = tiny_hf_model(name)
    hf_model.load_state_dict(load_file(reference / f"{name}.safetensors"))
    tokens, attention_mask = batch()
    with torch.no_grad():
        expected = hf_model(tokens, attention_mask=attention_mask, output_hidden_states=True).hidden_states
        _, cache = models[name].run_with_cache(tokens, attention_mask=attention_mask)
    real = attention_mask.bool()
    for layer in range(hf_model.config.num_hidden_layers):
        actual = cache[f"blocks.{layer}.hook_resid_pre"]
        torch.testing.assert_close(actual[real], expected[layer][real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("title", SETTINGS)
@pytest.mark.parametrize("name", MODELS)
def test_same_scores_as_the_bridge(name, title, models, reference, untouched):
    expected = BasinScores.load(reference / f"{name}-{title}")
    with untouched(models[name]):
        actual = score(models[name], SETTINGS[title])
    assert actual.layers == expected.layers
    assert torch.equal(actual.neighbor_ids, expected.neighbor_ids)
    assert torch.equal(actual.n_distinct, expected.n_distinct)
    for field in SCORES:
        torch.testing.assert_close(
            getattr(actual, field), getattr(expected, field), rtol=1e-4, atol=1e-4, equal_nan=True, msg=field
        )
    assert (actual.lookup is None) == (expected.lookup is None)
    if expected.lookup is not None:
        for field in ("values", "relative", "update"):
            torch.testing.assert_close(
                getattr(actual.lookup, field), getattr(expected.lookup, field), rtol=1e-4, atol=1e-4, equal_nan=True
            )


@pytest.mark.parametrize("method", ATTRIBUTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_same_attributions_as_the_bridge(name, method, models, reference, untouched):
    expected = Attribution.load(reference / f"{name}-{method}")
    with untouched(models[name]):
        actual = attribute(models[name], method)
    assert actual.layers == expected.layers
    # Products and differences of states lose digits where they cancel: the scale is that of the layer's largest value.
    size = expected.values.abs().nan_to_num(0).amax((1, 2), keepdim=True)
    torch.testing.assert_close(actual.values / size, expected.values / size, rtol=0, atol=1e-4, equal_nan=True)
    for field in ("completeness_gap", "target_change"):
        assert (getattr(actual, field) is None) == (getattr(expected, field) is None)
    if expected.target_change is not None:
        torch.testing.assert_close(actual.target_change, expected.target_change, rtol=1e-3, atol=1e-3)
