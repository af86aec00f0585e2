"""Blocks and states whose scores are known on paper (design, section 2), by every route, in float32 and float64."""

from __future__ import annotations

import math

import pytest
import torch
from block_models import ROUTES, UniformAttention, layer_norm, model_of, rms_norm
from torch import Tensor

from basins import BasinScorer

DTYPES = (torch.float32, torch.float64)
FLOOR = 23.025850929940457
routes = pytest.mark.parametrize("route", ROUTES)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def cloud(n: int = 40, d_model: int = 6, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, d_model, generator=rng, dtype=torch.float64).to(dtype)


def scores_of(model, batch: int = 1, **settings):
    """Every token of the vocabulary once, in `batch` sequences, swept by the route that the model was made for."""
    tokens = torch.arange(model.cfg.d_vocab).view(batch, -1)
    scores = BasinScorer(model, **{"k": 5, **settings}).score_tokens(tokens)
    assert scores.settings["replay"] == {model.route: model.cfg.n_layers}
    return scores


def close(actual, expected, dtype=torch.float64, scale: float = 1.0):
    expected = torch.as_tensor(expected, dtype=torch.float64).expand(actual.shape)
    tolerance = scale * (1e-9 if dtype == torch.float64 else 2e-5)
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


def covariance(states: Tensor) -> Tensor:
    """Population covariance of k states."""
    return torch.cov(states.double().T, correction=0)


@routes
@dtypes
def test_identity(route, dtype):
    scores = scores_of(model_of(cloud(dtype=dtype), lambda x: x, route=route))
    assert torch.equal(scores.var_out, scores.var_in)
    assert bool((scores.relative == 0).all())
    assert bool((scores.var_update == 0).all())
    close(scores.update, FLOOR, dtype)


@routes
@dtypes
@pytest.mark.parametrize("a", [2.0, -0.3, 1e-2])
def test_scaling_shifts_by_two_logs(route, dtype, a):
    scores = scores_of(model_of(cloud(dtype=dtype), lambda x: a * x, route=route), eps=1e-30)
    close(scores.values, scores.density - 2 * math.log(abs(a)), dtype)
    close(scores.relative, -2 * math.log(abs(a)), dtype)
    close(scores.update, scores.density - 2 * math.log(abs(a - 1)), dtype)


@routes
@dtypes
def test_linear_block_maps_the_covariance(route, dtype):
    states, matrix, shift = cloud(dtype=dtype), cloud(6, 6, dtype, seed=1), cloud(1, 6, dtype, seed=2)
    scores = scores_of(model_of(states, lambda x: x @ matrix.T + shift, route=route))
    a = matrix.double()
    for p in range(len(states)):
        s = covariance(states[scores.neighbor_ids[0, 0, p]])
        close(scores.var_in[0, 0, p], torch.trace(s), dtype)
        close(scores.var_out[0, 0, p], torch.trace(a @ s @ a.T), dtype)
        close(scores.var_update[0, 0, p], torch.trace((a - torch.eye(6)) @ s @ (a - torch.eye(6)).T), dtype)


@routes
@dtypes
def test_constant_block_is_at_the_floor(route, dtype):
    constant = cloud(1, 6, dtype, seed=3)[0]
    scores = scores_of(model_of(cloud(dtype=dtype), lambda x: constant.expand_as(x), route=route))
    assert bool((scores.var_out == 0).all())
    close(scores.values, FLOOR, dtype)
    close(scores.update, scores.density, dtype)  # what it writes takes the whole neighbourhood away


@dtypes
@pytest.mark.parametrize(("norm", "offset"), [(rms_norm, 0.0), (layer_norm, 0.0), (layer_norm, 4.0)])
def test_norms_erase_radial_differences(norm, offset, dtype):
    """Radii of powers of two and, for LayerNorm, a shift along (1, ..., 1): all outputs are the same, bit for bit."""
    direction = torch.tensor([1.0, -3.0, 2.0, 5.0, -4.0, -1.0, 3.0, -3.0], dtype=dtype)
    states = torch.stack([2.0**i * direction + (offset if i % 2 else 0.0) for i in range(9)])
    scores = scores_of(model_of(states, norm))
    assert bool((scores.var_in > 1).all())
    assert bool((scores.var_out == 0).all())
    close(scores.values, FLOOR, dtype)
    assert bool((scores.relative > 20).all())


