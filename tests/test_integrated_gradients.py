"""Integrated gradients against their own sum, against Captum, and with the mean of a fitted bank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import N_LAYERS
from torch import nn

from basins import BasinScorer, BasinsError
from basins.lens import resid_pre
from basins.passes import Passes
from basins.path_points import PROBES, even_points, lowest_scale, points_from_zero
from basins.targets import make_target


def made_tokens(batch: int = 2, pos: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, 64, (batch, pos), generator=torch.Generator().manual_seed(seed))


def passes_of(model, tokens, mask=None) -> Passes:
    mask = torch.ones_like(tokens) if mask is None else mask
    return Passes(model, tokens, mask, mask.bool(), tuple(range(N_LAYERS)), 8, torch.float64)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("baseline", ["mean", "zero"])
def test_256_steps_close_completeness_to_one_percent(tiny, untouched, name, baseline):
    """From zero, where each norm after the layer turns at a scale of its own: seven of them after layer 0 of Llama."""
    model, tokens = tiny(name, torch.float64), made_tokens()
    mask = torch.ones_like(tokens)
    mask[1, 4:] = 0
    with untouched(model):
        found = BasinScorer(model).attribute(
            tokens, mask, method="integrated_gradients", target="next_token", baseline=baseline, steps=256
        )
    passes, rows = passes_of(model, tokens, mask), torch.arange(2)
    aim = make_target("next_token", None, tokens, mask, 64)
    for layer, states in passes.states(rows, passes.layers).items():
        real = states[mask.bool()]
        start = states.clone()
        start[mask.bool()] = real.mean(0) if baseline == "mean" else torch.zeros_like(real[0])
        gained = passes.outcome(rows, aim) - passes.outcome(rows, aim, {layer: start})
        summed = found.values[layer].nansum(-1)
        torch.testing.assert_close(found.target_change[layer], gained, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(found.completeness_gap[layer], summed - gained, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.relative_gap, (found.completeness_gap / found.target_change).abs())
    assert (found.relative_gap < 0.01).all(), found.relative_gap
    said = found.settings
    assert (said["baseline"], said["steps"]) == (baseline, 256)
    assert said.get("mean_of") == ("the usable tokens of this call" if baseline == "mean" else None)
    assert ("lowest_scale" in said) == (baseline == "zero")


def test_steps_are_more_from_zero_unless_said(tiny):
    scorer, tokens = BasinScorer(tiny("gpt2")), made_tokens(1, 3)
    steps = {
        baseline: scorer.attribute(tokens, method="integrated_gradients", baseline=baseline, layers=-1).settings[
            "steps"
        ]
        for baseline in ("mean", "zero")
    }
    assert steps == {"mean": 50, "zero": 256}


@pytest.mark.parametrize(
    ("name", "baseline"),
    [("gpt2", "mean"), ("llama", "mean"), ("gpt_neox", "mean"), ("gpt2", "zero"), ("gpt_neox", "zero")],
)
def test_agree_with_captum(tiny, untouched, name, baseline):
    """Captum's points are those of Gauss and Legendre on the whole path: from zero it needs many more of them, and for
    the turns of a Llama's norms no number is enough.
    """
    captum = pytest.importorskip("captum.attr", reason="needs: pip install captum (the dev extra has it)")
    model, tokens = tiny(name, torch.float64), made_tokens(1, 5)
    with untouched(model):
        scorer = BasinScorer(model)
        found = scorer.attribute(tokens, method="integrated_gradients", target=7, baseline=baseline, steps=256).values
    for layer, states in passes_of(model, tokens).states(torch.tensor([0]), range(N_LAYERS)).items():
        door = nn.Identity()  # Captum integrates over what comes out of a module: here the states entering the block

        def outcome(given: torch.Tensor, layer: int = layer, door: nn.Module = door) -> torch.Tensor:
            hooks = [(resid_pre(layer), lambda value, hook: door(given))]
            many = tokens.expand(len(given), -1)
            mask = torch.ones_like(many)
            logits = model.run_with_hooks(many, fwd_hooks=hooks, return_type="logits", attention_mask=mask)
            return logits[:, -1, 7]

        start = states.mean(1, keepdim=True).expand_as(states) if baseline == "mean" else torch.zeros_like(states)
        expected, delta = captum.LayerIntegratedGradients(outcome, door).attribute(
            states,
            start,
            n_steps=256 if baseline == "mean" else 2000,
            method="gausslegendre",
            return_convergence_delta=True,
        )
        torch.testing.assert_close(found[layer], expected.sum(-1).double(), atol=1e-4, rtol=1e-4)
        assert abs(float(delta)) < 0.01


@pytest.mark.parametrize("method", ["integrated_gradients", "ablation"])
def test_the_mean_state_is_the_fitted_banks(tiny, untouched, method):
    model, tokens, bank = tiny("llama", torch.float64), made_tokens(2, 6), made_tokens(4, 8, seed=1)
    mask = torch.ones_like(bank)
    mask[2, 5:] = 0
    with torch.no_grad():
        _, cache = model.run_with_cache(bank, attention_mask=mask)
    scorer = BasinScorer(model, k=2, exclude_first=1)
    own = (
        scorer.attribute(tokens, method=method, target=7)
        if method != "ablation"
        else scorer.attribute(tokens, method=method)
    )
    with untouched(model):
        fitted = scorer.fit(cache, attention_mask=mask).attribute(tokens, method=method)
    assert own.settings["mean_of"] == "the usable tokens of this call"
    assert fitted.settings["mean_of"] == "the 25 usable tokens of the fitted bank"
    usable = mask.bool() & (mask.cumsum(1) > 1)
    passes = passes_of(model, tokens)
    aim = make_target("next_token" if method == "ablation" else "max_logit", None, tokens, passes.mask, 64)
    rows = torch.arange(2)
    for layer, states in passes.states(rows, passes.layers).items():
        mean = cache[resid_pre(layer)][usable].mean(0)
        start = mean.expand_as(states).clone()
        if method == "ablation":
            start = torch.cat([states[:, :3], start[:, 3:4], states[:, 4:]], 1)
        change = passes.outcome(rows, aim) - passes.outcome(rows, aim, {layer: start})
        expected = fitted.target_change[layer] if method != "ablation" else fitted.values[layer, :, 3]
        torch.testing.assert_close(expected, change, atol=1e-6, rtol=1e-6)


def test_a_bank_without_the_layer_says_so(tiny):
    model, bank = tiny("gpt2"), made_tokens(4, 8)
    with torch.no_grad():
        _, cache = model.run_with_cache(bank, names_filter=[resid_pre(0), "blocks.0.hook_resid_post"])
    scorer = BasinScorer(model, k=2).fit(cache)
    with pytest.raises(BasinsError, match=r"layer=2 is not in the cache"):
        scorer.attribute(made_tokens(), method="ablation", layers=2)


@pytest.mark.parametrize(
    ("turn", "lowest"), [(0.3, 1e-4), (0.3, 1e-16), (1e-3, 1e-6), (1e-3, 1e-32), (1e-5, 1e-8), (1e-12, 1e-16)]
)
def test_points_from_zero_integrate_a_turn_at_any_scale(turn, lowest):
    """f(a) = a / sqrt(a^2 + turn^2), a norm's own shape: f(1) - f(0) is known."""
    places, weights = points_from_zero(256, np.array([lowest]))
    slope = turn**2 / (places**2 + turn**2) ** 1.5
    assert float((weights * slope).sum()) == pytest.approx(1 / np.sqrt(1 + turn**2), rel=1e-4)
    assert (places > 0).all()
    assert (places <= 1).all()
    assert float(weights.sum()) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_few_steps_are_no_error(steps):
    for places, weights in (points_from_zero(steps, np.array([1e-6, 1e-2])), even_points(steps, 2)):
        assert places.shape == weights.shape == (steps, 2)
        assert np.isfinite(places).all()
        assert np.isfinite(weights).all()
    np.testing.assert_allclose(even_points(steps, 2)[1].sum(0), 1)


def test_lowest_scale_is_where_the_target_stops_changing():
    before, after = torch.zeros(4), torch.tensor([1.0, 1.0, 0.0, 1.0])
    probed = torch.zeros(len(PROBES), 4)
    probed[0] = after
    probed[1:6, 0] = 0.5  # changes down to 1e-5
    probed[1:, 1] = 0.5  # down to the smallest
    probed[11, 3] = 0.5  # hardly changes above 1e-11, and then once
    assert lowest_scale(before, after, probed).tolist() == [1e-6, 1e-32, 0.1, 1e-12]