def test_attention_switched_off_makes_rerun_and_lookup_agree():
    weights = cloud(6, 6, seed=1)
    model = model_of(cloud(), *2 * [lambda x: x + (x @ weights).tanh() @ weights.T])
    scores = scores_of(model, batch=4)
    for name in ("values", "relative", "update", "var_out"):
        close(getattr(scores.lookup, name), getattr(scores, name))
    attends = model_of(cloud(), UniformAttention(weights, weights, weights[0]))
    scores = scores_of(attends, batch=4)
    assert float((scores.lookup.values - scores.values).abs().max()) > 0.1


@routes
@dtypes
def test_even_attention_writes_its_share_of_the_patched_state(route, dtype):
    """y = x + LN(x) W_V W_O / (p + 1) + constant: only the query's own share moves with the neighbour."""
    states, w_v, w_o = cloud(dtype=dtype), cloud(6, 6, dtype, seed=1), cloud(6, 6, dtype, seed=2)
    model = model_of(states, UniformAttention(w_v, w_o, 10 * states[0]), route=route)
    mask = torch.ones(4, 10, dtype=torch.long)
    mask[1, :3], mask[2, 7:] = 0, 0
    scores = BasinScorer(model, k=4).score_tokens(torch.arange(40).view(4, 10), mask)
    assert scores.settings["replay"] == {route: 1}
    checked = 0
    for b, p in mask.nonzero().tolist():
        x = states[scores.neighbor_ids[0, b, p]].double()
        attended = int(mask[b, : p + 1].sum())
        written = layer_norm(x) @ w_v.double() @ w_o.double() / attended
        close(scores.var_out[0, b, p], torch.trace(covariance(x + written)), dtype)
        close(scores.var_update[0, b, p], torch.trace(covariance(written)), dtype)
        checked += 1
    assert checked == 34
    assert bool(scores.values[0, 1, :3].isnan().all())


def _axes(dtype: torch.dtype) -> Tensor:
    """The origin, and s e_j with s = 2 for 15 axes."""
    return torch.cat([torch.zeros(1, 15, dtype=dtype), 2 * torch.eye(15, dtype=dtype)])


def _two_piles(dtype: torch.dtype) -> Tensor:
    """The origin, 5 states at +3 and 10 at -3 on one axis."""
    return torch.tensor([[0.0]] + 5 * [[3.0]] + 10 * [[-3.0]], dtype=dtype)


@dtypes
@pytest.mark.parametrize(
    ("states", "expected", "var"), [(_axes, -1.3173015, 56 / 15), (_two_piles, -2.0794415, 8.0)], ids=["axes", "piles"]
)
def test_exact_clouds(states, expected, var, dtype):
    scores = scores_of(model_of(states(dtype), lambda x: x), k=15)
    close(scores.var_out[0, 0, 0], var, dtype, 0.1)
    assert float(scores.values[0, 0, 0]) == pytest.approx(expected, abs=2e-6)


@dtypes
@pytest.mark.parametrize(
    ("include_self", "k", "expected"), [(False, 14, 1.6094379), (True, 15, 1.6784308)], ids=["left out", "included"]
)
def test_exact_grid(include_self, k, expected, dtype):
    """Step 0.1 on a line, an interior point. Dividing by k - 1 instead of k would be off by ln(k / (k - 1)), 0.07."""
    states = 0.1 * torch.arange(31, dtype=dtype)[:, None]
    scores = scores_of(model_of(states, lambda x: x), k=k, include_self=include_self)
    assert float(scores.values[0, 0, 15]) == pytest.approx(expected, abs=2e-6 if dtype == torch.float64 else 5e-6)
    assert (15 in scores.neighbor_ids[0, 0, 15]) == include_self


@dtypes
def test_rotating_the_residual_basis_changes_nothing(dtype):
    states, w_in, w_out = cloud(dtype=dtype), cloud(6, 12, dtype, seed=1), cloud(12, 6, dtype, seed=2)
    rotation = torch.linalg.qr(cloud(6, 6, seed=4)).Q.to(dtype)

    def block(x):
        return x + (x @ w_in).tanh() @ w_out

    plain = scores_of(model_of(states, block), batch=2)
    turned = scores_of(model_of(states @ rotation, lambda x: block(x @ rotation.T) @ rotation), batch=2)
    assert torch.equal(plain.neighbor_ids, turned.neighbor_ids)
    for name in ("values", "relative", "update", "density"):
        close(getattr(turned, name), getattr(plain, name), dtype, 10)


@pytest.mark.parametrize("attention", [False, True])
def test_shrinking_reaches_the_jacobian_limit(attention):
    """R -> ln(tr S / tr J S J^T) with J by autograd at the query, in its place and context."""
    # A neighbourhood that is small against its distance from the origin, where LayerNorm is not smooth.
    states, w, v = 2 * cloud(1, seed=7) + 0.3 * cloud(), 0.5 * cloud(6, 6, seed=1), 0.5 * cloud(6, 6, seed=2)
    inner = UniformAttention(w, v, w[0]) if attention else None
    model = model_of(states, inner or (lambda x: x + (x @ w).tanh() @ v))
    scores = scores_of(model, k=15, shrink=1e-3, eps=1e-20)
    finite = scores_of(model, k=15)
    for p in range(0, 40, 3):

        def output(state, p=p):
            rows = states.clone().index_put((torch.tensor(p),), state)
            mask = torch.ones(40, 40, dtype=torch.bool).tril()[None, None]
            return model.blocks[0].inner(rows[None], mask)[0, p]

        jacobian = torch.autograd.functional.jacobian(output, states[p])
        s = covariance(states[scores.neighbor_ids[0, 0, p]])
        limit = math.log(torch.trace(s) / torch.trace(jacobian @ s @ jacobian.T))
        assert float(scores.relative[0, 0, p]) == pytest.approx(limit, abs=2e-4)
        assert float(scores.var_in[0, 0, p]) == pytest.approx(1e-6 * float(torch.trace(s)), rel=1e-6)
    assert float((finite.relative - scores.relative).abs().max()) > 2e-3


@routes
@dtypes
@pytest.mark.parametrize("norm", [1.0, 22_000.0])
def test_coinciding_states_are_a_floor_and_say_so(route, dtype, norm):
    state = cloud(1, 6, dtype, seed=5)
    states = (norm * state / state.norm()).expand(12, 6).clone()
    w = cloud(6, 6, dtype, seed=1)
    scores = scores_of(model_of(states, lambda x: x + (x @ w).tanh(), route=route))
    close(scores.values, FLOOR, dtype)
    close(scores.update, FLOOR, dtype)
    assert bool(scores.relative.isnan().all())
    assert bool((scores.n_distinct == 1).all())
    assert bool((scores.neighbor_distances == 0).all())


def test_neighbours_that_coincide_away_from_the_query_have_no_ratio_either():
    states = torch.tensor([[0.0, 0.0]] + 5 * [[1.0, 1.0]], dtype=torch.float64)
    scores = scores_of(model_of(states, lambda x: 2 * x))
    assert math.isnan(scores.relative[0, 0, 0])
    assert int(scores.n_distinct[0, 0, 0]) == 2
    assert float(scores.relative[0, 0, 1]) == pytest.approx(-2 * math.log(2))  # the others see the origin too


def test_the_own_context_term_is_the_difference_of_the_methods(pocket_mini):
    """R_lookup = R_rerun - D with D = ln V_own - ln V_rerun."""
    tokens = pocket_mini.to_tokens("It was the best of times, it was the worst of times, it was the age of wisdom.")
    scores = BasinScorer(pocket_mini, k=5, dtype="float64").score_tokens(tokens)
    own_context = scores.lookup.var_out.log() - scores.var_out.log()
    scored = scores.n_distinct >= 3
    close(scores.lookup.relative[scored], (scores.relative - own_context)[scored])
    assert float(own_context[scored].abs().max()) > 0.1
